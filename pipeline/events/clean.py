"""What may go: files that nothing refers to, and files of snapshots that nobody needs any more.

Kept, whatever their age: the files of the live snapshot, and those of every snapshot that a model version cites; the
files of all snapshots that were live within ``keep_snapshots``; the index of every committed run. An orphan is what a
killed process leaves: written, never committed. Whoever deletes holds a local store alone, so nobody's work in hand is
taken for an orphan; on an object store only files that have lain for a while are.

Deleting is idempotent and in no order that matters: killed in the middle, the next time does the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.events import quarantine
from pipeline.events.commit import committed, manifests, open_table, store_id, table_settings
from pipeline.events.files import Place, fault
from pipeline.events.index import FOLDER, run_of
from pipeline.events.snapshots import LOG, needed

KINDS = ("old snapshots", "orphans", "temporary files", "quarantine of batches never committed")
OLD, ORPHAN, TEMPORARY, QUARANTINE = KINDS
EXPIRED = "quarantine past retention"


@dataclass
class Cleaned:
    """What went, or would: (kind, path, bytes); ``young``: orphans too young to tell; ``lost``: cited versions gone."""

    removed: list[tuple[str, str, int]] = field(default_factory=list)
    young: int = 0
    lost: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.removed)

    def lines(self) -> list[str]:
        """By kind: how many files and bytes."""
        found = []
        for kind in dict.fromkeys([*KINDS, *(k for k, _, _ in self.removed)]):
            sizes = [size for k, _, size in self.removed if k == kind]
            found.append(f"{kind}: {len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB")
        if self.young:
            found.append(f"{self.young:,} files that nothing refers to are too young to be removed")
        return found


def find(place: Place, since: int, cited: Iterable[int], older_than: int = 0) -> Cleaned:
    """What may be removed from a store.

    Args:
        since: int us UTC, snapshots live then or later are kept; cited: versions to keep whatever their age;
        older_than: us, orphans changed more lately than that are left.
    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    table = open_table(place.target)
    if table is None:
        raise StoreError(f"there is no store at {place.uri!r}: nothing to clean")
    table_settings(table, place.uri)
    keep = needed(place, table, since, cited)
    once = {e["path"] for m in manifests(place, table).values() for e in m["files"]}
    limit = time.time_ns() // 1000 - older_than
    found = Cleaned(lost=keep.lost)
    for stat in place.stats():
        kind = _kind(stat.name, table, keep.files, once)
        if kind is None:
            continue
        if kind != OLD and older_than and (stat.changed is None or stat.changed > limit):
            found.young += 1
        else:
            found.removed.append((kind, stat.name, stat.size))
    return found


def _kind(name: str, table: Any, keep: frozenset[str], once: set[str]) -> str | None:
    """Which kind of rubbish a file of the store is; None where it is none, or not one of ours."""
    folder, _, base = name.rpartition("/")
    if base.endswith(".tmp") and (folder == LOG or base.startswith(".")):
        return TEMPORARY
    if not base.endswith(".parquet"):
        return None
    if folder == FOLDER:
        return None if committed(table, base.removesuffix(".parquet")) else ORPHAN
    if not folder.startswith("client=") or "/" in folder or name in keep:
        return None
    return OLD if name in once and committed(table, run_of(name)) else ORPHAN


def find_quarantine(place: Place, run_dir: Path, retention: int | None) -> list[tuple[str, Path, int]]:
    """Quarantine files of batches for this store that were never committed, and those older than ``retention`` (us)."""
    table, found = open_table(place.target), []
    oldest = time.time_ns() // 1000 - retention if retention is not None else None
    for path in quarantine.files(run_dir):
        stat = path.stat()
        if oldest is not None and stat.st_mtime_ns // 1000 < oldest:
            found.append((EXPIRED, path, stat.st_size))
        elif table is not None and quarantine.store_of(path) == store_id(table) and not committed(table, path.stem):
            found.append((QUARANTINE, path, stat.st_size))
    return found


def remove(place: Place, names: Iterable[str], workers: int = 8) -> None:
    """Delete files of a store; those gone already are fine."""

    def one(name: str) -> None:
        place.delete(name)
        fault("clean-deleted")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, names))
