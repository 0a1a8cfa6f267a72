"""Training rows in chunks that fit the memory one at a time, and what has to be known of all of them beforehand.

While one chunk trains, a thread of the same process makes the next, so that no row crosses from process to process:
at most two chunks are there at once. Rows that fit the memory are the one chunk of themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TypeVar

import numpy as np

from pipeline.errors import ModelError
from pipeline.learning.labels import Label, Tally
from pipeline.learning.models import Head
from pipeline.learning.normalisation import Moments, moments
from pipeline.learning.rows import Rows, Table, as_rows, checksum

VALIDATION_SHARE = 10  # without validation rows, one in this many of the training rows is taken

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Chunks:
    """``make``: chunk i of ``count`` -> its rows, the same ones at every call; called from a thread of its own."""

    count: int
    make: Callable[[int], Rows]

    def __iter__(self) -> Iterator[Rows]:
        return ahead(self.make, range(self.count))

    def map(self, change: Callable[[Rows], Rows]) -> Chunks:
        """The chunks with something done to the rows of each."""
        return Chunks(self.count, lambda i: change(self.make(i)))


def as_chunks(rows: Table | Rows | Chunks) -> Chunks:
    """Rows as the one chunk of themselves."""
    if isinstance(rows, Chunks):
        return rows
    only = as_rows(rows)
    return Chunks(1, lambda _: only)


def ahead(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """work(item) of each item, in order; a thread makes the next one while the caller has this one."""
    pool, waiting = ThreadPoolExecutor(1), deque[Future[T]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == 2:
                yield waiting.popleft().result()
        if waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Survey:
    """What is known of all training rows before the first step.

    ``sizes``: rows of each chunk. ``labels``: of each head. ``weight``: float64[H], of each head's known rows.
    ``plain``, ``squashed``: the features' moments, and those of their logarithms. ``contents``: each chunk's checksum
    of its sequences, see rows.py.
    """

    sizes: tuple[int, ...]
    labels: list[Label]
    weight: np.ndarray
    plain: Moments
    squashed: Moments
    contents: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    def carved(self) -> Survey:
        """Where a share of each chunk's rows is kept for validation, which changes only how many are left."""
        left = [n if n < 2 * VALIDATION_SHARE else n - n // VALIDATION_SHARE for n in self.sizes]
        scale = sum(left) / self.rows
        return replace(self, sizes=tuple(left), weight=self.weight * scale)


def survey(chunks: Chunks, heads: Sequence[Head], minimum_positives: int) -> Survey:
    """Look at every chunk once.

    Raises:
        ModelError: no rows at all, or another number of heads than columns of y.
    """
    sizes, tallies, plain, squashed, contents = [], [], [], [], []
    for rows in chunks:
        if len(heads) != rows.y.shape[1]:
            raise ModelError(f"{len(heads)} heads for {rows.y.shape[1]} columns of y; give one head per column")
        sizes.append(len(rows))
        contents.append(checksum(rows))
        if not len(rows):
            continue
        tallies.append([Tally.of(rows, h, head) for h, head in enumerate(heads)])
        plain.append(moments(rows, np.zeros(rows.X.shape[1], dtype=bool)))
        # Which features are heavy-tailed is known at the end: of one chunk now, else any of them may be.
        heavy = plain[0].heavy if chunks.count == 1 else np.ones(rows.X.shape[1], dtype=bool)
        squashed.append(moments(rows, heavy))
        del rows
    if not tallies:
        raise ModelError("there are no training rows: shorten the horizons or split.holdout, or add history")
    whole = [reduce(add, each) for each in zip(*tallies, strict=True)]
    labels = [tally.label(head, minimum_positives) for tally, head in zip(whole, heads, strict=True)]
    weight = np.array([tally.weight for tally in whole])
    return Survey(tuple(sizes), labels, weight, reduce(add, plain), reduce(add, squashed), tuple(contents))
