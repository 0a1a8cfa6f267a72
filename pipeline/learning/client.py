"""One client's model, from the store to a version on disk: rows, training, hold-out, gate, registry.

A client of too few positives is served by the model pooled over all clients, and has none where that was refused: as
many trainings as there are small clients would take days. One whose own was refused before it had another is served by
the pooled model too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import SourceError, TooLittleError
from pipeline.features import table as features
from pipeline.features.samples import HOLDOUT, TRAIN, VALIDATION, SampleRequest, describe
from pipeline.learning.data import TrainingData, ranges, training_data
from pipeline.learning.truth import true_probabilities
from pipeline.options import SECOND
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.events.store import EventStore
    from pipeline.learning.model import TrainedModel
    from pipeline.learning.pooled import Pool
    from pipeline.learning.rows import Rows


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


def train_client(
    store: EventStore,
    client: str,
    config: Config,
    backend: Backend,
    as_of: int,
    models: Path,
    rollups: Path | None = None,
    pool: Pool | None = None,
    cluster: Any = None,
    tuned: Mapping[str, Any] | None = None,
) -> ClientModel:
    """Train, measure on the hold-out, and keep a client's model: as the version in use unless the gate refuses it.

    Args:
        as_of: where the data end, microseconds UTC. models: the run's directory of models.
        rollups: the run's table of roll-ups, where it is of this store; context is counted from it.
        pool: the model of all clients, for one that is too small; None: it gets a model of its own all the same.
        cluster: a ``distributed.Client``, beside whose workers ``model.devices`` train; None: on this machine.
        tuned: of which trial of tune the settings in ``config`` are, for the card; see study.py. None: of none.
    Raises:
        TooLittleError: nothing to learn from; ModelError: from training or the registry; ConfigError: the log of this
        client has no events of the kind that decisions are made at.
    """
    train = partial(own_model, store, client, config, backend, as_of, models, rollups, cluster, tuned)
    if pool is None:
        return train()
    if pool.wanted(client):
        return _small(pool, client, models) or train()
    try:
        own = train(pool.too_few)
    except TooFewError:
        return _small(pool, client, models) or train()
    except TooLittleError:
        if served := _pooled(pool, client, models):
            return served
        raise
    return or_pooled(own, pool, client, models)


def or_pooled(own: ClientModel, pool: Pool, client: str, models: Path) -> ClientModel:
    """A client's own model, served by the pooled one where its own was refused and it had none before."""
    if own.serving is None and (served := _pooled(pool, client, models)):
        return replace(own, serving=served.serving)
    return own


class TooFewError(TooLittleError):
    """Too few positives for a model of its own."""


def own_model(
    store: EventStore,
    client: str,
    config: Config,
    backend: Backend,
    as_of: int,
    models: Path,
    rollups: Path | None = None,
    cluster: Any = None,
    tuned: Mapping[str, Any] | None = None,
    too_few: Callable[[dict[str, int]], bool] | None = None,
) -> ClientModel:
    """As :func:`train_client`, of a model of the client's own.

    Args:
        too_few: training rows with each outcome -> whether they are for the pooled model; None: they are not.
    Raises:
        TooFewError: they are.
    """
    data = training_data(store, client, config, backend, as_of, rollups)
    if too_few is not None and too_few(found := positives(data, config)):
        raise TooFewError(f"client {client!r} has too few positives for a model of its own: {found}")
    return _train_own(store, client, config, backend, as_of, models, rollups, data, cluster, tuned)


