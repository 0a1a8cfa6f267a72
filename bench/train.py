"""python -m bench.train: a training epoch of ours against Keras ``fit``, plain and tuned as an expert would.

Same network (the body of ours: normalised features in, logits out), loss, optimizer, batch size and rows for all, so
that only the loop is compared; nobody pays for the normalisation, which ours does once and a model in ``fit`` would do
in every step. ``fit`` gets no masks and no weights, which ours handles: that favours ``fit``.

Every measurement is a process of its own, in turn over all engines, several rounds; an epoch is timed after a first
one that pays for tracing and compilation. "equal" says that the training loss after the same number of epochs is that
of plain ``fit`` within 2 percent. Engines:

    ours             the loop of pipeline/learning/trainer.py; and the same with XLA, which it uses on a GPU alone
    fit-numpy        fit on NumPy arrays, as in every tutorial
    fit-reshuffled   tuned, rows in a new order every epoch: tensors, steps_per_execution, with and without XLA; or a
                     tf.data pipeline that gathers each batch by a permutation, prefetched
    fit-cached       tuned, tf.data of batches formed once and cached; only whole batches are shuffled
    fit-pydataset    a keras.utils.PyDataset that gathers each batch
    fit-parquet      tf.data from Parquet row groups, prefetched; the groups and the batches in them are shuffled
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import argument

IDIOMS = {
    "ours": ("resident", "resident, XLA"),
    "fit-numpy": ("plain",),
    "fit-reshuffled": ("tensors", "tensors, XLA", "gather", "gather, XLA"),
    "fit-cached": ("batches", "batches, XLA"),
    "fit-pydataset": ("plain",),
    "fit-parquet": ("row groups",),
}
STEPS = 32  # steps_per_execution of the tuned ones
HEADS = 3
CHUNK = 65_536  # rows of a Parquet row group


def data(rows: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features float32[n, F] and labels float32[n, HEADS] of a few percent positives."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features), dtype=np.float32)
    beta = rng.normal(0, 0.5, (features, HEADS)).astype(np.float32)
    p = 1 / (1 + np.exp(-(x @ beta / np.sqrt(features) * 2 - np.array([4.0, 3.0, 1.5], dtype=np.float32))))
    return x, (rng.random(p.shape, dtype=np.float32) < p).astype(np.float32)


# -- one measurement, in its own process -----------------------------------------------------------------------------


class Clock:
    """Wall and processor seconds of each epoch after the first, which pays for tracing and compilation."""

    def __init__(self) -> None:
        self.times = [(time.perf_counter(), time.process_time())]

    def lap(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def seconds(self, which: int = 0) -> list[float]:
        return [after[which] - before[which] for before, after in zip(self.times[1:], self.times[2:], strict=False)]


def ours(x: np.ndarray, y: np.ndarray, options: argparse.Namespace) -> tuple[Clock, float]:
    from pipeline.backend import PANDAS
    from pipeline.learning import models, tensors
    from pipeline.learning.chunks import as_chunks, survey
    from pipeline.learning.model import TrainedModel
    from pipeline.learning.rows import Rows
    from pipeline.learning.train import set_initial_bias
    from pipeline.learning.trainer import Trainer
    from pipeline.options import Model

    heads = tuple(models.Head(f"head{h}") for h in range(HEADS))
    settings = Model(hidden=options.hidden, batch_size=options.batch, epochs=options.epochs + 1, learning_rate=1e-3)
    rows = Rows(tensors.aligned(x), y, np.ones_like(y), np.ones(len(x), dtype=np.float32))
    chunks = as_chunks(rows)
    found = survey(chunks, heads, 1)
    # The network's own normalisation is left at identity: x is standardised already.
    network = models.build(models.Architecture(x.shape[1], heads, tuple(options.hidden)), settings.seed)
    set_initial_bias(network, found.labels)
    few = rows.chosen(PANDAS.xp.arange(min(len(x), 1000)))
    model = TrainedModel(network, found.labels)
    trainer = Trainer(model, chunks, found, few, settings, xla=options.idiom.endswith("XLA"))
    clock, feed = Clock(), trainer.feed(1, options.epochs + 1)
    for epoch in range(1, options.epochs + 2):
        trainer.learn(epoch, feed)
        clock.lap()
    return clock, _loss(network.body, x, y)


def fit(x: np.ndarray, y: np.ndarray, options: argparse.Namespace) -> tuple[Clock, float]:
    from pipeline.learning import models
    from pipeline.learning.chunks import as_chunks, survey
    from pipeline.learning.rows import Rows
    from pipeline.learning.tensors import aligned, keras
    from pipeline.learning.train import set_initial_bias
    from pipeline.options import Model

    engine, idiom = options.engine, options.idiom
    heads = tuple(models.Head(f"head{h}") for h in range(HEADS))
    rows = Rows(aligned(x), y, np.ones_like(y), np.ones(len(x), dtype=np.float32))
    known = survey(as_chunks(rows), heads, 1).labels
    network = models.build(models.Architecture(x.shape[1], heads, tuple(options.hidden)), Model().seed)
    set_initial_bias(network, known)
    tuned = engine in ("fit-reshuffled", "fit-cached")
    inputs = keras.Input((x.shape[1],))
    model = keras.Model(inputs, network.body({"features": inputs}))
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=Model().weight_decay),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        steps_per_execution=STEPS if tuned else 1,
        jit_compile="XLA" in idiom if tuned else "auto",
    )
    arguments = pipeline(engine, idiom, x, y, options)
    clock = Clock()
    for _ in range(options.epochs + 1):
        model.fit(**arguments, epochs=1, verbose=0)
        clock.lap()
    return clock, _loss(network.body, x, y)


def pipeline(engine: str, idiom: str, x: np.ndarray, y: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``fit`` that make it this engine and idiom."""
    from pipeline.learning.tensors import keras, tf

    n, batch = len(x), options.batch
    steps = n // batch
    if engine == "fit-numpy":
        return {"x": x, "y": y, "batch_size": batch, "shuffle": True}
    if idiom.startswith("tensors"):
        return {"x": tf.constant(x), "y": tf.constant(y), "batch_size": batch, "shuffle": True}
    if idiom.startswith("gather"):
        xs, ys = tf.constant(x), tf.constant(y)

        def batches(_: Any) -> Any:
            order = tf.random.shuffle(tf.range(n))[: steps * batch]
            return tf.data.Dataset.from_tensor_slices(tf.reshape(order, (steps, batch)))

        def gather(i: Any) -> Any:
            shaped = tf.ensure_shape(tf.gather(xs, i), (batch, x.shape[1]))
            return shaped, tf.ensure_shape(tf.gather(ys, i), (batch, HEADS))

        found = tf.data.Dataset.range(1).flat_map(batches).map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        return {"x": found.prefetch(tf.data.AUTOTUNE), "shuffle": None}
    if engine == "fit-cached":
        found = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, drop_remainder=True).cache()
        return {"x": found.shuffle(steps).prefetch(tf.data.AUTOTUNE), "shuffle": None}
    if engine == "fit-pydataset":
        return {"x": _pydataset(keras, x, y, batch), "shuffle": None}
    return {"x": parquet(tf, x, y, batch), "shuffle": None}


