"""The account of tune in the report: every trial where it belongs, and text of others escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from pipeline.decisions import parallel
from pipeline.decisions.trials import tuning

SVG = "{http://www.w3.org/2000/svg}"


def trial(number: int, validation: float | None, state: str = "complete", **settings: Any) -> dict[str, Any]:
    heads = {"click": {"pr_auc": 0.1, "roc_auc": 0.7, "normalized_entropy": 0.9}} if validation else {}
    return {
        "number": number, "settings": {"kind": "dense", **settings}, "state": state, "validation": validation,
        "epoch": 1, "epochs": 2, "heads": heads, "seconds": 1.0, "reason": "" if validation else "<b>full</b>",
    }  # fmt: skip


def found(client: str = "acme") -> dict[str, Any]:
    several = [
        trial(0, 0.95, learning_rate=0.003, hidden=[64, 32]),
        trial(1, 0.9, learning_rate=0.01, hidden=[32]),
        trial(2, 0.99, "pruned", learning_rate=0.0001, kind="logistic"),
        trial(3, None, "failed", learning_rate=0.02, hidden=[32]),
        trial(4, 0.92, learning_rate=0.03, hidden=[32]),
        trial(5, 0.93, learning_rate=0.001, hidden=[32]),
    ]
    return {"tune": {client: {"best": {"trial": 1, "validation": 0.9, "of": 6}, "trials": several, "seconds": 6.0}}}


def svg(markup: str) -> ET.Element:
    text = markup[markup.index("<svg") : markup.index("</svg>") + 6]
    return ET.fromstring(text.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))


def test_trials_in_order_with_the_configured_and_the_failed() -> None:
    (client,) = tuning(found())
    assert [row[0] for row in client["rows"]] == [1, 4, 5, 0, 2]
    assert client["rows"][0][2]
    assert client["rows"][3][1] == "as configured"
    assert client["rows"][4][1] == "given up"
    assert client["failed"] == [(3, "<b>full</b>")]
    assert client["pruned"] == 1
    assert client["header"][-1] == "click PR-AUC"
    assert tuning({}) == tuning({"tune": {}}) == []


@pytest.mark.parametrize("client", ["acme", "a<b>&\"c'</svg>"])
def test_the_chart_is_well_formed_and_escapes(client: str) -> None:
    made = tuning(found(client))[0]["chart"]
    drawing = svg(str(made))
    lines = drawing.findall(f"{SVG}polyline")
    assert len(lines) == 5  # the failed one has no place
    assert [line.get("class") for line in lines].count("line c1 best") == 1
    assert lines[-1].get("class") == "line c1 best"  # on top
    assert [bool(line.get("stroke-dasharray")) for line in lines].count(True) == 1
    title = drawing.find(f"{SVG}title")
    assert title is not None
    assert title.text == f"Settings tried for {client}"
    labels = [e.text for e in drawing.iter(f"{SVG}text") if e.get("class") == "label"]
    assert labels == ["kind", "learning rate", "hidden", "validation"]


def test_points_lie_where_their_numbers_say() -> None:
    drawing = svg(str(tuning(found())[0]["chart"]))
    lines = [
        [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
        for line in drawing.findall(f"{SVG}polyline")
    ]
    down = {round(points[-1][1], 1) for points in lines}
    bottom, top = max(down), min(down)
    assert lines[-1][-1][1] == bottom  # the least validation loss is at the foot
    axis = next(e for e in drawing.iter(f"{SVG}line"))
    assert {bottom, top} == {float(axis.get("y1") or 0), float(axis.get("y2") or 0)}
    below = [points[2][1] for points in lines if points[2][1] > bottom]
    assert len(below) == 1  # logistic regression has no hidden layers


def test_scales() -> None:
    scale = parallel.Scale("rate", low=0.001, high=0.1, log=True, write=lambda v: f"{v:g}")
    assert scale.share(0.01) == pytest.approx(0.5)
    assert [text for _, text in scale.ticks()] == ["0.001", "0.01", "0.1"]
    assert scale.share(None) is None
    levels = parallel.scale_of("hidden", [[64, 32], [32], None], False, lambda v: "x".join(map(str, v)))
    assert levels.ticks() == [(0.25, "32"), (0.75, "64x32")]
    assert parallel.Scale("one", low=2.0, high=2.0).share(2.0) == 0.0
