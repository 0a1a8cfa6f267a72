"""May a newly trained model go live? The challenger on its hold-out, beside the champion, which is the model in use.

Absolute rules hold for each outcome that the challenger has a model of: enough positives to tell, normalised entropy
below that of the base rate, expected over observed near 1, and, where both have a model of it, not worse than the
champion on the same rows beyond noise. An outcome that fails refuses the version if the champion has a model of it.
Otherwise only that outcome is set aside: it predicts its base rate, as one of too few examples does, and holds nobody.
So a first model is not thrown away for its rarest outcome. No outcome left, or drifted features: refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.backend import backend_of
from pipeline.learning.calibration import NO_MODEL
from pipeline.learning.drift import Drift
from pipeline.learning.intervals import Resamples
from pipeline.learning.metrics import EPSILON
from pipeline.options import Gate

DRAWS = 500
SHOWN = 5  # drifted features named


@dataclass
class Champion:
    """The model in use, as the challenger's rival. ``p``: float64[m, H], its predictions of the challenger's hold-out,
    NaN in the columns of outcomes that it cannot be compared on; ``learned``: the outcomes it has a model of;
    ``why_not``: why it, or an outcome of it, is not compared, by outcome, "" for all; ``lost``: see :func:`lost`."""

    version: str
    learned: frozenset[str] = frozenset()
    p: np.ndarray | None = None
    why_not: dict[str, str] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)


@dataclass
class Verdict:
    """``reasons``: what is held against the version, in words; ``set_aside``: outcome -> why it has no model in it;
    ``compared``: outcome -> difference to the champion; ``drift``: what was found of the features."""

    accepted: bool = True
    reasons: list[str] = field(default_factory=list)
    set_aside: dict[str, str] = field(default_factory=dict)
    champion: str | None = None
    compared: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_compared: str = ""
    drift: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As card.json and metrics.json have it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Holdout:
    """The rows that challenger and champion are measured on, on the host: ``p``, ``y``, ``mask``: float64[m, H];
    ``weight``: float64[m]; ``subscriber``: int64[m], whose row it is."""

    p: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    weight: np.ndarray
    subscriber: np.ndarray

    @classmethod
    def of(cls, p: Any, rows: Any, table: Any) -> Holdout:
        """The hold-out ``rows`` of a FeatureTable, and the challenger's predictions of them, float32[m, H]."""
        backend = backend_of(table.X)

        def host(array: Any) -> np.ndarray:
            return np.asarray(backend.to_host(array), dtype=np.float64)

        y, mask, weight = (host(rows.take(name)) for name in ("y", "mask", "weight"))
        return cls(host(p), y, mask, weight, table.points(rows.index)[0])


def judge(
    settings: Gate,
    heads: Sequence[Any],
    notes: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, Any]],
    holdout: Holdout,
    champion: Champion | None = None,
    drifts: Sequence[Drift] = (),
    seed: int = 0,
) -> Verdict:
    """Whether the challenger may take the champion's place.

    Args:
        heads: H of them, each with ``name`` and ``kind``. notes: head -> why the challenger has no model of it.
        metrics: of the challenger on the hold-out, as of ``evaluate``. drifts: of each feature judged.
    """
    verdict = Verdict(champion=champion.version if champion else None)
    bad: dict[str, list[str]] = {}
    for h, head in enumerate(heads):
        found = [] if head.name in notes else absolute(settings, head, metrics[head.name])
        if champion is not None and head.name in champion.learned:
            compared = _against(champion, settings, head, h, holdout, metrics[head.name], seed)
            if compared is not None:
                verdict.compared[head.name] = compared
                found += [compared["words"]] if compared["worse"] else []
            elif head.name in notes:
                found.append(notes[head.name])
        if found:
            bad[head.name] = found
    for name, found in bad.items():
        if champion is not None and name in champion.learned:
            verdict.reasons += [f"{name}: {reason}" for reason in found]
        else:
            verdict.set_aside[name] = "; ".join(found)
    left = [head.name for head in heads if head.name not in notes and head.name not in verdict.set_aside]
    if not left:
        verdict.reasons += [f"{name}: {why}" for name, why in verdict.set_aside.items()]
        verdict.reasons += [why for name, why in notes.items() if name not in verdict.set_aside]
    if champion is not None:
        verdict.not_compared = "; ".join(f"{name}: {why}" if name else why for name, why in champion.why_not.items())
    _judge_drift(verdict, settings, drifts)
    verdict.accepted = not verdict.reasons
    return verdict


def absolute(settings: Gate, head: Any, metrics: Mapping[str, Any]) -> list[str]:
    """What is wrong with one outcome whatever the champion does, in words.

    Expected over observed has a relative error of about 1/sqrt(positives), so that for few of them the limits are moved
    apart to where an exact model stays 95 times of 100; from 77 positives on the limits are the configured ones.
    """
    positives = int(metrics.get("positives") or 0)
    if positives < settings.minimum_positives:
        return [f"{positives} positive rows in the hold-out are too few to tell, {settings.minimum_positives} needed"]
    found = []
    entropy, ratio = metrics.get("normalized_entropy"), metrics.get("expected_over_observed")
    if entropy is not None and entropy >= settings.entropy:
        why = "no better than the base rate" if settings.entropy == 1 else "the limit of gate.entropy"
        found.append(f"normalised entropy {entropy:.3f}; from {settings.entropy:g} on it is refused: {why}")
    gini = metrics.get("normalized_gini")
    if head.kind == "value" and (gini is None or gini <= 0):
        found.append(f"normalised Gini {'undefined' if gini is None else f'{gini:.3f}'}, at 0 the order is random")
    low, high = settings.calibration
    noise = 1.96 / positives**0.5
    low, high = min(low, float(np.exp(-noise))), max(high, float(np.exp(noise)))
    if ratio is None or not low <= ratio <= high:
        # Never a number that reads as if it were inside.
        said = "is undefined" if ratio is None else f"{ratio:.{4 if low <= round(ratio, 2) <= high else 2}f}"
        found.append(f"expected/observed {said}, outside {low:.2f} to {high:.2f}")
    return found


