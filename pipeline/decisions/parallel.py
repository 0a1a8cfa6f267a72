"""A parallel-coordinates chart: an axis for each quantity, a line across all of them for each thing compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

HEIGHT, TOP, BOTTOM = 300, 34, 30
SIDE, APART = 60, 128  # before the first axis and after the last; from one axis to the next
NONE = "–"


@dataclass(frozen=True)
class Scale:
    """An axis: of ``levels``, in their order, or of numbers from ``low`` to ``high``, also by logarithm.

    ``write``: how a value is written. What a line has no value of lies below the axis.
    """

    label: str
    levels: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    write: Callable[[Any], str] = str

    def share(self, value: Any) -> float | None:
        """How far up a value lies, 0 to 1; None where it has no place."""
        if value is None:
            return None
        if self.levels:
            return (self.levels.index(value) + 0.5) / len(self.levels) if value in self.levels else None
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return min(max((at - low) / ((high - low) or 1.0), 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Where something is written, and what."""
        if self.levels:
            return [((i + 0.5) / len(self.levels), self.write(level)) for i, level in enumerate(self.levels)]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        ends = [self.low] if self.high == self.low else [self.low, middle, self.high]
        return [(float(self.share(value) or 0.0), self.write(value)) for value in ends]


@dataclass(frozen=True)
class Line:
    """``values``: one an axis, None where it has none; ``style``: "best", "dashed" or "plain"."""

    name: str
    values: Sequence[Any]
    style: str = "plain"


def scale_of(label: str, values: Sequence[Any], log: bool, write: Callable[[Any], str]) -> Scale:
    """An axis that holds the values: of numbers where they are fractions, else of levels."""
    there = [v for v in values if v is not None]
    if there and all(isinstance(v, float) for v in there) and len(set(there)) > 4:
        return Scale(label, low=min(there), high=max(there), log=log and min(there) > 0, write=write)
    levels = sorted(set(map(_frozen, there)), key=lambda v: (isinstance(v, str), v))
    return Scale(label, levels=tuple(levels), write=lambda v: write(list(v) if isinstance(v, tuple) else v))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def chart(title: str, description: str, scales: Sequence[Scale], lines: Sequence[Line]) -> Markup:
    """An SVG; lines are drawn in order, the last one on top."""
    width, tall = 2 * SIDE + APART * max(len(scales) - 1, 1), HEIGHT - TOP - BOTTOM
    parts = [
        Markup(
            '<svg class="chart parallel" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>'
            "<desc>{}</desc>"
        ).format(width, HEIGHT, title, title, description)
    ]
    parts += [_line(line, scales, tall) for line in lines]
    for i, scale in enumerate(scales):
        parts.append(_axis(scale, SIDE + APART * i, tall, last=i == len(scales) - 1))
    return Markup("").join([*parts, Markup("</svg>")])


def _line(line: Line, scales: Sequence[Scale], tall: int) -> Markup:
    points = []
    for i, (scale, value) in enumerate(zip(scales, line.values, strict=True)):
        share = scale.share(_frozen(value))
        down = TOP + tall + 12 if share is None else TOP + tall * (1 - share)
        points.append(f"{SIDE + APART * i},{round(down, 1)}")
    look = {"best": "line c1 best", "dashed": "line c2 faint", "plain": "line c2 faint"}[line.style]
    dash = Markup(' stroke-dasharray="4 4"') if line.style == "dashed" else ""
    drawn = Markup('<polyline class="{}" points="{}"{}><title>{}</title></polyline>')
    return drawn.format(look, " ".join(points), dash, line.name)


def _axis(scale: Scale, across: int, tall: int, last: bool) -> Markup:
    parts = [
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(across, across, TOP, TOP + tall),
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(across, 16, scale.label),
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(across, HEIGHT - 4, NONE),
    ]
    aside, anchor = (across + 6, "start") if last else (across - 6, "end")
    for share, text in scale.ticks():
        written = Markup('<text class="tick halo" x="{}" y="{}" text-anchor="{}">{}</text>')
        parts.append(written.format(aside, round(TOP + tall * (1 - share) + 3.5, 1), anchor, text))
    return Markup("").join(parts)
