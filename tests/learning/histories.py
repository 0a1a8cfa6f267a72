"""Histories with a planted truth, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.backend import Backend
from pipeline.features.sequences import SequenceSpec
from pipeline.learning.rows import Rows
from tests.learning.data import rows_of

KINDS = ("send", "open", "click")
SPEC = SequenceSpec.of(12, KINDS, [f"c{i}" for i in range(70)], ["news", "sale"], ["gmail"])


def histories(backend: Backend, n: int, seed: int = 0, spec: SequenceSpec = SPEC) -> dict[str, Any]:
    """Tensors as a FeatureTable has them: the last events on the right, zeros on the left; on the backend."""
    rng = np.random.default_rng(seed)
    length = rng.integers(0, spec.length + 1, n)
    there = np.arange(spec.length)[None, :] >= spec.length - length[:, None]
    out = spec.empty(backend, n)
    for tensor in spec.tensors:
        shape = (n, spec.width(tensor))
        if tensor.name == "mask":
            values: Any = np.ones(shape)
        elif tensor.name == "days":
            values = -np.sort(-rng.exponential(20.0, shape), axis=1)
        else:
            values = rng.integers(1, tensor.ids or 24, shape)
        out[tensor.name][...] = backend.asarray(
            np.where(True if tensor.once else there, values, 0).astype(tensor.dtype)
        )
    return out


def planted_history(backend: Backend, n: int, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Rows whose outcome hangs on their history alone, and its true probability, float64[n, 1].

    It is the share of opens among the last 20 days' events of the decision's family, which no count or recency gives.
    """
    tensors = histories(backend, n, seed)
    host = {name: backend.to_host(array) for name, array in tensors.items()}
    near = (host["mask"] > 0) & (host["family"] == host["at_family"]) & (host["days"] < 20)
    share = (near & (host["kind"] == 2)).sum(axis=1) / np.maximum(near.sum(axis=1), 1)
    rng = np.random.default_rng(seed + 1000)
    p = 1 / (1 + np.exp(-(6 * share - 3)))[:, None]
    y = (rng.random(p.shape) < p).astype(np.float32)
    rows = rows_of(backend, rng.standard_normal((n, 3)), y)
    return Rows(rows.X, rows.y, rows.mask, rows.weight, None, tensors), p
