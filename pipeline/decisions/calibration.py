"""The reliability curve of one outcome: what was predicted against what happened, with the band of what chance does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.decisions.charts import (
    Axis,
    Series,
    figure,
    number,
    numbers,
    percent,
    significant,
    tick_number,
    tick_percent,
)

TALL = 1.6  # a band is cut this far above the highest point, so that it does not flatten the curve


@dataclass(frozen=True)
class Bin:
    """Means of one share of the hold-out; ``low`` and ``high``: the band of ``observed``, none for amounts."""

    predicted: float
    observed: float
    weight: float
    low: float | None = None
    high: float | None = None


def reliability_chart(
    name: str,
    metrics: Mapping[str, Any],
    write: Callable[[float | None], str],
    named: str = "this model",
    note: str = "",
) -> Any:
    """A figure, or None where there are fewer than two bins.

    Args:
        metrics: of the outcome, as in metrics.json. write: how its numbers are written, percent or human.
        named: what the curve is of. note: a sentence to end the words with.
    """
    bins = _bins(metrics)
    if len(bins) < 2:
        return None
    banded = [(b.predicted, b.low, b.high) for b in bins if b.low is not None and b.high is not None]
    top = max(max(b.predicted, b.observed) for b in bins)
    high = max([top * 1.08, *(min(h, TALL * top) * 1.02 for _, _, h in banded)]) or 1.0
    on_axis = tick_percent if write is percent else tick_number
    lines = [
        Series("exact", [(0.0, 0.0), (high, high)], guide=True, dash="4 4"),
        Series(named, [(b.predicted, b.observed) for b in bins], 1, dots=True, band=banded),
    ]
    header = ["predicted", "observed", *(["90% from", "to"] if banded else []), "rows"]
    rows = [
        [
            *(write(v) for v in (b.predicted, b.observed, *((b.low, b.high) if banded else ()))),
            number(round(b.weight)),
        ]
        for b in bins
    ]
    axes = Axis("predicted", 0, high, on_axis), Axis("observed", 0, high, on_axis)
    words = f"{_words(metrics, bins)} {note}".rstrip()
    return figure(f"Calibration: {name.replace('_', ' ')}", words, lines, *axes, False, numbers(header, rows))


def _words(metrics: Mapping[str, Any], bins: list[Bin]) -> str:
    if bins[0].low is None:
        return "Tenths of the hold-out by prediction. On the diagonal, what was predicted is what happened."
    error, noise = metrics.get("ece"), metrics.get("ece_noise")
    words = (
        f"{len(bins)} equal parts of the hold-out by prediction. On the diagonal, what was predicted is what happened; "
    )
    words += "the band holds 90% of what chance does to as many subscribers."
    if error is not None and noise is not None:
        words += f" Mean gap {significant(100 * error, 2)} points; chance alone makes {significant(100 * noise, 2)}."
    return words


def _bins(metrics: Mapping[str, Any]) -> list[Bin]:
    """The reliability curve, or tenths where there is none; ascending."""
    if metrics.get("reliability"):
        return [Bin(**{k: float(b[k]) for k in Bin.__annotations__}) for b in metrics["reliability"]]
    tenths = [
        Bin(float(b["expected"]), float(b["observed"]), float(b.get("weight") or 0))
        for b in metrics.get("deciles") or []
        if b.get("expected") is not None and b.get("observed") is not None
    ]
    return sorted(tenths, key=lambda b: (b.predicted, b.observed))
