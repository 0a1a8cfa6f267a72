"""Verify the files of a batch and commit them, once, to the Delta log.

The order is what makes a crash harmless: data files, then the index that describes them, then one commit that carries
the batch's application transaction. Until that commit nothing refers to the files; after it a rerun finds the
transaction and adds nothing. Delta validates nothing that is committed, so :func:`verify` does.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.durable import sync_folder
from pipeline.errors import StoreError, first_line
from pipeline.events.files import Place, digest_of, explain, fault
from pipeline.events.index import Groups, encode, index_name, load
from pipeline.events.schema import CANONICAL, FORMAT_VERSION, OPTIONAL, store_schema
from pipeline.events.tombstones import token_of

RETRIES = 200
CHANGES = 20  # commits tried while others change the table's columns or properties


@dataclass(frozen=True)
class Settings:
    """What a store was made with and keeps: in the Delta table's description, as JSON."""

    event_id: str  # "int64" or "string"
    made_ids: bool  # the log has no event ids: hashes of whole rows stand in
    deduplicate: bool
    format: int = FORMAT_VERSION

    @property
    def event_id_type(self) -> pa.DataType:
        return pa.int64() if self.event_id == "int64" else pa.string()


def open_table(uri: str, version: int | None = None) -> Any | None:
    """The Delta table, or None where there is none.

    Raises:
        StoreError: unreadable, or no such version.
    """
    import deltalake
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        if not deltalake.DeltaTable.is_deltatable(uri):
            return None
        return deltalake.DeltaTable(uri, version=version)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError, ValueError) as error:
        what = f"version {version} of the store" if version is not None else "the store"
        raise StoreError(f"cannot open {what} {uri!r}: {first_line(error)}") from None


def table_settings(table: Any, uri: str) -> Settings:
    try:
        found = json.loads(table.metadata().description or "")["eventgrain"]
        settings = Settings(**found)
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{uri!r} is a Delta table, but not a store of eventgrain; choose another place") from None
    if settings.format != FORMAT_VERSION:
        raise StoreError(
            f"the store {uri!r} has format {settings.format}; this version of eventgrain reads {FORMAT_VERSION}. "
            "Ingest its sources into a new store, or delete this one and run again"
        )
    return settings


def table_schema(table: Any) -> pa.Schema:
    """The Arrow schema of a store's data files: the table's columns but the partition's."""
    schema = pa.schema(table.schema().to_arrow())
    return pa.schema([pa.field(f.name, f.type) for f in schema if f.name != "client"])


def create_table(place: Place, settings: Settings, carried: Mapping[str, pa.DataType]) -> Any:
    """Make an empty store; one made meanwhile by someone else is opened instead."""
    import deltalake
    from deltalake.exceptions import DeltaError

    schema = store_schema(settings.event_id_type, carried).append(pa.field("client", pa.string()))
    try:
        if place.local:
            Path(place.root).mkdir(parents=True, exist_ok=True)
        table = deltalake.DeltaTable.create(
            place.target,
            schema,
            mode="ignore",
            partition_by=["client"],
            name="events",
            description=json.dumps({"eventgrain": asdict(settings)}),
            commit_properties=deltalake.CommitProperties(max_commit_retries=0),  # or two at once would make it twice
        )
    except (DeltaError, OSError) as error:
        table = open_table(place.target)  # of two at once the later one fails
        if table is None:
            raise explain(error, "make a store at", place.uri) from None
    _sync_log(place)
    fault("store-made")
    return table


def add_columns(table: Any, missing: Mapping[str, pa.DataType]) -> None:
    """Let the store carry further columns; older rows hold nulls there."""
    import deltalake

    schema = deltalake.Schema.from_arrow(pa.schema([pa.field(n, t) for n, t in sorted(missing.items())]))
    table.alter.add_columns(list(schema.fields))
    fault("columns-added")


def store_id(table: Any) -> str:
    """What tells a store from all others."""
    return str(table.metadata().id)


def committed(table: Any, run: str) -> bool:
    return table is not None and transaction(table, f"eventgrain/{run}") is not None


def transaction(table: Any, name: str) -> int | None:
    """The number that the log has of an application transaction, if any.

    Raises:
        StoreError: the log is damaged, which the library finds as late as this.
    """
    from deltalake.exceptions import DeltaError

    try:
        number: int | None = table.transaction_version(name)
    except DeltaError as error:
        raise StoreError(
            f"cannot read the Delta log of the store {table.table_uri!r}: {first_line(error)}. Restore its _delta_log "
            "from a backup; the data files are untouched"
        ) from None
    return number


