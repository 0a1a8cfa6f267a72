"""Which source files there are, what they hold, and how they are grouped into batches."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError, first_line
from pipeline.events.files import Found, dangling, digest_of, find_files
from pipeline.events.schema import hive_parts

UNIT_ROWS = 1_000_000
BATCH_ROWS = 10_000_000
ROW_BYTES = 48  # of a row between being read and being written; two batches are in memory at a time
WHOLE_BYTES = 1 << 28  # a source file up to this size is read once, for its digest and its rows


@dataclass(frozen=True)
class SourceFile:
    """A source file that can be read: its footer's facts, and how it is recognised later."""

    name: str
    path: str
    size: int
    stamp: str
    rows: int
    group_rows: tuple[int, ...]
    schema: Any
    sha256: str = ""

    @property
    def hive(self) -> dict[str, str]:
        return hive_parts(self.name)

    @property
    def found(self) -> Found:
        return Found(self.name, self.path, self.size, self.stamp)


@dataclass(frozen=True)
class Unit:
    """Row groups [first, last) of one source file: what one task reads."""

    file: SourceFile
    first: int
    last: int

    @property
    def rows(self) -> int:
        return sum(self.file.group_rows[self.first : self.last])


@dataclass
class Known:
    """What the store knows of one source file: its size, stamp, digest and the row groups already committed."""

    size: int
    stamp: str
    sha256: str
    groups: set[int] = field(default_factory=set)
    total_groups: int = 0


@dataclass
class Sources:
    """``units``: not yet ingested; ``skipped``: names of files ingested before; ``files``: how many to ingest;
    ``bad``: those that cannot be read, each with its error; ``changed``: those whose content is not what was ingested.
    """

    fs: Any
    units: list[Unit]
    skipped: list[str]
    files: int
    bad: list[tuple[Found, SourceError]] = field(default_factory=list)
    changed: list[tuple[Found, SourceError]] = field(default_factory=list)

    def drop(self, names: Container[str]) -> None:
        """Leave out some files."""
        self.units = [u for u in self.units if u.file.name not in names]
        self.files = len({u.file.name for u in self.units})


class ChangedError(SourceError):
    """A file that was ingested before has other content now."""


def bad_file(name: str, error: BaseException) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return SourceError(
            f"source file {name!r} vanished while it was being read. Run again when no one moves the files"
        )
    return SourceError(
        f"source file {name!r} cannot be read: {first_line(error)}. Expected a whole Parquet file; "
        "mend it, or move it out of source.path, and run again"
    )


