"""Damaged files, as sources and inside the store: never silently wrong where a checksum or digest covers the bytes.

Each mutation is one of: a flipped bit, a zeroed block, a truncation, another file's bytes, a file of another schema.
What comes of it is one of: an error that names the file; the right content all the same (the bytes did not matter);
silently wrong content; a crash. Which bytes a file's own checksums cover is told apart: pages, or the rest of it.
"""

from __future__ import annotations

import pickle
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.backend import PANDAS
from pipeline.events.ingest import ingest
from tests.events.logs import config, random_rows, write
from tests.faults.check import compare, files_below, oracle, oracle_columns, rows_of
from tests.faults.victim import Ended, Victim

KINDS = ("flipped bit", "zeroed block", "truncated", "swapped", "wrong schema")


def mutate(data: bytes, kind: str, rng: random.Random, other: bytes) -> tuple[bytes, int]:
    """The bytes of a file after one mishap, other than before, and where it struck."""
    found, at = data, 0
    while found == data:  # as where zeros are zeroed
        found, at = _mutate(data, kind, rng, other)
    return found, at


def _mutate(data: bytes, kind: str, rng: random.Random, other: bytes) -> tuple[bytes, int]:
    at = rng.randrange(len(data))
    if kind == "flipped bit":
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :], at
    if kind == "zeroed block":
        size = min(rng.choice((16, 512, 4096)), len(data) - at)
        return data[:at] + bytes(size) + data[at + size :], at
    if kind == "truncated":
        return data[:at], at
    return other, 0


def footer_of(path: Path, data: bytes = b"") -> int:
    """Where a Parquet file's footer begins."""
    data = data or path.read_bytes()
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


class Sources:
    """Two good source files and one to damage; an ingest of all three. ``checksums``: whether their pages have any."""

    kinds = ("flipped bit", "zeroed block", "truncated", "wrong schema")

    def __init__(self, folder: Path, victim: Victim, checksums: bool) -> None:
        self.folder, self.victim, self.count = folder, victim, 0
        self.good, self.rows = random_rows(200, seed=1), random_rows(300, seed=2)
        write(folder / "raw/a.parquet", self.good[:100], write_page_checksum=checksums)
        write(folder / "raw/c.parquet", self.good[100:], write_page_checksum=checksums)
        self.path = write(folder / "raw/b.parquet", self.rows, write_page_checksum=checksums)
        self.data, self.footer = self.path.read_bytes(), footer_of(self.path)
        pq.write_table(pa.table({"a": [1, 2], "time": ["x", "y"]}), folder / "other")
        self.other = (folder / "other").read_bytes()

    def one(self, kind: str, rng: random.Random) -> tuple[str, str]:
        """The part of the file that was struck, and what came of it."""
        self.count += 1
        data, at = mutate(self.data, kind, rng, self.other)
        self.path.write_bytes(data)
        settings = config(self.folder, runs=str(self.folder / f"runs-{self.count}")).model_dump(mode="json")
        ended = self.victim.run("ingest", settings=settings)
        store = Path(settings["runs"]) / "test/store"
        found = named(ended, "b.parquet")
        if found == "":
            whole = compare(oracle_columns(rows_of(str(store))), oracle(self.good + self.rows)).none
            found = "harmless" if whole else "silently wrong"
        elif ended.code == 0 and not compare(oracle_columns(rows_of(str(store))), oracle(self.good)).none:
            found = "the others are wrong"
        shutil.rmtree(settings["runs"])
        return part_of(kind, at, self.footer), found


