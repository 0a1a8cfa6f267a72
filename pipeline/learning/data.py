"""A client's decision points for training: all of them in the memory, or chunk by chunk from the store.

The key ranges are computed by threads of the process that trains, whatever the cluster, so that no array crosses from
one process to another. Where everything fits, it is one table. Where it does not, training rows come in chunks, each a
few key ranges and so a random share of the subscribers, computed anew whenever it is its turn; validation and hold-out
stay, and a sample of the training rows for what is compared with them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backend import Array, Backend, backend_of
from pipeline.config import Config
from pipeline.errors import ModelError, TooLittleError
from pipeline.features import preparation
from pipeline.features import table as features
from pipeline.features.samples import TRAIN, SampleRequest
from pipeline.features.table import FeatureTable
from pipeline.options import format_duration
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.events.store import EventStore
    from pipeline.features.context import Context
    from pipeline.features.spec import FeatureSpec
    from pipeline.learning.chunks import Chunks, Survey
    from pipeline.learning.rows import Rows

MEMORY_SHARE = 0.4  # of what is free; joining the ranges' tables holds them twice for a moment
AT_ONCE = 8  # chunks' worth of memory, measured: one that trains, the next while it is made and joined, what stays
SMALL = 200_000  # events, which one core goes through in less than a second
GPU_THREADS = 2  # one range is read while another is computed; more only want more device memory
FINEST = 16  # key ranges at least, of which some are taken
SAMPLE = 200_000  # training rows that stay where the others come and go


@dataclass(frozen=True)
class Recipe:
    """What any process needs beside the store to make the same rows: features, decision points, context."""

    spec: FeatureSpec
    request: SampleRequest
    context: Context | None

    def tasks(self, store: EventStore, client: str, partitions: int | None) -> list[Any]:
        """A delayed FeatureTable for each of so many key ranges; as many as the store thinks where None."""
        return features.feature_tables(store, client, self.spec, self.request, partitions, self.context)


@dataclass(frozen=True)
class TrainingData:
    """``table``: every decision point whose outcome is known; or, with ``chunks``, only those that stay.

    ``chunks``, ``found``: the training rows, and the survey of them, where they do not fit the memory. ``points``,
    ``rows``: how many decision points there are, and how many of them train. ``recipe``: how they are made. ``note``:
    how it was cut, to be read.
    """

    table: FeatureTable
    points: int
    rows: int
    recipe: Recipe
    chunks: Chunks | None = None
    found: Survey | None = None
    note: str = ""

    @property
    def whole(self) -> FeatureTable:
        """Every decision point, for work that cannot go by chunks.

        Raises:
            ModelError: they do not fit the memory, or are more than ``model.chunk``.
        """
        if self.chunks is not None:
            raise ModelError(
                f"{self.points:,} decision points are too many to have at once, a part of them is no substitute: they "
                f"came in {self.chunks.count} chunks. Ask for fewer events, or give more memory or a larger model.chunk"
            )
        return self.table


def training_data(
    store: EventStore, client: str, config: Config, backend: Backend, as_of: int, rollups: Path | None = None
) -> TrainingData:
    """A client's decision points.

    Args:
        as_of: where the data end, microseconds UTC.
        rollups: the run's table of roll-ups, where it is of this store; context is counted from it.
    Raises:
        TooLittleError: no decision point is left.
    """
    partitions = config.partitions or ranges(store, client, backend)
    recipe = recipe_of(store, client, config, backend, as_of, rollups)
    at_once = chunk_rows(config, backend, features.row_bytes(recipe.spec, len(config.outcomes)))
    points = points_of(store, client, config)
    if points <= at_once.resident:
        table = _table(recipe.tasks(store, client, partitions), client, backend)
        rows = int((table.split == TRAIN).sum())
        if not rows:
            raise TooLittleError(_too_short(store, client, config, as_of))
        return TrainingData(table, len(table), rows, recipe)
    count = math.ceil(points / at_once.chunk)
    width = GPU_THREADS if backend.on_gpu else len(os.sched_getaffinity(0))
    tasks = recipe.tasks(store, client, max(count * width, partitions or 1))
    try:
        return _chunked(tasks, count, client, config, backend, at_once.chunk, recipe)
    except ModelError:  # no chunk has training rows
        raise TooLittleError(_too_short(store, client, config, as_of)) from None


def recipe_of(
    store: EventStore, client: str, config: Config, backend: Backend, as_of: int, rollups: Path | None = None
) -> Recipe:
    """What a client's rows are made by. Args: as :func:`training_data`."""
    request = SampleRequest.from_config(config, client, as_of, "train")
    partitions = config.partitions or ranges(store, client, backend)
    known = preparation.hourly(rollups, client)
    spec, context = preparation.specify(store, client, config, request, known, partitions)
    return Recipe(spec, request, context)