def read_footer(fs: Any, found: Found) -> SourceFile:
    """Open a file's footer.

    Raises:
        SourceError: truncated, not Parquet, unreadable or gone; names the file.
    """
    try:
        with fs.open_input_file(found.path) as handle, pq.ParquetFile(handle) as file:
            meta = file.metadata
            groups = tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
            return SourceFile(found.name, found.path, found.size, found.stamp, meta.num_rows, groups, file.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        raise bad_file(found.name, error) from None


def _taken(link: str, known: Mapping[str, Known]) -> bool:
    """Whether a link, or what was below it, was ingested before: then it may go as any source file may."""
    return link in known or any(name.startswith(f"{link}/") for name in known)


def _link_to_nothing(link: str) -> tuple[Found, SourceError]:
    shown, target = (os.fsencode(path).decode(errors="replace") for path in (link, os.readlink(link)))  # noqa: PTH115
    error = SourceError(
        f"source file {shown!r} is a symbolic link to {target!r}, which is not there. "
        "Put it back, or remove the link, and run again"
    )
    return Found(shown, link, 0, ""), error


def discover(uri: str, known: Mapping[str, Known], workers: int) -> Sources:
    """List the source and decide what is new.

    A file is its path, size and digest. One whose size and stamp (times of change) are those recorded is taken as
    unchanged without reading it; another stamp with the same digest is unchanged too.

    A file that cannot be read, or a link to nothing, is in ``bad``, one already ingested that has other content now in
    ``changed``.

    Raises:
        SourceError: the source cannot be listed, or holds no Parquet file.
    """
    links = [_link_to_nothing(link) for link in dangling(uri) if not _taken(link, known)]
    try:
        fs, found = find_files(uri)
    except SourceError as error:
        raise (links[0][1] if links else error) from None

    def look(item: Found) -> SourceFile | SourceError | None:
        before = known.get(item.name)
        try:
            if before is not None:
                now = f"{item.size:,} bytes"
                changed = before.size != item.size
                if not changed and before.stamp != item.stamp:
                    sha = digest_of(fs, item.path)
                    changed, now = sha != before.sha256, f"{now}, SHA-256 {sha[:12]}"
                if changed:
                    return ChangedError(
                        f"source file {item.name!r} was ingested before and its content has changed since (then "
                        f"{before.size:,} bytes, SHA-256 {before.sha256[:12]}; now {now}). Source files are never "
                        "reread: put the old content back, and write new rows to a new file"
                    )
                if len(before.groups) >= before.total_groups:
                    return None
            return read_footer(fs, item)
        except SourceError as error:
            return error
        except (OSError, pa.ArrowException) as error:
            return bad_file(item.name, error)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        looked = list(pool.map(look, found))
    sources = Sources(fs, [], [], 0, bad=links)
    for item, file in zip(found, looked, strict=True):
        if isinstance(file, SourceError):
            (sources.changed if isinstance(file, ChangedError) else sources.bad).append((item, file))
            continue
        if file is None:
            sources.skipped.append(item.name)
            continue
        sources.files += 1
        done = known[item.name].groups if item.name in known else set()
        left = [g for g in range(len(file.group_rows)) if g not in done]
        if not left:
            sources.units.append(Unit(file, 0, 0))
        for first, last in _runs(left):
            sources.units.append(Unit(file, first, last))
    return sources


def _runs(numbers: list[int]) -> Iterable[tuple[int, int]]:
    start = previous = None
    for n in numbers:
        if start is None or previous is None:
            start = n
        elif n != previous + 1:
            yield start, previous + 1
            start = n
        previous = n
    if start is not None and previous is not None:
        yield start, previous + 1


def batch_rows(units: list[Unit]) -> int:
    """How many rows a batch has: at least 10 million, of a bulk load an eighth, so that the next one is read while one
    is written, but no more than that two batches take an eighth of the memory. The fewer batches, the fewer sorted runs
    a reader has to merge.
    """
    from distributed.system import MEMORY_LIMIT  # knows of control groups

    return max(min(sum(unit.rows for unit in units) // 8, int(MEMORY_LIMIT) // 16 // ROW_BYTES), BATCH_ROWS)


def make_batches(units: list[Unit], rows: int | None = None) -> list[list[Unit]]:
    """Group units, in order, into batches of at most so many rows; None: of :func:`batch_rows`.

    A file of more than :data:`UNIT_ROWS` rows is split at its row groups, so that several tasks read it.
    """
    limit = batch_rows(units) if rows is None else rows
    batches: list[list[Unit]] = []
    current: list[Unit] = []
    size = 0
    for unit in units:
        for piece in _split(unit, min(limit, UNIT_ROWS)):
            if current and size + piece.rows > limit:
                batches.append(current)
                current, size = [], 0
            current.append(piece)
            size += piece.rows
    if current:
        batches.append(current)
    return batches


def _split(unit: Unit, limit: int) -> Iterable[Unit]:
    if unit.rows <= limit:
        yield unit
        return
    first, size = unit.first, 0
    for group in range(unit.first, unit.last):
        rows = unit.file.group_rows[group]
        if size and size + rows > limit:
            yield Unit(unit.file, first, group)
            first, size = group, 0
        size += rows
    yield Unit(unit.file, first, unit.last)


class Digests:
    """The SHA-256 of each source file, worked out once though several tasks read parts of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, tuple[threading.Lock, list[str]]] = {}

    def of(self, name: str, make: Callable[[], str]) -> str:
        with self._lock:
            lock, found = self._files.setdefault(name, (threading.Lock(), []))
        with lock:
            if not found:
                found.append(make())
            return found[0]


@dataclass(frozen=True)
class Whole:
    """A unit with its file's digest, and the file's bytes where it is small enough to be read at once."""

    unit: Unit
    data: Any = None


def read_whole(fs: Any, unit: Unit, digests: Digests) -> Whole:
    """Read the unit's file, or its digest alone where it is large.

    Raises:
        SourceError: it has vanished, or has another size than before; names the file.
    """
    file, data = unit.file, None
    try:
        _unchanged(fs, unit)
        if file.size <= WHOLE_BYTES and (unit.first, unit.last) == (0, len(file.group_rows)):
            with fs.open_input_file(file.path) as handle:
                data = handle.read_buffer(file.size + 1)
            if data.size != file.size:
                raise _changed(file, data.size)
            sha = hashlib.sha256(data).hexdigest()
        else:
            sha = digests.of(file.name, lambda: digest_of(fs, file.path))
    except (OSError, pa.ArrowException) as error:
        raise bad_file(file.name, error) from None
    return Whole(replace(unit, file=replace(file, sha256=sha)), data)


def _changed(file: SourceFile, size: int | None) -> SourceError:
    kind = "vanished" if size is None else f"changed from {file.size:,} to {size:,} bytes"
    return SourceError(f"source file {file.name!r} {kind} while it was being read. Run again")


def _unchanged(fs: Any, unit: Unit) -> None:
    size = fs.get_file_info(unit.file.path).size
    if size != unit.file.size:
        raise _changed(unit.file, size)


def batch_id(units: list[Unit], salt: str) -> str:
    """The same sources under the same settings make the same batch: 20 hex digits of a digest of both."""
    sha = hashlib.sha256(salt.encode())
    for unit in units:
        sha.update(f"\0{unit.file.name}\0{unit.file.size}\0{unit.file.sha256}\0{unit.first}\0{unit.last}".encode())
    return sha.hexdigest()[:20]


def read_unit(
    fs: Any, unit: Unit, columns: list[str] | None, categories: Callable[[Any], list[str]] | None, data: Any = None
) -> Any:
    """A unit's rows as an Arrow table.

    Args:
        columns: None for all; categories: the schema -> columns to read as dictionaries; data: the file's bytes, where
            they have been read already.
    Raises:
        SourceError: the bytes are not what the footer promises; names the file.
    """
    wanted = None if columns is None else [c for c in columns if c in unit.file.schema.names]
    try:
        if data is None:
            _unchanged(fs, unit)
        names = categories(unit.file.schema) if categories else []
        with (
            pa.BufferReader(data) if data is not None else fs.open_input_file(unit.file.path) as handle,
            pq.ParquetFile(handle, read_dictionary=names, page_checksum_verification=True) as file,
        ):
            table = file.read_row_groups(list(range(unit.first, unit.last)), columns=wanted, use_threads=False)
        table.validate(full=True)  # text that is no UTF-8, which no page checksum need have caught
    except (OSError, pa.ArrowException) as error:
        raise bad_file(unit.file.name, error) from None
    for name, value in unit.file.hive.items():
        if name not in table.column_names and (columns is None or name in columns):
            codes = pa.array(np.zeros(table.num_rows, np.int32))
            table = table.append_column(name, pa.DictionaryArray.from_arrays(codes, pa.array([value])))
    if table.num_rows != unit.rows:
        raise SourceError(
            f"source file {unit.file.name!r} holds {table.num_rows:,} rows where its footer says {unit.rows:,}"
        )
    return table
