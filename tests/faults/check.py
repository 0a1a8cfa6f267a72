"""What a store holds, compared with a plain-Python account of the log; and what lies about that nothing refers to."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.events.files import Place
from pipeline.events.store import EventStore
from pipeline.events.tables import _footer
from tests.events.logs import Row, expected, micros, rows_of_frame

CLIENTS = ("acme", "globex")
Rows = dict[str, list[tuple[Any, ...]]]


def rows_of(uri: str, partitions: int = 2) -> Rows:
    """Client -> its rows in order: the oracle's columns, then every other column of the store."""
    _footer.cache_clear()
    store = EventStore(uri)
    found = {}
    for client in store.clients():
        frame = store.read(client, partitions=partitions).compute(scheduler="sync")
        others = [n for n in frame.columns if n in ("batch", "machine") or n not in ORACLE]
        more = [[_plain(v) for v in frame[n].astype(object)] for n in others]
        found[client] = [(*row, *rest) for row, *rest in zip(rows_of_frame(frame), *more, strict=True)]
    return found


ORACLE = ("subscriber", "ts", "event", "event_id", "campaign", "provider", "value", "ingested_at")


def _plain(value: Any) -> Any:
    if value is None or value != value:
        return None
    return micros(value) if hasattr(value, "to_pydatetime") else value


@dataclass
class Difference:
    """``lost``: rows of the log that the store does not yield; ``doubled``: rows it yields too often; ``strange``: rows
    that are not the log's at all."""

    lost: int
    doubled: int
    strange: int

    @property
    def none(self) -> bool:
        return not (self.lost or self.doubled or self.strange)


def compare(found: Rows, wanted: Rows) -> Difference:
    """The store's rows against what they must be, row by row and column by column, order included."""
    lost = doubled = strange = 0
    for client in {*found, *wanted}:
        have, want = Counter(found.get(client, [])), Counter(wanted.get(client, []))
        lost += (want - have).total()
        extra = have - want
        doubled += sum(n for row, n in extra.items() if row in want)
        strange += sum(n for row, n in extra.items() if row not in want)
        if have == want and found[client] != wanted[client]:
            strange += 1  # the right rows in the wrong order
    return Difference(lost, doubled, strange)


def oracle(rows: list[Row], clients: tuple[str, ...] = CLIENTS) -> Rows:
    found = {client: expected(rows, client) for client in clients}
    return {client: some for client, some in found.items() if some}


def oracle_columns(found: Rows) -> Rows:
    """A store's rows cut to the columns that the oracle accounts for."""
    return {client: [row[:9] for row in rows] for client, rows in found.items()}


def orphans(store: str, run: Path | None = None) -> list[str]:
    """Files of a store, and of its run's local quarantine, that no commit refers to."""
    place = Place(store)
    named, runs = set(), set()
    names = place.list()
    for name in (n for n in names if n.startswith("_delta_log/") and n.endswith(".json")):
        with place.fs.open_input_stream(place.path(name)) as stream:
            lines = stream.read().decode().splitlines()
        for action in map(json.loads, lines):
            if "add" in action:
                named.add(unquote(action["add"]["path"]))
            if "txn" in action:
                runs.add(action["txn"]["appId"].removeprefix("eventgrain/"))
    left = []
    for name in names:
        folder, _, base = name.partition("/")
        known = name in named or (folder == "_delta_log" and not base.endswith(".tmp")) or base == ".lock"
        if not known and not (folder == "_eventgrain" and base.removesuffix(".parquet") in runs):
            left.append(name)
    if run is not None:
        rejected = [p for p in files_below(run / "quarantine") if p.name[0] != "_"]
        left += [f"quarantine/{p.name}" for p in rejected if p.stem not in runs]
    return left


def files_below(folder: Path) -> list[Path]:
    return sorted(Path(base) / name for base, _, names in os.walk(folder) for name in names)
