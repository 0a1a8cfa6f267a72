"""The table of roll-ups kept up to date: a new batch touches only its buckets, late events only theirs.

An update finds the batches committed since, reads their rows to learn the buckets and campaigns they touch, counts
exactly those again, from the store, and puts them in the place of the old. Whatever makes old rows wrong (other
settings or code, rows removed from the store) has the client's rows made anew, and the reason is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import Config
from pipeline.events.index import run_of
from pipeline.events.reading import read_rows
from pipeline.features import rollup, rollup_table
from pipeline.features.counting import NONE, Counted, Level, count_store, merge, start_of
from pipeline.options import UNITS
from pipeline.rundir import code_version

FORMAT = 1
DAY = UNITS["d"]
Batches = Mapping[str, Mapping[str, Any]]


@dataclass
class Update:
    """What an update did to one client's rows.

    ``touched``: span -> buckets counted anew, and ``campaign`` -> campaigns;
    ``reason``: why all rows were made anew, "" where they were not; ``rows``: the client's rows in the table now.
    """

    client: str
    rows: int
    reason: str = ""
    batches: int = 0
    touched: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """For the user."""
        if self.reason:
            return f"{self.client}: {self.rows:,} rows made anew: {self.reason}"
        if not self.batches:
            return f"{self.client}: {self.rows:,} rows, nothing new"
        spans = ", ".join(_plural(n, what) for what, n in self.touched.items())
        return f"{self.client}: {self.rows:,} rows, of which {_plural(self.batches, 'new batch')} touched {spans}"


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "es" if what.endswith("ch") else "s")


def update(store: Any, client: str, config: Config, uri: str, batches: Batches | None = None) -> Update:
    """Bring one client's rows up to the store's snapshot.

    Args:
        store: an ``EventStore``; uri: the table's local folder, made when absent; batches: ``store.manifests()``, where
            the caller has them.
    Raises:
        DataError, StoreError: from the store; StoreError: the table cannot be read or written.
    """
    batches = store.manifests() if batches is None else batches
    settings = _settings(store, client, config)
    files = sorted(f["path"] for f in store.files if f["client"] == client)
    ingested = sorted(r for r, m in batches.items() if m["kind"] == "ingest")
    number, state = rollup_table.state_of(uri, client)
    found = {"settings": settings, "batches": ingested, "files": files}
    reason = _why_anew(state, found, batches)
    if reason:
        table = rollup.rollup(store, client, config)
        rollup_table.replace(table, uri, client, None, number + 1, found)
        return Update(client, len(table), reason)
    new = set(ingested).difference(state["batches"])
    fresh = sorted(set(files).difference(state["files"]))
    change = _Change(store, client, config, uri)
    change.look(fresh, new)
    if not change.finest.size:
        if fresh or new:
            rollup_table.replace(None, uri, client, [], number + 1, found)
        return Update(client, rollup_table.rows(uri, client))
    change.count()
    rollup_table.replace(change.rows, uri, client, change.months, number + 1, found)
    return Update(client, rollup_table.rows(uri, client), "", len(change.runs), change.touched)


def _settings(store: Any, client: str, config: Config) -> dict[str, Any]:
    known = rollup.known_at(config)
    return {
        "format": FORMAT,
        "code": code_version(),
        "store": config.store_uri,
        "time zone": config.client_timezone(client),
        "levels": list(config.rollup.levels),
        "as_known_at": known.isoformat() if known else None,
    }


def _why_anew(state: Mapping[str, Any], found: Mapping[str, Any], batches: Batches) -> str:
    """Why rows made from ``state`` do not hold for part of what is ``found`` now; "" where they do."""
    if not state:
        return "there are none yet"
    changed = [n for n, v in found["settings"].items() if state["settings"].get(n) != v]
    if changed:
        return f"the {changed[0]} changed"
    if not set(state["batches"]) <= set(found["batches"]):
        return "batches that they were made from are gone from the store"
    merged = {p for m in batches.values() if m["kind"] == "compaction" for p in m["replaced"]}
    gone = set(state["files"]).difference(found["files"]) - merged
    fresh = {run_of(p) for p in found["files"]}.difference(run_of(p) for p in state["files"])
    others = [r for r in fresh if batches.get(r, {}).get("kind") not in ("ingest", "compaction")]
    if gone or others:
        return "rows were removed from the store"
    return ""


# -- what changed ------------------------------------------------------------------------------------------------


class _Change:
    """The part of a client's rows that new batches touch."""

    def __init__(self, store: Any, client: str, config: Config, uri: str) -> None:
        self.store, self.client, self.config, self.uri = store, client, config, uri
        self.zone = config.client_timezone(client)
        self.levels = rollup.levels(config.rollup.levels)
        self.spans = [e for e in rollup.SPANS if e in config.rollup.levels]
        self.known = rollup.known_at(config)
        self.finest = np.empty(0, dtype=np.int64)  # starts of the touched hours, or days where no hours are kept
        self.campaigns: set[str] = set()
        self.runs: set[str] = set()
        self.touched: dict[str, int] = {}

    def look(self, files: Sequence[str], new: set[str]) -> None:
        """Read the rows that ``new`` batches brought, from the files that the table does not know."""
        store = self.store
        unit: Any = "hour" if "hour" in self.spans else "day"
        columns = ["ts", "campaign", "batch"]
        plan = store.plan(self.client, columns=columns, partitions=self.config.partitions, as_known_at=self.known)
        prefix = store.place.target.rstrip("/")
        wanted = {f"{prefix}/{path}" for path in files}
        found = [self.finest]
        for part in plan.parts:
            for file in part.files:
                if file[0] not in wanted:
                    continue
                frame = read_rows(dataclasses.replace(part, files=(file,)), store.backend).rows.frame(columns)
                frame = frame[frame["batch"].isin(sorted(new))]
                if not len(frame):
                    continue
                start = rollup.local_bucket(store.backend.column(frame["ts"]), self.zone, unit)
                found.append(store.backend.to_host(store.backend.xp.unique(start)))
                for name, into in (("campaign", self.campaigns), ("batch", self.runs)):
                    into.update(_texts(store.backend.to_pandas(frame[name].drop_duplicates())))
        self.finest = np.unique(np.concatenate(found))

    def count(self) -> None:
        """Count what was touched anew, and put it into the old rows of its months: ``rows``, of ``months``."""
        starts: dict[Any, np.ndarray] = {e: np.unique(start_of(self.finest, e)) for e in self.spans}
        timed = [level for level in self.levels if level.every != "all"]
        coarse = starts[self.spans[-1]]
        parts = []
        for low, high in _ranges(coarse, self.spans[-1]):
            inside = {e: s[(s >= low) & (s < high)] for e, s in starts.items()}
            only = {level: inside[level.every] for level in timed}
            since, until = _utc(low, high)
            parts.append(self._counted(timed, only, since, until))
        fresh = rollup.tabulate(merge(parts), timed, self.client)
        self.months = sorted({*_months(starts[self.spans[0]]), "all"})
        before = rollup_table.read(self.uri, self.client, self.months)
        old = before["level"].ne("campaign") & _among(before, starts)
        self._campaigns_that_differ(before[old], fresh)
        kept = before[~old]
        touched = pd.concat([kept, fresh], ignore_index=True)
        self.touched = {e: len(starts[e]) for e in self.spans}
        self._count_campaigns(touched)

    def _counted(self, levels: Sequence[Level], only: Any, since: int, until: int | None = None) -> Counted:
        return count_store(
            self.store,
            self.client,
            levels,
            self.zone,
            only,
            partitions=self.config.partitions,
            since=since,
            until=until,
            as_known_at=self.known,
        )

    def _campaigns_that_differ(self, old: pd.DataFrame, new: pd.DataFrame) -> None:
        """An event that arrives again, earlier and with another campaign, takes the place of the one known before: the
        campaign that it was counted under has fewer events now, though no new row names it."""
        counted = sorted({c for t in (old, new) for c in t.columns if c.startswith("n_")})
        sums = []
        for table in (old, new):
            rows = table[(table["level"] == "provider") & (table["every"] == self.spans[0])]
            rows = rows.reindex(columns=[*rollup.KEYS, *counted]).fillna(dict.fromkeys(counted, 0))
            sums.append(rows.groupby(["campaign", "bucket"])[counted].sum())
        before, after = sums[0].align(sums[1], fill_value=0)
        self.campaigns.update(before.index[(before != after).any(axis=1)].get_level_values("campaign"))

    def _count_campaigns(self, rows: pd.DataFrame) -> None:
        """The whole of every touched campaign, read from its first event on."""
        self.campaigns.discard(NONE)
        self.touched["campaign"] = len(self.campaigns)
        if not self.campaigns:
            self.rows = rollup.arrange(rows)
            return
        (level,) = [level for level in self.levels if level.every == "all"]
        first = _first(rows, self.campaigns, self.spans[-1])
        elsewhere = rollup_table.read(self.uri, self.client)
        earlier = _first(elsewhere, self.campaigns, self.spans[-1])
        starts = [at for at in (first, earlier) if at is not None]
        since = _utc(min(starts), max(starts))[0] if starts else 0
        found = self._counted([level], {level: frozenset(self.campaigns)}, since)
        again = rollup.tabulate(found, [level], self.client)
        kept = rows[~((rows["level"] == "campaign") & rows["campaign"].isin(self.campaigns))]
        self.rows = rollup.arrange(pd.concat([kept, again], ignore_index=True))


