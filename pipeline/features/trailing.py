"""Sends and responses by campaign, provider and local hour, and their sums over the days before each midnight.

What a decision may know of everybody's behaviour is small: a few thousand numbers, counted once for a client, by key
range or from its roll-up, and joined by every partition through integer codes. Only people's events count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.backend import Array, Frame, backend_of
from pipeline.errors import DataError
from pipeline.features.calendar import local_time
from pipeline.features.kernels import segment_starts
from pipeline.options import UNITS

HOUR, DAY = UNITS["h"], UNITS["d"]
UNKNOWN = -1  # the code of a campaign or provider that is null, or that nothing was counted of


@dataclass(frozen=True)
class ContextSpec:
    """What is counted, and how rates are made of it.

    ``rates``: (name, kinds whose events are its numerator); ``exposure`` less ``bounces``: the deliveries below it;
    ``windows``: whole days, microseconds, ascending; ``levels``: of client, hour, provider, campaign; ``weight``:
    deliveries' worth of the client's own rate that a campaign's or provider's is smoothed with; ``masked``: share of
    training rows whose campaign is taken as unknown; ``trials``: of each rate, the deliveries of one imagined response
    that a client's rate is smoothed with, SMOOTH_TRIALS where empty.
    """

    rates: tuple[tuple[str, tuple[str, ...]], ...]
    exposure: str
    bounces: tuple[str, ...]
    windows: tuple[int, ...]
    levels: tuple[str, ...]
    weight: float = 100.0
    masked: float = 0.1
    trials: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ContextSpec:
        rates = tuple((name, tuple(kinds)) for name, kinds in values["rates"])
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **lists, "rates": rates})

    @property
    def width(self) -> int:
        """How many features these are."""
        flags = sum(level in ("provider", "campaign") for level in self.levels)
        return len(self.levels) * len(self.windows) * len(self.rates) + flags

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.exposure, *self.bounces, *(k for _, kinds in self.rates for k in kinds)]))

    def contributions(self) -> np.ndarray:
        """What each of ``kinds`` adds to each rate's numerator and, last, to deliveries: int64[kinds, R+1]."""
        adds = np.zeros((len(self.kinds), len(self.rates) + 1), dtype=np.int64)
        for k, kind in enumerate(self.kinds):
            adds[k, :-1] = [kind in kinds for _, kinds in self.rates]
            adds[k, -1] = (kind == self.exposure) - (kind in self.bounces)
        return adds


@dataclass
class Counts:
    """Groups of events, in no order and not yet summed, on the host.

    ``names``: campaign and provider -> sorted texts; ``codes``: the same -> int64[m] positions in them, or UNKNOWN;
    ``hour``: int64[m], local hours since 1970; ``known``: int64[m], the first local day at whose midnight the group was
    known, at least the day after its own; ``added``: int64[m, R+1], see :meth:`ContextSpec.contributions`.
    """

    names: dict[str, list[str]]
    codes: dict[str, np.ndarray]
    hour: np.ndarray
    known: np.ndarray
    added: np.ndarray

    def of_earlier_campaigns(self) -> float:
        """The share of deliveries that are of a campaign with deliveries on an earlier day."""
        mine = np.flatnonzero((self.codes["campaign"] != UNKNOWN) & (self.added[:, -1] > 0))
        if not len(mine):
            return 0.0
        code, day, number = self.codes["campaign"][mine], self.hour[mine] // 24, self.added[mine, -1]
        first = np.full(len(self.names["campaign"]), np.iinfo(np.int64).max)
        np.minimum.at(first, code, day)
        return float(number[day > first[code]].sum() / number.sum())


