"""python -m bench.run trained: from a store to a trained model: ours, and Keras ``fit`` on the same features.

The features are ours for all, made from the store by the same kernels, and so are network, loss, optimizer, batch and
number of epochs, each with a look at the validation rows: what is compared is how rows come to the network. Every
measurement is a process of its own; its clock begins with the opened store, and ends with the trained weights.

    ours          the table stays in memory and is trained on as it is
    fit-numpy     the same table, normalised, in fit
    fit-parquet   the table is written to Parquet, as where features and training are programs of their own; tf.data
                  reads it in every epoch, prefetched
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import argument, train
from pipeline.config import Config, load

ENGINES = ("ours", "fit-numpy", "fit-parquet")
STEPS = ("features", "training")  # what the seconds are of; writing Parquet counts as features


def configuration(folder: Path, options: argparse.Namespace) -> Config:
    """Of a simulated log of one client; training never stops early, so that all do the same."""
    from pipeline.demo import with_source

    wanted = [f"runs={folder}", "name=log", f"simulate.events={options.events}", "simulate.clients=1"]
    wanted += [f"model.epochs={options.epochs}", "model.patience=1000", f"model.batch_size={options.batch}"]
    return with_source(load(None, wanted))


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The store that all read."""
    from pipeline.backend import PANDAS
    from pipeline.events.ingest import ingest
    from pipeline.events.simulate import simulate

    config = configuration(folder, options)
    simulate(config.simulate, config.run_dir / "raw")
    ingest(config, PANDAS)


