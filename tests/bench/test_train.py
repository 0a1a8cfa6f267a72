"""What the benchmark of training compares: every engine goes through the same rows, and learns."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest

from bench import train

ROWS, FEATURES, BATCH = 4_500, 5, 512  # 8 whole batches and a remainder


def options(engine: str, idiom: str, epochs: int = 3) -> argparse.Namespace:
    given = ["--rows", str(ROWS), "--features", str(FEATURES), "--batch", str(BATCH), "--epochs", str(epochs)]
    return train.parser().parse_args([*given, "--hidden", "8", "--engine", engine, "--idiom", idiom])


def epoch(pipeline: Any) -> list[np.ndarray]:
    """The labels' column that numbers the rows, batch by batch."""
    return [np.asarray(y)[:, 0].astype(int) for _, y in pipeline]


@pytest.mark.parametrize(
    ("engine", "idiom", "rows"), [("fit-reshuffled", "gather", True), ("fit-cached", "batches", False)]
)
def test_what_is_shuffled(engine: str, idiom: str, rows: bool) -> None:
    x = np.zeros((ROWS, FEATURES), np.float32)
    y = np.repeat(np.arange(ROWS, dtype=np.float32)[:, None], train.HEADS, axis=1)
    pipeline = train.pipeline(engine, idiom, x, y, options(engine, idiom))["x"]
    one, two = epoch(pipeline), epoch(pipeline)
    for batches in (one, two):
        assert [len(b) for b in batches] == [BATCH] * (ROWS // BATCH)
        assert len(set(np.concatenate(batches))) == ROWS // BATCH * BATCH
    assert [b[0] for b in one] != [b[0] for b in two]
    whole = {tuple(b) for b in one} == {tuple(b) for b in two}
    assert whole is not rows


def test_the_parquet_file_has_the_rows() -> None:
    from pipeline.learning.tensors import tf

    x, y = train.data(ROWS, FEATURES)
    batches = list(train.parquet(tf, x, y, BATCH))
    found = np.concatenate([np.concatenate([np.asarray(a), np.asarray(b)], axis=1) for a, b in batches])
    rows = np.concatenate([x, y], axis=1)[: len(found)]
    assert len(found) == ROWS // BATCH * BATCH
    np.testing.assert_array_equal(found[np.lexsort(found.T)], rows[np.lexsort(rows.T)])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # of a generator Keras does not know the length
@pytest.mark.parametrize(
    ("engine", "idiom"), [("ours", "resident"), ("fit-numpy", "plain"), ("fit-parquet", "row groups")]
)
def test_every_engine_learns(engine: str, idiom: str) -> None:
    _, y = train.data(ROWS, FEATURES)
    rate = y.mean(axis=0)
    base = float(np.mean(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate)))
    found = train.measure(options(engine, idiom, epochs=12))
    assert len(found["seconds"]) == len(found["cpu_seconds"]) == 12
    assert min(found["seconds"]) > 0
    assert found["loss"] < 0.99 * base
