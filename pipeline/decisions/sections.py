"""What each section of the report says, as plain structures that the template lays out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.decisions.assure import Rule
from pipeline.decisions.charts import human, percent, plural, spark
from pipeline.decisions.value import wilson


def _sum(parts: Iterable[Mapping[str, Any] | None], key: str) -> float:
    return float(sum((p or {}).get(key) or 0 for p in parts))


def _of(part: float, whole: float, what: str) -> str:
    return f"{human(part)} of {human(whole)} {what} ({percent(part / whole)})" if whole > 0 else f"{human(part)} {what}"


def _join(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# -- the answer ------------------------------------------------------------------------------------------------


def answer(decided: Mapping[str, Any], rule: Rule, exposure: str | None = "send") -> dict[str, Any] | None:
    """The headline, the sentences below it, the cards, and one row per client."""
    clients = list(decided.values())
    if not clients:
        return None
    following = (
        "the next message" if exposure == "send" else f"the next {exposure.replace('_', ' ')}" if exposure else ""
    )
    unit = next((c["unit"] for c in clients if c.get("unit")), "subscribers")
    eligible, held = _sum(clients, "eligible"), _sum(clients, "held")
    sent, explored = _sum(clients, "sent"), _sum(clients, "explored")
    new = sum(_too_new(c) for c in clients)
    aside = [
        f"{human(count)} {words}"
        for count, words in (
            (
                _sum(clients, "suppressed"),
                "are suppressed (they left, complained or bounced for good, or are on your list)",
            ),
            (new, "are too new to score and left to your usual practice"),
            (_sum(clients, "unscored") - new, "have no model and are left to your usual practice"),
        )
        if count
    ]
    found: dict[str, Any] = {"unit": unit, "aside": (_join(aside) + ".") if aside else "", "checked": ""}
    cards: list[dict[str, Any]] = []
    if not eligible and _sum(clients, "unscored") > new:
        found |= {"headline": "Nobody is scored: no model is in use.", "detail": ""}
    elif rule.hold_when is None:
        found |= _ranking(clients, unit, sent, following)
        cards = found["cards"]
    elif all(c.get("avoided") is None for c in clients):
        found["headline"] = f"Nobody is held: there are too few {plural(rule.hold_when)} to learn from."
        found["detail"] = f"{human(sent)} {unit} are ranked by their expected reward."
    else:
        bad = plural(rule.hold_when)
        avoided = [c.get("avoided") for c in clients]
        found["headline"] = (
            f"Hold {human(held)} of {human(eligible)} {unit}{f' from {following}' if following else ''}."
        )
        given_up = {
            name: [(c.get("given_up") or {}).get(name) for c in clients]
            for name in rule.reward
            if any(name in (c.get("given_up") or {}) for c in clients)
        }
        cost = [_of(_sum(parts, "expected"), _sum(parts, "of"), plural(name)) for name, parts in given_up.items()]
        found["detail"] = f"That is expected to avoid {_of(_sum(avoided, 'expected'), _sum(avoided, 'of'), bad)}" + (
            f", and to give up {_join(cost)}." if cost else "."
        )
        found["checked"] = _checked(clients, rule)
        net = _sum([c.get("net") for c in clients], "expected")
        cards = [
            {
                "value": human(held),
                "label": "held",
                "note": f"{percent(held / eligible) if eligible else '–'} of {unit}",
            },
            {
                "value": human(_sum(avoided, "expected")),
                "label": f"{bad} avoided",
                "note": f"{percent(_ratio(avoided))} of those expected",
                "tone": "good",
            },
            *(
                {
                    "value": human(_sum(parts, "expected")),
                    "label": f"{plural(name)} given up",
                    "note": f"{percent(_ratio(parts))} of those expected",
                    "tone": "bad",
                }
                for name, parts in given_up.items()
            ),
            {
                "value": ("+" if net > 0 else "") + human(net),
                "label": "net value",
                "note": f"one {rule.hold_when.replace('_', ' ')} costs {human(rule.cost)}"
                + "".join(f", one {n.replace('_', ' ')} earns {human(w)}" for n, w in rule.reward.items()),
            },
        ]
        if explored:
            note = f"drawn from the {human(held + explored)} that the rule would hold"
            cards.append({"value": human(explored), "label": "sent to keep learning", "note": note})
    return {**found, "cards": cards, "rows": [_client_row(n, c, rule) for n, c in decided.items()]}


def _too_new(client: Mapping[str, Any]) -> float:
    """Of the unscored, those who have too little history; the others have no model."""
    unscored = float(client.get("unscored") or 0)
    return min(float(client.get("reasons", {}).get("too_new", 0 if "reasons" in client else unscored)), unscored)


def _ratio(parts: Iterable[Mapping[str, Any] | None]) -> float | None:
    parts = list(parts)
    whole = _sum(parts, "of")
    return _sum(parts, "expected") / whole if whole > 0 else None


def _ranking(clients: list[Mapping[str, Any]], unit: str, sent: float, following: str) -> dict[str, Any]:
    waves = max((len(c.get("waves") or []) for c in clients), default=0)
    shares: dict[str, list[tuple[float, float]]] = {}
    for client in clients:
        for name, share in (client.get("first_wave") or {}).items():
            if share is not None:
                shares.setdefault(name, []).append((share, client.get("sent") or 0))
    parts = [
        f"{percent(sum(s * n for s, n in pairs) / sum(n for _, n in pairs))} of the expected {plural(name)}"
        for name, pairs in shares.items()
        if sum(n for _, n in pairs)
    ]
    size = max((max(c.get("waves") or [0]) for c in clients), default=0)
    cards = [{"value": human(sent), "label": "ranked", "note": unit}]
    if waves > 1:
        cards.append({"value": human(size), "label": "in a wave", "note": f"{waves} waves"})
    for name, pairs in shares.items():
        total = sum(n for _, n in pairs)
        if total and waves > 1:
            share = sum(s * n for s, n in pairs) / total
            note = f"of all expected; {percent(1 / waves)} at random"
            cards.append(
                {"value": percent(share), "label": f"{plural(name)} in the first wave", "note": note, "tone": "good"}
            )
    return {
        "cards": cards,
        "headline": f"{human(sent)} {unit} ranked{f' for {following}' if following else ''}.",
        "detail": f"The first of {waves} equal waves holds {_join(parts)}." if parts and waves > 1 else "",
    }


def _checked(clients: list[Mapping[str, Any]], rule: Rule) -> str:
    tests = [c["backtest"] for c in clients if c.get("backtest")]
    rows = _sum(tests, "rows")
    if not rows:
        return ""
    held = _sum(tests, "held")
    caught = [t["caught"] for t in tests]
    count, whole = _sum(caught, "count"), _sum(caught, "of")
    interval = wilson(count, whole)
    if interval is None:
        return ""
    lost = []
    for name in rule.reward:
        parts = [t["lost"].get(name) for t in tests]
        if _sum(parts, "of"):
            lost.append(f"{percent(_sum(parts, 'count') / _sum(parts, 'of'))} of the {plural(name)}")
    return (
        f"Checked on {human(rows)} past sends that the model never saw: the rule would have held "
        f"{percent(held / rows)} of them, which led to {percent(count / whole)} of the {plural(rule.hold_when or '')} "
        f"({human(count)} of {human(whole)}; 90% interval {percent(interval[0])} to {percent(interval[1])})"
        + (f" and {_join(lost)}." if lost else ".")
    )


def _client_row(name: str, client: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    avoided = client.get("avoided") or {}
    test = client.get("backtest") or {}
    truth = (client.get("truth") or {}).get("avoided") or {}
    return {
        "client": name,
        "rows": client.get("rows"),
        "held": client.get("held"),
        "held_share": share_of(client.get("held"), client.get("eligible")),
        "avoided": avoided,
        "given_up": client.get("given_up") or {},
        "net": client.get("net") or {},
        "truth": truth,
        "caught": (test.get("caught") or {}).get("share"),
        "tested": test.get("held_share"),
        "caught_truth": ((test.get("truth") or {}).get("caught") or {}).get("share"),
        "actions": client.get("actions") or {},
        "parts": _parts(client, rule),
        "model_version": client.get("model_version") or "–",
        "as_of": str(client.get("as_of") or "–")[:16],
        "missing": client.get("missing") or [],
        "modelled": "model_version" not in client or bool(client["model_version"]),
        "first_wave": client.get("first_wave") or {},
    }


def share_of(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _parts(client: Mapping[str, Any], rule: Rule) -> list[dict[str, Any]]:
    """The list by what happens to it, for a stacked bar."""
    total = client.get("rows") or 0
    kinds = [
        ("sent", "send", (client.get("sent") or 0) - (client.get("explored") or 0)),
        ("sent to keep learning", "explore", client.get("explored") or 0),
        ("held", "hold", client.get("held") or 0),
        ("suppressed", "suppressed", client.get("suppressed") or 0),
        ("unscored", "unscored", client.get("unscored") or 0),
    ]
    return [
        {"label": label, "class": name, "count": count, "share": count / total}
        for label, name, count in kinds
        if count and total
    ]


def lists(decided: Mapping[str, Any], examples: Mapping[str, pd.DataFrame], rule: Rule) -> list[dict[str, Any]]:
    """A few rows of each client's list: the riskiest of the held, and the first to send."""
    found = []
    for client in decided:
        rows = examples.get(client)
        if rows is None or rows.empty:
            continue
        heads = [n for n in rule.heads if f"p_{n}" in rows.columns]
        found.append(
            {
                "client": client,
                "heads": heads,
                "rows": [
                    {
                        "subscriber": str(row["subscriber"]),
                        "p": [float(row[f"p_{n}"]) for n in heads],
                        "action": row["action"],
                        "rank": None if pd.isna(row["rank"]) else int(row["rank"]),
                        "words": row["words"],
                    }
                    for row in rows.to_dict("records")
                ],
            }
        )
    return found


