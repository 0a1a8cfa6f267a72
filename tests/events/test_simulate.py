"""The simulated log against independent computations from its raw files: DuckDB and plain Python."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.events import history, logfiles
from pipeline.events.dirt import RATES
from pipeline.events.simulate import Simulation, simulate
from pipeline.options import Simulate

CLEAN = dict.fromkeys(RATES, 0.0)
DAY = timedelta(days=1)


@dataclass
class Log:
    out: Path
    settings: Simulate
    report: Any

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Run DuckDB on the files: `e` events, `s` sends' truth, `d` dirt, `c` campaigns, `who` subscribers."""
        names = {"e": "events/*", "s": "truth/sends", "d": "truth/dirt", "c": "truth", "who": "truth/subscribers"}
        with duckdb.connect() as base:
            base.execute("set timezone = 'UTC'")
            for name, folder in names.items():
                if list(self.out.glob(f"{folder}/*.parquet")):
                    base.execute(f"create view {name} as select * from '{self.out}/{folder}/*.parquet'")
            table = base.sql(query).to_arrow_table()
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def run(out: Path, workers: int = 1, until: int | None = None, **settings: Any) -> Log:
    values = Simulate(**settings)
    return Log(out, values, simulate(values, out, workers=workers, until=until))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return run(tmp_path_factory.mktemp("clean") / "log", events=250_000, days=60, dirt=CLEAN)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Log:
    rates = {"duplicate": 0.01, "late": 0.02, "null_key": 0.01, "impossible_time": 0.01, "unknown_kind": 0.01}
    rates |= {"scanner": 0.02}
    return run(tmp_path_factory.mktemp("dirty") / "log", events=100_000, days=40, clients=2, seed=5, dirt=rates)


def digests(out: Path) -> dict[str, str]:
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.suffix == ".parquet")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_schema_and_counts(clean: Log) -> None:
    files = sorted(clean.out.glob("events/day=*/*.parquet"))
    assert [f.parent.name for f in files][:2] == ["day=2026-05-01", "day=2026-05-02"]
    assert len(files) == 60
    time = pa.timestamp("us", tz="UTC")
    assert pq.read_schema(files[3]) == pa.schema(
        [
            ("client", pa.string()),
            ("user_id", pa.string()),
            ("event_time", time),
            ("event_name", pa.string()),
            ("campaign_id", pa.string()),
            ("message_id", pa.int64()),
            ("provider", pa.string()),
            ("received_at", time),
        ]
    )
    [(rows, ids, low)] = clean.sql("select count(*), count(distinct message_id), min(message_id) from e")
    assert rows == ids == clean.report.rows
    assert low >= 0
    assert abs(rows / clean.settings.events - 1) < 0.05
    assert dict(clean.sql("select event_name, count(*) from e group by 1")) == {
        k: n for k, n in clean.report.kinds.items() if n
    }
    shares = dict(clean.sql("select client, count(*) / (select count(*) from e) from e group by 1"))
    assert shares["acme"] == pytest.approx(0.7, abs=0.03)


def test_rates_are_the_worlds(clean: Log) -> None:
    rows = clean.sql(
        """with x as (select client, campaign_id, user_id, bool_or(event_name like '%bounce') as bounced,
               bool_or(event_name = 'open') as opened, bool_or(event_name = 'click') as clicked,
               bool_or(event_name = 'unsubscribe') as left_, bool_or(event_name = 'complaint') as complained
             from e where campaign_id is not null group by all)
           select client, avg(bounced::int), avg(opened::int), avg(clicked::int), avg(left_::int), avg(complained::int)
           from x where not bounced or bounced group by 1 order by 1"""
    )
    for _, bounced, *shares in rows:
        assert 0.002 < bounced < 0.02
        opened, clicked, left, complained = (share / (1 - bounced) for share in shares)
        assert 0.15 < opened < 0.30
        assert 0.01 < clicked < 0.04
        assert 0.001 < left < 0.005
        assert 0.0001 < complained < 0.001
    [(main,)] = clean.sql("select avg((event_name in ('send', 'open', 'delete'))::int) from e")
    assert main > 0.95


