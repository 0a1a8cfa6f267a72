"""python -m bench.run quality: how good each kind of model is, beside what a user would pick instead and the ceiling.

For each seed a log is simulated and ingested, the training table is made once, and every contestant learns from the
same rows and is measured on the same hold-out in time. Networks of features are trained as the product does, so they
begin from one that has seen all clients' rows; ``model.pretrain=false`` leaves them each client's alone, as the others.

    logistic, dense, recurrent, attention, combined     our networks (pipeline/learning/networks)
    boosting     scikit-learn's HistGradientBoosting on the same features, a model a head; settings searched at random
                 in so many trials, stopped early on the validation rows, chosen by their loss
    regression   scikit-learn's logistic regression on the same features
    base_rate    a constant
    truth        the true probabilities, which know what no log shows
    ideal        the ideal observer, who knows how the log came about and sees the log (pipeline/events/observer.py)
    knowable     the same without the quality of the campaign about to be sent, which no log shows before its answers

On a simulated log "expected" metrics take the true probability as a label: no label noise. Numbers are medians over the
seeds of the mean over clients; after ± half the 90% interval of one seed, drawn by subscriber. Each seed is a process
of its own; what the JSON has is not measured again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from typing import Any

from bench import argument, seeds
from bench.contest import CEILINGS, measure
from pipeline.options import NETWORKS

OTHERS = ("boosting", "regression", "base_rate")
SHOWN = ("roc_auc", "pr_auc", "expected_pr_auc", "expected_over_observed", "top_decile", "seconds")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what the JSON does not have yet."""

    def missing(rows: list[dict[str, Any]], seed: int) -> list[str]:
        there = {r["model"] for r in rows if r["seed"] == seed}
        return [kind for kind in options.kinds if kind not in there]

    return seeds.measure_all("quality", options, missing, lambda rows: {"medians": medians(rows)}, ("kinds", "trials"))


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{head: {model: {metric: median over the seeds of the mean over clients}}}; ``of_ideal`` and so on: the
    ratio of the expected PR-AUC to a ceiling's, of the same seed; ``<metric>_half``: half the 90% interval of one seed,
    that of ``of_ideal`` paired by subscriber; ``seconds``: of all clients, for all heads."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for head in dict.fromkeys(r["head"] for r in rows):
        mine = [r for r in rows if r["head"] == head]
        seeds = list(dict.fromkeys(r["seed"] for r in mine))
        by_seed = {(s, m): [r for r in mine if (r["seed"], r["model"]) == (s, m)] for s in seeds for m in _models(mine)}
        found[head] = {}
        for model in _models(mine):
            each: dict[str, list[float]] = {}
            for seed in seeds:
                for name, value in _seed(by_seed, seed, model).items():
                    each.setdefault(name, []).append(value)
            found[head][model] = {name: statistics.median(values) for name, values in each.items()}
    return found


def _models(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["model"] for r in rows))


def _seed(by_seed: dict[Any, list[dict[str, Any]]], seed: int, model: str) -> dict[str, float]:
    rows = by_seed[seed, model]
    found = {}
    for name in ("base_rate", "expected_roc_auc", "normalized_entropy", *SHOWN):
        values = [r[name] for r in rows if r.get(name) is not None]
        if values:
            found[name] = sum(values) if name == "seconds" else statistics.fmean(values)
    for name in ("roc_auc", "expected_pr_auc"):
        halves = [(i[1] - i[0]) / 2 for r in rows if (i := r.get("intervals", {}).get(name))]
        if halves and name in found:
            found[f"{name}_half"] = math.hypot(*halves) / len(halves)  # clients share no subscriber
    ideal = [r["expected_pr_auc"] for r in by_seed.get((seed, "ideal"), [])]
    if ideal and rows and all("short_of_ideal" in r for r in rows):
        halves = [(r["short_of_ideal"][2] - r["short_of_ideal"][1]) / 2 for r in rows]
        found["of_ideal_half"] = math.hypot(*halves) / sum(ideal)  # paired, so less than of the two apart
    for name in CEILINGS:
        ceiling = [r["expected_pr_auc"] for r in by_seed.get((seed, name), [])]
        if ceiling and "expected_pr_auc" in found:
            found[f"of_{name}"] = found["expected_pr_auc"] / statistics.fmean(ceiling)
    return found


def table(report: dict[str, Any]) -> str:
    """For each head and contestant: discrimination, share of the ceilings, calibration and seconds."""
    columns = {
        "roc_auc": ("ROC-AUC", 15, ".4f"),
        "expected_roc_auc": ("expected ROC-AUC", 16, ".4f"),
        "pr_auc": ("PR-AUC", 7, ".4f"),
        "expected_pr_auc": ("expected PR-AUC", 17, ".5f"),
        "of_ideal": ("of ideal", 13, ".1%"),
        "of_knowable": ("of knowable", 11, ".1%"),
        "of_truth": ("of truth", 8, ".1%"),
        "expected_over_observed": ("E/O", 5, ".2f"),
        "top_decile": ("E/O top", 7, ".2f"),
        "seconds": ("seconds", 7, ".0f"),
    }
    lines = []
    for head, models in report["medians"].items():
        lines += ["", f"{head:12} {' '.join(f'{title:>{width}}' for title, width, _ in columns.values())}"]
        for model in sorted(models, key=lambda m: -models[m].get("expected_pr_auc", 0.0)):
            found, cells = models[model], []
            for name, (_, width, form) in columns.items():
                text = f"{found[name]:{form}}" if name in found else ""
                if half := found.get(f"{name}_half"):
                    text += f" ±{half:{form}}"
                cells.append(f"{text:>{width}}")
            lines.append(f"{model:12} {' '.join(cells)}".rstrip())
    return "\n".join(lines[1:])


def parser() -> argparse.ArgumentParser:
    made = seeds.parser("quality", __doc__, 64)
    made.add_argument("--kinds", type=_kinds, default=[*NETWORKS, *OTHERS], help="comma-separated, auto too")
    made.add_argument("--trials", type=argument.count, default=4, help="settings of boosting that are tried")
    return made


def _kinds(text: str) -> list[str]:
    known = [*NETWORKS, "auto", *OTHERS]
    if unknown := [k for k in text.split(",") if k not in known]:
        raise argparse.ArgumentTypeError(f"no such kind: {', '.join(unknown)}; there are {', '.join(known)}")
    return text.split(",")


def main(arguments: list[str]) -> int:
    return seeds.main("quality", parser().parse_intermixed_args(arguments), measure, run, table)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
