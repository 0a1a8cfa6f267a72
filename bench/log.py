"""The bench's own logs: daily Parquet source files, the same for every engine.

Uniform on purpose, so that nobody's cache or index is favoured: every subscriber is equally busy, over 180 days; 60% of
events are sends. No two events share subscriber and time, so there are no duplicates to drop. Opens, clicks and
unsubscribes are of campaigns two weeks old, so that none follows a send of its campaign within seconds, as a machine's
would.

Written compactly (times and message ids as differences), since a billion events should fit 10 GB.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

KINDS = ("send", "open", "click", "delete", "unsubscribe", "soft_bounce")
RESPONSES = tuple(KINDS.index(kind) for kind in ("open", "click", "unsubscribe"))
SHARES = (0.60, 0.20, 0.03, 0.12, 0.01, 0.04)
DAYS = 180
DAY = 86_400_000_000
HOUR = 3_600_000_000
START = 1_767_225_600_000_000  # 2026-01-01 UTC, microseconds
NOW = START + (DAYS + 1) * DAY  # the end of the new day
EVENTS_EACH = 200  # per subscriber
CAMPAIGNS = 20  # a week
NEW = 100  # the new day holds one event for so many of the log
SLOTS = DAY // 1000  # a time is a millisecond of the day
PART = 2_000_000  # rows of a file at most
FORMAT = 3
IDS = ("integer", "text")  # user_id and message_id: int64, or "u0000001234" and UUIDs


@dataclass(frozen=True)
class Log:
    """``days``: the log's folder; ``new``: the new day's; ``live``: what ours ingests, where the new day arrives."""

    events: int
    ids: str
    days: Path
    new: Path
    live: Path
    bytes: int

    @property
    def subscribers(self) -> int:
        return max(self.events // EVENTS_EACH, 1)

    def arrive(self, new: bool) -> None:
        """Let the new day be in ``live`` beside the log's days, or not."""
        link = self.live / f"day={date(DAYS)}"
        link.unlink(missing_ok=True)
        if new:
            link.symlink_to(Path("..") / self.new.name / link.name)


def files(folder: Path, first_day: int = 0) -> list[str]:
    """The Parquet files of a log, from day number ``first_day`` on, in the order of time."""
    first = f"day={date(first_day)}"
    return [str(f) for day in sorted(folder.glob("day=*")) if day.name >= first for f in sorted(day.glob("*.parquet"))]


def date(day: int) -> str:
    return str(np.datetime64((START + day * DAY) // 1_000_000, "s").astype("datetime64[D]"))


def make(
    root: Path, events: int, ids: str = "integer", seed: int = 1, say: Callable[[str], None] = lambda text: None
) -> Log:
    """Write the log unless it is there: ``root/log-<ids>-<events>/days/day=YYYY-MM-DD/part-0.parquet``.

    Columns: user_id int64 or string, event_time timestamp[us, UTC] ascending within a day, event_name and campaign_id
    dictionary strings, message_id int64 or string, distinct. ``new`` beside ``days`` is one day more, of 1% of them.
    """
    out = root / f"log-{ids}-{events}"
    stamp = out / "made.json"
    made = {"format": FORMAT, "events": events, "ids": ids, "seed": seed}
    if not stamp.exists() or json.loads(stamp.read_text(encoding="utf-8")) != made:
        shutil.rmtree(out, ignore_errors=True)
        say(f"writing a log of {events:,} events with {ids} ids into {out}")
        bounds = [events * day // DAYS for day in range(DAYS + 1)]
        for day in range(DAYS):
            _write_day(out / "days" / f"day={date(day)}", day, bounds[day], bounds[day + 1], events, ids, seed)
        _write_day(out / "new" / f"day={date(DAYS)}", DAYS, events, events + events // NEW, events, ids, seed)
        (out / "live").mkdir()
        for folder in sorted((out / "days").iterdir()):
            (out / "live" / folder.name).symlink_to(Path("..") / "days" / folder.name)
        stamp.write_text(json.dumps(made), encoding="utf-8")
    size = sum(Path(f).stat().st_size for f in files(out / "days"))
    return Log(events, ids, out / "days", out / "new", out / "live", size)


def _write_day(folder: Path, day: int, first: int, last: int, events: int, ids: str, seed: int) -> None:
    folder.mkdir(parents=True)
    rows = last - first
    names = [f"c{day // 7 * CAMPAIGNS + i:05d}" for i in range(3 * CAMPAIGNS)]  # the last of them this week's
    for part, begin in enumerate(range(0, max(rows, 1), PART)):
        end = min(begin + PART, rows)
        n = end - begin
        rng = np.random.default_rng([seed, day, part])
        # Each event has an equal share of the day's slots to itself, so no time repeats and all ascend.
        edges = np.arange(begin, end + 1) * SLOTS // max(rows, 1)
        ts = START + day * DAY + (edges[:-1] + rng.integers(0, np.diff(edges))) * 1000
        kind = rng.choice(len(KINDS), n, p=SHARES).astype(np.int8)
        campaign = rng.integers(0, CAMPAIGNS, n).astype(np.int8)
        campaign[~np.isin(kind, RESPONSES)] += 2 * CAMPAIGNS
        user = rng.integers(0, max(events // EVENTS_EACH, 1), n)
        message = np.arange(first + begin, first + end)
        texts = ids == "text"
        table = pa.table(
            {
                "user_id": user_texts(user) if texts else user,
                "event_time": pa.array(ts, pa.timestamp("us", "UTC")),
                "event_name": pa.DictionaryArray.from_arrays(pa.array(kind), pa.array(KINDS)),
                "campaign_id": pa.DictionaryArray.from_arrays(pa.array(campaign), pa.array(names)),
                "message_id": _uuids(rng, n) if texts else message,
            }
        )
        small = {"event_time": "DELTA_BINARY_PACKED"}
        if not texts:
            small["message_id"] = "DELTA_BINARY_PACKED"
        named = ["event_name", "campaign_id"]
        pq.write_table(
            table, folder / f"part-{part}.parquet", compression="zstd", use_dictionary=named, column_encoding=small
        )


def user_texts(user: np.ndarray) -> pa.Array:
    """Subscribers' numbers as the text variant writes them."""
    return pc.binary_join_element_wise("u", pc.utf8_lpad(pa.array(user).cast(pa.string()), 10, "0"), "")


def _uuids(rng: np.random.Generator, n: int) -> pa.Array:
    """Random UUIDs (version 4) as text."""
    raw = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    raw[:, 6], raw[:, 8] = raw[:, 6] & 0x0F | 0x40, raw[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    hexadecimal = np.empty((n, 32), dtype=np.uint8)
    hexadecimal[:, 0::2], hexadecimal[:, 1::2] = digits[raw >> 4], digits[raw & 15]
    text = np.full((n, 36), ord("-"), dtype=np.uint8)
    for start, end, at in ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24)):
        text[:, at : at + end - start] = hexadecimal[:, start:end]
    offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * 36)
    return pa.StringArray.from_buffers(n, offsets, pa.py_buffer(text))


def read(folder: Path) -> Iterator[pa.Table]:
    """The log's files, one table after the other."""
    for file in files(folder):
        yield pq.ParquetFile(file).read()
