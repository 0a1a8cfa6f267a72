"""The device-resident training loop: a whole epoch is one call, and no row leaves the device.

Once per chunk the normalised features are computed on the device (the normalisation has nothing to train) and labels,
masks and weights are packed beside each other. An epoch then draws a permutation, and for each batch gathers rows,
takes the gradient in independent shards that run side by side, and applies it: shapes are fixed, the remainder of a
batch waits for the next epoch's permutation, and Python is entered once an epoch. Cost: linear in rows; memory: the
features twice. On the CPU the same seed and data give the same weights, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline import config
from pipeline.backend import Array, backend_of
from pipeline.errors import ModelError
from pipeline.learning import models
from pipeline.learning.models import Architecture, Head, Network
from pipeline.learning.normalisation import fit_normalisation
from pipeline.learning.rows import Rows, Table, as_rows
from pipeline.learning.tensors import aligned, keras, permutation, shards, tensor, tf, to_array

SMALLEST_BATCH = 256  # a batch is at most a twentieth of the rows, but not smaller than this
BLOCK = 65_536  # rows at once where nothing is trained
VALIDATION_SHARE = 10  # without validation rows, one in this many of the training rows is taken


@dataclass
class Label:
    """What is known of one head's labels in training. ``rate``: weighted share of positive rows; ``mean``: weighted
    mean label, what an unlearned head predicts; ``log``: mean and deviation of log(value), and the largest value."""

    rows: int
    positives: int
    rate: float
    mean: float
    learned: bool
    note: str = ""
    log: tuple[float, float, float] = (0.0, 1.0, 0.0)
    smear: float = 1.0  # observed over expected in training, a value head's correction (Duan 1983)


@dataclass
class TrainedModel:
    """A network, what it was taught, and how that went. ``history``: one dict an epoch: loss, validation, seconds."""

    network: Network
    labels: list[Label]
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    samples_per_second: float = 0.0
    batch: int = 0
    _forward: Any = None

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.network.architecture.heads

    @property
    def notes(self) -> dict[str, str]:
        """Why a head has no model and predicts its base rate, by head."""
        return {head.name: label.note for head, label in zip(self.heads, self.labels, strict=True) if label.note}

    def predict(self, X: Array, index: Array | None = None, batch: int = BLOCK) -> Array:
        """Each head's probability or expected value, float32[m, H], on the device of X.

        Args:
            X: float32[n, F]. index: int64[m], the wanted rows in order; all where None.
            batch: rows at once; bounds memory, changes nothing else beyond rounding.
        Raises:
            ModelError: X has another number of features than the model.
        """
        architecture, backend = self.network.architecture, backend_of(X)
        if X.ndim != 2 or X.shape[1] != architecture.features:
            raise ModelError(f"the model takes {architecture.features} features, found an array of {X.shape}")
        n = len(X) if index is None else len(index)
        out = backend.empty_aligned((n, len(self.heads)), np.float32)
        if self._forward is None:
            self._forward = _forward(self.network, self._value_scale(), backend.on_gpu)
        for start, block in _blocks(X, index, batch):
            out[start : start + len(block)] = to_array(self._forward(tensor(block)), backend)
        for h, label in enumerate(self.labels):
            if not label.learned:
                out[:, h] = label.mean
            elif self.heads[h].kind == "value":
                out[:, h] = backend.xp.minimum(out[:, h] * label.smear, 2 * label.log[2])
        return out

    def describe(self) -> dict[str, Any]:
        """What :meth:`restore` needs beside the weights, as plain values."""
        return {
            "architecture": self.network.architecture.to_dict(),
            "labels": [asdict(label) for label in self.labels],
        }

    def training(self) -> dict[str, Any]:
        """How the training went, as plain values."""
        names = ("seconds", "samples_per_second", "batch", "best_epoch", "history")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restore(
        cls, described: dict[str, Any], weights: dict[str, np.ndarray], training: dict[str, Any]
    ) -> TrainedModel:
        """The model that gave :meth:`describe`, ``network.weights()`` and :meth:`training`.

        Raises:
            ModelError: they do not fit together.
        """
        try:
            architecture = Architecture.from_dict(described["architecture"])
            labels = [Label(**{**label, "log": tuple(label["log"])}) for label in described["labels"]]
        except (KeyError, TypeError) as error:
            raise ModelError(f"the model's description cannot be read ({error!r}); train again") from None
        if len(labels) != len(architecture.heads):
            raise ModelError(f"{len(labels)} labels for {len(architecture.heads)} heads; train again")
        network = models.build(architecture)
        network.set_weights(weights)
        return cls(network, labels, **training)

    def _value_scale(self) -> Any:
        return tf.constant([label.log[:2] for label in self.labels], dtype=tf.float32)


def train(
    rows: Table | Rows,
    valid: Table | Rows | None,
    heads: Sequence[Head],
    settings: config.Model,
    progress: Any = None,
) -> TrainedModel:
    """A network fitted to ``rows``, stopped when ``valid`` no longer improves, its best weights restored.

    Args:
        rows, valid: FeatureTables or :class:`Rows`. Where ``valid`` is None or has no labels, a tenth of ``rows``
            takes its place.
        heads: of the columns of y, in order. A head with fewer than ``settings.minimum_positives`` positive rows, or
            of one class only, is not learned: it predicts its base rate, and ``notes`` says so.
        settings: the network and how it is trained; ``hidden: []`` is logistic regression.
        progress: a Progress to advance by the rows of each epoch.
    Raises:
        ModelError: no rows at all, or another number of heads than columns of y.
    """
    rows, valid = as_rows(rows), as_rows(valid) if valid is not None else None
    if len(heads) != rows.y.shape[1]:
        raise ModelError(f"{len(heads)} heads for {rows.y.shape[1]} columns of y; give one head per column")
    if not len(rows):
        raise ModelError("there are no training rows: shorten the horizons or split.holdout, or add history")
    started = time.perf_counter()
    labels = [describe(rows, h, head, settings.minimum_positives) for h, head in enumerate(heads)]
    architecture = Architecture(rows.X.shape[1], tuple(heads), tuple(settings.hidden), settings.dropout)
    network = models.build(architecture, settings.seed)
    set_initial_bias(network, labels)
    fit_normalisation(network.normalise, rows)
    model = TrainedModel(network, labels)
    if any(label.learned for label in labels):
        if valid is None or not _usable(valid, labels):
            rows, valid = _carve(rows)
        Trainer(model, rows, valid, settings).run(progress)
        _smear(model, rows)
    model.seconds = time.perf_counter() - started
    return model


def describe(rows: Rows, h: int, head: Head, minimum_positives: int) -> Label:
    """What is known of head h's labels, and whether they are enough to learn from."""
    xp = backend_of(rows.X).xp
    known = rows.take("mask")[:, h] > 0
    y = xp.where(known, rows.take("y")[:, h], 0).astype(xp.float64)
    weight = xp.where(known, rows.take("weight"), 0).astype(xp.float64)
    total = float(weight.sum())
    positive = y > 0
    count, positives = int(known.sum()), int(positive.sum())
    rate = float((weight * positive).sum()) / total if total > 0 else 0.0
    label = Label(count, positives, rate, float((weight * y).sum()) / total if total > 0 else 0.0, learned=True)
    if positives < max(minimum_positives, 1):
        label.note = f"{positives} positive rows of {count} in training, {max(minimum_positives, 1)} needed"
    elif positives == count and head.kind == "binary":
        label.note = f"all {count} rows in training are positive"
    if head.kind == "value" and positives:
        log, share = xp.log(xp.where(positive, y, 1.0)), weight * positive
        mean = float((share * log).sum() / share.sum())
        deviation = float((share * (log - mean) ** 2).sum() / share.sum()) ** 0.5
        label.log = (mean, deviation if deviation > 1e-6 else 1.0, float(y.max()))
    if label.note:
        label.learned, label.note = False, f"no model for {head.name}, its base rate is used: {label.note}"
    return label


