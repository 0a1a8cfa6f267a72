"""Simulated rows and their truth as Parquet files.

Files are written without Arrow's schema in their metadata, so that a reader sees plain strings, as from other writers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.events import dirt
from pipeline.events.behaviour import CAMPAIGNS_A_DAY, PROVIDERS, TOPICS, calendar, campaign_name
from pipeline.events.history import Group
from pipeline.events.population import Block, Planned, SendTruth, World
from pipeline.events.rows import KINDS, NO_CAMPAIGN, Rows, concat

TIME = pa.timestamp("us", tz="UTC")
TRUTH_ROWS = 500_000  # sends kept in memory before they are written


def event_table(world: World, ids: str, arrived: Rows) -> Any:
    """Rows as the collector's columns, in their order, flaws showing: a pyarrow.Table (see simulate.py)."""
    shown, no_subscriber, no_time, no_kind, unknown = dirt.spoil(arrived)
    kind = np.where(unknown >= 0, len(KINDS) + unknown, shown.kind).astype(np.int8)
    return pa.table(
        {
            "client": dictionary(shown.client, _names(world)),
            "user_id": subscriber_ids(shown.subscriber, ids, no_subscriber),
            "event_time": times(shown.ts, no_time),
            "event_name": dictionary(kind, [*KINDS, *dirt.UNKNOWN], no_kind),
            "campaign_id": campaign_ids(world, ids, shown.client, shown.campaign),
            "message_id": shown.event_id,
            "provider": dictionary(shown.provider, PROVIDERS),
            "received_at": times(shown.received),
        }
    )


def planned_table(world: World, ids: str, plans: Sequence[Planned]) -> Any:
    """Planned sends: client, subscriber, campaign, ts, event_id (of the send to be); a pyarrow.Table."""
    client = np.repeat([p.client for p in plans], [len(p.ts) for p in plans])
    event_id, subscriber, campaign, ts = (np.concatenate(c) for c in zip(*(p.columns() for p in plans), strict=True))
    return pa.table(
        {
            "client": dictionary(client, _names(world)),
            "subscriber": subscriber_ids(subscriber, ids),
            "campaign": campaign_ids(world, ids, client, campaign),
            "ts": times(ts),
            "event_id": event_id,
        }
    )


def truth_table(world: World, ids: str, truths: Sequence[SendTruth]) -> Any:
    """The truth of sends; a pyarrow.Table (see simulate.py)."""
    client = np.repeat([t.client for t in truths], [len(t.ts) for t in truths])
    names = [f.name for f in dataclasses.fields(SendTruth) if f.name != "client"]
    joined = {name: np.concatenate([getattr(t, name) for t in truths]) for name in names}
    either = joined["p_unsubscribe"] + joined["p_complaint"]
    return pa.table(
        {
            "client": dictionary(client, _names(world)),
            "event_id": joined["event_id"],
            "subscriber": subscriber_ids(joined["subscriber"], ids),
            "campaign": campaign_ids(world, ids, client, joined["campaign"]),
            "ts": times(joined["ts"]),
            **{name: joined[name].astype(np.float32) for name in names if name.startswith("p_")},
            "p_unsubscribe_or_complaint": either.astype(np.float32),
            "awake": joined["awake"],
            **{name: joined[name].astype(np.int32) for name in ("volume", "streak", "received")},
        }
    )


def dirt_table(world: World, ids: str, flawed: Sequence[tuple[int, int, Rows]]) -> Any:
    """Flaws of rows, given as (day of arrival, index of the kind of dirt, rows); a pyarrow.Table (see simulate.py)."""
    lengths = [len(some) for _, _, some in flawed]
    some = concat([some for _, _, some in flawed])
    days = np.repeat([world.clients[0].start + day for day, _, _ in flawed], lengths)
    return pa.table(
        {
            "day": pa.array(days.astype(np.int32), pa.int32()).cast(pa.date32()),
            "client": dictionary(some.client, _names(world)),
            "event_id": some.event_id,
            "dirt": dictionary(np.repeat([kind for _, kind, _ in flawed], lengths), list(dirt.BITS)),
            "received_at": times(some.received),
            "subscriber": subscriber_ids(some.subscriber, ids),
            "ts": times(some.ts),
            "event": dictionary(some.kind, KINDS),
        }
    )


