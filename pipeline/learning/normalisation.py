"""What the normalisation inside a network is fitted to: which features are heavy-tailed, their means and scales."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.learning.rows import Rows

SKEW = 2.0  # a feature more skewed than this is squashed by a logarithm; an exponential distribution's skewness is 2
BLOCK = 32_768  # rows at once: a few dozen columns of them stay in a cache


def fit_normalisation(layer: Any, rows: Rows) -> None:
    """Set a Normalise layer's weights from the weighted rows. Rows of weight 0 have no say; neither have infinities."""
    if not layer.built:
        layer.build((None, rows.X.shape[1]))
    _, _, _, skew = moments(rows, np.zeros(rows.X.shape[1], dtype=bool))
    squash = np.abs(skew) > SKEW
    total, mean, deviation, _ = moments(rows, squash)
    constant = (deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))) | (total <= 0)
    layer.squash.assign(squash.astype(np.float32))
    layer.mean.assign(mean.astype(np.float32))
    layer.scale.assign(np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation)).astype(np.float32))


def moments(rows: Rows, squash: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weight, mean, standard deviation and skewness of each feature, float64[F] on the host.

    Two passes (the mean first), so that a large offset costs no digits; in blocks, so that memory is bounded.
    """
    backend = backend_of(rows.X)
    xp, features = backend.xp, rows.X.shape[1]
    flags = xp.asarray(squash)

    def totals(centre: Array, powers: tuple[int, ...]) -> list[Array]:
        sums = [xp.zeros(features) for _ in (0, *powers)]
        for start in range(0, len(rows), BLOCK):
            chosen = slice(start, start + BLOCK) if rows.index is None else rows.index[start : start + BLOCK]
            x = rows.X[chosen].astype(xp.float64)
            weight = rows.weight[chosen].astype(xp.float64)
            finite = xp.isfinite(x)
            odd = not bool(finite.all())
            if odd:
                x = xp.where(finite, x, 0.0)
            x[:, flags] = xp.sign(x[:, flags]) * xp.log1p(xp.abs(x[:, flags]))
            x -= centre
            if odd:
                x *= finite
            sums[0] += weight @ finite.astype(xp.float64) if odd else weight.sum()
            power = x.copy() if len(powers) > 1 else x
            for sum_, wanted in zip(sums[1:], powers, strict=True):
                if wanted > 1:
                    power *= x
                sum_ += weight @ power
        return sums

    weight, first = totals(xp.zeros(features), (1,))
    safe = xp.where(weight > 0, weight, 1.0)
    mean = first / safe
    _, second, third = totals(mean, (2, 3))
    deviation = xp.sqrt(second / safe)
    skew = (third / safe) / xp.where(deviation > 0, deviation, 1.0) ** 3
    weight, mean, deviation, skew = (backend.to_host(a) for a in (weight, mean, deviation, skew))
    return weight, mean, deviation, skew
