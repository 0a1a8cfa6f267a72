"""Which rows are a machine's or cannot be right: through the ingest, against a plain loop over the rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.backend import Backend
from pipeline.config import load
from pipeline.errors import ConfigError
from pipeline.events.ingest import ingest
from pipeline.events.machines import within
from pipeline.events.store import EventStore
from tests.events.logs import DAY, START, Row, config, write

HOUR = DAY // 24
BOT, PERSON, APPLE = "Mozilla/5.0 (compatible; ScanBot/2.1)", "Mozilla/5.0 (X11) Firefox/140.0", "Mozilla/5.0"


def log(seed: int, rows: int = 400) -> list[Row]:
    """A few subscribers and messages, many events soon after one another."""
    rng = random.Random(seed)
    found = []
    for i in range(rows):
        ts = START + rng.randrange(8) * HOUR + rng.choice((0, 500_000, 1_999_999, 2_000_000, 3_000_000))
        found.append(
            {
                "client": "acme",
                "user": f"u{rng.randrange(6)}",
                "time": ts,
                "kind": rng.choice(("send", "open", "open", "click", "click", "delete", "unsubscribe")),
                "id": i,
                "campaign": rng.choice(("a", "b", "c", None)),
                "provider": "gmail",
                "amount": None,
                "arrived": ts + rng.choice((1, 1, 1, HOUR, 3 * DAY)),
                "agent": rng.choice((BOT, PERSON, APPLE, None)),
                "address": rng.choice(
                    ("192.0.2.7", "198.51.100.1", "2001:db8::1", "::ffff:192.0.2.9", "nowhere", None)
                ),
            }
        )
    return found


def expected(rows: list[Row], listed: bool, seen: set[str | None]) -> dict[int, set[str]]:
    """Event id -> the rules that find it, of those in flags.py that look at more than the rate of a subscriber."""
    found: dict[int, set[str]] = {r["id"]: set() for r in rows}
    second = 2_000_000

    def before(row: Row, kind: str) -> list[Row]:
        same = (r for r in rows if (r["user"], r["campaign"]) == (row["user"], row["campaign"]) and r is not row)
        return [r for r in same if r["kind"] == kind and r["time"] <= row["time"]]

    def soon(row: Row) -> bool:
        return any(row["time"] - s["time"] < second for s in before(row, "send"))

    for row in rows:
        names, kind, fresh = found[row["id"]], row["kind"], row["campaign"] not in seen and row["campaign"] is not None
        if row["arrived"] - row["time"] > 2 * DAY:
            names.add("late_arrival")
        agent, address = row["agent"] or "", row["address"] or ""
        evidence = soon(row) + (listed and "bot" in agent.lower()) + (listed and "192.0.2." in address)
        since = max((s["time"] for s in before(row, "send")), default=-1)
        opened = any(o["time"] >= since and not soon(o) for o in before(row, "open"))
        same = [r for r in rows if (r["user"], r["campaign"]) == (row["user"], row["campaign"])]
        links = [r for r in same if r["kind"] in ("click", "unsubscribe")]
        burst = any(
            a["time"] <= row["time"] < a["time"] + second
            and sum(a["time"] <= r["time"] < a["time"] + second for r in links) >= 3
            for a in links
        )
        scanner = burst or evidence >= 2 or (soon(row) and not opened and not listed)
        if kind == "click" and scanner:
            names.add("scanner_click")
        if kind == "unsubscribe" and scanner:
            names.add("scanner_unsubscribe")
        if kind == "open" and (evidence >= 2 or (soon(row) and not listed)):
            names.add("machine_open")
        if kind == "open" and listed and agent == APPLE:
            names.add("privacy_open")
        if kind in ("open", "click") and fresh and not before(row, "send"):
            names.add("response_without_send")
        if kind == "click" and fresh and not opened:
            names.add("click_without_open")
        repeats = [r for r in same if r["kind"] == kind]
        if (
            kind in ("open", "click")
            and row["campaign"]
            and any(
                a["time"] <= row["time"] < a["time"] + HOUR
                and sum(a["time"] <= r["time"] < a["time"] + HOUR for r in repeats) > 2
                for a in repeats
            )
        ):
            names.add("repeated_response")
    return found


CHECKED = (
    "late_arrival",
    "scanner_click",
    "scanner_unsubscribe",
    "machine_open",
    "privacy_open",
    "response_without_send",
    "click_without_open",
    "repeated_response",
)
MACHINE = {"scanner_click", "scanner_unsubscribe", "machine_open", "privacy_open", "repeated_response"}


def settings(tmp: Path, listed: bool) -> Any:
    columns = {"agent": "agent", "address": "address"} if listed else {}
    actions = dict.fromkeys(("response_without_send", "click_without_open"), "flag") | {"out_of_order": "off"}
    quality = {"actions": actions, "most_per_message": 2, "machine_addresses": ["192.0.2.0/25", "192.0.2.128/25"]}
    return config(tmp, columns=columns, quality=quality)


@pytest.mark.parametrize("listed", [False, True])
def test_flags_are_those_of_a_plain_loop(tmp_path: Path, backend: Backend, listed: bool) -> None:
    """Two batches, each with messages of its own, and one that the second cannot tell the whole story of."""
    one, two = log(1), [dict(r, id=r["id"] + 1000, time=r["time"] + DAY, arrived=r["arrived"] + DAY) for r in log(2)]
    for row in two:
        row["campaign"] = {"a": "a", "b": "d", "c": "e", None: None}[row["campaign"]]
    options = settings(tmp_path, listed)
    seen: set[str | None] = set()
    wanted: dict[int, set[str]] = {}
    counts = dict.fromkeys(CHECKED, 0)
    for i, rows in enumerate((one, two)):
        write(tmp_path / f"raw/{i}.parquet", rows, {"agent": pa.string(), "address": pa.string()})
        report = ingest(options, backend)
        for rule in report.rules:
            if rule.name in counts:
                counts[rule.name] += rule.count
        wanted |= expected(rows, listed, seen)
        seen |= {r["campaign"] for r in rows}
    frame = EventStore(options.store_uri, backend).read("acme").compute()
    frame = frame.to_pandas() if backend.on_gpu else frame
    assert not {"agent", "address"} & set(frame.columns)
    names = frame.flagged_by.astype(object).where(frame.flagged_by.notna(), "")
    found = {i: set(text.split(",")) - {"", "impossible_rate"} for i, text in zip(frame.event_id, names, strict=True)}
    assert found == wanted
    assert counts == {rule: sum(rule in names for names in wanted.values()) for rule in CHECKED}
    assert set(frame.event_id[frame.machine]) == {i for i, names in wanted.items() if names & MACHINE}
    assert EventStore(options.store_uri).has_machines("acme")
    assert all(counts[rule] for rule in CHECKED if listed or rule != "privacy_open")


def test_rates_that_no_human_reaches(tmp_path: Path, backend: Backend) -> None:
    base = {"client": "acme", "provider": None, "amount": None, "kind": "delete"}
    rows = [
        base | {"user": "busy", "time": START + i * HOUR // 30, "id": i, "campaign": f"c{i}", "arrived": START + DAY}
        for i in range(31)
    ]
    rows += [dict(r, user="human", id=r["id"] + 100, campaign=r["campaign"]) for r in rows[:30]]
    write(tmp_path / "raw/1.parquet", rows)
    options = config(tmp_path)
    rule = next(r for r in ingest(options, backend).rules if r.name == "impossible_rate")
    assert rule.count == 0  # 31 deletes, the first and the last an hour apart
    write(tmp_path / "raw/2.parquet", [dict(rows[0], id=999, campaign="more", time=START)])
    rule = next(r for r in ingest(options, backend).rules if r.name == "impossible_rate")
    assert rule.count == 0, "a batch is judged by itself"
    write(tmp_path / "other/raw/1.parquet", [*rows, dict(rows[0], id=999, campaign="more", time=START)])
    options = config(tmp_path / "other")
    rule = next(r for r in ingest(options, backend).rules if r.name == "impossible_rate")
    assert (rule.count, rule.examples[0]["subscriber"]) == (31, "busy")
    frame = EventStore(options.store_uri, backend).read("acme").compute()
    frame = frame.to_pandas() if backend.on_gpu else frame
    assert not frame.machine.any()
    assert not EventStore(options.store_uri).has_machines("acme")


def test_networks() -> None:
    test = within(["192.0.2.0/24", "2001:db8::/32", "192.0.2.128/25"])
    assert [test(a) for a in ("192.0.2.0", " 192.0.2.255", "192.0.3.0", "2001:db8:1::", "2001:db9::", "x", "")] == [
        True, True, False, True, False, False, False,
    ]  # fmt: skip
    assert test("::ffff:192.0.2.1")
    with pytest.raises(ConfigError, match=r"machine_addresses.*192\.0\.2\.1/24"):
        load(None, ["quality.machine_addresses=[192.0.2.1/24]"])


def test_the_rules_that_make_a_machine_can_be_chosen(tmp_path: Path, backend: Backend) -> None:
    write(tmp_path / "raw/1.parquet", [{k: v for k, v in r.items() if k not in ("agent", "address")} for r in log(3)])
    options = config(tmp_path, quality={"machine": ["late_arrival"], "actions": {"scanner_click": "off"}})
    ingest(options, backend)
    frame = EventStore(options.store_uri, backend).read("acme").compute()
    frame = frame.to_pandas() if backend.on_gpu else frame
    late = frame.flagged_by.astype(str).str.contains("late_arrival")
    assert late.any()
    assert (frame.machine == late).all()
    assert not frame.flagged_by.astype(str).str.contains("scanner_click").any()
    with pytest.raises(ConfigError, match="did you mean 'machine_open'"):
        ingest(config(tmp_path, quality={"machine": ["machine_opens"]}), backend)
