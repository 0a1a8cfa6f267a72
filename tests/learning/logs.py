"""Small logs of several clients with a planted truth, in a store, for tests of whole trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore

DAY = 86_400_000_000
START = 1_767_225_600_000_000  # 2026-01-01
DAYS = 100
OPTIONS: dict[str, Any] = {
    "windows": ["7d", "30d"],
    "context": {"windows": ["28d"]},
    "features": {"groups": ["counts", "recency", "rates", "tenure"]},
    "outcomes": {"open": {"events": ["open"], "within": "1d", "match": "campaign"}},
    "decide": {"hold_when": None, "reward": {"open": 1.0}},
    "split": {"validation": "7d", "holdout": "14d"},
    "model": {"hidden": [8], "epochs": 8, "patience": 2, "minimum_positives": 20},
}


def open_log(
    folder: Path,
    subscribers: Mapping[str, int],
    levels: Mapping[str, float] | None = None,
    first_day: Mapping[str, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[EventStore, Config]:
    """A store of clients whose subscribers get a send every other day and open it with a probability of their own.

    Args:
        subscribers: client -> how many. levels: client -> log odds of opening in the middle, -1 where absent; each
            subscriber's own differ from them by a normal of deviation 1.5. first_day: client -> the first day it sends.
        options: of the configuration, over OPTIONS.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for client, count in subscribers.items():
        first = (first_day or {}).get(client, 0)
        days = np.arange(first, DAYS)
        who, day = (a.ravel() for a in np.meshgrid(np.arange(count), days, indexing="ij"))
        kept = (who + day) % 2 == 0
        who, day = who[kept], day[kept]
        odds = (levels or {}).get(client, -1.0) + 1.5 * rng.standard_normal(count)
        at = START + day * DAY + 9 * 3_600_000_000 + who % 1000 * 1_000_000
        opened = rng.random(len(who)) < 1 / (1 + np.exp(-odds[who]))
        for event, chosen, delay in (("send", slice(None), 0), ("open", opened, 3_600_000_000)):
            name = pd.Series(who[chosen]).map("user {}".format)
            when = pd.to_datetime(at[chosen] + delay, unit="us")
            frames.append(
                pd.DataFrame({"client": client, "user": name, "at": when, "what": event, "about": day[chosen]})
            )
    log = pd.concat(frames, ignore_index=True).astype({"about": "str"})
    (folder / "log").mkdir(parents=True)
    log.to_parquet(folder / "log" / "part.parquet", index=False)
    columns = {"client": "client", "subscriber": "user", "ts": "at", "event": "what", "campaign": "about"}
    source = {"path": str(folder / "log"), "columns": columns}
    settings = {"name": "test", "runs": str(folder / "runs"), "source": source, **OPTIONS, **options}
    config = Config.model_validate(settings)
    ingest(config, PANDAS)
    return EventStore(config.store_uri, PANDAS), config
