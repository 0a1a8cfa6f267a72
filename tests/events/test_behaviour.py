"""The generative model's functions: against the simulator's own truth, by hand, and by counting draws."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path

import duckdb
import numpy as np
import pytest

from pipeline.events import behaviour, draws, rows
from pipeline.events.behaviour import PROVIDERS, TOPICS, Parameters, Seen, Traits
from pipeline.events.simulate import simulate
from pipeline.options import Simulate


def test_functions_reproduce_the_truth_from_its_tables(tmp_path: Path) -> None:
    """An observer who knew traits, state and covariates would get the very probabilities of the truth."""
    settings = Simulate(events=20_000, days=20, seed=3)
    simulate(settings, tmp_path, workers=1)
    with duckdb.connect() as base:
        t = base.sql(
            f"""select s.*, w.engagement, w.patience, w.interest, w.hour as preferred, w.provider, w.tier,
                  c.topic, c.quality, c.hour
                from '{tmp_path}/truth/sends/*.parquet' s
                join '{tmp_path}/truth/subscribers/*.parquet' w using (client, subscriber)
                join '{tmp_path}/truth/campaigns.parquet' c using (client, campaign)"""
        ).fetchnumpy()
    number = {name: i for i, name in enumerate(TOPICS)}
    for index, name in enumerate(("acme", "globex")):
        mine = t["client"] == name
        u = {column: values[mine] for column, values in t.items()}
        traits = Traits(
            np.asarray(u["engagement"]),
            np.asarray(u["patience"]),
            np.array([number[x] for x in u["interest"]]),
            np.asarray(u["preferred"]),
            np.array([PROVIDERS.index(x) for x in u["provider"]], np.uint8),
            np.asarray(u["tier"]),
        )
        topic = np.array([number[x] for x in u["topic"]])
        seen = Seen(u["volume"], u["streak"], u["received"], topic, np.asarray(u["quality"]), u["hour"].astype(float))
        client = behaviour.make_client(settings.seed, index, settings.start)
        p = behaviour.send_probabilities(Parameters(), client, traits, np.asarray(u["awake"]), seen)
        for column in ("p_open", "p_click", "p_complaint", "p_unsubscribe"):
            np.testing.assert_allclose(getattr(p, column), u[column], rtol=1e-6)
        np.testing.assert_allclose(p.p_leave, u["p_unsubscribe_or_complaint"], rtol=1e-6)


def one(**changes: float) -> behaviour.Probabilities:
    """The probabilities of one send to a typical subscriber, with some of its circumstances changed."""
    v = {
        "engagement": 0.0,
        "patience": 0.0,
        "awake": 1.0,
        "volume": 3.0,
        "streak": 0.0,
        "received": 1000.0,
        "topic": 0.0,
    }
    v |= changes
    traits = Traits(
        np.array([v["engagement"]]),
        np.array([v["patience"]]),
        np.array([0]),
        np.array([12.0]),
        np.array([0], np.uint8),
        np.array([1.0]),
    )
    integers = {name: np.array([int(v[name])]) for name in ("volume", "streak", "received", "topic")}
    seen = Seen(**integers, quality=np.array([0.0]), hour=np.array([12.0]))
    client = behaviour.make_client(1, 0, dt.date(2026, 5, 1))
    return behaviour.send_probabilities(Parameters(), client, traits, np.array([bool(v["awake"])]), seen)


def test_one_send_by_hand() -> None:
    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    p, chance = Parameters(), one()
    opening = sigma(p.open + p.open_fit + p.open_hour)
    leave = math.exp(p.leave - p.leave_fit)
    delivered = (1 - p.hard) * (1 - p.soft[0])
    spam = sigma(p.spam[0])
    assert chance.p_open[0] == pytest.approx(delivered * (1 - spam + spam * p.spam_open) * opening)
    assert chance.p_click[0] == pytest.approx(chance.p_open[0] * sigma(p.click + p.click_fit))
    leaving = delivered * (1 - spam) * leave * (opening + (1 - opening) * p.leave_unread)
    assert chance.p_unsubscribe[0] == pytest.approx(leaving * (1 - p.complain))
    assert chance.p_complaint[0] == pytest.approx(leaving * p.complain)


@pytest.mark.parametrize(
    "worse",
    [{"volume": 6}, {"streak": 10}, {"topic": 3}, {"engagement": -1}, {"patience": -1}, {"received": 1}],
    ids=lambda w: next(iter(w)),
)
def test_what_makes_people_leave(worse: dict[str, float]) -> None:
    assert one(**worse).p_leave[0] > 1.2 * one().p_leave[0]


def test_the_asleep_do_not_open() -> None:
    assert one(awake=0).p_open[0] < 0.1 * one().p_open[0]


def test_delays_follow_the_cut_log_logistic() -> None:
    u = (np.arange(20_000) + 0.5) / 20_000
    median, shape, limit = 9000.0, 1.2, 71 * 3600.0
    seconds = draws.delay(u, median, shape, limit) / 1e6

    def share(x: float) -> float:
        return 1 / (1 + (median / x) ** shape)

    assert seconds.max() < limit
    for x in (600.0, 9000.0, 86_400.0):
        assert np.mean(seconds <= x) == pytest.approx(share(x) / share(limit), abs=1e-3)


def test_draws_are_uniform_normal_and_independent() -> None:
    keys = draws.at(draws.subkeys(draws.scalar_key(1, 2), np.arange(200_000)), 17)
    u, v = draws.uniform(keys, 0), draws.uniform(keys, 1)
    assert 0 <= u.min() < u.max() < 1
    counts = np.bincount((u * 20).astype(int), minlength=20)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 45  # chi squared, 19 degrees of freedom: p = 0.0007
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.01
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.01
    assert abs(np.corrcoef(u, draws.uniform(draws.at(keys, 1), 0))[0, 1]) < 0.01
    z = draws.normal(keys, 5)
    assert abs(z.mean()) < 0.01
    assert z.std() == pytest.approx(1, abs=0.01)


def test_event_ids_are_distinct() -> None:
    subscriber, day, slot = np.meshgrid(np.arange(40) * 26_843_545, np.arange(30) * 500, np.arange(0, 128, 3))
    ids = [rows.event_ids(c, subscriber.ravel(), day.ravel(), slot.ravel()) for c in (0, 1, 1023)]
    every = np.concatenate(ids)
    assert len(np.unique(every)) == len(every)
    assert every.min() >= 0


def test_sends_end_within_their_day() -> None:
    for index in range(50):
        client = behaviour.make_client(7, index, dt.date(2026, 5, 1))
        hours = np.concatenate([behaviour.calendar(client, day).hour for day in range(60)]) - client.utc_offset
        assert hours.min() >= 0
        assert hours.max() <= 22.5
        assert 0 < client.cadence < 1


def test_campaign_names_carry_topic_and_date() -> None:
    client = behaviour.make_client(1, 0, dt.date(2026, 5, 1))
    name = behaviour.campaign_name(client, 3 * behaviour.CAMPAIGNS_A_DAY + 1)
    assert name.endswith("-260504")
    assert name.removesuffix("-260504") == TOPICS[behaviour.calendar(client, 3).topic[1]]
    assert len(set(behaviour.calendar(client, 3).topic)) == behaviour.CAMPAIGNS_A_DAY
