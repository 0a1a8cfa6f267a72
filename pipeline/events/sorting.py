"""Sort, merge and deduplicate rows by the store's total order.

The order is ``subscriber_key, ts, event, campaign, event_id, remaining columns by name``. The first two are sorted by
kernels that know hash keys are uniform and that time mostly ascends; the others are looked at only where key and time
tie, which is rare, by :func:`settle`. Each kernel is an array function with a compiled twin for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.backend import PANDAS, Array, Backend

FIRST_KEY = -(2**63)


def key_bounds(parts: int) -> list[int]:
    """The bounds of ``parts`` equal ranges of int64 keys: parts + 1 integers, the last one past the greatest key."""
    return [FIRST_KEY + (i << 64) // parts for i in range(parts + 1)]


def bucket_of(key: Array, bits: int) -> Array:
    """Which of 2**bits equal key ranges each key is in, int64[n]; bits from 0 to 32."""
    if bits == 0:
        return key * 0
    xp_unsigned = key.view("uint64") ^ key.dtype.type(FIRST_KEY).view("uint64")
    return (xp_unsigned >> xp_unsigned.dtype.type(64 - bits)).view("int64")


def place_order(key: np.ndarray, owner: np.ndarray | None, owners: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The stable order of a file's rows by owner and by which of 2**bits key ranges they are in; on the host.

    Args:
        key: int64[n]; owner: int[n] below ``owners``, None where there is one.
    Returns:
        the order, int64[n], and how many rows are in each range of each owner, int64[owners, 2**bits].
    """
    if PANDAS.compiled:
        from pipeline.events import compiled

        nobody = np.empty(0, dtype=np.int32)
        order, counts = compiled.place_order(key, nobody if owner is None else owner, owners, bits)
    else:
        place = bucket_of(key, bits)
        place = place if owner is None else place + (owner.astype(np.int64) << bits)
        order, counts = np.argsort(place, kind="stable"), np.bincount(place, minlength=owners << bits)
    return order, counts.reshape(owners, -1)


def changes(key: np.ndarray, name: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, int]:
    """Where the rows of each key begin among the sorted; and a position whose name is not that of the row before it,
    though the key is the same; 0 where there is none; on the host.

    Args:
        key: int64[n], sorted; name: int32|int64[n] in the order before, of one subscriber each; order: int64[n].
    Returns:
        int64[d], and the position.
    """
    if PANDAS.compiled:
        from pipeline.events import compiled

        begins, other = compiled.changes(key, name, order)
        return begins, int(other)
    change, name = key[1:] != key[:-1], name[order]
    other = np.flatnonzero(~change & (name[1:] != name[:-1]))
    return np.concatenate([[0], np.flatnonzero(change) + 1]), int(other[0]) + 1 if len(other) else 0


