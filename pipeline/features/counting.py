"""How often each kind happened, and to how many subscribers, by campaign, provider and local time.

Each key-range partition is counted by itself; a subscriber lives in one partition only, so that distinct counts add up
over partitions as rows do. What leaves a partition is a row per group, merged with others' two by two as they come.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.backend import PANDAS, Array, Backend, Frame, backend_of
from pipeline.events.reading import PartPlan, read_rows, read_runs
from pipeline.events.schema import numpy_of
from pipeline.features.calendar import clock
from pipeline.options import UNITS

Every = Literal["hour", "day", "month", "all"]
NONE = ""  # stands for a campaign or provider that a row does not have
MACHINE = "machine_"  # begins the names of kinds that a machine caused
HOUR = UNITS["h"]
MERGED_AT_ONCE = 8
GROUPS_AT_ONCE = 8  # row groups of a file: what is read is copied while it is in the cache
# Rows of a partition. Each one has nearly every group, and merging groups costs as much as counting these few rows:
# 20 million events in 4 partitions take two thirds of the time of 16.
MOST_ROWS, LEAST_ROWS = 6_000_000, 500_000


@dataclass(frozen=True)
class Level:
    """What a group is: of which names (``campaign``, ``provider``, both, neither), and of which span of local time."""

    by: tuple[str, ...]
    every: Every


# Groups to count of a level: starts of its spans, int64[s] microseconds of the local clock; or, of every == "all",
# names of campaigns. A level that is not in the mapping is counted whole.
Only = Mapping[Level, Any]


@dataclass
class Rows:
    """A partition's rows as the kernels take them, on either backend.

    ``key``, ``ts``: int64[n], sorted runs one after the other; ``codes``: column -> int32[n] into
    ``names``, of ``event`` and whichever of ``campaign``, ``provider`` are counted by; ``machine``: bool[n];
    ``pieces``: see :func:`pipeline.features.groups.pieces`.
    """

    key: Array
    ts: Array
    codes: dict[str, Array]
    names: dict[str, list[str]]
    machine: Array | None
    pieces: tuple[Array, Array, Array, bool]


@dataclass
class Counted:
    """Groups of some rows, at some levels.

    ``keys``: for each level int64[g, 3], the group's campaign and provider, positions in ``names``, and start,
    microseconds of the local clock; 0 where the level has none. ``values``: for each level int[kinds, g, 2], rows and
    distinct subscribers.
    """

    levels: Sequence[Level]
    kinds: list[str]
    names: dict[str, list[str]]
    keys: list[np.ndarray]
    values: list[np.ndarray]


def _kernels(backend: Backend) -> Any:
    if backend.compiled:
        from pipeline.features import groups_compiled

        return groups_compiled
    from pipeline.features import groups

    return groups


# -- a partition's rows ------------------------------------------------------------------------------------------


def read(part: PartPlan, backend: Backend) -> Rows:
    """Read one partition, without duplicates.

    Sorted files need no merging for this: only where rows of two files tie in key and time, and so may be duplicates,
    is the partition read again by the reader that settles such ties.

    Raises:
        StoreError: a file is damaged.
    """
    if backend.compiled:
        rows = of_runs(read_runs(part, GROUPS_AT_ONCE), part.columns, part.rows)
        if not part.deduplicate or not rows.pieces[3]:
            return rows
    if backend.on_gpu:
        return of_frame(read_rows(part, backend).rows.frame(list(part.columns)))
    table = read_rows(part, backend).rows.table
    return of_runs([[table]], part.columns, table.num_rows)


def of_runs(runs: Iterable[Iterable[Any]], columns: Sequence[str], most: int) -> Rows:
    """Sorted runs, each of which comes as Arrow tables one after the other, as one array for each column.

    Args:
        columns: those there, of ts, event, campaign, provider and machine; most: as many rows as there can be.
    """
    integers = {name: np.empty(most, dtype=np.int64) for name in ("subscriber_key", "ts")}
    texts = [c for c in columns if c not in ("ts", "machine")]
    codes: dict[str, Array] = {c: np.empty(most, dtype=np.int32) for c in texts}
    known = {c: pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([NONE])) for c in texts}
    machine = np.zeros(most if "machine" in columns else 0, dtype=bool)
    starts, n = [0], 0
    for run in runs:
        for table in run:
            for name, out in integers.items():
                _fill(out[n:], table.column(name).cast(pa.int64()).chunks)
            for name, out in codes.items():
                # Codes that were given before stay: an array of no rows stands for them, before the new ones.
                chunks = pa.chunked_array([known[name], *table.column(name).chunks]).unify_dictionaries().chunks
                known[name] = chunks[0]
                _fill(out[n:], [chunk.indices for chunk in chunks])
            if len(machine):
                _fill(machine[n:], table.column("machine").chunks)
            n += table.num_rows
        if n > starts[-1]:  # each run costs a look for each subscriber
            starts.append(n)
    key, ts = (integers[name][:n] for name in ("subscriber_key", "ts"))
    return Rows(
        key,
        ts,
        {name: out[:n] for name, out in codes.items()},
        {name: array.dictionary.to_pylist() for name, array in known.items()},
        machine[:n] if machine[:n].any() else None,
        _kernels(PANDAS).pieces(np, key, ts, np.array(starts)),
    )


def _fill(out: np.ndarray, chunks: list[Any]) -> None:
    """Write chunks of a column one after the other, nulls as 0: no machine, the code of NONE."""
    n = 0
    for chunk in chunks:
        out[n : n + len(chunk)] = numpy_of(chunk, False if out.dtype == bool else 0)
        n += len(chunk)


def of_frame(events: Frame) -> Rows:
    """A canonical frame of whole subscribers, ``subscriber_key`` as index, in the total order."""
    backend = backend_of(events)
    xp = backend.xp
    keyed = events.reset_index()
    codes: dict[str, Array] = {}
    names: dict[str, list[str]] = {}
    for column in ("event", "campaign", "provider"):
        if column not in keyed.columns:
            codes[column], names[column] = xp.zeros(len(keyed), dtype="int32"), [NONE]
            continue
        series = keyed[column]
        if series.dtype.name != "category":
            series = series.astype("category")
        found = [str(v) for v in backend.to_pandas(series.cat.categories.to_series())]
        none = found.index(NONE) if NONE in found else len(found)
        code = backend.codes(series, found)
        codes[column] = xp.where(code < 0, none, code).astype("int32")
        names[column] = found if none < len(found) else [*found, NONE]
    machine = None
    if "machine" in keyed.columns:
        machine = backend.column(keyed["machine"].fillna(False).astype(bool))
    key, ts = backend.column(keyed["subscriber_key"]), backend.column(keyed["ts"].astype("datetime64[us]"))
    starts = xp.asarray(np.array([0, len(keyed)], dtype=np.int64))
    return Rows(key, ts, codes, names, machine, _kernels(backend).pieces(xp, key, ts, starts))


# -- counting ----------------------------------------------------------------------------------------------------


def count(rows: Rows, levels: Sequence[Level], timezone: str, backend: Backend, only: Only | None = None) -> Counted:
    """Count one partition's rows at every level.

    Raises:
        OverflowError: campaigns x providers x hours do not fit 63 bits.
    """
    xp, kernels = backend.xp, _kernels(backend)
    by = [n for n in ("campaign", "provider") if any(n in level.by for level in levels)]
    sizes = {n: len(rows.names[n]) if n in by else 1 for n in ("campaign", "provider")}
    kinds, kind = _kinds(rows, xp)
    shape = len(kinds)
    if len(rows.ts) == 0:
        empty = [np.empty((0, 3), np.int64) for _ in levels], [np.empty((0, 0, 2), np.int64) for _ in levels]
        return Counted(levels, [], _names(rows, by), *empty)
    first, stop, owner, _ = rows.pieces
    finest: Every = "hour" if any(level.every == "hour" for level in levels) else "day"
    unit = HOUR if finest == "hour" else UNITS["d"]
    low, high = int(rows.ts.min()), int(rows.ts.max())
    since, offsets = clock(timezone, low, high)
    base = (low + int(offsets.min())) // unit
    span = (high + int(offsets.max())) // unit - base + 1
    if sizes["campaign"] * sizes["provider"] >= 2**31 or sizes["campaign"] * sizes["provider"] * span >= 2**63:
        raise OverflowError(f"{sizes['campaign']} campaigns x {sizes['provider']} providers are too many to count by")
    name = xp.zeros(len(rows.ts), dtype="int32")
    if by == ["campaign", "provider"]:
        name = rows.codes["campaign"] * np.int32(sizes["provider"]) + rows.codes["provider"]
    elif by:
        name = rows.codes[by[0]]
    cell, found = kernels.cells(xp, rows.ts, name, xp.asarray(since), xp.asarray(offsets), unit, base, span)
    found = backend.to_host(found)
    which, start = found // span, (found % span + base) * unit
    parts = {"campaign": which // sizes["provider"], "provider": which % sizes["provider"]}
    keys, values = [], []
    for level in levels:
        whole = level.every == finest and sorted(level.by) == by
        group, key = _groups(level, parts, start, rows.names, (only or {}).get(level), whole)
        mapped = xp.asarray(group)
        keys.append(key)
        counted = kernels.count_distinct(xp, first, stop, owner, cell, kind, shape, mapped, len(key))
        values.append(backend.to_host(counted))
    seen = np.any([v[:, :, 0].any(axis=1) for v in values], axis=0)
    order = sorted(np.flatnonzero(seen).tolist(), key=lambda i: kinds[i])
    return Counted(levels, [kinds[i] for i in order], _names(rows, by), keys, [v[order] for v in values])


def _names(rows: Rows, by: Sequence[str]) -> dict[str, list[str]]:
    return {n: rows.names[n] if n in by else [NONE] for n in ("campaign", "provider")}


def _kinds(rows: Rows, xp: Any) -> tuple[list[str], Array]:
    """The kinds, a machine's apart, and each row's position among them, int32[n]."""
    names, code = rows.names["event"], rows.codes["event"]
    if rows.machine is None:
        return names, code
    names = [*names, *(MACHINE + n for n in names)]
    code = code + rows.machine * np.int32(len(rows.names["event"]))
    used = np.flatnonzero(backend_of(code).to_host(xp.bincount(code, minlength=len(names))) > 0)
    number = np.zeros(len(names), dtype=np.int32)
    number[used] = np.arange(len(used))
    return [names[i] for i in used.tolist()], xp.asarray(number)[code]


def start_of(start: np.ndarray, every: Every) -> np.ndarray:
    """The beginning of each time's span, int64[g] microseconds."""
    if every == "all":
        return np.zeros_like(start)
    if every == "month":
        months = start.view("datetime64[us]").astype("datetime64[M]")
        return np.asarray(months.astype("datetime64[us]").view(np.int64))
    return np.asarray(start - start % (HOUR if every == "hour" else UNITS["d"]))


