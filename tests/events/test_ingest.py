"""Raw files to the store: nothing lost, nothing doubled, everything counted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.events.ingest as ingest_module
from pipeline.backend import PANDAS, Backend
from pipeline.errors import ConfigError, DataError, SourceError, StoreError
from pipeline.events import ranges, sources
from pipeline.events.files import digest_of
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.events.logs import DAY, START, config, expected, random_rows, rows_of_frame, write


def everything(uri: str, client: str, backend: Backend, partitions: int = 1, **options: Any) -> list[tuple[Any, ...]]:
    frame = EventStore(uri, backend).read(client, partitions=partitions, **options).compute(scheduler="sync")
    return rows_of_frame(frame)


@pytest.mark.parametrize("integer_ids", [False, True])
def test_duplicates_across_files_and_days(tmp_path: Path, backend: Backend, integer_ids: bool) -> None:
    rng = random.Random(3)
    rows = random_rows(600, integer_ids=integer_ids)
    later = [dict(r, arrived=r["arrived"] + 5) for r in rng.sample(rows, 100)]
    conflicting = [dict(r, campaign="other", arrived=r["arrived"] + 9) for r in rng.sample(rows, 40)]
    every = rows + later + conflicting + rng.sample(rows, 50)
    rng.shuffle(every)
    days = [every[i::3] for i in range(3)]
    settings = config(tmp_path)
    reports = []
    for i, day in enumerate(days):  # one ingest a day: duplicates lie across batches
        write(tmp_path / f"raw/day={i}/a.parquet", day[: len(day) // 2])
        write(tmp_path / f"raw/day={i}/b.parquet", day[len(day) // 2 :])
        reports.append(ingest(settings, backend))
    for report, day in zip(reports, days, strict=True):
        assert report.rows_in == len(day) == report.kept + report.duplicates + report.rejected
        assert report.batches == 1
        assert report.files == 2
    assert sum(r.rows_in for r in reports) == len(every)
    for client in ("acme", "globex"):
        for partitions in (1, 2, 7, 64):
            assert everything(settings.store_uri, client, backend, partitions) == expected(every, client)


def test_a_column_of_nulls_alone_is_in_no_file_and_in_every_read(tmp_path: Path, backend: Backend) -> None:
    import polars

    from pipeline.events.compaction import compact

    bare = [dict(r, campaign=None, amount=None) for r in random_rows(300)]
    full = random_rows(300, seed=1)
    then = {"time": START + 60 * DAY, "arrived": START + 60 * DAY}
    late = [dict(random_rows(1, seed=2)[0], client=name, **then) for name in ("acme", "globex")]
    every = [*bare, *full, *late, *bare[:40]]
    settings = config(tmp_path)
    for day, rows in enumerate((bare, full + bare[:40], late)):  # then May is over, and can be compacted
        write(tmp_path / f"raw/day={day}.parquet", rows)
        ingest(settings, backend, compaction=False)
    root = Path(settings.store_uri)
    have = [set(pq.ParquetFile(f).schema_arrow.names) for f in root.glob("client=*/*.parquet")]
    without = {"campaign", "value"}
    assert sorted(len(without - names) for names in have) == [0, 0, 0, 0, 2, 2]  # of two clients and three batches
    assert all(names >= set(EventStore(str(root)).schema.names) - without - {"flagged_by"} for names in have)
    for compacted in (False, True):
        for client in ("acme", "globex"):
            if compacted:
                assert compact(EventStore(settings.store_uri), client) == 2
            for partitions in (1, 3):
                assert everything(settings.store_uri, client, backend, partitions) == expected(every, client)
            few = EventStore(settings.store_uri, backend).read(client, columns=["event"]).compute(scheduler="sync")
            assert len(few) == len(expected(every, client))  # what tells duplicates is read from files without it
        table = polars.scan_delta(str(root)).collect()  # any Delta reader fills in what a file does not have
        rows = every[:602] if compacted else every
        assert len(table) == len(rows)
        assert table["campaign"].null_count() == sum(r["campaign"] is None for r in rows)
        assert table["value"].null_count() == sum(r["amount"] is None for r in rows)


def test_rules_of_every_day_are_kept_with_the_store(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(300)
    settings = config(tmp_path)
    for day in range(2):
        other = [dict(r, provider="aol", arrived=r["arrived"] + 2) for r in rows[100 * day : 100 * day + 30]]
        write(tmp_path / f"raw/day={day}.parquet", rows[100 * day : 100 * day + 100] + other)
        ingest(settings, backend)
    found = {rule["name"]: rule for rule in EventStore(settings.store_uri, backend).rules(examples=3)}
    assert found["conflicting_duplicate"]["count"] == 60
    assert found["conflicting_duplicate"]["share"] == 60 / 260
    assert len(found["conflicting_duplicate"]["examples"]) == 3


def test_one_batch_counts_duplicates_and_conflicts(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(300)
    again = [dict(r, arrived=r["arrived"] + 1) for r in rows[:70]]
    other = [dict(r, provider="aol", arrived=r["arrived"] + 2) for r in rows[100:130]]
    write(tmp_path / "raw/x.parquet", rows + again + other)
    report = ingest(config(tmp_path), backend)
    assert (report.kept, report.duplicates, report.rejected, report.conflicts) == (300, 100, 0, 30)
    conflict = next(r for r in report.rules if r.name == "conflicting_duplicate")
    assert conflict.count == 30
    duplicate = next(r for r in report.rules if r.name == "duplicate")
    assert (duplicate.count, duplicate.share) == (100, 100 / 400)
    assert duplicate.examples[0]["event_id"] in {r["id"] for r in again + other}
    assert {"client", "subscriber", "ts", "event", "event_id"} <= set(conflict.examples[0])
    assert report.line().startswith("rows in 400 = kept 300 + duplicates 100 + rejected 0")


def test_deduplicate_false_keeps_all(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(100)
    settings = config(tmp_path, deduplicate=False)
    write(tmp_path / "raw/1.parquet", rows + rows[:10])
    assert ingest(settings, backend).kept == 110
    write(tmp_path / "raw/2.parquet", rows[:20])
    assert ingest(settings, backend).kept == 20
    assert sum(len(everything(settings.store_uri, c, backend, 3)) for c in ("acme", "globex")) == 130
    write(tmp_path / "raw/3.parquet", rows[:5])
    with pytest.raises(ConfigError, match="deduplicate"):
        ingest(config(tmp_path), backend)


def test_same_files_again_add_nothing(tmp_path: Path, backend: Backend) -> None:
    settings = config(tmp_path)
    write(tmp_path / "raw/1.parquet", random_rows(50))
    write(tmp_path / "raw/empty.parquet", [])
    first = ingest(settings, backend)
    files = {p: p.stat().st_mtime_ns for p in Path(settings.store_uri).rglob("*")}
    again = ingest(settings, backend)
    assert (again.rows_in, again.files, again.skipped_files, again.batches) == (0, 0, 2, 0)
    assert "nothing new" in again.line()
    assert again.version == first.version
    (tmp_path / "raw/1.parquet").touch()  # another time of change, the same content
    assert ingest(settings, backend).rows_in == 0
    write(tmp_path / "raw/2.parquet", random_rows(50, seed=2))
    assert ingest(settings, backend).kept == 50
    now = {p: p.stat().st_mtime_ns for p in Path(settings.store_uri).rglob("*") if p.is_file()}
    assert all(now[p] == t for p, t in files.items() if p in now), "one more file rewrites nothing"


def test_a_changed_source_file_is_refused_by_name(tmp_path: Path, backend: Backend) -> None:
    settings = config(tmp_path, {"on_error": "fail"})
    path = write(tmp_path / "raw/1.parquet", random_rows(50))
    ingest(settings, backend)
    write(path, random_rows(50, seed=9))
    with pytest.raises(SourceError, match=r"1\.parquet.*content has changed"):
        ingest(settings, backend)


def test_without_event_ids_equal_rows_are_duplicates(tmp_path: Path, backend: Backend) -> None:
    """Every source column counts, mapped or not: rows that differ only in an unmapped one are distinct events."""
    rows = [dict(r, basket=i) for i, r in enumerate(random_rows(80))]
    same = [dict(r, id=1, time=START, basket=r["basket"]) for r in rows]
    settings = config(tmp_path, columns={"event_id": None})
    write(tmp_path / "raw/1.parquet", same + same[:30], {"basket": pa.int32()})
    report = ingest(settings, backend)
    assert (report.kept, report.duplicates) == (80, 30)
    write(tmp_path / "raw/2.parquet", same[:15], {"basket": pa.int64()})  # wider type, same values
    ingest(settings, backend)
    assert sum(len(everything(settings.store_uri, c, backend)) for c in ("acme", "globex")) == 80


def test_quarantine_adds_up(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(200)
    bad = {
        "null_client": dict(rows[0], client=None),
        "empty_client": dict(rows[1], client=""),
        "unusable_client": dict(rows[2], client="a\0b"),
        "null_subscriber": dict(rows[3], user=None),
        "null_ts": dict(rows[4], time=None),
        "null_event": dict(rows[5], kind=None),
        "impossible_time": dict(rows[6], time=START - 40 * 365 * DAY),
        "unknown_kind": dict(rows[8], kind="opened"),
    }
    future = dict(rows[7], time=rows[7]["arrived"] + DAY + 1)
    several = dict(rows[9], user="", kind="opened")  # counts for the first rule that rejects it
    every = rows + list(bad.values()) + [future, several]
    write(tmp_path / "raw/1.parquet", every)
    settings = config(tmp_path, source={"known": ["send", "open", "click", "delete", "unsubscribe"]})
    report = ingest(settings, backend)
    assert (report.rows_in, report.kept, report.duplicates, report.rejected) == (210, 200, 0, 10)
    assert report.rejected_by == dict.fromkeys(bad, 1) | {"impossible_time": 2, "null_subscriber": 2}
    (path,) = (settings.run_dir / "quarantine").glob("*.parquet")
    kept = pq.read_table(path).to_pylist()
    assert {(r["rule"], r["source_row"]) for r in kept} == {
        *((name, 200 + i) for i, name in enumerate(bad)),
        ("impossible_time", 208),
        ("null_subscriber", 209),
    }
    assert all(r["source_file"].endswith("1.parquet") for r in kept)
    result = {r.name: r for r in report.rules}
    assert result["unknown_kind"].examples[0]["row"] == 207
    assert result["unknown_kind"].share == pytest.approx(1 / 210)
    assert result["null_ts"].examples[0]["ts"] is None


@pytest.mark.parametrize("action", ["reject", "flag"])
def test_values_out_of_range(tmp_path: Path, backend: Backend, action: str) -> None:
    rows = random_rows(100)
    amounts = [None, -1, 0, 1_500_000, 1_500_001, 2**62]
    for row, amount in zip(rows, amounts, strict=False):
        row["amount"] = amount
    wrong = sorted(r["id"] for r in rows if r["amount"] is not None and not 0 <= r["amount"] <= 1_500_000)
    write(tmp_path / "raw/1.parquet", rows)
    quality = {"value_range": [0, 1.5], "actions": {"value_out_of_range": action}, "fail_above": 1}
    settings = config(tmp_path, quality=quality)
    report = ingest(settings, backend)
    assert next(r for r in report.rules if r.name == "value_out_of_range").count == len(wrong)
    store = EventStore(settings.store_uri, backend)
    frames = [store.read(c).compute() for c in store.clients()]
    frames = [f.to_pandas() if backend.on_gpu else f for f in frames]
    flagged = [int(i) for f in frames for i in f.event_id[f.flagged_by.astype(str).str.contains("value_out")]]
    assert (report.rejected, sorted(flagged)) == ((len(wrong), []) if action == "reject" else (0, wrong))


def test_too_many_rejects_fail_and_commit_nothing(tmp_path: Path, backend: Backend) -> None:
    write(
        tmp_path / "raw/1.parquet",
        [dict(r, user=None if i % 3 == 0 else r["user"]) for i, r in enumerate(random_rows(90))],
    )
    with pytest.raises(DataError, match=r"null_subscriber 30.*fail_above"):
        ingest(config(tmp_path), backend)
    assert EventStore(str(tmp_path / "runs/test/store")).rows() == 0


def test_a_time_outside_the_calendar_is_none_even_where_any_time_is_accepted(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(50)
    beyond = [dict(rows[0], time=2**62), dict(rows[1], time=-(2**62))]
    edge = [dict(rows[2], id=-1, time=253_402_300_799_999_999), dict(rows[3], id=-2, time=-62_135_596_800_000_000)]
    write(tmp_path / "raw/1.parquet", rows + beyond + edge)
    settings = config(tmp_path, quality={"actions": {"impossible_time": "off"}})
    report = ingest(settings, backend)
    assert (report.kept, report.rejected_by) == (52, {"invalid_ts": 2})
    assert {r["id"] for r in edge} <= {
        r[4] for c in ("acme", "globex") for r in everything(settings.store_uri, c, backend)
    }


def test_actions(tmp_path: Path, backend: Backend) -> None:
    write(
        tmp_path / "raw/1.parquet",
        [dict(r, kind="odd" if i == 5 else r["kind"]) for i, r in enumerate(random_rows(50))],
    )
    source = {"known": ["send", "open", "click", "delete", "unsubscribe"]}
    with pytest.raises(ConfigError, match=r"no rule 'unknown_kinds'.*unknown_kind"):
        ingest(config(tmp_path, source, quality={"actions": {"unknown_kinds": "off"}}), backend)
    with pytest.raises(ConfigError, match="null_subscriber cannot be 'off'"):
        ingest(config(tmp_path, source, quality={"actions": {"null_subscriber": "off"}}), backend)
    with pytest.raises(DataError, match="rule unknown_kind"):
        ingest(config(tmp_path, source, quality={"actions": {"unknown_kind": "fail"}}), backend)
    report = ingest(config(tmp_path, source, quality={"actions": {"unknown_kind": "warn"}}), backend)
    assert report.kept == 50
    assert next(r for r in report.rules if r.name == "unknown_kind").count == 1


def test_late_arrivals_and_machine_events(tmp_path: Path, backend: Backend) -> None:
    base = {"client": "acme", "provider": None, "amount": None, "user": "u", "campaign": "c"}
    day = START + DAY
    facts = [
        ("send", day, 1, "c"),
        ("open", day + 500_000, 2, "c"),  # within two seconds of its send
        ("click", day + 1_999_999, 3, "c"),
        ("click", day + 2_000_000, 4, "c"),  # just not
        ("click", day + 100, 5, "other"),  # of another campaign
        ("open", day - 10, 6, "c"),  # before the send
    ]
    rows = [base | {"kind": k, "time": t, "id": i, "campaign": c, "arrived": t + 1} for k, t, i, c in facts]
    rows.append(base | {"kind": "open", "time": day, "id": 7, "arrived": day + 2 * DAY + 1})  # at the very instant
    rows.append(base | {"kind": "open", "time": day + DAY, "id": 8, "arrived": day + 3 * DAY})
    write(tmp_path / "raw/1.parquet", rows)
    settings = config(tmp_path)
    report = ingest(settings, backend)
    found = {r.name: r.count for r in report.rules if r.count}
    assert found == {
        "scanner_click": 1,
        "machine_open": 2,
        "late_arrival": 1,
        "out_of_order": 1,  # 7 came after all of its day; 8 is the last
        "click_without_open": 3,
        "response_without_send": 2,  # 5 and 6
    }
    frame = EventStore(settings.store_uri, backend).read("acme").compute()
    frame = frame.to_pandas() if backend.on_gpu else frame
    assert sorted(frame.event_id[frame.machine]) == [2, 3, 7]
    names = frame.flagged_by.astype(object).where(frame.flagged_by.notna(), "")
    flags = dict(zip(frame.event_id, names, strict=True))
    assert {i: text for i, text in flags.items() if text} == {
        2: "machine_open",
        3: "scanner_click",
        7: "late_arrival,out_of_order,machine_open",
    }


def test_a_log_that_does_not_say_when_rows_arrived_has_no_late_ones(tmp_path: Path, backend: Backend) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(50))  # of long ago
    report = ingest(config(tmp_path, columns={"ingested_at": None}), backend)
    assert not [r for r in report.rules if r.name == "late_arrival" and r.count]


def test_mapping_errors_come_before_any_work(tmp_path: Path, backend: Backend) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(10))
    with pytest.raises(ConfigError, match=r"no column 'usr', did you mean 'user'"):
        ingest(config(tmp_path, columns={"subscriber": "usr"}), backend)
    assert not Path(config(tmp_path).store_uri).exists()
    write(tmp_path / "raw/2.parquet", [{k: v for k, v in r.items() if k != "campaign"} for r in random_rows(10)])
    with pytest.raises(ConfigError, match=r"2\.parquet.*no column 'campaign'"):
        ingest(config(tmp_path, {"on_error": "fail"}), backend)
    assert not Path(config(tmp_path).store_uri).exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="no Parquet file"):
        ingest(config(tmp_path, {"path": str(tmp_path / "none")}), backend)
    with pytest.raises(SourceError, match="no such file"):
        ingest(config(tmp_path, {"path": str(tmp_path / "nowhere")}), backend)


def test_a_damaged_source_file_is_named(tmp_path: Path, backend: Backend) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(10))
    path = write(tmp_path / "raw/2.parquet", random_rows(500, seed=2))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text", whole[:2000] + bytes(1500) + whole[3500:]):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"2\.parquet"):
            ingest(config(tmp_path, {"on_error": "fail"}), backend)


def test_hostile_clients_stay_inside(tmp_path: Path, backend: Backend) -> None:
    names = ["../../up", "..", "a/b", "a'b\"c%2F", "\u00e9", "e\u0301", "x" * 240, "a b\n", "client=z", "~"]
    rows = [dict(random_rows(1)[0], client=n, id=i) for i, n in enumerate(names)]
    too_long = dict(rows[0], client="x" * 241)
    write(tmp_path / "raw/1.parquet", [*rows, too_long])
    settings = config(tmp_path)
    assert ingest(settings, backend).rejected_by == {"unusable_client": 1}
    store = EventStore(settings.store_uri, backend)
    assert store.clients() == sorted(names)
    for i, name in enumerate(names):
        assert store.read(name).compute(scheduler="sync")["event_id"].to_numpy().tolist() == [i]
    root = Path(settings.store_uri)
    assert {p.relative_to(root).parts[0][:7] for p in root.rglob("*.parquet")} == {"client=", "_eventg"}
    assert {p.name for p in tmp_path.iterdir()} == {"raw", "runs"}
    import polars

    table = polars.scan_delta(str(root)).collect()  # any Delta reader sees the names as they are
    assert sorted(table["client"].to_list()) == sorted(names)


def test_one_tenant_hive_folders_and_globs(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(40)
    write(tmp_path / "raw/shop=n%20e/1.parquet", rows[:20])
    write(tmp_path / "raw/shop=s/2.parquet", rows[20:])
    settings = config(tmp_path, {"path": str(tmp_path / "raw/**/*.parquet")}, {"client": "shop"})
    ingest(settings, backend)
    assert EventStore(settings.store_uri).clients() == ["n e", "s"]
    one = config(
        tmp_path,
        {"path": str(tmp_path / "raw/shop=s/2.parquet"), "client": "only"},
        {"client": None},
        store=str(tmp_path / "s2"),
    )
    assert ingest(one, backend).kept == 20
    assert EventStore(one.store_uri).clients() == ["only"]


def test_batches_split_large_files_by_row_group(tmp_path: Path, backend: Backend) -> None:
    rows = random_rows(5000, subscribers=300)
    write(tmp_path / "raw/1.parquet", rows[:3500], row_group_size=400)
    write(tmp_path / "raw/2.parquet", rows[3500:], row_group_size=400)
    settings = config(tmp_path, batch_rows=1000)
    report = ingest(settings, backend)
    assert report.batches > 4
    assert report.kept == 5000
    assert ingest(settings, backend).rows_in == 0
    for client in ("acme", "globex"):
        assert everything(settings.store_uri, client, backend, 4) == expected(rows, client)


class Portable(Backend):
    """The CPU without compiled twins."""

    @property
    def compiled(self) -> bool:
        return False


@pytest.mark.parametrize("texts", [False, True])
def test_the_files_are_the_same_for_any_workers_and_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: bool
) -> None:
    for module in (ranges, ingest_module):  # several key ranges from few rows
        monkeypatch.setattr(module, "part_bits", lambda rows: (rows // 200).bit_length())
    rows = random_rows(3000, subscribers=200, integer_ids=True)
    rows += [dict(r, arrived=r["arrived"] + 5, campaign="other") for r in rows[::10]] + rows[::7]
    random.Random(1).shuffle(rows)
    for i in range(7):  # some files name their subscribers by numbers, some by texts
        part = [dict(r, user=str(r["user"])) if texts and i % 2 else r for r in rows[i::7]]
        write(tmp_path / f"raw/{i}.parquet", part)
    found = []
    for backend, workers in ((PANDAS, 1), (PANDAS, 5), (Portable("pandas"), 2)):
        settings = config(tmp_path, batch_rows=1000, store=str(tmp_path / f"store-{len(found)}"))
        report = ingest(settings, backend, workers=workers, compaction=False)
        assert (report.rows_in, report.batches) == (len(rows), 7)
        files = sorted(p.relative_to(settings.store_uri) for p in Path(settings.store_uri).rglob("client=*/*.parquet"))
        assert len(files) > 20
        found.append([str(f) for f in files])  # a name holds the digest of the content
        for client in ("acme", "globex"):
            assert everything(settings.store_uri, client, PANDAS) == expected(
                [dict(r, user=str(r["user"])) for r in rows], client
            )
    assert found[0] == found[1] == found[2]


def test_a_batch_that_is_refused_while_the_next_is_read(tmp_path: Path, backend: Backend) -> None:
    for i in range(4):
        rows = random_rows(1000, seed=i)
        write(tmp_path / f"raw/{i}.parquet", [dict(r, user=None) for r in rows] if i == 1 else rows)
    settings = config(tmp_path, batch_rows=1000)
    with pytest.raises(DataError, match="null_subscriber"):
        ingest(settings, backend)
    assert EventStore(settings.store_uri).rows() == 1000
    write(tmp_path / "raw/1.parquet", random_rows(1000, seed=1))
    report = ingest(settings, backend)
    assert (report.kept, report.skipped_files) == (3000, 1)


def test_one_large_file_is_read_in_parts_under_one_digest(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "UNIT_ROWS", 700)
    made = []
    monkeypatch.setattr(sources, "digest_of", lambda fs, path: made.append(path) or digest_of(fs, path))
    rows = random_rows(3000)
    write(tmp_path / "raw/1.parquet", rows, row_group_size=300)
    settings = config(tmp_path)
    report = ingest(settings, backend)
    assert (report.files, report.batches, report.kept, len(made)) == (1, 1, 3000, 1)
    assert ingest(settings, backend).rows_in == 0
    for client in ("acme", "globex"):
        assert everything(settings.store_uri, client, backend) == expected(rows, client)


def test_read_only_target(tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(10))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot"):
        ingest(config(tmp_path, store=str(tmp_path / "file/store")), backend)


def test_two_subscribers_with_one_key_are_refused(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    import pipeline.events.prepare as prepare

    monkeypatch.setattr(prepare, "hash_ids", lambda ids, backend: np.zeros(len(ids), dtype=np.int64))
    for integer_ids in (False, True):
        write(tmp_path / f"{integer_ids}/1.parquet", random_rows(10, integer_ids=integer_ids))
        settings = config(tmp_path, {"path": str(tmp_path / str(integer_ids))}, store=str(tmp_path / f"s{integer_ids}"))
        with pytest.raises(DataError, match="one and the same subscriber_key"):
            ingest(settings, backend)
