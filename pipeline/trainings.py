"""The trainings of all clients: side by side where the cluster has processes for them, else one after the other.

Side by side each client has a worker process of its own, which reads the client's rows itself and writes the version
that it trains: what is registered is what would be, one after the other. Clients of the pooled model follow, in this
process, since they share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline import extensions
from pipeline.errors import ConfigError, EventgrainError, ModelError, TooLittleError
from pipeline.learning.pretraining import pretrain, settings_of
from pipeline.learning.snapshot import Snapshot, Training
from pipeline.progress import say
from pipeline.rundir import TUNE

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.learning.client import ClientModel
    from pipeline.learning.pooled import Pool
    from pipeline.stages import Context


def trainings(context: Context, pool: Pool | None) -> Iterator[tuple[str, ClientModel | Exception]]:
    """Each client with its model, or what stood in the way of it: in order, or as they end."""
    wanted = _begun(context, pool, [_training(context, client) for client in context.store.clients()])
    if _apart(context):
        yield from _side_by_side(context, pool, wanted)
        return
    for training in wanted:
        yield training.client, _here(context, pool, training)


def _apart(context: Context) -> bool:
    """Whether clients have processes of their own. A model that several devices train takes the workers itself."""
    if context.cluster is None or context.cluster.client is None or len(context.store.clients()) < 2:
        return False
    return context.config.model.devices == 1 and extensions.from_files()


def _settings(context: Context, client: str) -> tuple[Config, Mapping[str, Any] | None]:
    """A client's configuration, with what tune found for it where that is asked for; and what that was.

    Raises:
        ConfigError: it is asked for, and no client was ever tuned.
    """
    from pipeline.learning.study import best_of, tuned

    if not context.config.tune.use:
        return context.config, None
    best = best_of(context.run.path / TUNE, client)
    if best is not None:
        return tuned(context.config, best), best
    if not any(best_of(context.run.path / TUNE, other) for other in context.store.clients()):
        raise ConfigError(
            f"tune.use is true, and nothing was tuned in {context.run.path}: run `python -m pipeline.run tune` first"
        )
    say(f"          {client}: never tuned, so trained as configured")
    return context.config, None


def _training(context: Context, client: str) -> Training:
    config, tuned = _settings(context, client)
    models, rollups = context.run.path / "models", context.run.path / "rollups"
    return Training(Snapshot.of(context.store, config), client, context.as_of(client), models, rollups, tuned)


def _begun(context: Context, pool: Pool | None, wanted: list[Training]) -> list[Training]:
    """The trainings with what they begin from, which learns from the clients that are to have models of their own.

    With settings that tune found, a training begins from fresh weights, as the trial did that it is to repeat.
    """
    own = [training for training in wanted if pool is None or not pool.wanted(training.client)]
    if settings_of(context.config) is None or all(training.tuned for training in own):
        return wanted
    if not _apart(context):
        found: Any = pretrain(own, context.config)
    else:
        from cluster.workers import Workers

        workers = Workers(context.cluster.client)
        workers.add("all clients", pretrain, [training.absolute() for training in own], context.config)
        ((_, found),) = workers.results()
        if isinstance(found, Exception):
            raise _died(found)
    return [training if training.tuned else replace(training, pretrained=found) for training in wanted]


def _here(context: Context, pool: Pool | None, training: Training) -> ClientModel | EventgrainError:
    from pipeline.learning.client import train_client

    try:
        return train_client(training, pool, None if context.cluster is None else context.cluster.client)
    except EventgrainError as error:
        return error


# -- side by side ------------------------------------------------------------------------------------------------------


def _side_by_side(
    context: Context, pool: Pool | None, wanted: list[Training]
) -> Iterator[tuple[str, ClientModel | Exception]]:
    from cluster.workers import Workers
    from pipeline.learning.client import TooFewError, or_pooled, own_model

    workers, pooling = Workers(context.cluster.client), pool is not None
    later: list[Training] = []
    refused: dict[str, ClientModel] = {}
    for training in wanted:
        if pool is not None and pool.wanted(training.client):
            later.append(training)
        else:
            workers.add(training.client, own_model, training.absolute(), None, pooling, tag=training)
    if workers.waiting:
        number = min(len(workers.waiting), workers.at_once)
        say(f"          {len(workers.waiting):,} clients, {number} side by side, each in a process of its own")
    for job, result in workers.results():
        if pool is not None and isinstance(result, TooFewError | TooLittleError):
            later.append(job.tag)
        elif pool is not None and not isinstance(result, Exception) and result.serving is None:
            refused[job.home] = result
        else:
            yield job.home, _died(result)
    for client, own in refused.items():
        assert pool is not None
        try:
            yield client, or_pooled(own, pool, client)
        except EventgrainError as error:
            yield client, error
    for training in later:
        yield training.client, _here(context, pool, training)


def _died(result: Any) -> Any:
    """A process that is gone, in words."""
    from distributed.scheduler import KilledWorker

    if not isinstance(result, KilledWorker):
        return result
    return ModelError(
        "the process that trained it died, several times, probably for want of memory: use fewer workers with more "
        "memory each, a smaller model.chunk, or cluster=threads, where clients are trained one after the other"
    )
