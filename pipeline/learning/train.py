"""From rows to a trained model: labels, network and normalisation are prepared, and the loop of trainer.py is run.

Once per training the normalised features are computed on the device (the normalisation has nothing to train) and
labels, masks and weights are packed beside each other. Cost: linear in rows; memory: the features twice, the sequences
once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import options
from pipeline.backend import backend_of
from pipeline.features.sequences import SequenceSpec
from pipeline.learning import imbalance, losses, models
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.chunks import VALIDATION_SHARE, Chunks, Survey, as_chunks, survey
from pipeline.learning.group import ALONE, Group
from pipeline.learning.labels import Label
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Architecture, Head, Network
from pipeline.learning.normalisation import set_normalisation
from pipeline.learning.rows import Rows, Table, as_rows
from pipeline.learning.start import Start
from pipeline.learning.trainer import Compile, Trainer


def train(
    rows: Table | Rows | Chunks,
    valid: Table | Rows | None,
    heads: Sequence[Head],
    settings: options.Model,
    progress: Any = None,
    sequences: SequenceSpec | None = None,
    *,
    compiled: Compile | None = None,
    callbacks: Sequence[Any] = (),
    checkpoint: Checkpoint | None = None,
    found: Survey | None = None,
    ignored: np.ndarray | None = None,
    start: Start | None = None,
    group: Group = ALONE,
) -> TrainedModel:
    """A network fitted to ``rows``, stopped when ``valid`` no longer improves, its best weights restored.

    Args:
        rows, valid: FeatureTables or :class:`Rows`; ``rows`` also as :class:`Chunks`, where they do not fit the memory.
            Where ``valid`` is None or has no labels, a tenth of ``rows`` (of the first chunk) takes its place.
        heads: of the columns of y, in order. A head with fewer than ``settings.minimum_positives`` positive rows, or
            of one class only, is not learned: it predicts its base rate, and ``notes`` says so.
        settings: the network and how it is trained; its ``kind`` is not auto, see ``selection.py``.
        progress: a Progress to advance by the rows of each epoch.
        sequences: what the rows' sequences are, for a network that reads them.
        compiled: an optimizer, loss or metrics of one's own.
        callbacks: Keras callbacks. An epoch is one call, so those of batches are not called. Logs are ``loss``,
            ``val_loss`` (validation loss over that of the base rate), ``samples_per_second`` and the metrics. Their
            ``model`` is the network after its normalisation.
        checkpoint: where the state is kept. A training that was killed goes on from there, bit for bit on the CPU; the
            callbacks begin anew. Removed when the training is finished.
        found: the survey of these rows, where it was made before.
        ignored: bool[F], features that the network does not look at, see ``clocks.py``.
        start: weights to begin from, where they fit the network. They count as epoch 0: what wins nothing stays as it
            was. Where these rows lead away from them, they may be of little use here: then a network is trained from
            fresh weights too, and the one that validates better is the result.
        group: the processes that train this network together. Each has rows of its own, cut into as many chunks; heads,
            settings and seed are the same, and so is the model that all of them end with. Not for ``compiled`` metrics
            and ``callbacks``, which see one process.
    Raises:
        ModelError: no rows at all, another number of heads than columns of y, the network takes a sequence tensor that
            the rows do not have, or the checkpoint belongs to another training.
    """
    started, chunks, valid = time.perf_counter(), as_chunks(rows), as_rows(valid) if valid is not None else None
    found = found or survey(chunks, heads, settings.minimum_positives, group)
    imbalance.weigh(found.labels, heads, settings)
    shape = architecture(len(found.plain.mean), heads, settings, sequences)
    learned = any(label.learned for label in found.labels)
    if learned:
        if not any(group.exchange(valid is not None and _usable(valid, found.labels))):
            valid = _carve(chunks.make(0))[1]
            chunks, found = chunks.map(lambda some: _carve(some)[0]), found.carved()
        elif valid is None:  # others of the group have some
            valid = chunks.make(0)
            valid = valid.chosen(backend_of(valid.X).xp.arange(0))

    def fitted(start: Start | None, checkpoint: Checkpoint | None) -> tuple[TrainedModel, float]:
        """A network and its best validation."""
        network = models.build(shape, settings.seed)
        set_initial_bias(network, found.labels)
        set_normalisation(network.normalise, found.plain, found.squashed, ignored)
        model, score = TrainedModel(network, [replace(label) for label in found.labels]), math.inf
        if start is not None:
            start.give(network)
            model.start = dict(start.about)
        if learned:
            assert valid is not None
            trainer = Trainer(model, chunks, found, valid, settings, compiled, group=group)
            score = trainer.run(progress, callbacks, checkpoint)
            _smear(model, chunks, group)
        return model, score

    start = start if start is not None and start.fits(shape) else None
    model, score = fitted(start, checkpoint)
    kept = [checkpoint]
    if start is not None and model.best_epoch:
        kept.append(checkpoint and checkpoint.beside("fresh"))
        fresh, other = fitted(None, kept[-1])
        model = fresh if other < score else model
    for one in kept:
        if learned and one is not None and group.rank == 0:
            one.remove()
    model.seconds = time.perf_counter() - started
    return model


def architecture(
    features: int, heads: Sequence[Head], settings: options.Model, sequences: SequenceSpec | None
) -> Architecture:
    """The network that the settings ask for.

    Raises:
        ModelError: it reads sequences, and there are none.
    """
    return Architecture(
        features,
        tuple(heads),
        () if settings.kind == "logistic" else tuple(settings.hidden),
        settings.dropout,
        settings.kind,
        settings.units,
        models.history_of(settings.kind, sequences),
        1 if settings.kind == "logistic" else settings.members,  # of which all would be the same
    )


def set_initial_bias(network: Network, labels: Sequence[Label]) -> None:
    """Let an untrained network predict each head's base rate."""
    bias = losses.initial_bias(network.architecture, [imbalance.start(label) for label in labels])
    for member in network.members:
        next(v for v in member.get_layer("heads").weights if "bias" in v.name).assign(bias)


