"""A forgotten subscriber is nowhere any more, does not come back, and nobody else loses a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.events.ingest as ingesting
from pipeline import results
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.events import tombstones
from pipeline.events.commit import open_table
from pipeline.events.compaction import compact_closed, due
from pipeline.events.files import Place
from pipeline.events.ingest import ingest
from pipeline.events.locks import writing
from pipeline.events.store import EventStore
from pipeline.forget import forget
from pipeline.rundir import RunDirectory
from tests.decisions.rundir import decisions
from tests.events.logs import DAY, Row, config, expected, key_of, random_rows, rows_of_frame, write
from tests.learning.cards import cite

WHO = "user 3 é"
CLIENTS = ("acme", "globex")


def reads(settings: Config, partitions: int = 2) -> dict[str, Any]:
    store = EventStore(settings.store_uri)
    clients = store.clients()
    return {c: rows_of_frame(store.read(c, partitions=partitions).compute(scheduler="sync")) for c in clients}


def without(rows: list[Row], who: str = WHO, client: str | None = None) -> dict[str, Any]:
    left = [r for r in rows if r["user"] != who or (client is not None and r["client"] != client)]
    return {c: expected(left, c) for c in CLIENTS}


def search(folder: Path, texts: list[str], numbers: list[int]) -> list[str]:
    """An independent search: bytes of every file, as they stand and as JSON writes them; every cell of every table."""
    found = []
    patterns = [p for t in texts + [str(n) for n in numbers] for p in {t.encode(), json.dumps(t)[1:-1].encode()}]
    for path in (p for p in folder.rglob("*") if p.is_file() and "_eventgrain/forgotten" not in str(p)):
        data = path.read_bytes()
        hit = any(p in data for p in patterns)
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            cells = {
                v for name in table.column_names for v in table.column(name).to_pylist() if not isinstance(v, dict)
            }
            hit |= bool(cells & {*texts, *numbers})
            index = table.schema.metadata or {}
            hit |= any(p in v for v in index.values() for p in patterns)
        if hit:
            found.append(str(path.relative_to(folder)))
    return sorted(found)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Config, list[Row]]:
    """A run with merged months, old snapshots, an orphan, quarantine, examples, decisions of two days, a report."""
    settings = config(tmp_path, quality={"actions": {"impossible_time": "warn", "late_arrival": "warn"}})
    every: list[Row] = []
    for i, shift in enumerate((0, 2, 40, 42, 90)):
        rows = [
            dict(r, time=r["time"] + shift * DAY, arrived=r["arrived"] + shift * DAY)
            for r in random_rows(300, seed=i, subscribers=12)
        ]
        late = dict(rows[0], user=WHO, id=-1 - i, arrived=rows[0]["time"] + 10 * DAY)
        every += [*rows, late]
        bad = [dict(rows[1], user=u, kind=None) for u in (WHO, "user 4 é")]
        write(tmp_path / f"raw/{i}.parquet", [*rows, late, *bad])
        report = ingest(settings, PANDAS, compaction=False)
        assert report.rejected == 2
    assert compact_closed(settings.store_uri)
    store = EventStore(settings.store_uri)
    root = Path(settings.store_uri)
    some = next(f["path"] for f in store.files if f["client"] == "acme")
    (root / some).with_name("00000000000000000000-00of01-000000000000.parquet").write_bytes((root / some).read_bytes())
    directory = RunDirectory(settings)
    for client in CLIENTS:
        for day in ("2026-08-01", "2026-08-02", "2026-08-02"):  # one day twice: an old version of the table
            frame = decisions(client, 6, settings).assign(date=day)
            frame["subscriber"] = [WHO, *(f"user {i} é" for i in range(4, 9))]
            results.replace(frame, str(settings.run_dir / "decisions"), {"client": client, "date": day})
    rules = store.rules()
    assert WHO in json.dumps(rules, ensure_ascii=False)
    directory.record(
        "ingest", "", {"events": store.totals(), "rules": rules, "clients": list(CLIENTS)}, {"seconds": 1.0}
    )
    (settings.run_dir / "report.html").write_text(f"<td>{WHO}</td>", encoding="utf-8")
    return settings, every


def test_erased_everywhere_and_proved(run: tuple[Config, list[Row]], capsys: pytest.CaptureFixture[str]) -> None:
    settings, every = run
    before = search(settings.run_dir, [WHO], [key_of(WHO)])
    kinds = (
        "quarantine/",
        "store/client=",
        "store/_eventgrain/",
        "decisions/",
        "stages/",
        "metrics.json",
        "report.html",
    )
    for kind in kinds:
        assert any(kind in name for name in before), kind
    version = EventStore(settings.store_uri).version() - 2
    cite(settings.run_dir / "models", "acme", version)
    forget(settings, [WHO])
    said = capsys.readouterr().out
    assert search(settings.run_dir, [WHO], [key_of(WHO)]) == []
    assert "for the ids and keys: 0 found" in said
    assert WHO not in said
    events = len([r for r in every if r["user"] == WHO])
    assert f"store: {events} events" in said
    assert f"snapshot {version}, which a model version cites, lost" in said
    assert "4 decisions, 5 rejected rows" in said
    for partitions in (1, 5):
        assert reads(settings, partitions) == without(every)
    store = EventStore(settings.store_uri)
    assert store.verify() == len(store.files)
    left = results.read(str(settings.run_dir / "decisions"))
    assert left is not None
    assert sorted(zip(left["client"], left["date"], left["subscriber"], strict=True)) == [
        (c, d, f"user {i} é") for c in CLIENTS for d in ("2026-08-01", "2026-08-02") for i in range(4, 9)
    ]
    assert "user 5 é" in (settings.run_dir / "report.html").read_text(encoding="utf-8"), "it was made anew"
    quarantined = [r for p in (settings.run_dir / "quarantine").glob("*.parquet") for r in pq.read_table(p).to_pylist()]
    assert [r["user"] for r in quarantined] == ["user 4 é"] * 5
    assert not due(store, "acme"), "what was merged stays merged"
    version = store.version()
    forget(settings, [WHO])  # again: nothing left to do
    assert "nobody of that name was known here" in capsys.readouterr().out
    assert EventStore(settings.store_uri).version() == version
    assert ingest(settings, PANDAS).rows_in == 0


def test_later_events_do_not_come_in(run: tuple[Config, list[Row]]) -> None:
    settings, every = run
    forget(settings, [WHO])
    source = Path(settings.source.path)  # type: ignore[union-attr]
    rows = [dict(r, time=r["time"] + 95 * DAY, arrived=r["arrived"] + 95 * DAY) for r in random_rows(200, seed=9)]
    theirs = [r for r in rows if r["user"] == WHO]
    bad = dict(theirs[0], kind=None)
    write(source / "9.parquet", [*rows, bad, dict(rows[0], user="user 5 é", kind=None)])
    report = ingest(settings, PANDAS)
    assert report.rejected_by == {"forgotten": len(theirs) + 1, "null_event": 1}
    assert report.rows_in == report.kept + report.duplicates + report.rejected == 202
    assert sum(c["in"] for c in report.per_client.values()) == 202
    assert reads(settings) == without(every + rows)
    assert search(settings.run_dir, [WHO], [key_of(WHO)]) == []
    newest = max((settings.run_dir / "quarantine").glob("*.parquet"), key=lambda p: p.stat().st_mtime_ns)
    (kept,) = pq.read_table(newest).to_pylist()
    assert (kept["user"], kept["source_row"]) == ("user 5 é", 201), "places in the file are those of the file"


def test_one_clients_subscriber(run: tuple[Config, list[Row]], capsys: pytest.CaptureFixture[str]) -> None:
    settings, every = run
    forget(settings, [WHO], client="acme")
    assert reads(settings) == without(every, client="acme")
    left = results.read(str(settings.run_dir / "decisions"))
    assert left is not None
    assert set(left[left["subscriber"] == WHO]["client"]) == {"globex"}
    assert "other clients have a subscriber of that id" in capsys.readouterr().out
    store = Path(settings.store_uri)
    assert not [n for n in search(store, [WHO], [key_of(WHO)]) if n.startswith("client=acme")]


def test_somebody_unknown_and_many_at_once(
    run: tuple[Config, list[Row]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, every = run
    forget(settings, ["never seen"])
    assert "nobody of that name was known here" in capsys.readouterr().out
    assert reads(settings) == {c: expected(every, c) for c in CLIENTS}
    rows = [dict(r, user="never seen") for r in random_rows(10, seed=20)]
    write(Path(settings.source.path) / "20.parquet", rows)  # type: ignore[union-attr]
    assert ingest(settings, PANDAS).rejected_by == {"forgotten": 10}
    (tmp_path / "ids.txt").write_text(f"{WHO}\nuser 5 é\n\n", encoding="utf-8")
    forget(settings, subscribers=str(tmp_path / "ids.txt"))
    left = [r for r in every if r["user"] not in (WHO, "user 5 é")]
    assert reads(settings) == {c: expected(left, c) for c in CLIENTS}
    assert search(settings.run_dir, [WHO, "user 5 é"], [key_of(WHO), key_of("user 5 é")]) == []
    with pytest.raises(ConfigError, match="needs --subscriber ID or"):
        forget(settings)
    with pytest.raises(StoreError, match="no store"):
        forget(settings.model_copy(update={"store": str(tmp_path / "none")}), ["x"])


def test_integer_ids(tmp_path: Path) -> None:
    settings = config(tmp_path)
    rows = random_rows(400, subscribers=30, integer_ids=True)
    write(tmp_path / "raw/1.parquet", [*rows, dict(rows[0], user=7, kind=None), dict(rows[0], user=8, kind=None)])
    ingest(settings, PANDAS)
    forget(settings, ["7"])
    left = [r for r in rows if r["user"] != 7]
    assert reads(settings) == {c: expected(left, c) for c in CLIENTS}
    (path,) = (settings.run_dir / "quarantine").glob("*.parquet")
    assert [r["user"] for r in pq.read_table(path).to_pylist()] == [8]
    write(tmp_path / "raw/2.parquet", [dict(r, user=7, id=-i) for i, r in enumerate(rows[:20])])
    assert ingest(settings, PANDAS).rejected_by == {"forgotten": 20}


def test_everybody_of_a_client(tmp_path: Path) -> None:
    settings = config(tmp_path)
    rows = [dict(r, client="acme") for r in random_rows(50, subscribers=2)]
    write(tmp_path / "raw/1.parquet", [*rows, dict(rows[0], client="globex", user="other")])
    ingest(settings, PANDAS)
    forget(settings, ["user 0 é", "user 1 é"])
    store = EventStore(settings.store_uri)
    assert store.clients() == ["globex"]
    assert store.verify() == 1


@pytest.mark.parametrize("when", ["prepared", "committing"])
def test_an_ingest_that_began_before(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tombstone comes while a batch is on its way: after its rows were read, or right before its commit."""
    settings = config(tmp_path)
    old, rows = random_rows(100), random_rows(300, seed=2)
    write(tmp_path / "raw/1.parquet", old)
    ingest(settings, PANDAS)
    write(tmp_path / "raw/2.parquet", rows)
    place = Place(settings.store_uri)
    times = []

    def publish() -> None:
        if not times:
            tombstones.publish(place, [key_of(WHO)], None)
        times.append(1)

    import pipeline.events.commit as committing

    if when == "prepared":
        commit = ingesting.commit
        monkeypatch.setattr(ingesting, "commit", lambda *a, **k: (publish(), commit(*a, **k))[1])
    else:
        fault = committing.fault
        monkeypatch.setattr(committing, "fault", lambda p: (p == "before-commit" and publish(), fault(p))[1])
    report = ingest(settings, PANDAS)
    assert len(times) == 2, "the batch was committed once, after it was refused once"
    theirs = sum(r["user"] == WHO for r in rows)
    assert (report.rows_in, report.kept, report.rejected_by) == (300, 300 - theirs, {"forgotten": theirs})
    monkeypatch.undo()
    left = [r for r in rows if r["user"] != WHO]
    assert reads(settings) == {c: expected(old + left, c) for c in CLIENTS}
    store = EventStore(settings.store_uri)
    lying = {str(p.relative_to(store.uri)) for p in Path(store.uri).glob("client=*/*.parquet")}
    assert lying == {f["path"] for f in store.files}, "the files of the first attempt are gone"
    forget(settings, [WHO])
    assert search(settings.run_dir, [WHO], [key_of(WHO)]) == []


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import deltalake, pandas
import pipeline.decisions.report, pipeline.events.compiled, pipeline.learning.registry
from pipeline.forget import forget
from tests.decisions.rundir import decisions
from tests.events.logs import config
pipeline.events.compiled.warm_up()
settings = config(Path({tmp!r}), quality={{"actions": {{"impossible_time": "warn", "late_arrival": "warn"}}}})
for line in sys.stdin:
    if (child := os.fork()) == 0:
        os.environ["EVENTGRAIN_FAULT"] = line.strip()
        forget(settings, [{who!r}])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
