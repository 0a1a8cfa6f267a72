"""Raw files to the sorted store: read, validate, key, sort, drop duplicates, write, commit; batch by batch.

A batch is up to ``batch_rows`` rows of source files not yet ingested, in the order of their names. Its files are read
in parallel (:mod:`prepare`); its rows, by client and key range, are sorted and written in parallel; then one commit
adds them all. For every batch, rows in = kept + duplicates + rejected, or the run fails before the commit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, EventgrainError, SourceError
from pipeline.events.commit import (
    Settings,
    add_columns,
    commit,
    create_table,
    manifests,
    open_table,
    table_schema,
    table_settings,
)
from pipeline.events.files import Place, fault
from pipeline.events.hashing import text_buffers
from pipeline.events.index import Groups
from pipeline.events.prepare import Prepared, prepare, readable
from pipeline.events.quality import RULES, RuleResult, actions, refuse, soon_after_send
from pipeline.events.schema import (
    FORMAT_VERSION,
    TIME,
    carried_type,
    map_columns,
    mapped_columns,
    numpy_of,
    plain,
    to_micros,
)
from pipeline.events.sorting import bucket_of, settle, sort_order
from pipeline.events.sources import Known, Sources, Unit, batch_id, discover, make_batches, with_digest
from pipeline.events.tables import ranks
from pipeline.events.writing import SortedRows, Written, group_bits, part_bits, write_file
from pipeline.progress import Progress

WORKERS = 2


@dataclass
class IngestReport:
    """What an ingest did. ``rows_in == kept + duplicates + rejected`` always."""

    rows_in: int = 0
    kept: int = 0
    duplicates: int = 0
    rejected: int = 0
    conflicts: int = 0  # of the duplicates: those with other content under the same id
    files: int = 0
    skipped_files: int = 0
    batches: int = 0
    rules: list[RuleResult] = field(default_factory=list)
    rejected_by: dict[str, int] = field(default_factory=dict)
    per_client: dict[str, dict[str, int]] = field(default_factory=dict)
    compacted: dict[str, int] = field(default_factory=dict)  # client -> files replaced
    version: int = -1
    seconds: float = 0.0

    def line(self) -> str:
        """The one line every run prints."""
        text = f"rows in {self.rows_in:,} = kept {self.kept:,} + duplicates {self.duplicates:,}"
        text += f" + rejected {self.rejected:,}"
        if not self.files:
            text += f" (nothing new: {self.skipped_files:,} files were ingested before)"
        return text

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return {"in": self.rows_in, "kept": self.kept, "duplicates": self.duplicates, "rejected": self.rejected}


@dataclass
class Batch:
    """A batch on its way: counts that must add up, and the files written.

    ``batch`` names its sources and settings, and is committed once. ``run`` names its files: the same where the content
    is the same; where rows take the time of this ingest, with that time, so that rivals never write each other's files.
    """

    batch: str
    run: str
    units: list[Unit]
    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    rejected: int = 0
    conflicts: int = 0
    results: dict[str, RuleResult] = field(default_factory=dict)
    rejected_by: dict[str, int] = field(default_factory=dict)
    per_client: dict[str, dict[str, int]] = field(default_factory=dict)


def known_sources(runs: Iterable[dict[str, Any]]) -> dict[str, Known]:
    """Source file -> what was committed of it, from the runs' manifests."""
    known: dict[str, Known] = {}
    for manifest in runs:
        for s in manifest.get("sources", ()):
            one = known.setdefault(s["name"], Known(s["size"], s["stamp"], s["sha256"], set(), s["total_groups"]))
            one.groups.update(range(s["first"], s["last"]))
    return known


