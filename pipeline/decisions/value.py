"""What the held list is worth: expected from the probabilities, and observed on the hold-out.

Only what the next send itself leads to is counted; that somebody kept on the list clicks next month is not.
Intervals cover 90%: for expected numbers the spread of the outcomes given the probabilities (a sum of independent
Bernoullis, normal approximation), not the model's own error; for observed shares Wilson's interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.decisions.assure import Rule, expected
from pipeline.learning import reliability

Z90 = 1.6448536269514722

# Shares of sends held back at which the backtest's curve is given.
_CURVE = "0 .001 .002 .005 .01 .02 .03 .05 .075 .1 .15 .2 .3 .4 .5 .6 .7 .8 .9 1"
CURVE = tuple(float(share) for share in _CURVE.split())


def wilson(count: float, of: float) -> tuple[float, float] | None:
    """90% interval of a share (Wilson 1927); None of nothing."""
    return reliability.wilson(count / of, of) if of > 0 else None


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _amount(p: np.ndarray, chosen: np.ndarray, eligible: np.ndarray, binary: bool) -> dict[str, Any]:
    total = float(p[chosen].sum())
    whole = float(p[eligible].sum())
    amount: dict[str, Any] = {"expected": total, "of": whole, "share": _share(total, whole)}
    if binary:
        half = Z90 * math.sqrt(float((p[chosen] * (1 - p[chosen])).sum()))
        amount |= {"low": max(0.0, total - half), "high": total + half}
    return amount


def expected_effect(
    decisions: pd.DataFrame,
    rule: Rule,
    *,
    sums: Sequence[str] = (),
    truth: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """What holding the held rows is expected to avoid and to give up.

    Args:
        decisions: one client's rows of one as_of, with the columns of the decisions table.
        sums: outcomes that are amounts and not probabilities; they get no interval.
        truth: outcome -> float[n], the simulator's probability for the same rows.
    Returns:
        A JSON-ready summary: ``rows``, ``actions``, ``reasons``, ``held`` (by the rule), ``avoided``
        {expected, low, high, of, share}, ``given_up`` {outcome: the same}, ``net`` {expected, low, high} in units of
        reward, ``first_wave`` {outcome: share of what is expected of all sends}, ``truth`` when given.
    """
    action = decisions["action"].to_numpy()
    reason = decisions["reason"].to_numpy()
    held = reason == f"{rule.hold_when}_risk"
    # Those the rule could choose among: scored, and not suppressed.
    eligible = held | (action == "send") | (action == "explore")
    p = {
        name: np.nan_to_num(decisions[f"p_{name}"].to_numpy(dtype=np.float64, na_value=np.nan))
        for name in rule.heads
        if f"p_{name}" in decisions.columns and decisions[f"p_{name}"].notna().any()
    }
    sent = (action == "send") | (action == "explore")
    first = (decisions["wave"].fillna(0).to_numpy() == 1) & sent
    summary: dict[str, Any] = {
        "rows": len(decisions),
        "eligible": int(eligible.sum()),
        "held": int(held.sum()),
        "explored": int((action == "explore").sum()),
        "suppressed": int((reason == "suppressed").sum()),
        "unscored": int((action == "unscored").sum()),
        "sent": int(sent.sum()),
        "actions": _counts(action),
        "reasons": _counts(reason),
        "rule": {"hold_when": rule.hold_when, "cost": rule.cost, "reward": dict(rule.reward), "explore": rule.explore},
        "waves": [int(n) for n in np.bincount(decisions["wave"].fillna(0).to_numpy(dtype=np.int64))[1:]],
        "first_wave": {
            n: _share(float(v[first].sum()), float(v[sent].sum())) for n, v in p.items() if n in rule.reward
        },
    }
    summary |= _effect(p, rule, held, eligible, sums)
    if truth is not None:
        known = {name: np.asarray(truth[name], dtype=np.float64) for name in rule.heads if name in truth}
        summary["truth"] = _effect(known, rule, held, eligible, sums)
    return summary


def _effect(
    p: Mapping[str, np.ndarray], rule: Rule, held: np.ndarray, eligible: np.ndarray, sums: Sequence[str]
) -> dict[str, Any]:
    effect: dict[str, Any] = {"avoided": None, "given_up": {}, "net": None}
    if rule.hold_when is None or rule.hold_when not in p:
        return effect
    effect["avoided"] = _amount(p[rule.hold_when], held, eligible, True)
    effect["given_up"] = {n: _amount(p[n], held, eligible, n not in sums) for n in rule.reward if n in p}
    net = rule.cost * effect["avoided"]["expected"]
    net -= sum(rule.reward[n] * amount["expected"] for n, amount in effect["given_up"].items())
    effect["net"] = {"expected": net}
    if not any(n in sums for n in effect["given_up"]):
        # Outcomes of one send are taken as independent of each other.
        variance = sum(
            weight * weight * float((p[name][held] * (1 - p[name][held])).sum())
            for name, weight in [(rule.hold_when, rule.cost), *rule.reward.items()]
            if name in p
        )
        half = Z90 * math.sqrt(variance)
        effect["net"] |= {"low": net - half, "high": net + half}
    return effect


def _counts(values: Any) -> dict[str, int]:
    names, counts = np.unique(np.asarray(values, dtype=str), return_counts=True)
    return {str(n): int(c) for n, c in zip(names, counts, strict=True)}


def backtest(
    p: np.ndarray,
    y: np.ndarray,
    mask: np.ndarray,
    heads: Sequence[str],
    rule: Rule,
    *,
    truth: Mapping[str, np.ndarray] | None = None,
    shares: Sequence[float] = CURVE,
) -> dict[str, Any] | None:
    """The rule applied to sends that were made: what the held ones among them led to.

    Args:
        p: float[n, H], predictions on the hold-out; NaN columns are heads without a model.
        y: float[n, H], outcomes observed. mask: float[n, H], 1 where the outcome is known.
        heads: the H outcomes' names, in column order.
        truth: outcome -> float[n], the simulator's probabilities of the same sends.
        shares: of sends held back, ascending, at which the curve is given.
    Returns:
        ``rows``, ``held``, ``held_share``, ``caught`` {count, of, share, low, high}, ``lost`` {outcome: the same},
        ``rate_held`` and ``rate_sent`` of the ``hold_when`` outcome, ``net``, ``truth`` (expected counts under the
        truth), and ``curve``: at each share the cost at which the rule holds that share, and the shares caught and
        lost. None when the rule holds nothing, or its head was not learnt or not observed.
    """
    column = {name: i for i, name in enumerate(heads)}
    if rule.hold_when is None or rule.hold_when not in column:
        return None
    used = [name for name in rule.heads if name in column and np.isfinite(p[:, column[name]]).any()]
    if rule.hold_when not in used:
        return None
    rows = np.ones(len(p), dtype=bool)
    for name in used:
        rows &= (mask[:, column[name]] > 0) & np.isfinite(p[:, column[name]])
    n = int(rows.sum())
    if n == 0:
        return None
    probability = {name: p[rows, column[name]].astype(np.float64) for name in used}
    observed = {name: y[rows, column[name]].astype(np.float64) for name in used}
    loss, gain = expected(probability, rule, probability[rule.hold_when])
    held = loss > gain

    def tally(name: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        count, whole = float(values[name][held].sum()), float(values[name].sum())
        # An amount is not a count of successes and gets no interval.
        interval = wilson(count, whole) if ((values[name] == 0) | (values[name] == 1)).all() else None
        spread = {"low": interval[0], "high": interval[1]} if interval else {}
        return {"count": count, "of": whole, "share": _share(count, whole), **spread}

    caught = tally(rule.hold_when, observed)
    lost = {name: tally(name, observed) for name in rule.reward if name in used}
    result: dict[str, Any] = {
        "rows": n,
        "hold_when": rule.hold_when,
        "cost": rule.cost,
        "held": int(held.sum()),
        "held_share": float(held.mean()),
        "caught": caught,
        "lost": lost,
        "rate_held": _share(caught["count"], float(held.sum())),
        "rate_sent": _share(caught["of"] - caught["count"], float(n - held.sum())),
        "net": rule.cost * caught["count"] - sum(rule.reward[k] * v["count"] for k, v in lost.items()),
        "curve": _curve(probability[rule.hold_when], gain, observed, rule.hold_when, shares),
    }
    if truth is not None and rule.hold_when in truth:
        known = {k: np.asarray(v, dtype=np.float64)[rows] for k, v in truth.items()}
        result["truth"] = {
            "caught": tally(rule.hold_when, known),
            "lost": {name: tally(name, known) for name in rule.reward if name in known},
        }
    return result


def _curve(
    risk: np.ndarray, gain: np.ndarray, observed: Mapping[str, np.ndarray], hold_when: str, shares: Sequence[float]
) -> list[dict[str, Any]]:
    """One sort serves every cost: a row is held exactly when the cost exceeds its own break-even, gain / risk."""
    with np.errstate(divide="ignore", invalid="ignore"):
        breakeven = np.where(risk > 0, gain / risk, np.inf)
    order = np.argsort(breakeven, kind="stable")
    totals = {name: np.concatenate([[0.0], np.cumsum(values[order])]) for name, values in observed.items()}
    curve = []
    for share in shares:
        k = round(share * len(order))
        # Holding the first k needs a cost above the k-th break-even; None when no cost is high enough.
        cost = float(breakeven[order[k - 1]]) if k else 0.0
        parts = {name: _share(float(total[k]), float(total[-1])) for name, total in totals.items()}
        curve.append(
            {
                "held_share": k / len(order),
                "cost": cost if math.isfinite(cost) else None,
                "caught_share": parts.pop(hold_when),
                "lost_share": parts,
            }
        )
    return curve
