"""A simulated log in memory, and its truth, for the tests of what can be known of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.events import rows
from pipeline.events.dirt import BITS
from pipeline.events.history import Group, blocks_of, make_world
from pipeline.events.observer import OUTCOMES
from pipeline.events.population import Block, World
from pipeline.events.rows import KIND
from pipeline.events.sightings import Log
from pipeline.options import Simulate


@dataclass
class Simulated:
    world: World
    log: Log
    wanted: np.ndarray
    human: np.ndarray
    truth: dict[str, np.ndarray]


def simulated(events: int, days: int, seed: int, dirt: dict[str, float] | None = None) -> Simulated:
    """One client's log as a store would give it: without duplicates and rows that say nothing."""
    world = make_world(Simulate(events=events, days=days, seed=seed, clients=1, dirt=dirt or {}))
    group = Group(world, [Block(world, *member) for member in blocks_of(world, lambda _: 0, days)])
    stepped = [group.step(day) for day in range(days)]
    seen = rows.concat([arrived for arrived, _ in stepped])
    bad = BITS["duplicate"] | BITS["null_key"] | BITS["impossible_time"] | BITS["unknown_kind"]
    seen = seen.take(np.flatnonzero((seen.flaw & bad) == 0))
    seen = seen.take(np.lexsort((seen.ts, seen.subscriber)))
    log = Log(seen.subscriber, seen.ts, seen.kind, seen.campaign.astype(np.int64), seen.provider.astype(np.int64))
    wanted = seen.kind == KIND["send"]
    machines = BITS["machine_open"] | BITS["scanner"] | BITS["anomaly"]
    names = ["event_id", "volume", "streak", "received", *(f"p_{o}" for o in OUTCOMES)]
    truth = {n: np.concatenate([getattr(t, n) for _, truths in stepped for t in truths]) for n in names}
    order = np.argsort(truth["event_id"])
    mine = order[np.searchsorted(truth["event_id"][order], seen.event_id[wanted])]
    return Simulated(world, log, wanted, (seen.flaw & machines) == 0, {n: v[mine] for n, v in truth.items()})
