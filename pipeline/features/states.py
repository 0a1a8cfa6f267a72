"""What is known of a subscriber's state at a decision: the features of the group presence, see ``presence.py``."""

from __future__ import annotations

from pipeline.backend import Array
from pipeline.features import presence
from pipeline.features.blocks import Block
from pipeline.features.filters import HORIZON
from pipeline.features.spec import Feature


def state(block: Block, feature: Feature) -> Array:
    """One of the filter's values, or a ratio of two, float64[q]."""
    found = block.keep("presence", lambda: _filtered(block))
    responses = block.spec.responses
    if feature.how == "awake":
        return found[:, 0]
    if feature.how == "keen":
        return found[:, 1] / found[:, 0]
    if feature.how == "leaning":
        return found[:, 2 + len(responses)]
    mine = found[:, 2 + responses.index(feature.kind or "")]
    return mine if feature.how == "next" else mine / found[:, 2]


def _filtered(block: Block) -> Array:
    """What is thought at each point, see ``filters.filtered``: float64[q, 3 + responses]."""
    part, xp = block.part, block.xp
    exposures, before = block.rows.keep(("presence", "exposures"), lambda: presence.exposed(part, block.spec))
    chain = block.rows.keep(("presence", "chain"), lambda: presence.chain(xp, block.spec))
    begin = before[part.positions(block.seg, block.at - HORIZON)]
    family = presence.families(part, block.spec, block.family, len(block.seg))
    return part.backend.filters.filtered(xp, exposures, chain, block.seg, block.at, begin, before[block.end], family)
