"""Is a model worth trusting: each head's predictions against what happened, beside baselines and, where known, truth.

The numbers are computed on the host in float64; this is where a hold-out leaves the device, on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.errors import DataError
from pipeline.learning.calibration import NO_MODEL, Calibration
from pipeline.learning.intervals import Amounts, Probabilities, Resamples, intervals
from pipeline.learning.metrics import binary_metrics, value_metrics
from pipeline.learning.reliability import reliability

BUDGETS = (0.005, 0.01, 0.02, 0.05)  # the default of decide.budgets

# What a baseline repeats or nobody would read.
LEFT_OUT = ("deciles", "reliability", "rows", "positives", "base_rate", "mean")

SOFT = ("pr_auc", "roc_auc", "log_loss")  # also against the true probability


def evaluate(
    p: Array,
    y: Array,
    mask: Array,
    weight: Array,
    heads: Sequence[Any],
    *,
    budgets: Sequence[float] = BUDGETS,
    baselines: Mapping[str, Array] | None = None,
    truth: Array | None = None,
    references: Mapping[str, Array] | None = None,
    notes: Mapping[str, str] | None = None,
    calibration: Mapping[str, Calibration] | None = None,
    cluster: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Metrics of every head on untouched rows.

    Args:
        p, y, mask: float32[n, H], on either device: predictions, labels, 1 where the label is known.
        weight: float32[n].
        heads: H of them, each with ``name`` and ``kind`` ("binary" or "value").
        budgets: shares held back at which TPR and FNR are reported.
        baselines: name -> float[n, H], other predictions to stand beside.
        truth: float[n, H], the true probabilities of a simulated log; NaN where unknown, and in heads without one.
        references: name -> float[n, H], further scores beside "truth", e.g. {"ideal": ...}; NaN as in ``truth``.
        notes: head name -> why it has no model. calibration: head name -> what was done to its probability.
        cluster: [n], each row's subscriber: rows that depend on each other. Every row by itself where None.
        seed: of the intervals, which are those of intervals.py, for every score.
    Returns: {head: metrics as in metrics.json}, strict JSON: a number that is not defined is None, never NaN.
    Raises:
        DataError: shapes that do not fit.
    """
    beside = {**(baselines or {}), **(references or {}), **({} if truth is None else {"truth": truth})}
    scores = {name: _host(array) for name, array in beside.items()}
    p, y, mask, weight = _host(p), _host(y), _host(mask), _host(weight)
    shape = (len(weight), len(heads))
    for name, array in {"p": p, "y": y, "mask": mask, **scores}.items():
        if array.shape != shape:
            raise DataError(f"cannot evaluate: {name} is {array.shape}, expected rows x heads {shape}")
    draws = Resamples.of(np.arange(len(weight)) if cluster is None else cluster, seed)
    results = {}
    for h, head in enumerate(heads):
        known = (mask[:, h] > 0) & (weight > 0)
        soft = None if truth is None else scores["truth"][:, h]
        own = _Column(head.kind, y[:, h], weight * mask[:, h], known, soft, draws)
        metrics = own.measure(p[:, h], budgets)
        brief = {name: own.measure(array[:, h], budgets, brief=True) for name, array in scores.items()}
        metrics["baselines"] = {name: brief.pop(name) for name in baselines or {}}
        metrics |= {name: measured for name, measured in brief.items() if measured["scored"]}
        if notes and head.name in notes:
            metrics["note"] = notes[head.name]
        if calibration is not None:
            done = calibration.get(head.name) or Calibration(reason=_uncalibrated(head, notes or {}))
            metrics["calibration"] = {"kind": done.kind, "reason": done.reason}
        results[head.name] = metrics
    return results


def _uncalibrated(head: Any, notes: Mapping[str, str]) -> str:
    if head.kind == "value":
        return "an amount is not calibrated"
    return NO_MODEL if head.name in notes else "no validation rows"


class _Column:
    """One head's labels, against which any score is measured."""

    def __init__(
        self,
        kind: str,
        y: np.ndarray,
        weight: np.ndarray,
        known: np.ndarray,
        truth: np.ndarray | None,
        draws: Resamples,
    ) -> None:
        self.kind, self.y, self.weight, self.known, self.draws = kind, y, weight, known, draws
        self.truth = None if truth is None or np.isnan(truth[known]).all() else truth

    def measure(self, score: np.ndarray, budgets: Sequence[float], brief: bool = False) -> dict[str, Any]:
        rows = self.known & ~np.isnan(score)
        truth = None if self.truth is None else self.truth[rows]
        p, y, weight, draws = score[rows], self.y[rows], self.weight[rows], self.draws.take(rows)
        if self.kind == "value":
            metrics = value_metrics(p, y, weight) | {"intervals": intervals(Amounts, p, y, weight, draws)}
        else:
            metrics = binary_metrics(p, y, weight, budgets, truth) | reliability(p, y, weight, draws.group)
            metrics["intervals"] = intervals(Probabilities, p, y, weight, draws)
            if truth is not None:
                sure = ~np.isnan(truth)
                soft = intervals(Probabilities, p[sure], truth[sure], weight[sure], draws.take(sure))
                metrics["intervals"] |= {f"expected_{name}": soft[name] for name in SOFT}
        if brief:  # a score may be known for fewer rows than the model's: say for how many
            return {"scored": metrics["rows"]} | {k: v for k, v in metrics.items() if k not in LEFT_OUT}
        return metrics


def _host(array: Array) -> np.ndarray:
    return np.asarray(backend_of(array).to_host(array), dtype=np.float64)
