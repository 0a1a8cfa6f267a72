"""One partition of a read: whole subscribers of a key range, in the total order, without duplicates.

The plan says which row groups of which files overlap the range. Each file's share is a sorted run: it is cut to the
exact key range by two binary searches and to the time range by a mask. Runs that do not overlap in key are
concatenated; others are merged, linear in rows. Duplicates across batches are neighbours after the merge, with equal
key and time and from different runs: only where there are such neighbours are the columns read that tell whether they
are duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipeline.backend import PANDAS, Backend, Frame
from pipeline.events.schema import CANONICAL, CATEGORIES, CATEGORY
from pipeline.events.sorting import merge_order, settle
from pipeline.events.tables import DeviceRows, HostRows, collision, rows_of


@dataclass(frozen=True)
class PartPlan:
    """What one partition reads. Small, and all that a task is sent.

    ``low``, ``high``: the key range [low, high); ``since``, ``until``: [since, until) microseconds, or None;
    ``files``: path (as to be opened) and row groups; ``rows``, ``bytes``: of those row groups, an upper bound.
    """

    low: int
    high: int
    since: int | None
    until: int | None
    known_at: int | None
    columns: tuple[str, ...]
    files: tuple[tuple[str, tuple[int, ...]], ...]
    rows: int
    bytes: int
    deduplicate: bool
    schema: Any = field(repr=False)
    client: str = ""


@dataclass
class _Run:
    """A file's share of a partition, and how to cut another column of it the same way."""

    path: str
    groups: list[int]
    rows: Any
    first: int
    last: int
    mask: Any | None

    def cut(self, rows: Any) -> Any:
        rows = rows.slice(self.first, self.last)
        return rows if self.mask is None else rows.filter(self.mask)


def _load(part: PartPlan, path: str, groups: list[int], columns: list[str], backend: Backend) -> _Run:
    return _cut(part, path, groups, rows_of(backend).read(path, groups, columns, part.schema, backend), backend)


def _cut(part: PartPlan, path: str, groups: list[int], rows: Any, backend: Backend) -> _Run:
    """Of sorted rows those that the partition reads."""
    key, xp = rows.integers("subscriber_key"), backend.xp
    first = int(xp.searchsorted(key, xp.asarray([part.low], dtype="int64"), side="left")[0])
    last = len(key)
    if part.high < 2**63:
        last = int(xp.searchsorted(key, xp.asarray([part.high], dtype="int64"), side="left")[0])
    if (first, last) != (0, len(key)):
        rows = rows.slice(first, last)
    mask = None
    if len(rows):
        if part.since is not None or part.until is not None:
            ts = rows.integers("ts")
            if part.since is not None and int(ts.min()) < part.since:
                mask = ts >= part.since
            if part.until is not None and int(ts.max()) >= part.until:
                mask = ts < part.until if mask is None else mask & (ts < part.until)
        if part.known_at is not None:
            known = rows.integers("ingested_at") <= part.known_at
            mask = known if mask is None else mask & known
    if mask is not None:
        rows = rows.filter(mask)
    return _Run(path, groups, rows, first, last, mask)


@dataclass
class Merged:
    """A partition's rows, and the duplicates across batches that were dropped from them."""

    rows: Any
    duplicates: int = 0
    conflicts: int = 0


