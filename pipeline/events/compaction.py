"""Compaction: the batches of a closed month become few large files, split at fixed key bounds, never across months.

A log ingested day by day is many small sorted files, and a read opens each of them. Once a month is closed (events
have arrived that are ``lateness`` past its end), the batches that end in it are merged: their duplicates are dropped
for good, and rows are written again, one set of files for each calendar month (UTC) they fall in. One commit to the
Delta log adds the new files and removes the old, so a reader sees either; older snapshots still read the old files.
Batches of a bulk load are left alone, they are large and sorted already, unless a client has more than :data:`OPEN`
sorted runs. The month that is still open is merged whenever it has gathered more than :data:`OPEN` batches, as an
hourly ingest does.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import PANDAS
from pipeline.events.commit import commit, rewriting
from pipeline.events.files import fault
from pipeline.events.index import Groups, origin_of
from pipeline.events.locks import writing
from pipeline.events.reading import PartPlan, read_rows
from pipeline.events.schema import FORMAT_VERSION, numpy_of
from pipeline.events.sorting import key_bounds
from pipeline.events.store import EventStore
from pipeline.events.tables import collision, one_array
from pipeline.events.writing import SortedRows, Written, group_bits, part_bits, write_file
from pipeline.options import UNITS

LATENESS = 2 * UNITS["d"]
COMPACTED = "merged_"  # how the names of compacted runs begin; ingested batches are hexadecimal
OPEN = 40  # more batches than these in a month that is not closed are merged: a partition opens a file of each
LARGE = 4_000_000  # rows of a batch from which on merging it saves readers little and costs as much as its ingest
MANY = 4  # this many compacted sets of one month, from late arrivals, are merged again


def month_of(us: int) -> int:
    """The calendar month (UTC) of a time, as year * 12 + month - 1."""
    at = np.datetime64(us, "us").astype("datetime64[M]")
    return int(at.astype(np.int64)) + 1970 * 12


def month_start(month: int) -> int:
    """The first microsecond of a month numbered as by :func:`month_of`."""
    return int(np.datetime64(month - 1970 * 12, "M").astype("datetime64[us]").astype(np.int64))


def month_name(month: int) -> str:
    return f"{month // 12:04d}{month % 12 + 1:02d}"


@dataclass
class _Run:
    """The live files of one run for one client."""

    run: str
    paths: list[str]
    ts_max: int
    rows: int
    compacted: int | None  # the month of a compacted run's files, None for an ingested batch


def _runs(store: EventStore, client: str) -> list[_Run]:
    groups = store.groups(client)
    newest = np.full(len(groups.paths), np.iinfo(np.int64).min)
    np.maximum.at(newest, groups.path, groups["ts_max"])
    rows = np.bincount(groups.path, weights=groups["rows"], minlength=len(groups.paths)).astype(np.int64)
    live = sorted({groups.paths[p] for p in np.unique(groups.path).tolist()})
    number = {path: i for i, path in enumerate(groups.paths)}
    runs: dict[tuple[str, int | None], _Run] = {}
    for path in live:
        run, last = origin_of(path), int(newest[number[path]])
        month = month_of(last) if run.startswith(COMPACTED) else None
        one = runs.setdefault((run, month), _Run(run, [], last, 0, month))
        one.paths.append(path)
        one.rows += int(rows[number[path]])
        one.ts_max = max(one.ts_max, last)
    return list(runs.values())


def due(store: EventStore, client: str, lateness: int = LATENESS) -> dict[int, list[str]]:
    """Month -> the files to merge: those of two or more batches that end in it, or of many earlier merges.

    A month that is not closed yet waits for more than :data:`OPEN` batches, and batches of :data:`LARGE` rows until the
    client has more than so many runs.
    """
    last = store.bounds(client)[1]
    batches: dict[int, list[_Run]] = defaultdict(list)
    merged: dict[int, list[_Run]] = defaultdict(list)
    runs = _runs(store, client)
    for run in runs:
        if run.compacted is None:
            batches[month_of(run.ts_max)].append(run)
        else:
            merged[run.compacted].append(run)
    found: dict[int, list[str]] = {}
    for month in sorted({*batches, *merged}):
        closed = last >= month_start(month + 1) + lateness
        some = [run for run in batches[month] if run.rows < LARGE or len(runs) > OPEN]
        chosen = some if len(some) > (1 if closed else OPEN) else []
        if len(merged[month]) + bool(chosen) >= MANY and (closed or chosen):
            chosen = chosen + merged[month]
        if chosen:
            found[month] = sorted(path for run in chosen for path in run.paths)
    return found


def compact(store: EventStore, client: str, lateness: int = LATENESS, workers: int = 2) -> int:
    """Merge the batches of a client's months that are due; what reads yield does not change.

    Returns:
        the number of files replaced; 0 when there was nothing to do, or someone else did it meanwhile.
    Raises:
        StoreError: a file is damaged or cannot be written; DataError: two subscribers turn out to share a key.
    """
    replaced = 0
    for month, paths in due(store, client, lateness).items():
        replaced += _merge(store, client, month, paths, workers)
    return replaced


def compact_closed(uri: str, lateness: int = LATENESS, workers: int = 2) -> dict[str, int]:
    """Compact every client of a store: client -> files replaced, for those with any."""
    store = EventStore(uri)
    with writing(store.place):
        found = {client: compact(store, client, lateness, workers) for client in store.clients()}
    return {client: count for client, count in found.items() if count}


def _merge(store: EventStore, client: str, month: int, paths: list[str], workers: int) -> int:
    groups = store.groups(client)
    chosen = np.array([p in set(paths) for p in groups.paths], dtype=bool)
    mine = groups.select(chosen[groups.path])
    total = int(mine["rows"].sum())
    run = COMPACTED + hashlib.sha256("\0".join([client, *paths]).encode()).hexdigest()[:20]
    bits = part_bits(total)
    bounds = key_bounds(1 << bits)
    columns = tuple(store.columns)
    prefix = store.place.target.rstrip("/")

    def one(part: int) -> tuple[list[Written], int, int]:
        inside = (mine["key_max"] >= bounds[part]) & (mine["key_min"] <= bounds[part + 1] - 1)
        here = mine.select(inside)
        files: dict[str, list[int]] = defaultdict(list)
        for path, group in sorted(zip(here.path.tolist(), here["group"].tolist(), strict=True)):
            files[f"{prefix}/{here.paths[path]}"].append(group)
        plan = PartPlan(
            bounds[part],
            bounds[part + 1],
            None,
            None,
            None,
            columns,
            tuple((p, tuple(g)) for p, g in sorted(files.items())),
            int(here["rows"].sum()),
            int(here["bytes"].sum()),
            store.settings.deduplicate,
            store.schema,
        )
        merged = read_rows(plan, PANDAS)
        written = _write(store, client, run, merged.rows, part, bits) if len(merged.rows) else []
        return written, merged.duplicates, merged.conflicts

    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(one, range(1 << bits)))
    written = [w for part in parts for w in part[0]]
    duplicates, conflicts = sum(p[1] for p in parts), sum(p[2] for p in parts)
    kept = sum(w.entry["rows"] for w in written)
    if kept + duplicates != total:
        raise RuntimeError(f"compaction of {client!r} read {total} rows, kept {kept} and dropped {duplicates}")
    fault("compaction-written")
    removed = [f for f in store.files if f["path"] in set(paths)]
    manifest: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "run": run,
        "kind": "compaction",
        "month": month_name(month),
        "files": [w.entry for w in written],
        "replaced": paths,
        "counts": {"rows": total, "kept": kept, "duplicates": duplicates, "conflicts": conflicts},
    }
    added = commit(
        store.place,
        run,
        manifest,
        Groups.concat([w.groups for w in written]),
        store.schema,
        removed=removed,
        serials=[rewriting(client)],
        workers=workers,
    )
    return len(paths) if added else 0


def _write(store: EventStore, client: str, run: str, rows: Any, part: int, bits: int) -> list[Written]:
    """One key range's merged rows as one file for each calendar month."""
    key, ts = rows.integers("subscriber_key"), rows.integers("ts")
    table = rows.table
    ids = one_array(table.column("subscriber"))
    if names := rows.two_names():
        raise collision(client, *names)
    first, last = month_of(int(ts.min())), month_of(int(ts.max()))
    starts = np.array([month_start(month) for month in range(first + 1, last + 1)], dtype=np.int64)
    months = first + np.searchsorted(starts, ts, side="right")
    written = []
    for month in np.unique(months).tolist():
        mask = months == month
        every = bool(mask.all())
        picked = table if every else table.filter(pa.array(mask))
        some_key = key if every else key[mask]
        change = np.flatnonzero(np.concatenate([[True], some_key[1:] != some_key[:-1]]))
        some_ids = ids if every else ids.filter(pa.array(mask))
        columns = {
            name: one_array(picked.column(name))
            for name in store.schema.names
            if name not in ("subscriber_key", "ts", "subscriber")
        }
        sorted_rows = SortedRows(
            np.ascontiguousarray(some_key),
            numpy_of(one_array(picked.column("ts")).view(pa.int64())),
            columns,
            _texts(some_ids.take(pa.array(change))),
        )
        label = f"{run}-{month_name(month)}-{part:02d}of{1 << bits:02d}"
        groups = group_bits(len(some_key) << bits)
        written.append(
            write_file(
                sorted_rows,
                store.schema,
                groups,
                store.place,
                client,
                lambda sha, label=label: f"{label}-{sha}.parquet",  # type: ignore[misc]
            )
        )
    return written


def _texts(array: Any) -> Any:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
