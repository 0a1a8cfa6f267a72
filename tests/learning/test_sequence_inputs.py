"""Sequence tensors on their way to a network: which rows, which types, and what happens without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import DataError, ModelError
from pipeline.learning import models
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Architecture, Head, Network
from pipeline.learning.resident import resident
from pipeline.learning.rows import Rows, as_rows, select
from pipeline.learning.tensors import keras, tf
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import log_loss

LENGTH = 5
HEADS = (Head("a"), Head("b"))
SETTINGS = Model(batch_size=512, epochs=20, minimum_positives=5, learning_rate=0.05)


def counting(architecture: Architecture, seed: int = 0) -> Network:
    """A network that sees sequences alone: how often each kind occurs, and the mean campaign and days."""
    ops = keras.ops
    inputs = {"features": keras.Input((architecture.features,), name="features")}
    for name, dtype in (("kind", "uint8"), ("campaign", "int64"), ("days", "float32")):
        inputs[name] = keras.Input((LENGTH,), dtype=dtype, name=name)
    columns = [ops.mean(ops.cast(ops.equal(inputs["kind"], k), "float32"), axis=1) for k in (1, 2)]
    columns += [ops.mean(ops.cast(inputs[name], "float32"), axis=1) for name in ("campaign", "days")]
    dense = keras.layers.Dense(architecture.width, kernel_initializer="zeros", name="heads")
    normalise = models.Normalise(name="normalise")
    normalise.build((None, architecture.features))
    body = keras.Model(inputs, dense(ops.stack(columns, axis=1)), name="body")
    return Network(architecture, normalise, body, ("kind", "campaign", "days"))


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", counting)


def table(backend: Backend, n: int = 20_000, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Rows whose outcomes hang on their sequences alone, and their true probabilities, float64[n, 2]."""
    rng = np.random.default_rng(seed)
    found = {
        "kind": rng.integers(0, 3, (n, LENGTH)).astype(np.uint8),
        "campaign": rng.integers(0, 5, (n, LENGTH)),
        "days": rng.exponential(1.0, (n, LENGTH)).astype(np.float32),
        "hour": rng.integers(0, 24, (n, LENGTH)).astype(np.uint8),  # of no use to the network
    }
    score = 6 * (found["kind"] == 1).mean(axis=1) - 5 * found["days"].mean(axis=1) + found["campaign"].mean(axis=1) - 1
    p = 1 / (1 + np.exp(-np.stack([score, -score], axis=1)))
    y = (rng.random(p.shape) < p).astype(np.float32)
    sequences = {}
    for name, array in found.items():
        sequences[name] = backend.empty_aligned(array.shape, array.dtype)
        sequences[name][...] = backend.asarray(array)
    X = backend.empty_aligned((n, 3), np.float32)
    X[...] = 1
    ones = np.ones_like(y)
    rows = Rows(X, backend.asarray(y), backend.asarray(ones), backend.asarray(ones[:, 0].copy()), sequences=sequences)
    return rows, p


