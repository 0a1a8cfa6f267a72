"""Context of a decision: how the campaign, the provider, the hour and the client as a whole did lately.

Rates over the days before the midnight (of the client's clock) that begins the decision's day, so that what happens on
the day itself, to anybody, cannot leak. A campaign or provider of little history is smoothed towards its client; one of
none has the client's own rates and is marked unknown. The campaign of a tenth of the training rows is masked so,
chosen by a hash, because scoring has sends whose campaign nobody has decided on yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.backend import Array, Frame
from pipeline.config import Config
from pipeline.features.calendar import local_time
from pipeline.features.kernels import hashed_share, last_before
from pipeline.features.partition import Partition
from pipeline.features.samples import TRAIN, Points, SampleRequest
from pipeline.features.spec import SMOOTH_HITS, SMOOTH_TRIALS, Feature, FeatureSpec
from pipeline.features.trailing import DAY, HOUR, UNKNOWN, ContextSpec, Counts, Trailing
from pipeline.options import format_duration

RECURRING = 0.01  # share of deliveries; below it a campaign's history says nothing, to training least of all
BLOCK = 1 << 16  # points at a time: the sums are wider than the features
MASK = 0x5EED_C0  # what the choice of masked rows hangs on


def define(config: Config, spec: FeatureSpec) -> ContextSpec | None:
    """What a configuration asks to be counted, at every level; None where nothing, or without exposures."""
    windows = tuple(config.context.windows)
    if not windows or spec.exposure is None:
        return None
    outcomes = {n: tuple(k for k in o.kinds if k in spec.kinds) for n, o in config.outcomes.items()}
    named = {n: kinds for n, kinds in outcomes.items() if kinds and spec.exposure not in kinds}
    covered = set(named.values())
    rates = [*named.items(), *((k, (k,)) for k in spec.responses if (k,) not in covered and k not in named)]
    levels = ["client", "hour", "provider", *(["campaign"] if config.at.event else [])]
    return ContextSpec(tuple(rates), spec.exposure, spec.bounces, windows, tuple(levels)) if rates else None


def describe(spec: FeatureSpec, context: ContextSpec | None, counts: Counts | None) -> FeatureSpec:
    """The specification with the context's features, at the levels that the log has names for."""
    if context is None or counts is None:
        return spec
    absent = {n: f"the log has none (source.columns.{n})" for n in context.levels if not counts.names.get(n, [n])}
    if "campaign" in context.levels and "campaign" not in absent:
        share = counts.of_earlier_campaigns()
        if share < RECURRING:
            absent["campaign"] = f"only {share:.1%} of deliveries are of a campaign that was sent on an earlier day too"
    context = replace(context, levels=tuple(n for n in context.levels if n not in absent))
    below = " - ".join([context.exposure, *context.bounces])
    features = []
    for level in context.levels:
        for window in context.windows:
            for name, kinds in context.rates:
                rate = f"{name}_rate_{format_duration(window)}"
                features.append(_feature(context, level, rate, " + ".join(kinds), below, name, window))
    for level in ("provider", "campaign"):
        if level in context.levels:
            longest = format_duration(context.windows[-1])
            definition = f"1 where the {level} had deliveries in the {longest} before the midnight before at, else 0"
            features.append(Feature(f"{level}_known", "context", definition, "1", how=level))
    lacking = tuple(f"context of the {n}: {why}" for n, why in absent.items())
    return replace(spec, features=(*spec.features, *features), context=context, absent=(*spec.absent, *lacking))


def _trials(context: ContextSpec, name: str) -> float:
    """The imagined deliveries that a client's rate of this name is smoothed with."""
    return context.trials[[n for n, _ in context.rates].index(name)] if context.trials else SMOOTH_TRIALS


def _feature(context: ContextSpec, level: str, rate: str, above: str, below: str, name: str, window: int) -> Feature:
    when = f"in the {format_duration(window)} before the midnight (client's time zone) before at"
    deliveries = f"({below})" if " - " in below else below
    hits, trials = f"({above})" if " + " in above else above, _trials(context, name)
    if level == "client":
        what = f"({hits} + {SMOOTH_HITS:g}) / ({deliveries} + {trials:g}) of the whole client, {when}"
    elif level == "hour":
        what = (
            f"({hits} in at's hour of the day + {SMOOTH_HITS:g}/24) / ({deliveries} at any hour + {trials:g}) "
            f"of the whole client, {when}"
        )
    else:
        whose = "at's campaign" if level == "campaign" else "the subscriber's latest provider before at"
        client = f"client_{rate}"
        what = (
            f"({hits} + {context.weight:g} {client}) / ({deliveries} + {context.weight:g}) of {whose}, {when}; "
            f"{client} where unknown"
        )
        if level == "campaign" and context.masked:
            what += f", as in {context.masked:.0%} of training rows, by hash"
    return Feature(f"{level}_{rate}", "context", what, "1", name, window, how=level)


