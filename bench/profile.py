"""python -m bench.profile WORKLOAD --events 20e6: where the CPU seconds of our side go, step by step.

Each step is a function of the product or of a library that it calls, wrapped by a clock of the thread that runs it. A
step's seconds are its own: what a step inside it takes counts there. What no step covers is the rest: Python, pandas,
Dask, the small steps. Time in the kernel, most of it clearing pages that are touched the first time, is part of a
step's seconds and told apart.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import argument, measure, ours, report, run
from bench import log as logs
from bench.measure import Job
from bench.workloads import Task

WORKLOADS = ("features", "rollup", "ingest", "raw-to-features")

# What it does, whose code that is, where it is looked up. All on the CPU: the bench measures there.
READING = [
    ("decode Parquet", "Arrow", "pyarrow.parquet:ParquetFile.read_row_groups"),
    ("join files' rows", "Arrow", "pipeline.events.tables:HostRows.concat"),
    ("merge by key and time", "ours", "pipeline.events.reading:merge_order"),
    ("bring columns into that order", "Arrow", "pipeline.events.tables:HostRows.take"),
]
FEATURES = [
    *READING,
    ("make a frame", "pandas", "pipeline.events.tables:HostRows.frame"),
    ("frame to arrays", "ours, NumPy", "pipeline.features.table:partition_arrays"),
    ("decision points", "ours, NumPy", "pipeline.features.samples:decision_points"),
    ("splits of train and test", "ours, NumPy", "pipeline.features.samples:splits"),
    ("count windows, write X", "ours, numba", "pipeline.features.windows:write_features"),
]
ROLLUP = [
    READING[0],
    ("rows to arrays", "Arrow, NumPy", "pipeline.features.counting:of_runs"),
    ("cut into subscribers", "ours, numba", "pipeline.features.groups_compiled:pieces"),
    ("number the cells", "ours, numba", "pipeline.features.groups_compiled:cells"),
    ("count and count distinct", "ours, numba", "pipeline.features.groups_compiled:count_distinct"),
    ("merge partitions", "ours, NumPy", "pipeline.features.counting:merge"),
    ("the table", "pandas", "pipeline.features.rollup:frame_of"),
]
INGEST = [
    ("read source files, SHA-256", "OpenSSL", "pipeline.events.ingest:read_whole"),
    READING[0],
    ("map columns, validate", "ours, NumPy", "pipeline.events.ingest:prepare"),
    ("check the rules", "ours, numba", "pipeline.events.prepare:check"),
    ("hash ids", "ours, numba", "pipeline.events.prepare:hash_ids"),
    ("cut by key range", "ours, numba", "pipeline.events.ingest:piece_of"),
    ("gather a range's rows", "NumPy", "pipeline.events.parts:Sorter.sort"),
    ("sort by key and time", "ours, numba", "pipeline.events.parts:sort_order"),
    ("flag machines and the like", "ours, numba", "pipeline.events.parts:flag_rows"),
    ("tally volumes", "ours, numba", "pipeline.events.parts:tally"),
    ("cut row groups, SHA-256", "NumPy, OpenSSL", "pipeline.events.ingest:write_file"),
    ("encode Parquet", "Arrow", "pyarrow.parquet:ParquetWriter.write_table"),
    ("write files, fsync", "kernel", "pipeline.events.files:Place.write"),
    ("commit", "delta-rs", "pipeline.events.ingest:commit"),
]
STEPS = {"features": FEATURES, "rollup": ROLLUP, "ingest": INGEST, "raw-to-features": [*INGEST, *FEATURES]}


def _now() -> np.ndarray:
    """CPU seconds of this thread, and those of them that were spent in the kernel."""
    return np.array([time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_stime])


class Clocks(threading.local):
    """Of each thread: what steps inside the running ones took, innermost last."""

    def __init__(self) -> None:
        self.inner: list[np.ndarray] = []


class Steps:
    """CPU seconds, those in the kernel, and calls of each step, over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self.calls: dict[str, int] = defaultdict(int)
        self._clocks, self._lock = Clocks(), threading.Lock()

    def clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **options: Any) -> Any:
            inner = self._clocks.inner
            inner.append(np.zeros(2))
            began = _now()
            try:
                return function(*args, **options)
            finally:
                whole = _now() - began
                own = whole - inner.pop()
                if inner:
                    inner[-1] += whole
                with self._lock:
                    self.seconds[name] += own
                    self.calls[name] += 1

        return wrapper

    @contextmanager
    def watching(self, steps: list[tuple[str, str, str]]) -> Iterator[None]:
        """Wrap each step's function for as long as this lasts."""
        replaced: list[tuple[Any, str, Any]] = []
        try:
            for where, name in {where: name for name, _, where in steps}.items():
                module, _, path = where.partition(":")
                owner: Any = importlib.import_module(module)
                *outer, last = path.split(".")
                for part in outer:
                    owner = getattr(owner, part)
                found = vars(owner)[last]
                plain = found.__func__ if isinstance(found, classmethod) else found
                made: Any = self.clocked(name, plain)
                replaced.append((owner, last, found))
                setattr(owner, last, classmethod(made) if isinstance(found, classmethod) else made)
            yield
        finally:
            for owner, last, found in replaced:
                setattr(owner, last, found)


