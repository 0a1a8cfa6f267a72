"""Charts as inline SVG, and numbers as people write them.

Nothing is fetched and no script runs: colours are classes that the page's style sheet defines for light and dark, each
chart has a title, a description and its numbers in a table, and series differ by dash or marker as well as by colour.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40

Point = tuple[float, float]


# -- numbers ---------------------------------------------------------------------------------------------------


def human(value: float | None) -> str:
    """1,934,112 -> "1.9M"; 12,340 -> "12.3k"; 950.4 -> "950"; 23.7 -> "24"; 3.21 -> "3.2"; 0.042 -> "0.042"."""
    if value is None or not math.isfinite(value):
        return "–"
    sign, size = ("−" if value < 0 else ""), abs(value)
    for least, unit, letter in ((9.995e11, 1e12, "T"), (9.995e8, 1e9, "G"), (9.995e5, 1e6, "M"), (9999.5, 1e3, "k")):
        if size >= least:
            scaled = size / unit
            digits = 0 if scaled >= 99.95 else 1
            return f"{sign}{scaled:.{digits}f}".removesuffix(".0") + letter
    if size >= 9.95 or size == int(size):
        return f"{sign}{size:,.0f}"
    return f"{sign}{size:.1f}" if size >= 1 else f"{sign}{size:.2g}"


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators, for tables: 1934112 -> "1,934,112"."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Two significant digits below 10%: 0.0032 -> "0.32%", 0.1234 -> "12.3%", 0.00012 -> "0.012%"."""
    if value is None or not math.isfinite(value):
        return "–"
    scaled = 100 * abs(value)
    sign = "−" if value < 0 and scaled else ""
    if scaled == 0:
        return "0%"
    if scaled < 0.001:
        return "<0.001%"
    digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.95 else max(1 - math.floor(math.log10(scaled)), 0)
    return f"{sign}{scaled:.{digits}f}%"


def tick_percent(value: float) -> str:
    """A percentage on an axis, without trailing zeros."""
    return f"{100 * value:.6g}%"


def tick_number(value: float) -> str:
    """A number on an axis, exact: 1500 -> "1,500", 2500000 -> "2.5M"."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 10 or (letter != "k" and abs(value) >= unit):
            return f"{value / unit:.4g}{letter}"
    return f"{value:,.6g}"


def significant(value: float | None, digits: int = 3) -> str:
    """A plain decimal of ``digits`` significant digits: 0.01981 -> "0.0198"."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(places, 8)}f}".replace("-", "−")


def seconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None or not math.isfinite(value):
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plural(name: str) -> str:
    """An outcome's name as people would write many of it: click -> clicks, reply -> replies, sales -> sales,
    campaign_received -> campaign received."""
    name = name.replace("_", " ")
    if name.endswith(("s", "ing", "ed")):
        return name
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("x", "ch", "sh")) else "s")


def day(instant: float) -> str:
    return f"{dt.datetime.fromtimestamp(instant, dt.UTC):%-d %b}"


# -- charts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """``low``, ``high``: its ends; ``write``: how a number on it is written."""

    label: str
    low: float
    high: float
    write: Callable[[float], str] = tick_number
    ticks: int = 5


