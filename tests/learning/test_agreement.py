"""What the members of a group agree on before the first step."""

from __future__ import annotations

import pytest

from pipeline.errors import ModelError
from pipeline.learning.agreement import Agreement, apportion


def test_one_process_takes_whole_batches_of_each_chunk() -> None:
    agreed = Agreement.on(((1_000, 0, 2_570),), 256)
    assert (agreed.batch, agreed.shares, agreed.steps) == (256, (256,), (3, 0, 10))


@pytest.mark.parametrize("rows", [(3_000, 3_000), (900, 3_100), (5_001, 4_999, 2_000), (300, 20_000)])
def test_all_take_as_many_steps_as_the_one_that_is_done_first(rows: tuple[int, ...]) -> None:
    """By hand: go through each member's rows a share at a time until one has too few."""
    agreed = Agreement.on(tuple((n,) for n in rows), 256)
    left, steps = list(rows), 0
    while all(n >= share for n, share in zip(left, agreed.shares, strict=True)):
        left, steps = [n - share for n, share in zip(left, agreed.shares, strict=True)], steps + 1
    assert agreed.steps == (steps,)
    assert sum(agreed.shares) == agreed.batch
    # In proportion: so few steps are lost to rounding, and every row is drawn about as often as any other.
    drawn = [steps * share / n for n, share in zip(rows, agreed.shares, strict=True)]
    assert max(drawn) <= 1
    assert min(drawn) > 0.7
    assert steps >= 0.7 * (sum(rows) // agreed.batch)


def test_chunks_are_agreed_on_one_by_one() -> None:
    agreed = Agreement.on(((1_000, 600), (900, 700)), 200)
    assert agreed.shares == (100, 100)
    assert agreed.steps == (9, 6)
    assert agreed.sizes == (1_900, 1_300)


@pytest.mark.parametrize("members", [((5_000,), (0,)), ((5_000,), (3,)), ((400, 0), (0, 400))])
def test_a_member_without_a_row_in_each_step_is_refused(members: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ModelError, match=r"2 devices .* set model\.devices lower"):
        Agreement.on(members, 256)


def test_largest_remainders_are_rounded_up() -> None:
    assert apportion(10, [1, 1, 1]) == (4, 3, 3)
    assert apportion(7, [55, 25, 20]) == (4, 2, 1)  # 3.85, 1.75, 1.4
    assert apportion(256, [900, 3_100]) == (58, 198)
