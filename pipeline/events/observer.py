"""The ideal observer of a simulated log: the best probabilities that anybody could state before each send.

It knows the generative model (behaviour.py: parameters, the clients' calendars with topic, quality and hour of every
campaign) and sees what the log shows: sends, opens, clicks, deletes, bounces, complaints, unsubscribes, joins, the
provider, and when. It knows neither traits nor hidden state nor the truth of the dirt. So no model of the log can be
better in expectation, and the true probabilities, which know the traits, are better than it.

For each subscriber the posterior is over K draws of traits ("particles") times the hidden state, awake or asleep:

    prior       the traits' own (``draw_traits``); the provider is seen, the tier decides only about being sent to and
                cancels. The draws are the same for everybody and fixed: interests in equal shares, engagement,
                patience and hour from a Kronecker sequence (Roberts 2018, "The unreasonable effectiveness of
                quasirandom sequences"), shifted by the seed, which covers the prior more evenly than random draws do.
    state       an exact forward filter (Rabiner 1989, doi:10.1109/5.18626): the chain moves a step a day from its
                equilibrium, or from awake on the day of joining, and each send weighs both states of every particle.
    likelihood  of all that is seen of a send before the moment of the prediction: opened or not yet, clicked, deleted,
                left, with the survival of the delays (``draws.delay``) of what has not happened yet, within the inbox
                and the spam folder. The sends of the last 7 days are weighed anew at each prediction, with what is
                known by then; older ones are settled and weighed once.
    prediction  the posterior mean of each outcome's probability.

What is seen, and how machines are told from people, is in sightings.py. Rows that the log has lost (dirt) are not
accounted for.

Cost: about particles x (sends + sends predicted x sends in the 7 days before them) steps of 1 to 2 ns; measured, 2e8
events x particles a second on 2 cores with every send predicted (25 s for 5 million events), 7e8 with every ninth.
Memory is that of the log's columns. The result does not depend on the number of threads.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events import draws
from pipeline.events.behaviour import (
    CAMPAIGNS_A_DAY,
    DAY,
    TOPICS,
    ClientWorld,
    Parameters,
    Traits,
    calendar,
    fit,
    sigmoid,
    stay_or_change,
)
from pipeline.events.draws import Floats
from pipeline.events.sightings import Log, in_chunks, read_history

OUTCOMES = ("open", "click", "complaint", "unsubscribe")
BELIEFS = ("awake", "engagement", "patience", "fit", "hour")  # of the state and the traits, before a send
PARTICLES = 960  # twice or four times as many change the expected PR-AUC by about 0.1%, 480 by up to 0.7%
NODES = 7  # of the mean over a quality that is not known
ROOT = 1.2207440846057596  # of x^4 = x + 1: the sequence's irrational steps are its negative powers


@dataclass(frozen=True)
class Knowledge:
    """What the observer may use; by default everything. With less it tells what a model's limit is.

    Less history is less evidence about traits and state; volume, streak and number received, which the model takes as
    given, stay as they are. Topic and quality: of the campaign about to be sent; those of earlier ones are known.
    """

    sends: int | None = None  # of each subscriber's history the last so many sends
    days: float | None = None  # and of the last so many days
    topic: bool = True  # the log has it in the campaign's name at best
    quality: bool = True  # no log has it; answers show it afterwards


def observe(
    parameters: Parameters,
    client: ClientWorld,
    log: Log,
    wanted: NDArray[np.bool_],
    particles: int | Traits = PARTICLES,
    knowledge: Knowledge | None = None,
    seed: int = 0,
    threads: int = 2,
    beliefs: bool = False,
) -> Floats:
    """What can be known before each wanted send.

    Args:
        parameters, client: of the world that made the log.
        log: all that is seen of the client; whole subscribers.
        wanted: bool[n], the sends to predict.
        particles: how many draws of traits, rounded up to equal shares of the interests; or the draws.
        knowledge: what to use; everything by default.
        seed: shifts the draws.
        beliefs: give what is thought of the subscriber instead of what follows from it.
    Returns:
        float64[wanted, 4], the probabilities of OUTCOMES as in the truth; NaN for a row that is no send of a known
        campaign on its day. Or float64[wanted, 5], the posterior means of BELIEFS: the probability of being awake,
        engagement, patience, fit with the send's topic, and the term of the hour in the logit of an open.
    """
    from pipeline.events import compiled_observer as compiled

    history = read_history(client, log, threads)
    send, bounds, joined, provider = history.sends, history.bounds, history.joined, history.provider
    drawn = particles if isinstance(particles, Traits) else draw_particles(particles, seed)
    table = _tables(compiled.Particles, parameters, drawn, 1 + int(send.day.max(initial=0)))
    terms = _terms(compiled.Terms, parameters, client, send, np.repeat(provider, np.diff(bounds)))
    out = np.full((int(wanted.sum()), len(OUTCOMES)), np.nan)
    thought = np.full((len(out) if beliefs else 0, len(BELIEFS)), np.nan)
    place = np.where(wanted, np.cumsum(wanted) - 1, -1)[history.rows]
    use = knowledge or Knowledge()
    most = -1 if use.sends is None else use.sends
    span = -1 if use.days is None else int(use.days * DAY)
    ahead, guesses = _ahead(compiled.Guesses, parameters, terms, use)

    def follow(first: int, last: int) -> None:
        about = (bounds, send, joined, provider, terms, ahead, guesses, table)
        compiled.follow(first, last, *about, place, most, span, out, thought)

    in_chunks(follow, len(joined), threads)
    return thought if beliefs else out


def draw_particles(particles: int, seed: int = 0) -> Traits:
    """Traits spread evenly over their prior; provider and tier, which an observer need not draw, are 0 and 1.

    Args:
        particles: at least so many; a multiple of the number of topics is drawn.
        seed: shifts the sequence (Cranley and Patterson 1976, doi:10.1137/0713071).
    """
    each = -(-particles // len(TOPICS))
    n = each * len(TOPICS)
    key = np.array([draws.scalar_key(seed, 0x0B5E)], dtype=np.uint64)
    engagement, patience, hour = (
        (draws.uniform(key, axis)[0] + np.arange(1, n + 1) * ROOT ** -(axis + 1.0)) % 1.0 for axis in range(3)
    )
    return Traits(
        engagement=_normal(engagement),
        patience=_normal(patience),
        interest=np.repeat(np.arange(len(TOPICS)), each),
        hour=7.0 + 15.0 * hour,
        provider=np.zeros(n, np.uint8),
        tier=np.ones(n),
    )


def _normal(u: Floats) -> Floats:
    quantile = statistics.NormalDist().inv_cdf
    return np.array([quantile(x) for x in np.clip(u, 1e-9, 1 - 1e-9).tolist()])


def _tables(particles: Any, p: Parameters, traits: Traits, days: int) -> Any:
    """The terms of behaviour.send_probabilities that hang on traits."""
    e = traits.engagement
    suits = np.stack([fit(traits.interest, np.full(len(e), topic)) for topic in range(len(TOPICS))])
    gap = np.cos((np.arange(24)[:, None] - traits.hour) * (2 * np.pi / 24))
    fall, wake = stay_or_change(p, traits)
    return particles(
        engagement=e,
        patience=traits.patience,
        fit=suits,
        open_topic=np.exp(p.open_engagement * e + p.open_fit * suits),
        open_hour=np.exp(p.open_hour * gap),
        click_topic=np.exp(p.click_engagement * e + p.click_fit * suits),
        leave_topic=np.exp(-p.leave_fit * suits - p.leave_engagement * e - p.leave_patience * traits.patience),
        spam=sigmoid(np.asarray(p.spam)[:, None] - p.spam_engagement * e),
        complain=np.minimum(p.complain * np.exp(-p.complain_patience * traits.patience), 0.5),
        awake=wake / (wake + fall),
        stays=(1.0 - fall - wake) ** np.arange(days)[:, None],
    )


def _terms(terms: Any, p: Parameters, client: ClientWorld, send: Any, provider: NDArray[np.int64]) -> Any:
    """The terms of behaviour.send_probabilities that hang on the send and are seen."""
    day, position = np.divmod(send.campaign, CAMPAIGNS_A_DAY)
    days = [calendar(client, d) for d in range(1 + int(day.max(initial=0)))]
    topic, quality, hour = (
        np.stack([getattr(c, n) for c in days])[day, position] for n in ("topic", "quality", "hour")
    )
    volume = send.volume - 3.0
    leave = p.leave + client.leave_client + p.leave_volume * volume + p.leave_streak * np.log1p(send.streak)
    leave += p.leave_new * np.exp(send.received * (-1.0 / 3.0)) - p.leave_quality * quality
    bounce = np.where(send.received == 0, p.hard_first, p.hard)
    delays = {
        name: (1e6 * median, shape, 1e6 * limit)
        for name in ("open_delay", "delete_delay", "leave_delay", "soon_delay")
        for median, shape, limit in [getattr(p, name)]
    }
    return terms(
        open=np.exp(p.open + client.open_client + p.open_volume * volume + p.open_quality * quality),
        click=np.exp(p.click + p.click_quality * quality),
        leave=np.exp(leave),
        topic=topic.astype(np.int64),
        hour=hour.astype(np.int64),
        delivered=(1.0 - bounce) * (1.0 - np.asarray(p.soft)[provider]),
        asleep_open=float(np.exp(-p.asleep_open)),
        spam_open=p.spam_open,
        delete_opened=p.delete_opened,
        delete_unread=p.delete_unread,
        delete_asleep=p.delete_asleep,
        leave_unread=p.leave_unread,
        leave_asleep=p.leave_asleep,
        quality=quality,
        **delays,
    )


def _ahead(guesses: Any, p: Parameters, terms: Any, use: Knowledge) -> tuple[Any, Any]:
    """The terms of the sends to predict, and what their campaigns may be like where that is not known.

    The mean over qualities is Gauss's and Hermite's, of NODES points.
    """
    nodes, weights = np.zeros(1), np.ones(1)
    ahead = terms
    if not use.quality:
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        less = {"open": p.open_quality, "click": p.click_quality, "leave": -p.leave_quality}
        ahead = terms._replace(**{n: getattr(terms, n) * np.exp(-x * terms.quality) for n, x in less.items()})
    topics = np.array([-1]) if use.topic else np.arange(len(TOPICS))
    topic, node = (x.ravel() for x in np.meshgrid(topics, np.arange(len(nodes)), indexing="ij"))
    weight = weights[node] / weights.sum() / len(topics)
    factors = (np.exp(x * nodes[node]) for x in (p.open_quality, p.click_quality, -p.leave_quality))
    return ahead, guesses(topic, *factors, weight)
