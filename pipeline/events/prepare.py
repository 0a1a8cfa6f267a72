"""One source file to checked canonical rows, and the rows that fail to quarantine."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.events.commit import Settings
from pipeline.events.custom import broken
from pipeline.events.hashing import hash_ids, hash_rows
from pipeline.events.machines import listed
from pipeline.events.quality import Checked, Rulebook, RuleResult, check, iso
from pipeline.events.schema import (
    TIME,
    canonical_kinds,
    carried_type,
    map_columns,
    microseconds,
    nulls,
    numpy_of,
    plain,
    to_category,
    to_id,
    to_micro_units,
    to_micros,
)
from pipeline.events.screen import Screen, apply
from pipeline.events.signals import DAY, kernels
from pipeline.events.sources import Unit, Whole, read_unit

EVERYBODY = Screen()
CATEGORY_COLUMNS = ("client", "event", "campaign", "provider", "address", "agent")
# The calendar's years 1 to 9999: what Delta, dates and time zones can say. Beyond them is no time, whatever the rules.
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999


@dataclass
class Prepared:
    """``table``: accepted rows (client, subscriber_key, ts int64 us, event, event_id, campaign, provider, value,
    subscriber, ingested_at int64 us, carried; marks int32, bits of flags.py, where any row has some); ``rejected``:
    source rows with rule, file and row, or None; ``arrivals``: ISO date -> rows that arrived on it."""

    table: Any
    rows: int
    rejected: Any | None
    dated: bool  # every row said when it arrived
    results: dict[str, RuleResult] = field(default_factory=dict)
    rejected_by: dict[str, int] = field(default_factory=dict)
    per_client: dict[str, dict[str, int]] = field(default_factory=dict)
    arrivals: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # of ``rows``: those screened out, by why


def prepare(
    fs: Any,
    unit: Unit,
    config: Config,
    settings: Settings,
    carried: Mapping[str, pa.DataType],
    book: Rulebook,
    arrival: int,
    backend: Backend,
    whole: Whole | None = None,
    screen: Screen = EVERYBODY,
) -> Prepared:
    """Read, map, validate and key one unit.

    Args:
        carried: name -> stored type; arrival: int us, ``ingested_at`` of rows that have none;
        whole: the unit as it has been read already; screen: which rows are not even looked at.
    Raises:
        ConfigError, SourceError: the mapping or a type does not fit the file; names it. DataError: a rule of the
        user's own fails.
    """
    source = config.source
    assert source is not None  # ingest has checked
    file, where = unit.file, f"{unit.file.name!r}"
    mapped = map_columns(source, file.schema.names, where, file.hive)
    few = {mapped[c] for c in CATEGORY_COLUMNS if c in mapped}
    columns = None if settings.made_ids else list(dict.fromkeys(mapped.values()))
    data = whole.data if whole is not None else None
    raw = read_unit(fs, unit, columns, lambda s: [c for c in few if c in s.names and _is_text(s.field(c).type)], data)
    total = raw.num_rows
    screened = apply(screen, raw, mapped, source, where, backend)
    raw, numbers = screened.rows, screened.numbers
    n = raw.num_rows

    def column(name: str) -> Any:
        array = raw.column(mapped[name])
        if isinstance(array, pa.ChunkedArray) and pa.types.is_dictionary(array.type):
            array = array.unify_dictionaries()
        return plain(array)

    out: dict[str, Any] = {}
    if "client" in mapped:
        out["client"] = to_category(column("client"), mapped["client"], where)
    else:
        out["client"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([source.client]))
    subscriber = to_id(column("subscriber"), mapped["subscriber"], where)
    event = canonical_kinds(to_category(column("event"), mapped["event"], where), source.kinds)
    times = column("ts")
    ts, ts_bad = to_micros(times, source.time_unit, mapped["ts"], where)
    ts_bad |= (ts < FIRST_TIME) | (ts > LAST_TIME)
    ingested = np.full(n, arrival, dtype=np.int64)
    dated = np.zeros(n, dtype=bool)
    if "ingested_at" in mapped:
        arrived = column("ingested_at")
        given, unreadable = to_micros(arrived, source.time_unit, mapped["ingested_at"], where)
        dated = ~(nulls(arrived) | unreadable)
        ingested = np.where(dated, given, ingested)
    for name in ("campaign", "provider"):
        has = name in mapped
        out[name] = to_category(column(name) if has else pa.nulls(n, pa.string()), mapped.get(name, ""), where)
    value_bad = value_far = None
    out["value"] = pa.nulls(n, pa.int64())
    if "value" in mapped:
        out["value"], value_bad = to_micro_units(column("value"), source.value_unit, mapped["value"], where)
        value_far = _outside(out["value"], config.quality.value_range)
    event_id, event_id_null = _event_ids(raw, column, mapped, settings, where, backend)

    out |= {
        "subscriber": subscriber,
        "ts": pa.array(ts),
        "event": event,
        "event_id": event_id,
        "ingested_at": pa.array(ingested),
    }
    for name, kind in carried.items():
        out[name] = _carry(column(name), kind, name, where)
    table = pa.table(out)
    rows = Checked(
        out["client"], subscriber, event, ts, nulls(times), ts_bad, ingested, dated, value_bad, value_far, event_id_null
    )

    def own(rejected: np.ndarray) -> Mapping[str, np.ndarray]:
        return broken(book.own, table, ~rejected, where, backend)

    earliest = microseconds(config.quality.earliest) or 0
    verdict = check(rows, config.quality, book, source.known, earliest, own)
    accepted = verdict.rejected_by < 0
    looked = {
        name: to_category(column(name), mapped[name], where) if name in mapped else None
        for name in ("address", "agent")
    }
    marks = _either(verdict.marks, listed(looked["address"], looked["agent"], config.quality))
    if marks is not None:
        table = table.append_column("marks", pa.array(marks))
    prepared = Prepared(table, total, None, bool(dated.all()), dropped=screened.dropped)
    arrived = kernels().day_counts(ingested) if dated.any() else {arrival // DAY: np.array([n])}
    prepared.arrivals = {iso(day): int(counts[0]) for day, counts in arrived.items()}
    offset = sum(file.group_rows[: unit.first])
    for name, hits in verdict.hits.items():
        examples = _examples(table, hits[: config.quality.keep_examples], file.name, numbers + offset)
        prepared.results[name] = book.found(name, ingested[hits], examples)
    _count_clients(prepared, out["client"], verdict.rejected_by)
    for name, count in screened.clients.items():
        counts = prepared.per_client.setdefault(name, {"in": 0, "rejected": 0})
        counts["in"] += count
        counts["rejected"] += count
    if not accepted.all():
        bad = np.flatnonzero(~accepted)
        every, there = (raw, bad) if columns is None else (read_unit(fs, unit, None, None, data), numbers[bad])
        names = np.array(list(book.rules))[verdict.rejected_by[bad]]
        taken = every.take(pa.array(there))
        taken = taken.append_column("rule", pa.array(names.tolist(), pa.string()))
        taken = taken.append_column("source_file", pa.array([file.name] * len(bad), pa.string()))
        prepared.rejected = taken.append_column("source_row", pa.array(numbers[bad] + offset))
        for name, count in zip(*np.unique(names, return_counts=True), strict=True):
            prepared.rejected_by[str(name)] = int(count)
        prepared.table = table = table.filter(pa.array(accepted))
    ids = plain(table.column("subscriber"))
    key = backend.to_host(hash_ids(ids, backend)) if len(ids) else np.empty(0, np.int64)
    prepared.table = table.append_column("subscriber_key", pa.array(key))
    return prepared


def _outside(value: Any, bounds: tuple[float, float] | None) -> np.ndarray | None:
    """bool[n]: where a value in micro-units is outside the configured range, which is in units."""
    if bounds is None:
        return None
    micro = numpy_of(value)
    outside: np.ndarray = ((micro < round(bounds[0] * 1e6)) | (micro > round(bounds[1] * 1e6))) & ~nulls(value)
    return outside


def _either(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a | b


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _event_ids(
    raw: Any, column: Any, mapped: Mapping[str, str], settings: Settings, where: str, backend: Backend
) -> tuple[Any, np.ndarray | None]:
    text = settings.event_id == "string"

    def made(rows: Any) -> Any:
        hashed = hash_rows({c: plain(rows.column(c)) for c in rows.column_names}, backend)
        if text:
            return pa.array([f"{h:016x}" for h in hashed.view(np.uint64).tolist()], pa.large_string())
        return pa.array(hashed)

    if "event_id" not in mapped:
        return made(raw) if raw.num_rows else pa.array([], pa.int64()), None
    ids = to_id(column("event_id"), mapped["event_id"], where)
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
    import pyarrow.compute as pc

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


def _examples(table: Any, rows: np.ndarray, file: str, numbers: np.ndarray) -> list[dict[str, Any]]:
    names = ("client", "subscriber", "event", "event_id")
    found = []
    for i in rows.tolist():
        example: dict[str, Any] = {"file": file, "row": int(numbers[i])}
        example |= {n: table.column(n)[i].as_py() for n in names}
        example["ts"] = readable(table.column("ts")[i].as_py())
        found.append(example)
    return found


def readable(us: int) -> str:
    """A time for people; a number of microseconds where it is outside the calendar."""
    try:
        return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=us)).isoformat()  # noqa: DTZ001
    except OverflowError:
        return f"{us} us"


def _count_clients(prepared: Prepared, client: Any, rejected_by: np.ndarray) -> None:
    names = [n if n is not None else "" for n in client.dictionary.to_pylist()]
    codes = numpy_of(client.indices, len(names))
    total = np.bincount(codes, minlength=len(names) + 1)
    bad = np.bincount(codes[rejected_by >= 0], minlength=len(names) + 1)
    for name, rows, rejected in zip([*names, ""], total.tolist(), bad.tolist(), strict=True):
        if rows:
            counts = prepared.per_client.setdefault(name, {"in": 0, "rejected": 0})
            counts["in"] += rows
            counts["rejected"] += rejected
