"""A model version's card for people, made from card.json: Markdown, in the order of Mitchell et al. 2019 (model cards).

What the model predicts and from what, how it was trained, how good it is on the hold-out beside its baselines, what the
gate found, and what it must not be used for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.options import format_duration

if TYPE_CHECKING:
    from pipeline.features.spec import FeatureSpec

MEASURES = {
    "pr_auc": "PR-AUC",
    "roc_auc": "ROC-AUC",
    "log_loss": "log loss",
    "normalized_entropy": "normalized entropy",
    "expected_over_observed": "expected / observed",
    "expected_pr_auc": "expected PR-AUC",
    "normalized_gini": "Gini",
    "mean_absolute_error": "mean absolute error",
}
LIMITS = """\
- It says what is likely for one message, as things went in the log it learned from. It does not say what a message
  causes, and nothing of subscribers, campaigns or habits unlike those.
- Outcomes that machines made (privacy proxies, link scanners) are no labels, as far as rules find them.
- A subscriber of less history than `decide.minimum_events` is not scored.
- The numbers above hold for the days of the hold-out. Train again when the days change; the gate compares."""


def markdown(card: Mapping[str, Any], spec: FeatureSpec, config: Config, described: Mapping[str, Any]) -> str:
    """The card as text.

    Args:
        card: what card.json holds, before digests. described: as of ``TrainedModel.describe``.
    """
    client = card.get("client")
    whose = "all clients together" if client is None else f"client {_safe(client)}"
    parts = [f"# Model of {whose}", _about(card, config), "## What it predicts", _outcomes(config, card)]
    parts += ["## What it learned from", _data(card, spec, config), "## How good it is", _quality(card)]
    parts += ["## What the gate found", _gate(card.get("gate")), "## The network", _network(card, described)]
    parts += ["## Limits", LIMITS]
    return "\n\n".join(parts) + "\n"


def _about(card: Mapping[str, Any], config: Config) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in card["libraries"].items())
    every = format_duration(config.at.every or 0)
    return _list(
        {
            "trained": f"{card['created']}, in {card['training'].get('seconds', 0):.1f} s",
            "data": f"up to {card.get('as_of') or 'not said'}, store version {card.get('snapshot')}",
            "decides": f"at each {config.at.event}" if config.at.event else f"every {every}",
            "seed": card.get("seed"),
            "settings": _tuned(card.get("tuned")),
            "made with": libraries,
        }
    )


def _tuned(best: Mapping[str, Any] | None) -> str | None:
    """Where the settings of the model are from, where it was not the configuration."""
    if not best:
        return None
    named = ", ".join(f"{name} {value}" for name, value in best["settings"].items())
    return (
        f"those of trial {best['trial']}, the best of {best['of']} on the validation rows of store version "
        f"{best['snapshot']} ({best['validation']:.4f}): {named}"
    )


def _outcomes(config: Config, card: Mapping[str, Any]) -> str:
    lines, notes = [], card.get("notes") or {}
    for name, outcome in config.outcomes.items():
        what = " or ".join(outcome.kinds)
        what = f"the sum of {outcome.sum} over {what}" if outcome.sum else f"the probability of {what}"
        where = ", of the same campaign" if outcome.match else ""
        note = f". {notes[name]}" if name in notes else ""
        lines.append(f"- **{name}**: {what} within {format_duration(outcome.within)}{where}{note}")
    return "\n".join(lines)


def _data(card: Mapping[str, Any], spec: FeatureSpec, config: Config) -> str:
    rows = ", ".join(f"{count:,} {name}" for name, count in (card.get("rows") or {}).items())
    groups: dict[str, int] = {}
    for feature in spec.features:
        groups[feature.op] = groups.get(feature.op, 0) + 1
    facts = {
        "decision points": rows or None,
        "split": card.get("split"),
        "negatives kept in training": f"{config.model.downsample:.3g}" if config.model.downsample < 1 else None,
        "features": f"{len(spec)}: " + ", ".join(f"{n} {op}" for op, n in groups.items()) + " (all in spec.json)",
        "sequences": f"the last {spec.sequences.length} events" if spec.sequences is not None else None,
        "clients": card.get("clients"),
        "pretraining": _began(card["training"].get("start")),
    }
    return _list(facts) + "".join(f"\n- without {_safe(lacking)}" for lacking in spec.absent)


def _began(start: Mapping[str, Any] | None) -> str | None:
    """What the training began from, where that was not fresh weights."""
    if not start:
        return None
    return (
        f"training began from a network that had learned from {start['rows']:,} rows of {start['clients']:,} clients "
        f"together (SHA-256 of its weights: {start['sha256'][:16]}); model.pretrain switches that off"
    )


def _quality(card: Mapping[str, Any]) -> str:
    parts = []
    for name, metrics in card["metrics"].items():
        if not isinstance(metrics, Mapping) or "rows" not in metrics:
            continue
        rate = metrics.get("base_rate")
        share = "" if rate is None else f", base rate {rate:.4g}"
        parts.append(
            f"**{name}**: {metrics.get('positives', 0):,} positive of {metrics['rows']:,} hold-out rows{share}"
        )
        scorers = {"this model": metrics, **(metrics.get("baselines") or {})}
        scorers |= {key: metrics[key] for key in ("ideal", "truth") if isinstance(metrics.get(key), Mapping)}
        used = [key for key in MEASURES if any(_number(s.get(key)) is not None for s in scorers.values())]
        if not used:
            continue
        rows = [["score", *(MEASURES[key] for key in used)]]
        for label, scorer in scorers.items():
            intervals = scorer.get("intervals") or {}
            rows.append([label.replace("_", " "), *(_cell(scorer.get(key), intervals.get(key)) for key in used)])
        parts.append(_table(rows))
    return "\n\n".join(parts) or "Not measured: the hold-out has no rows whose outcome is known."


def _gate(gate: Mapping[str, Any] | None) -> str:
    if not gate:
        return "It was not asked."
    said = "It may go live." if gate.get("accepted") else "**Refused: it must not go live.**"
    lines = [f"- {_safe(reason)}" for reason in gate.get("reasons") or []]
    for name, found in (gate.get("compared") or {}).items():
        lines.append(f"- {name}: {found['words']}")
    if gate.get("champion"):
        said += f" The version in use was `{gate['champion']}`."
    if gate.get("not_compared"):
        lines.append(f"- not compared: {_safe(gate['not_compared'])}")
    if (gate.get("drift") or {}).get("words"):
        lines.append(f"- {gate['drift']['words']}")
    return "\n".join([said, "", *lines]) if lines else said


def _network(card: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    training, architecture = card["training"], described.get("architecture") or {}
    facts = {name: value for name, value in architecture.items() if name != "heads" and value not in (None, [], (), {})}
    facts |= {"best epoch": training.get("best_epoch"), "batch": training.get("batch")}
    return _list({name: str(value) for name, value in facts.items()} | _levels(described.get("levels") or {}))


def _levels(levels: Mapping[str, Any]) -> dict[str, str]:
    """How far a pooled model is moved to its clients' own levels, by outcome."""
    found = {}
    for name, credit in (levels.get("credit") or {}).items():
        shifts = [mine[name] for mine in levels["shifts"].values() if name in mine]
        found[f"level of {name}"] = (
            f"its logit is moved for {len(shifts):,} clients, by {min(shifts):+.2f} to {max(shifts):+.2f}; one of "
            f"{credit:,.0f} positives goes half of the way to its own, one without rows stays at that of all"
        )
    return found


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_safe(value)}" for name, value in facts.items() if value is not None)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _cell(value: Any, interval: Any = None) -> str:
    number = _number(value)
    if number is None:
        return "-"
    ends = interval if isinstance(interval, Sequence) and not isinstance(interval, str) else None
    between = f" ({ends[0]:.4g} to {ends[-1]:.4g})" if ends and all(_number(e) is not None for e in ends) else ""
    return f"{number:.4g}{between}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _safe(text: Any) -> str:
    """Text of the log on one line, without what Markdown or HTML would take for its own."""
    line = " ".join(str(text).split())
    for mark in ("\\", "`", "*", "<", "|", "[", "#"):
        line = line.replace(mark, "\\" + mark)
    return line