def ingest(
    config: Config, backend: Backend, progress: Progress | None = None, workers: int = WORKERS, compaction: bool = True
) -> IngestReport:
    """Ingest every source file that is not in the store yet.

    Args:
        progress: counts rows; workers: threads; compaction: merge the batches of closed months afterwards.
    Returns:
        an :class:`IngestReport`; ingesting the same files again adds nothing and says so.
    Raises:
        ConfigError: the mapping does not fit, before any work; SourceError: a file is unreadable or has changed;
        DataError: a rule's action is fail, or too many rows are rejected; StoreError: the store cannot be written.
    """
    started = time.perf_counter()
    if config.source is None:
        raise ConfigError("no source: give source.path and source.columns in the configuration")
    chosen = actions(config.quality)
    place = Place(config.store_uri)
    uri = place.target
    table = open_table(uri)
    known = known_sources(manifests(place, table).values()) if table is not None else {}
    sources = discover(config.source.path, known, workers * 2)
    report = IngestReport(files=sources.files, skipped_files=len(sources.skipped))
    results = {name: RuleResult(name, action) for name, action in chosen.items() if action != "off"}
    if sources.units:
        settings, carried = _settle_schema(config, sources, table, uri)
        if table is None:
            table = create_table(place, settings, carried)
        missing = {n: t for n, t in carried.items() if n not in table_schema(table).names}
        if missing:
            add_columns(table, missing)
        if progress is not None and progress.total is None:
            progress.total = sum(u.rows for u in sources.units)
        _Ingest(config, backend, progress, workers, chosen, place, settings, carried, report, results).run(sources)
    if compaction and table is not None:
        from pipeline.events.compaction import compact_closed

        report.compacted = compact_closed(uri, config.lateness, workers)
    for result in results.values():
        result.share = result.count / report.rows_in if report.rows_in else 0.0
    report.rules = [results[name] for name in RULES if name in results]
    final = open_table(uri)
    report.version = final.version() if final is not None else -1
    report.seconds = time.perf_counter() - started
    return report


def _settle_schema(config: Config, sources: Sources, table: Any, uri: str) -> tuple[Settings, dict[str, pa.DataType]]:
    """Check the mapping against every new file and fix the store's settings, before any work."""
    source = config.source
    assert source is not None
    mapped = mapped_columns(source)
    carried: dict[str, pa.DataType] = {}
    texts = False
    for file in {u.file.name: u.file for u in sources.units}.values():
        map_columns(source, file.schema.names, repr(file.name), file.hive)
        types = {f.name: f.type for f in file.schema} | {
            n: pa.string() for n in file.hive if n not in file.schema.names
        }
        for name in ("ts", "ingested_at"):
            if name in mapped:  # refuses numbers without a unit, and types that are no time
                to_micros(pa.nulls(0, types[mapped[name]]), source.time_unit, mapped[name], repr(file.name))
        for name in source.carry:
            kind = carried_type(types[name], name)
            before = carried.setdefault(name, kind)
            if before != kind and not pa.types.is_null(types[name]):
                raise SourceError(
                    f"column {name!r} is {types[name]} in {file.name!r}, but {before} in files before it; "
                    "a carried column has one type"
                )
        if "event_id" in mapped:
            kind = types[mapped["event_id"]]
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            texts |= not (pa.types.is_signed_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))
            texts |= pa.types.is_uint64(kind)
    made = "event_id" not in mapped
    settings = Settings("string" if texts else "int64", made, config.deduplicate)
    if table is None:
        return settings, carried
    have = table_settings(table, uri)
    if have.made_ids != made:
        state = "has event ids made from whole rows" if have.made_ids else "has the source's own event ids"
        raise ConfigError(f"the store {uri!r} {state}; source.columns.event_id cannot change. Use another store")
    if have.deduplicate != config.deduplicate:
        raise ConfigError(
            f"the store {uri!r} was made with deduplicate={have.deduplicate}; use another store to change it"
        )
    schema = table_schema(table)
    for name, kind in carried.items():
        if name in schema.names and schema.field(name).type != kind:
            raise ConfigError(
                f"column {name!r} is {kind}, but the store {uri!r} carries it as {schema.field(name).type}"
            )
    return have, carried


