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


def describe(rows: Rows, h: int, head: Head, minimum_positives: int) -> Label:
    """What is known of head h's labels, and whether they are enough to learn from."""
    xp = backend_of(rows.X).xp
    known = rows.take("mask")[:, h] > 0
    y = xp.where(known, rows.take("y")[:, h], 0).astype(xp.float64)
    weight = xp.where(known, rows.take("weight"), 0).astype(xp.float64)
    total = float(weight.sum())
    positive = y > 0
    count, positives = int(known.sum()), int(positive.sum())
    rate = float((weight * positive).sum()) / total if total > 0 else 0.0
    label = Label(count, positives, rate, float((weight * y).sum()) / total if total > 0 else 0.0, learned=True)
    if positives < max(minimum_positives, 1):
        label.note = f"{positives} positive rows of {count} in training, {max(minimum_positives, 1)} needed"
    elif positives == count and head.kind == "binary":
        label.note = f"all {count} rows in training are positive"
    if head.kind == "value" and positives:
        log, share = xp.log(xp.where(positive, y, 1.0)), weight * positive
        mean = float((share * log).sum() / share.sum())
        deviation = float((share * (log - mean) ** 2).sum() / share.sum()) ** 0.5
        label.log = (mean, deviation if deviation > 1e-6 else 1.0, float(y.max()))
    if label.note:
        label.learned, label.note = False, f"no model for {head.name}, its base rate is used: {label.note}"
    return label


def base_loss(head: Head, rate: float) -> float:
    """The loss of predicting the base rate (and, for values, the log-normal of all positive rows), in nats."""
    p = min(max(rate, 1e-9), 1 - 1e-9)
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return float(entropy + (0.5 * p if head.kind == "value" else 0.0))
