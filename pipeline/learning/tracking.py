"""Optional tracking: each new version as a run of MLflow, where teams look for them. It never fails a run.

Without a server MLflow keeps runs in a SQLite database and their files in a folder, both in the run directory; a plain
folder of files it refuses since its version 3.13. Nothing is sent to anyone but the tracking server that is configured.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config

BATCH = 100  # parameters or metrics in one request; MLflow takes at most so many parameters
LONGEST = 6000  # characters of a parameter
# MLflow would try an unreachable server for minutes, and report its own use to its makers.
CALM = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Tracker:
    """Tells MLflow of the versions of one run of the pipeline. After its first failure it warns, and is silent.

    Args:
        warn: called with a sentence for the user.
    """

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self.config, self.warn = config, warn
        self.wanted = config.tracking.mlflow
        self._client: Any = None
        self._experiment = ""
        self.active = self.wanted != "off"
        if self.active and importlib.util.find_spec("mlflow") is None:
            self.active = False
            if self.wanted != "auto":
                warn(f"tracking.mlflow is {self.wanted!r}, but mlflow is not installed: pip install mlflow")

    def log(self, client: str | None, version: str, folder: Path, card: Mapping[str, Any]) -> None:
        """One version: parameters, metrics by head, what the gate said, and its cards as artifacts.

        Args:
            client: None for the pooled model. folder: of the version. card: as in its card.json.
        """
        if not self.active:
            return
        try:
            self._log(client, version, folder, card)
        except Exception as error:  # whatever a tracking server or its library may do
            self.active = False
            line = " ".join(str(error).split())[:300] or type(error).__name__
            self.warn(f"MLflow is not told of the models of this run: {type(error).__name__}: {line}")

    def _log(self, client: str | None, version: str, folder: Path, card: Mapping[str, Any]) -> None:
        if self._client is None:
            self._connect()
        entities = importlib.import_module("mlflow.entities")
        gate = card.get("gate") or {}
        tags = {
            "client": "all clients, pooled" if client is None else client,
            "version": version,
            "state": "accepted" if gate.get("accepted", True) else "refused",
            "refused_because": "; ".join(gate.get("reasons") or []),
            "as_of": str(card.get("as_of")),
            "snapshot": str(card.get("snapshot")),
        }
        run = self._client.create_run(
            self._experiment, run_name=version, tags={key: value for key, value in tags.items() if value}
        )
        number = run.info.run_id
        try:
            # The configuration of a version says what it was; a resolved one has every option.
            params = flat(self.config.model_dump(mode="json", include=PARAMETERS))
            for some in _batches([entities.Param(key, value[:LONGEST]) for key, value in params.items()]):
                self._client.log_batch(number, params=some)
            now = int(time.time() * 1000)
            measured = [entities.Metric(key, value, now, 0) for key, value in numbers(card["metrics"]).items()]
            training = card.get("training") or {}
            measured += [entities.Metric("seconds", float(training.get("seconds") or 0), now, 0)]
            for epoch, row in enumerate(training.get("history") or [], 1):
                measured += [entities.Metric(f"epoch/{key}", float(v), now, epoch) for key, v in row.items()]
            for some in _batches(measured):
                self._client.log_batch(number, metrics=some)
            for name in ("card.md", "card.json", "config.yaml", "spec.json"):
                self._client.log_artifact(number, str(folder / name))
        except BaseException:
            self._client.set_terminated(number, "FAILED")
            raise
        self._client.set_terminated(number, "FINISHED")

    def _connect(self) -> None:
        for name, value in CALM.items():
            os.environ.setdefault(name, value)
        mlflow = importlib.import_module("mlflow")
        home = (self.config.run_dir / "mlflow").resolve()
        uri, artifacts = self.wanted, None
        if uri == "auto":
            uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            home.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{home / 'mlflow.db'}", (home / "artifacts").as_uri()
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(self.config.name)
        self._experiment = (
            client.create_experiment(self.config.name, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        self._client = client


PARAMETERS = {"at", "windows", "features", "context", "sequences", "outcomes", "split", "model", "gate", "lateness"}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as ``section.option`` -> text."""
    found: dict[str, str] = {}
    for name, value in values.items():
        key = _key(f"{prefix}{name}")
        found |= flat(value, f"{key}.") if isinstance(value, Mapping) else {key: str(value)}
    return found


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every head's plain numbers as ``head/metric``, and those of its baselines as ``head/baseline/metric``."""
    found: dict[str, float] = {}
    for head, measured in metrics.items():
        if not isinstance(measured, Mapping):
            continue
        scorers = {"": measured, **{f"/{n}": b for n, b in (measured.get("baselines") or {}).items()}}
        for scorer, values in scorers.items():
            for key, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found[_key(f"{head}{scorer}/{key}")] = float(value)
    return found


def _key(text: str) -> str:
    """A name as MLflow takes it: letters, digits, and ``_ - . / :`` and blanks, at most 250 characters."""
    return re.sub(r"[^\w\-. /:]", "_", text)[:250]


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
