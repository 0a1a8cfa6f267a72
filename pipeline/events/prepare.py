"""One source file to checked canonical rows, and the rows that fail to quarantine."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.events.canonical import Columns, canonical
from pipeline.events.commit import Settings
from pipeline.events.custom import broken
from pipeline.events.hashing import hash_ids
from pipeline.events.machines import listed
from pipeline.events.quality import Checked, Rulebook, RuleResult, check, iso
from pipeline.events.schema import map_columns, microseconds, numpy_of, plain
from pipeline.events.screen import Screen, Screened, apply
from pipeline.events.signals import DAY, kernels
from pipeline.events.sources import Unit, Whole, read_unit

EVERYBODY = Screen()
CATEGORY_COLUMNS = ("client", "event", "campaign", "provider", "address", "agent")


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
    wanted = None if settings.made_ids else list(dict.fromkeys(mapped.values()))
    few = {mapped[c] for c in CATEGORY_COLUMNS if c in mapped}
    data = whole.data if whole is not None else None
    raw = read_unit(fs, unit, wanted, lambda s: [c for c in few if c in s.names and _is_text(s.field(c).type)], data)
    total, screened = raw.num_rows, apply(screen, raw, mapped, source, where, backend)
    del raw
    columns = Columns(screened.rows, mapped, where)
    table, rows = canonical(columns, config, settings, carried, arrival, backend)

    def own(rejected: np.ndarray) -> Mapping[str, np.ndarray]:
        return broken(book.own, table, ~rejected, where, backend)

    earliest = microseconds(config.quality.earliest) or 0
    verdict = check(rows, config.quality, book, source.known, earliest, own)
    addresses, agents = (columns.category(name) if name in mapped else None for name in ("address", "agent"))
    marks = _either(verdict.marks, listed(addresses, agents, config.quality))
    if marks is not None:
        table = table.append_column("marks", pa.array(marks))
    prepared = Prepared(table, total, None, bool(rows.dated.all()), dropped=screened.dropped)
    prepared.arrivals = _arrivals(rows, arrival)
    offset = sum(file.group_rows[: unit.first])
    for name, hits in verdict.hits.items():
        first = hits[: config.quality.keep_examples]
        examples = _examples(table, rows, columns["ts"], first, file.name, screened.numbers + offset)
        prepared.results[name] = book.found(name, rows.ingested_at[hits], examples)
    _count_clients(prepared, rows.client, verdict.rejected_by)
    _count_screened(prepared, screened)
    accepted = verdict.rejected_by < 0
    if not accepted.all():
        bad = np.flatnonzero(~accepted)
        names = np.array(list(book.rules))[verdict.rejected_by[bad]]
        found, counts = np.unique(names, return_counts=True)
        prepared.rejected_by = {str(name): int(count) for name, count in zip(found, counts, strict=True)}
        there = screened.numbers[bad]
        every, taken = (screened.rows, bad) if wanted is None else (read_unit(fs, unit, None, None, data), there)
        prepared.rejected = _quarantined(every, taken, names, file.name, there + offset)
        table = table.filter(pa.array(accepted))
    ids = plain(table.column("subscriber"))
    key = backend.to_host(hash_ids(ids, backend)) if len(ids) else np.empty(0, np.int64)
    prepared.table = table.append_column("subscriber_key", pa.array(key))
    return prepared


def _arrivals(rows: Checked, arrival: int) -> dict[str, int]:
    """ISO date -> rows that arrived on it."""
    counts = kernels().day_counts(rows.ingested_at) if rows.dated.any() else {arrival // DAY: np.array([len(rows)])}
    return {iso(day): int(count[0]) for day, count in counts.items()}


def _quarantined(every: Any, rows: np.ndarray, rules: np.ndarray, file: str, numbers: np.ndarray) -> Any:
    """Some rows of a source table, each with its rule, its file and its number there."""
    taken = every.take(pa.array(rows))
    taken = taken.append_column("rule", pa.array(rules.tolist(), pa.string()))
    taken = taken.append_column("source_file", pa.array([file] * len(rows), pa.string()))
    return taken.append_column("source_row", pa.array(numbers))


def _either(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a | b


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _examples(
    table: Any, rows: Checked, times: Any, hits: np.ndarray, file: str, numbers: np.ndarray
) -> list[dict[str, Any]]:
    """``hits``: positions of a file's rows; ``times``: the times as the file has them."""
    names = ("client", "subscriber", "event", "event_id")
    found = []
    for i in hits.tolist():
        example: dict[str, Any] = {"file": file, "row": int(numbers[i])}
        example |= {n: table.column(n)[i].as_py() for n in names}
        example["ts"] = _time(rows, times, i)
        found.append(example)
    return found


def _time(rows: Checked, times: Any, i: int) -> str | None:
    if rows.ts_null[i]:
        return None
    if rows.ts_bad[i]:
        with contextlib.suppress(ValueError, OverflowError):  # of a time beyond Python's calendar
            return str(times[i].as_py())
    return readable(int(rows.ts[i]))


def readable(us: int) -> str:
    """A time for people; a number of microseconds where it is outside the calendar."""
    try:
        return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=us)).isoformat()  # noqa: DTZ001
    except OverflowError:
        return f"{us} us"


def _count_clients(prepared: Prepared, client: Any, rejected_by: np.ndarray) -> None:
    names = [n if n is not None else "" for n in client.dictionary.to_pylist()]
    codes, count = numpy_of(client.indices, len(names)), kernels().code_counts
    total, bad = count(codes, len(names) + 1), count(codes[rejected_by >= 0], len(names) + 1)
    for name, rows, rejected in zip([*names, ""], total.tolist(), bad.tolist(), strict=True):
        if rows:
            counts = prepared.per_client.setdefault(name, {"in": 0, "rejected": 0})
            counts["in"] += rows
            counts["rejected"] += rejected


def _count_screened(prepared: Prepared, screened: Screened) -> None:
    for name, count in screened.clients.items():
        counts = prepared.per_client.setdefault(name, {"in": 0, "rejected": 0})
        counts["in"] += count
        counts["rejected"] += count
