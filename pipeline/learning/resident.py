"""Rows as tensors that stay on the device: what the training loop and the validation gather their batches from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.learning import losses
from pipeline.learning.models import BLOCK, Network
from pipeline.learning.rows import Rows, needed
from pipeline.learning.tensors import aligned, tensor, tf, to_array


@dataclass
class Resident:
    """Tensors of the chosen rows.

    ``rows``: float32[m, F + 2H], normalised features, encoded labels and mask x weight side by side, and where asked
    for one more, the campaign, whose number float32 holds exactly: a batch is then one gather, which costs a fetch from
    far memory a row. ``features``: F. ``totals``: float64[H], the sums of mask x weight, on the host. ``sequences``:
    the network's sequence tensors of the whole table, [n, L] each, in the table's own memory; ``places``: int64[m],
    where in them each row is (None: in order).
    """

    rows: Any
    features: int
    totals: np.ndarray
    sequences: dict[str, Any]
    places: Any

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def tensors(self) -> dict[str, Any]:
        """All of them by name, ``places`` only where there are."""
        placed = {} if self.places is None else {"places": self.places}
        return {"rows": self.rows, **placed, **self.sequences}

    def block(self, start: int, rows: int) -> dict[str, Any]:
        """``rows`` rows from ``start`` on: what the network takes, and ``packed``, what follows the features."""
        some = slice(start, start + rows)
        places = None if self.places is None else self.places[some]
        sequences = {n: x[some] if places is None else tf.gather(x, places) for n, x in self.sequences.items()}
        found = self.rows[some]
        return {"features": found[:, : self.features], "packed": found[:, self.features :], **sequences}


def resident(
    network: Network,
    rows: Rows,
    value_scale: Any,
    positive_weights: Sequence[float] | None = None,
    campaigns: bool = False,
) -> Resident:
    """The chosen rows on the device. Labels under a zero mask are never looked at, whatever they hold.

    Args:
        value_scale: float32[H, 2], mean and deviation of log(value) of each head.
        positive_weights: each head's weight of a positive row beside a negative one; 1 where None.
        campaigns: whether the rows' campaigns, which are known then, are wanted too.
    Raises:
        ModelError: the network takes a sequence tensor that the rows do not have.
    """
    backend, heads = backend_of(rows.X), rows.y.shape[1]
    xp = backend.xp
    sequences = {name: tensor(aligned(a, a.dtype)) for name, a in needed(rows.sequences, network.inputs).items()}
    places = None if rows.index is None or not sequences else tensor(aligned(rows.index, np.int64))
    width = rows.X.shape[1]
    found = backend.empty_aligned((len(rows), width + 2 * heads + campaigns), np.float32)
    normalise = tf.function(network.normalise, reduce_retracing=True)
    for start, chosen in blocks(len(rows), rows.index):
        block = aligned(rows.X[chosen])
        found[start : start + len(block), :width] = to_array(normalise(tensor(block)), backend)
    known = rows.take("mask") > 0
    y = aligned(xp.where(known, rows.take("y"), 0))
    encoded = losses.encode(tensor(y), network.architecture, value_scale)
    found[:, width : width + heads] = to_array(encoded, backend)
    weights = found[:, width + heads : width + 2 * heads]
    weights[:] = xp.where(known, rows.take("mask") * rows.take("weight")[:, None], 0)
    if positive_weights is not None:
        weights *= xp.where(y > 0, xp.asarray(positive_weights, dtype=xp.float32), xp.float32(1))
    if campaigns:
        found[:, -1] = rows.take("campaign")
    totals = backend.to_host(weights.astype(xp.float64).sum(axis=0))
    return Resident(tensor(found), width, totals, sequences, places)


def blocks(n: int, index: Array | None, rows: int = BLOCK) -> Iterator[tuple[int, Any]]:
    """(start, what to index a table with) of n rows, or of those that ``index`` names, so many at once."""
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        yield start, slice(start, stop) if index is None else index[start:stop]


def cut(tensors: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """The rows of tensors of one length in equal parts, in order."""
    n = tf.shape(next(iter(tensors.values())))[0]
    bounds = [k * n // parts for k in range(parts + 1)]
    return [{name: x[first:last] for name, x in tensors.items()} for first, last in pairwise(bounds)]