POINTS = (
    "tombstone-written:1",
    "tombstone-announced:1",
    "file-renamed:1",
    "rewritten:1",
    "before-commit:1",
    "after-commit:1",
    "forgotten-live:1",
    "forgotten-old:3",
    "forgotten-index:2",
    "decisions-made:1",
    "decisions-moved:1",
    "forgotten-rejected:2",
    "forgotten-record:1",
)


def test_killed_at_every_point(run: tuple[Config, list[Row]], tmp_path: Path) -> None:
    """One forgetting, killed on its way again and again; after each death nobody else has lost a row."""
    settings, every = run
    program = KILLED.format(root=str(Path(__file__).parents[2]), tmp=str(tmp_path), who=WHO)
    command = [sys.executable, "-W", "ignore", "-c", program]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUTF8": "1"}
    )
    assert process.stdin
    assert process.stdout
    others = without(every)
    output: list[int] = []
    for point in [*POINTS, ""]:
        process.stdin.write(point + "\n")
        process.stdin.flush()
        while not (line := process.stdout.readline().strip()).lstrip("-").isdigit():
            pass
        output.append(int(line))
        found = reads(settings)
        assert {c: [r for r in rows if r[1] != WHO] for c, rows in found.items()} == others, point
    process.communicate(timeout=60)
    assert dict(zip([*POINTS, ""], output, strict=True)) == dict.fromkeys(POINTS, -9) | {"": 0}
    assert reads(settings) == others
    assert search(settings.run_dir, [WHO], [key_of(WHO)]) == []
    left = results.read(str(settings.run_dir / "decisions"))
    assert left is not None
    assert sorted(left["subscriber"]) == sorted([f"user {i} é" for i in range(4, 9)] * 4)
    store = EventStore(settings.store_uri)
    assert store.verify() == len(store.files)


