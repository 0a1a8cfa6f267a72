"""One trial of tune, in the process that trains: it reads its client's rows once and keeps them for the next trial.

A trial learns from training rows and is measured on validation rows; the hold-out is not looked at. Its network starts
from ``model.seed`` like any other, so that on the CPU the same settings and rows give the same result in any process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backend import backend_of
from pipeline.config import Config
from pipeline.errors import EventgrainError, TooLittleError
from pipeline.features.samples import TRAIN, VALIDATION
from pipeline.learning.snapshot import Snapshot
from pipeline.learning.space import Settings
from pipeline.learning.study import Trial, pruner_study, with_settings
from pipeline.options import Model

if TYPE_CHECKING:
    from pipeline.features.sequences import SequenceSpec
    from pipeline.learning.model import TrainedModel
    from pipeline.learning.rows import Rows

MEASURES = {"binary": ("pr_auc", "roc_auc", "normalized_entropy"), "value": ("normalized_gini",)}


@dataclass(frozen=True)
class Task:
    """A trial to be made, small enough to be sent.

    ``sequential``: some kind of the search reads sequences, so the rows have them; ``rivals``: see ``pruner_study``;
    ``minimum``: fewer positives of ``deciding`` outcomes, and the pooled model is for this client (0: never).
    """

    snapshot: Snapshot
    client: str
    as_of: int
    rollups: Path | None
    number: int
    settings: Settings
    rivals: tuple[tuple[float, ...], ...]
    sequential: bool
    minimum: int


@dataclass(frozen=True)
class _Known:
    """The rows that a client's trials share."""

    key: tuple[Any, ...]
    rows: Rows
    valid: Rows
    sequences: SequenceSpec | None
    ignored: np.ndarray | None


_LAST: list[_Known] = []  # of the client last worked for: a process works for one at a time


def run_trial(task: Task) -> Trial:
    """Train with a trial's settings.

    Returns: what came of it; a loss that is not finite, and memory that does not suffice, are what comes of some.
    Raises:
        TooLittleError: this client has nothing to learn from, or is for the pooled model; EventgrainError: its rows
        cannot be made.
    """
    began = time.perf_counter()
    known = _known(task)
    config = with_settings(task.snapshot.config, task.settings)
    try:
        model, pruned = _train(task, known, config.model, config)
    except EventgrainError as error:
        return _failed(task, began, str(error))
    except Exception as error:
        if not _out_of_memory(error):
            raise
        return _failed(task, began, f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more is free'}")
    return _trial(task, known, model, pruned, began)


def _train(task: Task, known: _Known, settings: Model, config: Config) -> tuple[TrainedModel, bool]:
    from pipeline.learning.models import heads_of
    from pipeline.learning.train import train

    giving_up = pruning(task.rivals, task.snapshot.config.tune.warmup)
    model = train(
        known.rows,
        known.valid,
        heads_of(config),
        settings,
        None,
        known.sequences,
        callbacks=[giving_up],
        ignored=known.ignored,
    )
    return model, bool(giving_up.gave_up)


def _trial(task: Task, known: _Known, model: TrainedModel, pruned: bool, began: float) -> Trial:
    history = [float(h["validation"]) for h in model.history]
    bad = next((i for i, h in enumerate(model.history) if not math.isfinite(h["loss"] + h["validation"])), None)
    if bad is not None:
        return _failed(task, began, f"the loss was not finite in epoch {bad + 1}", history[:bad])
    if not history:
        return _failed(task, began, "no outcome has enough examples to learn from")
    epoch = int(np.argmin(history))
    return Trial(
        task.number,
        task.settings,
        "pruned" if pruned else "complete",
        history[epoch],
        epoch + 1,
        tuple(history),
        measures(model, known.valid),
        round(time.perf_counter() - began, 3),
    )


def _failed(task: Task, began: float, why: str, history: Sequence[float] = ()) -> Trial:
    seconds = round(time.perf_counter() - began, 3)
    return Trial(task.number, task.settings, "failed", history=tuple(history), seconds=seconds, reason=why)


def _out_of_memory(error: Exception) -> bool:
    """The host's or TensorFlow's."""
    from pipeline.learning.tensors import tf

    return isinstance(error, MemoryError | tf.errors.ResourceExhaustedError)


def pruning(rivals: Sequence[Sequence[float]], warmup: int) -> Any:
    """A Keras callback that stops a training which Optuna's pruner gives up; ``gave_up`` says whether it did."""
    from pipeline.learning.tensors import keras

    trial = pruner_study([list(one) for one in rivals], warmup).ask()

    class Pruning(keras.callbacks.Callback):  # type: ignore[misc]
        gave_up = False

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            trial.report(logs["val_loss"], epoch)
            if rivals and math.isfinite(logs["val_loss"]) and trial.should_prune():
                self.gave_up = self.model.stop_training = True

    return Pruning()


def measures(model: TrainedModel, rows: Rows) -> dict[str, dict[str, float | None]]:
    """Each learned outcome's metrics on the validation rows, of those that have any; see metrics.py."""
    from pipeline.learning.metrics import binary_metrics, value_metrics

    if not len(rows):
        return {}
    host = backend_of(rows.X).to_host
    p = np.asarray(host(model.predict(rows.X, rows.index, sequences=rows.sequences)))
    y, mask, weight = (np.asarray(host(rows.take(name))) for name in ("y", "mask", "weight"))
    found = {}
    for h, head in enumerate(model.heads):
        some = (mask[:, h] > 0) & (weight > 0)
        if not model.labels[h].learned or not some.any():
            continue
        measure = binary_metrics if head.kind == "binary" else value_metrics
        every = measure(p[some, h], y[some, h], weight[some])
        found[head.name] = {name: every[name] for name in MEASURES[head.kind]}
    return found


def _known(task: Task) -> _Known:
    """The client's rows; those of another client are let go."""
    config = task.snapshot.config
    key = (task.snapshot.key, task.client, task.as_of, task.sequential)
    if not _LAST or _LAST[0].key != key:
        _LAST.clear()
        _LAST.append(_read(task, config, key))
    return _LAST[0]


def _read(task: Task, config: Config, key: tuple[Any, ...]) -> _Known:
    from pipeline.learning.client import positives
    from pipeline.learning.clocks import clocks
    from pipeline.learning.data import training_data
    from pipeline.learning.pooled import deciding
    from pipeline.learning.rows import select
    from pipeline.learning.selection import sample

    if task.sequential:
        config = with_settings(config, {"kind": "combined"})
    data = training_data(task.snapshot.store, task.client, config, task.snapshot.backend, task.as_of, task.rollups)
    there = {name: n for name, n in positives(data, config).items() if name in deciding(config)}
    if max(there.values()) < task.minimum:
        found = ", ".join(f"{n} of {name}" for name, n in there.items())
        raise TooLittleError(
            f"client {task.client!r} has too few positives in training ({found}), fewer than "
            f"model.minimum_positives_own ({task.minimum}), so the pooled model serves it; with 0 there it has its own"
        )
    rows = sample(select(data.table, TRAIN), config.tune.rows, config.model.seed)
    return _Known(key, rows, select(data.table, VALIDATION), data.table.spec.sequences, clocks(data.table))


def forget() -> None:
    """Let go of what is kept."""
    _LAST.clear()
