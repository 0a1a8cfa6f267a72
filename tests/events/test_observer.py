"""The ideal observer against a plain-Python one that enumerates everything, and against the truth of simulated logs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from pipeline.events import rows
from pipeline.events.behaviour import (
    DAY,
    ESTABLISHED,
    HOUR,
    Parameters,
    Probabilities,
    Seen,
    Traits,
    calendar,
    draw_traits,
    make_client,
    send_probabilities,
    stay_or_change,
)
from pipeline.events.observer import OUTCOMES, PARTICLES, Knowledge, draw_particles, observe
from pipeline.events.rows import KIND
from pipeline.events.sightings import Log, read_history
from pipeline.learning.metrics import expected_metrics
from tests.events.simulated import Simulated, simulated

CLIENT = make_client(1, 0, dt.date(2026, 5, 1))
# Stronger than the defaults, so that every branch of the likelihood matters in a history of a few days.
PARAMETERS = Parameters(
    leave=-2.0, spam=(-1.0, -0.5, -1.5, 0.0, -1.0), fall_asleep=0.2, wake_up=0.15, asleep_open=1.5, complain=0.3
)


# -- a second observer ---------------------------------------------------------------------------------------------


@dataclass
class Message:
    """One send, and what came of it and when, seconds after the send."""

    day: int
    position: int = 0
    opened: float | None = None
    clicked: float | None = None
    deleted: float | None = None
    unsubscribe: float | None = None
    complaint: float | None = None
    bounced: bool = False

    @property
    def ts(self) -> int:
        hour = float(calendar(CLIENT, self.day).hour[self.position]) - CLIENT.utc_offset
        return (CLIENT.start + self.day) * DAY + int((hour + 0.4) * HOUR)


@functools.cache
def waited(seconds: float, delay: tuple[float, float, float]) -> float:
    """The share of delays that are shorter, integrated numerically from the density of a cut log-logistic."""
    median, shape, limit = delay

    def mass(end: float) -> float:
        x = np.exp(np.linspace(np.log(1e-4), np.log(end), 20_001))
        z = (x / median) ** shape
        return float(np.trapezoid(shape / x * z / (1 + z) ** 2 * x, np.log(x)))

    return 0.0 if seconds <= 1e-4 else mass(min(seconds, limit)) / mass(limit)


def not_contradicted(
    happens: bool, at: float | None, since: float, now: float, delay: Callable[[float], float]
) -> float:
    """The chance that it is seen or not, as it is, ``now``; times count from the send."""
    seen = at is not None and at < now
    if not happens:
        return 0.0 if seen else 1.0
    return 1.0 if seen else 1.0 - delay(now - since)


def likelihood(chance: Probabilities, message: Message, now: float, cdf: dict[str, Callable[[float], float]]) -> float:
    """Of what is seen of a delivered message: the sum over all that may have happened."""
    total = 0.0
    left_at = message.unsubscribe if message.complaint is None else message.complaint
    for spam, opened, clicked, deleted, left, complains in itertools.product((False, True), repeat=6):
        p = float(chance.spam[0]) if spam else 1 - float(chance.spam[0])
        p_open = float(chance.open[0]) * (chance.spam_open if spam else 1)
        p *= p_open if opened else 1 - p_open
        p_click = float(chance.click[0]) if opened else 0.0
        p *= p_click if clicked else 1 - p_click
        p_delete = 0.0 if spam else chance.delete_opened if opened else float(chance.delete_unread[0])
        p *= p_delete if deleted else 1 - p_delete
        p_leave = 0.0 if spam else float((chance.leave_opened if opened else chance.leave_unread)[0])
        p *= p_leave if left else 1 - p_leave
        p_complain = float(chance.complain[0]) if left else 0.0
        p *= p_complain if complains else 1 - p_complain
        seen_open = message.opened is not None and message.opened < now
        p *= not_contradicted(opened, message.opened, 0, now, cdf["open"])
        if opened and not seen_open:  # what follows an open that has not happened has not either
            seen = [at for at in (message.clicked, message.deleted, left_at) if at is not None and at < now]
            total += 0.0 if seen else p
            continue
        since = message.opened if opened and message.opened is not None else 0.0
        p *= not_contradicted(clicked, message.clicked, since, now, cdf["soon"])
        p *= not_contradicted(deleted, message.deleted, since, now, cdf["soon" if opened else "delete"])
        p *= not_contradicted(left, left_at, since, now, cdf["soon" if opened else "leave"])
        if left_at is not None and left_at < now and complains != (message.complaint is not None):
            p = 0.0
        total += p
    return total


def by_enumeration(
    messages: list[Message], traits: Traits, joined: int | None, first: int = 0, **campaign: np.ndarray
) -> np.ndarray:
    """P(outcome) before the last message, and the means of BELIEFS, float[9]: every trait times every path of states.

    ``first``: the first message that is looked at; ``campaign``: what the last one's is taken for.
    """
    *past, last = messages
    begin = joined if joined is not None else past[first].day if past else last.day
    delays = {"open": "open_delay", "soon": "soon_delay", "delete": "delete_delay", "leave": "leave_delay"}
    exact = {k: getattr(PARAMETERS, v) for k, v in delays.items()}
    cdf = {k: (lambda s, d=d: waited(s, d)) for k, d in exact.items()}
    answers, weights = [], []
    chance_of: dict[tuple[int, int, bool], Probabilities] = {}
    known: dict[tuple[int, int, bool], float] = {}
    for k in range(len(traits.hour)):
        one = traits[np.array([k])]
        fall, wake = (float(x[0]) for x in stay_or_change(PARAMETERS, one))
        for i, message in enumerate(messages):
            for awake in (True, False):
                seen = seen_before(messages, i, joined)
                seen = dataclasses.replace(seen, **campaign) if i == len(past) else seen
                chance = send_probabilities(PARAMETERS, CLIENT, one, np.array([awake]), seen)
                chance_of[k, i, awake] = chance
                if i < len(past) and not message.bounced:
                    known[k, i, awake] = likelihood(chance, message, (last.ts - message.ts) / 1e6, cdf)
        for path in itertools.product((True, False), repeat=last.day - begin + 1):
            p = float(path[0]) if joined is not None else (wake if path[0] else fall) / (wake + fall)
            for before, after in itertools.pairwise(path):
                change = fall if before else wake
                p *= change if before != after else 1 - change
            for i in range(first, len(past)):
                p *= known.get((k, i, path[past[i].day - begin]), 1.0)
            chance = chance_of[k, len(past), path[-1]]
            outcomes = [float(getattr(chance, f"p_{name}")[0]) for name in OUTCOMES]
            answers.append([*outcomes, float(path[-1]), *about(one, seen_before(messages, len(past), joined))])
            weights.append(p)
    return np.average(answers, axis=0, weights=weights)


def about(one: Traits, seen: Seen) -> list[float]:
    """One draw's engagement, patience, fit with the send and term of its hour."""
    away = 2 * np.pi * (one.interest[0] - seen.topic[0]) / 6, 2 * np.pi * (one.hour[0] - seen.hour[0]) / 24
    terms = one.engagement[0], one.patience[0], np.cos(away[0]), PARAMETERS.open_hour * np.cos(away[1])
    return [float(x) for x in terms]


