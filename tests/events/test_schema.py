"""Times, values, ids and names of every kind a source may have, against Python's own arithmetic."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.backend import PANDAS
from pipeline.errors import ConfigError, SourceError
from pipeline.events.ingest import ingest
from pipeline.events.schema import (
    canonical_kinds,
    client_folder,
    hive_parts,
    microseconds,
    to_category,
    to_id,
    to_micro_units,
    to_micros,
)
from pipeline.events.store import EventStore
from tests.events.logs import START, config, micros, random_rows, write

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MOMENTS = [
    dt.datetime(2026, 5, 1, 12, 30, 0, 123456, tzinfo=dt.UTC),
    dt.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=dt.UTC),
    dt.datetime(2026, 3, 29, 1, 30, tzinfo=dt.UTC),  # inside Berlin's change of clocks
]
TRUTH = [(m - EPOCH) // dt.timedelta(microseconds=1) for m in MOMENTS]


def convert(array: pa.Array, unit: str | None = None) -> tuple[list[int], list[bool]]:
    values, bad = to_micros(array, unit, "t", "'f'")
    return values.tolist(), bad.tolist()


@pytest.mark.parametrize(
    ("array", "unit"),
    [
        (pa.array(MOMENTS, pa.timestamp("us", "UTC")), None),
        (pa.array(MOMENTS, pa.timestamp("ns", "Europe/Berlin")), None),
        (pa.array([m.replace(tzinfo=None) for m in MOMENTS], pa.timestamp("us")), None),
        (pa.array(TRUTH, pa.int64()), "us"),
        (pa.array([t * 1000 + 999 for t in TRUTH], pa.int64()), "ns"),
        (pa.array([m.isoformat() for m in MOMENTS]), None),
        (pa.array([m.isoformat().replace("+00:00", "Z") for m in MOMENTS]), None),
        (pa.array([m.replace(tzinfo=None).isoformat(" ") for m in MOMENTS]), None),
        (pa.array([m.astimezone(dt.timezone(dt.timedelta(hours=-9, minutes=-30))).isoformat() for m in MOMENTS]), None),
        (pa.array([MOMENTS[0].isoformat(), MOMENTS[1].replace(tzinfo=None).isoformat(), MOMENTS[2].isoformat()]), None),
        (pa.array([m.isoformat() for m in MOMENTS]).dictionary_encode(), None),
    ],
)
def test_times(array: pa.Array, unit: str | None) -> None:
    assert convert(array, unit) == (TRUTH, [False] * 3)


def test_coarse_and_broken_times() -> None:
    assert convert(pa.array([1, -1, 2**62], pa.int64()), "s") == ([1_000_000, -1_000_000, 0], [False, False, True])
    assert convert(pa.array([1.5, math.nan, math.inf]), "s") == ([1_500_000, 0, 0], [False, True, True])
    assert convert(pa.array([1500], pa.int32()), "ms") == ([1_500_000], [False])
    assert convert(pa.array([dt.date(2026, 5, 1)])) == ([START], [False])
    assert convert(pa.array(["2026-05-01", None])) == ([START, 0], [False, False])
    values, bad = convert(pa.array(["2026-05-01T00:00:00Z", "yesterday", "2026-02-30", None, ""]))
    assert values[0] == START
    assert bad == [False, True, True, False, True]
    with pytest.raises(ConfigError, match=r"'t' in 'f' holds numbers.*time_unit"):
        convert(pa.array([1, 2]))
    with pytest.raises(SourceError, match="is bool, which is no time"):
        convert(pa.array([True]))


def test_values_are_exact_micro_units() -> None:
    def units(array: pa.Array, unit: str = "unit") -> tuple[list[int | None], list[bool]]:
        values, bad = to_micro_units(array, unit, "v", "'f'")
        return values.to_pylist(), bad.tolist()

    assert units(pa.array([1.25, None, -0.1])) == ([1_250_000, None, -100_000], [False] * 3)
    assert units(pa.array([decimal.Decimal("12.34")])) == ([12_340_000], [False])
    great = [
        decimal.Decimal("123456789012.345678"),
        None,
        decimal.Decimal("-9000000000000.01"),
        decimal.Decimal(10**13),
    ]
    wide = pa.array([decimal.Decimal(5), *great], pa.decimal128(30, 6)).slice(1)
    expected = [123_456_789_012_345_678, None, -9_000_000_000_000_010_000, None]
    assert units(wide) == (expected, [False, False, False, True])
    assert units(pa.array([7, 2**60], pa.int64())) == ([7_000_000, None], [False, True])
    assert units(pa.array([7, None], pa.int16()), "micro") == ([7, None], [False, False])
    assert units(pa.array([math.nan, math.inf])) == ([None, None], [True, True])
    with pytest.raises(SourceError, match="must be a number"):
        units(pa.array(["1"]))


def test_ids_and_kinds() -> None:
    assert to_id(pa.array([1.0, None, 3.0]), "c", "'f'").to_pylist() == [1, None, 3]
    assert to_id(pa.array([2**64 - 1], pa.uint64()), "c", "'f'").to_pylist() == [str(2**64 - 1)]
    for value, problem in ((1.5, "fractions"), (math.nan, "NaN"), (-(2.0**53), "several integers share")):
        with pytest.raises(SourceError, match=problem):
            to_id(pa.array([1.0, value]), "c", "'f'")
    with pytest.raises(SourceError, match="an id must be text"):
        to_id(pa.array([[1]]), "c", "'f'")
    kinds = canonical_kinds(
        to_category(pa.array(["unsub", "opt_out", None, "open"]), "k", "'f'"), {"unsubscribe": ["unsub", "opt_out"]}
    )
    assert kinds.to_pylist() == ["unsubscribe", "unsubscribe", None, "open"]
    assert len(kinds.dictionary) == 2
    assert to_category(pa.array([3, 3, None]), "k", "'f'").to_pylist() == ["3", "3", None]
    hidden = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None]))
    found = to_category(hidden, "k", "'f'")
    assert (found.null_count, found.to_pylist()) == (2, ["a", None, None])


def test_names() -> None:
    assert client_folder("../a b") == "client=..%2Fa%20b"
    assert hive_parts("/x/client=a%2Fb/day=1/part=2.parquet") == {"client": "a/b", "day": "1"}
    assert microseconds("2026-05-01") == microseconds(dt.date(2026, 5, 1)) == START
    assert microseconds(dt.datetime(2026, 5, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))) == START


DRIFT: dict[str, Any] = {
    "int32 user": ({"user": pa.int32()}, True),
    "uint16 user": ({"user": pa.uint16()}, True),
    "float user": ({"user": pa.float64()}, True),
    "text user": ({"user": pa.string()}, True),
    "ns time": ({"time": pa.timestamp("ns")}, True),
    "zoned time": ({"time": pa.timestamp("us", "Asia/Tokyo")}, True),
    "dictionary kind": ({"kind": pa.dictionary(pa.int8(), pa.string())}, True),
    "large kind": ({"kind": pa.large_string()}, True),
    "int32 id": ({"id": pa.int32()}, True),
    "text id": ({"id": pa.string()}, False),
}


@pytest.mark.parametrize("name", DRIFT)
def test_drift_between_days(tmp_path: Path, name: str) -> None:
    """The second day's file has another type: read as the same values, or refused by the file's name."""
    types, fine = DRIFT[name]
    first, second = random_rows(40, seed=1, integer_ids=True), random_rows(40, seed=2, integer_ids=True)
    settings = config(tmp_path)
    write(tmp_path / "raw/1.parquet", first, {"user": pa.int64()})
    ingest(settings, PANDAS)
    text = {n for n, t in types.items() if t == pa.string()}
    scale = {"time": 1000} if name == "ns time" else {}
    changed = [{n: str(v) if n in text else v * scale[n] if n in scale else v for n, v in r.items()} for r in second]
    write(tmp_path / "raw/2.parquet", changed, {"user": pa.int64()} | types)
    if not fine:
        with pytest.raises(SourceError, match=r"2\.parquet"):
            ingest(settings, PANDAS)
        return
    ingest(settings, PANDAS)
    frame = EventStore(settings.store_uri).read("acme").compute(scheduler="sync")
    found = set(zip(frame["subscriber"], map(micros, frame["ts"]), frame["event"], frame["event_id"], strict=True))
    assert found == {(str(r["user"]), r["time"], r["kind"], r["id"]) for r in first + second if r["client"] == "acme"}
