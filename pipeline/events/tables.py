"""Rows on their way from a file to a frame: Arrow tables on the CPU, cuDF frames on the GPU, one set of methods.

Reading is where the two sides differ most, so the difference is kept here; :mod:`reading` is written once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backend import Array, Backend, Frame
from pipeline.errors import DataError, StoreError, first_line
from pipeline.events.files import filesystem, is_remote
from pipeline.events.footers import read_footer
from pipeline.events.schema import CATEGORIES, CATEGORY, nulls, numpy_of, plain


class Rows(Protocol):
    """What :mod:`reading` needs of a table of rows."""

    def __len__(self) -> int: ...
    def integers(self, name: str) -> Array:
        """A null-free column as int64[n]; times in microseconds."""
        ...

    def slice(self, first: int, last: int) -> Rows: ...
    def filter(self, mask: Array) -> Rows: ...
    def take(self, rows: Array, known: Mapping[str, Array] = {}) -> Rows:
        """Some rows in the order given; ``known``: integer columns that are there in that order already."""
        ...

    def ranks(self, name: str, rows: Array) -> Array:
        """Integers that order some rows as the column's values do: nulls first, text by its UTF-8 bytes."""
        ...

    def two_names(self) -> tuple[str, str] | None:
        """Two subscribers with one key, None where there are none. The rows are sorted by key and have the names."""
        ...

    def frame(self, columns: list[str]) -> Frame:
        """The canonical frame: subscriber_key as the index, naive times, categories."""
        ...


def damaged(path: str, error: BaseException) -> StoreError:
    return StoreError(
        f"store file {path} cannot be read: {first_line(error)}. It is damaged or was removed; restore it from a "
        "backup, or ingest its sources into a new store"
    )


@functools.lru_cache(maxsize=512)
def _footer(path: str) -> Any:
    """A data file's footer. Names hold digests of content and footer, so a footer never goes stale."""
    with _source(path) as source:
        return read_footer(source, path)


def _source(path: str) -> Any:
    if is_remote(path):
        fs, inner = filesystem(path)
        return fs.open_input_file(inner)
    return pa.OSFile(path)


def _open(path: str, metadata: Any, categories: list[str]) -> tuple[Any, Any]:
    source = _source(path)
    file = pq.ParquetFile(
        source,
        metadata=metadata,
        read_dictionary=categories,
        page_checksum_verification=True,
        pre_buffer=is_remote(path),
    )
    return source, file


def collision(client: str, one: str, two: str) -> DataError:
    return DataError(
        f"client {client!r}: subscribers {one!r} and {two!r} have one and the same subscriber_key "
        "(a collision of 64-bit hashes). Rename one of them in the source"
    )


