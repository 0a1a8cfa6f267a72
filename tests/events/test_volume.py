"""Days and batches against what came before, from tallies alone; compared with a plain reading of all rows."""

from __future__ import annotations

import datetime as dt
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from pipeline.backend import Backend
from pipeline.errors import DataError
from pipeline.events.ingest import ingest
from pipeline.events.quality import Rulebook
from pipeline.events.store import EventStore
from pipeline.events.volume import Past, Tally, add_tally, judge, trend
from pipeline.options import Quality
from tests.events.logs import DAY, START, Row, config, write

FIRST = dt.date(2026, 5, 1)
BOOK = Rulebook.of(Quality())
Days = list[dict[str, int]]  # kind -> rows, a day after another


def iso(day: int) -> str:
    return (FIRST + dt.timedelta(days=day)).isoformat()


def tally_of(days: Days, first: int = 0, **values: dict[str, int]) -> Tally:
    kinds = {iso(first + i): {k: [n, 0] for k, n in day.items()} for i, day in enumerate(days)}
    return {"days": kinds, "happened": iso(first + len(days) - 1), "provider": {}, "campaign": {}, **values}


def usual_days(n: int, seed: int = 0) -> Days:
    rng = random.Random(seed)
    return [
        {"send": rng.randrange(950, 1050), "open": rng.randrange(180, 220), "click": rng.randrange(8, 16)}
        for _ in range(n)
    ]


def expected(days: Days, quality: Quality) -> set[tuple[int, str]]:
    """The (day, kind) whose rows are news, by a loop over the days before; the last day is not over."""
    found = set()
    for day in range(len(days) - 1):
        before = [days[d] for d in range(max(0, day - 28), day)]
        if len([d for d in before if sum(d.values())]) < 7:
            continue
        for kind in {k for d in (*before, days[day]) for k in d}:
            counts = [d.get(kind, 0) for d in before]
            rows, usual = days[day].get(kind, 0), statistics.median(counts)
            mad = statistics.median(abs(c - usual) for c in counts)
            spread = max(1.4826 * mad, 1 + usual**0.5, 0.05 * usual)
            times = rows > quality.volume_ratio * usual or rows * quality.volume_ratio < usual
            if times and abs(rows - usual) / spread > quality.volume_score:
                found.add((day, kind))
    return found


def findings(results: dict[str, Any], rule: str) -> set[tuple[int, str]]:
    return {((dt.date.fromisoformat(e["day"]) - FIRST).days, e["event"]) for e in results[rule].examples}


