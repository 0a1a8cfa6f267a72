"""Where the processes that train together run: on this machine, or beside the workers of a Dask cluster.

A Dask worker is no fresh process and may be a daemon's child, so each member is a process of its own, started and
attended by a task on the worker.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from pipeline.errors import ConfigError, ModelError
from pipeline.learning.attend import Outcome, attend
from pipeline.learning.member import Place

Tell = Callable[[str, Any], None]
LOOPBACK = "127.0.0.1"
BACK = 30  # seconds for a lost Dask worker to start again, or to answer
LOOK = 1.0  # seconds between two looks at which workers there are


class Hosts(Protocol):
    """``start``: members on their places, one attempt of all; what is returned has ``done()`` and ``result()``."""

    def places(self, size: int) -> list[Place]: ...
    def start(self, places: list[Place], work: bytes, tell: Tell) -> list[Any]: ...
    def gone(self, rank: int) -> bool: ...
    def stop(self) -> None: ...


class Local:
    """This machine: threads attend the members, who talk over the loopback interface."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu, self._stop = on_gpu, threading.Event()

    def places(self, size: int) -> list[Place]:
        addresses = tuple(f"{LOOPBACK}:{port}" for port in free_ports(size))
        return [Place(rank, addresses, size, rank, rank if self.on_gpu else None) for rank in range(size)]

    def start(self, places: list[Place], work: bytes, tell: Tell) -> list[Any]:
        self._stop = threading.Event()
        threads = ThreadPoolExecutor(len(places), thread_name_prefix="member")
        found = [threads.submit(attend, place, work, self._stop.is_set, tell) for place in places]
        threads.shutdown(wait=False)
        return found

    def gone(self, rank: int) -> bool:
        return False

    def stop(self) -> None:
        self._stop.set()


class OnDask:
    """The machines of a cluster's workers: members go round the machines, and on each round its workers.

    Args:
        client: a ``distributed.Client``.
    """

    def __init__(self, client: Any, on_gpu: bool) -> None:
        self.client, self.on_gpu = client, on_gpu
        self._workers: list[str] = []
        self._name = ""
        self._tasks: list[Any] = []
        self._there: set[str] = set()
        self._looked = 0.0

    def places(self, size: int) -> list[Place]:
        """Raises ConfigError where there are no workers, or fewer than members that need a GPU each."""
        with contextlib.suppress(TimeoutError):  # a worker that died may come back
            self.client.wait_for_workers(len(set(self._workers)) or 1, timeout=BACK)
        workers = around(self.client.nthreads())
        if not workers or (self.on_gpu and len(workers) < size):
            raise ConfigError(
                f"model.devices is {size} and the cluster has {len(workers)} workers: start more, or set it lower"
            )
        self._workers = [workers[rank % len(workers)] for rank in range(size)]
        wanted = Counter(self._workers)
        ports = {worker: self._free_ports(worker, count) for worker, count in wanted.items()}
        names = [host_of(worker) for worker in self._workers]
        addresses = tuple(f"{host}:{ports[w].pop()}" for host, w in zip(names, self._workers, strict=True))
        gpu = 0 if self.on_gpu else None  # dask-cuda shows each worker its own one first
        return [Place(r, addresses, names.count(n), names[:r].count(n), gpu) for r, n in enumerate(names)]

    def start(self, places: list[Place], work: bytes, tell: Tell) -> list[Any]:
        self._looked = 0.0
        self._name = name = f"members-{uuid.uuid4().hex}"
        self.client.subscribe_topic(name, lambda event: tell(*event[1]))
        self._tasks = [
            self.client.submit(
                partial(on_worker, name=name),
                place,
                work,
                workers=[worker],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
            for place, worker in zip(places, self._workers, strict=True)
        ]
        return self._tasks

    def _free_ports(self, worker: str, count: int) -> list[int]:
        task = self.client.submit(free_ports, count, workers=[worker], allow_other_workers=False, pure=False)
        try:
            found: list[int] = task.result(timeout=BACK)
            return found
        except TimeoutError:
            raise ModelError(
                f"the Dask worker {worker} does not answer within {BACK} s: it is busy or stuck; restart it"
            ) from None

    def gone(self, rank: int) -> bool:
        if time.monotonic() - self._looked > LOOK:
            self._there, self._looked = set(self.client.nthreads()), time.monotonic()
        return self._workers[rank] not in self._there

    def stop(self) -> None:
        from distributed import Event

        Event(self._name, client=self.client).set()
        self.client.cancel(self._tasks)
        self.client.unsubscribe_topic(self._name)


def on_worker(place: Place, work: bytes, name: str) -> Outcome:
    """Attend a member from a Dask worker, until it ends or the event ``name`` is set."""
    from distributed import Event, get_worker, secede

    worker, stopping = get_worker(), Event(name)
    secede()  # two members on a worker of one thread wait for each other
    return attend(place, work, stopping.is_set, lambda kind, what: worker.log_event(name, (kind, what)))


def around(workers: Any) -> list[str]:
    """Worker addresses so that neighbours in the list are on different machines, where there are several."""
    turn: Counter[str] = Counter()
    order = []
    for worker in sorted(workers):
        host = host_of(worker)
        order.append((turn[host], host, worker))
        turn[host] += 1
    return [worker for _, _, worker in sorted(order)]


def host_of(address: str) -> str:
    """The machine in a worker's address, as in tls://10.0.0.3:4711."""
    return address.rpartition("://")[2].rpartition(":")[0]


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
