"""A batch's accepted rows, from the order of their files to that of clients and key ranges.

Every file's rows are put in order of client and key range as soon as they are read, while they are in the processor's
cache: a :class:`Piece`. A range's rows are then a slice of each piece, and are brought together when the range is
sorted. So no step handles a whole batch, and all steps run in parallel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import PANDAS, Backend
from pipeline.events.hashing import second_hash
from pipeline.events.schema import numpy_of, plain
from pipeline.events.signals import kernels
from pipeline.events.sorting import place_order
from pipeline.events.writing import part_bits

BLOCK = 1 << 21  # bytes; of a huge page
KEPT = 1 << 30  # bytes that are kept for later tasks
WIDE = ("subscriber_key", "ts", "ingested_at")  # int64 whatever is in them


class Blocks:
    """Memory that one task after the other uses again: fresh pages cost more than what is done with them."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """At least ``size`` bytes, uint8."""
        with self._lock:
            for i in range(len(self._free) - 1, -1, -1):
                if size <= len(self._free[i]) <= 2 * size + BLOCK:
                    return self._free.pop(i)
        size = -(-size // BLOCK) * BLOCK
        raw = np.empty(size + BLOCK, dtype=np.uint8)
        return raw[-raw.ctypes.data % BLOCK :][:size]  # NumPy asks for huge pages: these begin at their multiples

    def give(self, blocks: list[np.ndarray]) -> None:
        """Take blocks back; nothing may use them any more."""
        with self._lock:
            self._free += blocks
            blocks.clear()
            while sum(map(len, self._free)) > KEPT:
                self._free.pop(0)


class Scratch:
    """Arrays of one task in memory that is used again once they are given back."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks, self._taken = blocks, list[np.ndarray]()

    def array(self, n: int, kind: Any) -> np.ndarray:
        """An uninitialised array[n]."""
        size = n * np.dtype(kind).itemsize
        if size < BLOCK // 4:
            return np.empty(n, dtype=kind)
        self._taken.append(self._blocks.take(size))
        return self._taken[-1][:size].view(kind)

    def free(self) -> None:
        """Give everything back."""
        self._blocks.give(self._taken)


@dataclass
class Piece:
    """One file's accepted rows by client and key range, those of one of the 2**bits ranges in the order of the file.

    ``clients``: name -> number; ``ends``: int64[clients, ranges + 1], where each range of each client begins and ends;
    ``columns``: name -> NumPy array (one value where all are the same) where there are no nulls and one width, Arrow
    array, or None for nulls alone; a category as its codes, -1 for null, with its ``words``, None for those without
    rows; for subscribers that are text also ``second_hash``, int32. Integers are of 32 bits where they fit.
    """

    clients: dict[str, int]
    ends: np.ndarray
    columns: dict[str, Any]
    kinds: dict[str, pa.DataType]
    words: dict[str, list[str | None]]
    memory: np.ndarray | None = None


def piece_of(table: Any, bits: int, blocks: Blocks, backend: Backend) -> Piece:
    """Order one file's rows by client and by which of 2**bits key ranges they are in.

    Args:
        table: of :class:`pipeline.events.prepare.Prepared`.
    """
    n = table.num_rows
    arrays = {name: plain(table.column(name)) for name in table.column_names}
    client = arrays.pop("client")
    clients: dict[str, int] = {}
    number = np.array([clients.setdefault(name, len(clients)) for name in client.dictionary.to_pylist()], np.int32)
    owner = number.take(numpy_of(client.indices)) if len(clients) > 1 else None
    places, counts = place_order(numpy_of(arrays["subscriber_key"]), owner, len(clients), bits)
    order = places if np.count_nonzero(counts) > 1 else None
    at = np.arange(len(clients))[:, None] * (1 << bits) + np.arange((1 << bits) + 1)
    ends = np.concatenate([[0], np.cumsum(counts)])[at]
    piece = Piece(clients, ends, {}, {name: array.type for name, array in arrays.items()}, {})
    wide: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if pa.types.is_dictionary(array.type) and array.null_count == n:
            wide[name], piece.words[name] = np.full(1, -1, dtype=np.int16), [None] * len(array.dictionary)
        elif pa.types.is_dictionary(array.type):
            codes = numpy_of(array.indices, -1)
            used = kernels().code_counts(codes, len(array.dictionary)).tolist()
            wide[name] = codes.astype(np.int16) if len(used) < 2**15 else codes
            words = zip(array.dictionary.to_pylist(), used, strict=True)
            piece.words[name] = [word if rows else None for word, rows in words]
        elif array.null_count == n:
            piece.columns[name] = None
        elif _fixed(array):
            wide[name] = numpy_of(array) if name in WIDE else _narrow(numpy_of(array))
        else:
            piece.columns[name] = array if order is None else array.take(pa.array(order))
    if not pa.types.is_integer(arrays["subscriber"].type):
        wide["second_hash"] = _half(backend.to_host(second_hash(arrays["subscriber"], backend)))
    for name, values in wide.items():
        if n > 1 and values[0] == values[-1] and (values == values[0]).all():
            wide[name] = values[:1]
    if order is not None:
        _order(wide, order, piece, blocks)
    piece.columns |= wide
    return piece


