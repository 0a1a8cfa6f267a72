"""What the checks found of the dirt that the simulator put in: recall and precision of each kind, on a simulated log.

The simulator writes down what it spoilt (``truth/dirt``); no rule reads that. What was found is read off what the
ingest left: rejected rows in quarantine, flagged rows in the store, duplicates that are no longer there.

A row may be spoilt in several ways, and is in the log once for each: a row that one rule rejects cannot be flagged by
another. Such rows are counted apart (``elsewhere``), and neither found nor missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.config import Config
from pipeline.errors import SourceError, first_line
from pipeline.events.schema import numpy_of
from pipeline.events.store import EventStore

# kind of dirt -> the rules that find it, and how: by rejecting rows, by flagging them, or by dropping duplicates.
REJECTED: dict[str, tuple[str, ...]] = {
    "null_key": ("null_subscriber", "null_ts", "null_event"),
    "impossible_time": ("impossible_time",),
    "unknown_kind": ("unknown_kind",),
}
FLAGGED: dict[str, tuple[str, ...]] = {
    "late": ("late_arrival",),
    "out_of_order": ("out_of_order",),
    "scanner": ("scanner_click", "scanner_unsubscribe"),
    "machine_open": ("machine_open", "privacy_open"),
    "anomaly": ("repeated_response",),
    "delete_all": ("impossible_rate",),
}
# A row that such rules took for one kind of dirt and that is of another is no mistake where it does what they look for.
ALSO: dict[str, tuple[str, ...]] = {"out_of_order": ("late",), "anomaly": ("scanner", "machine_open")}
MACHINES = ("scanner", "machine_open", "anomaly")  # dirt that machines made


@dataclass
class _Found:
    """Of one kind of dirt: spoilt rows that could be found, those that were, all rows that were taken for such, and how
    many of them rightly."""

    rows: int = 0
    elsewhere: int = 0
    found: int = 0
    taken: int = 0
    right: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "elsewhere": self.elsewhere,
            "found": self.found,
            "taken": self.taken,
            "recall": self.found / self.rows if self.rows else None,
            "precision": self.right / self.taken if self.taken else None,
        }


def audit(config: Config, store: EventStore, run_dir: Path) -> dict[str, Any]:
    """Recall and precision of each kind of dirt.

    Args:
        config: whose ``source.truth`` names the truth of a simulated log; run_dir: holds ``quarantine``.
    Returns:
        "dirt": kind -> rows (spoilt and not rejected for something else), elsewhere, found, taken (all rows that the
        rules in question took for such), recall, precision; null where there is nothing to divide by.
        "humans": events (of humans, kept), flagged (as machines' all the same), kept_share. "rules": kind -> the rules.
        Empty for a log without truth.
    Raises:
        SourceError: the truth cannot be read.
    """
    source = config.source
    if source is None or source.truth is None or source.columns.event_id is None:
        return {}
    dirt = _truth(Path(source.truth) / "dirt")
    if dirt is None:
        return {}
    kinds = {**REJECTED, "duplicate": ("duplicate",), **FLAGGED}
    found = {kind: _Found() for kind in kinds}
    humans = {"events": 0, "flagged": 0}
    rejected = _rejected(run_dir / "quarantine", source.columns.event_id)
    gone = np.sort(np.concatenate([np.empty(0, np.int64), *rejected.values()]))
    for kind, rules in REJECTED.items():
        spoilt = dirt.get(kind, gone[:0])
        mine = np.concatenate([gone[:0], *(rejected.get(rule, gone[:0]) for rule in rules)])
        one = found[kind]
        one.found = one.right = _matched(spoilt, mine)
        one.taken, one.rows = len(mine), len(spoilt)
    spoilt_ids = np.sort(np.concatenate([gone[:0], *(dirt.get(kind, gone[:0]) for kind in REJECTED)]))
    for kind in [*FLAGGED, "duplicate"]:
        ids = dirt.get(kind, gone[:0])
        elsewhere = _isin(ids, spoilt_ids)
        found[kind].elsewhere, dirt[kind] = int(elsewhere.sum()), np.sort(ids[~elsewhere])
        found[kind].rows = len(dirt[kind])
    machine_made = np.sort(np.concatenate([dirt[kind] for kind in MACHINES]))
    read = 0
    for client in store.clients():
        plan = store.plan(client, columns=["event_id", "machine", "flagged_by"])
        for i in range(plan.partitions):
            frame = store.backend.to_pandas(store.read_range(plan, i))
            ids, machine = frame["event_id"].to_numpy(), frame["machine"].to_numpy()
            read += len(ids)
            _flagged(found, frame, ids, dirt)
            made = _isin(ids, machine_made)
            humans["events"] += int((~made).sum())
            humans["flagged"] += int((machine & ~made).sum())
            # A duplicate is found where its event is left once.
            once, times = np.unique(ids, return_counts=True)
            found["duplicate"].found += _matched(dirt["duplicate"], once[times == 1])
    totals = store.totals()
    found["duplicate"].right = found["duplicate"].found
    found["duplicate"].taken = totals["in"] - totals["rejected"] - read
    share = 1 - humans["flagged"] / humans["events"] if humans["events"] else None
    return {
        "dirt": {kind: one.as_dict() | {"rules": list(kinds[kind])} for kind, one in found.items()},
        "humans": {**humans, "kept_share": share},
    }


def _flagged(found: dict[str, _Found], frame: Any, ids: np.ndarray, dirt: Mapping[str, np.ndarray]) -> None:
    codes = frame["flagged_by"].cat.codes.to_numpy()
    names = [set(text.split(",")) for text in frame["flagged_by"].cat.categories]
    for kind, rules in FLAGGED.items():
        chosen = np.array([*(bool(some & set(rules)) for some in names), False])[codes]
        found[kind].taken += int(chosen.sum())
        mine = ids[chosen]
        right = _isin(mine, dirt[kind])
        found[kind].found += int(right.sum())
        for other in ALSO.get(kind, ()):
            right |= _isin(mine, dirt[other])
        found[kind].right += int(right.sum())


def _truth(folder: Path) -> dict[str, np.ndarray] | None:
    """Kind of dirt -> event ids of its rows, int64; None where there is no such truth."""
    if not folder.is_dir():
        return None
    try:
        table = ds.dataset(folder).to_table(columns=["event_id", "dirt"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SourceError(f"cannot read the truth of the simulated log in {folder}: {first_line(error)}") from None
    column = table.column("dirt")
    ids = numpy_of(table.column("event_id").combine_chunks())
    return {kind: ids[numpy_of(pc.equal(column, kind).combine_chunks())] for kind in pc.unique(column).to_pylist()}


def _rejected(folder: Path, event_id: str) -> dict[str, np.ndarray]:
    """Rule -> event ids of the rows that it rejected."""
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=[event_id, "rule"])
        ids, rules = numpy_of(table.column(event_id).combine_chunks()), np.array(table.column("rule").to_pylist())
        for rule in np.unique(rules).tolist():
            found.setdefault(rule, []).append(ids[rules == rule])
    return {rule: np.concatenate(parts) for rule, parts in found.items()}


def _isin(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool[n]: which ids are among others, int64, sorted."""
    if not len(among):
        return np.zeros(len(ids), dtype=bool)
    at = np.minimum(np.searchsorted(among, ids), len(among) - 1)
    found: np.ndarray = among[at] == ids
    return found


def _matched(one: np.ndarray, other: np.ndarray) -> int:
    """How many of two multisets match, each of its members with one of the other's."""
    a, n = np.unique(one, return_counts=True)
    b, m = np.unique(other, return_counts=True)
    _, i, j = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    return int(np.minimum(n[i], m[j]).sum())
