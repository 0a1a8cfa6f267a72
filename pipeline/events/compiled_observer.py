# mypy: disable-error-code="untyped-decorator"
"""Compiled kernels of the ideal observer (observer.py, which says what they compute): per subscriber, in order of time.

Imported only where the observer is asked for: compiling takes seconds once, then the code comes from numba's cache.
All release the GIL, so threads share the cores. Nothing here draws a random number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from pipeline.events.compiled_sightings import SETTLED
from pipeline.events.population import NEVER

TINY = 1e-150

# Without a check of every division for zero, and with sums in any order, the loops over particles become vector code.
options = {"nogil": True, "cache": True, "fastmath": True, "error_model": "numpy"}


class Particles(NamedTuple):
    """Terms of the model for K draws of traits, float64[..., K], so that no step needs an exponential."""

    engagement: Any  # [K]
    patience: Any  # [K]
    fit: Any  # [6, K], by topic
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
def believe(awake: Any, asleep: Any, i: int, terms: Any, particles: Any, out: Any) -> None:
    """Write the posterior means of observer.BELIEFS at send ``i`` to out: float64[5]."""
    fits, hourly = particles.fit[terms.topic[i]], particles.open_hour[terms.hour[i]]
    total = there = keen = patient = fitting = timely = 0.0
    for k in range(len(awake)):
        weight = awake[k] + asleep[k]
        total += weight
        there += awake[k]
        keen += weight * particles.engagement[k]
        patient += weight * particles.patience[k]
        fitting += weight * fits[k]
        timely += weight * np.log(hourly[k])
    out[0], out[1], out[2] = there / total, keen / total, patient / total
    out[3], out[4] = fitting / total, timely / total


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
    beliefs: Any,
) -> None:
    """Filter subscribers [first, last) and predict their wanted sends.

    Args:
        bounds, joined, provider: int64[subscribers (+ 1)]: their sends, day of joining (-1: before the log), provider.
        terms, ahead: what is known of a send's campaign afterwards, and at the moment of the prediction.
        row: int64[m], where in ``out`` the prediction of a send goes; -1: nowhere.
        most, span: of the history before each send at most so many sends, and microseconds, are looked at.
        out: float64[wanted, 4], the probabilities in the order of observer.OUTCOMES, written.
        beliefs: float64[wanted, 5], the means of observer.BELIEFS, written; of no rows where they are not asked for.
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
            if len(beliefs):
                believe(awake_now, asleep_now, i, terms, particles, beliefs[row[i]])
