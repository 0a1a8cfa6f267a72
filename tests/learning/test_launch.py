"""Two processes train what one would have trained, whatever happens to them."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.backend import PANDAS, choose
from pipeline.errors import ConfigError, ModelError
from pipeline.learning import launch as launching
from pipeline.learning.group import ALONE
from pipeline.learning.hosts import Local, OnDask, around
from pipeline.learning.launch import launch
from tests.conftest import GPU_PROBLEM
from tests.learning import together
from tests.learning.data import log_loss, planted

UNEVEN = (900, 3_100)
GPUS = 0 if GPU_PROBLEM else choose("gpu").xp.cuda.runtime.getDeviceCount()


@pytest.fixture(scope="module")
def alone() -> Any:
    return together.SameBatches()(ALONE, None)


@pytest.fixture(scope="module")
def on_dask() -> Any:
    """What two members beside Dask workers came to."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(ConfigError, match=r"model\.devices is 3 and the cluster has 2 workers"):
            OnDask(client, on_gpu=True).places(3)
        return launch(together.OneAfterTheOther(UNEVEN), 2, OnDask(client, on_gpu=False), None, pytest.fail)


def test_members_hear_of_each_other(on_dask: Any) -> None:
    assert on_dask["told"] == [{"rank": 0, "more": [], "none": None}, {"rank": 1, "more": [0.1], "none": None}]
    assert on_dask["counts"].tolist() == [[1, 2]]


def test_two_processes_end_where_one_does(on_dask: Any, alone: Any) -> None:
    """With the same rows in each step: features are normalised and losses weighed by what all of them have."""
    both = on_dask["same"]
    assert both["rank"] == 0
    assert both["batch"] == alone["batch"] == together.BATCH
    assert both["best"] == alone["best"] > 0
    assert len(both["history"]) == len(alone["history"]) == together.SETTINGS.epochs
    for name in ("loss", "validation"):
        found, expected = ([epoch[name] for epoch in one["history"]] for one in (both, alone))
        np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert both["weights"].keys() == alone["weights"].keys()
    for name, weight in alone["weights"].items():
        np.testing.assert_allclose(both["weights"][name], weight, rtol=1e-4, atol=1e-5, err_msg=name)
    for found, expected in zip(both["labels"], alone["labels"], strict=True):
        log, smear, note = (found[name] for name in ("log", "smear", "note"))
        assert log == pytest.approx(expected["log"], rel=1e-9)
        assert smear == pytest.approx(expected["smear"], rel=1e-4)
        assert note == expected["note"] == ""
        for name in ("rows", "positives", "rate", "mean", "learned"):
            assert found[name] == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} GPUs, 2 needed")
def test_two_gpus_end_where_one_does() -> None:
    """The same sums by NCCL; in another order than on one, and with XLA on both sides."""
    work = together.SameBatches(on_gpu=True)
    one, both = (launch(work, size, Local(on_gpu=True), None, pytest.fail) for size in (1, 2))
    for name, weight in one["weights"].items():
        np.testing.assert_allclose(both["weights"][name], weight, rtol=1e-3, atol=1e-4, err_msg=name)


def test_members_of_uneven_rows_learn_as_much(on_dask: Any) -> None:
    """As good as one process within noise, where the random order of rows differs."""
    found, data = on_dask["uneven"], planted(PANDAS, 5_000, seed=3)
    assert found["size"] == 2
    one = together.Uneven(UNEVEN)(ALONE, None)
    base = log_loss(np.tile(data.p.mean(axis=0), (5_000, 1)), data.p)
    losses = [log_loss(each["p"], data.p) for each in (found, one)]
    assert losses[0] - losses[1] < 0.05 * (base - losses[1])


class Killer:
    """Progress that kills a member once, when the third epoch is over."""

    def __init__(self, which: int) -> None:
        self.which, self.epochs, self.skipped, self.killed = which, 0, 0, 0

    def advance(self, amount: int, note: str = "") -> None:
        self.epochs += "validation" in note
        if self.epochs == 3 and not self.killed:
            members = [p for p in psutil.Process().children() if "pipeline.learning.member" in p.cmdline()]
            self.killed = len(members)
            members[self.which].send_signal(signal.SIGKILL)

    def skip(self, amount: int) -> None:
        self.skipped += amount


def test_a_killed_process_is_missed_and_all_go_on_from_the_checkpoint(on_dask: Any, tmp_path: Path) -> None:
    """And end in the weights of those that nobody killed, bit for bit."""
    warnings: list[str] = []
    progress, work = Killer(1), together.SameBatches(tmp_path / "kept" / "unfinished")
    found, whole = launch(work, 2, Local(on_gpu=False), progress, warnings.append), on_dask["same"]
    assert progress.killed == 2
    assert progress.skipped >= 2 * together.BATCH * together.STEPS
    assert len(warnings) == 1
    assert re.match(
        r"device . of 2 was killed by SIGKILL.*start again from the last checkpoint \(1 of 3\)$", warnings[0]
    )
    assert [h["loss"] for h in found["history"]] == [h["loss"] for h in whole["history"]]
    for name, weight in whole["weights"].items():
        np.testing.assert_array_equal(found["weights"][name], weight, err_msg=name)
    assert list((tmp_path / "kept").iterdir()) == []


class Failing:
    """Hosts whose members die at once."""

    def __init__(self) -> None:
        self.attempts = self.stopped = 0

    def places(self, size: int) -> list[Any]:
        return [None] * size

    def start(self, places: list[Any], work: bytes, tell: Any) -> list[Any]:
        self.attempts += 1
        return [
            Ended(launching.Outcome(0, "lost", "UnavailableError")),
            Ended(launching.Outcome(1, "died", "was shot")),
        ]

    def gone(self, rank: int) -> bool:
        return False

    def stop(self) -> None:
        self.stopped += 1


class Ended:
    def __init__(self, outcome: launching.Outcome) -> None:
        self.outcome = outcome

    def done(self) -> bool:
        return True

    def result(self) -> launching.Outcome:
        return self.outcome


def test_it_gives_up_after_a_few_starts_and_names_the_cause() -> None:
    hosts, warnings = Failing(), list[str]()
    with pytest.raises(ModelError, match=r"failed 4 times; at last device 2 of 2 was shot"):
        launch(print, 2, hosts, None, warnings.append)
    assert hosts.attempts == hosts.stopped == 4
    assert len(warnings) == 3


def test_members_go_round_the_machines() -> None:
    workers = ["tcp://10.0.0.1:1", "tcp://10.0.0.1:2", "tls://10.0.0.2:1", "tcp://10.0.0.1:3"]
    assert around(workers) == ["tcp://10.0.0.1:1", "tls://10.0.0.2:1", "tcp://10.0.0.1:2", "tcp://10.0.0.1:3"]