def _order(columns: dict[str, np.ndarray], order: np.ndarray, piece: Piece, blocks: Blocks) -> None:
    """Put columns in order, in one block of memory, the widest values first so that all are aligned."""
    names = sorted((name for name, c in columns.items() if len(c) == len(order)), key=lambda n: -columns[n].itemsize)
    piece.memory = blocks.take(sum(columns[name].nbytes for name in names))
    at = 0
    for name in names:
        values = columns[name]
        out = piece.memory[at : at + values.nbytes].view(values.dtype)
        columns[name] = values.take(order, out=out, mode="clip")
        at += values.nbytes


def _narrow(values: np.ndarray) -> np.ndarray:
    """Integers as int32 where they fit: what is put in another order at random costs a fifth of int64."""
    if values.dtype == np.int64 and len(values) and values.min() >= -(2**31) and values.max() < 2**31:
        return values.astype(np.int32)
    return values


def _half(hashes: np.ndarray) -> np.ndarray:
    """The lower half of each hash, int32[n], of int64[n]."""
    return hashes.astype(np.int32)


def _fixed(array: Any) -> bool:
    return not array.null_count and bool(pa.types.is_integer(array.type) or pa.types.is_floating(array.type))


@dataclass(frozen=True)
class Range:
    """One client's rows of one of ``parts`` key ranges; ``total``: the client's rows in the batch."""

    client: str
    part: int
    parts: int
    total: int


class BatchRows:
    """The rows of a batch's files by client and key range; ``ranges``: what there is to sort and write.

    Args:
        pieces: one or more with rows, each of 2**bits ranges.
    """

    def __init__(self, pieces: list[Piece], bits: int) -> None:
        self._pieces, self._bits = pieces, bits
        self._nothing: dict[pa.DataType, Any] = {}
        totals: dict[str, int] = {}
        ranges: dict[str, Any] = {}  # client -> rows of each of the 2**bits ranges
        for piece in pieces:
            for client, counts in zip(piece.clients, np.diff(piece.ends, axis=1), strict=True):
                if count := int(counts.sum()):
                    totals[client] = totals.get(client, 0) + count
                    ranges[client] = ranges.get(client, 0) + counts
        self._vocabulary = {name: _vocabulary(pieces, name) for name in pieces[0].words}
        texts = [p for p in pieces if "second_hash" in p.columns]
        if 0 < len(texts) < len(pieces):  # ids are text where any file has them so
            for piece in pieces:
                if "second_hash" not in piece.columns:
                    _as_text(piece)
        if any("marks" in p.columns for p in pieces):
            for piece in pieces:
                piece.columns.setdefault("marks", np.zeros(1, dtype=np.int32))
        self.ranges = [
            Range(client, part, 1 << part_bits(total), total)
            for client, total in totals.items()
            for part in np.flatnonzero(ranges[client].reshape(1 << part_bits(total), -1).any(axis=1)).tolist()
        ]

    def has(self, name: str) -> bool:
        return name in self._pieces[0].columns

    def rows(self, part: Range, scratch: Scratch) -> PartRows:
        """A range's rows, in an order that the files alone decide."""
        return PartRows(self._pieces, self._slices(part), self._vocabulary, scratch, self._nulls)

    def _nulls(self, n: int, kind: pa.DataType) -> Any:
        """An Arrow array[n] of nulls, a slice of one for all ranges."""
        made = self._nothing.get(kind)
        if made is None or len(made) < n:
            made = self._nothing[kind] = pa.nulls(n, kind)
        return made.slice(0, n)

    def _slices(self, part: Range) -> list[tuple[int, int] | None]:
        """For each piece, where the range's rows are in it."""
        width = (1 << self._bits) // part.parts
        found: list[tuple[int, int] | None] = []
        for piece in self._pieces:
            first = last = 0
            if (client := piece.clients.get(part.client)) is not None:
                ends = piece.ends[client]
                first, last = int(ends[part.part * width]), int(ends[(part.part + 1) * width])
            found.append((first, last) if first < last else None)
        return found


