"""The Delta log as a history of files: which of them the snapshots that are kept still need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import StoreError, first_line
from pipeline.events.commit import live_files, open_table
from pipeline.events.files import Place

LOG = "_delta_log"


@dataclass(frozen=True)
class Commit:
    """One version: when it was made (int us UTC), the data files it added, and the run it names, if any."""

    version: int
    time: int
    added: tuple[str, ...]
    run: str | None


@dataclass(frozen=True)
class Needed:
    """``files``: paths that some kept snapshot needs; ``lost``: cited versions that the log no longer describes."""

    files: frozenset[str]
    lost: tuple[int, ...]


def commits(place: Place) -> list[Commit]:
    """The commits that the log still has one by one, oldest first; older ones live on in its checkpoints only.

    Raises:
        StoreError: one cannot be read.
    """
    found = []
    for name in place.list(LOG):
        stem = name.rpartition("/")[2]
        if stem.endswith(".json") and stem[:-5].isdigit():
            found.append(_read(place, name, int(stem[:-5])))
    return sorted(found, key=lambda c: c.version)


def _read(place: Place, name: str, version: int) -> Commit:
    try:
        with place.fs.open_input_stream(place.path(name)) as stream:
            actions = [json.loads(line) for line in stream.read().splitlines() if line.strip()]
    except FileNotFoundError:  # the library removes old ones after a checkpoint
        return Commit(version, 0, (), None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"the log file {place.path(name)} cannot be read: {first_line(error)}") from None
    about: dict[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
    added = tuple(unquote(a["add"]["path"]) for a in actions if "add" in a)
    return Commit(version, int(about.get("timestamp", 0)) * 1000, added, about.get("eventgrain.run"))


def needed(place: Place, table: Any, since: int, cited: Iterable[int]) -> Needed:
    """The files of the live snapshot, of every one that was live at ``since`` (int us UTC) or later, and of some cited.

    Args:
        table: the live snapshot; cited: versions to keep whatever their age.
    """
    files = {f["path"] for f in live_files(table)}
    history = commits(place)
    before = [c.version for c in history if c.time <= since]
    first = before[-1] if before else (history[0].version if history else table.version())
    files.update(path for c in history if c.version > first for path in c.added)
    lost = []
    for version in sorted({first, *cited}):
        if version == table.version():
            continue
        try:
            old = open_table(place.target, version)
        except StoreError:
            lost.append(version)
            continue
        if old is not None:
            files.update(f["path"] for f in live_files(old))
    return Needed(frozenset(files), tuple(v for v in lost if v in set(cited)))
