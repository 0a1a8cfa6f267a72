"""Jobs that train: one at a time on each worker process of the cluster, or one after the other here where it has none.

    workers = Workers(cluster.client)
    workers.add("acme", train, arguments)
    for job, result in workers.results():   # in whatever order they end; more may be added meanwhile
        ...

A process that trains takes all of its machine's share, so the driver sends a worker its next job when it is free and
does not let Dask queue several. A job goes where the last one of its ``home`` ran, if that worker is free: what was
read for it is there. Progress of a job is shown here. A job may run twice, when its worker dies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import EventgrainError
from pipeline.progress import relayed

POLL = 2.0  # seconds between two looks at whether more workers have come
TOPIC = "eventgrain-progress"


@dataclass(frozen=True)
class Job:
    """``work(*args)``, which can be pickled; ``home``: what it reads, by name; ``tag``: for whoever added it."""

    home: str
    work: Callable[..., Any]
    args: tuple[Any, ...]
    tag: Any = None


class Workers:
    """Args: client: a ``distributed.Client``; None runs jobs in this process."""

    def __init__(self, client: Any = None) -> None:
        self.client = client
        self.waiting: list[Job] = []
        self._running: dict[Any, tuple[Job, str | None]] = {}  # future -> its job and worker
        self._homes: dict[str | None, str] = {}  # worker -> what its last job read

    @property
    def at_once(self) -> int:
        """How many run side by side now."""
        return 1 if self.client is None else max(len(self.client.nthreads()), 1)

    def add(self, home: str, work: Callable[..., Any], *args: Any, tag: Any = None) -> None:
        self.waiting.append(Job(home, work, args, tag))

    def drop(self, home: str) -> int:
        """Forget the jobs of ``home`` that have not begun; how many they were."""
        left = [job for job in self.waiting if job.home != home]
        dropped, self.waiting = len(self.waiting) - len(left), left
        return dropped

    def results(self) -> Iterator[tuple[Job, Any]]:
        """Each job when it has ended, with what it returned or the exception that it raised."""
        if self.client is None:
            while self.waiting:
                job = self._take(None)
                try:
                    result = job.work(*job.args)
                except Exception as error:
                    result = error
                yield job, result
            return
        self.client.subscribe_topic(TOPIC, _show)
        try:
            yield from self._remote()
        finally:
            self.client.unsubscribe_topic(TOPIC)
            self.client.cancel(list(self._running))
            self._running.clear()

    def _remote(self) -> Iterator[tuple[Job, Any]]:
        from distributed import wait

        while self.waiting or self._running:
            self._start()
            try:
                done = wait(list(self._running), timeout=POLL, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in [f for f in self._running if f in done]:
                job, _ = self._running.pop(future)
                yield job, future.exception() or future.result()

    def _start(self) -> None:
        """Give every free worker a job. While there is none at all, Dask holds one until a worker comes."""
        busy = {worker for _, worker in self._running.values()}
        free = [worker for worker in sorted(self.client.nthreads()) if worker not in busy]
        for worker in free or ([] if self._running else [None]):
            if not self.waiting:
                return
            job = self._take(worker)
            options = {} if worker is None else {"workers": [worker], "allow_other_workers": True}
            future = self.client.submit(_at_worker, job.work, *job.args, pure=False, **options)
            self._running[future] = (job, worker)

    def _take(self, worker: str | None) -> Job:
        """The first job of what the worker read last; else of what no worker has read; else the first."""
        own, read = self._homes.get(worker), set(self._homes.values())
        ranked = sorted(self.waiting, key=lambda job: 0 if job.home == own else 2 if job.home in read else 1)
        job = ranked[0]
        self.waiting.remove(job)
        self._homes[worker] = job.home
        return job


def _at_worker(work: Callable[..., Any], *args: Any) -> Any:
    """A job in its worker. What it computes with Dask runs in threads there, not as further tasks of the cluster."""
    import dask
    from distributed import get_worker

    worker = get_worker()
    with dask.config.set(scheduler="threads"), relayed(lambda line: worker.log_event(TOPIC, line)):
        try:
            return work(*args)
        except EventgrainError as error:  # the user's to mend: Dask would write a traceback
            return error


def _show(event: tuple[float, str]) -> None:
    sys.stderr.write(f"{event[1]}\n")
    sys.stderr.flush()
