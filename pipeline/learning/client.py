"""One client's model, from the store to a version on disk: rows, training, hold-out, gate, registry.

A client of too few positives is served by the model pooled over all clients, and has none where that was refused: as
many trainings as there are small clients would take days. One whose own was refused before it had another is served by
the pooled model too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config
from pipeline.errors import TooLittleError
from pipeline.features import table as features
from pipeline.features.samples import HOLDOUT, TRAIN, VALIDATION, SampleRequest, describe
from pipeline.learning.data import TrainingData, ranges, training_data
from pipeline.learning.yardsticks import measure
from pipeline.options import SECOND
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.learning import gate
    from pipeline.learning.model import TrainedModel
    from pipeline.learning.pooled import Pool
    from pipeline.learning.snapshot import Training


@dataclass(frozen=True)
class ClientModel:
    """What training left: the version's name, how many decision points it saw, and metrics by outcome.

    ``gate``: what was found of that version, see :class:`pipeline.learning.gate.Verdict`; ``serving``: the version that
    is in use now, None where there is none; ``pooled``: it is the model of all clients, and none was trained for this,
    be it served by that or, where that was refused, by none.
    For the user to read: ``line``, the result; ``split``, where training, validation and hold-out are; ``absent``, the
    features that the log could not give.
    """

    version: str
    rows: int
    metrics: dict[str, Any]
    line: str
    split: str = ""
    absent: tuple[str, ...] = ()
    gate: dict[str, Any] = field(default_factory=dict)
    serving: str | None = None
    pooled: bool = False


def train_client(training: Training, pool: Pool | None = None, cluster: Any = None) -> ClientModel:
    """Train, measure on the hold-out, and keep a client's model: as the version in use unless the gate refuses it.

    Args:
        pool: the model of all clients, for one that is too small; None: it gets a model of its own all the same.
        cluster: a ``distributed.Client``, beside whose workers ``model.devices`` train; None: on this machine.
    Raises:
        TooLittleError: nothing to learn from; ModelError: from training or the registry; ConfigError: the log of this
        client has no events of the kind that decisions are made at.
    """
    client = training.client
    if pool is None:
        return own_model(training, cluster)
    if pool.wanted(client):
        return _small(pool, client) or own_model(training, cluster)
    try:
        own = own_model(training, cluster, pooling=True)
    except TooFewError:
        return _small(pool, client) or own_model(training, cluster)
    except TooLittleError:
        if served := _pooled(pool, client):
            return served
        raise
    return or_pooled(own, pool, client)


def or_pooled(own: ClientModel, pool: Pool, client: str) -> ClientModel:
    """A client's own model, served by the pooled one where its own was refused and it had none before."""
    if own.serving is None and (served := _pooled(pool, client)):
        return replace(own, serving=served.serving)
    return own


class TooFewError(TooLittleError):
    """Too few positives for a model of its own."""


def own_model(training: Training, cluster: Any = None, pooling: bool = False) -> ClientModel:
    """As :func:`train_client`, of a model of the client's own.

    Args:
        pooling: one of too few positives is not trained, since the pooled model is for it.
    Raises:
        TooFewError: it has too few.
    """
    client, config, backend = training.client, training.config, training.backend
    data = training_data(training.store, client, config, backend, training.as_of, training.rollups)
    if pooling and (found := _too_few(data, config)):
        raise TooFewError(f"client {client!r} has too few positives for a model of its own: {found}")
    return _own_model(training, data, cluster)


def _own_model(training: Training, data: TrainingData, cluster: Any) -> ClientModel:
    from pipeline.learning import gate, registry
    from pipeline.learning.clocks import clocks
    from pipeline.learning.rows import select

    table, config, ignored = data.table, training.config, clocks(data.table)
    rows = (select(table, TRAIN), select(table, VALIDATION), select(table, HOLDOUT))
    _, valid, holdout = rows
    model, devices = _trained(training, data, cluster, ignored)
    model.calibrate(valid, *table.points(valid.index), config.model.calibration)
    p = model.predict(table.X, holdout.index, sequences=table.sequences)
    metrics, unknown = measure(training, model, p, table, rows, ignored)
    unseen = [feature.name for feature, out in zip(table.spec.features, ignored, strict=True) if out]
    verdict = _judged(training, model, metrics, gate.Holdout.of(p, holdout, table), table, unseen)
    gate.set_aside(model, verdict, metrics)
    spec = table.spec
    if model.selection is not None and not model.network.inputs:
        spec = replace(spec, sequences=None)  # they were there for kinds that were not chosen
    split = describe(SampleRequest.from_config(config, training.client, training.as_of, "train"))
    if unseen:
        why = "they tell more of the day or the campaign than of the subscriber"
        split += f"; not looked at, since {why}: {', '.join(unseen)}"
    counts = {"training": data.rows, "validation": len(valid), "hold-out": len(holdout)}
    facts = {"split": split, "rows": counts, "gate": verdict.to_dict(), "not_looked_at": unseen}
    version = registry.save_version(
        training.models,
        training.client,
        model,
        spec,
        config,
        metrics,
        snapshot=training.store.version(),
        as_of=str(np.datetime_as_string(np.datetime64(training.as_of, "us"), timezone="UTC")),
        facts={**facts, "tuned": training.tuned},
        activate=verdict.accepted,
    )
    line = f"{data.points:,} decision points, {len(spec)} features, {_said(model, metrics)}"
    if table.counts.get("knew_less"):
        split += f"; {table.counts['knew_less']:,} decision points are without events that arrived after them"
    split = "; ".join([split, *filter(None, (data.note, devices))])
    serving = registry.current(training.models, training.client)
    absent = (*table.spec.absent, *unknown)
    return ClientModel(version, data.points, metrics, line, split, absent, verdict.to_dict(), serving)


