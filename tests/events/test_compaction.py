"""Compaction changes files, never what a read yields."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.backend import Backend
from pipeline.errors import DataError
from pipeline.events.compaction import OPEN, compact, compact_closed, due, month_name, month_of, month_start
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.events.logs import DAY, START, config, expected, random_rows, rows_of_frame, write


def test_months() -> None:
    assert month_name(month_of(START)) == "202605"
    assert month_start(month_of(START)) == START
    assert month_of(START - 1) == month_of(START) - 1
    assert month_name(month_of(-1)) == "196912"


def daily(tmp_path: Path, backend: Backend, days: int) -> tuple[str, list[dict[str, object]]]:
    rng = random.Random(1)
    rows = [
        dict(r, time=START + rng.randrange(days * 24) * 3_600_000_000) for r in random_rows(days * 40, subscribers=60)
    ]
    rows = [dict(r, arrived=r["time"] + rng.choice((1, 5, DAY, 30 * DAY))) for r in rows]
    again = [dict(r, arrived=r["arrived"] + DAY) for r in rng.sample(rows, days * 5)]
    every = rows + again
    settings = config(tmp_path, quality={"actions": {"impossible_time": "warn"}})
    for day in range(days):
        arrived = [
            r for r in every if START + day * DAY <= min(r["arrived"], START + days * DAY - 1) < START + (day + 1) * DAY
        ]
        write(tmp_path / f"raw/{day:03d}.parquet", arrived)
        if day % 5 == 4:
            ingest(settings, backend, compaction=False)
    return settings.store_uri, every


def test_reads_are_the_same_before_and_after(tmp_path: Path, backend: Backend) -> None:
    uri, every = daily(tmp_path, backend, 65)
    before = EventStore(uri, backend)
    months = due(before, "acme")
    assert [month_name(m) for m in months] == ["202605", "202606"]
    wanted = {c: expected(every, c) for c in ("acme", "globex")}
    version = before.version()
    replaced = compact_closed(uri)
    assert replaced.keys() == {"acme", "globex"}
    after = EventStore(uri, backend)
    assert len(after.files) < len(before.files)
    for client in wanted:
        files = [f["path"] for f in after.files if f["client"] == client]
        events = [e for f in files for e in pq.read_table(f"{uri}/{f}", partitioning=None)["event"].to_pylist()]
        assert after.kinds(client) == Counter(events)
        assert after.last_full_day(client) == before.last_full_day(client)
    assert not due(after, "acme")
    assert compact(after, "acme") == 0
    for store in (before, after, EventStore(uri, backend, version=version)):
        for client, rows in wanted.items():
            for partitions in (1, 5):
                assert rows_of_frame(store.read(client, partitions=partitions).compute(scheduler="sync")) == rows
    assert after.verify() == len(after.files)
    june = START + 31 * DAY
    for group in range(len(after.groups("acme"))):  # no compacted file crosses a month
        groups = after.groups("acme")
        if "merged" in groups.paths[groups.path[group]]:
            assert month_of(int(groups["ts_min"][group])) == month_of(int(groups["ts_max"][group]))
    since = [r for r in wanted["acme"] if june <= r[2] < june + DAY]
    frame = after.read("acme", since=june, until=june + DAY, partitions=3).compute(scheduler="sync")
    assert rows_of_frame(frame) == since
    assert after.plan("acme", since=june + 5 * DAY).rows < before.plan("acme").rows


def test_large_batches_are_left_alone_until_they_are_many(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.events.compaction.LARGE", 20)
    rows = sorted(random_rows(360, subscribers=30, days=60), key=lambda r: r["time"])
    settings = config(tmp_path)
    for i in range(10):  # of 30 rows, some 15 of each client, but for two large ones
        size = 30 if i not in (2, 3) else 60
        first = sum(30 if j not in (2, 3) else 60 for j in range(i))
        write(tmp_path / f"raw/{i:02d}.parquet", rows[first : first + size])
        ingest(settings, backend, compaction=False)
    store = EventStore(settings.store_uri, backend)
    large = {f["path"] for f in store.files if f["client"] == "acme" and f["rows"] >= 20}
    assert len(large) == 2
    months = due(store, "acme")
    assert months, "the small ones of the closed month"
    assert not large & {path for paths in months.values() for path in paths}
    monkeypatch.setattr("pipeline.events.compaction.OPEN", 5)
    assert large <= {path for paths in due(store, "acme").values() for path in paths}
    compact_closed(settings.store_uri)
    found = EventStore(settings.store_uri, backend).read("acme", partitions=3).compute(scheduler="sync")
    assert rows_of_frame(found) == expected(rows[:360], "acme")


def test_sources_stay_known_and_rivals_lose(tmp_path: Path, backend: Backend) -> None:
    uri, _ = daily(tmp_path, backend, 40)
    one, two = EventStore(uri), EventStore(uri)
    assert compact(one, "acme") > 0
    assert compact(two, "acme") == 0, "the second saw the same files; they were replaced meanwhile"
    rows = EventStore(uri).rows()
    report = ingest(config(tmp_path, quality={"actions": {"impossible_time": "warn"}}), backend)
    assert report.rows_in == 0
    assert report.skipped_files == 40
    assert EventStore(uri).rows() <= rows


def test_collisions_across_batches_are_refused(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    import pipeline.events.prepare as prepare

    monkeypatch.setattr(prepare, "hash_ids", lambda ids, backend: np.zeros(len(ids), dtype=np.int64))
    settings = config(tmp_path)
    for i in range(2):
        rows = [dict(r, user=f"u{i}", client="acme") for r in random_rows(5, seed=i)]
        write(tmp_path / f"raw/{i}.parquet", rows)
        ingest(settings, backend, compaction=False)
    store = EventStore(settings.store_uri, backend)
    with pytest.raises(DataError, match=r"client 'acme': subscribers 'u[01]' and 'u[01]' have one and the same"):
        store.read("acme").compute(scheduler="sync")
    assert len(store.read("acme", columns=["ts"]).compute(scheduler="sync")) == 10
    write(
        tmp_path / "raw/9.parquet",
        [dict(r, time=START + 40 * DAY, user="u1", client="acme") for r in random_rows(2, seed=7)],
    )
    settings = config(tmp_path, quality={"actions": {"impossible_time": "warn"}})
    with pytest.raises(DataError, match=r"'u0' and 'u1'|'u1' and 'u0'"):
        ingest(settings, backend)


def test_an_open_month_of_many_batches_is_merged(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an hourly ingest: no partition opens more than some 40 files (here 8), whatever the month's length."""
    assert OPEN <= 40
    monkeypatch.setattr("pipeline.events.compaction.OPEN", few := 8)
    rows = sorted(random_rows(250, subscribers=30, days=20), key=lambda r: r["time"])
    settings = config(tmp_path)
    for i in range(18):
        write(tmp_path / f"raw/{i:02d}.parquet", rows[i * 5 : i * 5 + 5])
        ingest(settings, backend)
        if i in (6, 9, 17):
            store = EventStore(settings.store_uri, backend)
            for client in ("acme", "globex"):
                assert len([f for f in store.files if f["client"] == client]) <= few + 2
                found = store.read(client, partitions=3).compute(scheduler="sync")
                assert rows_of_frame(found) == expected(rows[: i * 5 + 5], client)
    assert any(m["kind"] == "compaction" for m in store.manifests().values())
    assert not due(store, "acme")
