"""Every active subscriber's probabilities, and what to do about them: rows of the decisions table.

Rows are one hypothetical send per active subscriber, at the client's next usual hour (the commonest local hour of its
exposures) or, where decisions are regular snapshots, at as_of; or the sends of a plan, each at its own hour. Features
come from the model version's own specification. Partitions are read ahead in threads while the model predicts; only
keys, ids and probabilities are kept, a few dozen bytes a row.

Nobody is left out in silence: the suppressed are rows too (held), and so are the too new (unscored), and the
subscribers of a plan whom the log does not know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from pipeline.backend import Array, Backend, Frame, backend_of
from pipeline.config import Config
from pipeline.decisions import lists
from pipeline.decisions.table import Scored, decide
from pipeline.features.context import Context
from pipeline.features.preparation import context_of, hourly
from pipeline.features.samples import SampleRequest
from pipeline.features.sequences import family
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table, read_columns
from pipeline.options import UNITS

T = TypeVar("T")
AHEAD = 2  # partitions read before they are needed
LATELY = 28 * UNITS["d"]  # the usual hour is that of the exposures since then
EVER = 1 << 60  # microseconds; longer than any history


def score(
    store: Any,
    client: str,
    model: Any,
    spec: FeatureSpec,
    config: Config,
    as_of: int,
    backend: Backend | None = None,
    *,
    model_version: str = "",
    partitions: int | None = None,
    progress: Any = None,
    rollups: Path | None = None,
) -> pd.DataFrame:
    """The decisions of one client: one row per active subscriber, or per planned send.

    Args:
        store: an ``EventStore``. model: a ``TrainedModel`` of the heads of ``config.outcomes``; None where the client
            has none, then every row but the suppressed is unscored.
        as_of: the end of what may be seen, microseconds UTC.
        backend: of the frames that the store gives; told from them where absent.
        progress: a Progress to advance by the rows of each partition.
        rollups: the run's table of roll-ups, where it is of this store; context is counted from it.
    Raises:
        ConfigError: a plan for a time before as_of. SourceError: the plan or the suppression list cannot be read.
    """
    settings = config.decide
    request = replace(
        SampleRequest.from_config(config, client, as_of, "score"), keep_suppressed=True, keys=("subscriber",)
    )
    listed = lists.suppression_list(settings.suppressed, client) if settings.suppressed else None
    planned = lists.read_plan(settings.plan, client, as_of) if settings.plan else None
    columns = read_columns(store, client, spec, request)
    plan = store.plan(client, until=as_of, columns=columns, partitions=partitions or config.partitions)
    count = len(plan.ranges)
    context = known_context(store, client, spec, request, rollups, count)
    if planned is None and request.exposure is not None:
        # A partition is a random sample of the subscribers, and the first that has exposures says enough.
        times = {"since": as_of - LATELY, "until": as_of, "as_known_at": request.known_by}
        lately = store.plan(client, columns=["ts", "event"], partitions=count, **times)
        events = (store.read_range(lately, i) for i in range(len(lately.ranges)))
        found = (lists.usual_hour(part, request.exposure, request.timezone) for part in events)
        hour = next((h for h in found if h is not None), None)
        if hour is not None:
            request = replace(request, at=lists.next_at(as_of, hour, request.timezone))
    requests = [request]
    if planned is not None:
        # A planned send is due to whoever is in the plan, however long ago their last event was.
        scored_as = _scored_as(planned["campaign"].dropna().unique(), spec, context)
        whose = [(hour, scored_as.get(c)) for hour, c in zip(planned["hour"], planned["campaign"], strict=True)]
        pairs = {pair: i for i, pair in enumerate(dict.fromkeys(whose))}
        planned = planned.assign(asked=[pairs[pair] for pair in whose])
        requests = [replace(request, active_within=EVER, at=int(hour), campaign=c) for hour, c in pairs]

    def prepare(i: int) -> list[tuple[Any, Array]]:
        events = store.read_range(plan, i)
        return [_features(events, spec, r, context) for r in requests]

    parts = []
    for tables in ahead(prepare, count):
        for asked, (table, history) in enumerate(tables):
            parts.append(_predict(table, history, model, len(config.outcomes), asked))
            if progress is not None:
                progress.advance(len(table))
    heads = list(config.outcomes) if model is None else [head.name for head in model.heads]
    scored = _concat(parts, len(heads), backend)
    if planned is not None:
        scored = _join(planned, scored, len(heads))
    if listed is not None and len(listed):
        here = backend_of(scored.keys)
        scored.suppressed = scored.suppressed | here.xp.isin(scored.keys, here.asarray(listed))
    unlearned = set() if model is None else set(model.notes)
    return decide(client, scored, heads, unlearned, settings, as_of, model_version, model is not None)


def _scored_as(campaigns: Iterable[str], spec: FeatureSpec, context: Context | None) -> dict[str, str]:
    """The campaign that each planned one is scored as, so that each hour is computed once for those that are alike.

    Itself, where its own history counts; the first of its family, where only that does; else none.
    """
    named = set(context.names["campaign"]) if context is not None else set()
    families = spec.sequences.families if spec.sequences is not None else ()
    matched = any(f.op == "match" for f in spec.features)
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for campaign in sorted(campaigns):
        name = family(campaign)
        if campaign in named:
            found[campaign] = campaign
        elif (matched and name) or name in families:
            found[campaign] = first.setdefault(name, campaign)
    return found


def known_context(
    store: Any, client: str, spec: FeatureSpec, request: SampleRequest, rollups: Path | None, partitions: int
) -> Context | None:
    """The client's context as the model knows it; None for a model without."""
    if spec.context is None:
        return None
    return context_of(store, client, spec.context, request, hourly(rollups, client), partitions)


