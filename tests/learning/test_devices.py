"""A client's model trained by two processes, from the store to the registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.backend import PANDAS
from pipeline.learning import registry
from pipeline.learning.client import train_client
from pipeline.learning.devices import Devices
from pipeline.learning.snapshot import Snapshot, Training
from tests.learning.logs import open_log


def test_a_client_trained_by_two_processes(tmp_path: Path) -> None:
    """The same rows, normalised alike, and a model as good as that of one process."""
    store, config = open_log(tmp_path, {"acme": 240})
    as_of, cards, metrics = store.last_full_day("acme"), {}, {}
    for devices in (1, 2):
        some = config.model_copy(update={"model": config.model.model_copy(update={"devices": devices})})
        models = tmp_path / str(devices)
        found = train_client(Training(Snapshot.of(store, some), "acme", as_of, models))
        cards[devices] = registry.load_version(models, "acme", found.version)
        metrics[devices] = found.metrics["open"]
        assert ("; trained on 2 devices" in found.split) == (devices == 2)
        assert not (models / "acme" / "unfinished").exists()
    one, two = (cards[devices][0].network.weights() for devices in (1, 2))
    for name in (n for n in one if n.startswith("normalise/")):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    assert metrics[2]["rows"] == metrics[1]["rows"]
    assert metrics[2]["roc_auc"] == pytest.approx(metrics[1]["roc_auc"], abs=0.02)
    assert metrics[2]["normalized_entropy"] == pytest.approx(metrics[1]["normalized_entropy"], abs=0.02)
    assert metrics[2]["normalized_entropy"] < 0.95


@dataclass
class Workers:
    """A Dask client as far as it is asked here."""

    threads: dict[str, int] = field(default_factory=dict)

    def nthreads(self) -> dict[str, int]:
        return self.threads


@pytest.mark.parametrize(
    ("wanted", "workers", "rows", "expected", "note"),
    [
        (1, ["tcp://10.0.0.1:1", "tcp://10.0.0.2:1"], 10**9, 1, ""),
        (3, None, 10**9, 3, "trained on 3 devices"),
        (3, ["tcp://10.0.0.1:1"], 2_999, 2, "trained on 2 devices of 3, for 2,999 rows"),
        (8, None, 10, 1, "trained on 1 device of 8, for 10 rows"),
        ("auto", None, 10**9, 1, ""),
        ("auto", ["tcp://10.0.0.1:1", "tls://10.0.0.2:1", "tcp://10.0.0.1:2"], 10**9, 2, "trained on 2 devices"),
    ],
)
def test_how_many_devices(wanted: Any, workers: list[str] | None, rows: int, expected: int, note: str) -> None:
    from pipeline.config import Config

    config = Config.model_validate({"name": "test", "model": {"devices": wanted}})
    cluster = None if workers is None else Workers(dict.fromkeys(workers, 2))
    found = Devices.of(config, PANDAS, cluster, rows)
    assert found.count == expected
    assert found.note == note
