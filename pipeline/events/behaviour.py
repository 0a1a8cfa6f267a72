"""The generative model of an email programme: who does what with a message, and with what probability.

Everything below is a pure function of (settings, seed). The probabilities of a send depend only on

- a few static traits of the subscriber: ``engagement`` e ~ N(0, 1), ``patience`` a ~ N(0, 1), ``interest`` in one of
  6 topics (uniform), a preferred local ``hour`` (uniform over 7..22), the inbox ``provider``, the cadence ``tier``;
- one hidden two-state process, awake or asleep, a Markov chain with one step a day (after that day's sends):
  fall_asleep exp(-fall_engagement e) and wake_up exp(wake_engagement e); at its equilibrium when the log begins, awake
  on joining;
- what the log shows: ``volume`` (sends in the 7 UTC days before), ``streak`` (sends since the last UTC day with an
  open), ``received`` (sends since joining), and the campaign's topic, hour and quality.

So an observer can filter over traits and state with these very functions (``send_probabilities``, ``stay_or_change``)
and get the best prediction possible from the log alone.

One send (sigma is the logistic function; parameters are the fields of ``Parameters``, each with its unit):

    hard bounce    hard, or hard_first for a joiner's first send
    soft bounce    soft[provider]
    spam folder    sigma(spam[provider] - spam_engagement e), of those delivered
    open           sigma(open + open_client + open_engagement e + open_quality q + open_fit f + open_hour cos(hour gap)
                         + open_volume (volume - 3) - asleep_open [asleep]);  x spam_open in the spam folder
    click | open   sigma(click + click_engagement e + click_fit f + click_quality q)
    delete         delete_opened after an open, else delete_unread if awake, delete_asleep if asleep; inbox only
    negative       min(0.5, exp(leave + leave_client + leave_volume (volume - 3) + leave_streak log(1 + streak)
                         + leave_new exp(-received / 3) - leave_fit f - leave_engagement e
                         - leave_patience a - leave_quality q)),
                   x leave_unread where not opened, x leave_asleep where not opened and asleep; inbox only
    complaint      min(0.5, complain exp(-complain_patience a)) of the negative ones; the others unsubscribe

with fit f = cos(2 pi (interest - topic) / 6) and quality q ~ N(0, 1) of the campaign. Unsubscribe and complaint
exclude each other, so their probabilities add up to that of either; apart from what it leaves in the log, one send
does not bear on another, so within the lag of a suppression somebody may leave twice. A second open or click of the
same message does not change any probability. Delays are log-logistic, cut off within the horizon of their outcome
(opens and clicks 3 days, leaving 7).

Sends: a client runs 2 campaigns a day (``calendar``); a subscriber gets one of them, at random, with probability
intensity of the day x tier. A client's list begins with its initial subscribers and grows by ``growth`` of them a
day, each joining with a subscribe event. A hard bounce stops the sends at once, leaving within U(0, 2) days. Nothing
hidden decides about a send but that lag. Times are UTC; hours are local, by a fixed offset of each client (no
daylight saving).

Sources: the rates are within what senders' benchmark reports publish (opens 15-30% of delivered, clicks 1-4%,
unsubscribes 0.1-0.5%, complaints 0.01-0.1%, below Gmail's limit of 0.3%). The signs of the effects are common
knowledge of the field (volume, ignored streaks and poor fit make people leave, engagement keeps them); their sizes
are assumptions, chosen so that leaving is hard to predict, as it is in life, and are nobody's measurements."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.events import draws
from pipeline.events.draws import Floats, Keys

DAY = 86_400_000_000  # microseconds
HOUR = 3_600_000_000
CAMPAIGNS_A_DAY = 2
TOPICS = ("spring-sale", "new-arrivals", "weekend-recipes", "travel-deals", "member-news", "clearance")
PROVIDERS = ("gmail", "outlook", "apple", "yahoo", "corporate")
PROVIDER_SHARES = (0.38, 0.22, 0.18, 0.12, 0.10)
NAMES = ("acme", "globex", "initech", "umbrella", "hooli", "vandelay", "stark", "wonka")
ESTABLISHED = 1000  # `received` of those who joined before the log begins


@dataclass(frozen=True)
class Parameters:
    """Every constant of the model: probabilities, or terms of a logit or of a log hazard; delays in seconds."""

    hard: float = 0.0004
    hard_first: float = 0.012
    soft: tuple[float, ...] = (0.004, 0.006, 0.004, 0.010, 0.009)  # by provider
    spam: tuple[float, ...] = (-3.2, -2.7, -3.4, -2.5, -2.8)  # logit, by provider
    spam_engagement: float = 0.4
    spam_open: float = 0.04  # factor
    open: float = -0.95
    open_engagement: float = 0.9
    open_quality: float = 0.25
    open_fit: float = 0.45
    open_hour: float = 0.30
    open_volume: float = -0.05  # per send in the last 7 days
    asleep_open: float = 3.2
    click: float = -2.65
    click_engagement: float = 0.5
    click_fit: float = 0.5
    click_quality: float = 0.25
    delete_opened: float = 0.45
    delete_unread: float = 0.55
    delete_asleep: float = 0.06
    leave: float = -6.25  # log hazard of an opened message at volume 3, no streak
    leave_volume: float = 0.42  # per send in the last 7 days
    leave_streak: float = 0.65  # per unit of log(1 + streak)
    leave_new: float = 2.2  # of a joiner's first message, falling by e every 3 messages
    leave_fit: float = 0.70
    leave_engagement: float = 0.55
    leave_patience: float = 0.80
    leave_quality: float = 0.20
    leave_unread: float = 0.45  # factor
    leave_asleep: float = 0.40  # factor
    complain: float = 0.11
    complain_patience: float = 0.3
    again: float = 0.22  # a second open; a second click of a message is as likely
    fall_asleep: float = 0.010  # per day, x exp(-0.4 e)
    wake_up: float = 0.014  # per day, x exp(0.3 e)
    fall_engagement: float = 0.4
    wake_engagement: float = 0.3
    open_delay: tuple[float, float, float] = (9_000.0, 1.0, 71.0 * 3600)  # median, shape, limit
    delete_delay: tuple[float, float, float] = (14_000.0, 1.0, 71.0 * 3600)
    leave_delay: tuple[float, float, float] = (14_000.0, 1.0, 6.9 * 86_400)  # of an unread message
    soon_delay: tuple[float, float, float] = (45.0, 1.2, 1800.0)  # from an open to a click, a delete or leaving
    again_delay: tuple[float, float, float] = (1_200.0, 0.9, 20.0 * 3600)  # from the first to the second open
    suppression_lag: float = 2.0 * 86_400  # an unsubscribe takes effect after U(0, this) seconds


@dataclass(frozen=True)
class ClientWorld:
    """What differs between clients. ``start`` counts days since 1970-01-01."""

    index: int
    name: str
    key: int
    start: int
    cadence: float  # share of a full-tier subscriber's days with a send, on an ordinary weekday
    growth: float  # joiners a day, as a share of the initial list
    utc_offset: int  # local hours = UTC hours + this
    open_client: float  # logit
    leave_client: float  # log hazard


@dataclass(frozen=True)
class Calendar:
    """One client's campaigns of one day: arrays [CAMPAIGNS_A_DAY]."""

    intensity: float  # a subscriber of tier 1 is sent to with this probability
    topic: NDArray[np.int64]
    quality: Floats
    hour: Floats  # local hour at which sending begins


