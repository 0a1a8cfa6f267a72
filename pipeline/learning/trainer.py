"""The device-resident training loop: an epoch over a chunk is one call, and no row leaves the device.

An epoch draws a permutation, and for each batch gathers rows, takes the gradient in independent shards that run side by
side, and applies it: shapes are fixed, the remainder of a batch waits for the next epoch's permutation, and Python is
entered once a chunk. Where there are several chunks, an epoch goes through all of them in a new order, and the next is
prepared while one trains. On the CPU the same seed and data give the same weights, bit for bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from pipeline import options
from pipeline.backend import backend_of
from pipeline.errors import ModelError
from pipeline.learning.agreement import Agreement
from pipeline.learning.averages import Averages
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.chunks import Chunks, Survey, ahead
from pipeline.learning.compiled import epoch_of, losses_of, validation_of
from pipeline.learning.group import ALONE, Group
from pipeline.learning.labels import base_loss
from pipeline.learning.luck import Luck
from pipeline.learning.model import TrainedModel
from pipeline.learning.resident import Resident, resident
from pipeline.learning.rows import Rows, checksum
from pipeline.learning.tensors import keras, permutation, tf

# A head's loss is divided by its base-rate loss to this power, so that a rare head is not drowned by a frequent one. On
# the demo log 0, 0.5 and 1 give the same hold-out quality within noise.
BALANCE = 0.5

# Weights that say nothing of an input, and so cannot learn rows by heart: base rates, and a normalisation's scale.
UNDECAYED = ("bias", "gamma", "beta")


Feed = Generator[tuple[Resident, Iterator[Any]], None, None]  # see Trainer.feed


@dataclass
class Compile:
    """What Keras users give ``compile``; each of them may be left out.

    ``optimizer``: a ``keras.optimizers.Optimizer``, not built yet, or a name; AdamW with the settings' rate and decay.
    ``loss``: a ``keras.losses.Loss`` of logits for the binary heads; log loss. Training stops by log loss all the same.
    ``metrics``: ``keras.metrics.Metric`` of probabilities, measured on the validation rows of each binary head.
    """

    optimizer: Any = None
    loss: Any = None
    metrics: Sequence[Any] = ()


class Trainer:
    """The state of one training: resident tensors, optimizer, and the compiled epoch and validation passes.

    Args:
        chunks, found: the training rows, and what is known of them.
        group: who else trains the same network, each with rows of its own; see ``agreement.py``.
    """

    def __init__(
        self,
        model: TrainedModel,
        chunks: Chunks,
        found: Survey,
        valid: Rows,
        settings: options.Model,
        compiled: Compile | None = None,
        xla: bool | None = None,
        group: Group = ALONE,
    ) -> None:
        self.model, self.chunks, self.settings, compiled = model, chunks, settings, compiled or Compile()
        self.group = group
        self.on_gpu = backend_of(valid.X).on_gpu
        self.luck = self._luck(found, compiled)
        self.only = self.prepare(0) if chunks.count == 1 else None
        self.agreed = agreed = Agreement.on(found.members, settings.batch_size)
        self.sizes, self.steps, self.share = agreed.sizes, agreed.steps, agreed.shares[group.rank]
        self.n, self.passes = sum(self.sizes), settings.passes if chunks.count > 1 else 1
        self.batch = model.batch = agreed.batch
        pairs = list(zip(model.heads, model.labels, strict=True))
        self.base = np.array([base_loss(head, label.rate) for head, label in pairs])
        taught = np.array([base_loss(head, label.taught) for head, label in pairs])
        more = np.array([1 + label.rate * (label.positive_weight - 1) for label in model.labels])
        self.valid = resident(model.network, valid, model.value_scale)
        told = bool(model.network.inputs) or self.luck is not None
        self.contents = [*found.contents, *group.exchange(checksum(valid))] if told else []
        self.valid.totals = group.sum(self.valid.totals)
        self.validated = int(group.sum(np.array(len(valid))))
        # Per row, so that the mean over a batch is unbiased whatever rows it drew; unlearned heads weigh nothing.
        learned = np.array([label.learned for label in model.labels])
        with np.errstate(divide="ignore"):
            per_row = found.rows / (found.weight * more * taught**BALANCE)
        self.loss_weights = np.where(learned & (found.weight > 0), per_row, 0.0)
        self.optimizer = self._optimizer(compiled.optimizer)
        self.metrics = [
            (f"val_{head.name}_{metric.name}", h, metric.__class__.from_config(metric.get_config()))
            for metric in compiled.metrics
            for h, head in enumerate(model.heads)
            if learned[h] and head.kind == "binary"
        ]
        gamma = max(label.gamma for label in model.labels)
        losses = losses_of(model.network.architecture, gamma, compiled.loss)
        # XLA fuses the many small kernels of a step on a GPU; on the CPU it is slower (see bench/train.py).
        xla = self.on_gpu if xla is None else xla
        self.averages = Averages(model.network.body.trainable_variables, sum(self.steps))
        self.epoch = epoch_of(
            model.network,
            self.batch,
            self.loss_weights,
            self.optimizer,
            losses,
            self.on_gpu,
            xla,
            self.averages,
            group,
            self.share,
            self.luck,
        )
        self.validate = validation_of(model.network, model.correction, self.on_gpu)
        self.loss_name = None if compiled.loss is None else compiled.loss.name
        self._vary()

    def _optimizer(self, wanted: Any) -> Any:
        settings, body = self.settings, self.model.network.body
        if wanted is None:
            optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
            optimizer.exclude_from_weight_decay(var_names=list(UNDECAYED))
        else:
            optimizer = keras.optimizers.get(wanted)
        optimizer.build(body.trainable_variables)
        return optimizer

    def _luck(self, found: Survey, compiled: Compile) -> Luck | None:
        """None where the settings want none, campaigns are not known, or the loss is not log loss."""
        labels = self.model.labels
        other = compiled.loss is not None or any(label.gamma for label in labels)
        if other or not (self.settings.campaign_levels and found.campaigns):
            return None
        rates, learned = ([getattr(label, name) for label in labels] for name in ("taught", "learned"))
        return Luck(self.model.network.architecture, rates, learned)

    def _vary(self) -> None:
        """Let every member drop units of its own: else row k of all members' shares would lose the same."""
        for variable in self.model.network.body.variables:
            if self.group.rank and "seed" in variable.name:
                variable.assign(variable + np.array([self.group.rank, 0], dtype=variable.dtype))

    # -- rows -----------------------------------------------------------------------------------------------------

    def prepare(self, i: int) -> Resident:
        """Chunk i on the device."""
        weights = [label.positive_weight for label in self.model.labels]
        campaigns = self.luck is not None
        return resident(self.model.network, self.chunks.make(i), self.model.value_scale, weights, campaigns)

    def order(self, epoch: int) -> list[int]:
        """In which order the chunks are gone through; the same for the same seed and epoch."""
        if self.chunks.count == 1:
            return [0]
        return [int(i) for i in np.random.default_rng([self.settings.seed, epoch, 1]).permutation(self.chunks.count)]

    def feed(self, first: int, last: int) -> Feed:
        """Every chunk of the epochs first..last in their order, with an order of its rows for each pass over it; the
        next of both are made while these are used."""
        chunks = [(epoch, i) for epoch in range(first, last + 1) for i in self.order(epoch)]
        only = self.only
        parts = ahead(self.prepare, (i for _, i in chunks)) if only is None else (only for _ in chunks)
        orders = ahead(self.permuted, ((e, i, k) for e, i in chunks for k in range(self.passes)))
        with closing(parts), closing(orders):
            for _ in chunks:
                yield next(parts), islice(orders, self.passes)

    def permuted(self, turn: tuple[int, int, int]) -> Any:
        """The order of chunk i's rows in pass k of an epoch, from (epoch, i, k)."""
        epoch, i, k = turn
        number = ((epoch - 1) * self.chunks.count + i) * self.passes + k + 1
        return permutation(self.agreed.members[self.group.rank][i], self.settings.seed, number, self.on_gpu)

    # -- one epoch ------------------------------------------------------------------------------------------------

    def learn(self, epoch: int, feed: Feed, progress: Any = None) -> float:
        """One epoch over all chunks; the mean loss of its batches."""
        total, steps = 0.0, 0
        for i in self.order(epoch):
            part, orders = next(feed)
            for order in orders:
                total += float(self.epoch(part.tensors(), order[: self.steps[i] * self.share]))
                steps += self.steps[i]
            if progress is not None and len(self.sizes) > 1:
                progress.advance(self.sizes[i] * self.passes, f"epoch {epoch}, chunk of {self.sizes[i]:,} rows")
            del part
        if self.luck is not None:
            self.luck.update(self.passes, self.group)
        return total / steps

    def score(self) -> float:
        """The validation loss over the loss at the base rate, averaged over the learned heads; below 1 is better."""
        total = np.zeros(len(self.model.heads))
        rows = self.model.network.block
        for start in range(0, len(self.valid), rows):
            total += self.validate(self.valid.block(start, rows)).numpy().astype(np.float64)
        total = self.group.sum(total)
        used = (self.loss_weights > 0) & (self.valid.totals > 0)
        return float(np.mean(total[used] / self.valid.totals[used] / self.base[used]))

    def measured(self) -> dict[str, float]:
        """The metrics of ``compiled`` on the validation rows, by name."""
        heads, architecture, rows = len(self.model.heads), self.model.network.architecture, self.model.network.block
        for start in range(0, len(self.valid) if self.metrics else 0, rows):
            block = self.valid.block(start, rows)
            packed = block.pop("packed")
            raw = self.model.correction(self.model.network.output(block))
            for _, h, metric in self.metrics:
                p = tf.sigmoid(raw[:, architecture.columns(h)][:, 0])
                metric.update_state(packed[:, h], p, sample_weight=packed[:, heads + h])
        found = {name: float(metric.result()) for name, _, metric in self.metrics}
        for _, _, metric in self.metrics:
            metric.reset_state()
        return found

    # -- all of them ----------------------------------------------------------------------------------------------

    def run(self, progress: Any = None, callbacks: Sequence[Any] = (), checkpoint: Checkpoint | None = None) -> float:
        """Train until the score has not improved for ``patience`` epochs; leaves the best weights in the network.

        Args:
            callbacks: Keras callbacks; see :func:`pipeline.learning.train.train`.
        Returns: the score of the best weights.
        """
        model, body, last = self.model, self.model.network.body, -(-self.settings.epochs // self.passes)
        state = self._resume(checkpoint) if checkpoint else None
        if state is None:
            state = Course(self.score(), [tf.identity(v) for v in body.variables])
        elif progress is not None:
            progress.skip(state.epoch * self.n * self.passes)
        listeners = self._listeners(callbacks, last)
        listeners.on_train_begin()
        feed = self.feed(state.epoch + 1, last)
        while state.epoch < last and not state.over(self.settings.patience) and not body.stop_training:
            state.epoch += 1
            listeners.on_epoch_begin(state.epoch - 1)
            loss, seconds = self._learn(state.epoch, feed, progress)
            with self.averages.shown():
                logs = self._look(state, loss, seconds, progress)
                listeners.on_epoch_end(state.epoch - 1, logs)
            if not np.isfinite(logs["loss"]):
                break
            if checkpoint and self.group.rank == 0 and checkpoint.due():
                self._save(checkpoint, state)
        feed.close()
        for variable, weight in zip(body.variables, state.weights, strict=True):
            variable.assign(weight)
        self._check_equal()
        model.best_epoch = state.best_epoch
        rates = [h["samples_per_second"] for h in model.history]
        model.samples_per_second = float(np.median(rates[1:] or rates)) if rates else 0.0
        listeners.on_train_end()
        return state.best

    def _check_equal(self) -> None:
        """Raises ModelError where the members of the group did not end with the same weights."""
        weights = self.model.network.weights()
        digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in weights)).hexdigest()
        if len(set(self.group.exchange(digest))) > 1:
            raise ModelError(
                "the devices' weights came apart, so that no one model was trained: use devices of one kind, with the "
                "same libraries, or model.devices=1"
            )

    def _learn(self, epoch: int, feed: Feed, progress: Any) -> tuple[float, float]:
        """Train an epoch; the loss, and the seconds that it took."""
        started = time.perf_counter()
        return self.learn(epoch, feed, progress), time.perf_counter() - started

    def _look(self, state: Course, loss: float, seconds: float, progress: Any) -> dict[str, float]:
        """Look at the validation rows after an epoch; what Keras callbacks get as logs."""
        score = self.score()
        rate = self.passes * sum(self.steps) * self.batch / seconds
        logs = {"loss": loss, "val_loss": score, "samples_per_second": rate, **self.measured()}
        history = {"loss": loss, "validation": score, "seconds": seconds, **logs}
        del history["val_loss"]
        self.model.history.append(history)
        if progress is not None:
            note = f"epoch {state.epoch}, validation {score:.4f}"
            progress.advance(self.n if len(self.sizes) == 1 else 0, note)
        if np.isfinite(loss):
            state.seen(score, self.model.network.body.variables)
        return logs

    def _listeners(self, callbacks: Sequence[Any], last: int) -> Any:
        body = self.model.network.body
        if callbacks:
            body.compile(optimizer=self.optimizer)  # callbacks look for an optimizer there
        body.stop_training = False
        return keras.callbacks.CallbackList(list(callbacks), model=body, epochs=last, verbose=0)

    # -- going on after a kill ------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What makes this training the one it is, as plain values: another one has another."""
        normalise = self.model.network.normalise.weights
        start = {} if self.model.start is None else {"start": self.model.start}
        return {
            **start,
            "architecture": self.model.network.architecture.to_dict(),
            "labels": [asdict(label) for label in self.model.labels],
            "settings": self.settings.model_dump(mode="json"),
            "rows": [self.agreed.members, self.validated, self.valid.totals.tolist()],
            "sequences": self.contents,
            "normalisation": hashlib.sha256(b"".join(w.numpy().tobytes() for w in normalise)).hexdigest(),
            "optimizer": str({**self.optimizer.get_config(), "name": type(self.optimizer).__name__}),
            "loss": self.loss_name,
            "libraries": [tf.__version__, keras.__version__, np.__version__],
        }

    def _kept(self) -> dict[str, list[Any]]:
        return {
            "network": self.model.network.body.variables,
            "optimizer": self.optimizer.variables,
            "averages": self.averages.kept,
            "luck": [] if self.luck is None else self.luck.kept,
        }

    def _save(self, checkpoint: Checkpoint, state: Course) -> None:
        tensors = {**self._kept(), "best": state.weights}
        arrays = {f"{kind}/{i}": x.numpy() for kind, several in tensors.items() for i, x in enumerate(several)}
        plain = {name: getattr(state, name) for name in ("best", "best_epoch", "epoch", "waited")}
        checkpoint.save(self.fingerprint(), arrays, {**plain, "history": self.model.history})

    def _resume(self, checkpoint: Checkpoint) -> Course | None:
        """Where the training that left the checkpoint was; None without one."""
        loaded = self._loaded(checkpoint)
        if loaded is None:
            return None
        arrays, state = loaded
        for kind, several in self._kept().items():
            for i, variable in enumerate(several):
                variable.assign(arrays[f"{kind}/{i}"])
        self._vary()
        self.model.history[:] = state["history"]
        weights = [tf.constant(arrays[f"best/{i}"]) for i in range(len(self.model.network.body.variables))]
        return Course(state["best"], weights, state["best_epoch"], state["epoch"], state["waited"])

    def _loaded(self, checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What the first member finds in its file, the same for all: nobody else needs to see the file."""
        first = self.group.rank == 0
        found = checkpoint.load(self.fingerprint()) if first else None
        if self.group.size == 1:
            return found
        arrays, state = found or ({}, None)
        told = [state, {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()}]
        state, shapes = self.group.exchange(told)[0]
        if state is None:
            return None
        nothing = {name: np.zeros(shape, dtype) for name, (dtype, shape) in shapes.items()}
        return {name: self.group.sum((arrays if first else nothing)[name]) for name in shapes}, state


@dataclass
class Course:
    """How far training has come, and the best that it has been at."""

    best: float
    weights: list[Any]
    best_epoch: int = 0
    epoch: int = 0
    waited: int = 0

    def seen(self, score: float, variables: Sequence[Any]) -> None:
        """An epoch's validation."""
        if score < self.best:
            self.best, self.weights = score, [tf.identity(v) for v in variables]
            self.best_epoch, self.waited = self.epoch, 0
        else:
            self.waited += 1

    def over(self, patience: int) -> bool:
        return self.waited > patience
