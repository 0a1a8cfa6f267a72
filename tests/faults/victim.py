"""A process to kill, starve and feed with damaged files: it forks a child for each task, as a start is slow.

The parent loads what is slow once (imports, compiled code) and never opens a store, since the Delta library's threads
do not survive a fork. Tasks are the functions below; a child ends as the command line does: 0, or 2 with a message.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def ingest(settings: dict[str, Any], passed: bool = False) -> None:
    """Ingest and print the run's line; with ``passed`` also how often each fault point was passed, as JSON."""
    from pipeline.backend import PANDAS
    from pipeline.config import Config
    from pipeline.events import files
    from pipeline.events.ingest import ingest as work

    options = {k: settings.pop(k) for k in ("compaction", "workers") if k in settings}
    report = work(Config.model_validate(settings), PANDAS, **options)
    print(report.line())
    for bad in report.bad_files:
        print("bad file:", bad["file"], bad["error"])
    if passed:
        print(json.dumps(files._seen))


def compact(uri: str) -> None:
    from pipeline.events.compaction import compact_closed

    print(json.dumps(compact_closed(uri)))


def clean(settings: dict[str, Any], passed: bool = False) -> None:
    """The command ``clean``, with the passings of fault points as for ingest."""
    from pipeline.config import Config
    from pipeline.events import files
    from pipeline.upkeep import clean as work

    work(Config.model_validate(settings))
    if passed:
        print(json.dumps(files._seen))


def command(argv: list[str]) -> int:
    """The command line itself."""
    from pipeline.run import main

    return main(argv)


def vanishing(argv: list[str], file: str, before: str) -> int:
    """The command line, and a file that is gone just before the ingest's function of that name is first called."""
    import pipeline.events.ingest as module

    work = getattr(module, before)

    def then(*arguments: Any) -> Any:
        Path(file).unlink(missing_ok=True)
        return work(*arguments)

    setattr(module, before, then)
    return command(argv)


def read(uri: str, out: str) -> None:
    """Every client's rows, all columns, pickled."""
    from tests.faults.check import rows_of

    Path(out).write_bytes(pickle.dumps(rows_of(uri)))


def verify(uri: str) -> None:
    from pipeline.events.store import EventStore

    EventStore(uri).verify()


TASKS = {f.__name__: f for f in (ingest, compact, clean, command, vanishing, read, verify)}


@dataclass
class Ended:
    """How a task ended: the exit status (negative: the signal), what it printed, how long it took."""

    code: int
    text: str
    seconds: float

    @property
    def traceback(self) -> bool:
        return "Traceback" in self.text


class Victim:
    """The parent process, seen from outside. A context manager."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.faults.victim"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)

    def run(self, task: str, *, env: dict[str, str] | None = None, **arguments: Any) -> Ended:
        """One task in a child of its own. ``kill_after``: seconds; ``file_limit``: bytes; ``fault``: a point's name."""
        return self.together([self.request(task, env=env, **arguments)])[0]

    def request(
        self,
        task: str,
        *,
        fault: str = "",
        kill_after: float | None = None,
        file_limit: int | None = None,
        env: dict[str, str] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        return {
            "task": task,
            "arguments": arguments,
            "kill_after": kill_after,
            "file_limit": file_limit,
            "env": {"EVENTGRAIN_FAULT": fault, **(env or {})},
        }

    def together(self, requests: Sequence[dict[str, Any]]) -> list[Ended]:
        """Several tasks at once, each in a child of its own."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(list(requests)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the parent of the victims has died"
        return [Ended(*one) for one in json.loads(answer)]


def _child(request: dict[str, Any], output: int) -> int:
    """Run a task and return its exit status; ``output``: a pipe, which no limit on files applies to."""
    from pipeline.errors import EventgrainError

    os.environ.update(request["env"])
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        if request["file_limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        return int(TASKS[request["task"]](**request["arguments"]) or 0)  # type: ignore[operator]
    except EventgrainError as error:
        print(f"error: {error}")
        return error.exit_status
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _serve() -> None:
    import deltalake  # noqa: F401
    import numpy as np
    import pyarrow as pa

    import pipeline.events.compaction
    import pipeline.events.ingest
    import pipeline.upkeep  # noqa: F401
    import tests.events.logs  # noqa: F401
    from pipeline.backend import PANDAS
    from pipeline.events import compiled
    from pipeline.events.hashing import hash_ids
    from pipeline.events.sorting import merge_order, sort_order

    compiled.warm_up()
    key = hash_ids(pa.array(["a", "b"]).cast(pa.large_string()), PANDAS)
    sort_order(key, key, PANDAS)
    merge_order(np.sort(key), key, [0, 1, 2], PANDAS)
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            started = time.perf_counter()
            ours, theirs = os.pipe()
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 1 << 20)
            pid = os.fork()
            if pid == 0:
                os.close(ours)
                os._exit(_child(request, theirs))
            os.close(theirs)
            children.append((pid, ours, started, request))
        print(json.dumps([_wait(*child) for child in children]), flush=True)


def _wait(pid: int, output: int, started: float, request: dict[str, Any]) -> tuple[int, str, float]:
    """A child's exit status, output and seconds."""
    if request["kill_after"] is not None:
        time.sleep(max(0.0, request["kill_after"] - (time.perf_counter() - started)))
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
    with open(output, errors="replace") as text:
        printed = text.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, printed, time.perf_counter() - started


if __name__ == "__main__":
    _serve()
