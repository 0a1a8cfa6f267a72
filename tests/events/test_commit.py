"""A crash at any point loses nothing and doubles nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.backend import PANDAS
from pipeline.errors import StoreError
from pipeline.events.commit import open_table, verify
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from pipeline.events.tables import _footer
from tests.events.logs import DAY, config, expected, random_rows, rows_of_frame, write

PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import pipeline.events.compaction, pipeline.events.compiled, deltalake
from pipeline.backend import PANDAS
from pipeline.events.ingest import ingest
from tests.events.logs import config
import numpy as np, pyarrow as pa
from pipeline.events.hashing import hash_ids
from pipeline.events.sorting import merge_order, sort_order
key = hash_ids(pa.array(["a", "b"]).cast(pa.large_string()), PANDAS)
sort_order(key, key, PANDAS), merge_order(np.sort(key), key, [0, 1, 2], PANDAS)  # load the compiled code once
for line in sys.stdin:  # each ingest in a child of its own, which inherits the imports
    if (child := os.fork()) == 0:
        os.environ["EVENTGRAIN_FAULT"] = line.strip()
        ingest(config(Path({tmp!r}), batch_rows=1000), PANDAS)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
POINTS = {
    "file-written": 2,
    "file-renamed": 3,
    "quarantine-written": 1,
    "index-written": 2,
    "verified": 1,
    "before-commit": 2,
    "after-commit": 1,
    "acknowledged": 2,
    "compaction-written": 1,
}


class Victim:
    """A process that ingests on request and reports how that ended."""

    def __init__(self, tmp_path: Path) -> None:
        program = PROGRAM.format(root=str(Path(__file__).parents[2]), tmp=str(tmp_path))
        command = [sys.executable, "-W", "ignore", "-c", program]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ingest(self, fault: str = "") -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(fault + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=60)


def test_killed_at_every_point(tmp_path: Path) -> None:
    """One log, killed again and again on its way: at each point once, at the n-th passing of it."""
    rows = [
        dict(r, time=r["time"] + (i % 50) * DAY, arrived=r["arrived"] + (i % 50) * DAY)
        for i, r in enumerate(random_rows(5000))
    ]
    rows.sort(key=lambda r: r["time"])
    for i in range(5):
        bad = [dict(rows[0], user=None, id=-1)]
        write(tmp_path / f"raw/{i}.parquet", [*rows[i * 1000 : i * 1000 + 900], *rows[i * 1000 : i * 1000 + 10], *bad])
    kept = [r for i in range(5) for r in rows[i * 1000 : i * 1000 + 900]]
    uri = config(tmp_path).store_uri
    victim = Victim(tmp_path)
    for point, times in POINTS.items():
        assert victim.ingest(f"{point}:{times}") == -9, f"{point} was not reached {times} times"
        if open_table(uri) is not None:  # whatever was committed is whole and readable
            store = EventStore(uri)
            store.verify()
            found = {r[4] for c in store.clients() for r in rows_of_frame(store.read(c).compute(scheduler="sync"))}
            assert found <= {r["id"] for r in kept}
    assert victim.ingest() == 0
    victim.close()
    store = EventStore(uri)
    for client in ("acme", "globex"):
        assert rows_of_frame(store.read(client, partitions=2).compute(scheduler="sync")) == expected(kept, client)
    assert store.rows() == len(kept), "nothing is there twice, not even for a reader that does not deduplicate"
    report = ingest(config(tmp_path, batch_rows=1000), PANDAS)
    assert report.rows_in == 0


def test_what_was_written_is_verified(tmp_path: Path) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(100))
    settings = config(tmp_path)
    ingest(settings, PANDAS)
    store = EventStore(settings.store_uri)
    (manifest,) = store.manifests().values()
    entry = manifest["files"][0]
    verify(store.place, [entry], store.schema, 1)
    for wrong, message in (
        ({"size": entry["size"] + 1}, "bytes where"),
        ({"sha256": "0" * 64}, "digest"),
        ({"rows": 7}, "holds"),
        ({"path": "client=acme/none.parquet"}, "None bytes"),
    ):
        with pytest.raises(StoreError, match=message):
            verify(store.place, [entry | wrong], store.schema, 1)


def test_a_flipped_bit_is_found_by_reading_and_by_verify(tmp_path: Path) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(2000))
    settings = config(tmp_path)
    ingest(settings, PANDAS)
    store = EventStore(settings.store_uri)
    path = Path(settings.store_uri) / next(f["path"] for f in store.files if f["client"] == "acme")
    whole = path.read_bytes()
    rows = rows_of_frame(store.read("acme").compute(scheduler="sync"))
    found = 0
    for at in range(20, len(whole) - 20, len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(StoreError, match="SHA-256"):
            store.verify()
        _footer.cache_clear()
        try:  # a bit of a page's header may not matter; then nothing may change
            assert rows_of_frame(store.read("acme").compute(scheduler="sync")) == rows
        except StoreError as error:
            assert "damaged" in str(error)  # noqa: PT017
            found += 1
    assert found > 15
    path.unlink()
    with pytest.raises(StoreError, match="removed"):
        store.read("acme").compute(scheduler="sync")


def test_rivals_of_one_batch(tmp_path: Path) -> None:
    """Two processes ingest the same day at once: one adds it, the other adds nothing and says so."""
    from concurrent.futures import ThreadPoolExecutor

    write(tmp_path / "raw/1.parquet", random_rows(3000))
    settings = config(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: ingest(settings, PANDAS), range(3)))
    assert sorted(r.kept for r in reports) == [0, 0, 3000]
    assert EventStore(settings.store_uri).rows() == 3000


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        EventStore(str(tmp_path / "none"))
    import deltalake
    import pyarrow as pa

    deltalake.write_deltalake(str(tmp_path / "other"), pa.table({"a": [1]}))
    with pytest.raises(StoreError, match="not a store of eventgrain"):
        EventStore(str(tmp_path / "other"))
    write(tmp_path / "raw/1.parquet", random_rows(10))
    ingest(config(tmp_path), PANDAS)
    with pytest.raises(StoreError, match="version 99"):
        EventStore(config(tmp_path).store_uri, version=99)