def some_of(
    store: EventStore, client: str, config: Config, backend: Backend, recipe: Recipe, points: int
) -> FeatureTable:
    """About so many of a client's decision points: those of its first key ranges, whole subscribers."""
    there = max(points_of(store, client, config), 1)
    partitions = config.partitions or ranges(store, client, backend) or 1
    if points < there:
        partitions = max(partitions, FINEST, math.ceil(there / points))
    tasks = recipe.tasks(store, client, partitions)
    taken = tasks if points >= there else tasks[: max(len(tasks) * points // there, 1)]
    return _table(taken, client, backend)


def _table(tasks: list[Any], client: str, backend: Backend) -> FeatureTable:
    with Progress(f"features {client}", len(tasks), "key ranges") as progress:
        return features.concat(compute(tasks, backend, progress))


@dataclass(frozen=True)
class AtOnce:
    """Decision points: ``resident``, as many as may all be in memory; ``chunk``, training rows of a chunk, if not."""

    resident: int
    chunk: int


def chunk_rows(config: Config, backend: Backend, row_bytes: int, neighbours: int = 1) -> AtOnce:
    """What the memory, or ``model.chunk``, allows one of ``neighbours`` processes that share a machine's."""
    if config.model.chunk:
        return AtOnce(config.model.chunk, config.model.chunk)
    free = backend.free_memory() // (1 if backend.on_gpu else neighbours)
    room = max(int(MEMORY_SHARE * free) // row_bytes, AT_ONCE)
    return AtOnce(room, room // AT_ONCE)


def ranges(store: EventStore, client: str, backend: Backend) -> int | None:
    """At least a key range for every core, unless the log is tiny or a GPU works alone; None: as the store thinks."""
    if backend.on_gpu or store.rows(client) < SMALL:
        return None
    return max(store.plan(client, columns=["event"]).partitions, len(os.sched_getaffinity(0)))


def points_of(store: EventStore, client: str, config: Config) -> int:
    """Decision points at the most, as far as is known before they are made."""
    points = store.kinds(client).get(config.at.event, 0) if config.at.event else store.rows(client)
    return int(points * config.model.downsample)


def compute(tasks: list[Any], backend: Backend, progress: Progress | None = None) -> list[Any]:
    """The tasks' results, in threads of this process."""
    import dask
    from dask.callbacks import Callback

    finals = {task.key for task in tasks}

    def finished(key: Any, *_: Any) -> None:
        if progress is not None:
            progress.advance(key in finals)

    threads = {"num_workers": GPU_THREADS} if backend.on_gpu else {}
    with Callback(posttask=finished):
        return list(dask.compute(*tasks, scheduler="threads", **threads))


def _too_short(store: EventStore, client: str, config: Config, as_of: int) -> str:
    first, last = store.bounds(client)
    days = max(min(last, as_of) - first, 0) / 86_400e6
    split = config.split
    needed = split.validation + split.holdout + 3 * config.horizon + config.lateness
    return (
        f"client {client!r} has no decision point to train on: its events before as_of "
        f"({np.datetime64(as_of, 'us')} UTC) span {days:.1f} days, and validation, hold-out, three horizons and the "
        f"lateness take {format_duration(needed)} of them; shorten split.validation, split.holdout or "
        "outcomes.*.within, set a later as_of, or add history"
    )


# -- in chunks ---------------------------------------------------------------------------------------------------------


class _Kept:
    """What stays of all chunks: validation, hold-out, and a sample of the training rows.

    Args:
        room: rows that may stay; where there are more, every second, third, ... of each chunk does.
    """

    def __init__(self, count: int, room: int) -> None:
        self.count, self.room, self.every = count, room, 0
        self.tables: dict[int, FeatureTable] = {}

    def add(self, i: int, tables: list[FeatureTable]) -> None:
        table = features.concat(tables)
        if not self.every:  # chunks are alike, being random shares of the subscribers
            self.every = max(math.ceil(len(table) * self.count / self.room), 1)
        self.tables[i] = table.take(backend_of(table.X).xp.arange(0, len(table), self.every))

    def table(self) -> FeatureTable:
        return features.concat([self.tables[i] for i in sorted(self.tables)])


def _chunked(
    tasks: list[Any], count: int, client: str, config: Config, backend: Backend, chunk: int, recipe: Recipe
) -> TrainingData:
    """The training rows of all ranges in ``count`` chunks."""
    import dask

    from pipeline.learning import rows as training
    from pipeline.learning.chunks import Chunks, survey
    from pipeline.learning.models import heads_of

    bounds = [len(tasks) * i // count for i in range(count + 1)]
    kept, points = _Kept(count, chunk), dict[int, int]()
    share = min(SAMPLE, chunk // 4) / (chunk * count)

    def each(i: int, what: Any, progress: Progress | None = None) -> list[Any]:
        parts = [dask.delayed(what, pure=False)(task) for task in tasks[bounds[i] : bounds[i + 1]]]
        return compute(parts, backend, progress)

    def first(i: int) -> Rows:
        """Chunk i, and what stays of it."""
        rows, tables, sizes = zip(*each(i, partial(_both, share=share), progress), strict=True)
        kept.add(i, list(tables))
        points[i] = sum(sizes)
        return training.concat(rows)

    def again(i: int) -> Rows:
        return training.concat(each(i, _training_rows))

    with Progress(f"features {client}", len(tasks), "key ranges") as progress:
        found = survey(Chunks(count, first), heads_of(config), config.model.minimum_positives)
    note = f"trained in {count} chunks of at most {max(found.sizes):,} rows"
    if kept.every > 1:
        note += f"; one in {kept.every} of the other decision points is looked at"
    return TrainingData(kept.table(), sum(points.values()), found.rows, recipe, Chunks(count, again), found, note)


def _training_rows(table: FeatureTable) -> Rows:
    from pipeline.learning import rows as training

    return training.concat([training.select(table, TRAIN)])


def _both(table: FeatureTable, share: float) -> tuple[Rows, FeatureTable, int]:
    """A range's training rows; its other rows and a share of the training rows; and how many rows it has."""
    return _training_rows(table), table.take(_staying(table, share)), len(table)


def _staying(table: FeatureTable, share: float) -> Array:
    xp = backend_of(table.X).xp
    stays = table.split != TRAIN
    training = xp.flatnonzero(~stays)
    stays[training[:: max(round(1 / share), 1)]] = True
    return xp.flatnonzero(stays & (table.split >= 0))
