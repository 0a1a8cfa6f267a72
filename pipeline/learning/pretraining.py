"""Pretraining: once a run a network learns from rows of all clients, and each client's training goes on from it.

Rare outcomes lack labels first, and people answer and leave for much the same reasons whoever writes to them. What
differs stays each client's own: its features are standardised by its own normalisation, so that a number says what is
unusual there, and what the heads learn is beside its own base rates. A feature that a client lacks is 0, its mean. Each
client gives whole subscribers, those of its first key ranges, which are a hashed sample; large clients are cut down
first. Nothing of a hold-out is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import extensions
from pipeline.backend import backend_of
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, ModelError, TooLittleError
from pipeline.features import table as features
from pipeline.features.samples import TRAIN, VALIDATION
from pipeline.learning import data
from pipeline.learning.pooled import deciding, water_level
from pipeline.options import SECOND, SEQUENTIAL, Model
from pipeline.progress import Progress
from pipeline.rundir import code_version, fingerprint

if TYPE_CHECKING:
    from pipeline.learning.labels import Label
    from pipeline.learning.models import Head
    from pipeline.learning.rows import Rows
    from pipeline.learning.snapshot import Training
    from pipeline.learning.start import Start

HOME = "@pretrained"  # below a run's models; no client's folder can be called so
UNFINISHED = "unfinished"  # in it: where the one that is being made is kept
LACKING = (ConfigError, DataError, TooLittleError)  # a client that cannot take part; its own training says why


@dataclass(frozen=True)
class Pretrained:
    """The pretrained network: its file, and what it is made of, which the file has to say too."""

    path: Path
    made_of: str

    def start(self, names: Sequence[str]) -> Start:
        """What a training on features of these names begins from.

        Raises:
            ModelError: the file is gone, was changed, or is of another pretraining.
        """
        from pipeline.learning.models import Architecture
        from pipeline.learning.start import Start

        if (found := self.load()) is None:
            raise ModelError(f"the pretrained network {self.path}, which trainings begin from, is gone: train again")
        weights, state = found
        start = Start(Architecture.from_dict(state["architecture"]), weights, tuple(state["reading"]), state["about"])
        return start.over(state["features"], names)

    def load(self, strict: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What the file holds; None where there is none, or unless ``strict`` none that can be used."""
        from pipeline.learning.checkpoint import Checkpoint

        return Checkpoint(self.path, strict=strict).load({"made_of": self.made_of})

    def save(self, start: Start, names: Sequence[str]) -> None:
        """Args: names: of the features of ``start``."""
        from pipeline.learning.checkpoint import Checkpoint

        state = {"architecture": start.architecture.to_dict(), "reading": start.reading, "features": names}
        Checkpoint(self.path).save({"made_of": self.made_of}, start.weights, {**state, "about": start.about})


def settings_of(config: Config) -> Model | None:
    """What the pretrained network is trained with; None where there is none.

    A network that reads sequences knows campaigns by numbers of one client's own, and has none. Where the kind is to be
    chosen for each client, the pretrained one is dense.
    """
    if not config.model.pretrain or config.model.kind in SEQUENTIAL:
        return None
    kind = "dense" if config.model.kind == "auto" else config.model.kind
    return config.model.model_copy(update={"kind": kind})


def pretrain(trainings: Sequence[Training], config: Config) -> Pretrained | None:
    """The network that these clients' trainings begin from: as an earlier call left it, or trained now.

    Args:
        config: of the run, without what was found for single clients.
    Returns: None where it is not asked for, or fewer than two clients have anything to learn from.
    """
    settings = settings_of(config)
    if settings is None or len(trainings) < 2:
        return None
    found = _place(trainings, config)
    if found.load(strict=False) is not None:
        return found
    none = config.sequences.model_copy(update={"length": 0})
    parts = _parts(trainings, config.model_copy(update={"sequences": none}))
    if len(parts) < 2:
        return None
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    found.save(_trained(parts, names, config, settings, found.path.with_name(UNFINISHED)), names)
    return found


def _place(trainings: Sequence[Training], config: Config) -> Pretrained:
    """Where the network is that is made of these clients' rows."""
    own = extensions.digest(config.extensions), [(feature.name, feature.source) for feature in extensions.features()]
    read = [(t.client, t.as_of, t.snapshot.absolute().uri, t.snapshot.version, t.backend.name) for t in trainings]
    made_of = fingerprint(code_version(), read, config.dump(), own)
    return Pretrained(trainings[0].models.absolute() / HOME / made_of, made_of)


@dataclass(frozen=True)
class _Part:
    """What a client gives: training and validation rows, whose features have these names and are standardised."""

    names: list[str]
    rows: Rows
    valid: Rows


def _parts(trainings: Sequence[Training], config: Config) -> list[_Part]:
    """Each client's, where it has training rows: together about as many decision points as the configuration and the
    memory allow."""
    recipes, parts = {}, []
    for i, t in enumerate(trainings):
        with contextlib.suppress(*LACKING):
            recipes[i] = data.recipe_of(t.store, t.client, config, t.backend, t.as_of, t.rollups)
    if len(recipes) < 2:
        return []
    row_bytes = max(features.row_bytes(recipe.spec, len(config.outcomes)) for recipe in recipes.values())
    room = data.chunk_rows(config, trainings[0].backend, row_bytes).resident
    points = [data.points_of(trainings[i].store, trainings[i].client, config) for i in recipes]
    level = water_level(points, min(config.model.pretrain_rows, room))
    for i, recipe in recipes.items():
        with contextlib.suppress(*LACKING):
            parts.append(_part(trainings[i], config, recipe, level))
    return parts


