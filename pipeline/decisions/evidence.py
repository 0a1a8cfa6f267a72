"""The report's evidence: campaigns and events by day, and how good each model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import Config
from pipeline.decisions.calibration import reliability_chart
from pipeline.decisions.charts import (
    Axis,
    Series,
    day,
    figure,
    human,
    number,
    numbers,
    percent,
    plural,
    significant,
    tick_percent,
)
from pipeline.decisions.sections import share_of
from pipeline.features import rollup

CAMPAIGNS = 12  # rows of the campaign table
RATE_OF = {"unsubscribe": "unsubscribe_rate", "complaint": "complaint_rate"}


# -- campaigns -------------------------------------------------------------------------------------------------


def campaigns(tables: Mapping[str, pd.DataFrame], config: Config) -> list[dict[str, Any]]:
    """For each client its campaigns, the most telling first, and its events by day."""
    return [_campaigns(client, table, config) for client, table in tables.items() if len(table)]


def _campaigns(client: str, table: pd.DataFrame, config: Config) -> dict[str, Any]:
    named, every = rollup.campaigns(table), rollup.whole(table)
    mail = named if len(named) else every
    outcome = config.outcomes.get(config.decide.hold_when or next(iter(config.decide.reward), ""))
    kind = next((k for k in (outcome.kinds if outcome else []) if f"n_{k}" in named.columns), None)
    kinds = sorted((c[2:] for c in table.columns if c.startswith("n_")), key=lambda k: -int(every[f"n_{k}"].sum()))
    key: str | None
    if "deliveries" in named.columns:
        key = RATE_OF.get(kind or "", "unsubscribe_rate")
        key = key if key in named.columns else "click_rate" if "click_rate" in named.columns else None
        # A rate of a handful of deliveries says nothing: rank only those with a fair share of the mail.
        large = named[named["deliveries"] >= 0.1 * named["deliveries"].median()]
        columns: list[tuple[str, str, Any]] = [("sends", "n_send", number), ("delivered", "deliveries", number)]
        columns += [(n.removesuffix("_rate").replace("_", " "), n, percent) for n in rollup.RATES if n in named.columns]
        columns = [c for c in columns if c[1] != key]
    else:
        key = f"unique_{kind}" if kind else None
        large = named
        # Only kinds that carry a campaign.
        columns = [(plural(k), f"n_{k}", number) for k in kinds if len(named) and int(named[f"n_{k}"].sum()) > 0][:5]
        if kind is not None and f"n_{kind}" not in [c[1] for c in columns]:
            columns.append((plural(kind), f"n_{kind}", number))
    ranked = large.sort_values([key or f"n_{kinds[0]}", "campaign"], ascending=[False, True]) if len(large) else large
    shown = ranked.head(CAMPAIGNS)
    peak = float(shown[key].max()) if key and len(shown) else 0.0
    write = percent if key and key.endswith("rate") else number
    rates = [
        {
            "name": name.removesuffix("_rate").replace("_", " "),
            "value": percent(_quotient(mail, above, below)),
            "above": number(int(mail[above].sum())),
            "below": number(int(mail[below].sum())),
            "definition": definition,
        }
        for name, (above, below, definition) in rollup.RATES.items()
        if name in mail.columns
    ]
    return {
        "client": client,
        "total": len(named),
        "rates": rates,
        "key": (key or "").replace("unique_", "subscribers with ").replace("_", " "),
        "header": [c[0] for c in columns],
        "rows": [
            {
                "campaign": row["campaign"],
                "first": f"{row['first']:%-d %b}" if not pd.isna(row["first"]) else "",
                "cells": [c[2](float(row[c[1]])) for c in columns],
                "value": write(float(row[key])) if key else "",
                "bar": round(100 * float(row[key]) / peak, 1) if key and peak > 0 and not pd.isna(row[key]) else 0,
            }
            for row in shown.to_dict("records")
        ],
        "charts": _by_day(table, kinds, kind),
    }


def _quotient(table: pd.DataFrame, above: str, below: str) -> float | None:
    return share_of(float(table[above].sum()), float(table[below].sum()))


def _by_day(table: pd.DataFrame, kinds: list[str], kind: str | None) -> list[Any]:
    days = rollup.daily(table)
    if len(days) < 2:
        return []
    full = days.reindex(pd.date_range(days.index.min(), days.index.max(), freq="D"), fill_value=0)
    instants = (full.index.to_numpy().astype("datetime64[s]").astype(np.int64)).tolist()
    span = (float(instants[0]), float(instants[-1]))
    found = []
    top = [k for k in kinds if int(full[f"n_{k}"].sum()) > 0][:3]
    series = [
        Series(
            plural(k), list(zip(instants, full[f"n_{k}"].astype(float), strict=True)), i + 1, dash=("", "5 3", "2 2")[i]
        )
        for i, k in enumerate(top)
    ]
    high = max((float(full[f"n_{k}"].max()) for k in top), default=1.0)
    rows = [[f"{d:%Y-%m-%d}", *(number(int(full.loc[d, f"n_{k}"])) for k in top)] for d in full.index]
    found.append(
        figure(
            "Events by day",
            "The most frequent kinds, on the client's clock.",
            series,
            Axis("day", *span, day),
            Axis("events", 0, high * 1.05),
            True,
            numbers(["day", *map(plural, top)], rows),
        )
    )
    if kind is not None and "deliveries" in table.columns:
        week = full.rolling(7, min_periods=7).sum()
        below = week["n_send"] - week[[c for c in week if str(c).endswith("bounce")]].sum(axis=1)
        # Days with hardly a delivery have no rate worth drawing.
        rate = (week[f"n_{kind}"] / below.where(below > 0.1 * below.median())).to_numpy(dtype=float)
        line = [(t, r) for t, r in zip(instants, rate.tolist(), strict=True) if np.isfinite(r)]
        if line:
            title = f"{plural(kind).capitalize()} per delivery"
            found.append(
                figure(
                    title,
                    "Over the seven days up to each day.",
                    [Series(f"{kind} rate", line, 4)],
                    Axis("day", *span, day),
                    Axis("rate", 0, max(r for _, r in line) * 1.15, tick_percent),
                    True,
                    numbers(["day", "rate"], [[day(t), percent(r)] for t, r in line]),
                )
            )
    return found


# -- models ----------------------------------------------------------------------------------------------------

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
SCORERS = {
    "base_rate": "base rate",
    "logistic": "logistic regression",
    "boosting": "gradient boosting",
    "gradient_boosting": "gradient boosting",
    "truth": "the true probability",
    "ideal": "ideal observer",
}


def models(metrics: Mapping[str, Any], config: Config) -> list[dict[str, Any]]:
    """Each client's heads against the baselines (and the truth), calibration, budgets and the cost curve.

    The curve is of the model in use, everything else of the one last trained: where that is another, each says whose.
    """
    found = []
    decided = metrics.get("decisions") or {}
    for client, heads in (metrics.get("models") or {}).items():
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
