"""The stages of a run, in order: simulate, ingest, audit, rollup, train, decide, report; and tune.

A stage is a function of a :class:`Context` that returns an :class:`Outcome`; invocation.py runs those that are wanted.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.dependencies import audit_key, decide_key, rollup_key, train_key
from pipeline.progress import Progress, say
from pipeline.rundir import RunDirectory

if TYPE_CHECKING:
    from cluster import Cluster
    from pipeline.events.store import EventStore

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def end_of_data(config: Config, store: EventStore, client: str) -> int:
    """Where a client's data end, microseconds UTC: as configured, or after its last full local day."""
    if config.as_of is not None:
        return (config.as_of - EPOCH) // dt.timedelta(microseconds=1)
    return store.last_full_day(client, config.client_timezone(client))


@dataclass
class Context:
    """One invocation: the resolved configuration, where it computes and where it writes."""

    config: Config
    backend: Backend
    cluster: Cluster
    run: RunDirectory

    @functools.cached_property
    def store(self) -> EventStore:
        """The store as it was when first asked for: what one run reads is one snapshot."""
        from pipeline.events.store import EventStore

        return EventStore(self.config.store_uri, self.backend)

    def refresh(self) -> None:
        """Look at the store anew, after ingest."""
        self.__dict__.pop("store", None)

    def as_of(self, client: str) -> int:
        """See :func:`end_of_data`."""
        return end_of_data(self.config, self.store, client)


@dataclass
class Outcome:
    """What a stage leaves: a line for the user, the rows it went through, and a JSON-ready result.

    ``idle``: it found nothing new to do, so what it left before, and how long that took, still holds.
    ``compile_seconds``: of its time, spent once on compiling kernels that are cached from then on.
    """

    line: str
    rows: int
    result: dict[str, Any] = field(default_factory=dict)
    idle: bool = False
    compile_seconds: float = 0.0


@dataclass(frozen=True)
class Stage:
    """``key`` is everything the result depends on; None for a stage that finds out for itself what is done.

    ``there``: whether what it left is still there, so that deleting something is enough to have it made anew.
    """

    work: Callable[[Context], Outcome]
    key: Callable[[Context], str] | None = None
    there: Callable[[Context], bool] = lambda context: True


def timestamp(us: int) -> str:
    """Microseconds UTC as ISO text."""
    return (EPOCH + dt.timedelta(microseconds=us)).isoformat()


def simulate_log(config: Config, out: str, workers: int | None = None) -> None:
    """The command ``simulate``: write a log of ``config.simulate`` below ``out``."""
    from pipeline.events.simulate import simulate

    with Progress("simulate", config.simulate.events, "events") as progress:
        report = simulate(config.simulate, Path(out), workers or 2, progress)
    say(report.line())
    say(f"events: {Path(out) / 'events'}\ntruth:  {Path(out) / 'truth'}")


def _simulate(context: Context) -> Outcome:
    from pipeline.events.simulate import simulate

    settings = context.config.simulate
    with Progress("simulate", settings.events, "events") as progress:
        report = simulate(settings, context.run.path / "raw", context.cluster.workers or 2, progress)
    return Outcome(report.line(), report.rows, {"kinds": report.kinds, "dirt": report.dirt}, idle=report.reused)


def _ingest(context: Context) -> Outcome:
    from pipeline.events.ingest import ingest

    before = context.run.result("ingest").get("bad_files", [])
    with Progress("ingest") as progress:
        report = ingest(context.config, context.backend, progress)
    for bad in report.bad_files:
        say(f"warning   set aside: {bad['error']}")
    for client, rows in report.expired.items():
        say(f"          {client}: {rows:,} rows past retention removed, whole files of them")
    context.refresh()
    store = context.store
    # Of the whole store, like the events: of earlier days, and of batches whose run was interrupted after its commit.
    found = {rule["name"]: rule for rule in store.rules(context.config.quality.keep_examples)}
    rules = [found.pop(rule.name, {}) or dataclasses.asdict(rule) for rule in report.rules]
    result = {
        "events": store.totals(),
        "rules": [*rules, *found.values()],
        "version": store.version(),
        "clients": store.clients(),
        "bad_files": report.bad_files,
    }
    idle = not (report.rows_in or report.compacted or report.expired) and report.bad_files == before
    return Outcome(report.line(), report.rows_in, result, idle, report.compile_seconds)