class Stored:
    """A store of two commits, one file of which is damaged: data, index or a commit of the Delta log."""

    def __init__(self, folder: Path, victim: Victim) -> None:
        self.folder, self.victim = folder, victim
        settings = config(folder)
        for i in (1, 2):
            write(folder / f"raw/{i}.parquet", random_rows(400, seed=i))
            ingest(settings, PANDAS)
        self.store = Path(settings.store_uri)
        self.wanted = rows_of(str(self.store))
        files = files_below(self.store)
        self.files = {
            "data": [p for p in files if p.parent.name.startswith("client=")],
            "index": [p for p in files if p.parent.name == "_eventgrain" and p.suffix == ".parquet"],
            "log": [p for p in files if p.suffix == ".json"],
        }

    def one(self, what: str, kind: str, rng: random.Random) -> tuple[str, str, str]:
        """The part that was struck, what came of reading, and what ``verify`` said."""
        path = rng.choice(self.files[what])
        before = path.read_bytes()
        others = [p for p in self.files[what] if p != path]
        other = rng.choice(others).read_bytes() if kind == "swapped" else self.other()
        data, at = mutate(before, kind, rng, other)
        path.write_bytes(data)
        out = self.folder / "rows"
        out.unlink(missing_ok=True)
        read = self.victim.run("read", uri=str(self.store), out=str(out))
        verified = self.victim.run("verify", uri=str(self.store))
        where = part_of(kind, at, footer_of(path, before)) if what != "log" else "whole"
        path.write_bytes(before)
        found = named(read, path.name, f"{self.store}")
        if found == "":
            found = "harmless" if compare(pickle.loads(out.read_bytes()), self.wanted).none else "silently wrong"
        return where, found, named(verified, path.name, f"{self.store}") or "passed"

    def other(self) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"a": [1, 2]}), sink)
        return bytes(sink.getvalue())


def named(ended: Ended, *names: str) -> str:
    """What a task said of a damaged file; "" where it said nothing."""
    if ended.code < 0 or ended.traceback:
        return "crash"
    said = ended.code == 2 or "bad file:" in ended.text
    if not said:
        return ""
    return "named" if any(name in ended.text for name in names) else "not named"


def part_of(kind: str, at: int, footer: int) -> str:
    return "whole" if kind not in KINDS[:2] else "footer" if at >= footer else "pages"


def measure(
    folder: Path, victim: Victim, each: int, until: float = float("inf"), say: Callable[[str], None] = print
) -> dict[str, Any]:
    """The figures of ``each`` rounds of one mutation of every kind at every place, or of as many as there is time for.

    Returns:
        place -> kind -> part of the file -> outcome -> count
    """
    rng = random.Random(7)
    figures: dict[str, Any] = {}

    def count(place: str, kind: str, part: str, found: str) -> None:
        outcomes = figures.setdefault(place, {}).setdefault(kind, {}).setdefault(part, {})
        outcomes[found] = outcomes.get(found, 0) + 1

    sources = {c: Sources(folder / f"source-{c}", victim, c) for c in (True, False)}
    stored = Stored(folder / "stored", victim)
    for i in range(each):
        for checksums, source in sources.items():
            for kind in source.kinds:
                part, found = source.one(kind, rng)
                count(f"source with{'' if checksums else 'out'} page checksums", kind, part, found)
        for what in ("data", "index", "log"):
            for kind in KINDS:
                part, found, verified = stored.one(what, kind, rng)
                count(f"store: {what}, read", kind, part, found)
                count(f"store: {what}, verify", kind, part, verified)
        say(f"mutations, round {i + 1} of {each}")
        if time.monotonic() > until:
            break
    return figures


def wrong(figures: dict[str, Any]) -> list[str]:
    """What was silently wrong where a checksum or digest covers the bytes, and what was not said properly."""
    bad = []
    for place, kinds in figures.items():
        for kind, parts in kinds.items():
            for part, outcomes in parts.items():
                allowed = {"named", "harmless"}
                if place.startswith("source") and (part == "footer" or "without" in place):
                    allowed.add("silently wrong")  # no digest exists yet
                if place == "store: log, read":
                    allowed.add("silently wrong")
                if place.endswith("verify") and "log" not in place:
                    allowed = {"named"}
                if place.endswith(("log, verify", "index, verify")):
                    allowed.add("passed")  # the log has no digest; a bit of an index may mean nothing
                bad += [f"{place}, {kind}, {part}: {n} {what}" for what, n in outcomes.items() if what not in allowed]
    return bad


def test_damage(tmp_path: Path, victim: Victim) -> None:
    assert wrong(measure(tmp_path, victim, 1)) == []


@pytest.mark.slow
def test_a_thousand_mutations(tmp_path: Path, victim: Victim) -> None:
    assert wrong(measure(tmp_path, victim, 58)) == []
