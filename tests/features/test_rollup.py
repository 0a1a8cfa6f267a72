"""Roll-up against DuckDB, over any number of partitions."""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.backend import Backend
from pipeline.features import rollup as r

KINDS = ["send", "open", "click", "delete", "hard_bounce", "soft_bounce", "unsubscribe", "complaint"]


def log(n: int, seed: int = 1, nulls: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    start = pd.Timestamp("2026-03-20").value // 1000
    names = ["a", "b", "späti <i>", None] if nulls else ["a", "b"]
    frame = pd.DataFrame(
        {
            "subscriber_key": np.sort(rng.integers(-(2**62), 2**62, 50)[rng.integers(0, 50, n)]),
            "ts": (start + rng.integers(0, 20 * 86_400_000_000, n)).astype("datetime64[us]"),
            "event": rng.choice(KINDS, n, p=[0.5, 0.2, 0.1, 0.1, 0.03, 0.03, 0.02, 0.02]),
            "campaign": rng.choice(np.array(names, dtype=object), n),
            "provider": rng.choice(np.array(["g", "h", None] if nulls else ["g"], dtype=object), n),
        }
    )
    return frame.sort_values(["subscriber_key", "ts"], kind="stable").reset_index(drop=True)


def canonical(frame: pd.DataFrame, backend: Backend) -> Any:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for name in ("event", "campaign", "provider"):
        if name in table.column_names:
            column = table[name].cast(pa.string()).dictionary_encode()
            table = table.set_column(table.column_names.index(name), name, column)
    return backend.from_arrow(table).set_index("subscriber_key")


def split(frame: pd.DataFrame, partitions: int) -> list[pd.DataFrame]:
    bounds = np.linspace(-(2.0**63), 2.0**63, partitions + 1)
    return [frame[(frame.subscriber_key >= a) & (frame.subscriber_key < b)] for a, b in itertools.pairwise(bounds)]


def oracle(frame: pd.DataFrame, timezone: str, level: str, every: str) -> pd.DataFrame:
    counts = ", ".join(
        f"count(*) FILTER (event = '{k}') AS n_{k}, count(DISTINCT subscriber_key) FILTER (event = '{k}') AS unique_{k}"
        for k in sorted(KINDS)
    )
    names = {"provider": ["c AS campaign", "p AS provider"], "campaign": ["c AS campaign"], "client": []}[level]
    names = [*names, *(["b AS bucket"] if every != "all" else [])]
    trunc = f"date_trunc('{every}', (ts::TIMESTAMPTZ) AT TIME ZONE '{timezone}')" if every != "all" else "0"
    connection = duckdb.connect()
    connection.register("log", frame)
    connection.execute("SET TimeZone = 'UTC'")
    result: pd.DataFrame = connection.execute(
        f"""
        WITH e AS (SELECT *, coalesce(campaign, '') c, coalesce(provider, '') p, {trunc} b FROM log)
        SELECT {", ".join(names)}, {counts} FROM e {"WHERE c <> ''" if level == "campaign" else ""}
        GROUP BY ALL ORDER BY ALL"""
    ).df()
    return result


@pytest.mark.parametrize(
    ("partitions", "timezone"), [(1, "UTC"), (2, "Europe/Berlin"), (7, "Asia/Kolkata"), (1, "America/New_York")]
)
def test_equals_duckdb(backend: Backend, partitions: int, timezone: str) -> None:
    frame = log(2500)
    parts = [r.partition_counts(canonical(p, backend), timezone, r.SPANS) for p in split(frame, partitions)]
    table = r.combine(parts, "acme", r.SPANS)
    values = [f"{w}_{k}" for k in sorted(KINDS) for w in ("n", "unique")]
    for level, every in [(v, e) for v in ("provider", "client") for e in r.SPANS] + [("campaign", "all")]:
        rows = table[(table.level == level) & (table.every == every)]
        expected = oracle(frame, timezone, level, every)
        pd.testing.assert_frame_equal(
            rows[[*expected.columns]].reset_index(drop=True),
            expected.astype({"bucket": "datetime64[us]"} if every != "all" else {}),
            check_dtype=False,
        )
        named = len(frame) if level != "campaign" else int((frame.campaign.fillna("") != "").sum())
        assert int(rows[[f"n_{k}" for k in KINDS]].to_numpy().sum()) == named
    assert set(values) <= set(table.columns)
    assert not table.duplicated(r.KEYS).any()
    assert table.bucket.isna().tolist() == (table.every == "all").tolist()


def test_what_machines_did_is_counted_apart(backend: Backend) -> None:
    frame = log(3000).assign(machine=lambda f: (f.event == "open") & (f.subscriber_key % 3 == 0))
    parts = [r.partition_counts(canonical(p, backend), "UTC", ["day"]) for p in split(frame, 3)]
    whole = r.combine(parts, "acme", ["day"])
    assert set(whole.every) == {"day", "all"}
    whole = whole[whole.level == "campaign"].set_index("campaign")
    opens = frame[(frame.event == "open") & frame.campaign.notna()]
    for name, rows in (("open", opens[~opens.machine]), ("machine_open", opens[opens.machine])):
        assert whole[f"n_{name}"].to_dict() == rows.groupby("campaign").size().to_dict()
        assert whole[f"unique_{name}"].to_dict() == rows.groupby("campaign").subscriber_key.nunique().to_dict()
    assert (whole.open_rate == whole.unique_open / whole.deliveries).all()


def test_rates(backend: Backend) -> None:
    table = r.combine([r.partition_counts(canonical(log(3000), backend), "UTC", ["day"])], "acme", ["day"])
    assert (table.deliveries == table.n_send - table.n_hard_bounce - table.n_soft_bounce).all()
    for row in table.itertuples():
        for name, above in (("open_rate", row.unique_open), ("complaint_rate", row.n_complaint)):
            rate = getattr(row, name)
            if row.deliveries > 0:
                assert rate == above / row.deliveries
            else:
                assert np.isnan(rate)


def test_log_without_optional_columns(backend: Backend) -> None:
    frame = log(200)[["subscriber_key", "ts", "event"]].replace({"event": dict.fromkeys(KINDS, "basket")})
    table = r.combine([r.partition_counts(canonical(frame, backend), "UTC", ["day"])], "shop", ["day"])
    assert table[table.level == "client"].n_basket.sum() == 200
    assert set(table.campaign) == {""}
    assert set(table.level) == {"provider", "client"}  # nothing is a campaign
    assert not set(r.RATES) & set(table.columns)
    assert "deliveries" not in table


def test_no_events(backend: Backend) -> None:
    table = r.combine([r.partition_counts(canonical(log(50).iloc[:0], backend), "UTC", r.SPANS)], "acme", r.SPANS)
    assert len(table) == 0
    assert list(table.columns) == r.KEYS


@pytest.mark.parametrize("timezone", ["Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"])
@pytest.mark.parametrize("every", ["hour", "day"])
def test_local_bucket(backend: Backend, timezone: str, every: r.Every) -> None:
    rng = np.random.default_rng(3)
    ts = rng.integers(-(10**15), 2 * 10**15, 500)
    zone = zoneinfo.ZoneInfo(timezone)
    found = backend.to_host(r.local_bucket(backend.asarray(ts), timezone, every))
    for us, start in zip(ts.tolist(), found.tolist(), strict=True):
        clock = dt.datetime.fromtimestamp(us // 10**6, tz=zone).replace(tzinfo=None, minute=0, second=0)
        clock = clock if every == "hour" else clock.replace(hour=0)
        assert clock == np.datetime64(start, "us").item()


def test_summaries_for_the_report(backend: Backend) -> None:
    frame = log(800, nulls=False)
    table = r.combine([r.partition_counts(canonical(frame, backend), "UTC", r.SPANS)], "acme", r.SPANS)
    days = r.daily(table)
    assert days.to_numpy().sum() == 800
    assert (
        days.loc[frame.ts.min().floor("D"), "n_send"]
        == ((frame.ts.dt.floor("D") == frame.ts.min().floor("D")) & (frame.event == "send")).sum()
    )
    listed = r.campaigns(table).set_index("campaign")
    assert listed.n_send.to_dict() == frame[frame.event == "send"].groupby("campaign").size().to_dict()
    assert listed.loc["a", "first"] == frame[frame.campaign == "a"].ts.min().floor("h")
