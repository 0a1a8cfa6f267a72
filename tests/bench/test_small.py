"""What is said of small clients, and one log of them from the simulator to the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench import small
from pipeline.options import Simulate


def row(client: str, rows: int, **measured: tuple[float, float, float]) -> dict[str, Any]:
    """``measured``: by contestant, normalized entropy, log loss and expected over true."""
    of = {name: {who: values[i] for who, values in measured.items()} for i, name in enumerate(small.MEASURES)}
    return {"seed": 1, "head": "open", "client": client, "model": "pooled", "rows": rows, **of}


def test_what_is_worse_is_counted_client_by_client() -> None:
    both = {"credible": (1.05, 0.1, 1.0)}
    rows = [
        row("a", 10, pooled=(0.9, 0.2, 0.5), own_rate=(1.2, 0.15, 1.0), pool_rate=(0.8, 0.1, 1.0), **both),
        row("b", 30, pooled=(1.1, 0.1, 1.5), own_rate=(1.0, 0.15, 1.0), pool_rate=(1.05, 0.1, 1.0), **both),
        row("c", 30, pooled=(1.0, 0.1, 1.2), own_rate=(1.0, 0.15, 1.0), pool_rate=(1.3, 0.1, 1.0), **both),
    ]
    rows += [row(client, 1, plain=(1.0, 1.0, 1.0)) for client in "abc"]
    found = small.summary(rows)["open"]["pooled"]
    wanted = {
        "clients": 3,
        "worse_than_own_rate": 1,
        "worse_than_pool_rate": 2,
        "worse_than_credible": 1,
        "seems_worse_than_own_rate": 1,
        "normalized_entropy": (0.9 * 10 + 1.1 * 30 + 1.0 * 30) / 70,
        "median": 1.0,
        "worst": 1.1,
        "worst_beyond_pool_rate": 0.1,
        "expected_over_true": 1.2,
        "off": 1.5,
    }
    assert found == pytest.approx(wanted)
    said = small.table({"summary": small.summary(rows)})
    assert "open (3 clients)" in said
    assert len(said.splitlines()) == 6


def test_a_log_of_small_clients_is_measured_with_its_truth(tmp_path: Path) -> None:
    given = ["--events", "12000", "--clients", "7", "--data", str(tmp_path), "model.epochs=1", "simulate.days=80"]
    quick = ["features.groups=[counts,rates]", "split.validation=7d", "split.holdout=7d", "model.minimum_positives=10"]
    options = small.parser().parse_intermixed_args([*given, *quick])
    rows = small.measure(options, 1)
    log = pd.read_parquet(tmp_path / "small-12000" / "late-1", columns=["client", "received_at"])
    first = log.groupby("client", observed=True)["received_at"].min()
    days = (first - first["acme"].normalize()).dt.days
    assert [days[name] for name in ("acme", "globex", "initech", "umbrella", "hooli", "stark")] == [0, 0, 0, 50, 58, 71]
    frame = pd.DataFrame(rows)
    assert (
        frame.groupby(["client", "head"], observed=True)["model"]
        .apply(list)
        .map(lambda m: m == ["pooled", "plain"])
        .all()
    )
    assert set(small.summary(rows)["open"]) == {"pooled", "unmoved", "plain", *small.CONSTANTS}
    truth = pd.read_parquet(tmp_path / "small-12000" / "raw-1" / "truth" / "sends")
    late = truth[truth["client"] == "acme"].nlargest(1000, "ts")
    mine, plain = (r for r in rows if (r["client"], r["head"]) == ("acme", "open"))
    assert mine["true_rate"] == plain["true_rate"] == pytest.approx(late["p_open"].mean(), rel=0.3)
    own = mine["learned_positives"] / mine["learned"]
    assert mine["expected_over_true"]["own_rate"] == pytest.approx(own / mine["true_rate"], rel=1e-4)


def test_levels_vary_where_they_are_to_and_sizes_fall_by_the_ratio() -> None:
    from pipeline.events.history import make_world

    plain = make_world(Simulate(clients=40))
    world = make_world(Simulate(clients=40, ratio=0.9, variety=0.5, events=50_000_000))
    apart = [a.leave_client - b.leave_client for a, b in zip(world.clients, plain.clients, strict=True)]
    assert np.std(apart) == pytest.approx(0.5, rel=0.3)
    assert abs(np.mean(apart)) < 0.25
    assert {c.cadence for c in world.clients} == {c.cadence for c in plain.clients}
    assert math.log(world.initial[30] / world.initial[10]) == pytest.approx(20 * math.log(0.9), abs=0.8)