@dataclass
class Traits:
    """Static traits of n subscribers, each [n]."""

    engagement: Floats
    patience: Floats
    interest: NDArray[np.int64]
    hour: Floats  # preferred, local
    provider: NDArray[np.uint8]  # index into PROVIDERS
    tier: Floats  # factor on the client's intensity, 0.3 to 1

    def __getitem__(self, rows: NDArray[np.int64]) -> Traits:
        return Traits(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


@dataclass
class Seen:
    """What the log shows about n sends, each [n], or scalars."""

    volume: NDArray[np.int64]  # sends to the subscriber in the 7 UTC days before the day of this one
    streak: NDArray[np.int64]  # sends since the last UTC day, before this one, with an open
    received: NDArray[np.int64]  # sends since joining; ESTABLISHED where that was before the log begins
    topic: NDArray[np.int64]
    quality: Floats
    hour: Floats  # local, of the send


@dataclass
class Probabilities:
    """The conditional probabilities of a send, each float64[n]; the properties combine them."""

    hard: Floats
    soft: Floats  # given no hard bounce
    spam: Floats  # given delivered
    open: Floats  # given inbox
    spam_open: float  # an open in the spam folder is this times as likely
    click: Floats  # given open
    delete_opened: float  # given inbox and open
    delete_unread: Floats  # given inbox and no open
    leave_opened: Floats  # unsubscribe or complain, given inbox and open
    leave_unread: Floats  # the same given inbox and no open
    complain: Floats  # given leaving

    @property
    def delivered(self) -> Floats:
        return (1.0 - self.hard) * (1.0 - self.soft)

    @property
    def p_open(self) -> Floats:
        """At least one open by a human, within 3 days."""
        return self.delivered * (1.0 - self.spam + self.spam * self.spam_open) * self.open

    @property
    def p_click(self) -> Floats:
        """At least one click by a human, within 3 days."""
        return self.p_open * self.click

    @property
    def p_leave(self) -> Floats:
        """An unsubscribe or a complaint that carries this send's campaign, within 7 days."""
        inbox = self.delivered * (1.0 - self.spam)
        return inbox * (self.open * self.leave_opened + (1.0 - self.open) * self.leave_unread)

    @property
    def p_complaint(self) -> Floats:
        return self.p_leave * self.complain

    @property
    def p_unsubscribe(self) -> Floats:
        return self.p_leave * (1.0 - self.complain)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), float64[n]."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def fit(interest: NDArray[np.int64], topic: NDArray[np.int64]) -> Floats:
    """How well topics suit interests: cos(2 pi (interest - topic) / 6), float64[n] in [-1, 1]."""
    by_distance = np.cos(np.arange(len(TOPICS)) * (2 * np.pi / len(TOPICS)))
    return np.asarray(by_distance[(interest - topic) % len(TOPICS)])


