"""The command ``tune``: every client's best settings of the model, several trials at a time on the cluster.

The driver asks each client's study for a batch of trials, sends each to a worker process (which reads its own rows),
and keeps what comes of it; see pipeline/learning/study.py for why the order in which they end does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import extensions
from pipeline.dependencies import tune_key
from pipeline.errors import ConfigError, EventgrainError, TooLittleError
from pipeline.learning.snapshot import Snapshot
from pipeline.learning.space import kinds
from pipeline.learning.study import Study, Trial
from pipeline.learning.tune import Task, run_trial
from pipeline.options import SEQUENTIAL
from pipeline.progress import Progress, say
from pipeline.rundir import TUNE

if TYPE_CHECKING:
    from cluster.workers import Job, Workers
    from pipeline.stages import Context

SHOWN = 5  # trials of a client that get a line, and clients that get a table


@dataclass
class Search:
    """A client's study while it goes on."""

    study: Study
    batch: int = 0
    running: int = 0
    ran: int = 0


def tune(context: Context) -> tuple[str, int, dict[str, Any], bool]:
    """Search each client's settings: a line for the user, the trials made, the result, whether nothing was left to do.

    Raises:
        EventgrainError: no client could be tuned; that of the first client.
    """
    from cluster.workers import Workers

    here = context.cluster.client is None or not extensions.from_files()
    workers = Workers(None if here else context.cluster.client)
    failed: dict[str, EventgrainError] = {}
    searches = _searches(context, failed)
    todo = sum(s.study.tune.trials - len(s.study.finished) for s in searches.values())
    if todo:
        _say_how(workers, todo, any(search.study.finished for search in searches.values()))
        with Progress("tune", todo, "trials") as progress:
            _run(context, workers, searches, failed, progress)
    result = {client: _finish(context, client, search.study) for client, search in searches.items()}
    found = {client: one for client, one in result.items() if one is not None}
    for client, error in failed.items():
        say(f"          {client}: not tuned: {error}")
    if not found:
        raise next(iter(failed.values()), TooLittleError("there is no client to tune: every one has the pooled model"))
    _say_use(context, found)
    ran = sum(search.ran for search in searches.values())
    line = f"{len(found):,} client{'s' if len(found) != 1 else ''}, {ran:,} trials made"
    return line, ran, {"clients": found, "untuned": {c: str(e) for c, e in failed.items()}}, not todo


def _searches(context: Context, failed: dict[str, EventgrainError]) -> dict[str, Search]:
    """Every client's, but of those that have the pooled model anyway."""
    from pipeline.training import pool_of

    config, pool, searches = context.config, pool_of(context), {}
    for client in context.store.clients():
        if pool is not None and pool.wanted(client):
            continue
        try:
            key = tune_key(context, client)
        except (TooLittleError, ConfigError) as error:
            failed[client] = error
            continue
        searches[client] = Search(Study(context.run.path / TUNE, client, key, config.model, config.tune))
    if pool is not None and (small := len(context.store.clients()) - len(searches) - len(failed)):
        say(f"          {small:,} client{'s' if small > 1 else ''} of too few positives: not tuned, the pooled model's")
    return searches


def _say_how(workers: Workers, todo: int, known: bool) -> None:
    how = f"{workers.at_once} at a time" if workers.client is not None else "one at a time, in this process"
    more = "" if workers.client is not None else "; cluster=local runs one per core"
    say(f"          {todo:,} trials to make, {how}{more}" + ("; what was finished is kept" if known else ""))


def _run(
    context: Context,
    workers: Workers,
    searches: dict[str, Search],
    failed: dict[str, EventgrainError],
    progress: Progress,
) -> None:
    for client, search in searches.items():
        _add(context, workers, client, search)
    for job, result in workers.results():
        client, search = job.home, searches[job.home]
        search.running -= 1
        if isinstance(result, EventgrainError):  # of this client's rows: its other trials would end alike
            failed.setdefault(client, result)
            progress.skip(workers.drop(client) + 1)
            continue
        if client in failed:
            continue
        trial = result if isinstance(result, Trial) else _died(job, result)
        search.study.tell(trial)
        search.ran += 1
        progress.advance(1, f"{client}: {_words(trial)}")
        if not search.running:
            _add(context, workers, client, search)
    for client in failed:
        searches.pop(client, None)


