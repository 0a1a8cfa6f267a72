"""The sections of the configuration: every option, its type and its default, which is what the demo uses.

Durations are written ``90d``, ``12h``, ``30m`` or ``45s`` and held as integers of microseconds.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import zoneinfo
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from pipeline.errors import did_you_mean

SECOND = 1_000_000
UNITS = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND, "w": 7 * 86_400 * SECOND}

# Event kinds with a meaning of their own; any other kind is counted and windowed under its own name.
KINDS = (
    "send",
    "open",
    "click",
    "delete",
    "complaint",
    "unsubscribe",
    "subscribe",
    "soft_bounce",
    "hard_bounce",
)


# Parts of the agents that programs, and the gateways that check links, give as their own.
MACHINE_AGENTS = (
    "bot", "crawl", "spider", "scan", "barracuda", "mimecast", "proofpoint", "headless", "curl/", "python", "go-http",
)  # fmt: skip
MACHINE_RULES = ("scanner_click", "scanner_unsubscribe", "machine_open", "privacy_open", "repeated_response")


def parse_duration(text: object) -> int:
    """``"7d"`` -> microseconds, int. Raises ValueError for anything that is not a positive number and a unit.

    Integers are microseconds already, as code writes them; below a second they are a unit forgotten (``lateness: 7``).
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= SECOND:
        return text
    match = re.fullmatch(r"\s*(\d+)\s*([smhdw])\s*", str(text))
    if not match or int(match[1]) == 0:
        raise ValueError(f"{text!r} is not a duration: write a positive number and s, m, h, d or w, as in '7d'")
    return int(match[1]) * UNITS[match[2]]


def format_duration(us: int) -> str:
    """Microseconds -> the shortest exact ``"7d"``-like text."""
    for unit in ("d", "h", "m", "s"):
        if us % UNITS[unit] == 0:
            return f"{us // UNITS[unit]}{unit}"
    return f"{us}us"


def _timezone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = did_you_mean(name, zoneinfo.available_timezones())
        raise ValueError(f"{name!r} is not a time zone of the IANA database; {near}") from None
    return name


def _number_or_auto(value: object) -> object:
    """One complaint instead of one for each thing that it could have been."""
    if value == "auto" or (str(value).isdecimal() and int(str(value)) > 0):
        return value if value == "auto" else int(str(value))
    raise ValueError("write a number from 1 on, or auto")


def _off(value: object) -> object:
    return "off" if value is False else value  # YAML reads a bare off as false


def as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Duration = Annotated[int, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
Names = Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)]
NumberOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
RuleAction = Annotated[Literal["reject", "flag", "warn", "fail", "off"], BeforeValidator(_off)]


class Section(BaseModel):
    """A part of the configuration: frozen, and refusing options it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Columns(Section):
    """The source's own name of each canonical column. Only subscriber, ts and event are required."""

    subscriber: str
    ts: str
    event: str
    client: str | None = None
    event_id: str | None = None
    campaign: str | None = None
    provider: str | None = None
    value: str | None = None
    ingested_at: str | None = None  # when the collector received the row; the time of ingest where absent
    address: str | None = None  # of the device that opened or clicked; looked at for machines and not kept
    agent: str | None = None  # its user agent; the same


class Source(Section):
    """Where the raw event files are, and what their columns and kinds are called."""

    path: str
    columns: Columns
    client: str = "default"  # the tenant, where no column names it
    time_unit: Literal["s", "ms", "us", "ns"] | None = None  # of numeric times
    value_unit: Literal["micro", "unit"] = "unit"  # `value` 1.25 means 1,250,000 micro-units, or is already in them
    kinds: dict[str, Names] = {}  # canonical kind -> the source's names of it, e.g. {unsubscribe: [unsub, opt_out]}
    known: list[str] | None = None  # kinds to accept, after mapping; None accepts every kind
    carry: list[str] = []  # further source columns to keep
    on_error: Literal["quarantine", "fail"] = "quarantine"  # a file that cannot be taken is set aside, or an error
    truth: str | None = None  # a simulated log's true probabilities; read when a model is evaluated, never to learn

    @field_validator("kinds")
    @classmethod
    def _one_kind(cls, kinds: dict[str, list[str]]) -> dict[str, list[str]]:
        of: dict[str, str] = {}
        for kind, names in kinds.items():
            for name in names:
                if of.setdefault(name, kind) != kind:
                    raise ValueError(f"{name!r} is listed for two kinds, {of[name]!r} and {kind!r}: leave it in one")
        return kinds


