"""The bench's own log: daily Parquet source files with integer ids, the same for every engine.

Uniform on purpose, so that nobody's cache or index is favoured: every subscriber is equally busy, over 180 days; 60% of
events are sends. No two events share subscriber and time, so there are no duplicates to drop.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = ("send", "open", "click", "delete", "unsubscribe", "soft_bounce")
SHARES = (0.60, 0.20, 0.03, 0.12, 0.01, 0.04)
DAYS = 180
DAY = 86_400_000_000
START = 1_767_225_600_000_000  # 2026-01-01 UTC, microseconds
EVENTS_EACH = 200  # per subscriber
FORMAT = 1


def path_of(root: Path, events: int) -> Path:
    return root / f"log-{events}"


def make(root: Path, events: int, seed: int = 1) -> Path:
    """Write the log unless it is there: ``root/log-<events>/day=YYYY-MM-DD/part-0.parquet``; returns its folder.

    Columns: user_id int64, event_time timestamp[us, UTC] ascending within a file, event_name and campaign_id dictionary
    strings, message_id int64, distinct.
    """
    out = path_of(root, events)
    stamp = out / "made.json"
    made = {"format": FORMAT, "events": events, "seed": seed}
    if stamp.exists() and json.loads(stamp.read_text()) == made:
        return out
    shutil.rmtree(out, ignore_errors=True)
    subscribers = max(events // EVENTS_EACH, 1)
    bounds = np.linspace(0, events, DAYS + 1).astype(np.int64)
    for day in range(DAYS):
        rng = np.random.default_rng([seed, day])
        rows = int(bounds[day + 1] - bounds[day])
        # A time is a slot of its own on the day, so none repeats.
        ts = START + day * DAY + np.sort(rng.choice(DAY // 1000, rows, replace=False, shuffle=False)) * 1000
        kind = rng.choice(len(KINDS), rows, p=SHARES).astype(np.int8)
        campaign = rng.integers(0, 20, rows).astype(np.int16)
        campaigns = pa.array([f"c{day // 7 * 20 + i:05d}" for i in range(20)])
        table = pa.table(
            {
                "user_id": rng.integers(0, subscribers, rows),
                "event_time": pa.array(ts, pa.timestamp("us", "UTC")),
                "event_name": pa.DictionaryArray.from_arrays(pa.array(kind), pa.array(KINDS)),
                "campaign_id": pa.DictionaryArray.from_arrays(pa.array(campaign), campaigns),
                "message_id": np.arange(bounds[day], bounds[day + 1]),
            }
        )
        date = np.datetime64((START + day * DAY) // 1_000_000, "s").astype("datetime64[D]")
        folder = out / f"day={date}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part-0.parquet", compression="zstd")
    stamp.write_text(json.dumps(made))
    return out