def test_a_damaged_file_that_is_not_live_cannot_hide_anybody(run: tuple[Config, list[Row]]) -> None:
    settings, _ = run
    path = next(Path(settings.store_uri).glob("client=acme/0000*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    forget(settings, [WHO])
    assert not path.exists()


def test_what_cannot_be_erased_is_named(run: tuple[Config, list[Row]]) -> None:
    settings, _ = run
    (settings.run_dir / "notes.txt").write_text(f"call {WHO} back", encoding="utf-8")
    pq.write_table(pa.table({"x": [key_of(WHO)]}), settings.run_dir / "mine.parquet")
    with pytest.raises(StoreError, match=r"2 files still mention.*\n.*mine\.parquet\n.*notes\.txt"):
        forget(settings, [WHO])


def test_it_waits_for_a_writer(run: tuple[Config, list[Row]], capsys: pytest.CaptureFixture[str]) -> None:
    """Its tombstone is there at once; it erases when the ingest at work is done."""
    settings, every = run
    place = Place(settings.store_uri)
    with ThreadPoolExecutor(1) as pool:
        with writing(place):
            done = pool.submit(forget, settings, [WHO])
            deadline = time.monotonic() + 60
            while "waiting for the process that is writing" not in (said := capsys.readouterr().out):
                assert time.monotonic() < deadline, said
                time.sleep(0.05)
            assert key_of(WHO) in tombstones.read(place, open_table(place.target)).everywhere
            assert reads(settings) == {c: expected(every, c) for c in CLIENTS}
        done.result()
    assert reads(settings) == without(every)
