"""What is known of a subscriber's state at a decision: the features of the group presence, see ``presence.py``."""

from __future__ import annotations

from pipeline.backend import Array
from pipeline.features import presence
from pipeline.features.blocks import Block
from pipeline.features.filters import HORIZON
from pipeline.features.spec import Feature


def state(block: Block, feature: Feature) -> Array:
    """One of the filter's means, or a ratio of two, float64[q]."""
    found = block.keep("presence", lambda: _filtered(block))
    responses = block.spec.responses
    if feature.how == "awake":
        return found[:, 0]
    if feature.how == "keen":
        return found[:, 1] / found[:, 0]
    mine = found[:, 2 + responses.index(feature.kind or "")]
    return mine if feature.how == "next" else mine / found[:, 2]


def _filtered(block: Block) -> Array:
    """The values of ``presence.chain`` at each point, float64[q, 2 + responses]."""
    part, xp = block.part, block.xp
    exposures, before = block.rows.keep(("presence", "exposures"), lambda: presence.exposed(part, block.spec))
    chain = block.rows.keep(("presence", "chain"), lambda: presence.chain(xp, block.spec))
    begin = before[part.positions(block.seg, block.at - HORIZON)]
    return part.backend.filters.filtered(xp, exposures, chain, block.seg, block.at, begin, before[block.end])
