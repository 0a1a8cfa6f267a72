"""The rows a model learns from or is measured on: a table's arrays and, optionally, which of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.backend import Array, backend_of
from pipeline.errors import DataError, ModelError
from pipeline.events.hashing import hash_ids
from pipeline.features.kernels import hash64
from pipeline.options import UNITS

BLOCK = 65_536  # rows at once, to bound the memory
BUCKETS = 1 << 14  # of campaigns and days


class Table(Protocol):
    """What is needed of a FeatureTable; float32, on one device. ``sequences`` and ``keys`` may be absent."""

    X: Any  # [n, F], C-contiguous, 64-byte aligned
    y: Any  # [n, H]
    mask: Any  # [n, H], 1 where the outcome is known
    weight: Any  # [n]


@dataclass(frozen=True)
class Rows:
    """A table's arrays, and ``index``, int64[m]: which rows (all where None). Nothing is copied.

    ``sequences``: the last events before each row, [n, L] each (uint8, int64 or float32), by name.
    ``campaign``: int32[n], each row's campaign and day as a number below BUCKETS, see :func:`campaigns`; None where
    that is not known.
    """

    X: Array
    y: Array
    mask: Array
    weight: Array
    index: Array | None = None
    sequences: Mapping[str, Array] = field(default_factory=dict)
    campaign: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.X)
        shapes = {name: getattr(self, name).shape for name in ("X", "y", "mask", "weight")}
        if self.X.ndim != 2 or self.y.shape[:1] != (n,) or self.mask.shape != self.y.shape or self.weight.shape != (n,):
            raise DataError(f"expected X [n, F], y and mask [n, H], weight [n] of one n, found {shapes}")
        shapes = {name: array.shape for name, array in self.sequences.items()}
        if any(len(shape) != 2 or shape[0] != n for shape in shapes.values()):
            raise DataError(f"expected sequences [n, L] of the {n} rows of X, found {shapes}")
        if self.campaign is not None and self.campaign.shape != (n,):
            raise DataError(f"expected campaign [n] of the {n} rows of X, found {self.campaign.shape}")

    def __len__(self) -> int:
        return len(self.X) if self.index is None else len(self.index)

    def take(self, name: str) -> Array:
        """One of the arrays, only the chosen rows; None for a campaign that is not known."""
        array = getattr(self, name)
        return array if self.index is None or array is None else array[self.index]

    def chosen(self, index: Array) -> Rows:
        """Other rows of the same table, int64[m]."""
        return replace(self, index=index)

    def apart(self, owner: Array | int) -> Rows:
        """The same rows where a campaign of one owner is never one of another: a number, or int[n], each row's."""
        if self.campaign is None:
            return self
        xp = backend_of(self.X).xp
        return replace(self, campaign=_bucket(xp, self.campaign, xp.zeros(len(self.X), dtype=xp.int64) + owner))


def as_rows(table: Table | Rows) -> Rows:
    """The table as rows, all of them."""
    return table if isinstance(table, Rows) else _of(table, None)


def select(table: Any, split: int) -> Rows:
    """The rows of one split of a FeatureTable (0 train, 1 validation, 2 hold-out), sharing the table's arrays."""
    return _of(table, backend_of(table.X).xp.flatnonzero(table.split == split))


def _of(table: Any, index: Array | None) -> Rows:
    sequences, keys = getattr(table, "sequences", {}), getattr(table, "keys", None)
    campaign = None if keys is None else campaigns(keys)
    return Rows(table.X, table.y, table.mask, table.weight, index, sequences, campaign)


def campaigns(keys: Any) -> Array:
    """The campaign and the day (UTC) of each decision as a number below BUCKETS, int32[n]; of a null campaign, or where
    the log has none, the day's alone.

    A hash, so that chunks, processes and clients need no vocabulary in common. Now and then two campaigns have one
    number, and are then taken for one, which is harmless.

    Args:
        keys: of a FeatureTable.
    """
    backend = backend_of(keys)
    xp = backend.xp
    day = backend.column(keys["at"].astype("datetime64[us]")) // UNITS["d"]
    if "campaign" not in keys.columns:
        return _bucket(xp, day, xp.zeros(len(day), dtype=xp.int64))
    names = backend.categories(keys["campaign"])
    hashes = hash_ids(pa.array([*names, ""], pa.string()), backend)
    hashes[-1] = 0  # where the code of a null leads
    return _bucket(xp, day, hashes[backend.codes(keys["campaign"], names)])


def _bucket(xp: Any, *parts: Array) -> Array:
    return (hash64(xp, 0, *parts) % xp.uint64(BUCKETS)).astype(xp.int32)


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
    known = [part.campaign for part in parts if part.campaign is not None]
    return Rows(X, y, mask, weight, None, sequences, joined(known) if len(known) == len(parts) else None)


def checksum(rows: Rows) -> int:
    """What the chosen rows' sequences and campaigns hold, in their order, as one number below 2^64; 0 without either.

    Integers that wrap, so it is the same on both backends: a row's elements are added up, each times an odd number of
    its place (Dietzfelbinger 1996), and the rows by the hash of that sum and the row's number.
    """
    backend, total = backend_of(rows.X), 0
    xp = backend.xp
    arrays = sorted(rows.sequences.items())
    if rows.campaign is not None:
        arrays.append(("", rows.campaign[:, None]))
    for salt, (name, array) in enumerate(arrays):
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
