"""What a subscriber did with earlier campaigns of the family that is decided about, and where no campaign is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.features.samples import SampleRequest
from pipeline.features.sequences import SequenceSpec
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_table
from tests.features import oracle
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered

KINDS = ["send", "open", "click", "delete", "unsubscribe", "soft_bounce"]
SOURCE = {"path": "log", "columns": {"subscriber": "id", "ts": "ts", "event": "event", "campaign": "campaign"}}
CONFIG = Config(source=SOURCE, windows=["1d", "7d"], features={"groups": ["match", "lifetime"]})
SPEC = FeatureSpec.from_config(CONFIG, KINDS)
MATCH = [f.name for f in SPEC.features if f.op == "match"]
COUNTS = [f.name for f in SPEC.features if f.op == "match" and f.how == "count"]
CAMPAIGNS = ["sale-1", "sale-2", "Sale 3", "news-1", "news-2", "2026-07", None]
AS_OF = 40 * DAY


def a_log(seed: int, events: int = 900, subscribers: int = 8) -> list[Event]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-(2**63), 2**63 - 1, subscribers, dtype=np.int64)
    columns = zip(
        keys[rng.integers(0, subscribers, events)].tolist(),
        rng.integers(0, AS_OF, events).tolist(),
        rng.choice(KINDS, events, p=[0.5, 0.2, 0.1, 0.1, 0.04, 0.06]).tolist(),
        rng.integers(0, len(CAMPAIGNS), events).tolist(),
        (rng.random(events) < 0.1).tolist(),
        strict=True,
    )
    return ordered([Event(k, t, e, CAMPAIGNS[c], i, 0, m) for i, (k, t, e, c, m) in enumerate(columns)])


def request(**changes: Any) -> SampleRequest:
    """Of the hold-out, where no campaign is hidden."""
    base = {"purpose": "train", "as_of": AS_OF, "heads": (), "exposure": "send", "holdout_share": 1.0}
    return SampleRequest(**{**base, **changes})


def made(events: list[Event], backend: Backend, asked: SampleRequest, spec: FeatureSpec = SPEC) -> FeatureTable:
    return feature_table(frame_of(events, backend, machine=True), spec, asked, backend)


def columns(table: FeatureTable, backend: Backend, names: list[str] = MATCH) -> np.ndarray:
    return backend.to_host(table.X)[:, [table.spec.index(n) for n in names]]


def test_by_hand(backend: Backend) -> None:
    """Three sends of the family lately and one long ago; one bounced, two were opened; another family's beside."""
    log = [
        Event(1, 0, "send", "sale-0", 0),
        Event(1, 1, "open", "sale-0", 1),
        *(Event(1, 30 * DAY + i, "send", f"sale-{i}", 10 + i) for i in range(3)),
        Event(1, 30 * DAY + 5, "soft_bounce", "sale-2", 20),
        Event(1, 30 * DAY + 6, "open", "SALE 1", 21),
        Event(1, 30 * DAY + 7, "open", "news-1", 22),
        Event(1, 30 * DAY + 8, "send", "news-1", 23),
        Event(1, 31 * DAY, "send", "sale-9", 99),
    ]
    found = dict(zip(MATCH, columns(made(ordered(log), backend, request()), backend)[-1].tolist(), strict=True))
    assert (found["family_send_7d"], found["family_open_7d"], found["family_delete_7d"]) == (3, 1, 0)
    assert (found["family_send_ever"], found["family_open_ever"]) == (4, 2)
    own = (3 + 1) / (5 - 1 + 10)  # opens and deliveries of the whole history
    rate = (2 + 5 * own) / (3 + 5)
    assert found["family_open_rate_ever"] == pytest.approx(rate)
    assert found["family_open_lift_ever"] == pytest.approx((rate - own) / (rate + own))
    assert found["family_click_lift_ever"] < 0 < found["family_open_lift_ever"]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_plain_python(backend: Backend, seed: int) -> None:
    events = a_log(seed)
    table = made(events, backend, request())
    sends = [e for e in events if e.event == "send"]
    for send, row in zip(sends, columns(table, backend).tolist(), strict=True):
        expected = oracle.feature(SPEC, events, send.key, send.ts, campaign=send.campaign)
        assert row == pytest.approx([expected[n] for n in MATCH], rel=1e-6, abs=1e-6)


