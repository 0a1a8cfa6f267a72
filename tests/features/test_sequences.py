"""Sequences against plain Python: the last L events before each decision, padded in front."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.features import rollup
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.sequences import SequenceSpec, campaign_events, frequent, rolled_campaigns
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_table, row_bytes
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered
from tests.features.test_portable import StrictBackend
from tests.strict_numpy import StrictArray

KINDS = ["send", "open", "click"]  # the log has others, which no sequence shows
LENGTH = 6
BASE = FeatureSpec.counts(KINDS, [7 * DAY], "send")
SPEC = replace(BASE, sequences=SequenceSpec.of(LENGTH, KINDS, ["a", "b"]))
HOUR = 3_600_000_000


def a_log(seed: int, events: int = 400) -> list[Event]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-(2**63), 2**63 - 1, 15, dtype=np.int64)
    columns = zip(
        keys[rng.integers(0, 15, events) * rng.integers(0, 2, events)].tolist(),
        (rng.integers(0, 80, events) * 6 * HOUR).tolist(),
        rng.choice([*KINDS, "delete"], events).tolist(),
        rng.choice(["a", "b", "c", ""], events).tolist(),
        (rng.random(events) < 0.2).tolist(),
        strict=True,
    )
    return ordered([Event(k, t, e, c or None, i, 0, m) for i, (k, t, e, c, m) in enumerate(columns)])


def arrived(event: Event) -> int:
    return event.ts + (event.event_id % 4 == 0) * (event.event_id % 6) * DAY


def framed(events: list[Event], backend: Backend) -> Any:
    frame = frame_of(events, backend, machine=True)
    times = np.array([arrived(e) for e in events], dtype="datetime64[us]")
    frame["ingested_at"] = backend.df.Series(times, index=frame.index)
    return frame


def request(**changes: Any) -> SampleRequest:
    base = {"purpose": "train", "as_of": 30 * DAY, "heads": (), "exposure": "send", "timezone": "Asia/Kolkata"}
    return SampleRequest(**{**base, **changes})


def oracle(events: list[Event], send: Event, per_decision: bool) -> dict[str, list[float]]:
    seen = [e for e in events if e.key == send.key and e.ts < send.ts and e.event in KINDS and not e.machine]
    last = [e for e in seen if not per_decision or arrived(e) <= send.ts][-LENGTH:]
    pad = [0.0] * (LENGTH - len(last))
    return {
        "mask": [*pad, *(1.0 for _ in last)],
        "kind": [*pad, *(KINDS.index(e.event) + 1.0 for e in last)],
        "days": [*pad, *((send.ts - e.ts) / DAY for e in last)],
        "hour": [*pad, *((e.ts + 5.5 * HOUR) // HOUR % 24 for e in last)],
        "campaign": [*pad, *({"a": 2.0, "b": 3.0, "c": 1.0, None: 0.0}[e.campaign] for e in last)],
    }


@pytest.mark.parametrize("as_known_at", [None, "decision"])
@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_sequences_agree_with_plain_python(backend: Backend, as_known_at: Any, partitions: int) -> None:
    events = a_log(1)
    asked = request(as_known_at=as_known_at)
    known = [e for e in events if asked.known_by is None or arrived(e) <= asked.known_by]
    table = concat([feature_table(framed(p, backend), SPEC, asked, backend) for p in by_key_range(events, partitions)])
    sends = [e for e in known if e.event == "send"]
    assert backend.to_pandas(table.keys)["event_id"].tolist() == [e.event_id for e in sends]
    found = {name: backend.to_host(array).tolist() for name, array in table.sequences.items()}
    for i, send in enumerate(sends):
        for name, expected in oracle(known, send, as_known_at == "decision").items():
            assert found[name][i] == pytest.approx(expected, rel=1e-6), (name, send)
    lengths = backend.to_host(table.sequences["mask"]).sum(axis=1)
    assert {0, LENGTH} < set(lengths.tolist())  # some have none, some more than fit


def test_tensors_are_as_described_and_ready_for_tensorflow(backend: Backend) -> None:
    parts = [feature_table(framed(p, backend), SPEC, request(), backend) for p in by_key_range(a_log(2), 2)]
    assert SPEC.sequences is not None
    for table in [*parts, concat(parts)]:
        assert list(table.sequences) == [t.name for t in SPEC.sequences.tensors]
        for tensor in SPEC.sequences.tensors:
            array = table.sequences[tensor.name]
            assert array.shape == (len(table), LENGTH)
            assert array.dtype == tensor.dtype
            assert array.flags.c_contiguous
            assert (array.data.ptr if backend.on_gpu else array.ctypes.data) % 64 == 0
    assert SPEC.sequences.row_bytes == sum(a.nbytes for a in parts[0].sequences.values()) / len(parts[0])
    assert row_bytes(SPEC, 2) - row_bytes(BASE, 2) == SPEC.sequences.row_bytes


def test_they_follow_the_rows_that_are_left(backend: Backend) -> None:
    """Censoring and downsampling drop rows of X and of the sequences alike."""
    events = a_log(3)
    asked = request(heads=(Head("click", ("click",), 2 * DAY),), downsample=0.5, lateness=DAY, as_of=20 * DAY)
    table = feature_table(framed(events, backend), SPEC, asked, backend)
    assert table.counts["dropped_censored"] > 0
    assert table.counts["dropped_downsampled"] > 0
    sends = {e.event_id: e for e in events}
    ids = backend.to_pandas(table.keys)["event_id"].tolist()
    kinds = backend.to_host(table.sequences["kind"]).tolist()
    assert kinds == [oracle(events, sends[i], False)["kind"] for i in ids]


def test_the_array_code_asks_nothing_that_cupy_lacks() -> None:
    plain, strict = choose("cpu"), StrictBackend("pandas")
    frame = framed([e for e in a_log(4) if arrived(e) < 30 * DAY], plain)
    for asked in (request(keys=()), request(keys=(), as_known_at="decision")):
        found, expected = (feature_table(frame, SPEC, asked, b) for b in (strict, plain))
        for name, array in found.sequences.items():
            assert isinstance(array, StrictArray)
            assert array.tolist() == expected.sequences[name].tolist()


def test_logs_without_campaigns_or_events(backend: Backend) -> None:
    spec = replace(BASE, sequences=SequenceSpec.of(3, KINDS, []))
    frame = framed([Event(1, DAY, "open"), Event(1, 2 * DAY, "send")], backend).drop(columns=["campaign"])
    table: FeatureTable = feature_table(frame, spec, request(keys=()), backend)
    assert set(table.sequences) == {"mask", "kind", "days", "hour"}
    assert backend.to_host(table.sequences["kind"]).tolist() == [[0, 0, 2]]
    with pytest.raises(DataError, match=r"map source\.columns\.campaign"):
        feature_table(frame, SPEC, request(keys=()), backend)
    empty = feature_table(framed([], backend), SPEC, request(), backend)
    assert {a.shape for a in empty.sequences.values()} == {(0, LENGTH)}
    assert feature_table(framed(a_log(5), backend), BASE, request(), backend).sequences == {}
    assert Config().sequences.length == 0


def test_the_vocabulary_is_of_the_campaigns_with_most_events(backend: Backend) -> None:
    events = [e._replace(machine=False) for e in a_log(6)]
    until = 12 * DAY + 5 * HOUR
    found: dict[str, int] = {}
    for part in by_key_range(events, 3):
        for name, count in campaign_events(framed(part, backend), until, "UTC").items():
            found[name] = found.get(name, 0) + count
    expected = {c: sum(e.campaign == c and e.ts < until for e in events) for c in "abc"}
    assert found == expected
    counts = [rollup.partition_counts(framed(events, backend), "UTC", ["hour"])]
    table = rollup.combine(counts, "acme", ["hour"])
    assert rolled_campaigns(table[table.level == "provider"], until, "UTC") == expected
    order = sorted(expected, key=lambda c: (-expected[c], c))
    assert frequent(expected, 2) == tuple(sorted(order[:2]))
    assert frequent({"z": 1, "y": 1}, 1) == ("y",)


def test_specification_round_trip() -> None:
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC
    assert SPEC.sequences is not None
    described = {t.name: t for t in SPEC.sequences.tensors}
    assert described["kind"].definition == "the event's kind: 0 padding, 1 send, 2 open, 3 click"
    assert described["days"].unit == "days"
