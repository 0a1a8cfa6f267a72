"""Work for several processes, which they find by its name; run alone, it is what they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline.backend import PANDAS, Backend, choose
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.chunks import Chunks
from pipeline.learning.models import Head
from pipeline.learning.tensors import keras, tf
from pipeline.learning.train import train
from pipeline.learning.trainer import Compile
from pipeline.options import Model
from tests.learning.data import Planted, planted, rows_of

HEADS = (Head("a"), Head("b"), Head("c", "value"))
BATCH, STEPS, SIZE = 256, 24, 2
SETTINGS = Model(hidden=[16], batch_size=BATCH, epochs=6, patience=6, minimum_positives=5)


def data(n: int, seed: int = 0) -> tuple[Planted, np.ndarray, np.ndarray]:
    """Two binary heads and a value, some labels unknown, and weights of rows."""
    found = planted(PANDAS, n, seed=seed)
    rng = np.random.default_rng(seed + 5)
    amount = np.where(rng.random(n) < 0.3, np.exp(found.X[:, 1] + 2), 0)
    y = np.column_stack([found.y, amount])
    mask = (rng.random(y.shape) < 0.9).astype(np.float32)
    return Planted(found.rows, found.X, y, found.p), mask, rng.integers(1, 4, n).astype(np.float32)


def some(n: int, index: np.ndarray, seed: int = 0, backend: Backend = PANDAS) -> Any:
    """Some rows, each of one of 40 campaigns."""
    whole, mask, weight = data(n, seed)
    rows = rows_of(backend, whole.X[index], whole.y[index], mask[index], weight[index])
    return replace(rows, campaign=backend.asarray((index % 40).astype(np.int32)))


def in_order(n: int, *_: Any) -> Any:
    """In place of a random permutation."""
    return tf.range(n, dtype=tf.int64)


@dataclass(frozen=True)
class SameBatches:
    """A training whose k-th step sees the same rows however many share them: the rows of a step are dealt out."""

    checkpoint: Path | None = None
    chunks: int = 2
    on_gpu: bool = False

    def __call__(self, group: Any, progress: Any) -> dict[str, Any]:
        n, share = BATCH * STEPS, BATCH // group.size
        mine = np.arange(n).reshape(STEPS, group.size, share)[:, group.rank].ravel()
        backend = choose("gpu" if self.on_gpu else "cpu")
        rows: Any = Chunks(self.chunks, lambda i: some(n, np.array_split(mine, self.chunks)[i], backend=backend))
        valid = some(1_500, np.arange(group.rank, 1_500, group.size), 3, backend)
        optimizer = keras.optimizers.SGD(0.02)
        checkpoint = Checkpoint(self.checkpoint) if self.checkpoint else None
        with patch("pipeline.learning.trainer.permutation", in_order):
            model = train(
                rows,
                valid,
                HEADS,
                SETTINGS,
                progress,
                compiled=Compile(optimizer),
                checkpoint=checkpoint,
                group=group,
            )
        return {
            "weights": model.network.weights(),
            "history": model.history,
            "labels": model.describe()["labels"],
            "batch": model.batch,
            "best": model.best_epoch,
            "rank": group.rank,
        }


@dataclass(frozen=True)
class Uneven:
    """A training as it comes, where one member has far more rows than another."""

    rows: tuple[int, ...]

    def __call__(self, group: Any, progress: Any) -> dict[str, Any]:
        ends = np.cumsum([0, *self.rows])
        mine = np.arange(ends[group.rank], ends[group.rank + 1]) if group.size > 1 else np.arange(ends[-1])
        whole = planted(PANDAS, int(ends[-1]), seed=1)
        settings = Model(hidden=[16], dropout=0.1, batch_size=128, epochs=10, patience=10, minimum_positives=5)
        rows = rows_of(PANDAS, whole.X[mine], whole.y[mine])
        valid = planted(PANDAS, 2_000, seed=2).rows if group.rank == 0 else None  # the others have none
        model = train(rows, valid, HEADS[:2], settings, progress, group=group)
        return {"p": model.predict(planted(PANDAS, 5_000, seed=3).rows.X), "best": model.best_epoch, "size": group.size}


@dataclass(frozen=True)
class OneAfterTheOther:
    """Both trainings in the same processes, and what the members hear of each other."""

    rows: tuple[int, ...]

    def __call__(self, group: Any, progress: Any) -> dict[str, Any]:
        told = group.exchange({"rank": group.rank, "more": [0.1] * group.rank, "none": None})
        counts = group.sum(np.array([[group.rank, 1]], dtype=np.uint32))
        same, uneven = SameBatches()(group, None), Uneven(self.rows)(group, None)
        return {"told": told, "counts": counts, "same": same, "uneven": uneven}
