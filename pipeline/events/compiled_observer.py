# mypy: disable-error-code="untyped-decorator"
"""Compiled kernels of the ideal observer (observer.py, which says what they compute): per subscriber, in order of time.

Imported only where the observer is asked for: compiling takes seconds once, then the code comes from numba's cache.
All release the GIL, so threads share the cores. Nothing here draws a random number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from pipeline.events.behaviour import CAMPAIGNS_A_DAY, DAY, ESTABLISHED
from pipeline.events.population import ANOMALY_OPENS, NEVER
from pipeline.events.rows import KIND

SEND, OPEN, CLICK, DELETE = (int(KIND[k]) for k in ("send", "open", "click", "delete"))
COMPLAINT, UNSUBSCRIBE = int(KIND["complaint"]), int(KIND["unsubscribe"])
SOFT, HARD = int(KIND["soft_bounce"]), int(KIND["hard_bounce"])
SECOND = 1_000_000
SCANNED = 2 * SECOND  # a scanner's clicks come within this of the send
FETCHED = 903 * SECOND  # a machine's open does
MACHINE_SHARE = 0.7  # of all deliveries so far opened within FETCHED: no human is so fast, and a machine misses none
ANOMALY_FROM, ANOMALY_TO, ANOMALY_LEAST = 60 * SECOND, 5460 * SECOND, 5
MOST_OPENS = 16  # of one message, that are looked at
SETTLED = 7 * DAY  # after this nothing more can come of a send
TINY = 1e-150

# Without a check of every division for zero, and with sums in any order, the loops over particles become vector code.
options = {"nogil": True, "cache": True, "fastmath": True, "error_model": "numpy"}


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


class Particles(NamedTuple):
    """Terms of the model for K draws of traits, float64[..., K], so that no step needs an exponential."""

    open_topic: Any  # [6, K], odds
    open_hour: Any  # [24, K], factor
    click_topic: Any  # [6, K], odds
    leave_topic: Any  # [6, K], hazard
    spam: Any  # [providers, K]
    complain: Any  # [K]
    awake: Any  # [K], at the chain's equilibrium
    stays: Any  # [days, K]: what is left, after so many days, of a distance from the equilibrium


class Guesses(NamedTuple):
    """What the campaign about to be sent may be like; one guess, and factors of 1, where that is known. Each [g]."""

    topic: Any  # int64; -1: the send's own
    open: Any  # factor of the odds
    click: Any
    leave: Any  # of the hazard
    weight: Any  # adding up to 1


class Terms(NamedTuple):
    """What particles share: factors of a send, float64[m], and constants of the model."""

    open: Any  # of the odds
    click: Any
    leave: Any  # of the hazard
    topic: Any  # int64[m]
    hour: Any  # int64[m]
    delivered: Any  # probability
    quality: Any  # float64[m], of the campaign; in the factors already
    asleep_open: float  # factor of the odds
    spam_open: float
    delete_opened: float
    delete_unread: float
    delete_asleep: float
    leave_unread: float
    leave_asleep: float
    open_delay: Any  # (median in microseconds, shape, limit in microseconds)
    delete_delay: Any
    leave_delay: Any
    soon_delay: Any


@numba.njit(**options)
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


@numba.njit(**options)
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


@numba.njit(**options)
def passed(after: int, delay: Any) -> float:
    """The share of delays below ``after`` microseconds; the distribution of draws.delay."""
    median, shape, limit = delay
    if after >= limit:
        return 1.0
    if after <= 0:
        return 0.0
    return float((1.0 + (median / limit) ** shape) / (1.0 + (median / after) ** shape))


@numba.njit(**options)
def move(awake: Any, asleep: Any, equilibrium: Any, stays: Any) -> None:
    """The hidden chain, over as many days as ``stays`` is of."""
    for k in range(len(awake)):
        both = awake[k] + asleep[k]
        rest = both * equilibrium[k]
        awake[k] = rest + stays[k] * (awake[k] - rest)
        asleep[k] = both - awake[k]


@numba.njit(**options)
def weigh(awake: Any, asleep: Any, i: int, now: int, send: Any, terms: Any, particles: Any, spam: Any) -> None:
    """Multiply in the likelihood of what is seen of send ``i`` before ``now``."""
    if send.bounced[i]:
        return  # which tells nothing of traits
    topic = terms.topic[i]
    odds, hourly = particles.open_topic[topic], particles.open_hour[terms.hour[i]]
    hazards, clicks, complain = particles.leave_topic[topic], particles.click_topic[topic], particles.complain
    by_open, by_leave, by_click, sleepy = terms.open[i], terms.leave[i], terms.click[i], terms.asleep_open
    left, deleted = send.left[i] < now, send.deleted[i] < now
    if left and send.complained[i]:
        of_left, of_share = 0.0, 1.0
    else:
        of_left, of_share = 1.0, -1.0  # the share of those leaving who do so in this way: of_left + of_share complain
    total = 0.0
    if send.opened[i] < now:
        clicked, since = send.clicked[i] < now, now - send.opened[i]
        soon = passed(since, terms.soon_delay)
        tried = soon if not clicked else -1.0  # 1 - tried c, or c where clicked
        base = 0.0 if clicked else 1.0
        delete = terms.delete_opened if deleted else 1.0 - terms.delete_opened * soon
        foul = 0.0 if left or deleted else terms.spam_open
        for k in range(len(awake)):
            o = odds[k] * hourly[k] * by_open
            s = o * sleepy
            c = clicks[k] * by_click
            hazard = min(hazards[k] * by_leave, 0.5)
            leave = hazard * (of_left + of_share * complain[k]) if left else 1.0 - hazard * soon
            shared = (base - tried * (c / (1.0 + c))) * ((1.0 - spam[k]) * delete * leave + spam[k] * foul)
            awake[k] *= shared * (o / (1.0 + o))
            asleep[k] *= shared * (s / (1.0 + s))
            total += awake[k] + asleep[k]
    else:
        after = now - send.ts[i]
        soon, slow = passed(after, terms.delete_delay), passed(after, terms.leave_delay)
        yet = 1.0 - passed(after, terms.open_delay)
        quiet = 0.0 if left or deleted else 1.0
        keep = terms.delete_unread if deleted else 1.0 - terms.delete_unread * soon
        keep_asleep = terms.delete_asleep if deleted else 1.0 - terms.delete_asleep * soon
        foul = terms.spam_open * (1.0 - yet)
        for k in range(len(awake)):
            o = odds[k] * hourly[k] * by_open
            s = o * sleepy
            o, s = o / (1.0 + o), s / (1.0 + s)
            hazard = min(hazards[k] * by_leave, 0.5) * terms.leave_unread
            way = of_left + of_share * complain[k]
            stay = hazard * way if left else 1.0 - hazard * slow
            stay_asleep = hazard * terms.leave_asleep * way if left else 1.0 - hazard * terms.leave_asleep * slow
            inbox, junk = 1.0 - spam[k], spam[k] * quiet
            awake[k] *= inbox * ((1.0 - o) * keep * stay + o * yet * quiet) + junk * (1.0 - foul * o)
            asleep[k] *= inbox * ((1.0 - s) * keep_asleep * stay_asleep + s * yet * quiet) + junk * (1.0 - foul * s)
            total += awake[k] + asleep[k]
    if total < TINY:
        for k in range(len(awake)):
            awake[k] /= total
            asleep[k] /= total


@numba.njit(**options)
def predict(
    awake: Any, asleep: Any, i: int, terms: Any, particles: Any, spam: Any, guesses: Any, g: int, out: Any
) -> None:
    """Add the posterior mean of each outcome's probability at send ``i``, under one guess, to out: float64[4]."""
    topic = guesses.topic[g] if guesses.topic[g] >= 0 else terms.topic[i]
    odds, hourly = particles.open_topic[topic], particles.open_hour[terms.hour[i]]
    hazards, clicks, complain = particles.leave_topic[topic], particles.click_topic[topic], particles.complain
    by_open, by_click = terms.open[i] * guesses.open[g], terms.click[i] * guesses.click[g]
    by_leave, sleepy = terms.leave[i] * guesses.leave[g], terms.asleep_open
    total = opens = clicked = leaving = complaining = 0.0
    for k in range(len(awake)):
        o = odds[k] * hourly[k] * by_open
        s = o * sleepy
        o, s = o / (1.0 + o), s / (1.0 + s)
        c = clicks[k] * by_click
        hazard = min(hazards[k] * by_leave, 0.5)
        opening = (awake[k] * o + asleep[k] * s) * (1.0 - spam[k] + spam[k] * terms.spam_open)
        leave = awake[k] * (o + (1.0 - o) * terms.leave_unread)
        leave += asleep[k] * (s + (1.0 - s) * terms.leave_unread * terms.leave_asleep)
        leave *= hazard * (1.0 - spam[k])
        total += awake[k] + asleep[k]
        opens += opening
        clicked += opening * (c / (1.0 + c))
        leaving += leave
        complaining += leave * complain[k]
    scale = guesses.weight[g] * terms.delivered[i] / total
    out[0] += opens * scale
    out[1] += clicked * scale
    out[2] += complaining * scale
    out[3] += (leaving - complaining) * scale


