"""The model in use on the challenger's hold-out: the same decision points, with features as its version has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.errors import EventgrainError, ModelError
from pipeline.features.preparation import context_of, hourly
from pipeline.features.samples import HOLDOUT, SampleRequest
from pipeline.features.table import FeatureTable, concat, feature_tables
from pipeline.learning import registry
from pipeline.learning.gate import Champion, lost
from pipeline.learning.rows import select

if TYPE_CHECKING:
    from pipeline.features.spec import FeatureSpec
    from pipeline.learning.snapshot import Training

SAW = "it was trained on later data, of which the hold-out is a part"


def champion_of(training: Training, table: FeatureTable, ranges: int | None = None) -> Champion | None:
    """The model in use and its predictions of the challenger's hold-out; None where there is none in use.

    Where it cannot be asked, because it is damaged, needs what the log no longer has or learned from the hold-out, its
    ``why_not`` says so.

    Args:
        training: the challenger's, and its table. ranges: key ranges to work in.
    """
    version, models, client = None, training.models, training.client
    try:
        version = registry.current(models, client)
        if version is None:
            return None
        model, spec, card = registry.load_current(models, client)
        theirs = configuration.load(registry.version_dir(models, client, version) / "config.yaml")
    except EventgrainError as error:
        return Champion(version or "damaged", why_not={"": str(error)})
    learned = frozenset(head.name for head in model.heads if head.name not in model.notes)
    request = SampleRequest.from_config(training.config, client, training.as_of, "train")
    if saw(theirs, card, request):
        return Champion(version, learned, why_not={"": SAW})
    try:
        p = _predictions(training, request, table, model, spec, ranges)
    except EventgrainError as error:
        return Champion(version, learned, why_not={"": f"its features cannot be made of this log: {error}"})
    return Champion(version, learned, *columns(training.config, theirs, model, p), lost(card))


def saw(theirs: Config, card: Mapping[str, Any], request: SampleRequest) -> bool:
    """Whether the rows that it learned from or was chosen by, as its configuration and card say, reach into the
    hold-out of a training's ``request``."""
    if not card.get("as_of"):
        return True
    as_of = int(np.datetime64(str(card["as_of"]).removesuffix("Z"), "us").astype(np.int64))
    known = SampleRequest.from_config(theirs, "", as_of, "train")
    return known.bounds()["validation_end"] > request.bounds()["holdout"]


def _predictions(
    training: Training,
    request: SampleRequest,
    table: FeatureTable,
    model: Any,
    spec: FeatureSpec,
    ranges: int | None,
) -> np.ndarray:
    """float64[m, heads of the champion], in the order of the challenger's hold-out."""
    import dask

    store, client = training.store, training.client
    if spec != table.spec:
        if not request.holdout_share:  # else the hold-out has rows of any time
            request = replace(request, since=request.bounds()["holdout"])
        known = None
        if spec.context is not None:
            known = context_of(store, client, spec.context, request, hourly(training.rollups, client), ranges)
        tasks = feature_tables(store, client, spec, request, ranges, known)
        own = concat(dask.compute(*tasks, scheduler="threads"))
        mine, wanted = (_points(t) for t in (own, table))
        if not np.array_equal(mine, wanted):
            raise ModelError(f"{len(mine)} decision points where {len(wanted)} were expected")
        table = own
    rows = select(table, HOLDOUT)
    return np.asarray(
        training.backend.to_host(model.predict(rows.X, rows.index, sequences=rows.sequences)), dtype=np.float64
    )


def _points(table: FeatureTable) -> np.ndarray:
    """Who and when each hold-out row is, int64[m, 2]; rows of one table are in the order of the total key."""
    return np.stack(table.points(select(table, HOLDOUT).index), axis=1)


def columns(config: Config, theirs: Config, model: Any, p: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """The predictions in the challenger's order of outcomes, and why a column has none."""
    place = {head.name: h for h, head in enumerate(model.heads)}
    out, why_not = np.full((len(p), len(config.outcomes)), np.nan), {}
    for h, (name, outcome) in enumerate(config.outcomes.items()):
        if name not in place:
            why_not[name] = "the model in use does not know it"
        elif theirs.outcomes.get(name) != outcome:
            why_not[name] = "it was another question to the model in use"
        else:
            out[:, h] = p[:, place[name]]
    return out, why_not
