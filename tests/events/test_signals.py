"""Signals of sorted rows against plain loops that look at every pair; the arrays and their compiled twin alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.events import signals as arrays
from pipeline.events.signals import (
    BURST,
    DAY,
    DISORDER,
    HOUR,
    LINK,
    NEUTRAL,
    OPEN,
    OPENED,
    RATE,
    REPEAT,
    RESPONSE,
    SEND,
    SENT,
    SOON,
    Limits,
)

ROLE = np.array([SEND, OPEN, LINK, LINK, RESPONSE, NEUTRAL], dtype=np.int8)
LIMITS = Limits(within=2_000_000, links=3, hourly=4, daily=6, repeats=2, slack=60_000_000)
STEPS = (0, 999_999, 1_000_000, 2_000_000, 60_000_000, HOUR // 2, HOUR, DAY // 3)
Row = tuple[int, int, int, int, int]  # key, ts, kind, campaign, arrived


def within(rows: list[Row], chosen: list[int], count: int, span: int) -> set[int]:
    """Of the chosen rows, those that some ``count`` of them less than ``span`` apart include."""
    found: set[int] = set()
    for a in range(len(chosen)):
        inside = [i for i in chosen[a:] if rows[i][1] - rows[chosen[a]][1] < span]
        if len(inside) >= count:
            found.update(inside)
    return found


def expected(rows: list[Row]) -> list[int]:
    found = [0] * len(rows)
    roles = [ROLE[r[2]] for r in rows]

    def mark(some: set[int], bit: int) -> None:
        for i in some:
            found[i] |= bit

    def before(i: int, role: int) -> list[int]:
        (key, ts, _, campaign, _) = rows[i]
        mine = [j for j, r in enumerate(rows) if r[0] == key and r[3] == campaign and r[1] <= ts and roles[j] == role]
        return [j for j in mine if j != i]

    soon = set()
    for i, row in enumerate(rows):
        sends = before(i, SEND) + ([i] if roles[i] == SEND else [])
        if sends:
            found[i] |= SENT
            if roles[i] in (OPEN, LINK) and row[1] - max(rows[j][1] for j in sends) < LIMITS.within:
                soon.add(i)
        if i + 1 < len(rows) and rows[i + 1][0] == row[0] and row[4] - LIMITS.slack > rows[i + 1][4]:
            found[i] |= DISORDER
    mark(soon, SOON)
    for i in range(len(rows)):
        if roles[i] == LINK:
            since = max((rows[j][1] for j in before(i, SEND)), default=-1)
            if any(rows[j][1] >= since and j not in soon for j in before(i, OPEN)):
                found[i] |= OPENED
    for key in {r[0] for r in rows}:
        mine = [i for i, r in enumerate(rows) if r[0] == key and roles[i] >= OPEN]
        mark(within(rows, mine, LIMITS.hourly + 1, HOUR) | within(rows, mine, LIMITS.daily + 1, DAY), RATE)
        for campaign in {rows[i][3] for i in mine}:
            same = [i for i in mine if rows[i][3] == campaign]
            mark(within(rows, [i for i in same if roles[i] == LINK], LIMITS.links, LIMITS.within), BURST)
            for kind in {rows[i][2] for i in same}:
                mark(within(rows, [i for i in same if rows[i][2] == kind], LIMITS.repeats + 1, HOUR), REPEAT)
    return found


@st.composite
def logs(draw: Any) -> list[Row]:
    rows = []
    for key in range(draw(st.integers(1, 3))):
        ts = 1_000_000_000_000
        for _ in range(draw(st.integers(0, 14))):
            ts += draw(st.sampled_from(STEPS))
            late = draw(st.sampled_from((0, 0, 60_000_000, 60_000_001, DAY)))
            rows.append((key, ts, draw(st.integers(0, 5)), draw(st.integers(-1, 1)), ts + late))
    return rows


@settings(deadline=None)
@given(rows=logs())
@pytest.mark.parametrize("compiled", [False, True])
def test_signals_are_those_of_plain_loops(compiled: bool, rows: list[Row]) -> None:
    find = arrays.signals
    if compiled:
        pytest.importorskip("numba")
        from pipeline.events import compiled_signals

        find = compiled_signals.signals
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    key, ts, kind, campaign, arrived = (np.ascontiguousarray(c) for c in columns)
    found = find(key, ts, arrived, kind.astype(np.int32), campaign.astype(np.int32), ROLE, LIMITS)
    assert found.tolist() == expected(rows)


def modules() -> list[Any]:
    pytest.importorskip("numba")
    from pipeline.events import compiled_signals

    return [arrays, compiled_signals]


@pytest.mark.parametrize("span", [3, 10**5])
def test_day_counts(span: int) -> None:
    rng = np.random.default_rng(span)
    us, kind, machine = rng.integers(-span * DAY, span * DAY, 500), rng.integers(0, 4, 500), rng.random(500) < 0.3
    rows = list(zip(us.tolist(), kind.tolist(), machine.tolist(), strict=True))
    for module in modules():
        found = module.day_counts(us, kind.astype(np.int32), machine, 4)
        assert sum(int(c.sum()) for c in found.values()) == 500
        for day, counts in found.items():
            expected = [sum(t // DAY == day and 2 * k + m == code for t, k, m in rows) for code in range(8)]
            assert counts.tolist() == expected
        assert {d: c.tolist() for d, c in module.day_counts(us).items()} == {
            d: [sum(t // DAY == d for t, _, _ in rows), 0] for d in {t // DAY for t, _, _ in rows}
        }
        assert module.day_counts(us[:0]) == {}


def test_times_and_codes() -> None:
    rng = np.random.default_rng(1)
    ts, arrived, code = rng.integers(0, 20, 300), rng.integers(0, 20, 300), rng.integers(-1, 5, 300).astype(np.int32)
    readable, dated = rng.random(300) < 0.8, rng.random(300) < 0.8
    bits = [
        0 if not r else 1 if t < 3 or t > a + 4 else 2 if d and a - t > 5 else 0
        for t, a, r, d in zip(*(x.tolist() for x in (ts, arrived, readable, dated)), strict=True)
    ]
    for module in modules():
        assert module.time_bits(ts, arrived, readable, dated, 3, 4, 5).tolist() == bits
        assert module.latest_happened(ts, arrived) == max(map(min, zip(ts.tolist(), arrived.tolist(), strict=True)))
        assert module.code_counts(code, 5).tolist() == [code.tolist().count(c) for c in range(5)]
        assert module.code_counts(code[code < 0], 0).tolist() == []
