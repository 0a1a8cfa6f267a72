"""A batch's rows, one client and key range at a time: sorted, without duplicates, flagged, ready to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import Backend
from pipeline.config import Quality
from pipeline.events.prepare import readable
from pipeline.events.quality import soon_after_send
from pipeline.events.ranges import BatchRows, Range
from pipeline.events.schema import TIME, numpy_of
from pipeline.events.sorting import settle, sort_order
from pipeline.events.tables import collision, ranks
from pipeline.events.writing import SortedRows

Hits = dict[str, tuple[int, list[dict[str, Any]]]]  # rule -> rows found, examples


@dataclass
class Part:
    """Rows ready to be written; ``hits``: what the rules behind the sort found."""

    rows: SortedRows
    duplicates: int
    hits: Hits


class Sorter:
    """How to sort a batch's rows, one range at a time.

    Args:
        rows: the batch's; run: what its rows say they came in; carried: names; chosen: rule -> action.
    """

    def __init__(
        self,
        rows: BatchRows,
        run: str,
        carried: list[str],
        chosen: Mapping[str, str],
        quality: Quality,
        deduplicate: bool,
        backend: Backend,
    ) -> None:
        self.rows = rows
        self.run, self.carried, self.chosen, self.quality = run, carried, chosen, quality
        self.deduplicate, self.backend = deduplicate, backend

    def sort(self, part: Range) -> Part:
        """A range's rows in the total order, without duplicates, flagged.

        Raises:
            DataError: two subscribers have one key; names both.
        """
        xp, backend, rows = self.backend.xp, self.backend, self.rows
        part_key, part_ts = (backend.asarray(a[part.first : part.last]) for a in (rows.key, rows.ts))
        order, key_in_order, ts_in_order, tied = sort_order(part_key, part_ts, backend)
        duplicates, conflicting = 0, np.empty(0, dtype=np.int64)
        sorted_key, sorted_ts = backend.to_host(key_in_order), backend.to_host(ts_in_order)
        if tied:

            def column(name: str, at: Any) -> Any:
                if name == "batch":
                    return xp.zeros(len(at), dtype="int64")
                values = rows.take(name, part.first + backend.to_host(at))
                return backend.asarray(ranks(values, np.arange(len(at))))

            content = ["provider", "value", *self.carried]
            settled = settle(order, part_key, part_ts, column, content, backend, self.deduplicate)
            order, duplicates = settled.order, len(settled.dropped)
            conflicting = part.first + backend.to_host(settled.conflicting)
            if duplicates:
                sorted_key, sorted_ts = backend.to_host(part_key[order]), backend.to_host(part_ts[order])
        final = part.first + backend.to_host(order)
        change = self._changes(sorted_key, final, part.client)
        subscribers = rows.take("subscriber", final[change])
        taken = {
            name: rows.take(name, final)
            for name in ("event", "event_id", "campaign", "provider", "value", *self.carried)
        }
        for name, array in taken.items():
            if pa.types.is_large_string(array.type):
                taken[name] = array.cast(pa.string())
        taken["ingested_at"] = rows.take("ingested_at", final).view(TIME)
        taken["batch"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(final), np.int32)), pa.array([self.run]))
        machine, hits = self._flags(sorted_key, sorted_ts, taken, subscribers, change)
        taken["machine"] = pa.array(machine)
        first = conflicting[: self.quality.keep_examples]
        found = {n: rows.take(n, first).to_pylist() for n in ("subscriber", "event", "event_id")}
        examples = [
            {"client": part.client, **{n: found[n][i] for n in found}, "ts": readable(int(rows.ts[at]))}
            for i, at in enumerate(first.tolist())
        ]
        hits["conflicting_duplicate"] = (len(conflicting), examples)
        return Part(SortedRows(sorted_key, sorted_ts, taken, subscribers), duplicates, hits)

    def _changes(self, key: np.ndarray, places: np.ndarray, client: str) -> np.ndarray:
        """Where each subscriber's rows begin, int64[d]; refuses, by name, two subscribers with one key."""
        change = key[1:] != key[:-1]
        name = self.rows.name.take(places)
        other = np.flatnonzero(~change & (name[1:] != name[:-1]))
        if len(other):
            one, two = self.rows.take("subscriber", places[other[0] : other[0] + 2]).to_pylist()
            raise collision(client, one, two)
        return np.concatenate([[0], np.flatnonzero(change) + 1])

    def _flags(
        self, key: np.ndarray, ts: np.ndarray, taken: dict[str, Any], subscribers: Any, change: np.ndarray
    ) -> tuple[np.ndarray, Hits]:
        """The machine flag of sorted rows, and what each rule behind it found."""
        machine = np.zeros(len(key), dtype=bool)
        hits: Hits = {}
        rules = [r for r in ("scanner_click", "machine_open") if self.chosen[r] != "off"]
        if not rules:
            return machine, hits
        kinds = {name: i for i, name in enumerate(taken["event"].dictionary.to_pylist())}
        codes = numpy_of(taken["event"].indices)
        campaign = numpy_of(taken["campaign"].indices, -1)
        host = Backend("pandas")
        found = soon_after_send(key, ts, codes, campaign, kinds, self.quality.scanner_within, host)
        for rule in rules:
            mask = found[rule]
            if self.chosen[rule] == "flag":
                machine |= mask
            first = np.flatnonzero(mask)[: self.quality.keep_examples]
            who = np.searchsorted(change, first, side="right") - 1
            examples = [
                {
                    "subscriber": subscribers[int(w)].as_py(),
                    "event": taken["event"][int(i)].as_py(),
                    "ts": readable(int(ts[i])),
                }
                for i, w in zip(first, who, strict=True)
            ]
            hits[rule] = (int(mask.sum()), examples)
        return machine, hits
