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
from pipeline.features.similarity import Similarity
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table
from tests.features import oracle
from tests.features.logs import DAY, Event, by_key_range, frame_of, ordered
from tests.features.test_families import AS_OF, KINDS, SOURCE, a_log, columns, made, request
from tests.features.test_portable import StrictBackend

HOUR = DAY // 24
CONFIG = Config(source=SOURCE, windows=["7d"], features={"groups": ["presence"]})
PLAIN = FeatureSpec.from_config(CONFIG, KINDS)
NAMES = ["presence", "keenness", "open_chance", "click_chance", "click_of_open_chance", "family_leaning"]
SPEC = replace(
    PLAIN,
    presence=Presence(
        ((0.4, 0.2), (0.3, 0.1)),
        ((0.1, 0.05), (0.02, 0.2)),
        (((0.3, 0.05), (0.2, 0.1)), ((0.2, 0.01), (0.4, 0.03)), ((0.1, 0.02), (0.15, 0.01))),
        tuple(tuple(np.linspace(0, 1, 73) ** power) for power in (1.0, 0.5, 0.25)),
    ),
)
# No covariance as it stands: one of its eigenvalues is below 0.
ALIKE = replace(
    SPEC, similarity=Similarity(("news", "sale", "trip"), ((1, -0.9, 0.25), (-0.9, 1, 0.75), (0.25, 0.75, 1)))
)


