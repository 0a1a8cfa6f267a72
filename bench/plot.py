"""The bench's plots: time by workload and engine, and time against events. SVG or PNG by the path's suffix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

# Okabe and Ito's palette, told apart by colour-blind readers too; every mark is labelled as well.
COLOURS = {"ours": "#0072B2", "polars": "#E69F00", "duckdb": "#009E73", "spark": "#CC79A7"}
NAMES = {"ours": "Eventgrain", "polars": "Polars", "duckdb": "DuckDB", "spark": "Spark"}
PLAIN = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}


def _on(machine: dict[str, Any]) -> str:
    cpu = re.sub(r"\s+", " ", machine["cpu"])
    return f"{machine.get('threads', machine['cores'])} threads, {cpu}, {machine['memory_bytes'] / 2**30:.0f} GB"


def _bars(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """Title -> engine, idiom and median seconds of its best, ours first and then the fastest."""
    found = []
    for workload in ("features", "raw-to-features", "rollup", "new-day"):
        best: dict[str, tuple[str, str, float]] = {}
        for r in report["results"]:
            if r["workload"] != workload or r["median_seconds"] is None:
                continue
            if r["on_store"] and r["engine"] != "ours" and workload == "features":
                continue  # the bars are of peers on raw files
            if r["engine"] not in best or r["median_seconds"] < best[r["engine"]][2]:
                best[r["engine"]] = (r["engine"], r["idiom"], r["median_seconds"])
        if best:
            found.append((workload, sorted(best.values(), key=lambda b: (b[0] != "ours", b[2]))))
    return found


def side_by_side(report: dict[str, Any], path: Path) -> None:
    """A panel for each workload: a bar for each engine's best idiom, with its seconds and what they are of ours."""
    panels = _bars(report)
    if not panels:
        return
    with mpl.rc_context(PLAIN):
        sizes = [len(bars) for _, bars in panels]
        figure, axes = plt.subplots(
            len(panels),
            1,
            figsize=(7, 0.42 * sum(sizes) + 0.55 * len(panels) + 0.5),
            height_ratios=sizes,
            squeeze=False,
        )
        for axis, (workload, bars) in zip(axes[:, 0], panels, strict=True):
            ours = next((s for engine, _, s in bars if engine == "ours"), None)
            longest = max(s for _, _, s in bars)
            for row, (engine, idiom, seconds) in enumerate(bars):
                axis.barh(row, seconds, 0.7, color=COLOURS.get(engine, "#777777"))
                text = f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
                if ours and engine != "ours":
                    text += f", {seconds / ours:.1f} times ours ({idiom})"
                axis.text(seconds + longest * 0.01, row, text, va="center")
            axis.set_yticks(range(len(bars)), [NAMES.get(engine, engine) for engine, _, _ in bars])
            axis.set_xlim(0, longest * 1.45)
            axis.set_xticks([])
            axis.invert_yaxis()
            axis.spines["bottom"].set_visible(False)
            axis.tick_params(length=0)
            axis.set_title(workload, loc="left", fontweight="bold", fontsize=9)
        events = next(r["events"] for r in report["results"] if r["workload"] != "train")
        figure.suptitle(f"{events / 1e6:g} million events: median seconds, {_on(report['machine'])}", x=0.01, ha="left")
        figure.tight_layout()
        _save(figure, path)


def scale(report: dict[str, Any], path: Path) -> None:
    """Seconds against events, and nanoseconds an event below it, both on logarithmic axes."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in sorted(report["results"], key=lambda r: r["events"]):
        lines.setdefault((r["engine"], r["idiom"]), []).append(r)
    notes = [(engine, r) for (engine, _), rows in lines.items() for r in rows if r["median_seconds"] is None]
    with mpl.rc_context(PLAIN):
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 7), sharex=True, height_ratios=[3, 2])
        for (engine, idiom), rows in lines.items():
            done = [r for r in rows if r["median_seconds"] is not None]
            colour = COLOURS.get(engine, "#777777")
            name = NAMES.get(engine, engine) + ("" if engine == "ours" else f", {idiom}")
            if done:
                events, seconds = [r["events"] for r in done], [r["median_seconds"] for r in done]
                top.plot(events, seconds, "o-", color=colour, markersize=4)
                bottom.plot(
                    events,
                    [s / e * 1e9 for s, e in zip(seconds, events, strict=True)],
                    "o-",
                    color=colour,
                    markersize=4,
                )
                for axis, value in ((top, seconds[-1]), (bottom, seconds[-1] / events[-1] * 1e9)):
                    axis.annotate(
                        name, (events[-1], value), (6, 0), textcoords="offset points", va="center", color=colour
                    )
        for axis, label in ((top, "seconds"), (bottom, "nanoseconds an event")):
            axis.set(xscale="log", yscale="log", ylabel=label)
            axis.grid(alpha=0.25)
            low, high = axis.get_xlim()
        top.set_xlim(low, high * 4)  # room for the names
        bottom.xaxis.set_minor_formatter("")
        bottom.set_xlabel("events in the log")
        samples = sorted({r["sample"] for r in report["results"]})
        which = ", ".join(f"one send in {s}" if s > 1 else "every send" for s in samples)
        figure.suptitle(f"Raw files to features of {which}: {_on(report['machine'])}", x=0.01, ha="left")
        for line, (engine, r) in enumerate(notes):
            kind, _, why = r["outcome"].partition(": ")
            said = f"{kind}: {why.rpartition(': ')[2]}" if why else kind  # of an error the last clause
            text = f"{NAMES.get(engine, engine)} at {r['events'] / 1e6:,.0f} million events: {said}"[:110]
            figure.text(0.01, 0.01 + 0.025 * line, text, color=COLOURS.get(engine, "#777777"), fontsize=8)
        figure.tight_layout(rect=(0, 0.02 + 0.025 * len(notes), 1, 1))
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