def some(n: int) -> np.ndarray:
    """Rows in no order, so that what is taken by position alone is wrong."""
    return np.random.default_rng(1).permutation(n)[: n // 2]


def assert_learned(p: np.ndarray, truth: np.ndarray) -> None:
    for h in range(2):
        best = log_loss(truth[:, h], truth[:, h])
        base = log_loss(np.full(len(truth), truth[:, h].mean()), truth[:, h])
        found = np.clip(p[:, h], 1e-7, 1 - 1e-7)  # float32 has no number closer to 1
        assert (log_loss(found, truth[:, h]) - best) / (base - best) < 0.03


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("chosen", [False, True], ids=["all rows", "chosen rows"])
def test_each_row_has_its_own_sequences(backend: Backend, chosen: bool) -> None:
    rows, truth = table(backend)
    index = some(len(rows)) if chosen else np.arange(len(rows))
    valid, _ = table(backend, 4_000, seed=1)
    picked = some(4_000)
    model = train(
        rows.chosen(backend.asarray(index)) if chosen else rows,
        valid.chosen(backend.asarray(picked)) if chosen else valid,
        HEADS,
        SETTINGS,
    )
    assert model.history[-1]["validation"] < 0.9
    p = model.predict(rows.X, backend.asarray(index), sequences=rows.sequences, batch=1_000)
    assert_learned(backend.to_host(p).astype(np.float64), truth[index])


@pytest.mark.usefixtures("networks")
def test_chosen_rows_learn_as_a_copy_of_them_does() -> None:
    rows, _ = table(PANDAS, 4_000)
    index = some(4_000)
    copy = Rows(*(getattr(rows, name)[index] for name in ("X", "y", "mask", "weight")))
    copy = Rows(copy.X, copy.y, copy.mask, copy.weight, None, {n: a[index] for n, a in rows.sequences.items()})
    one, other = (train(r, None, HEADS, SETTINGS).network.weights() for r in (rows.chosen(index), copy))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_sequences_stay_as_they_are_and_only_what_is_needed_is_there(backend: Backend) -> None:
    rows, _ = table(backend, 1_000)
    network = counting(Architecture(3, HEADS))
    found = resident(network, rows.chosen(backend.asarray(some(1_000))), tf.zeros((2, 2)))
    assert {n: x.dtype.name for n, x in found.sequences.items()} == {
        "kind": "uint8",
        "campaign": "int64",
        "days": "float32",
    }
    rows.sequences["kind"][7, 2] = 9
    backend.synchronize()
    assert found.sequences["kind"].numpy()[7, 2] == 9  # the table's own memory


@pytest.mark.usefixtures("networks")
def test_a_missing_tensor_is_named() -> None:
    rows, _ = table(PANDAS, 1_000)
    without = {name: a for name, a in rows.sequences.items() if name != "campaign"}
    with pytest.raises(ModelError, match=r"campaign not among those given \(kind, days, hour\).*sequences.length"):
        train(Rows(rows.X, rows.y, rows.mask, rows.weight, None, without), None, HEADS, SETTINGS)
    model = train(rows, None, HEADS, SETTINGS.model_copy(update={"epochs": 1}))
    with pytest.raises(ModelError, match="campaign not among those given"):
        model.predict(rows.X, sequences=without)
    with pytest.raises(ModelError, match=r"given \(none\)"):
        model.predict(rows.X)


@pytest.mark.usefixtures("networks")
def test_any_number_of_rows_can_be_predicted() -> None:
    rows, _ = table(PANDAS, 1_001)
    model = train(rows, None, HEADS, SETTINGS.model_copy(update={"epochs": 1}))
    whole = model.predict(rows.X, sequences=rows.sequences)
    np.testing.assert_allclose(model.predict(rows.X, batch=300, sequences=rows.sequences), whole, rtol=0, atol=1e-6)
    none: Any = np.zeros(0, dtype=np.int64)
    assert model.predict(rows.X, none, sequences=rows.sequences).shape == (0, 2)


def test_a_network_of_features_alone_takes_no_sequences() -> None:
    rows, _ = table(PANDAS, 1_000)
    model: TrainedModel = train(rows, None, HEADS, SETTINGS.model_copy(update={"epochs": 1}))
    assert model.predict(rows.X, sequences=rows.sequences).tolist() == model.predict(rows.X).tolist()


def test_rows_carry_their_tables_sequences(backend: Backend) -> None:
    rows, _ = table(backend, 30)

    class Table:
        X, y, mask, weight, sequences = rows.X, rows.y, rows.mask, rows.weight, rows.sequences
        split = backend.asarray(np.arange(30, dtype=np.int8) % 3)

    for made in (as_rows(Table()), select(Table(), 1)):
        assert {name: id(a) for name, a in made.sequences.items()} == {n: id(a) for n, a in rows.sequences.items()}
    with pytest.raises(DataError, match=r"expected sequences \[n, L\] of the 30 rows"):
        Rows(rows.X, rows.y, rows.mask, rows.weight, None, {"kind": rows.sequences["kind"][:29]})
