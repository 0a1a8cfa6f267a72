"""Verify finds every file that is not what was written, and names all of them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import upkeep
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.events.compaction import compact_closed
from pipeline.events.index import load
from pipeline.events.ingest import ingest
from pipeline.events.integrity import check
from pipeline.events.store import EventStore
from tests.events.logs import DAY, config, random_rows, write
from tests.faults.check import files_below


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    """A store with two merged batches, one live one, and one that had no rows."""
    made = config(tmp_path, quality={"actions": {"impossible_time": "warn"}})
    for i, shift in enumerate((0, 2, 70)):
        write(tmp_path / f"raw/{i}.parquet", [dict(r, time=r["time"] + shift * DAY) for r in random_rows(300, seed=i)])
        ingest(made, PANDAS, compaction=False)
    write(tmp_path / "raw/empty.parquet", [])
    ingest(made, PANDAS)
    assert compact_closed(made.store_uri) == {}
    return made


def damaged(settings: Config) -> dict[str, str]:
    found = check(EventStore(settings.store_uri), workers=1).damaged
    return {str(Path(path).relative_to(settings.store_uri)): what for path, what in found.items()}


def test_a_whole_store(settings: Config, capsys: pytest.CaptureFixture[str]) -> None:
    store = EventStore(settings.store_uri)
    found = check(store)
    assert not found.damaged
    assert (found.files, found.rows, found.bytes) == (len(store.files), store.rows(), store.bytes())
    assert found.indexes == len(list(Path(settings.store_uri).glob("_eventgrain/*.parquet"))) == 6
    assert store.verify() == found.files
    upkeep.verify(settings)
    assert f"{found.files} data files, {found.rows} rows" in capsys.readouterr().out


def test_a_log_that_does_not_say_how_many_rows_there_are(settings: Config) -> None:
    logs = Path(settings.store_uri) / "_delta_log"
    for path in logs.glob("*.json"):
        path.write_text(path.read_text().replace('"stats"', '"sta4s"'))
    found = damaged(settings)
    assert len(found) == len(EventStore(settings.store_uri).files)
    assert all("rows; the log says nothing, the index" in what for what in found.values())


@pytest.mark.parametrize(("text", "instead"), [('"appId"', '"apqId"'), ('"version":1', '"versio~":1')])
def test_a_log_whose_transactions_cannot_be_read(settings: Config, text: str, instead: str) -> None:
    """The library finds it only when it is asked for one: whatever needs one says so, and touches nothing."""
    logs = [p for p in Path(settings.store_uri).glob("_delta_log/*.json") if text in p.read_text()]
    assert logs
    for path in logs:
        path.write_text(path.read_text().replace(text, instead))
    before = {p: p.read_bytes() for p in files_below(Path(settings.store_uri))}
    for task in (
        EventStore(settings.store_uri).verify,
        lambda: ingest(settings, PANDAS),
        lambda: upkeep.clean(settings),
    ):
        with pytest.raises(StoreError, match=r"cannot read the Delta log of the store '.*store.*': .*Restore its"):
            task()
    assert {p: p.read_bytes() for p in files_below(Path(settings.store_uri))} == before


def test_every_bad_file_is_named(settings: Config) -> None:
    root = Path(settings.store_uri)
    store = EventStore(settings.store_uri)
    data = sorted(f["path"] for f in store.files)
    indexes = sorted(str(p.relative_to(root)) for p in root.glob("_eventgrain/*.parquet"))
    assert len(data) == 4
    whole = {name: (root / name).read_bytes() for name in data + indexes}
    (root / data[0]).unlink()
    (root / data[1]).write_bytes(whole[data[1]][:-1])
    flipped = bytearray(whole[data[2]])
    flipped[len(flipped) // 2] ^= 1
    (root / data[2]).write_bytes(flipped)
    found = damaged(settings)
    assert {name: found[name][:13] for name in found} == {
        data[0]: "it is gone",
        data[1]: f"it has {len(whole[data[1]]) - 1:,} bytes"[:13],
        data[2]: "it is not what was written"[:13],
    }
    with pytest.raises(StoreError, match=r"3 files of the store not as written.*\n.*is gone\n.*bytes.*\n.*SHA-256"):
        upkeep.verify(settings)
    for name in data:
        (root / name).write_bytes(whole[name])
    shutil.copy(root / data[0], root / data[1])  # another file of the same store
    assert list(damaged(settings)) == [data[1]]
    (root / data[1]).write_bytes(whole[data[1]])
    for name in indexes:  # those of merged batches and of the empty one too
        (root / name).unlink()
        assert name in damaged(settings), "an index that is gone"
        (root / name).write_bytes(whole[name])
    assert not damaged(settings)


def test_any_bit_of_an_index_that_matters(settings: Config) -> None:
    """A flipped bit is found, or changes nothing of what the index says."""
    root = Path(settings.store_uri)
    store = EventStore(settings.store_uri)
    path = next(root.glob("_eventgrain/*.parquet"))
    run, whole = path.stem, path.read_bytes()
    groups, manifest = load(store.place, run)
    rng, found = random.Random(1), 0
    for at in [*rng.sample(range(len(whole)), 150), *range(len(whole) - 40, len(whole))]:
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            now, about = load(store.place, run)
        except StoreError as error:
            assert path.name in str(error)  # noqa: PT017
            found += 1
            continue
        assert about == manifest
        assert [now.paths[p] for p in now.path] == [groups.paths[p] for p in groups.path]
        assert all((now[n] == groups[n]).all() for n in groups.numbers)
    assert found > 90, "the others are statistics and the like"
    other = next(p for p in root.glob("_eventgrain/*.parquet") if p != path)
    shutil.copy(other, path)  # whole in itself, but not this run's
    with pytest.raises(StoreError, match="its name differs"):
        load(store.place, run)


def test_the_log_holds_no_exact_key(settings: Config) -> None:
    """Its statistics stay when a subscriber goes; they still prune, and lose no row for another reader."""
    import polars

    root = Path(settings.store_uri)
    logs = "".join(p.read_text() for p in root.glob("_delta_log/*.json"))
    keys = [k for f in EventStore(settings.store_uri).files for k in pq.read_table(root / f["path"])["subscriber_key"]]
    distinct = {k.as_py() for k in keys}
    assert not [k for k in distinct if str(k) in logs]
    scan = polars.scan_delta(str(root))
    for key in list(distinct)[:5]:
        assert len(scan.filter(polars.col("subscriber_key") == key).collect()) == [k.as_py() for k in keys].count(key)
