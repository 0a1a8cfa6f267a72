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


def files(run_dir: Path) -> Iterator[Path]:
    """The run's quarantine files, by name. Names that begin with ``_`` or ``.`` are none."""
    yield from sorted(p for p in (run_dir / "quarantine").glob("*.parquet") if p.name[0] not in "_.")


def store_of(path: Path) -> str | None:
    """The id of the store that a quarantine file's batch went to; None where it does not say."""
    try:
        return (pq.read_schema(path).metadata or {}).get(STORE, b"").decode() or None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise StoreError(f"the quarantine file {path} cannot be read ({first_line(error)}); delete it") from None
