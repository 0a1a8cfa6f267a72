"""Polars, lazily, in memory; types as small as the answer allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bench.log import HOUR, KINDS, NOW, START
from bench.workloads import Chunk, Idiom, Task, numbers_of


def _prepare(task: Task) -> tuple[Any, float]:
    import polars

    return polars, 0.0


def _raw(pl: Any, files: list[str]) -> Any:
    return pl.scan_parquet(files, hive_partitioning=False).select(
        subscriber=pl.col("user_id"),
        ts=pl.col("event_time").cast(pl.Int64),
        event=pl.col("event_name"),
        campaign=pl.col("campaign_id"),
    )


def _stored(pl: Any, task: Task) -> Any:
    return pl.scan_parquet(task.store_files(), hive_partitioning=False).select(
        subscriber=pl.col("subscriber_key"),
        ts=pl.col("ts").cast(pl.Int64),
        event=pl.col("event"),
        campaign=pl.col("campaign"),
    )


# -- features --------------------------------------------------------------------------------------------------------


def _points(pl: Any, task: Task) -> Any:
    chosen = pl.col("event") == task.exposure
    return chosen if task.sample == 1 else chosen & (pl.col("ts") // 1000 % task.sample == 0)


def _natural(task: Task, pl: Any) -> Any:
    """rolling_sum_by over subscriber, one column per kind and window."""
    events = _raw(pl, task.raw_files()).drop("campaign").sort("subscriber", "ts")
    events = events.with_columns(time=pl.col("ts").cast(pl.Datetime("us")))
    counts = [
        (pl.col("event") == kind)
        .cast(pl.UInt32)
        .rolling_sum_by("time", window_size=f"{window}us", closed="left")
        .over("subscriber")
        .fill_null(0)
        .alias(name)
        for name, (window, kind) in zip(task.columns, [(w, k) for w in task.windows for k in task.kinds], strict=True)
    ]
    table = events.with_columns(counts).filter(_points(pl, task))
    return [table.select("subscriber", "ts", *task.columns).collect()]


def _cumulative(task: Task, pl: Any, events: Any) -> Any:
    """Cumulative counts per subscriber, then one join_asof per window bound; events are sorted."""
    running = [f"n{i}" for i in range(len(task.kinds))]
    counted = (
        events.lazy()
        .with_columns(
            (pl.col("event") == kind).cast(pl.Int32).cum_sum().over("subscriber").alias(name)
            for name, kind in zip(running, task.kinds, strict=True)
        )
        .collect()
    )
    points = counted.lazy().filter(_points(pl, task)).select("subscriber", "ts").collect()
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


def _best(task: Task, pl: Any) -> Any:
    events = _raw(pl, task.raw_files()).drop("campaign").sort("subscriber", "ts")
    return [_cumulative(task, pl, events.collect())]


def _best_on_store(task: Task, pl: Any) -> Any:
    """The best idiom for one key range of our sorted store after the other; nothing needs sorting but a few runs."""
    source = _stored(pl, task).drop("campaign")
    tables = []
    for low, high in task.key_ranges():
        events = source.filter(pl.col("subscriber").is_between(low, high)).sort("subscriber", "ts").collect()
        tables.append(_cumulative(task, pl, events))
    return tables


def _feature_chunks(task: Task, pl: Any, tables: Any) -> Iterable[Chunk]:
    for table in tables:
        for chunk in table.iter_slices(1_000_000):
            keys = [chunk["subscriber"].to_numpy(), chunk["ts"].to_numpy().astype(np.int64)]
            yield keys, [chunk[name].to_numpy() for name in task.columns]


# -- roll-up ---------------------------------------------------------------------------------------------------------


def _hours(pl: Any, events: Any) -> Any:
    return events.select(
        "campaign", "event", hour=((pl.col("ts") - START) // HOUR).cast(pl.Int32), subscriber="subscriber"
    )


def _distinct(pl: Any, events: Any) -> Any:
    """n_unique."""
    grouped = _hours(pl, events).group_by("campaign", "event", "hour")
    return grouped.agg(events=pl.len(), subscribers=pl.col("subscriber").n_unique())


def _two_steps(pl: Any, events: Any) -> Any:
    """Group by subscriber as well, then group again."""
    first = _hours(pl, events).group_by("campaign", "event", "hour", "subscriber").agg(n=pl.len())
    return first.group_by("campaign", "event", "hour").agg(events=pl.col("n").sum(), subscribers=pl.len())


def _rollup_natural(task: Task, pl: Any) -> Any:
    return _distinct(pl, _raw(pl, task.raw_files())).collect()


def _rollup_best(task: Task, pl: Any) -> Any:
    return _two_steps(pl, _raw(pl, task.raw_files())).collect(engine="streaming")


def _rollup_on_store(task: Task, pl: Any) -> Any:
    return _distinct(pl, _stored(pl, task)).collect()


def _rollup_chunks(task: Task, pl: Any, table: Any) -> Iterable[Chunk]:
    names = {n: table[n].cast(pl.String).to_arrow() for n in ("campaign", "event")}
    keys = [numbers_of(names["campaign"]), numbers_of(names["event"], KINDS), table["hour"].to_numpy()]
    yield keys, [table["events"].to_numpy(), table["subscribers"].to_numpy()]


# -- a new day -------------------------------------------------------------------------------------------------------


def _new_day_natural(task: Task, pl: Any) -> Any:
    """One conditional count per kind and window."""
    recent = _raw(pl, task.recent_files()).filter(pl.col("ts") >= NOW - max(task.windows))
    counts = [
        ((pl.col("event") == kind) & (pl.col("ts") >= NOW - window)).sum().alias(name)
        for name, (window, kind) in zip(task.columns, [(w, k) for w in task.windows for k in task.kinds], strict=True)
    ]
    return [recent.group_by("subscriber").agg(counts).with_columns(ts=pl.lit(NOW)).collect()]


def _new_day_best(task: Task, pl: Any) -> Any:
    """Counts of each kind between two window bounds first, few groups; then their running sums."""
    windows = sorted(task.windows)
    bucket = sum(((pl.col("ts") < NOW - w).cast(pl.UInt8) for w in windows[:-1]), pl.lit(0, pl.UInt8))
    recent = _raw(pl, task.recent_files()).filter(pl.col("ts") >= NOW - windows[-1])
    first = recent.group_by("subscriber", "event", bucket.alias("b")).agg(n=pl.len())
    counts = [
        pl.col("n").filter((pl.col("event") == kind) & (pl.col("b") <= windows.index(window))).sum().alias(name)
        for name, (window, kind) in zip(task.columns, [(w, k) for w in task.windows for k in task.kinds], strict=True)
    ]
    return [first.group_by("subscriber").agg(counts).with_columns(ts=pl.lit(NOW)).collect(engine="streaming")]


IDIOMS = {
    "features": {
        "natural": Idiom(_natural, _feature_chunks, _prepare, seconds=1.5),
        "best": Idiom(_best, _feature_chunks, _prepare, seconds=1.0),
        "best, our store": Idiom(_best_on_store, _feature_chunks, _prepare, keyed=True, on_store=True, seconds=0.4),
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
