"""EventStore: snapshots of the sorted events, read by key range as a Dask dataframe of whole subscribers.

    store = EventStore("runs/demo/store")
    events = store.read("acme", since="2026-06-01", columns=["ts", "event"])

A read is planned from the row-group index alone. Each partition is one key range; any number of partitions gives the
same events, each subscriber whole in one of them and in the total order.
"""

from __future__ import annotations

import datetime as dt
import math
import zoneinfo
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import PANDAS, Backend, Frame
from pipeline.errors import DataError, StoreError, did_you_mean
from pipeline.events.commit import Settings, live_files, manifests, open_table, table_schema, table_settings
from pipeline.events.files import Place
from pipeline.events.index import FOLDER, Groups, load, run_of
from pipeline.events.reading import PartPlan, empty_rows, read_part
from pipeline.events.schema import microseconds
from pipeline.events.sorting import key_bounds
from pipeline.events.volume import trend

PART_ROWS = 1_500_000  # of a partition, about, where the reader names no number
Time = str | int | dt.datetime | dt.date | None


@dataclass(frozen=True)
class ReadPlan:
    """What a read would do, from the index alone: no data file was opened.

    ``bounds``: the partitions' key bounds, parts + 1 integers; ``parts``: what each reads, with its ``rows``,
    ``bytes`` and row groups.
    """

    client: str
    bounds: tuple[int, ...]
    parts: tuple[PartPlan, ...]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def rows(self) -> int:
        """Rows that will be decoded: at least those that the read yields."""
        return sum(p.rows for p in self.parts)

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.parts)

    @property
    def partitions(self) -> int:
        return len(self.parts)

    @property
    def files(self) -> int:
        return len({path for p in self.parts for path, _ in p.files})

    def __len__(self) -> int:
        return len(self.parts)


def _partitions_of(rows: int) -> int:
    """The power of two that brings a partition nearest to PART_ROWS.

    Row groups are cut at bounds of 2**k equal ranges, so that each is then read by one partition: where a batch of 10
    million rows has 512 groups, 667 partitions would decode every row 2.3 times.
    """
    return 1 << max(0, round(math.log2(max(rows, 1) / PART_ROWS)))


