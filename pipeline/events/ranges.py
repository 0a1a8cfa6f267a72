"""A batch's accepted rows, brought from the order of their files to that of clients and key ranges.

Once every file's rows are counted, each row's place is known: its client, then its key range, then the order of
arrival. Columns of one width go straight there, file by file and in parallel, so that a range's rows lie side by side
when it is sorted. Texts stay where they arrived and are taken once, in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import Backend
from pipeline.events.hashing import second_hash
from pipeline.events.schema import CATEGORY, numpy_of, plain
from pipeline.events.sorting import bucket_of
from pipeline.events.writing import part_bits

Each = Callable[[Callable[[int], Any], Iterable[int]], list[Any]]  # a map over the batch's files, in parallel


@dataclass(frozen=True)
class Range:
    """One client's rows of one of ``parts`` key ranges: those at the places [first, last). ``total``: the client's."""

    client: str
    part: int
    parts: int
    total: int
    first: int
    last: int


@dataclass
class _Placed:
    """A column of one width, in the order of places. ``dictionary``: of categories, whose codes are -1 for null."""

    values: np.ndarray
    dictionary: Any | None = None
    nulls: bool = False

    def take(self, at: np.ndarray) -> Any:
        values = self.values.take(at)
        if self.dictionary is None:
            return pa.array(values)
        codes = pa.array(values, mask=values < 0) if self.nulls else pa.array(values)
        return pa.DictionaryArray.from_arrays(codes, self.dictionary)


@dataclass
class _Arrived:
    """A column in the order of arrival. ``rows``: int64[n], which row of it is at each place; None: the same."""

    array: Any
    rows: np.ndarray | None

    def take(self, at: np.ndarray) -> Any:
        return self.array.take(pa.array(at if self.rows is None else self.rows.take(at)))


@dataclass
class _Null:
    """A column without a value."""

    kind: pa.DataType

    def take(self, at: np.ndarray) -> Any:
        return pa.nulls(len(at), self.kind)


class BatchRows:
    """The rows of a batch's files by client and key range.

    ``ranges``: what there is to sort and write; ``key``, ``ts``: int64[n]; ``name``: int64[n], the subscriber's number
    or a second hash of its text, which differs where two subscribers share a key.

    Args:
        tables: of :class:`pipeline.events.prepare.Prepared`, none empty. Emptied, so that each is freed once used.
        each: calls a function for every file.
    """

    def __init__(self, tables: list[Any], each: Each, backend: Backend) -> None:
        _agree(tables, backend)
        self._tables, self._each, self._backend = tables, each, backend
        self._columns: dict[str, Any] = {}
        sizes = [t.num_rows for t in tables]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        names = [n for n in tables[0].column_names if n not in ("client", "subscriber_key")]
        wide = [n for n in names if _fixed(tables, n)]
        categories = {n: self._vocabulary(n) for n in ("client", *wide) if _is_category(tables[0], n)}
        self._place(*categories.pop("client"))
        self._spread(wide, categories)
        rest = [n for n in names if n not in wide]
        filled = [n for n in rest if any(t.column(n).null_count < t.num_rows for t in tables)]
        rows = self._arrival() if filled and len(self.ranges) > 1 else None
        for name in rest:
            if name in filled:
                chunks = [c for t in tables for c in t.column(name).chunks]
                self._columns[name] = _Arrived(pa.concat_arrays(chunks), rows)
            else:
                self._columns[name] = _Null(tables[0].schema.field(name).type)
        self.key, self.ts = self.integers("subscriber_key"), self.integers("ts")
        self.name = self.integers("subscriber" if "subscriber" in wide else "second_hash")
        self._places.clear()
        tables.clear()

    def integers(self, name: str) -> np.ndarray:
        """A column of one width in the order of places; categories as codes."""
        values: np.ndarray = self._columns[name].values
        return values

    def has(self, name: str) -> bool:
        return name in self._columns

    def take(self, name: str, at: np.ndarray) -> Any:
        """The column's values at some places, int64[m], as an Arrow array[m]."""
        return self._columns[name].take(at)

    def _vocabulary(self, name: str) -> tuple[list[str], list[np.ndarray], bool]:
        """The values in use in any file, for each file its codes' numbers among them, and whether there are nulls.

        Kinds of rejected rows must not come back as categories.
        """

        def used(i: int) -> np.ndarray:
            array = plain(self._tables[i].column(name))
            return np.bincount(numpy_of(array.indices, -1) + 1, minlength=len(array.dictionary) + 1) > 0

        number: dict[str, int] = {}
        lookups, nulls = [], False
        for i, mask in enumerate(self._each(used, range(len(self._tables)))):
            words = plain(self._tables[i].column(name)).dictionary.to_pylist()
            codes = [number.setdefault(w, len(number)) if m else -1 for w, m in zip(words, mask[1:], strict=True)]
            lookups.append(np.array([-1, *codes], dtype=np.int32))
            nulls |= bool(mask[0])
        return list(number), lookups, nulls

    def _place(self, clients: list[str], lookups: list[np.ndarray], nulls: bool) -> None:
        """Settle the ranges and every row's place: ``_places``, for each file int64[rows] or one slice."""
        files = range(len(self._tables))

        def client_of(i: int) -> np.ndarray:
            return lookups[i].take(numpy_of(plain(self._tables[i].column("client")).indices) + 1)

        totals = np.array([self._starts[-1]])
        if len(clients) > 1:
            totals = np.sum(self._each(lambda i: np.bincount(client_of(i), minlength=len(clients)), files), axis=0)
        bits = [part_bits(c) for c in totals.tolist()]
        begin = np.concatenate([[0], np.cumsum([1 << b for b in bits])])
        width = np.array(bits)
        single = len(clients) == 1

        def range_of(i: int) -> np.ndarray:
            key = numpy_of(plain(self._tables[i].column("subscriber_key")))
            if single:
                only: np.ndarray = bucket_of(key, bits[0])
                return only
            client = client_of(i)
            place = np.asarray(begin[client])
            for b in set(bits) - {0}:
                mask = width[client] == b
                place[mask] += bucket_of(key[mask], b)
            return place

        ends = int(begin[-1])
        if ends == 1:
            self._places: list[Any] = [slice(a, b) for a, b in pairwise(self._starts)]
            rows = np.array([0, self._starts[-1]])
        else:
            range_kind = np.uint16 if ends < 65_536 else np.int64  # NumPy sorts 16-bit integers by radix
            of = self._each(lambda i: range_of(i).astype(range_kind), files)
            counts = np.array(self._each(lambda i: np.bincount(of[i], minlength=ends), files))
            rows = np.concatenate([[0], np.cumsum(counts.sum(axis=0))])
            first = np.cumsum(counts, axis=0) - counts + rows[:-1]  # [file, range]

            def places(i: int) -> np.ndarray:
                order = np.argsort(of[i], kind="stable")
                found = np.empty(len(order), dtype=np.int64)
                begins = np.cumsum(counts[i]) - counts[i]
                found[order] = np.arange(len(order)) + np.repeat(first[i] - begins, counts[i])
                return found

            self._places = self._each(places, files)
        self.ranges = [
            Range(name, part, 1 << bits[c], int(totals[c]), int(rows[at]), int(rows[at + 1]))
            for c, name in enumerate(clients)
            for part in range(1 << bits[c])
            if rows[at := int(begin[c]) + part] < rows[at + 1]
        ]

    def _arrival(self) -> np.ndarray:
        """Which row, in the order of arrival, is at each place, int64[n]."""
        rows = np.empty(self._starts[-1], dtype=np.int64)

        def one(i: int) -> None:
            rows[self._places[i]] = np.arange(*self._starts[i : i + 2])

        self._each(one, range(len(self._tables)))
        return rows

    def _spread(self, names: list[str], categories: dict[str, tuple[list[str], list[np.ndarray], bool]]) -> None:
        """Bring the columns of one width to their places."""
        names = ["subscriber_key", *names]
        texts = "subscriber" not in names
        n, first = self._starts[-1], self._tables[0]
        into = {}
        for name in names:
            kind = np.int32 if name in categories else first.schema.field(name).type.to_pandas_dtype()
            if name in categories and not categories[name][0]:
                self._columns[name] = _Null(CATEGORY)
                continue
            into[name] = np.empty(n, dtype=kind)
            words, _, nulls = categories.get(name, ([], [], False))
            self._columns[name] = _Placed(
                into[name], pa.array(words, pa.string()) if name in categories else None, nulls
            )
        if texts:
            into["second_hash"] = np.empty(n, dtype=np.int64)
            self._columns["second_hash"] = _Placed(into["second_hash"])

        def one(i: int) -> None:
            table, places = self._tables[i], self._places[i]
            for name, target in into.items():
                if name == "second_hash":
                    target[places] = self._backend.to_host(second_hash(table.column("subscriber"), self._backend))
                elif name in categories:
                    codes = numpy_of(plain(table.column(name)).indices, -1)
                    target[places] = categories[name][1][i].take(codes + 1)
                else:
                    target[places] = numpy_of(plain(table.column(name)))
            self._tables[i] = table.drop_columns([c for c in into if c in table.column_names])

        self._each(one, range(len(self._tables)))


def _is_category(table: Any, name: str) -> bool:
    return bool(pa.types.is_dictionary(table.schema.field(name).type))


def _fixed(tables: list[Any], name: str) -> bool:
    kind = tables[0].schema.field(name).type
    if pa.types.is_dictionary(kind):
        return True
    wide = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(wide and not any(t.column(name).null_count for t in tables))


def _agree(tables: list[Any], backend: Backend) -> None:
    """Subscribers as text in every file where any has them so, and marks in every file where any has some."""
    if any("marks" in t.column_names for t in tables):
        for i, t in enumerate(tables):
            if "marks" not in t.column_names:
                tables[i] = t.append_column("marks", pa.array(np.zeros(t.num_rows, dtype=np.int32)))
    if len({t.schema.field("subscriber").type for t in tables}) > 1:
        at = tables[0].schema.get_field_index("subscriber")
        for i, t in enumerate(tables):
            tables[i] = t.set_column(at, "subscriber", t.column("subscriber").cast(pa.large_string()))
