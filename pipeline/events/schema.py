"""What an event is, how it lies in the store, and how the user's columns become its columns.

Canonical columns: see :data:`CANONICAL`. Times are microseconds since 1970-01-01 UTC, int64; a source time without a
zone is UTC. ``value`` is int64 micro-units. Ids are text: an integer subscriber is its decimal text.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, SourceError, did_you_mean
from pipeline.options import Source

FORMAT_VERSION = 3  # 3: indexes hold a digest, and the log's statistics no exact key
TIME = pa.timestamp("us", "UTC")
CATEGORY = pa.dictionary(pa.int32(), pa.string())

# name -> Arrow type as stored; `event_id` is int64 or string, fixed when the store is made
CANONICAL: dict[str, pa.DataType] = {
    "subscriber_key": pa.int64(),
    "ts": TIME,
    "event": pa.string(),
    "event_id": pa.int64(),
    "campaign": pa.string(),
    "provider": pa.string(),
    "value": pa.int64(),
    "subscriber": pa.string(),
    "ingested_at": TIME,
    "batch": pa.string(),
    "machine": pa.bool_(),
    "flagged_by": pa.string(),
}
OPTIONAL = ("campaign", "provider", "value", "flagged_by")  # where no row has any, a file has no such column
CATEGORIES = ("event", "campaign", "provider", "batch", "flagged_by")  # few distinct values: categories in frames
IDENTITY = ("subscriber_key", "ts", "event", "event_id")
ADDED = ("subscriber_key", "ingested_at", "batch", "machine", "flagged_by")
RESERVED = {*CANONICAL, "client"}
MAX_CLIENT = 240  # a file name has at most 255 bytes on most disks
UNIT_US = {"s": 1_000_000, "ms": 1000, "us": 1}


def store_schema(event_id: pa.DataType, carried: Mapping[str, pa.DataType]) -> pa.Schema:
    """The Arrow schema of a data file: the canonical columns, then the carried by name; ``client`` is in the path."""
    fields = [pa.field(n, event_id if n == "event_id" else t) for n, t in CANONICAL.items()]
    return pa.schema([*fields, *(pa.field(n, t) for n, t in sorted(carried.items()))])


def carried_type(kind: pa.DataType, name: str) -> pa.DataType:
    """The stored type of a carried column: what Delta can hold and both backends read."""
    if pa.types.is_dictionary(kind):
        return carried_type(kind.value_type, name)
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return TIME
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_null(kind):
        return pa.string()
    raise ConfigError(
        f"source.carry: column {name!r} is {kind}; only numbers, text, booleans and times can be carried. Leave it out"
    )


def mapped_columns(source: Source) -> dict[str, str]:
    """Canonical name -> source column, for every mapped and carried column."""
    mapped = {name: column for name, column in source.columns if column is not None}
    for name in source.carry:
        if name in RESERVED:
            raise ConfigError(f"source.carry: {name!r} is a column of every store; rename it in the source to carry it")
        mapped[name] = name
    return mapped


def map_columns(
    source: Source, available: Iterable[str], where: str, hive: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Check the mapping against one file's columns.

    Args:
        available: the file's columns; hive: ``name=value`` parts of its path, which serve as columns too.
    Returns:
        canonical name -> source column.
    Raises:
        ConfigError: a mapped column is missing; names it, the file and the nearest names.
    """
    have, mapped = [*available, *(hive or {})], mapped_columns(source)
    missing = [(c, s) for c, s in mapped.items() if s not in have]
    if missing:
        lines = "; ".join(f"{c}: there is no column {s!r}, {did_you_mean(s, have)}" for c, s in missing)
        raise ConfigError(f"source.columns do not fit {where}: {lines}")
    twice = next((s for s in mapped.values() if have.count(s) > 1 and s not in (hive or {})), None)
    if twice is not None:
        raise ConfigError(f"source.columns do not fit {where}: it has several columns {twice!r}; rename all but one")
    return mapped


def hive_parts(path: str) -> dict[str, str]:
    """``.../client=acme/day=2026-05-01/x.parquet`` -> {"client": "acme", "day": "2026-05-01"}."""
    parts = [p.partition("=") for p in path.split("/")[:-1]]
    return {name: unquote(value) for name, equals, value in parts if equals and name}


