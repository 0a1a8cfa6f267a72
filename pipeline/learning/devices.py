"""How many devices train a client's model, and the model that they train together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import options
from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.learning.hosts import Hosts, Local, OnDask, host_of
from pipeline.learning.launch import launch
from pipeline.learning.share import ClientTraining
from pipeline.progress import say

if TYPE_CHECKING:
    from pipeline.learning.model import TrainedModel

ROWS_EACH = 1000  # training rows of a device at least; with fewer it would wait for the others all the time


@dataclass(frozen=True)
class Devices:
    """``count`` of them, and where they are; ``note``: for the user, where they are more than one or fewer than asked.

    On CPUs a device is a process, on GPUs a GPU with a process of its own.
    """

    count: int
    hosts: Hosts
    note: str = ""

    @classmethod
    def of(cls, config: Config, backend: Backend, cluster: Any, rows: int) -> Devices:
        """Those that train a model of so many training rows: ``model.devices``, but no fewer than ROWS_EACH each.

        ``auto`` is one per machine on CPUs, since a process uses all cores, and every GPU.

        Args:
            cluster: a ``distributed.Client``, beside whose workers they are; None: they are on this machine.
        """
        hosts: Hosts = Local(backend.on_gpu) if cluster is None else OnDask(cluster, backend.on_gpu)
        wanted = config.model.devices
        if wanted == "auto":
            workers = [] if cluster is None else list(cluster.nthreads())
            machines = len({host_of(worker) for worker in workers})
            wanted = (len(workers) or _gpus(backend)) if backend.on_gpu else machines
        count = max(1, min(wanted, rows // ROWS_EACH))
        note = f"trained on {count} device{'s' if count > 1 else ''}" if wanted > 1 else ""
        return cls(count, hosts, note + (f" of {wanted}, for {rows:,} rows" if count < wanted else ""))

    def trainer(self, work: Callable[[options.Model], ClientTraining], progress: Any) -> Any:
        """Settings, with the kind of network decided -> the trained model; None where this process is to train it.

        Args:
            work: settings -> what each device does. progress: to advance by the rows of each epoch.
        """
        return None if self.count == 1 else partial(self._train, work, progress)

    def _train(
        self, work: Callable[[options.Model], ClientTraining], progress: Any, settings: options.Model
    ) -> TrainedModel:
        from pipeline.learning.model import TrainedModel

        found = launch(work(settings), self.count, self.hosts, progress, lambda text: say(f"warning   {text}"))
        return TrainedModel.restore(*found)


def _gpus(backend: Backend) -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip()])
    return int(backend.xp.cuda.runtime.getDeviceCount())


def unfinished(models: Path, client: str) -> Path:
    """Where an unfinished training is kept, beside the versions. One of other data or settings is of no use."""
    from pipeline.learning.registry import client_dir

    return client_dir(models, client).absolute() / "unfinished"