def _train_own(
    store: EventStore,
    client: str,
    config: Config,
    backend: Backend,
    as_of: int,
    models: Path,
    rollups: Path | None,
    data: TrainingData,
    cluster: Any,
    tuned: Mapping[str, Any] | None,
) -> ClientModel:
    from pipeline.learning import drift, gate, registry
    from pipeline.learning.champion import champion_of
    from pipeline.learning.clocks import clocks
    from pipeline.learning.evaluate import evaluate
    from pipeline.learning.rows import select

    table, ignored = data.table, clocks(data.table)
    unseen = [feature.name for feature, out in zip(table.spec.features, ignored, strict=True) if out]
    rows, valid, holdout = (select(table, split) for split in (TRAIN, VALIDATION, HOLDOUT))
    model, devices = _trained(store, client, config, backend, models, data, cluster, ignored)
    model.calibrate(valid, *table.points(valid.index), config.model.calibration)
    p = model.predict(table.X, holdout.index, sequences=table.sequences)
    ideal, unknown = _ideal(store, config, client, model, table, holdout, backend)
    metrics = evaluate(
        p,
        holdout.take("y"),
        holdout.take("mask"),
        holdout.take("weight"),
        model.heads,
        budgets=config.decide.budgets,
        baselines=_baselines(client, config, model, (rows, valid, holdout), ignored),
        truth=_truth(config, client, model, table, holdout, backend),
        references=None if ideal is None else {"ideal": ideal},
        notes=model.notes,
        calibration=model.calibration,
        cluster=table.points(holdout.index)[0],
        seed=config.model.seed,
    )
    spec = table.spec
    if model.selection is not None and not model.network.inputs:
        spec = replace(spec, sequences=None)  # they were there for kinds that were not chosen
    partitions = config.partitions or ranges(store, client, backend)
    champion = champion_of(store, client, config, backend, as_of, models, table, rollups, partitions)
    verdict = gate.judge(
        config.gate,
        model.heads,
        model.notes,
        metrics,
        gate.Holdout.of(p, holdout, table),
        champion,
        [d for d in drift.of_table(table, table.points()[0], seed=config.model.seed) if d.name not in unseen],
        config.model.seed,
    )
    gate.set_aside(model, verdict, metrics)
    split = describe(SampleRequest.from_config(config, client, as_of, "train"))
    if unseen:
        split += f"; not looked at, since they tell more of the day than of the subscriber: {', '.join(unseen)}"
    counts = {"training": data.rows, "validation": len(valid), "hold-out": len(holdout)}
    version = registry.save_version(
        models,
        client,
        model,
        spec,
        config,
        metrics,
        snapshot=store.version(),
        as_of=str(np.datetime_as_string(np.datetime64(as_of, "us"), timezone="UTC")),
        facts={"split": split, "rows": counts, "gate": verdict.to_dict(), "not_looked_at": unseen, "tuned": tuned},
        activate=verdict.accepted,
    )
    line = f"{data.points:,} decision points, {len(spec)} features, {_said(model, metrics)}"
    if table.counts.get("knew_less"):
        split += f"; {table.counts['knew_less']:,} decision points are without events that arrived after them"
    split = "; ".join([split, *filter(None, (data.note, devices))])
    serving = registry.current(models, client)
    absent = (*table.spec.absent, *unknown)
    return ClientModel(version, data.points, metrics, line, split, absent, verdict.to_dict(), serving)


def _trained(
    store: EventStore,
    client: str,
    config: Config,
    backend: Backend,
    models: Path,
    data: TrainingData,
    cluster: Any,
    ignored: np.ndarray,
) -> tuple[TrainedModel, str]:
    """The model, and what the user is told of the devices that it was trained on."""
    from pipeline.learning import models as networks
    from pipeline.learning.checkpoint import Checkpoint
    from pipeline.learning.devices import Devices, unfinished
    from pipeline.learning.rows import select
    from pipeline.learning.selection import train_selected
    from pipeline.learning.share import ClientTraining

    rows, valid = (select(data.table, split) for split in (TRAIN, VALIDATION))
    devices, kept = Devices.of(config, backend, cluster, data.rows), unfinished(models, client)
    place = (store.uri, store.version(), client)
    work = partial(ClientTraining, *place, config, data.recipe, kept, backend.on_gpu, ignored)
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
            elsewhere=devices.trainer(work, progress),
        )
    return model, devices.note


