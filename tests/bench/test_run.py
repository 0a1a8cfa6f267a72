"""The bench end to end on a small log: every engine agrees, and a disagreement fails."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import features, log, run

EVENTS = 20_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def test_the_command_measures_compares_and_writes(data: Path) -> None:
    out = data / "out.json"
    arguments = ["features", f"--events={EVENTS}", "--repeat=1", "--partitions=3", "--peers=polars", "--idioms=best"]
    assert run.main([*arguments, f"--data={data}", f"--json={out}"]) == 0
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert {"machine", "results", "ratios"} <= set(report)
    wanted = {"workload", "engine", "idiom", "events", "seconds", "median_seconds", "peak_rss_bytes", "equal"}
    assert all(wanted <= set(r) for r in report["results"])
    assert [(r["engine"], r["idiom"]) for r in report["results"]] == [("ours", "store"), ("polars", "best")]
    assert all(r["equal"] and r["peak_rss_bytes"] > 10_000_000 for r in report["results"])
    assert set(report["ratios"]["features"]) == {"polars"}
    assert "polars" in run.table(report)


def test_every_idiom_gives_the_same_numbers(data: Path) -> None:
    source = log.make(data, EVENTS)
    store = data / f"store-{EVENTS}"
    run.build_store(source, store)
    task = features.Task(source, store, 3, 1)
    found = {}
    for engine in ("ours", *run.PEERS):
        for name, idiom in features.idioms(engine).items():
            idiom.prepare(task)
            chunks = idiom.chunks(task, idiom.run(task))
            found[engine, name] = features.digest(task, chunks, idiom.keyed, EVENTS // log.EVENTS_EACH)
    peers = {(peer, idiom) for peer in run.PEERS for idiom in ("natural", "best", "best, our store")}
    assert set(found) == peers | {("ours", "store")}
    assert all(digest == found["ours", "store"] for digest in found.values())
    assert abs(found["ours", "store"]["rows"][0] - 0.6 * EVENTS) < 500


def test_ratios_take_the_best_idiom() -> None:
    results = [
        {"engine": "ours", "idiom": "store", "median_seconds": 2.0},
        {"engine": "polars", "idiom": "natural", "median_seconds": 31.0},
        {"engine": "polars", "idiom": "best", "median_seconds": 16.0},
        {"engine": "polars", "idiom": "best, our store", "median_seconds": 7.0},
    ]
    assert run.ratios(results, on_store=False) == {"polars": 8.0}
    assert run.ratios(results, on_store=True) == {"polars": 3.5}


@pytest.fixture
def task(tmp_path: Path) -> features.Task:
    return features.Task(tmp_path, tmp_path, 3, 1, kinds=("send",), windows=(log.DAY,))


def test_the_digest_knows_no_order_but_every_value(task: features.Task) -> None:
    rng = np.random.default_rng(1)
    subscriber, at, count = rng.integers(0, 50, 500), rng.integers(0, 10**9, 500), rng.integers(0, 9, 500)

    def digest(order: Any, values: Any) -> dict[str, list[int]]:
        halves = np.array_split(order, 2)
        return features.digest(task, [(subscriber[h], at[h], [values[h]]) for h in halves], False, 50)

    straight = digest(np.arange(500), count)
    assert digest(rng.permutation(500), count) == straight
    assert digest(np.arange(500), count.astype(np.float32)) == straight
    swapped = count.copy()
    i, j = 3, int(np.flatnonzero(count != count[3])[0])
    swapped[[i, j]] = swapped[[j, i]]  # the same sum
    assert digest(np.arange(500), swapped) != straight


def test_a_wrong_key_is_noticed(task: features.Task) -> None:
    one = np.array([1])
    with pytest.raises(ValueError, match="belongs to no subscriber"):
        features.digest(task, [(one, one, [one])], True, 5)


def test_key_ranges_cover_all_keys(task: features.Task) -> None:
    ranges = task.key_ranges()
    assert ranges[0][0] == -(2**63)
    assert ranges[-1][1] == 2**63 - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(ranges))


def test_the_log_is_the_same_every_time_and_has_no_ties(tmp_path: Path) -> None:
    tables = [
        pa.concat_tables(pq.ParquetFile(f).read() for f in sorted(log.make(tmp_path / name, 20_000).rglob("*.parquet")))
        for name in ("a", "b")
    ]
    assert tables[0].equals(tables[1])
    pairs = set(zip(tables[0]["user_id"].to_pylist(), tables[0]["event_time"].to_pylist(), strict=True))
    assert len(pairs) == 20_000
    assert log.make(tmp_path / "a", 20_000) == log.path_of(tmp_path / "a", 20_000)


def test_an_unknown_peer_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["features", "--peers", "polars,spork"])
    assert "no such peer: spork" in capsys.readouterr().err
