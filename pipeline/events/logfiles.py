"""Simulated rows and their truth as Parquet files.

Files are written without Arrow's schema in their metadata, so that a reader sees plain strings, as other writers leave them.
"""

from __future__ import annotations

import dataclasses
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
from pipeline.events.rows import KINDS, NO_CAMPAIGN, Rows, concat

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
        self._flawed: list[tuple[int, int, Rows]] = []  # day, index of its flaw, rows
        self._names = [client.name for client in world.clients]
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
                "client": dictionary(shown.client, self._names),
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
        """Keep what is wrong with the rows that arrived on ``day``: a row for each flaw of each."""
        flawed = arrived.take(np.flatnonzero(arrived.flaw))
        for i, (kind, bit) in enumerate(dirt.BITS.items()):
            some = flawed.take(np.flatnonzero(flawed.flaw & bit))
            self.dirt[kind] = self.dirt.get(kind, 0) + len(some)
            self._flawed.append((day, i, some))

    def _write_dirt(self) -> None:
        lengths = [len(some) for _, _, some in self._flawed]
        some = concat([some for _, _, some in self._flawed])
        days = np.repeat([self.world.clients[0].start + day for day, _, _ in self._flawed], lengths)
        self._append(
            "dirt",
            {
                "day": pa.array(days.astype(np.int32), pa.int32()).cast(pa.date32()),
                "client": dictionary(some.client, self._names),
                "event_id": some.event_id,
                "dirt": dictionary(np.repeat([kind for _, kind, _ in self._flawed], lengths), list(dirt.BITS)),
                "received_at": pa.array(some.received, pa.int64()).cast(TIME),
                "subscriber": self._subscriber(some.subscriber),
                "ts": pa.array(some.ts, pa.int64()).cast(TIME),
                "event": dictionary(some.kind, KINDS),
            },
        )
        self._flawed = []

    def _flush(self) -> None:
        if self._flawed:
            self._write_dirt()
        if not self._truths:
            return
        n = [len(t.ts) for t in self._truths]
        client = np.repeat([t.client for t in self._truths], n)
        joined = {
            f.name: np.concatenate([getattr(t, f.name) for t in self._truths])
            for f in dataclasses.fields(SendTruth)
            if f.name != "client"
        }
        self._truths = []
        p = {name: column.astype(np.float32) for name, column in joined.items() if name.startswith("p_")}
        self._append(
            "sends",
            {
                "client": dictionary(client, self._names),
                "event_id": joined["event_id"],
                "subscriber": self._subscriber(joined["subscriber"]),
                "campaign": self._campaign(client, joined["campaign"]),
                "ts": pa.array(joined["ts"], pa.int64()).cast(TIME),
                **p,
                "p_unsubscribe_or_complaint": (joined["p_unsubscribe"] + joined["p_complaint"]).astype(np.float32),
                "awake": joined["awake"],
                **{name: joined[name].astype(np.int32) for name in ("volume", "streak", "received")},
            },
        )

    def _append(self, name: str, columns: dict[str, Any]) -> None:
        table = pa.table(columns)
        if name not in self._writers:
            path = self.out / "truth" / name / f"part-{self.number:04d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writers[name] = pq.ParquetWriter(
                path, table.schema, store_schema=False, use_dictionary=repetitive(table.schema)
            )
        self._writers[name].write_table(table)

    def _subscriber(self, number: NDArray[np.int64], null: NDArray[np.bool_] | None = None) -> Any:
        return subscriber_ids(number, self.ids, null)

    def _campaign(self, client: NDArray[Any], campaign: NDArray[Any]) -> Any:
        none = campaign == NO_CAMPAIGN
        if self.ids == "integer":
            return pa.array(campaign.astype(np.int64), mask=none)
        clients = self.world.clients
        code = np.where(none, 0, campaign * np.int64(len(clients)) + client)
        present = np.zeros(int(code.max(initial=0)) + 1, bool)
        present[code] = True
        index = np.cumsum(present) - 1
        distinct = np.flatnonzero(present).tolist()
        names = [campaign_name(clients[c % len(clients)], c // len(clients)) for c in distinct]
        return dictionary(index[code], names, none)


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
    pq.write_table(table, path, store_schema=False, use_dictionary=repetitive(table.schema))


def repetitive(schema: Any) -> list[str]:
    """The columns worth a dictionary; encoding the distinct ones in vain takes as long as all the rest of writing."""
    return [field.name for field in schema if pa.types.is_dictionary(field.type)]


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