class HostRows:
    """Rows as an Arrow table on the host."""

    def __init__(self, table: Any) -> None:
        self.table = table

    @classmethod
    def read(cls, path: str, groups: list[int], columns: list[str], schema: pa.Schema, backend: Backend) -> HostRows:
        """Row groups of one data file; columns that the file is too old to have come as nulls.

        Raises:
            StoreError: damaged (page checksums are verified) or gone.
        """
        (rows,) = cls.stepwise(path, groups, columns, schema, len(groups))
        return rows

    @classmethod
    def stepwise(
        cls, path: str, groups: list[int], columns: list[str], schema: pa.Schema, step: int
    ) -> Iterator[HostRows]:
        """As :meth:`read`, ``step`` row groups at a time."""
        try:
            footer = _footer(path)
            have = set(footer.schema.names)
            wanted = [c for c in columns if c in have]
            source, file = _open(path, footer, [c for c in wanted if c in CATEGORIES or c == "subscriber"])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged(path, error) from None
        with source:
            for i in range(0, len(groups), step):
                try:
                    table = file.read_row_groups(groups[i : i + step], columns=wanted, use_threads=False)
                    for column in table.columns:
                        if pa.types.is_dictionary(column.type):
                            column.validate(full=True)  # a page's header has no checksum: codes may be of no dictionary
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise damaged(path, error) from None
                for name in columns:
                    if name not in have:
                        kind = CATEGORY if name in CATEGORIES else schema.field(name).type
                        table = table.append_column(name, pa.nulls(table.num_rows, kind))
                # Files differ in which columns have nulls; to join them, all may.
                yield cls(pa.table({name: table.column(name) for name in columns}))

    @classmethod
    def concat(cls, several: list[HostRows]) -> HostRows:
        tables = [s.table for s in several]
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        return cls(table.unify_dictionaries().combine_chunks())

    def __len__(self) -> int:
        rows: int = self.table.num_rows
        return rows

    def integers(self, name: str) -> np.ndarray:
        column = self.table.column(name)
        if column.num_chunks == 1:
            return numpy_of(column.chunk(0)).view(np.int64)
        values: np.ndarray = column.to_numpy()
        return values.view(np.int64)

    def slice(self, first: int, last: int) -> HostRows:
        return HostRows(self.table.slice(first, last - first))

    def filter(self, mask: np.ndarray) -> HostRows:
        return HostRows(self.table.filter(pa.array(mask)))

    def take(self, rows: np.ndarray, known: Mapping[str, np.ndarray] = {}) -> HostRows:
        at, schema = pa.array(rows), self.table.schema
        return HostRows(
            pa.Table.from_arrays(
                [
                    pa.array(known[n]).view(schema.field(n).type) if n in known else self.table.column(n).take(at)
                    for n in schema.names
                ],
                schema=schema,
            )
        )

    def ranks(self, name: str, rows: np.ndarray) -> np.ndarray:
        return ranks(one_array(self.table.column(name)), rows)

    def two_names(self) -> tuple[str, str] | None:
        key, names = self.integers("subscriber_key"), one_array(self.table.column("subscriber"))
        if not pa.types.is_dictionary(names.type):
            names = names.dictionary_encode()
        codes = numpy_of(names.indices)
        other = np.flatnonzero((key[1:] == key[:-1]) & (codes[1:] != codes[:-1]))
        for i in other.tolist():  # one text may have two codes
            one, two = names[i].as_py(), names[i + 1].as_py()
            if one != two:
                return one, two
        return None

    def frame(self, columns: list[str]) -> Frame:
        import pandas as pd

        index = pd.Index(self.integers("subscriber_key"), name="subscriber_key")
        data: dict[str, Any] = {}
        for name in columns:
            array = one_array(self.table.column(name))
            if pa.types.is_dictionary(array.type) and name not in CATEGORIES:
                array = array.dictionary.take(array.indices)
            if pa.types.is_timestamp(array.type):
                if array.null_count:
                    data[name] = array.view(pa.timestamp("us")).to_pandas().array
                else:
                    data[name] = pd.array(numpy_of(array.view(pa.int64())).view("datetime64[us]"), copy=False)
            elif pa.types.is_dictionary(array.type):
                names = pd.Index(array.dictionary.to_pandas(), dtype="str")
                dtype = pd.CategoricalDtype(names, ordered=False)
                data[name] = pd.Categorical.from_codes(numpy_of(array.indices, -1), dtype=dtype, validate=False)
            elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
                data[name] = pd.array(array, dtype=pd.StringDtype("pyarrow", na_value=np.nan))
            elif name == "value":
                data[name] = numpy_of(array, 0)
            else:
                data[name] = array.to_pandas().array
        return pd.DataFrame(data, index=index, columns=columns, copy=False)


