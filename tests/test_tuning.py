"""tune and train on a small log: side by side as one after the other, killed and resumed, pruned, and put to use."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from deltalake import DeltaTable

from pipeline.config import Config, load
from pipeline.errors import ConfigError, TooLittleError
from pipeline.learning import registry, tune
from pipeline.learning.study import Trial
from pipeline.run import main
from tests.learning.logs import open_log

TUNE = {
    "trials": 6,
    "batch": 2,
    "warmup": 1,
    "space": {"hidden": [[8], [16]], "batch_size": [256, 512], "learning_rate": "0.0001 to 0.1"},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration of a store of a client that can be tuned, and one that is too short."""
    return _settings(tmp_path_factory.mktemp("one"), "acme")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same of two clients that can be trained, and one that is too short."""
    return _settings(tmp_path_factory.mktemp("several"), "acme", "globex")


def _settings(folder: Path, *clients: str) -> dict[str, Any]:
    sizes = {**{client: 50 + 10 * i for i, client in enumerate(clients)}, "young": 20}
    _, config = open_log(folder, sizes, first_day={"young": 98})
    model = {**config.model.model_dump(mode="json"), "minimum_positives_own": 0, "epochs": 5, "hidden": [8]}
    tree = config.model_dump(mode="json", exclude_defaults=True)
    return {**tree, "store": config.store_uri, "model": model, "tune": TUNE, "context": {"windows": []}}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Two worker processes for all tests here."""
    from distributed import Client, LocalCluster

    from cluster.places import leave_at_once

    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": ":0"}
    with LocalCluster(**options) as local, Client(local) as client:
        yield local.scheduler_address
        leave_at_once(client)


def write(folder: Path, settings: dict[str, Any], **changed: Any) -> Path:
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({**settings, "runs": str(folder / "runs"), **changed}))
    return path


def trials(folder: Path, client: str) -> list[dict[str, Any]]:
    found = json.loads((folder / "runs" / "test" / "tune" / client / "study.json").read_text())["trials"]
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in found]


