"""python -m bench.run WORKLOAD: the same work here and in other engines, side by side, compared value by value.

    python -m bench.run all --events 20e6 --peers polars,duckdb,spark      # every workload: the table, JSON and a plot
    python -m bench.run rollup --events 2e6 --peers duckdb
    python -m bench.run scale --events 1e6,1e7,1e8,1e9 --limit 1200 --clean
    python -m bench.run train --help                                       # an epoch of ours and of Keras fit
    python -m bench.run trained --help                                     # from the store to a trained model
    python -m bench.run devices --help                                     # one model, one process and several
    python -m bench.run quality --help                                     # how good models are, beside the ceiling
    python -m bench.run ablation --help                                    # which features and how many rows make it
    python -m bench.run limits --help                                      # what keeps models below the ceiling
    python -m bench.run small --help                                       # how well small clients are served
    python -m bench.run imbalance --events 2e6

Every measurement is a process of its own. Rounds go over all engines in turn, each round beginning with another one, so
that a slow minute of the machine hits all. Before each, off the clock and for all alike: imports, compilation and
Spark's start; the source files and the store are read once, so that the page cache is alike; memory is touched and
handed over warm (bench/memory.py). The bench fails (exit 1) when two engines disagree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from bench import argument, measure, ours, workloads
from bench import log as logs
from bench import report as reports
from bench.measure import Job
from bench.memory import Keeper

HERE = Path(__file__).parent
PEERS = ("polars", "duckdb", "spark")
LONG = 20.0  # seconds: a natural idiom that takes longer is measured once, since the best one's median counts
BYTES_PER_EVENT = 120  # on disk: logs of both kinds, a store, and those that a measurement writes


def say(text: str) -> None:
    print(text, flush=True)


def jobs(args: argparse.Namespace, chosen: list[str]) -> list[Job]:
    """All measurements in their order: for each workload so many rounds, each beginning with another engine."""
    found = []
    for workload in chosen:
        peers = args.peers
        if workload == "raw-to-features" and "features" in chosen:
            peers = []  # their runs from raw files are those of `features`
        contestants = [("ours", i) for i in workloads.idioms("ours", workload)]
        contestants += [(peer, i) for peer in peers for i in workloads.idioms(peer, workload)]
        if args.idioms:
            contestants = [(e, i) for e, i in contestants if e == "ours" or i in args.idioms]
        for turn in range(args.repeat):
            shift = turn * len(contestants) // args.repeat
            for engine, idiom in contestants[shift:] + contestants[:shift]:
                how = workloads.idioms(engine, workload)[idiom]
                if turn and idiom == "natural" and how.seconds * args.events / 1e6 > LONG:
                    continue
                check = turn == 0 or not how.again
                found.append(
                    Job(
                        workload,
                        engine,
                        idiom,
                        args.events,
                        str(args.data),
                        args.partitions or partitions_of(args.events),
                        args.threads,
                        args.memory,
                        args.sample,
                        check,
                    )
                )
    return found


def partitions_of(events: int) -> int:
    """Key ranges that ours, and peers on our store, read: about 1.25 million events each, no fewer than threads."""
    return max(round(events / 1_250_000), 2)


def prepare(planned: list[Job]) -> dict[str, dict[str, list[int]]]:
    """Make the logs and stores that the jobs read; the digests that ingest must come to, by kind of ids."""
    wanted: dict[str, dict[str, list[int]]] = {}
    for job in {(j.ids, j.events): j for j in planned}.values():
        made = logs.make(Path(job.data), job.events, job.ids, say=say)
        say(f"{job.ids} ids: {made.bytes / job.events:.1f} bytes an event in {len(logs.files(made.days))} files")
        if any(j.workload == "ingest" and j.ids == job.ids for j in planned):
            wanted[job.ids] = workloads.digest(["kind", "message"], workloads.log_chunks(made))
        reads = {j.workload for j in planned if j.ids == job.ids and j.events == job.events}
        if not reads <= {"ingest", "raw-to-features"}:
            ours.build_store(made, measure.store_of(job))
    return wanted


def keeper_for(args: argparse.Namespace, events: int) -> Keeper:
    """Enough memory for the hungriest engine, at most 12 GB and 60% of what is free."""
    wanted = max(events * 500, 1 << 30) if args.keep_warm is None else int(args.keep_warm * 1e9)
    return Keeper(int(min(wanted, 12e9, 0.6 * psutil.virtual_memory().available)))


def side_by_side(args: argparse.Namespace, chosen: list[str]) -> dict[str, Any]:
    """Run workloads and return the bench's JSON, which is written after every measurement."""
    planned = jobs(args, chosen)
    need = args.events * BYTES_PER_EVENT
    if measure.free_space(args.data) < need:
        raise SystemExit(f"{args.data} has too little space free: about {need / 1e9:.0f} GB are needed; see --data")
    wanted = prepare(planned)
    plan = measure.Plan(planned, say)
    say(f"{len(planned)} measurements, about {measure.clock(plan.left())}")
    measured: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    keeper = keeper_for(args, args.events)
    report: dict[str, Any] = {}
    try:
        for job in planned:
            plan.begin(job)
            began = time.monotonic()
            found = measure.measure(job, keeper, args.limit, args.memory_limit)
            plan.end(job, time.monotonic() - began, found)
            measured.setdefault((job.workload, job.engine, job.idiom), []).append(found)
            report = assemble(args, planned, measured, wanted)
            write(report, args.json)
    finally:
        keeper.close()
    return report


