"""python -m bench.run WORKLOAD: the same work here and in other engines, side by side, compared value by value.

Every measurement is a process of its own; rounds go over all engines in turn, so that a slow minute of the machine hits
all; source files are read once before each, so the page cache is alike. Imports and compilation are off the clock. The
bench fails (exit 1) when two engines disagree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORKLOADS = ("features", "train")  # train has options of its own: bench.run train --help
PEERS = ("polars", "duckdb")  # a file in bench/peers each
HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """What this was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {}
    for name in ("numpy", "pandas", "pyarrow", "numba", "dask", "deltalake", "polars", "duckdb"):
        from importlib import metadata

        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def tree_peak_bytes() -> int:
    """Peak resident memory of this process and all below it: the sum of each one's own peak.

    Not getrusage's: a child's starts at its parent's.
    """
    children: dict[int, list[int]] = {}
    peaks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = dict(
                line.split(":", 1)
                for line in (entry / "status").read_text(encoding="utf-8").splitlines()
                if ":" in line
            )
        except OSError:
            continue  # gone meanwhile
        pid = int(entry.name)
        children.setdefault(int(status["PPid"]), []).append(pid)
        peaks[pid] = int(status.get("VmHWM", "0 kB").split()[0]) * 1024
    total, todo = 0, [os.getpid()]
    while todo:
        pid = todo.pop()
        total += peaks.get(pid, 0)
        todo += children.get(pid, [])
    return total


def _measure(args: argparse.Namespace) -> None:
    """The child: one engine, one idiom, once; what it measured goes to a file."""
    from bench import features

    task = features.Task(args.source, args.store, args.partitions, args.threads)
    idiom = features.idioms(args.engine)[args.idiom]
    compile_seconds = idiom.prepare(task)
    began, used = time.perf_counter(), time.process_time()
    result = idiom.run(task)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    peak = tree_peak_bytes()
    found = features.digest(task, idiom.chunks(task, result), idiom.keyed, args.subscribers)
    out = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "compile_seconds": compile_seconds,
        "peak_rss_bytes": peak,
        "digest": found,
    }
    args.out.write_text(json.dumps(out), encoding="utf-8")


def _warm(folder: Path) -> None:
    """Read every file once, so that each engine finds the same page cache."""
    for file in folder.rglob("*.parquet"):
        with file.open("rb") as stream:
            while stream.read(1 << 22):
                pass


