"""A block of one client's subscribers, stepped through the history a day at a time.

Array code over the block's subscribers; what the block holds is a few bytes a subscriber. The model is behaviour.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events import draws, rows
from pipeline.events.behaviour import (
    CAMPAIGNS_A_DAY,
    DAY,
    ESTABLISHED,
    HOUR,
    PROVIDER_SHARES,
    PROVIDERS,
    ClientWorld,
    Parameters,
    Probabilities,
    Seen,
    calendar,
    draw_traits,
    send_probabilities,
    stay_or_change,
)
from pipeline.events.dirt import BITS, receive
from pipeline.events.draws import Floats
from pipeline.events.rows import KIND, Rows

NEVER = np.iinfo(np.int64).max
ANOMALY_OPENS = 8
# Slots of a subscriber's day, from which event ids are made.
SEND, BOUNCE, OPEN, OPEN_AGAIN, CLICK, CLICK_AGAIN, DELETE, LEAVE, JOIN, MACHINE = range(10)
SCANNER_SLOT, ANOMALY_SLOT, PURGE_SLOT = 16, 32, 64


@dataclass
class Planned:
    """The sends a client's cadence would make on one day to one block, each [n]; a policy says which may go out."""

    client: int
    event_id: NDArray[np.int64]  # that the send will have
    subscriber: NDArray[np.int64]  # number within the client
    campaign: NDArray[np.int32]
    ts: NDArray[np.int64]

    def columns(self) -> tuple[NDArray[Any], ...]:
        return self.event_id, self.subscriber, self.campaign, self.ts


@dataclass
class SendTruth:
    """What only the simulator knows about n sends, each [n]; the order is that of the subscribers."""

    client: int
    event_id: NDArray[np.int64]
    subscriber: NDArray[np.int64]
    campaign: NDArray[np.int32]
    ts: NDArray[np.int64]
    p_open: Floats
    p_click: Floats
    p_complaint: Floats
    p_unsubscribe: Floats
    awake: NDArray[np.bool_]
    volume: NDArray[np.int64]
    streak: NDArray[np.int64]
    received: NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """What is common to all blocks."""

    parameters: Parameters
    clients: tuple[ClientWorld, ...]
    initial: tuple[int, ...]  # subscribers of each client when the log begins
    rates: Mapping[str, float]  # of dirt
    anomalies: Mapping[int, int]  # day -> provider
    purges: Mapping[int, int]  # subscriber number of the first client -> day


