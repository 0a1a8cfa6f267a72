"""Copy-on-write: some live files written again without some of their rows, in one commit.

The new file's name keeps the old one's middle, so that compaction still knows which batch and month it is of, and how
the keys were split. Readers see the old files or the new.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import PANDAS
from pipeline.errors import StoreError
from pipeline.events.commit import commit, rewriting
from pipeline.events.files import fault
from pipeline.events.index import REWRITTEN, Groups
from pipeline.events.schema import FORMAT_VERSION, numpy_of
from pipeline.events.store import EventStore
from pipeline.events.tables import HostRows, one_array
from pipeline.events.writing import SortedRows, Written, group_bits, write_file

# client, key int64[n], ts int64[n] -> bool[n], the rows that stay
Stay = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Rewritten:
    """``removed``: client -> rows that are gone; ``replaced``: the files that held them."""

    removed: dict[str, int] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    files: int = 0


def rewrite(
    store: EventStore, paths: Sequence[str], stay: Stay, kind: str, cause: str, workers: int = 2
) -> Rewritten | None:
    """Replace some live files by what stays of them.

    Args:
        paths: of the snapshot's data files; kind: of the commit, for its manifest; cause: what tells this rewriting
            from others of the same files.
    Returns:
        what went; None where others replaced one of the files meanwhile: look again.
    Raises:
        StoreError: a file is damaged, or cannot be written.
    """
    done = Rewritten(replaced=sorted(paths))
    run = REWRITTEN + hashlib.sha256("\0".join([kind, cause, *done.replaced]).encode()).hexdigest()[:20]
    clients = {f["path"]: f["client"] for f in store.files}
    rows = {f["path"]: int(f["rows"]) for f in store.files}

    def one(path: str) -> Written | None:
        return _file(store, path, clients[path], run, stay)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        written = list(pool.map(one, done.replaced))
    kept = 0
    for path, file in zip(done.replaced, written, strict=True):
        left = 0 if file is None else int(file.entry["rows"])
        kept += left
        done.removed[clients[path]] = done.removed.get(clients[path], 0) + rows[path] - left
    fault("rewritten")
    files = [file for file in written if file is not None]
    done.files = len(files)
    total = sum(rows[p] for p in done.replaced)
    manifest: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "run": run,
        "kind": kind,
        "files": [file.entry for file in files],
        "replaced": done.replaced,
        "counts": {"rows": total, "kept": kept, "removed": total - kept},
    }
    added = commit(
        store.place,
        run,
        manifest,
        Groups.concat([file.groups for file in files]),
        store.schema,
        removed=[f for f in store.files if f["path"] in set(done.replaced)],
        serials=[rewriting(client) for client in sorted({clients[p] for p in done.replaced})],
        workers=workers,
        data_change=True,
    )
    return done if added else None


def _file(store: EventStore, path: str, client: str, run: str, stay: Stay) -> Written | None:
    """What stays of one file, written; None where nothing does."""
    prefix = store.place.target.rstrip("/")
    groups = store.groups(client)
    mine = sorted(groups["group"][groups.path == groups.paths.index(path)].tolist())
    rows = HostRows.read(f"{prefix}/{path}", mine, store.schema.names, store.schema, PANDAS)
    mask = stay(client, rows.integers("subscriber_key"), rows.integers("ts"))
    if not mask.any():
        return None
    kept = rows if mask.all() else rows.filter(mask)
    middle = _middle(path)
    split = re.search(r"(?:^|-)\d+of(\d+)$", middle)
    if split is None:
        raise StoreError(f"store file {store.place.path(path)} has a name that no file of a store has")

    def name(sha: str) -> str:
        return f"{run}-{middle}-{sha}.parquet"

    bits = group_bits(len(kept) * int(split[1]))
    return write_file(sorted_rows(kept.table, store.schema), store.schema, bits, store.place, client, name)


def _middle(path: str) -> str:
    """``rewritten_<run>-<origin>-202605-00of02-<digest>.parquet`` -> ``<origin>-202605-00of02``."""
    parts = path.rpartition("/")[2].removesuffix(".parquet").split("-")[:-1]
    return "-".join(parts[1:] if parts[0].startswith(REWRITTEN) else parts)


def sorted_rows(table: Any, schema: pa.Schema) -> SortedRows:
    """Rows read from the store, all columns, in their order, ready to be written again."""
    key = np.ascontiguousarray(numpy_of(one_array(table.column("subscriber_key"))))
    change = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    ids = one_array(table.column("subscriber")).take(pa.array(change))
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary.take(ids.indices)
    columns = {n: one_array(table.column(n)) for n in schema.names if n not in ("subscriber_key", "ts", "subscriber")}
    return SortedRows(key, numpy_of(one_array(table.column("ts")).view(pa.int64())), columns, ids)
