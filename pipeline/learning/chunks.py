"""Training rows in chunks that fit the memory one at a time, and what has to be known of all of them beforehand.

While one chunk trains, a thread of the same process makes the next, so that no row crosses from process to process:
at most two chunks are there at once. Rows that fit the memory are the one chunk of themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import ModelError
from pipeline.learning.group import ALONE, Group
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


def ahead(work: Callable[[S], T], items: Iterable[S]) -> Generator[T, None, None]:
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

    ``members``: rows of each chunk, by the rank of who has it. ``labels``: of each head. ``weight``: float64[H], of
    each head's known rows. ``plain``, ``squashed``: the features' moments, and those of their logarithms.
    ``contents``: each chunk's checksum of its sequences and campaigns, in the same order; see rows.py. ``campaigns``:
    whether the campaigns of all rows are known.
    """

    members: tuple[tuple[int, ...], ...]
    labels: list[Label]
    weight: np.ndarray
    plain: Moments
    squashed: Moments
    contents: tuple[int, ...] = ()
    campaigns: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each chunk, of all members together."""
        return tuple(sum(chunk) for chunk in zip(*self.members, strict=True))

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    def carved(self) -> Survey:
        """Where a share of each chunk's rows is kept for validation, which changes only how many are left."""
        left = tuple(
            tuple(n if n < 2 * VALIDATION_SHARE else n - n // VALIDATION_SHARE for n in sizes) for sizes in self.members
        )
        scale = sum(map(sum, left)) / self.rows
        return replace(self, members=left, weight=self.weight * scale)


def survey(chunks: Chunks, heads: Sequence[Head], minimum_positives: int, group: Group = ALONE) -> Survey:
    """Look at every chunk once.

    Args:
        group: whose members have the other rows; each of them gets the survey of all.
    Raises:
        ModelError: no rows at all, or another number of heads than columns of y.
    """
    sizes: list[int] = []
    tallies: list[list[Tally]] = []
    plain: list[Moments] = []
    squashed: list[Moments] = []
    contents: list[int] = []
    campaigns = True
    for rows in chunks:
        if len(heads) != rows.y.shape[1]:
            raise ModelError(f"{len(heads)} heads for {rows.y.shape[1]} columns of y; give one head per column")
        sizes.append(len(rows))
        contents.append(checksum(rows))
        campaigns &= rows.campaign is not None
        if not len(rows):
            continue
        tallies.append([Tally.of(rows, h, head) for h, head in enumerate(heads)])
        plain.append(moments(rows, np.zeros(rows.X.shape[1], dtype=bool)))
        # Which features are heavy-tailed is known at the end: of one chunk now, else any of them may be.
        alone = chunks.count == 1 and group.size == 1
        heavy = plain[0].heavy if alone else np.ones(rows.X.shape[1], dtype=bool)
        squashed.append(moments(rows, heavy))
        del rows
    seen = [_Seen(sizes, tallies, plain, squashed, contents, campaigns)]
    if group.size > 1:
        seen = [_Seen.read(values) for values in group.exchange(seen[0].plain_values())]
    tallies, plain, squashed = (
        [one for each in seen for one in getattr(each, name)] for name in ("tallies", "plain", "squashed")
    )
    if not tallies:
        raise ModelError("there are no training rows: shorten the horizons or split.holdout, or add history")
    whole = [reduce(add, each) for each in zip(*tallies, strict=True)]
    labels = [tally.label(head, minimum_positives) for tally, head in zip(whole, heads, strict=True)]
    weight = np.array([tally.weight for tally in whole])
    members = tuple(tuple(one.sizes) for one in seen)
    checksums = tuple(value for one in seen for value in one.contents)
    known = all(one.campaigns for one in seen)
    return Survey(members, labels, weight, reduce(add, plain), reduce(add, squashed), checksums, known)


@dataclass(frozen=True)
class _Seen:
    """What one member saw in its chunks: their sizes, and by chunk that has rows each head's tally and the moments."""

    sizes: list[int]
    tallies: list[list[Tally]]
    plain: list[Moments]
    squashed: list[Moments]
    contents: list[int]
    campaigns: bool

    def plain_values(self) -> dict[str, Any]:
        """As in JSON, which keeps every bit of a float."""
        found = {name: [_lists(m) for m in getattr(self, name)] for name in ("plain", "squashed")}
        tallies = [[asdict(tally) for tally in each] for each in self.tallies]
        found |= {name: getattr(self, name) for name in ("sizes", "contents", "campaigns")}
        return {**found, "tallies": tallies}

    @classmethod
    def read(cls, values: dict[str, Any]) -> _Seen:
        tallies = [[Tally(**{**t, "log": tuple(t["log"])}) for t in each] for each in values["tallies"]]
        plain, squashed = (
            [Moments(**{n: np.array(a) for n, a in m.items()}) for m in values[name]] for name in ("plain", "squashed")
        )
        return cls(values["sizes"], tallies, plain, squashed, values["contents"], values["campaigns"])


def _lists(found: Moments) -> dict[str, list[float]]:
    return {name: array.tolist() for name, array in vars(found).items()}
