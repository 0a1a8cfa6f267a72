"""Erasing people from run directories, and the proof that nothing mentions them any more.

Decisions and their old versions, rejected rows, and the examples in what was measured and reported are erased. Each
step can be killed and done again. Model weights are sums over everybody and hold no id, key or event: they stay.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline import results
from pipeline.config import Config
from pipeline.errors import ConfigError, EventgrainError, StoreError, first_line
from pipeline.events import quarantine, tombstones
from pipeline.events.files import Place, fault
from pipeline.events.scan import Wanted, mentions, without
from pipeline.events.schema import client_folder
from pipeline.rundir import RunDirectory, write_atomic

RAW = "raw"  # the demo's source
LOCAL = pafs.LocalFileSystem()


@dataclass
class Forgotten:
    """What was erased of one run directory, and what was looked at in the end."""

    decisions: int = 0
    rejected: int = 0
    records: list[str] = field(default_factory=list)


def read_ids(subscribers: Sequence[str] | None, path: str | None) -> frozenset[str]:
    """The ids given one by one and, one a line, in a file.

    Raises:
        ConfigError: none, or the file cannot be read.
    """
    lines: list[str] = []
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--subscribers: cannot read {path!r}: {error}") from None
    ids = frozenset([*(subscribers or []), *lines]) - {""}
    if not ids:
        raise ConfigError("forget needs --subscriber ID or --subscribers FILE, with one id a line")
    return ids


def keys_of(ids: frozenset[str]) -> list[int]:
    """The subscriber keys of some ids."""
    from pipeline.backend import PANDAS
    from pipeline.events.hashing import hash_ids

    hashed: list[int] = np.asarray(hash_ids(pa.array(sorted(ids), pa.large_string()), PANDAS)).tolist()
    return hashed


def forget_in_run(directory: RunDirectory, config: Config, wanted: Wanted, client: str | None) -> Forgotten:
    """Erase some subscribers from a run directory that is held.

    Args:
        client: theirs, None for every client.
    """
    done = Forgotten()
    done.decisions = _decisions(directory.path, wanted, client)
    fault("forgotten-decisions")
    for path in quarantine.files(directory.path):
        done.rejected += _rejected(path, config, wanted, client)
        fault("forgotten-rejected")
    for path in [*directory.path.glob("*.json"), *directory.path.glob("stages/*.json")]:
        if _redact(path, wanted, client):
            done.records.append(path.name)
            fault("forgotten-record")
    report = directory.path / "report.html"
    if report.exists() and mentions(LOCAL, str(report), wanted):
        _report(directory.path)
        done.records.append(report.name)
    return done


def _decisions(run_dir: Path, wanted: Wanted, client: str | None) -> int:
    """Make the decisions table anew without them; its old versions and log, which name them too, go. Rows erased."""
    table, new, old = (run_dir / name for name in ("decisions", ".decisions.new", ".decisions.old"))
    if old.exists() and new.exists() and not table.exists():  # killed between the two renames: the new one is whole
        new.rename(table)
    for left in (new, old):
        if left.exists():
            shutil.rmtree(left)
    if not table.is_dir() or not any(mentions(LOCAL, str(p), wanted) for p in table.rglob("*") if p.is_file()):
        return 0
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    erased = 0
    try:
        found = DeltaTable(str(table))
        columns = found.metadata().partition_columns
        parts = sorted(tuple((c, p[c]) for c in columns) for p in found.partitions())
    except (DeltaError, OSError) as error:
        raise StoreError(f"cannot read the table {table}: {first_line(error)}. Delete it and run again") from None
    for part in map(dict, parts):
        rows = results.read(str(table), part)
        assert rows is not None
        theirs = rows["subscriber"].astype(str).isin(wanted.ids)
        if client is not None:
            theirs &= rows["client"] == client
        erased += int(theirs.sum())
        if not theirs.all():
            results.replace(rows[~theirs], str(new), part)
    fault("decisions-made")
    table.rename(old)
    fault("decisions-moved")
    if new.exists():
        new.rename(table)
    shutil.rmtree(old)
    return erased


def _rejected(path: Path, config: Config, wanted: Wanted, client: str | None) -> int:
    """Take their rows out of one quarantine file; rows erased."""
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException):
        path.unlink()  # nobody can read it, so nobody can say that they are not in it
        return 0
    theirs = _their_rows(table, config, wanted, client)
    if not theirs.any():
        return 0
    store = (table.schema.metadata or {}).get(quarantine.STORE, b"").decode()
    kept = table.filter(pa.array(~theirs))
    if kept.num_rows:
        Place(str(path.parent)).write(path.name, quarantine.encode(kept, store))
    else:
        path.unlink()
    return int(theirs.sum())


def _their_rows(table: Any, config: Config, wanted: Wanted, client: str | None) -> np.ndarray:
    """bool[n]: rows of theirs, by the column that holds subscribers; by any column where that is not there."""
    columns = config.source.columns if config.source else None
    names = [columns.subscriber] if columns and columns.subscriber in table.column_names else table.column_names
    theirs = np.zeros(table.num_rows, bool)
    for name in names:
        texts = [None if v is None else str(v) for v in table.column(name).to_pylist()]
        theirs |= np.array([t in wanted.ids for t in texts], bool)
    if client is not None and columns and columns.client in table.column_names:
        other = [v not in (None, "", client) for v in table.column(columns.client).to_pylist()]
        theirs &= ~np.array(other, bool)
    return theirs


def _redact(path: Path, wanted: Wanted, client: str | None) -> bool:
    """Take them out of a JSON file; whether they were in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not wanted.in_json(found):
        return False
    write_atomic(path, json.dumps(without(found, wanted, client), indent=1, allow_nan=False))
    return True


