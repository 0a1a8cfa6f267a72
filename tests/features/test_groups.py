"""Grouping kernels: the arrays, on the strict stand-in for CuPy, and the compiled twins against a Python loop."""

from __future__ import annotations

import zoneinfo
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features import groups, groups_compiled
from pipeline.features.calendar import clock
from tests.strict_numpy import StrictArray
from tests.strict_numpy import xp as strict

HOUR = 3_600_000_000
SIDES = [pytest.param((groups, strict), id="arrays"), pytest.param((groups_compiled, np), id="compiled")]
ROWS = st.lists(  # key, hour, name, kind
    st.tuples(st.sampled_from([-(2**63), -7, 0, 3, 2**63 - 1]), st.integers(-9, 9), *[st.integers(0, 2)] * 2),
    max_size=40,
)


def arrays(xp: Any, runs: list[list[tuple[int, int, int, int]]]) -> tuple[Any, ...]:
    rows = [row for run in runs for row in sorted(run)]
    types = ("int64", "int64", "int32", "int32")
    columns = [xp.asarray(np.array([r[i] for r in rows], dtype=t)) for i, t in enumerate(types)]
    starts = xp.asarray(np.cumsum([0, *map(len, runs)]).astype("int64"))
    return (*columns, starts)


@pytest.mark.parametrize("side", SIDES)
@settings(max_examples=60, deadline=None, database=None)
@given(runs=st.lists(ROWS, min_size=1, max_size=4))
def test_equals_a_loop(side: tuple[Any, Any], runs: list[Any]) -> None:
    kernels, xp = side
    key, ts, name, kind, starts = arrays(xp, runs)
    first, stop, owner, tied = kernels.pieces(xp, key, ts, starts)
    times: dict[tuple[int, int], set[int]] = defaultdict(set)
    for number, run in enumerate(runs):
        for row in run:
            times[row[0], row[1]].add(number)
    assert tied == any(len(where) > 1 for where in times.values())
    covered = sorted(i for a, b in zip(first.tolist(), stop.tolist(), strict=True) for i in range(a, b))
    assert covered == list(range(len(key)))
    subscribers = sorted(set(key.tolist()))
    assert owner.tolist() == sorted(owner.tolist())
    for a, b, who in zip(first.tolist(), stop.tolist(), owner.tolist(), strict=True):
        assert set(key[a:b].tolist()) == {subscribers[who]}

    micros = ts * np.int64(HOUR)
    no_clock = xp.asarray(np.zeros(1, dtype="int64"))
    cell, found = kernels.cells(xp, micros, name, no_clock, no_clock, HOUR, -9, 19)
    codes = [n * 19 + t + 9 for n, t in zip(name.tolist(), ts.tolist(), strict=True)]
    assert [found.tolist()[c] for c in cell.tolist()] == codes
    assert sorted(found.tolist()) == sorted(set(codes))

    group = np.array([c // 19 - 1 for c in found.tolist()], dtype="int64")  # by name; the first is not counted
    counted = kernels.count_distinct(xp, first, stop, owner, cell, kind, 3, xp.asarray(group), 2)
    expected = np.zeros((3, 2, 2), dtype="int64")
    seen = set()
    for k, n, e in zip(key.tolist(), name.tolist(), kind.tolist(), strict=True):
        if n:
            expected[e, n - 1] += [1, (k, n, e) not in seen]
            seen.add((k, n, e))
    assert counted.tolist() == expected.tolist()
    assert xp is np or isinstance(counted, StrictArray)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo"])
@pytest.mark.parametrize(("unit", "rows"), [(HOUR, 3000), (24 * HOUR, 20_000)], ids=["few rows", "many rows"])
def test_cells_of_the_local_clock(side: tuple[Any, Any], timezone: str, unit: int, rows: int) -> None:
    kernels, xp = side
    rng = np.random.default_rng(2)
    ts = rng.integers(1_500_000_000, 1_800_000_000, rows) * 1_000_000
    since, offsets = clock(timezone, int(ts.min()), int(ts.max()))
    base = int(ts.min() + offsets.min()) // unit
    span = int(ts.max() + offsets.max()) // unit - base + 1
    name = xp.asarray(rng.integers(0, 5, len(ts)).astype("int32"))
    cell, found = kernels.cells(xp, xp.asarray(ts), name, xp.asarray(since), xp.asarray(offsets), unit, base, span)
    zone = zoneinfo.ZoneInfo(timezone)
    for us, n, c in zip(ts.tolist(), name.tolist(), cell.tolist(), strict=True):
        local = datetime.fromtimestamp(us // 10**6, tz=zone).replace(tzinfo=UTC)
        code = found.tolist()[c] if c < 3 else int(found[c])
        assert code == n * span + int(local.timestamp()) * 1_000_000 // unit - base


@pytest.mark.parametrize("side", SIDES)
def test_many_distinct_values(side: tuple[Any, Any]) -> None:
    kernels, xp = side
    code = xp.asarray(np.random.default_rng(1).integers(0, 2**62, 20_000).repeat(2))
    cell, found = kernels.factorize(xp, code)
    assert (np.asarray(found)[np.asarray(cell)] == np.asarray(code)).all()
    assert len(found) == len(np.unique(np.asarray(code)))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_add_equals_a_loop(side: tuple[Any, Any], kind: str) -> None:
    kernels, xp = side
    rng = np.random.default_rng(3)
    total, counted = rng.integers(0, 2**40, (4, 9, 2)), rng.integers(0, 2**31, (3, 5, 2)).astype(kind)
    kinds, rows = np.array([3, 0, 1]), np.array([8, 2, 3, 0, 5])
    expected = total.tolist()
    for k, counts in zip(kinds.tolist(), counted.tolist(), strict=True):
        for row, (events, subscribers) in zip(rows.tolist(), counts, strict=True):
            expected[k][row][0] += events
            expected[k][row][1] += subscribers
    found = xp.asarray(total)
    kernels.add(xp, found, *map(xp.asarray, (rows, kinds, counted)))
    assert found.tolist() == expected


def test_too_many_groups_are_refused() -> None:
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(OverflowError):
        groups.count_distinct(np, one, one + 1, one + 2**31, one, one, 2**20, one, 2**20)