def sort_order(
    key: Array, ts: Array, backend: Backend, empty: Callable[[int, Any], np.ndarray] = np.empty
) -> tuple[Array, Array, Array, bool]:
    """The stable order of rows by ``(key, ts)``; linear in n for hashed keys.

    Args:
        key, ts: int64[n]; empty: from a length and a dtype to an array on the host that may be written to.
    Returns:
        the order, int64[n]; the keys and the times in that order; whether rows may tie in both.
    """
    n = len(key)
    if backend.compiled and n:
        from pipeline.events import compiled

        low, high = int(key.min()), int(key.max())
        span = max((high - low).bit_length(), 1)
        bits = min(max((n // 8).bit_length(), 1), span, 24)
        buckets = ((high - low) >> (span - bits)) + 1
        made = empty(n, np.int64), empty(n, np.int64), empty(n, np.int64)
        tied = compiled.bucket_sort(key, ts, np.uint64(low % 2**64), np.uint64(span - bits), buckets, *made)
        return *made, bool(tied)
    order = lexsort([key, ts], backend)
    return order, key[order], ts[order], True


def merge_order(key: Array, ts: Array, starts: list[int], backend: Backend) -> tuple[Array, Array, Array, bool]:
    """The stable order by ``(key, ts)`` of the concatenation of runs that are each sorted so.

    Args:
        key, ts: int64[n], the runs one after the other.
        starts: the runs' first positions and, last, n.
    Returns:
        the order, int64[n]; the keys and the times in that order; whether rows of different runs may tie in both.
    """
    if backend.compiled:
        from pipeline.events import compiled

        order, key, ts, tied = compiled.merge(key, ts, np.asarray(starts, dtype=np.int64))
        return order, key, ts, bool(tied)
    order = lexsort([key, ts], backend)
    return order, key[order], ts[order], True


def lexsort(keys: list[Array], backend: Backend) -> Array:
    """The stable order by several integer arrays, the first one leading."""
    xp = backend.xp
    order = xp.arange(len(keys[0]), dtype="int64")
    for key in reversed(keys):
        order = order[xp.argsort(key[order], kind="stable")]
    return order


@dataclass
class Settled:
    """``order``: int64[m], the rows kept, in the total order. ``dropped``: int64[d], the duplicates dropped;
    ``conflicting``: int64[c], those of them whose content differs from the row kept."""

    order: Array
    dropped: Array
    conflicting: Array


def settle(
    order: Array,
    key: Array,
    ts: Array,
    column: Callable[[str, Array], Array],
    content: list[str],
    backend: Backend,
    deduplicate: bool = True,
    run: Array | None = None,
) -> Settled:
    """Put rows that tie in key and time into the total order, and drop all but the first-arrived of each identity.

    The identity is ``(key, ts, event, event_id)``. First-arrived is the least ``ingested_at``, then the least content
    (campaign, then the others by name), so the choice does not depend on how rows came in batches, and a row known at
    some time stays known later.

    Args:
        order: int64[n], positions sorted by ``(key, ts)``.
        key, ts: int64[n], unsorted, that ``order`` indexes.
        column: given a column's name and positions, int64[t], an integer array[t] that orders and compares as the
            column does (a value, or a rank among these rows). Asked only for tied rows, and only for what is needed.
        content: the columns besides the identity and campaign that must agree for a duplicate not to be a conflict.
        deduplicate: False keeps duplicates.
        run: int[n], which sorted and duplicate-free run each position comes from; ties within one run are then in
            order already and left alone, and ``order`` must have equal rows run after run.
    """
    xp = backend.xp
    none = xp.empty(0, dtype="int64")
    if len(order) < 2:
        return Settled(order, none, none)
    k, t = key[order], ts[order]
    same = (k[1:] == k[:-1]) & (t[1:] == t[:-1])
    if not bool(same.any()):
        return Settled(order, none, none)
    no = xp.zeros(1, dtype=bool)
    after, before = xp.concatenate([no, same]), xp.concatenate([same, no])
    where = xp.flatnonzero(after | before)
    group = xp.cumsum((~after)[where].astype("int64"))
    if run is not None:
        source = run[order][where]
        across = xp.concatenate([no, (source[1:] != source[:-1]) & (group[1:] == group[:-1])])
        spanning = xp.zeros(int(group[-1]) + 1, dtype=bool)
        spanning[group[across]] = True
        chosen = spanning[group]
        where, group = where[chosen], group[chosen]
        if not len(where):
            return Settled(order, none, none)
    rows = order[where]
    event, campaign, event_id = (column(name, rows) for name in ("event", "campaign", "event_id"))
    by = lexsort([group, event, event_id], backend)
    repeat = xp.ones(len(rows) - 1, dtype=bool)
    for values in (group, event, event_id):
        repeat &= values[by][1:] == values[by][:-1]
    keep = xp.ones(len(rows), dtype=bool)
    conflicting, rest = none, []
    if bool(repeat.any()):
        names = sorted([*content, "batch", "ingested_at"])
        columns = {name: column(name, rows) for name in names}
        rest = [columns[name] for name in names]
        if deduplicate:
            arrival = [columns["ingested_at"], campaign, *(columns[name] for name in content), columns["batch"]]
            by = lexsort([group, event, event_id, *arrival], backend)
            repeat = xp.concatenate([no, repeat])  # the same positions: the leading three columns are sorted alike
            keep[by[repeat]] = False
            places = xp.arange(len(by))
            heads = by[places[~repeat][xp.cumsum((~repeat).astype("int64")) - 1]]
            differs = xp.zeros(len(rows), dtype=bool)
            for values in (campaign, *(columns[name] for name in content)):
                differs |= values[by] != values[heads]
            conflicting = rows[by[differs & repeat]]
    by = lexsort([group, event, campaign, event_id, *rest], backend)
    result = order.copy()
    result[where] = rows[by]
    dropped = rows[~keep]
    if len(dropped):
        kept = xp.ones(len(order), dtype=bool)
        kept[where] = keep[by]
        result = result[kept]
    return Settled(result, dropped, conflicting)
