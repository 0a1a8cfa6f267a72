"""A client's decision points, all at once or in chunks, from a store of a small simulated log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.config import Config, load
from pipeline.demo import with_source
from pipeline.errors import ModelError, TooLittleError
from pipeline.events.ingest import ingest
from pipeline.events.simulate import simulate
from pipeline.events.store import EventStore
from pipeline.features.samples import HOLDOUT, TRAIN, VALIDATION
from pipeline.learning.client import train_client
from pipeline.learning.data import AtOnce, TrainingData, chunk_rows, training_data
from pipeline.learning.registry import client_dir, load_current, versions
from pipeline.learning.snapshot import Snapshot, Training
from tests.learning.epochs import count_epochs

OPTIONS = (
    "simulate.events=60000 simulate.days=120 simulate.clients=1 windows=[7d,30d] model.epochs=6 model.patience=6 "
    "model.minimum_positives=20 model.batch_size=512 features.groups=[counts,recency,rates] context.windows=[]"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventStore, Config]:
    root = tmp_path_factory.mktemp("data")
    config = load(None, ["name=log", f"runs={root}", *OPTIONS.split()])
    simulate(config.simulate, root / "log" / "raw")
    config = with_source(config)
    ingest(config, PANDAS)
    return EventStore(config.store_uri, PANDAS), config


def with_model(config: Config, **options: Any) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=options)})


def ready(store: EventStore, config: Config) -> TrainingData:
    client = store.clients()[0]
    return training_data(store, client, config, PANDAS, store.last_full_day(client))


def lines(*arrays: Any) -> list[bytes]:
    """Rows as bytes, in an order that does not depend on who made them."""
    wide = np.concatenate([np.asarray(a, dtype=np.float32).reshape(len(a), -1) for a in arrays], axis=1)
    return sorted(row.tobytes() for row in wide)


def test_chunks_hold_the_rows_that_one_table_has(made: tuple[EventStore, Config]) -> None:
    store, config = made
    whole = ready(store, config)
    assert whole.chunks is None
    assert whole.whole is whole.table
    train = np.flatnonzero(whole.table.split == TRAIN)
    parts = ready(store, with_model(config, chunk=4_000))
    assert parts.chunks is not None
    assert parts.chunks.count > 5
    assert parts.points == whole.points
    assert parts.rows == whole.rows == len(train)
    rows = [parts.chunks.make(i) for i in range(parts.chunks.count)]
    assert max(map(len, rows)) < 5_000
    expected = lines(*(getattr(whole.table, name)[train] for name in ("X", "y", "mask", "weight")))
    assert lines(*(np.concatenate([getattr(r, n) for r in rows]) for n in ("X", "y", "mask", "weight"))) == expected
    with pytest.raises(ModelError, match=f"{parts.points:,} decision points are too many .* in {parts.chunks.count}"):
        _ = parts.whole
    again = parts.chunks.make(2)
    assert again.X.tobytes() == rows[2].X.tobytes()


def test_what_stays_is_the_other_rows_and_a_sample(made: tuple[EventStore, Config]) -> None:
    store, config = made
    whole = ready(store, config).table
    kept = ready(store, with_model(config, chunk=14_000))
    for split in (VALIDATION, HOLDOUT):
        mine, theirs = (lines(t.X[t.split == split], t.y[t.split == split]) for t in (kept.table, whole))
        assert mine == theirs
    sample = kept.table.X[kept.table.split == TRAIN]
    assert 1_000 < len(sample) <= 3_500
    assert set(lines(sample)) <= set(lines(whole.X[whole.split == TRAIN]))
    scarce = ready(store, with_model(config, chunk=2_000))
    assert len(scarce.table) < 3_000
    assert "one in" in scarce.note
    assert len(scarce.table.keys) == len(scarce.table)


def test_a_client_in_chunks_has_as_good_a_model(made: tuple[EventStore, Config], tmp_path: Path) -> None:
    """Expected PR-AUC and ROC-AUC of clicks and opens, within two hundredths of those of one table."""
    store, config = made
    client = store.clients()[0]
    as_of = store.last_full_day(client)
    whole, parts = (
        train_client(Training(Snapshot.of(store, c), client, as_of, tmp_path / str(i)))
        for i, c in enumerate((config, with_model(config, chunk=14_000)))
    )
    assert "chunks" in parts.split
    assert "chunks" not in whole.split
    assert parts.rows == whole.rows
    for name in ("click", "open"):
        assert parts.metrics[name]["rows"] == whole.metrics[name]["rows"]
        assert parts.metrics[name]["roc_auc"] == pytest.approx(whole.metrics[name]["roc_auc"], abs=0.02)
        assert parts.metrics[name]["normalized_entropy"] == pytest.approx(
            whole.metrics[name]["normalized_entropy"], abs=0.02
        )


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.backend import PANDAS
from pipeline.config import load
from pipeline.events.store import EventStore
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.client import train_client
from pipeline.learning.snapshot import Snapshot, Training
from pipeline.learning.trainer import Trainer

learn = Trainer.learn
def mortal(self, epoch, *others):
    if epoch == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, epoch, *others)
Trainer.learn, Checkpoint.due = mortal, lambda self: True
config = load(sys.argv[1])
store = EventStore(config.store_uri, PANDAS)
client = store.clients()[0]
train_client(Training(Snapshot.of(store, config), client, store.last_full_day(client), Path(sys.argv[2])))
"""


def test_a_killed_run_goes_on_from_where_it_was(
    made: tuple[EventStore, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config = made
    client = store.clients()[0]
    as_of = store.last_full_day(client)
    (tmp_path / "log.yaml").write_text(config.dump())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "log.yaml"), str(tmp_path / "killed")],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    unfinished = client_dir(tmp_path / "killed", client) / "unfinished"
    assert unfinished.exists()
    assert versions(tmp_path / "killed", client) == []
    learned = count_epochs(monkeypatch)
    models = []
    for place in ("killed", "whole"):
        train_client(Training(Snapshot.of(store, config), client, as_of, tmp_path / place))
        models.append(load_current(tmp_path / place, client)[0].network.weights())
    assert learned == [4, 5, 6, 1, 2, 3, 4, 5, 6]
    for name, weight in models[1].items():
        np.testing.assert_array_equal(models[0][name], weight, err_msg=name)
    assert not unfinished.exists()


def test_the_memory_decides_unless_the_configuration_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "free_memory", lambda self: 10_000_000)
    config = load(None, [])
    assert chunk_rows(config, PANDAS, 400) == AtOnce(10_000, 1_250)
    assert chunk_rows(load(None, ["model.chunk=5000"]), PANDAS, 400) == AtOnce(5_000, 5_000)


def test_too_short_a_log_is_said_in_chunks_too(made: tuple[EventStore, Config]) -> None:
    store, config = made
    short = config.model_copy(update={"split": config.split.model_copy(update={"holdout": 200 * 86_400 * 10**6})})
    for chunk in (None, 4_000):
        with pytest.raises(TooLittleError, match="no decision point to train on"):
            ready(store, with_model(short, chunk=chunk))
