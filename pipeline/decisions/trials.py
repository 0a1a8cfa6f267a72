"""The report's account of tune: each client's trials in a table and as parallel coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pipeline.decisions.charts import number, numbers, significant
from pipeline.decisions.parallel import Line, Scale, chart, scale_of

SHOWN = 8  # trials in the table
LOGARITHMIC = ("learning_rate", "weight_decay")


def tuning(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What there is to show of each client that was tuned.

    Args:
        metrics: as in metrics.json; ``tune`` is read: client -> ``best`` and ``trials``, see study.py.
    """
    return [_client(client, found) for client, found in (metrics.get("tune") or {}).items() if found.get("trials")]


def written(setting: Any) -> str:
    """A setting's value in few characters."""
    if isinstance(setting, list | tuple):
        return "×".join(map(str, setting)) or "none"
    return f"{setting:.3g}" if isinstance(setting, float) else str(setting)


def _client(client: str, found: Mapping[str, Any]) -> dict[str, Any]:
    trials, best = found["trials"], found["best"]["trial"]
    measured = sorted((t for t in trials if t["validation"] is not None), key=lambda t: (t["validation"], t["number"]))
    names = list(dict.fromkeys(name for t in trials for name in t["settings"]))
    heads = list(dict.fromkeys(name for t in measured for name in t["heads"]))
    header = ["validation", "epochs", "time", *(n.replace("_", " ") for n in names), *(_of(h, measured) for h in heads)]
    rows = [(t["number"], _notes(t), t["number"] == best, _cells(t, names, heads)) for t in measured]
    first = next((t for t in measured if t["number"] == 0), None)
    return {
        "client": client,
        "best": found["best"],
        "trials": len(trials),
        "pruned": sum(t["state"] == "pruned" for t in trials),
        "failed": [(t["number"], t["reason"]) for t in trials if t["state"] == "failed"],
        "configured": None if first is None else first["validation"],
        "seconds": found.get("seconds"),
        "header": header,
        "rows": rows[:SHOWN],
        "chart": _chart(client, names, measured, best) if len(measured) > 1 else "",
        "all": numbers(["trial", *header], [[label, *cells] for label, _, _, cells in rows])
        if len(rows) > SHOWN
        else "",
    }


def _notes(trial: Mapping[str, Any]) -> str:
    notes = [("as configured", trial["number"] == 0), ("given up", trial["state"] == "pruned")]
    return ", ".join(words for words, so in notes if so)


def _cells(trial: Mapping[str, Any], names: list[str], heads: list[str]) -> list[str]:
    cells = [significant(trial["validation"], 4), number(trial["epochs"]), f"{trial['seconds']:.1f} s"]
    cells += [written(trial["settings"][n]) if n in trial["settings"] else "–" for n in names]
    return cells + [significant(_score(trial, head)) for head in heads]


def _score(trial: Mapping[str, Any], head: str) -> float | None:
    found = trial["heads"].get(head) or {}
    return found.get("normalized_gini") if "normalized_gini" in found else found.get("pr_auc")


def _of(head: str, trials: list[Mapping[str, Any]]) -> str:
    amount = any("normalized_gini" in (t["heads"].get(head) or {}) for t in trials)
    return f"{head.replace('_', ' ')} {'Gini' if amount else 'PR-AUC'}"


def _chart(client: str, names: list[str], trials: list[Mapping[str, Any]], best: int) -> Markup:
    """Every measured trial, the best one on top."""
    varied = [n for n in names if len({written(t["settings"].get(n)) for t in trials}) > 1]
    scales: list[Scale] = []
    for name in varied:
        values = [t["settings"].get(name) for t in trials]
        scales.append(scale_of(name.replace("_", " "), values, name in LOGARITHMIC, written))
    losses = [float(t["validation"]) for t in trials]
    scales.append(Scale("validation", low=min(losses), high=max(losses), write=lambda v: significant(v, 4)))
    lines = [
        Line(
            ", ".join(filter(None, [f"trial {t['number']}", _notes(t), f"validation {t['validation']:.4f}"])),
            [*(t["settings"].get(n) for n in varied), float(t["validation"])],
            "best" if t["number"] == best else "dashed" if t["state"] == "pruned" else "plain",
        )
        for t in sorted(trials, key=lambda t: (t["number"] == best, -t["validation"]))
    ]
    description = (
        "A line is a trial, the thick one the best; dashed ones were given up early. Of the validation loss less is "
        "better; a setting that a kind of network has no use for is below its axis."
    )
    title = f"Settings tried for {client}"
    return Markup("<figure><figcaption><b>{}</b><span>{}</span></figcaption>{}</figure>").format(
        title, description, chart(title, description, scales, lines)
    )
