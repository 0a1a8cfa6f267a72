"""Who may work on a store at once: any number of writers, or one that deletes.

On a local disk a lock file says so, and the kernel drops the lock of a process that dies. Object stores have no locks:
what deletes there leaves young files alone (see :mod:`pipeline.events.clean`).
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.events.files import Place, explain

NAME = "_eventgrain/.lock"


@contextlib.contextmanager
def writing(place: Place) -> Iterator[None]:
    """Hold a store for writing, beside other writers; waits for one that deletes."""
    with _held(place, fcntl.LOCK_SH, None):
        yield


@contextlib.contextmanager
def deleting(place: Place, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a store alone.

    Args:
        wait: called once before waiting for the writers to finish; None does not wait.
    Raises:
        StoreError: another process is writing, and there is no ``wait``.
    """
    with _held(place, fcntl.LOCK_EX, wait, refuse=wait is None):
        yield


@contextlib.contextmanager
def _held(place: Place, kind: int, wait: Callable[[], None] | None, refuse: bool = False) -> Iterator[None]:
    if not place.local:
        yield
        return
    path = Path(place.path(NAME))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise explain(error, "lock", str(path)) from None
    with file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if refuse:
                raise StoreError(
                    f"another process is writing to the store {place.uri!r}: wait until it is done, and run again"
                ) from None
            if wait is not None:
                wait()
            fcntl.flock(file, kind)
        yield
