"""Whether somebody is there: the filter against plain Python and every path of the hidden state, and what it learns."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.features.compiled_filters import expectations
from pipeline.features.filters import DAYS
from pipeline.features.partition import partition_arrays
from pipeline.features.presence import CLASSES, Presence, learn
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table
from tests.features import oracle
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered
from tests.features.test_families import KINDS, SOURCE, a_log, columns, made, request
from tests.features.test_portable import StrictBackend

HOUR = DAY // 24
CONFIG = Config(source=SOURCE, windows=["7d"], features={"groups": ["presence"]})
PLAIN = FeatureSpec.from_config(CONFIG, KINDS)
NAMES = ["presence", "keenness", "open_chance", "click_chance", "click_of_open_chance"]
SPEC = replace(
    PLAIN,
    presence=Presence(
        ((0.4, 0.2), (0.3, 0.1)),
        ((0.1, 0.05), (0.02, 0.2)),
        (((0.3, 0.05), (0.2, 0.1)), ((0.2, 0.01), (0.4, 0.03)), ((0.1, 0.02), (0.15, 0.01))),
        tuple(tuple(np.linspace(0, 1, 73) ** power) for power in (1.0, 0.5, 0.25)),
    ),
)


def test_by_hand(backend: Backend) -> None:
    """Opened, then nothing for two days, as every path of class and state has it."""
    log = ordered([*(Event(1, t * DAY, "send", f"a-{t}", t) for t in (0, 5, 7)), Event(1, 9, "open", "a-0", 9)])
    found = columns(made(log, backend, request(), SPEC), backend, NAMES)
    known, weights = SPEC.presence, np.zeros((2, 2))
    assert known is not None
    levels = np.array(known.levels)
    quiet = 1 - sum(known.delay[r][48] * levels[r] for r in range(3))
    for k, path in itertools.product(range(2), itertools.product(range(2), repeat=3)):
        p = known.start[k][path[0]] * levels[1, k, path[0]] * quiet[k, path[1]]
        for gap, (a, b) in zip((5, 2), itertools.pairwise(path), strict=True):
            fall, wake = known.change[k]
            p *= np.linalg.matrix_power(np.array([[1 - fall, fall], [wake, 1 - wake]]), gap)[a, b]
        weights[k, path[-1]] += p
    weights /= weights.sum()
    awake, opened, clicked = weights[:, 0].sum(), (weights * (levels[1] + levels[2])).sum(), (weights * levels[2]).sum()
    keen = (weights[:, 0] * (levels[1] + levels[2])[:, 0]).sum() / awake
    assert found[-1] == pytest.approx([awake, keen, opened, clicked, clicked / opened], rel=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_plain_python(backend: Backend, seed: int) -> None:
    events = a_log(seed, 600)
    assert [f.name for f in SPEC.features] == NAMES
    rows = columns(made(events, backend, request(), SPEC), backend, NAMES)
    for send, row in zip([e for e in events if e.event == "send"], rows.tolist(), strict=True):
        expected = oracle.feature(SPEC, events, send.key, send.ts)
        assert row == pytest.approx([expected[n] for n in NAMES], rel=1e-5)
    assert (rows.std(axis=0) > 0).all()


def test_partitions_change_nothing_and_the_twin_agrees() -> None:
    plain, events = choose("cpu"), a_log(10, subscribers=40)
    whole = made(events, plain, request(), SPEC)
    parts = [made(part, plain, request(), SPEC).X for part in by_key_range(events, 7)]
    assert whole.X.tobytes() == np.concatenate(parts).tobytes()
    frame = frame_of(events, plain, machine=True)
    strict = feature_table(frame, SPEC, request(keys=()), StrictBackend("pandas"))
    assert np.array(strict.X.tolist()) == pytest.approx(whole.X, rel=1e-6)


def test_expectations_are_those_of_every_path() -> None:
    rng = np.random.default_rng(0)
    starts, gap, level = np.array([0, 3]), np.array([0, 4, 1]), np.array([1, 0, 2])
    start, seen = rng.random((2, 2)), rng.random((3, 2, 2))
    moves = rng.random((DAYS + 1, 2, 2, 2))
    total, began, moved, showed = 0.0, np.zeros((2, 2)), np.zeros(moves.shape), np.zeros(seen.shape)
    for k, path in itertools.product(range(2), itertools.product(range(2), repeat=3)):
        p = start[k, path[0]] * np.prod([seen[v, k, x] for v, x in zip(level, path, strict=True)])
        p *= np.prod([moves[gap[t], k, path[t - 1], path[t]] for t in (1, 2)])
        total += p
        began[k, path[0]] += p
        for t in range(3):
            showed[level[t], k, path[t]] += p
            moved[gap[t], k, path[t - 1], path[t]] += p * (t > 0)
    *found, likelihood = expectations(starts, gap, level, start, moves, seen)
    for one, expected in zip(found, (began, moved, showed), strict=True):
        assert one == pytest.approx(expected / total)
    assert likelihood == pytest.approx(np.log(total))


def test_it_learns_who_comes_and_goes(backend: Backend) -> None:
    """Half answer each second message while they are awake, half each tenth; nobody who is asleep does."""
    rng, log = np.random.default_rng(1), []
    for key in range(600):
        awake = rng.random() < 0.5
        for day in range(60):
            log.append(Event(key, day * DAY, "send", f"a-{day}", day))
            if awake and rng.random() < (0.5, 0.1)[key % 2]:
                log.append(Event(key, day * DAY + HOUR, "open", f"a-{day}", day))
            awake = rng.random() < (0.95 if awake else 0.05)
    frame = frame_of(ordered(log), backend)
    part = partition_arrays(frame, list(PLAIN.kinds), backend, campaign=True, value=False)
    found = learn(part, PLAIN, 60 * DAY)
    assert found == learn(part, PLAIN, 60 * DAY)
    assert learn(part, PLAIN, 3 * DAY) == learn(part, PLAIN, 0)  # nothing is known by then
    rate, share = np.array(found.levels)[1], np.array(found.start)
    keen = rate[:, 0] > 0.3
    assert share[keen].sum() == pytest.approx(0.5, abs=0.1)
    assert (rate[keen, 0] * share[keen].sum(axis=1)).sum() / share[keen].sum() == pytest.approx(0.5, abs=0.05)
    assert (rate[keen, 1] * share[keen, 1]).sum() / share[keen, 1].sum() < 0.03
    assert np.array(found.change)[keen].mean() == pytest.approx(0.05, rel=0.5)
    assert found.delay[1][2] == 1
    spec = replace(PLAIN, presence=found)
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert len(found.start) == CLASSES


def test_what_the_log_lacks_is_absent() -> None:
    for kinds in (["open", "click"], ["send", "delete"]):
        config = Config(source=SOURCE, features={"groups": ["counts", "presence"]}, at={"every": "7d"})
        assert not [f for f in FeatureSpec.from_config(config, kinds).features if f.op == "presence"]
