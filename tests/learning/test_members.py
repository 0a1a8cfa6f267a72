"""Networks side by side: each becomes what it would become alone, and their mean is what predicts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import ModelError
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.chunks import as_chunks, survey
from pipeline.learning.metrics import spearman
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Architecture, Head, Network, build, history_of
from pipeline.learning.networks import KINDS, seed_of
from pipeline.learning.rows import Rows
from pipeline.learning.tensors import keras
from pipeline.learning.train import set_initial_bias, train
from pipeline.learning.trainer import Trainer
from pipeline.options import Model
from tests.learning.data import planted
from tests.learning.histories import SPEC, histories

HEADS = (Head("a"), Head("b"))
SETTINGS = Model(hidden=[16, 8], batch_size=512, epochs=3, patience=3, members=2)


def several(kind: str = "dense", members: int = 2, **changes: Any) -> Architecture:
    base = {"features": 6, "heads": HEADS, "hidden": (16, 8), "kind": kind, "units": 8, "members": members}
    return Architecture(**{**base, **changes}, history=history_of(kind, SPEC))


def alone(network: Network, member: int) -> Network:
    """A network of its own with the weights of one member."""
    made, prefix = build(replace(network.architecture, members=1), 77), f"member{member}/"
    weights = network.weights()
    made.set_weights({name: weights[prefix + name if prefix + name in weights else name] for name in made.weights()})
    return made


@pytest.mark.parametrize("kind", ["dense", "recurrent"])
def test_each_becomes_what_it_would_become_alone(kind: str) -> None:
    """Two epochs of the same rows in the same order, together and one by one."""
    data = planted(PANDAS, 3_000)
    rows = Rows(data.rows.X, data.rows.y, data.rows.mask, data.rows.weight, sequences=histories(PANDAS, 3_000, 0))
    together = build(several(kind), 5)
    single = [build(several(kind, 1), seed_of(5, m)) for m in range(2)]
    losses = []
    for network in (together, *single):
        found = survey(as_chunks(rows), HEADS, 1)
        set_initial_bias(network, found.labels)
        trainer = Trainer(TrainedModel(network, found.labels), as_chunks(rows), found, rows, SETTINGS)
        with closing(trainer.feed(1, 2)) as feed:
            losses.append([trainer.learn(epoch, feed) for epoch in (1, 2)])
    for m, network in enumerate(single):
        assert not np.array_equal(network.weights()["hidden0/kernel"], single[m - 1].weights()["hidden0/kernel"])
        for name, weight in network.weights().items():
            np.testing.assert_allclose(alone(together, m).weights()[name], weight, rtol=2e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(losses[0], np.mean(losses[1:], axis=0), rtol=1e-5)


def test_the_mean_of_their_logits_predicts(backend: Backend) -> None:
    data, valid = planted(backend, 4_000), planted(backend, 1_000, seed=1)
    model = train(data.rows, valid.rows, HEADS, SETTINGS)
    p = [TrainedModel(alone(model.network, m), model.labels).predict(data.rows.X) for m in range(2)]
    p = [np.asarray(backend.to_host(one), dtype=np.float64) for one in p]
    logits = np.mean([np.log(one / (1 - one)) for one in p], axis=0)
    found = backend.to_host(model.predict(data.rows.X))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-4)
    assert np.abs(p[0] - p[1]).max() > 1e-3


def test_what_is_validated_is_their_mean() -> None:
    """The validation loss of the history, from the restored model's predictions alone."""
    data, valid = planted(PANDAS, 4_000), planted(PANDAS, 1_000, seed=1)
    model = train(data.rows, valid.rows, HEADS, SETTINGS)
    p = model.predict(valid.rows.X).astype(np.float64)
    loss = -np.mean(valid.y * np.log(p) + (1 - valid.y) * np.log(1 - p), axis=0)
    rate = data.y.mean(axis=0)
    base = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert model.history[model.best_epoch - 1]["validation"] == pytest.approx(float(np.mean(loss / base)), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_is_what_there_was_before(kind: str) -> None:
    """The names and the start of the weights of a network without members, which are those of their first."""
    one, two = (build(several(kind, members), 4) for members in (1, 2))
    assert not any(name.startswith("member") for name in one.weights())
    for name, weight in alone(two, 0).weights().items():
        np.testing.assert_array_equal(one.weights()[name], weight, err_msg=name)
    assert len({seed_of(s, m) for s in range(20) for m in range(20)}) > 395


def test_a_saved_one_is_the_same_again() -> None:
    """Also one saved before there were members; another number of them does not fit."""
    data = planted(PANDAS, 2_000)
    model = train(data.rows, data.rows, HEADS, SETTINGS)
    again = TrainedModel.restore(model.describe(), model.network.weights(), model.training())
    np.testing.assert_array_equal(again.predict(data.rows.X), model.predict(data.rows.X))
    old = several(members=1).to_dict()
    del old["members"]
    assert Architecture.from_dict(old) == several(members=1)
    for wrong in (0, -1, "many"):
        with pytest.raises(ModelError, match="train again"):
            Architecture.from_dict({**old, "members": wrong})
    with pytest.raises(ModelError, match="do not fit"):
        build(several(members=3)).set_weights(model.network.weights())


def test_a_training_that_was_stopped_ends_in_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    class Stopping(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    data, path = planted(PANDAS, 3_000).rows, tmp_path / "unfinished"
    settings = SETTINGS.model_copy(update={"epochs": 4, "dropout": 0.2})
    with pytest.raises(KeyboardInterrupt):
        train(data, None, HEADS, settings, callbacks=[Stopping()], checkpoint=Checkpoint(path))
    assert path.exists()
    resumed, whole = train(data, None, HEADS, settings, checkpoint=Checkpoint(path)), train(data, None, HEADS, settings)
    assert len(resumed.history) == 4
    for name, weight in whole.network.weights().items():
        np.testing.assert_array_equal(resumed.network.weights()[name], weight, err_msg=name)


def test_logistic_regression_has_none() -> None:
    """All of them would be the same."""
    data = planted(PANDAS, 1_000)
    model = train(data.rows, data.rows, HEADS, SETTINGS.model_copy(update={"kind": "logistic"}))
    assert model.network.architecture.members == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_several_rank_a_rare_outcome_better_than_one(seed: int) -> None:
    """In the order of the true probability of rows that training has not seen."""
    data, fresh, valid = (planted(PANDAS, n, 30, -3.5, seed) for n, seed in ((10_000, 0), (10_000, 1), (3_000, 2)))
    alike = []
    for members in (1, 6):
        settings = Model(batch_size=512, epochs=6, seed=seed, members=members)
        p = train(data.rows, valid.rows, HEADS, settings).predict(fresh.rows.X)[:, 0]
        alike.append(spearman(p, fresh.p[:, 0]) or 0.0)
    assert alike[1] > alike[0] + 0.001