def profile(workload: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a workload ``args.repeat`` times and return the mean CPU seconds of its steps."""
    name = next(iter(ours.IDIOMS[workload]))
    partitions = run.partitions_of(args.events)
    job = Job(workload, "ours", name, args.events, str(args.data), partitions, args.threads, args.memory)
    made = logs.make(args.data, args.events, job.ids, say=run.say)
    if workload in ("features", "rollup"):
        ours.build_store(made, measure.store_of(job))
    steps, walls = Steps(), []
    used = system = 0.0
    keeper = run.keeper_for(args, args.events)
    with closing(keeper), tempfile.TemporaryDirectory(dir=args.data, prefix=measure.SCRATCH) as folder:
        scratch = Path(folder) / "scratch"
        task = Task(made, measure.store_of(job), scratch, partitions, args.threads, args.memory)
        idiom = ours.IDIOMS[workload][name]
        scratch.mkdir()
        idiom.prepare(task)
        for turn in range(args.repeat + 1):  # the first is not counted
            shutil.rmtree(scratch)
            scratch.mkdir()
            keeper.hold()
            measure.warm(job)
            keeper.release()
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            with (steps if turn else Steps()).watching(STEPS[workload]):
                idiom.run(task, None)
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            if turn:
                walls.append(wall)
                system += (after.ru_stime - before.ru_stime) / args.repeat
                used += (after.ru_utime - before.ru_utime) / args.repeat
    whole = used + system
    rows = []
    for n, w, _ in {step[0]: step for step in STEPS[workload]}.values():
        seconds, kernel = (steps.seconds[n] / args.repeat).tolist()
        calls = steps.calls[n] // args.repeat
        rows.append({"step": n, "whose": w, "seconds": seconds, "kernel_seconds": kernel, "calls": calls})
    rest = {
        "seconds": whole - sum(r["seconds"] for r in rows),
        "kernel_seconds": system - sum(r["kernel_seconds"] for r in rows),
    }
    rows.append({"step": "the rest", "whose": "Python, Dask", **rest})
    return {"wall_seconds": walls, "cpu_seconds": whole, "kernel_seconds": system, "steps": rows}


def table(workload: str, found: dict[str, Any], events: int) -> str:
    """The steps for a reader, the dearest first."""
    walls = ", ".join(f"{w:.2f}" for w in found["wall_seconds"])
    lines = [f"{workload}: {walls} s; CPU seconds, of them in the kernel, and ns an event:"]
    shown = sorted(found["steps"], key=lambda r: -r["seconds"])
    whole = {"seconds": found["cpu_seconds"], "kernel_seconds": found["kernel_seconds"]}
    for r in [*shown, {"step": "all of it", "whose": "", **whole}]:
        s, kernel = r["seconds"], r["kernel_seconds"]
        lines.append(f"  {r['step']:30} {r['whose']:16} {s:6.2f} {kernel:6.2f} {s / events * 1e9:7.1f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", help="all, or a list: " + ",".join(WORKLOADS))
    parser.add_argument("--events", type=argument.count, default=2_000_000, help="rows of the log, e.g. 20e6")
    parser.add_argument("--repeat", type=argument.count, default=3, help="runs that count; steps are their mean")
    run.shared_options(parser)
    args = parser.parse_args(arguments)
    names = list(WORKLOADS) if args.workload == "all" else args.workload.split(",")
    if unknown := [n for n in names if n not in WORKLOADS]:
        parser.error(f"no such workload: {', '.join(unknown)}; there are all, {', '.join(WORKLOADS)}")
    args.data = args.data.resolve()
    args.data.mkdir(parents=True, exist_ok=True)
    path = args.json or run.HERE / "results" / f"profile-{run.short(args.events)}.json"
    found: dict[str, Any] = {"machine": report.machine(), "events": args.events, "workloads": {}}
    for name in names:
        found["workloads"][name] = profile(name, args)
        print(table(name, found["workloads"][name], args.events), flush=True)
        run.write(found, path)
    if args.clean:
        run.clean(args, args.events)
    return 0


if __name__ == "__main__":
    sys.exit(main())