def _trained(training: Training, data: TrainingData, cluster: Any, ignored: np.ndarray) -> tuple[TrainedModel, str]:
    """The model, and what the user is told of the devices that it was trained on."""
    from pipeline.learning import models as networks
    from pipeline.learning.checkpoint import Checkpoint
    from pipeline.learning.devices import Devices, unfinished
    from pipeline.learning.rows import select
    from pipeline.learning.selection import train_selected
    from pipeline.learning.share import ClientTraining

    client, config, backend = training.client, training.config, training.backend
    start = training.start(data.table.spec.names)
    rows, valid = (select(data.table, split) for split in (TRAIN, VALIDATION))
    devices, kept = Devices.of(config, backend, cluster, data.rows), unfinished(training.models, client)
    place = (training.store.uri, training.store.version(), client)
    work = partial(ClientTraining, *place, config, data.recipe, kept, backend.on_gpu, ignored, start)
    with Progress(f"train {client}", data.rows * config.model.epochs, "samples") as progress:
        model = train_selected(
            data.chunks or rows,
            valid,
            networks.heads_of(config),
            config.model,
            progress,
            data.table.spec.sequences,
            sample=rows,
            checkpoint=Checkpoint(kept, config.model.checkpoint / SECOND, strict=False),
            found=data.found,
            ignored=ignored,
            start=start,
            elsewhere=devices.trainer(work, progress),
        )
    return model, devices.note


def _judged(
    training: Training,
    model: TrainedModel,
    metrics: dict[str, Any],
    holdout: gate.Holdout,
    table: features.FeatureTable,
    unseen: list[str],
) -> gate.Verdict:
    """What the gate says of it, beside the model in use. Features that it does not look at have no say."""
    from pipeline.learning import drift, gate
    from pipeline.learning.champion import champion_of

    config = training.config
    partitions = config.partitions or ranges(training.store, training.client, training.backend)
    champion = champion_of(training, table, partitions)
    drifts = drift.of_table(table, table.points()[0], seed=config.model.seed)
    return gate.judge(
        config.gate,
        model.heads,
        model.notes,
        metrics,
        holdout,
        champion,
        [one for one in drifts if one.name not in unseen],
        config.model.seed,
    )


def _small(pool: Pool, client: str) -> ClientModel | None:
    """A client of too few positives; None where the pooled model is bad for it, or there is nothing to learn from."""
    from pipeline.learning import registry

    found = pool.result
    if found is None or found.version is not None:
        return _pooled(pool, client, whole=False)
    rows, metrics, _ = pool.measure(client)
    line = "no model: too few positives for one of its own, and the pooled model is refused"
    serving = registry.current(pool.models, client)
    return ClientModel(f"{registry.POOLED}/{found.trained}", rows, metrics, line, serving=serving, pooled=True)


def _pooled(pool: Pool, client: str, whole: bool = True) -> ClientModel | None:
    """The client served by the pooled model; None where that may not be used, or is bad for this client.

    Args:
        whole: not where it has no model of what the rule turns on. A small client's own would have none either.
    """
    from pipeline.learning import registry

    found = pool.result
    if found is None or found.version is None or (whole and not pool.helps):
        return None
    rows, metrics, wrong = pool.measure(client)
    if wrong:
        return None
    registry.use(pool.models, client, found.version)
    said = [f"{rows:,} decision points, too few positives for a model of its own: the pooled one is used"]
    line = "; ".join([*said, *(_headline(n, m) for n, m in metrics.items())])
    return ClientModel(found.version, rows, metrics, line, serving=found.version, pooled=True)


def positives(data: TrainingData, config: Config) -> dict[str, int]:
    """Training rows with each outcome."""
    if data.found is not None:
        return {name: label.positives for name, label in zip(config.outcomes, data.found.labels, strict=True)}
    chosen = data.table.split == TRAIN
    y, mask = data.table.y[chosen], data.table.mask[chosen]
    return {name: int(((y[:, h] > 0) & (mask[:, h] > 0)).sum()) for h, name in enumerate(config.outcomes)}


def _too_few(data: TrainingData, config: Config) -> dict[str, int]:
    """Training rows with each outcome, where they do not suffice for a model of its own; else nothing."""
    from pipeline.learning.pooled import deciding

    found = positives(data, config)
    return found if max(found[name] for name in deciding(config)) < config.model.minimum_positives_own else {}


def _said(model: TrainedModel, metrics: dict[str, Any]) -> str:
    """What came of a training, in a line."""
    from pipeline.learning.selection import selected

    said = f"{model.network.architecture.kind}, {'pretrained, ' if model.start else ''}best epoch {model.best_epoch}, "
    if model.diverged:
        said += f"its loss was no number in epoch {model.diverged} (lower model.learning_rate), "
    said += f"{model.samples_per_second:,.0f} samples/s; " + "; ".join(_headline(n, m) for n, m in metrics.items())
    return said if model.selection is None else f"{said}; {selected(model.selection)}"


def _headline(name: str, metrics: dict[str, Any]) -> str:
    """One head's result in a few words."""
    if metrics.get("roc_auc") is not None:
        return f"{name} ROC-AUC {metrics['roc_auc']:.3f}, {metrics['pr_auc'] / metrics['base_rate']:.1f}x base rate"
    if metrics.get("normalized_gini") is not None:
        return f"{name} Gini {metrics['normalized_gini']:.3f}"
    return f"{name} {metrics.get('note', 'not measured')}"
