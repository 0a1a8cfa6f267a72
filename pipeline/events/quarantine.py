"""Rejected rows: one Parquet file for each batch that had any, ``quarantine/<run>.parquet`` in the run directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError, first_line

STORE = b"eventgrain.store"


def encode(table: Any, store: str) -> Any:
    """A quarantine file as an Arrow buffer; its metadata name the store of its batch."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({STORE: store})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def together(tables: list[Any]) -> Any:
    """Rejected rows of several files as one table; where files disagree on a column's type, as text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        kinds: dict[str, set[str]] = {}
        for t in tables:
            for f in t.schema:
                kinds.setdefault(f.name, set()).add(str(f.type))
        mixed = {n for n, k in kinds.items() if len(k) > 1}
        plainer = []
        for t in tables:
            arrays = {
                n: pa.array([None if v is None else str(v) for v in t.column(n).to_pylist()], pa.string())
                if n in mixed
                else t.column(n)
                for n in t.column_names
            }
            plainer.append(pa.table(arrays))
        return pa.concat_tables(plainer, promote_options="permissive")


def files(run_dir: Path) -> Iterator[Path]:
    """The run's quarantine files, by name. Names that begin with ``_`` or ``.`` are none."""
    yield from sorted(p for p in (run_dir / "quarantine").glob("*.parquet") if p.name[0] not in "_.")


def store_of(path: Path) -> str | None:
    """The id of the store that a quarantine file's batch went to; None where it does not say."""
    try:
        return (pq.read_schema(path).metadata or {}).get(STORE, b"").decode() or None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise StoreError(f"the quarantine file {path} cannot be read ({first_line(error)}); delete it") from None
