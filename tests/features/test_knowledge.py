"""Backfills equal the past: a training set made at the end is what scoring saw on each of its days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import pipeline
from pipeline import extensions
from pipeline.backend import Backend, choose
from pipeline.config import Config
from pipeline.demo import with_source
from pipeline.errors import DataError
from pipeline.events.ingest import ingest
from pipeline.events.simulate import simulate
from pipeline.events.store import EventStore
from pipeline.features import knowledge, own
from pipeline.features.preparation import specify
from pipeline.features.samples import SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_table, feature_tables
from pipeline.options import Simulate
from tests.features import oracle
from tests.features.logs import DAY, EVERYTHING, KINDS, Event, frame_of, ordered
from tests.features.test_portable import StrictBackend
from tests.strict_numpy import StrictArray

SPEC = FeatureSpec.from_config(EVERYTHING, KINDS)
AS_OF = 21 * DAY
DELAYS = np.array([0, 0, 0, 1, DAY // 4, DAY, 5 * DAY, 40 * DAY])


def request(**changes: Any) -> SampleRequest:
    base = {"purpose": "train", "as_of": AS_OF, "heads": (), "exposure": "send", "as_known_at": "decision"}
    return SampleRequest(**{**base, **changes})


def frame_with_arrivals(events: list[Event], arrived: list[int], backend: Backend) -> Any:
    frame = frame_of(events, backend, machine=True)
    frame["ingested_at"] = backend.df.Series(np.array(arrived, dtype="datetime64[us]"), index=frame.index)
    return frame


def late_log(seed: int) -> tuple[list[Event], dict[int, int]]:
    """A dense log on a coarse grid of times, many of its events late, and when each arrived."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    columns = zip(
        rng.choice([-(2**62), 0, 7], n).tolist(),
        (rng.integers(0, 44, n) * DAY // 2).tolist(),
        rng.choice(KINDS, n, p=[0.5, 0.25, 0.1, 0.03, 0.03, 0.09]).tolist(),
        (rng.random(n) < 0.2).tolist(),
        strict=True,
    )
    campaigns = ("a", "a-2", "b", None)
    events = ordered([Event(k, t, e, campaigns[i % 4], i, i, m) for i, (k, t, e, m) in enumerate(columns)])
    return events, {e.event_id: e.ts + int(d) for e, d in zip(events, rng.choice(DELAYS, n), strict=True)}


