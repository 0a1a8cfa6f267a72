from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, feature_table
from tests.features import oracle
from tests.features.logs import DAY, KINDS, Event, frame_of, logs

SPEC = FeatureSpec.from_config(Config(windows=["1d", "7d"]), KINDS)
HEADS = (
    Head("any", ("unsubscribe", "click"), 3 * DAY),
    Head("matched", ("click", "open"), 2 * DAY, match=True),
    Head("again", ("send",), 2 * DAY, match=True),
    Head("more", ("send",), 2 * DAY),
    Head("spend", ("purchase",), 4 * DAY, sum=True),
    Head("matched_spend", ("purchase", "send"), 4 * DAY, match=True, sum=True),
)
AS_OF = 21 * DAY


def generated(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
    )


def request(**changes: object) -> SampleRequest:
    base = {"purpose": "train", "as_of": AS_OF, "heads": HEADS, "exposure": "send", "lateness": DAY}
    return SampleRequest(**{**base, **changes})  # type: ignore[arg-type]


def rows(table: FeatureTable, backend: Backend) -> dict[tuple[int, int, int], np.ndarray]:
    """(key, at, event_id) -> the row of everything numeric."""
    keys = backend.to_pandas(table.keys)
    ids = keys["event_id"] if "event_id" in keys else np.zeros(len(keys), dtype=int)
    at = keys["at"].to_numpy().astype("int64")
    everything = [table.X, table.y, table.mask, table.weight[:, None], table.split[:, None]]
    matrix = np.concatenate([backend.to_host(a).astype(np.float64) for a in everything], axis=1)
    return {(int(k), int(t), int(i)): m for k, t, i, m in zip(keys["subscriber_key"], at, ids, matrix, strict=True)}


def columns(table: FeatureTable, backend: Backend) -> list[dict[str, float]]:
    return [dict(zip(table.spec.names, r, strict=True)) for r in backend.to_host(table.X).tolist()]


@generated(400)
@given(events=logs(machine=True))
def test_features_and_labels_agree_with_plain_python(backend: Backend, events: list[Event]) -> None:
    table = feature_table(frame_of(events, backend, machine=True), SPEC, request(), backend)
    sends = [e for e in events if e.event == "send" and e.ts < AS_OF]
    expected = [[oracle.label(h, request(), events, s) for h in HEADS] for s in sends]
    kept = [i for i, known in enumerate(expected) if any(m for _, m in known)]
    assert table.counts == {"rows": len(kept), "dropped_censored": len(sends) - len(kept), "dropped_downsampled": 0}
    assert backend.to_pandas(table.keys)["event_id"].tolist() == [sends[i].event_id for i in kept]
    assert backend.to_host(table.y).tolist() == [[y for y, _ in expected[i]] for i in kept]
    assert backend.to_host(table.mask).tolist() == [[m for _, m in expected[i]] for i in kept]
    for i, row in zip(kept, columns(table, backend), strict=True):
        for name, value in oracle.feature(SPEC, events, sends[i].key, sends[i].ts).items():
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
