"""What is found out of a client as a whole before any partition is computed: the specification, and its context.

Both are small. They come from the client's roll-up where there is one of this store, and else from the events, counted
by key range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.backend import Backend, Frame, backend_of
from pipeline.config import Config
from pipeline.events.reading import PartPlan, read_part
from pipeline.features import presence, rollup_table, sequences, similarity, trailing
from pipeline.features.context import Context, define, describe
from pipeline.features.partition import Partition, partition_arrays
from pipeline.features.samples import SampleRequest
from pipeline.features.sequences import SequenceSpec
from pipeline.features.similarity import Similarity
from pipeline.features.spec import FAMILIES, FeatureSpec
from pipeline.features.trailing import ContextSpec, Counts


def hourly(rollups: Path | None, client: str) -> pd.DataFrame | None:
    """A client's hourly rows by campaign and provider of the Delta table ``rollups``; None where it has none."""
    if rollups is None or client not in rollup_table.clients(str(rollups)):
        return None
    table = rollup_table.read(str(rollups), client)
    table = table[(table["level"] == "provider") & (table["every"] == "hour")]
    return table if len(table) else None


def specify(
    store: Any,
    client: str,
    config: Config,
    request: SampleRequest,
    rollup: pd.DataFrame | None = None,
    partitions: int | None = None,
) -> tuple[FeatureSpec, Context | None]:
    """Every feature that a configuration asks for and this log allows, and the client's context for it.

    Args, Raises: as :func:`context_of` and :meth:`FeatureSpec.from_config`.
    """
    spec = FeatureSpec.from_config(config, store.kinds(client))
    ops = {f.op for f in spec.features}
    some = _some(spec, store, client, request) if ops & FAMILIES else None
    alike = some is not None and some.family is not None
    if alike or config.sequences.length:
        named = _named(store, client, request, rollup, partitions)
        if config.sequences.length:
            spec = _with_sequences(spec, config, named)
        if some is not None and alike:
            spec = replace(spec, similarity=_similarity(spec, some, request, named["campaign"]))
    if some is not None and "presence" in ops:
        spec = replace(spec, presence=presence.learn(some, spec, request.bounds()["train_end"]))
    wanted = define(config, spec)
    if wanted is None:
        return spec, None
    counts = count(store, client, wanted, request, rollup, partitions)
    spec = describe(spec, wanted, counts)
    assert spec.context is not None
    return spec, Context.of(spec.context, counts, request.as_of, request.timezone)


def _with_sequences(spec: FeatureSpec, config: Config, counts: dict[str, dict[str, int]]) -> FeatureSpec:
    """Args: counts: see :func:`_named`."""
    settings = config.sequences
    families = sequences.frequent(sequences.by_family(counts["campaign"]), settings.families)
    campaigns = sequences.frequent(counts["campaign"], settings.campaigns)
    providers = sequences.frequent(counts["provider"], sequences.PROVIDERS)
    exposure, answers = sequences.exposures(spec, settings.of)
    made = SequenceSpec.of(settings.length, spec.kinds, campaigns, families, providers, exposure, answers)
    lacking = "campaigns in sequences: the log has none before the validation (source.columns.campaign)"
    absent = (lacking,) if settings.campaigns and not campaigns else ()
    return replace(spec, sequences=made, absent=(*spec.absent, *absent))


def _similarity(
    spec: FeatureSpec, part: Partition, request: SampleRequest, campaigns: dict[str, int]
) -> Similarity | None:
    """How alike the most frequent families are, from what training learns from; None where that is not to be told.

    Args:
        campaigns: events of each, see :func:`_named`.
    """
    families = sequences.frequent(sequences.by_family(campaigns), similarity.FAMILIES)
    if len(families) < 2:
        return None
    return similarity.learn(similarity.sums(part, spec, families, request.bounds()["train_end"]), families)


