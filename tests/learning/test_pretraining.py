"""One network for all clients to begin from: what it learns from, who uses it, and what becomes of a damaged file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import trainings
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.errors import ModelError
from pipeline.learning import pretraining, registry
from pipeline.learning.chunks import as_chunks, survey
from pipeline.learning.client import train_client
from pipeline.learning.models import Head, Normalise
from pipeline.learning.normalisation import set_normalisation
from pipeline.learning.pretraining import pretrain
from pipeline.learning.rows import Rows
from pipeline.learning.snapshot import Snapshot, Training
from tests.learning.data import rows_of
from tests.learning.logs import open_log

CLIENTS = {"large": 150, "other": 60, "young": 20}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Config]:
    return open_log(tmp_path_factory.mktemp("log"), CLIENTS, {"other": -2.0}, {"young": 95})


@pytest.fixture
def wanted(log: tuple[Any, Config], tmp_path: Path) -> list[Training]:
    store, config = log
    snapshot = Snapshot.of(store, config)
    return [Training(snapshot, client, store.last_full_day(client), tmp_path / "models") for client in CLIENTS]


def having(config: Config, **model: Any) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def test_clients_begin_from_what_all_of_them_taught(wanted: list[Training], tmp_path: Path) -> None:
    config = wanted[0].config
    made = pretrain(wanted, config)
    assert made is not None
    names = ["open_7d", "send_7d", "not a feature"]
    start = made.start(names)
    assert start.about["clients"] == 2  # the third has nothing to learn from yet
    assert start.weights["hidden0/kernel"].shape == (3, 8)
    assert np.abs(start.weights["hidden0/kernel"]).max(axis=1).astype(bool).tolist() == [True, True, False]
    small = train_client(replace(wanted[1], pretrained=made))
    folder = registry.version_dir(tmp_path / "models", "other", small.version)
    card = json.loads((folder / "card.json").read_text())
    assert card["training"]["start"] == start.about
    said = f"a network that had learned from {start.about['rows']:,} rows of 2 clients together"
    written = (folder / "card.md").read_text()
    assert said in written
    assert "; model.pretrain switches that off\n" in written
    model, _, _ = registry.load_version(tmp_path / "models", "other", small.version)
    assert model.start == start.about
    assert registry.clients(tmp_path / "models") == ["other"]


def test_it_is_made_once_and_again_where_it_is_damaged(wanted: list[Training], monkeypatch: pytest.MonkeyPatch) -> None:
    config = having(wanted[0].config, epochs=1)
    made = pretrain(wanted, config)
    assert made is not None
    data = made.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_parts", lambda *_: pytest.fail("trained again"))
        assert pretrain(wanted, config) == made
    for damage in (data[:-1] + b"?", data[:20], b""):
        made.path.write_bytes(damage)
        with pytest.raises(ModelError, match="was changed after it was written"):
            made.start(["open_7d"])
    with pytest.raises(ModelError, match="belongs to another training"):
        replace(made, made_of="something else", path=pretrain(wanted, config).path).start([])  # type: ignore[union-attr]
    again = pretrain(wanted, config)
    assert again == made
    assert made.path.read_bytes() == data  # bit for bit
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]
    made.path.unlink()
    with pytest.raises(ModelError, match=r"is gone: train again"):
        train_client(replace(wanted[1], pretrained=made))


def test_it_reads_no_more_than_it_may(wanted: list[Training]) -> None:
    config = having(wanted[0].config, epochs=1, minimum_positives_own=0)  # of so few, nobody can tell
    rows = {}
    for budget in (1000, 2_000_000):
        made = pretrain(wanted, having(config, pretrain_rows=budget))
        assert made is not None
        rows[budget] = made.start([]).about["rows"]
    whole = train_client(wanted[0]).rows + train_client(wanted[1]).rows
    assert 0.7 * whole < rows[2_000_000] < whole  # less validation and hold-out
    assert 400 < rows[1000] < 1000


def test_clients_of_the_pooled_model_take_no_part(wanted: list[Training]) -> None:
    assert pretrain(wanted, having(wanted[0].config, minimum_positives_own=1200)) is None


@pytest.mark.parametrize(
    "model", [{"pretrain": False}, {"kind": "combined"}, {"kind": "recurrent"}], ids=lambda model: str(model)
)
def test_it_is_not_for_everything(wanted: list[Training], model: dict[str, Any]) -> None:
    assert pretrain(wanted, having(wanted[0].config, **model)) is None


def test_who_begins_from_it(wanted: list[Training], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody where one client alone has a model of its own; nobody repeats a trial of tune from elsewhere."""
    seen: list[list[str]] = []

    def noted(own: Any, config: Config) -> Any:
        seen.append([training.client for training in own])
        return pretraining.Pretrained(Path("file"), "all")

    monkeypatch.setattr(trainings, "pretrain", noted)
    context: Any = SimpleNamespace(config=wanted[0].config, cluster=None)
    pool: Any = SimpleNamespace(wanted=lambda client: client == "young")
    begun = trainings._begun(context, pool, [wanted[0], replace(wanted[1], tuned={"trial": 1}), wanted[2]])
    assert seen == [["large", "other"]]
    assert [training.pretrained is not None for training in begun] == [True, False, True]
    assert pretrain(wanted[:1], wanted[0].config) is None
    assert pretrain([wanted[0], wanted[2]], wanted[0].config) is None
    tuned = [replace(training, tuned={"trial": 1}) for training in wanted]
    assert trainings._begun(context, pool, tuned) == tuned
    assert len(seen) == 1


def test_rows_are_as_any_client_has_them() -> None:
    """Features after the client's own normalisation, amounts beside its usual ones, no outcome of too few examples."""
    rng = np.random.default_rng(0)
    X, amount = rng.normal(3, 5, (4000, 2)), np.where(rng.random(4000) < 0.4, rng.lognormal(7, 2, 4000), 0)
    heads = (Head("rare"), Head("spent", "value"))
    y = np.stack([np.arange(4000) < 3, amount], axis=1)
    rows = rows_of(PANDAS, X, y).chosen(np.arange(0, 4000, 2))
    found = survey(as_chunks(rows), heads, 10)
    layer = Normalise()
    set_normalisation(layer, found.plain, found.squashed)
    made = pretraining._standardised(rows, layer, found.labels, heads)
    np.testing.assert_allclose(made.X.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(made.X.std(axis=0), 1, atol=1e-4)
    assert not made.mask[:, 0].any()
    assert made.mask[:, 1].all()
    np.testing.assert_array_equal(made.y[:, 1] > 0, amount[::2] > 0)
    logs = np.log(made.y[made.y[:, 1] > 0, 1])
    assert abs(logs.mean()) < 1e-4
    assert logs.std() == pytest.approx(1, abs=1e-4)
    assert rows.mask.all()  # the table's own are left alone
    wide = pretraining._widened(made, ["a", "b"], ["c", "b", "a"])
    np.testing.assert_array_equal(wide.X, np.stack([0 * made.X[:, 0], made.X[:, 1], made.X[:, 0]], axis=1))
    assert isinstance(wide, Rows)
