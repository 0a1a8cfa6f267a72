# mypy: disable-error-code="untyped-decorator"
"""Compiled CPU twins of the array kernels in :mod:`hashing` and :mod:`sorting`.

Imported only where numba is to be used: compiling takes seconds once, then the code comes from numba's cache. All
release the GIL, so threads share the cores.
"""

from __future__ import annotations

import time
from typing import Any

import numba
import numpy as np

from pipeline.events import compiled_signals

u = np.uint64
p1, p2, p3 = u(11400714785074694791), u(14029467366897019727), u(1609587929392839161)
p4, p5 = u(9650029242287828579), u(2870177450012600261)
byte, mask = u(8), u(0)


@numba.njit(nogil=True, cache=True, inline="always")
def rotate(x: Any, r: Any) -> Any:
    return (x << u(r)) | (x >> u(64 - r))


@numba.njit(nogil=True, cache=True, inline="always")
def word(data: Any, at: int, size: int) -> Any:
    value = mask
    for i in range(size):
        value |= u(data[at + i]) << (byte * u(i))
    return value


@numba.njit(nogil=True, cache=True, inline="always")
def step(lane: Any, value: Any) -> Any:
    return rotate(lane + value * p2, 31) * p1


@numba.njit(nogil=True, cache=True, inline="always")
def avalanche(h: Any) -> Any:
    h = (h ^ (h >> u(33))) * p2
    h = (h ^ (h >> u(29))) * p3
    return h ^ (h >> u(32))


@numba.njit(nogil=True, cache=True)
def digest(data: Any, lo: int, hi: int, seed: Any) -> Any:
    at = lo
    if hi - lo >= 32:
        a, b, c, d = seed + p1 + p2, seed + p2, seed, seed - p1
        while at + 32 <= hi:
            a = step(a, word(data, at, 8))
            b = step(b, word(data, at + 8, 8))
            c = step(c, word(data, at + 16, 8))
            d = step(d, word(data, at + 24, 8))
            at += 32
        h = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18)
        for lane in (a, b, c, d):
            h = (h ^ step(u(0), lane)) * p1 + p4
    else:
        h = seed + p5
    h += u(hi - lo)
    while at + 8 <= hi:
        h = rotate(h ^ step(u(0), word(data, at, 8)), 27) * p1 + p4
        at += 8
    if at + 4 <= hi:
        h = rotate(h ^ (word(data, at, 4) * p1), 23) * p2 + p3
        at += 4
    while at < hi:
        h = rotate(h ^ (u(data[at]) * p5), 11) * p1
        at += 1
    return avalanche(h)


