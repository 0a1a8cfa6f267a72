"""What Keras users know from compile and fit, in our loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.backend import PANDAS
from pipeline.learning.models import Head
from pipeline.learning.tensors import keras, tf
from pipeline.learning.train import train
from pipeline.learning.trainer import Compile
from pipeline.options import Model
from tests.learning.data import planted, rows_of

# Of Keras, on its way to NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

HEADS = (Head("a"), Head("b"))
SETTINGS = Model(hidden=[8], batch_size=256, epochs=4, patience=10, minimum_positives=5)


class Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append("begin")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(f"epoch {epoch}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.logs.append(dict(logs))

    def on_train_end(self, logs: Any = None) -> None:
        self.calls.append("end")


def test_callbacks_see_each_epoch_and_its_logs() -> None:
    recorder, data = Recorder(), planted(PANDAS, 3_000)
    model = train(data.rows, planted(PANDAS, 500, seed=1).rows, HEADS, SETTINGS, callbacks=[recorder])
    assert recorder.calls == ["begin", "epoch 0", "epoch 1", "epoch 2", "epoch 3", "end"]
    assert [log["val_loss"] for log in recorder.logs] == [h["validation"] for h in model.history]
    assert [log["loss"] for log in recorder.logs] == [h["loss"] for h in model.history]
    assert all(log["samples_per_second"] > 0 for log in recorder.logs)
    assert recorder.params["epochs"] == 4


def test_callbacks_change_nothing() -> None:
    data = planted(PANDAS, 2_000)
    one, other = (train(data.rows, None, HEADS, SETTINGS, callbacks=c).network.weights() for c in ([], [Recorder()]))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_early_stopping_and_the_learning_rate_are_theirs() -> None:
    data = planted(PANDAS, 2_000)
    stop = keras.callbacks.EarlyStopping(monitor="loss", patience=0, min_delta=1e9)
    assert len(train(data.rows, None, HEADS, SETTINGS, callbacks=[stop]).history) == 2
    frozen = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.0 if epoch else rate)
    settings = SETTINGS.model_copy(update={"weight_decay": 0.0})
    losses = [h["validation"] for h in train(data.rows, None, HEADS, settings, callbacks=[frozen]).history]
    moves = np.abs(np.diff(losses))  # of the mean of the weights, which comes to where they stay
    assert moves[0] > 3 * moves[1] > 9 * moves[2] > 0


def test_model_checkpoint_writes_weights_that_load(tmp_path: Path) -> None:
    data = planted(PANDAS, 2_000)
    path = tmp_path / "best.weights.h5"
    keep = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True, save_weights_only=True)
    model = train(data.rows, None, HEADS, SETTINGS, callbacks=[keep])
    wanted = [v.numpy() for v in model.network.body.weights]
    model.network.body.load_weights(path)
    for weight, variable in zip(wanted, model.network.body.weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), weight)


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    data = planted(PANDAS, 2_000)
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    train(data.rows, None, HEADS, SETTINGS, callbacks=[board])
    found = set()
    for path in tmp_path.rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found |= {value.tag for value in event.summary.value}
    assert {"epoch_loss", "epoch_samples_per_second"} <= found


def test_metrics_are_measured_on_the_validation_rows() -> None:
    data, valid = planted(PANDAS, 3_000), planted(PANDAS, 2_000, seed=1)
    mask = (np.random.default_rng(1).random((2_000, 2)) < 0.7).astype(np.float32)
    weight = np.random.default_rng(2).integers(1, 4, 2_000).astype(np.float32)
    metrics = [keras.metrics.AUC(num_thresholds=2_000, name="roc"), keras.metrics.AUC(2_000, curve="PR", name="pr")]
    settings = SETTINGS.model_copy(update={"epochs": 1})
    model = train(
        data.rows, rows_of(PANDAS, valid.X, valid.y, mask, weight), HEADS, settings, compiled=Compile(metrics=metrics)
    )
    p = model.predict(valid.rows.X)
    for h, name in enumerate("ab"):
        y, score, w = (a[mask[:, h] > 0] for a in (valid.y[:, h], p[:, h], weight))
        assert model.history[0][f"val_{name}_roc"] == pytest.approx(roc_auc_score(y, score, sample_weight=w), abs=2e-3)
        precision = average_precision_score(y, score, sample_weight=w)
        assert model.history[0][f"val_{name}_pr"] == pytest.approx(precision, abs=5e-3)


def test_an_optimizer_of_ones_own_takes_the_steps() -> None:
    """One step of plain gradient descent on all rows is the gradient of the log loss at the base rate."""
    data = planted(PANDAS, 250)
    settings = Model(hidden=[], batch_size=250, epochs=1, minimum_positives=1)
    model = train(data.rows, data.rows, HEADS, settings, compiled=Compile(optimizer=keras.optimizers.SGD(0.1)))
    network = model.network
    z = network.normalise(data.X).numpy().astype(np.float64)
    rate = data.y.mean(axis=0)
    base = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    gradient = z.T @ (rate - data.y) / 250 / np.sqrt(base)
    np.testing.assert_allclose(network.weights()["heads/kernel"], -0.1 * gradient, atol=1e-6)


def test_a_loss_of_ones_own_is_what_is_minimised() -> None:
    """A squared error of the logits has its least where they are the labels' mean, whatever log loss says."""
    data = planted(PANDAS, 2_000)
    settings = Model(hidden=[], batch_size=500, epochs=60, patience=99, minimum_positives=1, learning_rate=0.05)
    recorder = Recorder()
    compiled = Compile(loss=keras.losses.MeanSquaredError())
    train(rows_of(PANDAS, data.X * 0, data.y), data.rows, HEADS, settings, compiled=compiled, callbacks=[recorder])
    rate = data.y.mean(axis=0).astype(np.float64)
    base = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    assert recorder.logs[-1]["loss"] == pytest.approx((rate * (1 - rate) / np.sqrt(base)).sum(), rel=0.02)
