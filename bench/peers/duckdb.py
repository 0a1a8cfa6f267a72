"""DuckDB. Results leave as Arrow, without a copy of the whole in Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bench.log import HOUR, KINDS, NOW, START
from bench.workloads import BITS, KINDS_IN_A_SUM, Chunk, Idiom, Task, numbers_of


def _prepare(task: Task) -> tuple[Any, float]:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {task.threads}")
    connection.execute("SET preserve_insertion_order = false")
    # A few thousand points it would join in a nested loop, a hundred times slower than by sorting.
    connection.execute("SET asof_loop_join_threshold = 0")
    connection.execute(f"SET temp_directory = '{task.scratch}'")
    connection.execute(f"SET memory_limit = '{task.memory}B'")
    return connection, 0.0


def _files(files: list[str]) -> str:
    names = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    return f"read_parquet([{names}], hive_partitioning = false)"


def _raw(task: Task, files: list[str]) -> str:
    return (
        f"SELECT user_id AS subscriber, epoch_us(event_time) AS ts, event_name AS event, campaign_id AS campaign "
        f"FROM {_files(files)}"
    )


def _stored(task: Task) -> str:
    return f"SELECT subscriber_key AS subscriber, epoch_us(ts) AS ts, event, campaign FROM {_files(task.store_files())}"


def _ranges(task: Task) -> list[str]:
    """Our store by key range, one query for each; -2^63 has no literal: its digits are read before the sign."""
    return [
        f"SELECT * FROM ({_stored(task)}) WHERE subscriber >= ({low + 1} - 1) AND subscriber <= {high}"
        for low, high in task.key_ranges()
    ]


# -- features --------------------------------------------------------------------------------------------------------


def _points(task: Task) -> str:
    sampled = "" if task.sample == 1 else f" AND ts // 1000 % {task.sample} = 0"
    return f"event = '{task.exposure}'{sampled}"


def _natural(task: Task, connection: Any) -> Any:
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
            SELECT subscriber, ts, event, {columns} FROM ({_raw(task, task.raw_files())}) WINDOW {frames}
        ) WHERE {_points(task)}"""
    return [connection.sql(query).to_arrow_table()]


