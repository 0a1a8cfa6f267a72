"""A batch's rows by client and key range, against a plain loop."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.backend import Backend
from pipeline.events import ranges
from pipeline.events.hashing import hash_ids
from pipeline.events.ranges import BatchRows, Blocks, Scratch, piece_of
from pipeline.events.schema import CATEGORY
from pipeline.events.sorting import bucket_of

CLIENTS = ["acme", "globex", "acme", "never"]  # a dictionary may hold a word twice


def one_file(rng: random.Random, n: int, texts: bool, backend: Backend) -> pa.Table:
    users = [rng.randrange(40) for _ in range(n)]
    subscriber = pa.array([str(u) for u in users], pa.large_string()) if texts else pa.array(users, pa.int64())
    words = rng.sample(["send", "open", "click", "unused"], 4)

    def category(words: list[str], nulls: bool) -> Any:
        codes = [None if nulls and rng.random() < 0.2 else rng.randrange(len(words) - 1) for _ in range(n)]
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(words, pa.string()))

    return pa.table(
        {
            "client": category(CLIENTS, nulls=False),
            "subscriber": subscriber,
            "ts": pa.array([rng.randrange(1000) for _ in range(n)], pa.int64()),
            "event": category(words, nulls=False),
            "campaign": category(["a", "b", "x"], nulls=True),
            "provider": pa.nulls(n, CATEGORY),
            "ingested_at": pa.array([n] * n, pa.int64()),
            "value": pa.array([None if rng.random() < 0.5 else rng.randrange(9) for _ in range(n)], pa.int64()),
            "note": pa.array([rng.choice(["é", "", None]) for _ in range(n)], pa.large_string()),
            "subscriber_key": pa.array(backend.to_host(hash_ids(subscriber, backend))),
        }
    )


@pytest.mark.parametrize("texts", [(True, True), (False, False), (True, False, True)])
@pytest.mark.parametrize("rows_a_range", [10, 10_000])
def test_every_row_is_in_its_range(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, texts: tuple[bool, ...], rows_a_range: int
) -> None:
    monkeypatch.setattr(ranges, "part_bits", lambda rows: (rows // rows_a_range).bit_length())
    rng = random.Random(5)
    files = [one_file(rng, 30 + 50 * i, kind, backend) for i, kind in enumerate(texts)]
    every = [
        dict(row, subscriber=str(row["subscriber"]) if any(texts) else row["subscriber"])
        for file in files
        for row in file.to_pylist()
    ]
    bits, blocks = ranges.part_bits(len(every)), Blocks()
    for again in range(2):  # in fresh memory, then in memory used before
        pieces = [piece_of(file, bits, blocks, backend) for file in files]
        check(BatchRows(pieces, bits), files, every, rows_a_range, Scratch(blocks))
        blocks.give([p.memory for p in pieces if p.memory is not None])
        assert again or not bits or len(pieces) == len({id(p.memory) for p in pieces})


def check(
    batch: BatchRows, files: list[pa.Table], every: list[dict[str, Any]], rows_a_range: int, scratch: Scratch
) -> None:
    names = [n for n in files[0].column_names if n not in ("client", "subscriber_key")]
    seen = 0
    for part in batch.ranges:
        mine = [r for r in every if r["client"] == part.client]
        bits = (len(mine) // rows_a_range).bit_length()
        assert (part.parts, part.total) == (1 << bits, len(mine))
        keys = np.array([r["subscriber_key"] for r in mine], dtype=np.int64)
        wanted = [r for r, b in zip(mine, bucket_of(keys, bits).tolist(), strict=True) if b == part.part]
        rows = batch.rows(part, scratch)
        backwards = np.arange(len(wanted))[::-1]
        columns = [rows.take(name, backwards).to_pylist() for name in names]
        found = list(zip(rows.key[::-1].tolist(), *columns, strict=True))
        assert rows.ts[::-1].tolist() == columns[names.index("ts")]
        assert sorted(found, key=str) == sorted(
            ((r["subscriber_key"], *(r[n] for n in names)) for r in wanted), key=str
        )
        assert set(rows.take("event", backwards).dictionary.to_pylist()) == {r["event"] for r in every}
        seen += len(wanted)
        scratch.free()
    assert seen == len(every)
    assert {p.client for p in batch.ranges} == {r["client"] for r in every} == {"acme", "globex"}


def test_names_tell_subscribers_of_one_key_apart(backend: Backend) -> None:
    table = one_file(random.Random(1), 200, True, backend)
    table = table.set_column(table.num_columns - 1, "subscriber_key", pa.array(np.zeros(200, np.int64)))
    batch = BatchRows([piece_of(table, 0, Blocks(), backend)], 0)
    rows = [batch.rows(part, Scratch(Blocks())) for part in batch.ranges]
    names = {
        name: text
        for part in rows
        for name, text in zip(
            part.integers(part.name).tolist(),
            part.take("subscriber", np.arange(len(part.key))).to_pylist(),
            strict=True,
        )
    }
    assert len(names) == len(set(names.values())) == len(set(table.column("subscriber").to_pylist()))


def test_blocks_are_whole_huge_pages_and_used_again() -> None:
    blocks = Blocks()
    taken = [blocks.take(size) for size in (1, ranges.BLOCK, ranges.BLOCK + 1)]
    assert [len(b) // ranges.BLOCK for b in taken] == [1, 1, 2]
    assert all(len(b) % ranges.BLOCK == 0 and b.ctypes.data % ranges.BLOCK == 0 for b in taken)
    for i, block in enumerate(taken):
        block[:] = i
    assert [set(b.tolist()) for b in (taken[0][:9], taken[1][-9:], taken[2][-9:])] == [{0}, {1}, {2}]
    place = taken[2].ctypes.data
    blocks.give(taken)
    assert blocks.take(2 * ranges.BLOCK).ctypes.data == place
