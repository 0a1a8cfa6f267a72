"""The rules that look at a row among its subscriber's: which machines made, and which cannot be right.

They run on the sorted rows of one client and key range of a batch. A batch does not know history, so the two rules that
miss something before a row, a send or an open, look only at messages that no earlier batch has a row of: what is
missing there is missing indeed. (A send that arrives a day after its opens is found out that way; one that is two
batches late is not.) All others judge by what is there.

Public heuristics for machines: two of {under ``scanner_within`` after the send, a listed address, a listed agent};
three links of a message within ``scanner_within``; a click without an open; Apple's mail programs, by their agent.
Where a log has neither addresses nor agents, timing must do: an open so soon is a program's, a click or unsubscribe so
soon is when its message was not opened before it (an open that came as soon is no evidence that somebody looked).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.events import signals
from pipeline.events.quality import Rulebook
from pipeline.events.schema import CATEGORY, numpy_of
from pipeline.events.signals import (
    BURST,
    DISORDER,
    LINK,
    NEUTRAL,
    OPEN,
    OPENED,
    RATE,
    REPEAT,
    RESPONSE,
    SEND,
    SENT,
    SOON,
)
from pipeline.options import Quality

# What prepare.py saw of a row's address and agent, beside the flags of the rulebook.
LISTED_ADDRESS, LISTED_AGENT, PRIVACY_AGENT = 1 << 27, 1 << 28, 1 << 29
ROLES = {
    "send": SEND,
    "open": OPEN,
    "click": LINK,
    "unsubscribe": LINK,
    "subscribe": NEUTRAL,
    "soft_bounce": NEUTRAL,
    "hard_bounce": NEUTRAL,
}
NEEDED = {"open": SENT, "click": SENT | OPENED}  # of a message that the batch has all rows of


@dataclass
class Flagged:
    """``machine``: bool[n]; ``names``: Arrow dictionary array[n], the names of the rules that flag the row joined by
    commas, null where none does; ``hits``: rule -> positions of its rows, int64[h]."""

    machine: np.ndarray
    names: Any
    hits: dict[str, np.ndarray]


def flag_rows(
    key: np.ndarray,
    ts: np.ndarray,
    arrived: np.ndarray,
    event: Any,
    campaign: Any,
    marks: np.ndarray | None,
    seen: Collection[str] | None,
    listed: bool,
    quality: Quality,
    book: Rulebook,
) -> Flagged:
    """Apply every rule of this module.

    Args:
        key, ts, arrived: int64[n], sorted by (key, ts); event, campaign: Arrow dictionary arrays; marks: int32[n], the
        flags that the rows have already; seen: campaigns of earlier batches, None where that is not known;
        listed: the log has addresses or agents.
    """
    names = event.dictionary.to_pylist()
    kind, message = numpy_of(event.indices), numpy_of(campaign.indices, -1)
    role = np.array([ROLES.get(name, RESPONSE) for name in names] or [NEUTRAL], dtype=np.int8)
    limits = signals.Limits(
        quality.scanner_within,
        quality.scanner_links,
        quality.most_per_hour,
        quality.most_per_day,
        quality.most_per_message,
        quality.disorder,
    )
    found = signals.kernels().signals(key, ts, arrived, kind, message, role, limits)
    bits = np.zeros(len(key), dtype=np.int32) if marks is None else marks
    # From here on few rows matter: those that show something, and those that lack something.
    needed = np.array([NEEDED.get(name, 0) for name in names] or [0], dtype=np.uint8)[kind]
    lacking = (found & needed) != needed
    some = np.flatnonzero((found & (SOON | BURST | RATE | REPEAT | DISORDER) != 0) | lacking | (bits >= LISTED_ADDRESS))
    masks = _judge(
        {name: np.asarray(kind[some] == i) for i, name in enumerate(names)},
        found[some],
        bits[some],
        _fresh(campaign.dictionary, seen)[message[some]],
        message[some] >= 0,
        listed,
    )
    hits, gained = {}, np.zeros(len(some), dtype=np.int32)
    for rule, mask in masks.items():
        if book.chosen[rule] != "off" and mask.any():
            hits[rule] = some[mask]
            gained |= mask * np.int32(book.bit(rule))
    bits[some] |= gained
    rows = np.flatnonzero(bits)
    flags = bits[rows] & np.int32(LISTED_ADDRESS - 1)
    machine = np.zeros(len(key), dtype=bool)
    machine[rows] = (flags & np.int32(book.machine)) != 0
    return Flagged(machine, _names(rows, flags, len(key), book), hits)


def _fresh(campaigns: Any, seen: Collection[str] | None) -> np.ndarray:
    """Of which campaigns the batch holds all there is: bool[campaigns + 1], the last, for null, is False."""
    fresh = np.zeros(len(campaigns) + 1, dtype=bool)
    if seen is not None:
        fresh[:-1] = [name not in seen for name in campaigns.to_pylist()]
    return fresh


def _judge(
    kinds: dict[str, np.ndarray],
    found: np.ndarray,
    bits: np.ndarray,
    fresh: np.ndarray,
    named: np.ndarray,
    listed: bool,
) -> dict[str, np.ndarray]:
    """Rule -> bool of some rows. ``kinds``: kind -> which of them are of it; ``fresh``: their messages are new;
    ``named``: they have a campaign."""
    none = np.zeros(len(found), dtype=bool)
    opens, clicks, leaves = (kinds.get(name, none) for name in ("open", "click", "unsubscribe"))
    soon = (found & SOON) != 0
    evidence = soon.astype(np.int8) + ((bits & LISTED_ADDRESS) != 0) + ((bits & LISTED_AGENT) != 0)
    unopened = (found & OPENED) == 0
    program = evidence >= 2
    scanner = ((found & BURST) != 0) | program | (soon & unopened & (not listed))
    masks = {
        "out_of_order": (found & DISORDER) != 0,
        "scanner_click": scanner & clicks,
        "scanner_unsubscribe": scanner & leaves,
        "machine_open": (program | (soon & (not listed))) & opens,
        "privacy_open": ((bits & PRIVACY_AGENT) != 0) & opens,
        # A basket has many lines: only what is done to messages can be done too often to one.
        "repeated_response": ((found & REPEAT) != 0) & named & (opens | clicks),
        "impossible_rate": (found & RATE) != 0,
    }
    if "send" in kinds:
        masks["response_without_send"] = ((found & SENT) == 0) & fresh & (opens | clicks)
    if "open" in kinds:
        masks["click_without_open"] = unopened & fresh & clicks
    return masks


def _names(rows: np.ndarray, flags: np.ndarray, n: int, book: Rulebook) -> Any:
    """Arrow dictionary array[n] of the rules' names; ``rows``: int64[m], those with ``flags``, int32[m]."""
    if not flags.any():
        return pa.nulls(n, CATEGORY)
    distinct, inverse = np.unique(flags, return_inverse=True)
    texts = [",".join(n for i, n in enumerate(book.flags) if value >> i & 1) for value in distinct.tolist()]
    index = np.full(n, -1, dtype=np.int32)
    index[rows] = np.where(flags != 0, inverse, -1)
    return pa.DictionaryArray.from_arrays(pa.array(index, mask=index < 0), pa.array(texts, pa.string()), safe=False)
