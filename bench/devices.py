"""python -m bench.run devices: one model trained by one process and by several, each on cores of its own.

The rows, network, batch and number of steps are the same in all; an epoch is timed after a first one that pays for
tracing and compilation. "sum" is one all-reduce of the gradients alone: what a step pays for having company.
"equal" says that the loss of the last epoch is that of one process within 2 percent.

    1 process, 1 core      what the others are compared with
    1 process, 2 cores     the batch is cut into shards that run side by side
    2 processes, 1 core    the batch is split over processes, which add up their gradients in every step
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import train

WAYS = ((1, 1), (1, 2), (2, 1))  # processes, cores of each
SUMS = 200  # all-reduces that are timed


@dataclass(frozen=True)
class Epochs:
    """The work of one of several processes, or of one alone; its result is JSON-ready."""

    rows: int
    features: int
    batch: int
    epochs: int
    hidden: tuple[int, ...]

    def __call__(self, group: Any, progress: Any) -> dict[str, Any]:
        """Seconds of each epoch, mean seconds of a sum, the last epoch's loss."""
        from pipeline.learning import models, tensors
        from pipeline.learning.chunks import as_chunks, survey
        from pipeline.learning.model import TrainedModel
        from pipeline.learning.rows import Rows
        from pipeline.learning.train import set_initial_bias
        from pipeline.learning.trainer import Trainer
        from pipeline.options import Model

        x, y = train.data(self.rows, self.features)
        x, y = x[group.rank :: group.size], np.ascontiguousarray(y[group.rank :: group.size])
        heads = tuple(models.Head(f"head{h}") for h in range(y.shape[1]))
        settings = Model(hidden=list(self.hidden), batch_size=self.batch, epochs=self.epochs + 1, learning_rate=1e-3)
        rows = Rows(tensors.aligned(x), y, np.ones_like(y), np.ones(len(x), dtype=np.float32))
        found = survey(as_chunks(rows), heads, 1, group)
        network = models.build(models.Architecture(x.shape[1], heads, self.hidden), settings.seed)
        set_initial_bias(network, found.labels)
        model = TrainedModel(network, found.labels)
        trainer = Trainer(model, as_chunks(rows), found, rows.chosen(np.arange(1000)), settings, group=group)
        feed = trainer.feed(1, self.epochs + 1)
        times, loss = [time.perf_counter()], 0.0
        for epoch in range(1, self.epochs + 2):
            loss = trainer.learn(epoch, feed)
            times.append(time.perf_counter())
        weights = sum(int(np.prod(v.shape)) for v in network.body.trainable_variables)
        return {"seconds": np.diff(times)[1:].tolist(), "sum_seconds": _sums(group, weights), "loss": loss}


def _sums(group: Any, size: int) -> float:
    """Mean seconds of adding up so many numbers over all members."""
    from pipeline.learning.tensors import tf

    @tf.function  # type: ignore[untyped-decorator]
    def several(x: Any, times: Any) -> Any:
        for _ in tf.range(times):
            (x,) = group.add([x * 0.5])
        return x

    x = tf.ones(size)
    several(x, tf.constant(10)).numpy()
    began = time.perf_counter()
    several(x, tf.constant(SUMS)).numpy()
    return (time.perf_counter() - began) / SUMS


# -- all of them -------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, processes: int, cores: int) -> dict[str, Any]:
    """One way, in processes of its own that have so many cores each."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.devices", "--way", str(processes), str(cores)]
    for name in ("rows", "features", "batch", "epochs"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--hidden", *map(str, options.hidden)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench.devices: {processes} processes of {cores} cores failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def one(options: argparse.Namespace) -> dict[str, Any]:
    """The measurement itself: this process trains alone, or starts those that train together."""
    processes, cores = options.way
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: processes * cores])
    work = Epochs(options.rows, options.features, options.batch, options.epochs, tuple(options.hidden))
    if processes == 1:
        from pipeline.learning.group import ALONE

        return work(ALONE, None)
    from pipeline.learning.hosts import Local
    from pipeline.learning.launch import launch

    hosts = Local(on_gpu=False)
    found: dict[str, Any] = launch(work, processes, hosts, None, lambda text: print(text, file=sys.stderr))
    return found


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure every way in turn, so many rounds; {"results": [...], "ratios": {"devices": {way: its speed-up}}}."""
    have = len(os.sched_getaffinity(0))
    ways = [way for way in WAYS if way[0] * way[1] <= have]
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for way in ways:
            found.setdefault(way, []).append(measure(options, *way))
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for (processes, cores), runs in found.items():
        seconds = [s for each in runs for s in each["seconds"]]
        name = f"{processes} process{'es' if processes > 1 else ''}, {cores} core{'s' if cores > 1 else ''}"
        results.append(
            {
                "workload": "devices",
                "engine": "ours",
                "idiom": name,
                "events": options.rows,
                "hidden": options.hidden,
                "batch": options.batch,
                "seconds": seconds,
                "median_seconds": statistics.median(seconds),
                "samples_per_second": options.rows / statistics.median(seconds),
                "sum_seconds": statistics.median(each["sum_seconds"] for each in runs) if processes > 1 else 0.0,
                "loss": runs[0]["loss"],
                "equal": abs(runs[0]["loss"] / results[0]["loss"] - 1) < 0.02 if results else True,
            }
        )
        ratios[name] = results[0]["median_seconds"] / results[-1]["median_seconds"]
        last = results[-1]
        say(
            f"{name:24s} {last['samples_per_second'] / 1e6:6.2f}M rows/s  {ratios[name]:5.2f} times one core"
            + (f"  a sum {last['sum_seconds'] * 1e3:.2f} ms" if processes > 1 else "")
        )
    return {"results": results, "ratios": {"devices": ratios}}


def parser() -> argparse.ArgumentParser:
    """The options; the one that no user gives is one measurement's own."""
    parser = train.epochs_parser("python -m bench.run devices", __doc__)
    parser.add_argument("--json", type=Path, help="where to write the results, beside those of other networks there")
    parser.add_argument("--way", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.way:
        print(json.dumps(one(options)))
        return 0
    found = run(options)
    if options.json:
        from bench.report import machine

        kept = json.loads(options.json.read_text(encoding="utf-8"))["runs"] if options.json.exists() else {}
        kept["-".join(map(str, options.hidden)) + f", batch {options.batch}"] = found
        options.json.write_text(json.dumps({"machine": machine(), "runs": kept}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["equal"] for row in found["results"]) else 1


if __name__ == "__main__":
    # Under its own name, so that the work is found where it is unpickled.
    from bench import devices

    sys.exit(devices.main())
