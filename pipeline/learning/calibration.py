"""A probability put right on rows later than those it was learned from, without changing the order of rows.

``temperature``: slope and intercept of the logit, a positive slope (Platt 1999; Guo et al. 2017 with an intercept);
``isotonic``: the best step function that never falls (Zadrozny and Elkan 2002), which makes ties and needs more rows.

``auto`` calibrates a head only where that is needed and can be told: at least MINIMUM positive and negative rows, of
DAYS days, and the log loss of days that the calibration was not fitted to (FOLDS runs of days) better by more than
noise, the lower end of its 90% interval above zero. Rows of a day share its campaigns, whose luck moves the level of
all of them, and rows of a subscriber share the person, so the noise is that of whole days or of whole subscribers,
whichever is larger; taking rows, or subscribers alone, for independent would calibrate to the luck of two weeks.
Isotonic is tried from ISOTONIC positive rows on, and taken where it is better than the temperature by more than noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.errors import ModelError
from pipeline.learning.intervals import EPSILON, LEVEL, Resamples

Kind = Literal["none", "temperature", "isotonic"]

MINIMUM = 200  # rows of either class; fewer say too little about a slope
ISOTONIC = 1_000  # positive rows from which isotonic is no worse than a slope (Niculescu-Mizil and Caruana 2005)
DAYS = 7  # of rows; fewer cannot tell a wrong level from the luck of a few campaigns
FOLDS = 5
NO_MODEL = "it has no model"  # why an outcome that predicts its base rate is not calibrated


@dataclass(frozen=True)
class Calibration:
    """What is done to one head's probability. ``x``, ``y``: knots of isotonic, linear between, level beyond."""

    kind: Kind = "none"
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    reason: str = ""

    def apply(self, p: Array) -> Array:
        """p: float[n], probabilities, on either device -> the same, calibrated; never falling in p."""
        xp = backend_of(p).xp
        if self.kind == "temperature":
            sure = xp.clip(p.astype(xp.float64), EPSILON, 1 - EPSILON)
            return (1 / (1 + xp.exp(-self.intercept - self.slope * (xp.log(sure) - xp.log1p(-sure))))).astype(p.dtype)
        if self.kind == "isotonic":
            return xp.interp(p.astype(xp.float64), xp.asarray(self.x), xp.asarray(self.y)).astype(p.dtype)
        return p

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Raises ModelError for numbers that no calibration has."""
        try:
            slope, intercept = float(values["slope"]), float(values["intercept"])
            x, y = (tuple(float(v) for v in values[n]) for n in ("x", "y"))
            found = cls(values["kind"], slope, intercept, x, y, str(values["reason"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's calibration cannot be read ({error!r}); train again") from None
        finite = all(math.isfinite(v) for v in (slope, intercept, *x, *y))
        rising = len(x) == len(y) and all(np.diff(x) > 0) and all(np.diff(y) >= 0) and all(0 <= v <= 1 for v in y)
        known = found.kind in ("none", "temperature") or (found.kind == "isotonic" and len(x) > 0)
        if not (known and finite and rising and found.slope > 0):
            raise ModelError(f"the model's calibration {dict(values)} is not one this version knows; train again")
        return found


def calibrate(
    p: np.ndarray, y: np.ndarray, weight: np.ndarray, cluster: np.ndarray, day: np.ndarray, wanted: str = "auto"
) -> Calibration:
    """The calibration of one head, from rows that neither trained it nor will measure it.

    Args:
        p: float[n], predicted probability. y: float[n], 0 or 1. weight: float[n], above 0.
        cluster, day: [n], each row's subscriber and the day of its decision. wanted: auto, none, temperature, isotonic.
    """
    p, y, weight = (np.asarray(a, dtype=np.float64) for a in (p, y, weight))
    few = int(min((y > 0).sum(), (y <= 0).sum()))
    if wanted == "none":
        return Calibration(reason="not asked for")
    if few < (MINIMUM if wanted == "auto" else 2):
        return Calibration(reason=f"{few} rows of the rarer class, {MINIMUM if wanted == 'auto' else 2} needed")
    if wanted == "isotonic":
        return isotonic(p, y, weight, "asked for")
    if wanted == "temperature":
        return temperature(p, y, weight, "asked for")
    return _best(p, y, weight, Resamples.of(cluster), Resamples.of(day))


def temperature(p: np.ndarray, y: np.ndarray, weight: np.ndarray, reason: str = "") -> Calibration:
    """Slope and intercept of the logit that explain y best; none where the slope would turn the order round."""
    from sklearn.linear_model import LogisticRegression

    sure = np.clip(p, EPSILON, 1 - EPSILON)
    logit = np.log(sure) - np.log1p(-sure)
    centre, spread = float(logit.mean()), float(logit.std())
    if spread < 1e-4:  # only the intercept can be known
        rate = np.average(y, weights=weight)
        return Calibration("temperature", 1.0, float(np.log(rate / (1 - rate)) - centre), reason=reason)
    # Standardised, so that Newton's step is well-conditioned for a model that says nearly the same of everybody.
    standard = ((logit - centre) / spread)[:, None]
    fitted = LogisticRegression(C=1e10, solver="newton-cholesky", tol=1e-8).fit(standard, y > 0, weight)
    slope = float(fitted.coef_[0, 0]) / spread
    intercept = float(fitted.intercept_[0]) - slope * centre
    if slope <= 0:
        return Calibration(reason=f"higher probabilities have fewer positives (slope {slope:.2g})")
    return Calibration("temperature", slope, intercept, reason=reason)


def isotonic(p: np.ndarray, y: np.ndarray, weight: np.ndarray, reason: str = "") -> Calibration:
    """The never falling function that explains y best, kept half a row away from certainty."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(p, y, weight)
    edge = 0.5 / len(p)
    x, level = fitted.X_thresholds_, np.clip(fitted.y_thresholds_, edge, 1 - edge)
    return Calibration("isotonic", x=tuple(map(float, x)), y=tuple(map(float, level)), reason=reason)