def _features(events: Frame, spec: FeatureSpec, request: SampleRequest, context: Context | None) -> tuple[Any, Array]:
    """The partition's table, and each of its rows' number of events before ``at``."""
    table = feature_table(events, spec, request, context=context)
    backend = backend_of(table.X)
    if "history" in spec.names:
        return table, table.X[:, spec.index("history")].astype(backend.xp.int64)
    keys = backend.asarray(events.index)
    mine = backend.column(table.keys["subscriber_key"])
    left, right = (backend.xp.searchsorted(keys, mine, side=side) for side in ("left", "right"))
    return table, (right - left).astype(backend.xp.int64)


def _predict(table: Any, history: Array, model: Any, outcomes: int, asked: int) -> Scored:
    backend = backend_of(table.X)
    xp = backend.xp
    keys = table.keys
    n = len(table)
    none = xp.full((n, outcomes), xp.nan, dtype=xp.float32)
    return Scored(
        backend.column(keys["subscriber_key"]),
        backend.column(keys["at"].astype("datetime64[us]")),
        model.predict(table.X, sequences=table.sequences) if n and model is not None else none,
        history,
        backend.column(keys["suppressed"]).astype(bool) if "suppressed" in keys.columns else xp.zeros(n, dtype=bool),
        backend.to_pandas(keys["subscriber"]).astype(object).to_numpy(),
        asked=np.full(n, asked),
    )


def _concat(parts: list[Scored], heads: int, backend: Backend | None) -> Scored:
    parts = [p for p in parts if len(p.subscriber)]
    if not parts:
        xp = (backend or Backend("pandas")).xp
        none = xp.zeros(0, dtype=xp.int64)
        texts, asked = np.empty(0, dtype=object), np.empty(0, dtype=np.int64)
        return Scored(none, none, xp.zeros((0, heads), xp.float32), none, none > 0, texts, asked=asked)
    xp = backend_of(parts[0].keys).xp
    names = ("keys", "at", "p", "events", "suppressed")
    arrays = {name: xp.concatenate([getattr(p, name) for p in parts]) for name in names}
    texts, asked = (np.concatenate([getattr(p, name) for p in parts]) for name in ("subscriber", "asked"))
    return Scored(**arrays, subscriber=texts, asked=asked)


def ahead(work: Callable[[int], T], count: int) -> Iterator[T]:
    """work(0), work(1), ... in order, a few of them under way in threads, so that memory stays bounded."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future[T]] = deque(pool.submit(work, i) for i in range(min(AHEAD, count)))
        following = len(waiting)
        while waiting:
            done = waiting.popleft().result()
            if following < count:
                waiting.append(pool.submit(work, following))
                following += 1
            yield done


def _join(planned: pd.DataFrame, scored: Scored, heads: int) -> Scored:
    """The plan's rows with what was found of their subscribers; those the log does not know have no history."""
    backend = backend_of(scored.keys)
    known = pd.DataFrame({"key": backend.to_host(scored.keys), "asked": scored.asked})
    known["row"] = np.arange(len(known))
    row = planned.merge(known, on=["key", "asked"], how="left")["row"].fillna(-1).to_numpy(dtype=np.int64)
    there = row >= 0
    p = np.full((len(row), heads), np.nan, dtype=np.float32)
    events = np.zeros(len(row), dtype=np.int64)
    suppressed = np.zeros(len(row), dtype=bool)
    for whole, part in ((p, scored.p), (events, scored.events), (suppressed, scored.suppressed)):
        whole[there] = backend.to_host(part)[row[there]]
    return Scored(
        backend.asarray(planned["key"].to_numpy()),
        backend.asarray(planned["at"].to_numpy()),
        backend.asarray(p),
        backend.asarray(events),
        backend.asarray(suppressed),
        planned["subscriber"].to_numpy(dtype=object),
        planned["campaign"].to_numpy(dtype=object),
    )
