"""A mail program's opens are told from a human's by whose messages it opens, and by nothing that comes later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline import extensions
from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.features import own, preparation
from pipeline.features.partition import Partition, partition_arrays
from pipeline.features.programs import LAST, MailPrograms
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, feature_table, read_columns
from tests.features import oracle
from tests.features.logs import DAY, EVERYTHING, Event, by_key_range, frame_of, ordered
from tests.features.test_portable import StrictBackend
from tests.strict_numpy import StrictArray

HOUR = DAY // 24
KINDS = ["send", "open", "click", "soft_bounce"]
SPEC = FeatureSpec.from_config(EVERYTHING, KINDS)
RULE = MailPrograms("send", 0.4)
HEADS = (Head("open", ("open",), DAY, match=True), Head("any", ("open", "click"), 2 * DAY))
AS_OF = 45 * DAY


def a_log(seed: int, days: int = 40, subscribers: int = 6) -> list[Event]:
    """Messages in six-hour steps, so that instants are shared, to people with and without a program, some of whom
    change it; a message in ten has no campaign, some campaigns come again, some bounce."""
    rng = np.random.default_rng(seed)
    out: list[Event] = []
    for key in rng.integers(-(2**62), 2**62, subscribers).tolist():
        share, changes = rng.choice([0.0, 0.3, 0.9, 1.0]), int(rng.integers(0, 2 * days))
        for day in range(days):
            program = rng.random() < (share if day < changes else 0.9 - share)
            for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
                ts = day * DAY + int(rng.integers(0, 4)) * 6 * HOUR
                campaign = None if rng.random() < 0.1 else f"c-{day // int(rng.choice([1, 1, 5]))}"
                out.append(Event(key, ts, "send", campaign))
                if rng.random() < 0.1:
                    out.append(Event(key, ts, "soft_bounce", campaign))
                    continue
                if program:
                    soon = bool(rng.random() < 0.6)
                    later = 0 if soon else int(rng.integers(0, 3)) * 6 * HOUR
                    out.append(Event(key, ts + later, "open", campaign, machine=soon))
                answers = rng.choice(["open", "click", "open"], int(rng.choice([0, 0, 1, 2]))).tolist()
                out += [Event(key, ts + int(rng.integers(0, 12)) * 6 * HOUR, kind, campaign) for kind in answers]
    return ordered([e._replace(event_id=i) for i, e in enumerate(out)])


def arrays(events: list[Event], backend: Backend, rule: MailPrograms | None = RULE) -> Partition:
    frame = frame_of(events, choose("cpu") if isinstance(backend, StrictBackend) else backend, machine=True)
    return partition_arrays(frame, KINDS, backend, campaign=False, value=False, programs=rule)


def humans(part: Partition) -> list[bool]:
    """Of each row, whether it is a human's."""
    return part.backend.to_host(part.human == part.kind).tolist()  # type: ignore[no-any-return]


def expected(events: list[Event], share: float = 0.4) -> list[bool]:
    keys = dict.fromkeys(e.key for e in events)
    return [not e.machine for key in keys for e in oracle.told([e for e in events if e.key == key], share)]


def request(**changes: Any) -> SampleRequest:
    base = {"purpose": "train", "as_of": AS_OF, "heads": HEADS, "exposure": "send"}
    return SampleRequest(**{**base, **changes})


def made(
    events: list[Event], backend: Backend, asked: SampleRequest | None = None, spec: FeatureSpec = SPEC
) -> FeatureTable:
    return feature_table(frame_of(events, backend, machine=True), spec, asked or request(), backend)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.5, 0.25, 1.0])
def test_agrees_with_plain_python(backend: Backend, seed: int, share: float) -> None:
    events = a_log(seed)
    found = humans(arrays(events, backend, MailPrograms("send", share)))
    assert found == expected(events, share)
    told = sum(not human and not e.machine for human, e in zip(found, events, strict=True))
    assert share == 1 or told > 3


