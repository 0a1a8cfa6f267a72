"""What ``model.imbalance`` does to the loss where positive rows are rare.

Rows are only ever dropped in the feature table, where the survivors weigh 1/rate (``samples.downsample``), so that a
table always stands for the population. All other ways are of the loss: a head's positive rows weigh c times a negative
one, which multiplies the odds that it learns by c at every x; ``losses.corrected`` divides them by c again, exactly,
for the validation as for every prediction.

    none            c = 1
    downsample      c = 1: the survivors weigh 1/rate
    recalibrated    c = 1/rate: the survivors are unweighted (He et al. 2014), then q = p / (p + (1 - p) / rate)
    class_weights   c = (1 - r) / r for a head of base rate r: both classes weigh the same
    focal           c = 1, and the focal loss (Lin et al. 2017), whose minimiser is inverted

With several heads the formula of ``recalibrated`` would be wrong for unweighted survivors as they are: a row without
this outcome survives for certain where another outcome happened, so the odds grow by a factor that depends on x. Here a
row's weight is a head's own: a negative that another head kept weighs ``rate``, which is how often it would have been
kept for this head's sake. So the factor is 1/rate for every head at every x, whatever the number of heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline import options
from pipeline.learning import losses
from pipeline.learning.labels import Label
from pipeline.learning.models import Head


def weigh(labels: Sequence[Label], heads: Sequence[Head], settings: options.Model) -> None:
    """Set each label's ``positive_weight`` and ``gamma``, as the settings ask for."""
    for label, head in zip(labels, heads, strict=True):
        if not label.learned:
            continue
        if settings.imbalance == "recalibrated":
            label.positive_weight = 1 / settings.downsample
        elif settings.imbalance == "class_weights" and 0 < label.rate < 1:
            label.positive_weight = (1 - label.rate) / label.rate
        elif settings.imbalance == "focal" and head.kind == "binary":
            label.gamma = settings.focal_gamma


def start(label: Label) -> float:
    """What an untrained network's sigmoid has to be, so that its correction is the base rate."""
    if not label.gamma:
        return label.taught
    z = np.linspace(-30, 30, 60_001, dtype=np.float32)
    rate = min(max(label.taught, 1e-6), 1 - 1e-6)
    found = np.interp(np.log(rate / (1 - rate)), np.asarray(losses.from_focal(z, label.gamma)), z)
    return float(1 / (1 + np.exp(-found)))
