"""Small raw logs for the tests of the store, and the plain-Python oracle of what the store must hold."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.config import Config
from pipeline.options import Columns, Source

DAY = 86_400_000_000
START = 1_777_593_600_000_000  # 2026-05-01
NOW = START + 400 * DAY
Row = dict[str, Any]
KINDS = ("send", "open", "click", "delete", "unsubscribe")


def random_rows(n: int, seed: int = 0, subscribers: int = 20, days: int = 5, integer_ids: bool = False) -> list[Row]:
    """Distinct events, with ties in time, in the columns of a collector."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        who = rng.randrange(subscribers)
        ts = START + rng.randrange(days * 24) * 3_600_000_000  # whole hours: many ties
        rows.append(
            {
                "client": rng.choice(("acme", "globex")),
                "user": who if integer_ids else f"user {who} é",
                "time": ts,
                "kind": rng.choice(KINDS),
                "id": seed * 1_000_000 + i,
                "campaign": rng.choice((None, "a", "b", "Ω")),
                "provider": rng.choice(("gmail", "yahoo")),
                "amount": rng.choice((None, 0, 1, -7)),
                "arrived": ts + rng.randrange(1, 3_000_000),
            }
        )
    return rows


TYPES = {
    "client": pa.string(),
    "user": pa.string(),
    "time": pa.timestamp("us", "UTC"),
    "kind": pa.string(),
    "id": pa.int64(),
    "campaign": pa.string(),
    "provider": pa.string(),
    "amount": pa.int64(),
    "arrived": pa.timestamp("us", "UTC"),
}


def write(path: Path, rows: list[Row], types: dict[str, pa.DataType] | None = None, **options: Any) -> Path:
    kinds = TYPES | (types or {})
    if rows and isinstance(rows[0]["user"], int) and "user" not in (types or {}):
        kinds["user"] = pa.int64()
    names = list(rows[0]) if rows else list(TYPES)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({n: pa.array([r[n] for r in rows], kinds.get(n)) for n in names}), path, **options)
    return path


COLUMNS = {
    "subscriber": "user",
    "ts": "time",
    "event": "kind",
    "client": "client",
    "event_id": "id",
    "campaign": "campaign",
    "provider": "provider",
    "value": "amount",
    "ingested_at": "arrived",
}


def config(
    tmp: Path, source: dict[str, Any] | None = None, columns: dict[str, Any] | None = None, **more: Any
) -> Config:
    mapping = {k: v for k, v in (COLUMNS | (columns or {})).items() if v is not None}
    given = {"path": str(tmp / "raw"), "value_unit": "micro", **(source or {})}
    whole = {"name": "test", "runs": str(tmp / "runs"), **more}
    return Config(source=Source(columns=Columns(**mapping), **given), **whole)


def key_of(user: Any) -> int:
    unsigned = xxhash.xxh64_intdigest(str(user).encode())
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned


def expected(rows: list[Row], client: str) -> list[tuple[Any, ...]]:
    """What a read of a client must yield: duplicates dropped, the first-arrived kept, in the total order."""

    def text(value: str | None) -> tuple[bool, bytes]:
        return (value is not None, (value or "").encode())

    def number(value: int | None) -> tuple[bool, int]:
        return (value is not None, value or 0)

    first: dict[tuple[Any, ...], Row] = {}
    for row in (r for r in rows if r["client"] == client):
        identity = (row["user"], row["time"], row["kind"], row["id"])
        rank = (row["arrived"], text(row["campaign"]), text(row["provider"]), number(row["amount"]))
        old = first.get(identity)
        if old is None or rank < (
            old["arrived"],
            text(old["campaign"]),
            text(old["provider"]),
            number(old["amount"]),
        ):
            first[identity] = row
    ordered = sorted(
        first.values(),
        key=lambda r: (key_of(r["user"]), r["time"], r["kind"].encode(), text(r["campaign"]), r["id"]),
    )
    return [
        (
            key_of(r["user"]),
            str(r["user"]),
            r["time"],
            r["kind"],
            r["id"],
            r["campaign"],
            r["provider"],
            r["amount"] or 0,
            r["arrived"],
        )
        for r in ordered
    ]


def micros(value: Any) -> int:
    return (value.to_pydatetime() - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)  # noqa: DTZ001


def rows_of_frame(frame: Any) -> list[tuple[Any, ...]]:
    """A canonical frame as the oracle's tuples."""
    frame = frame.to_pandas() if hasattr(frame, "to_pandas") else frame

    def texts(name: str) -> list[str | None]:
        column = frame[name].astype(object)
        return [None if v is None or v != v else v for v in column]

    return list(
        zip(
            frame.index.tolist(),
            texts("subscriber"),
            [micros(v) for v in frame["ts"]],
            texts("event"),
            frame["event_id"].tolist(),
            texts("campaign"),
            texts("provider"),
            frame["value"].tolist(),
            [micros(v) for v in frame["ingested_at"]],
            strict=True,
        )
    )
