"""The true probabilities of a simulated log, for evaluation alone; no real log has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from pipeline.config import Config
from pipeline.errors import SourceError


def true_probabilities(config: Config, client: str, event_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What each send's outcomes were truly drawn with.

    Args:
        client: whose sends.
        event_ids: int64[n], the sends' event ids.
    Returns:
        outcome name -> float64[n], NaN for a send the truth does not know; only outcomes whose events the simulator
        draws at the send and attributes to its campaign. Empty for a log that is not simulated.
    Raises:
        SourceError: ``source.truth`` is named and cannot be read.
    """
    source = config.source
    if source is None or source.truth is None or not len(event_ids):
        return {}
    folder = Path(source.truth) / "sends"
    try:
        dataset = ds.dataset(folder)
        found = {n.removeprefix("p_") for n in dataset.schema.names if n.startswith("p_")}
        table = dataset.to_table(
            columns=["event_id", *(f"p_{kind}" for kind in sorted(found))], filter=ds.field("client") == client
        )
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"cannot read the truth of the simulated log in {folder}: {error}") from None
    frame = table.to_pandas().set_index("event_id").reindex(pd.Index(event_ids))
    return by_outcome(config, {kind: frame[f"p_{kind}"].to_numpy(float) for kind in sorted(found)})


def by_outcome(config: Config, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outcomes whose events the simulator draws at the send: name -> float64[n]; ``known``: kind -> float64[n]."""
    found = {}
    for name, outcome in config.outcomes.items():
        kinds = set(outcome.events)
        if outcome.match != "campaign" or not kinds or not kinds <= known.keys():
            continue
        if len(kinds) == 1 or kinds == {"unsubscribe", "complaint"}:
            # The simulator draws at most one of the two for a send.
            found[name] = np.sum([known[kind] for kind in sorted(kinds)], axis=0)
    return found