def weights(folder: Path) -> dict[str, str]:
    models = folder / "runs" / "test" / "models"
    found = {}
    for client in registry.clients(models):
        (version,) = registry.versions(models, client)
        data = (registry.version_dir(models, client, version) / "weights.npz").read_bytes()
        found[client] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def done(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where tune has run, one trial after the other."""
    folder = tmp_path_factory.mktemp("done")
    assert main(["tune", "--config", str(write(folder, settings))]) == 0
    return folder


def test_several_at_a_time_find_what_one_at_a_time_does(
    settings: dict[str, Any], done: Path, scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--config", str(write(tmp_path, settings)), "--cluster", scheduler]) == 0
    said = capsys.readouterr().out
    assert "2 at a time" in said
    assert "young: not tuned: client 'young' has no decision point to train on" in said
    assert trials(tmp_path, "acme") == trials(done, "acme")
    assert len(trials(done, "acme")) == 6
    assert "pruned" in [t["state"] for t in trials(done, "acme")]
    found = json.loads((done / "runs" / "test" / "metrics.json").read_text())["tune"]
    least = min((t for t in trials(done, "acme")), key=lambda t: t["validation"])
    assert found["acme"]["best"]["trial"] == least["number"]
    assert set(least["heads"]["open"]) == {"pr_auc", "roc_auc", "normalized_entropy"}


def test_a_killed_search_goes_on(settings: dict[str, Any], done: Path, tmp_path: Path) -> None:
    path = write(tmp_path, settings)
    command = [sys.executable, "-m", "pipeline.run", "tune", "--config", str(path)]
    study = tmp_path / "runs" / "test" / "tune" / "acme" / "study.json"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (study.exists() and len(json.loads(study.read_text())["trials"]) >= 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    kept = len(json.loads(study.read_text())["trials"])
    assert 2 <= kept < 6
    made: list[int] = []

    def counted(task: tune.Task) -> Trial:
        made.append(task.number)
        return tune.run_trial(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.tuning.run_trial", counted)
        assert main(["tune", "--config", str(path)]) == 0
        assert len(made) <= 6 - kept + 2  # and those that find that the other client is too short
        made.clear()
        assert main(["tune", "--config", str(path)]) == 0
        assert len(made) <= 2  # nothing is left but what cannot be tuned
    assert trials(tmp_path, "acme") == trials(done, "acme")


def test_clients_side_by_side_get_the_models_that_they_get_one_after_the_other(
    several: dict[str, Any], scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, where in ((one, "threads"), (two, scheduler)):
        folder.mkdir()
        assert main(["train", "--config", str(write(folder, several)), "--cluster", where]) == 0
    said = capsys.readouterr().out
    assert "3 clients, 2 side by side, each in a process of its own" in said
    assert weights(one) == weights(two)
    assert sorted(weights(one)) == ["acme", "globex"]
    for folder in (one, two):  # they began from the same network
        assert len(list((folder / "runs" / "test" / "models" / "@pretrained").iterdir())) == 1
    left = [json.loads((folder / "runs" / "test" / "metrics.json").read_text()) for folder in (one, two)]
    assert left[0]["models"] == left[1]["models"]
    assert left[0]["untrained"] == left[1]["untrained"]
    assert list(left[1]["untrained"]) == ["young"]
    assert list(left[1]["models"]) == ["acme", "globex"]


def test_an_error_of_one_client_is_named_and_the_others_are_trained(
    several: dict[str, Any], scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "test" / "models").mkdir(parents=True)
    (tmp_path / "runs" / "test" / "models" / "acme").write_text("in the way")
    assert main(["train", "--config", str(write(tmp_path, several)), "--cluster", scheduler]) == 2
    error = capsys.readouterr().err
    assert "error: cannot read the checkpoint" in error
    assert "(so client 'acme' is not trained)" in error
    assert "Traceback" not in error
    (tmp_path / "runs" / "test" / "models" / "acme").unlink()
    assert list(weights(tmp_path)) == ["globex"]


def test_train_uses_the_best_settings_when_asked(settings: dict[str, Any], done: Path) -> None:
    path = str(done / "test.yaml")
    best = json.loads((done / "runs" / "test" / "tune" / "acme" / "best.json").read_text())
    assert main(["train", "--config", path, "tune.use=true"]) == 0
    models = done / "runs" / "test" / "models"
    version = registry.current(models, "acme") or registry.versions(models, "acme")[-1]
    folder = registry.version_dir(models, "acme", version)
    used = load(folder / "config.yaml").model
    assert {name: getattr(used, name) for name in best["settings"]} == best["settings"]
    card = json.loads((folder / "card.json").read_text())
    assert card["tuned"] == best
    assert f"those of trial {best['trial']}, the best of 6 on the validation rows" in (folder / "card.md").read_text()
    # What is trained with them in full is what the trial was: the same network after the same epochs.
    trial = trials(done, "acme")[best["trial"]]
    assert card["training"]["best_epoch"] == trial["epoch"]
    assert [h["validation"] for h in card["training"]["history"]] == trial["history"]


def test_using_what_was_never_tuned_is_an_error(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(write(tmp_path, settings)), "tune.use=true"]) == 2
    assert "run `python -m pipeline.run tune` first" in capsys.readouterr().err
    assert main(["tune", "--config", str(write(tmp_path, settings)), "tune.space.units=[6]"]) == 2
    assert "tune.space.units: Input should be a multiple of 4 (found 6)" in capsys.readouterr().err


def test_a_trial_that_cannot_be_trained_is_recorded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline.events.store import EventStore
    from pipeline.learning.snapshot import Snapshot

    config = Config.model_validate(settings)
    store = EventStore(config.store_uri)
    snapshot = Snapshot.of(store, config)
    task = tune.Task(snapshot, "acme", store.last_full_day("acme", "UTC"), None, 5, {"kind": "dense"}, (), False, 0)
    wild = tune.run_trial(tune.Task(**{**task.__dict__, "settings": {"kind": "dense", "learning_rate": 1e38}}))
    assert wild.state == "failed"
    assert "the loss was not finite in epoch" in wild.reason
    assert wild.validation is None

    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.learning.train.train", full)
        assert tune.run_trial(task).reason == "out of memory: no more is free"
    small = tune.Task(**{**task.__dict__, "minimum": 10**9})
    tune.forget()
    with pytest.raises(TooLittleError, match="too few positives in training"):
        tune.run_trial(small)


def test_a_search_in_which_everything_fails_is_an_error(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(task: tune.Task) -> Trial:
        return Trial(task.number, task.settings, "failed", reason="out of memory: no more is free")

    monkeypatch.setattr("pipeline.tuning.run_trial", failing)
    assert main(["tune", "--config", str(write(tmp_path, settings)), "tune.trials=2"]) == 2
    error = capsys.readouterr()
    assert "every trial failed: out of memory" in error.out + error.err
    with pytest.raises(ConfigError):
        load(None, ["tune.rows=1"])


def test_processes_count_what_the_pooled_model_and_its_context_are_made_of(
    several: dict[str, Any], scheduler: str, tmp_path: Path
) -> None:
    small = {**several["model"], "minimum_positives_own": 1_000_000, "kind": "recurrent", "units": 4, "epochs": 1}
    changed = {"model": small, "context": {}, "sequences": {"length": 8}}
    found = []
    for name, where in (("one", "threads"), ("two", scheduler)):
        folder = tmp_path / name
        folder.mkdir()
        assert main(["decide", "--config", str(write(folder, several, **changed)), "--cluster", where]) == 0
        metrics = json.loads((folder / "runs" / "test" / "metrics.json").read_text())
        assert metrics["pooled"]["serving"]
        table = DeltaTable(str(folder / "runs" / "test" / "decisions")).to_pandas()
        order = ["client", "subscriber"]
        found.append(table.sort_values(order, ignore_index=True)[[*order, "action", "p_open"]])
    assert found[0]["p_open"].nunique() > 20
    pd.testing.assert_frame_equal(*found)