@dataclass(frozen=True)
class Context:
    """What is known of a client as a whole before each midnight up to ``last``, the day that the data end on.

    On the host; ``names`` of campaigns and providers are a vocabulary that no partition changes.
    """

    spec: ContextSpec
    names: dict[str, list[str]]
    levels: dict[str, Trailing]
    last: int

    @classmethod
    def of(cls, spec: ContextSpec, counts: Counts, as_of: int, timezone: str) -> Context:
        """Args: as_of: the end of the data, microseconds UTC."""
        last = int(local_time(np, np.array([as_of]), timezone)[0]) // DAY
        groups = {"client": np.zeros(len(counts.hour), dtype=np.int64), "hour": counts.hour % 24, **counts.codes}
        levels = {n: Trailing.of(groups[n], counts, spec.windows) for n in spec.levels}
        return cls(spec, counts.names, levels, last)

    def campaigns(
        self, part: Partition, events: Frame, points: Points, request: SampleRequest, key: Array, split: Array
    ) -> Array:
        """The campaign of each point, a position in ``names``: int64[q]; UNKNOWN where it is, or is masked.

        Args:
            events: the partition's frame. key: int64[q], subscribers; split: int8[q], of the points.
        """
        xp, names = part.xp, self.names["campaign"]
        code = xp.full(len(points), UNKNOWN, dtype=xp.int64)
        if "campaign" not in self.spec.levels:
            return code
        if points.row is None:
            planned = names.index(request.campaign) if request.campaign in names else UNKNOWN
            return xp.full(len(points), planned, dtype=xp.int64)
        code = part.backend.codes(events["campaign"], names)[points.row].astype(xp.int64)
        return xp.where((split == TRAIN) & hashed_share(xp, self.spec.masked, MASK, key, points.at), UNKNOWN, code)

    def write(
        self, part: Partition, spec: FeatureSpec, seg: Array, at: Array, campaign: Array, timezone: str, out: Array
    ) -> None:
        """The context's columns of ``out``, float32[q, len(spec)].

        Args:
            seg, at: int64[q]; campaign: int64[q], see :meth:`campaigns`.
        """
        if len(seg) == 0:
            return
        xp = part.xp
        local = local_time(xp, at, timezone)
        day = xp.minimum(local // DAY, self.last)
        groups = {"client": xp.zeros(len(seg), dtype=xp.int64), "hour": local // HOUR % 24, "campaign": campaign}
        if "provider" in self.spec.levels:
            groups["provider"] = self._providers(part, seg, at)
        for start in range(0, len(seg), BLOCK):
            some = slice(start, start + BLOCK)
            sums = {n: table.at(xp, groups[n][some], day[some]) for n, table in self.levels.items()}
            self._columns(xp, spec, sums, out[some])

    def _columns(self, xp: Any, spec: FeatureSpec, sums: dict[str, Array], out: Array) -> None:
        names = [name for name, _ in self.spec.rates]
        for j, feature in enumerate(spec.features):
            if feature.op != "context":
                continue
            level = feature.how or ""
            known = sums[level][:, -1, -1] > 0
            if feature.window is None:
                out[:, j] = known
                continue
            w, r = self.spec.windows.index(feature.window), names.index(feature.kind or "")
            out[:, j] = self._rate(xp, sums, level, w, r, known)

    def _rate(self, xp: Any, sums: dict[str, Array], level: str, w: int, r: int, known: Array) -> Array:
        below = xp.maximum(sums["client"][:, w, -1], 0.0) + _trials(self.spec, self.spec.rates[r][0])
        if level == "hour":
            return (sums["hour"][:, w, r] + SMOOTH_HITS / 24) / below
        client = (sums["client"][:, w, r] + SMOOTH_HITS) / below
        if level == "client":
            return client
        below = xp.maximum(sums[level][:, w, -1], 0.0)
        own = (sums[level][:, w, r] + client * self.spec.weight) / (below + self.spec.weight)
        return xp.where(known, own, client)

    def _providers(self, part: Partition, seg: Array, at: Array) -> Array:
        """The provider of each subscriber's latest event before each point that has one: int64[q]."""
        xp = part.xp
        if part.provider is None:
            return xp.full(len(seg), UNKNOWN, dtype=xp.int64)
        row = last_before(xp, part.starts, part.provider != UNKNOWN, seg, part.positions(seg, at))
        return xp.where(row >= 0, part.provider[xp.maximum(row, 0)], UNKNOWN).astype(xp.int64)
