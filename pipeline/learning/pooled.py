"""One model for all clients that are too small for one of their own: trained once a run, on rows of every client.

Every client gives at most the same number of rows, so that large ones do not drown small ones: whole subscribers, those
of its first key range, which is a hashed sample. Features are those that nearly all logs can give, and of the context
only rates of the client and of the hour: no campaign, provider or client is known by name. What its rates do not tell
of a client's level is learned beside the network, as far as its rows tell (``levels.py``).
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import config as configuration
from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import EventgrainError
from pipeline.features import table as features
from pipeline.features.context import define, describe
from pipeline.features.preparation import context_of
from pipeline.features.samples import HOLDOUT, TRAIN, VALIDATION, SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.trailing import ContextSpec, Counts
from pipeline.learning import drift, gate, levels, registry
from pipeline.learning.champion import SAW, columns, saw
from pipeline.options import UNITS
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.events.store import EventStore

COMMON = 0.9  # share of all decision points whose clients have a kind of event, for it to be a feature
LEVELS = ("client", "hour")
GPU_THREADS = 2


@dataclass(frozen=True)
class Pooled:
    """The pooled model's version as the clients' ``current`` names it, and how it did.

    ``version``: None where none may be used; ``verdict``: of the one just trained; ``metrics``: of it, over all
    clients. ``rows``: which rows of ``table`` are a client's. ``p``: float32[n, H], predictions of every row by
    ``model``, which is the one to use. ``trained``: the version just trained; ``clients``: how many it learned from.
    """

    version: str | None
    verdict: gate.Verdict
    metrics: dict[str, Any]
    model: Any
    table: features.FeatureTable
    rows: dict[str, slice]
    p: np.ndarray
    trained: str
    clients: int


class Pool:
    """The pooled model of a run. Nothing is read or trained before a client needs it, and then once."""

    def __init__(
        self, store: EventStore, config: Config, backend: Backend, as_of: Callable[[str], int], models: Path
    ) -> None:
        self.store, self.backend, self.as_of, self.models = store, backend, as_of, models
        # Campaigns of sequences have the names of one client's: no sequences, and a network that reads none.
        none = config.sequences.model_copy(update={"length": 0})
        kind = config.model.kind if config.model.kind == "logistic" else "dense"
        self.config = config.model_copy(
            update={"sequences": none, "model": config.model.model_copy(update={"kind": kind})}
        )

    def wanted(self, client: str) -> bool:
        """Whether a client's log has too few events of what the rule turns on, whatever its decision points."""
        kinds = self.store.kinds(client)
        outcomes = [self.config.outcomes[name] for name in deciding(self.config)]
        most = max(sum(kinds.get(kind, 0) for kind in outcome.kinds) for outcome in outcomes)
        return most < self.config.model.minimum_positives_own

    @property
    def trained(self) -> Pooled | None:
        """The result where a client has needed it."""
        found: Pooled | None = self.__dict__.get("result")
        return found

    @property
    def helps(self) -> bool:
        """Whether the pooled model has a model of what the rule turns on."""
        notes = {} if self.result is None else self.result.model.notes
        return any(name not in notes for name in deciding(self.config))

    def measure(self, client: str) -> tuple[int, dict[str, Any], list[str]]:
        """The pooled model on one client's rows: how many, metrics on its hold-out, and what forbids its use there."""
        from pipeline.learning.evaluate import evaluate

        found = self.result
        if found is None or client not in found.rows:
            return 0, {}, []
        rows, table = found.rows[client], found.table
        split, y, mask, weight = (
            np.asarray(self.backend.to_host(getattr(table, name)[rows])) for name in ("split", "y", "mask", "weight")
        )
        late = split == HOLDOUT
        if not late.any():
            return len(split), {}, []
        known = (weight[:, None] * mask)[split == TRAIN]
        total = known.sum(axis=0)
        rate = np.array([label.mean for label in found.model.labels])  # until it has rows of its own
        np.divide((known * y[split == TRAIN]).sum(axis=0), total, out=rate, where=total > 0)
        metrics = evaluate(
            found.p[rows][late],
            y[late],
            mask[late],
            weight[late],
            found.model.heads,
            budgets=self.config.decide.budgets,
            baselines={"base_rate": np.tile(rate, (int(late.sum()), 1))},
            notes=found.model.notes,
            calibration=found.model.calibration,
        )
        wrong = []
        for head in found.model.heads:
            enough = metrics[head.name]["positives"] >= self.config.gate.minimum_positives
            if enough and head.name not in found.model.notes:
                wrong += [f"{head.name}: {why}" for why in gate.absolute(self.config.gate, head, metrics[head.name])]
        return len(split), metrics, wrong

    @functools.cached_property
    def result(self) -> Pooled | None:
        """The trained model; None where no client has anything to learn from, or only one client is there."""
        if len(self.store.clients()) < 2:
            return None
        spec = self.specification()
        shares = self.shares()
        with Progress("features, all clients", len(shares), "clients") as progress:

            def made(client: str) -> features.FeatureTable | None:
                table = self._table(client, spec, shares[client])
                progress.advance(1, client)
                return table

            workers = GPU_THREADS if self.backend.on_gpu else len(os.sched_getaffinity(0))
            with ThreadPoolExecutor(workers) as threads:
                tables = dict(zip(shares, threads.map(made, shares), strict=True))
        kept = {client: table for client, table in tables.items() if table is not None and len(table)}
        if not any((table.split == TRAIN).any() for table in kept.values()):
            return None
        return self._train(kept)

    def specification(self) -> FeatureSpec:
        """What nearly every client's log can give.

        Raises:
            ConfigError: no client has events of the kind that decisions are made at.
        """
        points = {client: self._points(client) for client in self.store.clients()}
        total = sum(points.values())
        having: Counter[str] = Counter()
        events: Counter[str] = Counter()
        for client, count in points.items():
            kinds = self.store.kinds(client)
            having.update(dict.fromkeys(kinds, count))
            events.update(kinds)
        spec = FeatureSpec.from_config(self.config, [k for k, count in having.items() if count >= COMMON * total > 0])
        wanted = define(self.config, spec)
        if wanted is None:
            return spec
        none = np.zeros(0, dtype=np.int64)
        wanted = replace(wanted, levels=LEVELS, trials=tuple(trials(wanted, events)))
        return describe(spec, wanted, Counts({}, {}, none, none, none))

    def shares(self) -> dict[str, int]:
        """Client -> in how many key ranges its log is cut, of which the first is taken."""
        points = {client: n for client in self.store.clients() if (n := self._points(client))}
        cap = water_level(list(points.values()), self.config.model.pooled_rows)
        return {client: -(-n // cap) for client, n in points.items()}

    def _points(self, client: str) -> int:
        """At least about as many decision points as a client has."""
        event = self.config.at.event
        return self.store.kinds(client).get(event, 0) if event else self.store.rows(client)

    def _table(self, client: str, spec: FeatureSpec, ranges: int) -> features.FeatureTable | None:
        """The rows of one client's first key range."""
        as_of = self.as_of(client)
        request = SampleRequest.from_config(self.config, client, as_of, "train")
        columns = features.read_columns(self.store, client, spec, request)
        plan = self.store.plan(client, until=as_of, columns=columns, partitions=ranges)
        if not len(plan.ranges):
            return None
        context = None if spec.context is None else context_of(self.store, client, spec.context, request)
        return features.feature_table(self.store.read_range(plan, 0), spec, request, context=context)

    def _train(self, tables: dict[str, features.FeatureTable]) -> Pooled:
        from pipeline.learning.baselines import baselines
        from pipeline.learning.evaluate import evaluate
        from pipeline.learning.models import heads_of
        from pipeline.learning.rows import select
        from pipeline.learning.train import train

        config, stops = self.config, np.cumsum([0, *(len(t) for t in tables.values())]).tolist()
        slices = {client: slice(a, b) for client, a, b in zip(tables, stops[:-1], stops[1:], strict=True)}
        table = features.concat(list(tables.values()))
        rows, valid, holdout = (select(table, split) for split in (TRAIN, VALIDATION, HOLDOUT))
        owner = np.repeat(np.arange(len(slices)), [len(t) for t in tables.values()])
        rows = rows.apart(self.backend.asarray(owner))
        with Progress("train, all clients", len(rows) * config.model.epochs, "samples") as progress:
            model = train(rows, valid, heads_of(config), config.model, progress)
        subscriber = whose(table, slices)
        index, at = self.backend.to_host(valid.index), table.points(valid.index)[1]
        model.calibrate(valid, subscriber[index], at, config.model.calibration)
        model.levels = self._levels(model, table, slices, subscriber)
        p = self._predict(model, table, slices)
        index = self.backend.to_host(holdout.index)
        y, mask, weight = (np.asarray(self.backend.to_host(holdout.take(n))) for n in ("y", "mask", "weight"))
        beside = baselines(model, rows, holdout, config.model.seed)
        metrics = evaluate(
            p[index],
            y,
            mask,
            weight,
            model.heads,
            budgets=config.decide.budgets,
            baselines=beside,
            notes=model.notes,
            calibration=model.calibration,
        )
        champion = self._champion(table, slices, index)
        verdict = gate.judge(
            config.gate,
            model.heads,
            model.notes,
            metrics,
            gate.Holdout(p[index].astype(np.float64), y, mask, weight, subscriber[index]),
            champion,
            drift.of_table(table, subscriber, slices.values(), config.model.seed),
            config.model.seed,
        )
        gate.set_aside(model, verdict, metrics)
        for h in (h for h, label in enumerate(model.labels) if not label.learned):
            p[:, h] = model.labels[h].mean
        version = self._save(model, table, metrics, verdict, len(slices), (len(rows), len(valid), len(holdout)))
        serving = registry.current(self.models, None)
        named = f"{registry.POOLED}/{serving}" if serving else None
        if serving is not None and serving != version:
            model, spec, _ = registry.load_version(self.models, None, serving)
            if spec != table.spec:  # its numbers for these clients would need features of its own
                return Pooled(named, verdict, metrics, model, table, {}, p, version, len(slices))
            p = self._predict(model, table, slices)
        return Pooled(named, verdict, metrics, model, table, slices, p, version, len(slices))

    def _predict(self, model: Any, table: features.FeatureTable, slices: dict[str, slice]) -> np.ndarray:
        """Of every row, at the level of its client: float32[n, H]."""
        p = np.array(self.backend.to_host(model.predict(table.X)))
        for client, rows in slices.items():
            model.of(client).move(p[rows])
        return p

    def _levels(
        self, model: Any, table: features.FeatureTable, slices: dict[str, slice], subscriber: np.ndarray
    ) -> levels.Levels:
        """Of the clients, from the rows of training and validation."""
        index = self.backend.xp.flatnonzero((table.split == TRAIN) | (table.split == VALIDATION))
        arrays = (model.predict(table.X, index), *(a[index] for a in (table.y, table.mask, table.weight)), index)
        p, y, mask, weight, rows = (np.asarray(self.backend.to_host(a)) for a in arrays)
        client = np.repeat(np.arange(len(slices)), [mine.stop - mine.start for mine in slices.values()])[rows]
        day = table.points(index)[1] // UNITS["d"]
        _, day = np.unique(np.stack([client, day], axis=1), axis=0, return_inverse=True)
        labels = enumerate(zip(model.heads, model.labels, strict=True))
        heads = {head.name: h for h, (head, label) in labels if label.learned and head.kind == "binary"}
        weight = np.where(mask > 0, weight[:, None], 0.0)
        return levels.learn(p, y, weight, client, (subscriber[rows], day.reshape(-1)), list(slices), heads)

    def _champion(
        self, table: features.FeatureTable, slices: dict[str, slice], holdout: np.ndarray
    ) -> gate.Champion | None:
        """The pooled model in use on the same rows, ``holdout`` of the table, where it takes the same features."""
        version = None
        try:
            version = registry.current(self.models, None)
            if version is None:
                return None
            model, spec, card = registry.load_version(self.models, None, version)
            theirs = configuration.load(registry.version_dir(self.models, None, version) / "config.yaml")
        except EventgrainError as error:
            return gate.Champion(version or "damaged", why_not={"": str(error)})
        learned = frozenset(head.name for head in model.heads if head.name not in model.notes)
        if spec != table.spec:
            return gate.Champion(version, learned, why_not={"": "it has other features"})
        if saw(theirs, card, SampleRequest.from_config(self.config, "", self._end(), "train")):
            return gate.Champion(version, learned, why_not={"": SAW})
        p = self._predict(model, table, slices)[holdout].astype(np.float64)
        return gate.Champion(version, learned, *columns(self.config, theirs, model, p), gate.lost(card))

    def _end(self) -> int:
        """Where the data of the client that goes on longest end, as the card says it."""
        return max(self.as_of(client) for client in self.store.clients())

    def _save(
        self,
        model: Any,
        table: features.FeatureTable,
        metrics: dict[str, Any],
        verdict: gate.Verdict,
        clients: int,
        counts: tuple[int, int, int],
    ) -> str:
        return registry.save_version(
            self.models,
            None,
            model,
            table.spec,
            self.config,
            metrics,
            snapshot=self.store.version(),
            as_of=str(np.datetime_as_string(np.datetime64(self._end(), "us"), timezone="UTC")),
            facts={
                "clients": clients,
                "rows": dict(zip(("training", "validation", "hold-out"), counts, strict=True)),
                "gate": verdict.to_dict(),
            },
            activate=verdict.accepted,
        )


def deciding(config: Config) -> list[str]:
    """The outcomes whose positives say whether a client can have a model of its own: what the rule turns on."""
    decide = config.decide
    return [decide.hold_when] if decide.hold_when else list(decide.reward) or list(config.outcomes)


def trials(context: ContextSpec, events: Mapping[str, int]) -> list[float]:
    """How many deliveries one response is of, all clients together: each rate's, a power of two, so that it stays.

    A client of few deliveries then has about the rates of all clients, and not rates that no large one has.
    """
    deliveries = events.get(context.exposure, 0) - sum(events.get(kind, 0) for kind in context.bounces)
    hits = [sum(events.get(kind, 0) for kind in kinds) for _, kinds in context.rates]
    return [2.0 ** round(np.log2(max(deliveries, 1) / max(n, 1))) for n in hits]


def water_level(sizes: list[int], budget: int) -> int:
    """The greatest size at which all, cut down to it, are at most ``budget`` together; at least 1."""
    left = budget
    for i, size in enumerate(sorted(sizes)):
        level = left // (len(sizes) - i)
        if size > level:
            return max(level, 1)
        left -= size
    return max(sizes, default=1)


def whose(table: features.FeatureTable, slices: dict[str, slice]) -> np.ndarray:
    """A number for each row's client and subscriber together, int64[n]."""
    key, _ = table.points()
    client = np.zeros(len(key), dtype=np.int64)
    for i, rows in enumerate(slices.values()):
        client[rows] = i
    _, number = np.unique(np.stack([client, key], axis=1), axis=0, return_inverse=True)
    return np.asarray(number).reshape(-1)
