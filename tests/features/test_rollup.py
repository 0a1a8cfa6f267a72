"""Roll-up against DuckDB, over any number of partitions."""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.features import rollup as r
from pipeline.results import read

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


def oracle(frame: pd.DataFrame, timezone: str, every: str) -> pd.DataFrame:
    counts = ", ".join(
        f"count(*) FILTER (event = '{k}') AS n_{k}, count(DISTINCT subscriber_key) FILTER (event = '{k}') AS unique_{k}"
        for k in sorted(KINDS)
    )
    connection = duckdb.connect()
    connection.register("log", frame)
    connection.execute("SET TimeZone = 'UTC'")
    result: pd.DataFrame = connection.execute(
        f"""
        WITH e AS (SELECT *, coalesce(campaign, '') c, coalesce(provider, '') p,
                   date_trunc('{every}', (ts::TIMESTAMPTZ) AT TIME ZONE '{timezone}') b FROM log)
        SELECT c AS campaign, p AS provider, b AS bucket, {counts} FROM e GROUP BY ALL ORDER BY ALL"""
    ).df()
    return result


@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize(
    ("timezone", "every"),
    [("UTC", "day"), ("Europe/Berlin", "hour"), ("Asia/Kolkata", "hour"), ("America/New_York", "day")],
)
def test_equals_duckdb(backend: Backend, partitions: int, timezone: str, every: r.Every) -> None:
    frame = log(4000)
    parts = [r.partition_counts(canonical(p, backend), timezone, every) for p in split(frame, partitions)]
    table = r.combine(parts, "acme")
    buckets = table[table.level == "bucket"]
    expected = oracle(frame, timezone, every)
    columns = ["campaign", "provider", "bucket", *[f"{w}_{k}" for k in sorted(KINDS) for w in ("n", "unique")]]
    pd.testing.assert_frame_equal(
        buckets[columns].reset_index(drop=True),
        expected[columns].astype({"bucket": "datetime64[us]"}),
        check_dtype=False,
    )
    assert int(buckets[[f"n_{k}" for k in KINDS]].to_numpy().sum()) == len(frame)

    # The campaign level counts a subscriber once, however many buckets and providers they appear in.
    whole = table[table.level == "campaign"].set_index("campaign")
    opened: dict[str, set[int]] = {}
    for key, event, campaign in zip(frame.subscriber_key, frame.event, frame.campaign, strict=True):
        if event == "open":
            opened.setdefault("" if pd.isna(campaign) else campaign, set()).add(key)
    assert whole.unique_open.to_dict() == {name: len(keys) for name, keys in opened.items()}


def test_what_machines_did_is_counted_apart(backend: Backend) -> None:
    frame = log(3000).assign(machine=lambda f: (f.event == "open") & (f.subscriber_key % 3 == 0))
    parts = [r.partition_counts(canonical(p, backend), "UTC", "day") for p in split(frame, 3)]
    whole = r.combine(parts, "acme")
    whole = whole[whole.level == "campaign"].set_index("campaign")
    opens = frame[frame.event == "open"].fillna({"campaign": ""})
    for name, rows in (("open", opens[~opens.machine]), ("machine_open", opens[opens.machine])):
        assert whole[f"n_{name}"].to_dict() == rows.groupby("campaign").size().to_dict()
        assert whole[f"unique_{name}"].to_dict() == rows.groupby("campaign").subscriber_key.nunique().to_dict()
    assert (whole.open_rate == whole.unique_open / whole.deliveries).all()


def test_rates(backend: Backend) -> None:
    table = r.combine([r.partition_counts(canonical(log(3000), backend), "UTC", "day")], "acme")
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
    table = r.combine([r.partition_counts(canonical(frame, backend), "UTC", "day")], "shop")
    assert table[table.level == "bucket"].n_basket.sum() == 200
    assert set(table.campaign) == {""}
    assert not set(r.RATES) & set(table.columns)
    assert "deliveries" not in table


def test_no_events(backend: Backend) -> None:
    table = r.combine([r.partition_counts(canonical(log(50).iloc[:0], backend), "UTC", "day")], "acme")
    assert len(table) == 0
    assert list(table.columns[:5]) == ["client", "level", "campaign", "provider", "bucket"]


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


class Store:
    """What rollup needs of an EventStore."""

    def __init__(self, frame: pd.DataFrame, backend: Backend) -> None:
        self.frame, self.backend = frame, backend
        self.columns = list(frame.columns)

    def read(self, client: str, columns: list[str], partitions: int | None) -> Store:
        self.partitions = partitions or 1
        return self

    def to_delayed(self) -> list[Any]:
        return [canonical(p, self.backend) for p in split(self.frame, self.partitions)]


def test_written_table(backend: Backend, tmp_path: Path) -> None:
    config = Config(partitions=3, timezone="Europe/Berlin")
    uri = str(tmp_path / "rollups")
    first = r.rollup(Store(log(500), backend), "o'neil & co", config)
    r.write(first, uri)
    r.write(first, uri)  # again: replaces itself
    second = r.rollup(Store(log(300, seed=2).replace({"event": {"click": "tap"}}), backend), "b", config)
    r.write(second, uri)
    whole = read(uri)
    assert whole is not None
    assert whole.groupby("client").size().to_dict() == {"o'neil & co": len(first), "b": len(second)}
    assert whole.n_tap.sum() == second.n_tap.sum()
    back = read(uri, {"client": "o'neil & co"})
    assert back is not None
    pd.testing.assert_frame_equal(
        back[first.columns].sort_values(["level", "campaign", "provider", "bucket"], ignore_index=True),
        first.sort_values(["level", "campaign", "provider", "bucket"], ignore_index=True),
        check_dtype=False,
    )
    assert read(str(tmp_path / "nothing")) is None


def test_summaries_for_the_report(backend: Backend) -> None:
    frame = log(800, nulls=False)
    table = r.combine([r.partition_counts(canonical(frame, backend), "UTC", "hour")], "acme")
    days = r.daily(table)
    assert days.to_numpy().sum() == 800
    assert (
        days.loc[frame.ts.min().floor("D"), "n_send"]
        == ((frame.ts.dt.floor("D") == frame.ts.min().floor("D")) & (frame.event == "send")).sum()
    )
    listed = r.campaigns(table).set_index("campaign")
    assert listed.n_send.to_dict() == frame[frame.event == "send"].groupby("campaign").size().to_dict()
    assert listed.loc["a", "first"] == frame[frame.campaign == "a"].ts.min().floor("h")
