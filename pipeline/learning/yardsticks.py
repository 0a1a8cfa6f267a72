"""What a client's model is measured beside, on the hold-out: baselines, boosting, the truth and the ideal observer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SourceError
from pipeline.features.table import FeatureTable
from pipeline.learning.truth import true_probabilities
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.learning.model import TrainedModel
    from pipeline.learning.rows import Rows
    from pipeline.learning.snapshot import Training


def measure(
    training: Training,
    model: TrainedModel,
    p: np.ndarray,
    table: FeatureTable,
    rows: tuple[Rows, Rows, Rows],
    ignored: np.ndarray,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Metrics by outcome, see ``evaluate``; and what is not known of them, though it could be.

    Args:
        p: float32[m, H], the model's predictions of the hold-out's rows. rows: of training, validation and hold-out.
        ignored: bool[F], features that the network does not look at.
    """
    from pipeline.learning.evaluate import evaluate

    config, holdout = training.config, rows[2]
    ideal, unknown = ideal_of(training, model, table, holdout)
    metrics = evaluate(
        p,
        holdout.take("y"),
        holdout.take("mask"),
        holdout.take("weight"),
        model.heads,
        budgets=config.decide.budgets,
        baselines=_baselines(training, model, rows, ignored),
        truth=_truth(training, model, table, holdout),
        references=None if ideal is None else {"ideal": ideal},
        notes=model.notes,
        calibration=model.calibration,
        cluster=table.points(holdout.index)[0],
        seed=config.model.seed,
    )
    return metrics, unknown


def _baselines(
    training: Training, model: TrainedModel, rows: tuple[Rows, Rows, Rows], ignored: np.ndarray
) -> dict[str, np.ndarray]:
    """What the model is to beat, and gradient boosting where it is asked for: name -> float64[m, H]."""
    from pipeline.learning.baselines import baselines
    from pipeline.learning.boosting import boosting

    settings = training.config.model
    learned, _, holdout = rows
    found = baselines(model, learned, holdout, settings.seed)
    if settings.boosting:
        p, fits = found["base_rate"].copy(), len(model.heads) * settings.boosting
        with Progress(f"boosting {training.client}", fits, "fits") as progress:
            boosting(*rows, model.heads, p, settings.boosting, settings.seed, ignored, progress.advance)
        found["boosting"] = p
    return found


def _truth(training: Training, model: TrainedModel, table: FeatureTable, holdout: Rows) -> np.ndarray | None:
    """The true probabilities of the hold-out's rows, float64[m, H]; None for a log that is not simulated."""
    ids = _simulated(training, table, holdout)
    if ids is None:
        return None
    return _by_head(true_probabilities(training.config, training.client, ids), model, len(ids))


def ideal_of(
    training: Training, model: TrainedModel, table: FeatureTable, holdout: Rows
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The same of the ideal observer, who knows what can be known; and why there is none, where it could be there."""
    from pipeline.learning.ideal import ideal_probabilities

    ids = _simulated(training, table, holdout)
    if ids is None:
        return None, ()
    try:
        found = ideal_probabilities(training.store, training.config, training.client, ids)
    except SourceError as error:
        return None, (f"the ideal observer: {error}",)
    return _by_head(found, model, len(ids)), ()


def _simulated(training: Training, table: FeatureTable, holdout: Rows) -> np.ndarray | None:
    """The event ids of the hold-out's rows, int64[m]; None for a log that is not simulated."""
    source, backend = training.config.source, training.backend
    if "event_id" not in table.keys.columns or source is None or source.truth is None:
        return None
    return np.asarray(backend.to_host(backend.column(table.keys["event_id"])[holdout.index]))


def _by_head(known: dict[str, np.ndarray], model: TrainedModel, n: int) -> np.ndarray:
    """float64[n, H], NaN for a head whose outcome is not known."""
    nothing = np.full(n, np.nan)
    return np.stack([known.get(head.name, nothing) for head in model.heads], axis=1)
