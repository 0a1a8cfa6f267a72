"""The device-resident training loop: a whole epoch is one call, and no row leaves the device.

An epoch draws a permutation, and for each batch gathers rows, takes the gradient in independent shards that run side by
side, and applies it: shapes are fixed, the remainder of a batch waits for the next epoch's permutation, and Python is
entered once an epoch. On the CPU the same seed and data give the same weights, bit for bit.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipeline import config
from pipeline.backend import backend_of
from pipeline.learning import losses
from pipeline.learning.labels import base_loss
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import BLOCK
from pipeline.learning.resident import cut, resident
from pipeline.learning.rows import Rows
from pipeline.learning.tensors import keras, permutation, shards, tf

SMALLEST_BATCH = 256  # a batch is at most a twentieth of the rows, but not smaller than this
# A head's loss is divided by its base-rate loss to this power, so that a rare head is not drowned by a frequent one. On
# the demo log 0, 0.5 and 1 give the same hold-out quality within noise.
BALANCE = 0.5


class Trainer:
    """The state of one training: resident tensors, optimizer, and the compiled epoch and validation passes."""

    def __init__(self, model: TrainedModel, rows: Rows, valid: Rows, settings: config.Model) -> None:
        self.model, self.settings, self.n = model, settings, len(rows)
        self.on_gpu = backend_of(rows.X).on_gpu
        batch = min(settings.batch_size, max(SMALLEST_BATCH, self.n // 20))
        self.batch = model.batch = min(batch, self.n)
        pairs = list(zip(model.heads, model.labels, strict=True))
        self.base = np.array([base_loss(head, label.rate) for head, label in pairs])
        taught = np.array([base_loss(head, label.taught) for head, label in pairs])
        weights = [label.positive_weight for label in model.labels]
        self.rows = resident(model.network, rows, model.value_scale, weights)
        self.valid = resident(model.network, valid, model.value_scale)
        # Per row, so that the mean over a batch is unbiased whatever rows it drew; unlearned heads weigh nothing.
        learned, totals = np.array([label.learned for label in model.labels]), self.rows.totals
        with np.errstate(divide="ignore"):
            self.loss_weights = np.where(learned & (totals > 0), self.n / (totals * taught**BALANCE), 0.0)
        body = model.network.body
        self.optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
        self.optimizer.exclude_from_weight_decay(var_names=["bias"])
        self.optimizer.build(body.trainable_variables)
        self.epoch = self._compile_epoch()
        self.validate = self._compile_validation()

    def _compile_epoch(self) -> Any:
        body, architecture, batch = self.model.network.body, self.model.network.architecture, self.batch
        heads, parts = len(self.model.heads), shards(self.batch, self.on_gpu)
        part, steps, variables, optimizer = batch // parts, self.n // batch, body.trainable_variables, self.optimizer
        weights = tf.constant(self.loss_weights / batch, dtype=tf.float32)
        gamma = max(label.gamma for label in self.model.labels)

        def gradient(inputs: dict[str, Any], packed: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape() as tape:
                each = losses.losses(body(inputs, training=True), packed[:, :heads], architecture, gamma)
                loss = tf.reduce_sum(each * packed[:, heads:] * weights)
            return loss, tape.gradient(loss, variables)

        if self.on_gpu:  # XLA fuses the step's many small kernels; on the CPU it was no faster (see bench/train.py)
            gradient = tf.function(gradient, jit_compile=True)

        def gather(x: Any, index: Any) -> Any:
            return tf.ensure_shape(tf.gather(x, index), (part, x.shape[1]))

        @tf.function  # type: ignore[untyped-decorator]
        def epoch(rows: tuple[Any, ...], order: Any) -> Any:
            features, packed, sequences, places = rows
            total = tf.constant(0.0)
            for step in tf.range(steps):
                results = []
                for k in range(parts):
                    first = step * batch + k * part
                    index = order[first : first + part]
                    inputs = {"features": gather(features, index)}
                    if sequences:
                        place = index if places is None else tf.gather(places, index)
                        inputs |= {name: gather(x, place) for name, x in sequences.items()}
                    results.append(gradient(inputs, gather(packed, index)))
                # Added in a fixed order: the same seed gives the same weights however the shards were scheduled.
                gradients = [tf.add_n(list(same)) for same in zip(*(g for _, g in results), strict=True)]
                optimizer.apply(gradients, variables)
                total += tf.add_n([loss for loss, _ in results])
            return total / steps

        return epoch

    def _compile_validation(self) -> Any:
        body, architecture, heads = self.model.network.body, self.model.network.architecture, len(self.model.heads)
        correct = self.model.correction
        parts = 1 if self.on_gpu else shards(8 * BLOCK, self.on_gpu)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def sums(block: dict[str, Any]) -> Any:
            results = []
            for part in cut(block, parts):
                packed = part.pop("packed")
                each = losses.losses(correct(body(part, training=False)), packed[:, :heads], architecture)
                results.append(tf.reduce_sum(tf.where(packed[:, heads:] > 0, each * packed[:, heads:], 0.0), axis=0))
            return tf.add_n(results)

        return sums

    def learn(self, epoch: int) -> float:
        """One epoch over the rows; the mean loss of its batches."""
        rows = self.rows
        order = permutation(self.n, self.settings.seed, epoch, self.on_gpu)
        return float(self.epoch((rows.features, rows.packed, rows.sequences, rows.places), order))

    def score(self) -> float:
        """The validation loss over the loss at the base rate, averaged over the learned heads; below 1 is better."""
        total = np.zeros(len(self.model.heads))
        rows = self.model.network.block
        for start in range(0, len(self.valid), rows):
            total += self.validate(self.valid.block(start, rows)).numpy().astype(np.float64)
        used = (self.loss_weights > 0) & (self.valid.totals > 0)
        return float(np.mean(total[used] / self.valid.totals[used] / self.base[used]))

    def run(self, progress: Any = None) -> None:
        """Train until the score has not improved for ``patience`` epochs; leaves the best weights in the network."""
        model, settings = self.model, self.settings
        variables = model.network.body.variables
        best, best_weights = self.score(), [tf.identity(v) for v in variables]
        waited = 0
        for epoch in range(1, settings.epochs + 1):
            started = time.perf_counter()
            loss = self.learn(epoch)
            seconds = time.perf_counter() - started
            score = self.score()
            model.history.append({"loss": loss, "validation": score, "seconds": seconds})
            if progress is not None:
                progress.advance(self.n, f"epoch {epoch}, validation {score:.4f}")
            if not np.isfinite(loss):
                break
            if score < best:
                best, best_weights, model.best_epoch, waited = score, [tf.identity(v) for v in variables], epoch, 0
            else:
                waited += 1
                if waited > settings.patience:
                    break
        for variable, weight in zip(variables, best_weights, strict=True):
            variable.assign(weight)
        steady = [h["seconds"] for h in model.history[1:]] or [h["seconds"] for h in model.history]
        model.samples_per_second = self.n // self.batch * self.batch / float(np.median(steady)) if steady else 0.0
