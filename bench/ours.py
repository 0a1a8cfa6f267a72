"""Our side of each workload: the product's own functions, as its stages call them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.log import KINDS, NOW, START, Log, make
from bench.workloads import Chunk, Idiom, Task, event_chunk, numbers_of

CLIENT = "bench"
SMALL = 4000  # events of what runs before the clock
COLUMNS = {
    "subscriber": "user_id",
    "ts": "event_time",
    "event": "event_name",
    "campaign": "campaign_id",
    "event_id": "message_id",
}


def configuration(log: Log, store: Path, batch_rows: int | None = None) -> Any:
    """The configuration that ingests a log: every option but the names at its default."""
    from pipeline.config import Config
    from pipeline.options import Source

    config = Config(
        name="run",
        runs=str(store.parent / f"{store.name}-runs"),
        store=str(store),
        source=Source.model_validate({"path": str(log.live), "columns": COLUMNS, "client": CLIENT}),
    )
    return config if batch_rows is None else config.model_copy(update={"batch_rows": batch_rows})


def build_store(log: Log, store: Path, batch_rows: int | None = None) -> None:
    """Ingest the log's days into a store, unless it is there whole."""
    from pipeline.backend import choose
    from pipeline.events.ingest import ingest

    stamp = store.parent / f"{store.name}.made"
    if stamp.exists() and store.exists():
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(store, ignore_errors=True)
    log.arrive(False)
    ingest(configuration(log, store, batch_rows), choose("cpu"))
    stamp.touch()


def _idiom(run: Any, chunks: Any, ready: Any, seconds: float, ids: str = "integer", on_store: bool = False) -> Idiom:
    """``ready`` puts files in their places before a run.

    Off the clock, the same is run on a few thousand events first, in several batches: it imports and compiles all that
    the run needs. The keys are ours, but for roll-ups, which have none.
    """

    def prepare(task: Task) -> tuple[Any, float]:
        folder = task.scratch / "small"
        log = make(folder, SMALL, task.log.ids)
        small = replace(
            task, log=log, store=folder / "store", scratch=folder / "scratch", partitions=2, batch_rows=1000
        )
        small.scratch.mkdir()
        began = time.perf_counter()
        build_store(log, small.store, small.batch_rows)
        ready(small)
        run(small, None)
        spent = time.perf_counter() - began
        shutil.rmtree(folder)
        ready(task)
        return None, spent

    return Idiom(run, chunks, prepare, chunks is not _rollup_chunks, on_store, ids, seconds)


def _days(task: Task) -> None:
    task.log.arrive(False)


# -- features --------------------------------------------------------------------------------------------------------


def _spec(task: Task) -> Any:
    from pipeline.features.spec import FeatureSpec

    return FeatureSpec.counts(task.kinds, task.windows, task.exposure)


def _compute(task: Task, tasks: list[Any]) -> Any:
    import dask

    with ThreadPoolExecutor(task.threads) as pool:
        return dask.compute(*tasks, scheduler="threads", pool=pool)


def _features(task: Task, uri: Path) -> Any:
    """X and its keys, one table for each key range; of a sample where the task asks for one."""
    import dask

    from pipeline.events.store import EventStore
    from pipeline.features.samples import SampleRequest
    from pipeline.features.table import feature_tables

    request = SampleRequest("train", as_of=2**61, heads=(), exposure=task.exposure, keys=())
    tables = feature_tables(EventStore(str(uri)), CLIENT, _spec(task), request, task.partitions)
    chosen = dask.delayed(_chosen, pure=False)
    return _compute(task, [chosen(t, task.sample) for t in tables])