def _cumulative(task: Task, connection: Any, events: str) -> Any:
    """Cumulative counts, then one ASOF join per window bound.

    Three kinds share a sum (see :data:`bench.workloads.BITS`): the joins then carry two columns, not six, and the whole
    takes a fifth less time.
    """
    sums = [task.kinds[i : i + KINDS_IN_A_SUM] for i in range(0, len(task.kinds), KINDS_IN_A_SUM)]
    running = ", ".join(
        "(sum(CASE event "
        + " ".join(f"WHEN '{kind}' THEN {1 << BITS * k}::BIGINT" for k, kind in enumerate(kinds))
        + f" ELSE 0 END) OVER w)::BIGINT AS p{i}"
        for i, kinds in enumerate(sums)
    )
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE counted AS
        SELECT subscriber, ts, event, {running} FROM ({events})
        WINDOW w AS (PARTITION BY subscriber ORDER BY ts ROWS UNBOUNDED PRECEDING)""")

    def count(window: int, kind: int) -> str:
        name, place = f"p{kind // KINDS_IN_A_SUM}", BITS * (kind % KINDS_IN_A_SUM)
        both = f"coalesce(e.{name}, 0) - coalesce(b{window}.{name}, 0)"
        return f"((({both}) >> {place}) & {(1 << BITS) - 1})::INTEGER AS {task.kinds[kind]}_{window}"

    columns = ", ".join(count(i, k) for i in range(len(task.windows)) for k in range(len(task.kinds)))
    joins = " ".join(
        f"ASOF LEFT JOIN counted b{i} ON p.subscriber = b{i}.subscriber AND p.ts - {window} > b{i}.ts"
        for i, window in enumerate(task.windows)
    )
    return connection.sql(f"""
        SELECT p.subscriber, p.ts, {columns}
        FROM (SELECT subscriber, ts FROM counted WHERE {_points(task)}) p
        ASOF LEFT JOIN counted e ON p.subscriber = e.subscriber AND p.ts > e.ts {joins}""").to_arrow_table()


def _best(task: Task, connection: Any) -> Any:
    return [_cumulative(task, connection, _raw(task, task.raw_files()))]


def _best_on_store(task: Task, connection: Any) -> Any:
    """The best idiom for one key range of our sorted store after the other."""
    return [_cumulative(task, connection, events) for events in _ranges(task)]


def _feature_chunks(task: Task, connection: Any, tables: Any) -> Iterable[Chunk]:
    for table in tables:
        for batch in table.to_batches(max_chunksize=1_000_000):
            subscriber, at, *columns = (c.to_numpy(zero_copy_only=False) for c in batch.columns)
            yield [subscriber, at.astype(np.int64)], columns


# -- roll-up ---------------------------------------------------------------------------------------------------------


def _distinct(connection: Any, events: str) -> Any:
    """count(DISTINCT)."""
    return connection.sql(f"""
        SELECT campaign, event, (ts - {START}) // {HOUR} AS hour, count(*) AS events,
            count(DISTINCT subscriber) AS subscribers
        FROM ({events}) GROUP BY ALL""").to_arrow_table()


def _two_steps(connection: Any, events: str) -> Any:
    """Group by subscriber as well, then group again."""
    return connection.sql(f"""
        SELECT campaign, event, hour, sum(n)::BIGINT AS events, count(*) AS subscribers FROM (
            SELECT campaign, event, (ts - {START}) // {HOUR} AS hour, subscriber, count(*) AS n
            FROM ({events}) GROUP BY ALL) GROUP BY ALL""").to_arrow_table()


def _rollup_natural(task: Task, connection: Any) -> Any:
    return _distinct(connection, _raw(task, task.raw_files()))


def _rollup_best(task: Task, connection: Any) -> Any:
    return _two_steps(connection, _raw(task, task.raw_files()))


def _rollup_on_store(task: Task, connection: Any) -> Any:
    return _distinct(connection, _stored(task))


def _rollup_chunks(task: Task, connection: Any, table: Any) -> Iterable[Chunk]:
    keys = [numbers_of(table["campaign"]), numbers_of(table["event"], KINDS), table["hour"].to_numpy()]
    yield keys, [table["events"].to_numpy(), table["subscribers"].to_numpy()]


# -- a new day -------------------------------------------------------------------------------------------------------


def _new_day_natural(task: Task, connection: Any) -> Any:
    """One conditional count per kind and window."""
    columns = ", ".join(
        f"count(*) FILTER (WHERE event = '{kind}' AND ts >= {NOW - window})"
        for window in task.windows
        for kind in task.kinds
    )
    query = f"""
        SELECT subscriber, {NOW} AS at, {columns} FROM ({_raw(task, task.recent_files())})
        WHERE ts >= {NOW - max(task.windows)} GROUP BY ALL"""
    return [connection.sql(query).to_arrow_table()]


def _new_day_best(task: Task, connection: Any) -> Any:
    """Counts of each kind between two window bounds first, few groups; then their running sums."""
    windows = sorted(task.windows)
    span = " ".join(f"WHEN ts >= {NOW - window} THEN {i}" for i, window in enumerate(windows[:-1]))
    counts = ", ".join(f"count(*) FILTER (WHERE event = '{kind}') AS n{k}" for k, kind in enumerate(task.kinds))
    columns = ", ".join(
        f"coalesce(sum(n{k}) FILTER (WHERE span <= {windows.index(window)}), 0)::BIGINT"
        for window in task.windows
        for k in range(len(task.kinds))
    )
    query = f"""
        SELECT subscriber, {NOW} AS at, {columns} FROM (
            SELECT subscriber, CASE {span} ELSE {len(windows) - 1} END AS span, {counts}
            FROM ({_raw(task, task.recent_files())}) WHERE ts >= {NOW - windows[-1]} GROUP BY ALL
        ) GROUP BY ALL"""
    return [connection.sql(query).to_arrow_table()]


IDIOMS = {
    "features": {
        "natural": Idiom(_natural, _feature_chunks, _prepare, seconds=3.7),
        "best": Idiom(_best, _feature_chunks, _prepare, seconds=1.9),
        "best, our store": Idiom(_best_on_store, _feature_chunks, _prepare, keyed=True, on_store=True, seconds=1.3),
    },
    "rollup": {
        "natural": Idiom(_rollup_natural, _rollup_chunks, _prepare, seconds=0.1),
        "best": Idiom(_rollup_best, _rollup_chunks, _prepare, seconds=0.1),
        "best, our store": Idiom(_rollup_on_store, _rollup_chunks, _prepare, on_store=True, seconds=0.1),
    },
    "new-day": {
        "natural": Idiom(_new_day_natural, _feature_chunks, _prepare, seconds=0.1),
        "best": Idiom(_new_day_best, _feature_chunks, _prepare, seconds=0.1),
    },
}
