"""What the processes that train together agree on before the first step: its rows, each one's share, and how many.

A collective operation waits for everyone, so all take the same number of steps. A step takes rows of each member in
proportion to those it has: every row is drawn about as often as any other, and an epoch ends for all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ModelError

SMALLEST_BATCH = 256  # a batch is at most a twentieth of the rows, but not smaller than this


@dataclass(frozen=True)
class Agreement:
    """``members``: by rank, the rows of each of its chunks. ``batch``: rows of a step; ``shares``: each member's of
    them; ``steps``: through each chunk, as many as the member that is done first can take."""

    members: tuple[tuple[int, ...], ...]
    batch: int
    shares: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def on(cls, members: tuple[tuple[int, ...], ...], wanted: int) -> Agreement:
        """The same for everyone who knows ``members``.

        Args:
            wanted: rows of a step where there are enough.
        Raises:
            ModelError: a member would have no row in a step, or none can be taken.
        """
        sizes = [sum(chunk) for chunk in zip(*members, strict=True)]
        rows = [sum(member) for member in members]
        batch = batch_of(sizes, wanted)
        shares = apportion(batch, rows)
        least = [
            min(n // share if share else 0 for n, share in zip(chunk, shares, strict=True))
            for chunk in zip(*members, strict=True)
        ]
        if not all(shares) or not any(least):
            raise ModelError(
                f"batches of {batch} rows cannot be drawn on {len(members)} devices that have {rows} training rows: "
                "set model.devices lower"
            )
        return cls(members, batch, shares, tuple(least))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each chunk, of all members."""
        return tuple(sum(chunk) for chunk in zip(*self.members, strict=True))


def batch_of(sizes: Sequence[int], wanted: int) -> int:
    """Rows of a batch: at most a twentieth of all, and no more than the smallest chunk has."""
    batch = min(wanted, max(SMALLEST_BATCH, sum(sizes) // 20))
    return min(batch, min(n for n in sizes if n))


def apportion(batch: int, rows: Sequence[int]) -> tuple[int, ...]:
    """A batch in whole parts proportional to ``rows``: the largest remainders are rounded up (Hamilton's method)."""
    whole = [batch * n // sum(rows) for n in rows]
    remainders = [batch * n % sum(rows) for n in rows]
    for i in sorted(range(len(rows)), key=lambda i: (-remainders[i], i))[: batch - sum(whole)]:
        whole[i] += 1
    return tuple(whole)