# -- one measurement, in its own process -------------------------------------------------------------------------------


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step, rows, and the loss on the validation rows over that of the base rate."""
    from pipeline.backend import PANDAS
    from pipeline.events.store import EventStore
    from pipeline.features.samples import TRAIN, VALIDATION
    from pipeline.learning import models
    from pipeline.learning import train as training
    from pipeline.learning.data import training_data
    from pipeline.learning.rows import select
    from pipeline.learning.tensors import configure

    configure()
    config = configuration(folder, options)
    store = EventStore(config.store_uri, PANDAS)
    client, heads = store.clients()[0], models.heads_of(config)
    began = time.perf_counter()
    table = training_data(store, client, config, PANDAS, store.last_full_day(client)).whole
    rows, valid = select(table, TRAIN), select(table, VALIDATION)
    made = time.perf_counter()
    if options.engine == "ours":
        model = training.train(rows, valid, heads, config.model)
        done, loss = time.perf_counter(), model.history[-1]["validation"]
    else:
        made, done, loss = _fit(rows, valid, heads, config, options.engine)
    return {
        "rows": len(rows),
        "seconds": {"features": made - began, "training": done - made},
        "validation": loss,
        "peak_rss_bytes": train.peak_memory(),
    }


def _fit(rows: Any, valid: Any, heads: Any, config: Config, engine: str) -> tuple[float, float, float]:
    """When the rows were ready and when the network was trained; and its validation loss, as ours measures it."""
    from pipeline.learning import models
    from pipeline.learning.chunks import as_chunks, survey
    from pipeline.learning.normalisation import set_normalisation
    from pipeline.learning.tensors import keras, tf
    from pipeline.learning.train import set_initial_bias

    settings, batch = config.model, config.model.batch_size
    found = survey(as_chunks(rows), heads, settings.minimum_positives)
    shape = models.Architecture(rows.X.shape[1], heads, tuple(settings.hidden))
    network = models.build(shape, settings.seed)
    set_initial_bias(network, found.labels)
    set_normalisation(network.normalise, found.plain, found.squashed)
    x, y, known = (rows.take(name) for name in ("X", "y", "mask"))
    x, vx = (np.asarray(network.normalise(a)) for a in (x, valid.take("X")))
    vy, vknown = valid.take("y"), valid.take("mask")
    inputs = keras.Input((x.shape[1],))
    model = keras.Model(inputs, network.body({"features": inputs}))

    def loss(target: Any, raw: Any) -> Any:
        """Log loss of each known label; an unknown one is NaN in the target."""
        there = tf.cast(~tf.math.is_nan(target), tf.float32)
        target = tf.where(there > 0, target, 0.0)
        each = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=raw)
        return tf.reduce_sum(each * there, axis=1)

    model.compile(keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay), loss=loss)
    y, vy = (np.where(k > 0, a, np.nan).astype(np.float32) for a, k in ((y, known), (vy, vknown)))
    if engine == "fit-parquet":
        arguments = {"x": train.parquet(tf, x, y, batch), "shuffle": None}
    else:
        arguments = {"x": x, "y": y, "batch_size": batch, "shuffle": True}
    ready = time.perf_counter()
    model.fit(**arguments, epochs=settings.epochs, verbose=0, validation_data=(vx, vy), validation_batch_size=65_536)
    done = time.perf_counter()
    raw = model.predict(vx, batch_size=65_536, verbose=0)
    ratios = []
    for h, label in enumerate(found.labels):
        t, r = vy[vknown[:, h] > 0, h], raw[vknown[:, h] > 0, h]
        p = min(max(label.rate, 1e-9), 1 - 1e-9)
        each = np.maximum(r, 0) - r * t + np.log1p(np.exp(-np.abs(r)))
        ratios.append(float(each.mean()) / (-p * np.log(p) - (1 - p) * np.log1p(-p)))
    return ready, done, float(np.mean(ratios))


# -- all of them -------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure every engine in turn; {"results": [...], "ratios": {"trained": {engine: its seconds over ours}}}."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-trained-") as folder:
        _child(Path(folder), "prepare", options)
        for _ in range(options.rounds):
            for engine in options.engines:
                found.setdefault(engine, []).append(_child(Path(folder), engine, options))
    results = []
    reference = found.get("fit-numpy", next(iter(found.values())))[0]["validation"]
    for engine, runs in found.items():
        each = [sum(r["seconds"].values()) for r in runs]
        steps = {step: statistics.median(r["seconds"][step] for r in runs) for step in STEPS}
        score = statistics.median(r["validation"] for r in runs)
        results.append(
            {
                "workload": "trained",
                "engine": engine,
                "idiom": f"{options.epochs} epochs",
                "events": options.events,
                "rows": runs[0]["rows"],
                "seconds": each,
                "median_seconds": statistics.median(each),
                "steps": steps,
                "validation": score,
                "peak_rss_bytes": max(r["peak_rss_bytes"] for r in runs),
                "equal": score < reference + 0.01,
            }
        )
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in steps.items())
        say(f"{engine:12s} {statistics.median(each):7.2f} s  ({parts})  validation {score:.4f}")
    ours = next((r["median_seconds"] for r in results if r["engine"] == "ours"), None)
    ratios = {r["engine"]: r["median_seconds"] / ours for r in results if ours and r["engine"] != "ours"}
    for engine, ratio in ratios.items():
        say(f"{engine}: {ratio:.2f} times ours")
    return {"results": results, "ratios": {"trained": ratios}}


def _child(folder: Path, engine: str, options: argparse.Namespace) -> dict[str, Any]:
    given = ["--engine", engine, "--folder", str(folder)]
    return train.child("bench.trained", given, options, ("events", "batch", "epochs"))


def parser() -> argparse.ArgumentParser:
    """The options; those that no user gives are one measurement's own."""
    parser = argparse.ArgumentParser(prog="python -m bench.run trained", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=argument.count, default=2_000_000)
    parser.add_argument("--batch", type=argument.count, default=4096)
    parser.add_argument("--epochs", type=argument.count, default=5)
    parser.add_argument("--rounds", type=argument.count, default=3)
    parser.add_argument("--engines", type=argument.names, default=list(ENGINES))
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.engine == "prepare":
        prepare(options.folder, options)
        print("{}")
        return 0
    if options.engine:
        print(json.dumps(measure(options.folder, options)))
        return 0
    if unknown := [e for e in options.engines if e not in ENGINES]:
        parser().error(f"no such engines: {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    from bench.report import keep

    return keep(run(options), options.json)


if __name__ == "__main__":
    sys.exit(main())