@numba.njit(nogil=True, cache=True)
def hash_texts(data: Any, offsets: Any, seed: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = digest(data, offsets[i], offsets[i + 1], seed)


@numba.njit(nogil=True, cache=True, inline="always")
def eight_digits(x: Any) -> Any:
    """The eight decimal digits of x < 10^8 as text, the first in the lowest byte: halved, and halved, and halved again,
    all parts at once. The multiplications divide by 10,000, by 100 and by 10, exactly for numbers so small."""
    high = (x * u(3_518_437_209)) >> u(45)
    x = high | (x - high * u(10_000)) << u(32)
    high = (x * u(10_486)) >> u(20) & u(0x0000007F_0000007F)
    x = high | (x - high * u(100)) << u(16)
    high = (x * u(103)) >> u(10) & u(0x000F000F_000F000F)
    return (high | (x - high * u(10)) << u(8)) + u(0x30303030_30303030)


@numba.njit(nogil=True, cache=True, inline="always")
def either(condition: Any, yes: Any, no: Any) -> Any:
    chosen = u(0) - u(condition)
    return (yes & chosen) | (no & ~chosen)


@numba.njit(nogil=True, cache=True, inline="always")
def hash_small(x: Any) -> Any:
    """The digest of the decimal text of x < 10^8, seed 0, without a branch: eight numbers at once where the processor
    can, which takes two fifths of the time."""
    size = u(1)
    for power in (10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        size += u(x >= u(power))
    text = eight_digits(x) >> byte * (u(8) - size)
    h = p5 + size
    eight = rotate(h ^ step(u(0), text), 27) * p1 + p4
    four = size >= u(4)
    h = either(four, rotate(h ^ ((text & u(0xFFFFFFFF)) * p1), 23) * p2 + p3, h)
    text = either(four, text >> u(32), text)
    for i in range(3):
        h = either(size & u(3) > u(i), rotate(h ^ ((text & u(0xFF)) * p5), 11) * p1, h)
        text >>= byte
    return avalanche(either(size == u(8), eight, h))


@numba.njit(nogil=True, cache=True)
def hash_any(values: Any, out: Any) -> None:
    text = np.empty(20, np.uint8)
    for i in range(len(out)):
        v = values[i]
        rest = u(v) if v >= 0 else u(0) - u(v)
        at = 20
        while True:
            at -= 1
            tenth = rest // u(10)
            text[at] = np.uint8(48) + np.uint8(rest - tenth * u(10))
            rest = tenth
            if rest == u(0):
                break
        if v < 0:
            at -= 1
            text[at] = np.uint8(45)
        out[i] = digest(text, at, 20, u(0))


@numba.njit(nogil=True, cache=True)
def hash_integers(values: Any, out: Any) -> None:
    for first in range(0, len(out), 256):
        last, large = min(first + 256, len(out)), False
        for i in range(first, last):
            large |= (values[i] < 0) | (values[i] >= 100_000_000)
        if large:
            hash_any(values[first:last], out[first:last])
            continue
        for i in range(first, last):
            out[i] = hash_small(u(values[i]))


@numba.njit(nogil=True, cache=True)
def place_order(key: Any, owner: Any, owners: int, bits: int) -> Any:
    """See :func:`pipeline.events.sorting.place_order`; the counts flat."""
    n, several = len(key), len(owner) > 0
    first, shift = u(1 << 63), u(63 - bits)  # shifted by one more apart, since by 64 is undefined
    place, counts = np.empty(n, np.int32), np.zeros(owners << bits, np.int64)
    for i in range(n):
        place[i] = ((u(key[i]) ^ first) >> shift) >> u(1)
        if several:
            place[i] += np.int64(owner[i]) << bits
        counts[place[i]] += 1
    at = np.zeros(len(counts), np.int64)
    for j in range(1, len(counts)):
        at[j] = at[j - 1] + counts[j - 1]
    order = np.empty(n, np.int64)
    for i in range(n):
        order[at[place[i]]] = i
        at[place[i]] += 1
    return order, counts


@numba.njit(nogil=True, cache=True)
def changes(key: Any, name: Any, order: Any) -> Any:
    """See :func:`pipeline.events.sorting.changes`."""
    n, count, other = len(key), 0, 0
    for i in range(n):
        if i == 0 or key[i] != key[i - 1]:
            count += 1
        elif other == 0 and name[order[i]] != name[order[i - 1]]:
            other = i
    begins, count = np.empty(count, np.int64), 0
    for i in range(n):
        if i == 0 or key[i] != key[i - 1]:
            begins[count] = i
            count += 1
    return begins, other


@numba.njit(nogil=True, cache=True)
def small_sort(k: Any, t: Any, o: Any, lo: int, hi: int) -> None:
    for i in range(lo + 1, hi):
        ki, ti, oi = k[i], t[i], o[i]
        j = i - 1
        while j >= lo and (k[j] > ki or (k[j] == ki and t[j] > ti)):
            k[j + 1], t[j + 1], o[j + 1] = k[j], t[j], o[j]
            j -= 1
        k[j + 1], t[j + 1], o[j + 1] = ki, ti, oi


@numba.njit(nogil=True, cache=True)
def ascending(k: Any, t: Any, lo: int, hi: int) -> bool:
    for i in range(lo + 1, hi):  # noqa: SIM110
        if k[i] < k[i - 1] or (k[i] == k[i - 1] and t[i] < t[i - 1]):
            return False
    return True


@numba.njit(nogil=True, cache=True)
def merge_sort(k: Any, t: Any, o: Any, lo: int, hi: int) -> None:
    """Sort by key, then time; stable. By hand: numba takes ten seconds to compile its own ``np.argsort``."""
    n, width = hi - lo, 32
    for at in range(lo, hi, width):
        small_sort(k, t, o, at, min(at + width, hi))
    kk, tt, oo = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    while width < n:
        for begin in range(lo, hi, 2 * width):
            middle, end = min(begin + width, hi), min(begin + 2 * width, hi)
            i, j = begin, middle
            for at in range(begin - lo, end - lo):
                if i < middle and (j >= end or k[i] < k[j] or (k[i] == k[j] and t[i] <= t[j])):
                    kk[at], tt[at], oo[at] = k[i], t[i], o[i]
                    i += 1
                else:
                    kk[at], tt[at], oo[at] = k[j], t[j], o[j]
                    j += 1
        for at in range(n):
            k[lo + at], t[lo + at], o[lo + at] = kk[at], tt[at], oo[at]
        width *= 2


@numba.njit(nogil=True, cache=True)
def settle_range(k: Any, t: Any, o: Any, lo: int, hi: int) -> None:
    if ascending(k, t, lo, hi):
        return
    if hi - lo <= 48:
        small_sort(k, t, o, lo, hi)
        return
    merge_sort(k, t, o, lo, hi)


@numba.njit(nogil=True, cache=True)
def bucket_sort(key: Any, ts: Any, first: Any, shift: Any, buckets: int, o: Any, k: Any, t: Any) -> bool:
    """Scatter into buckets of about 8 rows by the key's leading bits, then sort each bucket; stable.

    Writes the order, and the keys and times in it; returns whether any rows tie in both.
    """
    n = len(key)
    tied = False
    ends = np.zeros(buckets + 1, np.int64)
    for i in range(n):
        ends[((np.uint64(key[i]) - first) >> shift) + np.uint64(1)] += 1
    for b in range(buckets):
        ends[b + 1] += ends[b]
    starts = ends.copy()
    for i in range(n):
        b = (np.uint64(key[i]) - first) >> shift
        at = starts[b]
        starts[b] += 1
        k[at], t[at], o[at] = key[i], ts[i], i
    for b in range(buckets):
        if ends[b + 1] - ends[b] > 1:
            settle_range(k, t, o, ends[b], ends[b + 1])
            for i in range(ends[b] + 1, ends[b + 1]):
                tied |= k[i] == k[i - 1] and t[i] == t[i - 1]
    return tied


@numba.njit(nogil=True, cache=True)
def merge(key: Any, ts: Any, starts: Any) -> Any:
    """Merge sorted runs: all rows of the least key, run after run, then that subscriber's rows by time.

    Returns the order, the keys and times in it, and whether rows of different runs may tie in both.
    """
    runs, n = len(starts) - 1, len(key)
    tied = False
    head, heads = np.empty(runs, np.int64), np.empty(runs, np.int64)
    live = np.empty(runs, np.int64)
    alive = 0
    for r in range(runs):
        head[r] = starts[r]
        if head[r] < starts[r + 1]:
            live[alive] = r
            heads[alive] = key[head[r]]
            alive += 1
    k, t, o = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    at = 0
    while alive:
        least = heads[0]
        for a in range(1, alive):
            if heads[a] < least:
                least = heads[a]
        begin, sources, ended = at, 0, 0
        for a in range(alive):
            if heads[a] == least:
                r = live[a]
                i, end = head[r], starts[r + 1]
                while i < end and key[i] == least:
                    k[at], t[at], o[at] = least, ts[i], i
                    at += 1
                    i += 1
                head[r] = i
                sources += 1
                if i < end:
                    heads[a] = key[i]
                else:
                    live[a] = -1
                    ended += 1
        if ended:
            kept = 0
            for a in range(alive):
                if live[a] >= 0:
                    live[kept], heads[kept] = live[a], heads[a]
                    kept += 1
            alive = kept
        if sources > 1:
            settle_range(k, t, o, begin, at)
            for i in range(begin + 1, at):
                tied |= t[i] == t[i - 1]
    return o, k, t, tied


def warm_up() -> float:
    """Compile, or load from the cache, what nearly every ingest uses; seconds it took."""
    began = time.perf_counter()
    # As Arrow gives them: read-only, which is another type to numba.
    text, ends = np.frombuffer(b"ab", np.uint8), np.frombuffer(np.array([0, 1, 2], np.int32).tobytes(), np.int32)
    key = np.zeros(2, np.int64)
    hash_texts(text, ends, np.uint64(0), np.empty(2, np.uint64))
    place_order(key, key[:0].astype(np.int32), 1, 1)
    bucket_sort(key, key, np.uint64(0), np.uint64(63), 2, *np.empty((3, 2), np.int64))
    for kind in (np.int32, np.int64):
        changes(key, key.astype(kind), np.arange(2))
    merge(key, key, np.array([0, 1, 2], np.int64))
    compiled_signals.warm_up()
    return time.perf_counter() - began
