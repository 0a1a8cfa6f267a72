"""One partition's events as arrays, and the kernels on them.

Where the backend has a compiled twin of a kernel, the twin runs; the answers are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.backend import Array, Backend, Frame
from pipeline.errors import DataError
from pipeline.features import kernels
from pipeline.features.programs import MailPrograms, program_opens
from pipeline.features.sequences import SequenceSpec, family, ids

NEVER = -(1 << 62)


@dataclass
class Partition:
    """One partition's events as arrays: whole subscribers, rows in the store's total order.

    ``key``, ``ts``: int64[n]. ``kind``: int[n], position in ``vocabulary``, -1 for any other kind; ``human``: the
    same with machine events taken out (the same array where none are flagged), see :meth:`tell_humans`. ``flagged``:
    bool[n], machine events as the ingest knows them, None where there are none; ``programs``: how a mail program's
    opens are told beside them. ``starts``: int64[S+1]; ``seg``: int64[n]. ``campaign``: int32[n], -1 for null, codes of
    this partition alone. ``family``: int32[n], the same of the campaigns' families, positions in ``families``.
    ``value``: int64[n], micro-units.
    ``ingested``: int64[n], when each row arrived. ``provider``: int32[n], position in a vocabulary, its length for a
    provider that is not in it, -1 for null. ``campaign_id``, ``family_id``, ``provider_id``: int64[n], see
    ``sequences.ids``. ``frame``: the events themselves, for features of the user's own.
    """

    backend: Backend
    vocabulary: list[str]
    key: Array
    ts: Array
    kind: Array
    human: Array
    starts: Array
    seg: Array
    campaign: Array | None = None
    family: Array | None = None
    families: tuple[str, ...] = ()
    value: Array | None = None
    ingested: Array | None = None
    provider: Array | None = None
    campaign_id: Array | None = None
    family_id: Array | None = None
    provider_id: Array | None = None
    frame: Frame | None = None
    flagged: Array | None = None
    programs: MailPrograms | None = None

    @property
    def xp(self) -> Any:
        return self.backend.xp

    @property
    def rows(self) -> int:
        return len(self.ts)

    @property
    def segments(self) -> int:
        return len(self.starts) - 1

    def code(self, kind: str) -> int:
        return self.vocabulary.index(kind)

    def is_any(self, kind: Array, names: tuple[str, ...]) -> Array:
        """bool[n]: rows of one of these kinds; ``kind`` is ``self.kind`` or ``self.human``."""
        mask = self.xp.zeros(len(kind), dtype=bool)
        for name in names:
            if name in self.vocabulary:
                mask |= kind == self.vocabulary.index(name)
        return mask

    def tell_humans(self) -> None:
        """Take machine events out of ``human``: those flagged, and the opens of mail programs that these rows tell."""
        self.human = self.kind
        if self.flagged is not None:
            self.human = self.xp.where(self.flagged, -1, self.kind)
            if self.programs is not None:
                self.human[program_opens(self, self.programs)] = -1

    def take(self, rows: Array, seg: Array) -> Partition:
        """Rows anew, repeats allowed, as segments of their own.

        Args:
            rows: int64[m]; seg: int64[m], the new segment of each: 0, 0, 1, ...
        """
        taken: dict[str, Any] = {"starts": kernels.segment_starts(self.xp, seg), "seg": seg, "frame": None}
        if self.frame is not None:
            frame = self.frame.iloc[rows]
            frame.index = self.backend.df.Index(seg, name=frame.index.name)  # a subscriber may be here repeatedly
            taken["frame"] = frame
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if field.name not in taken and hasattr(column, "shape"):
                taken[field.name] = column[rows]
        if self.human is self.kind:
            taken["human"] = taken["kind"]
        return dataclasses.replace(self, **taken)

    # -- kernels, by the compiled twin where the backend has one ---------------------------------------------------

    def positions(self, seg: Array, at: Array) -> Array:
        """The first row of its segment at or after each point, in any order: int64[q]."""
        return self.backend.kernels.lower_bounds(self.xp, self.starts, self.ts, seg, at)

    def window_counts(self, kinds: int, seg: Array, at: Array, windows: list[int], out: Array) -> None:
        """See :func:`kernels.window_counts`; machine events are not counted."""
        self.backend.kernels.window_counts(self.xp, self.starts, self.ts, self.human, kinds, seg, at, windows, out)


def partition_arrays(
    frame: Frame,
    vocabulary: list[str],
    backend: Backend,
    campaign: bool,
    value: bool,
    ingested: bool = False,
    providers: list[str] | None = None,
    sequences: SequenceSpec | None = None,
    families: Iterable[str] | None = None,
    programs: MailPrograms | None = None,
) -> Partition:
    """The arrays of a canonical event frame; no copy of the key and the time.

    Args:
        frame: index ``subscriber_key``, columns ``ts``, ``event`` and, where asked for and there, campaign and value;
            ``ingested_at`` where asked for.
        providers: the vocabulary of ``provider``; sequences: has those of the ids; where those are asked for.
        families: where those of campaigns are asked for: what else is numbered with them, whether or not it is here.
        programs: where opens of mail programs are to be told; needs the column campaign, if the log has it.
    Raises:
        DataError: the rows are not sorted by (subscriber_key, ts), or a column holds nulls.
    """
    xp = backend.xp
    key = backend.column(frame.index.to_series() if backend.on_gpu else frame.index)
    ts = backend.column(frame["ts"])
    starts, seg, ordered = backend.kernels.segments(xp, key, ts)
    if not ordered:
        raise DataError(
            "events are not sorted by (subscriber_key, ts), as features need them: "
            "read them with EventStore.read, or sort them"
        )
    kind = backend.codes(frame["event"], vocabulary)
    part = Partition(backend, vocabulary, key, ts, kind, kind, starts, seg)
    if "machine" in frame.columns:
        machine = backend.column(frame["machine"])
        if bool(machine.any()):
            part.flagged, part.programs = machine, programs
            campaign = campaign or programs is not None
    if (campaign or families is not None) and "campaign" in frame.columns:
        column = frame["campaign"].astype("category")
        categories = column.cat.categories
        names = categories.to_arrow().to_pylist() if backend.on_gpu else list(categories)
        if campaign:
            part.campaign = backend.codes(column, names)
        if families is not None:
            part.families = tuple(sorted({*(family(name) for name in names), *families} - {""}))
            part.family = backend.codes(column, list(part.families), family)
    part.tell_humans()
    if value and "value" in frame.columns:
        part.value = backend.column(frame["value"])
    if providers and "provider" in frame.columns:
        code = backend.codes(frame["provider"], providers)
        named = frame["provider"].notna()
        part.provider = xp.where((code < 0) & backend.column(named), len(providers), code)
    if sequences is not None:
        _number(part, frame, sequences)
    if ingested:
        part.ingested = backend.column(frame["ingested_at"])
    return part


def _number(part: Partition, frame: Frame, spec: SequenceSpec) -> None:
    """The ids of each event's campaign, family and provider, by the vocabularies that there are."""
    for name, vocabulary in (("campaign", [*spec.campaigns, *spec.families]), ("provider", spec.providers)):
        if vocabulary and name not in frame.columns:
            raise DataError(f"sequences have {name}s, but the log has none; map source.columns.{name}")
    if spec.campaigns:
        part.campaign_id = ids(part.backend, frame["campaign"], spec.campaigns)
    if spec.families:
        part.family_id = ids(part.backend, frame["campaign"], spec.families, family)
    if spec.providers:
        part.provider_id = ids(part.backend, frame["provider"], spec.providers)
