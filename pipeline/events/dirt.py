"""What is wrong with the simulated log, and how often: each kind separately switchable, the truth of each recorded.

Kinds that add rows are made while the history is simulated (population.py); the others are decided here by a
hash of the event id, so that they too do not depend on partitioning. Nothing here changes what subscribers do.
A row's flaws are a bit set (``Rows.flaw``), carried along until the row is written; only then is it spoiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, did_you_mean
from pipeline.events import draws
from pipeline.events.behaviour import DAY, HOUR
from pipeline.events.rows import Rows, concat

# kind -> default rate. Of rows, unless said otherwise.
RATES: dict[str, float] = {
    "duplicate": 0.002,  # delivered twice: at once (7 in 10), or again a day or two later; equal but for received_at
    "late": 0.005,  # received 1 to 5 days after it happened (most within 2)
    "out_of_order": 0.01,  # received 10 minutes to 6 hours late, after events that happened later
    "null_key": 0.0005,  # the subscriber, the time or the kind is null
    "impossible_time": 0.0003,  # 1970, 2200, or 400 days ahead
    "unknown_kind": 0.0003,  # a kind nobody has heard of
    "scanner": 0.003,  # share of subscribers behind a gateway that clicks 3 to 6 links within 2 s of every delivery
    "machine_open": 0.04,  # share of subscribers, all with provider apple, whose mail program opens every delivery
    "anomaly": 1.0,  # days on which every delivery to one provider is opened 8 times by a machine
    "delete_all": 1.0,  # subscribers (of the first client) who delete everything they ever got within one hour
}
BITS = {kind: np.uint16(1 << i) for i, kind in enumerate(RATES)}
UNKNOWN = ("opne", "heartbeat", "undefined")
SPOILING = ("null_key", "impossible_time", "unknown_kind")  # at most one of these a row


def resolve(rates: Mapping[str, float]) -> dict[str, float]:
    """The default rates with ``rates`` over them. Raises ConfigError for an unknown kind or a rate out of range."""
    for kind, rate in rates.items():
        if kind not in RATES:
            raise ConfigError(f"simulate.dirt names {kind!r}, which is no kind of dirt; {did_you_mean(kind, RATES)}")
        count = kind in ("anomaly", "delete_all")
        if rate < 0 or (count and rate != int(rate)) or (not count and rate > 1):
            expected = "a whole number, 0 or more" if count else "a share from 0 to 1"
            raise ConfigError(f"simulate.dirt.{kind} is {rate}: expected {expected}")
    if sum({**RATES, **rates}[kind] for kind in SPOILING) > 1:
        raise ConfigError(f"the rates of {', '.join(SPOILING)} add up to more than 1: a row has at most one of them")
    return {**RATES, **rates}


def receive(rows: Rows, rates: Mapping[str, float]) -> Rows:
    """Give rows their time of arrival, their flaws and their duplicates.

    Args:
        rows: ``received`` is overwritten: network delay of at least 50 ms (exponential, mean 1 s) after ``ts``.
        rates: as ``resolve`` returns them.
    Returns:
        The rows, then the duplicates of some of them.
    """
    keys = rows.event_id.astype(np.uint64)
    rows.received = rows.ts + 50_000 + (-1e6 * np.log1p(-draws.uniform(keys, 200))).astype(np.int64)
    u = draws.uniform(keys, 201)
    late = np.flatnonzero(u < rates["late"])
    v = draws.uniform(keys[late], 202)
    rows.received[late] += DAY + (DAY * np.where(v < 0.9, v / 0.9, 1.0 + 30.0 * (v - 0.9))).astype(np.int64)
    rows.flaw[late] |= BITS["late"]
    held = np.flatnonzero((u >= rates["late"]) & (u < rates["late"] + rates["out_of_order"]))
    rows.received[held] += HOUR // 6 + (draws.uniform(keys[held], 203) * (HOUR * 35 // 6)).astype(np.int64)
    rows.flaw[held] |= BITS["out_of_order"]
    u, low = draws.uniform(keys, 204), 0.0
    for kind in SPOILING:
        rows.flaw[np.flatnonzero((u >= low) & (u < low + rates[kind]))] |= BITS[kind]
        low += rates[kind]
    twice = np.flatnonzero(draws.uniform(keys, 205) < rates["duplicate"])
    if len(twice) == 0:
        return rows
    copies = rows.take(twice)
    v = draws.uniform(keys[twice], 206)
    copies.received += np.where(v < 0.7, 0, (v - 0.7) / 0.3 * 2 * DAY).astype(np.int64)
    copies.flaw |= BITS["duplicate"]
    return concat([rows, copies])


def spoil(rows: Rows) -> tuple[Rows, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """What the log shows of flawed rows.

    Returns:
        The rows with impossible times put in; where the subscriber, the time and the kind are null, bool[n] each;
        and for unknown kinds the index into UNKNOWN, else -1, int64[n].
    """
    keys = rows.event_id.astype(np.uint64)
    shown = dataclasses.replace(rows, ts=rows.ts.copy())
    null = np.full((3, len(rows)), False)
    bad = np.flatnonzero(rows.flaw & BITS["null_key"])
    null[(draws.uniform(keys[bad], 210) * 3).astype(np.int64), bad] = True
    bad = np.flatnonzero(rows.flaw & BITS["impossible_time"])
    which = (draws.uniform(keys[bad], 211) * 3).astype(np.int64)
    ts = rows.ts[bad]
    year_2200 = 84_006 * DAY  # 2200-01-01
    shown.ts[bad] = np.select([which == 0, which == 1], [ts % DAY, year_2200 + ts % DAY], ts + 400 * DAY)
    unknown = np.full(len(rows), -1)
    bad = np.flatnonzero(rows.flaw & BITS["unknown_kind"])
    unknown[bad] = (draws.uniform(keys[bad], 212) * len(UNKNOWN)).astype(np.int64)
    return shown, null[0], null[1], null[2], unknown
