from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from pipeline.backend import PANDAS, Backend
from pipeline.errors import ModelError
from pipeline.learning.calibration import ISOTONIC, MINIMUM, Calibration, calibrate, isotonic, temperature
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Head
from pipeline.learning.train import train
from pipeline.options import UNITS, Model
from tests.learning.data import planted

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def drawn(seed: int, n: int = 40_000, base: float = -3.0, luck: float = 0.0) -> Drawn:
    """Predictions, labels, weights, four rows a subscriber and 14 days. They are the true probabilities, but for what
    raises or lowers the logits of all rows of a day, by ``luck`` standard deviations."""
    rng = np.random.default_rng(seed)
    z, day = base + 1.2 * rng.standard_normal(n), np.arange(n) % 14
    truth = 1 / (1 + np.exp(-z - luck * rng.standard_normal(14)[day]))
    return 1 / (1 + np.exp(-z)), (rng.random(n) < truth).astype(float), np.ones(n), np.arange(n) // 4, day


def logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p) - np.log1p(-p))


def bent(p: np.ndarray) -> np.ndarray:
    """Too sure of itself and too high, as a sigmoid of another slope."""
    return np.asarray(1 / (1 + np.exp(-(0.8 + 1.7 * logit(p)))))


def test_auto_leaves_exact_probabilities_alone() -> None:
    """A 5% error of deciding otherwise is allowed for; among 20 samples that is rarely more than three."""
    kinds = [calibrate(*drawn(seed, 10_000)).kind for seed in range(20)]
    assert kinds.count("none") >= 17


def test_auto_does_not_take_the_luck_of_a_few_days_for_a_wrong_level() -> None:
    """Days as different as those of campaigns are: to the next days nothing of it carries over."""
    samples = [drawn(seed, 30_000, luck=0.8) for seed in range(16)]
    assert [calibrate(*sample).kind for sample in samples].count("none") >= 13
    mixed = [(*sample[:4], np.random.default_rng(0).permutation(sample[4])) for sample in samples[:8]]
    assert [calibrate(*sample).kind for sample in mixed].count("none") <= 4  # as if rows of a day shared nothing


def test_auto_finds_a_wrong_slope_and_puts_it_right() -> None:
    p, y, weight, who, day = drawn(0)
    found = calibrate(bent(p), y, weight, who, day)
    assert found.kind == "temperature"
    assert found.slope == pytest.approx(1 / 1.7, abs=0.03)
    assert found.intercept == pytest.approx(-0.8 / 1.7, abs=0.1)
    assert "lower" in found.reason
    again, *_ = drawn(1)
    assert found.apply(bent(again)) == pytest.approx(again, rel=0.25)


def test_auto_takes_isotonic_only_where_no_slope_will_do() -> None:
    p, y, weight, who, day = drawn(0, 80_000, base=-2.0)
    stairs = np.where(p < 0.1, p * 0.2, np.where(p < 0.3, 0.05 + p * 0.1, p))  # a wrong shape, in the same order
    found = calibrate(stairs, y, weight, who, day)
    assert found.kind == "isotonic"
    later, *_ = drawn(1, 80_000, base=-2.0)
    stairs = np.where(later < 0.1, later * 0.2, np.where(later < 0.3, 0.05 + later * 0.1, later))
    assert np.abs(found.apply(stairs) - later).mean() < 0.1 * np.abs(stairs - later).mean()


def test_auto_needs_enough_rows_of_both_classes() -> None:
    p, y, weight, who, day = drawn(0)
    few = np.flatnonzero((y == 0) | (np.cumsum(y) < MINIMUM))
    found = calibrate(bent(p)[few], y[few], weight[few], who[few], day[few])
    assert found.kind == "none"
    assert found.reason == f"{MINIMUM - 1} rows of the rarer class, {MINIMUM} needed"
    some = np.flatnonzero((y == 0) | (np.cumsum(y) < ISOTONIC))
    assert (
        calibrate(np.where(p < 0.1, p * 0.2, p)[some], y[some], weight[some], who[some], day[some]).kind != "isotonic"
    )
    assert calibrate(bent(p), y, weight, np.where(y > 0, 0, who + 1), day).kind == "none"
    assert (
        calibrate(bent(p), y, weight, who, np.where(y > 0, 0, day)).reason == "nearly all positive rows are of few days"
    )
    assert calibrate(bent(p), y, weight, who, day % 6).reason == "rows of 6 days, 7 needed"


