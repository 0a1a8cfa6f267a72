"""A batch's rows, one client and key range at a time: sorted, without duplicates, flagged, ready to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.backend import Backend
from pipeline.config import Quality
from pipeline.events.hashing import text_buffers
from pipeline.events.prepare import readable
from pipeline.events.quality import soon_after_send
from pipeline.events.schema import TIME, numpy_of, plain
from pipeline.events.sorting import bucket_of, settle, sort_order
from pipeline.events.tables import collision, ranks
from pipeline.events.writing import SortedRows, part_bits


def combine(tables: list[Any]) -> Any:
    """Several files' rows as one table of single chunks with shared dictionaries."""
    kinds = {t.schema.field("subscriber").type for t in tables}
    if len(kinds) > 1:
        at = tables[0].schema.get_field_index("subscriber")
        tables = [t.set_column(at, "subscriber", t.column("subscriber").cast(pa.large_string())) for t in tables]
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    for i, name in enumerate(table.column_names):
        array = plain(table.column(name))
        if pa.types.is_dictionary(array.type):  # kinds of rejected rows must not come back as categories
            codes = numpy_of(array.indices, -1)
            used = np.bincount(codes[codes >= 0], minlength=len(array.dictionary)) > 0
            if not used.all():
                number = np.append(np.cumsum(used) - 1, -1).astype(np.int32)[codes]
                codes_left = pa.array(number, mask=number < 0)
                array = pa.DictionaryArray.from_arrays(codes_left, array.dictionary.filter(pa.array(used)))
                table = table.set_column(i, name, array)
    return table


def check_keys(ids: Any, rows: np.ndarray, key: np.ndarray, client: str, backend: Backend) -> None:
    """Refuse, by name, two subscribers with one key.

    Args:
        ids: Arrow array of the subscribers' ids; rows: int64[n], positions in it sorted by key; key: int64[n], sorted.
    Raises:
        DataError: names both.
    """
    if pa.types.is_integer(ids.type):
        values = numpy_of(ids)[rows]
        other = np.flatnonzero((key[1:] == key[:-1]) & (values[1:] != values[:-1])) + 1
        at = int(other[0]) if len(other) else -1
    elif backend.compiled:
        from pipeline.events import compiled

        at = compiled.first_other_text(*text_buffers(ids), rows, key)
    else:
        taken = ids.take(pa.array(rows))
        differs = pc.not_equal(taken[1:], taken[:-1]).to_numpy(zero_copy_only=False)
        other = np.flatnonzero((key[1:] == key[:-1]) & differs) + 1
        at = int(other[0]) if len(other) else -1
    if at >= 0:
        one, two = ids[int(rows[at - 1])].as_py(), ids[int(rows[at])].as_py()
        raise collision(client, one, two)


@dataclass
class Part:
    """Rows ready to be written; ``hits``: rule -> rows found, examples."""

    rows: SortedRows
    duplicates: int
    hits: dict[str, tuple[int, list[dict[str, Any]]]]


class Sorter:
    """A batch's accepted rows and how to sort some of them.

    Args:
        table: of :class:`pipeline.events.prepare.Prepared`, one chunk a column; run: what its rows say they came in;
        carried: names; chosen: rule -> action.
    """

    def __init__(
        self,
        table: Any,
        run: str,
        carried: list[str],
        chosen: Mapping[str, str],
        quality: Quality,
        deduplicate: bool,
        backend: Backend,
    ) -> None:
        self.columns = {n: plain(table.column(n)) for n in table.column_names}
        self.key, self.ts = numpy_of(self.columns["subscriber_key"]), numpy_of(self.columns["ts"])
        self.run, self.carried, self.chosen, self.quality = run, carried, chosen, quality
        self.deduplicate, self.backend = deduplicate, backend

    def parts(self) -> list[tuple[str, int, int, int, np.ndarray]]:
        """The batch's tasks: client, part, of how many key ranges, the client's rows, and the part's positions."""
        client = self.columns["client"]
        codes, names = numpy_of(client.indices), client.dictionary.to_pylist()
        counts = np.bincount(codes, minlength=len(names)).tolist()
        bits = [part_bits(c) for c in counts]
        starts = np.concatenate([[0], np.cumsum([1 << b for b in bits])])
        place = starts[codes]
        width = np.array(bits)[codes]
        for b in set(bits) - {0}:
            mask = width == b
            place[mask] += bucket_of(self.key[mask], b)
        order = np.arange(len(place))
        if starts[-1] > 1:  # NumPy sorts 16-bit integers by radix
            order = np.argsort(place.astype(np.uint16 if starts[-1] < 65_536 else np.int64), kind="stable")
        ends = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=int(starts[-1])))])
        tasks = []
        for c, name in enumerate(names):
            for part in range(1 << bits[c]):
                at = int(starts[c]) + part
                if ends[at] < ends[at + 1]:
                    tasks.append((name, part, 1 << bits[c], counts[c], order[ends[at] : ends[at + 1]]))
        return tasks

    def sort(self, rows: np.ndarray, client: str) -> Part:
        """Some rows (positions, int64[r]) of one client in the total order, without duplicates, flagged.

        Raises:
            DataError: two subscribers have one key; names both.
        """
        xp, backend, columns, key, ts = self.backend.xp, self.backend, self.columns, self.key, self.ts
        part_key, part_ts = backend.asarray(key[rows]), backend.asarray(ts[rows])
        order = sort_order(part_key, part_ts, backend)

        def column(name: str, at: Any) -> Any:
            if name == "batch":
                return xp.zeros(len(at), dtype="int64")
            return backend.asarray(ranks(columns[name], rows[backend.to_host(at)]))

        content = ["provider", "value", *self.carried]
        settled = settle(order, part_key, part_ts, column, content, backend, self.deduplicate)
        final = rows[backend.to_host(settled.order)]
        take = pa.array(final)
        sorted_key, sorted_ts = key[final], ts[final]
        change = np.flatnonzero(np.concatenate([[True], sorted_key[1:] != sorted_key[:-1]]))
        check_keys(columns["subscriber"], final, sorted_key, client, backend)
        subscribers = columns["subscriber"].take(pa.array(final[change]))
        taken = {
            name: columns[name].take(take)
            for name in ("event", "event_id", "campaign", "provider", "value", *self.carried)
        }
        for name, array in taken.items():
            if pa.types.is_large_string(array.type):
                taken[name] = array.cast(pa.string())
        taken["ingested_at"] = columns["ingested_at"].take(take).view(TIME)
        taken["batch"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(final), np.int32)), pa.array([self.run]))
        machine, hits = self._flags(sorted_key, sorted_ts, taken, subscribers, change)
        taken["machine"] = pa.array(machine)
        conflicting = rows[backend.to_host(settled.conflicting)]
        examples = [
            {n: columns[n][int(i)].as_py() for n in ("client", "subscriber", "event", "event_id")}
            | {"ts": readable(int(ts[i]))}
            for i in conflicting[: self.quality.keep_examples]
        ]
        hits["conflicting_duplicate"] = (len(conflicting), examples)
        return Part(SortedRows(sorted_key, sorted_ts, taken, subscribers), len(settled.dropped), hits)

    def _flags(
        self, key: np.ndarray, ts: np.ndarray, taken: dict[str, Any], subscribers: Any, change: np.ndarray
    ) -> tuple[np.ndarray, dict[str, tuple[int, list[dict[str, Any]]]]]:
        """The machine flag of sorted rows, and what each rule behind it found."""
        machine = np.zeros(len(key), dtype=bool)
        hits: dict[str, tuple[int, list[dict[str, Any]]]] = {}
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
