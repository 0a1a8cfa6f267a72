"""Many processes at one store: every commit is there, once; of two ingests of one day, one adds it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.events.store import EventStore
from tests.events.logs import config, random_rows, write
from tests.faults.check import compare, oracle, oracle_columns, orphans, rows_of
from tests.faults.victim import Victim

ROWS = 510  # two files of these do not fit one batch of 1,000 rows


def many(folder: Path, victim: Victim, processes: int, commits: int) -> dict[str, Any]:
    """So many processes, each ingesting files of its own into one store, a commit a file."""
    every, requests = [], []
    store = folder / "store"
    for p in range(processes):
        for c in range(commits):
            rows = random_rows(ROWS, seed=1 + p * commits + c)
            write(folder / f"raw-{p}/{c:03d}.parquet", rows)
            every += rows
        settings = config(folder, {"path": str(folder / f"raw-{p}")}, name=f"p{p}", batch_rows=1000, store=str(store))
        requests.append(victim.request("ingest", settings={**settings.model_dump(mode="json"), "compaction": False}))
    started = time.perf_counter()
    ended = victim.together(requests)
    seconds = time.perf_counter() - started
    assert [e.code for e in ended] == [0] * processes, [e.text for e in ended]
    difference = compare(oracle_columns(rows_of(str(store))), oracle(every))
    found = EventStore(str(store))
    return {
        "processes": processes,
        "commits_each": commits,
        "versions": found.version(),  # version 0 made the store
        "rows": len(every),
        "lost": difference.lost,
        "doubled": max(difference.doubled, found.rows() - len(every)),
        "orphans": len(orphans(str(store))),
        "seconds": round(seconds, 1),
    }


def rivals(folder: Path, victim: Victim, dated: bool) -> tuple[list[str], int]:
    """Three ingests of the same day at once, each a run of its own: their lines, and the rows in the store."""
    write(folder / "raw/1.parquet", random_rows(3000))
    requests = []
    for i in range(3):
        columns = None if dated else {"ingested_at": None}
        settings = config(folder, columns=columns, name=f"r{i}", store=str(folder / "store"))
        requests.append(victim.request("ingest", settings=settings.model_dump(mode="json")))
    ended = victim.together(requests)
    assert [e.code for e in ended] == [0, 0, 0], [e.text for e in ended]
    return [e.text.strip() for e in ended], EventStore(str(folder / "store")).rows()


def measure(folder: Path, victim: Victim, processes: int, commits: int) -> dict[str, Any]:
    return many(folder, victim, processes, commits)


def test_every_commit_of_many_processes(tmp_path: Path, victim: Victim) -> None:
    found = many(tmp_path, victim, 4, 3)
    assert (found["versions"], found["lost"], found["doubled"], found["orphans"]) == (12, 0, 0, 0)


@pytest.mark.slow
def test_eight_processes_of_fifty_commits(tmp_path: Path, victim: Victim) -> None:
    found = many(tmp_path, victim, 8, 50)
    assert (found["versions"], found["lost"], found["doubled"], found["orphans"]) == (400, 0, 0, 0)


@pytest.mark.parametrize("dated", [True, False])
def test_one_wins_and_the_others_say_so(tmp_path: Path, victim: Victim, dated: bool) -> None:
    lines, rows = rivals(tmp_path, victim, dated)
    lines.sort(key=len)
    assert lines[0].startswith("rows in 3,000 = kept 3,000")
    for line in lines[1:]:
        assert line == "rows in 0 = kept 0 + duplicates 0 + rejected 0 (nothing new: 1 file was ingested before)"
    assert rows == 3000
