"""Clean removes what nobody needs, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import upkeep
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.events.clean import find, remove
from pipeline.events.compaction import compact_closed
from pipeline.events.files import Place
from pipeline.events.ingest import ingest
from pipeline.events.locks import deleting, writing
from pipeline.events.quarantine import encode
from pipeline.events.store import EventStore
from pipeline.options import UNITS
from tests.events.logs import DAY, config, expected, random_rows, rows_of_frame, write
from tests.learning.cards import cite

LATER = 2**62  # every snapshot but the live one is older than this


def filled(tmp_path: Path, **options: Any) -> tuple[Config, list[Any]]:
    """A store of two batches in May that were compacted, and one in July; hostile clients and a rejected row."""
    settings = config(tmp_path, quality={"actions": {"impossible_time": "warn"}}, **options)
    every = []
    for i, shift in enumerate((0, 2, 70)):
        rows = [
            dict(r, time=r["time"] + shift * DAY, client=("a/b", "..", "é")[n % 3])
            for n, r in enumerate(random_rows(90, seed=i))
        ]
        every += rows
        write(tmp_path / f"raw/{i}.parquet", [*rows, dict(rows[0], user=None)])
        ingest(settings, PANDAS, compaction=False)
    return settings, every


def paths(folder: str | Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def reads(store: EventStore) -> dict[str, Any]:
    return {c: rows_of_frame(store.read(c).compute(scheduler="sync")) for c in store.clients()}


def test_nothing_goes_from_a_store_in_order(tmp_path: Path) -> None:
    settings, _ = filled(tmp_path)
    before = paths(settings.store_uri)
    upkeep.clean(settings)
    assert paths(settings.store_uri) == before | {"_eventgrain/.lock"}


def test_orphans_go_and_the_store_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, every = filled(tmp_path)
    root = Path(settings.store_uri)
    whole = paths(root)
    quarantined = paths(settings.run_dir / "quarantine")
    some = next(f["path"] for f in EventStore(settings.store_uri).files)
    orphans = {
        f"{some.rpartition('/')[0]}/{'0' * 20}-00of01-{'a' * 12}.parquet": 100,
        f"client=new/{'1' * 20}-00of01-{'a' * 12}.parquet": 50,
        f"_eventgrain/{'0' * 20}.parquet": 7,
        "client=new/.0123.tmp": 3,
        "_eventgrain/.0123.tmp": 2,
        "_delta_log/_commit_0123.json.tmp": 1,
    }
    for name, size in orphans.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x" * size)
    mine = {"notes.txt": 1, "other/data.parquet": 2}  # not ours to remove
    for name in mine:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("kept")
    store = EventStore(settings.store_uri)
    table = pa.table({"a": [1]})
    ours, others = settings.run_dir / f"quarantine/{'0' * 20}.parquet", settings.run_dir / "quarantine/9.parquet"
    ours.write_bytes(encode(table, store._table.metadata().id))
    others.write_bytes(encode(table, "another store"))
    upkeep.clean(settings, dry_run=True)
    said = capsys.readouterr().out
    assert orphans.keys() < paths(root)
    assert all(f"would remove {root / name}" in said for name in orphans)
    assert f"would remove 7 files, {163 + ours.stat().st_size} bytes" in said
    upkeep.clean(settings)
    assert f"removed 7 files, {163 + len(encode(table, store._table.metadata().id))} bytes" in capsys.readouterr().out
    assert paths(root) == whole | mine.keys() | {"_eventgrain/.lock"}
    assert paths(settings.run_dir / "quarantine") == quarantined | {"9.parquet"}
    upkeep.clean(settings)
    assert "removed 0 files, 0 bytes" in capsys.readouterr().out
    after = EventStore(settings.store_uri)
    assert after.verify() == len(after.files)
    assert reads(after) == {c: expected(every, c) for c in ("a/b", "..", "é")}
    assert ingest(settings, PANDAS).rows_in == 0


def test_of_pretrained_networks_the_last_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, _ = filled(tmp_path)
    home = settings.run_dir / "models" / "@pretrained"
    home.mkdir(parents=True)
    for i, name in enumerate(["b", "unfinished", "c", "a"]):
        (home / name).write_bytes(b"x" * 5)
        os.utime(home / name, (i, i))
    upkeep.clean(settings)
    assert paths(home) == {"a", "unfinished"}
    assert "removed 2 files, 10 bytes" in capsys.readouterr().out


def test_old_snapshots_go_unless_they_are_young_or_cited(tmp_path: Path) -> None:
    settings, every = filled(tmp_path)
    old = EventStore(settings.store_uri)
    assert compact_closed(settings.store_uri)
    live = EventStore(settings.store_uri)
    assert len({f["path"] for f in old.files} - {f["path"] for f in live.files}) == 6
    wanted = {c: expected(every, c) for c in ("a/b", "..", "é")}
    upkeep.clean(settings)  # a week has not passed
    assert reads(EventStore(settings.store_uri, version=old.version())) == wanted
    short = settings.model_copy(update={"keep_snapshots": 1})
    cite(settings.run_dir / "models", "a/b", old.version())
    upkeep.clean(short)  # a model cites it
    assert reads(EventStore(settings.store_uri, version=old.version())) == wanted
    for card in (settings.run_dir / "models").rglob("card.json"):
        card.unlink()
    time.sleep(0.01)
    upkeep.clean(short)
    assert paths(settings.store_uri) >= {f["path"] for f in live.files}
    assert not paths(settings.store_uri) & ({f["path"] for f in old.files} - {f["path"] for f in live.files})
    after = EventStore(settings.store_uri)
    assert after.verify() == len(after.files)
    assert reads(after) == wanted
    assert ingest(settings, PANDAS).rows_in == 0, "the sources of what was merged stay known"


def test_a_snapshot_cited_by_another_run_of_the_store(tmp_path: Path) -> None:
    settings, every = filled(tmp_path, store=str(tmp_path / "shared"))
    old = EventStore(settings.store_uri)
    compact_closed(settings.store_uri)
    other = settings.model_copy(update={"name": "other"})
    cite(other.run_dir / "models", "a/b", old.version())
    (other.run_dir / "config.yaml").write_text(other.dump())
    time.sleep(0.01)
    upkeep.clean(settings.model_copy(update={"keep_snapshots": 1}))
    assert reads(EventStore(settings.store_uri, version=old.version())) == {
        c: expected(every, c) for c in ("a/b", "..", "é")
    }


def test_young_orphans_of_a_store_without_locks_stay(tmp_path: Path) -> None:
    settings, _ = filled(tmp_path)
    root = Path(settings.store_uri)
    for name, age in (("client=x/young.parquet", 1), ("client=x/old.parquet", 30)):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
        at = time.time() - age * 3600
        os.utime(root / name, (at, at))
    found = find(Place(settings.store_uri), LATER, (), 24 * UNITS["h"])
    assert [name for _, name, _ in found.removed] == ["client=x/old.parquet"]
    assert found.young == 1


def test_nobody_cleans_beside_a_writer(tmp_path: Path) -> None:
    settings, _ = filled(tmp_path)
    place = Place(settings.store_uri)
    with writing(place), writing(place), pytest.raises(StoreError, match="another process is writing"):
        upkeep.clean(settings)
    waited = []
    with deleting(place, lambda: waited.append(1)):
        pass
    assert not waited


KILLED = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pipeline import upkeep
from tests.events.logs import config
upkeep.clean(config(Path({tmp!r})))
"""


def test_killed_while_deleting(tmp_path: Path) -> None:
    settings, every = filled(tmp_path)
    root = Path(settings.store_uri)
    whole = paths(root)
    for i in range(20):
        (root / f"client=x/{i}.parquet").parent.mkdir(exist_ok=True)
        (root / f"client=x/{i}.parquet").write_bytes(b"x")
    program = KILLED.format(root=str(Path(__file__).parents[2]), tmp=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=os.environ | {"EVENTGRAIN_FAULT": "clean-deleted:5"}
    )
    assert done.returncode == -9
    left = [p for p in paths(root) if p.startswith("client=x/")]
    assert 0 < len(left) < 20
    upkeep.clean(settings)
    assert paths(root) == whole | {"_eventgrain/.lock"}
    store = EventStore(settings.store_uri)
    assert reads(store) == {c: expected(every, c) for c in ("a/b", "..", "é")}


def test_removing_twice_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for _ in range(2):
        remove(Place(str(tmp_path)), ["a"])
    assert not (tmp_path / "a").exists()
