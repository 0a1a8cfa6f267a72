"""Raw files to the sorted store: read, validate, key, sort, drop duplicates, write, commit; batch by batch.

A batch is up to ``batch_rows`` rows of source files not yet ingested, in the order of their names. Its files are read
in parallel (:mod:`prepare`); its rows, by client and key range, are sorted and written in parallel; then one commit
adds them all. For every batch, rows in = kept + duplicates + rejected, or the run fails before the commit.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

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
    store_id,
    table_schema,
)
from pipeline.events.files import Place, fault
from pipeline.events.fitting import agree
from pipeline.events.index import Groups
from pipeline.events.locks import writing
from pipeline.events.parts import Findings, Sorter
from pipeline.events.prepare import Prepared, prepare
from pipeline.events.quality import Rulebook, RuleResult, refuse
from pipeline.events.quarantine import encode as encode_quarantine
from pipeline.events.ranges import BatchRows, Range
from pipeline.events.schema import FORMAT_VERSION
from pipeline.events.setaside import SetAside
from pipeline.events.sources import (
    Known,
    Sources,
    Unit,
    bad_file,
    batch_id,
    discover,
    make_batches,
    with_digest,
)
from pipeline.events.volume import Past, Tally, add_tally, judge
from pipeline.events.writing import Written, group_bits, write_file
from pipeline.extensions import digest
from pipeline.progress import Progress

WORKERS = 2
T = TypeVar("T")


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
    compile_seconds: float = 0.0  # of ``seconds``; next to nothing once numba has cached its code
    bad_files: list[dict[str, Any]] = field(default_factory=list)  # set aside: file, size, sha256, error, changed, time
    version: int = -1
    seconds: float = 0.0

    def line(self) -> str:
        """The one line every run prints."""
        text = f"rows in {self.rows_in:,} = kept {self.kept:,} + duplicates {self.duplicates:,}"
        text += f" + rejected {self.rejected:,}"
        if not self.files:
            files = "file was ingested" if self.skipped_files == 1 else "files were ingested"
            text += f" (nothing new: {self.skipped_files:,} {files} before)"
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
    arrivals: dict[str, int] = field(default_factory=dict)  # ISO date -> rows in
    tally: dict[str, Tally] = field(default_factory=dict)  # by client


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
        ConfigError: the mapping fits no file, before any work; SourceError: no file can be read or, with
        ``source.on_error: fail``, one cannot or has changed;
        DataError: a rule's action is fail, or too many rows are rejected; StoreError: the store cannot be written.
    """
    started = time.perf_counter()
    if config.source is None:
        raise ConfigError("no source: give source.path and source.columns in the configuration")
    book = Rulebook.of(config.quality)
    place = Place(config.store_uri)
    uri = place.target
    table = open_table(uri)
    runs = list(manifests(place, table).values()) if table is not None else []
    known = known_sources(runs)
    sources = discover(config.source.path, known, workers * 2)
    aside = SetAside(config.source.on_error, config.run_dir, sources.fs)
    for found, error in sources.bad:
        aside.add(found, error)
    for found, error in sources.changed:
        aside.add(found, error, changed=True)
    agreed = agree(config, sources, table, uri, aside) if sources.units else None
    if not sources.units:
        aside.refuse_all()
    aside.save()
    report = IngestReport(files=sources.files, skipped_files=len(sources.skipped))
    results = {name: book.result(name) for name, action in book.chosen.items() if action != "off"}
    with writing(place):
        if agreed is not None and sources.units:
            settings, carried = agreed
            if table is None:
                table = create_table(place, settings, carried)
            missing = {n: t for n, t in carried.items() if n not in table_schema(table).names}
            if missing:
                add_columns(table, missing)
            if backend.compiled:
                from pipeline.events import compiled

                report.compile_seconds = compiled.warm_up()
            if progress is not None and progress.total is None:
                progress.total = sum(u.rows for u in sources.units)
                progress.restart()
            work = _Ingest(
                config,
                backend,
                progress,
                workers,
                book,
                Past.of(runs),
                place,
                settings,
                carried,
                report,
                results,
                aside,
            )
            if not work.run(sources):
                aside.refuse_all()
            aside.save()
        if compaction and table is not None:
            from pipeline.events.compaction import compact_closed

            report.compacted = compact_closed(uri, config.lateness, workers)
    report.bad_files = [bad.public() for bad in aside.files.values()]
    for result in results.values():
        of = report.rows_in if result.unit == "rows" else result.of
        result.share = result.count / of if of else 0.0
    report.rules = [results[name] for name in book.rules if name in results]
    final = open_table(uri)
    report.version = final.version() if final is not None else -1
    report.seconds = time.perf_counter() - started
    return report