# -- data quality ----------------------------------------------------------------------------------------------


def quality(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows in and where they went, the rules, and on simulated logs what was found of the injected dirt."""
    events = metrics.get("events") or {}
    if not events:
        return None
    total = events.get("in") or 0
    parts: list[dict[str, Any]] = [
        {"label": label, "class": key, "count": events.get(key) or 0, "share": (events.get(key) or 0) / total}
        for label, key in (("kept", "kept"), ("duplicates", "duplicates"), ("rejected", "rejected"))
        if total
    ]
    accounted = sum(p["count"] for p in parts)
    rules: list[dict[str, Any]] = [
        {
            "name": str(r.get("name", "")),
            "action": str(r.get("action", "")),
            "count": r.get("count") or 0,
            "share": r.get("share") if r.get("share") is not None else share_of(r.get("count"), total),
            "examples": [_example(e) for e in (r.get("examples") or [])],
            "unit": str(r.get("unit") or "rows"),
            "meaning": str(r.get("meaning") or ""),
            **_trend(r),
        }
        for r in (metrics.get("rules") or [])
    ]
    dirt = [
        {
            "kind": str(name),
            **{key: d.get(key) for key in ("rows", "elsewhere", "found", "recall", "precision")},
            "rules": _join([str(rule).replace("_", " ") for rule in d.get("rules") or []]),
        }
        for name, d in (metrics.get("dirt") or {}).items()
    ]
    rules.sort(key=lambda r: -int(r["count"]))
    return {
        "in": total,
        "parts": parts,
        "adds_up": accounted == total,
        "accounted": accounted,
        "rules": [r for r in rules if r["count"]],
        "silent": [r["name"] for r in rules if not r["count"]],
        "dirt": dirt,
        "humans": metrics.get("humans") or {},
    }


def _trend(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A chart of what a rule found on each day of the last four weeks, and the last of them against the usual."""
    trend = rule.get("trend") or {}
    values, days, usual = trend.get("values") or [], trend.get("days") or [], trend.get("usual")
    if len(values) < 2:
        return {"chart": "", "trend": ""}
    write = percent if (rule.get("unit") or "rows") == "rows" else human
    words = f"{write(values[-1])} on {days[-1]}"
    if usual is not None:
        words += f", usually {write(usual)}"
    name = str(rule.get("name", "")).replace("_", " ")
    return {"chart": spark(f"{name}: {days[0]} to {days[-1]}, {words}", values, usual), "trend": words}


def _example(example: Any) -> str:
    if isinstance(example, Mapping):
        return ", ".join(f"{k}={v}" for k, v in example.items() if v is not None)
    return str(example)


# -- the run ---------------------------------------------------------------------------------------------------


def run(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Stages with their times, and whatever the run says of itself."""
    facts = []
    for name, value in (metrics.get("run") or {}).items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        facts.append((name.replace("_", " "), str(value)))
    stages = [
        {
            "name": name,
            "seconds": s.get("seconds"),
            "rows": s.get("rows"),
            "rate": s.get("rows_per_second"),
            "memory": s.get("peak_rss_bytes"),
        }
        for name, s in (metrics.get("stages") or {}).items()
        if s
    ]
    return {"facts": facts, "stages": stages, "seconds": sum(s["seconds"] or 0 for s in stages)}
