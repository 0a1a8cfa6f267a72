"""What a subscriber did with earlier campaigns of the family that is decided about, and where no campaign is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.features.samples import SampleRequest
from pipeline.features.sequences import SequenceSpec
from pipeline.features.similarity import Similarity
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_table
from tests.features import oracle
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered
from tests.features.test_portable import StrictBackend
from tests.strict_numpy import StrictArray

KINDS = ["send", "open", "click", "delete", "unsubscribe", "soft_bounce"]
SOURCE = {"path": "log", "columns": {"subscriber": "id", "ts": "ts", "event": "event", "campaign": "campaign"}}
CONFIG = Config(source=SOURCE, windows=["1d", "7d"], features={"groups": ["match", "lifetime"]})
SPEC = FeatureSpec.from_config(CONFIG, KINDS)
ALIKE = replace(
    SPEC, similarity=Similarity(("news", "sale", "trip"), ((1, -0.5, 0.25), (-0.5, 1, 0.75), (0.25, 0.75, 1)))
)
LATELY = FeatureSpec.from_config(Config(source=SOURCE, windows=["1d", "7d"], features={"groups": ["match"]}), KINDS)
MATCH = ["family_send_ever", "family_open_affinity_ever", "family_click_affinity_ever"]
CAMPAIGNS = ["sale-1", "sale-2", "Sale 3", "news-1", "trip-1", "other-2", "2026-07", None]
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
    """Four sends of the family: one bounced, two were opened, one of these twice; another family's beside."""
    log = [
        Event(1, 0, "send", "sale-0", 0),
        Event(1, 1, "open", "sale-0", 1),
        *(Event(1, 30 * DAY + i, "send", f"sale-{i}", 10 + i) for i in range(1, 4)),
        Event(1, 30 * DAY + 5, "soft_bounce", "sale-2", 20),
        Event(1, 30 * DAY + 6, "open", "sale-1", 21),
        Event(1, 30 * DAY + 7, "open", "sale-1", 22),
        Event(1, 30 * DAY + 8, "click", "sale-1", 23),
        Event(1, 30 * DAY + 9, "open", "sale-8", 24),  # nobody sent it
        Event(1, 30 * DAY + 9, "send", "news-1", 25),
        Event(1, 31 * DAY, "send", "sale-9", 99),
    ]
    found = columns(made(ordered(log), backend, request()), backend)[-1].tolist()
    opening, clicking = (2 + 1) / (5 - 1 + 10), (1 + 1) / (2 + 10)
    assert found == pytest.approx([4, (2 - opening * 3) / (opening * 3 + 16), (1 - clicking * 2) / (clicking * 2 + 16)])
    found = columns(made(ordered(log), backend, request(), ALIKE), backend)[-1].tolist()
    above, below = 2 - opening * 3 - 0.5 * (0 - opening * 1), opening * 3 + 0.25 * opening * 1
    assert found[1] == pytest.approx(above / (below + 16))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("spec", [SPEC, ALIKE, LATELY], ids=["alone", "alike", "lately"])
