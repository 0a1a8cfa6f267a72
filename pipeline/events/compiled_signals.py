# mypy: disable-error-code="untyped-decorator"
"""Compiled CPU twin of :func:`pipeline.events.signals.signals`: one pass, 13 ns a row where the arrays take 650.

Imported only where numba is to be used. It releases the GIL.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.events import signals as arrays
from pipeline.events.signals import (
    BURST,
    DAY,
    DISORDER,
    HOUR,
    IMPOSSIBLE,
    LATE,
    LINK,
    OPEN,
    OPENED,
    RATE,
    REPEAT,
    SEND,
    SENT,
    SOON,
    Limits,
)


@numba.njit(nogil=True, cache=True)
def _instant(
    i: Any, key: Any, ts: Any, kind: Any, campaign: Any, role: Any, first: Any, within: int, sent: Any, opened: Any
) -> Any:
    """Note the sends of the instant that begins at row i, then its opens that are not soon; where the instant ends."""
    end = i + 1
    while end < len(ts) and ts[end] == ts[i] and key[end] == key[i]:
        end += 1
    for j in range(i, end):
        if role[kind[j]] == SEND:
            sent[campaign[j]] = j
    for j in range(i, end):
        if role[kind[j]] == OPEN:
            s = sent[campaign[j]]
            if s < first or ts[i] - ts[s] >= within:
                opened[campaign[j]] = j
    return end


@numba.njit(nogil=True, cache=True)
def _crowd(i: Any, ts: Any, kind: Any, label: Any, before: Any, wanted: int, span: int, bit: int, found: Any) -> None:
    """Mark row i and the latest rows before it with its campaign and its kind's label, where ``wanted`` are in a span.

    Args:
        label: of each kind. before: int32[n], each row's one before of the same campaign, or -1.
    """
    own, count, j = label[kind[i]], 1, before[i]
    while count < wanted and j >= 0 and ts[i] - ts[j] < span:
        if label[kind[j]] == own:
            count += 1
        j = before[j]
    if count < wanted:
        return
    j = i
    while count > 0:
        if label[kind[j]] == own:
            found[j] |= bit
            count -= 1
        j = before[j]


@numba.njit(nogil=True, cache=True)
def _rate(ts: Any, response: Any, count: int, span: int, most: int, done: int, found: Any) -> int:
    """Mark a subscriber's responses where the latest of them is one too many in a span.

    Args:
        response: their rows, so far ``count``; done: of these, so many are marked or never will be.
    Returns: done, as this one leaves it.
    """
    first = count - 1 - most
    if first < 0 or ts[response[count - 1]] - ts[response[first]] >= span:
        return done
    for k in range(max(first, done), count):
        found[response[k]] |= RATE
    return count


@numba.njit(nogil=True, cache=True)
def _signals(
    key: Any,
    ts: Any,
    arrived: Any,
    kind: Any,
    campaign: Any,
    role: Any,
    campaigns: int,
    within: int,
    links: int,
    hourly: int,
    daily: int,
    repeats: int,
    slack: int,
    found: Any,
) -> None:
    n = len(key)
    # By campaign, the null one last: its latest send, open that was not soon, and row; those before ``first`` are
    # another subscriber's.
    sent, opened = np.full(campaigns + 1, -1, np.int32), np.full(campaigns + 1, -1, np.int32)
    latest = np.full(campaigns + 1, -1, np.int32)
    before = np.empty(n, np.int32)  # the row before of the same campaign
    response = np.empty(n, np.int32)  # a subscriber's rows that are one
    itself = np.arange(len(role))
    first, instant, responses, hour_done, day_done = 0, 0, 0, 0, 0
    for i in range(n):
        if i == 0 or key[i] != key[i - 1]:
            first, responses, hour_done, day_done = i, 0, 0, 0
        more = i + 1 < n and key[i + 1] == key[i]
        if more and arrived[i] - slack > arrived[i + 1]:
            found[i] |= DISORDER
        c, r = campaign[i], role[kind[i]]
        if i >= instant and more and ts[i + 1] == ts[i]:
            instant = _instant(i, key, ts, kind, campaign, role, first, within, sent, opened)
        elif i >= instant:  # alone at its instant, as nearly all are
            if r == SEND:
                sent[c] = i
            elif r == OPEN and (sent[c] < first or ts[i] - ts[sent[c]] >= within):
                opened[c] = i
        s = sent[c]
        if s >= first:
            found[i] |= SENT
            if OPEN <= r <= LINK and ts[i] - ts[s] < within:
                found[i] |= SOON
        before[i] = latest[c] if latest[c] >= first else -1
        latest[c] = i
        if r < OPEN:
            continue
        if r == LINK:
            if opened[c] >= first and (s < first or ts[opened[c]] >= ts[s]):
                found[i] |= OPENED
            _crowd(i, ts, kind, role, before, links, within, BURST, found)
        _crowd(i, ts, kind, itself, before, repeats + 1, HOUR, REPEAT, found)
        response[responses] = i
        responses += 1
        hour_done = _rate(ts, response, responses, HOUR, hourly, hour_done, found)
        day_done = _rate(ts, response, responses, DAY, daily, day_done, found)


def signals(
    key: np.ndarray,
    ts: np.ndarray,
    arrived: np.ndarray,
    kind: np.ndarray,
    campaign: np.ndarray,
    role: np.ndarray,
    limits: Limits,
) -> np.ndarray:
    """See :func:`pipeline.events.signals.signals`."""
    found = np.zeros(len(key), dtype=np.uint8)
    campaigns = int(campaign.max(initial=-1)) + 1
    _signals(
        key,
        ts,
        arrived,
        kind,
        campaign,
        role,
        campaigns,
        limits.within,
        limits.links,
        limits.hourly,
        limits.daily,
        limits.repeats,
        limits.slack,
        found,
    )
    return found


@numba.njit(nogil=True, cache=True)
def _time_bits(
    ts: Any, arrived: Any, readable: Any, dated: Any, earliest: int, future: int, late: int, found: Any
) -> None:
    for i in range(len(ts)):
        if readable[i]:
            if ts[i] < earliest or ts[i] > arrived[i] + future:
                found[i] = IMPOSSIBLE
            elif dated[i] and arrived[i] - ts[i] > late:
                found[i] = LATE


def time_bits(
    ts: np.ndarray, arrived: np.ndarray, readable: np.ndarray, dated: np.ndarray, earliest: int, future: int, late: int
) -> np.ndarray:
    """See :func:`pipeline.events.signals.time_bits`."""
    found = np.zeros(len(ts), dtype=np.uint8)
    _time_bits(ts, arrived, readable, dated, earliest, future, late, found)
    return found


@numba.njit(nogil=True, cache=True)
def _bounds(us: Any) -> Any:
    low, high = us[0], us[0]
    for i in range(len(us)):
        low, high = min(low, us[i]), max(high, us[i])
    return low, high


@numba.njit(nogil=True, cache=True)
def _day_counts(us: Any, kind: Any, machine: Any, first: int, counts: Any) -> None:
    kinds, machines = len(kind) > 0, len(machine) > 0
    for i in range(len(us)):
        code = 2 * kind[i] if kinds else 0
        if machines and machine[i]:
            code += 1
        counts[(us[i] - first) // DAY, code] += 1


def day_counts(
    us: np.ndarray, kind: np.ndarray | None = None, machine: np.ndarray | None = None, kinds: int = 1
) -> dict[int, np.ndarray]:
    """See :func:`pipeline.events.signals.day_counts`."""
    if not len(us):
        return {}
    low, high = _bounds(us)
    first = int(low) // DAY
    days = int(high) // DAY - first + 1
    if days > 40_000:
        return arrays.day_counts(us, kind, machine, kinds)
    counts = np.zeros((days, 2 * kinds), dtype=np.int64)
    none, nobody = np.empty(0, np.int32), np.empty(0, bool)
    _day_counts(us, none if kind is None else kind, nobody if machine is None else machine, first * DAY, counts)
    return {first + int(i): counts[i] for i in np.flatnonzero(counts.any(axis=1))}


@numba.njit(nogil=True, cache=True)
def latest_happened(ts: Any, arrived: Any) -> Any:
    """The greatest time that is not ahead of its row's arrival: of n > 0 rows, in the unit of both."""
    found = min(ts[0], arrived[0])
    for i in range(len(ts)):
        found = max(found, min(ts[i], arrived[i]))
    return found


@numba.njit(nogil=True, cache=True)
def code_counts(code: Any, codes: int) -> Any:
    """See :func:`pipeline.events.signals.code_counts`."""
    counts = np.zeros(codes, np.int64)
    for i in range(len(code)):
        if code[i] >= 0:
            counts[code[i]] += 1
    return counts


def warm_up() -> None:
    """Compile, or load from the cache."""
    two, codes = np.zeros(2, np.int64), np.zeros(2, np.int32)
    signals(two, two, two, codes, codes, np.zeros(1, np.int8), Limits(1, 2, 1, 1, 1, 1))
    no = np.zeros(2, bool)
    time_bits(two, two, no, no, 0, 0, 0)
    day_counts(two)
    day_counts(two, codes, no)
    latest_happened(two, two)
    code_counts(codes, 1)