@pytest.mark.parametrize(
    ("truth", "kinds", "days"),
    [
        ("p_open", "'open'", 3),
        ("p_click", "'click'", 3),
        ("p_unsubscribe", "'unsubscribe'", 7),
        ("p_complaint", "'complaint'", 7),
        ("p_unsubscribe_or_complaint", "'unsubscribe', 'complaint'", 7),
    ],
)
def test_truth_is_calibrated(clean: Log, truth: str, kinds: str, days: int) -> None:
    """Observed against expected counts by decile of the truth, of sends whose horizon lies inside the log."""
    rows = clean.sql(
        f"""with hits as (select distinct e.client, user_id, campaign_id from e join s
              on s.client = e.client and s.subscriber = e.user_id and s.campaign = e.campaign_id
              where event_name in ({kinds}) and event_time >= ts and event_time < ts + interval {days} day),
            x as (select {truth}::double as p, (h.user_id is not null)::int as y,
                ntile(10) over (order by {truth}) as decile
              from s left join hits h on s.client = h.client and s.subscriber = h.user_id and s.campaign = h.campaign_id
              where ts < timestamptz '2026-06-29 12:00:00+00' - interval {days} day)
            select count(*), sum(p), sum(y)::double, sqrt(sum(p * (1 - p))) from x group by decile order by decile"""
    )
    assert len(rows) == 10
    z = [(y - p) / sd for _, p, y, sd in rows]
    assert max(map(abs, z)) < 3.5
    total = (sum(y for *_, y, _ in rows) - sum(p for _, p, *_ in rows)) / np.sqrt(sum(sd**2 for *_, sd in rows))
    assert abs(total) < 3


def test_leaving_can_be_predicted(clean: Log) -> None:
    """The expected PR-AUC of the truth is several times the base rate, and volume and streak carry part of it."""
    p, volume, streak = map(
        np.array, zip(*clean.sql("select p_unsubscribe_or_complaint, volume, streak from s"), strict=True)
    )

    def expected_pr_auc(score: Any) -> float:
        q = p[np.argsort(-score, kind="stable")]
        return float((q * np.cumsum(q) / np.arange(1, len(q) + 1)).sum() / q.sum())

    assert expected_pr_auc(p) > 5 * p.mean()
    assert expected_pr_auc(0.4 * volume + 0.6 * np.log1p(streak)) > 1.8 * p.mean()


def test_log_shows_volume_streak_and_received(clean: Log) -> None:
    """A plain loop over the log of some subscribers finds the covariates that the probabilities were made from."""
    some = "hash(subscriber) % 20 = 0"
    sends: dict[tuple[str, str], list[Any]] = {}
    opens: dict[tuple[str, str], set[Any]] = {}
    for client, subscriber, ts, *seen in clean.sql(
        f"select client, subscriber, ts::date, volume, streak, received from s where {some} order by ts"
    ):
        sends.setdefault((client, subscriber), []).append((ts, *seen))
    for client, user, day in clean.sql(
        "select client, user_id, event_time::date from e where event_name = 'open'"
        f" and {some.replace('subscriber', 'user_id')}"
    ):
        opens.setdefault((client, user), set()).add(day)
    joined = {(c, s) for c, s in clean.sql("select client, subscriber from who where joined is not null")}
    end, checked = datetime(2026, 6, 30, tzinfo=UTC).date(), 0
    for who, mine in sends.items():
        for i, (day, volume, streak, received) in enumerate(mine):
            if day >= end:
                continue
            assert volume == sum(1 for d, *_ in mine[:i] if d >= day - 7 * DAY)
            last = max((d for d in opens.get(who, ()) if d < day), default=None)
            assert streak == sum(1 for d, *_ in mine[:i] if last is None or d > last)
            assert received == (i if who in joined else 1000 + i)
            checked += 1
    assert checked > 5_000


def test_nobody_is_sent_to_after_leaving(clean: Log) -> None:
    stops = "event_name in ('unsubscribe', 'complaint', 'hard_bounce')"
    [(late, stopped)] = clean.sql(
        f"""with x as (select client, user_id, min(event_time) as t from e where {stops} group by all)
            select count(*) filter (e.event_time > x.t + interval 2 day), count(distinct (x.client, x.user_id))
            from x left join e on e.client = x.client and e.user_id = x.user_id and event_name = 'send'"""
    )
    assert late == 0
    assert stopped > 300
    [(early,)] = clean.sql(
        """select count(*) from e s join e j on s.client = j.client and s.user_id = j.user_id
           where j.event_name = 'subscribe' and s.event_time <= j.event_time and s.message_id <> j.message_id"""
    )
    assert early == 0


