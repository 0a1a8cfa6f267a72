"""Sorting and merging against Python's sort, hashing against the reference implementation."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipeline.backend import PANDAS, Backend
from pipeline.events import sorting
from pipeline.events.hashing import hash_ids, hash_rows, second_hash
from pipeline.events.sorting import bucket_of, changes, key_bounds, merge_order, place_order, sort_order
from pipeline.events.writing import group_bits, part_bits


class Portable(Backend):
    """The CPU without compiled twins: the reference kernels."""

    @property
    def compiled(self) -> bool:
        return False


@pytest.mark.parametrize("kernels", [PANDAS, Portable("pandas")], ids=["compiled", "portable"])
@pytest.mark.parametrize("spread", ["hashed", "one key", "few", "narrow", "extremes"])
def test_sort_and_merge(kernels: Backend, spread: str) -> None:
    rng = np.random.default_rng(1)
    choices = {
        "hashed": rng.integers(-(2**63), 2**63 - 1, 300),
        "one key": np.array([7]),
        "few": np.array([-5, 0, 5]),
        "narrow": np.arange(100),
        "extremes": np.array([-(2**63), 2**63 - 1, 0]),
    }[spread]
    for n in (0, 1, 2, 50, 3000):
        key, ts = rng.choice(choices, n).astype(np.int64), rng.integers(-5, 50, n)
        wanted = sorted(range(n), key=lambda i: (key[i], ts[i]))
        order, key_there, ts_there, tied = sort_order(key, ts, kernels)
        assert order.tolist() == wanted
        assert (key_there.tolist(), ts_there.tolist()) == (key[order].tolist(), ts[order].tolist())
        assert tied or not ((np.diff(key_there) == 0) & (np.diff(ts_there) == 0)).any()
        for runs in (1, 2, 9):
            starts = [n * r // runs for r in range(runs + 1)]
            order = np.concatenate([a + np.lexsort((ts[a:b], key[a:b])) for a, b in pairwise(starts)] or [[]]).astype(
                np.int64
            )
            k, t = key[order], ts[order]
            wanted = sorted(range(n), key=lambda i: (k[i], t[i]))
            merged, key_there, ts_there, tied = merge_order(k, t, starts, kernels)
            assert merged.tolist() == wanted
            assert key_there.tolist() == k[merged].tolist()
            assert ts_there.tolist() == t[merged].tolist()
            run = np.searchsorted(starts, merged, side="right")
            same = (np.diff(key_there) == 0) & (np.diff(ts_there) == 0)
            assert tied or not (same & (np.diff(run) != 0)).any()


def test_key_ranges() -> None:
    for parts in (1, 2, 3, 7, 64):
        bounds = key_bounds(parts)
        assert bounds[0] == -(2**63)
        assert bounds[-1] == 2**63
        assert len(bounds) == parts + 1
        sizes = np.diff(np.array(bounds, dtype=object))
        assert max(sizes) - min(sizes) <= 1
    keys = np.array([-(2**63), -1, 0, 2**63 - 1, 2**62], dtype=np.int64)
    for bits in (0, 1, 3, 10):
        assert bucket_of(keys, bits).tolist() == [(int(k) + 2**63) >> (64 - bits) for k in keys]
    assert [group_bits(n) for n in (1, 50, 6400, 639_999, 640_000, 1_280_000, 10_000_000)] == [0, 1, 6, 6, 6, 7, 9]
    assert [part_bits(n) for n in (0, 1_500_000, 1_500_001, 10_000_000)] == [0, 0, 1, 3]


@pytest.mark.parametrize("kernels", [PANDAS, Portable("pandas")], ids=["compiled", "portable"])
@pytest.mark.parametrize("owners", [1, 3])
def test_rows_by_owner_and_key_range(monkeypatch: pytest.MonkeyPatch, kernels: Backend, owners: int) -> None:
    monkeypatch.setattr(sorting, "PANDAS", kernels)
    rng = np.random.default_rng(2)
    key = rng.choice([-(2**63), -1, 0, 2**62, 2**63 - 1, 12345], 300)
    owner = rng.integers(0, owners, 300).astype(np.int32)
    for bits in (0, 1, 5):
        for n in (0, 1, 300):
            order, counts = place_order(key[:n], owner[:n] if owners > 1 else None, owners, bits)
            place = [(int(owner[i]) if owners > 1 else 0, (int(key[i]) + 2**63) >> (64 - bits)) for i in range(n)]
            assert order.tolist() == sorted(range(n), key=lambda i: place[i])
            assert counts.tolist() == [[place.count((o, r)) for r in range(1 << bits)] for o in range(owners)]


@pytest.mark.parametrize("kernels", [PANDAS, Portable("pandas")], ids=["compiled", "portable"])
def test_where_keys_begin_and_whether_two_names_have_one(monkeypatch: pytest.MonkeyPatch, kernels: Backend) -> None:
    monkeypatch.setattr(sorting, "PANDAS", kernels)
    rng = np.random.default_rng(3)
    key = np.sort(rng.integers(-4, 5, 60))
    order = rng.permutation(60)
    name = np.empty(60, dtype=np.int32)
    name[order] = key * 7
    begins, other = changes(key, name, order)
    assert begins.tolist() == [i for i in range(60) if i == 0 or key[i] != key[i - 1]]
    assert other == 0
    within = next(i for i in range(30, 60) if key[i] == key[i - 1])
    name[order[within]] += 1
    assert changes(key, name.astype(np.int64), order)[1] == within


@pytest.mark.parametrize("kernels", [PANDAS, Portable("pandas")], ids=["compiled", "portable"])
def test_ids_hash_as_the_reference(kernels: Backend, backend: Backend) -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choice("aé中😀") for _ in range(rng.randrange(40))) for _ in range(500)]
    used = backend if backend.on_gpu else kernels
    for kind in (pa.string(), pa.large_string()):
        hashed = backend.to_host(hash_ids(pa.array(texts, kind).slice(3), used)).view(np.uint64)
        assert hashed.tolist() == [xxhash.xxh64_intdigest(t.encode()) for t in texts[3:]]
    hashed = backend.to_host(second_hash(pa.array(texts), used)).view(np.uint64)
    assert hashed.tolist() == [xxhash.xxh64_intdigest(t.encode(), 1) for t in texts]
    numbers = [-1, 2**63 - 1, -(2**63), *(rng.getrandbits(40) for _ in range(100))]
    numbers += [10**k + d for k in range(18) for d in (-1, 0, rng.randrange(10**k))]
    hashed = backend.to_host(hash_ids(pa.array(numbers), used)).view(np.uint64)
    assert hashed.tolist() == [xxhash.xxh64_intdigest(str(n).encode()) for n in numbers]


def test_row_hashes_depend_on_names_and_values_alone() -> None:
    a, b = pa.array([1, 2, None], pa.int32()), pa.array(["x", "y", "x"])
    first = hash_rows({"a": a, "b": b}, PANDAS)
    same = (
        {"b": b.dictionary_encode(), "a": a.cast(pa.int64())},
        {"a": a, "b": b.cast(pa.large_string()), "new": pa.nulls(3, pa.float64())},
    )
    for columns in same:
        assert hash_rows(columns, PANDAS).tolist() == first.tolist()
    assert len(set(first.tolist())) == 3
    assert hash_rows({"b": a, "a": b}, PANDAS).tolist() != first.tolist()
    us = pa.array([1, 2], pa.timestamp("us", "UTC"))
    assert hash_rows({"t": us}, PANDAS).tolist() == hash_rows({"t": us.cast(pa.timestamp("ns"))}, PANDAS).tolist()
    odd = {
        "list": pa.array([[1], [2]]),
        "decimal": pa.array([1, 100], pa.decimal128(5, 0)),
        "float": pa.array([0.0, -0.0]),
        "bytes": pa.array([b"\xff", b"\xfe"]),
        "flag": pa.array([True, False]),
        "day": pa.array([1, 2], pa.date32()),
    }
    hashed = {n: hash_rows({n: v}, PANDAS).tolist() for n, v in odd.items()}
    assert [n for n, h in hashed.items() if h[0] == h[1]] == ["float"]
