"""Metrics per campaign, provider and time bucket.

Counts and distinct subscribers per kind are computed in each key-range partition and summed: a subscriber lives in one
partition only, so the sums of the distinct counts are exact. Rates are quotients of the sums, and both parts of each
stay in the table, so that it can be added up further (except the distinct counts, which hold for their own bucket).

What a machine did (the flag ``machine`` of ingest) is counted apart, as kinds of its own: ``machine_open``, and so on.
The rates are of what people did.

Two levels are kept: ``bucket`` (campaign x provider x hour or day) and ``campaign`` (all providers, all time), the one
whose distinct counts belong to the campaign as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline.backend import Array, Backend, Frame, backend_of
from pipeline.config import UNITS, Config
from pipeline.features.calendar import local_time

Every = Literal["hour", "day"]
COLUMNS = ["ts", "event", "campaign", "provider"]
NONE = ""  # how a row without campaign or provider is grouped

# rate -> (numerator, denominator, definition). Bounces are over sends, all others over deliveries, click-to-open over
# unique opens: the senders' usual definitions (M3AAWG Sender Best Common Practices; Google's bulk sender guidelines
# ask for complaints under 0.10% of deliveries and never 0.30%).
RATES: dict[str, tuple[str, str, str]] = {
    "bounce_rate": ("bounces", "n_send", "bounces / sends"),
    "open_rate": ("unique_open", "deliveries", "subscribers who opened / deliveries"),
    "click_rate": ("unique_click", "deliveries", "subscribers who clicked / deliveries"),
    "click_to_open_rate": ("unique_click", "unique_open", "subscribers who clicked / subscribers who opened"),
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


def _count(frame: Frame, keys: list[str]) -> pd.DataFrame:
    """Events and distinct subscribers per group, on the host: long, one row a group."""
    counted = frame.groupby(keys, observed=True, sort=False)["subscriber_key"].agg(["count", "nunique"]).reset_index()
    result: pd.DataFrame = backend_of(frame).to_pandas(counted)
    if "machine" in keys:
        flagged = result.pop("machine").to_numpy(dtype=bool)
        result["event"] = result["event"].astype(str)
        result["event"] = result["event"].where(~flagged, "machine_" + result["event"])
    for name in keys:
        if name not in ("bucket", "machine"):
            result[name] = result[name].astype(str)
    return result.astype({"count": "int64", "nunique": "int64"})


def partition_counts(events: Frame, timezone: str, every: Every) -> dict[str, pd.DataFrame]:
    """One partition's counts, small enough to leave the device.

    Args:
        events: canonical events of whole subscribers, ``subscriber_key`` as index.
    Returns:
        level -> columns of its keys, ``event``, ``count``, ``nunique``; levels ``bucket`` and ``campaign``.
    """
    backend = backend_of(events)
    ts = backend.column(events["ts"].astype("datetime64[us]"))
    keyed = events.reset_index()
    frame = keyed[["subscriber_key", "event"]].copy()
    for name in ("campaign", "provider"):
        frame[name] = _filled(keyed, name, backend)
    frame["bucket"] = local_bucket(ts, timezone, every)
    what = ["event"]
    if "machine" in keyed.columns:
        frame["machine"] = keyed["machine"].fillna(False).astype(bool)
        what.append("machine")
    return {
        "bucket": _count(frame, ["campaign", "provider", "bucket", *what]),
        "campaign": _count(frame, ["campaign", *what]),
    }


def _filled(frame: Frame, name: str, backend: Backend) -> Any:
    """A nullable text column without nulls: groupby treats them differently on the two backends."""
    if name not in frame.columns:
        return NONE
    column = frame[name]
    if column.dtype.name != "category":
        return column.astype("str").where(column.notna(), NONE).astype("category")
    if not bool(column.isna().any()):
        return column
    if NONE not in list(backend.to_pandas(column.cat.categories.to_series())):
        column = column.cat.add_categories([NONE])
    return column.fillna(NONE)


def combine(parts: Iterable[dict[str, pd.DataFrame]], client: str) -> pd.DataFrame:
    """Sum the partitions' counts and spread the kinds over columns.

    Returns:
        One row per group, sorted: ``client``, ``level``, ``campaign``, ``provider``, ``bucket`` (datetime64[us], the
        client's local clock; null at level campaign), then for each kind ``n_<kind>`` and ``unique_<kind>`` int64,
        then ``bounces`` and ``deliveries`` int64 and the RATES float64 where the kinds they need are in the log. A
        rate is null where its denominator is not positive (a bucket may hold a bounce of an earlier bucket's send).
    """
    parts = list(parts)
    wide = [_wide([p[level] for p in parts], level) for level in ("bucket", "campaign")]
    table = pd.concat(wide, ignore_index=True)
    kinds = sorted({c[2:] for c in table.columns if c.startswith("n_")})
    counts = [f"{prefix}_{kind}" for kind in kinds for prefix in ("n", "unique")]
    table[counts] = table[counts].fillna(0).astype("int64")
    table.insert(0, "client", client)
    return add_rates(table[["client", "level", "campaign", "provider", "bucket", *counts]])


def _wide(parts: list[pd.DataFrame], level: str) -> pd.DataFrame:
    keys = ["campaign", "provider", "bucket"] if level == "bucket" else ["campaign"]
    summed = pd.concat(parts, ignore_index=True).groupby([*keys, "event"], sort=True)[["count", "nunique"]].sum()
    spread = pd.DataFrame(summed.unstack("event", fill_value=0))
    pairs: Any = spread.columns.to_list()
    spread.columns = pd.Index([f"{'n' if what == 'count' else 'unique'}_{kind}" for what, kind in pairs])
    spread = spread.reset_index()
    if level == "campaign":
        spread["provider"] = NONE
        spread["bucket"] = pd.Series(pd.NaT, index=spread.index, dtype="datetime64[us]")
    else:
        spread["bucket"] = spread["bucket"].astype("int64").astype("datetime64[us]")
    spread["level"] = level
    return spread


def add_rates(table: pd.DataFrame) -> pd.DataFrame:
    """``bounces``, ``deliveries`` and the RATES whose parts the table has, from its counts."""
    table = table.copy()
    if "n_send" in table:
        bounced = [c for c in ("n_soft_bounce", "n_hard_bounce", "n_bounce") if c in table]
        table["bounces"] = table[bounced].sum(axis=1).astype("int64") if bounced else np.int64(0)
        table["deliveries"] = table["n_send"] - table["bounces"]
    for name, (numerator, denominator, _) in RATES.items():
        if numerator in table and denominator in table:
            below = table[denominator].to_numpy(dtype=np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(below > 0, table[numerator].to_numpy(dtype=np.float64) / below, np.nan)
            table[name] = rate
    return table


def rollup(
    store: Any, client: str, config: Config, every: Every = "day", partitions: int | None = None
) -> pd.DataFrame:
    """The metrics of one client; see :func:`combine` for the columns.

    Partitions are read and counted one by one, by the dask scheduler in force, and only counts come back.

    Args:
        store: an ``EventStore``.
    Raises:
        StoreError: from the store.
    """
    import dask

    timezone = config.client_timezone(client)
    columns = [*COLUMNS, *(["machine"] if "machine" in store.columns else [])]
    events = store.read(client, columns=columns, partitions=partitions or config.partitions)
    count = dask.delayed(partition_counts, pure=False)
    parts = [count(part, timezone, every) for part in events.to_delayed()]
    return combine(dask.compute(*parts), client)


def write(table: pd.DataFrame, uri: str) -> None:
    """Replace one client's rows of the Delta table at ``uri``, in one commit; columns a new kind brings are added.

    Args:
        table: from :func:`rollup`, of one client.
    """
    from pipeline.results import replace

    replace(table, uri, {"client": str(table["client"].iloc[0])})


def daily(table: pd.DataFrame) -> pd.DataFrame:
    """Counts per local day, over all campaigns and providers: index ``day``, columns ``n_<kind>`` int64."""
    rows = table[table["level"] == "bucket"]
    counts = [c for c in table.columns if c.startswith("n_")]
    return rows.groupby(rows["bucket"].dt.floor("D").rename("day"))[counts].sum()


def campaigns(table: pd.DataFrame) -> pd.DataFrame:
    """One row per campaign, with its distinct counts, rates, and its first and last local day of events."""
    rows = table[table["level"] == "campaign"].drop(columns=["level", "provider", "bucket"])
    buckets = table[table["level"] == "bucket"].groupby("campaign")["bucket"]
    span = pd.DataFrame({"first": buckets.min(), "last": buckets.max()})
    return rows.merge(span, left_on="campaign", right_index=True, how="left").reset_index(drop=True)
