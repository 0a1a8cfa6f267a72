"""python -m bench.run scale: time against events, raw files to features of a sampled training set.

For each size a log is written, every engine takes it from the raw files to the features of one send in so many (ours
writes its store on the way), within a limit of time and memory; whoever was stopped or died is reported as that, and is
not tried at a larger size. Each result is in the JSON at once: a scale run that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from bench import argument, measure, workloads
from bench import log as logs
from bench import report as reports
from bench.measure import Job

HERE = Path(__file__).parent
WORKLOAD = "raw-to-features"
BYTES_PER_EVENT = 45  # on disk: the log, a store, its compaction
CHECKED = 25_000_000  # a result that has to be computed again to be compared is, up to so many events


def _parser() -> argparse.ArgumentParser:
    from bench.run import shared_options

    parser = argparse.ArgumentParser(
        "python -m bench.run scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=argument.counts, default=[10**6, 10**7, 10**8], help="1e6,1e7")
    parser.add_argument("--sample", type=argument.count, default=50, help="features for one send in so many")
    parser.add_argument("--repeat", type=argument.count, default=1)
    parser.add_argument("--idioms", type=argument.names, default=["best"], help="the peers' idioms")
    parser.add_argument("--fresh", action="store_true", help="measure again what the JSON has")
    shared_options(parser)
    return parser


def contestants(args: argparse.Namespace) -> list[tuple[str, str]]:
    found = [("ours", i) for i in workloads.idioms("ours", WORKLOAD)]
    return found + [(p, i) for p in args.peers for i in workloads.idioms(p, WORKLOAD) if i in args.idioms]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the JSON does not have yet."""
    from bench.run import clean, keeper_for, partitions_of, say, write

    report: dict[str, Any] = {"results": []}
    if args.json.exists() and not args.fresh:
        report = json.loads(args.json.read_text(encoding="utf-8"))
        say(f"{args.json} has {len(report['results'])} results already; --fresh measures them again")
    report["machine"] = {**reports.machine(), "threads": args.threads}
    report["ratios"] = {}

    def known(events: int, engine: str, idiom: str) -> dict[str, Any] | None:
        same = (events, engine, idiom, args.sample)
        rows = report["results"]
        return next((r for r in rows if (r["events"], r["engine"], r["idiom"], r["sample"]) == same), None)

    def jobs_of(events: int) -> list[Job]:
        found = []
        for engine, idiom in contestants(args):
            check = not workloads.idioms(engine, WORKLOAD)[idiom].again or events <= CHECKED
            job = Job(WORKLOAD, engine, idiom, events, str(args.data), partitions_of(events), args.threads, args.memory)
            found.append(Job(**{**vars(job), "sample": args.sample, "check": check}))
        return found

    sizes = sorted(args.events)
    todo = [j for events in sizes for j in jobs_of(events) if known(events, j.engine, j.idiom) is None]
    plan = measure.Plan([j for j in todo for _ in range(args.repeat)], say)
    for events in sizes:
        mine = [j for j in todo if j.events == events]
        if not mine:
            continue
        need = events * BYTES_PER_EVENT
        if measure.free_space(args.data) < need:
            raise SystemExit(f"{events:,} events need about {need / 1e9:.0f} GB free in {args.data}; see --data")
        began = time.monotonic()
        made = logs.make(args.data, events, say=say)
        say(f"{events:,} events: {made.bytes / 1e9:.2f} GB, {made.bytes / events:.1f} bytes an event")
        say(f"    there after {time.monotonic() - began:.0f} s")
        keeper = keeper_for(args, events)
        try:
            for job in mine:
                report["results"].append(_one(job, args, plan, keeper, report["results"]))
                write(report, args.json)
        finally:
            keeper.close()
            if args.clean:
                clean(args, events)
    return report


def _one(job: Job, args: argparse.Namespace, plan: measure.Plan, keeper: Any, rows: list[dict[str, Any]]) -> Any:
    """One engine at one size; not tried where it did not come through a smaller one."""
    smaller = [r for r in rows if (r["engine"], r["idiom"]) == (job.engine, job.idiom) and r["events"] < job.events]
    failed = next((r for r in smaller if r["outcome"] != "finished"), None)
    if failed is not None:
        plan.done += args.repeat
        outcome = f"not tried: {failed['outcome']} at {failed['events']:,} events"
        return reports.result(job, [{"outcome": outcome, "peak_rss_bytes": 0}], None)
    runs = []
    for _ in range(args.repeat):
        plan.begin(job)
        began = time.monotonic()
        runs.append(measure.measure(job, keeper, args.limit, args.memory_limit))
        plan.end(job, time.monotonic() - began, runs[-1])
        if runs[-1]["outcome"] != "finished":
            break
    same = [r["digest"] for r in rows if r["events"] == job.events and r["sample"] == job.sample and r.get("digest")]
    mine = next((r["digest"] for r in runs if r.get("digest")), None)
    found = reports.result(job, runs, same[0] if same else mine)
    return {**found, "digest": mine, "nanoseconds_per_event": _per_event(found)}


def _per_event(row: dict[str, Any]) -> float | None:
    return None if row["median_seconds"] is None else round(row["median_seconds"] / row["events"] * 1e9, 2)


def table(report: dict[str, Any]) -> str:
    """For each size, seconds, nanoseconds an event and peak memory; what became of those that did not finish."""
    head = f"{'events':>14} {'engine':8} {'idiom':18} {'seconds':>9} {'ns an event':>12} {'peak GB':>8}  equal"
    lines = [head, "-" * len(head)]
    for r in sorted(report["results"], key=lambda r: (r["events"], r["engine"] != "ours")):
        equal = {True: "yes", False: "NO", None: "not compared"}[r["equal"]]
        if r["median_seconds"] is None:
            shown, equal = f"{'-':>9} {'-':>12}", r["outcome"]
        else:
            shown = f"{r['median_seconds']:9.2f} {r['nanoseconds_per_event']:12.1f}"
        lines.append(
            f"{r['events']:14,} {r['engine']:8} {r['idiom']:18} {shown} {r['peak_rss_bytes'] / 1e9:8.2f}  {equal}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    args = _parser().parse_args(arguments)
    args.data = args.data.resolve()
    args.json = args.json or HERE / "results" / "scale.json"
    report = run(args)
    print(table(report))
    try:
        from bench import plot
    except ModuleNotFoundError as error:
        print(f"no plot: {error.name} is not installed (make bench installs it)")
    else:
        plot.scale(report, args.json.with_suffix(".svg"))
        print(f"results: {args.json}; plot: {args.json.with_suffix('.svg')}")
    return 1 if any(r["equal"] is False for r in report["results"]) else 0
