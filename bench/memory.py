"""Memory around a measurement: kept warm for every engine alike, and the peak of a process tree.

A virtual machine may give freed memory back to its host within seconds, and fetching it again costs up to two seconds
a gigabyte: whoever runs first pays for all who follow. So a process of its own, the keeper, holds as much memory as
the hungriest engine needs, touched, and lets go of it only as fast as the engine on the clock grows. What an engine
asks for has therefore always just been in use, and after it ends the keeper takes it back at once.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

CHUNK = 1 << 26  # bytes that the keeper takes or releases at a time
LEAD = 1 << 28  # bytes released before the engine asks for them
EVERY = 0.005  # seconds between two looks at the engine
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


class Tree:
    """A process and all below it, looked up again twice a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self._pids, self._looked = pid, [pid], -1.0

    def pids(self) -> list[int]:
        now = time.monotonic()
        if now - self._looked > 0.5:
            try:
                below = psutil.Process(self.pid).children(recursive=True)
            except psutil.Error:
                below = []
            self._pids, self._looked = [self.pid, *(p.pid for p in below)], now
        return self._pids

    def resident_bytes(self) -> int:
        """The sum over the processes; pages that they share count in each."""
        return sum(resident_bytes(pid) for pid in self.pids())

    def cpu_seconds(self) -> float:
        """Processor time of the living processes and of their ended children."""
        total = 0.0
        for pid in self.pids():
            try:
                total += sum(psutil.Process(pid).cpu_times()[:4])
            except psutil.Error:
                continue
        return total

    def kill(self) -> None:
        """End every process of the tree, each by its own number."""
        try:
            root = psutil.Process(self.pid)
            found = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue


class Peak:
    """The largest resident memory of this process's tree while in force: looked at every 20 ms, in a thread.

    Of this process itself the kernel's own high-water mark counts where it is larger, so that no spike is missed.
    """

    def __enter__(self) -> Peak:
        self.bytes, self._done, self._tree = 0, threading.Event(), Tree(os.getpid())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, self._tree.resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
        self.bytes = max(self.bytes, self._tree.resident_bytes(), own)


# -- the keeper ------------------------------------------------------------------------------------------------------


class Keeper:
    """Holds ``size`` bytes between measurements; see the module. ``size`` 0 holds nothing."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._process: subprocess.Popen[str] | None = None
        if size >= CHUNK:
            command = [sys.executable, "-m", "bench.memory", str(size)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _tell(self, text: str) -> str:
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            return ""
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def hold(self) -> None:
        """Take everything back and touch it; returns when it is held."""
        self._tell("hold")

    def follow(self, pid: int) -> None:
        """From now on release what the tree of ``pid`` takes."""
        self._tell(f"follow {pid}")

    def close(self) -> None:
        if self._process is not None:
            with self._process as process:  # which closes its pipes and waits
                process.kill()
            self._process = None


class _Memory:
    """The keeper's own process: so many chunks, of which the first ``held`` are touched."""

    def __init__(self, size: int) -> None:
        self.chunks, self.held = size // CHUNK, 0
        self.map = mmap.mmap(-1, self.chunks * CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.map.madvise(mmap.MADV_HUGEPAGE)

    def hold(self) -> None:
        for at in range(self.held * CHUNK, self.chunks * CHUNK, PAGE):
            self.map[at] = 1
        self.held = self.chunks

    def follow(self, pid: int, done: threading.Event) -> None:
        """Let go of chunks from the end so that what is gone exceeds by LEAD what the tree has taken."""
        tree = Tree(pid)
        began = tree.resident_bytes()
        while self.held and not done.is_set():
            wanted = (max(tree.resident_bytes() - began, 0) + LEAD) // CHUNK
            while self.held and self.chunks - self.held < wanted:
                self.held -= 1
                self.map.madvise(mmap.MADV_DONTNEED, self.held * CHUNK, CHUNK)
            done.wait(EVERY)


def _keep(size: int) -> None:
    """Obey ``hold`` and ``follow PID``, a line each, and answer each with a line."""
    memory, done, thread = _Memory(size), threading.Event(), None
    for line in sys.stdin:
        if thread is not None:
            done.set()
            thread.join()
        command, _, argument = line.strip().partition(" ")
        if command == "hold":
            memory.hold()
        else:
            done = threading.Event()
            thread = threading.Thread(target=memory.follow, args=(int(argument), done), daemon=True)
            thread.start()
        print("done", flush=True)


if __name__ == "__main__":
    _keep(int(sys.argv[1]))
