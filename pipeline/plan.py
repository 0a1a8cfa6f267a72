"""The dry run: what a run would read, hold and take, from footers and the row-group index. Reads no data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.demo import with_source
from pipeline.errors import ConfigError, StoreError
from pipeline.rundir import RunDirectory

if TYPE_CHECKING:
    from pipeline.events.store import EventStore

# Rows a second and core, where no earlier run of this name has measured them (two cores of a small server).
USUAL_RATES = {"simulate": 300_000, "ingest": 500_000, "rollup": 500_000, "train": 30_000, "decide": 100_000}
ROW_BYTES = 150  # of a batch in memory while it is sorted: the columns, their order and the sorted copy


@dataclass(frozen=True)
class Plan:
    """``lines``: for the user, in order; ``seconds``: estimated time of the run."""

    lines: list[str]
    seconds: float


def make_plan(config: Config) -> Plan:
    """What `python -m pipeline.run` with this configuration would do.

    Raises:
        ConfigError: the mapping names columns that the source lacks. SourceError: a source file cannot be read.
    """
    backend = choose(config.backend)
    if (config.run_dir / "raw" / "_COMPLETE.json").exists():
        config = with_source(config)  # the demo log is there already
    lines = [f"backend     {backend}"]
    new_rows = _source(config, lines)
    stored = _store(config, backend, lines)
    rows = new_rows + stored
    rates = _rates(config)
    todo = {"simulate": 0 if config.source else config.simulate.events, "ingest": new_rows}
    todo |= {"rollup": rows, "train": rows, "decide": rows}
    seconds = {stage: count / rates[stage] for stage, count in todo.items() if count}
    lines.append("time        " + ", ".join(f"{stage} {_clock(s)}" for stage, s in seconds.items()))
    lines.append(f"            about {_clock(sum(seconds.values()))} in all if nothing is reused, {_source_of(config)}")
    return Plan(lines, sum(seconds.values()))


def _source(config: Config, lines: list[str]) -> int:
    """Describe the source; returns the rows that are not in the store yet."""
    from pipeline.events.commit import manifests, open_table
    from pipeline.events.files import Place
    from pipeline.events.ingest import known_sources
    from pipeline.events.schema import map_columns
    from pipeline.events.sources import discover, make_batches

    if config.source is None:
        events = config.simulate.events
        lines.append(f"source      none configured: a demo log of about {events:,} events is simulated")
        return events
    place = Place(config.store_uri)
    table = open_table(place.target)
    known = known_sources(manifests(place, table).values()) if table is not None else {}
    sources = discover(config.source.path, known, 4)
    bad = {found.name: error for found, error in [*sources.bad, *sources.changed]}
    misfits: dict[str, ConfigError] = {}
    for file in {u.file.name: u.file for u in sources.units}.values():
        try:
            map_columns(config.source, file.schema.names, repr(file.name), file.hive)
        except ConfigError as error:
            misfits[file.name] = error
    if misfits and (config.source.on_error == "fail" or len(misfits) == sources.files):
        raise next(iter(misfits.values()))
    if bad and config.source.on_error == "fail":
        raise next(iter(bad.values()))
    sources.drop(misfits)
    rows = sum(u.rows for u in sources.units)
    size = sum({u.file.name: u.file.size for u in sources.units}.values())
    batches = make_batches(sources.units, config.batch_rows)
    lines.append(
        f"source      {sources.files:,} new files, {rows:,} rows, {size / 1e6:,.1f} MB in {config.source.path}"
    )
    lines.append(f"            {len(sources.skipped):,} files already in the store")
    lines += [f"            set aside: {error}" for error in [*bad.values(), *misfits.values()]]
    if batches:
        largest = max(sum(u.rows for u in batch) for batch in batches)
        lines.append(
            f"ingest      {len(batches):,} batches, about {largest * ROW_BYTES / 1e9:.2f} GB of memory for the largest"
        )
    return rows


def _store(config: Config, backend: Backend, lines: list[str]) -> int:
    """Describe the store as it stands; returns its rows."""
    from pipeline.events.store import EventStore

    try:
        store = EventStore(config.store_uri, backend)
    except StoreError as error:
        if "there is no store" not in str(error):
            raise
        lines.append(f"store       none yet; it will be made in {config.store_uri}")
        return 0
    size = f"{store.rows():,} rows, {store.bytes() / 1e6:,.1f} MB"
    lines.append(f"store       {config.store_uri}, version {store.version()}, {size}")
    for client in store.clients():
        plan = store.plan(client, partitions=config.partitions)
        largest = max(plan.parts, key=lambda part: part.rows)
        parts = f"{plan.partitions:,} partitions of at most {largest.rows:,} rows"
        memory = f"{largest.rows * ROW_BYTES / 1e9:.2f} GB"
        lines.append(f"            {client}: {plan.rows:,} rows in {plan.files:,} files, {parts} ({memory})")
        lines += _table(config, store, client)
    return store.rows()


def _table(config: Config, store: EventStore, client: str) -> list[str]:
    """What a client's training rows would take in memory."""
    from pipeline.features import context, sequences
    from pipeline.features.spec import FeatureSpec
    from pipeline.features.table import row_bytes

    kinds = store.kinds(client)
    if config.at.event is not None and config.at.event not in kinds:
        return []
    points = kinds[config.at.event] if config.at.event else store.rows(client)
    spec = FeatureSpec.from_config(config, kinds)
    wide = len(spec)
    if (wanted := context.define(config, spec)) is not None:
        wide += wanted.width
    beside = ""
    if length := config.sequences.length:
        some = ("any",)  # the vocabularies are found when training
        campaigns, families = (some if n else () for n in (config.sequences.campaigns, config.sequences.families))
        exposed = sequences.exposures(spec, config.sequences.of)
        made = sequences.SequenceSpec.of(length, spec.kinds, campaigns, families, some, *exposed)
        spec = dataclasses.replace(spec, sequences=made)
        beside = f" and the last {length} events"
    size = points * row_bytes(spec, len(config.outcomes), wide) * config.model.downsample
    return [f"            {client}: up to {points:,} decisions of {wide} features{beside}, {size / 1e9:.2f} GB"]


def _rates(config: Config) -> dict[str, float]:
    """Rows of the log a second, by stage: as this run's last time took, or the usual."""
    run = RunDirectory(config)
    kept = run.result("ingest").get("events", {}).get("kept", 0)
    rates = {}
    for stage, usual in USUAL_RATES.items():
        timing = run.timing(stage)
        rows = timing.get("rows", 0) if stage in ("simulate", "ingest") else kept
        seconds = timing.get("seconds", 0) - timing.get("compile_seconds", 0)
        rates[stage] = rows / seconds if rows and seconds > 0 else usual
    return rates


def _source_of(config: Config) -> str:
    stages = RunDirectory(config).path / "stages"
    return f"at the rates of the last run in {stages.parent}" if stages.exists() else "at the usual rates of two cores"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0.1):.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
