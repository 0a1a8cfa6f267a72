"""What a subscriber does with messages: answers, deletes unread, nothing."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import concat, feature_table
from tests.features import oracle
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered
from tests.features.test_families import KINDS, SOURCE, a_log, columns, made, request
from tests.features.test_portable import StrictBackend
from tests.strict_numpy import StrictArray

CONFIG = Config(source=SOURCE, windows=["1d", "7d"], features={"groups": ["reactions", "lifetime"]})
SPEC = FeatureSpec.from_config(CONFIG, KINDS)
NAMES = [f.name for f in SPEC.features if f.op == "reaction"]


def test_by_hand(backend: Backend) -> None:
    """Of six messages one bounced, one was opened and then deleted, one deleted and then opened, one opened twice, one
    deleted, one let lie; and somebody deletes what nobody sent."""
    log = [
        *(Event(1, i * DAY, "send", f"news-{i}", i) for i in range(6)),
        Event(1, 10, "soft_bounce", "news-0", 10),
        Event(1, DAY + 5, "open", "news-1", 11),
        Event(1, DAY + 6, "delete", "news-1", 12),
        Event(1, 2 * DAY + 5, "delete", "news-2", 13),
        Event(1, 2 * DAY + 6, "open", "news-2", 14),
        Event(1, 3 * DAY + 5, "open", "news-3", 15),
        Event(1, 3 * DAY + 6, "click", "news-3", 16),
        Event(1, 4 * DAY + 5, "delete", "news-4", 17),
        Event(1, 4 * DAY + 6, "delete", "news-4", 18),
        Event(1, 4 * DAY + 7, "delete", "other", 19),
        Event(1, 6 * DAY, "send", "news-6", 99),
    ]
    found = dict(zip(NAMES, columns(made(ordered(log), backend, request(), SPEC), backend, NAMES)[-1], strict=True))
    assert found["silent_streak"] == 1
    assert found["read_share_ever"] == pytest.approx((3 + 1) / (3 + 2 + 2))
    assert found["reaction_rate_ever"] == pytest.approx((3 + 2 + 1) / (5 + 2))
    assert found["read_share_1d"] == 0.5
    assert found["reaction_rate_1d"] == pytest.approx(1 / (1 + 2))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_plain_python(backend: Backend, seed: int) -> None:
    events = a_log(seed, 700)
    table = made(events, backend, request(), SPEC)
    assert len(NAMES) == 1 + 2 * 3
    rows = columns(table, backend, NAMES)
    sends = [e for e in events if e.event == "send"]
    for send, row in zip(sends, rows.tolist(), strict=True):
        expected = oracle.feature(SPEC, events, send.key, send.ts, campaign=send.campaign)
        assert row == pytest.approx([expected[n] for n in NAMES], rel=1e-6)
    assert (rows.std(axis=0) > 0).all()


def test_who_deletes_is_told_from_who_is_not_there(backend: Backend) -> None:
    """Neither has ever opened one of ten messages."""
    sends = [Event(k, i * DAY, "send", f"a-{i}", i) for k in (1, 2) for i in range(11)]
    log = ordered([*sends, *(Event(1, i * DAY + 1, "delete", f"a-{i}", 50 + i) for i in range(10))])
    deletes, absent = columns(made(log, backend, request(), SPEC), backend, NAMES)[[10, 21]]
    there = NAMES.index("reaction_rate_ever")
    assert deletes[there] == pytest.approx(11 / 12)
    assert absent[there] == pytest.approx(1 / 12)
    assert [deletes[0], absent[0]] == [0, 10]


def test_what_the_log_lacks_is_absent() -> None:
    groups = {"groups": ["counts", "reactions"]}
    unmapped = Config(source={"path": "log", "columns": {"subscriber": "id", "ts": "t", "event": "e"}}, features=groups)
    wanted = "reactions: the log has no campaigns (source.columns.campaign)"
    for config, kinds, told in (
        (unmapped, KINDS, (wanted,)),
        (Config(source=SOURCE, features=groups), ["send", "open", "click"], ()),
        (Config(source=SOURCE, features=groups), ["send", "delete"], ()),
    ):
        spec = FeatureSpec.from_config(config, kinds)
        assert not [f for f in spec.features if f.op == "reaction"]
        assert tuple(a for a in spec.absent if a.startswith("reactions")) == told
    assert "campaign" in SPEC.columns


def test_definitions() -> None:
    found = {f.name: f.definition for f in SPEC.features}
    first = "n first answers (open or click) to send events, d first deletes of those not answered before"
    assert found["read_share_7d"] == f"(n + 1) / (n + d + 2), in [at - 7d, at): {first}"
    assert found["silent_streak"] == "send events since the latest open or click or delete before at"


def test_partitions_and_the_kind_of_arrays_change_nothing() -> None:
    plain, events = choose("cpu"), a_log(10, subscribers=40)
    whole = made(events, plain, request(), SPEC)
    parts = concat([made(part, plain, request(), SPEC) for part in by_key_range(events, 7)])
    assert whole.X.tobytes() == parts.X.tobytes()
    asked, frame = request(keys=()), frame_of(events, plain, machine=True)
    found, expected = (feature_table(frame, SPEC, asked, b) for b in (StrictBackend("pandas"), plain))
    assert isinstance(found.X, StrictArray)
    assert np.array_equal(np.array(found.X.tolist()), np.array(expected.X.tolist()))
