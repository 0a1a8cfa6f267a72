"""Metrics per campaign, provider and local time: counts, exact distinct subscribers, and rates with both their parts.

Three levels of rows (column ``level``), each of spans of time (column ``every``):

- ``provider``: a campaign at a provider, by hour, day and month;
- ``client``: everything of the client, by hour, day and month;
- ``campaign``: a campaign over all providers and all time.

Rows, and what is made of them alone, add up over rows of one level and span. Distinct subscribers hold for their own
row: one who opened on two days is one opener of the month, which is why there are rows of months. What a machine did
(the flag ``machine`` of ingest) is counted apart, as kinds of their own: ``machine_open``, and so on. The rates are of
what people did.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.backend import Array, Frame, backend_of
from pipeline.config import Config
from pipeline.features import counting
from pipeline.features.calendar import local_time
from pipeline.features.counting import NONE as NONE
from pipeline.features.counting import Counted, Every, Level, Only, count_store
from pipeline.options import UNITS

LEVELS = {"provider": ("campaign", "provider"), "campaign": ("campaign",), "client": ()}
SPANS: tuple[Every, ...] = ("hour", "day", "month")
KEYS = ["client", "level", "every", "campaign", "provider", "bucket"]

# rate -> (numerator, denominator, definition). Bounces are over sends, all others over deliveries, click-to-open over
# unique opens: the senders' usual definitions (M3AAWG Sender Best Common Practices; Google's bulk sender guidelines
# ask for complaints under 0.10% of deliveries and never 0.30%).
RATES: dict[str, tuple[str, str, str]] = {
    "bounce_rate": ("bounces", "n_send", "bounces / sends"),
    "open_rate": ("unique_open", "deliveries", "subscribers who opened / deliveries"),
    "click_rate": ("unique_click", "deliveries", "subscribers who clicked / deliveries"),
    "click_to_open_rate": ("unique_click", "unique_open", "subscribers who clicked / subscribers who opened"),
    "delete_rate": ("unique_delete", "deliveries", "subscribers who deleted it / deliveries"),
    "unsubscribe_rate": ("n_unsubscribe", "deliveries", "unsubscribes / deliveries"),
    "complaint_rate": ("n_complaint", "deliveries", "complaints / deliveries"),
}


def local_bucket(ts: Array, timezone: str, every: Every) -> Array:
    """Start of each time's hour or day on the clock of ``timezone``.

    Args:
        ts: int64[n], microseconds since the epoch, UTC.
    Returns:
        int64[n], microseconds of the local clock. The hour that the end of summer time repeats is one bucket.
    """
    local = local_time(backend_of(ts).xp, ts, timezone)
    unit = UNITS["h" if every == "hour" else "d"]
    return local - local % unit


def levels(every: Sequence[Every]) -> list[Level]:
    """The levels of a table whose rows are of the given spans, finest first."""
    spans: list[Every] = [e for e in SPANS if e in every]
    timed = [Level(LEVELS[name], e) for name in ("provider", "client") for e in spans]
    return [*timed, Level(LEVELS["campaign"], "all")]


def frame_of(counted: Counted, which: Level, at: int) -> pd.DataFrame:
    """The groups of one level, number ``at`` of those counted, in the order of their names and starts.

    Returns:
        Columns ``campaign`` and ``provider`` as far as the level has them, ``bucket`` (datetime64[us], the client's
        local clock; absent for all time), then for each kind ``n_<kind>`` and ``unique_<kind>`` int64.
    """
    keys, values = counted.keys[at], counted.values[at]
    columns: dict[str, Any] = {}
    for i, name in enumerate(("campaign", "provider")):
        if name in which.by:
            names = pa.array(counted.names[name], pa.large_string())
            columns[name] = pd.array(names.take(pa.array(keys[:, i])), dtype="str")
    if which.every != "all":
        columns["bucket"] = keys[:, 2].astype("datetime64[us]")
    for i, kind in enumerate(counted.kinds):
        columns[f"n_{kind}"] = values[i, :, 0]
        columns[f"unique_{kind}"] = values[i, :, 1]
    return pd.DataFrame(columns)


def counts(
    store: Any,
    client: str,
    by: Sequence[str] = ("campaign", "provider"),
    every: Every = "hour",
    timezone: str = "UTC",
    machine: bool = True,
    partitions: int | None = None,
    **which: Any,
) -> pd.DataFrame:
    """Rows and distinct subscribers of each kind, by any of campaign and provider, of each hour, day or month.

    What every roll-up is made of, and what features that look at whole campaigns read.

    Args:
        store: an ``EventStore``; machine: count what machines did as kinds of their own, ``machine_<kind>``.
        which: ``since``, ``until`` and ``as_known_at``, as for ``EventStore.read``.
    Returns:
        See :func:`frame_of`; then ``bounces`` and ``deliveries`` where the log has sends.
    Raises:
        DataError, StoreError: from the store.
    """
    level = Level(tuple(n for n in ("campaign", "provider") if n in by), every)
    found = count_store(store, client, [level], timezone, machine=machine, partitions=partitions, **which)
    return add_deliveries(frame_of(found, level, 0))


def add_deliveries(table: pd.DataFrame) -> pd.DataFrame:
    """``bounces`` and ``deliveries`` (sends less bounces), where the table counts sends."""
    if "n_send" in table:
        bounced = [c for c in ("n_soft_bounce", "n_hard_bounce", "n_bounce") if c in table]
        bounces = table[bounced].sum(axis=1).astype("int64") if bounced else np.int64(0)
        table = table.assign(bounces=bounces, deliveries=lambda t: t["n_send"] - t["bounces"])
    return table


def partition_counts(events: Frame, timezone: str, every: Sequence[Every]) -> Counted:
    """One partition's counts at every level of a table.

    Args:
        events: a canonical frame of whole subscribers, ``subscriber_key`` as index.
    """
    return counting.count(counting.of_frame(events), levels(every), timezone, backend_of(events))


def combine(parts: Sequence[Counted], client: str, every: Sequence[Every]) -> pd.DataFrame:
    """The table of one client, from its partitions' counts.

    Returns:
        One row per group, sorted by KEYS: ``client``, ``level``, ``every`` (hour, day, month, all), ``campaign`` and
        ``provider`` (empty for events without one, and where the level does not tell them apart), ``bucket``
        (datetime64[us], the client's local clock; null for all time), then for each kind ``n_<kind>`` and
        ``unique_<kind>`` int64, then ``bounces`` and ``deliveries`` int64 and the RATES float64 where the kinds they
        need are in the log. A rate is null where its denominator is not positive (a bucket may hold a bounce of an
        earlier bucket's send). Events without a campaign have no row of level ``campaign``.
    """
    return tabulate(counting.merge(parts), levels(every), client)


def tabulate(counted: Counted, which: Sequence[Level], client: str) -> pd.DataFrame:
    """Some levels' groups as rows of the table, without rates; see :func:`combine`."""
    names = {by: name for name, by in LEVELS.items()}
    frames = []
    for at, level in enumerate(which):
        frame = frame_of(counted, level, at)
        if level.every == "all":
            frame = frame[frame["campaign"] != NONE]
            frame["bucket"] = np.array("NaT", dtype="datetime64[us]")
        for name in ("campaign", "provider"):
            if name not in frame:
                frame[name] = NONE
        frames.append(frame.assign(client=client, level=names[level.by], every=level.every))
    table = pd.concat(frames, ignore_index=True)
    return arrange(table)


def arrange(table: pd.DataFrame) -> pd.DataFrame:
    """Rows and columns in the table's order; only kinds that occur; counts without nulls; deliveries and rates anew."""
    kinds = sorted({c[2:] for c in table.columns if c.startswith("n_")})
    shown = [k for k in kinds if table[f"n_{k}"].fillna(0).any()]
    values = [f"{prefix}_{kind}" for kind in shown for prefix in ("n", "unique")]
    table = table[[*KEYS, *values]].astype(dict.fromkeys(("client", "level", "every", "campaign", "provider"), "str"))
    table[values] = table[values].fillna(0).astype("int64")
    return add_rates(table.sort_values(KEYS, ignore_index=True))


def add_rates(table: pd.DataFrame) -> pd.DataFrame:
    """``bounces``, ``deliveries`` and the RATES whose parts the table has, from its counts."""
    table = add_deliveries(table.copy())
    for name, (numerator, denominator, _) in RATES.items():
        if numerator in table and denominator in table:
            below = table[denominator].to_numpy(dtype=np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(below > 0, table[numerator].to_numpy(dtype=np.float64) / below, np.nan)
            table[name] = rate
    return table


def known_at(config: Config) -> dt.datetime | None:
    """``as_known_at`` where it is an instant: a table is not of one decision, so ``decision`` is no limit to it."""
    return config.as_known_at if isinstance(config.as_known_at, dt.datetime) else None


def rollup(
    store: Any, client: str, config: Config, only: Only | None = None, partitions: int | None = None
) -> pd.DataFrame:
    """The table of one client, computed from all its events; see :func:`combine` for the columns.

    Args:
        store: an ``EventStore``.
    Raises:
        DataError, StoreError: from the store.
    """
    which = levels(config.rollup.levels)
    zone, partitions = config.client_timezone(client), partitions or config.partitions
    known = known_at(config)
    found = count_store(store, client, which, zone, only, partitions=partitions, as_known_at=known)
    return tabulate(found, which, client)


# -- for the report ----------------------------------------------------------------------------------------------


def finest(table: pd.DataFrame, level: str) -> pd.DataFrame:
    """A level's rows of the shortest span that the table has."""
    rows = table[table["level"] == level]
    for every in SPANS:
        if (rows["every"] == every).any():
            return rows[rows["every"] == every]
    return rows


def daily(table: pd.DataFrame) -> pd.DataFrame:
    """Counts per local day, over all campaigns and providers: index ``day``, columns ``n_<kind>`` int64."""
    rows = finest(table[table["every"] != "month"], "client")
    counted = [c for c in table.columns if c.startswith("n_")]
    return rows.groupby(rows["bucket"].dt.floor("D").rename("day"))[counted].sum()


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """The client's rows of the longest span that the table has: everything, campaign or none, once."""
    rows = table[table["level"] == "client"]
    spans = [e for e in SPANS if (rows["every"] == e).any()]
    return rows[rows["every"] == spans[-1]] if spans else rows


def campaigns(table: pd.DataFrame) -> pd.DataFrame:
    """One row per campaign, with its distinct counts, rates, and the first and last span of its events."""
    rows = table[table["level"] == "campaign"].drop(columns=["level", "every", "provider", "bucket"])
    buckets = finest(table, "provider").groupby("campaign")["bucket"]
    span = pd.DataFrame({"first": buckets.min(), "last": buckets.max()})
    return rows.merge(span, left_on="campaign", right_index=True, how="left").reset_index(drop=True)
