from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from pipeline.backend import PANDAS, Backend
from pipeline.features.samples import TRAIN, downsample
from pipeline.learning import imbalance
from pipeline.learning.labels import Label
from pipeline.learning.losses import corrected, from_focal, losses
from pipeline.learning.models import Architecture, Head
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import log_loss, planted, rows_of

HEADS = (Head("a"), Head("b"))
SETTINGS = {
    "none": {},
    "downsample": {"downsample": 0.2},
    "recalibrated": {"imbalance": "recalibrated", "downsample": 0.2},
    "class_weights": {"imbalance": "class_weights"},
    "focal": {"imbalance": "focal"},
}


def cells(seed: int = 0, n: int = 400_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four kinds of rows, one-hot, two outcomes that come together where the second is frequent, and the truth."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    b = np.array([0.02, 0.1, 0.3, 0.7])[kind]
    a = np.array([0.01, 0.02, 0.04, 0.08])[kind]
    y_b = rng.random(n) < b
    y_a = rng.random(n) < np.where(y_b, 1.5 * a, (a - 1.5 * a * b) / (1 - b))
    return np.eye(4, dtype=np.float32)[kind], np.stack([y_a, y_b], axis=1).astype(np.float32), np.stack([a, b], axis=1)


def thinned(X: np.ndarray, y: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As the feature table does it: rows negative on every head dropped, the others weigh 1/rate."""
    n = len(X)
    key, split = np.arange(n), np.full(n, TRAIN, dtype=np.int8)
    kept, weight = downsample(np, key, key * 1_000_003, y, np.ones_like(y), split, rate)
    return X[kept], y[kept], weight[kept]


@pytest.mark.parametrize("how", SETTINGS)
def test_every_way_gives_the_frequencies_of_the_population(how: str) -> None:
    """A network that can hold each cell's frequency: what it predicts there must be it, on both heads."""
    X, y, _ = cells()
    settings = Model(
        hidden=[], epochs=30, patience=30, batch_size=2048, weight_decay=0, learning_rate=0.005, **SETTINGS[how]
    )
    X_kept, y_kept, weight = thinned(X, y, settings.downsample)
    valid = rows_of(PANDAS, *cells(1, 100_000)[:2])
    model = train(rows_of(PANDAS, X_kept, y_kept, None, weight), valid, HEADS, settings)
    p = model.predict(rows_of(PANDAS, np.eye(4, dtype=np.float32), np.zeros((4, 2))).X)
    kind = X.argmax(axis=1)
    observed = np.stack([y[kind == k].mean(axis=0) for k in range(4)])
    assert p == pytest.approx(observed, rel=0.12)
    assert [label.rate for label in model.labels] == pytest.approx(y.mean(axis=0), rel=0.03)


def test_unweighted_survivors_and_one_formula_would_be_wrong_for_several_heads() -> None:
    """Where the second outcome keeps rows, the first one's odds grow by less than 1/rate; its own weights are exact."""
    X, y, _ = cells()
    rate = 0.2
    X_kept, y_kept, weight = thinned(X, y, rate)
    kind, kept = X.argmax(axis=1), X_kept.argmax(axis=1)
    for k in range(4):
        true = y[kind == k, 0].mean()
        here = y_kept[kept == k, 0]
        naive = here.mean()
        own = np.where(here > 0, 1 / rate, weight[kept == k])  # as the loss weighs them: c = 1/rate
        p = np.average(here, weights=own)
        assert p / (p + (1 - p) / rate) == pytest.approx(true, rel=0.05)
        if k == 3:  # 70% of these rows are kept for the second outcome's sake
            assert naive / (naive + (1 - naive) / rate) < 0.5 * true


def test_the_minimum_of_the_focal_loss_is_inverted() -> None:
    """Against a numerical minimum of the expected loss, in float64 by its definition."""
    for gamma in (0.5, 1.0, 2.0, 5.0):
        for p in (0.001, 0.03, 0.4, 0.5, 0.9, 0.999):

            def risk(z: float, p: float = p, gamma: float = gamma) -> float:
                q = 1 / (1 + np.exp(-z))
                return float(-p * (1 - q) ** gamma * np.log(q) - (1 - p) * q**gamma * np.log1p(-q))

            best = minimize_scalar(risk, bounds=(-12, 12), method="bounded", options={"xatol": 1e-9}).x
            logit = float(from_focal(np.float32(best), gamma))
            assert 1 / (1 + np.exp(-logit)) == pytest.approx(p, rel=2e-3)
    z = np.linspace(-40, 40, 2_001, dtype=np.float32)
    found = np.asarray(from_focal(z, 2.0))
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    assert np.asarray(from_focal(z[900:1100], 0.0)) == pytest.approx(z[900:1100], abs=1e-5)


def test_the_focal_loss_is_its_definition_and_spares_value_heads() -> None:
    architecture = Architecture(1, (Head("a"), Head("v", "value")))
    raw = np.array([[-2.0, 0.3, 0.1, 0.2], [1.5, -1, 0, 0]], dtype=np.float32)
    target = np.array([[1, 0.5], [0, -1e9]], dtype=np.float32)
    plain, found = (np.asarray(losses(raw, target, architecture, gamma)) for gamma in (0.0, 2.0))
    q = 1 / (1 + np.exp(-raw[:, 0]))
    happened = np.array([q[0], 1 - q[1]])
    assert found[:, 0] == pytest.approx(-((1 - happened) ** 2) * np.log(happened), rel=1e-5)
    assert (found[:, 1] == plain[:, 1]).all()


def test_a_correction_touches_only_the_logit_of_its_head() -> None:
    architecture = Architecture(1, (Head("a"), Head("v", "value"), Head("b")))
    raw = np.arange(10, dtype=np.float32).reshape(2, 5)
    found = np.asarray(corrected(raw, architecture, [4.0, 2.0, 1.0], [0.0, 0.0, 0.0]))
    assert found == pytest.approx(raw - np.array([np.log(4), np.log(2), 0, 0, 0]), abs=1e-6)
    assert corrected(raw, architecture, [1, 1, 1], [0, 0, 0]) is raw


@pytest.mark.parametrize("how", ["class_weights", "focal"])
def test_training_starts_at_the_base_rate(how: str) -> None:
    """One epoch that learns nothing leaves every prediction where it started."""
    data = planted(PANDAS, 3_000)
    settings = Model(hidden=[], epochs=1, learning_rate=1e-9, imbalance=how)
    model = train(data.rows, None, HEADS, settings)
    rate = data.y.mean(axis=0)
    assert model.predict(data.rows.X).mean(axis=0) == pytest.approx(rate, rel=0.02)


def test_a_rare_outcome_is_learned_as_well_whatever_the_way(backend: Backend) -> None:
    data, later = planted(backend, 30_000, rate=-4.0), planted(backend, 30_000, rate=-4.0, seed=1)
    found = {}
    for how in ("none", "class_weights", "focal"):
        model = train(data.rows, None, HEADS, Model(hidden=[], batch_size=512, imbalance=how))
        p = backend.to_host(model.predict(later.rows.X))
        found[how] = log_loss(p[:, 0], later.p[:, 0])
        assert p[:, 0].sum() / later.p[:, 0].sum() == pytest.approx(1, abs=0.15), how
    assert max(found.values()) < 1.06 * log_loss(later.p[:, 0], later.p[:, 0])


def test_unlearned_heads_are_left_alone() -> None:
    labels = [Label(10, 0, 0.0, 0.0, False), Label(100, 20, 0.2, 0.2, True), Label(9, 5, 0.5, 3.0, True)]
    heads = (Head("a"), Head("b"), Head("v", "value"))
    imbalance.weigh(labels, heads, Model(imbalance="class_weights"))
    assert [label.positive_weight for label in labels] == [1, pytest.approx(4), pytest.approx(1)]
    assert labels[1].taught == pytest.approx(0.5)
    imbalance.weigh(labels, heads, Model(imbalance="focal", focal_gamma=3))
    assert [label.gamma for label in labels] == [0, 3, 0]


def test_options_that_contradict_each_other_are_refused() -> None:
    assert Model(downsample=0.5).imbalance == "downsample"
    assert Model(downsample=0.5, imbalance="focal").imbalance == "focal"
    with pytest.raises(ValueError, match="imbalance is recalibrated: give downsample the share"):
        Model(imbalance="recalibrated")
    with pytest.raises(ValueError, match="downsample is below 1 and imbalance is none"):
        Model(imbalance="none", downsample=0.5)
