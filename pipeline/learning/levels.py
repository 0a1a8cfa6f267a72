"""Each client's own level in a model of many: how far the logit of its probabilities is moved, learned of its rows.

A random intercept (empirical Bayes). The shift s of a client is the mode of the likelihood of its rows' labels given
logit q = logit p + s, times a normal prior around 0. The information of a rare outcome's rows is about their expected
positives, so that a client of ``credit`` positives goes half of the way to its own level, and one without rows nowhere
(Buhlmann's credibility, 1967). How far clients are apart is learned of all of them: with U the sum of a client's y - p
and I that of p (1 - p), U has the variance noise I + deviation^2 I^2, and the deviation is the most likely one; none
where that is not more likely than 0 by more than chance. ``noise``: how many times as large as by independent rows the
variance of sums over subscribers, or over days, is. So the luck of a day's campaigns is not taken for a level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.learning.intervals import EPSILON

DEVIATIONS = np.geomspace(0.02, 3.0, 100)  # of clients' logits, that are tried
CHANCE = 1.35  # in log-likelihood: a deviation of 0 is beaten by more once in 20 times (half of chi-square's, df 1)
STEPS = 50  # of Newton's method, at most
FAR = 1.0  # a step's size, at most: the likelihood is flat far from its mode


@dataclass(frozen=True)
class Levels:
    """``credit``: of each head that is moved, positives; ``shifts``: client -> head -> what is added to the logit."""

    credit: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, dict[str, float]] = field(default_factory=dict)

    def of(self, client: str) -> dict[str, float]:
        """Head -> shift of one client; nothing for one that the model has not seen."""
        return self.shifts.get(client, {})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Levels:
        """Raises ModelError for what no levels are."""
        try:
            credit = {str(head): float(value) for head, value in values["credit"].items()}
            shifts = {str(c): {str(h): float(s) for h, s in mine.items()} for c, mine in values["shifts"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's levels cannot be read ({error!r}); train again") from None
        if not all(math.isfinite(v) for v in (*credit.values(), *(s for m in shifts.values() for s in m.values()))):
            raise ModelError("the model's levels are not all finite numbers; train again")
        return cls(credit, shifts)


def logit(p: np.ndarray) -> np.ndarray:
    """float64[n], of probabilities kept a little away from certainty."""
    sure = np.clip(np.asarray(p, dtype=np.float64), EPSILON, 1 - EPSILON)
    return np.asarray(np.log(sure) - np.log1p(-sure))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def shifts(x: np.ndarray, y: np.ndarray, weight: np.ndarray, client: np.ndarray, n: int, credit: float) -> np.ndarray:
    """Each client's shift, float64[n]; 0 for one without rows.

    Args:
        x: float64[m], logits of the model. y: float64[m], 0 or 1. weight: float64[m]. client: int64[m], below n.
    """
    found = np.zeros(n)
    for _ in range(STEPS):
        q = sigmoid(x + found[client])
        slope = np.bincount(client, weight * (y - q), n) - credit * found
        curve = np.bincount(client, weight * q * (1 - q), n) + credit
        step = np.clip(slope / curve, -FAR, FAR)
        found += step
        if np.abs(step).max(initial=0.0) < 1e-6:
            break
    return found


def apart(residual: np.ndarray, information: np.ndarray, noise: float) -> float:
    """The deviation of clients' levels, 0 where it is not to be told from that.

    Args:
        residual, information: float64[n], U and I of each client. noise: at least 1.
    """
    mass, sums = (a[information > 0, None] for a in (information, residual))
    variance = noise * mass + np.concatenate([[0.0], DEVIATIONS])[None] ** 2 * mass**2
    likelihood = -0.5 * (np.log(variance) + sums**2 / variance).sum(axis=0)
    best = int(np.argmax(likelihood))
    return float(DEVIATIONS[best - 1]) if likelihood[best] - likelihood[0] > CHANCE else 0.0


def learn(
    p: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    client: np.ndarray,
    clusters: Sequence[np.ndarray],
    names: Sequence[str],
    heads: Mapping[str, int],
) -> Levels:
    """The levels of all clients, from rows of training and validation.

    Args:
        p, y, weight: float[m, H], on the host: predictions, labels, and how much a row counts, 0 where its label is not
            known. client: int64[m], a position in ``names``.
        clusters: int64[m] each, numbers from 0 on: rows of one subscriber, and those of a client's day, are alike.
        heads: of those to move, binary, name -> column.
    """
    credit: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    for head, h in heads.items():
        rows = np.flatnonzero(weight[:, h] > 0)
        x, labels, heavy, mine = logit(p[rows, h]), (y[rows, h] > 0).astype(np.float64), weight[rows, h], client[rows]
        residual, information = heavy * (labels - sigmoid(x)), heavy * sigmoid(x) * sigmoid(-x)
        sums, mass = (np.bincount(mine, a, len(names)) for a in (residual, information))
        around = residual - information * (sums / np.maximum(mass, EPSILON))[mine]  # the client's own level
        squares = [float((np.bincount(cluster[rows], around) ** 2).sum()) for cluster in clusters]
        noise = max([1.0, *(square / max(float(mass.sum()), EPSILON) for square in squares)])
        deviation = apart(sums, mass, noise)
        if not deviation:
            continue
        credit[head] = noise / deviation**2
        for name, shift in zip(names, shifts(x, labels, heavy, mine, len(names), credit[head]).tolist(), strict=True):
            if shift:
                found.setdefault(name, {})[head] = shift
    return Levels(credit, found)