@dataclass(frozen=True)
class Series:
    """Points of one line, ascending by x; ``colour`` 1 to 5; ``guide`` lines are thin and grey.

    ``band``: (x, low, high) of what lies around the line, ascending by x; cut at the ends of the axes.
    """

    name: str
    points: Sequence[Point]
    colour: int = 1
    dots: bool = False
    guide: bool = False
    dash: str = ""
    band: Sequence[tuple[float, float, float]] = ()


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``wanted`` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999), default=10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def day_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Midnights (UTC) from ``low`` to ``high``, seconds, evenly apart."""
    first, last = math.ceil(low / 86_400), math.floor(high / 86_400)
    step = max(1, round((last - first) / max(wanted - 1, 1)))
    return [86_400.0 * d for d in range(first, last + 1, step)]


def line_chart(title: str, description: str, series: Sequence[Series], x: Axis, y: Axis, times: bool = False) -> Markup:
    """An SVG figure; ``times``: x is in seconds since the epoch and its ticks are days."""
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(point: Point) -> tuple[float, float]:
        px = LEFT + inner_width * (point[0] - x.low) / ((x.high - x.low) or 1)
        py = TOP + inner_height * (1 - (point[1] - y.low) / ((y.high - y.low) or 1))
        return round(px, 1), round(py, 1)

    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>'
        ).format(WIDTH, HEIGHT, title, title, description)
    ]
    for tick in nice_ticks(y.low, y.high, y.ticks):
        _, py = place((x.low, tick))
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, py, py))
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                LEFT - 6, py + 3.5, y.write(tick)
            )
        )
    for tick in day_ticks(x.low, x.high, x.ticks) if times else nice_ticks(x.low, x.high, x.ticks):
        px, _ = place((tick, y.low))
        anchor = "end" if px > WIDTH - RIGHT - 12 else "middle"
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                px, HEIGHT - BOTTOM + 15, anchor, x.write(tick)
            )
        )
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM
        )
    )
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            LEFT + inner_width / 2, HEIGHT - 6, x.label
        )
    )
    for line in series:
        points = [place(p) for p in line.points if x.low <= p[0] <= x.high and all(map(math.isfinite, p))]
        if not points:
            continue
        if line.band:
            inside = [(a, max(b, y.low), min(c, y.high)) for a, b, c in line.band if x.low <= a <= x.high]
            outline = [place((a, b)) for a, b, _ in inside] + [place((a, c)) for a, _, c in reversed(inside)]
            corners = " ".join(f"{a},{b}" for a, b in outline)
            parts.append(Markup('<polygon class="band c{}" points="{}"/>').format(line.colour, corners))
        style = "guide" if line.guide else f"line c{line.colour}"
        path = " ".join(f"{a},{b}" for a, b in points)
        parts.append(
            Markup('<polyline class="{}" points="{}"{}/>').format(
                style, path, Markup(' stroke-dasharray="{}"').format(line.dash) if line.dash else ""
            )
        )
        if line.dots:
            radius = 5.5 if len(points) == 1 else 3.2  # a point by itself marks a place on another line
            circle = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="{}"/>')
            parts += [circle.format(line.colour, a, b, radius) for a, b in points]
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def spark(title: str, values: Sequence[float], usual: float | None) -> Markup:
    """A line without axes, as high as a line of text: what was usual is dashed, the last value has a dot."""
    width, height, edge = 132, 28, 4
    high = max([*values, usual or 0.0]) or 1.0

    def place(i: int, value: float) -> tuple[float, float]:
        across = edge + (width - 2 * edge) * i / max(len(values) - 1, 1)
        return round(across, 1), round(height - edge - (height - 2 * edge) * value / high, 1)

    points = [place(i, value) for i, value in enumerate(values)]
    parts = [
        Markup('<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>').format(
            width, height, title, title
        )
    ]
    if usual is not None:
        _, level = place(0, usual)
        line = Markup('<line class="guide" x1="{}" x2="{}" y1="{}" y2="{}" stroke-dasharray="3 3"/>')
        parts.append(line.format(edge, width - edge, level, level))
    parts.append(Markup('<polyline class="line c1" points="{}"/>').format(" ".join(f"{a},{b}" for a, b in points)))
    parts.append(Markup('<circle class="dot c1" cx="{}" cy="{}" r="2.6"/>').format(*points[-1]))
    return Markup("").join([*parts, Markup("</svg>")])


def legend(series: Sequence[Series]) -> Markup:
    items = [
        Markup(
            '<li><svg viewBox="0 0 22 8" aria-hidden="true">'
            '<line class="{}" x1="1" x2="21" y1="4" y2="4"{}/></svg>{}</li>'
        ).format(
            "guide" if s.guide else f"line c{s.colour}",
            Markup(' stroke-dasharray="{}"').format(s.dash) if s.dash else "",
            s.name,
        )
        for s in series
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def numbers(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """The chart's numbers, folded away."""
    head = Markup("").join(Markup("<th scope=col>{}</th>").format(h) for h in header)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(c) for c in row)) for row in rows
    )
    return Markup(
        '<details class="numbers"><summary>the numbers</summary><div class="scroll"><table>'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div></details>"
    ).format(head, body)


def figure(
    title: str,
    description: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    times: bool = False,
    table: Markup | str = "",
) -> Markup:
    """A chart with its title, legend, a sentence on how to read it, and its numbers."""
    return Markup("<figure><figcaption><b>{}</b><span>{}</span></figcaption>{}{}{}</figure>").format(
        title, description, line_chart(title, description, series, x, y, times), legend(series), escape(table)
    )
