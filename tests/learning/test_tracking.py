"""What MLflow is told, by a stand-in that takes calls as its client does; and that its failures are none of the run."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, load
from pipeline.learning import tracking
from pipeline.learning.tracking import Tracker, flat, numbers

CARD = {
    "metrics": {"click": {"rows": 10, "roc_auc": 0.7, "pr_auc": None, "baselines": {"logistic": {"roc_auc": 0.6}}}},
    "training": {"seconds": 2.5, "history": [{"loss": 1.0}, {"loss": 0.5}]},
    "gate": {"accepted": False, "reasons": ["click: too few"]},
    "snapshot": 4,
    "as_of": "2026-10-01",
}


class Client:
    """MlflowClient's calls that are used, with its limits."""

    fail = ""

    def __init__(self, tracking_uri: str) -> None:
        CLIENTS.append(self)
        self.uri, self.experiments, self.runs = tracking_uri, {}, []  # type: ignore[var-annotated]

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        if self.fail == "connect":
            raise ConnectionError("no server there")
        self.experiments[name] = types.SimpleNamespace(experiment_id="7", location=artifact_location)
        return "7"

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        assert experiment_id == "7"
        run = types.SimpleNamespace(name=run_name, tags=tags, params={}, metrics=[], files=[], status="RUNNING")
        self.runs.append(run)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=len(self.runs) - 1))

    def log_batch(self, run_id: int, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        assert len(metrics) <= 1000
        for key, value in params:
            assert isinstance(value, str)
            self.runs[run_id].params[key] = value
        self.runs[run_id].metrics += metrics

    def log_artifact(self, run_id: int, local_path: str) -> None:
        if self.fail == "artifact":
            raise OSError("disk full")
        assert Path(local_path).is_file()
        self.runs[run_id].files.append(Path(local_path).name)

    def set_terminated(self, run_id: int, status: str) -> None:
        self.runs[run_id].status = status


CLIENTS: list[Client] = []


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    CLIENTS.clear()
    for name in (*tracking.CALM, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    client = type("Client", (Client,), {})
    module.MlflowClient = client  # type: ignore[attr-defined]
    entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, at, step: (key, value, at, step)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("card.md", "card.json", "config.yaml", "spec.json"):
        (tmp_path / name).write_text("x")
    return tmp_path


def settings(tmp_path: Path, mlflow: Any = "auto") -> Config:
    return Config.model_validate({"name": "acme", "runs": str(tmp_path / "runs"), "tracking": {"mlflow": mlflow}})


def test_a_version_is_a_run(mlflow: type[Client], folder: Path) -> None:
    said: list[str] = []
    tracker = Tracker(settings(folder), said.append)
    tracker.log("globex", "V1", folder, CARD)
    tracker.log(None, "V2", folder, {**CARD, "gate": {}})
    (client,) = CLIENTS
    home = (folder / "runs" / "acme" / "mlflow").resolve()
    assert client.uri == f"sqlite:///{home}/mlflow.db"
    assert home.is_dir()
    assert client.experiments["acme"].location == f"file://{home}/artifacts"
    first, second = client.runs
    assert (first.name, first.status, second.status) == ("V1", "FINISHED", "FINISHED")
    assert first.tags["client"] == "globex"
    assert first.tags["state"] == "refused"
    assert first.tags["refused_because"] == "click: too few"
    assert second.tags["client"] == "all clients, pooled"
    assert second.tags["state"] == "accepted"
    assert first.params["model.hidden"] == "[64, 32]"
    assert first.params["outcomes.click.within"] == "3d"
    metrics = {(key, step): value for key, value, _, step in first.metrics}
    assert metrics["click/roc_auc", 0] == 0.7
    assert metrics["click/logistic/roc_auc", 0] == 0.6
    assert metrics["seconds", 0] == 2.5
    assert metrics["epoch/loss", 2] == 0.5
    assert ("click/pr_auc", 0) not in metrics
    assert first.files == ["card.md", "card.json", "config.yaml", "spec.json"]
    assert said == []


@pytest.mark.parametrize("fail", ["connect", "artifact"])
def test_no_failure_fails_the_run(mlflow: type[Client], folder: Path, fail: str) -> None:
    mlflow.fail = fail
    said: list[str] = []
    tracker = Tracker(settings(folder), said.append)
    tracker.log("globex", "V1", folder, CARD)
    tracker.log("acme", "V1", folder, CARD)
    assert len(said) == 1  # once, and then it is silent
    assert "no server there" in said[0] or "disk full" in said[0]
    if fail == "artifact":
        assert [run.status for run in CLIENTS[0].runs] == ["FAILED"]


def test_where_it_goes(mlflow: type[Client], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    for wanted, uri in (("auto", "http://tracking:5000"), ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db")):
        Tracker(settings(folder, wanted), print).log("a", "V", folder, CARD)
        assert CLIENTS[-1].uri == uri
        assert CLIENTS[-1].experiments["acme"].location is None
    CLIENTS.clear()
    for off in ("off", False):
        Tracker(settings(folder, off), print).log("a", "V", folder, CARD)
    assert load(None, ["tracking.mlflow=off"]).tracking.mlflow == "off"
    assert CLIENTS == []
    assert not (folder / "runs").exists()


def test_without_mlflow_only_a_wish_for_it_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    for wanted in ("auto", "off", "http://tracking"):
        Tracker(settings(folder, wanted), said.append).log("a", "V", folder, CARD)
    assert said == ["tracking.mlflow is 'http://tracking', but mlflow is not installed: pip install mlflow"]


def test_names_that_it_would_refuse() -> None:
    assert flat({"outcomes": {"a|b\n": {"within": "3d"}}}) == {"outcomes.a_b_.within": "3d"}
    found = numbers({"a&b": {"x": 1, "flag": True, "none": None, "list": [1]}, "note": "text"})
    assert found == {"a_b/x": 1.0}
    assert all(math.isfinite(v) for v in numbers(json.loads(json.dumps(CARD["metrics"]))).values())
