from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_table
from tests.features import oracle
from tests.features.logs import DAY, EVERYTHING, KINDS, Event, by_key_range, frame_of, logs, ordered, random_log

SPEC = FeatureSpec.from_config(EVERYTHING, KINDS)
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


def about(send: Event, split: int) -> str | None:
    """The campaign that a decision knows of."""
    return None if split == 0 and oracle.masked(send.key, send.ts) else send.campaign


def columns(table: FeatureTable, backend: Backend) -> list[dict[str, float]]:
    return [dict(zip(table.spec.names, r, strict=True)) for r in backend.to_host(table.X).tolist()]


@generated(150)
@given(events=logs(machine=True))
def test_features_and_labels_agree_with_plain_python(backend: Backend, events: list[Event]) -> None:
    zone = "America/New_York"
    table = feature_table(frame_of(events, backend, machine=True), SPEC, request(timezone=zone), backend)
    sends = [e for e in events if e.event == "send" and e.ts < AS_OF]
    expected = [[oracle.label(h, request(), events, s) for h in HEADS] for s in sends]
    kept = [i for i, known in enumerate(expected) if any(m for _, m in known)]
    assert table.counts == {"rows": len(kept), "dropped_censored": len(sends) - len(kept), "dropped_downsampled": 0}
    assert backend.to_pandas(table.keys)["event_id"].tolist() == [sends[i].event_id for i in kept]
    assert backend.to_host(table.y).tolist() == [[y for y, _ in expected[i]] for i in kept]
    assert backend.to_host(table.mask).tolist() == [[m for _, m in expected[i]] for i in kept]
    for i, row, split in zip(kept, columns(table, backend), backend.to_host(table.split).tolist(), strict=True):
        expected_row = oracle.feature(SPEC, events, sends[i].key, sends[i].ts, zone, campaign=about(sends[i], split))
        for name, value in expected_row.items():
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_features_of_long_histories_agree_with_plain_python(backend: Backend) -> None:
    """Windows of hundreds of events, and times that are no round numbers."""
    rng = np.random.default_rng(12)
    events = random_log(rng, 1500, 3, 60)
    events = [e._replace(machine=bool(m)) for e, m in zip(events, rng.random(len(events)) < 0.1, strict=True)]
    asked = request(as_of=60 * DAY, heads=(), timezone="Europe/Berlin", since=20 * DAY)
    table = feature_table(frame_of(events, backend, machine=True), SPEC, asked, backend)
    sends = [e for e in events if e.event == "send" and e.ts >= 20 * DAY]
    found, split = columns(table, backend), backend.to_host(table.split).tolist()
    for i in range(0, len(sends), 9):
        at, campaign = sends[i].ts, about(sends[i], split[i])
        for name, value in oracle.feature(SPEC, events, sends[i].key, at, "Europe/Berlin", campaign=campaign).items():
            assert found[i][name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


@generated(80)
@given(events=logs(), partitions=st.sampled_from([1, 2, 7, 64]), seed=st.integers(0, 9))
def test_partitions_and_arrival_order_change_nothing(
    backend: Backend, events: list[Event], partitions: int, seed: int
) -> None:
    asked = request(holdout=4 * DAY, validation=3 * DAY, holdout_share=0.3, downsample=0.5)
    shuffled = [events[i] for i in np.random.default_rng(seed).permutation(len(events))]
    whole = feature_table(frame_of(events, backend), SPEC, asked, backend)
    parts = [frame_of(p, backend) for p in by_key_range(ordered(shuffled), partitions)]
    joined = concat([feature_table(part, SPEC, asked, backend) for part in parts])
    assert joined.counts == whole.counts
    left, right = rows(whole, backend), rows(joined, backend)
    assert list(left) == list(right)
    assert all((left[k] == right[k]).all() for k in left)


@pytest.mark.parametrize("partitions", [1, 2, 7, 64])
def test_a_large_log_in_any_number_of_partitions(backend: Backend, partitions: int) -> None:
    events = random_log(np.random.default_rng(5), 20_000, 300, 60)
    asked = request(as_of=60 * DAY, holdout=9 * DAY, validation=9 * DAY, downsample=0.5)
    whole = feature_table(frame_of(events, backend), SPEC, asked, backend)
    joined = concat(
        [feature_table(frame_of(p, backend), SPEC, asked, backend) for p in by_key_range(events, partitions)]
    )
    assert joined.counts == whole.counts
    for name in ("X", "y", "mask", "weight", "split"):
        assert (backend.to_host(getattr(joined, name)) == backend.to_host(getattr(whole, name))).all(), name
    assert len(whole) > 5000


def test_as_known_at_hides_what_came_later(backend: Backend) -> None:
    events = random_log(np.random.default_rng(7), 500, 10, 30)
    late = {e.event_id for e in events if e.event_id % 3 == 0}
    frame = frame_of(events, backend)
    arrived = [40 * DAY if e.event_id in late else e.ts for e in events]
    frame["ingested_at"] = backend.df.Series(np.array(arrived).astype("datetime64[us]"), index=frame.index)
    asked = request(as_of=30 * DAY, as_known_at=35 * DAY)
    known = frame_of([e for e in events if e.event_id not in late], backend)
    left, right = (
        feature_table(frame, SPEC, asked, backend),
        feature_table(known, SPEC, request(as_of=30 * DAY), backend),
    )
    assert rows(left, backend).keys() == rows(right, backend).keys()
    assert (backend.to_host(left.X) == backend.to_host(right.X)).all()
    assert (backend.to_host(left.y) == backend.to_host(right.y)).all()
    with pytest.raises(DataError, match="as_known_at needs the column ingested_at"):
        feature_table(frame.drop(columns=["ingested_at"]), SPEC, asked, backend)


def test_x_is_ready_for_tensorflow(backend: Backend) -> None:
    events = random_log(np.random.default_rng(8), 400, 10, 30)
    tables = [feature_table(frame_of(p, backend), SPEC, request(), backend) for p in by_key_range(events, 2)]
    for table in [*tables, concat(tables)]:
        assert table.X.dtype == np.float32
        assert table.X.flags.c_contiguous
        assert (table.X.data.ptr if backend.on_gpu else table.X.ctypes.data) % 64 == 0
        assert not backend.to_host(backend.xp.isnan(table.X)).any()
        assert len(table.keys) == len(table) == len(table.y) == len(table.weight)


@pytest.mark.parametrize("events", [[], [Event(1, 5, "open")], [Event(1, 5, "send")]])
@pytest.mark.parametrize("changes", [{}, {"purpose": "score"}, {"exposure": None, "every": DAY}])
def test_tiny_partitions(backend: Backend, events: list[Event], changes: dict[str, object]) -> None:
    heads = tuple(h for h in HEADS if not h.match)
    table = feature_table(frame_of(events, backend), SPEC, request(heads=heads, **changes), backend)
    snapshots = 18 if "every" in changes else 1  # as_of and lateness leave 18 days whose 2-day horizon is known
    expected = 0 if not events else snapshots if changes or events[0].event == "send" else 0
    assert len(table) == expected
    assert len(concat([table, table])) == 2 * expected
    assert {"subscriber_key", "at"} <= set(table.keys.columns)


def test_rows_out_of_order_are_refused(backend: Backend) -> None:
    with pytest.raises(DataError, match="not sorted by"):
        feature_table(frame_of([Event(1, 5, "send"), Event(1, 4, "send")], backend), SPEC, request(), backend)


def test_missing_columns_are_named(backend: Backend) -> None:
    frame = frame_of([Event(1, 5, "send")], backend)
    with pytest.raises(DataError, match="no campaigns"):
        feature_table(frame.drop(columns=["campaign"]), SPEC, request(), backend)
    with pytest.raises(DataError, match="'value'"):
        feature_table(frame.drop(columns=["value"]), SPEC, request(), backend)
    with pytest.raises(DataError, match="expected an event frame"):
        feature_table(frame.drop(columns=["event"]), SPEC, request(), backend)


def test_a_sum_that_could_overflow_is_refused(backend: Backend) -> None:
    events = [Event(1, i, "purchase", None, i, 2**61) for i in range(3)]
    with pytest.raises(DataError, match="could exceed 62 bits"):
        feature_table(frame_of([*events, Event(1, 5, "send")], backend), SPEC, request(), backend)


def test_one_great_value_in_a_long_history_is_no_overflow(backend: Backend) -> None:
    events = [Event(1, 0, "send"), *(Event(1, i, "purchase", None, i, 2**61 if i == 3 else -1) for i in range(1, 9))]
    head = Head("spend", ("purchase",), 6, sum=True)  # six microseconds: five of the purchases
    asked = SampleRequest("train", as_of=100, heads=(head,), exposure="send")
    found = backend.to_host(feature_table(frame_of(events, backend), SPEC, asked, backend).y)
    assert found.tolist() == [[np.float32((2**61 - 4) / 1e6)]]


def test_nothing_to_put_together() -> None:
    with pytest.raises(DataError, match="no feature tables"):
        concat([])


def test_keys_of_different_campaigns_meet(backend: Backend) -> None:
    tables = [
        feature_table(frame_of([Event(k, 5, "send", c, k)], backend), SPEC, request(), backend)
        for k, c in ((1, "x"), (2, None), (3, "y"))
    ]
    keys = backend.to_pandas(concat(tables).keys)
    assert keys["campaign"].astype(object).where(keys["campaign"].notna(), None).tolist() == ["x", None, "y"]
    assert keys["event_id"].tolist() == [1, 2, 3]
    assert str(keys["at"].dtype) == "datetime64[us]"


def test_match_needs_events() -> None:
    with pytest.raises(ConfigError, match="'match: campaign' needs decisions at events"):
        SampleRequest.from_config(Config(at={"every": "7d"}), "acme", AS_OF)


@generated(40)
@given(events=logs(machine=True))
def test_machine_events_count_where_that_is_asked_for(backend: Backend, events: list[Event]) -> None:
    asked = request(machines=True)
    assert "machine" not in asked.columns()
    one = feature_table(frame_of(events, backend, machine=True), SPEC, asked, backend)
    other = feature_table(frame_of(events, backend), SPEC, request(), backend)
    for name in ("X", "y", "mask"):
        assert backend.to_host(getattr(one, name)).tolist() == backend.to_host(getattr(other, name)).tolist()


def test_a_scanners_unsubscribe_suppresses_but_is_no_label(backend: Backend) -> None:
    events = [
        Event(7, DAY, "send", "a", 1),
        Event(7, DAY + 1_000_000, "unsubscribe", "a", 2, machine=True),
    ]
    heads = (Head("unsubscribe", ("unsubscribe",), DAY, match=True),)
    frame = frame_of(events, backend, machine=True)
    table = feature_table(frame, SPEC, request(heads=heads), backend)
    assert (backend.to_host(table.y).tolist(), backend.to_host(table.mask).tolist()) == ([[0.0]], [[1.0]])
    scored = feature_table(frame, SPEC, request(purpose="score", heads=heads, keep_suppressed=True), backend)
    assert backend.to_pandas(scored.keys)["suppressed"].tolist() == [True]