def test_a_campaign_reaches_a_subscriber_once(clean: Log) -> None:
    [(sends, distinct)] = clean.sql(
        "select count(*), count(distinct (client, user_id, campaign_id)) from e where event_name = 'send'"
    )
    assert sends == distinct
    orphans = clean.sql(
        """select count(*) from e where campaign_id is not null and event_name <> 'send' and not exists
           (select 1 from s where s.client = e.client and subscriber = user_id and campaign = campaign_id
            and ts < event_time)"""
    )
    assert orphans == [(0,)]


def test_files_are_in_arrival_order(dirty: Log) -> None:
    for path in sorted(dirty.out.glob("events/day=*/*.parquet")):
        received = pq.read_table(path, columns=["received_at"])["received_at"].cast(pa.int64()).to_numpy()
        assert np.all(np.diff(received) >= 0)
        day = np.datetime64(path.parent.name.removeprefix("day=")).astype("datetime64[us]").astype(int)
        assert day <= received[0]
        assert received[-1] < day + 86_400_000_000


def test_same_bytes_for_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BLOCK", 256)
    monkeypatch.setattr(history, "GROUP", 2048)
    settings: dict[str, Any] = {"events": 40_000, "days": 20, "clients": 2}
    one = run(tmp_path / "one", workers=1, **settings)
    three = run(tmp_path / "three", workers=3, **settings)
    assert digests(one.out) == digests(three.out)
    assert len(list(one.out.glob("events/*/part-0001.parquet"))) == 20  # several groups
    other = run(tmp_path / "other", seed=2, **settings)
    assert digests(other.out) != digests(one.out)


def test_same_rows_for_any_partitioning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"events": 30_000, "days": 15}
    whole = run(tmp_path / "whole", **settings)
    monkeypatch.setattr(history, "BLOCK", 333)
    monkeypatch.setattr(history, "GROUP", 1000)
    parts = run(tmp_path / "parts", **settings)
    for table in ("e", "s", "d"):
        query = f"select * from {table} order by all"
        assert whole.sql(query) == parts.sql(query)


def test_dirt_is_there_and_recorded(dirty: Log) -> None:
    truth = dict(dirty.sql("select dirt, count(*) from d group by 1"))
    assert truth == {k: n for k, n in dirty.report.dirt.items() if n}
    [(rows,)] = dirty.sql("select count(*) from e")
    for kind in ("duplicate", "late", "out_of_order", "null_key", "impossible_time", "unknown_kind"):
        rate = {**RATES, **dirty.settings.dirt}[kind]
        assert truth[kind] / rows == pytest.approx(rate, rel=0.15), kind
    # Each kind as somebody without the truth would find it.
    found: dict[str, Any] = {
        "null_key": "select count(*) from e where user_id is null or event_time is null or event_name is null",
        "impossible_time": """select count(*) from e where event_time < timestamptz '2000-01-01 00:00:00+00'
            or event_time > received_at + interval 1 day""",
        "unknown_kind": "select count(*) from e where event_name in ('opne', 'heartbeat', 'undefined')",
        "duplicate": "select count(*) - count(distinct message_id) from e",
        "scanner": """select count(*) from (select distinct on (message_id) * from e) e where exists
            (select 1 from s where s.client = e.client and campaign = campaign_id and (subscriber = user_id) and
             event_time < ts + interval 2 second) and event_name = 'click'""",
    }
    for kind in ("null_key", "impossible_time", "unknown_kind", "duplicate"):
        assert dirty.sql(found[kind]) == [(truth[kind],)], kind
    [(hits,)] = dirty.sql(found["scanner"])
    assert hits == pytest.approx(truth["scanner"], rel=0.08)  # but for spoiled rows
    assert truth["scanner"] / dirty.report.sends == pytest.approx(0.02 * 4.5, rel=0.4)  # a few dozen subscribers
    assert truth["machine_open"] / dirty.report.sends == pytest.approx(0.04, rel=0.3)
    [(late,)] = dirty.sql(
        """select count(*) from d join e on message_id = event_id
           where dirt = 'late' and e.received_at < ts + interval 1 day"""
    )
    assert late == 0


