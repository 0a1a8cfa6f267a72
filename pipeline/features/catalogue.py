"""Which features a configuration and a log give: the groups of built-in ones, and the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline import extensions
from pipeline.config import Config
from pipeline.errors import ConfigError, did_you_mean
from pipeline.features.families import WEIGHT
from pipeline.features.presence import CLASSES
from pipeline.features.reactions import DELETE
from pipeline.features.sequences import MASKED
from pipeline.features.similarity import over
from pipeline.features.spec import (
    BOUNCES,
    DAY,
    ENDINGS,
    HISTORY,
    RESPONSES,
    SEND,
    SMOOTH_HITS,
    SMOOTH_TRIALS,
    Feature,
    FeatureSpec,
    counts,
    label,
    span,
)
from pipeline.options import KINDS, format_duration

NEED_EXPOSURE = {"rates": "rates", "streak": "ignored streak", "volume": "volume", "gaps": "gaps", "runs": "runs"}


def specification(config: Config, kinds_present: Iterable[str]) -> FeatureSpec:
    """See :meth:`FeatureSpec.from_config`."""
    present = set(kinds_present)
    if config.at.event is not None and config.at.event not in present:
        raise ConfigError(
            f"at.event is {config.at.event!r}, but the log has no such events; {did_you_mean(config.at.event, present)}"
        )
    log = _Log.of(config, present)
    features, absent = [], []
    # In this order, whatever the configuration's: counts come first, where the kernel can write them in place.
    for group, make in _GROUPS.items():
        if group in config.features.groups:
            made = make(log)
            features += made if isinstance(made, list) else []
            if isinstance(made, str) and made:
                absent.append(made)
    if log.exposure is None:
        lacking = [name for group, name in NEED_EXPOSURE.items() if group in config.features.groups]
        if lacking:
            absent.insert(0, f"{_and(lacking)}: the log has no exposure kind (at.event, or 'send')")
    for own in extensions.features():
        features += _own(own)
    twice = [f for i, f in enumerate(features) if f.name in {g.name for g in features[:i]}]
    if twice:
        raise ConfigError(
            f'there are two features named {twice[0].name!r}: one is "{twice[0].definition}"; rename your function, '
            "or give it a name with @pipeline.feature(..., name=...)"
        )
    if not features:
        raise ConfigError(
            f"features.groups: {', '.join(config.features.groups) or 'none'}: nothing that this log has; "
            f"known groups: {', '.join(_GROUPS)}"
        )
    # A log that is not of messages does not lack their kinds.
    usual = [*KINDS, *log.outcome_kinds] if present & set(KINDS) else log.outcome_kinds
    lacking = list(dict.fromkeys(k for k in usual if k not in present))
    if lacking:
        absent.append(f"counts, recencies and rates of {', '.join(lacking)}: the log has none")
    return FeatureSpec(
        tuple(features),
        log.kinds,
        tuple(config.windows),
        log.exposure,
        log.bounces,
        log.responses,
        log.acts,
        max(config.windows),
        tuple(absent),
    )


@dataclass(frozen=True)
class _Log:
    """What the groups are made from; ``windows`` end with None, the whole history, where the group lifetime is on."""

    kinds: tuple[str, ...]
    windows: tuple[int | None, ...]
    exposure: str | None
    bounces: tuple[str, ...]
    responses: tuple[str, ...]
    rated: tuple[str, ...]
    acts: tuple[str, ...]
    outcome_kinds: tuple[str, ...]
    valued: tuple[str | None, ...]
    campaigns: bool
    decided: bool  # about campaigns

    @classmethod
    def of(cls, config: Config, present: set[str]) -> _Log:
        exposure = config.at.event or (SEND if SEND in present else None)
        outcome_kinds = tuple(k for o in config.outcomes.values() for k in o.kinds)
        wanted = [*RESPONSES, *(k for k in outcome_kinds if k not in (*RESPONSES, *ENDINGS, *BOUNCES, exposure))]
        rated = tuple(k for k in dict.fromkeys(wanted) if k in present)
        kinds = tuple([k for k in KINDS if k in present] + sorted(present - set(KINDS)))
        summed = [k for o in config.outcomes.values() if o.sum for k in o.kinds if k in present]
        mapped = {n for n in ("campaign", "value") if config.source and getattr(config.source.columns, n)}
        return cls(
            kinds=kinds,
            windows=(*config.windows, *([None] if "lifetime" in config.features.groups else [])),
            exposure=exposure,
            bounces=tuple(k for k in BOUNCES if k in present) if exposure == SEND else (),
            responses=tuple(k for k in RESPONSES if k in present) or rated,
            rated=rated,
            acts=tuple(k for k in kinds if k not in (exposure, *BOUNCES)),
            outcome_kinds=outcome_kinds,
            valued=tuple(dict.fromkeys(summed)) or ((None,) if "value" in mapped else ()),
            campaigns="campaign" in mapped,
            decided=config.at.event is not None,
        )

    @property
    def finite(self) -> tuple[int, ...]:
        return tuple(w for w in self.windows if w is not None)


# -- the groups: features, or what the log lacks for them -----------------------------------------------------------


# In a short window hardly anybody has one, so that a model learns from a handful of people what it means.
_RARE = (*BOUNCES, *ENDINGS, "subscribe")


def _counts(log: _Log) -> list[Feature]:
    return [f for f in counts(log.kinds, log.finite) if f.window == max(log.finite) or f.kind not in _RARE]


def _recency(log: _Log) -> list[Feature]:
    cap = format_duration(max(log.finite))
    return [
        Feature(
            f"days_since_{kind}",
            "recency",
            f"days from the latest {kind} before at, at most {cap}; that where there is none",
            "days",
            kind,
        )
        for kind in log.kinds
    ]


def _rates(log: _Log) -> list[Feature]:
    return [_rate(log, kind, window) for window in log.finite for kind in log.rated] if log.exposure else []


def _rate(log: _Log, kind: str, window: int | None) -> Feature:
    below = log.exposure if not log.bounces else f"({log.exposure} - {' - '.join(log.bounces)})"
    definition = (
        f"({kind} + {SMOOTH_HITS:g}) / ({below} + {SMOOTH_TRIALS:g}), each counted in {span(window)}; "
        "the denominator's count is at least 0"
    )
    return Feature(f"{kind}_rate_{label(window)}", "rate", definition, "1", kind, window)


def _streak(log: _Log) -> list[Feature]:
    if log.exposure is None or not log.responses:
        return []
    definition = f"{log.exposure} events since the latest {' or '.join(log.responses)} before at"
    return [Feature("ignored_streak", "streak", definition, "events")]


def _volume(log: _Log) -> list[Feature]:
    if log.exposure is None:
        return []
    definition = f"{log.exposure} events in the 7d before the midnight (client's time zone) before at"
    return [Feature(f"{log.exposure}_7d_to_midnight", "volume", definition, "events", log.exposure, 7 * DAY)]


def _tenure(log: _Log) -> list[Feature]:
    return [
        Feature("tenure", "tenure", "days from the subscriber's first event to at, at least 0", "days"),
        HISTORY,
    ]


def _calendar(log: _Log) -> list[Feature]:
    return [
        Feature(
            f"{op}_{wave}",
            f"{op}_{wave}",
            f"{wave}(2 pi x / {full}), x the {what}, in the client's time zone, at the decision",
            "1",
        )
        for op, what, full in (("hour", "hour of the day", 24), ("weekday", "day of the week, Monday 0", 7))
        for wave in ("sin", "cos")
    ]


def _lifetime(log: _Log) -> list[Feature]:
    rates = [_rate(log, kind, None) for kind in log.rated] if log.exposure else []
    return [*counts([k for k in log.kinds if k not in _RARE], [None]), *rates]


def _tiles(log: _Log) -> list[Feature]:
    return [
        Feature(
            f"{kind}_{label(far)}_to_{label(near)}",
            "count",
            f"{kind} events in [at - {label(far)}, at - {label(near)})",
            "events",
            kind,
            far,
            until=near,
        )
        for near, far in zip(log.finite, log.finite[1:], strict=False)
        for kind in log.kinds
        if kind not in _RARE
    ]


def _distinct(log: _Log) -> list[Feature] | str:
    made = []
    for window in log.windows:
        if log.campaigns:
            made.append(
                Feature(
                    f"campaigns_{label(window)}",
                    "campaigns",
                    f"different campaigns among the events in {span(window)}",
                    "campaigns",
                    window=window,
                )
            )
            if log.responses:
                made.append(
                    Feature(
                        f"campaigns_answered_{label(window)}",
                        "campaigns",
                        f"different campaigns among the {' and '.join(log.responses)} events in {span(window)}",
                        "campaigns",
                        window=window,
                        how="answered",
                    )
                )
        if log.acts:
            definition = f"different local days of {', '.join(log.acts)} events in {span(window)}"
            made.append(Feature(f"active_days_{label(window)}", "active_days", definition, "days", window=window))
    return made or "distinct counts: the log has no campaigns (source.columns.campaign) and only exposures"


_VALUES = {
    "sum": ("the sum of", "value"),
    "mean": ("the mean of", "value"),
    "min": ("the least of", "value"),
    "max": ("the greatest of", "value"),
    "first": ("the first of", "value"),
    "last": ("the latest of", "value"),
}


def _value(log: _Log) -> list[Feature] | str:
    made = []
    for kind in log.valued:
        what = f"the values of {kind} events" if kind else "the values other than 0"
        prefix = f"{kind}_value" if kind else "value"
        for window in log.windows:
            for how, (words, unit) in _VALUES.items():
                definition = f"{words} {what} in {span(window)}; 0 where there are none"
                made.append(
                    Feature(f"{prefix}_{how}_{label(window)}", "value", definition, unit, kind, window, how=how)
                )
    return made or "values: the log has none (source.columns.value)"


def _gaps(log: _Log) -> list[Feature]:
    if log.exposure is None:
        return []
    one = log.exposure
    last = f"days between the two latest {one} events before at; 0 where there are fewer than two"
    made = [Feature("gap_last", "gap", last, "days", how="last")]
    for window in log.windows:
        mean = f"mean days from one {one} to the next, both in {span(window)}; 0 where there are fewer than two"
        trend = (
            f"slope of the days from one {one} to the next over their order, of the {one} events in {span(window)}, by "
            "least squares, times in whole seconds; 0 where there are fewer than three"
        )
        made.append(Feature(f"gap_mean_{label(window)}", "gap", mean, "days", window=window, how="mean"))
        made.append(Feature(f"gap_trend_{label(window)}", "gap", trend, "days per event", window=window, how="trend"))
    return made


def _runs(log: _Log) -> list[Feature]:
    if log.exposure is None or not log.responses:
        return []
    one, answer = log.exposure, " or ".join(log.responses)
    answered = f"a {one} is answered by a {answer} from its instant on, before the next {one} and before at"
    current = f"{one} events answered one after the other up to the latest before at; {answered}"
    made = [Feature("answered_streak", "run", current, "events", how="current")]
    for window in log.windows:
        for how in ("answered", "ignored"):
            definition = f"most {one} events {how} one after the other, of those in {span(window)}; {answered}"
            made.append(Feature(f"longest_{how}_{label(window)}", "run", definition, "events", window=window, how=how))
    return made


def _affinity(log: _Log) -> list[Feature]:
    made = []
    for kind in log.responses:
        for what, cells in (("hour", 24), ("weekday", 7)):
            definition = (
                f"(n + 1) / (all + {cells}), n the {kind} events before at in the decision's local {what}, all the "
                f"{kind} events before at"
            )
            made.append(Feature(f"{kind}_{what}_affinity", "affinity", definition, "1", kind, how=what))
    return made


def _match(log: _Log) -> list[Feature] | str:
    if not log.campaigns:
        return "match: the log has no campaigns (source.columns.campaign)"
    if not log.decided:
        return "match: decisions are made every so often (at.every), which is about no campaign"
    one, window = log.exposure or "", log.windows[-1]  # what people like changes slowly
    family = "the family (the name without numbers) of at's campaign"
    unknown = f"0 where that is not known, as in {MASKED:.0%} of training rows, by hash"
    count = f"{one} events of campaigns of {family} in {span(window)}; {unknown}"
    made = [Feature(f"family_{one}_{label(window)}", "match", count, "events", one, window, how="count")]
    delivered = one if not log.bounces else f"({one} - {' - '.join(log.bounces)})"
    for kind in log.rated:
        before = over(kind, log.responses)
        below = delivered if before is None else f"first {before}s"
        definition = (
            f"z / (e + {WEIGHT:g}), of {family} and, by their similarity s to it, of others: z the sum of s (n - r d), "
            f"e of s^2 r d; n the {one} events' first {kind}s and d {below} of one family in {span(window)}; "
            f"r (n + {SMOOTH_HITS:g}) / (d + {SMOOTH_TRIALS:g}) of all families; {unknown}"
        )
        rate = (
            f"(n + {SMOOTH_HITS:g}) / (d + {SMOOTH_TRIALS:g}), n the {one} events' first {kind}s and d {below} of "
            f"campaigns with a family in {span(window)}"
        )
        made.append(Feature(f"first_{kind}_rate_{label(window)}", "match", rate, "1", kind, window, how="rate"))
        name = f"family_{kind}_affinity_{label(window)}"
        made.append(Feature(name, "match", definition, "1", kind, window, how="affinity"))
    return made


def _reactions(log: _Log) -> list[Feature] | str:
    if log.exposure is None or DELETE not in log.kinds or not log.responses:
        return []  # what is lacking is told of the counts
    if not log.campaigns:
        return "reactions: the log has no campaigns (source.columns.campaign)"
    one, answer = log.exposure, " or ".join(log.responses)
    first = f"n first answers ({answer}) to {one} events, d first deletes of those not answered before"
    delivered = one if not log.bounces else f"({one} - {' - '.join(log.bounces)})"
    streak = f"{one} events since the latest {answer} or {DELETE} before at"
    made = [Feature("silent_streak", "reaction", streak, "events", how="streak")]
    for window in log.windows:
        share = f"(n + 1) / (n + d + 2), in {span(window)}: {first}"
        rate = f"(n + d + 1) / ({delivered} + 2), in {span(window)}: {first}; the denominator's count is at least 0"
        made.append(Feature(f"read_share_{label(window)}", "reaction", share, "1", window=window, how="answered"))
        made.append(Feature(f"reaction_rate_{label(window)}", "reaction", rate, "1", window=window, how="any"))
    return made


def _presence(log: _Log) -> list[Feature]:
    if log.exposure is None or not log.responses:
        return []
    one, answer = log.exposure, " or ".join(log.responses)
    families = " and what they lean to among families of campaigns" if log.campaigns else ""
    model = (
        f"given the {one} events before at and what came of them within 3d, by {CLASSES} classes of subscribers with "
        f"the states awake and asleep{families}, learned from everybody before the validation"
    )
    decided = ""
    if log.campaigns and log.decided:
        decided = f" of the family of at's campaign (any where it is not known, as in {MASKED:.0%} of training rows)"
    awake = f"the probability of being awake at at, {model}"
    keen = f"the probability that a {one} event of any family is answered ({answer}) if awake, {model}"
    made = [
        Feature("presence", "presence", awake, "1", how="awake"),
        Feature("keenness", "presence", keen, "1", how="keen"),
    ]
    for place, kind in enumerate(log.responses):
        answers = " or ".join(log.responses[place:])
        chance = f"the probability that a {one} event at at{decided} is answered ({answers}), {model}"
        made.append(Feature(f"{kind}_chance", "presence", chance, "1", kind, how="next"))
    for kind in log.responses[1:]:
        share = f"{kind}_chance / {log.responses[0]}_chance"
        made.append(Feature(f"{kind}_of_{log.responses[0]}_chance", "presence", share, "1", kind, how="share"))
    if decided:
        lean = (
            f"by how much each answer to a {one} event of the family of at's campaign, given the one before, is "
            f"likelier than class and state say, {model}; 0 where the family is not known, as in {MASKED:.0%} of "
            "training rows"
        )
        made.append(Feature("family_leaning", "presence", lean, "logits", how="leaning"))
    return made


_GROUPS = {
    "counts": _counts,
    "recency": _recency,
    "rates": _rates,
    "streak": _streak,
    "volume": _volume,
    "tenure": _tenure,
    "calendar": _calendar,
    "gaps": _gaps,
    "runs": _runs,
    "affinity": _affinity,
    "match": _match,
    "reactions": _reactions,
    "presence": _presence,
    "distinct": _distinct,
    "value": _value,
    "lifetime": _lifetime,
    "tiles": _tiles,
}


def _own(own: extensions.UserFeature) -> list[Feature]:
    """The columns of one function of the user's."""
    words = {"distinct": "the number of different values"}.get(own.how, f"the {own.how}")
    return [
        Feature(
            f"{own.name}_{label(window)}",
            "own",
            f"{words} over the events in {span(window)} of: {own.definition}; 0 where there are none",
            own.unit,
            own.name,
            window,
            how=own.how,
            source=own.source,
        )
        for window in own.windows
    ]


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
