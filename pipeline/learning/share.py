"""What each of several processes does to train one client's model together: reads its share, and trains on it.

The key ranges are cut by rows, from the store's index; each member makes the features of its ranges on its own device,
and nothing but sums crosses from one to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import extensions, options
from pipeline.backend import Backend, choose, claim_device
from pipeline.config import Config
from pipeline.errors import TooLittleError
from pipeline.events.store import EventStore
from pipeline.features import table as features
from pipeline.features.samples import TRAIN, VALIDATION
from pipeline.learning import data
from pipeline.learning.data import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.learning.chunks import Chunks, Survey
    from pipeline.learning.group import Group
    from pipeline.learning.rows import Rows
    from pipeline.learning.start import Start

FINEST = 8  # key ranges of a member at least, so that shares of rows can be cut evenly


@dataclass(frozen=True)
class ClientTraining:
    """The work of one member, see :func:`pipeline.learning.launch.launch`; made by whoever wants the model.

    ``store``, ``version``: its URI and snapshot. ``settings``: with the kind of network decided. ``checkpoint``: the
    file, in a directory that the first member sees. ``ignored``: bool[F], features that the network does not look at.
    ``start``: what the training begins from.
    """

    store: str
    version: int
    client: str
    config: Config
    recipe: Recipe
    checkpoint: Path
    on_gpu: bool
    ignored: np.ndarray
    start: Start | None
    settings: options.Model

    def __call__(self, group: Group, progress: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Train; what ``TrainedModel.restore`` takes."""
        from pipeline.learning.checkpoint import Checkpoint
        from pipeline.learning.models import heads_of
        from pipeline.learning.train import train

        extensions.load(self.config.extensions)
        backend = choose("gpu" if self.on_gpu else "cpu")
        if backend.on_gpu:
            claim_device()
        rows, valid, found = share_of(self, EventStore(self.store, backend, self.version), backend, group)
        model = train(
            rows,
            valid,
            heads_of(self.config),
            self.settings,
            progress,
            self.recipe.spec.sequences,
            checkpoint=Checkpoint(self.checkpoint, self.settings.checkpoint / options.SECOND, strict=False),
            found=found,
            ignored=self.ignored,
            start=self.start,
            group=group,
        )
        return model.describe(), model.network.weights(), model.training()


def share_of(
    work: ClientTraining, store: EventStore, backend: Backend, group: Group
) -> tuple[Rows | Chunks, Rows, Survey | None]:
    """A member's training rows, in chunks where a member's do not fit its memory; its validation rows; the survey of
    all members' training rows, where it is made already.

    Raises:
        TooLittleError: the log is too short to be cut.
    """
    from pipeline.learning.chunks import Chunks, survey
    from pipeline.learning.models import heads_of
    from pipeline.learning.rows import concat, select
    from pipeline.learning.tensors import cores

    config, recipe = work.config, work.recipe
    room = data.chunk_rows(config, backend, features.row_bytes(recipe.spec, len(config.outcomes)), group.neighbours)
    told = group.exchange([room.resident, room.chunk, data.GPU_THREADS if backend.on_gpu else cores()])
    resident, chunk = (min(each[i] for each in told) for i in (0, 1))
    points = math.ceil(data.points_of(store, work.client, config) / group.size)
    count = 1 if points <= resident else math.ceil(points / chunk)
    total = group.size * max(count * max(each[2] for each in told), FINEST)
    plan = store.plan(work.client, until=recipe.request.as_of, columns=["event"], partitions=total)
    bounds = cut([part.rows for part in plan.parts], group.size)
    tasks = features.feature_tables(store, work.client, recipe.spec, recipe.request, total, recipe.context)
    mine = tasks[bounds[group.rank] : bounds[group.rank + 1]]
    if min(b - a for a, b in pairwise(bounds)) < count:
        raise TooLittleError(f"client {work.client!r}: {group.size} devices cannot share its log; set model.devices: 1")
    if count == 1:
        table = features.concat(data.compute(mine, backend))
        return select(table, TRAIN), select(table, VALIDATION), None
    inner, kept = [len(mine) * i // count for i in range(count + 1)], {}

    def made(i: int) -> list[features.FeatureTable]:
        return data.compute(mine[inner[i] : inner[i + 1]], backend)

    def first(i: int) -> Rows:
        """Chunk i; its validation rows stay."""
        tables = made(i)
        kept[i] = concat([select(table, VALIDATION) for table in tables])
        return concat([select(table, TRAIN) for table in tables])

    def again(i: int) -> Rows:
        return concat([select(table, TRAIN) for table in made(i)])

    found = survey(Chunks(count, first), heads_of(config), config.model.minimum_positives, group)
    return Chunks(count, again), concat([kept[i] for i in sorted(kept)]), found


def cut(rows: Sequence[int], parts: int) -> list[int]:
    """Bounds of ``parts`` runs of neighbours, none empty, of about equal sums: the nearest bound to each equal share.

    Args:
        rows: of at least ``parts`` ranges, in order.
    """
    ends = [0, *accumulate(rows)]
    bounds = [0]
    for k in range(1, parts):
        allowed = range(bounds[-1] + 1, len(rows) - (parts - k) + 1)
        bounds.append(min(allowed, key=lambda i: abs(ends[i] * parts - ends[-1] * k)))
    return [*bounds, len(rows)]
