from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS
from pipeline.config import Config, load
from pipeline.errors import ModelError
from pipeline.features.spec import FeatureSpec
from pipeline.learning import registry
from pipeline.learning.levels import Levels
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Head
from pipeline.learning.train import train
from pipeline.options import Model
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


def save(root: Path, model: TrainedModel, client: str | None = "acme", **options: Any) -> str:
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
    version = save(tmp_path, model)
    path = registry.client_dir(tmp_path, "acme") / version / name
    written = path.read_bytes()
    places = range(0, len(written), max(len(written) // 40, 1))
    for place in {*places, len(written) - 1}:
        content = bytearray(written)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name} was changed"):
            registry.load_current(tmp_path, "acme")
    with pytest.raises(ModelError, match=rf"{name} was changed"):
        registry.use(tmp_path, "acme", version)
    with pytest.raises(ModelError, match=rf"{name} was changed"):
        registry.card(tmp_path, "acme", version)
    assert not registry.intact(tmp_path, ["acme"])
    path.write_bytes(written)
    assert registry.intact(tmp_path, ["acme"])
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


@pytest.mark.parametrize("what", ["objects", "no archive", "nothing"])
def test_weights_that_are_no_numbers_are_refused_though_every_digest_is_right(
    what: str, tmp_path: Path, model: TrainedModel
) -> None:
    import hashlib
    import io

    made = io.BytesIO()
    np.savez(made, a=np.array([{"not": "numbers"}], dtype=object))
    weights = {"objects": made.getvalue(), "no archive": b"PK\x03\x04 cut", "nothing": b""}[what]
    version = save(tmp_path, model)
    folder = registry.client_dir(tmp_path, "acme") / version
    (folder / "weights.npz").write_bytes(weights)
    card = json.loads((folder / "card.json").read_text())
    card["sha256"]["weights.npz"] = hashlib.sha256(weights).hexdigest()
    text = json.dumps(card).encode()
    (folder / "card.json").write_bytes(text)
    forged = version[:-16] + hashlib.sha256(text).hexdigest()[:16]
    folder.rename(folder.with_name(forged))
    with pytest.raises(ModelError, match="weights of the model version cannot be read"):
        registry.load_version(tmp_path, "acme", forged)


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


NAMED = ["../../x", "", "20260101T000000Z-0123456789abcdef/../..", "@pooled/../acme", "@pooled/", "@pooled/@pooled/x"]


@pytest.mark.parametrize("named", NAMED)
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


def test_a_version_that_is_elsewhere_is_not_loaded(tmp_path: Path, model: TrainedModel) -> None:
    version = save(tmp_path, model, "other")
    save(tmp_path, model)
    (registry.client_dir(tmp_path, "acme") / "current").write_text(version[:-1] + "0")
    with pytest.raises(ModelError, match=r"cannot read card\.json"):
        registry.load_current(tmp_path, "acme")
    with pytest.raises(ModelError, match="not the name of a model version"):
        registry.load_version(tmp_path, "acme", f"../other/{version}")
    with pytest.raises(ModelError, match="not the name of a model version"):
        registry.use(tmp_path, "acme", f"../other/{version}")


def test_the_card_for_people_says_what_card_json_says(tmp_path: Path, model: TrainedModel) -> None:
    metrics = {
        "unsubscribe": {
            "rows": 5000,
            "positives": 40,
            "base_rate": 0.008,
            "pr_auc": 0.0213,
            "normalized_entropy": 0.951,
            "intervals": {"pr_auc": [0.0151, 0.0302]},
            "baselines": {"base_rate": {"pr_auc": 0.008}},
        }
    }
    gate = {"accepted": False, "reasons": ["unsubscribe: expected/observed 1.40"], "champion": "V1"}
    facts = {"gate": gate, "split": "train before 2026-09-01", "rows": {"training": 12_345}}
    version = registry.save_version(tmp_path, "a|<b>", model, SPEC, Config(), metrics, facts=facts, activate=False)
    text = (registry.client_dir(tmp_path, "a|<b>") / version / "card.md").read_text()
    for said in (
        r"client a\|\<b>",
        "**unsubscribe**: the probability of unsubscribe or complaint within 7d, of the same campaign",
        "12,345 training",
        "train before 2026-09-01",
        "40 positive of 5,000 hold-out rows, base rate 0.008",
        "| score | PR-AUC | normalized entropy |",
        "| this model | 0.0213 (0.0151 to 0.0302) | 0.951 |",
        "| base rate | 0.008 | - |",
        "**Refused: it must not go live.** The version in use was `V1`.",
        "unsubscribe: expected/observed 1.40",
        "## Limits",
    ):
        assert said in text
    assert registry.card(tmp_path, "a|<b>", version)["gate"] == gate
    assert registry.current(tmp_path, "a|<b>") is None


def test_the_pooled_model_serves_a_client(tmp_path: Path, model: TrainedModel) -> None:
    version = save(tmp_path, model, None)
    assert (tmp_path / "@pooled" / version / "card.md").is_file()
    assert registry.current(tmp_path, None) == version
    registry.use(tmp_path, "tiny/one", f"@pooled/{version}")
    assert registry.current(tmp_path, "tiny/one") == f"@pooled/{version}"
    loaded, _, card = registry.load_current(tmp_path, "tiny/one")
    np.testing.assert_array_equal(loaded.predict(DATA.rows.X), model.predict(DATA.rows.X))
    assert card["client"] is None
    assert registry.specification(tmp_path, "tiny/one", f"@pooled/{version}") == SPEC
    assert registry.clients(tmp_path) == ["tiny/one"]
    assert registry.cited_snapshots(tmp_path) == {7}
    assert registry.client_dir(tmp_path, "@pooled") != tmp_path / "@pooled"  # a client of that name has its own
    with pytest.raises(ModelError, match="there is no model version"):
        registry.use(tmp_path, "acme", "@pooled/20260101T000000Z-0123456789abcdef")
    assert registry.intact(tmp_path, ["tiny/one"])
    assert not registry.intact(tmp_path, ["tiny/one", "acme"])


def test_trainings_at_once_leave_whole_versions(tmp_path: Path, model: TrainedModel) -> None:
    versions: list[str] = []
    start = threading.Barrier(6)

    def train_one(i: int) -> None:
        start.wait()
        # Half of them write the very same bytes, so that two processes want one name.
        metrics = {"round": i % 3}
        versions.append(registry.save_version(tmp_path, "acme", model, SPEC, Config(), metrics))

    threads = [threading.Thread(target=train_one, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(versions) == 6
    assert set(registry.versions(tmp_path, "acme")) == set(versions)
    for version in versions:
        registry.load_version(tmp_path, "acme", version)
    assert registry.current(tmp_path, "acme") in versions
    assert [p.name for p in registry.client_dir(tmp_path, "acme").iterdir() if p.name.startswith(".")] == []


def test_a_client_is_served_at_its_own_level(tmp_path: Path, model: TrainedModel) -> None:
    levels = Levels({"a": 9.0, "b": 30.0}, {"one": {"a": 0.5, "b": 0.7}, "two": {"b": -0.4}})
    learned = [model.labels[0], replace(model.labels[1], learned=True, note="")]
    pooled = replace(model, levels=levels, labels=learned)
    version = f"@pooled/{save(tmp_path, pooled, None)}"
    plain = pooled.predict(DATA.rows.X)
    assert "a" in pooled.notes  # has no model, so what is said of it moves nobody
    for client, shift in (("one", 0.7), ("two", -0.4), ("new", 0.0), (None, 0.0)):
        found = registry.load_version(tmp_path, client, version)[0].predict(DATA.rows.X)
        odds = [math.log(p / (1 - p)) + shift for p in plain[:, 1].tolist()]
        np.testing.assert_allclose(found[:, 1], [1 / (1 + math.exp(-x)) for x in odds], rtol=1e-5)
        np.testing.assert_array_equal(found[:, 0], plain[:, 0])
    text = (registry.version_dir(tmp_path, None, version) / "card.md").read_text()
    assert "level of b: its logit is moved for 2 clients, by -0.40 to +0.70; one of 30 positives goes half" in text
