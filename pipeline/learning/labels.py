"""What is known of the labels in training: how many, how frequent, and whether they are enough to learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.backend import backend_of
from pipeline.learning.models import Head
from pipeline.learning.rows import Rows


@dataclass
class Label:
    """What is known of one head's labels in training. ``rate``: weighted share of positive rows; ``mean``: weighted
    mean label, what an unlearned head predicts; ``log``: mean and deviation of log(value), and the largest value."""

    rows: int
    positives: int
    rate: float
    mean: float
    learned: bool
    note: str = ""
    log: tuple[float, float, float] = (0.0, 1.0, 0.0)
    smear: float = 1.0  # observed over expected in training, a value head's correction (Duan 1983)
    positive_weight: float = 1.0  # how many times a negative row's weight a positive one had in the loss
    gamma: float = 0.0  # of the focal loss; 0: log loss

    @property
    def taught(self) -> float:
        """The share of positive rows as the loss weighed them."""
        return self.rate * self.positive_weight / (1 + self.rate * (self.positive_weight - 1))


@dataclass(frozen=True)
class Tally:
    """What some rows say of one head's labels; the tallies of several chunks add up.

    ``weight``, ``positive``, ``total``: sums of the weights of known rows, of those that are positive, and of weight x
    label. ``log``: of the positive rows of a value head, the weight, mean and centred sum of squares of log(label), and
    the largest label.
    """

    rows: int = 0
    positives: int = 0
    weight: float = 0.0
    positive: float = 0.0
    total: float = 0.0
    log: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, rows: Rows, h: int, head: Head) -> Tally:
        """The tally of head h. A binary label may be a probability: then positives are expected ones."""
        xp = backend_of(rows.X).xp
        known = rows.take("mask")[:, h] > 0
        y = xp.where(known, rows.take("y")[:, h], 0).astype(xp.float64)
        weight = xp.where(known, rows.take("weight"), 0).astype(xp.float64)
        positive = y > 0
        share = weight * (y if head.kind == "binary" else positive)
        sums = (float(weight.sum()), float(share.sum()), float((weight * y).sum()))
        log = (0.0, 0.0, 0.0, 0.0)
        if head.kind == "value" and sums[1] > 0:
            logs = xp.log(xp.where(positive, y, 1.0))
            mean = float((share * logs).sum()) / sums[1]
            log = (sums[1], mean, float((share * (logs - mean) ** 2).sum()), float(y.max()))
        positives = y.sum() if head.kind == "binary" else positive.sum()
        return cls(int(known.sum()), round(float(positives)), *sums, log)

    def __add__(self, other: Tally) -> Tally:
        """Both together (the sums of squares as in Chan, Golub and LeVeque 1979)."""
        one, two = self.log, other.log
        weight, apart = one[0] + two[0], two[1] - one[1]
        if weight > 0:
            mean = one[1] + apart * two[0] / weight
            squares = one[2] + two[2] + apart**2 * one[0] * two[0] / weight
            log = (weight, mean, squares, max(one[3], two[3]))
        else:
            log = one
        return Tally(
            self.rows + other.rows,
            self.positives + other.positives,
            self.weight + other.weight,
            self.positive + other.positive,
            self.total + other.total,
            log,
        )

    def label(self, head: Head, minimum_positives: int) -> Label:
        """What is known of the head, and whether it is enough to learn from."""
        rate = self.positive / self.weight if self.weight > 0 else 0.0
        mean = self.total / self.weight if self.weight > 0 else 0.0
        label = Label(self.rows, self.positives, rate, mean, learned=True)
        if self.positives < (needed := max(minimum_positives, 1)):
            label.note = f"{self.positives} positive rows of {self.rows} in training, {needed} needed"
        elif self.positives == self.rows and head.kind == "binary":
            label.note = f"all {self.rows} rows in training are positive"
        if head.kind == "value" and self.log[0] > 0:
            deviation = (self.log[2] / self.log[0]) ** 0.5
            label.log = (self.log[1], deviation if deviation > 1e-6 else 1.0, self.log[3])
        if label.note:
            label.learned, label.note = False, f"no model for {head.name}, its base rate is used: {label.note}"
        return label


def base_loss(head: Head, rate: float) -> float:
    """The loss of predicting the base rate (and, for values, the log-normal of all positive rows), in nats."""
    p = min(max(rate, 1e-9), 1 - 1e-9)
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return float(entropy + (0.5 * p if head.kind == "value" else 0.0))
