"""What a model has to beat: the base rate, and a linear model on the same normalised features."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.backend import backend_of
from pipeline.learning.rows import Rows, Table, as_rows

ROWS = 200_000  # a linear model of a few dozen features gains nothing from more


def baselines(model: Any, rows: Table | Rows, holdout: Table | Rows, seed: int = 0) -> dict[str, np.ndarray]:
    """Predictions of the baselines on the hold-out, {"base_rate", "logistic"}: float64[m, H] each, on the host.

    Args:
        model: a TrainedModel, for its heads, base rates and normalisation.
        rows, holdout: what it was trained on, and what it is measured on.
    """
    rows, holdout = as_rows(rows), as_rows(holdout)
    constant = np.tile([label.mean for label in model.labels], (len(holdout), 1)).astype(np.float64)
    return {"base_rate": constant, "logistic": linear(model, rows, holdout, constant.copy(), seed)}


def linear(model: Any, rows: Rows, holdout: Rows, out: np.ndarray, seed: int) -> np.ndarray:
    """scikit-learn's logistic regression (ridge regression for values), on at most ROWS random training rows.

    Args:
        out: float64[m, H], overwritten; a head that was not learned, or whose sample holds one class, is left as it is.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    if not len(rows) or not len(holdout):
        return out
    backend = backend_of(rows.X)
    sample = np.arange(len(rows))
    if len(rows) > ROWS:
        sample = np.sort(np.random.default_rng(seed).choice(len(rows), ROWS, replace=False))
    chosen = backend.asarray(sample) if rows.index is None else rows.index[backend.asarray(sample)]
    x = _normalised(model, backend.to_host(rows.X[chosen]))
    x_holdout = _normalised(model, backend.to_host(holdout.take("X")))
    y, mask, weight = (backend.to_host(getattr(rows, name)[chosen]) for name in ("y", "mask", "weight"))
    for h, (head, label) in enumerate(zip(model.heads, model.labels, strict=True)):
        known = (mask[:, h] > 0) & (weight > 0)
        target, w = y[known, h], weight[known]
        if not label.learned or len(np.unique(target > 0 if head.kind == "binary" else target)) < 2:
            continue
        if head.kind == "value":
            # Amounts span more digits than float32 has for their squares.
            fitted = Ridge(alpha=1.0).fit(x[known].astype(np.float64), target.astype(np.float64), sample_weight=w)
            out[:, h] = np.maximum(fitted.predict(x_holdout.astype(np.float64)), 0)
        else:
            # Newton: rows outnumber features by far, and a step costs one pass; in float32, which standardised features
            # need no more than, a third of the time for the same four digits of every metric.
            fitted = LogisticRegression(solver="newton-cholesky").fit(x[known], target > 0, sample_weight=w)
            out[:, h] = fitted.predict_proba(x_holdout)[:, 1]
    return out


def _normalised(model: Any, x: np.ndarray) -> np.ndarray:
    """What the network's first layer gives, float32 on the host."""
    return np.asarray(model.network.normalise(x)) if len(x) else x