def test_by_hand(backend: Backend) -> None:
    """Opened, then nothing for two days, as every path of class and state has it."""
    log = ordered([*(Event(1, t * DAY, "send", f"a-{t}", t) for t in (0, 5, 7)), Event(1, 9, "open", "a-0", 9)])
    found = columns(made(log, backend, request(), SPEC), backend, NAMES)
    known, weights = SPEC.presence, np.zeros((2, 2))
    assert known is not None
    levels = np.array(known.levels)
    quiet, seven = 1 - sum(known.delay[r][48] * levels[r] for r in range(3)), known.delay[2][72]
    for k, path in itertools.product(range(2), itertools.product(range(2), repeat=3)):
        opened_only = levels[1, k, path[0]] + (1 - seven) * levels[2, k, path[0]]
        p = known.start[k][path[0]] * opened_only * quiet[k, path[1]]
        for gap, (a, b) in zip((5, 2), itertools.pairwise(path), strict=True):
            fall, wake = known.change[k]
            p *= np.linalg.matrix_power(np.array([[1 - fall, fall], [wake, 1 - wake]]), gap)[a, b]
        weights[k, path[-1]] += p
    weights /= weights.sum()
    awake, opened, clicked = weights[:, 0].sum(), (weights * (levels[1] + levels[2])).sum(), (weights * levels[2]).sum()
    keen = (weights[:, 0] * (levels[1] + levels[2])[:, 0]).sum() / awake
    assert found[-1] == pytest.approx([awake, keen, opened, clicked, clicked / opened, 0], rel=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("spec", [SPEC, ALIKE], ids=["alone", "alike"])
def test_agrees_with_plain_python(backend: Backend, seed: int, spec: FeatureSpec) -> None:
    events = a_log(seed, 600)
    assert [f.name for f in spec.features] == NAMES
    rows = columns(made(events, backend, request(), spec), backend, NAMES)
    for send, row in zip([e for e in events if e.event == "send"], rows.tolist(), strict=True):
        expected = oracle.feature(spec, events, send.key, send.ts, campaign=send.campaign)
        assert row == pytest.approx([expected[n] for n in NAMES], rel=1e-5, abs=1e-7)
    assert ((rows.std(axis=0) > 0) == [n != "family_leaning" or spec is ALIKE for n in NAMES]).all()


def test_leanings_by_hand(backend: Backend) -> None:
    """Opened news speaks for news, against sales, which are unlike them, and a little for trips; a day later only the
    click is still open. A sale that lies for ten days speaks for news and against trips, which are like sales."""
    log = [Event(1, 0, "send", "news-1", 0), Event(1, 9, "open", "news-1", 9)]
    log += [Event(1, t * DAY, "send", name, t) for t, name in ((1, "sale-1"), (11, "trip-1"), (12, "else-1"))]
    found, plain = (
        columns(made(ordered(log), backend, request(), spec), backend, ["family_leaning", "open_chance"])
        for spec in (ALIKE, SPEC)
    )
    known, weights = ALIKE.presence, np.array(ALIKE.similarity.weights if ALIKE.similarity else ())
    assert known is not None
    values, vectors = np.linalg.eigh(weights)
    alike = (vectors * np.maximum(values, 0)) @ vectors.T
    alike = 0.25**2 * alike / np.sqrt(np.outer(alike.diagonal(), alike.diagonal()))
    now, levels, due = np.array(known.start), np.array(known.levels), known.delay[2][24]
    opened, clicked = levels[1] + levels[2], levels[2]
    p, rises = (now * opened).sum(), (now * opened * (1 - opened)).sum()
    click = (now * clicked).sum() / p
    deeper = (now * clicked * (2 - opened - clicked / opened)).sum() / p - click * rises / p
    score = rises / p - due * deeper / (1 - due * click)
    information = rises**2 / (p * (1 - p)) + due * deeper**2 / (click * (1 - due * click))
    assert found[0, 0] == 0
    assert found[1, 0] == pytest.approx(alike[1, 0] * score / (1 + information * alike[0, 0]), rel=1e-5)
    assert score > 0 > found[1, 0]
    assert found[2, 0] < 0 == found[3, 0]  # the latter is of a family that is not known
    assert (found[:, 1] < plain[:, 1]).tolist()[1:3] == [True, True]
    assert found[3, 1] != plain[3, 1]  # what is thought of the classes hangs on the leanings, too


def test_who_answers_everything_may_be_silent_once(backend: Backend) -> None:
    """Levels are rounded, so those of a class may add up to more than 1."""
    levels = (((1e-4, 1e-4),), ((0.9069, 0.9069),), ((0.09315, 0.09315),))
    known = Presence(((0.999, 0.001),), ((0.001, 0.5),), levels, ((1.0,) * 73,) * 3)
    log = [Event(1, t * DAY, "send", f"news-{t}", t) for t in range(0, 40, 4)]
    for spec in (SPEC, ALIKE):
        found = columns(made(ordered(log), backend, request(), replace(spec, presence=known)), backend, NAMES)
        assert np.isfinite(found).all()
        assert (np.diff(found[:, 2]) <= 0).all()
        assert ((found[:, :5] >= 0) & (found[:, :5] <= 1)).all()


def test_it_learns_what_somebody_leans_to(backend: Backend) -> None:
    """Everybody opens a third of all messages, but more of one family's than of the other's, half of them the other way
    round. After forty of each, half of what tells them apart is known."""
    rng, log = np.random.default_rng(3), []
    for key in range(40):
        for day in range(81):
            name = ("news", "sale")[day % 2]
            log.append(Event(key, day * DAY, "send", f"{name}-{day}", day))
            if rng.random() < (0.43 if (name == "news") == (key < 20) else 0.24):
                log.append(Event(key, day * DAY + 1, "open", f"{name}-{day}", day))
    levels = (((0.01, 0.01),), ((1 / 3 - 0.01, 0.3),), ((0.01, 0.01),))
    presence = Presence(((0.999, 0.001),), ((0.001, 0.5),), levels, ((1.0,) * 73,) * 3)
    spec = replace(SPEC, presence=presence, similarity=Similarity(("news", "sale"), ((1, -1), (-1, 1))))
    table = made(ordered(log), backend, request(as_of=90 * DAY), spec)
    last = backend.to_host(table.points(np.arange(len(table)))[1]) == 80 * DAY
    chance = columns(table, backend, ["open_chance"])[last, 0]
    assert len(chance) == 40
    assert chance[:20].mean() > 0.38
    assert chance[20:].mean() < 0.30


def test_a_planned_send_sees_what_training_would(backend: Backend) -> None:
    events = [e for e in a_log(6) if e.event != "unsubscribe"]
    for campaign in ("sale-77", "never heard of", None):
        asked = request(purpose="score", campaign=campaign, keys=())
        scored = columns(made(events, backend, asked, ALIKE), backend, NAMES)
        trained = []
        for key in sorted({e.key for e in events}):
            past = [e for e in events if e.key == key]
            table = made([*past, Event(key, AS_OF, "send", campaign, 9999)], backend, request(as_of=AS_OF + 1), ALIKE)
            trained.append(columns(table, backend, NAMES)[-1].tolist())
        assert scored.tolist() == trained
        assert (scored[:, -1] != 0).any() == (campaign == "sale-77")


def test_partitions_change_nothing_and_the_twin_agrees() -> None:
    plain, events = choose("cpu"), a_log(10, subscribers=40)
    whole = made(events, plain, request(), ALIKE)
    parts = [made(part, plain, request(), ALIKE).X for part in by_key_range(events, 7)]
    assert whole.X.tobytes() == np.concatenate(parts).tobytes()
    frame = frame_of(events, plain, machine=True)
    strict = feature_table(frame, ALIKE, request(keys=()), StrictBackend("pandas"))
    assert np.array(strict.X.tolist()) == pytest.approx(whole.X, rel=1e-6, abs=1e-8)


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