class EventStore:
    """A snapshot of the store.

    Args:
        uri: a path or URI; backend: what frames are made of (pandas by default); version: an older snapshot.
    Raises:
        StoreError: there is no store, it is of another format, or it has no such version.
    """

    def __init__(self, uri: str, backend: Backend | None = None, version: int | None = None) -> None:
        self.uri = str(uri)
        self.backend = backend or PANDAS
        self.place = Place(self.uri)
        table = open_table(self.place.target, version)
        if table is None:
            raise StoreError(
                f"there is no store at {self.uri!r}. Ingest some events first: python -m pipeline.run ingest"
            )
        self._table = table
        self.settings: Settings = table_settings(table, self.uri)
        self.schema: pa.Schema = table_schema(table)
        self._groups: dict[str, Groups] = {}

    def __repr__(self) -> str:
        return f"EventStore({self.uri!r}, version={self.version()})"

    def version(self) -> int:
        """The snapshot's version in the Delta log."""
        return int(self._table.version())

    @cached_property
    def files(self) -> list[dict[str, Any]]:
        """The snapshot's data files: path, client, rows, size."""
        return live_files(self._table)

    def clients(self) -> list[str]:
        """The tenants that have events, sorted."""
        return sorted({f["client"] for f in self.files})

    @property
    def columns(self) -> list[str]:
        """The columns that a read can be asked for."""
        return [n for n in self.schema.names if n != "subscriber_key"]

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Of every committed run: its source files, data files with digests, and counts."""
        return manifests(self.place, self._table)

    @cached_property
    def _indexes(self) -> list[tuple[Groups, dict[str, Any]]]:
        """Row groups and manifest of every run that this snapshot has files of."""
        runs = sorted({run_of(f["path"]) for f in self.files})
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda r: load(self.place, r), runs))
        entries = {e["path"]: e for _, manifest in found for e in manifest["files"]}
        for file in self.files:  # the log has no checksums of its own
            entry = entries.get(file["path"], file)
            if any(entry[name] != file[name] for name in ("client", "rows", "size")):
                raise StoreError(
                    f"the Delta log of {self.uri!r} is damaged: it says that {file['path']!r} has {file['rows']} rows "
                    f"and {file['size']} bytes of client {file['client']!r}; its index says {entry['rows']} and "
                    f"{entry['size']} of {entry['client']!r}. Restore its folder '_delta_log'"
                )
        return found

    def _entries(self, client: str) -> list[dict[str, Any]]:
        """What the manifests say of each of a client's live files, see :func:`pipeline.events.writing.write_file`."""
        paths = {self.groups(client).paths[p] for p in set(self.groups(client).path.tolist())}
        return [e for _, manifest in self._indexes for e in manifest["files"] if e["path"] in paths]

    def groups(self, client: str) -> Groups:
        """The row groups of a client's files in this snapshot, as the index has them.

        Raises:
            DataError: no such client; StoreError: the index does not describe a file.
        """
        if client not in self._groups:
            paths = {f["path"] for f in self.files if f["client"] == client}
            if not paths:
                near = did_you_mean(client, self.clients())
                raise DataError(f"the store {self.uri!r} has no client {client!r}; {near}")
            found = Groups.concat([groups for groups, _ in self._indexes])
            live = np.array([p in paths for p in found.paths], dtype=bool)
            mine = found.select(live[found.path])
            missing = paths.difference(found.paths)
            if missing:
                raise StoreError(
                    f"the index of {self.uri!r} does not describe {min(missing)!r}; restore its folder {FOLDER!r}"
                )
            self._groups[client] = mine
        return self._groups[client]

    def rows(self, client: str | None = None) -> int:
        """Rows stored, duplicates across batches included (reads drop them)."""
        return sum(int(f["rows"]) for f in self.files if client is None or f["client"] == client)

    def bytes(self) -> int:
        """Compressed size of the snapshot's data files."""
        return sum(int(f["size"]) for f in self.files)

    def totals(self) -> dict[str, int]:
        """Rows of every batch ever ingested: ``in`` == ``kept`` + ``duplicates`` + ``rejected``."""
        counts = [m["counts"] for m in self.manifests().values() if m["kind"] == "ingest"]
        total = {name: sum(c[name] for c in counts) for name in ("rows", "kept", "duplicates", "rejected")}
        return {"in": total.pop("rows"), **total}

    def rules(self, examples: int = 5) -> list[dict[str, Any]]:
        """What every validation rule found in all batches ever ingested.

        Returns:
            name, action, count, share, examples, ``unit`` and ``meaning`` (see :mod:`pipeline.events.quality`), and
            ``trend``: what it found of each day's arrivals (see :func:`pipeline.events.volume.trend`).
        """
        runs = [m for m in self.manifests().values() if m["kind"] == "ingest"]
        rows = sum(m["counts"]["rows"] for m in runs)
        arrivals: dict[str, int] = {}
        found: dict[str, dict[str, Any]] = {}
        for manifest in sorted(runs, key=lambda m: str(m["run"])):
            for rule in manifest.get("rules", ()):
                one = found.setdefault(rule["name"], {**rule, "count": 0, "of": 0, "examples": [], "days": {}})
                one["action"] = rule["action"]
                one["count"] += rule["count"]
                one["of"] += rule["of"]
                one["examples"] = [*one["examples"], *rule["examples"]][:examples]
                one["days"] = {
                    d: one["days"].get(d, 0) + rule["days"].get(d, 0) for d in {**one["days"], **rule["days"]}
                }
            for day, count in manifest["arrivals"].items():
                arrivals[day] = arrivals.get(day, 0) + count
        for one in found.values():
            of = rows if one["unit"] == "rows" else one.pop("of")
            one["of"], one["share"] = of, one["count"] / of if of else 0.0
            one["trend"] = trend(one.pop("days"), arrivals, one["unit"])
        return list(found.values())

    def kinds(self, client: str) -> dict[str, int]:
        """Rows of each kind, the most frequent first, duplicates across batches included; opens no data file."""
        counts: dict[str, int] = {}
        for entry in self._entries(client):
            for kind, count in entry["kinds"].items():
                counts[kind] = counts.get(kind, 0) + count
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def has_machines(self, client: str) -> bool:
        """Whether a row of a client is flagged as a machine's, so that the column ``machine`` is worth reading.

        Files written before this was counted may have some.
        """
        return any(entry.get("machines") != 0 for entry in self._entries(client))

    def bounds(self, client: str) -> tuple[int, int]:
        """The first and last event's time, microseconds UTC."""
        groups = self.groups(client)
        return int(groups["ts_min"].min()), int(groups["ts_max"].max())

    def end(self, client: str) -> int:
        """The latest time of an event, microseconds UTC; ahead of its row's arrival it counts as that one."""
        return max(int(e["happened"]) for e in self._entries(client))

    def last_full_day(self, client: str, timezone: str = "UTC") -> int:
        """The end of the last full day: the midnight at or before the last event, microseconds UTC.

        A time ahead of its row's arrival, which clocks that are fast write, counts as that of the arrival: a day is not
        over before something has arrived after it.
        """
        last = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=self.end(client))
        midnight = last.astimezone(zoneinfo.ZoneInfo(timezone)).replace(hour=0, minute=0, second=0, microsecond=0)
        return microseconds(midnight.astimezone(dt.UTC)) or 0

    def plan(
        self,
        client: str,
        since: Time = None,
        until: Time = None,
        columns: Sequence[str] | None = None,
        partitions: int | None = None,
        as_known_at: Time = None,
    ) -> ReadPlan:
        """Plan a read without opening a data file. Arguments as for :meth:`read`."""
        groups = self.groups(client)
        wanted = list(columns) if columns is not None else self.columns
        wanted = [c for c in dict.fromkeys(wanted) if c != "subscriber_key"]
        unknown = [c for c in wanted if c not in self.schema.names]
        if unknown:
            raise DataError(f"the store has no column {unknown[0]!r}; {did_you_mean(unknown[0], self.columns)}")
        low, high, known = microseconds(since), microseconds(until), microseconds(as_known_at)
        mask = np.ones(len(groups), dtype=bool)
        if low is not None:
            mask &= groups["ts_max"] >= low
        if high is not None:
            mask &= groups["ts_min"] < high
        groups = groups.select(mask)
        if partitions is None:
            partitions = _partitions_of(int(groups["rows"].sum()))
        if partitions < 1:
            raise DataError(f"a read has at least 1 partition, not {partitions}")
        bounds = key_bounds(partitions)
        inner = np.array(bounds[1:-1], dtype=np.int64)
        first = np.searchsorted(inner, groups["key_min"], side="right")
        last = np.searchsorted(inner, groups["key_max"], side="right")
        prefix = self.place.target.rstrip("/")
        parts = []
        for i in range(partitions):
            mine = groups.select((first <= i) & (i <= last))
            order = np.lexsort((mine["group"], mine.path))
            files: dict[str, list[int]] = {}
            for path, group in zip(mine.path[order].tolist(), mine["group"][order].tolist(), strict=True):
                files.setdefault(f"{prefix}/{mine.paths[path]}", []).append(group)
            parts.append(
                PartPlan(
                    bounds[i],
                    bounds[i + 1],
                    low,
                    high,
                    known,
                    tuple(wanted),
                    tuple((p, tuple(g)) for p, g in sorted(files.items())),
                    int(mine["rows"].sum()),
                    int(mine["bytes"].sum()),
                    self.settings.deduplicate,
                    self.schema,
                    client,
                )
            )
        return ReadPlan(client, tuple(bounds), tuple(parts))

    def read_range(self, plan: ReadPlan, i: int) -> Frame:
        """Partition ``i`` of a plan, read now; not to be written to, columns may be views of what was read."""
        return read_part(plan.parts[i], self.backend)

    def read(
        self,
        client: str,
        since: Time = None,
        until: Time = None,
        columns: Sequence[str] | None = None,
        partitions: int | None = None,
        as_known_at: Time = None,
    ) -> Any:
        """One client's events as a Dask dataframe.

        Args:
            since, until: events with since <= ts < until; ISO text, datetime, or int microseconds UTC.
            columns: those wanted, all by default; the index is always ``subscriber_key``.
            partitions: how many equal key ranges; by default a power of two, of about 1.5 million rows each.
            as_known_at: only rows that had arrived (``ingested_at``) by then.
        Returns:
            a ``dask.dataframe`` with known divisions (the key bounds). Each partition holds whole subscribers in the
            total order, duplicates dropped; ``ts`` is naive UTC datetime64[us], kinds and names are categories.
        Raises:
            DataError: no such client or column; StoreError (on computing): a damaged file.
        """
        return self.read_plan(self.plan(client, since, until, columns, partitions, as_known_at))

    def read_plan(self, plan: ReadPlan) -> Any:
        """A plan as a Dask dataframe."""
        import dask
        import dask.dataframe as dd

        divisions = (*plan.bounds[:-1], plan.bounds[-1] - 1)
        task = partial(read_part, backend=self.backend, own=True)
        with dask.config.set({"dataframe.convert-string": False}):  # texts are pandas' own str on both sides already
            return dd.from_map(
                task,
                list(plan.parts),
                meta=self.meta(plan),
                divisions=divisions,
                label="read-events",
                enforce_metadata=False,
            )

    def meta(self, plan: ReadPlan) -> Frame:
        """An empty frame of the plan's columns and types, with categories unknown."""
        part = plan.parts[0]
        columns = list(dict.fromkeys(["subscriber_key", "ts", *part.columns]))
        frame = empty_rows(part, columns, self.backend).frame(list(part.columns))
        if self.backend.on_gpu:
            return frame
        from dask.dataframe.utils import clear_known_categories

        return clear_known_categories(frame)

    def verify(self, workers: int = 2) -> int:
        """Check every live data file and every index file: size, digest, rows. Returns the number of data files.

        Raises:
            StoreError: names every file that is not what was written.
        """
        from pipeline.events.integrity import check, complain

        found = check(self, workers)
        if found.damaged:
            raise complain(found)
        return found.files
