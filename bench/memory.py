"""Memory around a measurement: kept warm for every engine alike, and the peak of a process tree.

A virtual machine may give freed memory back to its host within seconds, and fetching it again costs up to two seconds
a gigabyte: whoever runs first pays for all who follow. So a keeper holds as much memory as the hungriest engine needs,
touched, until the clock starts. What it lets go of then is what the kernel hands out first. (Let go of piece by piece,
as an engine grows, it mixes with pages that the host has taken: measured, half of what is asked for was cold.)
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * mmap.PAGESIZE
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


class Keeper:
    """``size`` bytes that are touched before each measurement and let go of as its clock starts; see the module."""

    def __init__(self, size: int) -> None:
        self.size = max(size, mmap.PAGESIZE)
        self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)

    def hold(self) -> None:
        """Take everything and touch it."""
        np.frombuffer(self._map, dtype=np.uint8)[:: mmap.PAGESIZE] = 1

    def release(self) -> None:
        """Let go of everything at once."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._map.close()
