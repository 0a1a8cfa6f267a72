"""What is left out, and what is said of it; the training itself is that of test_quality.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import ablation
from pipeline.config import load
from pipeline.features.spec import Feature, FeatureSpec
from pipeline.learning.rows import Rows

KINDS = ["send", "open", "click", "delete", "unsubscribe"]


def test_groups_are_those_of_the_configuration() -> None:
    config = load(None, ["features.groups=[counts,recency,streak,lifetime,rates]"])
    spec = FeatureSpec.from_config(config, KINDS)
    found = ablation.groups(spec, config)
    by_op = {op: [f.op == op for f in spec.features] for op in ("recency", "streak")}
    assert found["recency"] == by_op["recency"]
    assert found["streak"] == by_op["streak"]
    assert found["lifetime"] == [f.op in ("count", "rate") and f.window is None for f in spec.features]
    assert found["counts"] == [f.op == "count" and f.window is not None for f in spec.features]
    assert np.any(list(found.values()), axis=0).all()
    assert "context" not in found


def test_rates_of_everybody_are_a_group_of_their_own() -> None:
    config = load(None, ["features.groups=[streak]"])
    spec = FeatureSpec.from_config(config, KINDS)
    wide = SimpleNamespace(features=(*spec.features, Feature("campaign_rate", "context", "", "")), kinds=spec.kinds)
    assert ablation.groups(wide, config) == {"streak": [True, False], "context": [False, True]}


def test_smaller_shares_are_whole_subscribers_of_larger_ones() -> None:
    subscriber = np.repeat(np.random.default_rng(0).integers(-(2**63), 2**63, 4000), 3)
    index = np.arange(1000, 11_000)
    table = SimpleNamespace(points=lambda rows: (subscriber[rows], None))
    n = len(subscriber)
    whole = Rows(np.zeros((n, 1), np.float32), np.zeros((n, 1)), np.ones((n, 1)), np.ones(n), index)
    before = set(index)
    for share in ablation.SHARES:
        rows = ablation.some(table, whole, share)
        assert rows.index is not None
        left = set(rows.index)
        assert left < before
        assert len(left) == pytest.approx(share * len(index), rel=0.25)
        people = set(subscriber[rows.index])
        assert left == {i for i in index if subscriber[i] in people}
        before = left


def row(seed: int, client: str, model: str, of_ideal: float) -> dict[str, Any]:
    return {"seed": seed, "client": client, "model": model, "head": "open", "of_ideal": of_ideal}


def test_what_is_lost_is_within_a_seed() -> None:
    everything, less = ablation.EVERYTHING, "without counts"
    rows = [row(1, "a", everything, 0.9), row(1, "b", everything, 0.8), row(2, "a", everything, 0.7)]
    rows += [row(1, "a", less, 0.8), row(1, "b", less, 0.8), row(2, "a", less, 0.69)]
    found = ablation.means(rows)
    assert found[everything]["open"] == pytest.approx({"of_ideal": (0.85 + 0.7) / 2, "lost": 0, "half_range": 0})
    assert found[less]["open"] == pytest.approx({"of_ideal": (0.8 + 0.69) / 2, "lost": 0.03, "half_range": 0.02})
    said = ablation.table({"means": found})
    assert "77.5%" in said
    assert "74.5% (-3.0 ±2.0)" in said


def test_every_variant_is_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = ablation.groups
    monkeypatch.setattr(ablation, "SHARES", (0.5,))
    monkeypatch.setattr(ablation, "groups", lambda spec, config: {"recency": every(spec, config)["recency"]})
    small = ["--events", "1e4", "--clients", "1", "--data", str(tmp_path)]
    quick = ["model.epochs=1", "simulate.days=80", "split.validation=7d", "split.holdout=7d"]
    rows = ablation.measure(ablation.parser().parse_intermixed_args([*small, *quick]), 1)
    heads = {r["head"] for r in rows}
    variants = [ablation.EVERYTHING, "without recency", "0.5 of the subscribers"]
    assert [r["model"] for r in rows] == [name for name in variants for _ in heads]
    everything, without, half = (r for r in rows if r["head"] == "open")
    assert without["features"] < everything["features"] == half["features"]
    assert 0.3 * everything["learned"] < half["learned"] < 0.7 * everything["learned"]
    assert without["learned"] == everything["learned"]
    assert all(0 < r["of_ideal"] < 1.5 for r in rows)
    assert without["expected_pr_auc"] != everything["expected_pr_auc"]
