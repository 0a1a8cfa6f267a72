"""Rank and wave against sorting in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.decisions.assure import ACTIONS
from pipeline.decisions.prioritize import prioritize


@pytest.mark.parametrize(("n", "waves"), [(0, 4), (1, 4), (3, 4), (1000, 1), (1001, 4), (997, 10)])
def test_equals_sorted(backend: Backend, n: int, waves: int) -> None:
    rng = np.random.default_rng(n)
    net = rng.integers(-5, 5, n) / 4.0  # many ties
    action = rng.integers(0, 4, n).astype(np.int8)
    net[action == ACTIONS.index("unscored")] = np.nan
    keys = rng.integers(-50, 50, n)  # and keys that repeat
    rank, wave = prioritize(*(backend.asarray(x) for x in (net, action, keys)), waves)
    chosen = [i for i in range(n) if ACTIONS[action[i]] in ("send", "explore")]
    expected_rank, expected_wave = [0] * n, [0] * n
    for place, i in enumerate(sorted(chosen, key=lambda i: (-net[i], keys[i], i))):
        expected_rank[i] = place + 1
        expected_wave[i] = 1 + place * waves // len(chosen)
    assert backend.to_host(rank).tolist() == expected_rank
    assert backend.to_host(wave).tolist() == expected_wave
    sizes = [expected_wave.count(w) for w in range(1, waves + 1)]
    assert max(sizes) - min(sizes) <= 1
