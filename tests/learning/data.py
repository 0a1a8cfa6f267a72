"""Rows with a planted truth, for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.backend import Backend
from pipeline.learning.rows import Rows


@dataclass
class Planted:
    """``rows`` on the backend, and the host's arrays they were made of; ``p`` float64[n, H] is the true probability."""

    rows: Rows
    X: np.ndarray
    y: np.ndarray
    p: np.ndarray


def rows_of(backend: Backend, X: Any, y: Any, mask: Any = None, weight: Any = None) -> Rows:
    X, y = np.asarray(X, dtype=np.float32), np.asarray(y, dtype=np.float32)
    shared = backend.empty_aligned(X.shape, np.float32)
    shared[...] = backend.asarray(X)
    mask = np.ones_like(y) if mask is None else np.asarray(mask, dtype=np.float32)
    weight = np.ones(len(X), dtype=np.float32) if weight is None else np.asarray(weight, dtype=np.float32)
    return Rows(shared, backend.asarray(y), backend.asarray(mask), backend.asarray(weight))


def planted(backend: Backend, n: int = 20_000, features: int = 6, rate: float = -2.0, seed: int = 0) -> Planted:
    """Two binary heads, logistic in the features, the first of which is heavy-tailed and acts by its logarithm."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, features)).astype(np.float32)
    X[:, 0] = rng.exponential(2.0, n) ** 3
    beta = np.random.default_rng(99).normal(0, 0.6, (features, 2))
    seen = X.astype(np.float64)
    seen[:, 0] = np.log1p(seen[:, 0])
    p = 1 / (1 + np.exp(-(seen @ beta + [rate, rate + 1])))
    y = (rng.random(p.shape) < p).astype(np.float32)
    return Planted(rows_of(backend, X, y), X, y, p)


def log_loss(p: np.ndarray, truth: np.ndarray) -> float:
    p = np.asarray(p, dtype=np.float64)
    return float(-np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p)))
