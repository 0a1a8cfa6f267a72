"""What is measured for several seeds of a simulated log: a process each, and a JSON that goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import argument
from pipeline.errors import EventgrainError

HERE = Path(__file__).parent
Rows = list[dict[str, Any]]


def parser(name: str, doc: str | None, length: int) -> argparse.ArgumentParser:
    """The options of all of them; ``--seed`` is a child's. ``length``: of the sequences, by default."""
    made = argparse.ArgumentParser(
        f"python -m bench.run {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("options", nargs="*", metavar="key=value", help="of the run's configuration, as model.epochs=10")
    made.add_argument("--events", type=argument.count, default=2_000_000, help="of each log, e.g. 5e6")
    made.add_argument("--seeds", type=argument.numbers, default=[1, 2, 3])
    made.add_argument("--clients", type=argument.count, default=2, help="at most")
    made.add_argument("--length", type=argument.number, default=length, help="of the sequences")
    made.add_argument("--data", type=Path, default=HERE / "data", help="where logs and stores are made and kept")
    made.add_argument("--json", type=Path, help=f"by default bench/results/{name}-EVENTS.json")
    made.add_argument("--fresh", action="store_true", help="measure again what the JSON has")
    made.add_argument("--seed", type=argument.number, help=argparse.SUPPRESS)
    return made


def main(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, int], Rows],
    run: Callable[[argparse.Namespace], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> int:
    """A child measures its seed and leaves the rows in its JSON; the parent runs all and prints the table."""
    from bench.run import short

    options.data = options.data.resolve()
    if options.seed is not None:
        try:
            found = measure(options, options.seed)
        except EventgrainError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_status
        options.json.write_text(json.dumps(found), encoding="utf-8")
        return 0
    options.json = options.json or HERE / "results" / f"{name}-{short(options.events)}.json"
    print(table(run(options)))
    print(f"results: {options.json}", flush=True)
    return 0


def measure_all(
    name: str,
    options: argparse.Namespace,
    missing: Callable[[Rows, int], list[str]],
    summary: Callable[[Rows], dict[str, Any]],
    given: tuple[str, ...],
) -> dict[str, Any]:
    """Measure what the JSON does not have yet; it is written after each seed.

    Args:
        missing: the rows there are, a seed -> what of that seed is to be measured; nothing where all is there.
        summary: of all rows, for the JSON. given: the options beside those of :func:`parser` that a child needs; the
        first of them gets what is missing.
    """
    from bench.report import machine
    from bench.run import write

    report: dict[str, Any] = {"results": []}
    if options.json.exists() and not options.fresh:
        report = json.loads(options.json.read_text(encoding="utf-8"))
    for seed in options.seeds:
        if not (wanted := missing(report["results"], seed)):
            continue
        print(f"seed {seed}: {', '.join(wanted)}", flush=True)
        found = _child(name, options, seed, {given[0]: ",".join(wanted), **{n: getattr(options, n) for n in given[1:]}})
        there = {(r["seed"], r["model"]) for r in report["results"]}
        rows = [*report["results"], *(r for r in found if (r["seed"], r["model"]) not in there)]
        method = {n: getattr(options, n) for n in ("events", "clients", "length", *given[1:], "options")}
        report = {"machine": machine(), "method": method, "results": rows, **summary(rows)}
        write(report, options.json)
    return report


def compared(rows: Rows, base: str, column: str = "of_ideal") -> dict[str, dict[str, tuple[float, float, float]]]:
    """{model: {head: (a column's mean, its mean difference to that of the base, half the range of differences)}}.

    Of the seeds' means over their clients.
    """
    seeds = sorted({r["seed"] for r in rows})

    def means(model: str, head: str) -> list[float]:
        mine = [r for r in rows if (r["model"], r["head"]) == (model, head)]
        return [statistics.fmean(r[column] for r in mine if r["seed"] == seed) for seed in seeds]

    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for model in dict.fromkeys(r["model"] for r in rows):
        found[model] = {}
        for head in dict.fromkeys(r["head"] for r in rows):
            values = means(model, head)
            more = [value - before for value, before in zip(values, means(base, head), strict=True)]
            found[model][head] = statistics.fmean(values), statistics.fmean(more), (max(more) - min(more)) / 2
    return found


def _child(name: str, options: argparse.Namespace, seed: int, more: dict[str, Any]) -> Rows:
    out = options.data / f"{name}-{options.events}-{seed}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    values = {n: getattr(options, n) for n in ("events", "clients", "length", "data")}
    command = [sys.executable, "-m", f"bench.{name}"]
    for option, value in {**values, **more, "seed": seed, "json": out}.items():
        command += [f"--{option}", str(value)]
    if subprocess.run([*command, *options.options], check=False).returncode:
        raise SystemExit(f"bench.{name}: seed {seed} failed, see above")
    found: Rows = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    return found