def subscriber_table(world: World, ids: str, block: Block) -> Any:
    """Static traits of a block's subscribers; ``joined`` is null where that was before the log. A pyarrow.Table."""
    n, traits = len(block.number), block.traits
    return pa.table(
        {
            "client": dictionary(np.full(n, block.client.index), _names(world)),
            "subscriber": subscriber_ids(block.number, ids),
            "joined": times(block.join_ts, block.join_ts == 0),
            "engagement": traits.engagement,
            "patience": traits.patience,
            "interest": dictionary(traits.interest, TOPICS),
            "hour": traits.hour,
            "provider": dictionary(traits.provider, PROVIDERS),
            "tier": traits.tier,
            "machine_open": block.machine,
            "scanner": block.scanned,
        }
    )


def campaign_table(world: World, ids: str, days: int) -> Any:
    """Every campaign: client, campaign, day, topic, quality (standard normal), hour (local). A pyarrow.Table."""
    number = np.arange(days * CAMPAIGNS_A_DAY)
    parts = []
    for client in world.clients:
        today = [calendar(client, day) for day in range(days)]
        index = np.full(len(number), client.index)
        parts.append(
            pa.table(
                {
                    "client": dictionary(index, _names(world)),
                    "campaign": campaign_ids(world, ids, index, number),
                    "day": pa.array((client.start + number // CAMPAIGNS_A_DAY).astype(np.int32)).cast(pa.date32()),
                    "topic": dictionary(np.concatenate([c.topic for c in today]), TOPICS),
                    "quality": np.concatenate([c.quality for c in today]),
                    "hour": np.concatenate([c.hour for c in today]).astype(np.int32),
                }
            )
        )
    return pa.concat_tables(parts)


class GroupWriter:
    """Writes one group's days. Not thread-safe: one thread at a time."""

    def __init__(self, world: World, ids: str, out: Path, number: int) -> None:
        self.world, self.ids, self.out, self.number = world, ids, out, number
        self.kinds: dict[str, int] = {}
        self.dirt: dict[str, int] = {}
        self._writers: dict[str, Any] = {}
        self._truths: list[SendTruth] = []
        self._flawed: list[tuple[int, int, Rows]] = []

    def day(self, day: int, arrived: Rows, truths: list[SendTruth]) -> int:
        """Write the rows that arrived on ``day``; returns how many."""
        date = dt.date(1970, 1, 1) + dt.timedelta(days=self.world.clients[0].start + day)
        folder = self.out / "events" / f"day={date}"
        folder.mkdir(parents=True, exist_ok=True)
        write(event_table(self.world, self.ids, arrived), folder / f"part-{self.number:04d}.parquet")
        for i, count in enumerate(np.bincount(arrived.kind, minlength=len(KINDS))):
            self.kinds[KINDS[i]] = self.kinds.get(KINDS[i], 0) + int(count)
        flawed = arrived.take(np.flatnonzero(arrived.flaw))
        for i, (kind, bit) in enumerate(dirt.BITS.items()):
            some = flawed.take(np.flatnonzero(flawed.flaw & bit))
            self.dirt[kind] = self.dirt.get(kind, 0) + len(some)
            self._flawed.append((day, i, some))
        self._truths += truths
        if sum(len(t.ts) for t in self._truths) >= TRUTH_ROWS:
            self._flush()
        return len(arrived)

    def subscribers(self, group: Group) -> None:
        """Write the static traits of the group's subscribers."""
        for block in group.blocks:
            self._append("subscribers", subscriber_table(self.world, self.ids, block))

    def close(self) -> None:
        self._flush()
        for writer in self._writers.values():
            _close(writer)

    def abandon(self) -> None:
        """Give up: what is written is of no use. Nor may a writer try once more when it is collected, and complain."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                _close(writer)

    def _flush(self) -> None:
        if self._flawed:
            self._append("dirt", dirt_table(self.world, self.ids, self._flawed))
        if self._truths:
            self._append("sends", truth_table(self.world, self.ids, self._truths))
        self._truths, self._flawed = [], []

    def _append(self, name: str, table: Any) -> None:
        if name not in self._writers:
            path = self.out / "truth" / name / f"part-{self.number:04d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            options = {"store_schema": False, "use_dictionary": repetitive(table.schema)}
            self._writers[name] = pq.ParquetWriter(path, table.schema, **options)
        self._writers[name].write_table(table)


def campaign_ids(world: World, ids: str, client: NDArray[Any], campaign: NDArray[Any]) -> Any:
    """What the log calls campaigns: their names, or day x CAMPAIGNS_A_DAY + position; Arrow array, null without one."""
    none = campaign == NO_CAMPAIGN
    if ids == "integer":
        return pa.array(campaign.astype(np.int64), mask=none)
    clients = world.clients
    code = np.where(none, 0, campaign * np.int64(len(clients)) + client)
    present = np.zeros(int(code.max(initial=0)) + 1, bool)
    present[code] = True
    distinct = np.flatnonzero(present)
    names = [campaign_name(clients[c % len(clients)], c // len(clients)) for c in distinct.tolist()]
    # Clients may use one name on one day, and a Parquet dictionary with repeats falls back to plain text.
    unique = {name: i for i, name in enumerate(dict.fromkeys(names))}
    index = np.zeros(len(present), np.int64)
    index[distinct] = [unique[name] for name in names]
    return dictionary(index[code], unique, none)


def write(table: Any, path: Path) -> None:
    writer = pq.ParquetWriter(path, table.schema, store_schema=False, use_dictionary=repetitive(table.schema))
    try:
        writer.write_table(table)
    finally:
        _close(writer)


def _close(writer: Any) -> None:
    try:
        writer.close()
    finally:
        writer.is_open = False  # where closing failed too, for want of room: or it tries again when it is collected


def repetitive(schema: Any) -> list[str]:
    """The columns worth a dictionary; encoding the distinct ones in vain takes as long as all the rest of writing."""
    return [field.name for field in schema if pa.types.is_dictionary(field.type)]


def times(us: NDArray[np.int64], null: NDArray[np.bool_] | None = None) -> Any:
    """int64[n] microseconds UTC as an Arrow timestamp array, null where ``null``."""
    return pa.array(us, pa.int64(), mask=null).cast(TIME)


def _names(world: World) -> list[str]:
    return [client.name for client in world.clients]


def dictionary(codes: NDArray[Any], names: Any, null: NDArray[np.bool_] | None = None) -> Any:
    """Arrow dictionary array of names[codes], null where ``null``."""
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32), mask=null), pa.array(list(names), pa.string())
    )


def subscriber_ids(number: NDArray[np.int64], ids: str, null: NDArray[np.bool_] | None = None) -> Any:
    """What the log calls subscribers: "u" and nine digits, or the number itself; Arrow array."""
    if ids == "integer":
        return pa.array(number, pa.int64(), mask=null)
    n, width = len(number), 10
    text = np.empty((n, width), np.uint8)
    text[:, 0] = ord("u")
    rest = number.astype(np.uint32)
    for place in range(width - 1, 0, -1):
        rest, digit = np.divmod(rest, np.uint32(10))
        text[:, place] = digit + ord("0")
    offsets = np.arange(0, (n + 1) * width, width, dtype=np.int32)
    valid = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little"))
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text), valid)
