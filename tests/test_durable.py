"""Files that are seen whole or not at all."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.durable import replace

ROOM = 50_000


@pytest.mark.parametrize("aside", [None, ".new"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, aside: str | None) -> None:
    path = tmp_path / "deep" / "a.json"
    replace(path, b"old", aside)
    bad: Any = "text"
    with pytest.raises(TypeError):
        replace(path, bad, aside)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    replace(path, b"new", aside)
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_what_does_not_fit_the_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace(path, b"old")
    code = "from pathlib import Path; from pipeline.durable import replace; "
    code += f"replace(Path({str(path)!r}), bytes(2 * {ROOM}))"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