def seen_before(messages: list[Message], i: int, joined: int | None) -> Seen:
    """Volume, streak, number received and campaign, straight from their definitions."""
    day, position = messages[i].day, messages[i].position
    opened = {int(m.ts + m.opened * 1e6) // DAY - CLIENT.start for m in messages if m.opened is not None}
    last_open = max((d for d in opened if d < day), default=-1)
    today = calendar(CLIENT, day)
    return Seen(
        volume=np.array([sum(day - 7 <= m.day < day for m in messages)]),
        streak=np.array([sum(last_open < m.day < day for m in messages)]),
        received=np.array([i if joined is not None else ESTABLISHED]),
        topic=today.topic[[position]],
        quality=today.quality[[position]],
        hour=today.hour[[position]],
    )


def as_log(people: list[tuple[list[Message], int | None, int]]) -> Log:
    """(messages, day of joining, provider) of each subscriber as a log."""
    table = []
    for who, (messages, joined, provider) in enumerate(people):
        if joined is not None:
            table.append((who, (CLIENT.start + joined) * DAY + HOUR, KIND["subscribe"], -1, provider))
        for m in messages:
            campaign = m.day * 2 + m.position
            table.append((who, m.ts, KIND["send"], campaign, provider))
            if m.bounced:
                table.append((who, m.ts + 1_000_000, KIND["soft_bounce"], campaign, provider))
            kinds = {"open": m.opened, "click": m.clicked, "delete": m.deleted}
            for kind, at in {**kinds, "unsubscribe": m.unsubscribe, "complaint": m.complaint}.items():
                if at is not None:
                    table.append((who, m.ts + int(at * 1e6), KIND[kind], campaign, provider))
    table.sort(key=lambda row: row[:2])
    columns = [np.array(column) for column in zip(*table, strict=True)]
    types = (np.int64, np.int64, np.uint8, np.int64, np.int64)
    return Log(*(c.astype(t) for c, t in zip(columns, types, strict=True)))


HISTORIES: list[tuple[list[Message], int | None, int]] = [
    (
        [Message(0, opened=5000, clicked=5030, deleted=5060), Message(2, 1), Message(3, deleted=9000), Message(8)],
        None,
        0,
    ),
    ([Message(1, 1, opened=200_000), Message(2, bounced=True), Message(3), Message(5, 1)], None, 3),
    ([Message(4), Message(5, opened=90, unsubscribe=150), Message(6, 1)], 3, 1),
    ([Message(2, complaint=50_000), Message(3)], 2, 4),
    ([Message(1, unsubscribe=40_000), Message(2, 1, opened=60_000, complaint=60_500), Message(3)], None, 4),
    ([Message(0, opened=100_000, clicked=100_900), Message(1, opened=3000, deleted=3100), Message(2)], None, 0),
]


@pytest.mark.parametrize("which", range(len(HISTORIES)))
def test_it_is_what_enumeration_gives(which: int) -> None:
    messages, joined, provider = HISTORIES[which]
    traits = draw_traits(np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    traits = dataclasses.replace(traits, provider=np.full(5, provider, np.uint8))
    log = as_log(HISTORIES)
    wanted = log.kind == KIND["send"]
    found, thought = (
        observe(PARAMETERS, CLIENT, log, wanted, traits, beliefs=b)[log.subscriber[wanted] == which]
        for b in (False, True)
    )
    last = observe(PARAMETERS, CLIENT, log, wanted, traits, Knowledge(sends=1))[log.subscriber[wanted] == which]
    for i in range(len(messages)):
        everything = by_enumeration(messages[: i + 1], traits, joined)
        np.testing.assert_allclose([*found[i], *thought[i]], everything, rtol=1e-6, atol=1e-9)
        forgetful = by_enumeration(messages[: i + 1], traits, joined, max(i - 1, 0))[:4]
        np.testing.assert_allclose(last[i], forgetful, rtol=1e-6)


def test_what_is_not_known_of_a_campaign_is_averaged_over() -> None:
    messages, joined, _ = HISTORIES[2]
    traits = draw_traits(np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    traits = dataclasses.replace(traits, provider=np.full(3, 1, np.uint8))
    log = as_log(HISTORIES)
    wanted = (log.kind == KIND["send"]) & (log.subscriber == 2) & (log.ts == messages[-1].ts)
    by_topic = [by_enumeration(messages, traits, joined, topic=np.array([t]))[:4] for t in range(6)]
    qualities = np.linspace(-5, 5, 81)
    by_quality = [by_enumeration(messages, traits, joined, quality=np.array([q]))[:4] for q in qualities]
    density = np.exp(-(qualities**2) / 2)
    found = [
        observe(PARAMETERS, CLIENT, log, wanted, traits, Knowledge(topic=t, quality=not t))[0] for t in (False, True)
    ]
    np.testing.assert_allclose(found[0], np.mean(by_topic, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found[1], np.average(by_quality, axis=0, weights=density), rtol=1e-4)


def test_particles_have_the_distribution_of_traits() -> None:
    drawn, prior = (
        draw_particles(PARTICLES, seed=3),
        draw_traits(np.arange(1, 200_001, dtype=np.uint64) << np.uint64(20)),
    )
    for name in ("engagement", "patience", "hour"):
        a, b = (np.quantile(getattr(t, name), np.linspace(0.02, 0.98, 25)) for t in (drawn, prior))
        np.testing.assert_allclose(a, b, atol=0.1 if name != "hour" else 0.2)
    assert (np.bincount(drawn.interest) == 160).all()
    corner = np.mean((drawn.engagement > 1) & (drawn.patience < -1) & (drawn.hour > 14.5))
    assert corner == pytest.approx(0.1587**2 / 2, abs=0.004)


# -- on simulated logs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Simulated:
    return simulated(120_000, 100, 5)


def looked(s: Simulated, particles: int = PARTICLES, **options: object) -> np.ndarray:
    return observe(s.world.parameters, s.world.clients[0], s.log, s.wanted, particles, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ideal(small: Simulated) -> np.ndarray:
    return looked(small)


def test_it_is_calibrated(small: Simulated, ideal: np.ndarray) -> None:
    """In every tenth of its predictions the true probabilities have its mean, within noise between subscribers."""
    who = small.log.subscriber[small.wanted]
    for i, name in enumerate(OUTCOMES):
        p, truth = ideal[:, i], small.truth[f"p_{name}"]
        tenth = np.searchsorted(np.quantile(p, np.linspace(0.1, 0.9, 9)), p)
        scores = []
        for part in range(10):
            rest = np.bincount(who[tenth == part], (truth - p)[tenth == part])
            scores.append(rest.sum() / np.sqrt((rest**2).sum()))
        assert np.abs(scores).max() < 4.0, (name, scores)
        assert np.mean(np.square(scores)) < 3.0, (name, scores)


def test_knowing_more_is_better(small: Simulated, ideal: np.ndarray) -> None:
    """The true probabilities beat it; it beats itself with less history, or not knowing what campaign comes."""
    ones = np.ones(len(ideal))
    less = (Knowledge(sends=10), Knowledge(days=7), Knowledge(sends=0), Knowledge(topic=False, quality=False))
    few, week, none, blind = (looked(small, knowledge=use) for use in less)
    for i, name in enumerate(OUTCOMES):
        truth = small.truth[f"p_{name}"]
        measured = [expected_metrics(p, truth, ones) for p in (truth, ideal[:, i], few[:, i], none[:, i])]
        assert expected_metrics(blind[:, i], truth, ones)["expected_pr_auc"] < measured[1]["expected_pr_auc"]  # type: ignore[operator]
        for metric, sign in (("expected_pr_auc", 1), ("expected_log_loss", -1)):
            values = [sign * (m[metric] or 0.0) for m in measured]
            assert values == sorted(values, reverse=True), (name, metric, values)
        assert np.abs(week[:, i] - none[:, i]).max() > 0


def test_no_model_beats_it(small: Simulated, ideal: np.ndarray) -> None:
    """Gradient boosting, even on labels without noise, with the same things given and counts of the past."""
    history = read_history(small.world.clients[0], small.log)
    who, send = small.log.subscriber[history.rows], history.sends
    first = np.searchsorted(who, who)
    opened = (send.opened < np.iinfo(np.int64).max) & (send.opened - send.ts < DAY // 2)
    before = np.append(0, np.cumsum(opened))
    past = before[np.arange(len(who))] - before[first]
    days = [calendar(small.world.clients[0], d) for d in range(100)]
    day, position = np.divmod(send.campaign, 2)
    plan = [np.stack([getattr(c, n) for c in days])[day, position] for n in ("topic", "quality", "hour")]
    number = np.arange(len(who)) - first
    X = np.column_stack([send.volume, send.streak, send.received, number, past, (past + 1) / (number + 4), *plan])
    test = who % 2 == 0
    for i, name in enumerate(("open", "click")):
        truth = small.truth[f"p_{name}"]
        model = HistGradientBoostingClassifier(max_iter=60, random_state=0)
        # The probability itself as the label: each row once as a 1 and once as a 0, weighted.
        twice = np.concatenate([X[~test], X[~test]])
        label = np.repeat([1, 0], (~test).sum())
        with threadpool_limits(1):
            model.fit(twice, label, sample_weight=np.concatenate([truth[~test], 1 - truth[~test]]))
        theirs = expected_metrics(model.predict_proba(X[test])[:, 1], truth[test], np.ones(test.sum()))
        ours = expected_metrics(ideal[test, i], truth[test], np.ones(test.sum()))
        assert ours["expected_pr_auc"] > theirs["expected_pr_auc"] > 1.5 * truth[test].mean()  # type: ignore[operator]
        assert ours["expected_log_loss"] < theirs["expected_log_loss"]  # type: ignore[operator]


def test_more_particles_or_others_change_nothing(small: Simulated) -> None:
    ones = np.ones(int(small.wanted.sum()))
    several = [looked(small), looked(small, 2 * PARTICLES), looked(small, seed=9)]
    for i, name in enumerate(OUTCOMES):
        measured = [expected_metrics(p[:, i], small.truth[f"p_{name}"], ones) for p in several]
        for metric in ("expected_pr_auc", "expected_log_loss"):
            values = [m[metric] for m in measured]
            np.testing.assert_allclose(values, values[1], rtol=0.01 if metric == "expected_pr_auc" else 0.001)


def test_threads_and_other_subscribers_change_nothing(small: Simulated, ideal: np.ndarray) -> None:
    part = small.log.subscriber < 700
    some = Log(*(getattr(small.log, f.name)[part] for f in dataclasses.fields(Log)))
    wanted = small.wanted[part] & (np.arange(part.sum()) % 3 == 0)
    alone = observe(small.world.parameters, small.world.clients[0], some, wanted, threads=1)
    np.testing.assert_array_equal(alone, ideal[np.flatnonzero(wanted[small.wanted[part].nonzero()[0]])])


def test_a_log_of_nothing() -> None:
    empty = Log(*(np.zeros(0, t) for t in (np.int64, np.int64, np.uint8, np.int64, np.int64)))
    assert observe(Parameters(), CLIENT, empty, np.zeros(0, bool)).shape == (0, 4)


def test_a_send_of_no_known_campaign_is_not_predicted() -> None:
    log = as_log([([Message(1), Message(2)], None, 0)])
    log.campaign[1] = rows.NO_CAMPAIGN
    found = observe(Parameters(), CLIENT, log, np.ones(2, bool))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[0]).all()
