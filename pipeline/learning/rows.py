"""The rows a model learns from or is measured on: a table's arrays and, optionally, which of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.backend import Array, backend_of
from pipeline.errors import DataError


class Table(Protocol):
    """What is needed of a FeatureTable; float32, on one device."""

    X: Any  # [n, F], C-contiguous, 64-byte aligned
    y: Any  # [n, H]
    mask: Any  # [n, H], 1 where the outcome is known
    weight: Any  # [n]


@dataclass(frozen=True)
class Rows:
    """A table's arrays, and ``index``, int64[m]: which rows (all where None). Nothing is copied."""

    X: Array
    y: Array
    mask: Array
    weight: Array
    index: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.X)
        shapes = {name: getattr(self, name).shape for name in ("X", "y", "mask", "weight")}
        if self.X.ndim != 2 or self.y.shape[:1] != (n,) or self.mask.shape != self.y.shape or self.weight.shape != (n,):
            raise DataError(f"expected X [n, F], y and mask [n, H], weight [n] of one n, found {shapes}")

    def __len__(self) -> int:
        return len(self.X) if self.index is None else len(self.index)

    def take(self, name: str) -> Array:
        """One of the arrays, only the chosen rows."""
        array = getattr(self, name)
        return array if self.index is None else array[self.index]


def as_rows(table: Table | Rows) -> Rows:
    return table if isinstance(table, Rows) else Rows(table.X, table.y, table.mask, table.weight)


def select(table: Any, split: int) -> Rows:
    """The rows of one split of a FeatureTable (0 train, 1 validation, 2 hold-out), sharing the table's arrays."""
    index = backend_of(table.X).xp.flatnonzero(table.split == split)
    return Rows(table.X, table.y, table.mask, table.weight, index)
