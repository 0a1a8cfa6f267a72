"""Work done by several fresh processes together, from the one that wants it done: started, watched over, started again.

Where a member dies, the others miss it within seconds; all are stopped, and all start again. The work is to go on from
what it has kept, see ``checkpoint.py``.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

from pipeline import errors
from pipeline.errors import ModelError
from pipeline.learning.attend import Outcome
from pipeline.learning.hosts import Hosts

RESTARTS = 3  # of a whole group
GRACE = 15.0  # seconds for the others to say what they have to say, once one has failed
LOOK = 0.1  # seconds
# Which of several failures is the cause: those that miss another one are not.
CAUSES = ("error", "failed", "died", "silent", "lost")


def launch(work: Callable[[Any, Any], Any], size: int, hosts: Hosts, progress: Any, warn: Callable[[str], None]) -> Any:
    """What ``work`` returns in the first of ``size`` processes.

    Args:
        work: called with the :class:`pipeline.learning.group.Group`, and a Progress in the first member, else None. It
            can be pickled, and goes on from where it was when it is called again.
        progress: to advance by what the first member reports. warn: told of a start after a failure.
    Raises:
        EventgrainError: what a member raised; ModelError: they failed more than RESTARTS times.
    """

    def tell(kind: str, what: Any) -> None:
        if progress is not None:
            progress.advance(*what) if kind == "advance" else progress.skip(what)

    data = pickle.dumps(work)
    for turn in range(RESTARTS + 1):
        outcomes = _attempt(data, size, hosts, tell)
        if done := [o.value for o in outcomes if o.rank == 0 and o.kind == "result"]:
            return done[0]
        cause = min((o for o in outcomes if o.kind in CAUSES), key=lambda o: CAUSES.index(o.kind))
        if cause.kind == "error":
            name, message = cause.value
            raise getattr(errors, name, ModelError)(message)
        if cause.kind == "failed":
            raise RuntimeError(f"device {cause.rank + 1} of {size} failed:\n{cause.value}")
        what = f"device {cause.rank + 1} of {size} {cause.value}"
        if turn < RESTARTS:
            warn(f"{what}: all start again from the last checkpoint ({turn + 1} of {RESTARTS})")
    raise ModelError(
        f"training on {size} devices failed {RESTARTS + 1} times; at last {what}. Look at that machine's memory and "
        "connections, or set model.devices lower; the checkpoint is kept"
    )


def _attempt(work: bytes, size: int, hosts: Hosts, tell: Callable[[str, Any], None]) -> list[Outcome]:
    """All members, from their start until the first one has a result or all have ended; in the order they ended."""
    running = hosts.start(hosts.places(size), work, tell)
    ended: dict[int, Outcome] = {}
    limit = None
    try:
        while len(ended) < size and (limit is None or time.monotonic() < limit):
            for rank, future in enumerate(running):
                if rank not in ended and future.done():
                    ended[rank] = _outcome(rank, future)
                elif rank not in ended and hosts.gone(rank):
                    ended[rank] = Outcome(rank, "died", "is gone with its Dask worker")
            if 0 in ended and ended[0].kind == "result":
                break
            if limit is None and any(outcome.kind != "result" for outcome in ended.values()):
                limit = time.monotonic() + GRACE
            time.sleep(LOOK)
    finally:
        hosts.stop()
    return list(ended.values())


def _outcome(rank: int, future: Any) -> Outcome:
    try:
        found: Outcome = future.result()
        return found
    except Exception as error:  # of the one who attended it, a Dask worker that was lost for one
        return Outcome(rank, "died", f"is gone: {type(error).__name__}: {errors.first_line(error)}")
