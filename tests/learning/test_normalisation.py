from __future__ import annotations

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.learning import normalisation
from pipeline.learning.normalisation import moments
from pipeline.learning.rows import Rows


@pytest.mark.parametrize("squashed", [False, True])
def test_moments_of_many_blocks_are_those_of_the_finite_rows(
    backend: Backend, squashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against formulas over all rows at once: chosen rows, a large offset, infinities, a feature that nobody has."""
    monkeypatch.setattr(normalisation, "BLOCK", dict.fromkeys(normalisation.BLOCK, 8 * 5 * 100))
    rng, n = np.random.default_rng(3), 2_500
    X = np.full((n, 5), np.nan, np.float32)
    X[:, :4] = np.stack([rng.exponential(3, n), 1e6 + rng.normal(size=n), rng.normal(size=n), np.full(n, 4)], axis=1)
    X[rng.integers(0, n, 40), 2] = np.inf
    weight = rng.integers(0, 3, n).astype(np.float32)
    index = rng.permutation(n)[:2_050]
    y, flags = np.zeros((n, 1), np.float32), np.array([True, False, True, False, False]) & squashed
    found = moments(Rows(*(backend.asarray(a) for a in (X, y, y, weight, index))), flags)
    for f in range(4):
        x, w = (a[index].astype(np.longdouble) for a in (X[:, f], weight))
        x, w = x[np.isfinite(x)], w[np.isfinite(x)]
        x = np.sign(x) * np.log1p(np.abs(x)) if flags[f] else x
        over = x - np.average(x, weights=w)
        assert found.weight[f] == w.sum()
        assert found.mean[f] == pytest.approx(float(np.average(x, weights=w)), rel=1e-13)
        assert found.second[f] == pytest.approx(float(w @ over**2), rel=1e-9)
        assert found.third[f] == pytest.approx(float(w @ over**3), rel=1e-7, abs=1e-5)
    assert [float(getattr(found, name)[4]) for name in ("weight", "mean", "second", "third")] == [0, 0, 0, 0]
