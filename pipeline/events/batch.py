"""A batch on its way from source files to a commit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pipeline.events.prepare import Prepared
from pipeline.events.quality import Rulebook, RuleResult, refuse
from pipeline.events.ranges import Piece
from pipeline.events.schema import FORMAT_VERSION
from pipeline.events.sources import Unit
from pipeline.events.volume import Tally
from pipeline.events.writing import Written
from pipeline.options import Quality


@dataclass
class Batch:
    """A batch on its way: counts that must add up, and the files written.

    ``batch`` names its sources and settings, and is committed once. ``run`` names its files: the same where the content
    is the same; where rows take the time of this ingest, with that time, so that rivals never write each other's files.
    """

    batch: str
    run: str
    units: list[Unit]
    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    rejected: int = 0
    conflicts: int = 0
    results: dict[str, RuleResult] = field(default_factory=dict)
    rejected_by: dict[str, int] = field(default_factory=dict)
    per_client: dict[str, dict[str, int]] = field(default_factory=dict)
    arrivals: dict[str, int] = field(default_factory=dict)  # ISO date -> rows in
    tally: dict[str, Tally] = field(default_factory=dict)  # by client
    pieces: list[Piece] = field(default_factory=list)
    bits: int = 0  # a piece has 2**bits key ranges
    refused: list[Any] = field(default_factory=list)  # tables of rejected rows
    dropped: int = 0  # of the rejected: those that must not come in, see screen.py
    token: str = ""  # of the tombstones that it was read under

    def add(self, prepared: Prepared, book: Rulebook, keep: int) -> None:
        """Count one file's rows; ``keep``: how many examples of each rule."""
        self.rows += prepared.rows
        if prepared.rejected is not None:
            self.refused.append(prepared.rejected)
        self.dropped += sum(prepared.dropped.values())
        for name, count in [*prepared.rejected_by.items(), *prepared.dropped.items()]:
            self.rejected += count
            self.rejected_by[name] = self.rejected_by.get(name, 0) + count
        for name, result in prepared.results.items():
            self.results.setdefault(name, book.result(name)).add(result, keep)
        add_counts(self.per_client, prepared.per_client)
        for day, count in prepared.arrivals.items():
            self.arrivals[day] = self.arrivals.get(day, 0) + count

    def refuse(self, quality: Quality) -> None:
        """Stop where a rule's action is fail or too many rows break one; those dropped unlooked at do not count.

        Raises:
            DataError: names the rule.
        """
        refuse(self.results, self.rejected - self.dropped, self.rows - self.dropped, quality, self.run)

    def manifest(self, written: list[Written]) -> dict[str, Any]:
        """What the batch's commit says of it."""
        sources = [
            {
                "name": u.file.name,
                "size": u.file.size,
                "stamp": u.file.stamp,
                "sha256": u.file.sha256,
                "rows": u.rows,
                "first": u.first,
                "last": u.last,
                "total_groups": len(u.file.group_rows),
            }
            for u in self.units
        ]
        counts = {n: getattr(self, n) for n in ("rows", "kept", "duplicates", "rejected", "conflicts")}
        return {
            "format": FORMAT_VERSION,
            "run": self.run,
            "kind": "ingest",
            "sources": sources,
            "files": [w.entry for w in written],
            "counts": counts,
            "rejected_by": self.rejected_by,
            "rules": [dataclasses.asdict(result) for result in self.results.values() if result.count or result.of],
            "per_client": self.per_client,
            "arrivals": self.arrivals,
            "tally": self.tally,
        }


def add_counts(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    """Add one set of counts per client to another."""
    for client, counts in more.items():
        one = total.setdefault(client, {})
        for name, count in counts.items():
            one[name] = one.get(name, 0) + count
