"""Rows for a model: X, y, masks, weights and splits of one partition, and of a whole store as Dask tasks.

A partition holds whole subscribers, so a table is a function of its partition alone: no shuffle, and memory bounded
by one partition. Within it: decision points, labels, censoring, splits, downsampling, and only then the features of
what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.backend import Array, Backend, Frame, backend_of
from pipeline.errors import DataError
from pipeline.events.reading import PartPlan, read_part
from pipeline.features import families, own, samples, windows
from pipeline.features.context import MASK, Context
from pipeline.features.kernels import hashed_share
from pipeline.features.knowledge import corrections
from pipeline.features.partition import Partition, partition_arrays
from pipeline.features.preparation import context_of
from pipeline.features.samples import SampleRequest
from pipeline.features.sequences import MASKED, decided, family, write_sequences
from pipeline.features.spec import CAMPAIGNS, FAMILIES, FeatureSpec


@dataclass
class FeatureTable:
    """One row per decision point, ascending by (subscriber_key, at).

    ``X``: float32[n, F], C-contiguous, 64-byte aligned, never NaN, columns as in ``spec``.
    ``y``, ``mask``: float32[n, H]; mask 1 where the outcome is known. ``weight``: float32[n].
    ``split``: int8[n], 0 train, 1 validation, 2 hold-out, -1 none. ``keys``: frame of subscriber_key, at
    (datetime64[us], naive UTC) and the columns the request keeps.
    ``counts``: rows, dropped_censored (no outcome known yet), dropped_downsampled; with ``as_known_at: decision``
    knew_less (rows with events in their past that had not arrived yet).
    ``sequences``: the last events before each row, by the name of a tensor of ``spec.sequences``: [n, L] each,
    C-contiguous, 64-byte aligned; none where the specification has none.
    """

    spec: FeatureSpec
    X: Array
    y: Array
    mask: Array
    weight: Array
    split: Array
    keys: Frame
    counts: dict[str, int]
    sequences: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.X)

    def points(self, rows: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of some rows, int64[m], or of all: subscriber key and time of decision (us, UTC), int64[m], on the host."""
        backend = backend_of(self.X)
        columns = [backend.column(c) for c in (self.keys["subscriber_key"], self.keys["at"].astype("datetime64[us]"))]
        key, at = (np.asarray(backend.to_host(c if rows is None else c[rows])) for c in columns)
        return key, at

    def take(self, rows: Array) -> FeatureTable:
        """Only some rows, int64[m], in their order; ``counts`` stay those of the whole."""
        X, sequences = _empty(backend_of(self.X), self.spec, len(rows))
        X[...] = self.X[rows]
        for name, array in self.sequences.items():
            sequences[name][...] = array[rows]
        taken = {name: getattr(self, name)[rows] for name in ("y", "mask", "weight", "split")}
        keys = self.keys.take(rows).reset_index(drop=True)
        return replace(self, X=X, keys=keys, sequences=sequences, **taken)


def feature_table(
    events: Frame,
    spec: FeatureSpec,
    request: SampleRequest,
    backend: Backend | None = None,
    context: Context | None = None,
) -> FeatureTable:
    """The table of one partition.

    Args:
        events: a canonical event frame of whole subscribers (index subscriber_key, total order).
        backend: of the frame, found from it where absent.
        context: of the client, where the specification has features of it; see ``preparation.context_of``.
    Raises:
        DataError: unsorted rows, nulls, or a column that the request needs is not there; or no context.
    """
    if spec.context is not None and context is None:
        raise DataError("the specification has features of the client as a whole; make its context with context_of")
    backend = backend or backend_of(events)
    xp = backend.xp
    events = _visible(events, request, backend)
    ops = {f.op for f in spec.features}
    answered = spec.sequences is not None and bool(spec.sequences.answers)
    programs = request.mail_programs
    told = () if programs is None else programs.kinds
    vocabulary = list(dict.fromkeys([*spec.kinds, *request.kinds, *told]))
    part = partition_arrays(
        events,
        vocabulary,
        backend,
        campaign=any(h.match for h in request.heads) or bool(ops & CAMPAIGNS) or answered,
        value=any(h.sum for h in request.heads) or "value" in ops,
        ingested=request.per_decision,
        providers=None if context is None else context.names["provider"],
        sequences=spec.sequences,
        families=[family(request.campaign or "")] if ops & FAMILIES else None,
        programs=programs,
    )
    if "own" in ops:
        part.frame = events
    points = samples.decision_points(part, request)
    censored = downsampled = 0
    heads = len(request.heads)
    y = xp.zeros((len(points), heads), dtype=xp.float32)
    mask = xp.zeros((len(points), heads), dtype=xp.float32)
    weight = xp.ones(len(points), dtype=xp.float32)
    key = part.key[part.starts[points.seg] if points.row is None else points.row]
    split = samples.splits(xp, key, points.at, request)
    if request.purpose == "train" and heads:
        y, mask = samples.labels(part, request, points)
        known = mask.any(axis=1)
        kept, weight = samples.downsample(xp, key, points.at, y, mask, split, request.downsample)
        censored, downsampled = int((~known).sum()), int((known & ~kept).sum())
        if censored or downsampled:
            rows = xp.flatnonzero(known & kept)
            points = points.take(rows)
            key, y, mask, weight, split = key[rows], y[rows], mask[rows], weight[rows], split[rows]
    X, sequences = _empty(backend, spec, len(points))
    about = _Decided.of(part, spec, request, context, events, points, key, split)
    _write(part, spec, request, context, points.seg, points.at, about, X, sequences)
    late = 0
    if request.per_decision:
        for which, past, seg in corrections(part, points.seg, points.at):
            known_X, known_sequences = _empty(backend, spec, len(which))
            _write(past, spec, request, context, seg, points.at[which], about.take(which), known_X, known_sequences)
            X[which] = known_X
            for name, array in known_sequences.items():
                sequences[name][which] = array
            late += len(which)
    counts = {"rows": len(points), "dropped_censored": censored, "dropped_downsampled": downsampled}
    if request.per_decision:
        counts["knew_less"] = late
    keys = _keys(events, part, key, points, request)
    return FeatureTable(spec, X, y, mask, weight, split, keys, counts, sequences)


