"""Numbers as people write them, and ticks."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decisions import charts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_934_112, "1.9M"), (2_000_000, "2M"), (12_340, "12.3k"), (9_999, "9,999"), (10_000, "10k"), (999_960, "1M"),
        (950.4, "950"), (23.7, "24"), (3.21, "3.2"), (7, "7"), (0.042, "0.042"), (0, "0"), (-1234, "−1,234"),
        (None, "–"), (math.nan, "–"), (2.5e9, "2.5G"), (123_456, "123k"),
    ],
)  # fmt: skip
def test_human(value: float | None, text: str) -> None:
    assert charts.human(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0032, "0.32%"), (0.1234, "12.3%"), (0.00012, "0.012%"), (0, "0%"), (1, "100%"), (0.99996, "100%"),
        (0.0999, "10.0%"), (0.000001, "<0.001%"), (-0.05, "−5.0%"), (None, "–"), (0.02, "2.0%"),
    ],
)  # fmt: skip
def test_percent(share: float | None, text: str) -> None:
    assert charts.percent(share) == text


def test_other_units() -> None:
    assert charts.significant(0.019812) == "0.0198"
    assert charts.significant(12.0) == "12.0"
    assert charts.seconds(0.05) == "50 ms"
    assert charts.seconds(75) == "1 min 15 s"
    assert charts.seconds(7260) == "2 h 1 min"
    assert charts.size(1536 << 20) == "1.5 GiB"
    assert charts.tick_number(2_500_000) == "2.5M"
    assert charts.tick_number(1500) == "1,500"
    assert charts.tick_percent(0.025) == "2.5%"
    assert [charts.plural(w) for w in ("click", "reply", "sales", "push_open", "complaint", "switch")] == [
        "clicks", "replies", "sales", "push opens", "complaints", "switches",
    ]  # fmt: skip


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(1, 10))
def test_ticks_are_round_and_inside(low: float, span: float, wanted: int) -> None:
    high = low + span
    ticks = charts.nice_ticks(low, high, wanted)
    if high > low and span > 1e-6 * abs(low):
        assert len(ticks) <= 2.6 * wanted + 2
        step = ticks[1] - ticks[0] if len(ticks) > 1 else None
        slack = 1e-6 * span
        assert all(low - slack <= t <= high + slack for t in ticks)
        if step:
            assert all(b - a == pytest.approx(step, rel=1e-3) for a, b in itertools.pairwise(ticks))


def test_a_chart_is_well_formed_and_says_what_it_shows() -> None:
    evil = '<b>"x"&'
    series = [charts.Series(evil, [(0, 0), (1, math.nan), (2, 5)], dots=True), charts.Series("none", [])]
    text = charts.figure(evil, "how <to> read it", series, charts.Axis(evil, 0, 2), charts.Axis("y", 0, 5))
    tree = ET.fromstring(str(text))
    svg = tree.find(".//svg[@class='chart']")
    assert svg is not None
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == evil
    assert len(svg.findall("circle")) == 2  # the point that is no number is left out


def test_a_band_lies_around_its_line_and_is_cut_at_the_axes() -> None:
    band = [(0.0, -1.0, 1.0), (1.0, 0.5, 2.0), (2.0, 1.0, 99.0)]
    line = charts.Series("a", [(0, 0.5), (1, 1), (2, 3)], band=band)
    axes = charts.Axis("x", 0, 2), charts.Axis("y", 0, 4)
    (polygon,) = ET.fromstring(charts.line_chart("t", "d", [line], *axes)).findall("polygon")
    corners = [tuple(map(float, p.split(","))) for p in polygon.attrib["points"].split()]
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    assert [x for x, _ in corners] == [x for x, _ in reversed(corners)]
    assert corners[0][1] == bottom
    assert corners[3][1] == top
    assert len(corners) == 6
    assert all(low > high for (_, low), (_, high) in zip(corners[:3], reversed(corners[3:]), strict=True))


@given(values=st.lists(st.floats(0, 1e9), min_size=1, max_size=29), usual=st.none() | st.floats(0, 1e9))
def test_a_spark_stays_in_its_box(values: list[float], usual: float | None) -> None:
    root = ET.fromstring(charts.spark("a < b", values, usual))
    (line,) = root.findall("polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert len(points) == len(values)
    assert all(0 <= x <= 132 and 0 <= y <= 28 for x, y in points)
    heights = [y for _, y in points]
    assert all(a >= b for (_, a), (_, b) in itertools.pairwise(sorted(zip(values, heights, strict=True))))
    assert len(root.findall("line")) == (usual is not None)