@dataclass
class _Ingest:
    """One run's fixed parts, so that the steps below need not hand them around."""

    config: Config
    backend: Backend
    progress: Progress | None
    workers: int
    book: Rulebook
    past: Past
    place: Place
    settings: Settings
    carried: dict[str, pa.DataType]
    report: IngestReport
    results: dict[str, RuleResult]
    aside: SetAside

    def run(self, sources: Sources) -> bool:
        """Batch by batch; False where every file turned out bad."""
        with ThreadPoolExecutor(self.workers) as pool:
            taken = [self.batch(some, sources.fs, pool) for some in make_batches(sources.units, self.config.batch_rows)]
        return any(taken)

    def batch(self, planned: list[Unit], fs: Any, pool: ThreadPoolExecutor) -> bool:
        """Take a batch's files, all but those that turn out bad, and commit them; False where all did."""
        arrival = time.time_ns() // 1000

        def one(unit: Unit) -> Prepared:
            prepared = prepare(fs, unit, self.config, self.settings, self.carried, self.book, arrival, self.backend)
            if self.progress is not None:
                self.progress.advance(prepared.rows, unit.file.name.rpartition("/")[2])
            return prepared

        digested = self.good(pool, lambda u: with_digest(fs, u), planned)
        found = self.good(pool, one, [unit for _, unit in digested])
        if not found:
            return False
        units, parts = [unit for unit, _ in found], [prepared for _, prepared in found]
        name = batch_id(units, self.salt())
        batch = Batch(name, name, units)
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
                batch.results.setdefault(name, self.book.result(name)).add(result, keep)
            _add_counts(batch.per_client, part.per_client)
            for day, count in part.arrivals.items():
                batch.arrivals[day] = batch.arrivals.get(day, 0) + count
        refuse(batch.results, batch.rejected, batch.rows, self.config.quality, batch.run)
        tables = [p.table for p in parts if p.table.num_rows]
        parts.clear()
        written = self.write(tables, batch, pool) if tables else []
        if batch.rows != batch.kept + batch.duplicates + batch.rejected:
            raise DataError(
                f"batch {batch.run}: rows in {batch.rows} is not kept {batch.kept} + duplicates {batch.duplicates} + "
                f"rejected {batch.rejected}; nothing was committed. This is a fault of the program: report it"
            )
        batch.results |= judge(self.past, batch.tally, self.config.quality, self.book)
        refuse(batch.results, batch.rejected, batch.rows, self.config.quality, batch.run)
        table = open_table(self.place.target)
        if rejected:
            data = _quarantine(rejected, store_id(table))
            Place(str(self.config.run_dir)).write(f"quarantine/{batch.run}.parquet", data)
            fault("quarantine-written")
        groups = Groups.concat([w.groups for w in written])
        self.finish(
            batch,
            commit(
                self.place,
                batch.run,
                _manifest(batch, written),
                groups,
                table_schema(table),
                workers=self.workers,
                batch=batch.batch,
            ),
        )
        return True

    def salt(self) -> str:
        """What, beside the files, makes a batch what it is."""
        source = self.config.source.model_dump(mode="json", exclude={"on_error"}) if self.config.source else None
        own = [digest(self.config.extensions)] if self.book.own else []
        return json.dumps([FORMAT_VERSION, source, *own])

    def good(self, pool: ThreadPoolExecutor, task: Callable[[Unit], T], units: list[Unit]) -> list[tuple[Unit, T]]:
        """What a task makes of each unit; a file that it finds bad is set aside, with all its units."""

        def tried(unit: Unit) -> T | EventgrainError:
            try:
                return task(unit)
            except (SourceError, ConfigError) as error:
                return error
            except (OSError, pa.ArrowException, UnicodeError, OverflowError) as error:
                return bad_file(unit.file.name, error)

        units = [u for u in units if u.file.name not in self.aside]
        found: list[tuple[Unit, T]] = []
        before = len(self.aside.files)
        for unit, result in zip(units, _all(pool, tried, units), strict=True):
            if isinstance(result, EventgrainError):
                self.aside.add(unit.file.found, result)
            else:
                found.append((unit, result))
        self.report.files -= len(self.aside.files) - before
        found = [(unit, result) for unit, result in found if unit.file.name not in self.aside]
        if found and len(self.aside.files) > before:
            self.aside.save()
        return found

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
            self.results[name].add(result, self.config.quality.keep_examples)
        self.past.add(batch.tally)
        _add_counts(self.report.per_client, batch.per_client)

    def write(self, tables: list[Any], batch: Batch, pool: ThreadPoolExecutor) -> list[Written]:
        """Sort, deduplicate and write a batch's rows, one task for each client and key range."""
        quality, keep = self.config.quality, self.config.quality.keep_examples
        carried = sorted(self.carried)
        rows = BatchRows(tables, lambda task, files: _all(pool, task, list(files)), self.backend)
        columns = self.config.source.columns if self.config.source else None
        listed = columns is not None and (columns.address or columns.agent) is not None
        deduplicate = self.settings.deduplicate
        sorter = Sorter(rows, batch.run, carried, self.book, self.past, listed, quality, deduplicate, self.backend)
        schema = table_schema(open_table(self.place.target))

        def one(part: Range) -> tuple[str, Written, Findings]:
            found = sorter.sort(part)

            def name(sha: str) -> str:
                return f"{batch.run}-{part.part:02d}of{part.parts:02d}-{sha}.parquet"

            file = write_file(found.rows, schema, group_bits(part.total), self.place, part.client, name)
            return part.client, file, found.findings

        written = []
        for client, file, found in _all(pool, one, rows.ranges):
            written.append(file)
            kept, duplicates, conflicts = file.entry["rows"], found.duplicates, found.conflicts
            batch.kept += kept
            batch.duplicates += duplicates
            batch.conflicts += conflicts
            counts = {"kept": kept, "duplicates": duplicates, "conflicts": conflicts}
            _add_counts(batch.per_client, {client: counts})
            for rule, result in found.results.items():
                if self.book.chosen[rule] != "off":
                    batch.results.setdefault(rule, self.book.result(rule)).add(result, keep)
            add_tally(batch.tally.setdefault(client, {}), found.tally)
        return written


def _quarantine(tables: list[Any], store: str) -> Any:
    """Rejected rows as one Parquet file, which names its store; where files disagree on a column's type, as text."""
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
    return encode_quarantine(table, store)


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
        "rules": [dataclasses.asdict(result) for result in batch.results.values() if result.count or result.of],
        "per_client": batch.per_client,
        "arrivals": batch.arrivals,
        "tally": batch.tally,
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
