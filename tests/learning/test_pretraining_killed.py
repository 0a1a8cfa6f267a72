"""A run that is killed while it pretrains goes on from there, and ends in the network that it would have had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.backend import PANDAS
from pipeline.config import Config, load
from pipeline.events.store import EventStore
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.pretraining import Pretrained, pretrain
from pipeline.learning.snapshot import Snapshot, Training
from pipeline.learning.trainer import Trainer
from tests.learning.epochs import count_epochs
from tests.learning.logs import open_log

WHERE = Path(__file__).parents[2]


def pretrained(config: Config, models: Path) -> Pretrained:
    store = EventStore(config.store_uri, PANDAS)
    snapshot = Snapshot.of(store, config)
    found = pretrain([Training(snapshot, c, store.last_full_day(c), models) for c in store.clients()], config)
    assert found is not None
    return found


def killed(file: str, models: str, kill_at: int) -> None:
    """A pretraining that keeps every epoch's state, killed in an epoch of that number."""
    learn = Trainer.learn

    def mortal(self: Any, epoch: int, *others: Any) -> float:
        if epoch == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(self, epoch, *others)

    Trainer.learn, Checkpoint.due = mortal, lambda self: True  # type: ignore[method-assign]
    pretrained(load(file), Path(models))


def test_a_killed_pretraining_goes_on_from_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config = open_log(tmp_path, {"large": 60, "other": 40}, {"other": -2.0}, first_day={"large": 60, "other": 60})
    small = {**config.model.model_dump(), "epochs": 4, "patience": 4, "minimum_positives_own": 0}
    config = config.model_copy(update={"model": type(config.model)(**small)})
    file = tmp_path / "log.yaml"
    file.write_text(config.dump())
    place = str(tmp_path / "killed")
    code = f"from tests.learning.test_pretraining_killed import *; killed({str(file)!r}, {place!r}, 3)"
    done = subprocess.run([sys.executable, "-c", code], cwd=WHERE, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    home = tmp_path / "killed" / "@pretrained"
    assert [path.name for path in home.iterdir()] == ["unfinished"]
    learned = count_epochs(monkeypatch)
    config = load(str(file))
    resumed, whole = (pretrained(config, tmp_path / place) for place in ("killed", "whole"))
    assert learned == [3, 4, 1, 2, 3, 4]
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert [path.name for path in home.iterdir()] == [resumed.path.name]