def _child(engine: str, idiom: str, plan: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        options = [f"--{k}={v}" for k, v in {**plan, "engine": engine, "idiom": idiom, "out": out}.items()]
        environment = {**os.environ, "POLARS_MAX_THREADS": str(plan["threads"]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", "bench.run", "--child", *options], env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{engine} ({idiom}) failed with status {done.returncode}")
        measured: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return measured


def build_store(source: Path, store: Path) -> float:
    """Ingest the log into a store, compacted, unless it is there; seconds, 0 where it was."""
    if (store / "_delta_log").exists():
        return 0.0
    from pipeline.backend import choose
    from pipeline.config import Config, Quality, Source
    from pipeline.events import ingest

    columns = {
        "subscriber": "user_id",
        "ts": "event_time",
        "event": "event_name",
        "campaign": "campaign_id",
        "event_id": "message_id",
    }
    runs = store.parent / f"{store.name}-run"
    shutil.rmtree(runs, ignore_errors=True)
    config = Config(
        name="bench",
        runs=str(runs),
        store=str(store),
        source=Source.model_validate({"path": str(source), "columns": columns, "client": "bench"}),
        # Chance puts some of the log's opens and clicks right after a send; the peers count every event.
        quality=Quality(actions={"scanner_click": "off", "machine_open": "off"}),
    )
    began = time.perf_counter()
    ingest.ingest(config, choose("cpu"))
    return time.perf_counter() - began


def features(args: argparse.Namespace) -> dict[str, Any]:
    """Run the workload `features` and return the bench's JSON."""
    from bench import features as workload
    from bench import log

    events = args.events
    source = log.make(args.data, events)
    store = args.data / f"store-{events}"
    ingest_seconds = build_store(source, store)
    if ingest_seconds:
        print(f"ingested {events:,} events in {ingest_seconds:.1f} s", flush=True)
    contestants = [("ours", i) for i in workload.idioms("ours")]
    contestants += [(peer, i) for peer in args.peers for i in workload.idioms(peer)]
    if args.idioms:
        contestants = [(e, i) for e, i in contestants if e == "ours" or i in args.idioms]
    plan = {
        "source": source,
        "store": store,
        "partitions": args.partitions,
        "threads": args.threads,
        "subscribers": max(events // log.EVENTS_EACH, 1),
    }
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {c: [] for c in contestants}
    for turn in range(args.repeat):
        for engine, idiom in contestants:
            _warm(source)
            _warm(store)
            measured[engine, idiom].append(_child(engine, idiom, plan))
            seconds = measured[engine, idiom][-1]["seconds"]
            print(f"round {turn + 1} of {args.repeat}: {engine}, {idiom}: {seconds:.2f} s", flush=True)
    reference = measured[contestants[0]][0]["digest"]
    results = [
        {
            "workload": "features",
            "engine": engine,
            "idiom": idiom,
            "events": events,
            "rows": runs[0]["digest"]["rows"][0],
            "seconds": [r["seconds"] for r in runs],
            "median_seconds": statistics.median(r["seconds"] for r in runs),
            "cpu_seconds": [r["cpu_seconds"] for r in runs],
            "compile_seconds": [r["compile_seconds"] for r in runs],
            "peak_rss_bytes": max(r["peak_rss_bytes"] for r in runs),
            "equal": all(r["digest"] == reference for r in runs),
        }
        for (engine, idiom), runs in measured.items()
    ]
    return {
        "machine": {**machine(), "threads": args.threads, "partitions": args.partitions},
        "results": results,
        "ratios": {"features": ratios(results, on_store=False), "features, peers on our store": ratios(results, True)},
    }


def ratios(results: list[dict[str, Any]], on_store: bool) -> dict[str, float]:
    """The best idiom of each peer over ours, in medians."""
    ours = min(r["median_seconds"] for r in results if r["engine"] == "ours")
    best: dict[str, float] = {}
    for r in results:
        if r["engine"] != "ours" and r["idiom"].endswith("our store") == on_store:
            best[r["engine"]] = min(best.get(r["engine"], float("inf")), r["median_seconds"])
    return {engine: round(seconds / ours, 2) for engine, seconds in best.items()}


def table(report: dict[str, Any]) -> str:
    """The results for a reader."""
    lines = [f"{'engine':8} {'idiom':16} {'median s':>9} {'all':>24} {'peak GB':>8}  equal"]
    for r in report["results"]:
        every = " ".join(f"{s:.2f}" for s in r["seconds"])
        lines.append(
            f"{r['engine']:8} {r['idiom']:16} {r['median_seconds']:9.2f} {every:>24} {r['peak_rss_bytes'] / 1e9:8.2f}"
            f"  {'yes' if r['equal'] else 'NO'}"
        )
    for name, found in report["ratios"].items():
        shown = ", ".join(f"{engine} {ratio:.1f}" for engine, ratio in found.items())
        lines.append(f"{name}: best peer idiom over ours: {shown or 'no peers'}")
    return "\n".join(lines)


def _names(text: str) -> list[str]:
    names = [n for n in text.split(",") if n]
    known = sorted(p.stem for p in (HERE / "peers").glob("*.py") if p.stem != "__init__")
    unknown = [n for n in names if n not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.run", description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--events", type=lambda t: int(float(t)), default=2_000_000, help="rows of the log, e.g. 20e6")
    parser.add_argument("--peers", type=_names, default=list(PEERS), help="comma-separated, e.g. polars,duckdb")
    parser.add_argument("--idioms", type=lambda t: t.split(","), help="only these of the peers' idioms")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each; the median counts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--partitions", type=int, default=16, help="key ranges that ours, and peers on our store, read")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="where logs and stores are made and kept")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser


def _child_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", action="store_true")
    for name in ("source", "store", "out"):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("partitions", "threads", "subscribers"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("engine", "idiom"):
        parser.add_argument(f"--{name}")
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--child" in arguments:
        _measure(_child_parser().parse_args(arguments))
        return 0
    if arguments[:1] == ["train"]:
        from bench import train

        return train.main(arguments[1:])
    args = _parser().parse_args(arguments)
    report = features(args)
    print(table(report))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not all(r["equal"] for r in report["results"]):
        print("engines disagree: see 'equal' above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
