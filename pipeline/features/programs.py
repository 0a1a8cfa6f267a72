"""Which opens a mail program made, though nothing about the open itself says so.

Some mail programs open every message that they fetch. Those that do so within seconds of the send, or under a name of
their own, are flagged at ingest; the others come when the device next fetches its mail, which no clock tells from a
human's. But a program opens each message once: whose messages it opens is known by the flagged opens, and which open of
a message is its own by there being no flagged one yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.backend import Array
from pipeline.features.exposures import NEVER, NONE, answering_rows
from pipeline.features.kernels import prefix_count

OPEN = "open"
_FLAGGED = "flagged open"  # a kind of its own here, so that both are attributed at once
LAST = 20  # exposures that are looked back at, since people change their programs
LEAST = 3  # of them opened by a machine: fewer may be one bad day


@dataclass(frozen=True)
class MailPrograms:
    """Who has one: of whose last exposures, events of the kind ``exposure``, at least ``share`` was opened by a
    machine."""

    exposure: str
    share: float

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.exposure, OPEN)


def program_opens(part: Any, rule: MailPrograms) -> Array:
    """The rows of opens that are not flagged and yet a mail program's, int64[m], each once, in no order.

    Such an open is the first of its message that is not flagged, no flagged one of the message came before it, and of
    the subscriber's LAST exposures before that message at least LEAST, and ``rule.share`` of them, had a flagged open
    by then. So it hangs on nothing later than the open, and what is asked of each is bounded. A message is the exposure
    that an open is attributed to, see :func:`exposures.answering_rows`; an open of none is left as it is.

    Args:
        part: a Partition with ``flagged``, from whose ``human`` the flagged rows and no others are taken out.
    """
    xp = part.xp
    nobody = xp.zeros(0, dtype=xp.int64)
    if rule.exposure == OPEN or not set(rule.kinds) <= set(part.vocabulary):
        return nobody
    flagged = xp.flatnonzero(part.flagged & (part.kind == part.code(OPEN)))
    often = xp.bincount(part.seg[flagged], minlength=part.segments) >= LEAST
    rows = xp.flatnonzero(often[part.seg])  # of a few in a hundred subscribers, mostly
    if not len(rows):
        return nobody
    few = replace(part, frame=None).take(rows, (xp.cumsum(often) - 1)[part.seg[rows]])
    exposed = few.kind == few.code(rule.exposure)
    sent, before = xp.flatnonzero(exposed), prefix_count(xp, exposed)
    few.human = xp.where(few.flagged & (few.kind == few.code(OPEN)), len(few.vocabulary), few.human)
    few.vocabulary = [*few.vocabulary, _FLAGGED]
    first, fetched = answering_rows(few, sent, (OPEN, _FLAGGED))
    fetched_at = xp.where(fetched == NONE, NEVER, few.ts[xp.maximum(fetched, 0)])

    asked = xp.flatnonzero(first != NONE)
    asked = asked[fetched_at[asked] > few.ts[first[asked]]]
    at = few.ts[first[asked]]
    earlier = asked[:, None] - (xp.arange(LAST, dtype=xp.int64) + 1)
    there = earlier >= before[few.starts[few.seg[sent[asked]]]][:, None]
    opened = (there & (fetched_at[xp.maximum(earlier, 0)] <= at[:, None])).sum(axis=1)
    found = (opened >= LEAST) & (opened >= rule.share * there.sum(axis=1))
    return rows[first[asked[found]]]
