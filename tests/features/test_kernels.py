"""The array kernels on NumPy and on the strict stand-in for CuPy, and their compiled twins, against plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.features import compiled, kernels
from tests.strict_numpy import StrictArray
from tests.strict_numpy import xp as strict

SIDES = [
    pytest.param((kernels, np), id="numpy"),
    pytest.param((kernels, strict), id="strict"),
    pytest.param((compiled, np), id="compiled"),
]
Side = tuple[Any, Any]
Rows = list[tuple[int, int, int]]  # key, ts, kind

rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(-1, 3)), max_size=30).map(sorted)
points = st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 16)), max_size=12).map(sorted)
many = settings(max_examples=120, deadline=None, database=None)


class Columns:
    """Rows and points as arrays of one side; a point's segment is the rank of its key among the keys there."""

    def __init__(self, side: Side, events: Rows, asked: list[tuple[int, int]]) -> None:
        self.k, self.xp = side
        keys = sorted({key for key, _, _ in events})
        self.asked = [(key, at) for key, at in asked if key in keys]
        self.key = self.array([key for key, _, _ in events])
        self.ts = self.array([ts for _, ts, _ in events])
        self.codes = self.array([kind for _, _, kind in events], np.int32)
        self.starts, self.seg, self.ordered = self.k.segments(self.xp, self.key, self.ts)
        self.point_seg = self.array([keys.index(key) for key, _ in self.asked])
        self.at = self.array([at for _, at in self.asked])

    def array(self, values: list[int], dtype: Any = np.int64) -> Any:
        return self.xp.asarray(np.array(values, dtype=dtype))

    def before(self, events: Rows) -> list[Rows]:
        return [[e for e in events if e[0] == key and e[1] < at] for key, at in self.asked]


@pytest.mark.parametrize("side", SIDES)
@many
@given(events=rows)
def test_segments(side: Side, events: Rows) -> None:
    c = Columns(side, events, [])
    keys = [key for key, _, _ in events]
    assert c.ordered
    assert c.starts.tolist() == [i for i, k in enumerate(keys) if i == 0 or keys[i - 1] != k] + [len(keys)]
    assert c.seg.tolist() == [sorted(set(keys)).index(k) for k in keys]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("key", "ts", "ordered"), [([1, 1], [5, 5], True), ([1, 1], [5, 4], False), ([2, 1], [1, 2], False)]
)
def test_segments_notice_rows_out_of_order(side: Side, key: list[int], ts: list[int], ordered: bool) -> None:
    k, xp = side
    assert k.segments(xp, xp.asarray(np.array(key)), xp.asarray(np.array(ts)))[2] is ordered


@pytest.mark.parametrize("side", SIDES)
@many
@given(events=rows, asked=points)
def test_positions_and_window_counts(side: Side, events: Rows, asked: list[tuple[int, int]]) -> None:
    c = Columns(side, events, asked)
    seen = c.before(events)
    position = c.k.lower_bounds(c.xp, c.starts, c.ts, c.point_seg, c.at)
    firsts = [min(i for i, e in enumerate(events) if e[0] == key) for key, _ in c.asked]
    assert position.tolist() == [first + len(s) for first, s in zip(firsts, seen, strict=True)]
    windows, kinds = [1, 3, 100], 3
    out = c.xp.zeros((len(c.asked), len(windows) * kinds), dtype=np.float32)
    c.k.window_counts(c.xp, c.starts, c.ts, c.codes, kinds, c.point_seg, c.at, windows, out)
    expected = [
        [sum(e[2] == kind and e[1] >= at - window for e in s) for window in windows for kind in range(kinds)]
        for (_, at), s in zip(c.asked, seen, strict=True)
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("points", [3, 400])
def test_window_counts_of_long_segments_and_many_kinds(side: Side, points: int) -> None:
    rng = np.random.default_rng(points)
    kinds, windows = 11, [0, 5, 90, 2**62]
    events: Rows = sorted((int(k), int(t), int(c)) for k, t, c in rng.integers([0, 0, -1], [2, 200, 12], (300, 3)))
    asked = sorted((int(k), int(t)) for k, t in rng.integers([0, -5], [2, 210], (points, 2)))
    c = Columns(side, events, asked)
    out = c.xp.full((points, len(windows) * kinds + 1), 7, dtype=np.float64)
    c.k.window_counts(c.xp, c.starts, c.ts, c.codes, kinds, c.point_seg, c.at, windows, out)
    expected = [
        [sum(e[2] == kind and e[1] >= at - window for e in seen) for window in windows for kind in range(kinds)] + [7]
        for (_, at), seen in zip(asked, c.before(events), strict=True)
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("side", SIDES)
@many
@given(events=rows, asked=points)
def test_last_times_and_streaks(side: Side, events: Rows, asked: list[tuple[int, int]]) -> None:
    c = Columns(side, events, asked)
    seen = c.before(events)
    last = c.k.last_times(c.xp, c.starts, c.ts, c.codes, 3, c.point_seg, c.at, -99)
    assert last.tolist() == [[max([e[1] for e in s if e[2] == kind], default=-99) for kind in range(3)] for s in seen]
    streak = c.k.ignored_streak(c.xp, c.starts, c.ts, c.codes == 0, c.codes == 1, c.point_seg, c.at)
    answered = [max([e[1] for e in s if e[2] == 1], default=-99) for s in seen]
    assert streak.tolist() == [sum(e[2] == 0 and e[1] > a for e in s) for s, a in zip(seen, answered, strict=True)]


@pytest.mark.parametrize("side", SIDES)
@many
@given(exposures=points, events=points, own=st.booleans())
def test_attribution(side: Side, exposures: list[tuple[int, int]], events: list[tuple[int, int]], own: bool) -> None:
    k, xp = side
    events = exposures if own else events
    shuffled = sorted(exposures, key=lambda e: e[1])  # ascending within a group, groups interleaved
    events = shuffled if own else events
    itself = list(range(len(shuffled))) if own else [-1] * len(events)
    arrays = [np.array(v, dtype=np.int64) for pairs in (shuffled, events) for v in zip(*pairs, strict=True)]
    if len(arrays) != 4:
        return
    found = k.attribute(xp, *map(xp.asarray, arrays), xp.asarray(np.array(itself, dtype=np.int64)))
    expected = []
    for e, me in zip(events, itself, strict=True):
        earlier = [(s[1], i) for i, s in enumerate(shuffled) if s[0] == e[0] and s[1] <= e[1] and i != me]
        expected.append(max(earlier)[1] if earlier else -1)
    assert found.tolist() == expected


@pytest.mark.parametrize("side", SIDES)
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(-(10**15), 10**15))))
@many
def test_sums_by_target(side: Side, pairs: list[tuple[int, int]]) -> None:
    k, xp = side
    target, values = (xp.asarray(np.array([p[i] for p in pairs], dtype=np.int64)) for i in (0, 1))
    assert k.sum_at(xp, target, values, 6).tolist() == [sum(v for t, v in pairs if t == i) for i in range(6)]


