from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import DataError, ModelError
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Head
from pipeline.learning.rows import Rows, select
from pipeline.learning.train import train
from pipeline.learning.trainer import Trainer
from pipeline.options import Model
from tests.learning.data import log_loss, planted, rows_of

HEADS = (Head("a"), Head("b"))
QUICK = Model(hidden=[8], batch_size=512, epochs=3, minimum_positives=5)


def weights(model: TrainedModel) -> dict[str, np.ndarray]:
    return model.network.weights()


def assert_same_weights(one: TrainedModel, other: TrainedModel, tolerance: float = 0.0) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("hidden", [[], [16]])
def test_it_learns_a_planted_relationship(backend: Backend, hidden: list[int]) -> None:
    data, fresh = planted(backend, 30_000), planted(backend, 20_000, seed=1)
    model = train(data.rows, planted(backend, 5_000, seed=2).rows, HEADS, Model(hidden=hidden, batch_size=512))
    p = backend.to_host(model.predict(fresh.rows.X))
    assert p.shape == (20_000, 2)
    assert p.dtype == np.float32
    for h in range(2):
        best, base = (
            log_loss(fresh.p[:, h], fresh.p[:, h]),
            log_loss(np.full(20_000, data.y[:, h].mean()), fresh.p[:, h]),
        )
        lost = (log_loss(p[:, h], fresh.p[:, h]) - best) / (base - best)
        assert lost < 0.03, f"head {h} misses {lost:.1%} of what can be known"
    assert model.samples_per_second > 0
    assert np.allclose(p.mean(axis=0), fresh.p.mean(axis=0), rtol=0.05)


def test_a_value_head_learns_chance_and_amount(backend: Backend) -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((20_000, 3))
    chance, mu = 1 / (1 + np.exp(-(X[:, 0] - 1))), 14.0 + 0.5 * X[:, 1]
    value = np.where(rng.random(20_000) < chance, np.exp(rng.normal(mu, 0.6)), 0)
    truth = chance * np.exp(mu + 0.6**2 / 2)
    y = np.stack([value, value > 0], axis=1)
    model = train(
        rows_of(backend, X, y), None, (Head("spend", "value"), Head("buys")), Model(hidden=[], batch_size=512)
    )
    p = backend.to_host(model.predict(rows_of(backend, X, y).X)).astype(np.float64)
    assert p[:, 0].sum() == pytest.approx(value.sum(), rel=0.01)
    assert np.corrcoef(np.log(p[:, 0]), np.log(truth))[0, 1] > 0.995
    assert np.median(np.abs(np.log(p[:, 0] / truth))) < 0.1


def test_masked_labels_change_nothing(backend: Backend) -> None:
    data = planted(backend, 2_000)
    mask = (np.random.default_rng(1).random(data.y.shape) < 0.7).astype(np.float32)
    flipped = np.where(mask > 0, data.y, 1 - data.y)
    absurd = np.where(mask > 0, data.y, np.nan)
    absurd[:10][mask[:10] == 0] = 1e30
    models = [train(rows_of(backend, data.X, y, mask), None, HEADS, QUICK) for y in (data.y, flipped, absurd)]
    assert_same_weights(models[0], models[1])
    assert_same_weights(models[0], models[2])


def test_rows_of_no_weight_change_nothing() -> None:
    data = planted(PANDAS, 200)
    weight = np.ones(200, dtype=np.float32)
    weight[150:] = 0
    other = data.y.copy()
    other[150:] = 1 - other[150:]
    X = data.X.copy()
    X[150:] *= 100
    one = train(rows_of(PANDAS, data.X, data.y, weight=weight), None, HEADS, QUICK)
    two = train(rows_of(PANDAS, X, other, weight=weight), None, HEADS, QUICK)
    assert_same_weights(one, two)