class Block:
    """Subscribers [first, first + n) of one client. ``state`` is all that changes, a dict of arrays."""

    def __init__(self, world: World, client: int, first: int, n: int) -> None:
        self.world, self.client, self.first = world, world.clients[client], first
        self.number = np.arange(first, first + n, dtype=np.int64)
        self.key = draws.subkeys(self.client.key ^ 0x5B5, self.number)
        self.traits = draw_traits(self.key)
        self.fall, self.wake = stay_or_change(world.parameters, self.traits)
        self.join_ts = self._join_times()
        joiner = self.join_ts > 0
        apple = np.flatnonzero(self.traits.provider == PROVIDERS.index("apple"))
        self.machine = np.zeros(n, bool)
        share = world.rates["machine_open"] / PROVIDER_SHARES[PROVIDERS.index("apple")]
        self.machine[apple] = draws.uniform(self.key[apple], 110) < share
        self.scanned = draws.uniform(self.key, 111) < world.rates["scanner"]
        purges = {s - first: d for s, d in world.purges.items() if first <= s < first + n and client == 0}
        self.purges = purges
        p_awake = self.wake / (self.wake + self.fall)
        self.state: dict[str, NDArray[Any]] = {
            "awake": (draws.uniform(self.key, 112) < p_awake) | joiner,
            "sent_days": np.zeros(n, np.uint8),  # bit j: a send on the day j + 1 days ago
            "open_days": np.zeros(n, np.uint8),  # bit j: an open on the day j days from now, already decided
            "streak": np.zeros(n, np.int32),
            "received": np.where(joiner, 0, ESTABLISHED).astype(np.int32),
            "stop_ts": np.full(n, NEVER),  # no send at or after this
            "got": np.zeros((0, 3), np.int64),  # (row, day, campaign) of deliveries to those who will delete all
        }

    def _join_times(self) -> NDArray[np.int64]:
        """When each subscriber joins, int64[n] microseconds UTC; 0: before the log begins."""
        initial = self.world.initial[self.client.index]
        days = (self.number - initial + draws.uniform(self.key, 113)) / max(self.client.growth * initial, 1e-9)
        ts = (self.client.start * DAY) + (days * DAY).astype(np.int64)
        return np.where(self.number < initial, 0, ts)

    def plan(self, day: int) -> tuple[NDArray[np.int64], Planned, NDArray[np.uint64]]:
        """Who the cadence would send what on ``day``: rows of the block, the plan, and the day's keys uint64[n]."""
        today = calendar(self.client, day)
        keys = draws.at(self.key, day)
        start = (self.client.start + day) * DAY
        hold_until = np.maximum(self.join_ts + 2 * HOUR, start)  # nobody gets a campaign within 2 h of joining
        row = np.flatnonzero((draws.uniform(keys, 0) < today.intensity * self.traits.tier) & (hold_until < start + DAY))
        position = (draws.uniform(keys[row], 1) * CAMPAIGNS_A_DAY).astype(np.int64)
        ts = start + ((today.hour[position] - self.client.utc_offset) * HOUR).astype(np.int64)
        ts += (draws.uniform(keys[row], 2) * (1.5 * HOUR)).astype(np.int64)
        stop: NDArray[np.int64] = self.state["stop_ts"]
        go = (ts >= hold_until[row]) & (ts < stop[row])
        row, position, ts = row[go], position[go], ts[go]
        campaign = (day * CAMPAIGNS_A_DAY + position).astype(np.int32)
        ids = rows.event_ids(self.client.index, self.number[row], day, SEND)
        return row, Planned(self.client.index, ids, self.number[row], campaign, ts), keys

    def step(self, day: int, allowed: NDArray[np.int64] | None = None) -> tuple[Rows, SendTruth]:
        """Everything that follows from the sends of ``day``, whenever it happens, and the truth of those sends.

        Args:
            day: the days from the first on must be stepped in order, each once.
            allowed: int64[m], event ids of the planned sends that go out; None: all of them.
        """
        state, p, world = self.state, self.world.parameters, self.world
        row, planned, keys = self.plan(day)
        if allowed is not None:
            go = np.flatnonzero(np.isin(planned.event_id, allowed))
            row = row[go]
            planned = Planned(planned.client, *(c[go] for c in planned.columns()))
        ts, n = planned.ts, len(row)
        today = calendar(self.client, day)
        position = planned.campaign - day * CAMPAIGNS_A_DAY
        key = keys[row]
        awake = np.asarray(state["awake"][row], bool)
        seen = Seen(
            volume=np.bitwise_count(state["sent_days"][row]).astype(np.int64),
            streak=state["streak"][row].astype(np.int64),
            received=state["received"][row].astype(np.int64),
            topic=today.topic[position],
            quality=today.quality[position],
            hour=today.hour[position],
        )
        chance = send_probabilities(p, self.client, self.traits[row], awake, seen)
        out = _Outcomes(self, day, row, planned.campaign)
        out.add("send", SEND, np.arange(n), ts)
        opened_ts, delivered, reached = self._react(out, key, ts, chance, p)
        self._leave(out, key, ts, opened_ts, reached, chance, p)
        self._machines(out, day, key, ts, delivered)
        self._purge(out, day, row, planned.campaign, delivered)
        new = np.flatnonzero(self.join_ts // DAY == self.client.start + day)
        out.joined(new, self.join_ts[new])
        truth = SendTruth(
            planned.client,
            planned.event_id,
            planned.subscriber,
            planned.campaign,
            ts,
            chance.p_open,
            chance.p_click,
            chance.p_complaint,
            chance.p_unsubscribe,
            awake,
            seen.volume,
            seen.streak,
            seen.received,
        )
        self._advance(day, keys, row)
        return receive(rows.concat(out.parts), world.rates), truth

    def _react(
        self, out: _Outcomes, key: NDArray[np.uint64], ts: NDArray[np.int64], chance: Probabilities, p: Parameters
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Bounces, opens, clicks, deletes. Returns open times (NEVER: none), and who was delivered to, reached."""
        n, stop = len(ts), self.state["stop_ts"]
        u = draws.uniform(key, 3)
        hard = u < chance.hard
        bounced = hard | (u < chance.hard + (1.0 - chance.hard) * chance.soft)
        which = np.flatnonzero(bounced)
        after = ts[which] + 500_000 + (draws.uniform(key[which], 4) * 60e6).astype(np.int64)
        for kind, mask in (("hard_bounce", hard[which]), ("soft_bounce", ~hard[which])):
            out.add(kind, BOUNCE, which[mask], after[mask])
        gone = which[hard[which]]
        stop[out.row[gone]] = np.minimum(stop[out.row[gone]], after[hard[which]])
        spam = draws.uniform(key, 5) < chance.spam
        reached = ~bounced & ~spam
        u = draws.uniform(key, 6)
        opened = np.flatnonzero(~bounced & (u < np.where(spam, chance.open * chance.spam_open, chance.open)))
        opened_ts = np.full(n, NEVER)
        opened_ts[opened] = ts[opened] + draws.delay(draws.uniform(key[opened], 7), *p.open_delay)
        out.add("open", OPEN, opened, opened_ts[opened])
        self._note_open(out, opened, opened_ts[opened])
        u = draws.uniform(key[opened], 8)
        again = opened[u < p.again]
        again_ts = opened_ts[again] + draws.delay(draws.uniform(key[again], 9), *p.again_delay)
        out.add("open", OPEN_AGAIN, again, again_ts)
        self._note_open(out, again, again_ts)
        clicked = opened[draws.uniform(key[opened], 10) < chance.click[opened]]
        click_ts = opened_ts[clicked] + draws.delay(draws.uniform(key[clicked], 11), *p.soon_delay)
        out.add("click", CLICK, clicked, click_ts)
        twice = draws.uniform(key[clicked], 12) < p.again
        pause = draws.delay(draws.uniform(key[clicked[twice]], 13), *p.soon_delay)
        out.add("click", CLICK_AGAIN, clicked[twice], click_ts[twice] + pause)
        was_opened = opened_ts != NEVER
        deleted = reached & (draws.uniform(key, 14) < np.where(was_opened, chance.delete_opened, chance.delete_unread))
        first, second = np.flatnonzero(deleted & was_opened), np.flatnonzero(deleted & ~was_opened)
        out.add("delete", DELETE, first, opened_ts[first] + draws.delay(draws.uniform(key[first], 15), *p.soon_delay))
        out.add("delete", DELETE, second, ts[second] + draws.delay(draws.uniform(key[second], 15), *p.delete_delay))
        return opened_ts, ~bounced, reached

    def _note_open(self, out: _Outcomes, which: NDArray[np.int64], ts: NDArray[np.int64]) -> None:
        days_ahead = ts // DAY - (self.client.start + out.day)
        self.state["open_days"][out.row[which]] |= np.left_shift(1, days_ahead).astype(np.uint8)

    def _leave(
        self,
        out: _Outcomes,
        key: NDArray[np.uint64],
        ts: NDArray[np.int64],
        opened_ts: NDArray[np.int64],
        reached: NDArray[np.bool_],
        chance: Probabilities,
        p: Parameters,
    ) -> None:
        was_opened = opened_ts != NEVER
        left = np.flatnonzero(
            reached & (draws.uniform(key, 16) < np.where(was_opened, chance.leave_opened, chance.leave_unread))
        )
        u = draws.uniform(key[left], 17)
        soon, slow = draws.delay(u, *p.soon_delay), draws.delay(u, *p.leave_delay)
        left_ts = np.where(was_opened[left], opened_ts[left], ts[left]) + np.where(was_opened[left], soon, slow)
        complains = draws.uniform(key[left], 18) < chance.complain[left]
        out.add("complaint", LEAVE, left[complains], left_ts[complains])
        out.add("unsubscribe", LEAVE, left[~complains], left_ts[~complains])
        effective = left_ts + (draws.uniform(key[left], 19) * (p.suppression_lag * 1e6)).astype(np.int64)
        stop, row = self.state["stop_ts"], out.row[left]
        stop[row] = np.minimum(stop[row], effective)

    def _machines(
        self,
        out: _Outcomes,
        day: int,
        key: NDArray[np.uint64],
        ts: NDArray[np.int64],
        delivered: NDArray[np.bool_],
    ) -> None:
        which = np.flatnonzero(delivered & self.machine[out.row])
        u = draws.uniform(key[which], 30)  # two in three within 2 s, the others when the device fetches its mail
        wait = np.where(u < 2 / 3, 0.2 + 2.5 * u, 2.0 + 2700.0 * (u - 2 / 3))
        out.add("open", MACHINE, which, ts[which] + (wait * 1e6).astype(np.int64), BITS["machine_open"])
        which = np.flatnonzero(delivered & self.scanned[out.row])
        links = 3 + (draws.uniform(key[which], 31) * 4).astype(np.int64)
        for i in range(6):
            some = which[links > i]
            wait = 0.1 + 1.8 * draws.uniform(key[some], 32 + i)
            out.add("click", SCANNER_SLOT + i, some, ts[some] + (wait * 1e6).astype(np.int64), BITS["scanner"])
        if day in self.world.anomalies:
            which = np.flatnonzero(delivered & (self.traits.provider[out.row] == self.world.anomalies[day]))
            for i in range(ANOMALY_OPENS):
                wait = 60.0 + 5400.0 * draws.uniform(key[which], 40 + i)
                out.add("open", ANOMALY_SLOT + i, which, ts[which] + (wait * 1e6).astype(np.int64), BITS["anomaly"])

    def _purge(
        self,
        out: _Outcomes,
        day: int,
        row: NDArray[np.int64],
        campaign: NDArray[np.int32],
        delivered: NDArray[np.bool_],
    ) -> None:
        for who, when in self.purges.items():
            got = np.flatnonzero(delivered & (row == who))
            new = np.column_stack([row[got], np.full(len(got), day), campaign[got]]).astype(np.int64)
            self.state["got"] = np.concatenate([self.state["got"], new])
            if day == when:
                mine = self.state["got"][self.state["got"][:, 0] == who]
                start = (self.client.start + day) * DAY + 20 * HOUR
                out.purged(who, mine, start + np.arange(len(mine)) * (HOUR // max(len(mine), 1)))

    def _advance(self, day: int, keys: NDArray[np.uint64], row: NDArray[np.int64]) -> None:
        """From the day just simulated to the next."""
        state = self.state
        sent = np.zeros(len(self.number), np.uint8)
        sent[row] = 1
        opened = (state["open_days"] & np.uint8(1)).astype(bool)
        state["streak"] = np.where(opened, 0, state["streak"] + sent).astype(np.int32)
        state["received"][row] += 1
        state["open_days"] = state["open_days"] >> np.uint8(1)
        state["sent_days"] = ((state["sent_days"] << np.uint8(1)) | sent) & np.uint8(127)
        flips = draws.uniform(keys, 20) < np.where(state["awake"], self.fall, self.wake)
        flips &= self.join_ts < (self.client.start + day + 1) * DAY  # joiners come awake
        state["awake"] = state["awake"] ^ flips


class _Outcomes:
    """Collects the events of one block's day."""

    def __init__(self, block: Block, day: int, row: NDArray[np.int64], campaign: NDArray[np.int32]) -> None:
        self.block, self.day, self.row, self.campaign = block, day, row, campaign
        self.parts: list[Rows] = []

    def add(
        self, kind: str, slot: int, which: NDArray[np.int64], ts: NDArray[np.int64], flaw: np.uint16 | int = 0
    ) -> None:
        """Events of one kind: ``which`` of the day's sends caused them, and when they happen; int64[m] each."""
        subscriber = self.block.number[self.row[which]]
        ids = rows.event_ids(self.block.client.index, subscriber, self.day, slot)
        self._append(kind, self.row[which], self.campaign[which], ts, ids, flaw)

    def joined(self, row: NDArray[np.int64], ts: NDArray[np.int64]) -> None:
        ids = rows.event_ids(self.block.client.index, self.block.number[row], self.day, JOIN)
        self._append("subscribe", row, np.full(len(row), rows.NO_CAMPAIGN, np.int32), ts, ids, 0)

    def purged(self, row: int, got: NDArray[np.int64], ts: NDArray[np.int64]) -> None:
        """A delete of each message in ``got``: int64[m, 3] of (row, day, campaign)."""
        who = np.full(len(got), row)
        ids = rows.event_ids(self.block.client.index, self.block.number[who], got[:, 1], PURGE_SLOT)
        self._append("delete", who, got[:, 2].astype(np.int32), ts, ids, BITS["delete_all"])

    def _append(
        self,
        kind: str,
        row: NDArray[np.int64],
        campaign: NDArray[np.int32],
        ts: NDArray[np.int64],
        ids: NDArray[np.int64],
        flaw: np.uint16 | int,
    ) -> None:
        n = len(row)
        self.parts.append(
            Rows(
                client=np.full(n, self.block.client.index, np.int16),
                subscriber=self.block.number[row],
                campaign=campaign,
                kind=np.full(n, KIND[kind]),
                provider=self.block.traits.provider[row],
                ts=ts,
                received=ts,
                event_id=ids,
                flaw=np.full(n, flaw, np.uint16),
            )
        )