def loss(kind: str, p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each row's loss, float64[m]: log loss, or for an amount the Poisson deviance, which is least at its mean."""
    if kind == "value":
        p = np.maximum(p, EPSILON)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(2 * (np.where(y > 0, y * np.log(y / p), 0.0) - y + p))
    p = np.clip(p, EPSILON, 1 - EPSILON)
    return np.asarray(-y * np.log(p) - (1 - y) * np.log1p(-p))


def _against(
    champion: Champion,
    settings: Gate,
    head: Any,
    h: int,
    holdout: Holdout,
    metrics: Mapping[str, Any],
    seed: int,
) -> dict[str, Any] | None:
    """The challenger's loss less the champion's on one outcome, as a share of the base rate's; None: not comparable.

    The interval knows the noise of the hold-out and not that of training: another seed alone moves a large hold-out's
    loss by more than it. So a part of what the champion gains over the base rate may be lost, but once: what the
    champion and those before it lost counts too, or a model could get worse day by day.
    """
    if champion.p is None or np.isnan(champion.p[:, h]).any():
        return None
    known = np.flatnonzero((holdout.mask[:, h] > 0) & (holdout.weight > 0))
    y, weight = holdout.y[known, h], holdout.weight[known]
    if not len(known) or not (y > 0).any() or (head.kind == "binary" and (y > 0).all()):
        return None
    mine, theirs = (loss(head.kind, p[known, h], y) for p in (holdout.p, champion.p))
    mean = np.average(y, weights=weight)
    base = float(np.average(loss(head.kind, np.full(len(y), mean), y), weights=weight))
    unit = "normalised entropy" if head.kind == "binary" else "normalised deviance"
    found = paired(mine - theirs, weight, holdout.subscriber[known], settings.confidence, seed)
    difference, low, high = (value / base for value in found)
    ours, other = (float(np.average(v, weights=weight)) / base for v in (mine, theirs))
    tolerated, before = settings.tolerance * max(1 - other, 0.0), champion.lost.get(head.name, 0.0)
    surely = max(low, 0.0) + min(high, 0.0)  # worse or better by at least so much; 0 where neither is sure
    after = max(before + surely, 0.0)
    words = f"{unit} {ours:.4f}, the champion's {other:.4f}: {abs(difference):.4f} "
    words += f"{'worse' if difference > 0 else 'better'} ({low:+.4f} to {high:+.4f}; {tolerated:.4f} is tolerated"
    words += f", of which earlier versions took {before:.4f})" if before else ")"
    worse = bool(surely > 0 and after > tolerated)
    return {"difference": difference, "low": low, "high": high, "lost": after, "worse": worse, "words": words}


def lost(card: Mapping[str, Any]) -> dict[str, float]:
    """Outcome -> by how much a version and those before it are surely worse than what was in use once, as shares of the
    base rate's loss, from the version's card: what is left to make good again."""
    compared = (card.get("gate") or {}).get("compared") or {}
    return {name: float(found.get("lost") or 0.0) for name, found in compared.items()}


def paired(
    difference: np.ndarray, weight: np.ndarray, subscriber: np.ndarray, confidence: float, seed: int = 0
) -> tuple[float, float, float]:
    """The weighted mean of paired differences and its interval, by drawing whole subscribers again (bootstrap).

    Args:
        difference, weight: float64[m]. subscriber: int64[m]; their rows are alike, and are drawn together.
    """
    resamples = Resamples.of(subscriber, seed, DRAWS)
    sums, masses = (np.bincount(resamples.group, w, resamples.clusters) for w in (weight * difference, weight))
    means = [often @ sums / (often @ masses) for often in resamples.counts()]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(sums.sum() / masses.sum()), float(low), float(high)


def _judge_drift(verdict: Verdict, settings: Gate, drifts: Sequence[Drift]) -> None:
    if not drifts:
        return
    drifted = [d for d in drifts if d.beyond_noise >= settings.drift]
    worst = ", ".join(f"{d.name} {d.psi:.2f}" for d in (drifted or drifts)[:SHOWN])
    verdict.drift = {
        "judged": len(drifts),
        "drifted": {d.name: round(d.psi, 4) for d in drifted},
        "words": f"{len(drifted)} of {len(drifts)} features have drifted beyond a population stability index of "
        f"{settings.drift:g}" + f"; {'the most' if drifted else 'the largest'}: {worst}",
    }
    if len(drifted) > settings.drifted * len(drifts):
        verdict.reasons.append(f"{verdict.drift['words']}; {settings.drifted:.0%} may")


def set_aside(model: Any, verdict: Verdict, metrics: dict[str, Any]) -> None:
    """Let outcomes that the gate set aside predict their base rate, and say so where the user looks."""
    if not verdict.accepted:
        return
    for head, label in zip(model.heads, model.labels, strict=True):
        if head.name in verdict.set_aside:
            label.learned = False
            label.note = f"no model for {head.name}, its base rate is used: {verdict.set_aside[head.name]}"
            metrics[head.name]["note"] = label.note
            if "calibration" in metrics[head.name]:
                metrics[head.name]["calibration"] = {"kind": "none", "reason": NO_MODEL}
