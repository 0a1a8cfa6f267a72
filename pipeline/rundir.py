"""The run directory: what earlier stages left, what may be reused, and ``metrics.json``."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.durable import replace
from pipeline.errors import ConfigError, StoreError

TUNE = "tune"  # the folder of what tune found


@functools.cache
def code_version() -> str:
    """SHA-256 over the package's own source, so that a stage is redone when the code that made it changed."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(*parts: Any) -> str:
    """A stable hash of JSON-like values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never half of either."""
    replace(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty where there is none.

    Raises:
        StoreError: the file is not JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; mend that, or delete it: it is made anew") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): delete it and run again; it is made anew") from None
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged (no object of JSON): delete it and run again; it is made anew")
    return found


class PeakMemory:
    """The process's peak resident memory while the context lasts, bytes in ``.bytes``.

    Linux can reset its high-water mark; where that is refused the peak since the process began is reported.
    """

    bytes = 0

    def __enter__(self) -> PeakMemory:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        import resource

        self.bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text().splitlines()
            self.bytes = int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


class RunDirectory:
    """One run's folder. Stage results live in ``stages/<name>.json`` beside the key they were made under."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.run_dir
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def locked(self, wait: Callable[[Path], None] | None = None) -> Iterator[RunDirectory]:
        """Hold the folder for this process.

        Args:
            wait: called before waiting for another process that runs in it; None does not wait.
        Raises:
            ConfigError: another process is running in it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a")
        except OSError as error:
            raise ConfigError(f"cannot write the run directory {self.path}: {error.strerror}; set runs=DIR") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise ConfigError(
                        f"another process is running in {self.path}: wait for it, or give this run another name=..."
                    ) from None
                wait(self.path)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield self

    def begin(self, facts: dict[str, Any]) -> None:
        """Keep the resolved configuration, and what this invocation runs on, for ``metrics.json`` and the report."""
        write_atomic(self.path / "config.yaml", self.config.dump())
        write_atomic(self.path / "environment.json", json.dumps(facts, indent=1))

    def earlier(self, stage: str, key: str) -> dict[str, Any] | None:
        """What ``stage`` left under the same key, or None when it must run."""
        record = self._record(stage)
        return dict(record["result"]) if record.get("key") == key else None

    def result(self, stage: str) -> dict[str, Any]:
        """What ``stage`` last left, whatever its key."""
        return dict(self._record(stage).get("result", {}))

    def timing(self, stage: str) -> dict[str, Any]:
        return dict(self._record(stage).get("timing", {}))

    def _record(self, stage: str) -> dict[str, Any]:
        path = self._file(stage)
        record = read_json(path)
        if record and not all(isinstance(record.get(part), dict) for part in ("result", "timing")):
            raise StoreError(f"{path} is damaged (no result and timing): delete it and run again; it is made anew")
        return record

    def record(self, stage: str, key: str, result: dict[str, Any], timing: dict[str, Any]) -> None:
        """Keep a finished stage's result, then bring ``metrics.json`` up to date."""
        payload = {"key": key, "finished": time.time(), "timing": timing, "result": result}
        write_atomic(self._file(stage), json.dumps(payload, indent=1, allow_nan=False))
        write_atomic(self.path / "metrics.json", json.dumps(self.metrics(), indent=1, allow_nan=False))

    def metrics(self) -> dict[str, Any]:
        """Everything measured in this run, in the shape that ``metrics.json`` promises."""
        stages = sorted((p.stem for p in (self.path / "stages").glob("*.json")), key=_order)
        ingest, audit, train = (self.result(stage) for stage in ("ingest", "audit", "train"))
        return {
            "events": ingest.get("events", {}),
            "stages": {stage: self.timing(stage) for stage in stages},
            "models": train.get("models", {}),
            "untrained": train.get("untrained", {}),
            "gate": train.get("gate", {}),
            "serving": train.get("serving", {}),
            "pooled": train.get("pooled", {}),
            "tune": self.result("tune").get("clients", {}),
            "decisions": self.result("decide").get("clients", {}),
            "rules": ingest.get("rules", []),
            "dirt": audit.get("dirt", {}),
            "humans": audit.get("humans", {}),
            "bad_files": ingest.get("bad_files", []),
            "run": read_json(self.path / "environment.json"),
        }

    def _file(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"


STAGES = ("simulate", "ingest", "audit", "rollup", "tune", "train", "decide", "report")


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)
