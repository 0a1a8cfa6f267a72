"""Simulated rows and their truth as Parquet files.

Files are written without Arrow's schema in their metadata, so that a reader sees plain strings, as other writers leave them.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.events import dirt
from pipeline.events.behaviour import CAMPAIGNS_A_DAY, PROVIDERS, TOPICS, calendar, campaign_name
from pipeline.events.history import Group
from pipeline.events.population import SendTruth, World
from pipeline.events.rows import KINDS, NO_CAMPAIGN, Rows

TIME = pa.timestamp("us", tz="UTC")
TRUTH_ROWS = 500_000  # sends kept in memory before they are written


class GroupWriter:
    """Writes one group's days. Not thread-safe: one thread at a time."""

    def __init__(self, world: World, ids: str, out: Path, number: int) -> None:
        self.world, self.ids, self.out, self.number = world, ids, out, number
        self.kinds: dict[str, int] = {}
        self.dirt: dict[str, int] = {}
        self._writers: dict[str, Any] = {}
        self._truths: list[SendTruth] = []
        self.state_path = out / "truth" / "state" / f"group-{number:04d}.npz"
        self.state_path.parent.mkdir(parents=True, exist_ok=True)

    def day(self, day: int, arrived: Rows, truths: list[SendTruth]) -> int:
        """Write the rows that arrived on ``day``; returns how many."""
        folder = self.out / "events" / f"day={self._date(day)}"
        folder.mkdir(parents=True, exist_ok=True)
        shown, no_subscriber, no_time, no_kind, unknown = dirt.spoil(arrived)
        kind = np.where(unknown >= 0, len(KINDS) + unknown, shown.kind).astype(np.int8)
        table = pa.table(
            {
                "client": dictionary(shown.client, [c.name for c in self.world.clients]),
                "user_id": self._subscriber(shown.subscriber, no_subscriber),
                "event_time": pa.array(shown.ts, pa.int64(), mask=no_time).cast(TIME),
                "event_name": dictionary(kind, [*KINDS, *dirt.UNKNOWN], no_kind),
                "campaign_id": self._campaign(shown.client, shown.campaign),
                "message_id": shown.event_id,
                "provider": dictionary(shown.provider, PROVIDERS),
                "received_at": pa.array(shown.received, pa.int64()).cast(TIME),
            }
        )
        write(table, folder / f"part-{self.number:04d}.parquet")
        for i, count in enumerate(np.bincount(arrived.kind, minlength=len(KINDS))):
            self.kinds[KINDS[i]] = self.kinds.get(KINDS[i], 0) + int(count)
        self._dirt(day, arrived)
        self._truths += truths
        if sum(len(t.ts) for t in self._truths) >= TRUTH_ROWS:
            self._flush()
        return len(arrived)

    def subscribers(self, group: Group) -> None:
        """The static traits of the group's subscribers."""
        for block in group.blocks:
            n, traits = len(block.number), block.traits
            self._append(
                "subscribers",
                {
                    "client": pa.array([block.client.name] * n),
                    "subscriber": self._subscriber(block.number),
                    "joined": pa.array(block.join_ts, pa.int64(), mask=block.join_ts == 0).cast(TIME),
                    "engagement": traits.engagement,
                    "patience": traits.patience,
                    "interest": dictionary(traits.interest, TOPICS),
                    "hour": traits.hour,
                    "provider": dictionary(traits.provider, PROVIDERS),
                    "tier": traits.tier,
                    "machine_open": block.machine,
                    "scanner": block.scanned,
                },
            )

    def close(self) -> None:
        self._flush()
        for writer in self._writers.values():
            writer.close()

    def _date(self, day: int) -> dt.date:
        return dt.date(1970, 1, 1) + dt.timedelta(days=self.world.clients[0].start + day)

    def _dirt(self, day: int, arrived: Rows) -> None:
        flawed = arrived.take(np.flatnonzero(arrived.flaw))
        for kind, bit in dirt.BITS.items():
            some = flawed.take(np.flatnonzero(flawed.flaw & bit))
            self.dirt[kind] = self.dirt.get(kind, 0) + len(some)
            self._append(
                "dirt",
                {
                    "day": pa.array([self._date(day)] * len(some), pa.date32()),
                    "client": dictionary(some.client, [c.name for c in self.world.clients]),
                    "event_id": some.event_id,
                    "dirt": pa.array([kind] * len(some), pa.string()),
                    "received_at": pa.array(some.received, pa.int64()).cast(TIME),
                    "subscriber": self._subscriber(some.subscriber),
                    "ts": pa.array(some.ts, pa.int64()).cast(TIME),
                    "event": dictionary(some.kind, KINDS),
                },
            )

    def _flush(self) -> None:
        for t in self._truths:
            self._append(
                "sends",
                {
                    "client": dictionary(np.full(len(t.ts), t.client), [c.name for c in self.world.clients]),
                    "event_id": t.event_id,
                    "subscriber": self._subscriber(t.subscriber),
                    "campaign": self._campaign(np.full(len(t.ts), t.client), t.campaign),
                    "ts": pa.array(t.ts, pa.int64()).cast(TIME),
                    "p_open": t.p_open.astype(np.float32),
                    "p_click": t.p_click.astype(np.float32),
                    "p_complaint": t.p_complaint.astype(np.float32),
                    "p_unsubscribe": t.p_unsubscribe.astype(np.float32),
                    "p_unsubscribe_or_complaint": (t.p_unsubscribe + t.p_complaint).astype(np.float32),
                    "awake": t.awake,
                    "volume": t.volume.astype(np.int16),
                    "streak": t.streak.astype(np.int16),
                    "received": t.received.astype(np.int32),
                },
            )
        self._truths = []

    def _append(self, name: str, columns: dict[str, Any]) -> None:
        table = pa.table(columns)
        table = table.cast(pa.schema([(f.name, decoded(f.type)) for f in table.schema]))
        if name not in self._writers:
            path = self.out / "truth" / name / f"part-{self.number:04d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writers[name] = pq.ParquetWriter(path, table.schema, store_schema=False)
        self._writers[name].write_table(table)

    def _subscriber(self, number: NDArray[np.int64], null: NDArray[np.bool_] | None = None) -> Any:
        return subscriber_ids(number, self.ids, null)

    def _campaign(self, client: NDArray[Any], campaign: NDArray[Any]) -> Any:
        none = campaign == NO_CAMPAIGN
        if self.ids == "integer":
            return pa.array(campaign.astype(np.int64), mask=none)
        code = np.where(none, -1, campaign.astype(np.int64) * len(self.world.clients) + client)
        distinct, index = np.unique(code, return_inverse=True)
        names = [
            ""
            if c < 0
            else campaign_name(self.world.clients[c % len(self.world.clients)], c // len(self.world.clients))
            for c in distinct.tolist()
        ]
        return dictionary(index, names, none)


def write_campaigns(world: World, days: int, ids: str, path: Path) -> None:
    """The truth of every campaign: client, campaign, day, topic, quality (standard normal), hour (local)."""
    rows = []
    for client in world.clients:
        for day in range(days):
            today = calendar(client, day)
            for i in range(CAMPAIGNS_A_DAY):
                number = day * CAMPAIGNS_A_DAY + i
                rows.append(
                    {
                        "client": client.name,
                        "campaign": campaign_name(client, number) if ids == "string" else number,
                        "day": dt.date(1970, 1, 1) + dt.timedelta(days=client.start + day),
                        "topic": TOPICS[today.topic[i]],
                        "quality": float(today.quality[i]),
                        "hour": int(today.hour[i]),
                    }
                )
    write(pa.Table.from_pylist(rows), path)


def write(table: Any, path: Path) -> None:
    pq.write_table(table, path, store_schema=False)


def decoded(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


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
