"""model.kind auto: every kind of network is tried on a sample, and the one that validates best is trained in full.

The budget is counted in rows gone through, not in seconds, so the same seed and data choose the same kind everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline import options
from pipeline.backend import backend_of
from pipeline.features.sequences import SequenceSpec
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.chunks import Chunks, Survey, as_chunks
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Head
from pipeline.learning.networks import KINDS, SEQUENTIAL
from pipeline.learning.rows import Rows, Table, as_rows
from pipeline.learning.start import Start
from pipeline.learning.train import train

EPOCHS = 4  # that the budget is spread over at least; fewer rows rather than fewer epochs
MARGIN = 0.001  # of the validation score; by less, a kind is not better than a simpler one


def train_selected(
    rows: Table | Rows | Chunks,
    valid: Table | Rows | None,
    heads: Sequence[Head],
    settings: options.Model,
    progress: Any = None,
    sequences: SequenceSpec | None = None,
    *,
    sample: Table | Rows | None = None,
    checkpoint: Checkpoint | None = None,
    found: Survey | None = None,
    ignored: np.ndarray | None = None,
    start: Start | None = None,
    elsewhere: Callable[[options.Model], TrainedModel] | None = None,
) -> TrainedModel:
    """As ``train``, of the kind that :func:`select` finds best where ``settings.kind`` is auto.

    Args:
        sample: training rows to try the kinds on, where ``rows`` come in chunks.
        elsewhere: trains the kind that is decided on, where other processes do; ``rows`` and ``valid`` only try kinds.
    """
    selection = None
    if settings.kind == "auto":
        tried = as_chunks(rows).make(0) if sample is None else sample
        selection = select(tried, valid, heads, settings, sequences, ignored)
        settings = settings.model_copy(update={"kind": selection["kind"]})
    if elsewhere is not None:
        model = elsewhere(settings)
    else:
        model = train(
            rows,
            valid,
            heads,
            settings,
            progress,
            sequences,
            checkpoint=checkpoint,
            found=found,
            ignored=ignored,
            start=start,
        )
    model.selection = selection
    return model


def selected(selection: dict[str, Any]) -> str:
    """For the user: which kind, and by how much."""
    scores = sorted(selection["scores"].items(), key=lambda pair: pair[1])
    tried = f"{selection['rows']:,} rows x {selection['epochs']} epochs"
    found = ", ".join(f"{kind} {score:.4f}" for kind, score in scores)
    return f"model.kind auto chose {selection['kind']}: validation loss after {tried}, over the base rate's: {found}"


def select(
    rows: Table | Rows,
    valid: Table | Rows | None,
    heads: Sequence[Head],
    settings: options.Model,
    sequences: SequenceSpec | None = None,
    ignored: np.ndarray | None = None,
) -> dict[str, Any]:
    """Try every kind that the rows allow with ``settings.budget`` rows x epochs each.

    Args, Raises: as ``train``.
    Returns: ``kind``, the best one (logistic where nothing can be learned); ``scores``, the best validation score of
        each, less is better; ``rows``, ``epochs``, what each was tried with.
    """
    rows = as_rows(rows)
    n = min(len(rows), max(settings.budget // EPOCHS, 1))
    epochs = max(1, min(settings.epochs, settings.budget // max(n, 1)))
    chosen = sample(rows, n, settings.seed)
    scores: dict[str, float] = {}
    for kind in KINDS:
        if kind in SEQUENTIAL and sequences is None:
            continue
        trial = settings.model_copy(update={"kind": kind, "epochs": epochs, "patience": epochs, "members": 1})
        history = train(chosen, valid, heads, trial, None, sequences, ignored=ignored).history
        finite = [h["validation"] for h in history if np.isfinite(h["validation"])]
        if finite:
            scores[kind] = min(finite)
    return {"kind": _best(scores), "scores": scores, "rows": n, "epochs": epochs}


def _best(scores: dict[str, float]) -> str:
    """The simplest kind within MARGIN of the best; scores are in order of complexity."""
    least = min(scores.values(), default=0.0)
    return next((kind for kind, score in scores.items() if score <= least + MARGIN), KINDS[0])


def sample(rows: Rows, n: int, seed: int) -> Rows:
    """n of the rows at random, in their order."""
    if n >= len(rows):
        return rows
    backend = backend_of(rows.X)
    chosen = backend.asarray(np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False)))
    return rows.chosen(chosen if rows.index is None else rows.index[chosen])
