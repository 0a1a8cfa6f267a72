"""The luck of single campaigns, which a network would otherwise learn from whatever nearly names them.

The sends of a campaign share its quality, which no feature tells beforehand. Beside the network every campaign of a day
has a level of its own on each outcome, a random intercept, which is fitted as training goes on and left out of every
prediction: penalised quasi-likelihood (Breslow and Clayton 1993, doi:10.1080/01621459.1993.10594284), with a normal
prior whose variance comes from the levels themselves (empirical Bayes).

The chance of a campaign that nobody knows yet is the mean over the prior. To second order the mean of sigmoid(x + b)
over b ~ N(0, v) is sigmoid(x + (1 - 2 p) v / 2). With the head's rate for p, so much is taken off each level, and the
network gives about that chance by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.learning.group import Group
from pipeline.learning.losses import ABSENT
from pipeline.learning.models import Architecture
from pipeline.learning.rows import BUCKETS
from pipeline.learning.tensors import tf

VARIANCE = 0.3**2  # of the levels to begin with, in squared logits
LEAST = 1e-4
LIMIT = 2.0  # of a level, in logits


class Luck:
    """``levels``: float32[BUCKETS, H], of each campaign (see :func:`rows.campaigns`) on each head's logit, that of "is
    positive" for values; ``variance``: float32[H], of the prior. Both stay as they are for a head that is not learned.

    Args:
        rates: each head's share of positive rows as the loss weighs them. learned: bool[H].
    """

    def __init__(self, architecture: Architecture, rates: Sequence[float], learned: Sequence[bool]) -> None:
        self.architecture, self.learned, heads = architecture, np.array(learned), len(architecture.heads)
        self.values = [head.kind == "value" for head in architecture.heads]
        self.first = [architecture.columns(h).start for h in range(heads)]
        self.halves = tf.constant(np.where(learned, 0.5 - np.array(rates), 0), dtype=tf.float32)
        self.levels = tf.Variable(tf.zeros((BUCKETS, heads)), trainable=False)
        self.variance = tf.Variable(tf.fill((heads,), VARIANCE), trainable=False)
        self.sums = tf.Variable(tf.zeros((BUCKETS, 2 * heads)), trainable=False)

    # -- while a graph is traced ----------------------------------------------------------------------------------

    def added(self, several: Sequence[Any], campaign: Any) -> list[Any]:
        """The outputs of every member, float32[n, W], with the levels of the rows' campaigns, float32[n]."""
        level = tf.gather(self.levels, tf.cast(campaign, tf.int64)) - self.halves * self.variance
        if any(self.values):
            widths = [head.width for head in self.architecture.heads]
            level = tf.concat(
                [tf.pad(level[:, h : h + 1], ((0, 0), (0, width - 1))) for h, width in enumerate(widths)], axis=1
            )
        return [raw + level for raw in several]

    def slopes(self, several: Sequence[Any], target: Any, weight: Any) -> Any:
        """The first and, with its sign changed, the second derivative of each row's log likelihood by each head's
        level, float32[n, 2H].

        Args:
            several: outputs with the levels. target, weight: float32[n, H], as a Resident has them.
        """
        if any(self.values):
            several = [tf.gather(raw, self.first, axis=1) for raw in several]
            target = tf.where(self.values, tf.cast(target > ABSENT / 2, tf.float32), target)
        p = tf.add_n([tf.sigmoid(raw) for raw in several]) / len(several)
        return tf.concat([weight * (target - p), weight * p * (1 - p)], axis=1)

    def see(self, campaign: Any, slopes: Any) -> None:
        """Add up by campaign, on the CPU in the order of the rows."""
        self.sums.assign_add(tf.math.unsorted_segment_sum(slopes, tf.cast(campaign, tf.int64), BUCKETS))

    # -- after an epoch -------------------------------------------------------------------------------------------

    def update(self, passes: int, group: Group) -> None:
        """One step by what the members of the group have seen in an epoch, every row so many times."""
        slope, curvature = np.split(group.sum(self.sums.numpy().astype(np.float64)) / passes, 2, axis=1)
        before = self.levels.numpy().astype(np.float64), self.variance.numpy().astype(np.float64)
        after = newton(*before, slope, curvature)
        for variable, old, new in zip((self.levels, self.variance), before, after, strict=True):
            variable.assign(np.where(self.learned, new, old))
        self.sums.assign(tf.zeros_like(self.sums))

    @property
    def kept(self) -> list[Any]:
        """What a checkpoint has to keep."""
        return [self.levels, self.variance]


def newton(
    levels: np.ndarray, variance: np.ndarray, slope: np.ndarray, curvature: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A Newton step of the levels towards the most likely ones, and then the variance of their prior.

    That is the mean, over the campaigns of which there are rows, of a level's square and how uncertain it is (Laplace).

    Args:
        levels, slope, curvature: float64[n, H], the latter two summed over each campaign's rows. variance: float64[H].
    """
    precision = curvature + 1 / variance
    levels = np.clip(levels + (slope - levels / variance) / precision, -LIMIT, LIMIT)
    there = curvature > 0
    total = np.where(there, levels**2 + 1 / precision, 0).sum(axis=0)
    number = there.sum(axis=0)
    return levels, np.where(number > 0, np.maximum(total / np.maximum(number, 1), LEAST), variance)
