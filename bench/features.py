"""The workload `features`: for every send, the events of each kind in each window before it.

Ours reads a store; each peer reads the raw files (its natural and its best idiom) and, beside that, our sorted store by
key range. Engines give rows in chunks of (subscriber, at, columns); a digest that no row order changes compares them.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.log import DAY, KINDS

WINDOWS = tuple(days * DAY for days in (1, 7, 30, 90))
EXPOSURE = "send"

Chunk = tuple[np.ndarray, np.ndarray, list[np.ndarray]]  # subscriber or its key, at in microseconds, counts


@dataclass(frozen=True)
class Task:
    """What an engine is given. ``source``: folder of daily Parquet files; ``store``: our store of the same events."""

    source: Path
    store: Path
    partitions: int
    threads: int
    kinds: tuple[str, ...] = KINDS
    windows: tuple[int, ...] = WINDOWS
    exposure: str = EXPOSURE

    @property
    def columns(self) -> list[str]:
        return [f"{kind}_{window // DAY}d" for window in self.windows for kind in self.kinds]

    def key_ranges(self) -> list[tuple[int, int]]:
        """Inclusive bounds of equal key ranges, as int64."""
        cuts = [-(2**63) + i * 2**64 // self.partitions for i in range(self.partitions + 1)]
        return [(a, b - 1) for a, b in itertools.pairwise(cuts)]

    def store_files(self) -> list[str]:
        """The store's Parquet files."""
        from deltalake import DeltaTable

        return sorted(uri.removeprefix("file://") for uri in DeltaTable(str(self.store)).file_uris())


@dataclass(frozen=True)
class Idiom:
    """One way of one engine. ``prepare`` is off the clock, ``run`` on it, ``chunks`` off it again.

    ``keyed``: rows carry subscriber_key, not the id. ``prepare`` returns seconds spent compiling.
    """

    run: Callable[[Task], Any]
    chunks: Callable[[Task, Any], Iterable[Chunk]]
    keyed: bool = False
    prepare: Callable[[Task], float] = lambda task: 0.0


def idioms(engine: str) -> dict[str, Idiom]:
    """The idioms of "ours" or of a peer, ``bench/peers/<name>.py``."""
    module = importlib.import_module("bench.ours" if engine == "ours" else f"bench.peers.{engine}")
    found: dict[str, Idiom] = module.FEATURES
    return found


def digest(task: Task, chunks: Iterable[Chunk], keyed: bool, subscribers: int) -> dict[str, list[int]]:
    """Per column [sum, sum weighted by a hash of (subscriber, at)] modulo 2^64, and the rows: equal iff rows are.

    Subscribers' keys are turned back into ids first, so that a wrong key cannot go unseen.
    """
    from pipeline.backend import PANDAS
    from pipeline.features.kernels import hash64

    ids = np.arange(subscribers, dtype=np.int64)
    order = keys = None
    if keyed:
        import pandas as pd

        hashed = PANDAS.hash_strings(pd.Series(ids))
        order = np.argsort(hashed)
        keys = hashed[order]
    rows = 0
    sums = np.zeros((len(task.columns), 2), dtype=np.uint64)
    for subscriber, at, columns in chunks:
        if keys is not None and order is not None:
            position = np.minimum(np.searchsorted(keys, subscriber), len(keys) - 1)
            if not (keys[position] == subscriber).all():
                raise ValueError("a subscriber_key that belongs to no subscriber of the log")
            subscriber = order[position]
        weight = hash64(np, 1, subscriber.astype(np.int64), at.astype(np.int64))
        rows += len(weight)
        if len(columns) != len(task.columns):
            raise ValueError(f"{len(columns)} columns where {len(task.columns)} were expected")
        for j, column in enumerate(columns):
            values = np.asarray(column).astype(np.uint64)
            sums[j] += np.array([values.sum(), (values * weight).sum()], dtype=np.uint64)
    out = {name: [int(a), int(b)] for name, (a, b) in zip(task.columns, sums.tolist(), strict=True)}
    return {"rows": [rows], **out}
