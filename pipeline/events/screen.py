"""Rows that must not come in, whatever the rules say of them: those of forgotten subscribers, and those past retention.

They count as rejected, by ``forgotten`` or ``expired``, but they are not kept in quarantine and serve as no examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.backend import Backend
from pipeline.events.canonical import Columns
from pipeline.events.hashing import hash_ids
from pipeline.events.schema import nulls, to_micros
from pipeline.events.tombstones import NOBODY, Tombstones
from pipeline.options import Source

FORGOTTEN, EXPIRED = "forgotten", "expired"


@dataclass(frozen=True)
class Screen:
    """``cutoff``: int us UTC, rows of before are past retention; None keeps rows of any age."""

    tombstones: Tombstones = NOBODY
    cutoff: int | None = None

    def __bool__(self) -> bool:
        return bool(self.tombstones) or self.cutoff is not None


@dataclass
class Screened:
    """``rows``: the Arrow table without them; ``numbers``: int64[n], where its rows were; ``dropped``: by why;
    ``clients``: client -> rows dropped."""

    rows: Any
    numbers: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)


def apply(
    screen: Screen, raw: Any, mapped: Mapping[str, str], source: Source, where: str, backend: Backend
) -> Screened:
    """Some source rows without those that must not come in.

    Args:
        mapped: canonical name -> source column; where: names the file, for messages.
    Raises:
        ConfigError, SourceError: a column's type does not fit.
    """
    numbers = np.arange(raw.num_rows)
    if not screen or not raw.num_rows:
        return Screened(raw, numbers)

    columns = Columns(raw, mapped, where)
    client: list[str | None] = [source.client]
    codes = np.zeros(raw.num_rows, np.int64)
    if "client" in mapped:
        category = columns.category("client")
        client = [*category.dictionary.to_pylist(), None]
        codes = category.indices.fill_null(len(client) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
    forgotten = np.zeros(raw.num_rows, bool)
    if screen.tombstones:
        ids = columns.id("subscriber")
        known = np.flatnonzero(~nulls(ids))
        key = backend.to_host(hash_ids(ids.take(pa.array(known)), backend)) if len(known) else np.empty(0, np.int64)
        for code, name in enumerate(client):
            gone = screen.tombstones.of(name)
            if len(gone):
                mine = codes[known] == code
                forgotten[known[mine]] = np.isin(key[mine], gone)
    expired = np.zeros(raw.num_rows, bool)
    if screen.cutoff is not None:
        times = columns["ts"]
        ts, unreadable = to_micros(times, source.time_unit, mapped["ts"], where)
        expired = (ts < screen.cutoff) & ~nulls(times) & ~unreadable & ~forgotten
    gone = forgotten | expired
    if not gone.any():
        return Screened(raw, numbers)
    counts = {FORGOTTEN: int(forgotten.sum()), EXPIRED: int(expired.sum())}
    clients = {client[code] or "": int(count) for code, count in enumerate(np.bincount(codes[gone]).tolist()) if count}
    kept = raw.filter(pc.invert(pa.array(gone)))
    return Screened(kept, numbers[~gone], {name: n for name, n in counts.items() if n}, clients)