def assemble(
    args: argparse.Namespace,
    planned: list[Job],
    measured: dict[tuple[str, str, str], list[dict[str, Any]]],
    wanted: dict[str, dict[str, list[int]]],
) -> dict[str, Any]:
    """The report of what has been measured so far."""
    rows = []
    for (workload, engine, idiom), runs in measured.items():
        job = next(j for j in planned if (j.workload, j.engine, j.idiom) == (workload, engine, idiom))
        reference = wanted[job.ids] if workload == "ingest" else _reference(measured, workload)
        rows.append(reports.result(job, runs, reference))
    if any(r["workload"] == "raw-to-features" for r in rows) and any(r["workload"] == "features" for r in rows):
        same = [r for r in rows if r["workload"] == "features" and r["engine"] != "ours" and not r["on_store"]]
        rows += [{**r, "workload": "raw-to-features", "measured_as": "features"} for r in same]
    rows.sort(key=lambda r: workloads.WORKLOADS.index(r["workload"]))  # stable: ours first, then the peers
    setting = {"threads": args.threads, "partitions": args.partitions or partitions_of(args.events)}
    return {
        "machine": {**reports.machine(), **setting},
        "method": {
            "repeat": args.repeat,
            "once": f"a peer's natural idiom expected to take more than {LONG:.0f} s is measured once",
            "peak_rss_bytes": "largest sum of resident memory over the process tree, seen every 20 ms; "
            "of the measured process itself the kernel's high-water mark where larger",
            "limit_seconds": args.limit,
            "memory_limit_bytes": args.memory_limit,
        },
        "results": rows,
        "ratios": reports.ratios(rows),
        "bars": reports.compare(rows),
    }


def _reference(measured: dict[tuple[str, str, str], list[dict[str, Any]]], workload: str) -> dict[str, Any] | None:
    """The digest that all others must have: the first one found; both ways to features have the same."""
    same = ("features", "raw-to-features") if workload.endswith("features") else (workload,)
    found = (r.get("digest") for key, runs in measured.items() if key[0] in same for r in runs)
    return next((digest for digest in found if digest is not None), None)


