"""Raw files to the sorted store: read, validate, key, sort, drop duplicates, write, commit; batch by batch.

A batch is up to ``batch_rows`` rows of source files not yet ingested, in the order of their names. Its files are read
and put in order of client and key range in parallel (:mod:`prepare`, :mod:`ranges`); its ranges are sorted and written
in parallel, while the next batch's files are being read; then one commit adds them all. For every batch, rows in =
kept + duplicates + rejected, or the run fails before the commit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, EventgrainError, SourceError
from pipeline.events import tombstones
from pipeline.events.batch import Batch, add_counts
from pipeline.events.commit import (
    Settings,
    StaleError,
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
from pipeline.events.quality import Rulebook, RuleResult
from pipeline.events.quarantine import encode as encode_quarantine
from pipeline.events.quarantine import together
from pipeline.events.ranges import BatchRows, Blocks, Piece, Range, Scratch, piece_of
from pipeline.events.retention import cutoff, expire
from pipeline.events.schema import FORMAT_VERSION
from pipeline.events.screen import Screen
from pipeline.events.setaside import SetAside
from pipeline.events.sources import (
    Digests,
    Known,
    Sources,
    Unit,
    bad_file,
    batch_id,
    discover,
    make_batches,
    read_whole,
)
from pipeline.events.store import EventStore
from pipeline.events.volume import Past, add_tally, judge
from pipeline.events.writing import Written, group_bits, part_bits, write_file
from pipeline.extensions import digest
from pipeline.progress import Progress

WORKERS = 2
Read = tuple[Unit, Prepared, Piece | None] | EventgrainError  # what became of a file
Reading = tuple[Unit, Future[Read]]
WrittenPart = tuple[str, Written, Findings]  # of one client


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
    expired: dict[str, int] = field(default_factory=dict)  # client -> stored rows removed, past retention by now
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
        if config.retention is not None and table is not None:
            report.expired = expire(place, config.retention, whole=True, workers=workers)
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
    blocks: Blocks = field(default_factory=Blocks)
    digests: Digests = field(default_factory=Digests)
    screen: Screen = field(init=False)

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """See who must not come in, as of now."""
        gone = tombstones.read(self.place, open_table(self.place.target))
        span = self.config.retention
        self.screen = Screen(gone, cutoff(EventStore(self.place.uri), span) if span is not None else None)

    def run(self, sources: Sources) -> bool:
        """Batch by batch, the next one's files being read while one is written; False where every file is bad."""
        batches = make_batches(sources.units, self.config.batch_rows)
        taken = False
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                reading = self.read(batches[0], sources.fs, pool)
                for planned, after in zip(batches, [*batches[1:], None], strict=True):
                    batch = self.taken(*reading)
                    writing = self.write(batch, pool) if batch is not None else []
                    if after is not None:
                        reading = self.read(after, sources.fs, pool)
                    if batch is not None:
                        taken |= self.settle(batch, writing, planned, sources.fs, pool)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return taken

    def settle(
        self,
        batch: Batch,
        writing: list[Future[WrittenPart]],
        planned: list[Unit],
        fs: Any,
        pool: ThreadPoolExecutor,
    ) -> bool:
        """Commit a batch, read and written anew where somebody was forgotten since; False where nothing is left."""
        stale: set[str] = set()
        again: Batch | None = batch
        while again is not None:
            written = {future.result()[1].entry["path"] for future in writing}
            try:
                self.commit(again, writing)
            except StaleError:
                stale |= written
                self.look()
                again = self.taken(*self.read(planned, fs, pool))
                writing = self.write(again, pool) if again is not None else []
                continue
            stale -= written
            break
        for path in stale:  # these hold the forgotten; nobody else wrote them, and nothing refers to them
            self.place.delete(path)
        return again is not None

    def read(self, planned: list[Unit], fs: Any, pool: ThreadPoolExecutor) -> tuple[str, int, int, list[Reading]]:
        """Begin to read a batch's files.

        Returns:
            the token of the tombstones that are honoured, the files' arrival, the bits of their pieces' ranges, and
            each file's result.
        """
        screen = self.screen
        arrival = time.time_ns() // 1000
        bits = part_bits(sum(unit.rows for unit in planned))

        def one(unit: Unit) -> Read:
            try:
                whole = read_whole(fs, unit, self.digests)
                prepared = prepare(
                    fs,
                    whole.unit,
                    self.config,
                    self.settings,
                    self.carried,
                    self.book,
                    arrival,
                    self.backend,
                    whole,
                    screen,
                )
                piece = piece_of(prepared.table, bits, self.blocks, self.backend) if prepared.table.num_rows else None
            except (SourceError, ConfigError) as error:
                return error
            except (OSError, pa.ArrowException, UnicodeError, OverflowError) as error:
                return bad_file(unit.file.name, error)
            prepared.table = None
            if self.progress is not None:
                self.progress.advance(prepared.rows, unit.file.name.rpartition("/")[2])
            return whole.unit, prepared, piece

        chosen = [unit for unit in planned if unit.file.name not in self.aside]
        return screen.tombstones.token, arrival, bits, [(unit, pool.submit(one, unit)) for unit in chosen]

    def taken(self, token: str, arrival: int, bits: int, reading: list[Reading]) -> Batch | None:
        """The batch of the files that could be read; those that could not are set aside, with all their units."""
        before = len(self.aside.files)
        found = []
        for unit, future in reading:
            result = future.result()
            if not isinstance(result, EventgrainError):
                found.append(result)
            elif unit.file.name not in self.aside:
                self.aside.add(unit.file.found, result)
        self.report.files -= len(self.aside.files) - before
        found = [one for one in found if one[0].file.name not in self.aside]
        if not found:
            return None
        if len(self.aside.files) > before:  # before the commit; and only where something is good, see refuse_all
            self.aside.save()
        units = [unit for unit, _, _ in found]
        name = batch_id(units, self.salt())
        dated = all(prepared.dated for _, prepared, _ in found)
        batch = Batch(name, name if dated else f"{name}_{arrival:x}", units, bits=bits, token=token)
        for _, prepared, piece in found:
            batch.add(prepared, self.book, self.config.quality.keep_examples)
            if piece is not None:
                batch.pieces.append(piece)
        batch.refuse(self.config.quality)
        return batch

    def commit(self, batch: Batch, writing: list[Future[WrittenPart]]) -> None:
        """Commit a batch once its files are written.

        Raises:
            StaleError: somebody was forgotten since it was read; nothing was committed or counted.
        """
        written = self.count(batch, [future.result() for future in writing])
        self.blocks.give([p.memory for p in batch.pieces if p.memory is not None])
        batch.pieces.clear()
        if batch.rows != batch.kept + batch.duplicates + batch.rejected:
            raise DataError(
                f"batch {batch.run}: rows in {batch.rows} is not kept {batch.kept} + duplicates {batch.duplicates} + "
                f"rejected {batch.rejected}; nothing was committed. This is a fault of the program: report it"
            )
        batch.results |= judge(self.past, batch.tally, self.config.quality, self.book)
        batch.refuse(self.config.quality)
        table = open_table(self.place.target)
        if batch.refused:
            data = encode_quarantine(together(batch.refused), store_id(table))
            Place(str(self.config.run_dir)).write(f"quarantine/{batch.run}.parquet", data)
            fault("quarantine-written")
        groups = Groups.concat([w.groups for w in written])
        manifest = batch.manifest(written)
        schema, workers = table_schema(table), self.workers
        added = commit(
            self.place, batch.run, manifest, groups, schema, workers=workers, batch=batch.batch, token=batch.token
        )
        self.finish(batch, added)

    def salt(self) -> str:
        """What, beside the files, makes a batch what it is."""
        source = self.config.source.model_dump(mode="json", exclude={"on_error"}) if self.config.source else None
        own = [digest(self.config.extensions)] if self.book.own else []
        return json.dumps([FORMAT_VERSION, source, *own])

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
        add_counts(self.report.per_client, batch.per_client)

    def write(self, batch: Batch, pool: ThreadPoolExecutor) -> list[Future[WrittenPart]]:
        """Begin to sort, deduplicate and write a batch's rows, one task for each client and key range."""
        if not batch.pieces:
            return []
        quality, carried = self.config.quality, sorted(self.carried)
        rows = BatchRows(batch.pieces, batch.bits)
        columns = self.config.source.columns if self.config.source else None
        listed = columns is not None and (columns.address or columns.agent) is not None
        deduplicate = self.settings.deduplicate
        sorter = Sorter(rows, batch.run, carried, self.book, self.past, listed, quality, deduplicate, self.backend)
        schema = table_schema(open_table(self.place.target))

        def one(part: Range) -> WrittenPart:
            scratch = Scratch(self.blocks)
            found = sorter.sort(part, scratch)

            def name(sha: str) -> str:
                return f"{batch.run}-{part.part:02d}of{part.parts:02d}-{sha}.parquet"

            file = write_file(found.rows, schema, group_bits(part.total), self.place, part.client, name)
            scratch.free()
            return part.client, file, found.findings

        return [pool.submit(one, part) for part in rows.ranges]

    def count(self, batch: Batch, parts: list[WrittenPart]) -> list[Written]:
        """Count what was kept, what was dropped and what rules found; the files written."""
        keep = self.config.quality.keep_examples
        for client, file, found in parts:
            kept, duplicates, conflicts = file.entry["rows"], found.duplicates, found.conflicts
            batch.kept += kept
            batch.duplicates += duplicates
            batch.conflicts += conflicts
            counts = {"kept": kept, "duplicates": duplicates, "conflicts": conflicts}
            add_counts(batch.per_client, {client: counts})
            for rule, result in found.results.items():
                if self.book.chosen[rule] != "off":
                    batch.results.setdefault(rule, self.book.result(rule)).add(result, keep)
            add_tally(batch.tally.setdefault(client, {}), found.tally)
        return [file for _, file, _ in parts]
