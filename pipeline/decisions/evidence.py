"""The report's evidence: campaigns and events by day."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import Config
from pipeline.decisions.charts import (
    Axis,
    Series,
    day,
    figure,
    number,
    numbers,
    percent,
    plural,
    tick_percent,
)
from pipeline.decisions.sections import share_of
from pipeline.features import rollup

CAMPAIGNS = 12  # rows of the campaign table
RATE_OF = {"unsubscribe": "unsubscribe_rate", "complaint": "complaint_rate"}


def campaigns(tables: Mapping[str, pd.DataFrame], config: Config) -> list[dict[str, Any]]:
    """For each client its campaigns, the most telling first, and its events by day."""
    return [_campaigns(client, table, config) for client, table in tables.items() if len(table)]


def _campaigns(client: str, table: pd.DataFrame, config: Config) -> dict[str, Any]:
    named, every = rollup.campaigns(table), rollup.whole(table)
    mail = named if len(named) else every
    outcome = config.outcomes.get(config.decide.hold_when or next(iter(config.decide.reward), ""))
    kind = next((k for k in (outcome.kinds if outcome else []) if f"n_{k}" in named.columns), None)
    kinds = sorted((c[2:] for c in table.columns if c.startswith("n_")), key=lambda k: -int(every[f"n_{k}"].sum()))
    key: str | None
    if "deliveries" in named.columns:
        key = RATE_OF.get(kind or "", "unsubscribe_rate")
        key = key if key in named.columns else "click_rate" if "click_rate" in named.columns else None
        # A rate of a handful of deliveries says nothing: rank only those with a fair share of the mail.
        large = named[named["deliveries"] >= 0.1 * named["deliveries"].median()]
        columns: list[tuple[str, str, Any]] = [("sends", "n_send", number), ("delivered", "deliveries", number)]
        columns += [(n.removesuffix("_rate").replace("_", " "), n, percent) for n in rollup.RATES if n in named.columns]
        columns = [c for c in columns if c[1] != key]
    else:
        key = f"unique_{kind}" if kind else None
        large = named
        # Only kinds that carry a campaign.
        columns = [(plural(k), f"n_{k}", number) for k in kinds if len(named) and int(named[f"n_{k}"].sum()) > 0][:5]
        if kind is not None and f"n_{kind}" not in [c[1] for c in columns]:
            columns.append((plural(kind), f"n_{kind}", number))
    ranked = large.sort_values([key or f"n_{kinds[0]}", "campaign"], ascending=[False, True]) if len(large) else large
    shown = ranked.head(CAMPAIGNS)
    peak = float(shown[key].max()) if key and len(shown) else 0.0
    write = percent if key and key.endswith("rate") else number
    rates = [
        {
            "name": name.removesuffix("_rate").replace("_", " "),
            "value": percent(_quotient(mail, above, below)),
            "above": number(int(mail[above].sum())),
            "below": number(int(mail[below].sum())),
            "definition": definition,
        }
        for name, (above, below, definition) in rollup.RATES.items()
        if name in mail.columns
    ]
    return {
        "client": client,
        "total": len(named),
        "rates": rates,
        "key": (key or "").replace("unique_", "subscribers with ").replace("_", " "),
        "header": [c[0] for c in columns],
        "rows": [
            {
                "campaign": row["campaign"],
                "first": f"{row['first']:%-d %b}" if not pd.isna(row["first"]) else "",
                "cells": [c[2](float(row[c[1]])) for c in columns],
                "value": write(float(row[key])) if key else "",
                "bar": round(100 * float(row[key]) / peak, 1) if key and peak > 0 and not pd.isna(row[key]) else 0,
            }
            for row in shown.to_dict("records")
        ],
        "charts": _by_day(table, kinds, kind),
    }


def _quotient(table: pd.DataFrame, above: str, below: str) -> float | None:
    return share_of(float(table[above].sum()), float(table[below].sum()))


def _by_day(table: pd.DataFrame, kinds: list[str], kind: str | None) -> list[Any]:
    days = rollup.daily(table)
    if len(days) < 2:
        return []
    full = days.reindex(pd.date_range(days.index.min(), days.index.max(), freq="D"), fill_value=0)
    instants = (full.index.to_numpy().astype("datetime64[s]").astype(np.int64)).tolist()
    span = (float(instants[0]), float(instants[-1]))
    found = []
    top = [k for k in kinds if int(full[f"n_{k}"].sum()) > 0][:3]
    series = [
        Series(
            plural(k), list(zip(instants, full[f"n_{k}"].astype(float), strict=True)), i + 1, dash=("", "5 3", "2 2")[i]
        )
        for i, k in enumerate(top)
    ]
    high = max((float(full[f"n_{k}"].max()) for k in top), default=1.0)
    rows = [[f"{d:%Y-%m-%d}", *(number(int(full.loc[d, f"n_{k}"])) for k in top)] for d in full.index]
    found.append(
        figure(
            "Events by day",
            "The most frequent kinds, on the client's clock.",
            series,
            Axis("day", *span, day),
            Axis("events", 0, high * 1.05),
            True,
            numbers(["day", *map(plural, top)], rows),
        )
    )
    if kind is not None and "deliveries" in table.columns:
        week = full.rolling(7, min_periods=7).sum()
        below = week["n_send"] - week[[c for c in week if str(c).endswith("bounce")]].sum(axis=1)
        # Days with hardly a delivery have no rate worth drawing.
        rate = (week[f"n_{kind}"] / below.where(below > 0.1 * below.median())).to_numpy(dtype=float)
        line = [(t, r) for t, r in zip(instants, rate.tolist(), strict=True) if np.isfinite(r)]
        if line:
            title = f"{plural(kind).capitalize()} per delivery"
            found.append(
                figure(
                    title,
                    "Over the seven days up to each day.",
                    [Series(f"{kind} rate", line, 4)],
                    Axis("day", *span, day),
                    Axis("rate", 0, max(r for _, r in line) * 1.15, tick_percent),
                    True,
                    numbers(["day", "rate"], [[day(t), percent(r)] for t, r in line]),
                )
            )
    return found
