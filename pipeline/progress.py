"""Progress of long work: what is done, at which rate, and how long it will take."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TextIO


def say(text: str) -> None:
    """A line of the command's own output."""
    print(text, flush=True)


def _count(n: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return f"{n:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


_relay: ContextVar[Callable[[str], None] | None] = ContextVar("relay", default=None)


@contextlib.contextmanager
def relayed(send: Callable[[str], None]) -> Iterator[None]:
    """Let progress that begins in this block, in this thread, hand its lines to ``send``: it is another's terminal."""
    token = _relay.set(send)
    try:
        yield
    finally:
        _relay.reset(token)


class Progress:
    """One stage's progress line: redrawn in place on a terminal, a plain line every ten seconds elsewhere.

    Use as a context manager; ``advance`` may be called from any thread.

    Args:
        label: the stage, e.g. "ingest".
        total: how much there is to do, in ``unit``; None when unknown, then no time left is shown.
        unit: what is counted, e.g. "rows".
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "rows", stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream if stream is not None else sys.stderr
        self.send = _relay.get() if stream is None else None
        self.live = self.send is None and self.stream.isatty()
        self.done = 0
        self.note = ""
        self.restart()
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Start the clock now: what was done before, compiling say, is no part of the rate."""
        self.started = self._drawn = time.monotonic()

    def skip(self, amount: int) -> None:
        """Count what an earlier run did: it is no part of the rate either."""
        self.total = None if self.total is None else max(self.total - amount, 0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def advance(self, amount: int, note: str = "") -> None:
        """Count ``amount`` more as done."""
        with self._lock:
            self.done += amount
            self.note = note or self.note
            now = time.monotonic()
            if now - self._drawn >= (0.1 if self.live else 10.0):
                self._drawn = now
                self._draw()

    def line(self) -> str:
        seconds = max(self.seconds, 1e-9)
        rate = self.done / seconds
        text = f"{self.label}: {_count(self.done)}"
        if self.total:
            text += f" of {_count(self.total)} {self.unit} ({min(self.done / self.total, 1):.0%})"
        else:
            text += f" {self.unit}"
        text += f", {_count(rate)} {self.unit}/s" if rate >= 1 or not rate else f", {60 * rate:.2g} {self.unit}/min"
        if self.total and 0 < self.done < self.total:
            text += f", {_clock((self.total - self.done) / rate)} left"
        return text + (f"  {self.note}" if self.note else "")

    def _draw(self) -> None:
        if self.send is not None:
            self.send(self.line())
            return
        self.stream.write(f"\r\x1b[K{self.line()}" if self.live else self.line() + "\n")
        self.stream.flush()
