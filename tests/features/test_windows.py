from __future__ import annotations

import duckdb
import numpy as np
from hypothesis import HealthCheck, given, settings

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.features.samples import SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table
from tests.features import oracle
from tests.features.logs import DAY, KINDS, Event, frame_of, logs, random_log

WINDOWS = [DAY, 3 * DAY, 30 * DAY]
SPEC = FeatureSpec.counts(KINDS, WINDOWS, "send")
ASKED = SampleRequest("train", as_of=2**60, heads=(), exposure="send")


def sql(events: list[Event]) -> list[tuple[int, ...]]:
    """Counts by DuckDB: RANGE frames that end one microsecond before the send."""
    counts = ", ".join(
        f"count(*) FILTER (WHERE event = '{kind}') OVER w{i}" for i in range(len(WINDOWS)) for kind in KINDS
    )
    frames = ", ".join(
        f"w{i} AS (PARTITION BY key ORDER BY ts RANGE BETWEEN {window} PRECEDING AND 1 PRECEDING)"
        for i, window in enumerate(WINDOWS)
    )
    connection = duckdb.connect()
    key, ts, event, identity = (np.array([e[i] for e in events]) for i in (0, 1, 2, 4))
    log = {"key": key.astype(np.int64), "ts": ts.astype(np.int64), "event": event.astype("U"), "id": identity}
    connection.register("log", log)
    query = f"""SELECT * EXCLUDE (event) FROM (SELECT id, event, {counts} FROM log WINDOW {frames})
                WHERE event = 'send' ORDER BY id"""
    return connection.execute(query).fetchall()


def ours(backend: Backend, events: list[Event]) -> list[tuple[int, ...]]:
    table = feature_table(frame_of(events, backend), SPEC, ASKED, backend)
    ids = backend.to_pandas(table.keys)["event_id"].tolist()
    return sorted((i, *map(int, row)) for i, row in zip(ids, backend.to_host(table.X).tolist(), strict=True))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(events=logs().filter(len))
def test_counts_agree_with_sql(backend: Backend, events: list[Event]) -> None:
    assert ours(backend, events) == sql(events)


def test_counts_of_a_large_log_agree_with_sql(backend: Backend) -> None:
    events = random_log(np.random.default_rng(3), 30_000, 400, 60)
    assert ours(backend, events) == sql(events)


def test_hour_and_weekday_are_of_the_client_s_zone(backend: Backend) -> None:
    spec = FeatureSpec.counts(KINDS, [DAY], "send")
    full = FeatureSpec.from_config(Config(), KINDS)
    spec = full.select(["hour_sin", "hour_cos", "weekday_sin", "weekday_cos"])
    asked = SampleRequest("train", as_of=2**60, heads=(), exposure="send", timezone="Asia/Tokyo")
    sunday_noon = 1_767_528_000_000_000  # 2026-01-04 12:00 UTC; in Tokyo 21:00
    late = sunday_noon + 4 * 3_600_000_000  # Monday 01:00 in Tokyo
    events = [Event(1, sunday_noon, "send"), Event(1, late, "send")]
    found = backend.to_host(feature_table(frame_of(events, backend), spec, asked, backend).X)
    turn = 2 * np.pi
    expected = [
        [f(turn * h / 24) for f in (np.sin, np.cos)] + [f(turn * d / 7) for f in (np.sin, np.cos)]
        for h, d in ((21, 6), (1, 0))
    ]
    assert found.tolist() == np.array(expected, dtype=np.float32).tolist()


def test_the_week_before_midnight_is_of_the_client_s_clock(backend: Backend) -> None:
    """Hourly sends around the day that Berlin's clocks go forward: 2026-03-29."""
    hour, zone = 3_600_000_000, "Europe/Berlin"
    begin = 1_774_000_000_000_000 // hour * hour + 1  # 2026-03-20
    events = [Event(1, begin + i * hour, "send", None, i) for i in range(24 * 20)]
    spec = FeatureSpec.from_config(Config(features={"groups": ["volume"]}), KINDS)
    assert spec.names == ["send_7d_to_midnight"]
    asked = SampleRequest("train", as_of=2**60, heads=(), exposure="send", timezone=zone)
    found = backend.to_host(feature_table(frame_of(events, backend), spec, asked, backend).X)[:, 0]
    assert found.tolist() == [oracle.feature(spec, events, 1, e.ts, zone)["send_7d_to_midnight"] for e in events]
    assert set(found[-24 * 9 :].tolist()) == {168}
