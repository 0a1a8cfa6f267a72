"""Weights to begin from: the same function of the features, whatever their order, and what they do to a training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS
from pipeline.errors import ModelError
from pipeline.learning import imbalance, losses
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.models import Head
from pipeline.learning.start import Start
from pipeline.learning.tensors import keras
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import log_loss, planted, rows_of

HEADS = (Head("a"), Head("b"))
SETTINGS = Model(hidden=[8], batch_size=256, epochs=6, patience=6, minimum_positives=5)
NAMES = list("uvwxyz")


def begun(settings: Model = SETTINGS, seed: int = 0) -> tuple[Any, Start]:
    """A trained model, and what another training may begin from."""
    model = train(planted(PANDAS, 20_000, seed=seed).rows, None, HEADS, settings)
    initial = losses.initial_bias(model.network.architecture, [imbalance.start(label) for label in model.labels])
    return model, Start.of(model.network, initial, {"clients": 2, "rows": 20_000})


@pytest.mark.parametrize("kind", ["dense", "logistic"])
@pytest.mark.parametrize("members", [1, 2])
def test_it_is_the_same_function_of_features_by_name(kind: str, members: int) -> None:
    settings = SETTINGS.model_copy(update={"kind": kind, "members": members, "dropout": 0.1})
    model, start = begun(settings)
    data = planted(PANDAS, 20_000)
    names = ["z", "new", *NAMES[:5]]  # in another order, with one that it does not know
    X = np.concatenate([data.X[:, 5:], np.random.default_rng(0).normal(size=(20_000, 1)), data.X[:, :5]], axis=1)
    # No step is taken, so what is learned is what was given; the normalisation and the base rates are the rows' own.
    still = settings.model_copy(update={"learning_rate": 1e-12, "epochs": 1})
    again = train(rows_of(PANDAS, X, data.y), None, HEADS, still, start=start.over(NAMES, names))
    p, q = model.predict(data.rows.X), again.predict(rows_of(PANDAS, X, data.y).X)
    np.testing.assert_allclose(np.log(p / (1 - p)), np.log(q / (1 - q)), atol=1e-3)
    assert again.start == {"clients": 2, "rows": 20_000, "sha256": start.about["sha256"]}


def test_few_rows_begin_where_many_others_ended() -> None:
    """Units and base rates of the two differ, what tells who will does not."""
    _, start = begun()
    few, later = planted(PANDAS, 600, rate=-3.0, seed=1), planted(PANDAS, 20_000, rate=-3.0, seed=2)
    scale = np.array([1, 5, 0.2, 1, 1, 1], dtype=np.float32)
    rows = rows_of(PANDAS, few.X * scale, few.y)
    own, from_there = (train(rows, None, HEADS, SETTINGS, start=given) for given in (None, start))
    losses_ = [log_loss(m.predict(rows_of(PANDAS, later.X * scale, later.y).X), later.p) for m in (own, from_there)]
    best = log_loss(later.p, later.p)
    assert losses_[1] - best < 0.5 * (losses_[0] - best)
    assert own.start is None


def test_a_start_that_misleads_is_given_up() -> None:
    """A client whose features say the opposite has the model that it would have alone."""
    _, start = begun()
    data = planted(PANDAS, 3_000, seed=1)
    X = data.X[:, ::-1].copy()
    misled, alone = (train(rows_of(PANDAS, X, data.y), None, HEADS, SETTINGS, start=given) for given in (start, None))
    assert misled.start is None
    assert [h["loss"] for h in misled.history] == [h["loss"] for h in alone.history]
    for name, weight in alone.network.weights().items():
        np.testing.assert_array_equal(misled.network.weights()[name], weight)


def test_a_start_that_does_not_fit_is_left_alone() -> None:
    _, start = begun()
    rows = planted(PANDAS, 2_000).rows
    other = SETTINGS.model_copy(update={"hidden": [9]})
    one, two = train(rows, None, HEADS, other, start=start), train(rows, None, HEADS, other)
    assert one.start is None
    for name, weight in two.network.weights().items():
        np.testing.assert_array_equal(one.network.weights()[name], weight)


def test_an_unfinished_training_goes_on_from_the_start_that_it_had(tmp_path: Any) -> None:
    _, start = begun()
    _, other = begun(seed=3)
    rows, path = planted(PANDAS, 2_000, seed=1).rows, tmp_path / "unfinished"

    class Failing(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rows, None, HEADS, SETTINGS, callbacks=[Failing()], checkpoint=Checkpoint(path), start=start)
    for wrong in (None, other):
        with pytest.raises(ModelError, match="belongs to another training"):
            train(rows, None, HEADS, SETTINGS, checkpoint=Checkpoint(path), start=wrong)
    resumed = train(rows, None, HEADS, SETTINGS, checkpoint=Checkpoint(path), start=start)
    whole = train(rows, None, HEADS, SETTINGS, start=start)
    assert resumed.start == whole.start
    for name, weight in whole.network.weights().items():
        np.testing.assert_array_equal(resumed.network.weights()[name], weight)