def live_files(table: Any) -> list[dict[str, Any]]:
    """The snapshot's data files: path as on the disk, client, rows, size."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = ("path", "partition.client", "num_records", "size_bytes")
    if actions.num_rows == 0:
        return []
    lists = [actions.column(c).to_pylist() for c in columns]
    return [
        dict(zip(("path", "client", "rows", "size"), (unquote(p), *r), strict=True))
        for p, *r in zip(*lists, strict=True)
    ]


def verify(place: Place, entries: list[dict[str, Any]], schema: pa.Schema, workers: int) -> None:
    """Read every file back: it exists, has the size, digest, rows and schema that its writer returned.

    Raises:
        StoreError: names the file and what differs.
    """

    def one(entry: dict[str, Any]) -> None:
        path = place.path(entry["path"])
        try:
            size = place.size(entry["path"])
            if size != entry["size"]:
                raise StoreError(
                    f"file {path} has {size} bytes where {entry['size']} were written; nothing was committed"
                )
            if digest_of(place.fs, path) != entry["sha256"]:
                raise StoreError(f"file {path} does not have the digest of what was written; nothing was committed")
            with place.fs.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
                rows, found = file.metadata.num_rows, file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"file {path} cannot be read back ({first_line(error)}); nothing was committed") from None
        whole = [f for f in schema if f.name in found.names or (f.name in CANONICAL and f.name not in OPTIONAL)]
        if rows != entry["rows"] or [(f.name, f.type) for f in found] != [(f.name, f.type) for f in whole]:
            raise StoreError(f"file {path} holds {rows} rows of {found}; expected {entry['rows']} of {schema}")

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        list(pool.map(one, entries))


def _stats(entry: Mapping[str, Any]) -> str:
    """A file's statistics for any Delta reader.

    The bounds of the keys are wide: a subscriber who happens to be the first or last of a file must not stay in the log
    for as long as it is kept, after being forgotten.
    """

    def time(us: int) -> str:
        at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)
        return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    wide = {"min": entry["key_min"] >> 32 << 32, "max": entry["key_max"] | 0xFFFF_FFFF}
    bounds = {
        f"{side}Values": {"subscriber_key": wide[side], "ts": time(entry[f"ts_{side}"])} for side in ("min", "max")
    }
    nulls = {"subscriber_key": 0, "ts": 0}
    return json.dumps({"numRecords": entry["rows"], "tightBounds": False, **bounds, "nullCount": nulls})


def rewriting(client: str) -> str:
    """The application transaction that lets one process at a time replace a client's files."""
    return f"eventgrain/compaction/{client}"


class StaleError(Exception):
    """Somebody was forgotten since the files to be committed were prepared: prepare them again."""


def commit(
    place: Place,
    run: str,
    manifest: dict[str, Any],
    groups: Groups,
    schema: pa.Schema,
    removed: list[dict[str, Any]] | None = None,
    serials: Sequence[str] = (),
    workers: int = 2,
    batch: str | None = None,
    token: str | None = None,
    data_change: bool | None = None,
) -> bool:
    """Write the index, verify the files and commit once.

    Args:
        run: the name of the files; several runs of one ``batch`` exclude each other.
        manifest: holds ``files``, the entries to add; removed: live files that these replace, dropped in the same
            commit; serials: names of application transactions that exclude rivals, each counted up by one.
        token: of the tombstones that the files were prepared under, see :mod:`pipeline.events.tombstones`.
        data_change: whether what readers see changes; by default where nothing is removed.
    Returns:
        False when the run was committed before, or by someone else meanwhile.
    Raises:
        StaleError: there are other tombstones now; nothing was committed.
    """
    place.write(index_name(run), encode(groups, manifest))
    fault("index-written")
    verify(place, manifest["files"], schema, workers)
    fault("verified")
    changes = removed is None if data_change is None else data_change
    for attempt in range(CHANGES):
        try:
            return _commit(place, run, manifest, removed or [], serials, batch or run, token, changes)
        except MetadataChangedError as error:
            if attempt == CHANGES - 1:
                raise StoreError(f"cannot commit batch {run} to {place.uri}: {error}. Run again") from None
    return False


class MetadataChangedError(Exception):
    """The table's columns or properties changed while we committed; a commit upon the new ones may succeed."""


def _commit(
    place: Place,
    run: str,
    manifest: dict[str, Any],
    removed: list[dict[str, Any]],
    serials: Sequence[str],
    batch: str,
    token: str | None,
    changes: bool,
) -> bool:
    import deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

    now = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    actions: list[Any] = [
        AddAction(e["path"], e["size"], {"client": e["client"]}, now, changes, _stats(e)) for e in manifest["files"]
    ]
    actions += [
        RemoveAction(r["path"], changes, now, size=r["size"], partition_values={"client": r["client"]}) for r in removed
    ]
    about = {"eventgrain.run": run, "eventgrain.index": index_name(run)}
    if "sources" in manifest:
        about["eventgrain.sources"] = json.dumps([s["name"] for s in manifest["sources"]][:1000])
    uri = place.target
    table = deltalake.DeltaTable(uri)
    if committed(table, batch) or not {r["path"] for r in removed} <= {f["path"] for f in live_files(table)}:
        return False
    if token is not None and token_of(table) != token:
        raise StaleError
    transactions = [Transaction(f"eventgrain/{name}", 1) for name in {run, batch}]
    transactions += [Transaction(name, (transaction(table, name) or 0) + 1) for name in serials]
    properties = CommitProperties(custom_metadata=about, max_commit_retries=RETRIES, app_transactions=transactions)
    fault("before-commit")
    try:
        table.create_write_transaction(actions, "append", table.schema(), ["client"], commit_properties=properties)
    except CommitFailedError as error:
        if committed(deltalake.DeltaTable(uri), batch):
            return False
        if "etadata changed" in str(error):
            raise MetadataChangedError(first_line(error)) from None
        if serials:
            return False
        raise StoreError(f"cannot commit batch {run} to {place.uri}: {first_line(error)}. Run again") from None
    except (DeltaError, OSError) as error:
        raise explain(error, f"commit batch {run} to", place.uri) from None
    fault("after-commit")
    _sync_log(place)
    fault("acknowledged")
    return True


def _sync_log(place: Place) -> None:
    """Flush the newest commits to the disk; the Delta library does not."""
    if not place.local:
        return
    log = Path(place.root) / "_delta_log"
    for path in sorted(log.glob("*.json"))[-4:]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(log)


def manifests(place: Place, table: Any) -> dict[str, dict[str, Any]]:
    """Run -> manifest of every committed run, compactions included."""
    from pipeline.events.index import FOLDER

    runs = [n.rpartition("/")[2].removesuffix(".parquet") for n in place.list(FOLDER) if n.endswith(".parquet")]
    runs = [r for r in runs if not r.startswith(".") and committed(table, r)]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(runs, (m for _, m in pool.map(lambda r: load(place, r), runs)), strict=True))