@dataclass
class _Ingest:
    """One run's fixed parts, so that the steps below need not hand them around."""

    config: Config
    backend: Backend
    progress: Progress | None
    workers: int
    chosen: dict[str, str]
    place: Place
    settings: Settings
    carried: dict[str, pa.DataType]
    report: IngestReport
    results: dict[str, RuleResult]

    def run(self, sources: Sources) -> None:
        salt = json.dumps([FORMAT_VERSION, self.config.source.model_dump(mode="json") if self.config.source else None])
        with ThreadPoolExecutor(self.workers) as pool:
            for planned in make_batches(sources.units, self.config.batch_rows):
                units = list(pool.map(lambda u: with_digest(sources.fs, u), planned))
                name = batch_id(units, salt)
                self.batch(Batch(name, name, units), sources.fs, pool)

    def batch(self, batch: Batch, fs: Any, pool: ThreadPoolExecutor) -> None:
        arrival = time.time_ns() // 1000

        def one(unit: Unit) -> Prepared:
            prepared = prepare(fs, unit, self.config, self.settings, self.carried, self.chosen, arrival, self.backend)
            if self.progress is not None:
                self.progress.advance(prepared.rows, unit.file.name.rpartition("/")[2])
            return prepared

        parts = _all(pool, one, batch.units)
        if not all(p.dated for p in parts):
            batch.run = f"{batch.batch}_{arrival:x}"
        keep = self.config.quality.keep_examples
        rejected = []
        for part in parts:
            batch.rows += part.rows
            if part.rejected is not None:
                rejected.append(part.rejected)
                batch.rejected += part.rejected.num_rows
            for name, count in part.rejected_by.items():
                batch.rejected_by[name] = batch.rejected_by.get(name, 0) + count
            for name, result in part.results.items():
                batch.results.setdefault(name, RuleResult(name, result.action)).add(result.count, result.examples, keep)
            _add_counts(batch.per_client, part.per_client)
        refuse(batch.results, batch.rejected, batch.rows, self.config.quality, batch.run)
        tables = [p.table for p in parts if p.table.num_rows]
        parts.clear()
        written = self.write(_combine(tables), batch, pool) if tables else []
        if batch.rows != batch.kept + batch.duplicates + batch.rejected:
            raise DataError(
                f"batch {batch.run}: rows in {batch.rows} is not kept {batch.kept} + duplicates {batch.duplicates} + "
                f"rejected {batch.rejected}; nothing was committed. This is a fault of the program: report it"
            )
        refuse(batch.results, batch.rejected, batch.rows, self.config.quality, batch.run)
        if rejected:
            Place(str(self.config.run_dir)).write(f"quarantine/{batch.run}.parquet", _quarantine(rejected))
            fault("quarantine-written")
        schema = table_schema(open_table(self.place.target))
        groups = Groups.concat([w.groups for w in written])
        self.finish(
            batch,
            commit(
                self.place,
                batch.run,
                _manifest(batch, written),
                groups,
                schema,
                workers=self.workers,
                batch=batch.batch,
            ),
        )

    def finish(self, batch: Batch, added: bool) -> None:
        """Count a batch; one that somebody else committed meanwhile added nothing."""
        if not added:
            self.report.skipped_files += len({u.file.name for u in batch.units})
            self.report.files -= len({u.file.name for u in batch.units})
            return
        self.report.batches += 1
        for name in ("kept", "duplicates", "rejected", "conflicts"):
            setattr(self.report, name, getattr(self.report, name) + getattr(batch, name))
        self.report.rows_in += batch.rows
        for name, count in batch.rejected_by.items():
            self.report.rejected_by[name] = self.report.rejected_by.get(name, 0) + count
        for name, result in batch.results.items():
            self.results[name].add(result.count, result.examples, self.config.quality.keep_examples)
        _add_counts(self.report.per_client, batch.per_client)

    def write(self, table: Any, batch: Batch, pool: ThreadPoolExecutor) -> list[Written]:
        """Sort, deduplicate and write a batch's rows, one task for each client and key range."""
        client = plain(table.column("client"))
        codes, names = numpy_of(client.indices), client.dictionary.to_pylist()
        key, ts = numpy_of(plain(table.column("subscriber_key"))), numpy_of(plain(table.column("ts")))
        counts = np.bincount(codes, minlength=len(names)).tolist()
        bits = [part_bits(c) for c in counts]
        starts = np.concatenate([[0], np.cumsum([1 << b for b in bits])])
        place_of = starts[codes]
        if max(bits):
            width = np.array(bits)[codes]
            for b in set(bits) - {0}:
                mask = width == b
                place_of[mask] += bucket_of(key[mask], b)
        kind = np.uint16 if starts[-1] < 65_536 else np.int64
        order = np.argsort(place_of.astype(kind), kind="stable") if starts[-1] > 1 else np.arange(len(key))
        ends = np.concatenate([[0], np.cumsum(np.bincount(place_of, minlength=int(starts[-1])))])
        tasks = [
            (
                names[c],
                part,
                1 << bits[c],
                group_bits(counts[c]),
                order[ends[starts[c] + part] : ends[starts[c] + part + 1]],
            )
            for c in range(len(names))
            for part in range(1 << bits[c])
        ]
        tasks = [t for t in tasks if len(t[4])]
        columns = {n: plain(table.column(n)) for n in table.column_names}
        schema = table_schema(open_table(self.place.target))

        def one(task: tuple[str, int, int, int, np.ndarray]) -> tuple[str, Written | None, _Part]:
            name, part, parts, groups, rows = task
            found = self.sort(columns, key, ts, rows, name, batch.run)
            file = write_file(
                found.rows,
                schema,
                groups,
                self.place,
                name,
                lambda sha: f"{batch.run}-{part:02d}of{parts:02d}-{sha}.parquet",
            )
            return name, file, found

        written = []
        keep = self.config.quality.keep_examples
        for name, file, found in _all(pool, one, tasks):
            if file is not None:
                written.append(file)
            kept, dropped = len(found.rows.key), found.duplicates
            batch.kept += kept
            batch.duplicates += dropped
            conflicts = found.hits["conflicting_duplicate"][0]
            batch.conflicts += conflicts
            _add_counts(batch.per_client, {name: {"kept": kept, "duplicates": dropped, "conflicts": conflicts}})
            for rule, (count, examples) in found.hits.items():
                if count and self.chosen[rule] != "off":
                    batch.results.setdefault(rule, RuleResult(rule, self.chosen[rule])).add(count, examples, keep)
        return written

    def sort(
        self, columns: dict[str, Any], key: np.ndarray, ts: np.ndarray, rows: np.ndarray, client: str, run: str
    ) -> _Part:
        """One part's rows in the total order without duplicates."""
        xp, backend = self.backend.xp, self.backend
        part_key, part_ts = backend.asarray(key[rows]), backend.asarray(ts[rows])
        order = sort_order(part_key, part_ts, backend)

        def column(name: str, at: Any) -> Any:
            if name == "batch":
                return xp.zeros(len(at), dtype="int64")
            return backend.asarray(ranks(columns[name], rows[backend.to_host(at)]))

        content = ["provider", "value", *sorted(self.carried)]
        settled = settle(order, part_key, part_ts, column, content, backend, self.settings.deduplicate)
        final = rows[backend.to_host(settled.order)]
        take = pa.array(final)
        sorted_key, sorted_ts = key[final], ts[final]
        change = np.flatnonzero(np.concatenate([[True], sorted_key[1:] != sorted_key[:-1]]))
        check_keys(columns["subscriber"], final, sorted_key, client, backend)
        subscribers = columns["subscriber"].take(pa.array(final[change]))
        taken = {
            name: columns[name].take(take)
            for name in ("event", "event_id", "campaign", "provider", "value", *self.carried)
        }
        for name, array in taken.items():
            if pa.types.is_large_string(array.type):
                taken[name] = array.cast(pa.string())
        taken["ingested_at"] = columns["ingested_at"].take(take).view(TIME)
        taken["batch"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(final), np.int32)), pa.array([run]))
        machine, hits = self.flags(sorted_key, sorted_ts, taken, subscribers, change)
        taken["machine"] = pa.array(machine)
        conflicting = rows[backend.to_host(settled.conflicting)]
        examples = [
            {n: columns[n][int(i)].as_py() for n in ("client", "subscriber", "event", "event_id")}
            | {"ts": readable(int(ts[i]))}
            for i in conflicting[: self.config.quality.keep_examples]
        ]
        hits["conflicting_duplicate"] = (len(conflicting), examples)
        return _Part(SortedRows(sorted_key, sorted_ts, taken, subscribers), len(settled.dropped), hits)

    def flags(
        self, key: np.ndarray, ts: np.ndarray, taken: dict[str, Any], subscribers: Any, change: np.ndarray
    ) -> tuple[np.ndarray, dict[str, tuple[int, list[dict[str, Any]]]]]:
        """The machine flag of sorted rows, and what each rule behind it found."""
        machine = np.zeros(len(key), dtype=bool)
        hits: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        rules = [r for r in ("scanner_click", "machine_open") if self.chosen[r] != "off"]
        if not rules:
            return machine, hits
        kinds = {name: i for i, name in enumerate(taken["event"].dictionary.to_pylist())}
        codes = numpy_of(taken["event"].indices)
        campaign = numpy_of(taken["campaign"].indices, -1)
        host = Backend("pandas")
        found = soon_after_send(key, ts, codes, campaign, kinds, self.config.quality.scanner_within, host)
        for rule in rules:
            mask = found[rule]
            if self.chosen[rule] == "flag":
                machine |= mask
            first = np.flatnonzero(mask)[: self.config.quality.keep_examples]
            who = np.searchsorted(change, first, side="right") - 1
            examples = [
                {
                    "subscriber": subscribers[int(w)].as_py(),
                    "event": taken["event"][int(i)].as_py(),
                    "ts": readable(int(ts[i])),
                }
                for i, w in zip(first, who, strict=True)
            ]
            hits[rule] = (int(mask.sum()), examples)
        return machine, hits


