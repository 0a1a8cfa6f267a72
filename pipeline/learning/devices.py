"""How many devices train a client's model, and the model that they trained together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import options
from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.learning.data import Recipe
from pipeline.learning.hosts import Hosts, Local, OnDask, host_of
from pipeline.learning.launch import launch
from pipeline.learning.share import ClientTraining
from pipeline.progress import say

if TYPE_CHECKING:
    from pipeline.events.store import EventStore
    from pipeline.learning.model import TrainedModel

ROWS_EACH = 1000  # training rows of a device at least; with fewer it would wait for the others all the time


def count_devices(config: Config, backend: Backend, cluster: Any, rows: int) -> int:
    """How many devices train a model of so many training rows.

    On CPUs a device is a process; ``auto`` is one per machine, since one uses all cores. On GPUs it is a GPU; ``auto``
    is all of them.

    Args:
        cluster: a ``distributed.Client``, or None.
    """
    wanted = config.model.devices
    if wanted == "auto":
        workers = [] if cluster is None else list(cluster.nthreads())
        machines = len({host_of(worker) for worker in workers})
        wanted = (len(workers) or _gpus(backend)) if backend.on_gpu else machines
    return max(1, min(wanted, rows // ROWS_EACH))


def _gpus(backend: Backend) -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip()])
    return int(backend.xp.cuda.runtime.getDeviceCount())


def train_on(
    devices: int,
    store: EventStore,
    client: str,
    config: Config,
    settings: options.Model,
    recipe: Recipe,
    backend: Backend,
    models: Path,
    cluster: Any,
    progress: Any,
) -> TrainedModel:
    """A client's model, trained by so many fresh processes; the arguments are those of ``train_client``.

    Args:
        settings: with the kind of network decided. recipe: of the rows.
    Raises:
        EventgrainError: of the work; ModelError: the processes failed again and again.
    """
    from pipeline.learning.model import TrainedModel

    work = ClientTraining(
        store.uri,
        store.version(),
        client,
        config,
        settings,
        recipe,
        unfinished(models, client).absolute(),
        backend.on_gpu,
    )
    hosts: Hosts = Local(backend.on_gpu) if cluster is None else OnDask(cluster, backend.on_gpu)
    return TrainedModel.restore(*launch(work, devices, hosts, progress, lambda text: say(f"warning   {text}")))


def unfinished(models: Path, client: str) -> Path:
    """Where an unfinished training is kept, beside the versions. One of other data or settings is of no use."""
    from pipeline.learning.registry import client_dir

    return client_dir(models, client) / "unfinished"