def write(report: dict[str, Any], path: Path | None) -> None:
    """Replace the file in one step, so that a killed bench leaves what it had."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def add_training(report: dict[str, Any]) -> None:
    """The workload `train`, at its own default size."""
    from bench import train

    options = train.parser().parse_args([])
    say("train: ours and Keras fit ...")
    found = train.run(options, say)
    report["results"] += [{**r, "on_store": False, "outcome": "finished"} for r in found["results"]]
    report["ratios"] |= found["ratios"]


def draw(report: dict[str, Any], path: Path) -> None:
    """The plot beside the JSON, where matplotlib is installed."""
    try:
        from bench import plot
    except ModuleNotFoundError as error:
        say(f"no plot: {error.name} is not installed (make bench installs it)")
        return
    plot.side_by_side(report, path)
    say(f"plot: {path}")


def clean(args: argparse.Namespace, events: int) -> None:
    """Remove the logs and stores of one size, and what a measurement that was killed left."""
    for left in args.data.glob(f"{measure.SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    for ids in logs.IDS:
        for kind in ("log", "store"):
            shutil.rmtree(args.data / f"{kind}-{ids}-{events}", ignore_errors=True)
        shutil.rmtree(args.data / f"store-{ids}-{events}-runs", ignore_errors=True)
        (args.data / f"store-{ids}-{events}.made").unlink(missing_ok=True)


def _names(text: str) -> list[str]:
    names = [n for n in text.split(",") if n]
    unknown = [n for n in names if n not in workloads.peers()]
    if unknown:
        known = ", ".join(workloads.peers())
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)}; there are {known}")
    return names


def _workloads(text: str) -> list[str]:
    known = [*workloads.WORKLOADS, "train"]
    names = known if text == "all" else text.split(",")
    if unknown := [n for n in names if n not in known]:
        raise argparse.ArgumentTypeError(
            f"no such workload: {', '.join(unknown)}; there are all, {', '.join(known)}, scale"
        )
    return [n for n in known if n in names]


def _memory() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def shared_options(parser: argparse.ArgumentParser) -> None:
    """The options of every kind of run."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--peers", type=_names, default=list(PEERS), help="comma-separated: polars,duckdb,spark")
    parser.add_argument("--threads", type=argument.count, default=cores)
    parser.add_argument("--limit", type=float, default=600, help="seconds on the clock, then a measurement is stopped")
    parser.add_argument("--memory-limit", type=argument.gigabytes, default=_memory() * 9 // 10, help="GB, the same")
    parser.add_argument(
        "--memory", type=argument.gigabytes, default=_memory() // 2, help="GB for DuckDB and Spark's heap"
    )
    parser.add_argument("--keep-warm", type=float, help="GB of memory kept touched between measurements; 0 for none")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="where logs and stores are made and kept")
    parser.add_argument("--json", type=Path, help="where the results go; by default bench/results/WORKLOAD-EVENTS.json")
    parser.add_argument("--clean", action="store_true", help="remove the logs and stores afterwards")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workload", type=_workloads, help="all, or a list: " + ",".join((*workloads.WORKLOADS, "train"))
    )
    parser.add_argument("--events", type=argument.count, default=2_000_000, help="rows of the log, e.g. 20e6")
    parser.add_argument("--idioms", type=argument.names, help="only these of the peers' idioms")
    parser.add_argument("--repeat", type=argument.count, default=3, help="measurements of each; the median counts")
    parser.add_argument("--partitions", type=argument.count, help="key ranges that ours, and peers on our store, read")
    parser.add_argument("--sample", type=argument.count, default=1, help="features for one send in so many")
    shared_options(parser)
    return parser


def short(events: int) -> str:
    """20000000 as 20e6."""
    return f"{events / 1e6:g}e6"


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        from bench import train

        return train.main(arguments[1:])
    if arguments[:1] == ["imbalance"]:
        from bench import imbalance

        return imbalance.main(arguments[1:])
    if arguments[:1] == ["ablation"]:
        from bench import ablation

        return ablation.main(arguments[1:])
    if arguments[:1] == ["limits"]:
        from bench import limits

        return limits.main(arguments[1:])
    if arguments[:1] == ["small"]:
        from bench import small

        return small.main(arguments[1:])
    if arguments[:1] == ["trained"]:
        from bench import trained

        return trained.main(arguments[1:])
    if arguments[:1] == ["devices"]:
        from bench import devices

        return devices.main(arguments[1:])
    if arguments[:1] == ["scale"]:
        from bench import scale

        return scale.main(arguments[1:])
    if arguments[:1] == ["quality"]:
        from bench import quality

        return quality.main(arguments[1:])
    args = _parser().parse_args(arguments)
    args.data = args.data.resolve()
    every = len(args.workload) == len(workloads.WORKLOADS) + 1
    args.json = (
        args.json or HERE / "results" / f"{'all' if every else '-'.join(args.workload)}-{short(args.events)}.json"
    )
    report = side_by_side(args, [w for w in args.workload if w != "train"])
    if "train" in args.workload:
        add_training(report)
        write(report, args.json)
    print(reports.table(report))
    say(f"results: {args.json}")
    draw(report, args.json.with_suffix(".svg"))
    if args.clean:
        clean(args, args.events)
    if any(r["equal"] is False for r in report["results"]):
        print("engines disagree: see 'equal' above", file=sys.stderr)
        return 1
    if broken := [r for r in report["results"] if r["engine"] == "ours" and r["outcome"] != "finished"]:
        print(f"ours did not finish: {broken[0]['workload']}: {broken[0]['outcome']}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
