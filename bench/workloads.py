"""What is measured, and what engines share: the task they are given, an idiom, the digest that compares their results.

    features         for every send, the events of each kind in each window before it
    raw-to-features  the same from raw files in one go, ours with its store written on the way
    rollup           events and distinct subscribers per campaign, kind and hour
    new-day          1% more events arrive: the counts in each window before now, for everyone with an event in them
    ingest           raw files to our store, with the standard validation and deduplication (ours only)

An engine gives its result as chunks of key columns and value columns; a digest that no row order changes compares them.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench import log
from bench.log import DAY, DAYS, KINDS, Log

WORKLOADS = ("ingest", "features", "raw-to-features", "rollup", "new-day")
WINDOWS = tuple(days * DAY for days in (1, 7, 30, 90))
EXPOSURE = "send"
ROLLUP = ["events", "subscribers"]
# Where fewer columns pay, three kinds share a 64-bit running sum, 21 bits each: room for two million events of a kind
# for each subscriber. A difference of two such sums never borrows, since each part only grows.
KINDS_IN_A_SUM, BITS = 3, 21

Chunk = tuple[list[np.ndarray], list[np.ndarray]]  # key columns, value columns: all of one length, all integers


@dataclass(frozen=True)
class Task:
    """What an engine is given.

    ``log``: the raw files; ``store``: our store of them; ``scratch``: an empty folder to write into; ``memory``: bytes
    that an engine may plan with; ``sample``: features for one send in so many, those whose millisecond it divides;
    ``batch_rows``: of our ingest, its default where None.
    """

    log: Log
    store: Path
    scratch: Path
    partitions: int
    threads: int
    memory: int = 4 << 30
    sample: int = 1
    batch_rows: int | None = None
    kinds: tuple[str, ...] = KINDS
    windows: tuple[int, ...] = WINDOWS
    exposure: str = EXPOSURE

    @property
    def columns(self) -> list[str]:
        """The columns of features and new-day, windows outside, kinds inside."""
        return [f"{kind}_{window // DAY}d" for window in self.windows for kind in self.kinds]

    def names(self, workload: str) -> list[str]:
        """The value columns of a workload."""
        return {"rollup": ROLLUP, "ingest": ["kind", "message"]}.get(workload, self.columns)

    def raw_files(self) -> list[str]:
        return log.files(self.log.days)

    def recent_files(self) -> list[str]:
        """Those that hold the last 90 days before now, the new day among them."""
        first = DAYS + 1 - max(self.windows) // DAY
        return [*log.files(self.log.days, first), *log.files(self.log.new)]

    def store_files(self) -> list[str]:
        """The store's Parquet files."""
        from deltalake import DeltaTable

        return sorted(uri.removeprefix("file://") for uri in DeltaTable(str(self.store)).file_uris())

    def key_ranges(self) -> list[tuple[int, int]]:
        """Inclusive bounds of equal key ranges, as int64."""
        cuts = [-(2**63) + i * 2**64 // self.partitions for i in range(self.partitions + 1)]
        return [(a, b - 1) for a, b in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Idiom:
    """One way of one engine to do one workload.

    ``prepare`` is off the clock and returns a session and the seconds spent importing and compiling;
    ``run(task, session)`` is on the clock, ``chunks(task, session, result)`` off it again. ``keyed``: the first key
    column is our subscriber_key, not the id. ``on_store``: reads our store, not the raw files. ``ids``: of the log.
    ``seconds``: a guess, per million events, for the estimate that a user sees. ``again``: the result has to be
    computed a second time to be compared.
    """

    run: Callable[[Task, Any], Any]
    chunks: Callable[[Task, Any, Any], Iterable[Chunk]]
    prepare: Callable[[Task], tuple[Any, float]]
    keyed: bool = False
    on_store: bool = False
    ids: str = "integer"
    seconds: float = 1.0
    again: bool = False


def peers() -> list[str]:
    """The peers there are: a file in bench/peers each."""
    return sorted(p.stem for p in (Path(__file__).parent / "peers").glob("*.py") if p.stem != "__init__")


def idioms(engine: str, workload: str) -> dict[str, Idiom]:
    """The idioms of "ours" or of a peer for a workload; a peer goes from raw files to features in ``features``."""
    module = importlib.import_module("bench.ours" if engine == "ours" else f"bench.peers.{engine}")
    found: dict[str, dict[str, Idiom]] = module.IDIOMS
    if engine != "ours" and workload == "raw-to-features":
        return {name: idiom for name, idiom in found["features"].items() if not idiom.on_store}
    return found.get(workload, {})


# -- what comes out, compared ----------------------------------------------------------------------------------------


class Ids:
    """Subscribers' keys turned back into their numbers, so that a wrong key cannot go unseen."""

    def __init__(self, subscribers: int, ids: str = "integer") -> None:
        self.subscribers, self.ids = subscribers, ids

    @cached_property
    def _hashed(self) -> tuple[np.ndarray, np.ndarray]:
        import pandas as pd

        from pipeline.backend import PANDAS

        numbers = np.arange(self.subscribers, dtype=np.int64)
        texts: Any = numbers if self.ids == "integer" else log.user_texts(numbers).to_pandas()
        hashed = PANDAS.hash_strings(pd.Series(texts))
        order = np.argsort(hashed)
        return hashed[order], order

    def numbers(self, key: np.ndarray) -> np.ndarray:
        """Raises ValueError where a key is no subscriber's."""
        keys, order = self._hashed
        position = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        if not (keys[position] == key).all():
            raise ValueError("a subscriber_key that belongs to no subscriber of the log")
        found: np.ndarray = order[position]
        return found


def digest(names: list[str], chunks: Iterable[Chunk], ids: Ids | None = None) -> dict[str, list[int]]:
    """Per column [sum, sum weighted by a hash of the row's keys] modulo 2^64, and the rows: equal iff rows are."""
    from pipeline.features.kernels import hash64

    rows = 0
    sums = np.zeros((len(names), 2), dtype=np.uint64)
    for keys, values in chunks:
        if ids is not None:
            keys = [ids.numbers(keys[0]), *keys[1:]]
        if len(values) != len(names):
            raise ValueError(f"{len(values)} columns where {len(names)} were expected")
        weight = hash64(np, 1, *(np.asarray(k).astype(np.int64) for k in keys))
        rows += len(weight)
        for j, column in enumerate(values):
            found = np.asarray(column).astype(np.uint64)
            sums[j] += np.array([found.sum(), (found * weight).sum()], dtype=np.uint64)
    return {"rows": [rows], **{n: [int(a), int(b)] for n, (a, b) in zip(names, sums.tolist(), strict=True)}}


def numbers_of(texts: Any, known: Iterable[str] = ()) -> np.ndarray:
    """An Arrow column of names as integers: their place in ``known``, or, where that is empty, the digits in them."""
    import pyarrow as pa

    column = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    names = coded.dictionary.to_pylist()
    places = {name: i for i, name in enumerate(known)}
    values = np.array([places[n] if places else int("".join(filter(str.isdigit, n))) for n in names], dtype=np.int64)
    found: np.ndarray = values[coded.indices.to_numpy(zero_copy_only=False)]
    return found


def log_chunks(made: Log) -> Iterable[Chunk]:
    """What ``ingest`` must keep of a log: subscriber and time as keys, kind and message id as values."""
    for table in log.read(made.days):
        user = table["user_id"].to_numpy() if made.ids == "integer" else numbers_of(table["user_id"])
        yield event_chunk(user, table["event_time"], table["event_name"], table["message_id"])


def event_chunk(subscriber: np.ndarray, ts: Any, kind: Any, message: Any) -> Chunk:
    """One table of events; a message id of text counts by its hash."""
    import pyarrow as pa

    from pipeline.backend import PANDAS

    whole: Any = message.to_numpy() if pa.types.is_integer(message.type) else PANDAS.hash_strings(message.to_pandas())
    return [subscriber, ts.cast(pa.int64()).to_numpy()], [numbers_of(kind, KINDS), whole]