def test_an_integer_weight_is_that_many_rows() -> None:
    """With batches of all rows: the gradient of a weighted row is that of its copies."""
    data = planted(PANDAS, 60)
    often = np.random.default_rng(3).integers(1, 4, 60)
    valid = planted(PANDAS, 60, seed=8).rows
    weighted = train(rows_of(PANDAS, data.X, data.y, weight=often), valid, HEADS, QUICK)
    copies = rows_of(PANDAS, np.repeat(data.X, often, axis=0), np.repeat(data.y, often, axis=0))
    repeated = train(copies, valid, HEADS, QUICK)
    assert weighted.batch == 60
    assert repeated.batch == often.sum()
    assert_same_weights(weighted, repeated, tolerance=1e-4)  # Adam divides by tiny gradients: rounding grows


def test_the_same_seed_gives_the_same_weights() -> None:
    data = planted(PANDAS, 5_000)
    first, again, other = (train(data.rows, None, HEADS, QUICK.model_copy(update={"seed": s})) for s in (4, 4, 5))
    assert_same_weights(first, again)
    assert any((weights(first)[name] != weights(other)[name]).any() for name in weights(first))


def test_a_chosen_index_is_a_copy_of_those_rows(backend: Backend) -> None:
    data = planted(backend, 4_000)
    index = np.flatnonzero(np.random.default_rng(0).random(4_000) < 0.4)
    view = Rows(data.rows.X, data.rows.y, data.rows.mask, data.rows.weight, backend.asarray(index))
    copy = rows_of(backend, data.X[index], data.y[index])
    one, two = train(view, None, HEADS, QUICK), train(copy, None, HEADS, QUICK)
    assert_same_weights(one, two, tolerance=1e-4 if backend.on_gpu else 0.0)
    p = backend.to_host(one.predict(data.rows.X, backend.asarray(index)))
    np.testing.assert_allclose(p, backend.to_host(two.predict(copy.X)), atol=1e-6)


def test_select_takes_a_split_of_a_table(backend: Backend) -> None:
    data = planted(backend, 50)

    class Table:
        X, y, mask, weight = data.rows.X, data.rows.y, data.rows.mask, data.rows.weight
        split = backend.asarray(np.arange(50, dtype=np.int8) % 3)

    chosen = select(Table(), 2)
    assert chosen.X is data.rows.X
    assert backend.to_host(chosen.take("y")).tolist() == data.y[2::3].tolist()
    assert len(chosen) == 16


def test_any_batch_size_predicts_the_same(backend: Backend) -> None:
    data = planted(backend, 3_001)
    model = train(data.rows, None, HEADS, QUICK)
    whole = backend.to_host(model.predict(data.rows.X))
    for batch in (1_000, 64, 3_001, 2_999):
        np.testing.assert_allclose(backend.to_host(model.predict(data.rows.X, batch=batch)), whole, rtol=0, atol=1e-6)
    assert backend.to_host(model.predict(data.rows.X[:1])).shape == (1, 2)
    assert backend.to_host(model.predict(data.rows.X[:0])).shape == (0, 2)


