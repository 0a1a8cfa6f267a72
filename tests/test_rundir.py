from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import load
from pipeline.errors import ConfigError, StoreError
from pipeline.rundir import PeakMemory, RunDirectory, write_atomic


def _run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(load(None, [f"runs={tmp_path}", "name=r"]))


def test_a_stage_is_reused_only_under_its_key(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert run.earlier("train", "k1") is None
    run.record("train", "k1", {"models": {"a": {}}}, {"seconds": 1.5})
    assert run.earlier("train", "k1") == {"models": {"a": {}}}
    assert run.earlier("train", "k2") is None
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["models"] == {"a": {}}
    assert metrics["stages"] == {"train": {"seconds": 1.5}}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.record("train", "k", {}, {})
    (run.path / "stages" / "train.json").write_text('{"key": "k", ')
    with pytest.raises(StoreError, match=r"train\.json is damaged"):
        run.earlier("train", "k")


@pytest.mark.parametrize("text", ["[1, 2]", "3", '{"key": 3, "result": [1], "timing": 4}', '{"key": "k"}'])
def test_a_record_of_another_shape_is_named(tmp_path: Path, text: str) -> None:
    run = _run(tmp_path)
    run.record("train", "k", {}, {})
    (run.path / "stages" / "train.json").write_text(text)
    for read in (lambda: run.earlier("train", "k"), lambda: run.timing("train"), run.metrics):
        with pytest.raises(StoreError, match=r"train\.json is damaged"):
            read()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.config import load; from pipeline.rundir import RunDirectory\n"
        f"run = RunDirectory(load(None, ['runs={tmp_path}', 'name=r']))\n"
        "try:\n    with run.locked(): print('in')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with _run(tmp_path).locked():
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ConfigError another process is running" in other.stdout
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == "in"


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot write the run directory"),
        RunDirectory(load(None, [f"runs={tmp_path}/file"])).locked(),
    ):
        pass


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_peak_memory_is_the_peak_of_its_own_block() -> None:
    with PeakMemory() as busy:
        np.ones(200_000_000 // 8).sum()
    with PeakMemory() as quiet:
        pass
    assert busy.bytes > 200_000_000
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this kernel does not let a process reset its high-water mark")
    assert quiet.bytes < busy.bytes - 100_000_000
