"""Context features against plain Python: everybody's events before the midnight before the decision, and no others."""

from __future__ import annotations

import datetime as dt
import functools
import zoneinfo
from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.features import rollup, trailing
from pipeline.features.context import Context, define, describe
from pipeline.features.samples import SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_table
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered
from tests.features.test_portable import StrictBackend
from tests.strict_numpy import StrictArray

START = 20_525 * DAY  # 2026-03-13: clocks change in New York just before and in Berlin two weeks later
DAYS = 40
KINDS = ["send", "open", "click", "unsubscribe", "complaint", "soft_bounce"]
PROVIDERS = ["gmail", "yahoo", None]
CONFIG = Config(windows=["7d"], context={"windows": ["3d", "14d"]}, timezone="Europe/Berlin")
BASE = FeatureSpec.from_config(CONFIG, KINDS)
WANTED = define(CONFIG, BASE)
assert WANTED is not None
AS_OF = START + (DAYS - 1) * DAY + 7 * 3_600_000_000


def a_log(seed: int, events: int = 300) -> list[Event]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-(2**63), 2**63 - 1, 12, dtype=np.int64)
    columns = zip(
        keys[rng.integers(0, 12, events)].tolist(),
        (START + rng.integers(0, DAYS * DAY, events)).tolist(),
        rng.choice(KINDS, events, p=[0.5, 0.25, 0.1, 0.05, 0.04, 0.06]).tolist(),
        rng.choice(["a", "b", "c", ""], events).tolist(),
        (rng.random(events) < 0.2).tolist(),
        strict=True,
    )
    return ordered([Event(k, t, e, c or None, i, 0, m) for i, (k, t, e, c, m) in enumerate(columns)])


def provider(event: Event) -> str | None:
    return PROVIDERS[event.event_id % 3]


def delay(event: Event) -> int:
    return (event.event_id % 5 == 0) * (event.event_id % 7) * DAY // 2


def framed(events: list[Event], backend: Backend) -> Any:
    frame = frame_of(events, backend, machine=True)
    names = backend.df.Series([provider(e) for e in events], index=frame.index, dtype="str")
    frame["provider"] = names.astype("category")
    arrived = np.array([e.ts + delay(e) for e in events], dtype="datetime64[us]")
    frame["ingested_at"] = backend.df.Series(arrived, index=frame.index)
    return frame


def request(**changes: Any) -> SampleRequest:
    base = {"purpose": "train", "as_of": AS_OF, "heads": (), "exposure": "send", "timezone": "Europe/Berlin"}
    return SampleRequest(**{**base, **changes})


def known(events: list[Event], asked: SampleRequest) -> list[Event]:
    seen = [e for e in events if e.ts < asked.as_of]
    return seen if asked.known_by is None else [e for e in seen if e.ts + delay(e) <= asked.known_by]


def prepared(
    events: list[Event], asked: SampleRequest, backend: Backend, partitions: int = 1
) -> tuple[FeatureSpec, Context]:
    assert WANTED is not None
    parts = [
        trailing.count_events(framed(known(p, asked), backend), WANTED, asked.timezone, asked.per_decision)
        for p in by_key_range(events, partitions)
    ]
    counts = trailing.together(parts)
    spec = describe(BASE, WANTED, counts)
    assert spec.context is not None
    return spec, Context.of(spec.context, counts, asked.as_of, asked.timezone)


def made(
    events: list[Event], asked: SampleRequest, backend: Backend, partitions: int = 1, of: list[Event] | None = None
) -> FeatureTable:
    """The table of a log; ``of``: the log that the context is of, where that is another one."""
    spec, context = prepared(events if of is None else of, asked, backend, partitions)
    frames = [framed(p, backend) for p in by_key_range(events, partitions)]
    return concat([feature_table(f, spec, asked, backend, context) for f in frames])