class Simulate(Section):
    """The demo log, simulated when no source is configured (see pipeline/events/simulate.py for the model)."""

    events: Annotated[int, Field(ge=1000)] = 2_000_000
    clients: Annotated[int, Field(ge=1)] = 2
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None  # of a client's events to those of the one before; 0.43
    variety: Annotated[float, Field(ge=0)] | None = None  # deviation of clients' levels of opening and leaving; small
    days: Annotated[int, Field(ge=1)] = 180
    start: dt.date = dt.date(2026, 5, 1)
    seed: Seed = 1
    ids: Literal["string", "integer"] = "string"
    dirt: dict[str, float] = {}  # kind of dirt -> rate, over the module's defaults; 0 switches one off


class At(Section):
    """The decision points: at every event of a kind, or a regular snapshot of each active subscriber."""

    event: str | None = None
    every: Duration | None = None

    @model_validator(mode="after")
    def _one(self) -> At:
        if (self.event is None) == (self.every is None):
            raise ValueError("give exactly one of 'event' (decide at each event of that kind) and 'every' (e.g. 7d)")
        return self


GROUPS = (
    *("counts", "recency", "rates", "streak", "volume", "tenure", "calendar", "gaps", "runs", "affinity", "match"),
    *("reactions", "presence", "distinct", "value", "lifetime", "tiles"),
)


class Features(Section):
    """Which groups of built-in features are computed (see pipeline/features/catalogue.py for what is in each)."""

    groups: Annotated[list[str], BeforeValidator(as_list)] = [group for group in GROUPS if group != "tiles"]

    @field_validator("groups")
    @classmethod
    def _known(cls, groups: list[str]) -> list[str]:
        for group in groups:
            if group not in GROUPS:
                raise ValueError(f"there is no group of features {group!r}; {did_you_mean(group, GROUPS)}")
        if len(set(groups)) < len(groups):
            raise ValueError("a group is named twice")
        return groups


class Outcome(Section):
    """What happens within a horizon after a decision point: an event (0/1), or a sum of an integer column."""

    events: Annotated[list[str], BeforeValidator(as_list)] = []
    sum: Literal["value"] | None = None
    of: Annotated[list[str], BeforeValidator(as_list)] = []
    within: Duration
    match: Literal["campaign"] | None = None

    @model_validator(mode="after")
    def _kinds(self) -> Outcome:
        if bool(self.events) == bool(self.sum and self.of):
            raise ValueError("give either 'events: [kind, ...]', or 'sum: value' with 'of: [kind, ...]'")
        return self

    @property
    def kinds(self) -> list[str]:
        return self.events or self.of


class Split(Section):
    """Train, validation and hold-out by time, with a gap of the longest horizon between them."""

    validation: Duration = 14 * UNITS["d"]
    holdout: Duration = 21 * UNITS["d"]
    subscribers: Annotated[float, Field(ge=0, lt=1)] = 0.0  # this hashed share of them is in the hold-out alone


