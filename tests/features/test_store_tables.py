"""Tables made from a store, by Dask tasks, are those made from the log itself."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from pipeline.features.samples import SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import concat, feature_table, feature_tables
from tests.features.logs import DAY, KINDS, Event, frame_of, ordered, random_log

START = 1_767_225_600_000_000


@pytest.fixture(scope="module")
def log() -> list[Event]:
    """Events whose keys are the hashes of the ids 0, 1, 2, ..."""
    events = random_log(np.random.default_rng(11), 6000, 80, 60)
    ids = {key: i for i, key in enumerate(sorted({e.key for e in events}))}
    hashed = {key: int(np.uint64(xxhash.xxh64_intdigest(str(i).encode())).astype(np.int64)) for key, i in ids.items()}
    return ordered([e._replace(key=hashed[e.key], ts=START + e.ts) for e in events])


@pytest.fixture(scope="module")
def store(log: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same events ingested from two files that split them by time."""
    folder = tmp_path_factory.mktemp("bench")
    hashed = {int(np.uint64(xxhash.xxh64_intdigest(str(i).encode())).astype(np.int64)): i for i in range(100)}
    (folder / "raw").mkdir()
    for name, part in (
        ("a", [e for e in log if e.ts < START + 30 * DAY]),
        ("b", [e for e in log if e.ts >= START + 30 * DAY]),
    ):
        table = pa.table(
            {
                "user": [hashed[e.key] for e in part],
                "time": pa.array([e.ts for e in part], pa.timestamp("us", "UTC")),
                "kind": [e.event for e in part],
                "campaign": [e.campaign for e in part],
                "id": [e.event_id for e in part],
                "value": [e.value for e in part],
            }
        )
        pq.write_table(table, folder / "raw" / f"{name}.parquet")
    columns = {
        "subscriber": "user",
        "ts": "time",
        "event": "kind",
        "campaign": "campaign",
        "event_id": "id",
        "value": "value",
    }
    config = Config(
        runs=str(folder / "runs"),
        store=str(folder / "store"),
        source={"path": str(folder / "raw"), "columns": columns, "client": "acme", "value_unit": "micro"},
        quality={"actions": {"scanner_click": "off", "machine_open": "off"}},
    )
    report = ingest(config, Backend("pandas"))
    assert report.kept == len(log)
    return folder / "store"


@pytest.mark.parametrize("partitions", [None, 1, 7])
@pytest.mark.parametrize("purpose", ["train", "score"])
def test_tables_from_the_store(
    backend: Backend, store: Path, log: list[Event], partitions: int | None, purpose: str
) -> None:
    outcomes = {
        "unsubscribe": {"events": "unsubscribe", "within": "7d", "match": "campaign"},
        "spend": {"sum": "value", "of": "purchase", "within": "5d"},
    }
    config = Config(outcomes=outcomes, decide={"reward": {}}, model={"downsample": 0.5})
    spec = FeatureSpec.from_config(config, KINDS)
    request = SampleRequest.from_config(config, "acme", START + 55 * DAY, purpose)  # type: ignore[arg-type]
    delayed = feature_tables(EventStore(str(store), backend), "acme", spec, request, partitions)
    found = concat(dask.compute(*delayed, scheduler="threads"))
    expected = feature_table(frame_of(log, backend), spec, request, backend)
    assert len(found) > 10
    assert found.counts == expected.counts
    for name in ("X", "y", "mask", "weight", "split"):
        assert (backend.to_host(getattr(found, name)) == backend.to_host(getattr(expected, name))).all(), name
    keys, wanted = backend.to_pandas(found.keys), backend.to_pandas(expected.keys)
    assert keys["subscriber_key"].tolist() == wanted["subscriber_key"].tolist()
    assert (keys["at"] == wanted["at"]).all()
    if purpose == "score":
        assert keys["subscriber"].notna().all()