@dataclass
class _Part:
    rows: SortedRows
    duplicates: int
    hits: dict[str, tuple[int, list[dict[str, Any]]]]


def check_keys(ids: Any, rows: np.ndarray, key: np.ndarray, client: str, backend: Backend) -> None:
    """Refuse, by name, two subscribers with one key.

    Args:
        ids: Arrow array of the subscribers' ids; rows: int64[n], positions in it sorted by key; key: int64[n], sorted.
    Raises:
        DataError: names both.
    """
    if pa.types.is_integer(ids.type):
        values = numpy_of(ids)[rows]
        other = np.flatnonzero((key[1:] == key[:-1]) & (values[1:] != values[:-1])) + 1
        at = int(other[0]) if len(other) else -1
    elif backend.compiled:
        from pipeline.events import compiled

        at = compiled.first_other_text(*text_buffers(ids), rows, key)
    else:
        taken = ids.take(pa.array(rows))
        differs = pc.not_equal(taken[1:], taken[:-1]).to_numpy(zero_copy_only=False)
        other = np.flatnonzero((key[1:] == key[:-1]) & differs) + 1
        at = int(other[0]) if len(other) else -1
    if at >= 0:
        one, two = ids[int(rows[at - 1])].as_py(), ids[int(rows[at])].as_py()
        raise DataError(
            f"client {client!r}: subscribers {one!r} and {two!r} have one and the same subscriber_key "
            "(a collision of 64-bit hashes). Rename one of them in the source"
        )


