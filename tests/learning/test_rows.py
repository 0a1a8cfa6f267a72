"""The checksum of sequences, against a plain loop, and what it tells apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.learning import rows as module
from pipeline.learning.rows import Rows, checksum
from tests.learning.test_sequence_inputs import table

WRAP = (1 << 64) - 1


def mixed(salt: int, *numbers: int) -> int:
    """SplitMix64's finaliser, in Python's own integers."""
    z = salt
    for number in numbers:
        z = ((z ^ number) + 0x9E3779B97F4A7C15) & WRAP
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & WRAP
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & WRAP
        z ^= z >> 31
    return z


def by_hand(sequences: dict[str, np.ndarray], index: list[int]) -> int:
    total = 0
    for salt, name in enumerate(sorted(sequences)):
        array = sequences[name]
        draw = np.random.default_rng([salt, *name.encode()])
        factors = [int(f) | 1 for f in draw.integers(1 << 64, size=array.shape[1], dtype=np.uint64)]
        for place, i in enumerate(index):
            elements = [int.from_bytes(value.tobytes(), "little") for value in array[i]]
            total += mixed(salt, place, sum(f * e for f, e in zip(factors, elements, strict=True)) & WRAP)
    return total & WRAP


@pytest.mark.parametrize("index", [None, [5, 3, 3, 90], []])
def test_it_is_its_formula_whatever_the_blocks(
    backend: Backend, index: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = table(backend, 100)
    host = {name: backend.to_host(array) for name, array in rows.sequences.items()}
    expected = by_hand(host, list(range(100)) if index is None else index)
    chosen = rows if index is None else rows.chosen(backend.asarray(np.array(index, dtype=np.int64)))
    assert checksum(chosen) == expected
    monkeypatch.setattr(module, "BLOCK", 7)
    assert checksum(chosen) == expected


def test_it_tells_contents_apart(backend: Backend) -> None:
    rows, _ = table(backend, 500)

    def changed(name: str, change: Any) -> int:
        array = rows.sequences[name].copy()
        change(array)
        return checksum(replace(rows, sequences={**rows.sequences, name: array}))

    def swap(array: Any, first: Any, second: Any) -> None:
        array[first], array[second] = array[second].copy(), array[first].copy()

    found = [checksum(rows), checksum(rows.chosen(backend.asarray(np.arange(499))))]
    for name in rows.sequences:
        found.append(changed(name, lambda a: a.__setitem__((3, 4), a[3, 4] + 1)))
        found.append(changed(name, lambda a: swap(a, slice(0, 250), slice(250, 500))))
        found.append(changed(name, lambda a: swap(a, (slice(None), 0), (slice(None), 1))))
    found.append(checksum(replace(rows, sequences={**rows.sequences, "kind": rows.sequences["hour"]})))
    assert len(set(found)) == len(found) == 15


def test_rows_without_sequences_have_none(backend: Backend) -> None:
    rows, _ = table(backend, 10)
    assert checksum(Rows(rows.X, rows.y, rows.mask, rows.weight)) == 0
