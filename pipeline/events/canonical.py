"""A source table's columns as canonical ones: mapped, typed, and what of them cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.events.commit import Settings
from pipeline.events.hashing import hash_rows
from pipeline.events.quality import Checked
from pipeline.events.schema import (
    CATEGORY,
    TIME,
    canonical_kinds,
    carried_type,
    nulls,
    numpy_of,
    plain,
    to_category,
    to_id,
    to_micro_units,
    to_micros,
)

# The calendar's years 1 to 9999: what Delta, dates and time zones can say. Beyond them is no time, whatever the rules.
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999


@dataclass(frozen=True)
class Columns:
    """``rows``: an Arrow table; ``mapped``: canonical name -> its column; ``where``: names the file, for messages."""

    rows: Any
    mapped: Mapping[str, str]
    where: str

    def __contains__(self, name: str) -> bool:
        return name in self.mapped

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def __getitem__(self, name: str) -> Any:
        """As one Arrow array."""
        array = self.rows.column(self.mapped[name])
        if isinstance(array, pa.ChunkedArray) and pa.types.is_dictionary(array.type):
            array = array.unify_dictionaries()
        return plain(array)

    def category(self, name: str) -> Any:
        """As a dictionary array."""
        return to_category(self[name], self.mapped[name], self.where)

    def id(self, name: str) -> Any:
        """As integers or text."""
        return to_id(self[name], self.mapped[name], self.where)


def canonical(
    columns: Columns,
    config: Config,
    settings: Settings,
    carried: Mapping[str, pa.DataType],
    arrival: int,
    backend: Backend,
) -> tuple[Any, Checked]:
    """The canonical table of the rows, and the same with what cannot be read, as the rules see it.

    Args:
        carried: name -> stored type. arrival: int us, ``ingested_at`` of rows that have none.
    Raises:
        SourceError: a type does not fit; names the file.
    """
    source, n, where = config.source, len(columns), columns.where
    assert source is not None  # ingest has checked
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([source.client]), safe=False)
    client = columns.category("client") if "client" in columns else one
    subscriber, event = columns.id("subscriber"), canonical_kinds(columns.category("event"), source.kinds)
    times = columns["ts"]
    ts, ts_bad = to_micros(times, source.time_unit, columns.mapped["ts"], where)
    ts_bad |= (ts < FIRST_TIME) | (ts > LAST_TIME)
    ingested, dated = _arrived(columns, source.time_unit, arrival)
    value, value_bad, value_far = pa.nulls(n, pa.int64()), None, None
    if "value" in columns:
        value, value_bad = to_micro_units(columns["value"], source.value_unit, columns.mapped["value"], where)
        value_far = _outside(value, config.quality.value_range)
    event_id, event_id_null = _event_ids(columns, settings, backend)
    none = pa.nulls(n, CATEGORY)
    found = {
        "client": client,
        **{name: columns.category(name) if name in columns else none for name in ("campaign", "provider")},
        "value": value,
        "subscriber": subscriber,
        "ts": pa.array(ts),
        "event": event,
        "event_id": event_id,
        "ingested_at": pa.array(ingested),
        **{name: _carry(columns[name], kind, name, where) for name, kind in carried.items()},
    }
    null = nulls(times)
    rows = Checked(client, subscriber, event, ts, null, ts_bad, ingested, dated, value_bad, value_far, event_id_null)
    return pa.table(found), rows


def _arrived(columns: Columns, unit: str | None, arrival: int) -> tuple[np.ndarray, np.ndarray]:
    """When each row arrived, int64[n] us, and bool[n], whether it says so itself."""
    if "ingested_at" not in columns:
        return np.full(len(columns), arrival, dtype=np.int64), np.zeros(len(columns), dtype=bool)
    arrived = columns["ingested_at"]
    given, unreadable = to_micros(arrived, unit, columns.mapped["ingested_at"], columns.where)
    dated = ~(nulls(arrived) | unreadable)
    return np.where(dated, given, arrival), dated


def _outside(value: Any, bounds: tuple[float, float] | None) -> np.ndarray | None:
    """bool[n]: where a value in micro-units is outside the configured range, which is in units."""
    if bounds is None:
        return None
    micro = numpy_of(value)
    outside: np.ndarray = ((micro < round(bounds[0] * 1e6)) | (micro > round(bounds[1] * 1e6))) & ~nulls(value)
    return outside


def _event_ids(columns: Columns, settings: Settings, backend: Backend) -> tuple[Any, np.ndarray | None]:
    """The rows' ids, made of all their columns where they have none; bool[n], which are made of some rows only."""
    raw, mapped, where = columns.rows, columns.mapped, columns.where
    text = settings.event_id == "string"

    def made(rows: Any) -> Any:
        hashed = hash_rows({c: plain(rows.column(c)) for c in rows.column_names}, backend)
        if text:
            return pa.array([f"{h:016x}" for h in hashed.view(np.uint64).tolist()], pa.large_string())
        return pa.array(hashed)

    if "event_id" not in mapped:
        return made(raw) if raw.num_rows else pa.array([], pa.int64()), None
    ids = columns.id("event_id")
    if text:
        ids = ids.cast(pa.large_string())
    elif not pa.types.is_integer(ids.type) and ids.null_count < len(ids):
        raise SourceError(
            f"column {mapped['event_id']!r} in {where} holds text, but the store's event ids are integers. "
            "Use another store, or write the ids as integers"
        )
    if ids.null_count == 0:
        return ids.cast(pa.large_string() if text else pa.int64()), None
    missing = nulls(ids)
    if not text:
        ids = ids.cast(pa.int64())
    stand_in = made(raw)
    return pc.if_else(pa.array(missing), stand_in, ids), missing


def _carry(array: Any, kind: pa.DataType, name: str, where: str) -> Any:
    if carried_type(array.type, name) != kind and not pa.types.is_null(array.type):
        raise SourceError(f"column {name!r} in {where} is {array.type}, but the store carries it as {kind}")
    if kind == TIME:
        micros, bad = to_micros(array, "us", name, where)
        return pa.array(micros, mask=nulls(array) | bad).view(TIME)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.large_string() if kind == pa.string() else kind)
