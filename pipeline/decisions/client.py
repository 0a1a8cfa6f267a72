"""One client's decisions, from the model in use to the table; and its rule, checked on sends whose end is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.backend import Backend, backend_of
from pipeline.config import Config
from pipeline.decisions.assure import Rule
from pipeline.decisions.score import ahead, known_context, score
from pipeline.decisions.table import summary, write
from pipeline.decisions.value import backtest
from pipeline.features.samples import HOLDOUT, SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table, read_columns
from pipeline.learning.truth import true_probabilities


def decide_client(
    store: Any, client: str, config: Config, backend: Backend, as_of: int, run_dir: Path, progress: Any = None
) -> dict[str, Any]:
    """Score one client with the model in use, write its rows of ``run_dir/decisions``, and check the rule.

    Args:
        as_of: microseconds UTC.
    Returns:
        the client's entry in metrics.json: that of :func:`summary`, and ``backtest``. A client without a model has
        rows too: its subscribers are unscored, for want of one.
    Raises:
        ModelError: the model is damaged; and what :func:`score` raises.
    """
    from pipeline.learning import registry

    version = registry.current(run_dir / "models", client)
    if version is None:
        frame = score(store, client, None, FeatureSpec.history(), config, as_of, backend, progress=progress)
        write(frame, run_dir / "decisions", client, as_of)
        return summary(frame, config) | {"backtest": None}
    model, spec, card = registry.load_current(run_dir / "models", client)
    rollups = run_dir / "rollups"
    frame = score(
        store, client, model, spec, config, as_of, backend, model_version=version, progress=progress, rollups=rollups
    )
    write(frame, run_dir / "decisions", client, as_of)
    # A decision for an earlier day is checked on what the model has not seen, not on what it learnt from.
    trained = int(pd.Timestamp(card["as_of"]).value) // 1000 if card.get("as_of") else as_of
    end = max(as_of, trained)
    return summary(frame, config, model) | {"backtest": check(store, client, model, spec, config, end, rollups=rollups)}


def check(
    store: Any,
    client: str,
    model: Any,
    spec: FeatureSpec,
    config: Config,
    as_of: int,
    partitions: int | None = None,
    rollups: Path | None = None,
) -> dict[str, Any] | None:
    """The rule applied to the hold-out's decision points, whose outcomes are known; see ``value.backtest``.

    Args:
        as_of: where the data of the split end; not before that of the model's own training, or it is no hold-out.
    Returns:
        None where the rule holds nobody or its outcome was not learnt.
    """
    rule = Rule.from_config(config.decide)
    heads = [head.name for head in model.heads]
    if rule.hold_when not in heads or rule.hold_when in model.notes:
        return None
    request = SampleRequest.from_config(config, client, as_of, "train")
    request = replace(request, since=request.bounds()["holdout"])
    columns = read_columns(store, client, spec, request)
    plan = store.plan(client, until=as_of, columns=columns, partitions=partitions or config.partitions)
    context = known_context(store, client, spec, request, rollups, len(plan.ranges))
    found: list[tuple[np.ndarray, ...]] = []

    def made(i: int) -> Any:
        return feature_table(store.read_range(plan, i), spec, request, context=context)

    for table in ahead(made, len(plan.ranges)):
        backend = backend_of(table.X)
        rows = backend.xp.flatnonzero(table.split == HOLDOUT)
        if not len(rows):
            continue
        ids = np.empty(len(rows))
        if "event_id" in table.keys.columns:
            ids = backend.to_pandas(table.keys["event_id"]).to_numpy()[backend.to_host(rows)]
        p = model.predict(table.X, rows, sequences=table.sequences)
        found.append((*(backend.to_host(a) for a in (p, table.y[rows], table.mask[rows])), ids))
    if not found:
        return None
    p, y, mask, ids = (np.concatenate(several) for several in zip(*found, strict=True))
    truth = true_probabilities(config, client, ids) if config.source is not None and config.source.truth else None
    return backtest(p, y, mask, heads, rule, truth=truth or None)
