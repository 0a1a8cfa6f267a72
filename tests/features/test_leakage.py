"""No feature knows the future, whatever feature groups there are: what is asked is the specification alone.

Altering or deleting anything at or after a decision changes no feature of it, and shifting a whole log by weeks changes
nothing. Both are asked of every decision point of random logs, in each of the three ways that points are made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.backend import Backend
from pipeline.features.samples import SampleRequest
from pipeline.features.similarity import Similarity
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, feature_table
from tests.features.logs import DAY, EVERYTHING, KINDS, Event, frame_of, logs, ordered, random_log

WEEK = 7 * DAY
START = 20_458 * DAY  # 2026-01-05, a Monday: in Berlin and New York no clock changes in the weeks around it
SPEC = replace(
    FeatureSpec.from_config(EVERYTHING, KINDS), similarity=Similarity(("a", "b"), ((1.0, -0.5), (-0.5, 1.0)))
)
WAYS: dict[str, dict[str, Any]] = {
    "exposures": {"exposure": "send"},
    "snapshots": {"exposure": None, "every": DAY},
    "score": {"purpose": "score", "exposure": "send"},
}

generated = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def request(way: str, **changes: Any) -> SampleRequest:
    base = {"purpose": "train", "as_of": START + 40 * DAY, "heads": (), "timezone": "Europe/Berlin"}
    return SampleRequest(**{**base, "active_within": 90 * DAY, **WAYS[way], **changes})


def made(backend: Backend, events: list[Event], asked: SampleRequest) -> FeatureTable:
    return feature_table(frame_of(ordered(events), backend, machine=True), SPEC, asked, backend)


def rows(backend: Backend, table: FeatureTable) -> dict[tuple[int, int, int], bytes]:
    """(key, at, event_id) -> the bits of the features."""
    keys = backend.to_pandas(table.keys)
    ids = keys["event_id"] if "event_id" in keys else np.zeros(len(keys), dtype=int)
    at = keys["at"].to_numpy().astype("int64")
    X = backend.to_host(table.X)
    return {
        (int(k), int(t), int(i)): x.tobytes() for k, t, i, x in zip(keys["subscriber_key"], at, ids, X, strict=True)
    }


def placed(events: list[Event]) -> list[Event]:
    return [e._replace(ts=START + e.ts) for e in events]


@pytest.mark.parametrize("way", WAYS)
@generated
@given(
    events=logs(machine=True),
    others=logs(machine=True, max_size=12),
    at=st.integers(0, 40),
    deleted=st.sets(st.integers(0, 40)),
    kind=st.sampled_from(KINDS),
)
def test_what_happens_at_or_after_the_decision_changes_no_feature(
    backend: Backend, way: str, events: list[Event], others: list[Event], at: int, deleted: set[int], kind: str
) -> None:
    """Some of the events at or after an instant are deleted, the others altered, and new ones come: same features."""
    instant = START + at * DAY // 2
    events, others = placed(events), placed(others)
    past = [e for e in events if e.ts < instant]
    # Something happens to everybody at the very instant, which is where a window that is closed would see it.
    events += [Event(key, instant, kind, "a", 600 + i) for i, key in enumerate(sorted({e.key for e in past}))]
    future = [e for e in events if e.ts >= instant and e.event_id not in deleted]
    altered = [e._replace(value=e.value + 7, machine=not e.machine, campaign="z") for e in future]
    new = [e._replace(event_id=500 + i) for i, e in enumerate(others) if e.ts >= instant]
    asked = request(way, at=instant if way == "score" else None)
    if way == "exposures":  # a decision at the instant itself
        marker = [Event(7, instant, "send", "a", 900)]
        events, past = events + marker, past + marker
    left, right = (rows(backend, made(backend, log, asked)) for log in (events, past + altered + new))
    common = [k for k in left if k[1] < instant or (k[1] == instant and (way != "exposures" or k[2] == 900))]
    if way != "exposures":
        assert [k for k in right if k[1] <= instant] == common
    assert all(left[k] == right[k] for k in common)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weeks", [-3, 2])
@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
def test_shifting_by_whole_weeks_changes_nothing(backend: Backend, way: str, weeks: int, timezone: str) -> None:
    """Within weeks of one offset from UTC: where clocks change, hours do. Of the hold-out, where no campaign is hidden:
    which are is a hash of the time."""
    events = placed(random_log(np.random.default_rng(6), 1000, 20, 40))
    later = [e._replace(ts=e.ts + weeks * WEEK) for e in events]
    asked = request(way, timezone=timezone, holdout_share=1.0)
    one = made(backend, events, asked)
    two = made(backend, later, replace(asked, as_of=asked.as_of + weeks * WEEK))
    assert len(one) > 10
    assert backend.to_host(one.X).tobytes() == backend.to_host(two.X).tobytes()


def test_no_feature_is_asked_in_vain(backend: Backend) -> None:
    """Every feature differs between some two decisions of these logs: a constant one could not leak, nor be tested."""
    events = placed(random_log(np.random.default_rng(6), 1000, 20, 40))
    machine = [e._replace(machine=e.event_id % 5 == 0) for e in events]
    X = backend.to_host(made(backend, machine, request("exposures")).X)
    constant = [name for name, low, high in zip(SPEC.names, X.min(axis=0), X.max(axis=0), strict=True) if low == high]
    assert constant == []