def _empty(backend: Backend, spec: FeatureSpec, rows: int) -> tuple[Array, dict[str, Array]]:
    sequences = {} if spec.sequences is None else spec.sequences.empty(backend, rows)
    return backend.empty_aligned((rows, len(spec)), backend.xp.float32), sequences


def row_bytes(spec: FeatureSpec, heads: int, features: int | None = None) -> int:
    """What one decision point takes in memory: X, sequences, y, mask, weight, and its key columns.

    Args:
        features: how many, where that is not yet those of ``spec``.
    """
    sequences = 0 if spec.sequences is None else spec.sequences.row_bytes
    return ((len(spec) if features is None else features) + 2 * heads + 8) * 4 + sequences


def _write(
    part: Partition,
    spec: FeatureSpec,
    request: SampleRequest,
    context: Context | None,
    seg: Array,
    at: Array,
    about: _Decided,
    out: Array,
    sequences: dict[str, Array],
) -> None:
    """Every feature of some points: of their own events, of the client as a whole, and their last events."""
    windows.write_features(part, spec, seg, at, request.timezone, out, about.family)
    if context is not None and about.campaign is not None:
        context.write(part, spec, seg, at, about.campaign, request.timezone, out)
    if spec.sequences is not None:
        write_sequences(part, spec, seg, at, request.timezone, sequences, about.family_id)


@dataclass(frozen=True)
class _Decided:
    """The campaign that each point decides about, int64[q] each, masked in the same rows; None where nothing asks.

    ``campaign``: see :meth:`Context.campaigns`; ``family``: see :func:`families.decided`; ``family_id``: see
    :func:`sequences.decided`.
    """

    campaign: Array | None = None
    family: Array | None = None
    family_id: Array | None = None

    @classmethod
    def of(
        cls,
        part: Partition,
        spec: FeatureSpec,
        request: SampleRequest,
        context: Context | None,
        events: Frame,
        points: samples.Points,
        key: Array,
        split: Array,
    ) -> _Decided:
        campaign = mine = family_id = None
        if context is not None:
            campaign = context.campaigns(part, events, points, request, key, split)
        ops = {f.op for f in spec.features}
        matched = "match" in ops or ("presence" in ops and part.family is not None)
        if matched or spec.sequences is not None:
            hidden = (split == samples.TRAIN) & hashed_share(part.xp, MASKED, MASK, key, points.at)
            if matched:
                mine = families.decided(part, points.row, request.campaign, hidden)
            if spec.sequences is not None:
                family_id = decided(part, spec.sequences, points.row, request.campaign, hidden)
        return cls(campaign, mine, family_id)

    def take(self, rows: Array) -> _Decided:
        return _Decided(*(None if of is None else of[rows] for of in (self.campaign, self.family, self.family_id)))


def read_columns(store: Any, client: str, spec: FeatureSpec, request: SampleRequest) -> list[str]:
    """The columns of the store that a table of these features and labels reads, beside the key.

    Flags of machines, and what mail programs are told by, only where a row has one, unless a feature of the user's own
    asks for them.

    Raises:
        ConfigError, ModelError: see :func:`own.columns`.
    """
    flagged = store.has_machines(client)
    asked = [c for c in request.columns() if flagged or c != "machine"]
    told = ["campaign"] if flagged and request.mail_programs is not None else []
    wanted = [*asked, *told, *spec.columns, *own.columns(spec, store.columns)]
    return [c for c in dict.fromkeys(wanted) if c in store.columns]


