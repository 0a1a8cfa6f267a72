from __future__ import annotations

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.learning.averages import SNAPSHOTS, Averages
from pipeline.learning.models import Head
from pipeline.learning.tensors import keras, tf
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import planted


@pytest.mark.parametrize("steps", [1, 5, 20, 200])
def test_the_mean_is_that_of_the_latest_half_epoch(steps: int) -> None:
    """Beside a plain loop over the snapshots."""
    path = np.random.default_rng(0).standard_normal((3 * steps, 2)).astype(np.float32)
    variable = keras.Variable(np.zeros(2, np.float32))
    averages = Averages([variable], steps)
    follow = tf.function(averages.follow)
    mean, taken = np.zeros(2), 0
    for step, value in enumerate(path, 1):
        variable.assign(value)
        follow(tf.constant(step, tf.int64))
        if step % max(steps // SNAPSHOTS, 1) == 0:
            taken += 1
            half = max(steps // max(steps // SNAPSHOTS, 1) / 2, 1)
            mean += (value - mean) * max(1 / taken, 1 / half)
    assert taken == pytest.approx(3 * min(steps, SNAPSHOTS), rel=0.1)
    with averages.shown():
        np.testing.assert_allclose(variable.numpy(), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(variable.numpy(), path[-1])


def test_without_a_step_there_is_nothing_to_show() -> None:
    variable = keras.Variable(np.ones(2, np.float32))
    averages = Averages([variable], 10)
    variable.assign(np.zeros(2, np.float32))
    with averages.shown():
        np.testing.assert_array_equal(variable.numpy(), np.zeros(2))


def test_levels_are_those_of_the_rows(backend: Backend) -> None:
    """The rate of a rare outcome among the training rows is predicted within 3%, whatever the last batch was."""
    data = planted(backend, 40_000, rate=-4.0)
    settings = Model(hidden=[16], batch_size=512, epochs=4, learning_rate=0.01)
    for seed in (1, 2, 3):
        model = train(data.rows, data.rows, (Head("a"), Head("b")), settings.model_copy(update={"seed": seed}))
        p, y = (backend.to_host(a) for a in (model.predict(data.rows.X), data.rows.y))
        assert p[:, 0].sum() / y[:, 0].sum() == pytest.approx(1, abs=0.03)
