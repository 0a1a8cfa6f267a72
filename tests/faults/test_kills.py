"""SIGKILL at every named step of ingest and compaction, and at random times: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.events.commit import open_table
from pipeline.events.store import EventStore
from tests.events.logs import DAY, config, random_rows, write
from tests.faults.check import compare, oracle, oracle_columns, orphans, rows_of
from tests.faults.victim import ROOT, Ended, Victim

FILES, ROWS, DAYS = 4, 520, 75
KILLED = -9
CLEAN = 2  # the step after the two of the ingest


# Passed by forgetting and retention alone: killed in tests/events/test_forget.py and test_retention.py.
ELSEWHERE = {"forgotten-index", "forgotten-live", "forgotten-old", "rewritten"}
ELSEWHERE |= {"tombstone-announced", "tombstone-written"}


def points() -> list[str]:
    """Every fault point that the code of ingest, compaction and cleaning names."""
    found: set[str] = set()
    for path in (ROOT / "pipeline/events").glob("*.py"):
        found.update(re.findall(r'\bfault\("([a-z-]+)"\)', path.read_text()))
    return sorted(found - ELSEWHERE)


class Trials:
    """One log, ingested into a store of its own by each trial, in two steps: a first file, then the rest with a column
    more. It has several batches, duplicates within and across files, rejected rows and two closed months to compact.
    """

    def __init__(self, folder: Path, victim: Victim) -> None:
        self.folder, self.victim, self.count = folder, victim, 0
        rows = [
            dict(r, time=r["time"] + i * DAY * DAYS // (FILES * ROWS)) for i, r in enumerate(random_rows(FILES * ROWS))
        ]
        rows = [dict(r, arrived=r["time"] + 1_000_000 + i) for i, r in enumerate(rows)]
        for i in range(FILES):
            some = rows[i * ROWS : (i + 1) * ROWS]
            every = [*some, *some[:20], *rows[max(0, i * ROWS - 10) : i * ROWS], dict(some[0], user=None, id=-1 - i)]
            if i:
                every = [dict(r, more=r["id"]) for r in every]
            write(folder / f"raw/{i}.parquet", every, {"more": pa.int64()})
        self.wanted = oracle(rows)
        reference, place = self.fresh()
        ended = [self.step(reference, 0)]
        self.begun = folder / "begun"
        shutil.copytree(place / "store", self.begun / "store")
        shutil.copytree(Path(reference["runs"]), self.begun / "runs")
        ended.append(self.step(reference, 1))
        assert [e.code for e in ended] == [0, 0], ended
        self.seconds = [e.seconds for e in ended]
        self.whole = rows_of(reference["store"])
        assert compare(oracle_columns(self.whole), self.wanted).none
        self.stored = EventStore(reference["store"]).rows()
        assert orphans(str(place / "store"), Path(reference["runs"]) / "test") == []

    def fresh(self) -> tuple[dict[str, Any], Path]:
        """The settings of a new trial and its folder."""
        self.count += 1
        place = self.folder / f"trial-{self.count}"
        settings = config(self.folder, batch_rows=1000, store=str(place / "store")).model_dump(mode="json")
        return settings | {"runs": str(place / "runs")}, place

    def step(self, settings: dict[str, Any], step: int, **options: Any) -> Ended:
        if step == CLEAN:
            return self.victim.run("clean", settings=settings, **options)
        source = settings["source"] | {"path": str(self.folder / ("raw/[1-9].parquet" if step else "raw/0.parquet"))}
        source["carry"] = ["more"] if step else []
        return self.victim.run("ingest", settings=settings | {"source": source}, **options)

    def passings(self) -> dict[str, list[tuple[int, int]]]:
        """Fault point -> (step, n) of every passing of it."""
        found: dict[str, list[tuple[int, int]]] = {point: [] for point in points()}
        settings, place = self.fresh()
        for step in (0, 1, CLEAN):
            if step == CLEAN:
                shutil.rmtree(place)
                self.begin(settings, place, CLEAN)
            ended = self.step(settings, step, fault="none", passed=True)
            assert ended.code == 0, ended.text
            for point, count in json.loads(ended.text.splitlines()[-1]).items():
                found[point] += [(step, n + 1) for n in range(count)]
        shutil.rmtree(place)
        return found

    def begin(self, settings: dict[str, Any], place: Path, step: int) -> None:
        """What is there before a step: for the second the first's store, for cleaning also what a kill left."""
        if step:
            shutil.copytree(self.begun, place)
        if step == CLEAN:
            assert self.step(settings, 1, fault="before-commit:3").code == KILLED

    def trial(self, step: int, **how: Any) -> dict[str, int]:
        """Kill one ingest, look at what is there, run again, and account for every row."""
        settings, place = self.fresh()
        uri, run = settings["store"], Path(settings["runs"]) / "test"
        self.begin(settings, place, step)
        ended = self.step(settings, step, **how)
        assert ended.code in (0, KILLED), ended.text
        if "kill_after" in how and ended.code == 0:  # it was over before: the first one, measured, was slow
            self.seconds[step] = min(self.seconds[step], ended.seconds)
        readable = True
        if open_table(uri) is not None:  # whatever was committed is whole
            EventStore(uri).verify()
            between = compare(oracle_columns(rows_of(uri)), self.wanted)
            readable = not (between.doubled or between.strange)
        left = len(orphans(str(place / "store"), run))
        for again in range(min(step, 1), 2):
            rerun = self.step(settings, again)
            assert rerun.code == 0, rerun.text
        found = rows_of(uri)
        difference = compare(found, self.whole)
        doubled = max(difference.doubled, EventStore(uri).rows() - self.stored)
        result = {
            "killed": int(ended.code == KILLED),
            "lost": difference.lost,
            "doubled": doubled,
            "strange": difference.strange,
            "unreadable": int(not readable),
            "orphans": left,
            "orphans_after_clean": self.clean(settings, place),
        }
        shutil.rmtree(place)
        return result

    def clean(self, settings: dict[str, Any], place: Path) -> int:
        ended = self.step(settings, CLEAN)
        assert ended.code == 0, ended.text
        assert compare(rows_of(settings["store"]), self.whole).none, "cleaning changed what a read yields"
        return len(orphans(str(place / "store"), Path(settings["runs"]) / "test"))