def read_rows(part: PartPlan, backend: Backend) -> Merged:
    """The partition's rows (see :class:`pipeline.events.tables.Rows`): key, ts and the plan's columns."""
    columns = list(dict.fromkeys(["subscriber_key", "ts", *part.columns, *_known(part)]))
    runs = [_load(part, path, list(groups), columns, backend) for path, groups in part.files]
    some = [r for r in runs if len(r.rows)]
    kind: Any = rows_of(backend)
    if not some:
        return Merged(runs[0].rows if runs else empty_rows(part, columns, backend))
    ends = []
    for r in some:
        key = r.rows.integers("subscriber_key")
        ends.append((int(key[0]), int(key[-1])))
    by_key = sorted(range(len(some)), key=lambda i: ends[i])
    if all(ends[a][1] < ends[b][0] for a, b in pairwise(by_key)):
        return Merged(kind.concat([some[i].rows for i in by_key]))
    some.sort(key=lambda r: int(r.rows.integers("ts").min()))  # runs in the order of time merge fastest
    whole = kind.concat([r.rows for r in some])
    starts = [0]
    for r in some:
        starts.append(starts[-1] + len(r.rows))
    key, ts = whole.integers("subscriber_key"), whole.integers("ts")
    order, key_in_order, ts_in_order, tied = merge_order(key, ts, starts, backend)
    if not tied:
        return Merged(whole.take(order, {"subscriber_key": key_in_order, "ts": ts_in_order}))
    loader = _Columns(part, some, starts, whole, backend)
    content = sorted([n for n in part.schema.names if n not in CANONICAL] + ["provider", "value"])
    settled = settle(order, key, ts, loader.ranks, content, backend, part.deduplicate, run=loader.run_of_row)
    return Merged(whole.take(settled.order), len(settled.dropped), len(settled.conflicting))


class _Columns:
    """Columns for deciding ties, read late and only from the runs that tie."""

    def __init__(self, part: PartPlan, runs: list[_Run], starts: list[int], whole: Any, backend: Backend) -> None:
        self.part, self.runs, self.starts, self.whole, self.backend = part, runs, starts, whole, backend
        xp = backend.xp
        sizes = [b - a for a, b in pairwise(starts)]
        self.run_of_row = xp.concatenate([xp.full(n, i, dtype="int32") for i, n in enumerate(sizes)])

    def ranks(self, name: str, rows: Any) -> Any:
        if name in self.part.columns:
            return self.whole.ranks(name, rows)
        backend, xp = self.backend, self.backend.xp
        kind: Any = rows_of(backend)
        run = self.run_of_row[rows]
        pieces: list[Any] = []
        position = xp.zeros(len(rows), dtype="int64")
        filled = 0
        for i in backend.to_host(xp.unique(run)).tolist():
            one = self.runs[i]
            mine = xp.flatnonzero(run == i)
            read = one.cut(kind.read(one.path, one.groups, [name], self.part.schema, backend))
            pieces.append(read.take(rows[mine] - self.starts[i]))
            position[mine] = filled + xp.arange(len(mine))
            filled += len(mine)
        return kind.concat(pieces).ranks(name, position)


def read_runs(part: PartPlan, step: int) -> Iterator[Iterator[Any]]:
    """The partition's rows as they lie in its files, neither merged nor rid of duplicates between them, on the CPU.

    Returns:
        for each file a sorted run, as Arrow tables of ``step`` row groups at most.
    """
    columns = list(dict.fromkeys(["subscriber_key", "ts", *part.columns, *_known(part)]))
    for path, groups in part.files:
        yield (
            _cut(part, path, list(groups), rows, PANDAS).rows.table
            for rows in HostRows.stepwise(path, list(groups), columns, part.schema, step)
        )


def _known(part: PartPlan) -> list[str]:
    return ["ingested_at"] if part.known_at is not None else []


def empty_rows(part: PartPlan, columns: list[str], backend: Backend) -> Any:
    """No rows, with the columns' types."""
    kinds = {c: CATEGORY if c in CATEGORIES and not backend.on_gpu else part.schema.field(c).type for c in columns}
    table = pa.table({c: pa.array([], k) for c, k in kinds.items()})
    if not backend.on_gpu:
        return HostRows(table)
    data = backend.df.DataFrame.from_arrow(table)
    for name in columns:
        if getattr(data[name].dtype, "tz", None) is not None:
            data[name] = data[name].dt.tz_localize(None)
    return DeviceRows(data, backend)


def read_part(part: PartPlan, backend: Backend, own: bool = False) -> Frame:
    """The partition as a canonical frame, eager: the function that the Dask graph calls.

    Args:
        own: its columns may be written to; without, those that are views of what was read cannot be.
    Raises:
        DataError: subscribers of different batches turn out to share a key; looked at where names are read.
    """
    rows = read_rows(part, backend).rows
    if "subscriber" in part.columns and (names := rows.two_names()):
        raise collision(part.client, *names)
    frame = rows.frame(list(part.columns))
    return frame.copy() if own and not backend.on_gpu else frame