def count_events(events: Frame, spec: ContextSpec, timezone: str, per_decision: bool = False) -> Counts:
    """One partition's counts.

    Args:
        events: canonical, in any order, with ``ts``, ``event`` and, where there, campaign, provider and machine.
        per_decision: an event is known from the first midnight by which it had arrived (``ingested_at``).
    """
    backend = backend_of(events)
    xp, kinds = backend.xp, spec.kinds
    kind = backend.codes(events["event"], list(kinds))
    if "machine" in events.columns:
        kind = xp.where(backend.column(events["machine"]), -1, kind)
    rows = xp.flatnonzero(kind >= 0)
    columns = [kind[rows].astype(xp.int64)]
    local = local_time(xp, backend.column(events["ts"])[rows], timezone)
    hour = local // HOUR
    delay = xp.zeros(len(rows), dtype=xp.int64)
    if per_decision:
        arrived = local_time(xp, backend.column(events["ingested_at"])[rows], timezone)
        delay = xp.maximum((arrived + DAY - 1) // DAY - (hour // 24 + 1), 0)
    columns += [hour, delay]
    names: dict[str, list[str]] = {}
    for name in ("campaign", "provider"):
        names[name] = []
        code = xp.full(len(rows), UNKNOWN, dtype=xp.int64)
        if name in events.columns and name in spec.levels:
            series = events[name] if events[name].dtype.name == "category" else events[name].astype("category")
            categories = series.cat.categories
            names[name] = categories.to_arrow().to_pylist() if backend.on_gpu else [str(c) for c in categories]
            code = backend.codes(series, names[name])[rows].astype(xp.int64)
        columns.append(code)
    distinct, number = _distinct(xp, columns)
    found, hour, delay, campaign, provider = (backend.to_host(c) for c in distinct)
    added = spec.contributions()[found] * backend.to_host(number)[:, None]
    return Counts(names, {"campaign": campaign, "provider": provider}, hour, hour // 24 + 1 + delay, added)


def _distinct(xp: Any, columns: list[Array]) -> tuple[list[Array], Array]:
    """The distinct rows of some integer columns, and how often each occurs."""
    n = len(columns[0])
    if n == 0:
        return columns, xp.zeros(0, dtype=xp.int64)
    lows = [int(c.min()) for c in columns]
    widths = [int(c.max()) - low + 1 for c, low in zip(columns, lows, strict=True)]
    size = 1
    for width in widths:
        size *= width  # a Python integer
    if size >= 1 << 62:
        raise DataError(f"{' x '.join(map(str, widths))} kinds, hours, delays, campaigns and providers exceed 62 bits")
    packed = xp.zeros(n, dtype=xp.int64)
    for column, low, width in zip(columns, lows, widths, strict=True):
        packed = packed * width + (column - low)
    packed = xp.sort(packed)
    starts = segment_starts(xp, packed)
    packed = packed[starts[:-1]]
    distinct = []
    for low, width in zip(reversed(lows), reversed(widths), strict=True):
        distinct.append(packed % width + low)
        packed = packed // width
    return distinct[::-1], starts[1:] - starts[:-1]


def count_rollup(table: pd.DataFrame, spec: ContextSpec, machines: bool = False) -> Counts:
    """The same from an hourly roll-up: ``campaign``, ``provider`` (empty for none), ``bucket`` and ``n_<kind>``.

    Args:
        machines: count ``n_machine_<kind>`` as well.
    """
    names, codes = {}, {}
    for name in ("campaign", "provider"):
        found = sorted(set(table[name]) - {""}) if name in spec.levels else []
        position = {text: i for i, text in enumerate(found)}
        names[name] = found
        codes[name] = np.array([position.get(text, UNKNOWN) for text in table[name]], dtype=np.int64)
    hour = table["bucket"].to_numpy().astype("datetime64[us]").astype(np.int64) // HOUR
    number = np.zeros((len(table), len(spec.kinds)), dtype=np.int64)
    for k, kind in enumerate(spec.kinds):
        for column in [f"n_{kind}", *([f"n_machine_{kind}"] if machines else [])]:
            if column in table:
                number[:, k] += table[column].to_numpy(dtype=np.int64)
    return Counts(names, codes, hour, hour // 24 + 1, number @ spec.contributions())


def together(parts: Iterable[Counts]) -> Counts:
    """The counts of several partitions, under names of one list."""
    parts = list(parts)
    names = {n: sorted({v for p in parts for v in p.names[n]}) for n in parts[0].names}
    codes = {}
    for name, found in names.items():
        position = {v: i for i, v in enumerate(found)}
        moved = [np.array([*(position[v] for v in p.names[name]), UNKNOWN], dtype=np.int64) for p in parts]
        codes[name] = np.concatenate([m[p.codes[name]] for m, p in zip(moved, parts, strict=True)])
    joined = [np.concatenate([getattr(p, n) for p in parts]) for n in ("hour", "known", "added")]
    return Counts(names, codes, *joined)


@dataclass(frozen=True)
class Trailing:
    """Sums over the windows before each local midnight, for some groups, as steps in time.

    ``key``: int64[m], ascending, group * span + (day - first); ``sums``: float64[m, W, R+1], exact integers, hold from
    their day until the group's next; deliveries come last.
    """

    key: np.ndarray
    sums: np.ndarray
    first: int
    span: int

    @classmethod
    def of(cls, group: np.ndarray, counts: Counts, windows: Sequence[int]) -> Trailing:
        """Args: group: int64[m], of each of the counts; UNKNOWN ones are left out."""
        mine = np.flatnonzero(group != UNKNOWN)
        group, known, added = group[mine], counts.known[mine], counts.added[mine]
        day = counts.hour[mine] // 24
        first = int(day.min()) if len(day) else 0
        days = [w // DAY for w in windows]
        span = (int(day.max()) if len(day) else 0) + days[-1] + 2 - first
        # A group enters a window at the first midnight that knows it, and leaves it so many days after its own.
        edges = [(known <= day + w, known, day + w + 1) for w in days]
        keys = [group[ok] * span + (at[ok] - first) for ok, enters, leaves in edges for at in (enters, leaves)]
        key, place = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_inverse=True)
        sums = np.zeros((len(key), len(days), added.shape[1]))
        start = 0
        for w, (ok, _, _) in enumerate(edges):
            for sign in (1.0, -1.0):
                stop = start + int(ok.sum())
                for column in range(added.shape[1]):
                    weights = sign * added[ok, column]
                    sums[:, w, column] += np.bincount(place[start:stop], weights, minlength=len(key))
                start = stop
        # What enters leaves again, so a group's sums end at zero and the next one's begin there.
        return cls(key, np.cumsum(sums, axis=0), first, span)

    def at(self, xp: Any, group: Array, day: Array) -> Array:
        """The sums before the midnight that begins each day: float64[q, W, R+1]; zeros for what is not known.

        Args:
            group: int64[q], UNKNOWN allowed; day: int64[q], local days since 1970.
        """
        shape = (len(group), *self.sums.shape[1:])
        if len(self.key) == 0 or len(group) == 0:
            return xp.zeros(shape, dtype=xp.float64)
        step = day - self.first
        inside = xp.minimum(xp.maximum(step, 0), self.span - 1)
        place = xp.searchsorted(xp.asarray(self.key), group * self.span + inside, side="right") - 1
        there = (group >= 0) & (step >= 0) & (place >= 0)
        place = xp.maximum(place, 0)
        there = there & (xp.asarray(self.key)[place] // self.span == group)
        return xp.where(there[:, None, None], xp.asarray(self.sums)[place], 0.0)
