"""The Delta table of roll-ups; see rollup_update.py for how it is kept up to date.

It is partitioned by ``client`` and ``month`` (``2026-10`` of the bucket's local month, ``all`` for rows of all time).
Beside it, ``_eventgrain/<client>-<n>.json`` says what a client's rows were made from: the settings, the batches and the
files of the store. The n-th update writes that file first; then one commit replaces rows and carries n as the
application transaction of the client, so rows and what they were made from cannot part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.errors import StoreError, first_line
from pipeline.features import rollup
from pipeline.rundir import read_json, write_atomic

STATES = "_eventgrain"


def read(uri: str, client: str, months: Sequence[str] | None = None) -> pd.DataFrame:
    """One client's rows, of some months or all, as :func:`pipeline.features.rollup.combine` gives them.

    Raises:
        StoreError: there is no table, or it is damaged.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    filters: list[Any] = [("client", "=", client)]
    if months is not None:
        filters.append(("month", "in", list(months)))
    try:
        frame: pd.DataFrame = DeltaTable(uri).to_pyarrow_table(filters=filters).to_pandas()
    except (DeltaError, OSError) as error:
        raise StoreError(
            f"cannot read the table {uri}: {first_line(error)}. Delete that folder and run again: it is made anew"
        ) from None
    frame["bucket"] = frame["bucket"].dt.tz_localize(None) if frame["bucket"].dt.tz else frame["bucket"]
    return rollup.arrange(frame)


def rows(uri: str, client: str) -> int:
    """How many rows of a client there are."""
    from deltalake import DeltaTable

    actions = pa.table(DeltaTable(uri).get_add_actions(flatten=True))
    mine = [c == client for c in actions.column("partition.client").to_pylist()]
    return sum(n for n, is_mine in zip(actions.column("num_records").to_pylist(), mine, strict=True) if is_mine)


def clients(uri: str) -> set[str]:
    """Those that the table has rows of; none where there is no table."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(uri):
        return set()
    actions = pa.table(DeltaTable(uri).get_add_actions(flatten=True))
    if not actions.num_rows or "partition.client" not in actions.column_names:
        return set()
    return set(actions.column("partition.client").to_pylist())


def drop(uri: str, client: str) -> None:
    """Remove the rows of a client that the store no longer has."""
    number, _ = state_of(uri, client)
    replace(None, uri, client, None, number + 1, {})


def write(table: pd.DataFrame, uri: str, client: str) -> None:
    """Replace all of a client's rows by those of :func:`pipeline.features.rollup.combine`, whatever made them."""
    replace(table, uri, client, None, state_of(uri, client)[0] + 1, {})


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def replace(
    table: pd.DataFrame | None,
    uri: str,
    client: str,
    months: Sequence[str] | None,
    number: int,
    state: Mapping[str, Any],
) -> None:
    """Replace a client's rows of some months (None: all), and keep what they were made from, in one commit."""
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    from deltalake.exceptions import DeltaError

    properties = CommitProperties(app_transactions=[Transaction(_transaction(client), number)])
    try:
        Path(uri, STATES).mkdir(parents=True, exist_ok=True)
        write_atomic(_state_file(uri, client, number), json.dumps(dict(state)))
        exists = DeltaTable.is_deltatable(uri)
        if table is None and months == []:
            delta, by = DeltaTable(uri), ["client", "month"]
            delta.create_write_transaction([], "append", delta.schema(), by, commit_properties=properties)
        elif table is None:
            DeltaTable(uri).delete(f"client = {_quoted(client)}", commit_properties=properties)
        else:
            predicate = f"client = {_quoted(client)}"
            if months is not None:
                predicate += f" AND month IN ({', '.join(map(_quoted, months))})"
            write_deltalake(
                uri,
                _arrow(table, DeltaTable(uri) if exists else None),
                mode="overwrite",
                partition_by=["client", "month"],
                predicate=predicate if exists else None,
                schema_mode="merge" if exists else None,
                commit_properties=properties,
            )
        DeltaTable(uri).vacuum(dry_run=False)  # what is older than a week and replaced
    except (DeltaError, OSError) as error:
        raise StoreError(
            f"cannot write the table {uri}: {first_line(error)}. Make room or mend it; if it is damaged, delete it"
        ) from None
    for file in Path(uri, STATES).glob(f"{_stem(client)}-*.json"):
        if file != _state_file(uri, client, number):
            file.unlink(missing_ok=True)


def _arrow(table: pd.DataFrame, before: Any) -> pa.Table:
    """Rows as they are stored: with their month, and with a 0 for kinds that only other rows of the table have."""
    counted = [f.name for f in before.schema().fields if f.name.startswith(("n_", "unique_"))] if before else []
    table = rollup.add_rates(table.assign(**{name: 0 for name in counted if name not in table}))
    starts = table["bucket"].to_numpy().astype("datetime64[M]")
    month = np.where(np.isnat(starts), "all", starts.astype(str))
    values = [c for c in table.columns if c not in rollup.KEYS]
    table = table.assign(month=month)[["client", "month", *rollup.KEYS[1:], *values]]
    return pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)


def _stem(client: str) -> str:
    return hashlib.sha256(client.encode()).hexdigest()[:16]


def _transaction(client: str) -> str:
    return f"eventgrain/rollup/{_stem(client)}"


def _state_file(uri: str, client: str, number: int) -> Path:
    return Path(uri, STATES, f"{_stem(client)}-{number}.json")


def state_of(uri: str, client: str) -> tuple[int, dict[str, Any]]:
    """The number of the client's last update, 0 for none, and what its rows were made from, {} where nothing says."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        if not DeltaTable.is_deltatable(uri):
            return 0, {}
        number = DeltaTable(uri).transaction_version(_transaction(client)) or 0
    except (DeltaError, OSError) as error:
        raise StoreError(
            f"cannot read the table {uri}: {first_line(error)}. Delete that folder and run again: it is made anew"
        ) from None
    try:
        state = read_json(_state_file(uri, client, number))
    except StoreError:
        state = {}
    return number, state
