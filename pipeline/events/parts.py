"""A batch's rows, one client and key range at a time: sorted, without duplicates, flagged, ready to be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import Backend
from pipeline.events.flags import flag_rows
from pipeline.events.prepare import readable
from pipeline.events.quality import Rulebook, RuleResult
from pipeline.events.ranges import BatchRows, PartRows, Range, Scratch
from pipeline.events.schema import TIME
from pipeline.events.sorting import changes, settle, sort_order
from pipeline.events.tables import collision, ranks
from pipeline.events.volume import Past, Tally, tally
from pipeline.events.writing import SortedRows
from pipeline.options import Quality


@dataclass
class Findings:
    """What a range's rows say of it: ``results``: rule -> what it found; ``tally``: see :mod:`volume`."""

    duplicates: int
    conflicts: int
    results: dict[str, RuleResult]
    tally: Tally


@dataclass
class Part:
    """Rows ready to be written."""

    rows: SortedRows
    findings: Findings


class Sorter:
    """How to sort a batch's rows, one range at a time.

    Args:
        batch: its rows; run: what its rows say they came in; carried: names; past: what earlier batches hold;
        listed: the log has addresses or agents.
    """

    def __init__(
        self,
        batch: BatchRows,
        run: str,
        carried: list[str],
        book: Rulebook,
        past: Past,
        listed: bool,
        quality: Quality,
        deduplicate: bool,
        backend: Backend,
    ) -> None:
        self.batch = batch
        self.marked = batch.has("marks")
        self.run, self.carried, self.book, self.past, self.listed = run, carried, book, past, listed
        self.quality = quality
        self.deduplicate, self.backend = deduplicate, backend

    def sort(self, part: Range, scratch: Scratch) -> Part:
        """A range's rows in the total order, without duplicates, flagged; in memory that is ``scratch``'s.

        Raises:
            DataError: two subscribers have one key; names both.
        """
        xp, backend, rows = self.backend.xp, self.backend, self.batch.rows(part, scratch)
        part_key, part_ts = backend.asarray(rows.key), backend.asarray(rows.ts)
        order, key_in_order, ts_in_order, tied = sort_order(part_key, part_ts, backend, scratch.array)
        dropped = conflicting = np.empty(0, dtype=np.int64)
        sorted_key, sorted_ts = backend.to_host(key_in_order), backend.to_host(ts_in_order)
        if tied:

            def column(name: str, at: Any) -> Any:
                if name == "batch":
                    return xp.zeros(len(at), dtype="int64")
                values = rows.take(name, backend.to_host(at))
                return backend.asarray(ranks(values, np.arange(len(at))))

            content = ["provider", "value", *self.carried]
            settled = settle(order, part_key, part_ts, column, content, backend, self.deduplicate)
            order, dropped = settled.order, backend.to_host(settled.dropped)
            conflicting = backend.to_host(settled.conflicting)
            if len(dropped):
                sorted_key, sorted_ts = backend.to_host(part_key[order]), backend.to_host(part_ts[order])
        final = backend.to_host(order)
        begins = _begins(rows, sorted_key, final, part.client)
        subscribers = rows.take("subscriber", final[begins])
        taken = {
            name: rows.take(name, final)
            for name in ("event", "event_id", "campaign", "provider", "value", *self.carried)
        }
        for name, array in taken.items():
            if pa.types.is_large_string(array.type):
                taken[name] = array.cast(pa.string())
        arrived = rows.numbers("ingested_at", final)
        taken["ingested_at"] = pa.array(arrived).view(TIME)
        only = pa.array(np.zeros(len(final), np.int32))
        taken["batch"] = pa.DictionaryArray.from_arrays(only, pa.array([self.run]), safe=False)
        flagged = flag_rows(
            sorted_key,
            sorted_ts,
            arrived,
            taken["event"],
            taken["campaign"],
            rows.numbers("marks", final) if self.marked else None,
            self.past.campaigns(part.client),
            self.listed,
            self.quality,
            self.book,
        )
        taken["machine"], taken["flagged_by"] = pa.array(flagged.machine), flagged.names
        found = {rule: final[hits] for rule, hits in flagged.hits.items()}
        found |= {"duplicate": dropped, "conflicting_duplicate": conflicting}
        results = {rule: self._result(rows, rule, hits, part.client) for rule, hits in found.items() if len(hits)}
        counts = tally(sorted_ts, arrived, taken, flagged.machine)
        findings = Findings(len(dropped), len(conflicting), results, counts)
        return Part(SortedRows(sorted_key, sorted_ts, taken, subscribers), findings)

    def _result(self, rows: PartRows, rule: str, places: np.ndarray, client: str) -> RuleResult:
        """What a rule found; places: int64[h], positions in rows."""
        first = places[: self.quality.keep_examples]
        found = {n: rows.take(n, first).to_pylist() for n in ("subscriber", "event", "event_id", "campaign")}
        examples = [
            {"client": client, **{n: found[n][i] for n in found}, "ts": readable(int(rows.ts[at]))}
            for i, at in enumerate(first.tolist())
        ]
        return self.book.found(rule, rows.numbers("ingested_at", places), examples)


def _begins(rows: PartRows, key: np.ndarray, order: np.ndarray, client: str) -> np.ndarray:
    """Where each subscriber's rows begin among the sorted, int64[d].

    Raises:
        DataError: two subscribers have one key; names both.
    """
    begins, other = changes(key, rows.integers(rows.name), order)
    if other:
        one, two = rows.take("subscriber", order[other - 1 : other + 1]).to_pylist()
        raise collision(client, one, two)
    return begins