def send_probabilities(
    parameters: Parameters, client: ClientWorld, traits: Traits, awake: NDArray[np.bool_], seen: Seen
) -> Probabilities:
    """The model above for n sends of one client: traits and state of their subscribers, and what the log shows."""
    p, e, f = parameters, traits.engagement, fit(traits.interest, seen.topic)
    volume = seen.volume - 3.0
    gap = np.cos((seen.hour - traits.hour) * (2 * np.pi / 24))
    opening = (p.open + client.open_client + p.open_volume * volume) + p.open_engagement * e + p.open_fit * f
    opening += p.open_quality * seen.quality + p.open_hour * gap
    opening -= p.asleep_open * ~awake
    clicking = p.click + p.click_engagement * e + p.click_fit * f + p.click_quality * seen.quality
    leaving = (p.leave + client.leave_client) + p.leave_volume * volume + p.leave_streak * np.log1p(seen.streak)
    leaving += p.leave_new * np.exp(seen.received * (-1.0 / 3.0))
    leaving -= p.leave_fit * f + p.leave_engagement * e + p.leave_patience * traits.patience
    leaving -= p.leave_quality * seen.quality
    hazard = np.minimum(np.exp(leaving), 0.5)
    return Probabilities(
        hard=np.where(seen.received == 0, p.hard_first, p.hard),
        soft=np.asarray(p.soft)[traits.provider],
        spam=sigmoid(np.asarray(p.spam)[traits.provider] - p.spam_engagement * e),
        open=sigmoid(opening),
        spam_open=p.spam_open,
        click=sigmoid(clicking),
        delete_opened=p.delete_opened,
        delete_unread=np.where(awake, p.delete_unread, p.delete_asleep),
        leave_opened=hazard,
        leave_unread=hazard * np.where(awake, p.leave_unread, p.leave_unread * p.leave_asleep),
        complain=np.minimum(p.complain * np.exp(-p.complain_patience * traits.patience), 0.5),
    )


