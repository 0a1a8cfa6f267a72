from __future__ import annotations

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.learning.labels import Tally
from pipeline.learning.models import Head
from pipeline.learning.rows import Rows
from tests.learning.data import rows_of


def rows(backend: Backend, y: list[float], mask: list[float], weight: list[float]) -> Rows:
    return rows_of(backend, np.zeros((len(y), 1)), np.reshape(y, (-1, 1)), np.reshape(mask, (-1, 1)), weight)


@pytest.mark.parametrize(("mask", "weight"), [([1, 1, 1, 1], [1, 1, 1, 1]), ([1, 1, 0, 1], [2, 1, 5, 1])])
def test_probabilities_as_labels_count_as_what_they_make_expect(
    backend: Backend, mask: list[float], weight: list[float]
) -> None:
    """As many rows of either label, weighted by the probability, say the same."""
    y = [0.5, 0.25, 0.75, 1.0]
    found = Tally.of(rows(backend, y, mask, weight), 0, Head("a"))
    twice = [*([1.0] * 4), *([0.0] * 4)]
    shares = [w * p for w, p in zip(weight, y, strict=True)] + [w * (1 - p) for w, p in zip(weight, y, strict=True)]
    split = Tally.of(rows(backend, twice, mask * 2, shares), 0, Head("a"))
    assert (found.weight, found.positive, found.total) == pytest.approx((split.weight, split.positive, split.total))
    assert found.positives == round(sum(p for p, m in zip(y, mask, strict=True) if m))
    assert found.label(Head("a"), 1).learned


def test_amounts_are_positive_or_not(backend: Backend) -> None:
    found = Tally.of(rows(backend, [0.0, 0.25, 3.0], [1, 1, 1], [1, 1, 2]), 0, Head("a", "value"))
    assert (found.positives, found.positive, found.total) == (2, 3.0, 6.25)