def _usable(valid: Rows, labels: list[Label]) -> bool:
    known = backend_of(valid.X).to_host(valid.take("mask").sum(axis=0)) if len(valid) else [0.0] * len(labels)
    return any(label.learned and k > 0 for label, k in zip(labels, known, strict=True))


def _carve(rows: Rows) -> tuple[Rows, Rows]:
    """Every tenth row for validation, the others for training; both the same rows where there are too few."""
    xp, n = backend_of(rows.X).xp, len(rows)
    if n < 2 * VALIDATION_SHARE:
        return rows, rows
    index = xp.arange(n) if rows.index is None else rows.index
    tenth = xp.arange(n) % VALIDATION_SHARE == VALIDATION_SHARE - 1
    return rows.chosen(index[~tenth]), rows.chosen(index[tenth])


def _smear(model: TrainedModel, chunks: Chunks, group: Group) -> None:
    """Make each value head's expectations add up to the training rows' total."""
    wanted = [h for h, head in enumerate(model.heads) if head.kind == "value" and model.labels[h].learned]
    if not wanted:
        return
    expected, observed = np.zeros(len(model.heads)), np.zeros(len(model.heads))
    for rows in chunks:
        xp = backend_of(rows.X).xp
        p = model.predict(rows.X, rows.index, sequences=rows.sequences)
        known = rows.take("mask") > 0
        for h in wanted:
            weight = xp.where(known[:, h], rows.take("weight"), 0).astype(xp.float64)
            expected[h] += float((weight * p[:, h]).sum())
            observed[h] += float((weight * xp.where(known[:, h], rows.take("y")[:, h], 0)).sum())
        del rows
    expected, observed = group.sum(expected), group.sum(observed)
    for h in wanted:
        if expected[h] > 0:
            model.labels[h].smear = min(max(float(observed[h] / expected[h]), 0.1), 10.0)
