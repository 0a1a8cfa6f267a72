"""A simulated history, day by day: planning its size, stepping groups of blocks, saving and continuing it.

A group is a set of blocks stepped together; each day of a group becomes one part file. The sizes of blocks and groups
never depend on the number of workers, and no random number depends on either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import options
from pipeline.errors import ConfigError
from pipeline.events import draws, rows
from pipeline.events.behaviour import DAY, PROVIDERS, ClientWorld, Parameters, calendar, make_client
from pipeline.events.dirt import resolve
from pipeline.events.population import ANOMALY_OPENS, Block, Planned, SendTruth, World
from pipeline.events.rows import Rows

BLOCK = 16_384  # subscribers: temporary arrays stay in a core's cache
GROUP = 262_144  # subscribers: a day of a group is a part file of about 200,000 rows
MAX_CLIENTS, MAX_DAYS, MAX_SUBSCRIBERS = 1 << 10, 15_000, 1 << 30  # what event ids have room for
TIER_MEAN = 0.65
EVENTS_PER_SEND = 1.64  # without dirt; measured
LEAVE_PER_SEND = 0.0053  # of those who leave, bounce or complain; measured


def make_world(settings: options.Simulate, parameters: Parameters | None = None) -> World:
    """The world of these settings: clients, their sizes (so that about ``settings.events`` events arrive), the dirt.

    Raises ConfigError for a kind of dirt that does not exist, a rate out of range, or sizes that ids cannot hold.
    """
    rates = resolve(settings.dirt)
    if settings.clients > MAX_CLIENTS or settings.days > MAX_DAYS:
        raise ConfigError(
            f"simulate asks for {settings.clients:,} clients and {settings.days:,} days: at most {MAX_CLIENTS:,} and "
            f"{MAX_DAYS:,} are possible (event ids hold no more)"
        )
    clients = tuple(_client(settings, i) for i in range(settings.clients))
    ratio = 0.43 if settings.ratio is None else settings.ratio  # two clients: 70% and 30% of the events
    weights = np.power(ratio, np.arange(settings.clients))
    per_send = EVENTS_PER_SEND + 4.5 * rates["scanner"] + rates["machine_open"]
    per_send += ANOMALY_OPENS * rates["anomaly"] / len(PROVIDERS) / settings.days
    initial = []
    for client, weight in zip(clients, weights / weights.sum(), strict=True):
        events = _sends_per_subscriber(client, settings.days) * per_send * (1 + rates["duplicate"])
        initial.append(max(10, round(settings.events * weight / max(events, 1e-9))))
    weekdays = [d for d in range(settings.days) if (clients[0].start + d + 3) % 7 == 2]  # anomalies on Wednesdays
    middle = sorted(weekdays or range(settings.days), key=lambda d: abs(d - 0.4 * settings.days))
    if max(initial) >= MAX_SUBSCRIBERS:
        raise ConfigError(
            f"simulate.events={settings.events:,} over {settings.days} days would take {max(initial):,} subscribers of "
            f"one client; {MAX_SUBSCRIBERS:,} are possible: ask for more days or clients"
        )
    key = np.array([draws.scalar_key(settings.seed, 0xD187)], dtype=np.uint64)
    anomalies = {d: 1 + int(draws.uniform(key, d)[0] * (len(PROVIDERS) - 1)) for d in middle[: int(rates["anomaly"])]}
    purges: dict[int, int] = {}
    for i in range(int(rates["delete_all"])):
        who = int(draws.uniform(key, 10_000 + i)[0] * initial[0])
        purges[who] = int(settings.days * (0.55 + 0.2 * draws.uniform(key, 20_000 + i)[0]))
    return World(parameters or Parameters(), clients, tuple(initial), rates, anomalies, purges)


def _client(settings: options.Simulate, index: int) -> ClientWorld:
    """A client, with levels of its own where they are to vary."""
    client = make_client(settings.seed, index, settings.start)
    if settings.variety is None:
        return client
    opening, leaving = (settings.variety * draws.normal(np.array([client.key], np.uint64), n)[0] for n in (10, 12))
    return replace(client, open_client=client.open_client + opening, leave_client=client.leave_client + leaving)


def _sends_per_subscriber(client: ClientWorld, days: int) -> float:
    """Expected sends of the whole history per initial subscriber, joiners' included, leavers' not."""
    total, lost, alive = 0.0, 0.0, 1.0
    for day in range(days):
        sends = calendar(client, day).intensity * TIER_MEAN * (alive)
        total += sends
        lost = LEAVE_PER_SEND * sends
        alive += client.growth - lost
    return total


def population(world: World, client: int, days: int) -> int:
    """Subscribers of a client who have joined by the end of ``days``, generously."""
    initial = world.initial[client]
    return initial + int(np.ceil(world.clients[client].growth * initial * days))


class Group:
    """Blocks stepped together, and their events that have not arrived yet."""

    def __init__(self, world: World, blocks: list[Block]) -> None:
        self.world, self.blocks = world, blocks
        self.pending: dict[int, list[Rows]] = {}  # day of arrival -> rows

    def plan(self, day: int) -> list[Planned]:
        """The sends that ``step(day)`` would make; changes nothing."""
        return [block.plan(day)[1] for block in self.blocks]

    def step(
        self, day: int, allowed: NDArray[np.int64] | None = None, executor: Executor | None = None
    ) -> tuple[Rows, list[SendTruth]]:
        """Simulate ``day``: the rows that arrive on it, sorted by (received, event_id), and the truth of its sends.

        ``allowed``: int64[m], ids of the planned sends that go out; None: all.
        """
        run = executor.map if executor else map
        truths = []
        for new, truth in run(lambda block: block.step(day, allowed), self.blocks):
            truths.append(truth)
            arrival = new.received // DAY - self.world.clients[0].start
            order = np.argsort(arrival.astype(np.int16), kind="stable")
            days, starts = np.unique(arrival[order], return_index=True)
            new = new.take(order)
            for d, low, high in zip(days, starts, np.append(starts, len(new))[1:], strict=True):
                self.pending.setdefault(int(d), []).append(new.take(slice(int(low), int(high))))
        return in_arrival_order(rows.concat(self.pending.pop(day, [rows.empty()]))), truths

    def save(self, path: Path) -> None:
        """Write all that is needed to go on, as .npz."""
        arrays: dict[str, NDArray[Any]] = {
            "blocks": np.array([(b.client.index, b.first, len(b.number)) for b in self.blocks], np.int64).reshape(-1, 3)
        }
        for i, block in enumerate(self.blocks):
            arrays.update({f"{i}/{name}": value for name, value in block.state.items()})
        for name, value in rows.concat([r for d in sorted(self.pending) for r in self.pending[d]]).columns().items():
            arrays[f"pending/{name}"] = value
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, world: World, path: Path) -> Group:
        with np.load(path) as arrays:
            blocks = []
            for i, (client, first, n) in enumerate(arrays["blocks"]):
                block = Block(world, int(client), int(first), int(n))
                block.state = {name: arrays[f"{i}/{name}"] for name in block.state}
                blocks.append(block)
            group = cls(world, blocks)
            waiting = Rows(**{name: arrays[f"pending/{name}"] for name in rows.TYPES})
        arrival = waiting.received // DAY - world.clients[0].start
        for day in np.unique(arrival):
            group.pending[int(day)] = [waiting.take(np.flatnonzero(arrival == day))]
        return group


def in_arrival_order(arrived: Rows) -> Rows:
    """Rows sorted by (received, event_id)."""
    order = np.argsort(arrived.received)
    received = arrived.received[order]
    same = received[1:] == received[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))  # rare: cheaper than sorting all by both
    some = order[tied]
    order[tied] = some[np.lexsort((arrived.flaw[some], arrived.event_id[some], arrived.received[some]))]
    return arrived.take(order)


def blocks_of(
    world: World, begin: Callable[[int], int], days: int, size: int = BLOCK
) -> Iterator[tuple[int, int, int]]:
    """(client, first, n) of blocks covering the clients' subscribers from begin(client) to those joined by ``days``."""
    for client in range(len(world.clients)):
        end = population(world, client, days)
        for first in range(begin(client), end, BLOCK):
            yield client, first, min(BLOCK, end - first)


def groups_of(world: World, days: int) -> Iterator[list[tuple[int, int, int]]]:
    """The blocks of each group of up to GROUP subscribers."""
    members: list[tuple[int, int, int]] = []
    for member in blocks_of(world, lambda _: 0, days):
        if members and sum(n for _, _, n in members) + member[2] > GROUP:
            yield members
            members = []
        members.append(member)
    yield members