def test_anomaly_and_delete_all(dirty: Log) -> None:
    [(days, providers)] = dirty.sql(
        """select count(distinct ts::date), count(distinct provider) from d join e on event_id = message_id
           where dirt = 'anomaly' and event_time = ts"""
    )
    assert (days, providers) == (1, 1)
    [(most, usual)] = dirty.sql(
        """with x as (select provider, event_time::date as day, count(*) as n from e where event_name = 'open'
             and year(event_time) = 2026 group by all),
           p as (select any_value(provider) as provider from d join e on event_id = message_id where dirt = 'anomaly')
           select max(n), median(n) from x join p using (provider)"""
    )
    assert most > 4 * usual
    [(who, count, seconds)] = dirty.sql(
        """select count(distinct (client, subscriber)), count(*), epoch(max(ts) - min(ts)) from d
           where dirt = 'delete_all'"""
    )
    assert who == 1
    assert count >= 3
    assert seconds < 3600


@pytest.mark.parametrize("kind", list(RATES))
def test_each_kind_of_dirt_can_be_alone(kind: str, tmp_path: Path) -> None:
    log = run(tmp_path / "log", events=12_000, days=15, dirt={**CLEAN, kind: max(RATES[kind], 0.02)})
    assert [k for k, n in log.report.dirt.items() if n] == [kind]


def test_dirt_changes_nothing_else(tmp_path: Path) -> None:
    """The flawed log, repaired with the truth, is the clean log; but for rows that arrive too late to be in it."""
    rates = {"late": 0.05, "out_of_order": 0.05, "null_key": 0.02, "impossible_time": 0.02, "unknown_kind": 0.02}
    flawed = run(tmp_path / "flawed", events=30_000, days=15, dirt=CLEAN | rates)
    clean = run(tmp_path / "clean", events=30_000, days=15, dirt=CLEAN)
    repaired = flawed.sql(
        """select message_id, e.client, coalesce(any_value(subscriber), any_value(user_id)),
             coalesce(any_value(d.event), any_value(event_name)),
             coalesce(any_value(epoch_us(ts)), any_value(epoch_us(event_time))), any_value(campaign_id)
           from e left join d on event_id = message_id group by all order by all"""
    )
    plain = clean.sql(
        "select message_id, client, user_id, event_name, epoch_us(event_time), campaign_id from e order by all"
    )
    missing = set(plain) - set(repaired)
    assert not set(repaired) - set(plain)
    end = datetime(2026, 5, 16, tzinfo=UTC).timestamp() * 1e6
    assert len(missing) < 0.05 * len(plain)
    assert all(ts > end - 5.2 * 86_400e6 for *_, ts, _ in missing)


def test_integer_ids(tmp_path: Path) -> None:
    log = run(tmp_path / "log", events=5_000, days=10, ids="integer", clients=3)
    schema = pq.read_schema(next(log.out.glob("events/*/*.parquet")))
    assert schema.field("user_id").type == schema.field("campaign_id").type == pa.int64()
    [(n,)] = log.sql(
        "select count(*) from s join c on s.client = c.client and s.campaign = c.campaign join who on "
        "who.client = s.client and who.subscriber = s.subscriber"
    )
    assert n == log.report.sends


