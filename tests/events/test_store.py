"""Reading by key range: any partitioning, any window of time, gives the same events, planned from the index alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.backend import PANDAS, Backend
from pipeline.errors import ConfigError, DataError
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.events.logs import DAY, START, Row, config, expected, random_rows, rows_of_frame, write


def stored(tmp: Path, batches: list[list[Row]], backend: Backend = PANDAS, **more: object) -> EventStore:
    given = config(tmp, **more)  # type: ignore[arg-type]
    for i, rows in enumerate(batches):
        write(tmp / f"raw/{i:03d}.parquet", rows)
        ingest(given, backend, compaction=False)
    return EventStore(given.store_uri, backend)


def test_partitions_divisions_and_columns(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(3000, subscribers=200)
    store = stored(tmp_path, [rows[:2000], rows[2000:]], backend)
    wanted = expected(rows, "acme")
    for partitions in (1, 2, 7, 64):
        frame = store.read("acme", partitions=partitions)
        assert frame.npartitions == partitions
        assert frame.known_divisions
        parts = [frame.partitions[i].compute(scheduler="sync") for i in range(partitions)]
        assert [r for p in parts for r in rows_of_frame(p)] == wanted
        for part, low, high in zip(parts, frame.divisions, frame.divisions[1:], strict=False):
            keys = part.index.to_numpy()
            assert ((keys >= low) & (keys <= high)).all()
        plan = store.plan("acme", partitions=partitions)
        assert rows_of_frame(store.read_range(plan, partitions - 1)) == rows_of_frame(parts[-1])
        meta, whole = frame._meta.dtypes, frame.compute(scheduler="sync").dtypes
        assert list(meta.index) == list(whole.index)
        assert [str(t) for t in meta] == [str(t) for t in whole]
    some = store.read("acme", columns=["event", "ts"], partitions=3).compute(scheduler="sync")
    assert list(some.columns) == ["event", "ts"]
    assert some["event"].astype(str).to_numpy().tolist() == [r[3] for r in wanted]
    counts = store.read("acme", partitions=3).groupby("event", observed=True).size().compute(scheduler="sync")
    assert {k: int(v) for k, v in counts.items()} == {k: sum(r[3] == k for r in wanted) for k in {r[3] for r in wanted}}


def test_a_frame_may_be_written_to(tmp_path: Path, backend: Backend) -> None:
    frame = stored(tmp_path, [random_rows(300)], backend).read("acme", partitions=1).compute(scheduler="sync")
    opens = frame["event"] == "open"
    frame.loc[opens, "value"] = 5
    frame.loc[opens, "ts"] = frame["ts"].min()
    assert int(opens.sum()) > 20
    assert bool((frame["value"][opens] == 5).all())
    assert bool((frame["ts"][opens] == frame["ts"].min()).all())


def test_time_bounds_are_half_open_and_versions_stay(tmp_path: Path, backend: Backend) -> None:
    first, second = random_rows(400, seed=1), random_rows(400, seed=2)
    store = stored(tmp_path, [first], backend)
    version = store.version()
    stored(tmp_path, [first, second], backend)
    now = EventStore(store.uri, backend)
    assert now.version() > version
    assert rows_of_frame(EventStore(store.uri, backend, version=version).read("acme").compute()) == expected(
        first, "acme"
    )
    wanted = expected(first + second, "acme")
    since, until = START + DAY, START + 2 * DAY
    window = [r for r in wanted if since <= r[2] < until]
    assert window
    assert window != wanted
    for low, high in ((since, until), ("2026-05-02", "2026-05-03"), ("2026-05-02T02:00:00+02:00", "2026-05-03")):
        assert rows_of_frame(now.read("acme", since=low, until=high, partitions=3).compute()) == window
    assert now.bounds("acme") == (min(r[2] for r in wanted), max(r[2] for r in wanted))
    assert now.last_full_day("acme") == START + 4 * DAY
    assert now.last_full_day("acme", "America/New_York") == START + 4 * DAY + 4 * 3_600_000_000
    with pytest.raises(ConfigError, match="is not a time"):
        now.read("acme", since="yesterday")


def test_fast_clocks_do_not_move_the_last_full_day(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(400)  # until the fifth day's last hour
    ahead = [
        dict(rows[i], client="acme", id=-i, time=START + 4 * DAY + i, arrived=START + 3 * DAY + 5 + i) for i in range(3)
    ]
    some = [r for r in rows if r["time"] < START + 3 * DAY + 4 * 3_600_000_000]
    store = stored(tmp_path, [some, ahead], backend)
    assert store.bounds("acme")[1] >= START + 4 * DAY
    assert store.last_full_day("acme") == START + 3 * DAY
    stored(tmp_path, [some, ahead, [r for r in rows if r not in some]], backend)
    assert EventStore(store.uri, backend).last_full_day("acme") == START + 4 * DAY


def test_kinds_are_counted_without_a_data_file(tmp_path: Path, backend: Backend) -> None:
    batches = [random_rows(300, seed=1), random_rows(200, seed=2)]
    store = stored(tmp_path, batches, backend)
    for path in Path(store.uri).rglob("client=*/*.parquet"):
        path.unlink()
    for client in ("acme", "globex"):
        counts = Counter(r["kind"] for rows in batches for r in rows if r["client"] == client)
        assert list(store.kinds(client).items()) == sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def test_what_was_known(tmp_path: Path, backend: Backend) -> None:
    """``as_known_at`` shows what a read would have shown then, rows that arrived twice included."""
    rng = random.Random(5)
    rows = [dict(r, arrived=r["time"] + rng.randrange(5 * DAY)) for r in random_rows(500)]
    again = [dict(r, arrived=r["arrived"] + DAY, campaign="later") for r in rng.sample(rows, 200)]
    store = stored(tmp_path, [again, rows], backend)  # the repetition is ingested before the original
    for day in (1, 3, 9):
        at = START + day * DAY
        known = [r for r in rows + again if r["arrived"] <= at]
        found = store.read("acme", as_known_at=at, partitions=2).compute(scheduler="sync")
        assert rows_of_frame(found) == expected(known, "acme")


def test_a_range_decodes_little_more_than_its_share(tmp_path: Path) -> None:
    rows = [dict(r, client="acme", user=f"u{i}") for i, r in enumerate(random_rows(13_000))]
    store = stored(tmp_path, [rows[:6400], rows[6400:]])
    for partitions in (1, 2, 7, 16, 64):
        plan = store.plan("acme", partitions=partitions)
        keys = np.array([r[0] for r in expected(rows, "acme")])
        for part in plan.parts:
            share = ((keys >= part.low) & (keys <= part.high - 1)).sum()  # hashes spread evenly, but not exactly
            assert part.rows <= 1.3 * max(len(rows) / partitions, share)
        assert sum(p.rows for p in plan.parts) <= 1.3 * len(rows)


def test_by_default_every_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.events.store.PART_ROWS", 60)
    rows = [dict(r, client="acme", user=f"u{i}") for i, r in enumerate(random_rows(4000))]
    store = stored(tmp_path, [rows[:1600], rows[1600:]])
    plan = store.plan("acme")
    assert plan.partitions == 64
    assert sum(part.rows for part in plan.parts) == store.rows("acme")
    assert sum(part.rows for part in store.plan("acme", partitions=67).parts) > 1.8 * store.rows("acme")


def test_planning_opens_no_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path, [random_rows(100)])
    for path in Path(store.uri).rglob("client=*/*.parquet"):
        path.unlink()
    fresh = EventStore(store.uri)
    plan = fresh.plan("acme", partitions=4)
    assert plan.rows >= fresh.rows("acme")
    assert plan.bytes > 0
    assert fresh.read("acme", partitions=4).npartitions == 4


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    store = stored(tmp_path, [random_rows(50)])
    with pytest.raises(DataError, match="no client 'acne'; did you mean 'acme'"):
        store.read("acne")
    with pytest.raises(DataError, match="no column 'evnt'; did you mean 'event'"):
        store.read("acme", columns=["evnt"])
    with pytest.raises(DataError, match="at least 1 partition"):
        store.read("acme", partitions=0)


def test_carried_columns_may_come_later(tmp_path: Path, backend: Backend) -> None:
    first, second = random_rows(60, seed=1), [dict(r, basket=i) for i, r in enumerate(random_rows(60, seed=2))]
    write(tmp_path / "raw/1.parquet", first)
    ingest(config(tmp_path), backend)
    write(tmp_path / "more/2.parquet", second)
    source = {"path": str(tmp_path / "more"), "carry": ["basket"]}
    ingest(config(tmp_path, source), backend)
    store = EventStore(config(tmp_path).store_uri, backend)
    assert "basket" in store.columns
    frame = store.read("acme", partitions=2).compute(scheduler="sync")
    frame = frame.to_pandas() if backend.on_gpu else frame
    found = {i: b for i, b in zip(frame.event_id, frame.basket, strict=True) if b == b}
    assert found == {r["id"]: r["basket"] for r in second if r["client"] == "acme"}
    assert len(frame) == sum(r["client"] == "acme" for r in first + second)


EVENT = st.tuples(
    st.integers(0, 3),  # subscriber
    st.integers(0, 4),  # hour
    st.sampled_from(("send", "open", "é")),
    st.integers(0, 5),  # id: few, so that duplicates and conflicts are common
    st.sampled_from((None, "a", "b")),
    st.integers(0, 3),  # arrival
    st.sampled_from((None, 0, 5)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(EVENT, max_size=12), min_size=1, max_size=4), st.sampled_from((1, 2, 7)))
def test_any_log_in_any_batches(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple]], partitions: int
) -> None:  # type: ignore[type-arg]
    def row(e: tuple) -> Row:  # type: ignore[type-arg]
        who, hour, kind, number, campaign, arrival, amount = e
        ts = START + hour * 3_600_000_000
        return {
            "client": "acme",
            "user": f"u{who}",
            "time": ts,
            "kind": kind,
            "id": number,
            "campaign": campaign,
            "provider": None,
            "amount": amount,
            "arrived": ts + arrival,
        }

    logs = [[row(e) for e in batch] for batch in batches]
    every = [r for log in logs for r in log]
    store = stored(tmp_path_factory.mktemp("log"), logs)
    if not every:
        assert store.clients() == []
        return
    found = store.read("acme", partitions=partitions).compute(scheduler="sync")
    assert rows_of_frame(found) == expected(every, "acme")
    few = store.read("acme", columns=["ts"], partitions=partitions).compute(scheduler="sync")
    assert len(few) == len(found), "duplicates go even when the columns that tell them are not asked for"