def _groups(
    level: Level,
    parts: Mapping[str, np.ndarray],
    start: np.ndarray,
    names: Mapping[str, list[str]],
    only: Any,
    whole: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Each cell's group at a level, int64[cells], and the groups' keys, int64[g, 3]; ``whole``: each cell is one."""
    none = np.zeros_like(start)
    campaign, provider = (parts[n] if n in level.by else none for n in ("campaign", "provider"))
    if whole:
        group, keys = np.arange(len(start)), np.stack([campaign, provider, start], axis=1)
    else:
        group, keys = _number(campaign, provider, start_of(start, level.every))
    if only is None:
        return group, keys
    if level.every == "all":
        wanted = np.array([n in only for n in names["campaign"]], dtype=bool)[keys[:, 0]]
    else:
        wanted = np.isin(keys[:, 2], only)
    number = np.where(wanted, np.cumsum(wanted) - 1, -1)
    return number[group], keys[wanted]


def _number(
    campaign: np.ndarray, provider: np.ndarray, start: np.ndarray, ordered: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct (campaign, provider, start), in their order if that is asked for.

    Returns:
        each row's number, int64[n], and the distinct keys, int64[g, 3].
    """
    if not len(start):
        return np.empty(0, dtype=np.int64), np.empty((0, 3), dtype=np.int64)
    hour = start // HOUR
    low, span, width = int(hour.min()), int(hour.max()) - int(hour.min()) + 1, int(provider.max()) + 1
    group, found = _kernels(PANDAS).factorize(np, (campaign * width + provider) * span + (hour - low))
    if ordered:
        order = np.argsort(found)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        group, found = rank[group], found[order]
    which = found // span
    return group.astype(np.int64), np.stack([which // width, which % width, (found % span + low) * HOUR], axis=1)


# -- merging -----------------------------------------------------------------------------------------------------


def merge(parts: Sequence[Counted]) -> Counted:
    """The counts of several partitions as one's. Groups are sorted by campaign, provider and start, kinds by name."""
    kinds = sorted({k for p in parts for k in p.kinds})
    names = {n: sorted({v for p in parts for v in _used(p, n)}) for n in ("campaign", "provider")}
    keys, values = [], []
    for level in range(len(parts[0].levels)):
        every = np.concatenate([_translate(p, level, names) for p in parts])
        group, key = _number(every[:, 0], every[:, 1], every[:, 2], ordered=True)
        summed = np.zeros((len(kinds), len(key), 2), dtype=np.int64)
        begin = 0
        for p in parts:  # a part's own groups are distinct, so none is named twice
            rows = group[begin : begin + len(p.keys[level])]
            begin += len(rows)
            at = np.array([kinds.index(k) for k in p.kinds], dtype=np.int64)
            _kernels(PANDAS).add(np, summed, rows, at, p.values[level])
        keys.append(key)
        values.append(summed)
    return Counted(parts[0].levels, kinds, names, keys, values)


def _used(part: Counted, name: str) -> set[str]:
    at = 0 if name == "campaign" else 1
    used = np.zeros(len(part.names[name]), dtype=bool)
    for level, key in zip(part.levels, part.keys, strict=True):
        if name in level.by:
            used[key[:, at]] = True
    return {part.names[name][i] for i in np.flatnonzero(used).tolist()}


def _translate(part: Counted, at: int, names: Mapping[str, list[str]]) -> np.ndarray:
    """One level's keys in other lists of names."""
    key = part.keys[at].copy()
    for column, name in enumerate(("campaign", "provider")):
        if name in part.levels[at].by:
            position = {v: i for i, v in enumerate(names[name])}
            key[:, column] = np.array([position.get(v, 0) for v in part.names[name]], dtype=np.int64)[key[:, column]]
    return key


def _partitions(rows: int) -> int:
    """How many partitions to count: few, but one for each core where there are rows enough."""
    return max(-(-rows // MOST_ROWS), min(-(-rows // LEAST_ROWS), len(os.sched_getaffinity(0))), 1)


def _partition(part: PartPlan, levels: Sequence[Level], timezone: str, backend: Backend, only: Only | None) -> Counted:
    return count(read(part, backend), levels, timezone, backend, only)


def count_store(
    store: Any,
    client: str,
    levels: Sequence[Level],
    timezone: str = "UTC",
    only: Only | None = None,
    machine: bool = True,
    partitions: int | None = None,
    **which: Any,
) -> Counted:
    """Count one client's events, partition by partition, by the Dask scheduler in force.

    Args:
        store: an ``EventStore``.
        only: the groups to count; machine: count what machines did apart (as people's otherwise).
        which: ``since``, ``until``, ``as_known_at``, as for a read.
    Raises:
        DataError: no such client; StoreError: a file is damaged; OverflowError: too many groups.
    """
    import dask

    by = [n for n in ("campaign", "provider") if any(n in level.by for level in levels)]
    columns = ["ts", "event", *by, *(["machine"] if machine and store.has_machines(client) else [])]
    plan = store.plan(client, columns=columns, partitions=partitions, **which)
    if partitions is None:
        plan = store.plan(client, columns=columns, partitions=_partitions(plan.rows), **which)
    one = dask.delayed(functools.partial(_partition, levels=tuple(levels), timezone=timezone), pure=False)
    parts = [one(part, backend=store.backend, only=only) for part in plan.parts]
    together = dask.delayed(merge, pure=False)
    while len(parts) > 1:
        step = MERGED_AT_ONCE
        parts = [together(parts[i : i + step]) for i in range(0, len(parts), step)]
    (found,) = dask.compute(parts[0])
    return merge([found]) if plan.partitions == 1 else found
