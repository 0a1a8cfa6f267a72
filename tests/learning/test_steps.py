from __future__ import annotations

import numpy as np
import pytest

from pipeline.learning.steps import Steps, Sums, along

compiled = pytest.importorskip("pipeline.learning.compiled_steps", exc_type=ImportError)


@pytest.mark.parametrize("wanted", [0.001, 0.1, 0.99])
@pytest.mark.parametrize("digits", [1, 2, 9])  # a handful of steps, many, and one for each row
def test_the_compiled_twin_adds_up_the_same(digits: int, wanted: float) -> None:
    rng, n = np.random.default_rng(digits), 700
    score, y = rng.random(n).round(digits), rng.random(n).round()
    steps = Steps.of(score, y, rng.random(n), rng.integers(0, 90, n))
    often = rng.poisson(1, 90).astype(np.float64)
    often[steps.group[steps.ends[-1] - 1]] = often[steps.group[0]] = 0
    for some in (steps, steps.coarse()):
        mass = wanted * float(often[some.group] @ some.weight)
        arrays = (often, some.group, some.weight, some.amount, some.score, some.ends, mass)
        np.testing.assert_allclose(compiled.along(*arrays), along(*arrays), rtol=1e-11)


def test_a_step_is_a_score_and_a_part_of_the_one_that_is_cut_counts() -> None:
    steps = Steps.of(np.array([0.2, 0.9, 0.5, 0.5]), np.array([1.0, 0, 1, 0]), np.ones(4), np.arange(4))
    assert steps.ends.tolist() == [1, 3, 4]
    found = steps.sums(np.array([1.0, 2, 1, 1]), 3)
    assert found == Sums(5, 2, 3, 2.5, 0.5, 1 / 4 + 2 / 5, 2 * 0.9 + 0.5, 0.5)