def feature_tables(
    store: Any,
    client: str,
    spec: FeatureSpec,
    request: SampleRequest,
    partitions: int | None = None,
    context: Context | None = None,
) -> list[Any]:
    """One delayed :class:`FeatureTable` per key range of the store; compute them on any Dask scheduler.

    Args:
        store: an EventStore. partitions: how many key ranges; the store's own choice where absent.
        context: of the client; counted now where the specification needs it and it is absent.
    """
    import dask

    if spec.context is not None and context is None:
        context = context_of(store, client, spec.context, request, partitions=partitions)
    columns = read_columns(store, client, spec, request)
    plan = store.plan(client, until=request.as_of, columns=columns, partitions=partitions)
    # A task carries its part of the plan, not the store, whose open table cannot be sent; bound to the function, since
    # Dask would walk through every argument.
    tasks = [partial(_table_of_part, part, store.backend, spec, request, context) for part in plan.parts]
    return [dask.delayed(task, pure=False, traverse=False)() for task in tasks]


def _table_of_part(
    part: PartPlan, backend: Backend, spec: FeatureSpec, request: SampleRequest, context: Context | None
) -> FeatureTable:
    return feature_table(read_part(part, backend), spec, request, context=context)


def concat(tables: Sequence[FeatureTable]) -> FeatureTable:
    """One table of several, in their order; X and sequences are aligned again.

    Raises:
        DataError: no tables, or tables of different specifications.
    """
    if not tables:
        raise DataError("there are no feature tables to put together: the client has no events before as_of")
    if any(t.spec != tables[0].spec for t in tables):
        raise DataError("feature tables of different specifications cannot be put together")
    backend = backend_of(tables[0].X)
    xp = backend.xp
    X, sequences = _empty(backend, tables[0].spec, sum(len(t) for t in tables))
    start = 0
    for table in tables:
        some = slice(start, start + len(table))
        X[some] = table.X
        for name, array in table.sequences.items():
            sequences[name][some] = array
        start += len(table)
    joined = {name: xp.concatenate([getattr(t, name) for t in tables]) for name in ("y", "mask", "weight", "split")}
    counts = {name: sum(t.counts[name] for t in tables) for name in tables[0].counts}
    keys = _concat_frames([t.keys for t in tables], backend)
    return replace(tables[0], X=X, keys=keys, counts=counts, sequences=sequences, **joined)


def _visible(events: Frame, request: SampleRequest, backend: Backend) -> Frame:
    """The rows that exist for this request: before as_of and, where asked, ingested by then."""
    missing = [c for c in ("ts", "event") if c not in events.columns]
    if events.index.name != "subscriber_key" or missing:
        raise DataError(
            f"expected an event frame with index subscriber_key and columns ts and event, found index "
            f"{events.index.name!r} and columns {list(events.columns)}"
        )
    if request.machines and "machine" in events.columns:
        events = events.drop(columns="machine")  # nothing is left out then
    ts = backend.column(events["ts"])
    hidden = None
    if len(ts) and int(ts.max()) >= request.as_of:
        hidden = ts >= request.as_of
    if request.known_by is not None:
        if "ingested_at" not in events.columns:
            raise DataError("as_known_at needs the column ingested_at, which this read leaves out")
        late = backend.column(events["ingested_at"]) > request.known_by
        hidden = late if hidden is None else hidden | late
    return events if hidden is None else events.iloc[backend.xp.flatnonzero(~hidden)]


def _keys(events: Frame, part: Partition, key: Array, points: samples.Points, request: SampleRequest) -> Frame:
    """The key columns as a frame with a plain index. Without exposures, only what holds for a whole subscriber."""
    keys = part.backend.frame({"subscriber_key": key, "at": points.at}, times=("at",))
    kept = [c for c in request.keys if c in events.columns and (points.row is not None or c == "subscriber")]
    if kept:
        rows = part.starts[points.seg] if points.row is None else points.row
        for name in kept:
            keys[name] = events[name].take(rows).reset_index(drop=True)
    if points.suppressed is not None and request.purpose == "score":
        keys["suppressed"] = points.suppressed
    return keys


def _concat_frames(frames: list[Frame], backend: Backend) -> Frame:
    """Rows of all frames; categories, which differ by partition, are brought to one vocabulary first."""
    frames = [f for f in frames if len(f)] or frames[:1]
    if not backend.on_gpu:
        for name in [c for c in frames[0].columns if frames[0][c].dtype.name == "category"]:
            known = sorted(set().union(*(set(f[name].cat.categories) for f in frames)))
            frames = [f.assign(**{name: f[name].cat.set_categories(known)}) for f in frames]
    return backend.df.concat(frames, ignore_index=True)