def stay_or_change(parameters: Parameters, traits: Traits) -> tuple[Floats, Floats]:
    """The hidden chain: (probability a day of falling asleep when awake, of waking up when asleep), float64[n] each."""
    p, e = parameters, traits.engagement
    return (
        np.minimum(p.fall_asleep * np.exp(-p.fall_engagement * e), 1.0),
        np.minimum(p.wake_up * np.exp(p.wake_engagement * e), 1.0),
    )


def draw_traits(subscribers: Keys) -> Traits:
    """The traits of the subscribers with these keys, uint64[n]."""
    bounds = np.cumsum(PROVIDER_SHARES)[:-1]
    return Traits(
        engagement=draws.normal(subscribers, 100),
        patience=draws.normal(subscribers, 102),
        interest=(draws.uniform(subscribers, 104) * len(TOPICS)).astype(np.int64),
        hour=7.0 + 15.0 * draws.uniform(subscribers, 105),
        provider=np.searchsorted(bounds, draws.uniform(subscribers, 106), side="right").astype(np.uint8),
        tier=0.3 + 0.7 * draws.uniform(subscribers, 107),
    )


def make_client(seed: int, index: int, start: dt.date) -> ClientWorld:
    """Client ``index`` of the world with this seed: the first two are fixed, further ones vary around them."""
    key = draws.scalar_key(seed, index)
    u = draws.uniform(np.array([key], dtype=np.uint64), 0)[0]
    cadence, growth, offset, opening, leaving = (
        ((0.62, 0.0012, 1, 0.0, 0.0), (0.36, 0.0030, -5, 0.15, 0.3))[index]
        if index < 2
        else (0.3 + 0.4 * u, 0.001 + 0.002 * u, int(u * 10) - 4, 0.4 * u - 0.2, 0.3 - 0.3 * u)
    )
    name = NAMES[index] if index < len(NAMES) else f"client-{index + 1}"
    return ClientWorld(index, name, key, (start - dt.date(1970, 1, 1)).days, cadence, growth, offset, opening, leaving)


@functools.lru_cache(maxsize=4096)
def calendar(client: ClientWorld, day: int) -> Calendar:
    """The client's campaigns on day ``day`` of the history.

    Weekends carry 0.45 of a weekday's sends; every third fortnight is a season with 1.5 times as many.
    Sending begins at a local hour from 7 to 18, so that it ends within the same UTC day for offsets of -5 to +6 hours.
    """
    u = draws.uniform(draws.at(np.array([client.key], dtype=np.uint64), day), 1)[0]
    keys = draws.subkeys(draws.scalar_key(client.key, day), np.arange(CAMPAIGNS_A_DAY))
    weekend = (client.start + day + 3) % 7 >= 5  # 1970-01-01 was a Thursday, day 3 of a week from Monday
    season = (day // 14 + client.index) % 3 == 2
    first = int(draws.uniform(keys, 3)[0] * len(TOPICS))
    step = 1 + (draws.uniform(keys, 4)[0] * (len(TOPICS) - 1)).astype(int)
    return Calendar(
        intensity=min(0.97, client.cadence * (0.45 if weekend else 1.0) * (1.5 if season else 1.0) * (0.85 + 0.3 * u)),
        topic=np.array([(first + i * step) % len(TOPICS) for i in range(CAMPAIGNS_A_DAY)]),
        quality=draws.normal(keys, 5),
        hour=np.floor(7.0 + 11.0 * draws.uniform(keys, 7)),
    )


def campaign_name(client: ClientWorld, number: int) -> str:
    """The id of campaign ``number`` = day x CAMPAIGNS_A_DAY + position, such as "spring-sale-260412"."""
    day, position = divmod(number, CAMPAIGNS_A_DAY)
    date = dt.date(1970, 1, 1) + dt.timedelta(days=client.start + day)
    return f"{TOPICS[calendar(client, day).topic[position]]}-{date:%y%m%d}"