def set_initial_bias(network: Network, labels: Sequence[Label]) -> None:
    """Let an untrained network predict each head's base rate."""
    bias = models.initial_bias(network.architecture, [label.rate for label in labels])
    next(v for v in network.body.get_layer("heads").weights if "bias" in v.name).assign(bias)


class Trainer:
    """The state of one training: resident tensors, optimizer, and the compiled epoch and validation passes."""

    def __init__(self, model: TrainedModel, rows: Rows, valid: Rows, settings: config.Model) -> None:
        self.model, self.settings, self.n = model, settings, len(rows)
        self.on_gpu = backend_of(rows.X).on_gpu
        batch = min(settings.batch_size, max(SMALLEST_BATCH, self.n // 20))
        self.batch = model.batch = min(batch, self.n)
        self.base = np.array([_base_loss(head, label) for head, label in zip(model.heads, model.labels, strict=True)])
        self.z, self.packed, totals = resident(model, rows)
        self.vz, self.vpacked, self.vtotals = resident(model, valid)
        # Per row, so that the mean over a batch is unbiased whatever rows it drew; unlearned heads weigh nothing.
        learned = np.array([label.learned for label in model.labels])
        with np.errstate(divide="ignore"):
            self.loss_weights = np.where(learned & (totals > 0), self.n / (totals * self.base**BALANCE), 0.0)
        body = model.network.body
        self.optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
        self.optimizer.exclude_from_weight_decay(var_names=["bias"])
        self.optimizer.build(body.trainable_variables)
        self.epoch = self._compile_epoch()
        self.validate = self._compile_validation()

    def _compile_epoch(self) -> Any:
        body, architecture, batch = self.model.network.body, self.model.network.architecture, self.batch
        heads, features, parts = len(self.model.heads), architecture.features, shards(self.batch, self.on_gpu)
        part, steps, variables, optimizer = batch // parts, self.n // batch, body.trainable_variables, self.optimizer
        weights = tf.constant(self.loss_weights / batch, dtype=tf.float32)

        def gradient(z: Any, packed: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape() as tape:
                each = models.losses(body(z, training=True), packed[:, :heads], architecture)
                loss = tf.reduce_sum(each * packed[:, heads:] * weights)
            return loss, tape.gradient(loss, variables)

        if self.on_gpu:  # XLA fuses the step's many small kernels; on the CPU it was no faster (see bench/train.py)
            gradient = tf.function(gradient, jit_compile=True)

        @tf.function  # type: ignore[untyped-decorator]
        def epoch(z: Any, packed: Any, order: Any) -> Any:
            total = tf.constant(0.0)
            for step in tf.range(steps):
                results = []
                for k in range(parts):
                    first = step * batch + k * part
                    index = order[first : first + part]
                    zs = tf.ensure_shape(tf.gather(z, index), (part, features))
                    results.append(gradient(zs, tf.ensure_shape(tf.gather(packed, index), (part, 2 * heads))))
                # Added in a fixed order: the same seed gives the same weights however the shards were scheduled.
                gradients = [tf.add_n(list(same)) for same in zip(*(g for _, g in results), strict=True)]
                optimizer.apply(gradients, variables)
                total += tf.add_n([loss for loss, _ in results])
            return total / steps

        return epoch

    def _compile_validation(self) -> Any:
        body, architecture, heads = self.model.network.body, self.model.network.architecture, len(self.model.heads)
        parts = 1 if self.on_gpu else shards(8 * BLOCK, self.on_gpu)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def sums(z: Any, packed: Any) -> Any:
            results = []
            for zs, ps in zip(_cut(z, parts), _cut(packed, parts), strict=True):
                each = models.losses(body(zs, training=False), ps[:, :heads], architecture)
                results.append(tf.reduce_sum(tf.where(ps[:, heads:] > 0, each * ps[:, heads:], 0.0), axis=0))
            return tf.add_n(results)

        return sums

    def score(self) -> float:
        """The validation loss over the loss at the base rate, averaged over the learned heads; below 1 is better."""
        total = np.zeros(len(self.model.heads))
        for start in range(0, self.vz.shape[0], BLOCK):
            sums = self.validate(self.vz[start : start + BLOCK], self.vpacked[start : start + BLOCK])
            total += sums.numpy().astype(np.float64)
        used = (self.loss_weights > 0) & (self.vtotals > 0)
        return float(np.mean(total[used] / self.vtotals[used] / self.base[used]))

    def run(self, progress: Any = None) -> None:
        """Train until the score has not improved for ``patience`` epochs; leaves the best weights in the network."""
        model, settings = self.model, self.settings
        variables = model.network.body.variables
        best, best_weights = self.score(), [tf.identity(v) for v in variables]
        waited = 0
        for epoch in range(1, settings.epochs + 1):
            started = time.perf_counter()
            loss = float(self.epoch(self.z, self.packed, permutation(self.n, settings.seed, epoch, self.on_gpu)))
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


# A head's loss is divided by its base-rate loss to this power, so that a rare head is not drowned by a frequent one. On
# the demo log 0, 0.5 and 1 give the same hold-out quality within noise.
BALANCE = 0.5


def resident(model: TrainedModel, rows: Rows) -> tuple[Any, Any, np.ndarray]:
    """The chosen rows on the device: normalised features [m, F]; encoded labels beside mask x weight [m, 2H]; and the
    sum of the latter, float64[H]. Labels under a zero mask are never looked at, whatever they hold."""
    backend, network = backend_of(rows.X), model.network
    xp, heads = backend.xp, len(model.heads)
    z = backend.empty_aligned((len(rows), rows.X.shape[1]), np.float32)
    normalise = tf.function(network.normalise, reduce_retracing=True)
    for start, block in _blocks(rows.X, rows.index, BLOCK):
        z[start : start + len(block)] = to_array(normalise(tensor(block)), backend)
    known = rows.take("mask") > 0
    y = aligned(xp.where(known, rows.take("y"), 0))
    encoded = models.encode(tensor(y), network.architecture, model._value_scale())
    packed = backend.empty_aligned((len(rows), 2 * heads), np.float32)
    packed[:, :heads] = to_array(encoded, backend)
    packed[:, heads:] = xp.where(known, rows.take("mask") * rows.take("weight")[:, None], 0)
    totals = backend.to_host(packed[:, heads:].astype(xp.float64).sum(axis=0))
    return tensor(z), tensor(packed), totals


def _blocks(X: Array, index: Array | None, batch: int) -> Any:
    """(start, block) of the wanted rows, each block aligned."""
    n = len(X) if index is None else len(index)
    for start in range(0, n, batch):
        stop = min(start + batch, n)
        yield start, aligned(X[start:stop] if index is None else X[index[start:stop]])


def _cut(x: Any, parts: int) -> list[Any]:
    n = tf.shape(x)[0]
    return [x[k * n // parts : (k + 1) * n // parts] for k in range(parts)]


def _forward(network: Network, value_scale: Any, on_gpu: bool) -> Any:
    parts, architecture = shards(8 * BLOCK, on_gpu), network.architecture

    @tf.function(input_signature=[tf.TensorSpec((None, architecture.features), tf.float32)])  # type: ignore[untyped-decorator]
    def forward(x: Any) -> Any:
        raw = [network.model(cut, training=False) for cut in _cut(x, parts)]
        return tf.concat([models.expectations(r, architecture, value_scale) for r in raw], axis=0)

    return forward


def _base_loss(head: Head, label: Label) -> float:
    """The loss of predicting the base rate (and, for values, the log-normal of all positive rows), in nats."""
    p = min(max(label.rate, 1e-9), 1 - 1e-9)
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return float(entropy + (0.5 * p if head.kind == "value" else 0.0))


def _usable(valid: Rows, labels: list[Label]) -> bool:
    known = backend_of(valid.X).to_host(valid.take("mask").sum(axis=0)) if len(valid) else np.zeros(len(labels))
    return any(label.learned and k > 0 for label, k in zip(labels, known, strict=True))


def _carve(rows: Rows) -> tuple[Rows, Rows]:
    """Every tenth row for validation, the others for training; both the same rows where there are too few."""
    xp, n = backend_of(rows.X).xp, len(rows)
    if n < 2 * VALIDATION_SHARE:
        return rows, rows
    index = xp.arange(n) if rows.index is None else rows.index
    tenth = xp.arange(n) % VALIDATION_SHARE == VALIDATION_SHARE - 1
    split = [Rows(rows.X, rows.y, rows.mask, rows.weight, index[chosen]) for chosen in (~tenth, tenth)]
    return split[0], split[1]


def _smear(model: TrainedModel, rows: Rows) -> None:
    """Make each value head's expectations add up to the training rows' total."""
    wanted = [h for h, head in enumerate(model.heads) if head.kind == "value" and model.labels[h].learned]
    if not wanted:
        return
    xp = backend_of(rows.X).xp
    p = model.predict(rows.X, rows.index)
    known = rows.take("mask") > 0
    for h in wanted:
        weight = xp.where(known[:, h], rows.take("weight"), 0).astype(xp.float64)
        expected = float((weight * p[:, h]).sum())
        observed = float((weight * xp.where(known[:, h], rows.take("y")[:, h], 0)).sum())
        if expected > 0:
            model.labels[h].smear = min(max(observed / expected, 0.1), 10.0)
