"""DuckDB. Results leave as Arrow, without a copy of the whole in Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bench.features import Chunk, Idiom, Task


def _prepare(task: Task) -> float:
    import duckdb  # noqa: F401

    return 0.0


def _connect(task: Task) -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {task.threads}")
    connection.execute("SET preserve_insertion_order = false")
    return connection


def _raw(task: Task) -> str:
    return (
        "SELECT user_id AS subscriber, epoch_us(event_time) AS ts, event_name AS event "
        f"FROM read_parquet('{task.source}/*/*.parquet', hive_partitioning = false)"
    )


def _natural(task: Task) -> Any:
    """RANGE windows, one expression per kind and window."""
    columns = ", ".join(
        f"count(*) FILTER (WHERE event = '{kind}') OVER w{i} AS {kind}_{i}"
        for i in range(len(task.windows))
        for kind in task.kinds
    )
    frames = ", ".join(
        f"w{i} AS (PARTITION BY subscriber ORDER BY ts RANGE BETWEEN {window} PRECEDING AND 1 PRECEDING)"
        for i, window in enumerate(task.windows)
    )
    query = f"""
        SELECT * EXCLUDE (event) FROM (
            SELECT subscriber, ts, event, {columns} FROM ({_raw(task)}) WINDOW {frames}
        ) WHERE event = '{task.exposure}'"""
    return [_connect(task).sql(query).to_arrow_table()]


def _cumulative(task: Task, connection: Any, events: str) -> Any:
    """Cumulative counts, then one ASOF join per window bound."""
    # As INTEGER, not count's BIGINT: the joins then take half the time.
    running = ", ".join(
        f"(count(*) FILTER (WHERE event = '{kind}') OVER w)::INTEGER AS n{k}" for k, kind in enumerate(task.kinds)
    )
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE counted AS
        SELECT subscriber, ts, event, {running} FROM ({events})
        WINDOW w AS (PARTITION BY subscriber ORDER BY ts ROWS UNBOUNDED PRECEDING)""")
    columns = ", ".join(
        f"coalesce(e.n{k}, 0) - coalesce(b{i}.n{k}, 0) AS {kind}_{i}"
        for i in range(len(task.windows))
        for k, kind in enumerate(task.kinds)
    )
    joins = " ".join(
        f"ASOF LEFT JOIN counted b{i} ON p.subscriber = b{i}.subscriber AND p.ts - {window} > b{i}.ts"
        for i, window in enumerate(task.windows)
    )
    return connection.sql(f"""
        SELECT p.subscriber, p.ts, {columns}
        FROM (SELECT subscriber, ts FROM counted WHERE event = '{task.exposure}') p
        ASOF LEFT JOIN counted e ON p.subscriber = e.subscriber AND p.ts > e.ts {joins}""").to_arrow_table()


def _best(task: Task) -> Any:
    return [_cumulative(task, _connect(task), _raw(task))]


def _best_on_store(task: Task) -> Any:
    """The best idiom for one key range of our sorted store after the other."""
    files = ", ".join(f"'{file}'" for file in task.store_files())
    connection = _connect(task)
    tables = []
    for low, high in task.key_ranges():
        # -2^63 has no literal: its digits are read before the sign.
        bounds = f"subscriber_key >= ({low + 1} - 1) AND subscriber_key <= {high}"
        events = (
            "SELECT subscriber_key AS subscriber, epoch_us(ts) AS ts, event "
            f"FROM read_parquet([{files}], hive_partitioning = false) WHERE {bounds}"
        )
        tables.append(_cumulative(task, connection, events))
    return tables


def _chunks(task: Task, tables: Any) -> Iterable[Chunk]:
    for table in tables:
        for batch in table.to_batches(max_chunksize=1_000_000):
            subscriber, at, *columns = (c.to_numpy(zero_copy_only=False) for c in batch.columns)
            yield subscriber, at.astype(np.int64), columns


FEATURES = {
    "natural": Idiom(_natural, _chunks, prepare=_prepare),
    "best": Idiom(_best, _chunks, prepare=_prepare),
    "best, our store": Idiom(_best_on_store, _chunks, keyed=True, prepare=_prepare),
}