@pytest.mark.parametrize("seed", range(4))
def test_partitions_and_the_kind_of_arrays_change_nothing(seed: int) -> None:
    plain, events = choose("cpu"), a_log(seed)
    whole = humans(arrays(events, plain))
    assert whole == [h for some in by_key_range(events, 7) for h in humans(arrays(some, plain))]
    strict = arrays(events, StrictBackend("pandas"))
    assert isinstance(strict.human, StrictArray)
    assert (strict.human == strict.kind).tolist() == whole


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_later_changes_no_event(backend: Backend, seed: int) -> None:
    events = a_log(seed)
    whole = humans(arrays(events, backend))
    for instant in sorted({e.ts for e in events})[::5]:
        kept = [i for i, e in enumerate(events) if e.ts <= instant]
        assert humans(arrays([events[i] for i in kept], backend)) == [whole[i] for i in kept]


@pytest.mark.parametrize("seed", range(2))
def test_what_comes_at_a_decision_or_later_changes_no_feature(backend: Backend, seed: int) -> None:
    """Not the flags of what comes then, nor whether it comes."""
    events, asked = a_log(seed), request(heads=(), holdout_share=1.0)
    whole = backend.to_host(made(events, backend, asked).X)
    at = np.array([e.ts for e in events if e.event == "send"])
    assert len(at) == len(whole)
    for day in range(5, 40, 7):
        past = [e for e in events if e.ts < day * DAY]
        later = [e._replace(machine=not e.machine) for e in events if e.ts >= day * DAY]
        for log in (past, ordered([*past, *later])):
            X = backend.to_host(made(log, backend, asked).X)
            then = np.array([e.ts for e in log if e.event == "send"])
            assert X[then < day * DAY].tobytes() == whole[at < day * DAY].tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_features_and_labels_agree_with_plain_python(backend: Backend, seed: int) -> None:
    events = a_log(seed, subscribers=4)
    table = made(events, backend, request(holdout_share=1.0))
    sends = [e for e in events if e.event == "send"]
    assert backend.to_pandas(table.keys)["event_id"].tolist() == [e.event_id for e in sends]
    labels = [[oracle.label(h, request(), events, s)[0] for h in HEADS] for s in sends]
    assert backend.to_host(table.y).tolist() == labels
    for send, row in list(zip(sends, backend.to_host(table.X).tolist(), strict=True))[::5]:
        found = dict(zip(SPEC.names, row, strict=True))
        for name, value in oracle.feature(SPEC, events, send.key, send.ts, campaign=send.campaign).items():
            assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    flags = made(events, backend, request(holdout_share=1.0, programs=0.0))
    assert (backend.to_host(flags.y) > backend.to_host(table.y)).any()
    assert (backend.to_host(flags.y) >= backend.to_host(table.y)).all()


# -- by hand ---------------------------------------------------------------------------------------------------------


def opened(days: int, fetched: range, *others: Event) -> list[Event]:
    """A message a day, some opened by a machine a second later."""
    sends = [Event(7, d * DAY, "send", f"c-{d}", d) for d in range(days)]
    opens = [Event(7, d * DAY + 1_000_000, "open", f"c-{d}", 100 + d, machine=True) for d in fetched]
    return ordered([*sends, *opens, *others])


def an_open(day: int, hours: int = 2, number: int = 200) -> Event:
    return Event(7, day * DAY + hours * HOUR, "open", f"c-{day}", number)


def told(events: list[Event], backend: Backend) -> list[int]:
    """The ids of the events that are a program's and not flagged."""
    found = humans(arrays(events, backend))
    assert found == expected(events)
    return [e.event_id for e, human in zip(events, found, strict=True) if not human and not e.machine]


def test_the_first_open_of_a_message_is_the_program_s_and_the_next_one_the_human_s(backend: Backend) -> None:
    log = opened(6, range(4), an_open(4), an_open(4, 3, 201), an_open(3, 5, 202))
    assert told(log, backend) == [200]
    asked = request(heads=HEADS[:1])
    ids = range(6)
    assert backend.to_host(made(log, backend, asked).y[:, 0]).tolist() == [float(d in (3, 4)) for d in ids]
    alone = [e for e in log if e.event_id != 201]
    assert backend.to_host(made(alone, backend, asked).y[:, 0]).tolist() == [float(d == 3) for d in ids]


