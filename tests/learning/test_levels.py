"""Levels of clients: the shifts beside a plain loop, and that they are only as sure as a client's rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.learning.levels import Levels, apart, learn, shifts


def penalised(shift: float, x: np.ndarray, y: np.ndarray, weight: np.ndarray, credit: float) -> float:
    """What the shift is to make least, row by row."""
    found = credit * shift * shift / 2
    for one, label, heavy in zip(x.tolist(), y.tolist(), weight.tolist(), strict=True):
        q = 1 / (1 + math.exp(-one - shift))
        found -= heavy * math.log(q if label else 1 - q)
    return found


def least(x: np.ndarray, y: np.ndarray, weight: np.ndarray, credit: float) -> float:
    """Its least, by ternary search of what is convex."""
    low, high = -8.0, 8.0
    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if penalised(a, x, y, weight, credit) < penalised(b, x, y, weight, credit):
            high = b
        else:
            low = a
    return (low + high) / 2


@pytest.mark.parametrize("credit", [1.0, 30.0])
def test_shifts_are_those_of_a_plain_search(credit: float) -> None:
    rng = np.random.default_rng(0)
    client = np.repeat([0, 1, 2, 4], [300, 40, 200, 3])  # 3 has no rows
    x = rng.normal(-3, 1, len(client))
    y = (rng.random(len(client)) < 1 / (1 + np.exp(-x - np.array([1.5, 0, -2, 0, 3])[client]))).astype(float)
    weight = rng.choice([1.0, 2.5], len(client))
    found = shifts(x, y, weight, client, 5, credit)
    for one in range(5):
        mine = client == one
        assert found[one] == pytest.approx(least(x[mine], y[mine], weight[mine], credit), abs=1e-5)
    assert found[3] == 0


def log(levels: np.ndarray, rows: np.ndarray, days: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Rows of clients whose logits are off by ``levels``, and on a day by as much as ``days``, more or less."""
    rng = np.random.default_rng(seed)
    client = np.repeat(np.arange(len(levels)), rows)
    day = rng.integers(0, 20, len(client)) + 20 * client
    x = rng.normal(-2.5, 1, len(client))
    luck = rng.choice([-days, days], 20 * len(levels))[day]
    y = rng.random(len(client)) < 1 / (1 + np.exp(-x - levels[client] - luck))
    return {
        "p": np.mean([1 / (1 + np.exp(-x - d)) for d in (-days, days)], axis=0)[:, None],
        "y": y[:, None].astype(float),
        "weight": np.ones((len(client), 1)),
        "client": client,
        "clusters": (np.arange(len(client)), day),
        "names": [f"client {i}" for i in range(len(levels))],
        "heads": {"open": 0},
    }


def test_the_deviation_is_the_most_likely_one() -> None:
    rng = np.random.default_rng(1)
    information = rng.uniform(0, 50, 60)
    residual = rng.normal(0, 1, 60) * np.sqrt(1.5 * information + 0.4**2 * information**2)

    def likelihood(deviation: float) -> float:
        found = 0.0
        for u, i in zip(residual.tolist(), information.tolist(), strict=True):
            variance = 1.5 * i + deviation**2 * i * i
            found -= math.log(variance) / 2 + u * u / variance / 2
        return found

    found = apart(residual, information, 1.5)
    best = max(np.arange(0, 1, 0.002).tolist(), key=likelihood)
    assert found == pytest.approx(best, rel=0.06)  # of a grid
    assert apart(residual / 10, information, 1.5) == 0
    assert apart(np.zeros(3), np.zeros(3), 1.0) == 0


def test_levels_are_learned_and_few_rows_move_little() -> None:
    levels, rows = np.tile([-0.7, 0.7], 20), np.repeat([2_000, 5, 0], [20, 19, 1])
    data = log(levels, rows)
    found = learn(**data)
    assert found.credit["open"] == pytest.approx(1 / 0.7**2, rel=0.5)
    moved = np.array([found.of(name).get("open", 0.0) for name in data["names"]])
    assert np.abs(moved[:20] - levels[:20]).mean() < 0.15
    assert np.abs(moved[20:]).mean() < 0.3  # their rows hold half a positive each
    assert found.of("client 39") == found.of("somebody new") == {}
    assert Levels.from_dict(found.to_dict()) == found


def test_where_clients_are_alike_or_only_their_days_differ_nobody_is_moved() -> None:
    assert learn(**log(np.zeros(40), np.full(40, 500))) == Levels()
    lucky = log(np.zeros(40), np.full(40, 500), days=1.0)
    assert learn(**lucky) == Levels()
    independent = {**lucky, "clusters": lucky["clusters"][:1]}
    assert learn(**independent).credit  # the luck of twenty days is taken for a level where days do not count


def test_rows_of_no_weight_have_no_say() -> None:
    data = log(np.tile([-0.7, 0.7], 20), np.full(40, 200))
    late = np.arange(len(data["client"])) % 3 == 0
    data["weight"][late] = 0
    once = learn(**data)
    data["y"][late] = 1 - data["y"][late]
    assert learn(**data) == once
    assert once.credit


def test_what_no_levels_are_is_refused() -> None:
    for wrong in ({}, {"credit": {"open": 10.0}, "shifts": {"a": {"open": math.nan}}}, {"credit": [], "shifts": {}}):
        with pytest.raises(ModelError, match="train again"):
            Levels.from_dict(wrong)