@pytest.mark.parametrize("seed", range(25))
def test_an_exposure_knows_what_had_arrived_by_it(backend: Backend, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events, arrived = late_log(seed)
    monkeypatch.setattr(knowledge, "BLOCK", 1 << seed)  # from one copy at a time to all at once
    frame = frame_with_arrivals(events, [arrived[e.event_id] for e in events], backend)
    table = feature_table(frame, SPEC, request(), backend)
    sends = [e for e in events if e.event == "send" and e.ts < AS_OF and arrived[e.event_id] <= AS_OF]
    assert backend.to_pandas(table.keys)["event_id"].tolist() == [e.event_id for e in sends]
    less = 0
    for send, row in zip(sends, backend.to_host(table.X).tolist(), strict=True):
        known = [e for e in events if arrived[e.event_id] <= send.ts]
        found = dict(zip(SPEC.names, row, strict=True))
        campaign = None if oracle.masked(send.key, send.ts) else send.campaign
        for name, value in oracle.feature(SPEC, known, send.key, send.ts, campaign=campaign).items():
            assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
        past = [e for e in events if e.key == send.key and e.ts < send.ts and arrived[e.event_id] <= AS_OF]
        less += any(arrived[e.event_id] > send.ts for e in past)
    assert table.counts["knew_less"] == less


@pytest.mark.parametrize("seed", range(100, 115))
@pytest.mark.parametrize("keep", [True, False])
def test_snapshots_are_the_scoring_of_their_day(backend: Backend, seed: int, keep: bool) -> None:
    """Who is active, and who has left, is what was known then, too."""
    events, arrived = late_log(seed)
    frame = frame_with_arrivals(events, [arrived[e.event_id] for e in events], backend)
    asked = {"exposure": None, "active_within": 5 * DAY, "keys": ()}
    table = feature_table(frame, SPEC, request(every=DAY, **asked), backend)
    expected = []
    for day in range(1, 21):
        known_at: Any = "decision" if keep else day * DAY
        scored = request(purpose="score", as_of=day * DAY, as_known_at=known_at, **asked)
        expected.append(feature_table(frame, SPEC, scored, backend))
    assert rows_of(table, backend) == {k: v for one in expected for k, v in rows_of(one, backend).items()}


@pytest.mark.parametrize("seed", range(300, 306))
def test_features_of_one_s_own_know_no_more(backend: Backend, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an event's value depends on the subscriber's earlier ones, of which some had not arrived."""
    monkeypatch.setattr(extensions, "_features", {})
    monkeypatch.setattr(own, "_checked", {})

    @pipeline.feature(windows=["3d", "30d"], how="sum")
    def nth(events: Any) -> Any:
        return events.groupby(level=0).cumcount()

    config = Config(windows=["7d"], features={"groups": ["tenure"]})
    spec = FeatureSpec.from_config(config, KINDS)
    events, arrived = late_log(seed)
    frame = frame_with_arrivals(events, [arrived[e.event_id] for e in events], backend)
    table = feature_table(frame, spec, request(), backend)
    ids = backend.to_pandas(table.keys)["event_id"].tolist()
    for event_id, row in zip(ids, backend.to_host(table.X).tolist(), strict=True):
        send = next(e for e in events if e.event_id == event_id)
        past = [e for e in events if e.key == send.key and e.ts < send.ts and arrived[e.event_id] <= send.ts]
        known = ordered([*past, send])
        alone = feature_table(frame_of(known, backend, machine=True), spec, request(as_known_at=None), backend)
        last = backend.to_pandas(alone.keys)["event_id"].tolist().index(event_id)
        assert backend.to_host(alone.X)[last].tolist() == row


def rows_of(table: FeatureTable, backend: Backend) -> dict[tuple[int, int], bytes]:
    keys = backend.to_pandas(table.keys)
    at = keys["at"].to_numpy().astype("int64").tolist()
    arrays = [backend.to_host(a) for a in (table.X, *table.sequences.values())]
    rows = (b"".join(a[i].tobytes() for a in arrays) for i in range(len(table)))
    return {(k, t): row for k, t, row in zip(keys["subscriber_key"].tolist(), at, rows, strict=True)}


@pytest.mark.parametrize("seed", range(200, 215))
def test_the_array_code_asks_nothing_that_cupy_lacks(seed: int) -> None:
    plain = choose("cpu")
    events, arrived = late_log(seed)
    kept = [e for e in events if arrived[e.event_id] <= AS_OF and e.ts < AS_OF]
    frame = frame_with_arrivals(kept, [arrived[e.event_id] for e in kept], plain)
    for asked in (request(keys=()), request(keys=(), exposure=None, every=DAY)):
        found, expected = (feature_table(frame, SPEC, asked, b) for b in (StrictBackend("pandas"), plain))
        assert isinstance(found.X, StrictArray)
        assert found.X.tolist() == expected.X.tolist()
        assert found.counts == expected.counts


def test_without_arrivals_it_is_refused(backend: Backend) -> None:
    frame = frame_of([Event(1, 5, "send")], backend).drop(columns=["ingested_at"])
    with pytest.raises(DataError, match="needs the column ingested_at"):
        feature_table(frame, SPEC, request(), backend)


# -- on a simulated log --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Two months in which every tenth event is late by days and every tenth arrives twice."""
    folder = tmp_path_factory.mktemp("late")
    config = with_source(
        Config(
            name="late",
            runs=str(folder),
            windows=["1d", "7d", "30d"],
            at={"every": "1d"},
            outcomes={
                "click": {"events": "click", "within": "1d"},
                "unsubscribe": {"events": "unsubscribe", "within": "1d"},
            },
            decide={"reward": {"click": 1.0}},
            lateness="1d",
            as_known_at="decision",
            sequences={"length": 8, "campaigns": 20},
            simulate=Simulate(
                events=12_000, clients=1, days=60, dirt={"late": 0.1, "duplicate": 0.1, "out_of_order": 0.1}
            ),
            batch_rows=4000,
        )
    )
    simulate(config.simulate, Path(config.run_dir) / "raw", 2)
    ingest(config, choose("cpu"))
    return config, Path(config.store_uri)


def test_a_training_set_of_last_month_is_the_scoring_of_each_of_its_days(
    backend: Backend, simulated: tuple[Config, Path]
) -> None:
    config, place = simulated
    store = EventStore(str(place), backend)
    (client,) = store.clients()
    end = store.last_full_day(client)
    spec, _ = specify(store, client, config, SampleRequest.from_config(config, client, end))
    assert {"provider_known", "client_click_rate_28d"} < set(spec.names)
    assert spec.sequences is not None
    assert len(spec.sequences.campaigns) == 20

    def table(request: SampleRequest, partitions: int) -> FeatureTable:
        made = feature_tables(store, client, spec, request, partitions)
        return concat(dask.compute(*made, scheduler="threads", num_workers=2))

    train = SampleRequest.from_config(config, client, end)
    whole = {n: table(train, n) for n in (1, 5)}
    assert rows_of(whole[1], backend) == rows_of(whole[5], backend)
    built = rows_of(whole[1], backend)
    known = {}
    today = {}
    days = sorted({at for _, at in built})[-30:]
    assert len(days) == 30
    for day in days:
        seen = SampleRequest.from_config(config.model_copy(update={"as_known_at": None}), client, day, "score")
        known |= rows_of(table(SampleRequest(**{**vars(seen), "as_known_at": day}), 1 + day // DAY % 2), backend)
        if day in days[::6]:
            today |= rows_of(table(seen, 1), backend)
    built = {k: v for k, v in built.items() if k[1] >= days[0]}
    assert built == known
    differing = sum(built.get(k) != v for k, v in today.items())
    assert differing > len(today) // 20  # of events that came later, a backfill without it would have known
    assert whole[1].counts["knew_less"] > len(built) // 20