@functools.cache
def clock(at: int, timezone: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(at / 1e6, zoneinfo.ZoneInfo(timezone)).replace(tzinfo=None)


def oracle(events: list[Event], asked: SampleRequest, send: Event, campaign: str | None) -> dict[str, float]:
    zone = asked.timezone
    now = clock(min(send.ts, asked.as_of), zone)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    limit = dt.datetime.fromisoformat(midnight.isoformat()).replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp() * 1e6
    seen = [e for e in known(events, asked) if not e.machine and clock(e.ts, zone) < midnight]
    mine = [e for e in known(events, asked) if e.key == send.key and e.ts < send.ts and provider(e)]
    if asked.per_decision:
        seen = [e for e in seen if e.ts + delay(e) <= limit]
        mine = [e for e in mine if e.ts + delay(e) <= send.ts]
    of_provider = provider(mine[-1]) if mine else None

    def total(kinds: tuple[str, ...], days: int, **like: Any) -> int:
        since = midnight - dt.timedelta(days=days)
        found = [e for e in seen if e.event in kinds and clock(e.ts, zone) >= since]
        found = [e for e in found if "campaign" not in like or e.campaign == like["campaign"]]
        found = [e for e in found if "provider" not in like or provider(e) == like["provider"]]
        return len([e for e in found if "hour" not in like or clock(e.ts, zone).hour == like["hour"]])

    def delivered(days: int, **like: Any) -> int:
        return total(("send",), days, **like) - total(("soft_bounce",), days, **like)

    out: dict[str, float] = {}
    for name, kinds in (("unsubscribe", ("unsubscribe", "complaint")), ("click", ("click",)), ("open", ("open",))):
        for days in (3, 14):
            below = max(delivered(days), 0)
            client = (total(kinds, days) + 1) / (below + 10)
            out[f"client_{name}_rate_{days}d"] = client
            hour = clock(send.ts, zone).hour
            out[f"hour_{name}_rate_{days}d"] = (total(kinds, days, hour=hour) + 1 / 24) / (below + 10)
            for level, value in (("provider", of_provider), ("campaign", campaign)):
                like = {level: value}
                there = value is not None and delivered(14, **like) > 0
                rate = (total(kinds, days, **like) + 100 * client) / (max(delivered(days, **like), 0) + 100)
                out[f"{level}_{name}_rate_{days}d"] = rate if there else client
                out[f"{level}_known"] = float(there)
    return out


@pytest.mark.parametrize("as_known_at", [None, START + 30 * DAY, "decision"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
def test_context_agrees_with_plain_python(backend: Backend, as_known_at: Any, zone: str) -> None:
    events = a_log(1)
    # The hold-out alone, so that no campaign is masked.
    asked = request(as_known_at=as_known_at, timezone=zone, holdout_share=1.0)
    table = made(events, asked, backend)
    sends = [e for e in known(events, asked) if e.event == "send"]
    assert len(table) == len(sends) > 70
    for send, row in zip(sends, backend.to_host(table.X).tolist(), strict=True):
        found = dict(zip(table.spec.names, row, strict=True))
        expected = oracle(events, asked, send, send.campaign)
        assert {n for n in table.spec.names if n not in BASE.names} == set(expected)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6), (name, send)


@pytest.mark.parametrize("as_known_at", [None, "decision"])
def test_partitions_change_nothing(backend: Backend, as_known_at: Any) -> None:
    events = a_log(2)
    whole, parts = (made(events, request(as_known_at=as_known_at), backend, n) for n in (1, 7))
    assert backend.to_host(whole.X).tobytes() == backend.to_host(parts.X).tobytes()


@pytest.mark.parametrize("day", [9, 25])
def test_what_happens_after_the_midnight_before_changes_no_context(backend: Backend, day: int) -> None:
    """Of everybody: events of the decision's own day and later are deleted, altered and added."""
    events = a_log(3)
    midnight = dt.datetime(2026, 3, 13, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")) + dt.timedelta(days=day)
    since = int(midnight.timestamp()) * 1_000_000
    later = [e for e in events if e.ts >= since]
    spoiled = [e._replace(event="click", campaign="b", machine=False) for e in later[::2]]
    new = [e._replace(event="send", ts=since, event_id=e.event_id + 999) for e in later[::3]]
    other = ordered([e for e in events if e.ts < since] + spoiled + new)
    left, right = made(events, request(), backend), made(events, request(), backend, of=other)
    at = backend.to_pandas(left.keys)["at"].to_numpy().astype("int64")
    decided = at < since + DAY - 3_600_000_000 * 2
    one, two = backend.to_host(left.X), backend.to_host(right.X)
    assert one[decided].tobytes() == two[decided].tobytes()
    assert decided.sum() > 20
    assert one[~decided].tobytes() != two[~decided].tobytes()


def test_the_campaign_of_a_tenth_of_training_rows_is_unknown(backend: Backend) -> None:
    events = a_log(4, 4000)
    masked, whole = made(events, request(), backend), made(events, request(holdout_share=1.0), backend)
    mine = [i for i, f in enumerate(masked.spec.features) if f.op == "context" and f.how == "campaign"]
    rate, flag = masked.spec.index("campaign_open_rate_14d"), masked.spec.index("campaign_known")
    left, right = backend.to_host(masked.X), backend.to_host(whole.X)
    differing = (left[:, mine] != right[:, mine]).any(axis=1)
    known = right[:, flag] == 1
    assert abs(differing[known].mean() - 0.1) < 0.02
    assert (left[differing, flag] == 0).all()
    assert (left[differing, rate] == left[differing, masked.spec.index("client_open_rate_14d")]).all()
    others = [i for i in range(left.shape[1]) if i not in mine]
    assert (left[:, others] == right[:, others]).all()
    again = made(events, request(), backend)
    assert (backend.to_host(again.X) == left).all()


def test_a_planned_send_has_its_campaign_s_context(backend: Backend) -> None:
    events = a_log(5)
    asked = {"purpose": "score", "keep_suppressed": True, "keys": ()}
    tables = {c: made(events, request(campaign=c, **asked), backend) for c in ("a", None, "never seen")}
    for campaign, table in tables.items():
        keys = backend.to_pandas(table.keys)["subscriber_key"].tolist()
        for key, row in zip(keys, backend.to_host(table.X).tolist(), strict=True):
            found = dict(zip(table.spec.names, row, strict=True))
            for name, value in oracle(events, request(), Event(key, AS_OF, "send"), campaign).items():
                assert found[name] == pytest.approx(value, rel=1e-6), name
    assert backend.to_host(tables["a"].X)[0, tables["a"].spec.index("campaign_known")] == 1


def test_a_roll_up_gives_the_same_counts(backend: Backend) -> None:
    assert WANTED is not None
    events = known(a_log(6), request())
    parts = [
        rollup.partition_counts(framed(p, backend), "Europe/Berlin", ["hour"]) for p in by_key_range(events, 3) if p
    ]
    table = rollup.combine(parts, "acme", ["hour"])
    counts = trailing.count_rollup(table[table.level == "provider"], WANTED)
    spec = describe(BASE, WANTED, counts)
    assert spec.context is not None
    context = Context.of(spec.context, counts, AS_OF, "Europe/Berlin")
    found = feature_table(framed(events, backend), spec, request(), backend, context)
    assert backend.to_host(found.X).tobytes() == backend.to_host(made(events, request(), backend).X).tobytes()


def test_the_array_code_asks_nothing_that_cupy_lacks() -> None:
    plain, strict = choose("cpu"), StrictBackend("pandas")
    events = a_log(7)
    for asked in (request(keys=()), request(keys=(), as_known_at="decision")):
        spec, context = prepared(events, asked, plain)
        frame = framed(known(events, asked), plain)
        found, expected = (feature_table(frame, spec, asked, b, context) for b in (strict, plain))
        assert isinstance(found.X, StrictArray)
        assert found.X.tolist() == expected.X.tolist()


def test_what_the_log_lacks_is_absent(backend: Backend) -> None:
    assert WANTED is not None
    frame = framed(a_log(8), backend)
    for columns, levels in (
        (["provider"], ("client", "hour", "campaign")),
        (["campaign", "provider"], ("client", "hour")),
    ):
        counts = trailing.count_events(frame.drop(columns=columns), WANTED, "UTC")
        spec = describe(BASE, WANTED, counts)
        assert spec.context is not None
        assert spec.context.levels == levels
        assert len([a for a in spec.absent if a.startswith("context of the ")]) == len(columns)
        assert not [n for n in spec.names if n.startswith(tuple(f"{c}_" for c in columns))]
        context = Context.of(spec.context, counts, AS_OF, "UTC")
        table = feature_table(frame.drop(columns=columns), spec, request(keys=()), backend, context)
        assert np.isfinite(backend.to_host(table.X)).all()
    assert define(CONFIG.model_copy(update={"context": Config(context={"windows": []}).context}), BASE) is None
    with pytest.raises(DataError, match="make its context"):
        feature_table(frame, describe(BASE, WANTED, counts), request(), backend)


def test_campaigns_that_are_sent_once_have_no_context(backend: Backend) -> None:
    assert WANTED is not None
    events = [e._replace(campaign=f"day {e.ts // DAY}") for e in a_log(8)]
    for share, absent in ((0.0, True), (0.2, False)):
        mixed = [e._replace(campaign="weekly") if e.event_id % 100 < share * 100 else e for e in events]
        spec = describe(BASE, WANTED, trailing.count_events(framed(mixed, backend), WANTED, "UTC"))
        assert ("campaign_known" not in spec.names) == absent
        assert any("only 0.0% of deliveries are of a campaign" in a for a in spec.absent) == absent


def test_specification_round_trip(backend: Backend) -> None:
    spec, _ = prepared(a_log(9), request(), backend)
    assert FeatureSpec.from_json(spec.to_json()) == spec
    definitions = {f.name: f.definition for f in spec.features}
    assert definitions["campaign_unsubscribe_rate_14d"] == (
        "((unsubscribe + complaint) + 100 client_unsubscribe_rate_14d) / ((send - soft_bounce) + 100) of at's campaign"
        ", in the 14d before the midnight (client's time zone) before at; client_unsubscribe_rate_14d where unknown, "
        "as in 10% of training rows, by hash"
    )


def test_an_empty_log_has_a_context_of_nothing(backend: Backend) -> None:
    table = made([], request(), backend)
    assert len(table) == 0
    spec, context = prepared([], request(), backend)
    one = feature_table(framed([Event(1, START, "send", "a")], backend), spec, request(), backend, context)
    assert backend.to_host(one.X)[0, spec.index("client_open_rate_3d")] == pytest.approx(0.1)
