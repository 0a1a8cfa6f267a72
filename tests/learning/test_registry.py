from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.backend import PANDAS
from pipeline.config import Config, Model, load
from pipeline.errors import ModelError
from pipeline.features.spec import FeatureSpec
from pipeline.learning import registry
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Head
from pipeline.learning.train import train
from tests.learning.data import planted

SPEC = FeatureSpec.counts(["send", "open", "click"], [1, 2])
DATA = planted(PANDAS, 500)
METRICS = {"a": {"pr_auc": 0.25, "roc_auc": None}}
HOSTILE = [
    "..",
    ".",
    "../../etc",
    "a/b",
    "/etc/passwd",
    "naïve ünï",
    "a\x00b",
    "con:aux",
    "%2F",
    "x" * 400,
    "x" * 399 + "y",
]


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    heads = (Head("a"), Head("b"))
    return train(DATA.rows, None, heads, Model(hidden=[4], epochs=2, minimum_positives=200, batch_size=256))


def save(root: Path, model: TrainedModel, client: str = "acme", **options: bool) -> str:
    return registry.save_version(
        root, client, model, SPEC, Config(), METRICS, snapshot=7, as_of="2026-10-01", **options
    )


def test_what_was_saved_is_what_is_loaded(tmp_path: Path, model: TrainedModel) -> None:
    version = save(tmp_path, model)
    loaded, spec, card = registry.load_current(tmp_path, "acme")
    assert spec == SPEC
    np.testing.assert_array_equal(loaded.predict(DATA.rows.X), model.predict(DATA.rows.X))
    assert loaded.notes == model.notes
    assert "a" in loaded.notes
    assert loaded.training() == model.training()
    assert registry.current(tmp_path, "acme") == version
    folder = registry.client_dir(tmp_path, "acme") / version
    assert sorted(p.name for p in folder.iterdir()) == sorted(["card.json", *registry.FILES])
    assert load(folder / "config.yaml") == Config()
    assert card["metrics"] == METRICS
    assert (card["snapshot"], card["seed"], card["as_of"]) == (7, 1, "2026-10-01")
    assert {"keras", "numpy", "python"} <= card["libraries"].keys()
    assert card["training"]["seconds"] > 0


@pytest.mark.parametrize("name", ["card.json", *registry.FILES])
def test_a_changed_file_is_refused(tmp_path: Path, model: TrainedModel, name: str) -> None:
    path = registry.client_dir(tmp_path, "acme") / save(tmp_path, model) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} was changed"):
        registry.load_current(tmp_path, "acme")
    path.unlink()
    with pytest.raises(ModelError, match=f"cannot read {name}"):
        registry.load_current(tmp_path, "acme")


def test_other_weights_with_a_mended_card_are_refused(tmp_path: Path, model: TrainedModel) -> None:
    import hashlib

    folder = registry.client_dir(tmp_path, "acme") / save(tmp_path, model)
    (folder / "weights.npz").write_bytes(b"other")
    card = json.loads((folder / "card.json").read_text())
    card["sha256"]["weights.npz"] = hashlib.sha256(b"other").hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"card\.json was changed"):
        registry.load_current(tmp_path, "acme")


def test_current_is_the_latest_activated(tmp_path: Path, model: TrainedModel) -> None:
    first = save(tmp_path, model)
    second = registry.save_version(tmp_path, "acme", model, SPEC, Config(), {"other": 1}, activate=False)
    assert registry.current(tmp_path, "acme") == first
    assert set(registry.versions(tmp_path, "acme")) == {first, second}
    registry.use(tmp_path, "acme", second)
    assert registry.load_current(tmp_path, "acme")[2]["metrics"] == {"other": 1}
    with pytest.raises(ModelError, match="there is no model version"):
        registry.use(tmp_path, "acme", "20260101T000000Z-0123456789abcdef")
    left = [p.name for p in registry.client_dir(tmp_path, "acme").iterdir() if p.name.startswith(".")]
    assert left == []


@pytest.mark.parametrize("named", ["../../x", "", "20260101T000000Z-0123456789abcdef/../.."])
def test_a_damaged_current_is_refused(tmp_path: Path, model: TrainedModel, named: str) -> None:
    save(tmp_path, model)
    (registry.client_dir(tmp_path, "acme") / "current").write_text(named)
    with pytest.raises(ModelError, match="is no version"):
        registry.load_current(tmp_path, "acme")


@pytest.mark.parametrize("client", HOSTILE)
def test_hostile_names_stay_below_the_models(tmp_path: Path, client: str) -> None:
    folder = registry.client_dir(tmp_path / "models", client)
    assert folder.parent == tmp_path / "models"
    assert folder.resolve().parent == (tmp_path / "models").resolve()
    folder.mkdir(parents=True)
    assert registry.current(tmp_path / "models", client) is None
    with pytest.raises(ModelError, match="has no model yet"):
        registry.load_current(tmp_path / "models", client)


def test_different_names_have_different_folders(tmp_path: Path) -> None:
    assert len({registry.client_dir(tmp_path, c) for c in HOSTILE}) == len(HOSTILE)
    with pytest.raises(ModelError, match="empty"):
        registry.client_dir(tmp_path, "")


def test_metrics_must_be_strict_json(tmp_path: Path, model: TrainedModel) -> None:
    with pytest.raises(ModelError, match="strict JSON"):
        registry.save_version(tmp_path, "acme", model, SPEC, Config(), {"pr_auc": float("nan")})
    assert registry.versions(tmp_path, "acme") == []


def test_a_directory_that_cannot_be_written(tmp_path: Path, model: TrainedModel) -> None:
    (tmp_path / "models").write_text("a file in the way")
    with pytest.raises(ModelError, match="cannot write a model version"):
        save(tmp_path / "models", model)
