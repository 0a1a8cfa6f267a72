"""Both backends over the same seeded log, stage by stage: integers equal, float32 features to 1e-6.

These need a GPU. What either backend must give is tested against independent oracles in the stages' own tests; here the
two are compared with each other over a whole log with its dirt, where an oracle would be too slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import Backend, choose, gpu_problem
from pipeline.config import Config, load
from pipeline.demo import with_source
from pipeline.events.ingest import ingest
from pipeline.events.simulate import simulate
from pipeline.events.store import EventStore
from pipeline.features.rollup import rollup
from pipeline.features.samples import SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable, concat, feature_tables

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_problem() is not None, reason=f"no GPU: {gpu_problem()}"),
]


@dataclass
class Side:
    config: Config
    backend: Backend
    store: EventStore
    report: Any


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """The same raw files ingested by each backend into a store of its own."""
    root = tmp_path_factory.mktemp("parity")
    config = load(None, ["name=log", f"runs={root}", "simulate.events=60000", "simulate.days=120"])
    simulate(config.simulate, root / "log" / "raw")
    made = []
    for wanted in ("cpu", "gpu"):
        backend = choose(wanted)  # type: ignore[arg-type]
        mine = with_source(config).model_copy(update={"store": str(root / wanted)})
        report = ingest(mine, backend)
        made.append(Side(mine, backend, EventStore(mine.store_uri, backend), report))
    return made[0], made[1]


def test_ingest_counts_the_same(sides: tuple[Side, Side]) -> None:
    cpu, gpu = (side.report for side in sides)
    assert gpu.as_dict() == cpu.as_dict()
    assert {r.name: r.count for r in gpu.rules} == {r.name: r.count for r in cpu.rules}


@pytest.mark.parametrize("partitions", [1, 7])
def test_events_are_the_same_in_the_same_order(sides: tuple[Side, Side], partitions: int) -> None:
    for client in sides[0].store.clients():
        frames = []
        for side in sides:
            frame = side.store.read(client, partitions=partitions).compute()
            frame = side.backend.to_pandas(frame).drop(columns=["ingested_at", "batch"])
            frames.append(frame.astype({c: "str" for c in frame.columns if frame[c].dtype.name == "category"}))
        cpu, gpu = frames
        assert list(gpu.columns) == list(cpu.columns)
        assert (gpu.index.to_numpy() == cpu.index.to_numpy()).all()
        for column in cpu.columns:
            left, right = (f[column].astype("object").where(f[column].notna(), None).tolist() for f in (cpu, gpu))
            assert left == right, column


def _table(side: Side, client: str, purpose: str) -> FeatureTable:
    spec = FeatureSpec.from_config(side.config, side.store.kinds(client))
    as_of = side.store.last_full_day(client)
    request = SampleRequest.from_config(side.config, client, as_of, purpose)  # type: ignore[arg-type]
    return concat([task.compute() for task in feature_tables(side.store, client, spec, request, 3)])


@pytest.mark.parametrize("purpose", ["train", "score"])
def test_feature_tables_agree(sides: tuple[Side, Side], purpose: str) -> None:
    for client in sides[0].store.clients():
        cpu, gpu = (_table(side, client, purpose) for side in sides)
        on_host = sides[1].backend.to_host
        assert gpu.counts == cpu.counts
        for name in ("y", "mask", "weight", "split"):
            np.testing.assert_array_equal(on_host(getattr(gpu, name)), getattr(cpu, name), err_msg=name)
        counts = [i for i, f in enumerate(cpu.spec.features) if f.unit == "events"]
        x, reference = on_host(gpu.X), cpu.X
        np.testing.assert_array_equal(x[:, counts], reference[:, counts])
        np.testing.assert_allclose(x, reference, rtol=1e-6, atol=1e-6)
        keys = sides[1].backend.to_pandas(gpu.keys)
        assert (keys["subscriber_key"].to_numpy() == cpu.keys["subscriber_key"].to_numpy()).all()
        assert (keys["at"].to_numpy() == cpu.keys["at"].to_numpy()).all()


def test_rollups_agree(sides: tuple[Side, Side]) -> None:
    for client in sides[0].store.clients():
        cpu, gpu = (rollup(side.store, client, side.config) for side in sides)
        counts = [c for c in cpu.columns if c.startswith(("n_", "unique_"))]
        assert (gpu[counts].to_numpy() == cpu[counts].to_numpy()).all()
        assert gpu["campaign"].tolist() == cpu["campaign"].tolist()


def test_a_store_is_read_by_the_other_backend(sides: tuple[Side, Side]) -> None:
    """A store holds no trace of what wrote it."""
    cpu, gpu = sides
    for writer, reader in ((cpu, gpu), (gpu, cpu)):
        store = EventStore(writer.config.store_uri, reader.backend)
        for client in store.clients():
            assert store.kinds(client) == writer.store.kinds(client)


def test_training_and_scoring_agree(sides: tuple[Side, Side], tmp_path: Path) -> None:
    """One model, its weights from the CPU side, gives both sides' tables the same probabilities."""
    pytest.importorskip("tensorflow")
    from pipeline.learning.client import train_client
    from pipeline.learning.registry import load_current
    from pipeline.learning.snapshot import Snapshot, Training

    cpu, _ = sides
    client = cpu.store.clients()[0]
    config = cpu.config.model_copy(update={"model": cpu.config.model.model_copy(update={"epochs": 2})})
    as_of = cpu.store.last_full_day(client)
    train_client(Training(Snapshot.of(cpu.store, config), client, as_of, tmp_path))
    model, _, _ = load_current(tmp_path, client)
    scores = []
    for side in sides:
        table = _table(side, client, "train")
        scores.append(side.backend.to_host(model.predict(table.X)))
    # The device's matrix products round differently; TensorFloat-32 is off by default in float32 predictions.
    np.testing.assert_allclose(scores[1], scores[0], rtol=2e-3, atol=1e-6)