def _part(training: Training, config: Config, recipe: data.Recipe, points: int) -> _Part:
    """Of about so many of a client's decision points.

    Raises:
        TooLittleError: none of them is of training, or its positives are too few for a model of its own.
    """
    from pipeline.learning.rows import select

    table = data.some_of(training.store, training.client, config, training.backend, recipe, points)
    rows, valid = select(table, TRAIN), select(table, VALIDATION)
    if not len(rows):  # before TensorFlow is imported, which takes seconds
        raise TooLittleError(f"client {training.client!r} has no decision point to pretrain on")
    from pipeline.learning.chunks import as_chunks, survey
    from pipeline.learning.clocks import clocks
    from pipeline.learning.models import Normalise, heads_of
    from pipeline.learning.normalisation import set_normalisation

    found = survey(as_chunks(rows), heads_of(config), config.model.minimum_positives)
    positives = max(found.labels[list(config.outcomes).index(name)].positives for name in deciding(config))
    whole = max(data.points_of(training.store, training.client, config) / points, 1)
    if positives * whole < config.model.minimum_positives_own:
        raise TooLittleError(f"client {training.client!r} has too few positives for a model of its own")
    layer = Normalise()
    set_normalisation(layer, found.plain, found.squashed, clocks(table))
    rows, valid = (_standardised(some, layer, found.labels, heads_of(config)) for some in (rows, valid))
    return _Part(table.spec.names, rows, valid)


def _standardised(rows: Rows, layer: Any, labels: Sequence[Label], heads: Sequence[Head]) -> Rows:
    """The chosen rows as any client's network sees them: features after its normalisation, amounts beside its usual
    ones; an outcome of which it has too few is not known."""
    from pipeline.learning.resident import blocks
    from pipeline.learning.rows import Rows
    from pipeline.learning.tensors import aligned, tensor, tf, to_array

    backend = backend_of(rows.X)
    X = backend.empty_aligned((len(rows), rows.X.shape[1]), np.float32)
    normalise = tf.function(layer, reduce_retracing=True)
    for start, chosen in blocks(len(rows), rows.index):
        block = aligned(rows.X[chosen])
        X[start : start + len(block)] = to_array(normalise(tensor(block)), backend)
    y, mask, xp = rows.take("y"), rows.take("mask"), backend.xp
    for h, (head, label) in enumerate(zip(heads, labels, strict=True)):
        if not label.learned:
            mask[:, h] = 0
        elif head.kind == "value":
            positive = (mask[:, h] > 0) & (y[:, h] > 0)
            logs = (xp.log(xp.where(positive, y[:, h], 1)) - label.log[0]) / label.log[1]
            y[:, h] = xp.where(positive, xp.exp(logs), 0)
    return Rows(X, y, mask, rows.take("weight"), campaign=rows.take("campaign"))


def _trained(parts: list[_Part], names: Sequence[str], config: Config, settings: Model, unfinished: Path) -> Start:
    """A network fitted to all parts, which are let go of, on the features of these names."""
    from pipeline.learning import imbalance, losses
    from pipeline.learning.checkpoint import Checkpoint
    from pipeline.learning.chunks import Survey
    from pipeline.learning.labels import Tally
    from pipeline.learning.models import heads_of
    from pipeline.learning.normalisation import Moments
    from pipeline.learning.rows import concat
    from pipeline.learning.start import Start
    from pipeline.learning.train import train

    heads, clients = heads_of(config), len(parts)
    rows, valid = (
        concat([_widened(getattr(part, some), part.names, names).apart(i) for i, part in enumerate(parts)])
        for some in ("rows", "valid")
    )
    parts.clear()
    tallies = [Tally.of(rows, h, head) for h, head in enumerate(heads)]
    labels = [tally.label(head, settings.minimum_positives) for tally, head in zip(tallies, heads, strict=True)]
    zero, one = np.zeros(len(names)), np.ones(len(names))
    standard = Moments(one, zero, one, zero)  # so that what is standardised already stays as it is
    weight, campaigns = np.array([tally.weight for tally in tallies]), rows.campaign is not None
    found = Survey(((len(rows),),), labels, weight, standard, standard, campaigns=campaigns)
    checkpoint = Checkpoint(unfinished, settings.checkpoint / SECOND, strict=False)
    with Progress("pretrain", len(rows) * settings.epochs, "samples") as progress:
        model = train(rows, valid, heads, settings, progress, checkpoint=checkpoint, found=found)
    initial = losses.initial_bias(model.network.architecture, [imbalance.start(label) for label in model.labels])
    return Start.of(model.network, initial, {"clients": clients, "rows": len(rows)})


def _widened(rows: Rows, mine: Sequence[str], every: Sequence[str]) -> Rows:
    """Rows of features named ``mine`` as rows of ``every``, of which they lack some."""
    if list(mine) == list(every):
        return rows
    place = {name: i for i, name in enumerate(every)}
    X = backend_of(rows.X).empty_aligned((len(rows), len(every)), np.float32)
    X[...] = 0
    X[:, np.array([place[name] for name in mine])] = rows.X
    return replace(rows, X=X)