def _texts(column: Any) -> set[str]:
    return {NONE if v is None or v != v else str(v) for v in column.astype(object)}


def _among(table: pd.DataFrame, starts: Mapping[Any, np.ndarray]) -> pd.Series:
    """Which rows are of the given spans and starts."""
    found = pd.Series(False, index=table.index)
    for every, some in starts.items():
        found |= (table["every"] == every) & table["bucket"].isin(some.astype("datetime64[us]"))
    return found


def _first(rows: pd.DataFrame, campaigns: Iterable[str], every: str) -> int | None:
    """When the first of some campaigns begins, to the span, microseconds of the local clock."""
    mine = rows[(rows["level"] == "provider") & (rows["every"] == every) & rows["campaign"].isin(sorted(campaigns))]
    return int(mine["bucket"].min().to_datetime64().astype("datetime64[us]").astype(np.int64)) if len(mine) else None


def _ranges(starts: np.ndarray, every: str) -> list[tuple[int, int]]:
    """Neighbouring spans as ranges [low, high) of the local clock."""
    if every == "month":
        months = starts.view("datetime64[us]").astype("datetime64[M]")
        ends = (months + 1).astype("datetime64[us]").view(np.int64)
    else:
        ends = starts + UNITS["h" if every == "hour" else "d"]
    begins = np.flatnonzero(np.concatenate([[True], starts[1:] != ends[:-1]]))
    stops = np.concatenate([begins[1:], [len(starts)]]) - 1
    return list(zip(starts[begins].tolist(), ends[stops].tolist(), strict=True))


def _utc(low: int, high: int) -> tuple[int, int]:
    """A range of UTC that holds a range of any zone's clock: zones are at most 14 hours ahead and 12 behind."""
    return low - DAY, high + DAY


def _months(starts: np.ndarray) -> list[str]:
    return [str(m) for m in np.unique(starts.view("datetime64[us]").astype("datetime64[M]"))]
