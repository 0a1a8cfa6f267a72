"""What each stage of a run does, in order: simulate, ingest, audit, rollup, train, decide, report; and tune.

A stage is a function of a :class:`Context` that returns an :class:`Outcome`. Results are kept in the run directory
under a key made of everything they depend on, so a finished stage is not redone and an interrupted run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__, extensions
from pipeline.backend import Backend, choose, claim_device
from pipeline.config import Config
from pipeline.demo import with_source
from pipeline.dependencies import audit_key, decide_key, rollup_key, train_key
from pipeline.errors import ConfigError, EventgrainError, did_you_mean
from pipeline.options import UNITS, format_duration
from pipeline.progress import Progress, say
from pipeline.rundir import STAGES, PeakMemory, RunDirectory

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


def run(config: Config, until: str = "report") -> int:
    """Run the stages up to ``until``, reusing what is finished.

    Returns:
        the exit status: 0, or under ``gate.strict`` that of a model that was refused.
    Raises:
        EventgrainError: with a message for the user; what was finished before stays.
    """
    from cluster import connect

    wanted = [s for s in STAGES[: STAGES.index(until) + 1] if s != "simulate" or config.source is None]
    wanted = [s for s in wanted if s != "tune" or until == "tune"] + (["report"] if until == "tune" else [])
    if until in ("tune", "train", "decide") and not config.context.windows:
        wanted = [s for s in wanted if s != "rollup"]
    wanted += ["audit"] if until == "ingest" else []
    config = with_source(config)
    if config.source is None or config.source.truth is None:
        wanted = [s for s in wanted if s != "audit"]
    extensions.load(config.extensions)
    directory = RunDirectory(config)
    backend = choose(config.backend)
    began = time.perf_counter()
    with directory.locked():
        say(f"eventgrain {__version__}, run {config.name!r} in {directory.path}")
        say(f"backend   {backend}")
        with connect(config, log_bytes=_log_bytes(config), on_gpu=backend.on_gpu) as cluster:
            say(f"cluster   {cluster}")
            if backend.on_gpu and cluster.kind != "gpu":  # dask-cuda's workers have claimed the devices
                claim_device()
            directory.begin(_environment(backend, cluster))
            context = Context(config, backend, cluster, directory)
            status = 0
            for name in wanted:
                _run_stage(context, name)
                if name == "train":
                    status = _say_refusals(context)
                if name == "ingest" and until != "ingest":
                    _check_against_log(context)
    say(f"done in {time.perf_counter() - began:.1f} s")
    left = [
        ("report", "report.html", "open it in a browser"),
        ("decide", "decisions", "Delta table: who is held, who is sent to, in which order"),
        ("tune", "tune", "per client its trials and the best of them"),
        ("train", "models", "a version per client, with its card"),
        ("rollup", "rollups", "Delta table: counts and rates per campaign, provider and time"),
        ("ingest", "metrics.json", "everything measured"),
    ]
    shown = [(directory.path / path, what) for stage, path, what in left if stage in wanted]
    width = max(len(str(path)) for path, _ in shown)
    for path, what in shown:
        say(f"  {path!s:<{width}}  {what}")
    return status


def _say_refusals(context: Context) -> int:
    """Warn of what the gate refused, new or of an earlier run; returns the exit status that it asks for."""
    from pipeline.training import REFUSED, refusals

    warnings, refused = refusals(context)
    for warning in warnings:
        say(f"warning   {warning}")
    return REFUSED if refused and context.config.gate.strict else 0


def _check_against_log(context: Context) -> None:
    """What the configuration says of the log, against what is in it.

    Raises:
        ConfigError: options or planned sends of a client that the log does not have, or an as_of past its end.
        SourceError: the plan or the suppression list cannot be read.
    """
    config, store = context.config, context.store
    clients = store.clients()
    for client in config.clients:
        if client not in clients:
            raise ConfigError(f"clients.{client}: the log has no client {client!r}; {did_you_mean(client, clients)}")
    if config.decide.plan or config.decide.suppressed:
        from pipeline.decisions import lists

        # Before an hour of training rather than after it.
        for client in lists.unknown_clients(config.decide.plan, "decide.plan", clients):
            raise ConfigError(
                f"decide.plan: {config.decide.plan!r} plans sends of {client!r}, a client that the log does not have; "
                f"{did_you_mean(client, clients)} Mend the name, or remove its rows"
            )
        for client in lists.unknown_clients(config.decide.suppressed, "decide.suppressed", clients):
            say(f"warning   decide.suppressed names {client!r}, not a client of this log: nobody is held by it")
        for client in clients:
            if config.decide.plan:
                lists.read_plan(config.decide.plan, client, context.as_of(client))
            if config.decide.suppressed:
                lists.suppression_list(config.decide.suppressed, client)
    last = max((store.bounds(client)[1] for client in clients), default=None)
    slack = max(config.lateness, UNITS["d"])  # a day of quiet is no gap
    if config.as_of is not None and last is not None and context.as_of("") > last + slack:
        raise ConfigError(
            f"as_of {config.as_of:%Y-%m-%d %H:%M} UTC is later than the log, which ends at {timestamp(last)[:16]} UTC: "
            f"what did not reach the log would count as not happened. Leave as_of out to decide at the end of its last "
            f"full day, or add the events up to within {format_duration(slack)} of as_of"
        )


def _environment(backend: Backend, cluster: Cluster) -> dict[str, Any]:
    """What this run computes with, for the user to read."""
    versions = {}
    for name in (
        "dask",
        "pandas",
        "pyarrow",
        "deltalake",
        "numba",
        "keras",
        "tensorflow",
        "tensorflow-cpu",
        "cudf-cu12",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "eventgrain": __version__,
        "backend": str(backend),
        "cluster": str(cluster),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _run_stage(context: Context, name: str) -> None:
    stage = _STAGES[name]
    key = stage.key(context) if stage.key else ""
    earlier = context.run.earlier(name, key) if key else None
    if earlier is not None and not stage.there(context):
        say(f"{name:<9} what it left is gone or damaged, and is made anew")
    elif earlier is not None:
        say(f"{name:<9} {earlier.get('line', '')}  [unchanged, reused]")
        return
    started = time.perf_counter()
    with PeakMemory() as peak:
        outcome = stage.work(context)
    seconds = time.perf_counter() - started
    timing = {
        "seconds": round(seconds, 3),
        "rows": outcome.rows,
        "rows_per_second": round(outcome.rows / max(seconds - outcome.compile_seconds, 1e-9)),
        "compile_seconds": round(outcome.compile_seconds, 3),
        "peak_rss_bytes": peak.bytes,
    }
    if not (outcome.idle and context.run.timing(name)):
        context.run.record(name, key, {**outcome.result, "line": outcome.line}, timing)
    compiling = f", {outcome.compile_seconds:.1f} s of them compiling, once" if outcome.compile_seconds > 1 else ""
    say(f"{name:<9} {outcome.line}  [{seconds:.1f} s{compiling}]")


def _log_bytes(config: Config) -> int | None:
    """Compressed bytes of the log, to choose a cluster by; None where neither source nor store says."""
    from pipeline.events.files import find_files
    from pipeline.events.store import EventStore

    sizes = []
    # The demo's source is yet to be simulated, a first run has no store; ingest makes all other complaints.
    with contextlib.suppress(EventgrainError):
        sizes.append(EventStore(config.store_uri).bytes())
    with contextlib.suppress(EventgrainError):
        assert config.source is not None
        sizes.append(sum(found.size for found in find_files(config.source.path)[1]))
    return max(sizes, default=None)


# -- the stages --------------------------------------------------------------------------------------------------


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


_STAGES = {
    "simulate": Stage(_simulate),
    "ingest": Stage(_ingest),
    "audit": Stage(_audit, audit_key),
    "rollup": Stage(_rollup, rollup_key, lambda context: _has_table(context, "rollups")),
    "tune": Stage(_tune),
    "train": Stage(_train, train_key, _has_models),
    "decide": Stage(_decide, decide_key, lambda context: _has_table(context, "decisions")),
    "report": Stage(_report),
}