def _combine(tables: list[Any]) -> Any:
    """Several files' rows as one table of single chunks with shared dictionaries."""
    kinds = {t.schema.field("subscriber").type for t in tables}
    if len(kinds) > 1:
        at = tables[0].schema.get_field_index("subscriber")
        tables = [t.set_column(at, "subscriber", t.column("subscriber").cast(pa.large_string())) for t in tables]
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    for i, name in enumerate(table.column_names):
        array = plain(table.column(name))
        if pa.types.is_dictionary(array.type):  # kinds of rejected rows must not come back as categories
            codes = numpy_of(array.indices, -1)
            used = np.bincount(codes[codes >= 0], minlength=len(array.dictionary)) > 0
            if not used.all():
                number = np.append(np.cumsum(used) - 1, -1).astype(np.int32)[codes]
                codes_left = pa.array(number, mask=number < 0)
                array = pa.DictionaryArray.from_arrays(codes_left, array.dictionary.filter(pa.array(used)))
                table = table.set_column(i, name, array)
    return table


def _quarantine(tables: list[Any]) -> Any:
    """Rejected rows as one Parquet file; where files disagree on a column's type, as text."""
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        kinds: dict[str, set[str]] = {}
        for t in tables:
            for f in t.schema:
                kinds.setdefault(f.name, set()).add(str(f.type))
        mixed = {n for n, k in kinds.items() if len(k) > 1}
        plainer = []
        for t in tables:
            arrays = {
                n: pa.array([None if v is None else str(v) for v in t.column(n).to_pylist()], pa.string())
                if n in mixed
                else t.column(n)
                for n in t.column_names
            }
            plainer.append(pa.table(arrays))
        table = pa.concat_tables(plainer, promote_options="permissive")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _manifest(batch: Batch, written: list[Written]) -> dict[str, Any]:
    sources = [
        {
            "name": u.file.name,
            "size": u.file.size,
            "stamp": u.file.stamp,
            "sha256": u.file.sha256,
            "rows": u.rows,
            "first": u.first,
            "last": u.last,
            "total_groups": len(u.file.group_rows),
        }
        for u in batch.units
    ]
    counts = {n: getattr(batch, n) for n in ("rows", "kept", "duplicates", "rejected", "conflicts")}
    return {
        "format": FORMAT_VERSION,
        "run": batch.run,
        "kind": "ingest",
        "sources": sources,
        "files": [w.entry for w in written],
        "counts": counts,
        "rejected_by": batch.rejected_by,
        "per_client": batch.per_client,
    }


def _add_counts(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    for client, counts in more.items():
        one = total.setdefault(client, {})
        for name, count in counts.items():
            one[name] = one.get(name, 0) + count


def _all(pool: ThreadPoolExecutor, task: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Every task's result in order; at the first failure the tasks not begun are dropped."""
    futures = [pool.submit(task, item) for item in items]
    try:
        return [f.result() for f in futures]
    except (EventgrainError, Exception):
        for f in futures:
            f.cancel()
        raise
