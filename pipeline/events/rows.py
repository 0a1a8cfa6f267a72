"""Simulated events as plain arrays, before they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("send", "open", "click", "delete", "complaint", "unsubscribe", "subscribe", "soft_bounce", "hard_bounce")
KIND = {kind: np.uint8(i) for i, kind in enumerate(KINDS)}
NO_CAMPAIGN = -1


@dataclass
class Rows:
    """n events, each column [n], without an order of their own."""

    client: NDArray[np.int16]  # index
    subscriber: NDArray[np.int64]  # number within the client
    campaign: NDArray[np.int32]  # day x CAMPAIGNS_A_DAY + position, or NO_CAMPAIGN
    kind: NDArray[np.uint8]  # index into KINDS
    provider: NDArray[np.uint8]  # index into behaviour.PROVIDERS
    ts: NDArray[np.int64]  # when it happened, microseconds UTC
    received: NDArray[np.int64]  # when the collector got it, microseconds UTC
    event_id: NDArray[np.int64]
    flaw: NDArray[np.uint16]  # set of dirt.BITS

    def __len__(self) -> int:
        return len(self.ts)

    def columns(self) -> dict[str, NDArray[Any]]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def take(self, rows: NDArray[np.int64] | slice) -> Rows:
        return Rows(**{name: column[rows] for name, column in self.columns().items()})


TYPES: dict[str, Any] = {
    "client": np.int16,
    "subscriber": np.int64,
    "campaign": np.int32,
    "kind": np.uint8,
    "provider": np.uint8,
    "ts": np.int64,
    "received": np.int64,
    "event_id": np.int64,
    "flaw": np.uint16,
}


def empty() -> Rows:
    return Rows(**{name: np.empty(0, dtype) for name, dtype in TYPES.items()})


def concat(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Rows(**{n: np.concatenate([getattr(p, n) for p in parts] or [np.empty(0, t)]) for n, t in TYPES.items()})


def event_ids(
    client: int, subscriber: NDArray[np.int64], day: int | NDArray[np.int64], slot: object
) -> NDArray[np.int64]:
    """Distinct non-negative ids, int64[n], that look random.

    A bijection of 62 bits of (client below 2^10, subscriber below 2^31, day below 2^14, slot below 2^7).
    """
    x = np.asarray(subscriber).astype(np.uint64) | np.uint64(client << 31)
    x <<= np.uint64(14)
    x |= np.asarray(day).astype(np.uint64)
    x <<= np.uint64(7)
    x |= np.asarray(slot).astype(np.uint64)
    mask = np.uint64((1 << 62) - 1)
    for factor, shift in ((0xBF58476D1CE4E5B9, 31), (0x94D049BB133111EB, 29)):
        x *= np.uint64(factor)  # odd, hence invertible modulo 2^62
        x &= mask
        x ^= x >> np.uint64(shift)
    return x.astype(np.int64)