def _some(spec: FeatureSpec, store: Any, client: str, request: SampleRequest) -> Partition:
    """Whole subscribers, as many as is enough to learn from what everybody is like."""
    wanted = ("ts", "event", "campaign", *(() if request.machines else ("machine",)))
    asked = (client, None, request.as_of, [c for c in store.columns if c in wanted])
    ranges = max(-(-store.plan(*asked, 1, request.known_by).rows // similarity.EVENTS), 1)
    events = store.read_range(store.plan(*asked, ranges, request.known_by), 0)
    return partition_arrays(
        events,
        list(spec.kinds),
        backend_of(events),
        campaign=True,
        value=False,
        families=(),
        programs=request.mail_programs,
    )


def _named(
    store: Any, client: str, request: SampleRequest, rollup: pd.DataFrame | None, partitions: int | None
) -> dict[str, dict[str, int]]:
    """Events by campaign and by provider of what training learns from, so that a later one is another one there too."""
    until, zone = request.bounds()["train_end"], request.timezone
    there = [name for name in ("campaign", "provider") if name in store.columns]
    found: dict[str, Counter[str]] = {"campaign": Counter(), "provider": Counter()}
    if rollup is not None and request.as_known_at is None:
        return {name: sequences.rolled_events(rollup, name, until, zone) for name in found}

    def one(events: Frame) -> dict[str, dict[str, int]]:
        return {name: sequences.named_events(events, name, until, zone) for name in there}

    for part in _of_partitions(store, client, ["ts", *there], request, partitions, one) if there else ():
        for name, counts in part.items():
            found[name].update(counts)
    return {name: dict(counts) for name, counts in found.items()}


def context_of(
    store: Any,
    client: str,
    spec: ContextSpec,
    request: SampleRequest,
    rollup: pd.DataFrame | None = None,
    partitions: int | None = None,
) -> Context:
    """A client's context as the request may know it.

    Args:
        store: an ``EventStore``. rollup: the client's hourly roll-up, see :func:`hourly`; used instead of reading the
            events, unless it matters when they arrived (``as_known_at``), which it does not tell.
    """
    counts = count(store, client, spec, request, rollup, partitions)
    return Context.of(spec, counts, request.as_of, request.timezone)


def count(
    store: Any,
    client: str,
    spec: ContextSpec,
    request: SampleRequest,
    rollup: pd.DataFrame | None = None,
    partitions: int | None = None,
) -> Counts:
    """What :func:`context_of` is made of. Partitions are counted one by one by the Dask scheduler in force."""
    if rollup is not None and request.as_known_at is None:
        return trailing.count_rollup(rollup, spec, request.machines)
    wanted = {"ts", "event", "machine", "campaign", "provider", "ingested_at"}
    if request.machines or not store.has_machines(client):
        wanted.remove("machine")
    wanted -= set() if request.per_decision else {"ingested_at"}
    columns = [c for c in store.columns if c in wanted]
    one = partial(trailing.count_events, spec=spec, timezone=request.timezone, per_decision=request.per_decision)
    return trailing.together(_of_partitions(store, client, columns, request, partitions, one))


def _of_partitions(
    store: Any,
    client: str,
    columns: list[str],
    request: SampleRequest,
    partitions: int | None,
    work: Callable[[Frame], Any],
) -> tuple[Any, ...]:
    """What ``work`` makes of each partition that the request may know, by the Dask scheduler in force."""
    import dask

    parts = store.plan(client, None, request.as_of, columns, partitions, request.known_by).parts
    # A task carries its part of the plan and not the store, whose open table cannot be sent.
    work_on = [partial(_work_on, part, store.backend, work) for part in parts]
    found: tuple[Any, ...] = dask.compute(*(dask.delayed(task, pure=False, traverse=False)() for task in work_on))
    return found


def _work_on(part: PartPlan, backend: Backend, work: Callable[[Frame], Any]) -> Any:
    return work(read_part(part, backend))
