"""What the normalisation inside a network is fitted to: which features are heavy-tailed, their means and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.backend import backend_of
from pipeline.learning.rows import Rows

SKEW = 2.0  # a feature more skewed than this is squashed by a logarithm; an exponential distribution's skewness is 2
BLOCK = {"pandas": 1 << 20, "cudf": 1 << 26}  # bytes of float64 at once: what a core's cache holds, what fills a GPU


@dataclass(frozen=True)
class Moments:
    """Of each feature, float64[F] on the host: weight, mean, and sums of the squares and cubes of what is over it."""

    weight: np.ndarray
    mean: np.ndarray
    second: np.ndarray
    third: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        """Both together (Pebay 2008, equations 2.1 and 2.2, weighted)."""
        weight = self.weight + other.weight
        safe, apart = np.where(weight > 0, weight, 1.0), other.mean - self.mean
        a, b = self.weight / safe, other.weight / safe
        second = self.second + other.second + apart**2 * a * other.weight
        third = self.third + other.third + apart**3 * a * other.weight * (a - b)
        third += 3 * apart * (a * other.second - b * self.second)
        return Moments(weight, self.mean + apart * b, second, third)

    @property
    def deviation(self) -> np.ndarray:
        return np.sqrt(self.second / np.where(self.weight > 0, self.weight, 1.0))

    @property
    def heavy(self) -> np.ndarray:
        """Which features are heavy-tailed, bool[F]."""
        deviation = self.deviation
        cubes = self.third / np.where(self.weight > 0, self.weight, 1.0)
        return np.asarray(np.abs(cubes / np.where(deviation > 0, deviation, 1.0) ** 3) > SKEW)


def set_normalisation(layer: Any, plain: Moments, squashed: Moments, ignored: np.ndarray | None = None) -> None:
    """Set a Normalise layer's weights.

    Args:
        plain: of the features as they are. squashed: of their logarithms, at least of the heavy-tailed ones.
        ignored: bool[F], features that are 0 to the network whatever they are, as constant ones.
    """
    if not layer.built:
        layer.build((None, len(plain.mean)))
    heavy = plain.heavy
    mean, deviation = (np.where(heavy, getattr(squashed, name), getattr(plain, name)) for name in ("mean", "deviation"))
    constant = (deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))) | (plain.weight <= 0)
    constant |= False if ignored is None else ignored
    layer.squash.assign(heavy.astype(np.float32))
    layer.mean.assign(mean.astype(np.float32))
    layer.scale.assign(np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation)).astype(np.float32))


def moments(rows: Rows, squash: np.ndarray) -> Moments:
    """The moments of the weighted rows' features. Rows of weight 0 have no say; neither have infinities.

    Each block about its own mean, then one block after another: a large offset costs no digits.

    Args:
        squash: bool[F], of which features the logarithm is looked at.
    """
    backend, features = backend_of(rows.X), rows.X.shape[1]
    xp, flags, squashes = backend.xp, backend.asarray(squash), bool(squash.any())
    block = max(BLOCK[backend.name] // (8 * max(features, 1)), 1)
    found = Moments(*np.zeros((4, features)))
    for start in range(0, len(rows), block):
        chosen = slice(start, start + block) if rows.index is None else rows.index[start : start + block]
        x, weight = (array[chosen].astype(xp.float64) for array in (rows.X, rows.weight))
        if squashes:
            some = x[:, flags]
            x[:, flags] = xp.sign(some) * xp.log1p(xp.abs(some))
        finite = xp.isfinite(x)
        odd, total = not bool(finite.all()), xp.full(features, weight.sum())
        if odd:
            x, total = xp.where(finite, x, 0.0), weight @ finite.astype(xp.float64)
        mean = weight @ x / xp.where(total > 0, total, 1.0)
        x -= mean
        if odd:
            x *= finite
        power = x * x
        second = weight @ power
        power *= x
        found += Moments(*(backend.to_host(a) for a in (total, mean, second, weight @ power)))
    return found
