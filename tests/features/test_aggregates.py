"""Windowed aggregates as arrays, on the strict stand-in for CuPy and compiled, against plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.features import aggregates, compiled_aggregates
from tests.strict_numpy import xp as strict

SIDES = [
    pytest.param((aggregates, np), id="numpy"),
    pytest.param((aggregates, strict), id="strict"),
    pytest.param((compiled_aggregates, np), id="compiled"),
]
Side = tuple[Any, Any]
many = settings(max_examples=150, deadline=None, database=None)


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Values, and windows of them whose bounds both ascend."""
    values = draw(st.lists(st.integers(0, 5), max_size=40))
    bounds = st.lists(st.integers(0, len(values)), min_size=12, max_size=12)
    begin, end = sorted(draw(bounds)), sorted(draw(bounds))
    return values, [(min(b, e), e) for b, e in zip(begin, end, strict=True)]


def arrays(side: Side, *columns: list[int]) -> Any:
    return [side[1].asarray(np.array(column, dtype=np.int64)) for column in columns]


@pytest.mark.parametrize("side", SIDES)
@many
@given(case=windows())
def test_max_min_sum_and_distinct(side: Side, case: tuple[list[int], list[tuple[int, int]]]) -> None:
    k, xp = side
    values, bounds = case
    v, begin, end = arrays(side, values, [b for b, _ in bounds], [e for _, e in bounds])
    seen = [values[b:e] for b, e in bounds]
    assert k.window_max(xp, v, begin, end, -7).tolist() == [max(s, default=-7) for s in seen]
    assert (-k.window_max(xp, -v, begin, end, 7)).tolist() == [min(s, default=-7) for s in seen]
    before = k.prefix_sum(xp, v)
    assert (before[end] - before[begin]).tolist() == [sum(s) for s in seen]
    assert k.window_distinct(xp, v, 6, begin, end).tolist() == [len(set(s)) for s in seen]
    assert k.pick(xp, v, end - 1, end > begin, -1).tolist() == [s[-1] if s else -1 for s in seen]
    (wanted,) = arrays(side, [i % 6 for i in range(len(bounds))])
    found = k.window_code_counts(xp, v, 6, begin, end, wanted).tolist()
    assert found == [s.count(i % 6) for i, s in enumerate(seen)]


@pytest.mark.parametrize("side", SIDES)
@many
@given(events=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40).map(sorted), data=st.data())
def test_runs(side: Side, events: list[tuple[int, bool]], data: st.DataObject) -> None:
    """Segments are runs of equal keys; members come first within a segment, unless shuffled."""
    k, xp = side
    keys = [key for key, _ in events]
    member = [data.draw(st.booleans()) for _ in events]
    first = [i == 0 or keys[i - 1] != key for i, key in enumerate(keys)]
    flags = [xp.asarray(np.array(column, dtype=bool)) for column in (first, member)]
    lengths, ends = k.run_lengths(xp, *flags), k.run_ends(xp, flags[1])
    expected, run = [], 0
    for i, is_member in enumerate(member):
        run = (run + 1 if i and not first[i] else 1) if is_member else 0
        expected.append(run)
    assert lengths.tolist() == expected
    bounds = [(b, e) for b in range(len(keys)) for e in range(b, len(keys) + 1) if len(set(keys[b:e])) <= 1]
    bounds = [(b, e) for b, e in bounds if e == b or keys[b] == keys[e - 1]]
    bounds = sorted(data.draw(st.lists(st.sampled_from(bounds), max_size=8))) if bounds else []
    highest = 0
    ascending = []
    for b, e in bounds:  # both bounds ascend, as those of ascending points do
        if e >= highest:
            ascending.append((b, e))
            highest = e
    begin, end = arrays(side, [b for b, _ in ascending], [e for _, e in ascending])
    found = k.longest_runs(xp, lengths, ends, begin, end).tolist()
    texts = ["".join("x" if m else " " for m in member[b:e]) for b, e in ascending]
    assert found == [max(map(len, text.split()), default=0) for text in texts]


@pytest.mark.parametrize("side", SIDES)
def test_a_sum_beyond_64_bits_in_between_is_exact(side: Side) -> None:
    k, xp = side
    values = [2**62, 2**62, 2**62, -5, 7]
    v, begin, end = arrays(side, values, [0, 2, 3], [1, 4, 5])
    with np.errstate(over="ignore"):
        before = k.prefix_sum(xp, v)
        assert (before[end] - before[begin]).tolist() == [2**62, 2**62 - 5, 2]


def test_too_many_codes_are_refused() -> None:
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(DataError, match="exceed 62 bits; use more partitions"):
        aggregates.window_code_counts(np, one, 2**62, one, one + 1, one)


def test_a_large_case_agrees_across_sides() -> None:
    """Windows far longer than the small cases', so that many levels and bits are in use."""
    rng = np.random.default_rng(4)
    values = rng.integers(0, 500, 20_000)
    end = np.sort(rng.integers(0, 20_001, 3000))
    begin = np.maximum.accumulate(np.maximum(end - rng.integers(0, 6000, 3000), 0))
    begin = np.minimum(begin, end)
    wanted = rng.integers(0, 500, 3000)
    for name, extra in (("window_max", ()), ("window_distinct", (500,)), ("window_code_counts", (500,))):
        tail = (wanted,) if name == "window_code_counts" else ()
        one, two = (getattr(k, name)(np, values, *extra, begin, end, *tail) for k in (aggregates, compiled_aggregates))
        assert (one == two).all(), name
    assert aggregates.window_distinct(np, values, 500, begin, end)[1500] == len(set(values[begin[1500] : end[1500]]))
