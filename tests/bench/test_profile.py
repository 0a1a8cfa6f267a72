"""The bench's profile: each step's own CPU seconds, from functions that the workload passes."""

from __future__ import annotations

import json
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import profile


def spin(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_seconds_of_a_step_are_its_own() -> None:
    steps = profile.Steps()
    inner = steps.clocked("inner", lambda: spin(0.05))

    def both() -> str:
        spin(0.02)
        inner()
        inner()
        return "found"

    assert steps.clocked("outer", both)() == "found"
    assert steps.calls == {"inner": 2, "outer": 1}
    assert steps.seconds["inner"][0] == pytest.approx(0.10, abs=0.01)
    assert steps.seconds["outer"][0] == pytest.approx(0.02, abs=0.01)


def test_the_kernels_share_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(0, 0), (10, 1), (30, 9), (40, 11)])  # outer begins, inner begins, inner ends, outer ends
    monkeypatch.setattr(profile, "_now", lambda: np.array(next(times), dtype=float))
    steps = profile.Steps()
    inner = steps.clocked("inner", lambda: None)
    steps.clocked("outer", inner)()
    assert steps.seconds["inner"].tolist() == [20, 8]
    assert steps.seconds["outer"].tolist() == [20, 3]


def test_functions_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kind:
        @classmethod
        def made(cls) -> type:
            return cls

    module = types.SimpleNamespace(Kind=Kind, work=lambda: 1)
    monkeypatch.setattr(profile.importlib, "import_module", lambda name: module)
    before = module.work, vars(Kind)["made"]
    steps = profile.Steps()
    with steps.watching([("a", "", "m:work"), ("b", "", "m:Kind.made")]):
        assert (module.work(), Kind.made()) == (1, Kind)
    assert (module.work, vars(Kind)["made"]) == before
    assert steps.calls == {"a": 1, "b": 1}


@pytest.mark.parametrize("workload", ["rollup", "raw-to-features"])
def test_the_steps_are_passed_and_add_up(workload: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    options = ["--events", "20000", "--repeat", "1", "--data", str(tmp_path / "data"), "--json", str(path)]
    assert profile.main([workload, *options]) == 0
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["workloads"][workload]
    for name, whole in (("seconds", "cpu_seconds"), ("kernel_seconds", "kernel_seconds")):
        assert sum(s[name] for s in found["steps"]) == pytest.approx(found[whole])
    few = {"merge by key and time", "bring columns into that order"}  # of one sorted file a partition there is nothing
    assert {s["step"] for s in found["steps"] if not s.get("calls", 1)} <= few
    assert f"{workload}: " in capsys.readouterr().out