@numba.njit(**options)
def follow(
    first: int,
    last: int,
    bounds: Any,
    send: Any,
    joined: Any,
    provider: Any,
    terms: Any,
    ahead: Any,
    guesses: Any,
    particles: Any,
    row: Any,
    most: int,
    span: int,
    out: Any,
) -> None:
    """Filter subscribers [first, last) and predict their wanted sends.

    Args:
        bounds, joined, provider: int64[subscribers (+ 1)]: their sends, day of joining (-1: before the log), provider.
        terms, ahead: what is known of a send's campaign afterwards, and at the moment of the prediction.
        row: int64[m], where in ``out`` the prediction of a send goes; -1: nowhere.
        most, span: of the history before each send at most so many sends, and microseconds, are looked at.
        out: float64[wanted, 4], the probabilities in the order of observer.OUTCOMES, written.
    """
    n = len(particles.complain)
    awake, asleep = np.empty(n), np.empty(n)
    awake_now, asleep_now = np.empty(n), np.empty(n)
    whole = most < 0 and span < 0
    for s in range(first, last):
        lo, hi = bounds[s], bounds[s + 1]
        while hi > lo and row[hi - 1] < 0:
            hi -= 1
        spam = particles.spam[provider[s]]
        settled, begun = lo, False
        day = 0
        for i in range(lo, hi):
            if row[i] < 0:
                continue
            now = send.ts[i]
            if most >= 0:
                settled = max(settled, i - most)
            while span >= 0 and send.ts[settled] < now - span:
                settled += 1
            if not whole or not begun:
                for k in range(n):
                    awake[k] = (1.0 if joined[s] >= 0 else particles.awake[k]) / n
                    asleep[k] = 1.0 / n - awake[k]
                begun, day = True, joined[s] if joined[s] >= 0 else send.day[settled]
            while whole and settled < i and send.ts[settled] + SETTLED < now:
                move(awake, asleep, particles.awake, particles.stays[send.day[settled] - day])
                day = send.day[settled]
                weigh(awake, asleep, settled, NEVER, send, terms, particles, spam)
                settled += 1
            awake_now[:], asleep_now[:] = awake, asleep
            today = day
            for j in range(settled, i + 1):
                move(awake_now, asleep_now, particles.awake, particles.stays[send.day[j] - today])
                today = send.day[j]
                if j < i:
                    weigh(awake_now, asleep_now, j, now, send, terms, particles, spam)
            out[row[i]] = 0.0
            for g in range(len(guesses.weight)):
                predict(awake_now, asleep_now, i, ahead, particles, spam, guesses, g, out[row[i]])