def _report(run_dir: Path) -> None:
    from pipeline.decisions.report import write_report

    path = run_dir / "report.html"
    path.unlink()
    with contextlib.suppress(EventgrainError):  # what it needs is not there: the next run makes it
        write_report(run_dir)


@dataclass
class Proof:
    """What was searched, by kind of file, and the files that still mention a forgotten subscriber.

    Of one client's subscriber the data of other clients are not searched: their subscriber of that id is somebody else.
    """

    looked: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    found: list[str] = field(default_factory=list)

    def line(self) -> str:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.looked.items()))
        size = f"{self.bytes / 1e6:,.1f} MB"
        return f"searched {kinds or 'nothing'} ({size}) for the ids and keys: {len(self.found):,} found"


def prove(place: Place, run_dirs: Sequence[Path], wanted: Wanted, client: str | None) -> Proof:
    """Search every file of a store and of some run directories, but tombstones and the demo's source.

    Args:
        client: whose subscriber, None for every client.
    """
    proof = Proof()
    mine = None if client is None else client_folder(client)
    places = [(place, "store")]
    places += [(Place(str(folder)), "run") for folder in run_dirs if folder.is_dir()]
    for where, kind in places:
        for stat in where.stats():
            inside = kind == "run" and place.local and where.path(stat.name).startswith(f"{place.root}/")
            if inside or (kind == "run" and stat.name.startswith(f"{RAW}/")):
                continue
            if kind == "store" and stat.name.startswith(f"{tombstones.FOLDER}/"):
                continue
            owner = next((part for part in stat.name.split("/")[:-1] if part.startswith("client=")), mine)
            if mine is not None and owner != mine:
                continue
            name = _kind(stat.name)
            proof.looked[name] = proof.looked.get(name, 0) + 1
            proof.bytes += stat.size
            try:
                if mentions(where.fs, where.path(stat.name), wanted):
                    proof.found.append(where.path(stat.name))
            except FileNotFoundError:
                continue
    return proof


def _kind(name: str) -> str:
    if "_delta_log/" in name:
        return "log files"
    ending = name.rpartition(".")[2].lower()
    return {"parquet": "Parquet", "json": "JSON", "html": "HTML"}.get(ending, "other files")
