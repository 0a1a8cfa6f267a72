"""The long version, with its figures as JSON: ``python -m tests.faults --json bench/results/faults.json``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import test_damage, test_disk, test_drift, test_kills, test_rivals
from tests.faults.victim import Victim


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to keep the figures; parts that ran before stay")
    parser.add_argument("--parts", default="kills,rivals,disk,damage,drift", help="which, separated by commas")
    parser.add_argument("--kills", type=int, default=25, help="at each fault point")
    parser.add_argument("--random", type=int, default=200, help="kills at random times")
    parser.add_argument("--mutations", type=int, default=58, help="of each kind at each place: 23 times as many in all")
    parser.add_argument("--minutes", type=float, default=60, help="no round begins after so many minutes of a part")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    found: dict[str, Any] = {}
    try:
        with Victim() as victim:
            parts: dict[str, Callable[[Path, float], Any]] = {
                "kills": lambda f, until: test_kills.measure(f, victim, options.kills, options.random, until, say),
                "rivals": lambda f, _: test_rivals.measure(f, victim, 8, 50),
                "disk": lambda f, _: test_disk.measure(f, victim, 20),
                "damage": lambda f, until: test_damage.measure(f, victim, options.mutations, until, say),
                "drift": lambda f, _: test_drift.measure(f),
            }
            for name in options.parts.split(","):
                started = time.monotonic()
                figures = parts[name](folder / name, started + 60 * options.minutes)
                found[name] = {"seconds": round(time.monotonic() - started, 1), "figures": figures}
                say(f"{name}: {found[name]['seconds']} s")
                if options.json:
                    keep(options.json, found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not options.json:
        print(json.dumps(found, indent=1))


def keep(path: Path, found: dict[str, Any]) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    cores = len(os.sched_getaffinity(0))
    machine = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"
    path.write_text(json.dumps({**before, "machine": machine, **found}, indent=1) + "\n")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
