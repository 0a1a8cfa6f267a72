"""How source files are grouped into batches."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from pipeline.events.sources import SourceFile, Unit, batch_rows, make_batches

GB = 1 << 30


def units(rows: int, groups: int) -> list[Unit]:
    given: dict[str, Any] = dict.fromkeys((f.name for f in fields(SourceFile)), "")
    file = SourceFile(**{**given, "group_rows": (rows // groups,) * groups})
    return [Unit(file, g, g + 1) for g in range(groups)]


@pytest.mark.parametrize(
    ("rows", "memory", "expected"),
    [
        (1_000, 24 * GB, 10_000_000),
        (100_000_000, 24 * GB, 12_500_000),
        (1_000_000_000, 24 * GB, 24 * GB // 16 // 48),
        (1_000_000_000, 2 * GB, 10_000_000),
    ],
)
def test_batches_grow_with_the_load_as_memory_allows(
    rows: int, memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory)
    assert batch_rows(units(rows, 10)) == expected


def test_batches_keep_the_order_and_lose_nothing() -> None:
    every = units(95_000, 19)
    batches = make_batches(every, 20_000)
    assert [u for batch in batches for u in batch] == every
    assert [sum(u.rows for u in batch) for batch in batches] == [20_000] * 4 + [15_000]
