"""What the order and the timing of a subscriber's rows give away: array functions on sorted rows.

Rows are one client's, of one batch,
sorted by ``(subscriber_key, ts)``; what earlier batches hold is not seen, which :mod:`flags` allows for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.backend import PANDAS
from pipeline.options import UNITS

# Bits of what a row shows.
SOON, OPENED, SENT, BURST, RATE, REPEAT, DISORDER = (1 << i for i in range(7))
IMPOSSIBLE, LATE = 1, 2  # of a row's time
# What a kind is to these functions.
NEUTRAL, SEND, OPEN, LINK, RESPONSE = range(5)
HOUR, DAY = UNITS["h"], UNITS["d"]


@dataclass(frozen=True)
class Limits:
    """``within``, ``slack``: microseconds; the others are numbers of rows."""

    within: int
    links: int
    hourly: int
    daily: int
    repeats: int
    slack: int


def signals(
    key: np.ndarray,
    ts: np.ndarray,
    arrived: np.ndarray,
    kind: np.ndarray,
    campaign: np.ndarray,
    role: np.ndarray,
    limits: Limits,
) -> np.ndarray:
    """The signals of each row.

    Args:
        key, ts, arrived: int64[n], sorted by (key, ts), the times in microseconds; kind, campaign: int32[n], codes,
        campaign -1 for null, which is a campaign of its own; role: int8[kinds], what each code of ``kind`` is.
    Returns:
        uint8[n], bits of what holds for the row. "Before" is earlier, or at the same instant; always of the same
        subscriber and campaign:
        SENT: a send before it. SOON: an open or link less than ``within`` after the latest send before it.
        OPENED: a link with an open before it, since the latest send, that was not SOON itself. BURST: one
        of ``links`` or more links, the first and the last less than ``within`` apart. REPEAT: one of more than
        ``repeats`` of one kind within an hour.
        And of the same subscriber, whatever the campaign: RATE: one of more than ``hourly`` (``daily``) responses
        within an hour (a day). DISORDER: it arrived over ``slack`` after the next row did.
    """
    n = len(key)
    found = np.zeros(n, dtype=np.uint8)
    if n == 0:
        return found
    roles = role[kind]
    change = np.concatenate([[True], key[1:] != key[:-1]])
    seg = np.cumsum(change) - 1
    found[:-1] |= np.where((arrived[:-1] - limits.slack > arrived[1:]) & ~change[1:], DISORDER, 0).astype(np.uint8)

    rank = np.where(roles == SEND, 0, np.where(roles == OPEN, 1, 2))  # of rows at one instant
    order = np.lexsort([rank, ts, campaign, seg])
    group = np.concatenate([[0], np.cumsum((np.diff(seg[order]) != 0) | (np.diff(campaign[order]) != 0))])
    first = np.searchsorted(group, group, side="left")
    at, place, what = ts[order], np.arange(n), roles[order]
    sent = np.maximum.accumulate(np.where(what == SEND, place, -1))
    was_sent = sent >= first
    soon = was_sent & ((what == OPEN) | (what == LINK)) & (at - at[np.maximum(sent, 0)] < limits.within)
    opened = np.maximum.accumulate(np.where((what == OPEN) & ~soon, place, -1)) >= np.maximum(first, sent)
    bits = np.where(was_sent, SENT, 0) | np.where(soon, SOON, 0) | np.where((what == LINK) & opened, OPENED, 0)
    found[order] |= bits.astype(np.uint8)

    links = order[np.flatnonzero(what == LINK)]
    found[links[_dense(group[what == LINK], ts[links], limits.links, limits.within)]] |= BURST
    responses = np.flatnonzero(roles >= OPEN)
    for most, span in ((limits.hourly, HOUR), (limits.daily, DAY)):
        found[responses[_dense(seg[responses], ts[responses], most + 1, span)]] |= RATE
    by = responses[np.lexsort([ts[responses], kind[responses], campaign[responses], seg[responses]])]
    same = np.concatenate([[0], np.cumsum(np.any([np.diff(c[by]) != 0 for c in (seg, campaign, kind)], axis=0))])
    found[by[_dense(same[: len(by)], ts[by], limits.repeats + 1, HOUR)]] |= REPEAT
    return found


def code_counts(code: np.ndarray, codes: int) -> np.ndarray:
    """How many rows have each code: int64[codes]; code: int32[n] below ``codes``, -1 for none."""
    return np.bincount(code + 1, minlength=codes + 1)[1:]


def kernels() -> Any:
    """The module of these functions: this one, or that of their compiled twins. Rows are the host's, on a GPU too."""
    return importlib.import_module(f"pipeline.events.{'compiled_' if PANDAS.compiled else ''}signals")


def _dense(group: np.ndarray, ts: np.ndarray, count: int, span: int) -> np.ndarray:
    """Rows that are among ``count`` of their group with less than ``span`` between first and last: bool[m].

    Args:
        group: int64[m], ascending; ts: int64[m], ascending within a group.
    """
    m = len(ts)
    marked = np.zeros(m + 1, dtype=np.int64)
    if m >= count:
        a, b = slice(0, m - count + 1), slice(count - 1, m)
        begins = np.flatnonzero((group[a] == group[b]) & (ts[b] - ts[a] < span))
        marked[begins] += 1
        marked[begins + count] -= 1
    return np.cumsum(marked[:m]) > 0


def latest_happened(ts: np.ndarray, arrived: np.ndarray) -> int:
    """The greatest time that is not ahead of its row's arrival: of n > 0 rows, in the unit of both."""
    return int(np.minimum(ts, arrived).max())


def time_bits(
    ts: np.ndarray, arrived: np.ndarray, readable: np.ndarray, dated: np.ndarray, earliest: int, future: int, late: int
) -> np.ndarray:
    """What is wrong with each row's time: uint8[n], IMPOSSIBLE or LATE; 0 where it cannot be read.

    Args:
        ts, arrived: int64[n], microseconds; readable: bool[n]; dated: bool[n], whether the row says when it arrived;
        earliest: no time is before it; future, late: the most that a time may be ahead of its arrival, and behind it.
    """
    impossible = (ts < earliest) | (ts > arrived + future)
    behind = dated & (arrived - ts > late)
    return np.where(readable & impossible, IMPOSSIBLE, np.where(readable & behind, LATE, 0)).astype(np.uint8)


def day_counts(
    us: np.ndarray, kind: np.ndarray | None = None, machine: np.ndarray | None = None, kinds: int = 1
) -> dict[int, np.ndarray]:
    """How many rows of each kind fall on each day, by who made them; days without rows are left out.

    Args:
        us: int64[n], microseconds; kind: int[n] below ``kinds``; None: all are 0; machine: bool[n], None: none is.
    Returns:
        day since 1970 -> int64[2 * kinds]: of kind k, a human's at 2 * k and a machine's after it.
    """
    codes = 2 * kinds
    day = us // DAY
    code = np.zeros(len(us), dtype=np.int64) if kind is None else 2 * kind.astype(np.int64)
    code = code if machine is None else code + machine
    if len(us) and int(day.max()) - int(day.min()) < 40_000:
        first = int(day.min())
        counts = np.bincount((day - first) * codes + code, minlength=codes).astype(np.int64)
        counts = np.append(counts, np.zeros(-len(counts) % codes, np.int64)).reshape(-1, codes)
        return {first + int(i): counts[i] for i in np.flatnonzero(counts.any(axis=1))}
    found = {}
    for one in np.unique(day).tolist():
        found[int(one)] = np.bincount(code[day == one], minlength=codes).astype(np.int64)
    return found