def test_what_is_asked_for_is_done_and_none_does_nothing() -> None:
    p, y, weight, who, day = drawn(0, 5_000)
    assert calibrate(bent(p), y, weight, who, day, "none").apply(p) is p
    assert calibrate(p, y, weight, who, day, "temperature").kind == "temperature"
    assert calibrate(p, y, weight, who, day, "isotonic").kind == "isotonic"
    assert calibrate(p, y * 0, weight, who, day, "isotonic").kind == "none"
    turned = calibrate(1 - p, y, weight, who, day, "temperature")
    assert turned.kind == "none"
    assert "higher probabilities have fewer positives" in turned.reason


def test_temperature_is_the_likeliest_slope_and_intercept() -> None:
    p, y, *_ = drawn(0, 3_000)
    weight = np.random.default_rng(0).integers(1, 4, 3_000).astype(float)

    def loss(ab: np.ndarray) -> float:
        z = ab[0] * logit(bent(p)) + ab[1]
        return float(weight @ (np.logaddexp(0, z) - y * z))

    best = minimize(loss, np.array([1.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x
    found = temperature(bent(p), y, weight)
    assert (found.slope, found.intercept) == (pytest.approx(best[0], abs=1e-3), pytest.approx(best[1], abs=1e-3))
    constant = temperature(np.full(3_000, 0.3), y, weight)
    assert constant.apply(np.array([0.3]))[0] == pytest.approx(np.average(y, weights=weight))


def test_the_order_of_rows_stays(backend: Backend) -> None:
    p, y, weight, *_ = drawn(0, 20_000)
    order = np.argsort(p, kind="stable")
    x = backend.asarray(p.astype(np.float32))
    for found in (temperature(bent(p), y, weight), isotonic(p, y, weight)):
        q = backend.to_host(found.apply(x))
        assert q.dtype == np.float32
        assert (np.diff(q[order]) >= 0).all()
        assert 0 < q.min() <= q.max() < 1
    assert np.unique(backend.to_host(temperature(bent(p), y, weight).apply(x))).size > 0.95 * np.unique(p).size


def test_a_model_is_calibrated_on_later_rows_and_kept_as_numbers(backend: Backend) -> None:
    """Rows whose base rate has doubled since training: the model's predictions follow, its ranking stays."""
    data, valid = planted(backend, 20_000, rate=-3.0), planted(backend, 20_000, rate=-2.2, seed=1)
    later = planted(backend, 20_000, rate=-2.2, seed=2)
    heads = (Head("a"), Head("b"))
    model = train(data.rows, None, heads, Model(hidden=[], batch_size=512))
    raw = backend.to_host(model.predict(later.rows.X))
    at = np.arange(20_000) % 14 * UNITS["d"]
    model.calibrate(valid.rows, np.arange(20_000), at, "auto")
    assert {name: found.kind for name, found in model.calibration.items()} == {"a": "temperature", "b": "temperature"}
    p = backend.to_host(model.predict(later.rows.X))
    assert raw.mean(axis=0)[0] < 0.75 * later.p.mean(axis=0)[0]
    assert p.mean(axis=0) == pytest.approx(later.p.mean(axis=0), rel=0.05)
    assert (np.argsort(p[:, 0], kind="stable") == np.argsort(raw[:, 0], kind="stable")).mean() > 0.99
    described = json.loads(json.dumps(model.describe(), allow_nan=False))
    again = TrainedModel.restore(described, model.network.weights(), model.training())
    assert (backend.to_host(again.predict(later.rows.X)) == p).all()
    model.calibrate(valid.rows, np.arange(20_000), at, "none")
    assert (backend.to_host(model.predict(later.rows.X)) == raw).all()


def test_a_model_of_an_older_version_has_no_calibration() -> None:
    data = planted(PANDAS, 500)
    model = train(data.rows, None, (Head("a"), Head("b")), Model(hidden=[], epochs=1, minimum_positives=1))
    described = model.describe()
    del described["calibration"]
    for label in described["labels"]:
        del label["positive_weight"], label["gamma"]
    assert TrainedModel.restore(described, model.network.weights(), model.training()).calibration == {}


def test_damaged_calibrations_are_refused() -> None:
    good = isotonic(*drawn(0, 500)[:3]).to_dict()
    assert Calibration.from_dict(json.loads(json.dumps(good))).to_dict() == good
    for change in (
        {"kind": "magic"},
        {"x": [0.2, 0.1], "y": [0, 1]},
        {"slope": -1.0},
        {"y": good["y"][:-1]},
        {"x": "?"},
    ):
        with pytest.raises(ModelError, match="calibration"):
            Calibration.from_dict({**good, **change})
    with pytest.raises(ModelError, match="calibration"):
        Calibration.from_dict({})
