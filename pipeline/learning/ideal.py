"""The ideal observer's probabilities of a simulated log's sends, from the store: what a model could reach at best."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.events.behaviour import CAMPAIGNS_A_DAY, DAY, PROVIDERS, ClientWorld, campaign_name
from pipeline.events.history import MAX_DAYS, make_world
from pipeline.events.observer import BELIEFS, OUTCOMES, PARTICLES, Knowledge, observe
from pipeline.events.rows import KINDS, NO_CAMPAIGN
from pipeline.events.sightings import Log
from pipeline.events.simulate import read_settings
from pipeline.events.store import EventStore
from pipeline.learning.truth import by_outcome

if TYPE_CHECKING:
    from pipeline.backend import Frame

COLUMNS = ("ts", "event", "campaign", "provider", "event_id")


def ideal_probabilities(
    store: EventStore,
    config: Config,
    client: str,
    event_ids: np.ndarray,
    particles: int = PARTICLES,
    knowledge: Knowledge | None = None,
) -> dict[str, np.ndarray]:
    """What could be known of each send's outcomes before it, from the store's events alone.

    It runs on the host, on every core: all of the client's events are gone through, only these sends predicted.

    Args:
        client: whose sends.
        event_ids: int64[n], the sends' event ids.
        particles, knowledge: as for :func:`pipeline.events.observer.observe`.
    Returns:
        outcome name -> float64[n], NaN for a send that the store does not have or that names no known campaign; the
        outcomes are those of :func:`pipeline.learning.truth.true_probabilities`. Empty for a log not simulated.
    Raises:
        SourceError: the settings of the simulated log are not known, or the store lacks what the observer looks at.
    """
    found = _asked(store, config, client, event_ids, OUTCOMES, particles=particles, knowledge=knowledge)
    return {} if found is None else by_outcome(config, {kind: found[:, i] for i, kind in enumerate(OUTCOMES)})


def ideal_beliefs(store: EventStore, config: Config, client: str, event_ids: np.ndarray) -> np.ndarray | None:
    """What the ideal observer thinks of each send's subscriber before it, float64[n, 5], see ``observer.BELIEFS``.

    Arguments, errors and NaN are those of :func:`ideal_probabilities`; None for a log not simulated.
    """
    return _asked(store, config, client, event_ids, BELIEFS, beliefs=True)


def _asked(
    store: EventStore, config: Config, client: str, event_ids: np.ndarray, columns: Sequence[str], **asked: Any
) -> np.ndarray | None:
    """What ``observe`` gives of each send, in these columns, float64[n, columns]."""
    if config.source is None or config.source.truth is None or not len(event_ids):
        return None
    world = make_world(read_settings(Path(config.source.truth)))
    mine = next((c for c in world.clients if c.name == client), None)
    lacking = [c for c in COLUMNS if c not in store.schema.names]
    if mine is None or lacking:
        what = f"no client {client!r} in its settings" if mine is None else f"no column {lacking[0]!r} in the store"
        raise SourceError(f"the simulated log cannot be followed: there is {what}")
    order = np.argsort(event_ids, kind="stable")
    ids = event_ids[order]
    found = np.full((len(ids), len(columns)), np.nan)
    host = EventStore(store.uri, PANDAS, store.version())
    plan = host.plan(client, columns=list(COLUMNS))
    for part in range(plan.partitions):
        frame = host.read_range(plan, part)
        own = frame["event_id"].to_numpy()
        place = np.clip(np.searchsorted(ids, own), 0, len(ids) - 1)
        wanted = (ids[place] == own) & (frame["event"] == "send").to_numpy()
        threads = len(os.sched_getaffinity(0))
        seen = visible(frame, mine)
        found[place[wanted]] = observe(world.parameters, mine, seen, wanted, threads=threads, **asked)
    back = np.empty_like(found)
    back[order] = found
    return back


def visible(events: Frame, client: ClientWorld) -> Log:
    """The store's events, in its order, as the observer takes them; a host frame of COLUMNS."""
    ts = events["ts"].to_numpy().astype("datetime64[us]").astype(np.int64)
    days = min(1 + max(0, int(ts.max(initial=0)) // DAY - client.start), MAX_DAYS)
    numbers: dict[Any, int] = {}
    for number in range(days * CAMPAIGNS_A_DAY):
        numbers[campaign_name(client, number)] = numbers[str(number)] = number
    return Log(
        subscriber=events.index.to_numpy(),
        ts=ts,
        kind=_codes(events["event"], {kind: i for i, kind in enumerate(KINDS)}, len(KINDS)).astype(np.uint8),
        campaign=_codes(events["campaign"], numbers, NO_CAMPAIGN),
        provider=_codes(events["provider"], {name: i for i, name in enumerate(PROVIDERS)}, -1),
    )


def _codes(names: Any, numbers: dict[Any, int], missing: int) -> np.ndarray:
    """The number of each name, int64[n]; looked up once for each distinct one."""
    texts = names.astype("category")
    codes = np.array([numbers.get(str(text), missing) for text in texts.cat.categories] + [missing], np.int64)
    return np.asarray(codes[texts.cat.codes.to_numpy()])