def test_rerun_restart_and_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, settings = tmp_path / "log", {"events": 5_000, "days": 10}
    whole = run(tmp_path / "whole", **settings)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(history.Group, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(out, **settings)
    assert not (out / "_COMPLETE.json").exists()
    stray = out / "events" / "day=2026-05-01" / "part-0009.parquet"
    stray.write_bytes(b"of a killed run")
    again = run(out, **settings)
    assert digests(out) == digests(whole.out)
    marker = json.loads((out / "_COMPLETE.json").read_text())
    assert marker["counts"]["rows"] == again.report.rows
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    third = run(out, **settings)
    assert third.report.reused
    assert (third.report.rows, third.report.dirt) == (again.report.rows, again.report.dirt)
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(ConfigError, match=r"other settings \(seed 1 there, 2 wanted\)"):
        run(out, **settings, seed=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(ConfigError, match="holds no simulation"):
        run(tmp_path / "mine", **settings)
    for place in (tmp_path / "mine" / "thesis.txt", tmp_path / "mine" / "thesis.txt" / "log"):
        with pytest.raises(ConfigError, match=r"is a file|cannot write"):
            run(place, **settings)


def test_refuses_unknown_dirt_and_impossible_rates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'duplicate'"):
        run(tmp_path / "a", dirt={"duplicates": 0.1})
    with pytest.raises(ConfigError, match=r"late is 1.5: expected a share"):
        run(tmp_path / "a", dirt={"late": 1.5})
    with pytest.raises(ConfigError, match="whole number"):
        run(tmp_path / "a", dirt={"anomaly": 0.5})
    with pytest.raises(ConfigError, match="at most 1,024"):
        run(tmp_path / "a", clients=5_000)
    assert not (tmp_path / "a").exists()


def test_progress_counts_rows(tmp_path: Path) -> None:
    counts: list[int] = []
    report = simulate(Simulate(events=3_000, days=5), tmp_path / "log", workers=2, progress=counts.append)
    assert sum(counts) == report.rows
    assert report.line().startswith(f"{report.rows:,} events")


def days_of(out: Path) -> Iterator[Any]:
    for folder in sorted(out.glob("events/day=*")):
        yield pq.read_table(folder / "part-0000.parquet")


def test_continuing_equals_simulating(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"events": 30_000, "days": 24}
    whole = list(days_of(run(tmp_path / "whole", **settings).out))
    run(tmp_path / "part", until=13, **settings)
    simulation = Simulation.resume(tmp_path / "part")
    truth = []
    for number in range(13, 24):
        if number == 18:
            simulation.save(tmp_path / "saved")
            simulation = Simulation.resume(tmp_path / "saved")
        if number % 3 == 0:
            day = simulation.step()
        elif number % 3 == 1:
            day = simulation.step(lambda planned: np.ones(planned.num_rows))
        else:
            planned = simulation.plan()
            everybody = {c: planned["subscriber"].to_pylist() for c in ("acme", "globex")}
            day = simulation.step(everybody)
            assert day.sends["event_id"].to_pylist() == planned["event_id"].to_pylist()
        assert day.number == number
        assert day.events.cast(whole[number].schema).equals(whole[number])
        truth += day.sends["p_click"].to_pylist()
    sends = Log(tmp_path / "whole", Simulate(), None).sql("select p_click from s where ts >= '2026-05-14 00:00:00+00'")
    assert sorted(truth) == sorted(p for (p,) in sends)


def test_policies_differ_only_by_what_they_hold(tmp_path: Path) -> None:
    run(tmp_path / "log", events=30_000, days=20)
    plain, held = Simulation.resume(tmp_path / "log"), Simulation.resume(tmp_path / "log")
    quiet = {f"u{i:09d}" for i in range(0, 3000, 2)}
    all_plain, all_held = [], []
    for _ in range(10):
        all_plain += plain.step().events.to_pylist()
        day = held.step(lambda planned: [s not in quiet for s in planned["subscriber"].to_pylist()])
        assert not quiet & set(day.sends["subscriber"].to_pylist())
        all_held += day.events.to_pylist()
    others = [r for r in all_plain if r["user_id"] not in quiet and r["user_id"] is not None]
    assert len(others) > 1000
    assert others == [r for r in all_held if r["user_id"] not in quiet and r["user_id"] is not None]
    assert len(all_held) < len(all_plain)
    with pytest.raises(ConfigError, match="planned sends"):
        held.step(lambda _: [True])
    with pytest.raises(SourceError, match="no complete state"):
        Simulation.resume(tmp_path / "nowhere")


def test_subscriber_ids_are_text_of_fixed_width() -> None:
    ids = logfiles.subscriber_ids(np.array([0, 7, 123_456_789]), "string", np.array([False, True, False]))
    assert ids.to_pylist() == ["u000000000", None, "u123456789"]


def test_a_full_disk_is_complained_of_once(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow: as on a full disk, writers fail again when they close."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from pipeline.run import main\n"
        f"sys.exit(main(['simulate', '--events', '50000', '--days', '20', '--out', {str(tmp_path / 'log')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: file too large: make room")
    assert done.stderr.count("\n") == 1
