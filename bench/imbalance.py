"""python -m bench.run imbalance: what each way of handling a rare outcome does to ranking, calibration and time.

A log is simulated and ingested once; every way learns from the same decision points (downsampled ones where that is the
way), with the same network and seed, and is measured on the same hold-out. Ways (pipeline/learning/imbalance.py):
none, downsample, recalibrated, class_weights and focal; "uncorrected" is the same network without the exact correction,
"calibrated" the same after ``model.calibration: auto`` on the validation rows. On a simulated log the expected PR-AUC
takes the true probability as a label. ECE stands beside what noise alone would make it. Medians over the seeds.

A seed that the JSON has is not measured again.

"slices" answers whether the validation rows that stopped the training may calibrate as well: training is stopped on one
half of their subscribers, and a slope and an intercept are fitted to that half, or to the other; then the halves change
places. ``gap`` is how much log loss on the hold-out the half that stopped costs more, with its interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import argument
from pipeline.errors import EventgrainError

HERE = Path(__file__).parent
WAYS = ("none", "downsample", "recalibrated", "class_weights", "focal")
METRICS = (
    *("rows", "positives", "base_rate", "roc_auc", "pr_auc", "expected_pr_auc", "normalized_entropy", "log_loss"),
    *("brier", "expected_over_observed", "top_decile_expected_over_observed", "ece", "ece_noise", "intervals"),
)
COLUMNS = {
    "roc_auc": ("ROC-AUC", ".4f"),
    "pr_auc": ("PR-AUC", ".4f"),
    "expected_pr_auc": ("expected", ".4f"),
    "normalized_entropy": ("norm. entropy", ".4f"),
    "expected_over_observed": ("E/O", ".3f"),
    "top_decile_expected_over_observed": ("E/O top", ".3f"),
    "ece": ("ECE", ".5f"),
    "ece_noise": ("noise", ".5f"),
    "seconds": ("seconds", ".1f"),
}


def say(text: str) -> None:
    print(text, flush=True)


class Contest:
    """One client of one simulated log, and what each way makes of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        from pipeline import config, invocation
        from pipeline.backend import choose
        from pipeline.demo import with_source
        from pipeline.events.store import EventStore

        home = options.data / f"imbalance-{options.events}"
        changes = ["name=log", f"runs={home}", f"simulate.events={options.events}", "backend=cpu", *options.options]
        settings = config.load(None, changes)
        invocation.run(settings, "rollup")
        self.options, self.settings = options, with_source(settings)
        self.store = EventStore(self.settings.store_uri, choose(self.settings.backend))
        self.backend, self.client = self.store.backend, self.store.clients()[0]
        self.tables: dict[float, tuple[Any, float]] = {}

    def table(self, rate: float) -> tuple[Any, float]:
        """The decision points at a rate of downsampling, and the seconds that they took."""
        if rate not in self.tables:
            from pipeline.learning.data import training_data
            from pipeline.stages import end_of_data

            imbalance = "downsample" if rate < 1 else "none"
            model = self.settings.model.model_copy(update={"downsample": rate, "imbalance": imbalance})
            settings = self.settings.model_copy(update={"model": model})
            began, as_of = time.perf_counter(), end_of_data(settings, self.store, self.client)
            rollups = settings.run_dir / "rollups"
            made = training_data(self.store, self.client, settings, self.backend, as_of, rollups).whole
            self.tables[rate] = made, time.perf_counter() - began
        return self.tables[rate]

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """A row for each way and head."""
        found = []
        for way in WAYS:
            rate = self.options.rate if way in ("downsample", "recalibrated") else 1.0
            table, seconds = self.table(rate)
            update = {"imbalance": way, "downsample": rate, "seed": seed}
            model, spent = self.trained(table, self.settings.model.model_copy(update=update))
            plain = self.measured(model, table)
            taught = [(label.positive_weight, label.gamma) for label in model.labels]
            variants = {way: plain}
            if any(weight != 1 or gamma for weight, gamma in taught):
                variants[f"{way}, uncorrected"] = self.measured(self.uncorrected(model), table)
            self.calibrate(model, table)
            needed = any(c.kind != "none" for c in model.calibration.values())
            variants[f"{way}, calibrated"] = self.measured(model, table) if needed else plain
            say(f"seed {seed}: {way} in {spent:.1f} s, {len(model.history)} epochs")
            for name, heads in variants.items():
                for head, metrics in heads.items():
                    kept = {k: metrics[k] for k in METRICS if k in metrics}
                    if name == f"{way}, calibrated":
                        kept["calibration"] = model.calibration[head].kind if head in model.calibration else "none"
                    row = {"seed": seed, "way": name, "head": head, "training_rows": model.labels[0].rows, **kept}
                    found.append({**row, "seconds": spent, "table_seconds": seconds})
        return found

    def trained(self, table: Any, settings: Any, valid: Any = None) -> tuple[Any, float]:
        from pipeline.features.samples import TRAIN, VALIDATION
        from pipeline.learning.clocks import clocks
        from pipeline.learning.models import heads_of
        from pipeline.learning.rows import select
        from pipeline.learning.train import train

        began = time.perf_counter()
        valid = select(table, VALIDATION) if valid is None else valid
        model = train(select(table, TRAIN), valid, heads_of(self.settings), settings, ignored=clocks(table))
        return model, time.perf_counter() - began

    def uncorrected(self, model: Any) -> Any:
        """The same network, its raw outputs taken for probabilities as they are."""
        from dataclasses import replace

        from pipeline.learning.model import TrainedModel

        return TrainedModel(model.network, [replace(label, positive_weight=1.0, gamma=0.0) for label in model.labels])

    def calibrate(self, model: Any, table: Any) -> None:
        from pipeline.features.samples import VALIDATION
        from pipeline.learning.rows import select

        valid = select(table, VALIDATION)
        model.calibrate(valid, *table.points(valid.index), "auto")

    def measured(self, model: Any, table: Any) -> dict[str, dict[str, Any]]:
        from pipeline.features.samples import HOLDOUT
        from pipeline.learning.evaluate import evaluate
        from pipeline.learning.rows import select
        from pipeline.learning.truth import true_probabilities

        rows, backend = select(table, HOLDOUT), self.backend
        ids = backend.to_host(backend.column(table.keys["event_id"])[rows.index])
        known = true_probabilities(self.settings, self.client, ids)
        truth = np.stack([known.get(head.name, np.full(len(ids), np.nan)) for head in model.heads], axis=1)
        p, (y, mask, weight) = model.predict(table.X, rows.index), (rows.take(n) for n in ("y", "mask", "weight"))
        whose = table.points(rows.index)[0]
        return evaluate(p, y, mask, weight, model.heads, truth=truth, cluster=whose)

    def slices(self, seed: int) -> list[dict[str, Any]]:
        """For each head and half of the validation's subscribers: what calibrating on the half that stopped costs."""
        from pipeline.features.samples import VALIDATION
        from pipeline.learning.rows import select

        table, _ = self.table(1.0)
        valid = select(table, VALIDATION)
        whose = table.points(valid.index)[0]
        half = np.isin(whose, np.random.default_rng(seed).permutation(np.unique(whose))[::2])
        index = self.backend.xp.flatnonzero(table.split == VALIDATION)
        halves = [valid.chosen(index[self.backend.asarray(np.flatnonzero(some))]) for some in (half, ~half)]
        settings, found = self.settings.model.model_copy(update={"seed": seed}), []
        for k in range(2):  # the halves change places, so that what one of them knows better cancels
            model, _ = self.trained(table, settings, halves[k])
            found += [{"seed": seed, "half": k, **row} for row in self.gaps(model, table, halves[k], halves[1 - k])]
        return found

    def gaps(self, model: Any, table: Any, stopped: Any, other: Any) -> list[dict[str, Any]]:
        """Log loss on the hold-out when calibrated on ``stopped``, less that on ``other``, for each head."""
        from pipeline.features.samples import HOLDOUT
        from pipeline.learning.intervals import difference
        from pipeline.learning.rows import select

        holdout, scores = select(table, HOLDOUT), []
        for rows in (stopped, other):
            model.calibrate(rows, *table.points(rows.index), "temperature")
            scores.append(self.backend.to_host(model.predict(table.X, holdout.index)).astype(np.float64))
        y, mask, weight = (self.backend.to_host(holdout.take(n)) for n in ("y", "mask", "weight"))
        clusters, found = table.points(holdout.index)[0], []
        for h, head in enumerate(model.heads):
            some = mask[:, h] > 0
            first, second = (score[some, h] for score in scores)
            gap = difference(first, second, y[some, h], weight[some], clusters[some], "log_loss")
            found.append({"head": head.name, "gap": gap})
        return found


