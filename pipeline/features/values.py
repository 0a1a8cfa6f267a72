"""What a subscriber's events carry: amounts, different campaigns, active days."""

from __future__ import annotations

from pipeline.backend import Array
from pipeline.errors import DataError
from pipeline.features.blocks import Block, Rows, Subset
from pipeline.features.calendar import local_time
from pipeline.features.partition import Partition
from pipeline.features.spec import DAY, Feature

MICRO = 1_000_000
SUM_LIMIT = 1 << 62


def aggregate(block: Block, how: str, subset: Subset, values: Array, scale: int, window: int | None) -> Array:
    """The sum, mean, min, max, first or last of the values of a window's rows, over ``scale``; 0 where it has none.

    Args:
        values: int64[m], of the subset's rows; no segment's sum exceeds 62 bits.
    """
    xp, aggregates = block.xp, block.part.backend.aggregates
    begin, end = block.window(subset, window)
    some = end > begin
    if how in ("sum", "mean"):
        before = block.rows.keep(("sum", id(values)), lambda: aggregates.prefix_sum(xp, values))
        total = before[end] - before[begin]
        return total / scale if how == "sum" else total / (xp.maximum(end - begin, 1) * scale)
    if how == "max":
        return aggregates.window_max(xp, values, begin, end) / scale
    if how == "min":
        negative = block.rows.keep(("negative", id(values)), lambda: -values)
        return -aggregates.window_max(xp, negative, begin, end) / scale
    return aggregates.pick(xp, values, begin if how == "first" else end - 1, some) / scale


def check_sums(part: Partition, seg: Array, values: Array, what: str) -> None:
    """Raises DataError, which says ``what`` sums, where one subscriber's values could add up to more than 62 bits."""
    xp = part.xp
    if len(values) == 0:
        return
    largest = max(abs(int(values.max())), abs(int(values.min())))
    longest = int((part.starts[1:] - part.starts[:-1]).max())
    # Two bounds of what they can add up to; the second is for a long history of small values.
    if largest * longest >= SUM_LIMIT and float(xp.abs(values.astype(xp.float64)).sum()) >= SUM_LIMIT:
        raise DataError(
            f"{what} could exceed 62 bits: the largest value is {largest} in fixed point, millionths unless all values "
            f"are whole numbers, and a subscriber has up to {longest} events; divide it by a power of ten"
        )


def value(block: Block, feature: Feature) -> Array:
    """An aggregate of the ``value`` column, micro-units within and units without."""
    subset, values = block.rows.keep(("value", feature.kind), lambda: _valued(block.rows, feature.kind))
    return aggregate(block, feature.how or "", subset, values, MICRO, feature.window)


def _valued(rows: Rows, kind: str | None) -> tuple[Subset, Array]:
    part = rows.part
    if part.value is None:
        raise DataError("the feature group 'value' needs a column of values; map source.columns.value")
    if kind is not None:
        subset = rows.humans(kind)
    else:  # a null is read as 0, so 0 is no value
        subset = Subset(part, (part.human >= 0) & (part.human < len(rows.spec.kinds)) & (part.value != 0))
    values = part.value[subset.rows].astype(part.xp.int64)
    check_sums(part, subset.seg, values, "the sum of the column 'value'")
    return subset, values


def campaigns(block: Block, feature: Feature) -> Array:
    """How many different campaigns a window's events, or its responses, are of; a null is none."""
    subset, codes, number = block.rows.keep(
        ("campaigns", feature.how), lambda: _campaigns(block.rows, feature.how == "answered")
    )
    begin, end = block.window(subset, feature.window)
    return block.part.backend.aggregates.window_distinct(block.xp, codes, number, begin, end)


def _campaigns(rows: Rows, answered: bool) -> tuple[Subset, Array, int]:
    part = rows.part
    if part.campaign is None:
        raise DataError("the feature group 'distinct' needs campaigns; map source.columns.campaign")
    mask = (part.campaign >= 0) & (part.human >= 0) & (part.human < len(rows.spec.kinds))
    subset = Subset(part, mask & rows.responded if answered else mask)
    codes = part.campaign[subset.rows]
    return subset, codes, int(codes.max()) + 1 if len(codes) else 1


def active_days(block: Block, feature: Feature) -> Array:
    """On how many different days of the client's the subscriber did something, in a window."""
    subset, codes, number = block.rows.keep("days", lambda: _days(block.rows))
    begin, end = block.window(subset, feature.window)
    return block.part.backend.aggregates.window_distinct(block.xp, codes, number, begin, end)


def _days(rows: Rows) -> tuple[Subset, Array, int]:
    xp = rows.part.xp
    subset = rows.humans(*rows.spec.acts)
    if not len(subset):
        return subset, subset.rows, 1
    day = local_time(xp, subset.ts, rows.timezone) // DAY
    # Counted from each subscriber's first, so that codes are few. A clock may go back over midnight.
    first = day[xp.flatnonzero(subset.first)][xp.cumsum(subset.first, dtype=xp.int64) - 1]
    codes = day - first + 1
    return subset, codes, int(codes.max()) + 1