@pytest.mark.parametrize("batches", [1, 3, 40])
def test_days_unlike_the_28_before_them(batches: int) -> None:
    days = usual_days(40)
    days[12]["open"] = 700  # too many
    days[20]["send"] = 90  # too few
    del days[30]["click"]  # none at all, of very few
    del days[33]["open"]
    days[35]["install"] = 300  # a kind never seen
    days[36]["send"] = 1900  # not twice the usual
    quality = Quality(keep_examples=100)
    past, found = Past(), {"volume": set(), "kind_share": set(), "new_value": set()}
    for i in range(batches):
        some = range(i * 40 // batches, (i + 1) * 40 // batches)
        batch = {"acme": tally_of([days[d] for d in some], some[0])}
        results = judge(past, batch, quality, BOOK)
        for rule, one in found.items():
            new = findings(results, rule)
            assert not one & new, "no day is judged twice"
            one |= new
        past.add(batch)
    assert found["volume"] == expected(days, quality)
    assert {(12, "open"), (20, "send"), (33, "open"), (35, "install")} <= found["volume"]
    assert found["new_value"] == {(35, "install")}
    assert (12, "open") in found["kind_share"]


def test_quiet_days_and_short_histories_are_no_news() -> None:
    quality = Quality()
    for days in (usual_days(60, 3), [*usual_days(6), {"send": 9}], []):
        batch = {"acme": tally_of(days)} if days else {}
        results = judge(Past(), batch, quality, BOOK)
        assert [r.name for r in results.values() if r.count] == []


def test_values_never_seen_before() -> None:
    past = Past()
    past.add({"acme": tally_of(usual_days(10), 0, provider={"gmail": 900}, campaign={"a": 100, "b": 900})})
    day = usual_days(1)[0]
    rows = sum(day.values())

    def new(client: str, **values: dict[str, int]) -> list[dict[str, Any]]:
        found = judge(past, {client: tally_of([day], 10, **values)}, Quality(), BOOK)["new_value"].examples
        return [{k: v for k, v in e.items() if k not in ("day", "rows", "share")} for e in found]

    assert new("acme", provider={"gmail": rows}) == []
    assert new("acme", provider={"gmail": rows, "spamhaus": rows // 50}) == [{"client": "acme", "provider": "spamhaus"}]
    assert new("acme", provider={"gmail": rows, "tiny": rows // 200}) == []
    assert new("acme", campaign={"c": rows // 2}) == []  # the greatest campaign of the batch before was 90%
    assert new("other") == [{"client": "other"}]
    past.tops["acme"] = [0.1]
    assert new("acme", campaign={"c": rows // 2 + 1}) == [{"client": "acme", "campaign": "c"}]
    assert new("acme", campaign={"c": rows // 3}) == []


def test_tallies_add_up() -> None:
    one, two = tally_of(usual_days(3), 0, provider={"x": 1}), tally_of(usual_days(3, 1), 2, provider={"x": 2, "y": 3})
    total: Tally = {}
    for part in (one, two):
        add_tally(total, part)
    assert total["provider"] == {"x": 3, "y": 3}
    assert total["days"][iso(2)]["send"][0] == one["days"][iso(2)]["send"][0] + two["days"][iso(2)]["send"][0]
    assert total["happened"] == iso(4)
    add_tally(total, {**one, "campaign": None})
    assert total["campaign"] is None


def rows_of(day: int, opens: int, machine: bool = False) -> list[Row]:
    found = []
    for i in range(40 + opens):
        ts = START + day * DAY + (i + 1) * 60_000_000
        kind = "send" if i < 40 else "open"
        found.append(
            {"client": "acme", "user": f"u{i % 40}", "time": ts, "kind": kind, "id": day * 1000 + i,
             "campaign": f"c{day}", "provider": "gmail", "amount": None, "arrived": ts + 1}
        )  # fmt: skip
    return found


def test_a_day_of_too_many_opens_through_the_ingest(tmp_path: Path, backend: Backend) -> None:
    for day in range(14):
        write(tmp_path / f"raw/{day:02d}.parquet", rows_of(day, 200 if day == 11 else 12))
    options = config(tmp_path, batch_rows=1000, quality={"actions": {"repeated_response": "off"}})
    ingest(options, backend)
    store = EventStore(options.store_uri, backend)
    rules = {r["name"]: r for r in store.rules()}
    (example,) = (e for e in rules["volume"]["examples"] if e["event"] == "open")
    assert (example["day"], example["rows"], example["usual"]) == (iso(11), 200, 12)
    assert rules["volume"]["unit"] == "findings"
    assert rules["volume"]["share"] == rules["volume"]["count"] / rules["volume"]["of"]
    sums: dict[str, list[int]] = {}
    for manifest in store.manifests().values():
        if manifest["kind"] == "ingest":
            for day, kinds in manifest["tally"]["acme"]["days"].items():
                sums[day] = [
                    a + b for a, b in zip(sums.get(day, [0, 0]), (kinds["send"][0], kinds["open"][0]), strict=True)
                ]
    assert sums == {iso(d): [40, 200 if d == 11 else 12] for d in range(14)}
    for day in range(14, 17):  # another ingest, in the light of those before
        write(tmp_path / f"raw/{day:02d}.parquet", rows_of(day, 300 if day == 15 else 12))
    report = ingest(options, backend)
    volume = next(r for r in report.rules if r.name == "volume")
    assert [e["day"] for e in volume.examples if e["event"] == "open"] == [iso(15)]
    write(tmp_path / "raw/17.parquet", rows_of(17, 300))
    write(tmp_path / "raw/18.parquet", rows_of(18, 12))
    strict = config(tmp_path, quality={"actions": {"repeated_response": "off", "volume": "fail"}})
    with pytest.raises(DataError, match=r"rule volume .* times of batch"):
        ingest(strict, backend)
    assert EventStore(options.store_uri).totals()["in"] == sum(
        40 + (200 if d == 11 else 300 if d == 15 else 12) for d in range(17)
    )


def test_trend() -> None:
    arrivals = {iso(d): 100 + d for d in range(40) if d != 20}
    found = trend({iso(39): 39, iso(12): 28, iso(3): 9}, arrivals)
    assert found["days"] == [iso(d) for d in range(11, 40) if d != 20]
    assert found["latest"] == 39 / 139
    assert found["values"][1] == 28 / 112
    assert found["usual"] == 0
    assert trend({}, {iso(0): 5})["usual"] is None
    assert trend({}, {}) == {"days": [], "values": [], "usual": None, "latest": None}