def measure(
    folder: Path,
    victim: Victim,
    at_points: int,
    at_random: int,
    until: float = float("inf"),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The figures: ``at_points`` kills at each fault point, spread over its passings, and ``at_random`` anywhere.

    They go in rounds of one at each point and a share of the random ones, as many as there is time for.
    """
    trials = Trials(folder, victim)
    passings = trials.passings()
    figures: dict[str, Any] = {"points": {p: {"passings": len(some)} for p, some in passings.items()}, "random": {}}
    rng = random.Random(1)
    for i in range(at_points):
        for point, some in passings.items():
            if some:
                step, n = some[spread(len(some), at_points)[i]]
                _add(figures["points"][point], trials.trial(step, fault=f"{point}:{n}"))
        wanted, tries = at_random * (i + 1) // at_points, 0
        while figures["random"].get("killed", 0) < wanted and tries < 2 * at_random:  # some end before they are killed
            tries += 1
            step = int(rng.random() * sum(trials.seconds) > trials.seconds[0])
            _add(figures["random"], trials.trial(step, kill_after=rng.uniform(0, trials.seconds[step])))
        say(f"kills, round {i + 1} of {at_points}: at random times {figures['random']}")
        if time.monotonic() > until:
            break
    figures["seconds_of_an_ingest"] = [round(s, 3) for s in trials.seconds]
    return figures


def _add(total: dict[str, int], one: dict[str, int]) -> None:
    for name, count in one.items():
        total[name] = total.get(name, 0) + count


def spread(n: int, k: int) -> list[int]:
    """k of n positions, evenly; all of them again and again where k is larger."""
    if k > n > 0:
        return [i % n for i in range(k)]
    return [(2 * i + 1) * n // (2 * k) for i in range(k)] if n else []


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory, victim: Victim) -> dict[str, Any]:
    return measure(tmp_path_factory.mktemp("kills"), victim, 1, 6)


def wrong(figures: dict[str, Any]) -> dict[str, Any]:
    """The fault points, and the random times, at which something went wrong."""
    bad = ("lost", "doubled", "strange", "unreadable", "orphans_after_clean")
    every = {**figures["points"], "random": figures["random"]}
    return {name: one for name, one in every.items() if any(one.get(b) for b in bad)}


def test_nothing_lost_nothing_doubled(figures: dict[str, Any]) -> None:
    assert wrong(figures) == {}
    missed = [point for point, one in figures["points"].items() if one.get("killed") != 1]
    assert missed == [], "no ingest, compaction or cleaning passes these"
    assert figures["random"]["killed"] > 1


@pytest.mark.slow
def test_every_point_and_random_times(tmp_path: Path, victim: Victim) -> None:
    assert wrong(measure(tmp_path, victim, 25, 200)) == {}
