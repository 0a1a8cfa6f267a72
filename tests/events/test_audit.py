"""The bars that the checks must reach on a log whose every spoilt row is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.backend import Backend
from pipeline.config import Config, load
from pipeline.demo import with_source
from pipeline.events.audit import audit
from pipeline.events.ingest import ingest
from pipeline.events.simulate import simulate
from pipeline.events.store import EventStore

CERTAIN = ("duplicate", "null_key", "impossible_time", "unknown_kind")


def audited(tmp: Path, backend: Backend, *overrides: str) -> tuple[Config, dict[str, Any]]:
    config = with_source(load(None, [f"runs={tmp}", *overrides]))
    simulate(config.simulate, config.run_dir / "raw", 2)
    ingest(config, backend)
    return config, audit(config, EventStore(config.store_uri, backend), config.run_dir)


def check_bars(found: dict[str, Any]) -> None:
    for kind in CERTAIN:
        one = found["dirt"][kind]
        assert one["rows"] > 0
        assert (kind, one["recall"], one["precision"]) == (kind, 1.0, 1.0)
    assert found["dirt"]["scanner"]["recall"] >= 0.95
    assert found["dirt"]["scanner"]["precision"] >= 0.99
    assert found["humans"]["kept_share"] >= 0.99


@pytest.mark.parametrize("batch_rows", [10_000_000, 3000])
def test_bars_on_a_small_log(tmp_path: Path, backend: Backend, batch_rows: int) -> None:
    dirt = "{scanner: 0.02, null_key: 0.003, unknown_kind: 0.003, impossible_time: 0.003}"
    small = ("simulate.events=25000", "simulate.days=45", f"simulate.dirt={dirt}", f"batch_rows={batch_rows}")
    config, found = audited(tmp_path, backend, *small)
    check_bars(found)
    raw = f"'{config.run_dir}/raw/truth/dirt/*.parquet'"
    counts = duckdb.sql(f"select dirt, count(*) from {raw} group by dirt").fetchall()
    for kind, rows in counts:
        one = found["dirt"][kind]
        assert one["rows"] + one["elsewhere"] == rows
        assert one["found"] <= min(one["rows"], one["taken"])
    humans = found["humans"]
    assert 0 < humans["events"] <= EventStore(config.store_uri).rows()


def test_the_bars_can_be_missed(tmp_path: Path, backend: Backend) -> None:
    """A rule that does not look finds nothing, and one that takes people for machines is told so."""
    switches = "{scanner_click: 'off', unknown_kind: warn}"
    more = ("simulate.events=20000", "simulate.days=40", "simulate.dirt={scanner: 0.02, unknown_kind: 0.003}")
    _, found = audited(tmp_path / "a", backend, *more, f"quality.actions={switches}")
    assert (found["dirt"]["scanner"]["found"], found["dirt"]["unknown_kind"]["found"]) == (0, 0)
    _, found = audited(tmp_path / "b", backend, *more, "quality.scanner_within=1h")
    assert found["dirt"]["scanner"]["recall"] > 0.95
    assert found["humans"]["kept_share"] < 0.99


def test_a_log_without_truth_has_no_audit(tmp_path: Path, backend: Backend) -> None:
    config = with_source(load(None, [f"runs={tmp_path}", "simulate.events=2000", "simulate.days=5"]))
    simulate(config.simulate, config.run_dir / "raw", 2)
    assert config.source is not None
    source = config.source.model_copy(update={"truth": None})
    ingest(config, backend)
    assert audit(config.model_copy(update={"source": source}), EventStore(config.store_uri), config.run_dir) == {}


@pytest.mark.slow
@pytest.mark.parametrize("batch_rows", [10_000_000, 20_000])
def test_bars_on_the_demo_log(tmp_path: Path, backend: Backend, batch_rows: int) -> None:
    _, found = audited(tmp_path, backend, f"batch_rows={batch_rows}")
    check_bars(found)