@pytest.mark.parametrize("side", SIDES)
def test_stray_dates_need_no_more_than_their_own_segment(side: Side) -> None:
    """A thousand subscribers, each with an event in 1970 and one in 2200: 7e15 microseconds each, 73 bits in all."""
    k, xp = side
    segments, far = 1000, 7_258_118_400_000_000
    ts = xp.asarray(np.tile(np.array([0, 5, far]), segments))
    starts = xp.asarray(np.arange(segments + 1) * 3)
    seg = xp.asarray(np.tile(np.arange(segments), 4))
    at = xp.asarray(np.repeat(np.array([-far, 5, 6, far + 1]), segments))
    expected = (np.tile(np.arange(segments), 4) * 3 + np.repeat([0, 1, 2, 3], segments)).tolist()
    assert k.lower_bounds(xp, starts, ts, seg, at).tolist() == expected


def test_an_impossible_span_is_refused() -> None:
    ts = np.array([-(2**62), 2**62])
    with pytest.raises(DataError, match="less than 2\\^62 was expected"):
        kernels.lower_bounds(np, np.array([0, 2]), ts, np.array([0]), np.array([1]))


@pytest.mark.parametrize("xp", [np, strict])
def test_hash_is_splitmix64(xp: Any) -> None:
    """SplitMix64 seeded with 1234567 gives these (Vigna's splitmix64.c)."""
    seeds = [1234567 + i * 0x9E3779B97F4A7C15 - 2**64 * ((1234567 + i * 0x9E3779B97F4A7C15) >> 64) for i in range(3)]
    signed = np.array(seeds, dtype=np.uint64).view(np.int64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert kernels.hash64(xp, 0, xp.asarray(signed)).tolist() == expected


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_hashed_share_is_about_the_share(share: float) -> None:
    chosen = kernels.hashed_share(np, share, 3, np.arange(20_000))
    assert abs(chosen.mean() - share) < 0.01
    assert (chosen <= kernels.hashed_share(np, min(share + 0.1, 1), 3, np.arange(20_000))).all()


class TestStandIn:
    """The stand-in refuses what it promises to."""

    def test_out_of_bounds(self) -> None:
        a = strict.arange(3)
        for index in ([3], [-1]):
            with pytest.raises(IndexError, match="CuPy would wrap"):
                a[strict.asarray(index)]

    def test_duplicate_scatter(self) -> None:
        a = strict.zeros(3, dtype=np.int64)
        with pytest.raises(IndexError, match="twice"):
            a[strict.asarray([1, 1])] = strict.asarray([2, 3])

    def test_missing_functions(self) -> None:
        with pytest.raises(AttributeError, match="lexsort"):
            strict.lexsort  # noqa: B018
        with pytest.raises(TypeError, match="accumulate"):
            np.maximum.accumulate(strict.arange(3))
        with pytest.raises(TypeError, match="device array"):
            np.cumsum(strict.arange(3))

    def test_mixing(self) -> None:
        with pytest.raises(TypeError, match="NumPy array meets"):
            strict.arange(3) + np.arange(3)
        with pytest.raises(TypeError, match="device arrays"):
            strict.searchsorted(strict.arange(3), 1)

    def test_results_stay_strict(self) -> None:
        assert isinstance(strict.arange(3) + 1, StrictArray)
        assert isinstance(strict.arange(3)[1:], StrictArray)
