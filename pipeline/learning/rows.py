"""The rows a model learns from or is measured on: a table's arrays and, optionally, which of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.errors import DataError, ModelError
from pipeline.features.kernels import hash64

BLOCK = 65_536  # rows at once, to bound the memory


class Table(Protocol):
    """What is needed of a FeatureTable; float32, on one device. ``sequences`` may be absent."""

    X: Any  # [n, F], C-contiguous, 64-byte aligned
    y: Any  # [n, H]
    mask: Any  # [n, H], 1 where the outcome is known
    weight: Any  # [n]


@dataclass(frozen=True)
class Rows:
    """A table's arrays, and ``index``, int64[m]: which rows (all where None). Nothing is copied.

    ``sequences``: the last events before each row, [n, L] each (uint8, int64 or float32), by name.
    """

    X: Array
    y: Array
    mask: Array
    weight: Array
    index: Array | None = None
    sequences: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.X)
        shapes = {name: getattr(self, name).shape for name in ("X", "y", "mask", "weight")}
        if self.X.ndim != 2 or self.y.shape[:1] != (n,) or self.mask.shape != self.y.shape or self.weight.shape != (n,):
            raise DataError(f"expected X [n, F], y and mask [n, H], weight [n] of one n, found {shapes}")
        shapes = {name: array.shape for name, array in self.sequences.items()}
        if any(len(shape) != 2 or shape[0] != n for shape in shapes.values()):
            raise DataError(f"expected sequences [n, L] of the {n} rows of X, found {shapes}")

    def __len__(self) -> int:
        return len(self.X) if self.index is None else len(self.index)

    def take(self, name: str) -> Array:
        """One of the arrays, only the chosen rows."""
        array = getattr(self, name)
        return array if self.index is None else array[self.index]

    def chosen(self, index: Array) -> Rows:
        """Other rows of the same table, int64[m]."""
        return replace(self, index=index)


def as_rows(table: Table | Rows) -> Rows:
    """The table as rows, all of them."""
    return table if isinstance(table, Rows) else _of(table, None)


def select(table: Any, split: int) -> Rows:
    """The rows of one split of a FeatureTable (0 train, 1 validation, 2 hold-out), sharing the table's arrays."""
    return _of(table, backend_of(table.X).xp.flatnonzero(table.split == split))


def _of(table: Any, index: Array | None) -> Rows:
    return Rows(table.X, table.y, table.mask, table.weight, index, getattr(table, "sequences", {}))


def concat(parts: Sequence[Rows]) -> Rows:
    """The chosen rows of all parts, in their order, in arrays of their own: C-contiguous and aligned."""
    backend, n = backend_of(parts[0].X), sum(len(part) for part in parts)

    def joined(arrays: list[Array]) -> Array:
        out = backend.empty_aligned((n, *arrays[0].shape[1:]), arrays[0].dtype)
        start = 0
        for part, array in zip(parts, arrays, strict=True):
            stop = start + len(part)
            out[start:stop] = array if part.index is None else array[part.index]
            start = stop
        return out

    sequences = {name: joined([part.sequences[name] for part in parts]) for name in parts[0].sequences}
    X, y, mask, weight = (joined([getattr(part, name) for part in parts]) for name in ("X", "y", "mask", "weight"))
    return Rows(X, y, mask, weight, None, sequences)


def checksum(rows: Rows) -> int:
    """What the chosen rows' sequences hold, in their order, as one number below 2^64; 0 where there are none.

    Integers that wrap, so it is the same on both backends: a row's elements are added up, each times an odd number of
    its place (Dietzfelbinger 1996), and the rows by the hash of that sum and the row's number.
    """
    backend, total = backend_of(rows.X), 0
    xp = backend.xp
    for salt, (name, array) in enumerate(sorted(rows.sequences.items())):
        bits = array.view(f"u{array.dtype.itemsize}")
        draw = np.random.default_rng([salt, *name.encode()])
        factors = backend.asarray(draw.integers(1 << 64, size=array.shape[1], dtype=np.uint64) | np.uint64(1))
        for start in range(0, len(rows), BLOCK):
            stop = min(start + BLOCK, len(rows))
            some = bits[start:stop] if rows.index is None else bits[rows.index[start:stop]]
            sums = (some.astype(xp.uint64) * factors).sum(axis=1)
            total += int(hash64(xp, salt, xp.arange(start, stop).astype(xp.uint64), sums).sum())
    return total % (1 << 64)


def needed(sequences: Mapping[str, Array] | None, names: tuple[str, ...]) -> dict[str, Array]:
    """The sequence tensors that a network takes, in its order.

    Raises:
        ModelError: one of them is not there.
    """
    found = sequences or {}
    if missing := [name for name in names if name not in found]:
        raise ModelError(
            f"the model takes the sequence tensors {', '.join(names)}; {', '.join(missing)} not among those given "
            f"({', '.join(found) or 'none'}): set sequences.length, as in training, or choose a model without sequences"
        )
    return {name: found[name] for name in names}
