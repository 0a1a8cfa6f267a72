"""When a subscriber is sent to and answers: how much lately, gaps, runs of answered and ignored ones, usual hours."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.backend import Array
from pipeline.features.blocks import Block, Rows, Subset, hour_of, weekday_of
from pipeline.features.calendar import local_time
from pipeline.features.kernels import prefix_count
from pipeline.features.spec import DAY, Feature

_SECOND = 1_000_000


# -- volume ----------------------------------------------------------------------------------------------------


def volume(block: Block, feature: Feature) -> Array:
    """Exposures of the days before the decision's own."""
    part, sent = block.part, block.rows.humans(feature.kind or "")
    begin, end = (part.positions(block.seg, block.midnight - window) for window in (feature.window or 0, 0))
    return sent.before[end] - sent.before[begin]


# -- gaps ------------------------------------------------------------------------------------------------------


def gap(block: Block, feature: Feature) -> Array:
    """Days between exposures: the latest two, the mean of a window, or their trend in it."""
    xp, pick = block.xp, block.part.backend.aggregates.pick
    sent = block.rows.humans(block.spec.exposure or "")
    begin, end = block.window(sent, feature.window)
    number = end - begin
    if feature.how == "last":
        before = pick(xp, sent.ts, end - 2, number >= 2)
        return xp.where(number >= 2, pick(xp, sent.ts, end - 1, number >= 2) - before, 0) / DAY
    if feature.how == "mean":
        span = pick(xp, sent.ts, end - 1, number >= 2) - pick(xp, sent.ts, begin, number >= 2)
        return span / (xp.maximum(number - 1, 1) * DAY)
    return _trend(block, sent, begin, end) / (DAY / _SECOND)


def _trend(block: Block, sent: Subset, begin: Array, end: Array) -> Array:
    """The slope of the gaps g_1 .. g_m over their order, float64[q], seconds an exposure; 0 where m < 2.

    Least squares: sum((i - (m + 1) / 2) g_i) / sum((i - (m + 1) / 2)^2), the latter m (m^2 - 1) / 12. With g_i = t_i -
    t_(i-1), sum(i g_i) is m t_m - (t_0 + .. + t_(m-1)), so that prefix sums of times do, all in whole numbers.
    """
    xp, aggregates, part = block.xp, block.part.backend.aggregates, block.part

    def seconds() -> tuple[Array, Array]:
        since = (sent.ts - part.ts[part.starts[sent.seg]]) // _SECOND  # small, so that no sum of them overflows
        return since, aggregates.prefix_sum(xp, since)

    since, before = block.rows.keep("gap seconds", seconds)
    m = xp.maximum(end - begin - 1, 0)
    some = m >= 2
    first, last = aggregates.pick(xp, since, begin, some), aggregates.pick(xp, since, end - 1, some)
    earlier = before[xp.maximum(end - 1, begin)] - before[begin]
    twice = 2 * (m * last - earlier) - (m + 1) * (last - first)
    spread = xp.maximum(m, 1).astype(xp.float64)
    spread = spread * (spread * spread - 1)
    return xp.where(some, 6 * twice / xp.where(some, spread, 1), 0)


# -- runs ------------------------------------------------------------------------------------------------------


@dataclass
class _Exposures:
    """The exposures, and whether each is answered: responded to from its instant on, before the next exposure.

    Exposures of one instant share their fate. ``group``: the first of the same instant; ``since``: the first row of its
    instant in the partition; ``lengths``, ``ends``: the runs of answered ones and of ignored ones, see ``aggregates``.
    """

    sent: Subset
    group: Array
    since: Array
    responses: Array
    lengths: dict[str, Array]
    ends: dict[str, Array]