def client_folder(client: str) -> str:
    """The folder of one client's files, ``client=`` and the percent-encoded name.

    No name leaves the store, and readers that take partition values from paths find what the Delta log says. Names too
    long for that are rejected at ingest (rule ``unusable_client``).
    """
    return f"client={quote(client, safe='')}"


def usable_client(client: str) -> bool:
    """Whether the name can be a folder's: no NUL, and at most :data:`MAX_CLIENT` bytes once percent-encoded."""
    return "\0" not in client and len(quote(client, safe="")) <= MAX_CLIENT


# -- conversions, each returning the values and which rows could not be converted ------------------------------------


def plain(column: Any) -> Any:
    """A chunked array as one array."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def nulls(array: Any) -> np.ndarray:
    if array.null_count == 0:
        return np.zeros(len(array), dtype=bool)
    mask: np.ndarray = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def numpy_of(array: Any, fill: Any = 0) -> np.ndarray:
    """A fixed-width Arrow array as NumPy, nulls filled."""
    if array.null_count:
        array = array.fill_null(fill)
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values


def to_micros(array: Any, unit: str | None, column: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Times of any kind as int64 microseconds since 1970 UTC.

    Args:
        array: timestamps of any unit and zone, dates (midnight UTC), ISO 8601 strings (UTC without an offset), or
            numbers in ``unit`` ("s", "ms", "us", "ns").
    Returns:
        int64[n], and bool[n]: not null but not a time (unparsable, or out of int64's range).
    Raises:
        ConfigError: numbers without a unit; SourceError: a type that is no time.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    bad = np.zeros(len(array), dtype=bool)
    if pa.types.is_timestamp(kind):
        return _scaled(numpy_of(array.cast(pa.int64())), kind.unit, bad)
    if pa.types.is_date(kind):
        return _scaled(numpy_of(array.cast(pa.date32()).cast(pa.int32())).astype(np.int64) * 86_400, "s", bad)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if unit is None:
            raise ConfigError(
                f"column {column!r} in {where} holds numbers ({kind}): say what they count since 1970 with "
                "source.time_unit: s, ms, us or ns"
            )
        if pa.types.is_integer(kind):
            return _scaled(numpy_of(array.cast(pa.int64(), safe=False)), unit, bad)
        floats = numpy_of(array.cast(pa.float64()), 0.0) * (UNIT_US[unit] if unit != "ns" else 1e-3)
        bad = ~(np.abs(floats) < 2.0**62)
        return np.rint(np.where(bad, 0, floats)).astype(np.int64), bad
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _parse_iso(array)
    if pa.types.is_null(kind):
        return np.zeros(len(array), dtype=np.int64), bad
    raise SourceError(
        f"column {column!r} in {where} is {kind}, which is no time. Expected a timestamp, a date, ISO 8601 text, or "
        "numbers with source.time_unit"
    )


def _scaled(values: np.ndarray, unit: str, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if unit == "ns":
        return values // 1000, bad
    factor = UNIT_US[unit]
    if factor == 1:
        return values, bad
    limit = (2**63 - 1) // factor
    bad = (values > limit) | (values < -limit)
    return np.where(bad, 0, values) * factor, bad


def _parse_iso(array: Any) -> tuple[np.ndarray, np.ndarray]:
    missing = nulls(array)
    zoned = pa.timestamp("us", "UTC")
    for kind in (pa.timestamp("us"), zoned):  # Arrow reads a column that is all of one form very fast
        try:
            return numpy_of(array.cast(kind).cast(pa.int64())), np.zeros(len(array), dtype=bool)
        except pa.ArrowInvalid:
            continue
    import pandas as pd

    texts = array.cast(pa.string()).to_pandas()
    parsed = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    micros = parsed.to_numpy(dtype="datetime64[us]").view(np.int64)
    bad = parsed.isna().to_numpy() & ~missing
    return np.where(bad | missing, 0, micros), bad


def to_micro_units(array: Any, unit: str, column: str, where: str) -> tuple[Any, np.ndarray]:
    """Money and the like as int64 micro-units, nulls kept, rounding half to even.

    Returns:
        an Arrow int64 array, and bool[n]: not finite, or too great for int64.
    """
    kind = array.type
    missing = nulls(array)
    factor = 1 if unit == "micro" else 1_000_000
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.int64()), missing & False
    if pa.types.is_boolean(kind):
        array, kind = array.cast(pa.int64()), pa.int64()
    if pa.types.is_integer(kind):
        values = numpy_of(array.cast(pa.int64(), safe=False))
        limit = (2**63 - 1) // factor
        bad = (values > limit) | (values < -limit)
        if pa.types.is_uint64(kind):
            bad |= values < 0
        out = np.where(bad, 0, values) * factor
    elif pa.types.is_decimal(kind) and unit == "unit" and kind.scale <= 6 and kind.precision - kind.scale <= 32:
        # Exactly: a decimal of six places is an integer of micro-units, in 128 bits.
        wide = array.cast(pa.decimal128(38, 6))
        words = np.frombuffer(wide.buffers()[1] or b"", dtype=np.int64)
        low, high = words[2 * wide.offset :][: 2 * len(wide)].reshape(-1, 2).T
        bad = high != low >> 63
        out = np.where(bad | missing, 0, low)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        floats = numpy_of(array.cast(pa.float64()), 0.0) * factor
        bad = ~(np.abs(floats) < 2.0**63)
        out = np.rint(np.where(bad, 0, floats)).astype(np.int64)
    else:
        raise SourceError(f"column {column!r} in {where} is {kind}; source.columns.value must be a number")
    bad &= ~missing
    return pa.array(out, mask=missing | bad), bad


def to_category(array: Any, column: str, where: str) -> Any:
    """Any column of few distinct values as dictionary<int32, string>, without unused or repeated entries."""
    if pa.types.is_nested(array.type):
        raise SourceError(f"column {column!r} in {where} is {array.type}; expected text or whole numbers")
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode() if not pa.types.is_null(array.type) else pa.nulls(len(array), CATEGORY)
    elif array.dictionary.null_count:  # nulls may hide among the values
        array = array.dictionary_decode().dictionary_encode()
    distinct = array.dictionary
    kind = distinct.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise SourceError(f"column {column!r} in {where} is {kind}; expected text or whole numbers")
    if pa.types.is_floating(kind):
        distinct = _whole(distinct, column, where)
    distinct = distinct.cast(pa.string())
    return pa.DictionaryArray.from_arrays(array.indices.cast(pa.int32()), distinct, safe=False)


def to_id(array: Any, column: str, where: str) -> Any:
    """An id column as int64 or large_string. Whole floats, as pandas writes integers with nulls, become integers."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_uint64(kind):
        return array.cast(pa.large_string())
    if pa.types.is_integer(kind):
        return array.cast(pa.int64())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _whole(array, column, where)
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.large_string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    raise SourceError(f"column {column!r} in {where} is {kind}; an id must be text or a whole number")


