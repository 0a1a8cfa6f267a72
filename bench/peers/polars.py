"""Polars. Streaming or not, lazily: whatever was fastest; types as small as the answer allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bench.features import Chunk, Idiom, Task


def _prepare(task: Task) -> float:
    import polars  # noqa: F401

    return 0.0


def _raw(task: Task) -> Any:
    import polars as pl

    return pl.scan_parquet(f"{task.source}/*/*.parquet", hive_partitioning=False).select(
        subscriber=pl.col("user_id"), ts=pl.col("event_time").cast(pl.Int64), event=pl.col("event_name")
    )


def _natural(task: Task) -> Any:
    """rolling_sum_by over subscriber, one column per kind and window."""
    import polars as pl

    events = _raw(task).with_columns(ts=pl.col("ts").cast(pl.Datetime("us"))).sort("subscriber", "ts")
    counts = [
        (pl.col("event") == kind)
        .cast(pl.UInt32)
        .rolling_sum_by("ts", window_size=f"{window}us", closed="left")
        .over("subscriber")
        .fill_null(0)
        .alias(name)
        for name, (window, kind) in zip(task.columns, [(w, k) for w in task.windows for k in task.kinds], strict=True)
    ]
    table = events.with_columns(counts).filter(pl.col("event") == task.exposure)
    return [table.select("subscriber", pl.col("ts").cast(pl.Int64), *task.columns).collect()]


def _cumulative(task: Task, events: Any) -> Any:
    """Cumulative counts per subscriber, then one join_asof per window bound; events are sorted."""
    import polars as pl

    running = [f"n{i}" for i in range(len(task.kinds))]
    counted = (
        events.lazy()
        .with_columns(
            (pl.col("event") == kind).cast(pl.Int32).cum_sum().over("subscriber").alias(name)
            for name, kind in zip(running, task.kinds, strict=True)
        )
        .collect()
    )
    points = counted.lazy().filter(pl.col("event") == task.exposure).select("subscriber", "ts").collect()
    right = counted.select("subscriber", "ts", *running).lazy()

    def until(before: int) -> Any:
        left = points.lazy().select("subscriber", bound=pl.col("ts") - before)
        joined = left.join_asof(
            right,
            left_on="bound",
            right_on="ts",
            by="subscriber",
            strategy="backward",
            allow_exact_matches=False,
            check_sortedness=False,
        )
        return joined.select(pl.col(name).fill_null(0) for name in running)

    end, *begins = pl.collect_all([until(before) for before in (0, *task.windows)])
    counts = [
        (end[name] - begin[name]).alias(f"{kind}_{i}")
        for i, begin in enumerate(begins)
        for name, kind in zip(running, task.kinds, strict=True)
    ]
    table = points.with_columns(counts)
    table.columns = ["subscriber", "ts", *task.columns]
    return table


def _best(task: Task) -> Any:
    return [_cumulative(task, _raw(task).sort("subscriber", "ts").collect())]


def _best_on_store(task: Task) -> Any:
    """The best idiom for one key range of our sorted store after the other; nothing needs sorting but a few runs."""
    import polars as pl

    source = pl.scan_parquet(task.store_files(), hive_partitioning=False).select(
        subscriber=pl.col("subscriber_key"), ts=pl.col("ts").cast(pl.Int64), event=pl.col("event")
    )
    tables = []
    for low, high in task.key_ranges():
        events = source.filter(pl.col("subscriber").is_between(low, high)).sort("subscriber", "ts").collect()
        tables.append(_cumulative(task, events))
    return tables


def _chunks(task: Task, tables: Any) -> Iterable[Chunk]:
    for table in tables:
        for chunk in table.iter_slices(1_000_000):
            columns = [chunk[name].to_numpy() for name in task.columns]
            yield chunk["subscriber"].to_numpy(), chunk["ts"].to_numpy().astype(np.int64), columns


FEATURES = {
    "natural": Idiom(_natural, _chunks, prepare=_prepare),
    "best": Idiom(_best, _chunks, prepare=_prepare),
    "best, our store": Idiom(_best_on_store, _chunks, keyed=True, prepare=_prepare),
}
