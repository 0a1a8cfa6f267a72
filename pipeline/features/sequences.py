"""The last L events, or exposures, before each decision point, as padded integer and float arrays on the device.

Most recent last: column L-1 is the latest event before the point, columns before the subscriber's first are padding,
zero in every tensor. Only people's events of the specification's kinds are there; or, where a log has exposures, those
alone, each with the number of which kinds had answered it by then: so L messages instead of the events of a third.
Campaigns, their families and providers are numbered by small vocabularies that are part of the specification, so a
number means the same in every partition, and in every later run.

A campaign is often sent on one day only, and its number then says nothing of the next one; what recurs is its family,
the name without its numbers ("spring-sale" of "spring-sale-260412"). That of the campaign which is being decided about
stands beside the history, ``at_family``; it is 0 where no campaign is known, as in a tenth of the training rows (those
whose campaign has no context either), because scoring has sends whose campaign nobody has decided on yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.backend import Array, Backend, Frame, backend_of
from pipeline.errors import ConfigError
from pipeline.features.calendar import local_time
from pipeline.features.exposures import MOST, combined, first_answers
from pipeline.features.kernels import prefix_count
from pipeline.options import UNITS

ENDINGS = ("complaint", "unsubscribe", "hard_bounce")  # the rarest answers
PADDING, OTHER = 0, 1  # of ids; those of the vocabulary follow
MASKED = 0.1  # share of training rows whose own campaign's family is taken as unknown
PROVIDERS = 250  # the most frequent ones have a number of their own
POINTS = 1 << 13  # at a time on the CPU, so that a block stays in its cache
BYTES = {"uint8": 1, "float32": 4, "int64": 8}


@dataclass(frozen=True)
class Tensor:
    """One array of every decision point: [n, L], or [n, 1] where it is of the decision itself (``once``).

    ``ids``: how many numbers there are, for what is the number of a name; else 0.
    """

    name: str
    definition: str
    dtype: str
    unit: str
    ids: int = 0
    once: bool = False


@dataclass(frozen=True)
class SequenceSpec:
    """``length``: L; ``tensors``: what there is of each event.

    ``campaigns``, ``families``, ``providers``: vocabularies, id 2 first. ``exposure``: the kind that alone is there,
    and ``answers``, the kinds that answer it, lowest bit first; None where events of every kind are.
    """

    length: int
    campaigns: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    families: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    exposure: str | None = None
    answers: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        length: int,
        kinds: Iterable[str],
        campaigns: Iterable[str],
        families: Iterable[str] = (),
        providers: Iterable[str] = (),
        exposure: str | None = None,
        answers: Iterable[str] = (),
    ) -> SequenceSpec:
        """Args: kinds: of the specification; the others: as above, empty where the log has none of them."""
        kinds, campaigns, families, providers = list(kinds), tuple(campaigns), tuple(families), tuple(providers)
        answers = tuple(answers)
        codes = ", ".join(f"{i} {kind}" for i, kind in enumerate(kinds, 1))
        dtype = "uint8" if len(kinds) < 256 else "int64"
        event = Tensor("kind", f"the event's kind: 0 padding, {codes}", dtype, "code", len(kinds) + 1)
        if exposure is not None:
            codes = " + ".join(f"{1 << k} {kind}" for k, kind in enumerate(answers))
            definition = f"how the {exposure} was answered before at: {codes}"
            event = Tensor("answers", definition, "uint8", "code", 1 << len(answers))
        tensors = [
            Tensor("mask", "1 where there is an event, 0 where the subscriber had no more", "uint8", "1"),
            event,
            Tensor("days", "from the event to at", "float32", "days"),
            Tensor("hour", "of the event, in the client's time zone", "uint8", "hour of the day"),
        ]
        for name, what, vocabulary in (
            ("campaign", "campaign", campaigns),
            ("family", "campaign's name without its numbers", families),
            ("provider", "provider", providers),
        ):
            if vocabulary:
                definition = (
                    f"the event's {what}: {PADDING} padding or none, {OTHER} another, then those of the vocabulary"
                )
                size = len(vocabulary) + OTHER + 1
                dtype = "uint8" if size <= 256 and name != "campaign" else "int64"
                tensors.append(Tensor(name, definition, dtype, "id", size))
        if families:
            definition = f"the same of the campaign that is decided about: {PADDING} where it is not known"
            size = len(families) + OTHER + 1
            tensors.append(Tensor("at_family", definition, "uint8" if size <= 256 else "int64", "id", size, once=True))
        return cls(length, campaigns, tuple(tensors), families, providers, exposure, answers)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SequenceSpec:
        tensors = tuple(Tensor(**t) for t in values["tensors"])
        names = {name: tuple(values.get(name, ())) for name in ("campaigns", "families", "providers", "answers")}
        return cls(length=values["length"], tensors=tensors, exposure=values.get("exposure"), **names)

    @property
    def row_bytes(self) -> int:
        """Of one decision point."""
        return sum(BYTES[t.dtype] * self.width(t) for t in self.tensors)

    def width(self, tensor: Tensor) -> int:
        """L, or 1."""
        return 1 if tensor.once else self.length

    def empty(self, backend: Backend, points: int) -> dict[str, Array]:
        """Arrays to be filled, each [points, L] or [points, 1], contiguous and aligned as TensorFlow wants them."""
        return {t.name: backend.empty_aligned((points, self.width(t)), t.dtype) for t in self.tensors}


def exposures(spec: Any, of: str) -> tuple[str | None, tuple[str, ...]]:
    """The kind that sequences are of, and those that answer it; (None, ()) where they are of every kind.

    Args:
        spec: a FeatureSpec. of: "events", "exposures", or "auto": exposures where the log has them and their answers.
    Raises:
        ConfigError: exposures are asked for, and the log has none.
    """
    rare = (*spec.bounces, *ENDINGS)
    kinds = [*spec.responses, *(k for k in spec.acts if k not in rare), *spec.bounces, *ENDINGS]
    there = [k for k in dict.fromkeys(kinds) if k in spec.kinds and k not in (spec.exposure, "subscribe")]
    if of == "events" or (of == "auto" and (spec.exposure is None or not there)):
        return None, ()
    if spec.exposure is None or not there:
        raise ConfigError("sequences.of is exposures, but the log has none, or nothing that answers one; leave it out")
    return spec.exposure, tuple(there[:MOST])


def family(campaign: str) -> str:
    """What a campaign has in common with others of its kind: its name without numbers, in lower case."""
    return re.sub(r"[\W\d_]+", " ", campaign).strip().lower()


def ids(backend: Backend, column: Any, vocabulary: Iterable[str], of: Callable[[str], str] = str) -> Array:
    """Each row's id, int64[n]: see :class:`SequenceSpec`. ``of``: what of a name is in the vocabulary."""
    xp = backend.xp
    code = backend.codes(column, list(vocabulary), of).astype(xp.int64)
    named = backend.column(column.notna())
    return xp.where(code >= 0, code + (OTHER + 1), xp.where(named, OTHER, PADDING))