def _audit(context: Context) -> Outcome:
    from pipeline.events.audit import audit

    found = audit(context.config, context.store, context.run.path)
    dirt = found.get("dirt", {})
    rows, taken = (sum(one[name] for one in dirt.values()) for name in ("rows", "found"))
    line = f"{taken:,} of {rows:,} rows of simulated dirt found" if dirt else "this log's dirt is not known"
    if (share := found.get("humans", {}).get("kept_share")) is not None:
        line += f"; {share:.2%} of what humans did kept as theirs"
    return Outcome(line, rows, found)


def _rollup(context: Context) -> Outcome:
    from pipeline.features import rollup_table, rollup_update

    store, uri = context.store, str(context.run.path / "rollups")
    for client in sorted(rollup_table.clients(uri).difference(store.clients())):
        rollup_table.drop(uri, client)
        say(f"          {client}: no longer in the store, its rows are removed")
    batches, rows = store.manifests(), 0
    touched: dict[str, Any] = {}
    with Progress("rollup", store.rows()) as progress:
        for client in store.clients():
            done = rollup_update.update(store, client, context.config, uri, batches)
            progress.advance(store.rows(client), client)
            say(f"          {done.line()}")
            rows += done.rows
            touched[client] = {"rows": done.rows, "made_anew": done.reason, "touched": done.touched}
    return Outcome(f"{rows:,} rows of counts and rates", store.rows(), {"clients": touched})


def _tune(context: Context) -> Outcome:
    from pipeline.tuning import tune

    return Outcome(*tune(context))


def _train(context: Context) -> Outcome:
    from pipeline.training import train

    return Outcome(*train(context))


def _decide(context: Context) -> Outcome:
    from pipeline.decisions.client import decide_client

    clients: dict[str, Any] = {}
    for client in context.store.clients():
        with Progress(f"decide {client}", unit="subscribers") as progress:
            clients[client] = decide_client(
                context.store,
                client,
                context.config,
                context.backend,
                context.as_of(client),
                context.run.path,
                progress,
            )
        actions = clients[client]["actions"]
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(actions.items()))
        say(f"          {client}: {counts or 'nobody to decide on'}")
    rows = sum(sum(c["actions"].values()) for c in clients.values())
    return Outcome(f"{rows:,} subscribers of {_clients(len(clients))}", rows, {"clients": clients})


def _report(context: Context) -> Outcome:
    from pipeline.decisions.report import write_report

    path = write_report(context.run.path)
    return Outcome(f"{path}, {path.stat().st_size / 1e6:.1f} MB", 0)


def _clients(number: int) -> str:
    return f"{number:,} client" + ("" if number == 1 else "s")


# -- what is there ------------------------------------------------------------------------------------------------


def _has_table(context: Context, name: str) -> bool:
    return (context.run.path / name / "_delta_log").is_dir()


def _has_models(context: Context) -> bool:
    from pipeline.learning import registry

    # Of the clients that are served: what could not be learnt from is no reason to train the others again.
    served = [client for client, version in context.run.result("train").get("serving", {}).items() if version]
    return registry.intact(context.run.path / "models", served)


BY_NAME = {
    "simulate": Stage(_simulate),
    "ingest": Stage(_ingest),
    "audit": Stage(_audit, audit_key),
    "rollup": Stage(_rollup, rollup_key, lambda context: _has_table(context, "rollups")),
    "tune": Stage(_tune),
    "train": Stage(_train, train_key, _has_models),
    "decide": Stage(_decide, decide_key, lambda context: _has_table(context, "decisions")),
    "report": Stage(_report),
}
