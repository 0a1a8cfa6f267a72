"""What a subscriber does with messages: answers them, deletes them unread, or lets them lie.

Who deletes without reading has seen the message and did not care for it; who does neither may not look at the mailbox
at all. Rates of answers over exposures mix the two. A deletion belongs to the latest earlier exposure of its campaign,
and is unread where no answer to that came before it.
"""

from __future__ import annotations

from pipeline.backend import Array
from pipeline.features.blocks import Block, Rows, Subset
from pipeline.features.exposures import NONE, answering_rows
from pipeline.features.partition import Partition
from pipeline.features.spec import Feature

DELETE = "delete"


def reaction(block: Block, feature: Feature) -> Array:
    """The share answered of what was reacted to; reactions over deliveries; or exposures since the latest reaction."""
    xp, part, spec = block.xp, block.part, block.spec
    if feature.how == "streak":
        reacted = part.is_any(part.human, (*spec.responses, DELETE))
        streak = part.backend.kernels.ignored_streak
        return streak(xp, part.starts, part.ts, block.rows.exposed, reacted, block.seg, block.at)
    answered, unread = (
        _within(block, some, feature.window) for some in block.rows.keep("reactions", lambda: _first(block.rows))
    )
    if feature.how == "answered":
        return (answered + 1) / (answered + unread + 2)
    delivered = _within(block, block.rows.humans(spec.exposure or ""), feature.window)
    if spec.bounces:
        delivered = xp.maximum(delivered - _within(block, block.rows.humans(*spec.bounces), feature.window), 0)
    return (answered + unread + 1) / (delivered + 2)


def _within(block: Block, some: Subset, window: int | None) -> Array:
    """How many of them lie in the window, int64[q]."""
    begin, end = block.window(some, window)
    return end - begin


def _first(rows: Rows) -> tuple[Subset, Subset]:
    """The first answer to each exposure, of any kind, and the first deletions of those not answered before."""
    part, xp = rows.part, rows.part.xp
    sent = xp.flatnonzero(rows.exposed)
    *responses, deleted = answering_rows(part, sent, (*rows.spec.responses, DELETE))
    answer = xp.full(len(sent), part.rows, dtype=xp.int64)
    for row in responses:
        answer = xp.minimum(answer, xp.where(row == NONE, part.rows, row))
    return _marked(part, answer[answer < part.rows]), _marked(part, deleted[(deleted != NONE) & (deleted < answer)])


def _marked(part: Partition, rows: Array) -> Subset:
    mask = part.xp.zeros(part.rows, dtype=bool)
    mask[rows] = True
    return Subset(part, mask)