def test_fewer_than_three_or_less_than_the_share_are_no_program(backend: Backend) -> None:
    assert told(opened(3, range(2), an_open(2)), backend) == []
    assert told(opened(4, range(3), an_open(3)), backend) == [200]
    assert told(opened(8, range(3), an_open(7)), backend) == [200]
    assert told(opened(9, range(3), an_open(8)), backend) == []


def test_what_a_message_was_sent_after_counts_not_what_its_open_came_after(backend: Backend) -> None:
    late = an_open(1, 24 * 8)
    assert told(opened(12, range(2, 12), late), backend) == []
    # Nor does an open by a machine that comes after it.
    afterwards = [Event(7, 9 * DAY, "open", f"c-{d}", 300 + d, machine=True) for d in range(3)]
    assert told(opened(4, range(0), an_open(3), *afterwards), backend) == []


def test_a_program_of_long_ago_is_forgotten(backend: Backend) -> None:
    since = LAST - int(LAST * RULE.share)
    assert told(opened(60, range(20), an_open(20 + since)), backend) == [200]
    assert told(opened(60, range(20), an_open(21 + since)), backend) == []


def test_an_open_of_no_message_is_left_alone(backend: Backend) -> None:
    stray = [Event(7, 5 * DAY + HOUR, "open", campaign, 400 + i) for i, campaign in enumerate((None, "never-sent"))]
    assert told(opened(6, range(5), *stray), backend) == []


def test_without_campaigns_an_open_is_of_the_latest_message(backend: Backend) -> None:
    frame = frame_of(opened(6, range(4), an_open(4), an_open(4, 3, 201)), backend, machine=True)
    part = partition_arrays(frame.drop(columns=["campaign"]), KINDS, backend, campaign=True, value=False, programs=RULE)
    ids = backend.to_pandas(frame)["event_id"].to_numpy()
    gone = backend.to_host((part.human != part.kind) & ~part.flagged)
    assert ids[gone].tolist() == [200]


# -- where it is off, and that it is the same everywhere -------------------------------------------------------------


def test_where_nothing_is_flagged_humans_are_all_there_is(backend: Backend) -> None:
    events = [e._replace(machine=False) for e in a_log(1)]
    part = arrays(events, backend)
    assert part.human is part.kind
    assert part.flagged is None
    assert part.campaign is None


def test_it_can_be_switched_off(backend: Backend) -> None:
    def asked(**quality: Any) -> SampleRequest:
        return SampleRequest.from_config(Config(quality=quality), "acme", AS_OF)

    assert asked().mail_programs == RULE
    assert asked(mail_programs=0.7).mail_programs == MailPrograms("send", 0.7)
    assert asked(mail_programs=0).mail_programs is None
    assert asked(count_machines=True).mail_programs is None
    events = a_log(2)
    assert humans(arrays(events, backend, None)) == [not e.machine for e in events]


@pytest.mark.parametrize("rule", [MailPrograms("visit", 0.5), MailPrograms("open", 0.5)])
def test_a_log_without_messages_works(backend: Backend, rule: MailPrograms) -> None:
    events = a_log(3)
    assert humans(arrays(events, backend, rule)) == [not e.machine for e in events]
    assert len(made([], backend)) == 0


def test_snapshots_and_any_specification_tell_alike(backend: Backend) -> None:
    """Decisions in between, and a specification that knows no kinds, count the same opens."""
    events = a_log(4)
    asked = request(exposure=None, every=DAY, heads=HEADS[1:], keys=())
    assert asked.mail_programs == RULE
    for spec in (SPEC, FeatureSpec.history()):
        table = made(events, backend, asked, spec)
        keys = backend.to_pandas(table.keys)
        at = keys["at"].to_numpy().astype("int64").tolist()
        column = backend.to_host(table.X[:, spec.index("history")]) if spec is not SPEC else None
        for i, (key, t) in enumerate(zip(keys["subscriber_key"].tolist(), at, strict=True)):
            mine = oracle.told([e for e in events if e.key == key])
            opens = [e for e in mine if e.event in HEADS[1].kinds and not e.machine and t <= e.ts < t + 2 * DAY]
            assert float(table.y[i, 0]) == bool(opens)
            if column is not None:
                assert column[i] == sum(e.ts < t and not e.machine for e in mine)


