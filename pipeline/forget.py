"""The command ``forget``: a legal duty, done and proved."""

from __future__ import annotations

import contextlib

from pipeline import config as configuration
from pipeline import erasure
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.demo import with_source
from pipeline.errors import StoreError, did_you_mean
from pipeline.events import tombstones
from pipeline.events.files import Place
from pipeline.events.forgetting import erase, holding
from pipeline.events.locks import deleting
from pipeline.events.scan import Wanted
from pipeline.events.store import EventStore
from pipeline.rundir import RunDirectory
from pipeline.upkeep import cited_by, run_dirs, say


def forget(
    config: Config,
    subscriber: list[str] | None = None,
    subscribers: str | None = None,
    client: str | None = None,
) -> None:
    """Erase people's events, decisions and rejected rows, prove it, and leave tombstones that later ingests honour.

    Args:
        subscriber: ids; subscribers: a file of ids, one a line; client: theirs, None for every client.
    Raises:
        StoreError: something still mentions them; names every file.
    """
    config = with_source(config)
    ids = erasure.read_ids(subscriber, subscribers)
    place = Place(config.store_uri)
    known = EventStore(config.store_uri, PANDAS).clients()  # there is a store, or an error says so
    if client is not None and client not in known:
        say(f"warning   the store has no client {client!r}; {did_you_mean(client, known)}")
    keys = erasure.keys_of(ids)
    new = tombstones.publish(place, keys, client)
    what = "a tombstone was left" if new else "the tombstone was there already"
    say(f"forget    {len(ids):,} subscriber{'s' if len(ids) > 1 else ''}: {what}; every ingest honours it")

    def waiting() -> None:
        say("          waiting for the process that is writing to the store")

    source = config.source
    columns = frozenset({"subscriber", *([source.columns.subscriber] if source else [])})
    wanted = Wanted(ids, frozenset(keys), columns)
    cited = cited_by(config)
    folders = run_dirs(config)
    with contextlib.ExitStack() as stack:
        runs = []
        for folder in sorted(folders):
            directory = RunDirectory(config.model_copy(update={"name": folder.name}))
            runs.append(stack.enter_context(directory.locked(wait=lambda path: say(f"          waiting for {path}"))))
        stack.enter_context(deleting(place, waiting))
        before = {version: _files_of(config, version) for version in cited}
        found = erase(place, tombstones.make(keys, client), ids)
        rows = ", ".join(f"{c} {n:,}" for c, n in sorted(found.rows.items()))
        say(f"          store: {sum(found.rows.values()):,} events ({rows or 'none'}) in {found.rewritten:,} files")
        say(f"          {len(found.deleted):,} older files deleted, {found.indexes:,} indexes redacted")
        for version, files in sorted(before.items()):
            lost = len(files & set(found.deleted))
            if lost:
                say(f"warning   snapshot {version}, which a model version cites, lost {lost:,} files to this")
        erased = 0
        for directory in runs:
            own = config if directory.path == config.run_dir else configuration.load(directory.path / "config.yaml")
            done = erasure.forget_in_run(directory, own, wanted, client)
            erased += done.decisions + done.rejected + len(done.records)
            what = f"{done.decisions:,} decisions, {done.rejected:,} rejected rows"
            more = f"; redacted {', '.join(sorted(done.records))}" if done.records else ""
            say(f"          {directory.path}: {what}{more}")
        proof = erasure.prove(place, folders, wanted, client)
        shared = client is not None and _also_others(place, keys, client)
    if not (found.rows or found.deleted or found.indexes or erased):
        say("          nobody of that name was known here: nothing to erase; a later event will not come in")
    say(f"forget    {proof.line()}")
    if proof.found and shared:
        say(f"warning   other clients have a subscriber of that id; what was found may be theirs: {proof.found}")
    elif proof.found:
        some = "\n  ".join(proof.found[:100])
        raise StoreError(
            f"{len(proof.found):,} files still mention a forgotten subscriber; look at them, or run again when nobody "
            f"writes:\n  {some}"
        )


def _also_others(place: Place, keys: list[int], client: str) -> bool:
    """Whether another client has a subscriber of one of some keys."""
    store = EventStore(place.uri, PANDAS)
    some = tombstones.make(keys, None).everywhere
    others = {c: some for c in store.clients() if c != client}
    return bool(holding(store, tombstones.Tombstones(some[:0], others)))


def _files_of(config: Config, version: int) -> set[str]:
    with contextlib.suppress(StoreError):
        return {str(f["path"]) for f in EventStore(config.store_uri, PANDAS, version).files}
    return set()
