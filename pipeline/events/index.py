"""The row-group index: where every row group lies in key and time, so that a read is planned without opening a file.

Each commit writes one Parquet file ``_eventgrain/<run>.parquet`` beside the Delta log: a row for every row group (see
:data:`INDEX`), and, in its metadata under ``manifest``, JSON with the run's sources, files, digests and counts. The
names of data files begin with their run, so a snapshot's list of files says which indexes it needs. A digest of both
stands in the metadata under ``sha256`` and is compared at every load: it needs nothing outside the file, so it outlives
the Delta log's cleaning, and a file that is replaced brings its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.events.files import Place
from pipeline.events.schema import FORMAT_VERSION

FOLDER = "_eventgrain"
REWRITTEN = "rewritten_"  # how the names of runs begin that only take rows out of other runs' files
INDEX = pa.schema(
    [
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("group", pa.int32()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("key_min", pa.int64()),
        ("key_max", pa.int64()),
        ("ts_min", pa.int64()),
        ("ts_max", pa.int64()),
    ]
)
NUMBERS = ("group", "rows", "bytes", "key_min", "key_max", "ts_min", "ts_max")


@dataclass
class Groups:
    """Row groups as columns: ``path``: the file's name in ``paths`` as int32[g]; the rest int64[g] (see INDEX)."""

    paths: list[str]
    path: np.ndarray
    numbers: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.path)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.numbers[name]

    def select(self, mask: np.ndarray) -> Groups:
        return Groups(self.paths, self.path[mask], {n: v[mask] for n, v in self.numbers.items()})

    @classmethod
    def concat(cls, several: list[Groups]) -> Groups:
        if not several:
            return cls([], np.empty(0, np.int32), {n: np.empty(0, np.int64) for n in NUMBERS})
        paths: list[str] = []
        codes = []
        for groups in several:
            codes.append(groups.path + len(paths))
            paths += groups.paths
        numbers = {n: np.concatenate([g.numbers[n] for g in several]) for n in NUMBERS}
        return cls(paths, np.concatenate(codes), numbers)


def run_of(path: str) -> str:
    """``client=acme/<run>-00of01-<digest>.parquet`` -> run."""
    return path.rpartition("/")[2].partition("-")[0]


def origin_of(path: str) -> str:
    """The run whose rows a file holds: that of :func:`run_of`, or the one that it was rewritten from."""
    parts = path.rpartition("/")[2].split("-")
    return parts[1] if parts[0].startswith(REWRITTEN) else parts[0]


def index_name(run: str) -> str:
    return f"{FOLDER}/{run}.parquet"


def encode(groups: Groups, manifest: Mapping[str, Any]) -> Any:
    """An index file as an Arrow buffer."""
    path = pa.DictionaryArray.from_arrays(pa.array(groups.path, pa.int32()), pa.array(groups.paths, pa.string()))
    arrays = [path, *(pa.array(groups[n], INDEX.field(n).type) for n in NUMBERS)]
    text = json.dumps(manifest)
    schema = INDEX.with_metadata({"manifest": text, "sha256": _digest(text, groups)})
    table = pa.Table.from_arrays(arrays, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _digest(manifest: str, groups: Groups) -> str:
    sha = hashlib.sha256(manifest.encode())
    for code in groups.path.tolist():
        sha.update(b"\0" + groups.paths[code].encode())
    for name in NUMBERS:
        sha.update(np.ascontiguousarray(groups[name], dtype="<i8").tobytes())
    return sha.hexdigest()


def load(place: Place, run: str) -> tuple[Groups, dict[str, Any]]:
    """An index file's row groups and manifest.

    Raises:
        StoreError: missing, damaged, or of another format version.
    """
    path = place.path(index_name(run))
    try:
        with place.fs.open_input_file(path) as handle:
            table = pq.ParquetFile(handle, page_checksum_verification=True, read_dictionary=["path"]).read()
        text, digest = (table.schema.metadata[name].decode() for name in (b"manifest", b"sha256"))
        manifest, groups = json.loads(text), _groups(table)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"the index {path} is missing or damaged ({error}); restore it from a backup") from None
    if manifest.get("format") != FORMAT_VERSION:
        raise StoreError(
            f"the index {path} has format {manifest.get('format')!r}; this version of eventgrain reads "
            f"{FORMAT_VERSION}. Ingest the store's sources into a new store, or delete this one and run again"
        )
    if _digest(text, groups) != digest or manifest.get("run") != run:
        raise StoreError(
            f"the index {path} is not what was written (its SHA-256 or its name differs); restore it from a backup"
        )
    return groups, manifest


def _groups(table: Any) -> Groups:
    if not table.num_rows:
        return Groups.concat([])
    column = table.column("path").unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    numbers = {n: table.column(n).to_numpy().astype(np.int64) for n in NUMBERS}
    return Groups(column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int64), numbers)
