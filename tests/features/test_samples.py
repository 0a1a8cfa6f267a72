from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.features import samples
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table
from tests.features import oracle
from tests.features.logs import DAY, Event, frame_of, logs, random_log

SPEC = FeatureSpec.counts(["send"], [DAY], "send")
generated = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def request(**changes: object) -> SampleRequest:
    base = {"purpose": "train", "as_of": 21 * DAY, "heads": (), "exposure": "send", "active_within": 5 * DAY}
    return SampleRequest(**{**base, **changes})  # type: ignore[arg-type]


def keys_of(backend: Backend, events: list[Event], asked: SampleRequest) -> list[tuple[int, int]]:
    keys = backend.to_pandas(feature_table(frame_of(events, backend), SPEC, asked, backend).keys)
    return list(zip(keys["subscriber_key"].tolist(), keys["at"].to_numpy().astype("int64").tolist(), strict=True))


@generated
@given(events=logs(), every=st.sampled_from([DAY // 2, DAY, 3 * DAY]), since=st.sampled_from([None, 0, 9 * DAY]))
def test_snapshots_of_the_active(backend: Backend, events: list[Event], every: int, since: int | None) -> None:
    asked = request(exposure=None, every=every, since=since)
    grid = sorted(asked.as_of - i * every for i in range(1, 60))
    expected = [
        (key, at)
        for key in sorted({e.key for e in events})
        for at in grid
        if oracle.active(asked, events, key, at) == (True, False) and (since is None or at >= since)
    ]
    assert keys_of(backend, events, asked) == expected


@generated
@given(events=logs(), at=st.sampled_from([None, 21 * DAY + 5]))
def test_scoring_sees_who_is_active_now(backend: Backend, events: list[Event], at: int | None) -> None:
    asked = request(purpose="score", at=at, keep_suppressed=True)
    states = {key: oracle.active(asked, events, key, at or asked.as_of) for key in sorted({e.key for e in events})}
    table = feature_table(frame_of(events, backend), SPEC, asked, backend)
    keys = backend.to_pandas(table.keys)
    found = dict(zip(keys["subscriber_key"].tolist(), keys["suppressed"].tolist(), strict=True))
    assert found == {key: suppressed for key, (active, suppressed) in states.items() if active}
    assert backend.to_host(table.split).tolist() == [-1] * len(table)
    asked = request(purpose="score", at=at)
    assert [k for k, _ in keys_of(backend, events, asked)] == [k for k, s in states.items() if s == (True, False)]


def test_splits_are_in_time_with_gaps(backend: Backend) -> None:
    heads = (Head("short", ("open",), DAY), Head("long", ("open",), 3 * DAY))
    asked = request(heads=heads, as_of=100 * DAY, lateness=2 * DAY, validation=10 * DAY, holdout=20 * DAY)
    assert asked.bounds() == {
        "holdout": 75 * DAY,
        "validation_end": 72 * DAY,
        "validation": 62 * DAY,
        "train_end": 59 * DAY,
    }
    xp = backend.xp
    at = xp.asarray(np.array([0, 59 * DAY - 1, 59 * DAY, 62 * DAY, 72 * DAY - 1, 72 * DAY, 75 * DAY, 99 * DAY]))
    split = backend.to_host(samples.splits(xp, xp.zeros(8, dtype=np.int64), at, asked))
    assert split.tolist() == [0, 0, -1, 1, 1, -1, 2, 2]
    assert split.dtype == np.int8
    assert "validation 1970-03-04 to 1970-03-14" in samples.describe(asked)


def test_no_training_label_looks_into_the_next_split(backend: Backend) -> None:
    asked = SampleRequest.from_config(Config(), "acme", 180 * DAY)
    bounds = asked.bounds()
    assert bounds["train_end"] + asked.horizon <= bounds["validation"]
    assert bounds["validation_end"] + asked.horizon <= bounds["holdout"]


def test_a_share_of_subscribers_is_held_out_at_any_time(backend: Backend) -> None:
    xp = backend.xp
    key = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 20_000)
    asked = request(heads=(Head("h", ("open",), DAY),), as_of=100 * DAY, holdout_share=0.1)
    splits = [
        backend.to_host(samples.splits(xp, xp.asarray(key), xp.full(len(key), day * DAY), asked)) for day in (3, 50)
    ]
    assert abs((splits[0] == 2).mean() - 0.1) < 0.01
    assert ((splits[0] == 2) == (splits[1] == 2)).all()


def test_downsampling_drops_only_negative_training_rows(backend: Backend) -> None:
    events = random_log(np.random.default_rng(2), 20_000, 200, 100)
    heads = (Head("open", ("open",), DAY, match=True), Head("buy", ("purchase",), DAY, sum=True))
    base = {"heads": heads, "as_of": 100 * DAY, "validation": 20 * DAY, "holdout": 20 * DAY}
    full = feature_table(frame_of(events, backend), SPEC, request(**base), backend)
    part = feature_table(frame_of(events, backend), SPEC, request(**base, downsample=0.25), backend)
    host = backend.to_host
    ids = {t: backend.to_pandas(table.keys)["event_id"].to_numpy() for t, table in (("full", full), ("part", part))}
    kept = np.isin(ids["full"], ids["part"])
    droppable = (host(full.split) == 0) & (host(full.y) == 0).all(axis=1)
    assert kept[~droppable].all()
    assert abs(kept[droppable].mean() - 0.25) < 0.03
    assert part.counts["dropped_downsampled"] == int((~kept).sum())
    assert host(part.weight).tolist() == np.where(droppable[kept], 4.0, 1.0).tolist()
    assert (host(part.X) == host(full.X)[kept]).all()


def test_request_follows_the_configuration() -> None:
    config = Config(
        timezone="Europe/Berlin",
        clients={"acme": {"timezone": "Asia/Tokyo"}},
        outcomes={"spend": {"sum": "value", "of": "purchase", "within": "28d"}},
        decide={"hold_when": None, "reward": {}},
        as_known_at=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    )
    asked = SampleRequest.from_config(config, "acme", dt.datetime(2026, 1, 1))  # noqa: DTZ001
    assert asked.as_of == 1_767_225_600_000_000
    assert asked.timezone == "Asia/Tokyo"
    assert asked.heads == (Head("spend", ("purchase",), 28 * DAY, sum=True),)
    assert asked.columns() == ["ts", "event", "machine", "campaign", "event_id", "value", "ingested_at"]
    assert SampleRequest.from_config(config, "other", 0).timezone == "Europe/Berlin"


@pytest.mark.parametrize("within", [DAY, 2 * DAY])
def test_day_resolution_loses_nothing(backend: Backend, within: int) -> None:
    """A log whose times are midnights: the open of the same day is an outcome, and is not seen as a feature."""
    events = [Event(1, 5 * DAY, "open", "a", 0), Event(1, 5 * DAY, "send", "a", 1)]
    heads = (Head("open", ("open",), within, match=True), Head("any", ("open",), within))
    spec = FeatureSpec.counts(["send", "open"], [DAY], "send")
    table = feature_table(frame_of(events, backend), spec, request(heads=heads), backend)
    assert backend.to_host(table.y).tolist() == [[1, 1]]
    assert backend.to_host(table.X).tolist() == [[0, 0]]


@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize(("delay", "inside"), [(-1, 0), (0, 1), (2 * DAY - 1, 1), (2 * DAY, 0)])
def test_the_horizon_is_half_open(backend: Backend, match: bool, delay: int, inside: int) -> None:
    events = [Event(1, 5 * DAY, "send", "a", 0), Event(1, 5 * DAY + delay, "open", "a", 1)]
    asked = request(heads=(Head("open", ("open",), 2 * DAY, match),))
    table = feature_table(frame_of(sorted(events, key=lambda e: e.ts), backend), SPEC, asked, backend)
    assert backend.to_host(table.y).tolist() == [[inside]]


def test_a_response_belongs_to_the_latest_send_of_its_campaign(backend: Backend) -> None:
    """Two sends of campaign a, one of b between them and one without a campaign."""
    sends = [Event(1, 1 * DAY, "send", "a", 0), Event(1, 2 * DAY, "send", "b", 1), Event(1, 3 * DAY, "send", "a", 2)]
    events = [*sends, Event(1, 4 * DAY, "open", "a", 4), Event(1, 4 * DAY, "open", None, 5), Event(1, 4 * DAY, "send")]
    asked = request(heads=(Head("open", ("open",), 10 * DAY, match=True),))
    table = feature_table(frame_of(sorted(events, key=lambda e: (e.ts, e.event)), backend), SPEC, asked, backend)
    assert backend.to_host(table.y).tolist() == [[0], [0], [1], [0]]
