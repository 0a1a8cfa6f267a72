"""The last L events before each decision point, as padded integer and float arrays on the device.

Most recent last: column L-1 is the latest event before the point, columns before the subscriber's first are padding,
zero in every tensor. Only people's events of the specification's kinds are there. Campaigns are numbered by a small
vocabulary that is part of the specification, so a number means the same in every partition, and in every later run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.backend import Array, Backend, Frame, backend_of
from pipeline.config import UNITS
from pipeline.features.calendar import local_time
from pipeline.features.kernels import prefix_count

PADDING, OTHER = 0, 1  # of campaign ids; those of the vocabulary follow
POINTS = 1 << 13  # at a time on the CPU, so that a block stays in its cache
BYTES = {"uint8": 1, "float32": 4, "int64": 8}


@dataclass(frozen=True)
class Tensor:
    """One array [n, L] of every decision point."""

    name: str
    definition: str
    dtype: str
    unit: str


@dataclass(frozen=True)
class SequenceSpec:
    """``length``: L; ``campaigns``: the vocabulary, id 2 first; ``tensors``: what there is of each event."""

    length: int
    campaigns: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, length: int, kinds: Iterable[str], campaigns: Iterable[str]) -> SequenceSpec:
        """Args: kinds: of the specification; campaigns: the vocabulary, empty where the log has no campaigns."""
        kinds, campaigns = list(kinds), tuple(campaigns)
        codes = ", ".join(f"{i} {kind}" for i, kind in enumerate(kinds, 1))
        dtype = "uint8" if len(kinds) < 256 else "int64"
        tensors = [
            Tensor("mask", "1 where there is an event, 0 where the subscriber had no more", "uint8", "1"),
            Tensor("kind", f"the event's kind: 0 padding, {codes}", dtype, "code"),
            Tensor("days", "from the event to at", "float32", "days"),
            Tensor("hour", "of the event, in the client's time zone", "uint8", "hour of the day"),
        ]
        if campaigns:
            definition = (
                f"the event's campaign: {PADDING} padding or none, {OTHER} another, then those of the vocabulary"
            )
            tensors.append(Tensor("campaign", definition, "int64", "id"))
        return cls(length, campaigns, tuple(tensors))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SequenceSpec:
        tensors = tuple(Tensor(**t) for t in values["tensors"])
        return cls(values["length"], tuple(values["campaigns"]), tensors)

    @property
    def row_bytes(self) -> int:
        """Of one decision point."""
        return self.length * sum(BYTES[t.dtype] for t in self.tensors)

    def empty(self, backend: Backend, points: int) -> dict[str, Array]:
        """Arrays to be filled, each [points, L], contiguous and aligned as TensorFlow wants them."""
        return {t.name: backend.empty_aligned((points, self.length), t.dtype) for t in self.tensors}


def ids(backend: Backend, column: Any, vocabulary: Iterable[str]) -> Array:
    """Each row's campaign id, int64[n]: see :class:`SequenceSpec`."""
    xp = backend.xp
    code = backend.codes(column, list(vocabulary)).astype(xp.int64)
    named = backend.column(column.notna())
    return xp.where(code >= 0, code + (OTHER + 1), xp.where(named, OTHER, PADDING))


def write_sequences(part: Any, spec: Any, seg: Array, at: Array, timezone: str, out: dict[str, Array]) -> None:
    """Every tensor of each point, into ``out``; no row at or after ``at`` is looked at.

    Args:
        part: a Partition. spec: a FeatureSpec with ``sequences``. seg, at: int64[q].
        out: as :meth:`SequenceSpec.empty` makes it, for q points.
    """
    xp, length = part.xp, spec.sequences.length
    chosen = (part.human >= 0) & (part.human < len(spec.kinds))
    rows = xp.flatnonzero(chosen)
    if len(rows) == 0 or len(seg) == 0:
        for array in out.values():
            array[...] = 0
        return
    ts = part.ts[rows]
    columns = {"kind": part.human[rows] + 1, "hour": local_time(xp, ts, timezone) // UNITS["h"] % 24}
    if "campaign" in out:
        columns["campaign"] = part.campaign_id[rows]
    before = prefix_count(xp, chosen)
    stop, first = before[part.positions(seg, at)], before[part.starts[seg]]
    steps = xp.arange(length, dtype=xp.int64) - length
    size = len(seg) if part.backend.on_gpu else POINTS
    for start in range(0, len(seg), size):
        some = slice(start, start + size)
        index = stop[some][:, None] + steps
        there = index >= first[some][:, None]
        index = xp.maximum(index, 0)
        out["mask"][some] = there
        out["days"][some] = xp.where(there, (at[some][:, None] - ts[index]) / UNITS["d"], np.float32(0))
        for name, column in columns.items():
            out[name][some] = xp.where(there, column[index], 0)


def campaign_events(events: Frame, until: int, timezone: str) -> dict[str, int]:
    """How many of a partition's events each campaign has, in the local hours before that of ``until``.

    Args:
        until: microseconds UTC.
    """
    backend = backend_of(events)
    xp = backend.xp
    series = (
        events["campaign"] if events["campaign"].dtype.name == "category" else events["campaign"].astype("category")
    )
    categories = series.cat.categories
    names = categories.to_arrow().to_pylist() if backend.on_gpu else [str(c) for c in categories]
    hour = local_time(xp, backend.column(events["ts"]), timezone) // UNITS["h"]
    last = int(local_time(np, np.array([until]), timezone)[0]) // UNITS["h"]
    code = backend.codes(series, names)
    number = backend.to_host(xp.bincount(code[(code >= 0) & (hour < last)], minlength=len(names))).tolist()
    return {name: count for name, count in zip(names, number, strict=True) if count}


def rolled_campaigns(rollup: pd.DataFrame, until: int, timezone: str) -> dict[str, int]:
    """The same from an hourly roll-up, whose campaign is empty where there is none."""
    last = int(local_time(np, np.array([until]), timezone)[0]) // UNITS["h"]
    hour = rollup["bucket"].to_numpy().astype("datetime64[us]").astype(np.int64) // UNITS["h"]
    mine = rollup[(hour < last) & (rollup["campaign"] != "")]
    number = mine[[c for c in rollup.columns if c.startswith("n_")]].sum(axis=1).groupby(mine["campaign"]).sum()
    return {str(name): int(count) for name, count in number.items() if count}


def frequent(counts: dict[str, int], size: int) -> tuple[str, ...]:
    """The ``size`` campaigns with the most events, sorted by name; of equals the first by name."""
    chosen = sorted(counts, key=lambda name: (-counts[name], name))[:size]
    return tuple(sorted(chosen))
