"""Jobs one at a time on each worker, or here; the order, the errors, and what a worker that dies leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.workers import Workers
from pipeline.errors import DataError
from pipeline.progress import Progress


def named(value: int) -> tuple[int, int]:
    return os.getpid(), value


def fails(_: int) -> None:
    raise DataError("no such rows")


def dies(_: int) -> None:
    os._exit(1)


def tells(_: int) -> None:
    progress = Progress("train acme", 10, "samples")
    progress._drawn = -100.0  # long ago
    progress.advance(5)
    time.sleep(0.3)  # for the event to arrive


def meets(folder: Path, i: int) -> int:
    """Wait until two have begun; how many run now."""
    (folder / f"running-{i}").touch()
    (folder / f"begun-{i}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("begun-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    running = len(list(folder.glob("running-*")))
    (folder / f"running-{i}").unlink()
    return running


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 2, "host": "127.0.0.1", "dashboard_address": ":0"}
    with LocalCluster(**options) as local, Client(local) as made:
        yield made


def test_here_jobs_run_in_order_and_more_may_be_added() -> None:
    workers, seen = Workers(), []
    workers.add("a", named, 1, tag="first")
    workers.add("b", named, 2)
    workers.add("a", fails, 3)
    for job, result in workers.results():
        seen.append((job.home, job.tag, result))
        if job.tag == "first":
            workers.add("a", named, 4)
    assert [(home, tag) for home, tag, _ in seen] == [("a", "first"), ("a", None), ("a", None), ("b", None)]
    assert seen[0][2] == (os.getpid(), 1)
    assert isinstance(seen[1][2], DataError)
    assert workers.at_once == 1


def test_a_worker_keeps_to_what_it_read_while_there_is_any() -> None:
    workers = Workers()
    for home in "aaabbb":
        workers.add(home, named, 0)
    order = [("x", "a"), ("y", "b"), ("y", "b"), ("x", "a"), ("y", "b"), ("y", "a")]
    assert [(worker, workers._take(worker).home) for worker, _ in order] == order


def test_a_worker_has_one_job_at_a_time(client: Any, tmp_path: Path) -> None:
    workers = Workers(client)
    workers.add("here", named, 1)
    ((_, (place, _)),) = workers.results()
    assert place != os.getpid()
    for i in range(4):
        workers.add(f"{i}", meets, tmp_path, i)
    most = max(running for _, running in workers.results())
    assert most == workers.at_once == 2  # though a worker has two threads


def test_what_a_job_says_is_heard_here(client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    workers = Workers(client)
    workers.add("a", tells, 0)
    assert [result for _, result in workers.results()] == [None]
    assert "train acme: 5 of 10 samples (50%)" in capfd.readouterr().err


def test_dropped_jobs_and_errors(client: Any) -> None:
    workers = Workers(client)
    for value in range(6):
        workers.add("bad", fails, value)
    workers.add("good", named, 7)
    results = []
    for job, result in workers.results():
        results.append((job.home, type(result)))
        workers.drop("bad") if job.home == "bad" else None
    assert ("good", tuple) in results
    assert results.count(("bad", DataError)) < 6


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_is_an_error_of_its_job_alone(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed.scheduler import KilledWorker

    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    workers = Workers(client)
    workers.add("a", dies, 0)
    workers.add("b", named, 1)
    workers.add("b", named, 2)
    results = [(job.home, result) for job, result in workers.results()]
    assert [type(r) for home, r in results if home == "a"] == [KilledWorker]
    assert sorted(r[1] for home, r in results if home == "b") == [1, 2]