class DeviceRows:
    """Rows as a cuDF frame."""

    def __init__(self, data: Any, backend: Backend) -> None:
        self.data, self.backend = data, backend

    @classmethod
    def read(cls, path: str, groups: list[int], columns: list[str], schema: pa.Schema, backend: Backend) -> DeviceRows:
        """As :meth:`HostRows.read`; libcudf verifies no page checksums: check digests once per run with ``verify``."""
        try:
            have = set(_footer(path).schema.names)
            wanted = [c for c in columns if c in have]
            some = wanted or ["subscriber_key"]  # of no columns it would read no rows
            # It adds columns of its own from folders like client=acme.
            data = backend.df.read_parquet(path, columns=some, row_groups=[groups])[some]
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            raise damaged(path, error) from None
        for name in columns:
            if name not in have:
                data[name] = backend.df.Series.from_arrow(pa.nulls(len(data), schema.field(name).type))
            if getattr(data[name].dtype, "tz", None) is not None:
                data[name] = data[name].dt.tz_localize(None)
        return cls(data[columns], backend)

    @classmethod
    def concat(cls, several: list[DeviceRows]) -> DeviceRows:
        first = several[0]
        if len(several) == 1:
            return first
        return cls(first.backend.df.concat([s.data for s in several], ignore_index=True), first.backend)

    def __len__(self) -> int:
        return len(self.data)

    def integers(self, name: str) -> Array:
        return self.backend.column(self.data[name])

    def slice(self, first: int, last: int) -> DeviceRows:
        return DeviceRows(self.data.iloc[first:last].reset_index(drop=True), self.backend)

    def filter(self, mask: Array) -> DeviceRows:
        return DeviceRows(self.data[mask].reset_index(drop=True), self.backend)

    def take(self, rows: Array, known: Mapping[str, Array] = {}) -> DeviceRows:
        return DeviceRows(self.data.iloc[rows].reset_index(drop=True), self.backend)

    def ranks(self, name: str, rows: Array) -> Array:
        ranked = self.data[name].iloc[rows].rank(method="dense", na_option="top")
        return self.backend.column(ranked.astype("int64"))

    def two_names(self) -> tuple[str, str] | None:
        key, names = self.integers("subscriber_key"), self.data["subscriber"]
        before, after = (names.iloc[rows].reset_index(drop=True) for rows in (slice(None, -1), slice(1, None)))
        differs = self.backend.column(before != after)
        other = self.backend.xp.flatnonzero((key[1:] == key[:-1]) & differs)
        return (before.iloc[int(other[0])], after.iloc[int(other[0])]) if len(other) else None

    def frame(self, columns: list[str]) -> Frame:
        data = self.data[["subscriber_key", *columns]].set_index("subscriber_key")
        for name in columns:
            if name in CATEGORIES:
                data[name] = data[name].astype("category")
            elif name == "value":
                data[name] = data[name].fillna(0).astype("int64")
        return data


def one_array(column: Any) -> Any:
    """A column as one array, whatever its chunks' dictionaries."""
    if column.num_chunks > 1 and pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    array = plain(column)
    if isinstance(array, pa.ChunkedArray):
        array = pa.array([], array.type) if array.num_chunks == 0 else array.chunk(0)
    return array


def ranks(array: Any, rows: np.ndarray) -> np.ndarray:
    """An integer for each of some rows of an Arrow array that orders as its values do: nulls first, text by UTF-8."""
    if pa.types.is_dictionary(array.type):
        distinct = [v.encode() for v in array.dictionary.to_pylist()]
        order = {v: i for i, v in enumerate(sorted(set(distinct)))}
        by_value = np.array([*(order[v] for v in distinct), -1], dtype=np.int64)
        codes = numpy_of(array.indices.take(pa.array(rows)), len(distinct))
        return np.asarray(by_value[codes])
    taken = array.take(pa.array(rows))
    if pa.types.is_timestamp(taken.type):
        taken = taken.view(pa.int64())
    if pa.types.is_integer(taken.type) and not taken.null_count:
        return numpy_of(taken).astype(np.int64)
    if pa.types.is_boolean(taken.type):
        taken = taken.cast(pa.int8())
    if pa.types.is_null(taken.type):
        return np.zeros(len(rows), dtype=np.int64)
    missing = nulls(taken)
    ranked = numpy_of(pc.rank(taken, sort_keys="ascending", tiebreaker="dense")).astype(np.int64)
    return np.where(missing, 0, ranked)  # dense ranks begin at 1


def rows_of(backend: Backend) -> type[HostRows] | type[DeviceRows]:
    return DeviceRows if backend.on_gpu else HostRows
