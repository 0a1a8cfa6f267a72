"""One invocation: the stages that are asked for, in order, in one place to compute; what is finished is not redone.

Results are kept in the run directory under a key made of everything they depend on, so that an interrupted run goes on
where it was.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipeline import __version__, extensions
from pipeline.backend import Backend, choose, claim_device
from pipeline.config import Config
from pipeline.demo import with_source
from pipeline.errors import ConfigError, EventgrainError, did_you_mean
from pipeline.options import UNITS, format_duration
from pipeline.progress import say
from pipeline.rundir import STAGES, PeakMemory, RunDirectory
from pipeline.stages import BY_NAME, Context, timestamp

if TYPE_CHECKING:
    from cluster import Cluster


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
    stage = BY_NAME[name]
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
