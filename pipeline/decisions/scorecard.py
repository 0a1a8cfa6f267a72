"""How good each client's model is, beside baselines, the truth and the gate's word, for the report.

The largest clients get charts and every table; the others a row each, so that a report of thousands stays one that a
browser opens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.config import Config
from pipeline.decisions.calibration import reliability_chart
from pipeline.decisions.charts import (
    Axis,
    Series,
    figure,
    human,
    numbers,
    percent,
    plural,
    significant,
    tick_percent,
)

MEASURES = (
    ("PR-AUC", "pr_auc", significant),
    ("over base rate", "pr_auc_over_base_rate", lambda v: f"{v:.1f}×"),
    ("expected PR-AUC", "expected_pr_auc", significant),
    ("of the ideal", "of_ideal", percent),
    ("ROC-AUC", "roc_auc", significant),
    ("normalized entropy", "normalized_entropy", significant),
    ("Gini", "normalized_gini", significant),
    ("rank correlation", "spearman", significant),
    ("mean absolute error", "mean_absolute_error", significant),
    ("expected / observed", "expected_over_observed", significant),
    ("in the top tenth", "top_decile_expected_over_observed", significant),
)
BRIEF = ("pr_auc", "roc_auc", "normalized_gini", "normalized_entropy", "expected_over_observed")  # of a row's client
SCORERS = {
    "base_rate": "base rate",
    "logistic": "logistic regression",
    "boosting": "gradient boosting",
    "gradient_boosting": "gradient boosting",
    "truth": "the true probability",
    "ideal": "ideal observer",
}


def models(metrics: Mapping[str, Any], config: Config, shown: Collection[str]) -> list[dict[str, Any]]:
    """Each shown client's heads against the baselines (and the truth), calibration, budgets and the cost curve.

    The curve is of the model in use, everything else of the one last trained: where that is another, each says whose.
    """
    found = []
    decided = metrics.get("decisions") or {}
    for client, heads in (metrics.get("models") or {}).items():
        if client not in shown:
            continue
        gate = _gate(metrics, client)
        named = "this model" if gate["in_use"] else f"the {gate['state']} version"
        outcomes = [_outcome(n, m, named) for n, m in heads.items() if isinstance(m, Mapping) and n in config.outcomes]
        first = config.decide.hold_when or next(iter(config.decide.reward), None)
        outcomes.sort(key=lambda o: o["name"] != first)
        serving = "" if gate["in_use"] else f"Of {gate['serving']}, which is in use."
        charts = [c for c in [_cost_curve((decided.get(client) or {}).get("backtest"), serving)] if c]
        for outcome in outcomes:
            outcome["of"] = "" if gate["in_use"] else gate["measured"]
            name, m = outcome["name"], heads[outcome["name"]]
            outcome["chart"] = reliability_chart(
                name, m, outcome["write"], named, outcome["of"] and f"Of {outcome['of']}."
            )
        if outcomes and outcomes[0]["chart"]:
            charts.append(outcomes[0].pop("chart"))
        found.append(
            {
                "client": client,
                "charts": charts,
                "more": [o["chart"] for o in outcomes if o.get("chart")],
                "outcomes": outcomes,
                "gate": gate,
            }
        )
    return found


def others(metrics: Mapping[str, Any], config: Config, shown: Collection[str]) -> dict[str, Any] | None:
    """A row for each client that is not shown by itself: of the outcome that the rule turns on, and the gate's word."""
    first = config.decide.hold_when or next(iter(config.decide.reward), None) or next(iter(config.outcomes))
    rows, measures = [], [m for m in MEASURES if m[1] in BRIEF]
    for client, heads in (metrics.get("models") or {}).items():
        if client in shown:
            continue
        m, gate = heads.get(first) or {}, _gate(metrics, client)
        said = "; ".join(gate["reasons"]) if gate["refused"] else m.get("note") or m.get("reason") or ""
        cells = [_cell(m, key, write, m)["value"] for _, key, write in measures]
        row = {"client": client, "rows": m.get("rows"), "positives": m.get("positives"), "cells": cells, "said": said}
        rows.append({**row, "refused": gate["refused"], "pooled": gate["pooled"]})
    if not rows:
        return None
    rows.sort(key=lambda row: (not row["refused"], -(row["rows"] or 0), row["client"]))
    return {"outcome": first, "header": [label for label, _, _ in measures], "rows": rows}


