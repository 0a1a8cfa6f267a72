"""One seed of bench/quality.py: a log, each client's table, what each contestant learns of it and how good that is."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.options import NETWORKS

KEPT = (
    *("rows", "positives", "base_rate", "roc_auc", "pr_auc", "normalized_entropy", "expected_over_observed"),
    *("expected_pr_auc", "expected_roc_auc", "expected_log_loss"),
)
INTERVALS = ("roc_auc", "pr_auc", "expected_pr_auc")  # 90%, drawn by subscriber
CEILINGS = ("truth", "ideal", "knowable")


def measure(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Every contestant's metrics of one seed: a row for each client, contestant and head."""
    return [{"seed": seed, **row} for contest in contests(options, seed) for row in contest.rows()]


def contests(options: argparse.Namespace, seed: int) -> Iterator[Contest]:
    """Each client of a seed's log, which is made where it is not there."""
    from pipeline import config, invocation
    from pipeline.backend import choose
    from pipeline.demo import with_source
    from pipeline.events.store import EventStore
    from pipeline.learning.snapshot import Snapshot, Training
    from pipeline.stages import end_of_data

    home = str(options.data / f"quality-{options.events}")
    changes = [f"name=seed-{seed}", f"runs={home}", f"simulate.events={options.events}", f"simulate.seed={seed}"]
    changes += [f"model.seed={seed}", f"sequences.length={options.length}", *options.options]
    settings = config.load(None, changes)
    invocation.run(settings, "rollup")
    settings = with_source(settings)
    store = EventStore(settings.store_uri, choose(settings.backend))
    snapshot, rollups = Snapshot.of(store, settings), settings.run_dir / "rollups"
    with tempfile.TemporaryDirectory() as models:  # so that nothing of an earlier measurement is taken
        trainings = [
            Training(snapshot, client, end_of_data(settings, store, client), Path(models), rollups)
            for client in store.clients()[: options.clients]
        ]
        for training in trainings:
            yield Contest(training, trainings, options)