def test_agrees_with_plain_python(backend: Backend, seed: int, spec: FeatureSpec) -> None:
    events = a_log(seed)
    table = made(events, backend, request(), spec)
    names = [f.name for f in spec.features if f.op == "match"]
    assert [n[-3:] for n in names] == [("_7d" if spec is LATELY else "ver")] * 5
    sends = [e for e in events if e.event == "send"]
    for send, row in zip(sends, columns(table, backend, names).tolist(), strict=True):
        expected = oracle.feature(spec, events, send.key, send.ts, campaign=send.campaign)
        assert row == pytest.approx([expected[n] for n in names], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("spec", [SPEC, ALIKE], ids=["alone", "alike"])
def test_nothing_speaks_for_or_against_an_unknown_campaign(backend: Backend, spec: FeatureSpec) -> None:
    """One without a name, one of numbers alone and one of a family that is new to the subscriber are the same."""
    history = [e for e in a_log(4, subscribers=1) if e.event != "unsubscribe"]
    for campaign in (None, "2026-08", "first-ever-1"):
        events = ordered([*history, Event(history[0].key, AS_OF - 1, "send", campaign, 9999)])
        assert columns(made(events, backend, request(), spec), backend)[-1].tolist() == [0, 0, 0]


def test_a_family_alike_speaks_for_one_never_had(backend: Backend) -> None:
    """Who opens every sale and no news likes trips, which are like sales."""
    log = [Event(1, i * DAY, "send", ("sale-1", "news-1")[i % 2], i) for i in range(20)]
    log += [Event(1, i * DAY + 1, "open", "sale-1", 100 + i) for i in range(0, 20, 2)]
    log = ordered([*log, Event(1, 30 * DAY, "send", "trip-1", 99)])
    alone, alike = (columns(made(log, backend, request(), s), backend)[-1, 1] for s in (SPEC, ALIKE))
    assert alone == 0
    assert alike > 0.05


def test_the_family_of_a_tenth_of_training_rows_is_hidden_where_that_of_sequences_is(backend: Backend) -> None:
    events = a_log(5, 4000)
    sequences = SequenceSpec.of(2, SPEC.kinds, (), ("news", "other", "sale", "trip"))
    spec = replace(ALIKE, sequences=sequences)
    hidden, whole = (made(events, backend, asked, spec) for asked in (request(holdout_share=0.0), request()))
    left, right = columns(hidden, backend), columns(whole, backend)
    names = [e.campaign for e in events if e.event == "send"]
    masked = [oracle.masked(e.key, e.ts) for e in events if e.event == "send"]
    assert ((left != right).any(axis=1) == np.array(masked) & (right != 0).any(axis=1)).all()
    unknown = [m or n in (None, "2026-07") for m, n in zip(masked, names, strict=True)]
    assert (backend.to_host(hidden.sequences["at_family"])[:, 0] < 2).tolist() == unknown
    assert 0.07 < np.mean(masked) < 0.13
    assert (left[masked] == 0).all()


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_planned_send_sees_what_training_would(backend: Backend, partitions: int) -> None:
    """Also in partitions that have not heard of the family."""
    events = [e for e in a_log(6) if e.event != "unsubscribe"]
    keys = sorted({e.key for e in events})
    events = [e for e in events if e.key != keys[0] or e.campaign not in CAMPAIGNS[:3]]  # the first had no sale
    for campaign in ("sale-77", "News", "never heard of", None):
        asked = request(purpose="score", campaign=campaign, keys=())
        parts = by_key_range(events, partitions)
        scored = concat([made(part, backend, asked, ALIKE) for part in parts])
        trained = []
        for key in keys:
            past = [e for e in events if e.key == key]
            table = made([*past, Event(key, AS_OF, "send", campaign, 9999)], backend, request(as_of=AS_OF + 1), ALIKE)
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
    assert [n for n in found if n.startswith("family_")] == MATCH
    family = "the family (the name without numbers) of at's campaign"
    unknown = "0 where that is not known, as in 10% of training rows, by hash"
    ever = "in the whole history before at"
    assert found["family_send_ever"] == f"send events of campaigns of {family} {ever}; {unknown}"
    assert found["family_open_affinity_ever"] == (
        f"z / (e + 16), of {family} and, by their similarity s to it, of others: z the sum of s (n - r d), e of "
        f"s^2 r d; n the send events' first opens and d (send - soft_bounce) of one family {ever}; "
        f"r (n + 1) / (d + 10) of all families; {unknown}"
    )
    assert "first clicks and d first opens of one family" in found["family_click_affinity_ever"]
    assert FeatureSpec.from_json(ALIKE.to_json()) == ALIKE


def test_the_array_code_asks_nothing_that_cupy_lacks() -> None:
    plain = choose("cpu")
    events = [e for e in a_log(9) if e.ts < AS_OF]
    frame = frame_of(events, plain, machine=True)
    asked = request(keys=(), holdout_share=0.0)
    found, expected = (feature_table(frame, ALIKE, asked, b) for b in (StrictBackend("pandas"), plain))
    assert isinstance(found.X, StrictArray)
    assert found.X.tolist() == expected.X.tolist()


def test_partitions_change_nothing(backend: Backend) -> None:
    """Codes of families differ from one partition to the next."""
    events = a_log(10, subscribers=40)
    whole = made(events, backend, request(), ALIKE)
    parts = concat([made(part, backend, request(), ALIKE) for part in by_key_range(events, 7)])
    assert backend.to_host(whole.X).tobytes() == backend.to_host(parts.X).tobytes()