class PartRows:
    """One range's rows, n of them. ``key``, ``ts``: int64[n]; ``name``: the column of the subscriber's number or, for
    texts, of a second hash: integers that differ where two subscribers share a key."""

    def __init__(
        self,
        pieces: list[Piece],
        slices: list[tuple[int, int] | None],
        vocabulary: Mapping[str, tuple[Any, list[np.ndarray]]],
        scratch: Scratch,
        nulls: Callable[[int, pa.DataType], Any] = pa.nulls,
    ) -> None:
        self._nulls = nulls
        self._slices = [(i, p, *s) for i, (p, s) in enumerate(zip(pieces, slices, strict=True)) if s is not None]
        self._vocabulary, self._scratch = vocabulary, scratch
        self._rows = sum(last - first for _, _, first, last in self._slices)
        self._made: dict[str, Any] = {}
        self.key, self.ts = self.integers("subscriber_key"), self.integers("ts")
        self.name = "second_hash" if "second_hash" in self._slices[0][1].columns else "subscriber"

    def take(self, name: str, at: np.ndarray) -> Any:
        """A column's values at some positions, int64[m], as an Arrow array[m]."""
        column = self._column(name)
        if isinstance(column, pa.DataType):
            return self._nulls(len(at), column)
        if not isinstance(column, np.ndarray):
            return column.take(pa.array(at))
        values = self.numbers(name, at)
        if name not in self._vocabulary:
            return pa.array(values).cast(self._slices[0][1].kinds[name])
        indices = pa.array(values, mask=values < 0) if len(values) and values.min() < 0 else pa.array(values)
        return pa.DictionaryArray.from_arrays(indices, self._vocabulary[name][0], safe=False)

    def integers(self, name: str) -> np.ndarray:
        """A column of numbers without nulls, or a category's codes, [n]."""
        column: np.ndarray = self._column(name)
        return column if len(column) == self._rows else np.full(self._rows, column[0])

    def numbers(self, name: str, at: np.ndarray) -> np.ndarray:
        """Some of :meth:`integers`, [m]."""
        column = self._column(name)
        out = self._scratch.array(len(at), column.dtype)
        if len(column) == self._rows:
            return np.take(column, at, out=out, mode="clip")
        out.fill(column[0])
        return out

    def _column(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._together(name)
        return self._made[name]

    def _together(self, name: str) -> Any:
        """Codes or numbers as NumPy, one where all are the same; others as Arrow; the type alone of nulls alone."""
        some = [(i, piece.columns[name], first, last) for i, piece, first, last in self._slices]
        kind = self._slices[0][1].kinds.get(name)
        if name in self._vocabulary:
            words, lookups = self._vocabulary[name]
            if not len(words):
                return kind
            out = self._scratch.array(self._rows, np.int32)
            at = 0
            for i, codes, first, last in some:
                to = at + last - first
                if len(codes) == 1:
                    out[at:to] = lookups[i][codes[0]]
                else:
                    np.take(lookups[i], codes[first:last], out=out[at:to], mode="wrap")
                at = to
            return out
        arrays = [array for _, array, _, _ in some]
        if all(isinstance(array, np.ndarray) for array in arrays):
            if all(len(array) == 1 and array[0] == arrays[0][0] for array in arrays):
                return arrays[0]
            out = self._scratch.array(self._rows, np.result_type(*{array.dtype for array in arrays}))
            at = 0
            for _, array, first, last in some:
                out[at : at + last - first] = array if len(array) == 1 else array[first:last]
                at += last - first
            return out
        if all(array is None for array in arrays):
            return kind
        return pa.concat_arrays([_arrow(array, kind, first, last) for _, array, first, last in some])


def _arrow(array: Any, kind: pa.DataType, first: int, last: int) -> Any:
    """A slice of a piece's column as an Arrow array."""
    if array is None:
        return pa.nulls(last - first, kind)
    if isinstance(array, np.ndarray):
        values = np.full(last - first, array[0]) if len(array) == 1 else array[first:last]
        return pa.array(values) if kind is None else pa.array(values).cast(kind)
    return array.slice(first, last - first)


def _as_text(piece: Piece) -> None:
    """Integer ids as their decimal text."""
    rows = int(piece.ends[-1, -1])
    texts = _arrow(piece.columns["subscriber"], None, 0, rows).cast(pa.large_string())
    piece.columns |= {"subscriber": texts, "second_hash": _half(second_hash(texts, PANDAS))}
    piece.kinds["subscriber"] = pa.large_string()


def _vocabulary(pieces: list[Piece], name: str) -> tuple[Any, list[np.ndarray]]:
    """The words in use in any piece, and for each piece int32[words + 1]: its codes' numbers, the last that of null.

    Kinds of rejected rows must not come back as categories.
    """
    number: dict[str, int] = {}
    lookups = []
    for piece in pieces:
        codes = [-1 if word is None else number.setdefault(word, len(number)) for word in piece.words[name]]
        lookups.append(np.array([*codes, -1], dtype=np.int32))
    return pa.array(list(number), pa.string()), lookups
