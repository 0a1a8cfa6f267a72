from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import ModelError
from pipeline.learning.chunks import Chunks, ahead, as_chunks, survey
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Head
from pipeline.learning.rows import Rows, concat
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import Planted, log_loss, planted, rows_of

HEADS = (Head("a"), Head("b"))
SETTINGS = Model(hidden=[8], batch_size=512, epochs=12, minimum_positives=5)


def cut(data: Planted, backend: Backend, bounds: list[int]) -> Chunks:
    """The rows in chunks of these bounds, each made anew at every call."""

    def make(i: int) -> Rows:
        some = slice(bounds[i], bounds[i + 1])
        return rows_of(backend, data.X[some], data.y[some])

    return Chunks(len(bounds) - 1, make)


def lost(model: TrainedModel, data: Planted, backend: Backend) -> list[float]:
    """Of each head, which share of what can be known the model misses."""
    p = backend.to_host(model.predict(data.rows.X)).astype(np.float64)
    found = []
    for h in range(2):
        truth = data.p[:, h]
        best, base = log_loss(truth, truth), log_loss(np.full(len(truth), truth.mean()), truth)
        found.append((log_loss(p[:, h], truth) - best) / (base - best))
    return found


def test_chunks_teach_what_all_rows_at_once_do(backend: Backend) -> None:
    """Five times the rows that are there at once: as good, within one percent of what can be known.

    Another seed alone changes it by half of that.
    """
    data, valid, fresh = planted(backend, 40_000), planted(backend, 5_000, seed=1), planted(backend, 20_000, seed=2)
    chunks = cut(data, backend, [0, 7_000, 16_000, 24_001, 33_000, 40_000])
    whole = lost(train(data.rows, valid.rows, HEADS, SETTINGS), fresh, backend)
    parts = lost(train(chunks, valid.rows, HEADS, SETTINGS), fresh, backend)
    several = lost(train(chunks, valid.rows, HEADS, SETTINGS.model_copy(update={"passes": 3})), fresh, backend)
    assert max(whole) < 0.02
    np.testing.assert_allclose(parts, whole, atol=0.01)
    np.testing.assert_allclose(several, whole, atol=0.01)


def test_a_survey_of_chunks_is_that_of_all_rows(backend: Backend) -> None:
    """Against formulas over all rows in NumPy."""
    data = planted(backend, 5_000)
    rng = np.random.default_rng(5)
    X = np.concatenate([data.X + np.float32(100), np.full((5_000, 1), 7, np.float32)], axis=1)
    value = np.where(rng.random(5_000) < 0.3, np.exp(rng.normal(2, 0.7, 5_000)), 0)
    y = np.stack([data.y[:, 0], value], axis=1).astype(np.float32)
    mask = (rng.random(y.shape) < 0.8).astype(np.float32)
    weight = rng.integers(0, 4, 5_000).astype(np.float32)

    def make(i: int) -> Rows:
        some = [slice(0, 900), slice(900, 900), slice(900, 5_000)][i]
        return rows_of(backend, X[some], y[some], mask[some], weight[some])

    heads = (Head("a"), Head("spend", "value"))
    found = survey(Chunks(3, make), heads, 5)
    assert found.sizes == (900, 0, 4_100)
    mean = np.average(X.astype(np.float64), axis=0, weights=weight)
    over = X - mean
    np.testing.assert_allclose(found.plain.mean, mean)
    np.testing.assert_allclose(found.plain.second, weight @ over**2, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.plain.third, weight @ over**3, rtol=1e-6, atol=1e-6)
    logs = np.log1p(X.astype(np.float64))
    np.testing.assert_allclose(found.squashed.mean, np.average(logs, axis=0, weights=weight))
    assert found.plain.heavy.tolist() == [True, *[False] * 6]
    w = weight * mask[:, 1]
    positive = w * (y[:, 1] > 0)
    label = found.labels[1]
    assert label.rows == mask[:, 1].sum()
    assert label.positives == ((mask[:, 1] > 0) & (y[:, 1] > 0)).sum()
    assert label.rate == pytest.approx(positive.sum() / w.sum())
    assert label.mean == pytest.approx((w * y[:, 1]).sum() / w.sum())
    log = np.log(np.where(y[:, 1] > 0, y[:, 1], 1)).astype(np.float64)
    average = np.average(log, weights=positive)
    deviation = np.average((log - average) ** 2, weights=positive) ** 0.5
    assert label.log == pytest.approx((average, deviation, y[mask[:, 1] > 0, 1].max()), rel=1e-6)


