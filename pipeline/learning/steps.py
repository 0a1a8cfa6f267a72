"""The rows of a score from the highest down, cut where it changes, and what they add up to under any weights."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline.backend import PANDAS


class Sums(NamedTuple):
    """What the steps add up to, each a float; "so far" is of the steps before and half of the step itself.

    ``mass``, ``hits``, ``misses``: the weight, what y adds up to, and the rest of the weight.
    ``area``, ``wins``: sums over steps of the weight, and of the misses, times the hits so far.
    ``precise``: of the hits gained times the precision down to there.
    ``expected``, ``observed``: what score and y add up to in the first ``wanted`` of the weight; of the step that this
    cuts, a part.
    """

    mass: float
    hits: float
    misses: float
    area: float
    wins: float
    precise: float
    expected: float
    observed: float


@dataclass(frozen=True)
class Steps:
    """``group``: int32[n], each row's cluster; ``weight``, ``amount`` (weight times y), ``score``: float64[n], in the
    order of descending scores; ``ends``: int64[steps], the row after each step's last."""

    group: np.ndarray
    weight: np.ndarray
    amount: np.ndarray
    score: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, y: np.ndarray, weight: np.ndarray, group: np.ndarray) -> Steps:
        """Every distinct score is a step. Args: score, y, weight: float64[n]. group: int[n]."""
        order = np.argsort(-score, kind="stable")
        score, weight = score[order], weight[order]
        ends = np.flatnonzero(np.append(np.diff(score) != 0, True)[: len(score)]) + 1
        return cls(group[order].astype(np.int32), weight, weight * y[order], score, ends)

    def coarse(self) -> Steps:
        """Scores whose ranks differ by less than a 500th are taken for ties: hardly changes how a metric varies."""
        if not len(self.ends):
            return self
        n = len(self.score)
        ranks = np.cumsum(np.maximum(1.0, 1.002 ** np.arange(500 * math.log(n) + 500) / 500))
        wanted = np.append(ranks[ranks < n], n)
        return replace(self, ends=np.unique(self.ends[np.searchsorted(self.ends, wanted)]))

    def sums(self, often: np.ndarray, wanted: float) -> Sums:
        """Args: often: float64[clusters], how many times each cluster counts, some row's above 0. wanted: of the
        weight so counted, above 0 and at most all of it."""
        return Sums(*_along()(often, self.group, self.weight, self.amount, self.score, self.ends, wanted))


def _along() -> Callable[..., tuple[float, ...]]:
    return importlib.import_module("pipeline.learning.compiled_steps").along if PANDAS.compiled else along


def along(
    often: np.ndarray,
    group: np.ndarray,
    weight: np.ndarray,
    amount: np.ndarray,
    score: np.ndarray,
    ends: np.ndarray,
    wanted: float,
) -> tuple[float, ...]:
    """The :class:`Sums`, as arrays."""
    times, first = often.take(group), np.append(0, ends[:-1])
    heavy = times * weight
    inside, gained = (np.add.reduceat(a, first) for a in (heavy, times * amount))
    mass, hits, lost = np.cumsum(inside), np.cumsum(gained), inside - gained
    middle = hits - gained / 2
    precision = np.divide(hits, mass, out=np.zeros_like(hits), where=mass > 0)
    step = int(np.searchsorted(mass, wanted))
    start, stop = first[step], ends[step]
    part = (wanted - (mass[step] - inside[step])) / inside[step]
    expected = heavy[:start] @ score[:start] + part * (heavy[start:stop] @ score[start:stop])
    observed = hits[step] - gained[step] + part * gained[step]
    found = (mass[-1], hits[-1], lost.sum(), inside @ middle, lost @ middle, gained @ precision, expected, observed)
    return tuple(float(value) for value in found)
