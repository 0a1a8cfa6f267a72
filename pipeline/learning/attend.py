"""One member from the outside: its process is started, listened to and ended, and what came of it is told.

No wait is without a limit: a member that does not join, or gives no sign of life, is killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Literal

from pipeline.learning.member import Place

JOIN = 180.0  # seconds from the start until all have joined: each imports TensorFlow first
SILENCE = 60.0  # seconds without a sign of life
LISTEN = 0.5  # seconds between two looks whether to stop
MEMBER = "pipeline.learning.member"

Kind = Literal["result", "error", "failed", "died", "lost", "silent", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How a member ended.

    ``result``: ``value`` is the work's, from the first member; the others stay until they are stopped. ``error``: one
    for the user; ``value`` is its class and message. ``failed``: with a traceback. ``died``, ``silent``: without a
    word; ``value`` says how. ``lost``: because it missed another one. ``stopped``: as asked.
    """

    rank: int
    kind: Kind
    value: Any = None


def attend(place: Place, work: bytes, stop: Callable[[], bool], tell: Callable[[str, Any], None]) -> Outcome:
    """Run a member to its end.

    Args:
        work: pickled; what :func:`pipeline.learning.launch.launch` was given. stop: whether to end it now.
        tell: called with what it says of its progress: ("advance", (amount, note)) or ("skip", amount).
    """
    ours, theirs = Pipe()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", MEMBER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=_environment(place),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        theirs.close()
        try:
            threading.Thread(target=_hand_over, args=(ours, place, work), daemon=True).start()
            return _follow(place, ours, process, said, stop, tell)
        finally:
            process.kill()
            process.wait()
            ours.close()


def _environment(place: Place) -> dict[str, str]:
    """What a member may import is what this process may; it sees one GPU, and goes through no proxy to the others."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, str(Path.cwd())]))}
    env["no_grpc_proxy"] = ",".join(address.rpartition(":")[0] for address in place.addresses)
    if place.gpu is not None:
        visible = [d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip()]
        env["CUDA_VISIBLE_DEVICES"] = visible[place.gpu] if visible else str(place.gpu)
    return env


def _hand_over(link: Connection, place: Place, work: bytes) -> None:
    try:
        link.send(place)
        link.send_bytes(work)
    except OSError:
        pass  # it died, which is noticed elsewhere


def _follow(
    place: Place,
    link: Connection,
    process: subprocess.Popen[bytes],
    said: IO[bytes],
    stop: Callable[[], bool],
    tell: Callable[[str, Any], None],
) -> Outcome:
    started = heard = time.monotonic()
    joined = False
    while True:
        if stop():
            return Outcome(place.rank, "stopped")
        now = time.monotonic()
        if now - heard > SILENCE:
            return Outcome(place.rank, "silent", f"gave no sign of life for {SILENCE:.0f} s")
        if not joined and now - started > JOIN:
            return Outcome(place.rank, "silent", f"did not find the others at {', '.join(place.addresses)}")
        if not link.poll(LISTEN):
            continue
        try:
            kind, what = link.recv()
        except (EOFError, OSError):
            return Outcome(place.rank, "died", _how(process, said))
        heard = now
        if kind in ("advance", "skip"):
            tell(kind, what)
        elif kind == "joined":
            joined = True
        elif kind != "alive" and not (kind == "result" and place.rank):
            return Outcome(place.rank, kind, what)


def _how(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    """How a process ended, and the last of what it said."""
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        how = f"was killed by {name}{hint}"
    else:
        how = f"ended with exit status {code}"
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    lines = [line for line in lines if line.strip() and not re.match(r"[IW]\d{4} ", line)]  # TensorFlow's small talk
    return f"{how}; it said: {lines[-1][:300]}" if lines else how
