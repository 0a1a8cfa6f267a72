"""What the normalisation inside a network is fitted to: which features are heavy-tailed, their means and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.learning.rows import Rows

SKEW = 2.0  # a feature more skewed than this is squashed by a logarithm; an exponential distribution's skewness is 2
BLOCK = 32_768  # rows at once: a few dozen columns of them stay in a cache


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

    Two passes (the mean first), so that a large offset costs no digits; in blocks, so that memory is bounded.

    Args:
        squash: bool[F], of which features the logarithm is looked at.
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
    return Moments(*(backend.to_host(a) for a in (weight, mean, second, third)))
