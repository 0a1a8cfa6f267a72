"""Champion against challenger on the same decision points of a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.events.store import EventStore
from pipeline.learning import registry
from pipeline.learning.champion import champion_of
from pipeline.learning.client import ClientModel, train_client
from pipeline.learning.data import training_data
from pipeline.learning.rows import select
from pipeline.learning.snapshot import Snapshot, Training
from tests.learning.logs import DAY, open_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventStore, Config]:
    return open_log(tmp_path_factory.mktemp("champion"), {"acme": 250})


def changed(config: Config, **options: Any) -> Config:
    return Config.model_validate({**config.model_dump(mode="json", exclude_unset=True), **options})


def train(log: tuple[EventStore, Config], models: Path, config: Config | None = None, back: int = 0) -> ClientModel:
    store, standard = log
    as_of = store.last_full_day("acme") - back * DAY
    return train_client(Training(Snapshot.of(store, config or standard), "acme", as_of, models))


def test_a_day_later_the_same_training_is_let_through(
    log: tuple[EventStore, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(log, tmp_path, back=1)
    assert first.gate["accepted"], first.gate
    assert first.serving == first.version
    second = train(log, tmp_path)
    assert second.gate["champion"] == first.version
    assert second.gate["not_compared"] == ""
    compared = second.gate["compared"]["open"]
    assert compared["low"] <= 0 <= compared["high"] or compared["difference"] < 0
    assert second.serving == second.version
    assert registry.card(tmp_path, "acme", second.version)["gate"]["compared"]["open"] == compared
    # What the card of the one in use says was lost before is counted on.
    load = registry.load_current

    def with_loss(*asked: Any) -> Any:
        model, spec, card = load(*asked)
        return model, spec, {**card, "gate": {"compared": {"open": {"lost": 0.4}}}}

    monkeypatch.setattr(registry, "load_current", with_loss)
    again = train(log, tmp_path).gate["compared"]["open"]
    assert again["lost"] == pytest.approx(0.4 + max(again["low"], 0) + min(again["high"], 0))
    assert "of which earlier versions took 0.4000" in again["words"]


def test_a_worse_model_is_refused_though_its_features_differ(log: tuple[EventStore, Config], tmp_path: Path) -> None:
    first = train(log, tmp_path, back=1)
    blind = changed(log[1], features={"groups": ["calendar"]}, context={"windows": []})
    second = train(log, tmp_path, blind)
    assert second.gate["compared"]["open"]["worse"]
    assert not second.gate["accepted"]
    assert any("the champion's" in reason for reason in second.gate["reasons"])
    assert second.serving == first.version == registry.current(tmp_path, "acme")
    assert second.version in registry.versions(tmp_path, "acme")
    # And back: what the blind one cannot see is no reason to refuse what can.
    registry.use(tmp_path, "acme", second.version)
    assert train(log, tmp_path).gate["accepted"]


def test_the_champion_s_own_features_are_computed_for_the_same_rows(
    log: tuple[EventStore, Config], tmp_path: Path
) -> None:
    store, config = log
    few = changed(config, features={"groups": ["counts"]}, context={"windows": []})
    train(log, tmp_path, few, back=1)
    as_of = store.last_full_day("acme")
    table = training_data(store, "acme", config, PANDAS, as_of).table
    champion = champion_of(Training(Snapshot.of(store, config), "acme", as_of, tmp_path), table, ranges=3)
    assert champion is not None
    assert champion.p is not None
    # Scored the long way round: its own table of all rows, and its hold-out.
    model, spec, _ = registry.load_current(tmp_path, "acme")
    own = training_data(store, "acme", few, PANDAS, as_of).table
    assert own.spec == spec != table.spec
    rows = select(own, 2)
    np.testing.assert_allclose(champion.p, model.predict(own.X, rows.index), rtol=1e-6)
    assert len(champion.p) == len(select(table, 2))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"outcomes": {"open": {"events": ["open"], "within": "2d", "match": "campaign"}}}, "it was another question"),
        (
            {"outcomes": {"seen": {"events": ["open"], "within": "1d"}}, "decide": {"reward": {"seen": 1}}},
            "does not know",
        ),
    ],
)
def test_another_question_is_not_compared(
    log: tuple[EventStore, Config], tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    train(log, tmp_path, back=3)
    second = train(log, tmp_path, changed(log[1], **options))
    assert why in second.gate["not_compared"]
    assert second.gate["compared"] == {}
    assert second.gate["accepted"]


def test_a_champion_that_saw_the_hold_out_is_not_compared(log: tuple[EventStore, Config], tmp_path: Path) -> None:
    train(log, tmp_path)
    second = train(log, tmp_path, back=30)
    assert "trained on later data" in second.gate["not_compared"]


def test_a_damaged_champion_is_said_and_replaced(log: tuple[EventStore, Config], tmp_path: Path) -> None:
    first = train(log, tmp_path, back=1)
    with (tmp_path / "acme" / first.version / "weights.npz").open("ab") as file:
        file.write(b"x")
    second = train(log, tmp_path)
    assert "weights.npz was changed" in second.gate["not_compared"]
    assert second.serving == second.version


def test_same_seed_and_data_same_weights(log: tuple[EventStore, Config], tmp_path: Path) -> None:
    versions = [train(log, tmp_path / name).version for name in ("a", "b")]
    folders = [tmp_path / name / "acme" / version for name, version in zip("ab", versions, strict=True)]
    for file in ("weights.npz", "spec.json", "model.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    cards = [json.loads((folder / "card.json").read_text()) for folder in folders]
    assert cards[0]["metrics"] == cards[1]["metrics"]
    other = train(log, tmp_path / "c", changed(log[1], model={**log[1].model.model_dump(), "seed": 2})).version
    assert (tmp_path / "c" / "acme" / other / "weights.npz").read_bytes() != (folders[0] / "weights.npz").read_bytes()


@pytest.mark.parametrize("before", [True, False])
def test_a_training_whose_loss_is_no_number_is_refused(
    before: bool, log: tuple[EventStore, Config], tmp_path: Path
) -> None:
    first = train(log, tmp_path, back=1).version if before else None
    wild = {**log[1].model.model_dump(), "learning_rate": 1e20}
    second = train(log, tmp_path, changed(log[1], model=wild))
    assert "best epoch 0, its loss was no number in epoch 1 (lower model.learning_rate), " in second.line
    assert any("no better than the base rate" in reason for reason in second.gate["reasons"])
    assert second.serving == first
    model, _, card = registry.load_version(tmp_path, "acme", second.version)
    assert model.diverged == 1
    assert "loss" not in card["training"]["history"][0]
