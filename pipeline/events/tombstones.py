"""Who is forgotten: their keys, never their ids, kept with the store for as long as it lives.

Each ``forget`` writes one file ``_eventgrain/forgotten/<digest>.json``: a client, or null for every client, and keys.
Then it changes a property of the Delta table, which makes it safe beside an ingest at work: Delta refuses a commit that
was prepared before such a change, so whoever commits next has read the new tombstones (see :mod:`commit`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import StoreError, first_line
from pipeline.events.files import Place, explain, fault

FOLDER = "_eventgrain/forgotten"
PROPERTY = "eventgrain.forgotten"


@dataclass(frozen=True)
class Tombstones:
    """``everywhere``: int64[e], keys forgotten for every client; ``clients``: client -> int64[c]; all ascending.

    ``token``: changes with every tombstone more.
    """

    everywhere: np.ndarray
    clients: dict[str, np.ndarray] = field(default_factory=dict)
    token: str = ""

    def __bool__(self) -> bool:
        return bool(len(self.everywhere) or self.clients)

    def of(self, client: str | None) -> np.ndarray:
        """The keys forgotten for one client, ascending; of rows without a client, those forgotten for any."""
        if client is None:
            return np.unique(np.concatenate([self.everywhere, *self.clients.values()]))
        return np.union1d(self.everywhere, self.clients.get(client, np.empty(0, np.int64)))


NOBODY = Tombstones(np.empty(0, np.int64))


def token_of(table: Any) -> str:
    """What the table says of its tombstones: empty where nobody was ever forgotten."""
    return str(table.metadata().configuration.get(PROPERTY, "")) if table is not None else ""


def make(keys: Iterable[int], client: str | None) -> Tombstones:
    """Some keys of one client, or of every client."""
    some = np.unique(np.fromiter(keys, np.int64))
    return Tombstones(some) if client is None else Tombstones(np.empty(0, np.int64), {client: some})


def read(place: Place, table: Any) -> Tombstones:
    """Every tombstone of a store.

    Args:
        table: opened before this call, so that what it promises is found.
    Raises:
        StoreError: one cannot be read.
    """
    token = token_of(table)
    if not token:
        return NOBODY
    names = _names(place)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: _read(place, name), names))
    clients: dict[str, list[int]] = {}
    everywhere: list[int] = []
    for client, keys in found:
        (everywhere if client is None else clients.setdefault(client, [])).extend(keys)
    arrays = {c: np.unique(np.array(k, np.int64)) for c, k in clients.items()}
    return Tombstones(np.unique(np.array(everywhere, np.int64)), arrays, token)


def publish(place: Place, keys: Iterable[int], client: str | None) -> bool:
    """Leave a tombstone that every commit from now on honours; False where it was there.

    Raises:
        StoreError: the store cannot be written.
    """
    content = {"client": client, "keys": sorted(set(keys))}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]
    name = f"{FOLDER}/{digest}.json"
    new = place.size(name) is None
    if new:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        place.write(name, json.dumps({**content, "time": now}).encode())
    fault("tombstone-written")
    _announce(place)
    fault("tombstone-announced")
    return new


def _announce(place: Place) -> None:
    import deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    for attempt in range(100):
        table = deltalake.DeltaTable(place.target)
        token = hashlib.sha256("\0".join(_names(place)).encode()).hexdigest()[:20]
        if token_of(table) == token:
            return
        try:
            table.alter.set_table_properties({PROPERTY: token}, raise_if_not_exists=False)
        except CommitFailedError as error:
            if attempt == 99:
                raise StoreError(f"cannot commit to {place.uri}: {first_line(error)}. Run again") from None
        except (DeltaError, OSError) as error:
            raise explain(error, "commit to", place.uri) from None


def _names(place: Place) -> list[str]:
    return [name for name in place.list(FOLDER) if name.endswith(".json")]


def _read(place: Place, name: str) -> tuple[str | None, list[int]]:
    try:
        with place.fs.open_input_stream(place.path(name)) as stream:
            found = json.loads(stream.read())
        return found["client"], [int(k) for k in found["keys"]]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise StoreError(
            f"the tombstone {place.path(name)} cannot be read ({first_line(error)}); restore it from a backup: "
            "without it a forgotten subscriber could come back"
        ) from None
