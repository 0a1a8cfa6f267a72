"""Small event logs for tests: generated, sorted as the store sorts, cut by key range."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.options import GROUPS

DAY = 86_400_000_000
KINDS = ["send", "open", "click", "unsubscribe", "subscribe", "purchase"]
# Every group of built-in features, values of purchases among them.
EVERYTHING = Config(
    source={"path": "log", "columns": {"subscriber": "id", "ts": "ts", "event": "event", "campaign": "campaign"}},
    windows=["1d", "7d"],
    outcomes={
        "click": {"events": "click", "within": "3d"},
        "spend": {"sum": "value", "of": "purchase", "within": "4d"},
    },
    decide={"hold_when": None},
    features={"groups": list(GROUPS)},
)


class Event(NamedTuple):
    """One event; ``key`` int64, ``ts`` microseconds. Tuples compare in the store's total order."""

    key: int
    ts: int
    event: str
    campaign: str | None = None
    event_id: int = 0
    value: int = 0
    machine: bool = False


def ordered(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda e: (e.key, e.ts, e.event, e.campaign or "", e.event_id))


def logs(step: int = DAY // 2, machine: bool = False, max_size: int = 40) -> st.SearchStrategy[list[Event]]:
    """Up to ``max_size`` events of a few subscribers on a coarse grid of times, so that ties are frequent."""
    event = st.builds(
        Event,
        key=st.sampled_from([-(2**62), -5, 0, 7, 2**61]),
        ts=st.integers(0, 40).map(lambda i: i * step),
        event=st.sampled_from(KINDS),
        campaign=st.sampled_from([None, "a", "b", "B-3"]),
        event_id=st.just(0),
        value=st.integers(-5, 5).map(lambda v: v * 1_000_000),
        machine=st.booleans() if machine else st.just(False),
    )
    return st.lists(event, max_size=max_size).map(_numbered)


def _numbered(events: list[Event]) -> list[Event]:
    return ordered([e._replace(event_id=i) for i, e in enumerate(events)])


def random_log(rng: np.random.Generator, events: int, subscribers: int, days: int) -> list[Event]:
    """A larger log with distinct-looking times and uniform keys."""
    keys = rng.integers(-(2**63), 2**63 - 1, subscribers, dtype=np.int64)
    columns = zip(
        keys[rng.integers(0, subscribers, events)].tolist(),
        rng.integers(0, days * DAY, events).tolist(),
        rng.choice(KINDS, events, p=[0.5, 0.25, 0.1, 0.02, 0.03, 0.1]).tolist(),
        rng.choice(["a", "b", "B-3", ""], events).tolist(),
        range(events),
        rng.integers(0, 10**9, events).tolist(),
        strict=True,
    )
    return ordered([Event(k, t, e, c or None, i, v) for k, t, e, c, i, v in columns])


def frame_of(events: list[Event], backend: Backend, machine: bool = False) -> Any:
    """The canonical event frame of events, in the order given."""
    columns = {
        "subscriber_key": pa.array([e.key for e in events], pa.int64()),
        "ts": pa.array([e.ts for e in events], pa.timestamp("us")),
        "event": pa.array([e.event for e in events], pa.string()).dictionary_encode(),
        "campaign": pa.array([e.campaign for e in events], pa.string()).dictionary_encode(),
        "event_id": pa.array([e.event_id for e in events], pa.int64()),
        "value": pa.array([e.value for e in events], pa.int64()),
        "ingested_at": pa.array([e.ts for e in events], pa.timestamp("us")),
    }
    if machine:
        columns["machine"] = pa.array([e.machine for e in events], pa.bool_())
    frame = backend.from_arrow(pa.table(columns))
    # Not set_index: pandas tries to make a RangeIndex of it, and overflows on two far keys.
    frame.index = backend.df.Index(backend.column(frame["subscriber_key"]), name="subscriber_key")
    return frame.drop(columns=["subscriber_key"])


def by_key_range(events: list[Event], partitions: int) -> list[list[Event]]:
    """Events cut into equal ranges of the key's 64 bits, as the store cuts them."""
    parts: list[list[Event]] = [[] for _ in range(partitions)]
    for event in events:
        parts[(event.key + 2**63) * partitions // 2**64].append(event)
    return parts