def _exposures(rows: Rows) -> _Exposures:
    part, xp, aggregates = rows.part, rows.part.xp, rows.part.backend.aggregates
    sent = rows.humans(rows.spec.exposure or "")
    m = len(sent)
    fresh = xp.ones(part.rows, dtype=bool)
    fresh[1:] = (part.seg[1:] != part.seg[:-1]) | (part.ts[1:] != part.ts[:-1])
    since = xp.flatnonzero(fresh)[(xp.cumsum(fresh, dtype=xp.int64) - 1)[sent.rows]]
    new = xp.ones(m, dtype=bool)
    new[1:] = since[1:] != since[:-1]
    leaders = xp.flatnonzero(new)
    instant = xp.cumsum(new, dtype=xp.int64) - 1
    # Where the next instant's exposures begin, or the segment ends.
    following = part.starts[sent.seg[leaders] + 1] if m else leaders
    if len(leaders) > 1:
        mine, after = sent.seg[leaders[:-1]], sent.seg[leaders[1:]]
        following[:-1] = xp.where(mine == after, since[leaders[1:]], following[:-1])
    responses = prefix_count(xp, rows.responded)
    answered = responses[following[instant]] > responses[since] if m else new
    lengths = {"answered": aggregates.run_lengths(xp, sent.first, answered)}
    lengths["ignored"] = aggregates.run_lengths(xp, sent.first, ~answered)
    ends = {"answered": aggregates.run_ends(xp, answered), "ignored": aggregates.run_ends(xp, ~answered)}
    return _Exposures(sent, leaders[instant] if m else leaders, since, responses, lengths, ends)


def run(block: Block, feature: Feature) -> Array:
    """Exposures answered, or ignored, one after the other: up to the point, or the most in a window.

    Whether an exposure is answered is known before the point for all but those of the latest instant: what answers
    these has until the point. So they are looked at apart.
    """
    xp, aggregates = block.xp, block.part.backend.aggregates
    found = block.rows.keep("exposures", lambda: _exposures(block.rows))
    begin, end = block.window(found.sent, feature.window)
    some = end > begin
    latest = aggregates.pick(xp, found.group, end - 1, some)  # the first of the latest instant
    row = aggregates.pick(xp, found.since, end - 1, some)
    answered = found.responses[block.end] > found.responses[row]
    if feature.how == "current":
        same = block.part.starts[block.seg]
        earlier = some & (latest > found.sent.before[same])
        run_before = aggregates.pick(xp, found.lengths["answered"], latest - 1, earlier)
        return xp.where(some & answered, end - latest + run_before, 0)
    how = feature.how or ""
    middle = xp.where(some, xp.maximum(latest, begin), end)  # of the window: before the latest instant, and in it
    longest = aggregates.longest_runs(xp, found.lengths[how], found.ends[how], begin, middle)
    # The run that reaches up to the latest instant goes on if that one is of the same kind.
    reaching = some & (middle > begin)
    tail = xp.minimum(aggregates.pick(xp, found.lengths[how], middle - 1, reaching), middle - begin)
    goes_on = some & (answered if how == "answered" else ~answered)
    return xp.maximum(longest, xp.where(goes_on, tail + end - middle, 0))


# -- usual hours -----------------------------------------------------------------------------------------------


def affinity(block: Block, feature: Feature) -> Array:
    """The smoothed share of the events of a kind, over the whole history, in the decision's local hour or weekday."""
    xp = block.xp
    events = block.rows.humans(feature.kind or "")
    of, cells, wanted = {
        "hour": (hour_of, 24, block.local_hour),
        "weekday": (weekday_of, 7, block.local_weekday),
    }[feature.how or ""]
    local = block.rows.keep(("local", feature.kind), lambda: local_time(xp, events.ts, block.rows.timezone))
    codes = block.rows.keep(("local", feature.kind, feature.how), lambda: of(local).astype(xp.int32))
    begin, end = block.window(events, None)
    mine = block.part.backend.aggregates.window_code_counts(xp, codes, cells, begin, end, wanted)
    return (mine + 1) / (end - begin + cells)