def _best(p: np.ndarray, y: np.ndarray, weight: np.ndarray, people: Resamples, days: Resamples) -> Calibration:
    """As the head of this file says of ``auto``."""
    if days.clusters < DAYS:
        return Calibration(reason=f"rows of {days.clusters} days, {DAYS} needed")
    fold = days.group * FOLDS // days.clusters
    if min(int((y[fold != k] > 0).sum()) for k in range(FOLDS)) < MINIMUM // 2:
        return Calibration(reason="nearly all positive rows are of few days")
    out = {"none": _loss(p, y)}
    for name, fit in (("temperature", temperature), ("isotonic", isotonic)):
        if name == "isotonic" and (y > 0).sum() < ISOTONIC:
            continue
        q = p.copy()
        for k in range(FOLDS):
            rest = fold != k
            q[~rest] = fit(p[rest], y[rest], weight[rest]).apply(p[~rest])
        out[name] = _loss(q, y)
    chosen, words = "none", "no calibration is better than none by more than noise"
    for name in ("temperature", "isotonic"):
        if name in out:
            gain, low, high = _gain(out[chosen] - out[name], weight, (people, days))
            if low > 0:
                chosen, words = name, f"log loss {gain:.2g} lower ({low:.2g} to {high:.2g}) than with {chosen}"
    fits = {"temperature": temperature, "isotonic": isotonic}
    return fits[chosen](p, y, weight, words) if chosen in fits else Calibration(reason=words)


def _loss(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    sure = np.clip(p, EPSILON, 1 - EPSILON)
    return np.asarray(-(y * np.log(sure) + (1 - y) * np.log1p(-sure)))


def _gain(gain: np.ndarray, weight: np.ndarray, groupings: tuple[Resamples, ...]) -> tuple[float, float, float]:
    """Weighted mean of rows' gains and its 90% interval, the widest of those by clusters (linearised, Student's t)."""
    from scipy.stats import t

    mean = float(np.average(gain, weights=weight))
    half = 0.0
    for groups in groupings:
        n = max(groups.clusters, 2)
        sums = np.bincount(groups.group, weight * (gain - mean), groups.clusters)
        error = float(np.sqrt((sums**2).sum() * n / (n - 1)) / weight.sum())
        half = max(half, float(t.ppf((1 + LEVEL) / 2, n - 1)) * error)
    return mean, mean - half, mean + half
