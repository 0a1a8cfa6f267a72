"""Our side of each workload."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from bench.features import Chunk, Idiom, Task


def _prepare(task: Task) -> float:
    """Import and compile what a run needs, on a log of one event; imports are off the clock for every engine."""
    import dask
    import deltalake  # noqa: F401

    from pipeline.backend import PANDAS
    from pipeline.events.store import EventStore  # noqa: F401
    from pipeline.features import compiled
    from pipeline.features.samples import SampleRequest
    from pipeline.features.spec import FeatureSpec
    from pipeline.features.table import feature_table

    seconds = compiled.warm_up()
    columns = {"subscriber_key": [0], "ts": pa.array([0], pa.timestamp("us")), "event": ["send"]}
    event = PANDAS.from_arrow(pa.table(columns)).set_index("subscriber_key")
    dask.compute(dask.delayed(len)(""), scheduler="threads")  # it imports its schedulers when first used
    feature_table(event, FeatureSpec.counts(["send"], [1]), SampleRequest("train", 1, (), "send"), PANDAS)
    return seconds


def _run(task: Task) -> Any:
    import dask

    from pipeline.events.store import EventStore
    from pipeline.features.samples import SampleRequest
    from pipeline.features.spec import FeatureSpec
    from pipeline.features.table import feature_tables

    store = EventStore(str(task.store))
    (client,) = store.clients()
    spec = FeatureSpec.counts(task.kinds, task.windows, task.exposure)
    request = SampleRequest("train", as_of=2**61, heads=(), exposure=task.exposure, keys=())
    tables = feature_tables(store, client, spec, request, task.partitions)
    with ThreadPoolExecutor(task.threads) as pool:
        return dask.compute(*tables, scheduler="threads", pool=pool)


def _chunks(task: Task, tables: Any) -> Iterable[Chunk]:
    for table in tables:
        key = table.keys["subscriber_key"].to_numpy()
        at = table.keys["at"].to_numpy().astype("datetime64[us]").astype(np.int64)
        yield key, at, [table.X[:, j] for j in range(table.X.shape[1])]


FEATURES = {"store": Idiom(_run, _chunks, keyed=True, prepare=_prepare)}
