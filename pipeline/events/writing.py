"""Sorted rows to Parquet files: row groups cut at fixed key bounds, encodings chosen for reading.

Measured (CPU, 20 million events, three columns): keys as a dictionary decode at a fifth of the cost of plain ones,
times as delta-packed integers take 2 to 4 bytes less a row than plain at the same speed, and so do event ids that were
counted up (random ones take what plain ones do). Categories come to the writer as codes and leave the reader as codes.
Snappy everywhere but for long texts, which are worth Zstandard, and packed differences, which nothing makes smaller.
Columns without nulls are required ones, file by file: levels of definition take a fifth of the time of writing. A
column of nulls alone is not in the file at all: readers of Delta tables fill in what a file does not have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.events.files import Place
from pipeline.events.footers import footer_digest
from pipeline.events.index import Groups
from pipeline.events.schema import CATEGORY, client_folder, numpy_of
from pipeline.events.signals import kernels
from pipeline.events.sorting import key_bounds

GROUP_ROWS = 10_000
SMALL_GROUP_ROWS = 25
FILE_ROWS = 1_500_000
SMALL_VOCABULARY = 64  # entries that every row group may repeat
REPEATED = 8  # rows a subscriber of a file from which on its id and key are written once, in a dictionary


def group_bits(rows: int) -> int:
    """k of the 2^k key ranges whose bounds cut a batch of ``rows`` rows into row groups.

    At least about 10,000 rows a group; but up to 2^6 groups as long as a group holds 25 rows, so that reading one of P
    ranges of a small file decodes little more than 1/P of it.
    """
    large = (rows // GROUP_ROWS).bit_length() - 1
    small = min(6, (rows // SMALL_GROUP_ROWS).bit_length() - 1)
    return max(0, large, small)


def part_bits(rows: int) -> int:
    """p of the 2^p files, split at fixed key bounds, that a batch's rows of one client become."""
    return max(0, -(-rows // FILE_ROWS) - 1).bit_length()


@dataclass
class Written:
    """One file as it was written: what the commit and the index say of it."""

    entry: dict[str, Any]
    groups: Groups


@dataclass
class SortedRows:
    """Rows in the total order.

    ``key``, ``ts``: int64[n]; ``columns``: name -> Arrow array[n] of the file's other columns but subscriber,
    categories as dictionaries; ``subscribers``: Arrow array[d], the text or integer id of each distinct key, in order.
    """

    key: np.ndarray
    ts: np.ndarray
    columns: dict[str, Any]
    subscribers: Any


def _writer_options(schema: pa.Schema, repeated: bool) -> dict[str, Any]:
    """
    Args:
        schema: of the columns that are written, categories as dictionaries; repeated: whether a subscriber has rows
        enough for a dictionary of subscribers to pay; without, half of the time of writing these two columns and a
        third of their bytes are saved.
    """
    texts = {f.name for f in schema if pa.types.is_string(f.type)} - {"subscriber"}
    numbers = [n for n in ("ts", "ingested_at", "event_id") if not pa.types.is_string(schema.field(n).type)]
    deltas = dict.fromkeys(numbers, "DELTA_BINARY_PACKED")
    plain = {"machine", "event_id", *deltas, *(() if repeated else ("subscriber", "subscriber_key"))}
    return {
        "compression": {n: "zstd" if n in texts else "none" if n in deltas else "snappy" for n in schema.names},
        "use_dictionary": [f.name for f in schema if f.name not in plain],
        "column_encoding": deltas,
        "write_statistics": ["subscriber_key", "ts"],
        "write_page_checksum": True,
        "store_schema": False,
    }


def _compact(part: Any) -> Any:
    """A row group's dictionary array with only the entries in use, so that it does not repeat a batch's whole
    vocabulary; as it is where it has nulls, or that would not halve it."""
    if part.null_count:
        return part
    codes, dictionary = numpy_of(part.indices), part.dictionary
    if len(dictionary) > 2 * len(codes):
        used, inverse = np.unique(codes, return_inverse=True)
        return pa.DictionaryArray.from_arrays(
            pa.array(inverse.astype(np.int32)), dictionary.take(pa.array(used)), safe=False
        )
    counts = kernels().code_counts(codes, len(dictionary))
    used = np.flatnonzero(counts)
    if 2 * len(used) > len(dictionary):
        return part
    number = np.zeros(len(dictionary), dtype=np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(number.take(codes)), dictionary.take(pa.array(used)), safe=False)


def write_file(
    rows: SortedRows, schema: pa.Schema, bits: int, place: Place, client: str, name: Callable[[str], str]
) -> Written:
    """Write one data file durably.

    Args:
        schema: of the file; bits: row groups are cut at the bounds of 2**bits equal key ranges;
        name: from the first digits of the SHA-256 of the file and of its footer to its name in the client's folder.
    Returns:
        the file's entry, with the SHA-256 of the bytes written, its rows of each kind, ``machines`` (rows flagged as a
        machine's) and ``happened`` (the latest time that was not ahead of its row's arrival, microseconds UTC); and its
        row groups.
    Raises:
        StoreError: it cannot be written.
    """
    n = len(rows.key)
    change = np.empty(n, dtype=bool)
    change[:1] = True
    np.not_equal(rows.key[1:], rows.key[:-1], out=change[1:])
    begins = np.flatnonzero(change)
    ordinal = np.repeat(np.arange(len(begins), dtype=np.int32), np.diff(begins, append=n))
    bounds = np.array(key_bounds(1 << bits)[1:-1], dtype=np.int64)
    low, high = np.searchsorted(bounds, rows.key[[0, -1]], side="right")
    cuts = np.unique([0, *np.searchsorted(rows.key, bounds[low:high], side="left"), n])
    repeated = n >= REPEATED * (int(ordinal[-1]) + 1)
    categories = _dictionaries(rows) | ({"subscriber"} if repeated else set())
    columns = {"subscriber_key": pa.array(rows.key), "ts": pa.array(rows.ts).view(schema.field("ts").type)}
    columns |= {name: array for name, array in rows.columns.items() if array.null_count < n}
    names = [name for name in schema.names if name in columns or name == "subscriber"]
    kinds = {name: CATEGORY if name in categories else schema.field(name).type for name in names}
    large = [name for name in categories & columns.keys() if len(columns[name].dictionary) > SMALL_VOCABULARY]
    some = {name for name, array in columns.items() if array.null_count}  # the others need no levels of definition
    written = pa.schema([pa.field(n, kind, n in some) for n, kind in kinds.items()])
    subscribers, sink = rows.subscribers.cast(pa.string()), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, written, **_writer_options(written, repeated)) as writer:
        for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            d0, d1 = int(ordinal[first]), int(ordinal[last - 1]) + 1
            codes, ids = pa.array(ordinal[first:last] - np.int32(d0)), subscribers.slice(d0, d1 - d0)
            arrays = {name: array.slice(first, last - first) for name, array in columns.items()}
            arrays |= {name: _compact(arrays[name]) for name in large}
            arrays["subscriber"] = (
                pa.DictionaryArray.from_arrays(codes, ids, safe=False) if repeated else ids.take(codes)
            )
            table = pa.Table.from_arrays([arrays[n] for n in names], schema=written)
            writer.write_table(table, row_group_size=last - first)
    data = sink.getvalue()
    sha = hashlib.sha256(data).hexdigest()
    path = f"{client_folder(client)}/{name(sha[:12] + footer_digest(data))}"
    meta = pq.read_metadata(pa.BufferReader(data))
    sizes = [meta.row_group(g).total_byte_size for g in range(meta.num_row_groups)]
    place.write(path, data)
    firsts, lasts = cuts[:-1], cuts[1:] - 1
    numbers = {
        "group": np.arange(len(sizes)),
        "bytes": np.array(sizes, np.int64),
        "rows": np.diff(cuts),
        "key_min": rows.key[firsts],
        "key_max": rows.key[lasts],
        "ts_min": np.minimum.reduceat(rows.ts, firsts),
        "ts_max": np.maximum.reduceat(rows.ts, firsts),
    }
    entry = {
        "path": path,
        "client": client,
        "size": data.size,
        "sha256": sha,
        "rows": n,
        "key_min": int(rows.key[0]),
        "key_max": int(rows.key[-1]),
        "ts_min": int(numbers["ts_min"].min()),
        "ts_max": int(numbers["ts_max"].max()),
        "happened": int(kernels().latest_happened(rows.ts, _times(rows.columns["ingested_at"]))),
        "kinds": _counts(rows.columns["event"]),
        "machines": int(rows.columns["machine"].true_count),
    }
    return Written(entry, Groups([path], np.zeros(len(sizes), dtype=np.int64), numbers))


def _times(array: Any) -> np.ndarray:
    return numpy_of(array.view(pa.int64()))


def _counts(category: Any) -> dict[str, int]:
    """Rows of each value of a dictionary array."""
    names = category.dictionary.to_pylist()
    counts: dict[str, int] = {}
    for name, count in zip(names, kernels().code_counts(numpy_of(category.indices), len(names)).tolist(), strict=True):
        if count:
            counts[name] = counts.get(name, 0) + count
    return counts


def _dictionaries(rows: SortedRows) -> set[str]:
    return {name for name, array in rows.columns.items() if pa.types.is_dictionary(array.type)}
