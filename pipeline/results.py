"""Small Delta tables of results, in which a rerun replaces its own part and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipeline.errors import StoreError, first_line


def replace(frame: pd.DataFrame, uri: str, where: Mapping[str, str]) -> None:
    """Write ``frame`` as the rows of a Delta table that have the given partition values, in one commit.

    Rows of other values stay. A reader sees the rows of before or of after. Columns that are new to the table are
    null in its other rows.

    Args:
        frame: with the columns of ``where``, each holding its one value.
        uri: of the table, made when absent.
        where: partition column -> value; the table is partitioned by these columns.
    Raises:
        StoreError: the table cannot be read or written.
    """
    from deltalake import DeltaTable, write_deltalake
    from deltalake.exceptions import DeltaError

    for column, value in where.items():
        if not value or not (frame[column] == value).all():
            raise StoreError(f"rows of other {column}s among those to be written as {column}={value!r} to {uri}")
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    predicate = " AND ".join(f"{column} = '{value.replace(chr(39), chr(39) * 2)}'" for column, value in where.items())
    try:
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
        exists = DeltaTable.is_deltatable(uri)
        write_deltalake(
            uri,
            table,
            mode="overwrite",
            partition_by=list(where),
            predicate=predicate if exists else None,
            schema_mode="merge" if exists else None,
        )
    except (DeltaError, OSError) as error:
        raise StoreError(
            f"cannot write the table {uri}: {first_line(error)}. Make room or mend it; if it is damaged, delete it"
        ) from None


def read(uri: str, where: Mapping[str, str] | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
    """The rows of a Delta table with the given partition values; None where there is no table.

    Args:
        columns: only these.

    Raises:
        StoreError: the table is damaged.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        if not DeltaTable.is_deltatable(uri):
            return None
        filters = [(column, "=", value) for column, value in (where or {}).items()]
        wanted = list(columns) if columns else None
        frame: pd.DataFrame = DeltaTable(uri).to_pyarrow_table(filters=filters or None, columns=wanted).to_pandas()
    except (DeltaError, OSError) as error:
        raise StoreError(
            f"cannot read the table {uri}: {first_line(error)}. If it is damaged, delete that folder "
            "and run again: it is made anew"
        ) from None
    return frame
