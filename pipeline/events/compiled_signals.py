# mypy: disable-error-code="untyped-decorator"
"""Compiled CPU twin of :func:`pipeline.events.signals.signals`: one pass, 17 ns a row where the arrays take 650.

Imported only where numba is to be used. It releases the GIL.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.events.signals import (
    BURST,
    DAY,
    DISORDER,
    HOUR,
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
    first, ties = 0, 0
    hour_head, day_head, in_hour, in_day, hour_done, day_done = 0, 0, 0, 0, 0, 0
    for i in range(n):
        if i == 0 or key[i] != key[i - 1]:
            first = i
            hour_head, day_head, in_hour, in_day, hour_done, day_done = i, i, 0, 0, i, i
        if i + 1 < n and key[i + 1] == key[i] and arrived[i] - slack > arrived[i + 1]:
            found[i] |= DISORDER
        t = ts[i]
        if i >= ties:
            ties = i + 1
            while ties < n and ts[ties] == t and key[ties] == key[i]:
                ties += 1
            for j in range(i, ties):
                if role[kind[j]] == SEND:
                    sent[campaign[j]] = j
            for j in range(i, ties):
                if role[kind[j]] == OPEN:
                    s = sent[campaign[j]]
                    if s < first or t - ts[s] >= within:
                        opened[campaign[j]] = j
        c, r = campaign[i], role[kind[i]]
        s = sent[c]
        if s >= first:
            found[i] |= SENT
            if OPEN <= r <= LINK and t - ts[s] < within:
                found[i] |= SOON
        before[i] = latest[c] if latest[c] >= first else -1
        latest[c] = i
        if r < OPEN:
            continue
        if r == LINK:
            if opened[c] >= first and (s < first or ts[opened[c]] >= ts[s]):
                found[i] |= OPENED
            count, j = 1, before[i]
            while count < links and j >= 0 and t - ts[j] < within:
                if role[kind[j]] == LINK:
                    count += 1
                j = before[j] if count < links else j
            if count >= links:
                j = i
                while count > 0:
                    if role[kind[j]] == LINK:
                        found[j] |= BURST
                        count -= 1
                    j = before[j]
        count, j = 1, before[i]
        while count <= repeats and j >= 0 and t - ts[j] < HOUR:
            if kind[j] == kind[i]:
                count += 1
            j = before[j] if count <= repeats else j
        if count > repeats:
            j = i
            while count > 0:
                if kind[j] == kind[i]:
                    found[j] |= REPEAT
                    count -= 1
                j = before[j]
        in_hour += 1
        while t - ts[hour_head] >= HOUR:
            if role[kind[hour_head]] >= OPEN:
                in_hour -= 1
            hour_head += 1
        if in_hour > hourly:
            for j in range(max(hour_head, hour_done), i + 1):
                if role[kind[j]] >= OPEN:
                    found[j] |= RATE
            hour_done = i + 1
        in_day += 1
        while t - ts[day_head] >= DAY:
            if role[kind[day_head]] >= OPEN:
                in_day -= 1
            day_head += 1
        if in_day > daily:
            for j in range(max(day_head, day_done), i + 1):
                if role[kind[j]] >= OPEN:
                    found[j] |= RATE
            day_done = i + 1


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


def warm_up() -> None:
    """Compile, or load from the cache."""
    two, codes = np.zeros(2, np.int64), np.zeros(2, np.int32)
    signals(two, two, two, codes, codes, np.zeros(1, np.int8), Limits(1, 2, 1, 1, 1, 1))