def _add(context: Context, workers: Workers, client: str, search: Search) -> None:
    """The client's next batch."""
    study, config = search.study, context.config
    search.batch, asked = study.next()
    rivals = [t.best_so_far for t in study.before(search.batch) if t.state == "complete"] if study.tune.prune else []
    for number, settings in asked.items():
        task = Task(
            Snapshot.of(context.store, config).absolute(),
            client,
            context.as_of(client),
            (context.run.path / "rollups").absolute(),
            number,
            settings,
            tuple(map(tuple, rivals)),
            any(kind in SEQUENTIAL for kind in kinds(config.tune.space, config.model)),
            config.model.minimum_positives_own if len(context.store.clients()) > 1 else 0,
        )
        workers.add(client, run_trial, task, tag=(number, settings))
        search.running += 1


def _died(job: Job, error: Any) -> Trial:
    """A trial that took its process with it, for want of memory most likely. Any other exception is a fault of ours."""
    from distributed.scheduler import KilledWorker

    if not isinstance(error, KilledWorker | MemoryError):
        raise error
    number, settings = job.tag
    return Trial(number, settings, "failed", reason="its process died, probably for want of memory")


def _words(trial: Trial) -> str:
    if trial.validation is None:
        return f"trial {trial.number} failed"
    return f"trial {trial.number} {trial.validation:.4f}" + (" (given up)" if trial.state == "pruned" else "")


# -- what is left ------------------------------------------------------------------------------------------------------


def _finish(context: Context, client: str, study: Study) -> dict[str, Any] | None:
    """Publish the best, show the table, and give what metrics.json keeps."""
    facts = {"study": study.key, "snapshot": context.store.version(), "finished": time.time()}
    best = study.publish(facts)
    if best is None:
        reasons = sorted({t.reason for t in study.finished if t.reason})
        say(f"          {client}: every trial failed: {'; '.join(reasons[:3])}")
        return None
    trials = [
        {
            "number": t.number,
            "settings": t.settings,
            "state": t.state,
            "validation": t.validation,
            "epoch": t.epoch,
            "epochs": len(t.history),
            "heads": t.heads,
            "seconds": t.seconds,
            "reason": t.reason,
        }
        for t in study.finished
    ]
    return {"best": best, "trials": trials, "seconds": round(sum(t.seconds for t in study.finished), 3)}


def table(trials: list[Mapping[str, Any]], most: int = SHOWN) -> list[str]:
    """The best trials as lines of text, the best first, and the configured one in any case."""
    able = sorted((t for t in trials if t["validation"] is not None), key=lambda t: (t["validation"], t["number"]))
    shown = able[:most] + [t for t in able[most:] if t["number"] == 0]
    heads = list(dict.fromkeys(name for t in shown for name in t["heads"]))
    names = list(dict.fromkeys(name for t in shown for name in t["settings"]))
    header = [
        "trial",
        "validation",
        "epochs",
        "seconds",
        *names,
        *(f"{head} {_measure(shown, head)[1]}" for head in heads),
    ]
    rows = [header]
    for t in shown:
        number = f"{t['number']}" + (" (configured)" if t["number"] == 0 else "")
        ran = f"{t['epochs']}, given up" if t["state"] == "pruned" else str(t["epochs"])
        cells = [number, f"{t['validation']:.4f}", ran, f"{t['seconds']:.1f}"]
        cells += [value(t["settings"][name]) if name in t["settings"] else "-" for name in names]
        measured = [(t["heads"].get(head) or {}).get(_measure(shown, head)[0]) for head in heads]
        rows.append(cells + ["-" if one is None else f"{one:.4g}" for one in measured])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _measure(trials: list[Mapping[str, Any]], head: str) -> tuple[str, str]:
    """What an outcome is compared by."""
    amount = any("normalized_gini" in (t["heads"].get(head) or {}) for t in trials)
    return ("normalized_gini", "Gini") if amount else ("pr_auc", "PR-AUC")


def value(setting: Any) -> str:
    """A setting's value as one would write it in the configuration."""
    if isinstance(setting, list):
        return "[" + ",".join(map(str, setting)) + "]"
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def _say_use(context: Context, found: Mapping[str, Mapping[str, Any]]) -> None:
    for client, one in list(found.items())[:SHOWN]:
        best, failed = one["best"], sum(t["state"] == "failed" for t in one["trials"])
        given_up = sum(t["state"] == "pruned" for t in one["trials"])
        line = f"          {client}: trial {best['trial']} is the best of {len(one['trials'])}"
        say(line + f" ({given_up} given up early, {failed} failed), validation {best['validation']:.4f}")
        for text in table(one["trials"]):
            say(f"            {text}")
        overrides = " ".join(f"model.{name}={value(setting)}" for name, setting in best["settings"].items())
        say(f"            as overrides: {overrides}")
    if len(found) > SHOWN:
        say(f"          {len(found) - SHOWN:,} more clients: in {context.run.path / TUNE} and the report")
    say("          to train each client with its best settings: tune.use=true")
