"""Erasing subscribers from a store: live files by copy-on-write, then everything older, then the indexes.

Every step can be killed and done again: it looks for what is left to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.backend import PANDAS
from pipeline.errors import StoreError
from pipeline.events.commit import committed, open_table
from pipeline.events.files import Place, fault
from pipeline.events.index import FOLDER, Groups, encode, index_name, load
from pipeline.events.rewriting import rewrite
from pipeline.events.store import EventStore
from pipeline.events.tables import HostRows
from pipeline.events.tombstones import Tombstones

TRIES = 20  # rewritings lost to others at work


@dataclass
class Erased:
    """What was done: client -> rows; files written again, old files deleted, indexes written again."""

    rows: dict[str, int] = field(default_factory=dict)
    rewritten: int = 0
    deleted: list[str] = field(default_factory=list)
    indexes: int = 0


def erase(place: Place, gone: Tombstones, ids: frozenset[str], workers: int = 2) -> Erased:
    """Erase some subscribers from every file of a store.

    Args:
        gone: their keys; ids: the same as text, for the examples that indexes keep.
    Raises:
        StoreError: a live file is damaged or cannot be written.
    """
    done = Erased()
    for _ in range(TRIES):
        store = EventStore(place.uri, PANDAS)
        paths = holding(store, gone, workers)
        if not paths:
            break
        cause = "\0".join(f"{c}:{gone.of(c).tolist()}" for c in store.clients())
        found = rewrite(store, paths, lambda client, key, _: ~_in(key, gone.of(client)), "forget", cause, workers)
        if found is not None:
            for client, rows in found.removed.items():
                done.rows[client] = done.rows.get(client, 0) + rows
            done.rewritten += len(found.replaced)
    else:
        raise StoreError(f"others keep replacing files of {place.uri!r}: run again when they are done")
    fault("forgotten-live")
    live = {f["path"] for f in store.files}
    for path, client in data_files(place):
        if path not in live and _holds(place, path, _of_file(gone, client)):
            place.delete(path)
            done.deleted.append(path)
            fault("forgotten-old")
    done.indexes = _redact_indexes(place, gone, ids, live)
    return done


def _in(key: np.ndarray, gone: np.ndarray) -> np.ndarray:
    return np.isin(key, gone)


def holding(store: EventStore, gone: Tombstones, workers: int = 2) -> list[str]:
    """The live files that hold rows of the forgotten, found through the row-group index."""
    tasks: list[tuple[str, list[int], np.ndarray]] = []
    for client in store.clients():
        keys, groups = gone.of(client), store.groups(client)
        near = np.searchsorted(keys, groups["key_min"]) < np.searchsorted(keys, groups["key_max"], side="right")
        some = groups.select(near)
        tasks += [
            (some.paths[code], sorted(some["group"][some.path == code].tolist()), keys)
            for code in np.unique(some.path).tolist()
        ]
    prefix = store.place.target.rstrip("/")

    def one(task: tuple[str, list[int], np.ndarray]) -> bool:
        path, mine, keys = task
        rows = HostRows.read(f"{prefix}/{path}", mine, ["subscriber_key"], store.schema, PANDAS)
        return bool(_in(rows.integers("subscriber_key"), keys).any())

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return [task[0] for task, holds in zip(tasks, pool.map(one, tasks), strict=True) if holds]


def data_files(place: Place) -> Iterator[tuple[str, str]]:
    """Every data file that lies in the store, live or not: its path, and its client's folder."""
    for stat in place.stats():
        folder, _, base = stat.name.rpartition("/")
        if folder.startswith("client=") and "/" not in folder and (base.endswith((".parquet", ".tmp"))):
            yield stat.name, folder


def _of_file(gone: Tombstones, folder: str) -> np.ndarray:
    from urllib.parse import unquote

    return gone.of(unquote(folder.removeprefix("client=")))


def _holds(place: Place, path: str, keys: np.ndarray) -> bool:
    """Whether a file that is not live holds a key; one that cannot be read might, so it counts as one that does."""
    if not len(keys):
        return False
    try:
        with place.fs.open_input_file(place.path(path)) as handle, pq.ParquetFile(handle) as file:
            for group in range(file.metadata.num_row_groups):
                key = file.read_row_group(group, columns=["subscriber_key"]).column("subscriber_key").to_numpy()
                if _in(key, keys).any():
                    return True
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowException, KeyError):
        return True
    return False


def _redact_indexes(place: Place, gone: Tombstones, ids: frozenset[str], live: set[str]) -> int:
    """Take the forgotten out of the indexes: examples of rules, and the bounds of files that are no more."""
    table, changed = open_table(place.target), 0
    for name in place.list(FOLDER):
        run = name.rpartition("/")[2].removesuffix(".parquet")
        if not name.endswith(".parquet") or name != index_name(run):
            continue
        try:
            groups, manifest = load(place, run)
        except StoreError:
            if committed(table, run):
                raise
            place.delete(name)  # of a batch that was never committed
            continue
        dead = _dead(groups, manifest, gone, live)
        about = _without(manifest, ids, gone) | {"files": [e for e in manifest["files"] if e["path"] not in dead]}
        if about == manifest and not dead:
            continue
        if committed(table, run):
            alive = np.array([p not in dead for p in groups.paths], dtype=bool)
            place.write(name, encode(_compact(groups.select(alive[groups.path])), about))
        else:
            place.delete(name)
        changed += 1
        fault("forgotten-index")
    return changed


def _dead(groups: Groups, manifest: dict[str, Any], gone: Tombstones, live: set[str]) -> set[str]:
    """Files that are not live and have a forgotten key as a bound: such a file was deleted, or holds it."""
    clients = {e["path"]: e["client"] for e in manifest["files"]}
    found = set()
    for code, path in enumerate(groups.paths):
        if path in live or path not in clients:
            continue
        mine, keys = groups.path == code, gone.of(clients[path])
        if _in(groups["key_min"][mine], keys).any() or _in(groups["key_max"][mine], keys).any():
            found.add(path)
    return found


def _compact(groups: Groups) -> Groups:
    """The same groups, naming no file that has none."""
    used, path = np.unique(groups.path, return_inverse=True)
    return Groups([groups.paths[c] for c in used.tolist()], path.astype(np.int64), groups.numbers)


def _without(manifest: dict[str, Any], ids: frozenset[str], gone: Tombstones) -> dict[str, Any]:
    """A manifest without examples of the forgotten."""

    def theirs(example: dict[str, Any]) -> bool:
        client = example.get("client")
        return str(example.get("subscriber")) in ids and (client is None or bool(len(gone.of(client))))

    if "rules" not in manifest:
        return dict(manifest)
    rules = [{**r, "examples": [e for e in r["examples"] if not theirs(e)]} for r in manifest["rules"]]
    return {**manifest, "rules": rules}
