"""Decision points, their labels, and which of them a model may learn from.

A decision point sees features before ``at`` and outcomes in ``[at, at + within)``, the exposure itself left out.
Everything here is a function of one partition (whole subscribers) and of the request, so it is the same whatever the
number of partitions. Times are int64 microseconds UTC.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.backend import Array
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.features.kernels import attribute, hashed_share, last_before, sum_at
from pipeline.features.knowledge import corrections
from pipeline.features.partition import Partition
from pipeline.features.programs import MailPrograms
from pipeline.features.spec import ENDINGS, SEND
from pipeline.options import format_duration

TRAIN, VALIDATION, HOLDOUT, NONE = 0, 1, 2, -1
MICRO = 1_000_000
_SUM_LIMIT = 1 << 62
_DOWNSAMPLE, _HOLDOUT = 0x5EED_D0, 0x5EED_41  # salts, so that the two choices are independent


@dataclass(frozen=True)
class Head:
    """One outcome: whether any event of ``kinds`` happens within the horizon, or (``sum``) their value's sum."""

    name: str
    kinds: tuple[str, ...]
    within: int
    match: bool = False
    sum: bool = False


@dataclass(frozen=True)
class SampleRequest:
    """Which rows to make. Times in microseconds UTC; build it with :meth:`from_config`.

    ``purpose``: "train" makes labelled decision points, "score" one unlabelled row per active subscriber at ``at``.
    ``as_of``: nothing at or after it is seen. ``since``: no decision point before it.
    ``exposure``/``every``: decisions at each event of a kind, or every so often, counted back from as_of.
    ``active_within``: a subscriber without an event in this span before ``at`` gets no snapshot.
    ``keys``: columns of the log to keep beside the key and the time, where the log has them.
    ``as_known_at``: use only rows that had arrived by then; "decision": see ``knowledge.py``, and for labels as_of.
    ``campaign``: that the scored rows are sends of, None where it is not known.
    ``keep_suppressed``: score also who has unsubscribed; the keys say who, in a column ``suppressed``.
    ``machines``: machine events count like a human's, in features and labels. ``programs``: the share of exposures
    opened by a machine that makes a mail program, see ``programs.py``; 0: none is told.
    """

    purpose: Literal["train", "score"]
    as_of: int
    heads: tuple[Head, ...]
    exposure: str | None
    every: int | None = None
    active_within: int = 90 * 86_400 * MICRO
    timezone: str = "UTC"
    lateness: int = 0
    validation: int = 0
    holdout: int = 0
    holdout_share: float = 0.0
    downsample: float = 1.0
    as_known_at: int | Literal["decision"] | None = None
    since: int | None = None
    at: int | None = None
    keys: tuple[str, ...] = ("campaign", "event_id")
    keep_suppressed: bool = False
    machines: bool = False
    programs: float = 0.4
    campaign: str | None = None

    @classmethod
    def from_config(
        cls,
        config: Config,
        client: str,
        as_of: int | dt.datetime,
        purpose: Literal["train", "score"] = "train",
        at: int | None = None,
    ) -> SampleRequest:
        """The request that a configuration describes for one client.

        Args:
            as_of: the end of the data, microseconds UTC or a datetime (UTC where naive).
            at: the instant to score at, by default as_of.
        Raises:
            ConfigError: an outcome matches by campaign, but decisions are not made at events, which carry one.
        """
        heads = tuple(
            Head(name, tuple(o.kinds), o.within, o.match == "campaign", o.sum is not None)
            for name, o in config.outcomes.items()
        )
        known = config.as_known_at
        if config.at.event is None and any(h.match for h in heads):
            names = ", ".join(h.name for h in heads if h.match)
            raise ConfigError(
                f"{names}: 'match: campaign' needs decisions at events, which carry a campaign; "
                "with 'at: {every: ...}' leave the match out"
            )
        return cls(
            purpose=purpose,
            as_of=_microseconds(as_of),
            heads=heads,
            exposure=config.at.event,
            every=config.at.every,
            active_within=max(config.windows),
            timezone=config.client_timezone(client),
            lateness=config.lateness,
            validation=config.split.validation,
            holdout=config.split.holdout,
            holdout_share=config.split.subscribers,
            downsample=config.model.downsample,
            as_known_at=_microseconds(known) if isinstance(known, dt.datetime) else known,
            at=at,
            keys=("subscriber",) if purpose == "score" else ("campaign", "event_id"),
            machines=config.quality.count_machines,
            programs=config.quality.mail_programs,
        )

    @property
    def horizon(self) -> int:
        return max((h.within for h in self.heads), default=0)

    @property
    def per_decision(self) -> bool:
        """Whether each decision point has a knowledge of its own."""
        return self.as_known_at == "decision"

    @property
    def known_by(self) -> int | None:
        """No row that arrived later is used at all, microseconds UTC; None where it does not matter."""
        return self.as_of if self.as_known_at == "decision" else self.as_known_at

    @property
    def mail_programs(self) -> MailPrograms | None:
        """By what their opens are told among a subscriber's events, whatever the specification; None: they are not."""
        return None if self.machines or not self.programs else MailPrograms(self.exposure or SEND, self.programs)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind that decision points and labels refer to."""
        named = [self.exposure] if self.exposure else []
        return tuple(dict.fromkeys([*named, *ENDINGS, "subscribe", *(k for h in self.heads for k in h.kinds)]))

    def columns(self) -> list[str]:
        """The columns of the log that this request reads, beside the key."""
        wanted = ["ts", "event", *([] if self.machines else ["machine"]), *self.keys]
        if any(h.match for h in self.heads):
            wanted.append("campaign")
        if any(h.sum for h in self.heads):
            wanted.append("value")
        if self.as_known_at is not None:
            wanted.append("ingested_at")
        return list(dict.fromkeys(wanted))

    def bounds(self) -> dict[str, int]:
        """Where the splits begin: train before ``train_end``, then gap, validation, gap, and ``holdout`` onwards."""
        end = self.as_of - self.lateness - self.horizon  # the last decision whose every outcome is known
        holdout = end - self.holdout
        validation_end = holdout - self.horizon
        validation = validation_end - self.validation
        return {
            "train_end": validation - self.horizon,
            "validation": validation,
            "validation_end": validation_end,
            "holdout": holdout,
        }


def _microseconds(time: int | dt.datetime) -> int:
    if isinstance(time, dt.datetime):
        time = time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time
        return (time - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    return int(time)


@dataclass
class Points:
    """Decision points, ascending by (seg, at).

    ``row``: int64[q], the exposure's row in the partition, None where the points are not events.
    ``suppressed``: bool[q], whether the subscriber had left by then; None where it does not matter.
    """

    seg: Array
    at: Array
    row: Array | None = None
    suppressed: Array | None = None

    def __len__(self) -> int:
        return len(self.seg)

    def take(self, keep: Array) -> Points:
        """The points at these positions, ascending."""
        row = None if self.row is None else self.row[keep]
        suppressed = None if self.suppressed is None else self.suppressed[keep]
        return Points(self.seg[keep], self.at[keep], row, suppressed)


def decision_points(part: Partition, request: SampleRequest) -> Points:
    """Every decision point of the partition before censoring.

    Snapshots count back from ``as_of``, so the latest training ones look like the scoring that follows them. A
    subscriber is active at an instant who had an event within ``active_within`` before it, and no unsubscribe,
    complaint or hard bounce since the last subscribe (at the same instant, the ending wins).
    """
    xp = part.xp
    if request.purpose == "score":
        seg = xp.arange(part.segments, dtype=xp.int64)
        at = xp.full(len(seg), request.as_of if request.at is None else request.at, dtype=xp.int64)
        return _active(part, request, Points(seg, at))
    if request.exposure is not None:
        row = xp.flatnonzero(part.kind == part.code(request.exposure))
        points = Points(part.seg[row], part.ts[row], row)
        if request.since is not None:
            points = points.take(xp.flatnonzero(points.at >= request.since))
        return points
    if request.every is None:
        raise ConfigError("a request needs an exposure kind or an interval between snapshots")
    return _active(part, request, _snapshots(part, request, request.every))


def _snapshots(part: Partition, request: SampleRequest, every: int) -> Points:
    """``as_of - i * every`` for i = 1, 2, ..., from each subscriber's first event until it is surely inactive."""
    xp = part.xp
    if part.segments == 0:
        return Points(xp.zeros(0, dtype=xp.int64), xp.zeros(0, dtype=xp.int64))
    first, last = part.ts[part.starts[:-1]], part.ts[part.starts[1:] - 1]
    if request.since is not None:
        first = xp.maximum(first, request.since - 1)
    most = (request.as_of - 1 - first) // every  # the earliest snapshot after the first event
    least = xp.maximum(-((last + request.active_within - request.as_of) // every), 1)
    count = xp.maximum(most - least + 1, 0)
    stop = xp.cumsum(count)
    seg = xp.repeat(xp.arange(part.segments, dtype=xp.int64), count)
    step = xp.arange(len(seg), dtype=xp.int64) - (stop - count)[seg]
    return Points(seg, request.as_of - (most[seg] - step) * every)


def _active(part: Partition, request: SampleRequest, points: Points) -> Points:
    active, suppressed = _state(part, request, points.seg, points.at)
    if request.per_decision:
        for late, past, seg in corrections(part, points.seg, points.at):
            active[late], suppressed[late] = _state(past, request, seg, points.at[late])
    points.suppressed = suppressed
    if request.purpose == "score" and request.keep_suppressed:
        return points.take(part.xp.flatnonzero(active))
    return points.take(part.xp.flatnonzero(active & ~suppressed))


def _state(part: Partition, request: SampleRequest, seg: Array, at: Array) -> tuple[Array, Array]:
    """Whether each point's subscriber is recent enough, and whether they had left: bool[q] each."""
    xp = part.xp
    if len(seg) == 0:
        return xp.zeros(0, dtype=bool), xp.zeros(0, dtype=bool)
    end = part.positions(seg, at)
    latest = part.ts[xp.maximum(end - 1, 0)]
    active = (end > part.starts[seg]) & (latest >= at - request.active_within)
    left = last_before(xp, part.starts, part.is_any(part.kind, ENDINGS), seg, end)
    back = last_before(xp, part.starts, part.is_any(part.kind, ("subscribe",)), seg, end)
    returned = (back >= 0) & (part.ts[xp.maximum(back, 0)] > part.ts[xp.maximum(left, 0)])
    return active, (left >= 0) & ~returned


def labels(part: Partition, request: SampleRequest, points: Points) -> tuple[Array, Array]:
    """Outcomes and whether they are known: float32[q, H] each.

    A sum is in units (the log's micro-units over a million). An outcome is known when its horizon plus the allowed
    lateness ends by as_of; where it is not, y is 0 and the mask 0.
    Raises:
        DataError: a sum needs a ``value`` column that the log lacks, or could exceed 62 bits.
    """
    xp = part.xp
    y = xp.zeros((len(points), len(request.heads)), dtype=xp.float32)
    mask = xp.zeros((len(points), len(request.heads)), dtype=xp.float32)
    if len(points) == 0:
        return y, mask
    begin = part.positions(points.seg, points.at)
    ends: dict[int, Array] = {}
    exposures = _Exposures(part, request) if any(h.match for h in request.heads) else None
    for h, head in enumerate(request.heads):
        wanted = part.is_any(part.human, head.kinds)
        values = xp.where(wanted, _values(part), 0) if head.sum else wanted.astype(xp.int64)
        if head.match:
            assert exposures is not None
            total = exposures.totals(wanted, values, head.within)[exposures.index_of(points)]
        else:
            if head.within not in ends:
                ends[head.within] = part.positions(points.seg, points.at + head.within)
            before = xp.zeros(part.rows + 1, dtype=xp.int64)
            before[1:] = xp.cumsum(values)
            total = before[ends[head.within]] - before[begin]
            if points.row is not None:
                total = total - values[points.row]
        known = points.at + (head.within + request.lateness) <= request.as_of
        value = (total / MICRO) if head.sum else (total > 0)
        y[:, h] = xp.where(known, value, 0).astype(xp.float32)
        mask[:, h] = known.astype(xp.float32)
    return y, mask


def _values(part: Partition) -> Array:
    if part.value is None:
        raise DataError("an outcome sums 'value', but the log has no such column; map source.columns.value")
    xp = part.xp
    if part.rows:
        largest = max(abs(int(part.value.max())), abs(int(part.value.min())))
        longest = int((part.starts[1:] - part.starts[:-1]).max())
        # Two bounds of what one subscriber's values can add up to; the second is for a long history of small values.
        if largest * longest >= _SUM_LIMIT and float(xp.abs(part.value.astype(xp.float64)).sum()) >= _SUM_LIMIT:
            raise DataError(
                f"a sum of values could exceed 62 bits: the largest is {largest} micro-units and a subscriber has "
                f"{longest} events; check source.value_unit"
            )
    return part.value.astype(xp.int64)


class _Exposures:
    """The partition's exposures and which of them each outcome belongs to."""

    def __init__(self, part: Partition, request: SampleRequest) -> None:
        if request.exposure is None:
            raise ConfigError("'match: campaign' needs decisions at events")
        if part.campaign is None:
            raise DataError("an outcome matches by campaign, but the log has no campaigns; map source.columns.campaign")
        xp = part.xp
        self.xp = xp
        self.rows = xp.flatnonzero(part.kind == part.code(request.exposure))
        campaigns = int(part.campaign.max()) + 1 if part.rows else 0
        if part.segments * max(campaigns, 1) >= _SUM_LIMIT:
            raise DataError(f"{part.segments} subscribers x {campaigns} campaigns exceed 62 bits; use more partitions")
        named = part.campaign >= 0  # a null campaign matches nothing
        group = part.seg * max(campaigns, 1) + part.campaign
        kinds = tuple(k for h in request.heads if h.match for k in h.kinds)
        self.index = xp.full(part.rows, -1, dtype=xp.int64)  # row -> index into rows
        self.index[self.rows] = xp.arange(len(self.rows), dtype=xp.int64)
        matching = xp.flatnonzero(named[self.rows])  # indices into rows
        rows = self.rows[matching]
        own = xp.full(part.rows, -1, dtype=xp.int64)
        own[rows] = xp.arange(len(rows), dtype=xp.int64)
        events = xp.flatnonzero(part.is_any(part.human, kinds) & named)
        found = attribute(xp, group[rows], part.ts[rows], group[events], part.ts[events], own[events])
        kept = xp.flatnonzero(found >= 0)
        self.events, found = events[kept], found[kept]
        self.target = matching[found]
        self.delay = part.ts[self.events] - part.ts[rows[found]]

    def index_of(self, points: Points) -> Array:
        assert points.row is not None
        return self.index[points.row]

    def totals(self, wanted: Array, values: Array, within: int) -> Array:
        """The sum of values of the wanted events attributed to each exposure within its horizon: int64[m]."""
        inside = self.xp.flatnonzero(wanted[self.events] & (self.delay < within))
        return sum_at(self.xp, self.target[inside], values[self.events[inside]], len(self.rows))


def splits(xp: Any, key: Array, at: Array, request: SampleRequest) -> Array:
    """0 train, 1 validation, 2 hold-out, -1 in a gap between them: int8[q].

    The hold-out is the last ``holdout`` of decisions whose outcomes are all known, and whatever comes after it; before
    each later part lies a gap of the longest horizon, so no training label looks into it. A hashed share of subscribers
    is in the hold-out alone, at any time.
    """
    if request.purpose == "score":
        return xp.full(len(at), NONE, dtype=xp.int8)
    bounds = request.bounds()
    # Each bound passed moves on to the next of: train, gap, validation, gap, hold-out.
    passed = xp.zeros(len(at), dtype=xp.int8)
    for bound in (bounds["train_end"], bounds["validation"], bounds["validation_end"], bounds["holdout"]):
        passed += at >= bound
    split = xp.asarray(np.array([TRAIN, NONE, VALIDATION, NONE, HOLDOUT], dtype=np.int8))[passed]
    if request.holdout_share > 0:
        split = xp.where(hashed_share(xp, request.holdout_share, _HOLDOUT, key), HOLDOUT, split)
    return split.astype(xp.int8)


def downsample(xp: Any, key: Array, at: Array, y: Array, mask: Array, split: Array, rate: float) -> tuple[Array, Array]:
    """Which rows to keep, bool[q], and their weights, float32[q].

    Only training rows that are negative on every head are dropped, chosen by a hash of the subscriber and the time; the
    survivors weigh 1/rate, so a model's probabilities need no correction. A masked outcome counts as not positive.
    """
    weight = xp.ones(len(at), dtype=xp.float32)
    if rate >= 1:
        return xp.ones(len(at), dtype=bool), weight
    negative = (split == TRAIN) & ~((y != 0) & (mask > 0)).any(axis=1)
    kept = ~negative | hashed_share(xp, rate, _DOWNSAMPLE, key, at)
    return kept, xp.where(negative, np.float32(1 / rate), weight).astype(xp.float32)


def describe(request: SampleRequest) -> str:
    """One line for the user: where the splits are."""
    bounds = request.bounds()
    days = {k: dt.datetime.fromtimestamp(v // MICRO, dt.UTC).date().isoformat() for k, v in bounds.items()}
    return (
        f"train before {days['train_end']}, validation {days['validation']} to {days['validation_end']}, "
        f"hold-out from {days['holdout']}; gaps of {format_duration(request.horizon)}"
    )