def decided(part: Any, spec: SequenceSpec, row: Array | None, campaign: str | None, hidden: Array) -> Array | None:
    """The family of the campaign that each point decides about, int64[q]; None where the log has no families.

    Args:
        row: int64[q], the points' own rows; None where they are no events, and then ``campaign`` is that of all.
        hidden: bool[q], the points whose campaign is taken as unknown.
    """
    xp = part.xp
    if not spec.families:
        return None
    if row is not None:
        return xp.where(hidden, PADDING, part.family_id[row])
    known = PADDING
    if campaign is not None:
        name = family(campaign)
        known = spec.families.index(name) + OTHER + 1 if name in spec.families else OTHER
    return xp.full(len(hidden), known, dtype=xp.int64)


def write_sequences(
    part: Any, spec: Any, seg: Array, at: Array, timezone: str, out: dict[str, Array], families: Array | None = None
) -> None:
    """Every tensor of each point, into ``out``; no row at or after ``at`` is looked at.

    Args:
        part: a Partition. spec: a FeatureSpec with ``sequences``. seg, at: int64[q].
        out: as :meth:`SequenceSpec.empty` makes it, for q points.
        families: int64[q], see :func:`decided`; none where the specification has none.
    """
    xp, length = part.xp, spec.sequences.length
    if "at_family" in out:
        out["at_family"][:, 0] = families
    exposure = spec.sequences.exposure
    chosen = (part.human >= 0) & (part.human < len(spec.kinds))
    if exposure is not None:
        chosen = part.human == part.code(exposure)
    rows = xp.flatnonzero(chosen)
    if len(rows) == 0 or len(seg) == 0:
        for tensor in spec.sequences.tensors:
            if not tensor.once:
                out[tensor.name][...] = 0
        return
    ts = part.ts[rows]
    columns = {"hour": local_time(xp, ts, timezone) // UNITS["h"] % 24}
    if exposure is None:
        columns["kind"] = part.human[rows] + 1
    answered = first_answers(part, rows, spec.sequences.answers)
    for name in ("campaign", "family", "provider"):
        if name in out:
            columns[name] = getattr(part, f"{name}_id")[rows]
    before = prefix_count(xp, chosen)
    stop, first = before[part.positions(seg, at)], before[part.starts[seg]]
    steps = xp.arange(length, dtype=xp.int64) - length
    size = len(seg) if part.backend.on_gpu else POINTS
    for start in range(0, len(seg), size):
        some = slice(start, start + size)
        index = stop[some][:, None] + steps
        there = index >= first[some][:, None]
        index = xp.maximum(index, 0)
        out["mask"][some] = there
        out["days"][some] = xp.where(there, (at[some][:, None] - ts[index]) / UNITS["d"], np.float32(0))
        for name, column in columns.items():
            out[name][some] = xp.where(there, column[index], 0)
        if exposure is not None:
            out["answers"][some] = xp.where(there, combined(xp, answered, index, at[some][:, None]), 0)


def named_events(events: Frame, column: str, until: int, timezone: str) -> dict[str, int]:
    """How many of a partition's events each campaign, or provider, has, in the local hours before that of ``until``.

    Args:
        column: "campaign" or "provider". until: microseconds UTC.
    """
    backend = backend_of(events)
    xp = backend.xp
    series = events[column] if events[column].dtype.name == "category" else events[column].astype("category")
    categories = series.cat.categories
    names = categories.to_arrow().to_pylist() if backend.on_gpu else [str(c) for c in categories]
    hour = local_time(xp, backend.column(events["ts"]), timezone) // UNITS["h"]
    last = int(local_time(np, np.array([until]), timezone)[0]) // UNITS["h"]
    code = backend.codes(series, names)
    number = backend.to_host(xp.bincount(code[(code >= 0) & (hour < last)], minlength=len(names))).tolist()
    return {name: count for name, count in zip(names, number, strict=True) if count}


def rolled_events(rollup: pd.DataFrame, column: str, until: int, timezone: str) -> dict[str, int]:
    """The same from an hourly roll-up, whose campaign, or provider, is empty where there is none."""
    last = int(local_time(np, np.array([until]), timezone)[0]) // UNITS["h"]
    hour = rollup["bucket"].to_numpy().astype("datetime64[us]").astype(np.int64) // UNITS["h"]
    mine = rollup[(hour < last) & (rollup[column] != "")]
    number = mine[[c for c in rollup.columns if c.startswith("n_")]].sum(axis=1).groupby(mine[column]).sum()
    return {str(name): int(count) for name, count in number.items() if count}


def by_family(campaigns: dict[str, int]) -> dict[str, int]:
    """The events of each family of campaigns; none where no two campaigns are alike."""
    found: dict[str, int] = {}
    for name, count in campaigns.items():
        if family(name):
            found[family(name)] = found.get(family(name), 0) + count
    return found if len(found) < len(campaigns) else {}


def frequent(counts: dict[str, int], size: int) -> tuple[str, ...]:
    """The ``size`` names with the most events, sorted; of equals the first by name."""
    chosen = sorted(counts, key=lambda name: (-counts[name], name))[:size]
    return tuple(sorted(chosen))