def _pydataset(keras: Any, x: np.ndarray, y: np.ndarray, batch: int) -> Any:
    rng = np.random.default_rng(0)

    class Gathered(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(workers=1)
            self.order = rng.permutation(len(x))

        def __len__(self) -> int:
            return len(x) // batch

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            index = self.order[i * batch : (i + 1) * batch]
            return x[index], y[index]

        def on_epoch_end(self) -> None:
            self.order = rng.permutation(len(x))

    return Gathered()


def parquet(tf: Any, x: np.ndarray, y: np.ndarray, batch: int) -> Any:
    """Rows written to a Parquet file of row groups, and the tf.data pipeline that reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tempfile.TemporaryDirectory(prefix="bench-train-")
    path, width = Path(folder.name) / "rows.parquet", x.shape[1]
    columns = {f"x{j}": x[:, j] for j in range(width)} | {f"y{h}": y[:, h] for h in range(y.shape[1])}
    pq.write_table(pa.table(columns), path, row_group_size=CHUNK // batch * batch, compression="zstd")
    groups = pq.ParquetFile(path).num_row_groups
    signature = (
        tf.TensorSpec((None, width), tf.float32),
        tf.TensorSpec((None, y.shape[1]), tf.float32),
    )

    def read(_: Any = folder) -> Any:  # holds the folder
        file = pq.ParquetFile(path)
        for group in np.random.default_rng().permutation(groups):
            table = file.read_row_group(group)
            matrix = np.stack([c.to_numpy() for c in table.columns], axis=1)
            yield matrix[:, :width], matrix[:, width:]

    chunks = tf.data.Dataset.from_generator(read, output_signature=signature).prefetch(2)
    found = chunks.flat_map(lambda a, b: tf.data.Dataset.from_tensor_slices((a, b)).batch(batch, drop_remainder=True))
    return found.shuffle(2 * CHUNK // batch).prefetch(tf.data.AUTOTUNE)


def _loss(body: Any, x: np.ndarray, y: np.ndarray) -> float:
    from pipeline.learning.tensors import tf

    raw = tf.concat([body({"features": x[i : i + CHUNK]}) for i in range(0, len(x), CHUNK)], axis=0)
    return float(tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=raw)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each epoch, the loss reached and this process's peak memory."""
    x, y = data(options.rows, options.features)
    work: Callable[..., tuple[Clock, float]] = ours if options.engine == "ours" else fit
    clock, loss = work(x, y, options)
    return {"seconds": clock.seconds(), "cpu_seconds": clock.seconds(1), "loss": loss, "peak_rss_bytes": peak_memory()}


def peak_memory() -> int:
    """The most resident memory this process had, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


# -- all of them -----------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure every engine; {"results": [...], "ratios": {"train": {engine: its best idiom over ours}}}."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for engine in options.engines:
            for idiom in IDIOMS[engine]:
                found.setdefault((engine, idiom), []).append(_child(engine, idiom, options))
    plain = found.get(("fit-numpy", "plain"), next(iter(found.values())))[0]["loss"]
    results = []
    for (engine, idiom), measured in found.items():
        seconds = [s for one in measured for s in one["seconds"]]
        loss = statistics.median(one["loss"] for one in measured)
        results.append(
            {
                "workload": "train",
                "engine": engine,
                "idiom": idiom,
                "events": options.rows,
                "seconds": seconds,
                "median_seconds": statistics.median(seconds),
                "samples_per_second": options.rows / statistics.median(seconds),
                "cpu_seconds": [s for one in measured for s in one["cpu_seconds"]],
                "peak_rss_bytes": max(one["peak_rss_bytes"] for one in measured),
                "loss": loss,
                "equal": abs(loss / plain - 1) < 0.02,
            }
        )
    theirs = [r for r in results if r["engine"] != "ours" or r["idiom"] == "resident"]  # ours as it comes
    best = {e: min(r["median_seconds"] for r in theirs if r["engine"] == e) for e in options.engines}
    ratios = {e: s / best["ours"] for e, s in best.items() if e != "ours" and "ours" in best}
    for row in sorted(results, key=lambda r: float(r["median_seconds"])):
        name = f"{row['engine']} ({row['idiom']})"
        rate = f"{row['samples_per_second'] / 1e6:6.2f}M rows/s"
        equal = "" if row["equal"] else f"  loss {row['loss']:.5f} is not that of plain fit, {plain:.5f}"
        least = f"least {min(row['seconds']):.3f}, processor {statistics.median(row['cpu_seconds']):.3f}"
        say(f"{name:32s} {row['median_seconds']:7.3f} s an epoch  {rate}  {least}{equal}")
    for engine, ratio in ratios.items():
        say(f"{engine}: {ratio:.2f} times ours")
    return {"results": results, "ratios": {"train": ratios}}


def _child(engine: str, idiom: str, options: argparse.Namespace) -> dict[str, Any]:
    given = ["--engine", engine, "--idiom", idiom, "--hidden", *map(str, options.hidden)]
    return child("bench.train", given, options, ("rows", "features", "batch", "epochs"))


def child(module: str, given: list[str], options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """What a module prints last, as JSON, in a process of its own.

    Args:
        given: its arguments. names: of further ones, as ``options`` has them.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *given]
    for name in names:
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{module}: {' '.join(given)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def epochs_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """The options of whatever measures epochs of training over rows that are drawn."""
    parser = argparse.ArgumentParser(prog=prog, description=(doc or "").partition("\n")[0])
    parser.add_argument("--rows", type=argument.count, default=1_000_000)
    parser.add_argument("--features", type=argument.count, default=32)
    parser.add_argument("--batch", type=argument.count, default=4096)
    parser.add_argument("--hidden", type=argument.count, nargs="*", default=[64, 32])
    parser.add_argument("--epochs", type=argument.count, default=5, help="timed ones, after the first")
    parser.add_argument("--rounds", type=argument.count, default=2)
    return parser


def parser() -> argparse.ArgumentParser:
    """The options; those that no user gives are one measurement's own."""
    parser = epochs_parser("python -m bench.train", __doc__)
    parser.add_argument("--engines", type=argument.names, default=list(IDIOMS))
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--idiom", default="plain", help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.engine:
        print(json.dumps(measure(options)))
        return 0
    if unknown := [e for e in options.engines if e not in IDIOMS]:
        parser().error(f"no such engines: {', '.join(unknown)}; there are {', '.join(IDIOMS)}")
    from bench.report import keep

    return keep(run(options), options.json)


if __name__ == "__main__":
    sys.exit(main())