class Quality(Section):
    """What the validation rules tolerate. A rule's action: reject, flag, warn, fail or off."""

    actions: dict[str, RuleAction] = {}  # rule -> action, over the defaults
    fail_above: Share = 0.2  # fail the run when more than this share of a batch's rows is rejected
    earliest: dt.date = dt.date(2000, 1, 1)
    future: Duration = 1 * UNITS["d"]  # a time further ahead of its arrival than this is impossible
    late: Duration = 2 * UNITS["d"]
    disorder: Duration = 60 * SECOND  # a row that arrives so much after the subscriber's next is out of order
    value_range: tuple[float, float] | None = None  # least and greatest value, in units
    scanner_within: Duration = 2 * SECOND
    scanner_links: Annotated[int, Field(ge=2)] = 3  # so many clicks of one message within scanner_within
    most_per_hour: Annotated[int, Field(ge=1)] = 30  # more responses of one subscriber than a human makes
    most_per_day: Annotated[int, Field(ge=1)] = 200
    most_per_message: Annotated[int, Field(ge=1)] = 5  # more opens, or clicks, of one message within an hour
    machine_addresses: list[str] = []  # networks of scanners, as in 192.0.2.0/24
    machine_agents: list[str] = list(MACHINE_AGENTS)  # any of these in the agent's name, in either case
    privacy_agents: list[str] = ["Mozilla/5.0"]  # the whole agent of mail programs that open all mail themselves
    machine: list[str] = list(MACHINE_RULES)  # the rules whose flag makes an event a machine's
    count_machines: bool = False  # let machine events count in features and outcomes
    mail_programs: Share = 0.4  # of somebody's last messages opened by a machine: a program opens them all; 0: off
    volume_ratio: Annotated[float, Field(gt=1)] = 2.0  # a day's rows over (or under) the usual, and
    volume_score: Annotated[float, Field(gt=0)] = 6.0  # so many robust standard deviations from it
    share_shift: Annotated[float, Field(gt=0)] = 0.1  # so much more or less of a day's rows of one kind than usual
    new_share: Share = 0.01  # of a batch's rows, for a value never seen before to be news
    new_campaign_share: Share = 0.5  # the same of a campaign, which is new once anyway
    keep_examples: int = 5

    @field_validator("value_range")
    @classmethod
    def _ascending(cls, found: tuple[float, float] | None) -> tuple[float, float] | None:
        if found is not None and not found[0] <= found[1]:
            raise ValueError(f"the least value comes first: {found[0]:g} is not at most {found[1]:g}")
        return found

    @field_validator("machine_addresses")
    @classmethod
    def _networks(cls, names: list[str]) -> list[str]:
        for name in names:
            try:
                ipaddress.ip_network(name)
            except ValueError as error:
                raise ValueError(f"{error}; write a network as in 192.0.2.0/24 or 2001:db8::/32") from None
        return names


NETWORKS = ("logistic", "dense", "recurrent", "attention", "combined")  # see pipeline/learning/networks
SEQUENTIAL = ("recurrent", "attention", "combined")  # those that read sequences
SEQUENCE_LENGTH = 64  # where a network reads sequences and no length is given


