from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from pipeline.decisions import charts
from pipeline.decisions.calibration import TALL, reliability_chart
from tests.decisions.rundir import head_metrics


def drawn(metrics: dict[str, Any], write: Any = charts.percent) -> ET.Element:
    page = str(reliability_chart("unsubscribe", metrics, write))
    return ET.fromstring(page.replace("scope=col", 'scope="col"'))  # HTML needs no quotes there


def test_the_curve_has_its_band_and_says_how_much_of_the_error_is_noise() -> None:
    tree = drawn(head_metrics(0.003, truth=False))
    assert len(tree.findall(".//polygon")) == 1
    assert len(tree.findall(".//circle")) == 20
    text = "".join(tree.itertext())
    assert "20 equal parts of the hold-out" in text
    assert "Mean gap 0.030 points; chance alone makes 0.015." in text
    cells = [c.text for c in tree.findall(".//tbody/tr[1]/td")]
    assert cells == ["0.060%", "0.066%", "0.054%", "0.084%", "20,000"]


def test_a_wide_band_does_not_flatten_the_curve() -> None:
    metrics = head_metrics(0.003, truth=False)
    points = metrics["reliability"]
    points[-1]["high"] = 1.0
    top = max(b["observed"] for b in points)
    heights = [float(c.attrib["cy"]) for c in drawn(metrics).findall(".//circle")]
    inner = charts.HEIGHT - charts.TOP - charts.BOTTOM
    assert charts.HEIGHT - charts.BOTTOM - min(heights) >= inner / (TALL * 1.02) - 0.1
    assert top == points[-1]["observed"]


def test_amounts_and_older_results_have_tenths_without_a_band() -> None:
    metrics = head_metrics(0.003, truth=False)
    del metrics["reliability"]
    tree = drawn(metrics, charts.human)
    assert not tree.findall(".//polygon")
    assert len(tree.findall(".//circle")) == 10
    assert "Tenths of the hold-out" in "".join(tree.itertext())
    assert len(tree.findall(".//thead/tr/th")) == 3


def test_a_constant_prediction_has_no_curve() -> None:
    metrics = head_metrics(0.003, truth=False)
    assert reliability_chart("a", {"reliability": metrics["reliability"][:1]}, charts.percent) is None
    assert reliability_chart("a", {}, charts.percent) is None