def pooled(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The pooled model where its new version was refused: which, why, and who serves; None where there is no such."""
    found = metrics.get("pooled") or {}
    verdict = found.get("gate") or {}
    if verdict.get("accepted", True):
        return None
    return {"version": found["version"], "serving": found.get("serving"), "reasons": verdict.get("reasons") or []}


def _gate(metrics: Mapping[str, Any], client: str) -> dict[str, Any]:
    """What the gate said of the client's new version, and which one serves.

    ``in_use``: the numbers are of the version that serves; otherwise ``measured`` says which they are of.
    """
    verdict = (metrics.get("gate") or {}).get(client) or {}
    serving = ((metrics.get("decisions") or {}).get(client) or {}).get("model_version")
    serving = serving or (metrics.get("serving") or {}).get(client)
    if not verdict and not serving and (shared := pooled(metrics)):  # served by nobody, the pooled model being refused
        verdict = {**shared, "version": f"@pooled/{shared['version']}", "accepted": False}
    version, refused = verdict.get("version"), not verdict.get("accepted", True)
    by_hand = refused and serving == version
    compared = {n: c.get("words", "") for n, c in (verdict.get("compared") or {}).items()}
    return {
        "version": version,
        "in_use": version is None or serving == version or (serving is None and not refused),
        "state": "refused" if refused else "latest",
        "measured": f"{version}, {'refused' if refused else 'not in use'}",
        "refused": refused,
        "by_hand": by_hand,
        "reasons": verdict.get("reasons") or [],
        "set_aside": verdict.get("set_aside") or {},
        "champion": verdict.get("champion"),
        "compared": compared,
        "drift": (verdict.get("drift") or {}).get("words", ""),
        "serving": serving,
        "pooled": (serving or "").startswith("@pooled/"),
    }


def _outcome(name: str, m: Mapping[str, Any], named: str) -> dict[str, Any]:
    scorers = [(named, m)]
    scorers += [(SCORERS.get(k, k), v) for k, v in (m.get("baselines") or {}).items()]
    scorers += [(SCORERS[k], m[k]) for k in ("ideal", "truth") if m.get(k)]
    used = [
        (label, key, write)
        for label, key, write in MEASURES
        if any(_measure(s, key, m) is not None for _, s in scorers)
    ]
    budgets = {label: b for label, s in scorers if (b := _budgets(s))}
    shares = sorted({share for b in budgets.values() for share in b})
    return {
        "name": name,
        "rows": m.get("rows"),
        "positives": m.get("positives"),
        "base_rate": m.get("base_rate"),
        "header": [label for label, _, _ in used],
        "scores": [(label, [_cell(s, key, write, m) for _, key, write in used]) for label, s in scorers],
        "budget_header": [percent(s) for s in shares],
        "budgets": [
            (label, [(b[s].get("tpr"), b[s].get("fnr")) if s in b else (None, None) for s in shares])
            for label, b in budgets.items()
        ],
        "write": human if m.get("normalized_gini") is not None or "mean" in m else percent,
        "note": m.get("note") or m.get("reason") or "",
    }


def _cell(scorer: Mapping[str, Any], key: str, write: Any, m: Mapping[str, Any]) -> dict[str, str]:
    """A metric and its interval, as they are written."""
    value, ends = _measure(scorer, key, m), (scorer.get("intervals") or {}).get(key)
    low, high = map(write, ends) if ends else ("", "")
    return {
        "value": "–" if value is None else write(value),
        "interval": "" if value is None or low == high else f"{low}–{high}",
    }


def _measure(scorer: Mapping[str, Any], key: str, m: Mapping[str, Any]) -> float | None:
    value = scorer.get(key)
    if value is None and key == "pr_auc_over_base_rate" and scorer.get("pr_auc") is not None and m.get("base_rate"):
        value = scorer["pr_auc"] / m["base_rate"]
    best = (m.get("ideal") or {}).get("expected_pr_auc")
    if key == "of_ideal" and best and scorer.get("expected_pr_auc") is not None:
        value = scorer["expected_pr_auc"] / best
    return None if value is None else float(value)


def _budgets(scorer: Mapping[str, Any]) -> dict[float, Mapping[str, Any]]:
    budgets = scorer.get("budgets") or {}
    if isinstance(budgets, Mapping):
        return {float(share): v for share, v in budgets.items()}
    return {float(b["budget"]): b for b in budgets}


def _cost_curve(test: Mapping[str, Any] | None, whose: str = "") -> Any:
    if not test or not test.get("curve"):
        return None
    curve = [c for c in test["curve"] if c.get("caught_share") is not None]
    if len(curve) < 3:
        return None
    rewards = list(test.get("lost") or {})
    bad = plural(test["hold_when"])
    limit = min([1.0, *(s for s in (0.3, 0.5, 0.7) if s > 1.2 * test["held_share"])])
    # To the point of the curve there: its shares are of whole rows, and may be a hair beyond.
    limit = next((c["held_share"] for c in curve if c["held_share"] > 0.999 * limit), limit)
    series = [Series("at random", [(0.0, 0.0), (limit, limit)], guide=True, dash="4 4")]
    series.append(Series(f"{bad} avoided", [(c["held_share"], c["caught_share"]) for c in curve], 1, dots=True))
    for i, name in enumerate(rewards):
        points = [(c["held_share"], s) for c in curve if (s := c["lost_share"].get(name)) is not None]
        series.append(Series(f"{plural(name)} given up", points, 4 + i % 2, dash="5 3"))
    series.append(Series("this rule", [(test["held_share"], test["caught"]["share"])], 2, dots=True))
    rows = [
        [
            percent(c["held_share"]),
            human(c["cost"]) if c.get("cost") is not None else "–",
            percent(c["caught_share"]),
            *(percent(c["lost_share"].get(n)) for n in rewards),
        ]
        for c in curve
    ]
    high = max(y for s in series for x, y in s.points if x <= limit)
    return figure(
        "What holding more would do",
        f"Past sends the model never saw, held in the order of the rule. It holds {percent(test['held_share'])} "
        f"at a cost of {human(test['cost'])}. {whose}".rstrip(),
        series,
        Axis("share of sends held", 0, limit, tick_percent),
        Axis("share", 0, min(1.0, high * 1.1), tick_percent),
        False,
        numbers(["held", "at a cost above", f"{bad} avoided", *(f"{plural(n)} given up" for n in rewards)], rows),
    )
