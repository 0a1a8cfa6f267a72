from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import DataError
from pipeline.learning.baselines import baselines
from pipeline.learning.evaluate import evaluate
from pipeline.learning.models import Head
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import planted, rows_of

HEADS = (Head("a"), Head("b"))


def test_each_head_beside_its_baselines_and_the_truth(backend: Backend) -> None:
    data, holdout = planted(backend, 20_000), planted(backend, 10_000, seed=1)
    model = train(data.rows, None, HEADS, Model(hidden=[], batch_size=512))
    p = model.predict(holdout.rows.X)
    beside = baselines(model, data.rows, holdout.rows)
    rows = holdout.rows
    found = evaluate(p, rows.y, rows.mask, rows.weight, HEADS, baselines=beside, truth=holdout.p)
    json.dumps(found, allow_nan=False)
    for h, name in enumerate("ab"):
        metrics = found[name]
        assert metrics["rows"] == 10_000
        assert metrics["positives"] == int(holdout.y[:, h].sum())
        base, logistic, truth = metrics["baselines"]["base_rate"], metrics["baselines"]["logistic"], metrics["truth"]
        assert base["roc_auc"] == 0.5
        assert base["normalized_entropy"] == pytest.approx(1, abs=0.01)
        assert metrics["normalized_entropy"] < 0.95
        assert metrics["expected_pr_auc"] > 0.97 * truth["expected_pr_auc"]
        assert metrics["expected_pr_auc"] <= truth["expected_pr_auc"] + 1e-9
        assert metrics["normalized_entropy"] == pytest.approx(logistic["normalized_entropy"], abs=0.01)
        assert 0.9 < metrics["expected_over_observed"] < 1.1
        assert len(metrics["deciles"]) == 10
        assert [b["budget"] for b in metrics["budgets"]] == [0.005, 0.01, 0.02, 0.05]


def test_masks_and_weights_choose_the_rows() -> None:
    data = planted(PANDAS, 400)
    mask = (np.random.default_rng(0).random((400, 2)) < 0.5).astype(np.float32)
    weight = np.random.default_rng(1).integers(0, 3, 400).astype(np.float32)
    wrong = np.where(mask > 0, data.y, 1 - data.y)
    found = evaluate(data.p, wrong, mask, weight, HEADS)
    for h, name in enumerate("ab"):
        used = np.flatnonzero((mask[:, h] > 0) & (weight > 0))
        alone = evaluate(data.p[used], data.y[used], np.ones((len(used), 2)), weight[used], HEADS)
        for metrics in (found[name], alone[name]):
            assert metrics.pop("intervals")["roc_auc"][0] < metrics["roc_auc"]  # drawn from other sets of rows
        assert found[name] == alone[name]


def test_intervals_are_of_subscribers_and_of_every_score() -> None:
    data = planted(PANDAS, 2_000)
    copies = np.repeat(np.arange(2_000), 4)  # each row four times: no more is known than of 2,000
    p, y, one = data.p[copies], data.y[copies], np.ones((8_000, 2))
    found = evaluate(p, y, one, np.ones(8_000), HEADS, truth=p, references={"ideal": p}, cluster=copies, seed=2)
    once = evaluate(data.p, data.y, one[:2_000], np.ones(2_000), HEADS, truth=data.p, seed=2)
    naive = evaluate(p, y, one, np.ones(8_000), HEADS, seed=2)
    for name in ("a", "b"):
        bounds = found[name]["intervals"]
        assert bounds == found[name]["truth"]["intervals"] == found[name]["ideal"]["intervals"]
        for metric, (low, high) in bounds.items():
            assert low < found[name][metric] < high
            assert (low, high) == pytest.approx(once[name]["intervals"][metric], rel=1e-3)
        wide, narrow = (np.ptp(m[name]["intervals"]["pr_auc"]) for m in (found, naive))
        assert narrow < 0.7 * wide


def test_a_truth_that_is_known_for_some_rows_and_heads() -> None:
    data = planted(PANDAS, 500)
    truth = data.p.copy()
    truth[:100, 0] = np.nan
    truth[:, 1] = np.nan
    found = evaluate(data.p, data.y, np.ones((500, 2)), np.ones(500), HEADS, truth=truth, references={"ideal": truth})
    part = evaluate(data.p[100:], data.y[100:], np.ones((400, 2)), np.ones(400), HEADS, truth=data.p[100:])
    assert found["a"]["rows"] == 500
    assert found["a"]["expected_pr_auc"] == part["a"]["expected_pr_auc"]
    for metrics in (found, part):
        assert metrics["a"]["truth"].pop("intervals")["expected_pr_auc"] is not None  # drawn from other sets of rows
    assert found["a"]["ideal"].pop("intervals") is not None
    assert found["a"]["truth"] == part["a"]["truth"]
    assert found["a"]["ideal"] == found["a"]["truth"]
    assert found["a"]["truth"]["scored"] == 400
    assert "truth" not in found["b"]
    assert "expected_pr_auc" not in found["b"]


def test_no_positives_give_null_and_a_note() -> None:
    data = planted(PANDAS, 100)
    heads = (Head("a"), Head("v", "value"))
    found = evaluate(data.p, data.y * 0, np.ones((100, 2)), np.ones(100), heads, truth=data.p, notes={"a": "too few"})
    json.dumps(found, allow_nan=False)
    assert found["a"]["pr_auc"] is found["a"]["roc_auc"] is found["a"]["normalized_entropy"] is None
    assert found["a"]["note"] == "too few"
    assert found["a"]["expected_pr_auc"] is not None
    assert found["v"]["normalized_gini"] is None
    assert "truth" not in found["v"] or found["v"]["truth"]["scored"] == 100


def test_nothing_held_out() -> None:
    empty = np.zeros((0, 2))
    found = evaluate(empty, empty, empty, np.zeros(0), HEADS, baselines={"base_rate": empty}, truth=empty)
    json.dumps(found, allow_nan=False)
    assert found["a"]["rows"] == 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    data = planted(PANDAS, 10)
    with pytest.raises(DataError, match=r"truth is \(9, 2\), expected rows x heads \(10, 2\)"):
        evaluate(data.p, data.y, data.y, np.ones(10), HEADS, truth=data.p[:9])


def test_baselines_of_value_and_unlearned_heads(backend: Backend) -> None:
    data = planted(backend, 1_000)
    y = np.stack([data.y[:, 0] * 0, data.y[:, 1] * 1e6 * np.exp(data.X[:, 1])], axis=1)
    rows = rows_of(backend, data.X, y)
    model = train(rows, None, (Head("a"), Head("v", "value")), Model(hidden=[], epochs=2, batch_size=256))
    beside = baselines(model, rows, rows)
    assert (beside["logistic"][:, 0] == 0).all()
    assert beside["base_rate"][:, 1].sum() == pytest.approx(y[:, 1].sum(), rel=1e-5)
    assert np.corrcoef(beside["logistic"][:, 1], y[:, 1])[0, 1] > 0.1