class Contest:
    """One client's table, what contestants learn from it, and how they are measured."""

    def __init__(self, training: Any, trainings: Sequence[Any], options: argparse.Namespace) -> None:
        """Args: training: this client's; trainings: of all that pretraining is for."""
        from pipeline.features.samples import HOLDOUT, TRAIN, VALIDATION
        from pipeline.learning.data import training_data
        from pipeline.learning.models import heads_of
        from pipeline.learning.rows import select

        store, client, settings = training.store, training.client, training.config
        self.client, self.settings, self.options, self.backend = client, settings, options, store.backend
        self.training, self.trainings, began = training, trainings, time.perf_counter()
        data = training_data(store, client, settings, self.backend, training.as_of, training.rollups)
        self.table = data.whole
        self.learned, self.valid, self.holdout = (select(self.table, s) for s in (TRAIN, VALIDATION, HOLDOUT))
        self.heads, seconds = heads_of(settings), time.perf_counter() - began
        size = f"{len(self.learned):,} rows of {self.table.X.shape[1]} features"
        print(f"{client}: {size} to learn from, made in {seconds:.0f} s", flush=True)
        self.ceilings = self.observed(store)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each contestant and head, and for what stands beside them."""
        found, beside = [], {}
        for name in self.options.kinds:
            began = time.perf_counter()
            p, about = self.network(name) if name in (*NETWORKS, "auto") else self.peer(name)
            seconds = time.perf_counter() - began
            beside = self.metrics(p)
            print(f"    {name} in {seconds:.0f} s", flush=True)
            short = self.short(p)
            found += [
                self.row(name, head, m, {**short[head], "seconds": seconds, **about}) for head, m in beside.items()
            ]
        for name in CEILINGS:
            found += [self.row(name, head, m[name], {}) for head, m in beside.items() if name in m]
        return found

    def network(
        self, kind: str, learned: Any = None, without: Sequence[bool] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A network's predictions of the hold-out, and how its training went.

        Args:
            learned: the rows that it learns from; all of the training's where None. without: bool[F], the features that
            it does not get. With either it learns from this client alone.
        """
        from pipeline.learning.clocks import clocks
        from pipeline.learning.pretraining import pretrain
        from pipeline.learning.selection import train_selected

        settings = self.settings.model.model_copy(update={"kind": kind})
        pretrained = None
        if learned is None and without is None:
            pretrained = pretrain(self.trainings, self.settings.model_copy(update={"model": settings}))
        start = None if pretrained is None else pretrained.start(self.table.spec.names)
        spec = self.table.spec.sequences
        ignored = clocks(self.table) if without is None else clocks(self.table) | np.asarray(without)
        learned = self.learned if learned is None else learned
        model = train_selected(learned, self.valid, self.heads, settings, sequences=spec, ignored=ignored, start=start)
        p = model.predict(self.table.X, self.holdout.index, sequences=self.table.sequences)
        about: dict[str, Any] = {"epochs": len(model.history), "samples_per_second": round(model.samples_per_second)}
        if model.selection is not None:
            about |= {"chosen": model.selection["kind"], "validation": model.selection["scores"]}
        return p, about

    def peer(self, name: str) -> tuple[np.ndarray, dict[str, Any]]:
        """What somebody would use instead, its predictions of the hold-out."""
        from pipeline.learning.baselines import baselines
        from pipeline.learning.boosting import boosting
        from pipeline.learning.clocks import clocks

        seed = self.settings.model.seed
        if name == "boosting":
            p = np.zeros((len(self.holdout), len(self.heads)))
            given = (self.learned, self.valid, self.holdout, self.heads, p, self.options.trials, seed)
            return p, {"settings": boosting(*given, ignored=clocks(self.table)), "trials": self.options.trials}
        found = baselines(self.untrained(), self.learned, self.holdout, seed)
        return found["logistic" if name == "regression" else name], {}

    def untrained(self) -> Any:
        """A model of which only the labels and the normalisation are used."""
        from pipeline.learning.chunks import as_chunks, survey
        from pipeline.learning.model import TrainedModel
        from pipeline.learning.models import Architecture, build
        from pipeline.learning.normalisation import set_normalisation

        network = build(Architecture(self.table.X.shape[1], self.heads))
        found = survey(as_chunks(self.learned), self.heads, 1)
        set_normalisation(network.normalise, found.plain, found.squashed)
        return TrainedModel(network, found.labels)

    def observed(self, store: Any) -> dict[str, np.ndarray]:
        """CEILINGS: the true probabilities of the hold-out, those of the ideal observer, and of one who does not know
        how good the campaign about to be sent is, float64[m, H] each."""
        from pipeline.events.observer import Knowledge
        from pipeline.learning.ideal import ideal_probabilities
        from pipeline.learning.truth import true_probabilities

        column = self.backend.column(self.table.keys["event_id"])
        ids = self.backend.to_host(column[self.holdout.index])
        known = {"truth": true_probabilities(self.settings, self.client, ids)}
        for name, knowledge in (("ideal", Knowledge()), ("knowable", Knowledge(quality=False))):
            known[name] = ideal_probabilities(store, self.settings, self.client, ids, knowledge=knowledge)
        nothing = np.full(len(ids), np.nan)
        return {name: np.stack([p.get(head.name, nothing) for head in self.heads], axis=1) for name, p in known.items()}

    def metrics(self, p: np.ndarray) -> dict[str, dict[str, Any]]:
        from pipeline.learning.evaluate import evaluate

        y, mask, weight = (self.holdout.take(name) for name in ("y", "mask", "weight"))
        truth, *others = CEILINGS
        return evaluate(
            *(p, y, mask, weight, self.heads),
            truth=self.ceilings[truth],
            references={name: self.ceilings[name] for name in others},
            cluster=self.table.points(self.holdout.index)[0],
        )

    def short(self, p: np.ndarray) -> dict[str, dict[str, list[float]]]:
        """Head -> {"short_of_ideal": [expected PR-AUC less the ideal observer's, low and high of its 90% interval]}."""
        from pipeline.learning.intervals import difference

        subscriber, _ = self.table.points(self.holdout.index)
        weight, mask = self.holdout.take("weight"), self.holdout.take("mask")
        found = {}
        for h, head in enumerate(self.heads):
            truth, ideal = (self.ceilings[name][:, h] for name in ("truth", "ideal"))
            known = (mask[:, h] > 0) & np.isfinite(truth) & np.isfinite(ideal)
            less = difference(*(column[known] for column in (p[:, h], ideal, truth, weight, subscriber)))
            found[head.name] = {"short_of_ideal": list(less)} if np.isfinite(less).all() else {}
        return found

    def row(self, name: str, head: str, metrics: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """What is kept of one contestant's metrics of one head."""
        kept = {k: metrics[k] for k in KEPT if k in metrics}
        kept["intervals"] = {k: v for k, v in metrics["intervals"].items() if k in INTERVALS and v is not None}
        row = {"client": self.client, "model": name, "head": head, **kept}
        if metrics.get("deciles"):
            row["top_decile"] = metrics["deciles"][0]["expected_over_observed"]
        return row | about
