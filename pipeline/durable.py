"""Small local files that outlast a power cut, and are seen whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """A new file, flushed to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, data: bytes, aside: str | None = None) -> None:
    """Put new content under a name: a reader sees the old or the new one, never half of either.

    Args:
        aside: what the file is called until it is whole. By default a name that no other has; one for all is for a file
            that a single process writes: what a kill leaves of it is gone with the next write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(aside or f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
