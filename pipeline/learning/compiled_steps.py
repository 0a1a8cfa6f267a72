"""The numba twin of ``steps.along``, for the CPU: the same arguments, the same answers, one pass over the rows."""

from __future__ import annotations

from typing import Any

from pipeline.features.compiled import compiled

Array = Any


@compiled
def along(
    often: Array, group: Array, weight: Array, amount: Array, score: Array, ends: Array, wanted: float
) -> tuple[float, ...]:
    mass = hits = misses = area = wins = precise = expected = observed = 0.0
    first, whole = 0, True
    for end in ends:
        inside = gained = 0.0
        for row in range(first, end):
            times = often[group[row]]
            inside += times * weight[row]
            gained += times * amount[row]
        middle = hits + gained / 2
        area += inside * middle
        wins += (inside - gained) * middle
        misses += inside - gained
        if whole and inside > 0:
            part = min((wanted - mass) / inside, 1.0)
            step = 0.0
            for row in range(first, end):
                step += often[group[row]] * weight[row] * score[row]
            expected += part * step
            observed = hits + part * gained
            whole = part == 1.0
        mass += inside
        hits += gained
        if mass > 0:
            precise += gained * (hits / mass)
        first = end
    return mass, hits, misses, area, wins, precise, expected, observed
