"""A full disk, a target that cannot be written, a vanished source: said clearly, nothing lost, a rerun completes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.events.store import EventStore
from tests.events.logs import config, random_rows, write
from tests.faults.check import compare, oracle, oracle_columns, rows_of
from tests.faults.victim import Ended, Victim


class Daily:
    """A store with one day in it, and a second day to ingest, by the command line."""

    def __init__(self, folder: Path, victim: Victim) -> None:
        self.folder, self.victim = folder, victim
        self.first, second = random_rows(2000, seed=1), random_rows(4000, seed=2)
        self.every = [*self.first, *second]
        write(folder / "raw/1.parquet", self.first)
        self.settings = config(folder, store=str(folder / "store"), batch_rows=1500)
        (folder / "test.yaml").write_text(yaml.safe_dump(self.settings.model_dump(mode="json")))
        ended = self.ingest()
        assert ended.code == 0, ended.text
        self.version = EventStore(self.settings.store_uri).version()
        for i in range(2):
            write(folder / f"raw/2-{i}.parquet", second[i::2])
        for name in ("store", "runs"):
            shutil.copytree(folder / name, folder / "begun" / name)

    def again(self) -> None:
        """As it was after the first day."""
        for name in ("store", "runs"):
            shutil.rmtree(self.folder / name)
            shutil.copytree(self.folder / "begun" / name, self.folder / name)

    def ingest(self, *words: str, **options: Any) -> Ended:
        argv = ["ingest", "--config", str(self.folder / "test.yaml"), *words]
        return self.victim.run("command", argv=argv, **options)

    def earlier_is_readable(self) -> bool:
        store = EventStore(self.settings.store_uri, version=self.version)
        frames = {c: store.read(c).compute(scheduler="sync") for c in store.clients()}
        return sum(len(f) for f in frames.values()) == len(self.first)

    def completes(self) -> bool:
        ended = self.ingest()
        assert ended.code == 0, ended.text
        return compare(oracle_columns(rows_of(self.settings.store_uri)), oracle(self.every)).none


def said_clearly(ended: Ended) -> bool:
    """Exit status 2, one message, no traceback."""
    return ended.code == 2 and "error: " in ended.text and not ended.traceback


def full(folder: Path, victim: Victim, sizes: int) -> dict[str, Any]:
    """Ingests under a limit on every file's size, from nothing up to just below the largest file."""
    daily = Daily(folder, victim)
    assert daily.completes()
    top = max(p.stat().st_size for p in (folder / "store").rglob("*.parquet"))
    found: dict[str, Any] = {"limits": [], "clear": 0, "readable": 0, "completed": 0, "messages": []}
    for i in range(sizes):
        daily.again()
        limit = top * i // sizes
        ended = daily.ingest(file_limit=limit)
        found["limits"].append(limit)
        found["clear"] += said_clearly(ended)
        if not said_clearly(ended):
            found["messages"].append(ended.text[-600:])
        found["readable"] += daily.earlier_is_readable()
        found["completed"] += daily.completes()
    return found


def measure(folder: Path, victim: Victim, sizes: int) -> dict[str, Any]:
    return full(folder, victim, sizes)


def test_a_full_disk(tmp_path: Path, victim: Victim) -> None:
    found = full(tmp_path, victim, 4)
    assert found["messages"] == []
    assert (found["clear"], found["readable"], found["completed"]) == (4, 4, 4)


@pytest.mark.slow
def test_a_full_disk_at_twenty_sizes(tmp_path: Path, victim: Victim) -> None:
    found = full(tmp_path, victim, 20)
    assert found["messages"] == []
    assert (found["clear"], found["readable"], found["completed"]) == (20, 20, 20)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A filesystem of 600 kB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small filesystem here: {mounted.stderr.strip() or mounted.returncode}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path, victim: Victim) -> None:
    daily = Daily(tmp_path, victim)
    ballast = small_disk / "ballast"
    store = f"store={small_disk / 'store'}"
    left = os.statvfs(small_disk)
    ballast.write_bytes(bytes(left.f_bavail * left.f_frsize - 60_000))
    ended = daily.ingest(store)
    assert said_clearly(ended), ended.text
    assert "disk is full" in ended.text or "make room" in ended.text
    ballast.unlink()
    assert daily.ingest(store).code == 0
    assert compare(oracle_columns(rows_of(str(small_disk / "store"))), oracle(daily.every)).none


def test_a_target_that_cannot_be_written(tmp_path: Path, victim: Victim) -> None:
    """Root may write anywhere, so what stands in the way is a file where a folder must be, and a read-only mount."""
    daily = Daily(tmp_path, victim)
    (tmp_path / "file").write_text("")
    for where in ("store={}/store", "runs={}/runs"):
        ended = daily.ingest(where.format(tmp_path / "file"))
        assert said_clearly(ended), ended.text
        assert str(tmp_path / "file") in ended.text
    store = Path(daily.settings.store_uri)
    if os.geteuid():
        folders = [p for p in store.rglob("*") if p.is_dir()] + [store]
        for p in folders:
            p.chmod(0o555)
        ended = daily.ingest()
        for p in folders:
            p.chmod(0o755)
        assert said_clearly(ended), ended.text
    else:
        mounts = (["mount", "--bind", str(store), str(store)], ["mount", "-o", "remount,ro,bind", str(store)])
        if not any(subprocess.run(m, capture_output=True).returncode for m in mounts):
            ended = daily.ingest()
            subprocess.run(["umount", str(store)], check=True)
            assert said_clearly(ended), ended.text
            assert "choose another place" in ended.text or "set them elsewhere" in ended.text
    assert daily.earlier_is_readable()
    assert daily.completes()


@pytest.mark.parametrize("before", ["make_batches", "read_whole"])  # after the listing; as files are read
def test_a_source_file_that_vanishes(tmp_path: Path, victim: Victim, before: str) -> None:
    """Set aside by name while the others are taken, or the error; once it is back it is taken."""
    daily = Daily(tmp_path, victim)
    gone = tmp_path / "raw/2-0.parquet"
    data = gone.read_bytes()
    for policy, code in (("fail", 2), ("quarantine", 0)):
        gone.write_bytes(data)
        argv = ["ingest", "--config", str(tmp_path / "test.yaml"), f"source.on_error={policy}"]
        ended = victim.run("vanishing", argv=argv, file=str(gone), before=before)
        assert ended.code == code, ended.text
        assert not ended.traceback
        assert "2-0.parquet" in ended.text
        assert "vanished" in ended.text
        assert daily.earlier_is_readable()
    found = {row for rows in oracle_columns(rows_of(daily.settings.store_uri)).values() for row in rows}
    assert len(found) > len(daily.first), "the other file was taken"
    gone.write_bytes(data)
    assert daily.completes()
