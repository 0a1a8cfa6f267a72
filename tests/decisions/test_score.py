"""The decisions table against a plain loop over subscribers, on a small log with every special case."""

from __future__ import annotations

import datetime as dt
import types
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xxhash

from pipeline.backend import Backend, backend_of
from pipeline.config import Config
from pipeline.decisions import lists, score, table
from pipeline.errors import ConfigError, SourceError
from pipeline.features.context import Context, define, describe
from pipeline.features.spec import FeatureSpec
from pipeline.features.trailing import count_events, together
from pipeline.results import read

DAY = 86_400_000_000
AS_OF = int(pd.Timestamp("2026-06-10").value // 1000)
KINDS = ["send", "open", "click", "unsubscribe", "complaint", "hard_bounce", "subscribe", "delete"]


def key_of(subscriber: str) -> int:
    return int(np.uint64(xxhash.xxh64_intdigest(subscriber.encode())).astype(np.int64))


def log(subscribers: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(subscribers):
        count = int(rng.integers(1, 12))
        last = AS_OF - int(rng.integers(1, 150 if i % 10 == 0 else 20)) * DAY // 2
        kinds = rng.choice(KINDS, count, p=[0.6, 0.15, 0.05, 0.05, 0.02, 0.03, 0.05, 0.05])
        for kind in kinds:
            ts = last - int(rng.integers(0, 40)) * DAY // 4
            if kind == "send":
                ts = ts // DAY * DAY + 9 * 3_600_000_000 + int(rng.integers(0, 3_000_000_000))
            rows.append((f"user {i}", ts, kind, f"c{rng.integers(3)}"))
    rows += [("user 0", AS_OF, "unsubscribe", "c1"), ("user 1", AS_OF + DAY, "unsubscribe", "c1")]  # not yet seen
    frame = pd.DataFrame(rows, columns=["subscriber", "ts", "event", "campaign"])
    frame["subscriber_key"] = frame["subscriber"].map(key_of)
    frame["machine"] = False
    frame = frame.drop_duplicates(["subscriber", "ts", "event"])
    return frame.sort_values(["subscriber_key", "ts", "event"], ignore_index=True)


class Store:
    """What score needs of an EventStore."""

    def __init__(self, frame: pd.DataFrame, backend: Backend, partitions: int) -> None:
        self.frame, self.backend = frame, backend
        self.columns = [c for c in frame.columns if c != "subscriber_key"]
        self.bounds = np.linspace(-(2.0**63), 2.0**63, partitions + 1)

    def plan(self, client: str, until: int, columns: list[str], partitions: int | None, **times: Any) -> Any:
        assert times.get("as_known_at") is None
        ranges = list(zip(self.bounds[:-1], self.bounds[1:], strict=True))
        return types.SimpleNamespace(ranges=ranges, since=times.get("since", 0), until=until, columns=columns)

    def has_machines(self, client: str) -> bool:
        return bool(self.frame["machine"].any())

    def read_range(self, plan: Any, i: int) -> Any:
        low, high = plan.ranges[i]
        log = self.frame
        rows = log[(log.subscriber_key >= low) & (log.subscriber_key < high)]
        rows = rows[(rows.ts >= plan.since) & (rows.ts < plan.until)]
        table = pa.Table.from_pandas(rows[["subscriber_key", *plan.columns]], preserve_index=False)
        table = table.set_column(table.column_names.index("ts"), "ts", table["ts"].cast(pa.timestamp("us")))
        for name in ("event", "campaign"):
            if name in table.column_names:
                at = table.column_names.index(name)
                table = table.set_column(at, name, table[name].cast(pa.string()).dictionary_encode())
        return self.backend.from_arrow(table).set_index("subscriber_key")


class Model:
    """Probabilities that a loop can repeat: each a multiple of one feature."""

    heads = tuple(types.SimpleNamespace(name=n) for n in ("unsubscribe", "click", "open"))

    def __init__(self, spec: FeatureSpec, unlearned: tuple[str, ...] = ()) -> None:
        self.spec, self.notes = spec, dict.fromkeys(unlearned, "too few")

    def predict(self, X: Any, sequences: Any = None) -> Any:
        xp = backend_of(X).xp
        history = X[:, self.spec.index("history")]
        return xp.stack([history / 200, history * 0 + 0.5, history * 0 + 0.25], axis=1).astype(xp.float32)


def oracle(frame: pd.DataFrame, config: Config, at: int) -> dict[str, dict[str, Any]]:
    found = {}
    for name, rows in frame[frame.ts < AS_OF].groupby("subscriber"):
        if rows.ts.max() < at - max(config.windows):
            continue
        left = rows.ts[rows.event.isin(["unsubscribe", "complaint", "hard_bounce"])].max()
        back = rows.ts[rows.event == "subscribe"].max()
        gone = pd.notna(left) and (pd.isna(back) or back <= left)
        n = len(rows)
        risky = n / 200 * config.decide.cost > 0.5
        reason = "suppressed" if gone else "too_new" if n < 3 else "unsubscribe_risk" if risky else "ok"
        action = {"suppressed": "hold", "too_new": "unscored", "unsubscribe_risk": "hold", "ok": "send"}[reason]
        found[name] = {"p_unsubscribe": n / 200, "action": action, "reason": reason}
    return found


CONFIG = Config.model_validate(
    {"decide": {"explore": 0.0, "cost": 15.0, "reward": {"click": 1.0}}, "timezone": "Europe/Berlin"}
)
SPEC = FeatureSpec.from_config(CONFIG, KINDS)


def run(backend: Backend, config: Config = CONFIG, partitions: int = 3, **more: Any) -> pd.DataFrame:
    store = Store(log(), backend, partitions)
    model = Model(SPEC, more.pop("unlearned", ()))
    return score.score(store, "acme", model, SPEC, config, AS_OF, backend, model_version="v1", **more)


class Campaigns:
    """A model of one feature: whether the send's campaign is known, or what else is asked."""

    heads, notes = Model.heads, Model(SPEC).notes

    def __init__(self, spec: FeatureSpec, feature: str = "campaign_known") -> None:
        self.flag = spec.index(feature)

    def predict(self, X: Any, sequences: Any = None) -> Any:
        xp = backend_of(X).xp
        return xp.stack([X[:, self.flag] * 0, X[:, self.flag], X[:, self.flag] * 0], axis=1).astype(xp.float32)


def test_a_planned_send_is_scored_with_its_campaign(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A campaign that everybody got lately is known, one that nobody has heard of is not, nor is none."""
    sent = log().assign(campaign="weekly")
    at = pd.Timestamp(AS_OF + 3_600_000_000 * 9, unit="us").isoformat()
    who = sorted(set(sent.subscriber))[:20]
    rows = [{"subscriber": s, "at": at, "campaign": c} for s in who for c in ("weekly", "first ever", None)]
    pd.DataFrame(rows).to_csv(tmp_path / "plan.csv", index=False)
    config = CONFIG.model_copy(update={"decide": CONFIG.decide.model_copy(update={"plan": str(tmp_path / "plan.csv")})})
    store = Store(sent, backend, 3)
    wanted = define(config, SPEC)
    assert wanted is not None
    plan = store.plan("acme", AS_OF, ["ts", "event", "campaign", "machine"], 3)
    counts = together([count_events(store.read_range(plan, i), wanted, config.timezone) for i in range(3)])
    spec = describe(SPEC, wanted, counts)
    assert spec.context is not None
    context = Context.of(spec.context, counts, AS_OF, config.timezone)
    monkeypatch.setattr(score, "known_context", lambda *_: context)
    found = score.score(store, "acme", Campaigns(spec), spec, config, AS_OF, backend)
    assert len(found) == len(rows)
    known = found.dropna(subset="p_click").groupby(found["campaign"].fillna("none"))["p_click"].agg(["min", "max"])
    assert known.T.to_dict("list") == {"first ever": [0, 0], "none": [0, 0], "weekly": [1, 1]}


def test_a_planned_send_is_scored_with_its_family(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned campaigns are new; those of one family are scored at once, those without one as of none."""
    sent = log()
    sent["campaign"] = [f"{('sale', 'news', '')[i % 3]}-{i}" for i in range(len(sent))]
    at = pd.Timestamp(AS_OF + 3_600_000_000 * 9, unit="us").isoformat()
    past = sent[(sent.ts < AS_OF) & (sent.event == "send")].groupby("subscriber")["campaign"].apply(list).to_dict()
    planned = ["sale-1001", "Sale 1002", "news-7000", "first ever", "2026", None]
    rows = [{"subscriber": s, "at": at, "campaign": c} for s in sorted(past)[:30] for c in planned]
    pd.DataFrame(rows).to_csv(tmp_path / "plan.csv", index=False)
    columns = {"subscriber": "subscriber", "ts": "ts", "event": "event", "campaign": "campaign"}
    config = Config(source={"path": "log", "columns": columns}, decide={"plan": str(tmp_path / "plan.csv")})
    spec = FeatureSpec.from_config(config, KINDS)
    asked = []
    whole = score.feature_table
    monkeypatch.setattr(score, "feature_table", lambda e, s, r, **k: asked.append(r.campaign) or whole(e, s, r, **k))
    model = Campaigns(spec, "family_send_ever")
    found = score.score(Store(sent, backend, 2), "acme", model, spec, config, AS_OF, backend)
    assert len(found) == len(rows)
    assert set(asked) == {"Sale 1002", "news-7000", "first ever", None}
    scored = found.dropna(subset="p_click")
    assert len(scored) > 100
    for row in scored.itertuples():
        name = str(row.campaign)[:4].lower()
        same = [c for c in past[row.subscriber] if c[:4] == name and name in ("sale", "news")]
        assert row.p_click == len(same)
    assert scored.p_click.max() > 1


def test_equals_the_loop(backend: Backend) -> None:
    found = run(backend)
    at = AS_OF + 9 * 3_600_000_000  # 9 to 10 UTC is 11 o'clock in Berlin, and so is the next send
    expected = oracle(log(), CONFIG, at)
    assert set(found.subscriber) == set(expected)
    assert found.subscriber.is_unique
    for row in found.itertuples():
        wanted = expected[row.subscriber]
        assert (row.action, row.reason) == (wanted["action"], wanted["reason"])
        assert row.p_unsubscribe == np.float32(wanted["p_unsubscribe"])
    assert set(found.reason) == {"ok", "unsubscribe_risk", "suppressed", "too_new"}
    assert (found["at"] == np.datetime64(at, "us")).all()
    sent = found[found.action == "send"]
    order = sorted(sent.subscriber, key=lambda s: (expected[s]["p_unsubscribe"], key_of(s)))
    assert list(sent.subscriber) == order
    assert list(sent["rank"]) == list(range(1, len(sent) + 1))
    assert list(sent.wave) == [1 + i * 4 // len(sent) for i in range(len(sent))]
    assert found["rank"].notna().sum() == len(sent)
    assert list(found.columns) == [
        "client", "subscriber", "as_of", "at", "campaign", "p_unsubscribe", "p_click", "p_open", "action", "reason",
        "propensity", "rank", "wave", "model_version", "date",
    ]  # fmt: skip


def test_any_number_of_partitions(backend: Backend) -> None:
    whole = run(backend, partitions=1)
    for partitions in (2, 9):
        pd.testing.assert_frame_equal(run(backend, partitions=partitions), whole)


def test_explored_are_sent_and_say_so(backend: Backend) -> None:
    config = Config.model_validate({"decide": {"explore": 0.5, "cost": 15.0}})
    found, without = run(backend, config), run(backend)
    explored = found[found.action == "explore"]
    assert 0 < len(explored) < (without.reason == "unsubscribe_risk").sum()
    assert (explored.propensity == 0.5).all()
    assert explored["rank"].notna().all()
    assert set(explored.subscriber) <= set(without.subscriber[without.reason == "unsubscribe_risk"])
    assert (found.propensity[found.reason == "ok"] == 1).all()


def test_unlearned_heads(backend: Backend) -> None:
    found = run(backend, unlearned=("unsubscribe",))
    assert set(found.reason) == {"no_model", "suppressed", "too_new"}
    assert found.p_unsubscribe.isna().all()
    told = table.summary(found, CONFIG, Model(SPEC, ("unsubscribe",)))
    assert told["missing"] == ["unsubscribe"]
    assert told["avoided"] is None
    assert run(backend, unlearned=("click",)).reason.tolist() == run(backend).reason.tolist()


def test_suppression_list(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "never.csv"
    path.write_text("client,subscriber\nacme,user 5\nother,user 6\nacme,nobody\n")
    config = CONFIG.model_copy(update={"decide": CONFIG.decide.model_copy(update={"suppressed": str(path)})})
    found, before = (run(backend, c).set_index("subscriber").reason for c in (config, CONFIG))
    assert found["user 5"] == "suppressed"
    assert found.drop("user 5").to_dict() == before.drop("user 5").to_dict()


def test_plan(backend: Backend, tmp_path: Path) -> None:
    plan = pd.DataFrame(
        {
            "subscriber": ["user 7", "user 7", "user 8", "stranger", "user 9"],
            "campaign": ["x", "y", "x", "x", None],
            "at": pd.to_datetime(["2026-06-10 08:30", "2026-06-12 18:00", *["2026-06-10 08:30"] * 3]),
            "client": ["acme", "acme", "acme", "acme", "other"],
        }
    )
    path = tmp_path / "plan.parquet"
    plan.to_parquet(path)
    config = CONFIG.model_copy(update={"decide": CONFIG.decide.model_copy(update={"plan": str(path)})})
    found = run(backend, config)
    assert sorted(zip(found.subscriber, found.campaign, found["at"], strict=True)) == sorted(
        zip(plan.subscriber[:4], plan.campaign[:4], plan["at"][:4], strict=True)
    )
    stranger = found[found.subscriber == "stranger"].iloc[0]
    assert (stranger.action, stranger.reason) == ("unscored", "too_new")
    expected = oracle(log(), config, AS_OF)
    for row in found[found.subscriber != "stranger"].itertuples():
        assert row.reason == expected[row.subscriber]["reason"]
    assert table.summary(found, config)["unit"] == "planned sends"


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("plan.csv", "subscriber,when\na,2026-06-11\n", SourceError, "no column 'at'"),
        ("plan.csv", "subscriber,at\na,soon\n", SourceError, "is no time"),
        ("plan.csv", "subscriber,at\n,2026-06-11\n", SourceError, "no subscriber in row 0"),
        ("plan.csv", "subscriber,at\na,2026-06-09\n", ConfigError, "before as_of"),
        ("plan.parquet", "nonsense", SourceError, "cannot read .* as Parquet"),
        ("elsewhere.csv", None, SourceError, "no file"),
    ],
)
def test_unusable_plans(tmp_path: Path, name: str, text: str | None, error: type[Exception], message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        lists.read_plan(str(tmp_path / name), "acme", AS_OF)


def test_a_rerun_replaces_its_day(backend: Backend, tmp_path: Path) -> None:
    uri = tmp_path / "decisions"
    first = run(backend)
    table.write(first, uri, "acme", AS_OF)
    table.write(first.assign(client="o'other"), uri, "o'other", AS_OF)
    later = first.assign(date="2026-06-11", as_of=first.as_of + pd.Timedelta(days=1))
    table.write(later, uri, "acme", AS_OF + DAY)
    table.write(first, uri, "acme", AS_OF)
    kept = read(str(uri))
    assert kept is not None
    assert kept.groupby(["client", "date"]).size().to_dict() == {
        ("acme", "2026-06-10"): len(first),
        ("acme", "2026-06-11"): len(first),
        ("o'other", "2026-06-10"): len(first),
    }
    back = read(str(uri), {"client": "acme", "date": "2026-06-10"})
    assert back is not None
    pd.testing.assert_frame_equal(back[first.columns], first, check_dtype=False)


def test_nobody_is_active(backend: Backend, tmp_path: Path) -> None:
    store = Store(log().iloc[:0], backend, 2)
    found = score.score(store, "acme", Model(SPEC), SPEC, CONFIG, AS_OF, backend)
    assert len(found) == 0
    table.write(found, tmp_path / "d", "acme", AS_OF)
    assert table.summary(found, CONFIG)["rows"] == 0


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
def test_next_at(timezone: str) -> None:
    zone = zoneinfo.ZoneInfo(timezone)
    rng = np.random.default_rng(1)
    for as_of in rng.integers(AS_OF - 200 * DAY, AS_OF + 200 * DAY, 100).tolist():
        for hour in (0, 9, 23):
            found = lists.next_at(as_of, hour, timezone)
            clock = dt.datetime.fromtimestamp(found / 1e6, tz=zone)
            assert (clock.hour, clock.minute) == (hour, 0)
            assert as_of <= found <= as_of + DAY + 3_600_000_000


def test_a_client_without_a_model_is_unscored(backend: Backend) -> None:
    store = Store(log(), backend, 3)
    found = score.score(store, "acme", None, FeatureSpec.history(), CONFIG, AS_OF, backend)
    wanted = oracle(log(), CONFIG, AS_OF + 9 * 3_600_000_000)
    assert set(found.subscriber) == set(wanted)
    for row in found.itertuples():
        reason = wanted[row.subscriber]["reason"]
        reason = reason if reason in ("suppressed", "too_new") else "no_model"
        assert (row.action, row.reason) == ("hold" if reason == "suppressed" else "unscored", reason)
    assert {"suppressed", "too_new", "no_model"} == set(found.reason)
    assert found[["p_unsubscribe", "p_click", "p_open", "rank", "wave"]].isna().all(axis=None)
    told = table.summary(found, CONFIG)
    assert told["missing"] == ["unsubscribe", "click"]
    assert told["held"] == 0