def _whole(array: Any, column: str, where: str) -> Any:
    floats = numpy_of(array.cast(pa.float64()), 0.0)
    for wrong, what in (
        (~np.isfinite(floats), "NaN or infinities"),
        (floats != np.rint(floats), "fractions"),
        (np.abs(floats) >= 2.0**53, "numbers of 2^53 and more, of which several integers share one"),
    ):
        if bool(wrong.any()):
            raise SourceError(
                f"column {column!r} in {where} is {array.type} with {what}; an id must be text or a whole number"
            )
    return pa.array(floats.astype(np.int64), mask=nulls(array))


def canonical_kinds(category: Any, kinds: Mapping[str, list[str]]) -> Any:
    """Rename the source's kinds to the canonical ones (``source.kinds``); others keep their names."""
    rename = {name: kind for kind, names in kinds.items() for name in names}
    values = [rename.get(v, v) if v is not None else None for v in category.dictionary.to_pylist()]
    distinct = list(dict.fromkeys(values))
    if distinct == values and values == category.dictionary.to_pylist():
        return category
    lookup = pa.array([distinct.index(v) for v in values], pa.int32())
    return pa.DictionaryArray.from_arrays(
        pc.take(lookup, category.indices), pa.array(distinct, pa.string()), safe=False
    )


def microseconds(value: str | int | dt.datetime | dt.date | None) -> int | None:
    """A time given by a user as microseconds since 1970 UTC; text is ISO 8601, naive times are UTC."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise ConfigError(f"{value!r} is not a time: write it as 2026-06-01 or 2026-06-01T12:00:00+02:00") from None
    if not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    if value.tzinfo is None:
        value = value.replace(tzinfo=dt.UTC)
    return (value - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