def _small(pool: Pool, client: str, models: Path) -> ClientModel | None:
    """A client of too few positives; None where the pooled model is bad for it, or there is nothing to learn from."""
    from pipeline.learning import registry

    found = pool.result
    if found is None or found.version is not None:
        return _pooled(pool, client, models, whole=False)
    rows, metrics, _ = pool.measure(client)
    line = "no model: too few positives for one of its own, and the pooled model is refused"
    serving = registry.current(models, client)
    return ClientModel(f"{registry.POOLED}/{found.trained}", rows, metrics, line, serving=serving, pooled=True)


def _pooled(pool: Pool, client: str, models: Path, whole: bool = True) -> ClientModel | None:
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
    registry.use(models, client, found.version)
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


def _truth(
    config: Config, client: str, model: TrainedModel, table: features.FeatureTable, holdout: Rows, backend: Backend
) -> np.ndarray | None:
    """The true probabilities of the hold-out's rows, float64[m, H]; None for a log that is not simulated."""
    ids = _simulated(config, table, holdout, backend)
    return None if ids is None else _by_head(true_probabilities(config, client, ids), model, len(ids))


def _baselines(
    client: str, config: Config, model: TrainedModel, rows: tuple[Rows, Rows, Rows], ignored: np.ndarray
) -> dict[str, np.ndarray]:
    """What the model is to beat, and gradient boosting where it is asked for: name -> float64[m, H]."""
    from pipeline.learning.baselines import baselines
    from pipeline.learning.boosting import boosting

    learned, _, holdout = rows
    found, settings = baselines(model, learned, holdout, config.model.seed), config.model
    if settings.boosting:
        p, fits = found["base_rate"].copy(), len(model.heads) * settings.boosting
        with Progress(f"boosting {client}", fits, "fits") as progress:
            boosting(*rows, model.heads, p, settings.boosting, settings.seed, ignored, progress.advance)
        found["boosting"] = p
    return found


def _ideal(
    store: EventStore,
    config: Config,
    client: str,
    model: TrainedModel,
    table: features.FeatureTable,
    holdout: Rows,
    backend: Backend,
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The same of the ideal observer, who knows what can be known; and why there is none, where it could be there."""
    from pipeline.learning.ideal import ideal_probabilities

    ids = _simulated(config, table, holdout, backend)
    if ids is None:
        return None, ()
    try:
        return _by_head(ideal_probabilities(store, config, client, ids), model, len(ids)), ()
    except SourceError as error:
        return None, (f"the ideal observer: {error}",)


def _simulated(config: Config, table: features.FeatureTable, holdout: Rows, backend: Backend) -> np.ndarray | None:
    """The event ids of the hold-out's rows, int64[m]; None for a log that is not simulated."""
    if "event_id" not in table.keys.columns or config.source is None or config.source.truth is None:
        return None
    return np.asarray(backend.to_host(backend.column(table.keys["event_id"])[holdout.index]))


def _by_head(known: dict[str, np.ndarray], model: TrainedModel, n: int) -> np.ndarray:
    """float64[n, H], NaN for a head whose outcome is not known."""
    nothing = np.full(n, np.nan)
    return np.stack([known.get(head.name, nothing) for head in model.heads], axis=1)


def _said(model: TrainedModel, metrics: dict[str, Any]) -> str:
    """What came of a training, in a line."""
    from pipeline.learning.selection import selected

    said = f"{model.network.architecture.kind}, best epoch {model.best_epoch}, "
    said += f"{model.samples_per_second:,.0f} samples/s; " + "; ".join(_headline(n, m) for n, m in metrics.items())
    return said if model.selection is None else f"{said}; {selected(model.selection)}"


def _headline(name: str, metrics: dict[str, Any]) -> str:
    """One head's result in a few words."""
    if metrics.get("roc_auc") is not None:
        return f"{name} ROC-AUC {metrics['roc_auc']:.3f}, {metrics['pr_auc'] / metrics['base_rate']:.1f}x base rate"
    if metrics.get("normalized_gini") is not None:
        return f"{name} Gini {metrics['normalized_gini']:.3f}"
    return f"{name} {metrics.get('note', 'not measured')}"
