"""python -m bench.run ablation: what a network's quality comes from: groups of features, and how many rows there are.

On the logs, tables and hold-outs of bench/quality.py one kind of network is trained on everything; then once without
each group of features; and on a half, a quarter and so on of the subscribers. What a group is worth beyond all the
others is the difference; what more data would bring, the slope. Beside the ideal observer, as there; each seed is a
process of its own, and what the JSON has is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from bench import seeds
from pipeline.options import NETWORKS

SHARES = (0.5, 0.25, 0.125, 0.0625)  # of the subscribers
EVERYTHING = "everything"


# -- one seed, in its own process ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each client, variant and head."""
    from bench.contest import contests

    rows: list[dict[str, Any]] = []
    for contest in contests(options, seed):
        learned = contest.learned
        variants: list[tuple[str, Any, Any]] = [(EVERYTHING, learned, None)]
        variants += [(f"without {g}", learned, m) for g, m in groups(contest.table.spec, contest.settings).items()]
        variants += [(f"{share:.4g} of the subscribers", some(contest.table, learned, share), None) for share in SHARES]
        for name, given, ignored in variants:
            p, about = contest.network(options.kind, given, ignored)
            measured = contest.metrics(p)
            about |= {"learned": len(given), "features": int(contest.table.X.shape[1] - np.sum(ignored or 0))}
            found = [contest.row(name, head, m, about) for head, m in measured.items()]
            for row in found:
                row["of_ideal"] = row["expected_pr_auc"] / measured[row["head"]]["ideal"]["expected_pr_auc"]
            print(f"    {name}: " + ", ".join(f"{r['head']} {r['of_ideal']:.1%}" for r in found), flush=True)
            rows += [{"seed": seed, **row} for row in found]
    return rows


def groups(spec: Any, config: Any) -> dict[str, list[bool]]:
    """Group of features -> bool[F], the columns of X that go where it is left out; groups without any are not there."""
    from pipeline.features.spec import FeatureSpec

    found = {}
    for group in config.features.groups:
        others = [g for g in config.features.groups if g != group]
        without = config.model_copy(update={"features": config.features.model_copy(update={"groups": others})})
        left = {f.name for f in FeatureSpec.from_config(without, spec.kinds).features} if others else set()
        found[group] = [f.name not in left and f.op != "context" for f in spec.features]
    found["context"] = [f.op == "context" for f in spec.features]
    return {group: columns for group, columns in found.items() if any(columns)}


def some(table: Any, rows: Any, share: float) -> Any:
    """The rows of a share of the subscribers, the same ones in every run and in every larger share."""
    from pipeline.features.kernels import hashed_share

    subscriber, _ = table.points(rows.index)
    return rows.chosen(rows.index[hashed_share(np, share, 0, subscriber.view(np.uint64))])


# -- all of them -----------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the seeds that the JSON does not have."""

    def missing(rows: list[dict[str, Any]], seed: int) -> list[str]:
        return [] if any(r["seed"] == seed for r in rows) else [options.kind]

    return seeds.measure_all("ablation", options, missing, lambda rows: {"means": means(rows)}, ("kind",))


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{variant: {head: share of the ideal's expected PR-AUC, mean over clients and seeds, and what is lost: the mean
    difference to everything, and half its range over the seeds}}."""
    return {
        variant: {
            head: {"of_ideal": share, "lost": -more, "half_range": half} for head, (share, more, half) in m.items()
        }
        for variant, m in seeds.compared(rows, EVERYTHING).items()
    }


def table(report: dict[str, Any]) -> str:
    """Each variant's share of the ideal, and in brackets what it is below everything."""
    heads = list(report["means"][EVERYTHING])
    lines = [f"{'share of the ideal (lost)':32}" + "".join(f"{head:>24}" for head in heads)]
    for variant, by_head in report["means"].items():
        cells = []
        for head in heads:
            m = by_head[head]
            lost = "" if variant == EVERYTHING else f" ({-m['lost'] * 100:+.1f} ±{m['half_range'] * 100:.1f})"
            cells.append(f"{m['of_ideal']:.1%}{lost}")
        lines.append(f"{variant:32}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = seeds.parser("ablation", __doc__, 0)
    made.add_argument("--kind", choices=NETWORKS, default="dense")
    return made


def main(arguments: list[str]) -> int:
    return seeds.main("ablation", parser().parse_intermixed_args(arguments), measure, run, table)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