def test_the_campaign_is_read_where_something_is_flagged() -> None:
    class Store:
        columns = ["ts", "event", "machine", "campaign", "value", "subscriber"]

        def __init__(self, flagged: bool) -> None:
            self.flagged = flagged

        def has_machines(self, client: str) -> bool:
            return self.flagged

    spec = FeatureSpec.counts(KINDS, [DAY])
    asked = request(purpose="score", heads=(), keys=("subscriber",))
    assert read_columns(Store(False), "acme", spec, asked) == ["ts", "event", "subscriber"]
    assert read_columns(Store(True), "acme", spec, asked) == ["ts", "event", "machine", "subscriber", "campaign"]
    off = request(purpose="score", heads=(), keys=("subscriber",), programs=0.0)
    assert read_columns(Store(True), "acme", spec, off) == ["ts", "event", "machine", "subscriber"]


def test_what_is_learned_from_everybody_is_learned_without_them(backend: Backend) -> None:
    events = a_log(5)

    class Store:
        columns = ["ts", "event", "campaign", "machine"]

        def plan(self, *args: Any) -> Any:
            return type("Plan", (), {"rows": len(events)})

        def read_range(self, plan: Any, i: int) -> Any:
            return frame_of(events, backend, machine=True)

    assert humans(preparation._some(SPEC, Store(), "acme", request())) == expected(events)
    flags = [not e.machine for e in events]
    assert humans(preparation._some(SPEC, Store(), "acme", request(programs=0.0))) == flags != expected(events)


@pytest.fixture
def wider(monkeypatch: pytest.MonkeyPatch) -> FeatureSpec:
    """With a feature of one's own beside the built-in ones."""
    monkeypatch.setattr(extensions, "_features", {})
    monkeypatch.setattr(own, "_checked", {})

    @pipeline.feature(windows=["7d"], how="sum")
    def opens(frame: Any) -> Any:
        return frame.event == "open"

    return FeatureSpec.from_config(EVERYTHING, KINDS)


def test_features_of_one_s_own_do_not_count_them(backend: Backend, wider: FeatureSpec) -> None:
    events = a_log(6)
    table = made(events, backend, spec=wider)
    mine, theirs = (backend.to_host(table.X[:, wider.index(name)]) for name in ("opens_7d", "open_7d"))
    assert (mine == theirs).all()
    assert mine.any()


@pytest.mark.parametrize("seed", range(4))
def test_a_backfill_tells_what_was_told_on_the_day(backend: Backend, seed: int, wider: FeatureSpec) -> None:
    """Flagged opens and messages that had not arrived yet made no program then, and make none in a backfill."""
    events = a_log(seed, subscribers=4)
    rng = np.random.default_rng(seed)
    delays = rng.choice([0, 0, 0, 1, DAY // 4, 3 * DAY, 15 * DAY], len(events))
    arrived = {e.event_id: e.ts + int(d) for e, d in zip(events, delays, strict=True)}

    def framed(known: list[Event]) -> Any:
        frame = frame_of(known, backend, machine=True)
        times = np.array([arrived[e.event_id] for e in known], dtype="datetime64[us]")
        frame["ingested_at"] = backend.df.Series(times, index=frame.index)
        return frame

    asked = request(heads=(), as_known_at="decision", holdout_share=1.0)
    table = feature_table(framed(events), wider, asked, backend)
    ids = backend.to_pandas(table.keys)["event_id"].tolist()
    today = feature_table(framed(events), wider, request(heads=(), holdout_share=1.0), backend)
    now = dict(zip(backend.to_pandas(today.keys)["event_id"].tolist(), backend.to_host(today.X), strict=True))
    corrected = 0
    for event_id, row in list(zip(ids, backend.to_host(table.X), strict=True))[::4]:
        send = next(e for e in events if e.event_id == event_id)
        known = [e for e in events if e.ts < send.ts and arrived[e.event_id] <= send.ts and e.key == send.key]
        scored = feature_table(framed(ordered([*known, send])), wider, request(heads=(), holdout_share=1.0), backend)
        last = backend.to_pandas(scored.keys)["event_id"].tolist().index(event_id)
        assert backend.to_host(scored.X)[last].tobytes() == row.tobytes()
        corrected += row.tobytes() != now[event_id].tobytes()
    assert corrected
