"""How a subscriber has answered earlier campaigns of the family that is decided about: its name without numbers.

A campaign is often sent once, so nothing is known of it when it is decided about; of "spring-sale-260412" it is known
what the subscriber did with each earlier "spring-sale". An event belongs to the family of its own campaign. Where no
campaign is known, as in a tenth of the training rows (those whose campaign has no context either), a subscriber is one
who has never had a campaign of this family: counts are 0, and rates are the subscriber's own.
"""

from __future__ import annotations

from pipeline.backend import Array
from pipeline.errors import DataError
from pipeline.features.blocks import Block, Rows, Subset
from pipeline.features.partition import Partition
from pipeline.features.sequences import family
from pipeline.features.spec import Feature
from pipeline.features.trailing import UNKNOWN

WEIGHT = 5.0  # deliveries' worth of the subscriber's own rate that a family's is smoothed with


def decided(part: Partition, row: Array | None, campaign: str | None, hidden: Array) -> Array:
    """The family that each point decides about, int64[q]: a code of this partition, or UNKNOWN.

    Args:
        row: int64[q], the points' own rows; None where they are no events, and then ``campaign`` is that of all.
        hidden: bool[q], the points whose campaign is taken as unknown.
    """
    xp, codes = part.xp, _codes(part)
    if row is not None:
        return xp.where(hidden, UNKNOWN, codes[row]).astype(xp.int64)
    name = "" if campaign is None else family(campaign)
    code = part.families.index(name) if name in part.families else UNKNOWN
    return xp.full(len(hidden), code, dtype=xp.int64)


def match(block: Block, feature: Feature) -> Array:
    """Events of the family in a window: how many, over deliveries of it, or that rate beside the subscriber's own."""
    xp, spec, kind, window = block.xp, block.spec, feature.kind or "", feature.window
    mine = _count(block, kind, window)
    if feature.how == "count":
        return mine
    trials = _count(block, spec.exposure or "", window)
    for bounce in spec.bounces:
        trials = trials - _count(block, bounce, window)
    own = block.rate(kind, window)
    rate = (mine + WEIGHT * own) / (xp.maximum(trials, 0) + WEIGHT)
    return rate if feature.how == "rate" else (rate - own) / (rate + own)


def _count(block: Block, kind: str, window: int | None) -> Array:
    """Events of a kind of each point's family in a window: int64[q]."""
    xp = block.xp

    def make() -> Array:
        if block.family is None:
            return xp.zeros(len(block.seg), dtype=xp.int64)
        subset, codes, number = block.rows.keep(("family", kind), lambda: _of_families(block.rows, kind))
        begin, end = block.window(subset, window)
        wanted = xp.maximum(block.family, 0)
        found = block.part.backend.aggregates.window_code_counts(xp, codes, number, begin, end, wanted)
        return xp.where(block.family == UNKNOWN, 0, found)

    return block.keep(("family", kind, window), make)


def _of_families(rows: Rows, kind: str) -> tuple[Subset, Array, int]:
    part, codes = rows.part, _codes(rows.part)
    subset = Subset(part, part.is_any(part.human, (kind,)) & (codes != UNKNOWN))
    return subset, codes[subset.rows], max(len(part.families), 1)


def _codes(part: Partition) -> Array:
    if part.family is None:
        raise DataError("the feature group 'match' needs campaigns; map source.columns.campaign")
    return part.family
