"""How alike families of campaigns are: whether who answers one more than they usually do answers the other more, too.

Learned from everybody's past, before the validation begins, and kept with the specification, so that training and
scoring mean the same by it. A response is an exposure's first answer of a kind, so that opening twice says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.backend import Array
from pipeline.errors import DataError
from pipeline.features.exposures import NONE, answering_rows
from pipeline.features.partition import Partition
from pipeline.features.trailing import UNKNOWN

FAMILIES = 8  # the most frequent ones, whose likeness is learned
EVENTS = 2_000_000  # to learn it from, of whole subscribers, are enough
EVER = 1 << 60  # microseconds: a window that reaches back to any first event
_MOST = 10_000  # exposures of one subscriber; who has more is no reader
_FIXED = 2.0**16  # sums are of whole multiples of its inverse, so that no order or device changes them


@dataclass(frozen=True)
class Similarity:
    """``names``: families, sorted. ``weights``: [K, K], symmetric, 1 on the diagonal and at least -1 elsewhere."""

    names: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Similarity:
        return cls(tuple(values["names"]), tuple(tuple(row) for row in values["weights"]))


def answers(spec: Any) -> tuple[str, ...]:
    """The kinds of answers that a FeatureSpec looks at by family."""
    asked = {f.kind for f in spec.features if f.op == "match" and f.how != "count"}
    asked |= set(spec.responses) if any(f.op == "presence" for f in spec.features) else set()
    return tuple(k for k in spec.kinds if k in asked or (k == over("click", spec.responses) and "click" in asked))


def over(kind: str, responses: Sequence[str]) -> str | None:
    """The answer that this one follows, a click an open; None where it is over deliveries."""
    return "open" if kind == "click" and "open" in responses else None


def roles(part: Partition, spec: Any) -> Array:
    """What each row is, int32[n]: 0 an exposure, then an exposure's first answer of each kind, last a bounce.

    -1 for any other row, and for one whose campaign has no family.
    """
    xp, kinds = part.xp, answers(spec)
    role = xp.full(part.rows, UNKNOWN, dtype=xp.int32)
    sent = xp.flatnonzero(part.is_any(part.human, (spec.exposure,)))
    role[sent] = 0
    if len(sent):
        for k, rows in enumerate(answering_rows(part, sent, kinds)):
            role[rows[xp.flatnonzero(rows != NONE)]] = k + 1
    role = xp.where(part.is_any(part.human, spec.bounces), len(kinds) + 1, role)
    return xp.where(families_of(part) == UNKNOWN, UNKNOWN, role).astype(xp.int32)


def families_of(part: Partition) -> Array:
    """int32[n]: the family of each row's campaign, a code of this partition."""
    if part.family is None:
        raise DataError("the feature group 'match' needs campaigns; map source.columns.campaign")
    return part.family


def positions(part: Partition, names: Sequence[str], family: Array) -> Array:
    """Where families, int[m] codes of this partition, are in ``names``: int64[m], UNKNOWN where they are not."""
    place = {name: i for i, name in enumerate(names)}
    found = part.xp.asarray(np.array([*(place.get(n, UNKNOWN) for n in part.families), UNKNOWN], dtype=np.int64))
    return found[part.xp.where(family == UNKNOWN, len(part.families), family)]


def columns(part: Partition, spec: Any, names: Sequence[str], role: Array) -> tuple[Array, int]:
    """Each row's column in the tallies, int32[n], and how many columns there are; UNKNOWN where it is in none."""
    xp, place = part.xp, positions(part, names, families_of(part))
    there = (place != UNKNOWN) & (role != UNKNOWN)
    width = (len(answers(spec)) + 2) * len(names)
    return xp.where(there, role * len(names) + place, UNKNOWN).astype(xp.int32), width


