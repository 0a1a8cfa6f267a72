"""Looking after what there is: ``verify``, ``compact`` and ``clean``, as the command line has them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import config as configuration
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.demo import with_source
from pipeline.errors import ConfigError, EventgrainError, StoreError, first_line
from pipeline.events.files import Place
from pipeline.options import UNITS, parse_duration
from pipeline.progress import Progress
from pipeline.rundir import RunDirectory

REMOTE_AGE = 24 * UNITS["h"]  # how long an ingest into an object store may take


def say(text: str) -> None:
    print(text, flush=True)


def verify(config: Config) -> None:
    """Check every live data file and every index file.

    Raises:
        StoreError: names every damaged file.
    """
    from pipeline.events.integrity import check, complain
    from pipeline.events.store import EventStore

    store = EventStore(config.store_uri, PANDAS)
    with Progress("verify", store.bytes(), "bytes") as progress:
        found = check(store, progress=progress)
    say(f"verify    {config.store_uri}, version {store.version()}: {found.line()}")
    if found.damaged:
        raise complain(found)


def compact(config: Config) -> None:
    """Merge small files of the store, where there is something to merge."""
    from pipeline.events.compaction import compact_closed
    from pipeline.events.store import EventStore

    before = EventStore(config.store_uri, PANDAS)
    started = time.perf_counter()
    replaced = compact_closed(config.store_uri, config.lateness)
    after = EventStore(config.store_uri, PANDAS)
    for client, count in replaced.items():
        now = sum(1 for f in after.files if f["client"] == client)
        say(f"          {client}: {count:,} files replaced, {now:,} now")
    what = f"{sum(replaced.values()):,} files replaced" if replaced else "nothing to merge"
    took = time.perf_counter() - started
    say(f"compact   {what}, {len(before.files):,} files before, {len(after.files):,} now  [{took:.1f} s]")


def clean(config: Config, dry_run: bool | None = None, older_than: str | None = None) -> None:
    """Remove events past retention, orphans, and files that only snapshots older than ``keep_snapshots`` need.

    Args:
        dry_run: name what would be removed; older_than: a duration, orphans younger than it are left.
    Raises:
        StoreError: another process is writing to the store, or there is none.
    """
    from pipeline.events.clean import find, find_quarantine, remove
    from pipeline.events.locks import deleting

    place = Place(config.store_uri)
    age = 0 if place.local else REMOTE_AGE
    if older_than is not None:
        try:
            age = parse_duration(older_than)
        except ValueError as error:
            raise ConfigError(f"--older-than: {error}") from None
    since = time.time_ns() // 1000 - config.keep_snapshots
    with _run(config) as directory, deleting(place):
        cited = cited_by(config)
        if config.retention is not None:
            _expire(place, config.retention, bool(dry_run))
        found = find(place, since, sorted(cited), age)
        rejected = find_quarantine(place, directory.path, config.retention)
        for version in found.lost:
            runs = ", ".join(sorted(cited[version]))
            say(f"warning   snapshot {version}, cited by models of {runs}, is no longer in the log: not protected")
        result = _old_results(config, directory.path)
        if dry_run:
            for kind, name, size in found.removed:
                say(f"would remove {place.path(name)}  ({kind}, {size:,} bytes)")
            for kind, path, size in [*rejected, *result]:
                say(f"would remove {path}  ({kind}, {size:,} bytes)")
        else:
            remove(place, [name for _, name, _ in found.removed])
            for _, path, _ in [*rejected, *result]:
                path.unlink(missing_ok=True)
        found.removed += [(kind, str(path), size) for kind, path, size in [*rejected, *result]]
    for line in found.lines():
        say(f"          {line}")
    if cited:
        say(f"          kept: {len(cited):,} snapshots that model versions cite, whatever their age")
    verb = "would remove" if dry_run else "removed"
    say(f"clean     {verb} {len(found.removed):,} files, {found.bytes:,} bytes")


def _expire(place: Place, retention: int, dry_run: bool) -> None:
    """Remove the events past retention, and say how many."""
    from pipeline.events.retention import cutoff, due, expire
    from pipeline.events.store import EventStore

    store = EventStore(place.uri, PANDAS)
    if dry_run:
        cut = cutoff(store, retention)
        paths = due(store, cut) if cut is not None else {}
        say(f"          retention: {len(paths):,} files hold rows past it, {sum(paths.values()):,} rows in all")
        return
    removed = expire(place, retention)
    rows = ", ".join(f"{client} {n:,}" for client, n in sorted(removed.items()))
    say(f"          retention: {sum(removed.values()):,} rows past it removed ({rows or 'none'})")


@contextlib.contextmanager
def _run(config: Config) -> Iterator[RunDirectory]:
    """The run directory, held for this process."""
    directory = RunDirectory(with_source(config))
    with directory.locked():
        yield directory


def cited_by(config: Config) -> dict[int, set[str]]:
    """Store version -> the runs whose model versions were trained on it: this run, and others that share its store."""
    from pipeline.learning.registry import cited_snapshots

    found: dict[int, set[str]] = {}
    for folder in run_dirs(config):
        for version in cited_snapshots(folder / "models"):
            found.setdefault(version, set()).add(folder.name)
    return found


def run_dirs(config: Config) -> list[Path]:
    """The run's directory, and those beside it of runs that share its store."""
    others = {p.parent for p in Path(config.runs).glob("*/config.yaml")} - {config.run_dir}
    return [config.run_dir, *sorted(folder for folder in others if _shares_store(folder, config))]


def _shares_store(folder: Path, config: Config) -> bool:
    try:
        other = configuration.load(folder / "config.yaml")
    except EventgrainError:
        return False
    return Place(other.store_uri).target == Place(config.store_uri).target


def _old_results(config: Config, run_dir: Path) -> list[tuple[str, Path, int]]:
    """Files that only old versions of the results need, and what killed processes left in the run directory."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    from pipeline.learning.pretraining import HOME, UNFINISHED

    found: list[tuple[str, Path, int]] = []
    hours = max(config.keep_snapshots // UNITS["h"], 0)
    for name in ("decisions", "rollups"):
        table = run_dir / name
        try:
            if not DeltaTable.is_deltatable(str(table)):
                continue
            old = DeltaTable(str(table)).vacuum(hours, dry_run=True, enforce_retention_duration=False)
        except (DeltaError, OSError) as error:
            raise StoreError(f"cannot look through the table {table}: {first_line(error)}") from None
        found += [_sized(f"old versions of {name}", table / path) for path in old if (table / path).exists()]
    for path in [*run_dir.glob(".*.tmp"), *run_dir.glob("stages/.*.tmp"), *run_dir.glob("quarantine/.*.tmp")]:
        found.append(_sized("temporary files", path))
    for path in run_dir.glob("models/*/.new-*/*"):
        found.append(_sized("temporary files", path))
    # Of these only the last can still be what a training goes on from.
    networks = [p for p in (run_dir / "models" / HOME).glob("*") if not p.name.startswith(UNFINISHED)]
    for path in sorted(networks, key=lambda p: p.stat().st_mtime_ns)[:-1]:
        found.append(_sized("earlier pretrained networks", path))
    return found


def _sized(kind: str, path: Path) -> tuple[str, Path, int]:
    return kind, path, path.stat().st_size
