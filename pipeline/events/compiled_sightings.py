# mypy: disable-error-code="untyped-decorator"
"""The compiled kernel of sightings.py: what a log shows of each send, subscriber by subscriber.

It releases the GIL, so threads share the cores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from pipeline.events.behaviour import CAMPAIGNS_A_DAY, DAY, ESTABLISHED
from pipeline.events.population import ANOMALY_OPENS, NEVER
from pipeline.events.rows import KIND

OPEN, CLICK, DELETE = (int(KIND[k]) for k in ("open", "click", "delete"))
COMPLAINT, UNSUBSCRIBE = int(KIND["complaint"]), int(KIND["unsubscribe"])
SOFT, HARD = int(KIND["soft_bounce"]), int(KIND["hard_bounce"])
SECOND = 1_000_000
SCANNED = 2 * SECOND  # a scanner's clicks come within this of the send
FETCHED = 903 * SECOND  # a machine's open does
MACHINE_SHARE = 0.7  # of all deliveries so far opened within FETCHED: no human is so fast, and a machine misses none
ANOMALY_FROM, ANOMALY_TO, ANOMALY_LEAST = 60 * SECOND, 5460 * SECOND, 5
MOST_OPENS = 16  # of one message, that are looked at
SETTLED = 7 * DAY  # after this nothing more can come of a send


class Sends(NamedTuple):
    """What the log shows of m sends, ordered by subscriber and time; each [m]. Times in microseconds, NEVER: not."""

    ts: Any
    day: Any  # of the history, int64
    campaign: Any
    volume: Any
    streak: Any
    received: Any
    opened: Any  # the first open by a human
    clicked: Any
    deleted: Any
    left: Any  # unsubscribed or complained
    complained: Any  # bool: which of the two
    bounced: Any  # bool


@numba.njit(nogil=True, cache=True)
def review(
    first: int, last: int, bounds: Any, send: Any, answer_bounds: Any, answers: Any, joined: Any, apple: Any, start: int
) -> None:
    """Fill in what the log shows of the sends of subscribers [first, last).

    Args:
        bounds, answer_bounds: int64[subscribers + 1], their sends and their other events.
        send: Sends with ts, day and campaign given, the rest to be written.
        answers: (ts, kind, campaign) of all other events, by subscriber and time.
        joined: int64[subscribers], day of joining, -1: before the log. apple: bool[subscribers]. start: day 0.
    """
    ts, kind, campaign = answers
    days = 1
    for s in range(first, last):
        if bounds[s + 1] > bounds[s]:
            days = max(days, send.day[bounds[s + 1] - 1] + 1)
    at_day = np.full(days, -1, np.int64)
    active = np.zeros(days, np.bool_)  # a human opened something on that day
    opens = np.empty((days, MOST_OPENS), np.int64)
    count = np.zeros(days, np.int64)
    for s in range(first, last):
        lo, hi = bounds[s], bounds[s + 1]
        at_day[:], active[:], count[:] = -1, False, 0
        for i in range(lo, hi):
            at_day[send.day[i]] = i
        for r in range(answer_bounds[s], answer_bounds[s + 1]):
            day = campaign[r] // CAMPAIGNS_A_DAY
            i = at_day[day] if 0 <= day < days else -1
            if i < 0 or send.campaign[i] != campaign[r] or ts[r] - send.ts[i] >= SETTLED:
                continue  # of no send in the log, or by a machine that clears up
            if kind[r] == OPEN and count[day] < MOST_OPENS:
                opens[day, count[day]] = ts[r]
                count[day] += 1
            elif kind[r] == CLICK:
                if ts[r] - send.ts[i] >= SCANNED:
                    send.clicked[i] = min(send.clicked[i], ts[r])
            elif kind[r] == DELETE:
                send.deleted[i] = min(send.deleted[i], ts[r])
            elif kind[r] == COMPLAINT or kind[r] == UNSUBSCRIBE:
                if send.left[i] == NEVER:
                    send.left[i], send.complained[i] = ts[r], kind[r] == COMPLAINT
            elif kind[r] == SOFT or kind[r] == HARD:
                send.bounced[i] = True
        humans(lo, hi, send, opens, count, apple[s], active, start)
        streak, before = 0, lo
        for i in range(lo, hi):
            if i > lo:
                streak = 0 if active[send.day[i - 1]] else streak + 1
                for day in range(send.day[i - 1] + 1, send.day[i]):
                    streak = 0 if active[day] else streak
            while send.day[before] < send.day[i] - 7:
                before += 1
            send.volume[i], send.streak[i] = i - before, streak
            send.received[i] = i - lo if joined[s] >= 0 else ESTABLISHED + i - lo


@numba.njit(nogil=True, cache=True)
def humans(lo: int, hi: int, send: Any, opens: Any, count: Any, apple: bool, active: Any, start: int) -> None:
    """Tell people's opens from machines', with what is known within FETCHED of each send."""
    delivered = fetched = 0
    for i in range(lo, hi):
        day, at = send.day[i], send.ts[i]
        early = crowd = 0
        for k in range(count[day]):
            after = opens[day, k] - at
            early += after < FETCHED
            crowd += ANOMALY_FROM <= after < ANOMALY_TO
        delivered += not send.bounced[i]
        fetched += early > 0
        machine = apple and early > 0 and fetched >= MACHINE_SHARE * delivered
        drop = ANOMALY_OPENS if crowd >= ANOMALY_LEAST else 0
        for k in range(count[day]):
            after = opens[day, k] - at
            if machine and after < FETCHED:
                machine = False  # one a message
            elif drop > 0 and ANOMALY_FROM <= after < ANOMALY_TO:
                drop -= 1
            else:
                send.opened[i] = min(send.opened[i], opens[day, k])
                ahead = opens[day, k] // DAY - start
                if ahead < len(active):
                    active[ahead] = True
        if send.clicked[i] < send.opened[i]:  # the open is not in the log
            send.opened[i] = send.clicked[i]
            ahead = send.clicked[i] // DAY - start
            if ahead < len(active):
                active[ahead] = True