def test_an_unknown_campaign_is_of_a_family_never_had(backend: Backend) -> None:
    """One without a name, one of numbers alone and one of a family that is new to the subscriber are alike."""
    history = [e for e in a_log(4, subscribers=1) if e.event != "unsubscribe"]
    seen = []
    for campaign in (None, "2026-08", "first-ever-1"):
        events = ordered([*history, Event(history[0].key, AS_OF - 1, "send", campaign, 9999)])
        table = made(events, backend, request())
        seen.append(backend.to_host(table.X)[-1].tolist())
        found = dict(zip(SPEC.names, seen[-1], strict=True))
        assert all(found[n] == 0 for n in COUNTS)
        assert found["family_open_rate_ever"] == pytest.approx(found["open_rate_ever"])
        assert abs(found["family_open_lift_ever"]) < 1e-7
    assert seen[0] == seen[1] == seen[2]


def test_the_family_of_a_tenth_of_training_rows_is_hidden_where_that_of_sequences_is(backend: Backend) -> None:
    events = a_log(5, 4000)
    sequences = SequenceSpec.of(2, SPEC.kinds, (), ("news", "sale"))
    spec = FeatureSpec(**{**vars(SPEC), "sequences": sequences})
    hidden, whole = (made(events, backend, asked, spec) for asked in (request(holdout_share=0.0), request()))
    left, right = columns(hidden, backend), columns(whole, backend)
    names = [e.campaign for e in events if e.event == "send"]
    masked = [oracle.masked(e.key, e.ts) for e in events if e.event == "send"]
    had = (right[:, [i for i, n in enumerate(MATCH) if n in COUNTS]] > 0).any(axis=1)
    assert ((left != right).any(axis=1) == np.array(masked) & had).all()
    unknown = [m or n in (None, "2026-07") for m, n in zip(masked, names, strict=True)]
    assert (backend.to_host(hidden.sequences["at_family"])[:, 0] < 2).tolist() == unknown
    assert 0.07 < np.mean(masked) < 0.13
    assert (left[:, MATCH.index("family_send_ever")][masked] == 0).all()


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_planned_send_sees_what_training_would(backend: Backend, partitions: int) -> None:
    """Also in partitions that have not heard of the family."""
    events = [e for e in a_log(6) if e.event != "unsubscribe"]
    keys = sorted({e.key for e in events})
    events = [e for e in events if e.key != keys[0] or e.campaign not in CAMPAIGNS[:3]]  # the first had no sale
    for campaign in ("sale-77", "News", "never heard of", None):
        asked = request(purpose="score", campaign=campaign, keys=())
        parts = by_key_range(events, partitions)
        scored = concat([made(part, backend, asked) for part in parts])
        trained = []
        for key in keys:
            past = [e for e in events if e.key == key]
            table = made([*past, Event(key, AS_OF, "send", campaign, 9999)], backend, request(as_of=AS_OF + 1))
            trained.append(backend.to_host(table.X)[-1].tolist())
        assert backend.to_host(scored.X).tolist() == trained


def test_snapshots_are_about_no_campaign(backend: Backend) -> None:
    X = columns(made(a_log(7), backend, request(exposure=None, every=DAY)), backend, ["family_send_ever"])
    assert len(X) > 50
    assert (X == 0).all()


def test_what_the_log_lacks_is_absent(backend: Backend) -> None:
    def absent(config: Config) -> tuple[str, ...]:
        spec = FeatureSpec.from_config(config, KINDS)
        assert not [f for f in spec.features if f.op == "match"]
        assert "campaign" not in spec.columns
        return tuple(a for a in spec.absent if a.startswith("match"))

    groups = {"groups": ["counts", "match"]}
    unmapped = {"path": "log", "columns": {"subscriber": "id", "ts": "ts", "event": "event"}}
    assert absent(Config(source=unmapped, features=groups)) == (
        "match: the log has no campaigns (source.columns.campaign)",
    )
    every = Config(
        source=SOURCE,
        at={"every": "7d"},
        features=groups,
        outcomes={"click": {"events": "click", "within": "3d"}},
        decide={"hold_when": None},
    )
    assert absent(every) == ("match: decisions are made every so often (at.every), which is about no campaign",)
    assert "campaign" in SPEC.columns
    frame = frame_of(a_log(8), backend).drop(columns=["campaign"])
    with pytest.raises(DataError, match="'match' needs campaigns"):
        feature_table(frame, SPEC, request(keys=()), backend)


def test_definitions() -> None:
    found = {f.name: f.definition for f in SPEC.features}
    unknown = "where that is not known, as in 10% of training rows, by hash"
    of = "of campaigns of the family (the name without numbers) of at's campaign"
    assert found["family_delete_7d"] == f"delete events {of} in [at - 7d, at); 0 {unknown}"
    assert found["family_click_rate_ever"] == (
        f"(click + 5 click_rate_ever) / ((send - soft_bounce) + 5), each counted {of} in the whole history before at; "
        f"click_rate_ever {unknown}"
    )
    assert "family_delete_rate_ever" not in found
    assert "family_send_1d" not in found