def _chosen(table: Any, sample: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Key, time and X of the sampled rows, of all without a copy."""
    key = table.keys["subscriber_key"].to_numpy()
    at = table.keys["at"].to_numpy().astype("datetime64[us]").view(np.int64)
    if sample == 1:
        return key, at, table.X
    rows = np.flatnonzero(at // 1000 % sample == 0)
    return key[rows], at[rows], table.X[rows]


def _feature_chunks(task: Task, session: Any, tables: Any) -> Iterable[Chunk]:
    for key, at, X in tables:
        yield [key, at], [X[:, j] for j in range(X.shape[1])]


def _from_store(task: Task, session: Any) -> Any:
    return _features(task, task.store)


def _ingest(task: Task, store: Path) -> Any:
    from pipeline.backend import PANDAS
    from pipeline.events.ingest import ingest

    return ingest(configuration(task.log, store, task.batch_rows), PANDAS, workers=task.threads)


def _raw_to_features(task: Task, session: Any) -> Any:
    store = task.scratch / "store"
    _ingest(task, store)
    return _features(task, store)


# -- ingest ----------------------------------------------------------------------------------------------------------


def _ingest_alone(task: Task, session: Any) -> Any:
    return _ingest(task, task.scratch / "store")


def _event_chunks(task: Task, session: Any, report: Any) -> Iterable[Chunk]:
    """All that the store holds afterwards."""
    from deltalake import DeltaTable
    from pyarrow import dataset

    store = task.scratch / "store"
    files = [uri.removeprefix("file://") for uri in DeltaTable(str(store)).file_uris()]
    for batch in dataset.dataset(files).to_batches(columns=["subscriber_key", "ts", "event", "event_id"]):
        yield event_chunk(batch["subscriber_key"].to_numpy(), batch["ts"], batch["event"], batch["event_id"])


# -- roll-up ---------------------------------------------------------------------------------------------------------


def _rollup(task: Task, session: Any) -> Any:
    import dask

    from pipeline.events.store import EventStore
    from pipeline.features.rollup import counts

    with ThreadPoolExecutor(task.threads) as pool, dask.config.set(scheduler="threads", pool=pool):
        return counts(EventStore(str(task.store)), CLIENT, ["campaign"], "hour")


def _rollup_chunks(task: Task, session: Any, rows: Any) -> Iterable[Chunk]:
    campaign = numbers_of(pa.array(rows["campaign"].astype(str).to_numpy(dtype=object), pa.string()))
    hour = (rows["bucket"].to_numpy().astype("datetime64[us]").astype(np.int64) - START) // 3_600_000_000
    for i, kind in enumerate(KINDS):
        if f"n_{kind}" in rows:
            count, unique = rows[f"n_{kind}"].to_numpy(), rows[f"unique_{kind}"].to_numpy()
            some = count > 0
            yield [campaign[some], np.full(int(some.sum()), i), hour[some]], [count[some], unique[some]]


# -- a new day -------------------------------------------------------------------------------------------------------


def _day_arrives(task: Task) -> None:
    """A copy of the store, so that the next run finds it as it was; and the new day's file beside the others."""
    shutil.copytree(task.store, task.scratch / "store", copy_function=os.link)
    task.log.arrive(True)


def _new_day(task: Task, session: Any) -> Any:
    import dask

    from pipeline.events.store import EventStore
    from pipeline.features.samples import SampleRequest
    from pipeline.features.table import feature_table, read_columns

    _ingest(task, task.scratch / "store")
    store = EventStore(str(task.scratch / "store"))
    span = max(task.windows)
    request = SampleRequest(
        "score", as_of=NOW, heads=(), exposure=None, active_within=span, at=NOW, keys=(), keep_suppressed=True
    )
    columns = read_columns(store, CLIENT, _spec(task), request)
    plan = store.plan(CLIENT, since=NOW - span, until=NOW, columns=columns, partitions=task.partitions)

    def one(i: int) -> Any:
        return _chosen(feature_table(store.read_range(plan, i), _spec(task), request), 1)

    return _compute(task, [dask.delayed(one, pure=False)(i) for i in range(len(plan))])


IDIOMS = {
    "ingest": {
        "integer ids": _idiom(_ingest_alone, _event_chunks, _days, 0.5),
        "string ids, UUIDs": _idiom(_ingest_alone, _event_chunks, _days, 1.5, ids="text"),
    },
    "features": {"store": _idiom(_from_store, _feature_chunks, _days, 0.15, on_store=True)},
    "raw-to-features": {"store on the way": _idiom(_raw_to_features, _feature_chunks, _days, 0.7)},
    "rollup": {"store": _idiom(_rollup, _rollup_chunks, _days, 0.1, on_store=True)},
    "new-day": {"store": _idiom(_new_day, _feature_chunks, _day_arrives, 0.1, on_store=True)},
}
