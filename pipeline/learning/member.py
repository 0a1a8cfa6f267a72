"""python -m pipeline.learning.member FD: one of the processes that train together, fresh, as TensorFlow wants it.

Whoever started it (``launch.py``) holds the other end of the socket: sends the place and the work, and hears that it
lives, how far it is, and what came of it. When nobody is there any more, it ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

BEAT = 2.0  # seconds between two signs of life


@dataclass(frozen=True)
class Place:
    """Where a member is among the others.

    ``addresses``: ``host:port`` of all, by rank. ``neighbours``: members on this machine, of which it is number
    ``number``. ``gpu``: which of the GPUs that its starter sees; None on CPUs.
    """

    rank: int
    addresses: tuple[str, ...]
    neighbours: int
    number: int
    gpu: int | None


class Starter:
    """The one who started this process. Also serves as a Progress."""

    def __init__(self, link: Connection) -> None:
        self.link, self.lock = link, threading.Lock()

    def tell(self, kind: str, what: Any = None) -> None:
        """Send; end this process where nobody listens."""
        try:
            with self.lock:
                self.link.send((kind, what))
        except OSError:
            os._exit(1)

    def beat(self) -> None:
        """Say every now and then that this process lives."""
        while True:
            self.tell("alive")
            threading.Event().wait(BEAT)

    def wait(self) -> None:
        """Stay until the starter ends this process: another member may still be fetching its part of the last sum."""
        with contextlib.suppress(OSError, EOFError):
            self.link.recv()
        os._exit(0)  # TensorFlow's own farewell waits for members that may be gone

    def advance(self, amount: int, note: str = "") -> None:
        self.tell("advance", (amount, note))

    def skip(self, amount: int) -> None:
        self.tell("skip", amount)


def settle(place: Place) -> None:
    """Take this member's part of the machine's cores."""
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[place.number :: place.neighbours]
        if mine:
            os.sched_setaffinity(0, mine)


def _reason(message: str) -> str:
    """What a collective operation says of its failure, without the graph it was in."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next(
        (line for line in lines if "Collective" in line and "node" not in line), lines[-1] if lines else message
    )


def main(descriptor: int) -> int:
    """Join the others, do the work, tell what came of it."""
    link = Connection(descriptor)
    starter = Starter(link)
    threading.Thread(target=starter.beat, daemon=True).start()
    place, work = link.recv(), link.recv_bytes()
    settle(place)
    from pipeline.errors import EventgrainError
    from pipeline.learning.group import Together
    from pipeline.learning.tensors import tf

    try:
        group = Together(place.rank, place.addresses, place.gpu is not None, place.neighbours)
        starter.tell("joined")
        result = pickle.loads(work)(group, starter if place.rank == 0 else None)
        starter.tell("result", result if place.rank == 0 else None)
    except EventgrainError as error:
        starter.tell("error", (type(error).__name__, str(error)))
    except tf.errors.OpError as error:  # of a collective operation: another member is gone
        starter.tell("lost", f"lost the others: {_reason(error.message)}")
    except Exception:
        starter.tell("failed", traceback.format_exc())
    starter.wait()
    return 0


if __name__ == "__main__":
    # Under its own name, so that Place is the class that was pickled.
    from pipeline.learning import member

    raise SystemExit(member.main(int(sys.argv[1])))
