"""What several features share: of a partition's rows, and of one block of decision points.

Everything is computed when it is first asked for. Points come in blocks, so that memory is bounded by a block, whatever
the number of features, and a block stays in the CPU's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.backend import Array
from pipeline.features.calendar import local_time
from pipeline.features.kernels import prefix_count
from pipeline.features.partition import NEVER, Partition
from pipeline.features.similarity import EVER
from pipeline.features.spec import DAY, SMOOTH_HITS, SMOOTH_TRIALS, FeatureSpec


class Subset:
    """Some of a partition's rows, in their order, with positions of their own.

    ``rows``: int64[m], in the partition; ``before``: int64[n+1], how many of them lie before each of its positions.
    """

    def __init__(self, part: Partition, mask: Array) -> None:
        self.part = part
        self.rows = part.xp.flatnonzero(mask)
        self.before = prefix_count(part.xp, mask)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def seg(self) -> Array:
        return self.part.seg[self.rows]

    @cached_property
    def ts(self) -> Array:
        return self.part.ts[self.rows]

    @cached_property
    def first(self) -> Array:
        """bool[m]: the first of them of each segment."""
        out = self.part.xp.ones(len(self), dtype=bool)
        out[1:] = self.seg[1:] != self.seg[:-1]
        return out


class Rows:
    """A partition and what features compute of its rows, once."""

    def __init__(self, part: Partition, spec: FeatureSpec, timezone: str) -> None:
        self.part, self.spec, self.timezone = part, spec, timezone
        counted = [f.window for f in spec.features if f.op in ("count", "rate")]
        self.counted = [*spec.windows, *([EVER] if None in counted else [])]
        own = {f.window for f in spec.features if f.op not in ("count", "rate", "context")}
        self.reaches = sorted({0, *(w for w in own if w is not None)})
        self.kept: dict[Any, Any] = {}

    def keep(self, name: Any, make: Any) -> Any:
        """What ``make()`` gives, made once for each name."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def humans(self, *kinds: str) -> Subset:
        """The rows of these kinds, or of any that the specification knows, machine events left out."""
        part = self.part

        def make() -> Subset:
            if kinds:
                return Subset(part, part.is_any(part.human, kinds))
            return Subset(part, (part.human >= 0) & (part.human < len(self.spec.kinds)))

        return self.keep(("humans", kinds), make)  # type: ignore[no-any-return]

    @cached_property
    def exposed(self) -> Array:
        return self.part.is_any(self.part.human, (self.spec.exposure or "",))

    @cached_property
    def responded(self) -> Array:
        return self.part.is_any(self.part.human, self.spec.responses)

    @cached_property
    def machines_before(self) -> Array | None:
        """int64[n+1]: machine events before each position; None where there are none."""
        part = self.part
        return None if part.human is part.kind else prefix_count(part.xp, (part.human < 0) & (part.kind >= 0))


@dataclass
class Block:
    """Decision points ascending by (seg, at): int64[q] each; ``family``: see ``families.decided``."""

    rows: Rows
    seg: Array
    at: Array
    family: Array | None = None

    def __post_init__(self) -> None:
        self.part, self.spec, self.xp = self.rows.part, self.rows.spec, self.rows.part.xp
        self.kept: dict[Any, Any] = {}

    def keep(self, name: Any, make: Any) -> Any:
        """What ``make()`` gives, made once for each name."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    @cached_property
    def first_row(self) -> Array:
        return self.part.starts[self.seg]

    @cached_property
    def positions(self) -> dict[int, Array]:
        """The first row at or after ``at - window``, by window; 0 for ``at`` itself."""
        wanted = self.rows.reaches
        part = self.part
        found = part.backend.aggregates.window_positions(self.xp, part.starts, part.ts, self.seg, self.at, wanted)
        return dict(zip(wanted, found, strict=True))

    @property
    def end(self) -> Array:
        return self.positions[0]

    def window(self, subset: Subset, window: int | None) -> tuple[Array, Array]:
        """``[begin, end)`` of the window among the subset's own positions; None is the whole history."""

        def make() -> tuple[Array, Array]:
            begin = self.first_row if window is None else self.positions[window]
            return subset.before[begin], subset.before[self.end]

        return self.keep((id(subset), window), make)  # type: ignore[no-any-return]

    @cached_property
    def counts(self) -> Array:
        """float32[q, windows x kinds]: events of each kind in each window, the whole history last where it is asked."""
        kinds, windows = len(self.spec.kinds), self.rows.counted
        out = self.xp.empty((len(self.seg), kinds * len(windows)), dtype=self.xp.float32)
        self.part.window_counts(kinds, self.seg, self.at, windows, out)
        return out

    def count(self, kind: str | None, window: int | None) -> Array:
        """float32[q]: events of a kind in one of the specification's windows, or in the whole history."""
        place = len(self.spec.windows) if window is None else self.spec.windows.index(window)
        return self.counts[:, place * len(self.spec.kinds) + self.spec.kinds.index(kind or "")]

    def rate(self, kind: str | None, window: int | None) -> Array:
        """float32[q]: events of a kind over deliveries, smoothed."""
        trials = self.count(self.spec.exposure, window)
        for bounce in self.spec.bounces:
            trials = trials - self.count(bounce, window)
        trials = self.xp.maximum(trials, np.float32(0))
        return (self.count(kind, window) + np.float32(SMOOTH_HITS)) / (trials + np.float32(SMOOTH_TRIALS))

    @cached_property
    def last(self) -> Array:
        """int64[q, kinds]: the time of the latest event of each kind, NEVER where there is none."""
        part = self.part
        kinds = len(self.spec.kinds)
        return part.backend.kernels.last_times(
            self.xp, part.starts, part.ts, part.human, kinds, self.seg, self.at, NEVER
        )

    @cached_property
    def local(self) -> Array:
        """int64[q]: the client's wall clock at the decision, microseconds."""
        return local_time(self.xp, self.at, self.rows.timezone)

    @cached_property
    def midnight(self) -> Array:
        """int64[q]: when the decision's day began by that clock, microseconds UTC."""
        day = self.local - self.local % DAY
        near = self.at - self.local % DAY
        return near - (local_time(self.xp, near, self.rows.timezone) - day)  # the clock may have changed since

    @cached_property
    def local_hour(self) -> Array:
        return hour_of(self.local)

    @cached_property
    def local_weekday(self) -> Array:
        return weekday_of(self.local)


def hour_of(local: Array) -> Array:
    """0 .. 23."""
    return local // 3_600_000_000 % 24


def weekday_of(local: Array) -> Array:
    """0, Monday, .. 6."""
    return (local // DAY + 3) % 7  # 1970-01-01 was a Thursday
