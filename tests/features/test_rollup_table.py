"""The table of roll-ups kept up to date batch by batch equals one made from everything, however the batches come."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from deltalake import DeltaTable

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.events.compaction import compact_closed
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from pipeline.features import rollup, rollup_table, rollup_update
from tests.events.logs import DAY, START, config, write
from tests.events.logs import random_rows as log_rows

ZONES = ["UTC", "America/New_York"]


def days_of(rng: random.Random, days: int, each: int) -> list[list[dict[str, Any]]]:
    """Files of events of one day each: some late, some there before, some again and earlier under another campaign."""
    rows = log_rows(days * each, seed=rng.randrange(100), subscribers=25, days=days)
    for row in rows:
        row["arrived"] = row["time"] + rng.choice((1, 1, 1, 1, 3 * DAY, 20 * DAY))
    for row in rng.sample(rows, days * each // 8):
        rows.append(dict(row, arrived=row["arrived"] + rng.choice((-1, 0, DAY)), campaign=rng.choice(("a", "Ω", None))))
    for row in [r for r in rows if r["kind"] == "send"][::5]:  # what a scanner does
        rows.append(dict(row, kind="click", id=row["id"] + 500_000, time=row["time"] + 1, arrived=row["arrived"] + 2))
    files: list[list[dict[str, Any]]] = [[] for _ in range(days)]
    for row in rows:
        files[min((row["arrived"] - START) // DAY, days - 1)].append(row)
    return files


def tables(settings: Config, backend: Backend, uri: str) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Client -> rows, as they were kept up to date, and as made from everything now."""
    store = EventStore(settings.store_uri, backend)
    kept = {c: rollup_table.read(uri, c) for c in store.clients()}
    return kept, {c: rollup.rollup(store, c, settings) for c in store.clients()}


def update(settings: Config, backend: Backend, uri: str) -> list[rollup_update.Update]:
    store = EventStore(settings.store_uri, backend)
    return [rollup_update.update(store, client, settings, uri) for client in store.clients()]


def settings_of(tmp: Path, seed: int, **more: Any) -> Config:
    options = {"timezone": ZONES[seed % 2], "partitions": (1, 2, 7)[seed % 3], **more}
    return config(tmp, quality={"actions": {"impossible_time": "warn"}}, **options)


def check_equal(kept: dict[str, pd.DataFrame], fresh: dict[str, pd.DataFrame]) -> None:
    assert kept.keys() == fresh.keys()
    for client, table in fresh.items():
        pd.testing.assert_frame_equal(kept[client], table, check_dtype=False)


LONG = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12)]


@pytest.mark.parametrize("seed", [0, 1, *LONG])
def test_kept_up_to_date_equals_made_from_everything(tmp_path: Path, backend: Backend, seed: int) -> None:
    rng = random.Random(seed)
    settings = settings_of(tmp_path, seed)
    uri = str(tmp_path / "rollups")
    files = days_of(rng, 32, 12)
    order = list(range(32))
    if seed % 2:
        rng.shuffle(order)
    reasons, touched = [], 0
    step = 8
    for begin in range(0, 32, step):
        for day in order[begin : begin + step]:
            write(tmp_path / f"raw/{day:03d}.parquet", files[day])
        ingest(settings, backend, compaction=False)
        if rng.random() < 0.5:
            compact_closed(settings.store_uri)
        done = update(settings, backend, uri)
        reasons += [d.reason for d in done]
        touched += sum(d.touched.get("day", 0) for d in done)
        check_equal(*tables(settings, backend, uri))
    assert reasons == ["there are none yet"] * 2 + [""] * 6
    assert touched > 0
    kinds = tables(settings, backend, uri)[0]["acme"]
    assert kinds.n_machine_click.sum() > 0
    assert [d.batches for d in update(settings, backend, uri)] == [0, 0]


def test_a_new_day_and_a_late_event_touch_only_their_buckets(tmp_path: Path, backend: Backend) -> None:
    settings = config(tmp_path)
    uri = str(tmp_path / "rollups")
    rows = [dict(r, client="acme") for r in log_rows(600, days=40)]
    write(tmp_path / "raw/0.parquet", rows)
    ingest(settings, backend, compaction=False)
    update(settings, backend, uri)
    before = rollup_table.read(uri, "acme")
    day, late = START + 40 * DAY, START + 3 * DAY
    fresh = [dict(r, time=day + 5, arrived=day + 9, id=10_000 + i, campaign="c") for i, r in enumerate(rows[:20])]
    one = dict(rows[0], time=late + 7, arrived=day + 9, id=20_000, kind="open", campaign="a")
    write(tmp_path / "raw/1.parquet", [*fresh, one])
    ingest(settings, backend, compaction=False)
    (done,) = update(settings, backend, uri)
    assert done.touched == {"hour": 2, "day": 2, "month": 2, "campaign": 2}
    assert done.batches == 1
    assert "1 new batch touched 2 hours, 2 days, 2 months, 2 campaigns" in done.line()
    after = rollup_table.read(uri, "acme")
    check_equal(*tables(settings, backend, uri))
    changed = before.merge(after, how="outer", indicator=True).query("_merge != 'both'")
    starts = {pd.Timestamp(t, unit="us") for t in (day, late)}
    assert set(changed[changed.every == "hour"].bucket) == starts
    assert set(changed[changed.every == "day"].bucket) == starts
    assert set(changed[changed.level == "campaign"].campaign) == {"a", "c"}