def tallies(part: Partition, column: Array, width: int, names: int, seg: Array, at: Array, window: int) -> Array:
    """Rows of each role and family in ``[at - window, at)``, exposures less their bounces: float64[q, roles, names]."""
    xp = part.xp
    out = xp.empty((len(seg), width), dtype=xp.float32)
    part.backend.kernels.window_counts(xp, part.starts, part.ts, column, width, seg, at, [window], out)
    found = out.reshape(len(seg), -1, names).astype(xp.float64)
    found[:, 0] = xp.maximum(found[:, 0] - found[:, -1], 0)
    return found


# -- learning ----------------------------------------------------------------------------------------------------


def sums(part: Partition, spec: Any, names: Sequence[str], until: int) -> np.ndarray:
    """What likeness is made of, of each kind of answer: int64[kinds, 3, K, K], in fixed point, on the host.

    With y answers to x exposures of a subscriber, Y and X in all: the residuals z = y - x Y / X of two families
    multiplied, less what chance gives them (which of X exposures the Y answers fall on is hypergeometric); the squares
    of that; and what (Y / X)^2 x x' is. Each over X, so that no reader of everything outweighs the others.

    Args:
        until: only events before it, microseconds UTC.
    """
    xp, size, kinds = part.xp, len(names), answers(spec)
    out = np.zeros((len(kinds), 3, size, size), dtype=np.int64)
    if part.segments == 0:
        return out
    column, width = columns(part, spec, names, roles(part, spec))
    seg = xp.arange(part.segments, dtype=xp.int64)
    found = tallies(part, column, width, size, seg, xp.full(len(seg), until, dtype=xp.int64), EVER)
    for k, kind in enumerate(kinds):
        before = over(kind, spec.responses)
        x = found[:, 0 if before is None else kinds.index(before) + 1]
        y = xp.minimum(found[:, k + 1], x)
        X, Y = _total(x), _total(y)
        mine = xp.flatnonzero((X > 1) & (X <= _MOST))
        x, y, X, Y = x[mine], y[mine], X[mine], Y[mine]
        chance, rate = Y * (X - Y) / (X * (X - 1)), Y / X
        for f in range(size):
            for g in range(f, size):
                both = x[:, f] * x[:, g] / X
                z = (y[:, f] - rate * x[:, f]) * (y[:, g] - rate * x[:, g])
                z = (z - chance * ((x[:, f] if f == g else 0.0) - both)) / X
                for i, term in enumerate((z, z * z, rate * rate * both)):
                    out[k, i, f, g] = out[k, i, g, f] = int(xp.rint(term * _FIXED).astype(xp.int64).sum())
    return out


def _total(values: Array) -> Array:
    """The sum of each row, float64[q] of whole numbers, so in any order."""
    return values.sum(axis=1)


def learn(found: np.ndarray, names: Sequence[str]) -> Similarity | None:
    """The likeness of families, from :func:`sums`; None where no more depends on the family than chance gives.

    Covariances of the relative residuals, of all kinds of answers (weighted by their precision), over the mean variance
    of one family, shrunk towards no likeness by what of them is noise.
    Source: the estimate of the noise's share, Schaefer and Strimmer 2005.
    """
    size = len(names)
    product, square, below = (found[:, i].astype(np.float64) / _FIXED for i in range(3))
    known = (below > 0) & (square > 0)
    precision = np.where(known, below**2 / np.where(known, square, 1.0), 0.0)
    total = precision.sum(axis=0)
    each = np.where(known, product / np.where(known, below, 1.0), 0.0)
    value = (precision * each).sum(axis=0) / np.where(total > 0, total, 1.0)
    noise = 1 / np.where(total > 0, total, np.inf)
    own, other = np.eye(size, dtype=bool), ~np.eye(size, dtype=bool) & (total > 0)
    alike = float((value[other] ** 2).sum())
    scale, error = float(value[own].mean()), float(np.sqrt(noise[own].sum()) / size)
    kept = 1 - float(noise[other].sum()) / alike if alike > 0 else 0.0
    if scale <= 2 * error:
        return None
    weights = np.where(own, 1.0, np.clip(np.where(other, value, 0.0) * max(kept, 0.0) / scale, -1.0, 1.0)).round(2)
    return Similarity(tuple(names), tuple(tuple(row) for row in weights.tolist()))