def test_the_same_seed_gives_the_same_weights() -> None:
    data = planted(PANDAS, 6_000)
    quick = SETTINGS.model_copy(update={"epochs": 2, "passes": 2})
    chunks = cut(data, PANDAS, [0, 2_000, 4_500, 6_000])
    one, other = (train(chunks, data.rows, HEADS, quick).network.weights() for _ in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_each_epoch_sees_every_chunk_in_an_order_of_its_own() -> None:
    data, asked = planted(PANDAS, 4_000), []
    whole = cut(data, PANDAS, [0, 1_000, 2_000, 3_000, 4_000])

    def make(i: int) -> Rows:
        asked.append(i)
        return whole.make(i)

    settings = SETTINGS.model_copy(update={"epochs": 6, "patience": 6, "learning_rate": 1e-3})
    model = train(Chunks(4, make), data.rows, HEADS, settings)
    rounds = [tuple(asked[i : i + 4]) for i in range(0, len(asked), 4)]
    assert len(rounds) == 1 + len(model.history) == 7  # one to survey
    assert all(sorted(r) == [0, 1, 2, 3] for r in rounds)
    assert len(set(rounds[1:])) > 3


def test_without_validation_rows_a_tenth_of_the_first_chunk_is_taken() -> None:
    data, fresh = planted(PANDAS, 20_000), planted(PANDAS, 10_000, seed=2)
    model = train(cut(data, PANDAS, [0, 10_000, 20_000]), None, HEADS, SETTINGS)
    assert max(lost(model, fresh, PANDAS)) < 0.03


def test_the_value_heads_correction_counts_all_chunks() -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((12_000, 3))
    value = np.where(rng.random(12_000) < 1 / (1 + np.exp(-X[:, 0])), np.exp(rng.normal(3 + 0.5 * X[:, 1], 0.6)), 0)
    y = np.stack([value, value > 0], axis=1)

    def make(i: int) -> Rows:
        return rows_of(PANDAS, X[i::3], y[i::3])

    model = train(Chunks(3, make), make(0), (Head("spend", "value"), Head("buys")), SETTINGS)
    expected = model.predict(rows_of(PANDAS, X, y).X)[:, 0].astype(np.float64)
    assert expected.sum() == pytest.approx(value.sum(), rel=0.01)


def test_chunks_of_nothing_are_refused() -> None:
    data = planted(PANDAS, 100)
    with pytest.raises(ModelError, match="no training rows"):
        train(cut(data, PANDAS, [0, 0, 0]), data.rows, HEADS, SETTINGS)
    with pytest.raises(ModelError, match="3 heads for 2 columns"):
        survey(as_chunks(data.rows), (*HEADS, Head("c")), 5)


def test_rows_of_several_tables_become_one(backend: Backend) -> None:
    data = planted(backend, 30)
    chosen = data.rows.chosen(backend.asarray(np.array([4, 2, 9])))
    joined = concat([chosen, data.rows])
    assert backend.to_host(joined.X).tolist() == [*data.X[[4, 2, 9]].tolist(), *data.X.tolist()]
    assert backend.to_host(joined.y).tolist() == [*data.y[[4, 2, 9]].tolist(), *data.y.tolist()]
    assert joined.index is None


class Item:
    """Counts how many of it are alive."""

    alive, most = 0, 0
    lock = threading.Lock()

    def __init__(self) -> None:
        with Item.lock:
            Item.alive += 1
            Item.most = max(Item.most, Item.alive)

    def __del__(self) -> None:
        with Item.lock:
            Item.alive -= 1


def test_the_next_is_made_while_one_is_used_and_no_more() -> None:
    began: list[int] = []

    def work(i: int) -> tuple[int, Item]:
        began.append(i)
        return i, Item()

    Item.alive = Item.most = 0
    seen, made = [], ahead(work, range(6))
    for i in range(6):
        pair = next(made)
        seen.append(pair[0])
        deadline = time.monotonic() + 5
        while i < 5 and i + 1 not in began and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert began == list(range(min(i + 2, 6)))
        del pair
    assert seen == [0, 1, 2, 3, 4, 5]
    assert Item.most <= 2
    made.close()
    assert list(ahead(work, [])) == []


def test_an_error_of_the_thread_is_the_callers() -> None:
    def work(i: int) -> int:
        if i == 2:
            raise ModelError("broken chunk")
        return i

    made: Any = ahead(work, range(5))
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ModelError, match="broken chunk"):
        next(made)


MEMORY = """
from pathlib import Path
import numpy as np
from pipeline.backend import PANDAS
from pipeline.options import Model
from pipeline.learning.chunks import Chunks
from pipeline.learning.models import Head
from pipeline.learning.rows import Rows
from pipeline.learning.train import train

FEATURES, COUNT, ROWS = 64, 6, 80_000

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM")) / 1024

def make(i):
    X = PANDAS.empty_aligned((ROWS, FEATURES), np.float32)
    rng = np.random.default_rng(i)
    rng.standard_normal(out=X, dtype=np.float32)
    y = (rng.random((ROWS, 1)) < 0.1).astype(np.float32)
    return Rows(X, y, np.ones_like(y), np.ones(ROWS, np.float32))

def run(count):
    valid = make(99).chosen(np.arange(1000))
    train(Chunks(count, make), valid, (Head("a"),), Model(hidden=[8], epochs=1, batch_size=4096))

run(1)
before = peak()
run(COUNT)
print(peak() - before, ROWS * FEATURES * 4 / 2**20)
"""


def test_memory_is_bounded_by_the_chunk() -> None:
    """Six chunks take a few chunks' room more than one of them alone, for the next one; all of them would take ten."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, chunk = map(float, done.stdout.split())
    assert grown < 6 * chunk, f"{grown:.0f} MiB more for chunks of {chunk:.0f} MiB"