def summary(slices: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{head: mean gap over seeds and halves, and its standard error over the seeds}."""
    found = {}
    for head in dict.fromkeys(row["head"] for row in slices):
        mine = [row for row in slices if row["head"] == head]
        seeds = {row["seed"] for row in mine}
        each = [statistics.fmean(row["gap"][0] for row in mine if row["seed"] == seed) for seed in seeds]
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("inf")
        found[head] = {"gap": statistics.fmean(each), "standard_error": error, "seeds": len(each)}
    return found


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{head: {way: {metric: median over the seeds}}}; a way without a number in any seed has none."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        found.setdefault(row["head"], {}).setdefault(row["way"], {})
    for head, ways in found.items():
        for way, metrics in ways.items():
            mine = [r for r in rows if (r["head"], r["way"]) == (head, way)]
            for name in COLUMNS:
                values = [r[name] for r in mine if r.get(name) is not None]
                if values:
                    metrics[name] = statistics.median(values)
            metrics["seeds"] = len(mine)
    return found


def table(report: dict[str, Any]) -> str:
    lines = []
    for head, ways in report["medians"].items():
        lines += ["", f"{head:30} " + " ".join(f"{title:>13}" for title, _ in COLUMNS.values())]
        for way, metrics in ways.items():
            cells = [f"{metrics[n]:>13{form}}" if n in metrics else " " * 13 for n, (_, form) in COLUMNS.items()]
            lines.append(f"{way:30} {' '.join(cells)}")
    lines.append("")
    for head, found in summary(report["slices"]).items():
        words = (
            f"log loss {found['gap']:+.2g}, standard error {found['standard_error']:.2g} over {found['seeds']} seeds"
        )
        lines.append(f"{head}: calibrated on the rows that stopped the training, not on others: {words}")
    return "\n".join(lines[1:])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m bench.run imbalance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("options", nargs="*", metavar="key=value", help="of the run's configuration, as model.epochs=10")
    made.add_argument("--events", type=argument.count, default=2_000_000, help="of the log, e.g. 5e6")
    made.add_argument("--rate", type=float, default=0.1, help="share of negatives that downsampling keeps")
    made.add_argument("--seeds", type=argument.numbers, default=[1, 2, 3])
    made.add_argument("--data", type=Path, default=HERE / "data", help="where the log and its store are made and kept")
    made.add_argument("--json", type=Path, help="by default bench/results/imbalance-EVENTS.json")
    return made


def main(arguments: list[str]) -> int:
    from bench.report import machine
    from bench.run import short, write

    options = parser().parse_intermixed_args(arguments)
    options.data = options.data.resolve()
    path = options.json or HERE / "results" / f"imbalance-{short(options.events)}.json"
    report: dict[str, Any] = {"results": [], "slices": []}
    method = {name: getattr(options, name) for name in ("events", "rate", "options")}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        report = before if before["method"] == method else report
    contest: Contest | None = None
    missing = [seed for seed in options.seeds if seed not in {row["seed"] for row in report["results"]}]
    try:
        for seed in missing:
            contest = contest or Contest(options)
            results = [*report["results"], *contest.rows(seed)]
            slices = [*report["slices"], *contest.slices(seed)]
            report = {"machine": machine(), "method": method, "medians": medians(results)}
            report |= {"slices": slices, "results": results}
            write(report, path)
    except EventgrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(table(report))
    say(f"results: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