@pytest.mark.parametrize("change", ["time zone", "levels", "as_known_at", "removed", "state"])
def test_what_old_rows_do_not_hold_for_makes_them_anew(tmp_path: Path, backend: Backend, change: str) -> None:
    settings = config(tmp_path)
    uri = str(tmp_path / "rollups")
    write(tmp_path / "raw/0.parquet", log_rows(300))
    ingest(settings, backend, compaction=False)
    update(settings, backend, uri)
    more: dict[str, Any] = {
        "time zone": {"timezone": "Asia/Tokyo"},
        "levels": {"rollup": {"levels": ["month"]}},
        "as_known_at": {"as_known_at": "2026-05-03"},
    }.get(change, {})
    settings = config(tmp_path, **more)
    if change == "removed":
        state = next(Path(uri, "_eventgrain").glob("*.json"))
        found = json.loads(state.read_text())
        state.write_text(json.dumps({**found, "files": [*found["files"], "client=acme/deadbeef-00of01-0.parquet"]}))
    if change == "state":
        shutil.rmtree(Path(uri, "_eventgrain"))
    reasons = {d.reason for d in update(settings, backend, uri)}
    wanted = {"removed": "rows were removed from the store", "state": "there are none yet"}
    assert wanted.get(change, f"the {change} changed") in reasons
    assert len(reasons) <= 2
    check_equal(*tables(settings, backend, uri))
    if change == "levels":
        assert set(rollup_table.read(uri, "acme").every) == {"month", "all"}


def test_killed_between_state_and_commit_an_update_goes_on(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)
    uri = str(tmp_path / "rollups")
    write(tmp_path / "raw/0.parquet", log_rows(200))
    ingest(settings, backend, compaction=False)
    update(settings, backend, uri)
    write(tmp_path / "raw/1.parquet", log_rows(100, seed=1))
    ingest(settings, backend, compaction=False)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deltalake.write_deltalake", killed)
        with pytest.raises(KeyboardInterrupt):
            update(settings, backend, uri)
    assert [d.batches for d in update(settings, backend, uri)] == [1, 1]
    check_equal(*tables(settings, backend, uri))
    assert len(list(Path(uri, "_eventgrain").iterdir())) == 2  # nothing is left of the one that was killed


def test_written_table(backend: Backend, tmp_path: Path) -> None:
    settings = config(tmp_path)
    write(tmp_path / "raw/0.parquet", log_rows(300))
    rows = [dict(r, client="o'neil & co", kind=r["kind"].replace("click", "tap")) for r in log_rows(200, seed=2)]
    write(tmp_path / "raw/1.parquet", rows)
    ingest(settings, backend)
    uri = str(tmp_path / "rollups")
    first = update(settings, backend, uri)
    assert {d.client for d in first} == rollup_table.clients(uri) == {"acme", "globex", "o'neil & co"}
    check_equal(*tables(settings, backend, uri))
    stored = DeltaTable(uri).to_pandas()
    assert {d.client: d.rows for d in first} == stored.groupby("client").size().to_dict()
    assert set(stored.month) == {"2026-05", "all"}
    rollup_table.drop(uri, "o'neil & co")
    assert rollup_table.clients(uri) == {"acme", "globex"}
    check_equal({"acme": rollup_table.read(uri, "acme")}, {"acme": tables(settings, backend, uri)[1]["acme"]})


def test_compaction_touches_nothing_and_hides_nothing(tmp_path: Path, backend: Backend) -> None:
    settings = config(tmp_path)
    uri = str(tmp_path / "rollups")
    rows = [dict(r, client="acme", arrived=r["time"] + 1) for r in log_rows(200, days=20)]
    for batch in range(2):
        write(tmp_path / f"raw/{batch}.parquet", rows[batch::2])
        ingest(settings, backend, compaction=False)
    update(settings, backend, uri)
    june = START + 36 * DAY
    write(tmp_path / "raw/2.parquet", [dict(rows[0], time=june, arrived=june + 1, id=10_000, campaign="b")])
    ingest(settings, backend, compaction=False)
    assert compact_closed(settings.store_uri) == {"acme": 2}
    (done,) = update(settings, backend, uri)
    assert done.touched == {"hour": 1, "day": 1, "month": 1, "campaign": 1}
    check_equal(*tables(settings, backend, uri))


def test_an_event_that_comes_again_from_another_campaign_leaves_the_one_it_was_counted_under(
    tmp_path: Path, backend: Backend
) -> None:
    settings = config(tmp_path)
    uri = str(tmp_path / "rollups")
    opened = dict(log_rows(1)[0], client="acme", kind="open", time=START, arrived=START + 9, campaign="a")
    other = dict(opened, user="somebody else", id=77)
    write(tmp_path / "raw/0.parquet", [opened, other])
    ingest(settings, backend, compaction=False)
    update(settings, backend, uri)
    write(tmp_path / "raw/1.parquet", [dict(opened, arrived=START + 5, campaign="b")])
    ingest(settings, backend, compaction=False)
    (done,) = update(settings, backend, uri)
    assert done.touched["campaign"] == 2
    kept = rollup_table.read(uri, "acme")
    assert kept[kept.level == "campaign"].set_index("campaign").unique_open.to_dict() == {"a": 1, "b": 1}
    check_equal(*tables(settings, backend, uri))
