"""Retention by age: events older than ``retention`` before the end of the store are removed.

The end is the latest time in the store, of any client, that was not ahead of its row's arrival. Old rows go in three
ways, and in the end the store holds the same whichever went first: an ingest does not take rows past the cutoff of what
is stored; after it, files that are wholly past it are dropped, which costs one commit; and ``clean`` writes those that
straddle it again without their old rows. Source files stay known, so nothing is ingested again.
"""

from __future__ import annotations

import numpy as np

from pipeline.backend import PANDAS
from pipeline.errors import StoreError
from pipeline.events.files import Place
from pipeline.events.forgetting import TRIES
from pipeline.events.rewriting import Stay, rewrite
from pipeline.events.store import EventStore


def cutoff(store: EventStore, retention: int) -> int | None:
    """The time, int us UTC, before which events are past retention; None where there are no events.

    Args:
        retention: us before the store's end.
    """
    ends = [store.end(client) for client in store.clients()]
    return max(ends) - retention if ends else None


def due(store: EventStore, cut: int, whole: bool = False) -> dict[str, int]:
    """Live files with rows of before ``cut``, those with no others if ``whole``: path -> rows, all of the file's."""
    found: dict[str, int] = {}
    for client in store.clients():
        groups = store.groups(client)
        for code in np.unique(groups.path).tolist():
            mine = groups.path == code
            if int(groups["ts_min"][mine].min()) < cut and not (whole and int(groups["ts_max"][mine].max()) >= cut):
                found[groups.paths[code]] = int(groups["rows"][mine].sum())
    return found


def expire(place: Place, retention: int, whole: bool = False, workers: int = 2) -> dict[str, int]:
    """Remove the events past retention: client -> rows removed.

    Args:
        whole: only where whole files go, so that no row is written again.
    Raises:
        StoreError: a file is damaged or cannot be written.
    """
    removed: dict[str, int] = {}
    for _ in range(TRIES):
        store = EventStore(place.uri, PANDAS)
        cut = cutoff(store, retention)
        paths = due(store, cut, whole) if cut is not None else {}
        if cut is None or not paths:
            return removed
        found = rewrite(store, list(paths), _since(cut), "retention", str(cut), workers)
        if found is not None:
            for client, rows in found.removed.items():
                removed[client] = removed.get(client, 0) + rows
    raise StoreError(f"others keep replacing files of {place.uri!r}: run again when they are done")


def _since(cut: int) -> Stay:
    return lambda client, key, ts: ts >= cut
