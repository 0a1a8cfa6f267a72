"""Gradient boosting, to stand beside a model: scikit-learn's histogram trees on the same features, a model a head.

Settings are drawn at random, so many for each head; each is stopped early by the validation rows, and the one of least
validation loss predicts. It takes minutes where rows are millions, which is why it is asked for by ``model.boosting``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.backend import backend_of
from pipeline.learning.rows import Rows

TREES = 400  # at most
PATIENCE = 10  # trees without a better validation loss


def boosting(
    rows: Rows,
    valid: Rows,
    holdout: Rows,
    heads: Sequence[Any],
    out: np.ndarray,
    trials: int,
    seed: int = 0,
    ignored: np.ndarray | None = None,
    done: Callable[[int], Any] = lambda fits: None,
) -> dict[str, dict[str, Any]]:
    """Predictions of the hold-out, by the best of so many settings for each head.

    Args:
        rows, valid, holdout: what it learns from, what stops and chooses it, what it predicts; on either device.
        heads: H of them, each with ``name`` and ``kind``.
        out: float64[m, H], overwritten; a head that has no positive, or one value alone, is left as it is.
        ignored: bool[F], features that the model does not look at either. done: told of fits that are made.
    Returns: {head: the settings chosen, with ``trees``, how many it came to}.
    """
    backend, rng = backend_of(rows.X), np.random.default_rng(seed)
    tried = [_draw(rng) for _ in range(trials)]
    looked_at = slice(None) if ignored is None else np.flatnonzero(~np.asarray(ignored))
    x, xv, xh = (np.ascontiguousarray(backend.to_host(r.take("X"))[:, looked_at]) for r in (rows, valid, holdout))
    chosen: dict[str, dict[str, Any]] = {}
    for h, head in enumerate(heads):
        y, w, known = _labels(rows, h)
        yv, wv, known_v = _labels(valid, h)
        if not len(yv) or not len(xh) or min(len(np.unique(y)), len(np.unique(yv))) < 2:
            done(trials)
            continue
        if head.kind == "binary":
            y, yv = y > 0, yv > 0
        least = np.inf
        for settings in tried:
            model = _model(head.kind, settings, seed)
            model.fit(x[known], y, _uneven(w), X_val=xv[known_v], y_val=yv, sample_weight_val=_uneven(wv))
            loss = _loss(yv, _predict(model, xv[known_v]), wv, head.kind)
            if loss < least:
                least, out[:, h] = loss, _predict(model, xh)
                chosen[head.name] = {**settings, "trees": int(model.n_iter_)}
            done(1)
    return chosen


def _draw(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "learning_rate": float(np.exp(rng.uniform(np.log(0.03), np.log(0.2)))),
        "max_leaf_nodes": int(rng.choice([7, 15, 31, 63])),
        "min_samples_leaf": int(rng.choice([20, 100, 400])),
        "l2_regularization": float(rng.choice([0.0, 1.0, 10.0])),
    }


def _labels(rows: Rows, h: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A head's known labels, their weights, and of which rows."""
    host = backend_of(rows.X).to_host
    y, mask, weight = (np.asarray(host(rows.take(name))) for name in ("y", "mask", "weight"))
    known = (mask[:, h] > 0) & (weight > 0)
    return y[known, h], weight[known], known


def _uneven(weight: np.ndarray) -> np.ndarray | None:
    """Weights where they differ from 1: with any, scikit-learn sorts a column once for each of its 255 bins."""
    return None if (weight == 1).all() else weight


def _model(kind: str, settings: dict[str, Any], seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    made = HistGradientBoostingClassifier if kind == "binary" else HistGradientBoostingRegressor
    return made(**settings, max_iter=TREES, early_stopping=True, n_iter_no_change=PATIENCE, random_state=seed)


def _predict(model: Any, x: np.ndarray) -> np.ndarray:
    """Probabilities; amounts, none below zero."""
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(x)[:, 1])
    return np.asarray(np.maximum(model.predict(x), 0))


def _loss(y: np.ndarray, p: np.ndarray, weight: np.ndarray, kind: str) -> float:
    from sklearn.metrics import log_loss, mean_squared_error

    measure = log_loss if kind == "binary" else mean_squared_error
    return float(measure(y, p, sample_weight=weight))
