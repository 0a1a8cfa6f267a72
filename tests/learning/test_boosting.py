"""Gradient boosting beside a model: what no line can tell, amounts, what it must not look at."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from pipeline.backend import Backend
from pipeline.learning.boosting import boosting
from pipeline.learning.rows import Rows

HEADS = (
    SimpleNamespace(name="either", kind="binary"),
    SimpleNamespace(name="spend", kind="value"),
    SimpleNamespace(name="never", kind="binary"),
)


def made(backend: Backend, n: int, seed: int) -> tuple[Rows, np.ndarray]:
    """Rows whose first outcome is of either of two features, not both; and its probability."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    p = np.where((x[:, 0] > 0) != (x[:, 1] > 0), 0.8, 0.1)
    amount = np.where(x[:, 2] > 0, 50.0, 2.0) + rng.normal(size=n)
    y = np.stack([rng.random(n) < p, amount, np.zeros(n)], axis=1).astype(np.float32)
    mask = np.ones_like(y)
    mask[: n // 10, 0] = 0
    y[: n // 10, 0] = 1 - (p[: n // 10] > 0.5)  # unknown labels, which would mislead
    arrays = (backend.asarray(a) for a in (x, y, mask, np.ones(n, np.float32)))
    return Rows(*arrays), p


def test_it_finds_what_is_there_and_leaves_what_cannot_be_learned(backend: Backend) -> None:
    rows, valid, (holdout, p) = made(backend, 6000, 1)[0], made(backend, 2000, 2)[0], made(backend, 2000, 3)
    out, fits = np.full((2000, 3), 0.25), list[int]()
    chosen = boosting(rows, valid, holdout, HEADS, out, trials=2, seed=4, done=fits.append)
    assert sum(fits) == 6
    assert np.abs(out[:, 0] - p).mean() < 0.06
    spent = backend.to_host(holdout.y)[:, 1]
    assert np.abs(out[:, 1] - spent).mean() < 1.2  # the noise alone has a mean of 0.8
    assert (out[:, 2] == 0.25).all()
    assert sorted(chosen) == ["either", "spend"]
    assert 1 <= chosen["either"]["trees"] <= 400


def test_the_same_seed_gives_the_same_trees(backend: Backend) -> None:
    rows, valid, holdout = (made(backend, 1000, seed)[0] for seed in (1, 2, 3))
    outs = [np.zeros((1000, 3)) for _ in range(2)]
    one, two = (boosting(rows, valid, holdout, HEADS, out, trials=2, seed=4) for out in outs)
    assert one == two
    assert outs[0][:, :2].std() > 0
    np.testing.assert_array_equal(*outs)


def test_it_does_not_look_at_what_the_model_does_not(backend: Backend) -> None:
    rows, valid, holdout = (made(backend, 3000, seed)[0] for seed in (1, 2, 3))
    out = np.zeros((3000, 3))
    boosting(rows, valid, holdout, HEADS[:2], out[:, :2], trials=1, ignored=np.array([True, False, True, False]))
    rate, spent = (backend.to_host(rows.y)[300:, i].mean() for i in (0, 1))
    assert np.abs(out[:, 0] - rate).mean() < 0.05  # neither feature alone tells anything
    assert np.abs(out[:, 1] - spent).mean() < 3


def test_nothing_to_be_chosen_by_is_nothing_chosen(backend: Backend) -> None:
    rows, valid, holdout = (made(backend, 500, seed)[0] for seed in (1, 2, 3))
    out = np.full((500, 3), 0.5)
    none = valid.chosen(backend.asarray(np.empty(0, np.int64)))
    assert boosting(rows, none, holdout, HEADS, out, trials=1) == {}
    assert (out == 0.5).all()