class Model(Section):
    """The network and how it is trained."""

    kind: Literal["logistic", "dense", "recurrent", "attention", "combined", "auto"] = "dense"
    budget: Annotated[int, Field(ge=1)] = 1_000_000  # auto: rows x epochs that each kind is tried with
    hidden: list[Annotated[int, Field(ge=1, le=16_384)]] = [64, 32]
    units: Annotated[int, Field(ge=4, multiple_of=4)] = 32  # width of what reads a sequence
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    members: Annotated[int, Field(ge=1, le=64)] = 1  # networks trained side by side, whose mean predicts
    batch_size: Annotated[int, Field(ge=1)] = 4096
    epochs: Annotated[int, Field(ge=1)] = 20
    chunk: Annotated[int, Field(ge=1000)] | None = None  # training rows at once; as many as the memory holds
    passes: Annotated[int, Field(ge=1)] = 1  # through a chunk before the next one comes, where there are several
    checkpoint: Duration = 60 * SECOND  # how often the state of a long training is kept
    devices: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = (
        1  # processes that train a client's model together
    )
    patience: Annotated[int, Field(ge=0)] = 3
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4  # of AdamW, times learning_rate a step
    campaign_levels: bool = True  # let no network learn the luck of single campaigns, see pipeline/learning/luck.py
    seed: Seed = 1
    imbalance: Literal["none", "downsample", "recalibrated", "class_weights", "focal"] = "none"
    downsample: Annotated[float, Field(gt=0, le=1)] = 1.0  # share kept of train rows that are negative on every head
    focal_gamma: Annotated[float, Field(gt=0, le=5)] = 2.0
    calibration: Literal["auto", "none", "temperature", "isotonic"] = "auto"
    boosting: Annotated[int, Field(ge=0)] = 0  # settings of gradient boosting tried, to stand beside the model
    pretrain: bool = True  # let every client's training begin from one network that has learned from all clients' rows
    pretrain_rows: Annotated[int, Field(ge=1000)] = 4_000_000  # decision points, of all clients together, that it reads
    minimum_positives: Annotated[int, Field(ge=0)] = 50  # fewer than this in train: no model for that head
    minimum_positives_own: Annotated[int, Field(ge=0)] = 200  # fewer: the model pooled over all clients; 0: never
    pooled_rows: Annotated[int, Field(ge=1000)] = 500_000  # that the pooled model learns from and is measured on

    @model_validator(mode="before")
    @classmethod
    def _downsampling_by_its_share(cls, values: Any) -> Any:
        """A share alone is enough to ask for downsampling."""
        if (
            isinstance(values, dict)
            and "imbalance" not in values
            and values.get("downsample", 1) not in (1, "1", "1.0")
        ):
            return {**values, "imbalance": "downsample"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Model:
        if self.imbalance in ("downsample", "recalibrated") and self.downsample == 1:
            raise ValueError(f"imbalance is {self.imbalance}: give downsample the share of negatives to keep, below 1")
        if self.imbalance == "none" and self.downsample < 1:
            raise ValueError("downsample is below 1 and imbalance is none: leave imbalance out, or make it downsample")
        return self

    def having(self, settings: Mapping[str, Any]) -> Model:
        """The same with other settings. Raises ValidationError."""
        return Model.model_validate({**self.model_dump(), **settings})


class Gate(Section):
    """When a newly trained model is kept from going live; see pipeline/learning/gate.py."""

    strict: bool = False  # a refusal ends the run with exit status 3, after all stages
    minimum_positives: Annotated[int, Field(ge=1)] = 50  # fewer in the hold-out cannot tell good from bad
    entropy: Annotated[float, Field(gt=0)] = 1.0  # normalised entropy from here on is refused
    calibration: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.8, 1.25)  # expected/observed
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95  # of being worse than the model in use
    tolerance: Share = 0.1  # share of what that one gains over the base rate that may be lost
    drift: Annotated[float, Field(gt=0)] = 0.25  # a feature of this population stability index has drifted
    drifted: Share = 0.1  # share of the features that may have

    @field_validator("calibration")
    @classmethod
    def _around_one(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not ends[0] <= 1 <= ends[1]:
            raise ValueError("write the least and the greatest expected/observed to accept, with 1 between them")
        return ends


class Decide(Section):
    """The rule from probabilities to a list. A held send costs its expected reward and saves its expected cost."""

    hold_when: str | None = "unsubscribe"
    cost: Annotated[float, Field(ge=0)] = 5.0  # of one hold_when outcome, in units of reward
    reward: dict[str, float] = {"click": 1.0, "open": 0.2}
    explore: Share = 0.02  # this share of held subscribers is sent to all the same, so that the model keeps learning
    minimum_events: Annotated[int, Field(ge=0)] = 3  # fewer events of history than this: unscored
    waves: Annotated[int, Field(ge=1)] = 4
    plan: str | None = None  # Parquet or CSV of planned sends (client, subscriber, campaign, at)
    suppressed: str | None = None  # Parquet or CSV of subscribers (client, subscriber) never to send to
    budgets: list[Share] = [0.005, 0.01, 0.02, 0.05]  # shares held back at which TPR and FNR are reported


class Context(Section):
    """Trailing rates of the campaign, provider, hour and client before the midnight before a decision."""

    windows: list[Duration] = [28 * UNITS["d"]]  # whole days; none: no such features

    @field_validator("windows")
    @classmethod
    def _days(cls, windows: list[int]) -> list[int]:
        if sorted(set(windows)) != windows or any(w % UNITS["d"] for w in windows):
            raise ValueError("context windows must be whole days, ascending, without repeats")
        return windows


class Sequences(Section):
    """The last events before each decision, beside the features."""

    length: Annotated[int, Field(ge=0, le=4096)] = 0  # how many; 0: none
    of: Literal["auto", "events", "exposures"] = "auto"  # auto: exposures and their answers, where a log has them
    campaigns: Annotated[int, Field(ge=0)] = 10_000  # the most frequent ones have a number of their own
    families: Annotated[int, Field(ge=0, le=250)] = 250  # the same of their names without numbers


class Rollup(Section):
    """The spans of time that the table of roll-ups has rows of; see pipeline/features/rollup.py."""

    levels: Annotated[list[Literal["hour", "day", "month"]], BeforeValidator(as_list), Field(min_length=1)] = [
        "hour",
        "day",
        "month",
    ]


def _on_or_off(value: object) -> object:
    """YAML reads a bare ``off`` as false."""
    return {False: "off", True: "auto", None: "off"}.get(value, value) if isinstance(value, bool | None) else value


class Tracking(Section):
    """Whether other tools are told of new models."""

    mlflow: Annotated[str, BeforeValidator(_on_or_off), Field(min_length=1)] = "auto"  # auto | off | a tracking URI


class Client(Section):
    """What differs for one client."""

    timezone: TimeZone | None = None