def test_early_stopping_restores_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that soon does harm: what is kept is the epoch whose validation was best, not the last."""
    kept: list[dict[str, np.ndarray]] = []
    score = Trainer.score

    def spy(self: Any) -> float:
        kept.append({name: w.copy() for name, w in self.model.network.weights().items()})
        return score(self)

    monkeypatch.setattr(Trainer, "score", spy)
    data, valid = planted(PANDAS, 1_000), planted(PANDAS, 1_000, seed=1)
    settings = Model(hidden=[32], batch_size=256, epochs=30, patience=2, learning_rate=0.05, minimum_positives=5)
    model = train(data.rows, valid.rows, HEADS, settings)
    validation = [h["validation"] for h in model.history]
    assert len(validation) < 30
    assert model.best_epoch == int(np.argmin(validation)) + 1 < len(validation)
    assert len(validation) == model.best_epoch + 3
    for name, weight in weights(model).items():
        np.testing.assert_array_equal(weight, kept[model.best_epoch][name], err_msg=name)


def test_validation_loss_is_its_definition() -> None:
    data, valid = planted(PANDAS, 3_000), planted(PANDAS, 777, seed=1)
    weight = np.random.default_rng(0).random(777).astype(np.float32)
    mask = (np.random.default_rng(1).random((777, 2)) < 0.5).astype(np.float32)
    settings = QUICK.model_copy(update={"epochs": 1})
    model = train(data.rows, rows_of(PANDAS, valid.X, valid.y, mask, weight), HEADS, settings)
    p = model.predict(valid.rows.X).astype(np.float64)
    expected = []
    for h in range(2):
        rate = data.y[:, h].mean()
        base = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
        each = -(valid.y[:, h] * np.log(p[:, h]) + (1 - valid.y[:, h]) * np.log(1 - p[:, h]))
        expected.append(np.average(each, weights=weight * mask[:, h]) / base)
    assert model.history[0]["validation"] == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("positives", [0, 4, 3_000])
def test_a_head_that_cannot_be_learned_predicts_its_base_rate(positives: int) -> None:
    data = planted(PANDAS, 3_000)
    y = data.y.copy()
    y[:, 0] = 0
    y[:positives, 0] = 1
    model = train(rows_of(PANDAS, data.X, y), None, HEADS, QUICK)
    assert "no model for a" in model.notes["a"]
    assert set(model.notes) == {"a"}
    p = model.predict(data.rows.X)
    assert (p[:, 0] == np.float32(positives / 3_000)).all()
    assert p[:, 1].std() > 0.01


def test_nothing_to_learn_is_a_constant_model() -> None:
    data = planted(PANDAS, 40)
    model = train(rows_of(PANDAS, data.X, data.y * 0), None, HEADS, QUICK)
    assert model.history == []
    assert (model.predict(data.rows.X) == 0).all()


@pytest.mark.parametrize("n", [1, 3, 19, 21, 300])
def test_few_rows(n: int) -> None:
    data = planted(PANDAS, n, rate=0.0)
    model = train(data.rows, None, HEADS, QUICK.model_copy(update={"minimum_positives": 0}))
    assert np.isfinite(model.predict(data.rows.X)).all()


def test_constant_missing_and_infinite_features_are_harmless(backend: Backend) -> None:
    data = planted(backend, 2_000)
    X = np.concatenate([data.X, np.full((2_000, 1), 7.5, np.float32), np.full((2_000, 1), 1e12, np.float32)], axis=1)
    X[5, 1], X[6, 2], X[7, 3] = np.nan, np.inf, -np.inf
    model = train(rows_of(backend, X, data.y), None, HEADS, QUICK)
    assert all(np.isfinite(w).all() for w in weights(model).values())
    other = X.copy()
    other[:, -1], other[:, -2] = -3.0, 9e9
    p, q = (backend.to_host(model.predict(rows_of(backend, x, data.y).X)) for x in (X, other))
    assert np.isfinite(p).all()
    np.testing.assert_array_equal(p, q)


def test_an_empty_or_unlabelled_validation_is_replaced(backend: Backend) -> None:
    data = planted(backend, 2_000)
    unlabelled = rows_of(backend, data.X[:50], data.y[:50], np.zeros((50, 2)))
    empty = rows_of(backend, data.X[:0], data.y[:0])
    for valid in (unlabelled, empty):
        model = train(data.rows, valid, HEADS, QUICK)
        assert all(np.isfinite(h["validation"]) for h in model.history)


def test_progress_counts_the_rows_of_each_epoch() -> None:
    class Counter:
        done, notes = 0, []

        def advance(self, amount: int, note: str = "") -> None:
            self.done += amount
            self.notes.append(note)

    counter, data = Counter(), planted(PANDAS, 1_000)
    model = train(data.rows, data.rows, HEADS, QUICK, counter)
    assert counter.done == 1_000 * len(model.history)
    assert "validation" in counter.notes[0]


def test_misfits_are_refused() -> None:
    data = planted(PANDAS, 100)
    with pytest.raises(ModelError, match="no training rows"):
        train(planted(PANDAS, 0).rows, None, HEADS, QUICK)
    with pytest.raises(ModelError, match="3 heads for 2 columns"):
        train(data.rows, None, (*HEADS, Head("c")), QUICK)
    with pytest.raises(DataError, match="of one n"):
        Rows(data.rows.X, data.rows.y, data.rows.mask, data.rows.weight[:-1])
    model = train(data.rows, None, HEADS, QUICK)
    with pytest.raises(ModelError, match="takes 6 features"):
        model.predict(planted(PANDAS, 10, features=5).rows.X)
