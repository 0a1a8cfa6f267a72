"""Sequences against plain Python: the last L events before each decision, padded in front."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.features import rollup
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.sequences import (
    SequenceSpec,
    by_family,
    exposures,
    family,
    frequent,
    named_events,
    rolled_events,
)
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_table, row_bytes
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered
from tests.features.oracle import told
from tests.features.test_portable import StrictBackend
from tests.strict_numpy import StrictArray

KINDS = ["send", "open", "click"]  # the log has others, which no sequence shows
LENGTH = 6
BASE = FeatureSpec.counts(KINDS, [7 * DAY], "send")
SPEC = replace(BASE, sequences=SequenceSpec.of(LENGTH, KINDS, ["a-1", "b"], ["a", "b"]))
ANSWERED = replace(
    BASE, sequences=SequenceSpec.of(LENGTH, KINDS, ["a-1", "b"], ["a", "b"], (), "send", ("open", "click"))
)
CAMPAIGNS = {"a-1": 2.0, "b": 3.0, None: 0.0}
FAMILIES = {"a-1": 2.0, "a-2": 2.0, "b": 3.0, None: 0.0}
HOUR = 3_600_000_000


def a_log(seed: int, events: int = 400) -> list[Event]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-(2**63), 2**63 - 1, 15, dtype=np.int64)
    columns = zip(
        keys[rng.integers(0, 15, events) * rng.integers(0, 2, events)].tolist(),
        (rng.integers(0, 80, events) * 6 * HOUR).tolist(),
        rng.choice([*KINDS, "delete"], events).tolist(),
        rng.choice(["a-1", "a-2", "b", "c", ""], events).tolist(),
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


def past(events: list[Event], send: Event, per_decision: bool) -> list[Event]:
    """What people did before a send, as far as it was known then."""
    mine = [e for e in events if e.key == send.key and e.ts < send.ts]
    return [e for e in told([e for e in mine if not per_decision or arrived(e) <= send.ts]) if not e.machine]


def oracle(events: list[Event], send: Event, per_decision: bool) -> dict[str, list[float]]:
    seen = [e for e in past(events, send, per_decision) if e.event in KINDS]
    last = seen[-LENGTH:]
    pad = [0.0] * (LENGTH - len(last))
    return {
        "mask": [*pad, *(1.0 for _ in last)],
        "kind": [*pad, *(KINDS.index(e.event) + 1.0 for e in last)],
        "days": [*pad, *((send.ts - e.ts) / DAY for e in last)],
        "hour": [*pad, *((e.ts + 5.5 * HOUR) // HOUR % 24 for e in last)],
        "campaign": [*pad, *(CAMPAIGNS.get(e.campaign, 1.0) for e in last)],
        "family": [*pad, *(FAMILIES.get(e.campaign, 1.0) for e in last)],
        "at_family": [FAMILIES.get(send.campaign, 1.0)],
    }


def exposures_oracle(events: list[Event], send: Event, per_decision: bool) -> dict[str, list[float]]:
    """The last sends, and which kinds had answered each by the moment of ``send``."""
    seen = past(events, send, per_decision)
    sends = [e for e in seen if e.event == "send"]
    answers = {e.event_id: 0 for e in sends}
    for e in seen:
        if e.event in ("open", "click") and e.campaign is not None:
            of = [s.event_id for s in sends if s.campaign == e.campaign and s.ts <= e.ts]
            if of:
                answers[of[-1]] |= 1 if e.event == "open" else 2
    last = sends[-LENGTH:]
    pad = [0.0] * (LENGTH - len(last))
    return {
        "mask": [*pad, *(1.0 for _ in last)],
        "answers": [*pad, *(float(answers[e.event_id]) for e in last)],
        "days": [*pad, *((send.ts - e.ts) / DAY for e in last)],
        "campaign": [*pad, *(CAMPAIGNS.get(e.campaign, 1.0) for e in last)],
    }


@pytest.mark.parametrize("as_known_at", [None, "decision"])
@pytest.mark.parametrize("partitions", [1, 7])
def test_exposures_and_their_answers_agree_with_plain_python(
    backend: Backend, as_known_at: Any, partitions: int
) -> None:
    events = a_log(7, 800)
    asked = request(as_known_at=as_known_at)
    known = [e for e in events if asked.known_by is None or arrived(e) <= asked.known_by]
    parts = by_key_range(events, partitions)
    table = concat([feature_table(framed(p, backend), ANSWERED, asked, backend) for p in parts])
    found = {name: backend.to_host(array).tolist() for name, array in table.sequences.items()}
    for i, send in enumerate(e for e in known if e.event == "send"):
        for name, expected in exposures_oracle(known, send, as_known_at == "decision").items():
            assert found[name][i] == pytest.approx(expected, rel=1e-6), (name, send)
    assert {0, 1, 2, 3} == {code for row in found["answers"] for code in row}


def test_what_sequences_are_of() -> None:
    spec = replace(BASE, responses=("open", "click"), acts=("open", "click"))
    assert exposures(spec, "auto") == exposures(spec, "exposures") == ("send", ("open", "click"))
    assert exposures(spec, "events") == (None, ())
    assert exposures(replace(spec, exposure=None), "auto") == (None, ())
    with pytest.raises(ConfigError, match=r"sequences\.of is exposures, but the log has none"):
        exposures(replace(spec, exposure=None), "exposures")


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
            if name != "at_family" or found[name][i] != [0]:  # masked, see below
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
            assert array.shape == (len(table), 1 if tensor.name == "at_family" else LENGTH)
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
    asked_for = (request(keys=()), request(keys=(), as_known_at="decision"))
    for asked, spec in itertools.product(asked_for, (SPEC, ANSWERED)):
        found, expected = (feature_table(frame, spec, asked, b) for b in (strict, plain))
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
    assert {a.shape for a in empty.sequences.values()} == {(0, LENGTH), (0, 1)}
    assert feature_table(framed(a_log(5), backend), BASE, request(), backend).sequences == {}
    assert Config().sequences.length == 0


def test_the_vocabulary_is_of_the_campaigns_with_most_events(backend: Backend) -> None:
    events = [e._replace(machine=False) for e in a_log(6)]
    until = 12 * DAY + 5 * HOUR
    found: dict[str, int] = {}
    for part in by_key_range(events, 3):
        for name, count in named_events(framed(part, backend), "campaign", until, "UTC").items():
            found[name] = found.get(name, 0) + count
    expected = {c: sum(e.campaign == c and e.ts < until for e in events) for c in ("a-1", "a-2", "b", "c")}
    assert found == expected
    counts = [rollup.partition_counts(framed(events, backend), "UTC", ["hour"])]
    table = rollup.combine(counts, "acme", ["hour"])
    assert rolled_events(table[table.level == "provider"], "campaign", until, "UTC") == expected
    order = sorted(expected, key=lambda c: (-expected[c], c))
    assert frequent(expected, 2) == tuple(sorted(order[:2]))
    assert frequent({"z": 1, "y": 1}, 1) == ("y",)


def test_families_are_names_without_numbers() -> None:
    names = {"spring-sale-260412": "spring sale", "Spring_Sale 7": "spring sale", "2026-11": "", "Été 3": "été"}
    assert {name: family(name) for name in names} == names
    assert by_family({"spring-sale-1": 2, "spring-sale-2": 3, "news": 1, "17": 9}) == {"spring sale": 5, "news": 1}
    assert by_family({"a": 1, "b": 2}) == {}  # no two are alike: that would be the campaigns over again


def test_the_family_that_is_decided_about(backend: Backend) -> None:
    """A tenth of the training rows do not say it; a scored row says that of the planned campaign, if any."""
    events = [Event(k, (k % 29) * DAY, "send", "a-2", k) for k in range(3_000)]
    heads = (Head("click", ("click",), DAY),)
    asked = request(heads=heads, holdout=5 * DAY, validation=3 * DAY)
    table = feature_table(framed(events, backend), SPEC, asked, backend)
    found, split = backend.to_host(table.sequences["at_family"])[:, 0], backend.to_host(table.split)
    assert set(found.tolist()) == {0, 2}
    assert (found[split == 0] == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert (found[split != 0] == 2).all()
    for campaign, expected in ((None, 0), ("a-77", 2), ("B", 3), ("other", 1)):
        asked = request(purpose="score", at=30 * DAY, campaign=campaign, keys=())
        table = feature_table(framed(events, backend), SPEC, asked, backend)
        assert len(table) == 3_000
        assert (backend.to_host(table.sequences["at_family"]) == expected).all()


def test_specification_round_trip() -> None:
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC
    assert SPEC.sequences is not None
    described = {t.name: t for t in SPEC.sequences.tensors}
    assert described["kind"].definition == "the event's kind: 0 padding, 1 send, 2 open, 3 click"
    assert described["days"].unit == "days"
    assert (described["campaign"].ids, described["kind"].ids, described["days"].ids) == (4, 4, 0)
