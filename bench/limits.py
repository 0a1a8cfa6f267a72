"""python -m bench.run limits: what keeps a network below the ideal observer: labels, features, or campaigns' luck.

On the logs, tables and hold-outs of bench/quality.py one kind of network learns from each client's training rows alone,
without pretraining, again and again, each time spared one thing that no real log spares anybody:

    as it is                 the labels and features that there are
    people's labels          labels drawn anew from the true probabilities: none is a machine's, all else is alike
    true probabilities       as labels: what chance made of them is gone
    campaigns' quality       known of each training campaign, 0 (its mean) in the hold-out: their luck misleads nobody
    traits                   what the ideal observer makes of every subscriber's state and traits, beside the features
    traits, probabilities    the last with true probabilities as labels
    traits, quality          and with campaigns' quality

What one of them gains is what the lack of it costs; what the last lacks still is the network's. Beside the ideal
observer, and beside the one who does not know the quality of the campaign about to be sent ("knowable"), as there; each
seed is a process of its own, and what the JSON has is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench import seeds
from pipeline.options import NETWORKS

AS_IT_IS = "as it is"


# -- one seed, in its own process ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each client, case and head."""
    from bench.contest import contests

    rows: list[dict[str, Any]] = []
    for contest in contests(options, seed):
        for name, given in cases(contest, seed).items():
            measured = contest.metrics(learned(contest, options.kind, **given))
            found = [contest.row(name, head, m, {"kind": options.kind}) for head, m in measured.items()]
            for row in found:
                for ceiling in ("ideal", "knowable"):
                    of = measured[row["head"]][ceiling]["expected_pr_auc"]
                    row[f"of_{ceiling}"] = row["expected_pr_auc"] / of
            print(f"    {name}: " + ", ".join(f"{r['head']} {r['of_ideal']:.1%}" for r in found), flush=True)
            rows += [{"seed": seed, **row} for row in found]
    return rows


def cases(contest: Any, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Name -> what is given instead: ``y``, float[n, H], labels; ``more``, float[n, k], columns beside the features,
    and ``then``, what they are in the hold-out where that differs. Of all rows of the contest's table."""
    from pipeline.learning.ideal import ideal_beliefs
    from pipeline.learning.truth import true_probabilities

    training, table, heads = contest.training, contest.table, contest.heads
    ids = contest.backend.to_host(contest.backend.column(table.keys["event_id"]))
    true = true_probabilities(contest.settings, contest.client, ids)
    happened = contest.backend.to_host(table.y)
    truth = np.stack([true.get(head.name, happened[:, h]) for h, head in enumerate(heads)], axis=1)
    truth = np.where(np.isnan(truth), happened, truth)  # of the few that the truth does not know
    drawn = np.random.default_rng(seed).random(truth.shape) < truth
    believed = ideal_beliefs(training.store, contest.settings, contest.client, ids)
    assert believed is not None  # of a simulated log
    believed = np.nan_to_num(believed)  # of a send of no known campaign
    known = quality(contest)
    return {
        AS_IT_IS: {},
        "people's labels": {"y": drawn},
        "true probabilities": {"y": truth},
        "campaigns' quality": {"more": known, "then": np.zeros_like(known)},
        "traits": {"more": believed},
        "traits, probabilities": {"more": believed, "y": truth},
        "traits, quality": {
            "more": np.hstack([believed, known]),
            "then": np.hstack([believed, np.zeros_like(known)]),
        },
    }


def quality(contest: Any) -> np.ndarray:
    """How good each row's campaign truly is, float64[n, 1]; its mean, 0, where there is none."""
    from pipeline.events.behaviour import CAMPAIGNS_A_DAY, calendar, campaign_name
    from pipeline.events.history import make_world
    from pipeline.events.simulate import read_settings

    settings = read_settings(Path(contest.settings.source.truth))
    client = next(c for c in make_world(settings).clients if c.name == contest.client)
    campaigns = contest.backend.to_pandas(contest.table.keys)["campaign"]
    known = {
        campaign_name(client, day * CAMPAIGNS_A_DAY + i): float(found)
        for day in range(settings.days)
        for i, found in enumerate(calendar(client, day).quality)
    }
    return np.array([[known.get(name, 0.0)] for name in campaigns.astype(object)])


def learned(
    contest: Any, kind: str, y: np.ndarray | None = None, more: np.ndarray | None = None, then: np.ndarray | None = None
) -> np.ndarray:
    """A network's predictions of the hold-out, float64[m, H], after training on this client's rows so changed."""
    from dataclasses import replace

    from pipeline.learning.clocks import clocks
    from pipeline.learning.selection import train_selected

    table, backend, ignored = contest.table, contest.backend, clocks(contest.table)
    changed: dict[str, Any] = {} if y is None else {"y": backend.asarray(np.ascontiguousarray(y, dtype=np.float32))}
    X = table.X
    if more is not None:
        X = backend.empty_aligned((len(table.X), table.X.shape[1] + more.shape[1]), np.float32)
        X[:, : table.X.shape[1]] = table.X
        X[:, table.X.shape[1] :] = backend.asarray(more.astype(np.float32))
        ignored, changed["X"] = np.append(ignored, np.zeros(more.shape[1], bool)), X
    rows, valid = (replace(some, **changed) for some in (contest.learned, contest.valid))
    settings = contest.settings.model.model_copy(update={"kind": kind})
    model = train_selected(rows, valid, contest.heads, settings, sequences=table.spec.sequences, ignored=ignored)
    if then is not None:
        X[:, table.X.shape[1] :] = backend.asarray(then.astype(np.float32))
    p: np.ndarray = model.predict(X, contest.holdout.index, sequences=table.sequences)
    return p


# -- all of them -----------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the seeds that the JSON does not have."""

    def missing(rows: list[dict[str, Any]], seed: int) -> list[str]:
        if other := {r["kind"] for r in rows} - {options.kind}:
            raise SystemExit(f"bench.limits: {options.json} is of {', '.join(other)}: name another file with --json")
        return [] if any(r["seed"] == seed for r in rows) else [options.kind]

    return seeds.measure_all("limits", options, missing, lambda rows: {"means": means(rows)}, ("kind",))


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{case: {head: shares of the ceilings' expected PR-AUC, means over clients and seeds, and what of the ideal's is
    won beside "as it is": the mean difference, and half its range over the seeds}}."""
    knowable = seeds.compared(rows, AS_IT_IS, "of_knowable")
    return {
        case: {
            head: {"of_ideal": share, "of_knowable": knowable[case][head][0], "won": won, "half_range": half}
            for head, (share, won, half) in by_head.items()
        }
        for case, by_head in seeds.compared(rows, AS_IT_IS).items()
    }


def table(report: dict[str, Any]) -> str:
    """Each case's share of the ideal, of what is knowable, and in brackets what it wins of the ideal."""
    heads = list(report["means"][AS_IT_IS])
    lines = [f"{'of the ideal / of knowable (won)':34}" + "".join(f"{head:>30}" for head in heads)]
    for case, by_head in report["means"].items():
        cells = []
        for head in heads:
            m = by_head[head]
            won = "" if case == AS_IT_IS else f" ({m['won'] * 100:+.1f} ±{m['half_range'] * 100:.1f})"
            cells.append(f"{m['of_ideal']:.1%} / {m['of_knowable']:.1%}{won}")
        lines.append(f"{case:34}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = seeds.parser("limits", __doc__, 0)
    made.add_argument("--kind", choices=NETWORKS, default="dense")
    return made


def main(arguments: list[str]) -> int:
    return seeds.main("limits", parser().parse_intermixed_args(arguments), measure, run, table)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
