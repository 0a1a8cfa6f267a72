"""One measurement: a process of its own, its clock, its limits.

The child imports, compiles and connects, and says ``began`` and ``ended`` around the clock by a file each, so that its
parent can stop it at a limit of time or memory. What it measured goes into a file too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import log as logs
from bench.memory import Keeper, Peak, Tree
from bench.workloads import Ids, Task, digest, idioms

SCRATCH = "run-"  # how the names of measurements' own folders begin


@dataclass(frozen=True)
class Job:
    """What is to be measured, and how."""

    workload: str
    engine: str
    idiom: str
    events: int
    data: str  # the folder of logs and stores
    partitions: int
    threads: int
    memory: int
    sample: int = 1
    check: bool = True  # compute the digest, too

    @property
    def ids(self) -> str:
        return idioms(self.engine, self.workload)[self.idiom].ids

    @property
    def label(self) -> str:
        return f"{self.workload}: {self.engine}, {self.idiom}"


def stolen_seconds() -> float:
    """What the host of this virtual machine has kept from its cores since it started; 0 where that is not told."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def store_of(job: Job) -> Path:
    return Path(job.data) / f"store-{job.ids}-{job.events}"


def _child(job: Job, folder: Path) -> None:
    made = logs.make(Path(job.data), job.events, job.ids)
    task = Task(made, store_of(job), folder / "scratch", job.partitions, job.threads, job.memory, job.sample)
    task.scratch.mkdir()
    idiom = idioms(job.engine, job.workload)[job.idiom]
    session, compiled = idiom.prepare(task)
    tree = Tree(os.getpid())
    parent = os.getppid()
    (folder / "ready").touch()
    while not (folder / "go").exists():
        if os.getppid() != parent:
            raise SystemExit("the bench that started this measurement is gone")
        time.sleep(0.005)
    with Peak() as peak:
        used, taken, began = tree.cpu_seconds(), stolen_seconds(), time.perf_counter()
        result = idiom.run(task, session)
        seconds, cpu, stolen = time.perf_counter() - began, tree.cpu_seconds() - used, stolen_seconds() - taken
    (folder / "ended").touch()
    found = None
    if job.check:
        ids = Ids(made.subscribers, idiom.ids) if idiom.keyed else None
        found = digest(task.names(job.workload), idiom.chunks(task, session, result), ids)
    out = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "stolen_seconds": stolen,
        "compile_seconds": compiled,
        "peak_rss_bytes": peak.bytes,
        "digest": found,
    }
    (folder / "measured.json").write_text(json.dumps(out), encoding="utf-8")
    if hasattr(session, "stop"):
        session.stop()


def _read_whole(files: list[str]) -> None:
    for file in files:
        with open(file, "rb") as stream:  # noqa: PTH123
            while stream.read(1 << 22):
                pass


def warm(job: Job) -> None:
    """Read every source file and the store once, so that each engine finds the same page cache."""
    made = logs.make(Path(job.data), job.events, job.ids)
    _read_whole([*logs.files(made.days), *logs.files(made.new)])
    _read_whole([str(f) for f in store_of(job).rglob("*.parquet")])


def measure(job: Job, keeper: Keeper, limit: float, memory_limit: int) -> dict[str, Any]:
    """Run a job in a process of its own.

    Args:
        keeper: of the memory that is warm when the clock starts; limit: seconds on the clock, memory_limit: resident
        bytes of the process tree, beyond which it is stopped.
    Returns:
        ``outcome`` ("finished", or what stopped it), and, where it finished, seconds, cpu_seconds, stolen_seconds (in
        which a virtual machine's cores were to run and its host let them wait), compile_seconds, peak_rss_bytes and
        digest (None where the job asks for none).
    """
    with tempfile.TemporaryDirectory(dir=job.data, prefix=SCRATCH, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = {**os.environ, "POLARS_MAX_THREADS": str(job.threads), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "bench.measure", json.dumps(asdict(job)), name]
        errors = folder / "errors.txt"
        with errors.open("w", encoding="utf-8") as stream:
            child = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        tree, most = Tree(child.pid), 0
        began: float | None = None
        outcome = ""
        try:
            while child.poll() is None:
                if began is None and (folder / "ready").exists():
                    keeper.hold()
                    warm(job)
                    keeper.release()
                    (folder / "go").touch()
                    began = time.monotonic()
                most = max(most, tree.resident_bytes())
                running = began is not None and not (folder / "ended").exists()
                if running and began is not None and time.monotonic() - began > limit:
                    outcome = f"stopped after {limit:.0f} s"
                elif running and most > memory_limit:
                    outcome = f"stopped beyond {memory_limit / 1e9:.1f} GB of memory"
                if outcome:
                    break
                time.sleep(0.05)
        finally:
            if child.poll() is None:
                tree.kill()
                child.wait()
            keeper.hold()  # at once, while what the child has freed is still here
        measured = folder / "measured.json"
        if measured.exists():
            found: dict[str, Any] = json.loads(measured.read_text(encoding="utf-8"))
            return {"outcome": "finished", **found}
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if not outcome:
            telling = [line for line in said if "Error" in line or "Exception" in line] or said or [""]
            last = telling[-1].strip().replace(job.data, "DATA")  # results are published, folders of a machine are not
            how = f"was killed by signal {-child.returncode}" if child.returncode < 0 else "failed"
            outcome = f"{how}: {last[:200]}" if last else how
        return {"outcome": outcome, "peak_rss_bytes": most, "output": said[-20:]}


class Plan:
    """Jobs to come and a guess of how long they take, from the idioms' own and from what was measured."""

    OVERHEAD = 6.0  # seconds around each measurement: imports, page cache, comparison

    def __init__(self, jobs: list[Job], say: Callable[[str], None]) -> None:
        self.jobs, self.say, self.done = jobs, say, 0
        self.took: dict[tuple[str, str, str, int], float] = {}

    def guess(self, job: Job) -> float:
        known = self.took.get((job.workload, job.engine, job.idiom, job.events))
        if known is not None:
            return known
        idiom = idioms(job.engine, job.workload)[job.idiom]
        times = 2 if idiom.again and job.check else 1
        return times * idiom.seconds * job.events / 1e6 + self.OVERHEAD

    def left(self) -> float:
        return sum(self.guess(job) for job in self.jobs[self.done :])

    def begin(self, job: Job) -> None:
        self.say(f"[{self.done + 1} of {len(self.jobs)}, about {clock(self.left())} left] {job.label} ...")

    def end(self, job: Job, wall: float, found: dict[str, Any]) -> None:
        self.done += 1
        self.took[job.workload, job.engine, job.idiom, job.events] = wall
        text = f"{found['seconds']:.2f} s" if "seconds" in found else found["outcome"]
        self.say(f"    {text}, {found['peak_rss_bytes'] / 1e9:.2f} GB")


def clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def free_space(folder: Path) -> int:
    """Bytes free where the data are."""
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


if __name__ == "__main__":
    _child(Job(**json.loads(sys.argv[1])), Path(sys.argv[2]))
