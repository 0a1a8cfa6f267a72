"""What is past retention goes, nothing else does, and it does not come back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import upkeep
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.events.logs import DAY, Row, config, expected, random_rows, rows_of_frame, write

SPAN = 60 * DAY
CLIENTS = ("acme", "globex")


def log(days: int = 150) -> list[Row]:
    """Rows of some months, the last one with a clock that is fast."""
    rows = [
        dict(r, time=r["time"] + (i * 7 % days) * DAY, arrived=r["arrived"] + (i * 7 % days) * DAY)
        for i, r in enumerate(random_rows(900, subscribers=40))
    ]
    rows.sort(key=lambda r: r["arrived"])
    rows.append(dict(rows[-1], time=rows[-1]["time"] + DAY // 2, id=-1))  # ahead of its arrival
    end = max(min(r["time"], r["arrived"]) for r in rows)
    for i, ts in enumerate((end - SPAN - 1, end - SPAN)):  # the last to go, and the first to stay
        rows.insert(len(rows) // 2, dict(rows[0], time=ts, arrived=ts, id=-2 - i))
    return rows


def kept(rows: list[Row], span: int = SPAN) -> list[Row]:
    end = max(min(r["time"], r["arrived"]) for r in rows)
    return [r for r in rows if r["time"] >= end - span]


def reads(settings: Config, partitions: int) -> dict[str, Any]:
    store = EventStore(settings.store_uri)
    return {c: rows_of_frame(store.read(c, partitions=partitions).compute(scheduler="sync")) for c in store.clients()}


@pytest.mark.parametrize("batches", [1, 6])
def test_old_rows_go_and_stay_away(tmp_path: Path, batches: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = log()
    settings = config(tmp_path, retention=SPAN)
    size = -(-len(rows) // batches)
    sizes = []
    for i in range(batches):
        write(tmp_path / f"raw/{i}.parquet", rows[i * size : i * size + size])
        report = ingest(settings, PANDAS)
        assert report.rows_in == report.kept + report.duplicates + report.rejected
        sizes.append(EventStore(settings.store_uri).rows())
    if batches > 1:
        assert sizes[-1] < len(rows) * 0.9, "whole files went already"
    upkeep.clean(settings, dry_run=True)
    assert "files hold rows past it" in capsys.readouterr().out
    upkeep.clean(settings)
    assert f"retention: {sizes[-1] - len(kept(rows)):,} rows past it removed" in capsys.readouterr().out
    for partitions in (1, 2, 7):
        assert reads(settings, partitions) == {c: expected(kept(rows), c) for c in CLIENTS}
    store = EventStore(settings.store_uri)
    assert store.verify() == len(store.files)
    assert store.totals()["in"] == len(rows)
    version = store.version()
    assert ingest(settings, PANDAS).rows_in == 0, "the source files stay known"
    upkeep.clean(settings)
    assert EventStore(settings.store_uri).version() == version
    old = [dict(r, id=10_000 + i) for i, r in enumerate(rows[:50])]
    new = [dict(r, id=20_000 + i) for i, r in enumerate(kept(rows)[:50])]
    write(tmp_path / "raw/late.parquet", [*old, *new, dict(old[0], user=None), dict(new[0], user=None)])
    late = ingest(settings, PANDAS)
    assert late.rejected_by == {"expired": 51, "null_subscriber": 1}
    assert late.kept == 50
    newest = max((settings.run_dir / "quarantine").glob("*.parquet"), key=lambda p: p.stat().st_mtime_ns)
    assert [r["rule"] for r in pq.read_table(newest).to_pylist()] == ["null_subscriber"]
    assert reads(settings, 3) == {c: expected(kept(rows) + new, c) for c in CLIENTS}


def test_old_quarantine_goes(tmp_path: Path) -> None:
    settings = config(tmp_path, retention=SPAN)
    for i in range(2):
        rows = random_rows(50, seed=i)
        write(tmp_path / f"raw/{i}.parquet", [*rows, dict(rows[0], user=None)])
        ingest(settings, PANDAS)
    old, new = sorted((settings.run_dir / "quarantine").glob("*.parquet"))
    at = time.time() - 61 * 86_400
    os.utime(old, (at, at))
    upkeep.clean(settings)
    assert list((settings.run_dir / "quarantine").glob("*.parquet")) == [new]


KILLED = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pipeline import upkeep
from pipeline.options import UNITS
from tests.events.logs import config
upkeep.clean(config(Path({tmp!r}), retention=60 * UNITS["d"]))
"""


@pytest.mark.parametrize("point", ["rewritten", "after-commit"])
def test_killed_on_the_way(tmp_path: Path, point: str) -> None:
    rows = log()
    settings = config(tmp_path, retention=SPAN)
    write(tmp_path / "raw/1.parquet", rows)
    ingest(settings, PANDAS)
    program = KILLED.format(root=str(Path(__file__).parents[2]), tmp=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=os.environ | {"EVENTGRAIN_FAULT": point}, check=False
    )
    assert done.returncode == -9
    found = {r for rows_of in reads(settings, 2).values() for r in rows_of}
    assert found in ({r for c in CLIENTS for r in expected(some, c)} for some in (rows, kept(rows)))
    upkeep.clean(settings)
    assert reads(settings, 2) == {c: expected(kept(rows), c) for c in CLIENTS}
    store = EventStore(settings.store_uri)
    assert store.verify() == len(store.files)
