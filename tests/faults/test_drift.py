"""A day whose files are not as those before: each kind of drift is handled, or refused by name and set aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.backend import PANDAS
from pipeline.events.ingest import ingest
from tests.events.logs import TYPES, Row, config, random_rows
from tests.faults.check import compare, oracle, oracle_columns, rows_of

Change = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Drift:
    """``table``: what becomes of a day's file; ``rows``: what its rows then mean; ``refused``: words of the refusal,
    the column's name among them, where it is refused."""

    table: Change
    rows: Callable[[Row], Row] = lambda row: row
    refused: tuple[str, ...] = ()


def cast(name: str, kind: pa.DataType) -> Change:
    return lambda t: t.set_column(t.column_names.index(name), name, t.column(name).cast(kind))


def put(name: str, values: Callable[[list[Any]], Any]) -> Change:
    return lambda t: t.set_column(t.column_names.index(name), name, values(t.column(name).to_pylist()))


def rename(old: str, new: str) -> Change:
    return lambda t: t.rename_columns([new if n == old else n for n in t.column_names])


def texts(kind: Callable[[], pa.DataType]) -> Change:
    names = ("client", "user", "kind", "campaign", "provider")

    def change(t: pa.Table) -> pa.Table:
        for name in names:
            t = cast(name, kind())(t)
        return t

    return change


def required(t: pa.Table) -> pa.Table:
    full = [f for f in t.schema if f.name not in ("campaign", "amount")]
    return t.cast(pa.schema([f.with_nullable(f not in full) for f in t.schema]))


def number(user: str) -> int:
    return int(user.split()[1])


DRIFTS: dict[str, Drift] = {
    "a new column": Drift(lambda t: t.append_column("extra", pa.array(range(len(t))))),
    "a missing column": Drift(lambda t: t.drop_columns(["campaign"]), refused=("campaign", "no column")),
    "a renamed column": Drift(rename("user", "user_id"), refused=("'user'", "did you mean 'user_id'")),
    "a column in other case": Drift(rename("kind", "Kind"), refused=("'kind'", "did you mean 'Kind'")),
    "columns in another order": Drift(lambda t: t.select(t.column_names[::-1])),
    "int32 for int64": Drift(lambda t: cast("amount", pa.int32())(cast("id", pa.int32())(t))),
    "uint64 event ids": Drift(cast("id", pa.uint64()), refused=("'id'",)),
    "floats for integers": Drift(cast("id", pa.float64())),
    "fractions in ids": Drift(put("id", lambda v: pa.array([x + 0.5 for x in v])), refused=("'id'", "fractions")),
    "text for integer ids": Drift(cast("id", pa.string()), refused=("'id'", "text")),
    "integer for text subscribers": Drift(
        put("user", lambda v: pa.array([number(x) for x in v])), lambda r: dict(r, user=str(number(r["user"])))
    ),
    "nanoseconds": Drift(cast("time", pa.timestamp("ns", "UTC"))),
    "milliseconds": Drift(cast("time", pa.timestamp("ms", "UTC"))),
    "seconds": Drift(cast("time", pa.timestamp("s", "UTC"))),
    "another time zone": Drift(cast("time", pa.timestamp("us", "America/New_York"))),
    "times without a zone": Drift(cast("time", pa.timestamp("us"))),
    "times as text": Drift(put("time", lambda v: pa.array([x.isoformat() for x in v]))),
    "times as numbers": Drift(cast("time", pa.int64()), refused=("'time'", "source.time_unit")),
    "nullable to required": Drift(required),
    "dictionary encoding": Drift(texts(lambda: pa.dictionary(pa.int32(), pa.string()))),
    "large strings": Drift(texts(pa.large_string)),
    "string views": Drift(texts(pa.string_view)),
    "a null column": Drift(put("campaign", lambda v: pa.nulls(len(v))), lambda r: dict(r, campaign=None)),
    "null values": Drift(put("amount", lambda v: pa.nulls(len(v), pa.int64())), lambda r: dict(r, amount=None)),
    "decimals for integers": Drift(cast("amount", pa.decimal128(20, 0))),
    "bytes for text": Drift(cast("campaign", pa.binary()), refused=("'campaign'", "binary")),
    "lists for text": Drift(put("kind", lambda v: pa.array([[x] for x in v])), refused=("'kind'", "list")),
    "text for a number": Drift(put("amount", lambda v: pa.array([str(x) for x in v])), refused=("'amount'", "number")),
    "another type of a carried column": Drift(cast("carried", pa.string()), refused=("'carried'", "carried column")),
    "a column twice": Drift(lambda t: t.append_column("user", t.column("user")), refused=("'user'",)),
    "an empty file": Drift(lambda t: t.slice(0, 0), lambda r: {}),
}


def day(folder: Path, name: str, rows: list[Row], change: Change = lambda t: t) -> None:
    columns = {n: pa.array([r[n] for r in rows], kind) for n, kind in TYPES.items()}
    table = pa.table({**columns, "carried": pa.array(range(len(rows)))})
    (folder / "raw").mkdir(exist_ok=True)
    pq.write_table(change(table), folder / f"raw/{name}.parquet")


def drifted(folder: Path, drift: Drift) -> str:
    """Three days, the second one drifted: 'handled' or 'refused', whatever else an error."""
    days = [random_rows(150, seed=seed) for seed in (1, 2, 3)]
    settings = config(folder, {"carry": ["carried"]})
    day(folder, "1", days[0])
    ingest(settings, PANDAS)
    day(folder, "2", days[1], drift.table)
    day(folder, "3", days[2])
    report = ingest(settings, PANDAS)
    kept = [r for r in map(drift.rows, days[1]) if r]
    wanted = days[0] + days[2] + ([] if drift.refused else kept)
    found = compare(oracle_columns(rows_of(settings.store_uri)), oracle(wanted))
    assert found.none, found
    if not drift.refused:
        assert report.bad_files == []
        return "handled"
    (bad,) = report.bad_files
    assert bad["file"].endswith("raw/2.parquet")
    assert "2.parquet" in bad["error"]
    for word in drift.refused:
        assert word in bad["error"], bad["error"]
    return "refused by name"


def measure(folder: Path) -> dict[str, str]:
    found = {}
    for i, (name, drift) in enumerate(DRIFTS.items()):
        (folder / str(i)).mkdir(parents=True)
        found[name] = drifted(folder / str(i), drift)
    return found


@pytest.mark.parametrize("name", list(DRIFTS))
def test_drift(tmp_path: Path, name: str) -> None:
    drifted(tmp_path, DRIFTS[name])
