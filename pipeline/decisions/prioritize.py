"""Sending Priority: in which order the rest should be sent.

Rows to be sent (``send`` and ``explore``) are ranked 1..n by the expected net value of sending, the highest first,
ties by ``subscriber_key``; the ranking is cut into equal waves. Held rows have no rank; unscored ones have none either,
for want of a number: send them as before.
"""

from __future__ import annotations

from pipeline.backend import Array, backend_of
from pipeline.decisions.assure import EXPLORE, SEND


def prioritize(net: Array, action: Array, keys: Array, waves: int) -> tuple[Array, Array]:
    """Rank and wave of n rows.

    Args:
        net: float64[n], expected value of sending; finite where the row is to be sent.
        action: int8[n], positions in ``assure.ACTIONS``.
        keys: int64[n], breaks ties, ascending; equal keys keep their order.
        waves: how many waves, at least 1; their sizes differ by at most one row.
    Returns:
        rank int64[n] and wave int64[n], both from 1; 0 where the row has none.
    """
    xp = backend_of(net).xp
    chosen = xp.flatnonzero((action == SEND) | (action == EXPLORE))
    count = int(chosen.shape[0])
    # Two stable sorts, the lesser key first: CuPy's lexsort takes another shape than NumPy's.
    order = chosen[xp.argsort(keys[chosen], kind="stable")]
    order = order[xp.argsort(-net[order], kind="stable")]
    position = xp.arange(count, dtype=xp.int64)
    rank = xp.zeros(net.shape[0], dtype=xp.int64)
    wave = xp.zeros(net.shape[0], dtype=xp.int64)
    rank[order] = position + 1
    if count:
        wave[order] = position * waves // count + 1
    return rank, wave
