"""Is the store what was written? Sizes, digests and row counts of every live data file and of every index file.

A data file's SHA-256 is in the index of the commit that wrote it. An index file holds a digest of its own content, so
that it stays checkable when the Delta log is cleaned and when the file is written anew (see :mod:`forget`).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError, first_line
from pipeline.events.commit import committed, open_table
from pipeline.events.files import Place, digest_of
from pipeline.events.index import FOLDER, index_name, load, run_of
from pipeline.events.snapshots import LOG, commits
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.events.store import EventStore


@dataclass
class Integrity:
    """What was looked at, and every file that is not what was written: path -> what is wrong with it."""

    files: int = 0
    bytes: int = 0
    rows: int = 0
    indexes: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self) -> str:
        rate = self.bytes / max(self.seconds, 1e-9) / 1e6
        return (
            f"{self.files:,} data files, {self.rows:,} rows, {self.bytes / 1e6:,.1f} MB, and {self.indexes:,} index "
            f"files in {self.seconds:.1f} s ({rate:,.0f} MB/s): {len(self.damaged):,} damaged"
        )


def check(store: EventStore, workers: int = 2, progress: Progress | None = None) -> Integrity:
    """Check every data file of the snapshot, and every index file of the store, damaged ones included in the count.

    Args:
        progress: counts bytes.
    """
    started = time.perf_counter()
    place, found = store.place, Integrity()
    entries, groups = _indexes(store, found, workers)

    def one(file: dict[str, Any]) -> str | None:
        wrong = _wrong(place, file, entries.get(file["path"]), groups.get(file["path"]), store.schema)
        if progress is not None:
            progress.advance(int(file["size"]), file["path"].rpartition("/")[2])
        return wrong

    files = sorted(store.files, key=lambda f: str(f["path"]))
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for file, wrong in zip(files, pool.map(one, files), strict=True):
            found.files += 1
            found.bytes += int(file["size"])
            found.rows += int(file["rows"] or 0)
            if wrong is not None:
                found.damaged[place.path(file["path"])] = wrong
    found.seconds = time.perf_counter() - started
    return found


def _indexes(
    store: EventStore, found: Integrity, workers: int
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[int, int]]]:
    """Path -> its index entry, and its row groups and their rows; damaged indexes go to ``found``."""
    place = store.place
    newest = open_table(place.target)
    names = [n.rpartition("/")[2].removesuffix(".parquet") for n in place.list(FOLDER) if n.endswith(".parquet")]
    wanted = {n for n in names if "/" not in n and not n.startswith(".") and committed(newest, n)}
    wanted |= {run_of(f["path"]) for f in store.files}
    first: dict[str, int] = {}
    for commit in commits(place):
        if commit.run is None:
            continue
        wanted.add(commit.run)
        if first.setdefault(commit.run, commit.version) != commit.version:
            path = place.path(f"{LOG}/{commit.version:020d}.json")
            found.damaged[path] = f"it is another commit's: it says what version {first[commit.run]} says"
    entries: dict[str, dict[str, Any]] = {}
    groups: dict[str, tuple[int, int]] = {}

    def one(run: str) -> Any:
        try:
            return load(place, run)
        except StoreError as error:
            return error

    done: set[str] = set()
    while left := sorted(wanted - done):
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            for run, result in zip(left, pool.map(one, left), strict=True):
                found.indexes += 1
                if isinstance(result, StoreError):
                    found.damaged[place.path(index_name(run))] = str(result)
                    continue
                rows, manifest = result
                entries |= {e["path"]: e for e in manifest["files"]}
                wanted |= {run_of(path) for path in manifest.get("replaced", ())}
                for code, path in enumerate(rows.paths):
                    mine = rows.path == code
                    groups[path] = (int(mine.sum()), int(rows["rows"][mine].sum()))
        done.update(left)
    return entries, groups


def _number(found: int | None) -> str:
    """A damaged log may say nothing."""
    return "nothing" if found is None else f"{found:,}"


def _wrong(
    place: Place, file: dict[str, Any], entry: dict[str, Any] | None, groups: tuple[int, int] | None, schema: pa.Schema
) -> str | None:
    """What is wrong with one data file, None where nothing is."""
    if entry is None or groups is None:
        return "its index is damaged or does not describe it, so that its content cannot be checked"
    size, path = place.size(file["path"]), place.path(file["path"])
    if size is None:
        return "it is gone"
    if not size == file["size"] == entry["size"]:
        return f"it has {size:,} bytes; the log says {_number(file['size'])}, the index {entry['size']:,}"
    try:
        if digest_of(place.fs, path) != entry["sha256"]:
            return "it is not what was written (its SHA-256 differs)"
        with place.fs.open_input_file(path) as handle, pq.ParquetFile(handle) as parquet:
            meta, columns = parquet.metadata, parquet.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        return f"it cannot be read ({first_line(error)})"
    if not meta.num_rows == file["rows"] == entry["rows"] == groups[1]:
        return f"it has {meta.num_rows:,} rows; the log says {_number(file['rows'])}, the index {groups[1]:,}"
    if meta.num_row_groups != groups[0] or not set(columns) <= set(schema.names):
        return "its row groups or columns are not those of the index"
    return None


def complain(found: Integrity) -> StoreError:
    """The error that names every damaged file, the first hundred in full."""
    some = [f"{path}: {what}" for path, what in list(found.damaged.items())[:100]]
    if len(found.damaged) > 100:
        some.append(f"and {len(found.damaged) - 100:,} more")
    number = f"{len(found.damaged):,} files" if len(found.damaged) > 1 else "one file"
    return StoreError(
        f"{number} of the store not as written; restore from a backup, or ingest the sources into a new store:\n  "
        + "\n  ".join(some)
    )
