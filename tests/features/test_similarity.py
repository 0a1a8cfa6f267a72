"""The likeness of families against plain Python, and on populations of which it is known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.demo import with_source
from pipeline.events.ingest import ingest
from pipeline.events.simulate import simulate
from pipeline.events.store import EventStore
from pipeline.features.partition import partition_arrays
from pipeline.features.preparation import specify
from pipeline.features.samples import SampleRequest
from pipeline.features.similarity import learn, sums
from pipeline.features.spec import FeatureSpec
from pipeline.options import Simulate
from tests.features import oracle
from tests.features.logs import DAY, Event, by_key_range, frame_of
from tests.features.test_families import AS_OF, SPEC, a_log
from tests.features.test_portable import StrictBackend

NAMES = ("news", "sale", "trip")
FAMILIES = ("autumn", "spring", "summer", "winter")


def summed(events: list[Event], backend: Backend, names: tuple[str, ...] = NAMES, until: int = AS_OF) -> np.ndarray:
    frame = frame_of(events, choose("cpu") if isinstance(backend, StrictBackend) else backend, machine=True)
    part = partition_arrays(frame, list(SPEC.kinds), backend, campaign=True, value=False, families=())
    return sums(part, SPEC, names, until)


def test_sums_agree_with_plain_python(backend: Backend) -> None:
    """In fractions: products of two families' residuals, less their hypergeometric covariance."""
    events, until = a_log(1), 30 * DAY
    found = summed(events, backend, until=until)
    expected = np.zeros((2, 3, 3, 3))
    for key in {e.key for e in events}:
        seen = [e for e in events if e.key == key and not e.machine]
        first = oracle.first_answers(SPEC, seen)

        def number(rows: list[Event], kind: str, name: str) -> int:
            return len([e for e in rows if e.event == kind and oracle.family(e.campaign) == name and e.ts < until])

        sent = [max(number(seen, "send", n) - number(seen, "soft_bounce", n), 0) for n in NAMES]
        opened, clicked = ([number(first, kind, n) for n in NAMES] for kind in ("open", "click"))
        for k, (answers, trials) in enumerate(((opened, sent), (clicked, opened))):
            y = [min(a, t) for a, t in zip(answers, trials, strict=True)]
            total, size = sum(y), sum(trials)
            if size < 2:
                continue
            for f in range(3):
                for g in range(3):
                    z = Fraction(1)
                    for i in (f, g):
                        z *= y[i] - Fraction(total * trials[i], size)
                    own = trials[f] if f == g else 0
                    chance = Fraction(total * (size - total), size * (size - 1))
                    z = (z - chance * (own - Fraction(trials[f] * trials[g], size))) / size
                    below = Fraction(total, size) ** 2 * Fraction(trials[f] * trials[g], size)
                    expected[k, :, f, g] += [float(z), float(z * z), float(below)]
    assert found / 2**16 == pytest.approx(expected, abs=1e-3)
    assert np.abs(expected).max() > 1


def test_partitions_and_devices_change_no_bit(backend: Backend) -> None:
    events = a_log(2, 3000, 60)
    whole = summed(events, backend)
    assert (sum(summed(part, backend) for part in by_key_range(events, 7)) == whole).all()
    assert (summed(events, StrictBackend("pandas")) == whole).all()
    assert (summed([e for e in events if e.ts < 20 * DAY], backend) == summed(events, backend, until=20 * DAY)).all()
    assert not summed([], backend).any()


def population(seed: int, likes: Any, subscribers: int = 1500, sends: int = 40) -> list[Event]:
    """Everybody gets each family as often; an interest of four on a circle decides what they open."""
    rng = np.random.default_rng(seed)
    events = []
    for key in range(subscribers):
        interest, usual = rng.integers(4), rng.uniform(0.1, 0.5)
        opened = rng.random(sends) < usual * (1 + likes((interest - np.arange(sends)) % 4))
        for i in range(sends):
            campaign = f"{FAMILIES[i % 4]}-{i}"
            events.append(Event(key, i * DAY, "send", campaign, i))
            if opened[i]:
                events += [Event(key, i * DAY + j, "open", campaign, 1000 + i * 3 + j) for j in range(1, 2 + i % 3)]
    return events


def test_what_is_alike_is_found(backend: Backend) -> None:
    """Neighbours on the circle have nothing in common, those opposite are disliked."""
    circle = np.array([0.8, 0.0, -0.8, 0.0])
    found = learn(summed(population(1, lambda d: circle[d]), backend, FAMILIES), FAMILIES)
    assert found is not None
    expected = np.array([[np.cos(np.pi / 2 * (f - g)) for f in range(4)] for g in range(4)])
    assert np.array(found.weights) == pytest.approx(expected, abs=0.15)
    assert (np.diag(found.weights) == 1).all()
    assert (np.array(found.weights) == np.array(found.weights).T).all()


def test_no_likeness_is_found_where_there_is_none(backend: Backend) -> None:
    """Everybody has a rate of their own, and opens often twice or thrice: that makes no two families alike."""
    assert learn(summed(population(2, lambda d: 0.0 * d), backend, FAMILIES), FAMILIES) is None
    assert learn(summed([], backend), NAMES) is None


def test_families_may_be_liked_each_by_itself() -> None:
    """Each has a variance of its own, far beyond chance, and no two have anything in common."""
    found = np.zeros((1, 3, 3, 3), dtype=np.int64)
    found[0, 0], found[0, 1], found[0, 2] = np.eye(3) * 100 * 2**16, 2**16, 100 * 2**16
    alone = learn(found, NAMES)
    assert alone is not None
    assert np.array(alone.weights).tolist() == np.eye(3).tolist()


def test_a_simulated_log_tells_its_topics(tmp_path: Path) -> None:
    """Six topics on a circle: opposite ones are unlike, the more so than neighbours, whatever the partitions."""
    config = Config(name="topics", runs=str(tmp_path), simulate=Simulate(events=150_000, clients=1))
    config = with_source(config)
    simulate(config.simulate, Path(config.run_dir) / "raw", 2)
    ingest(config, choose("cpu"))
    store = EventStore(config.store_uri, choose("cpu"))
    (client,) = store.clients()
    request = SampleRequest.from_config(config, client, store.last_full_day(client))
    spec, _ = specify(store, client, config, request)
    again, _ = specify(store, client, config, request, partitions=5)
    assert spec == again
    assert spec.similarity is not None
    circle = ["spring sale", "new arrivals", "weekend recipes", "travel deals", "member news", "clearance"]
    assert list(spec.similarity.names) == sorted(circle)
    order = [spec.similarity.names.index(n) for n in circle]
    weights = np.array(spec.similarity.weights)[order][:, order]
    near, far = (np.mean([weights[i, (i + d) % 6] for i in range(6)]) for d in (1, 3))
    assert near > 0.2
    assert far < -0.2
    assert FeatureSpec.from_json(spec.to_json()) == spec
    presence = config.model_copy(update={"features": config.features.model_copy(update={"groups": ["presence"]})})
    by_presence, _ = specify(store, client, presence, request)
    assert by_presence.similarity is not None
    assert by_presence.similarity.names == spec.similarity.names
