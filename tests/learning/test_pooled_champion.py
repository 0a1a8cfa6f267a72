"""A new pooled model beside the one in use, where the two cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.events.store import EventStore
from pipeline.learning import registry
from pipeline.learning.gate import Verdict
from pipeline.learning.pooled import Pool
from tests.learning.logs import DAY, open_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventStore, Config]:
    return open_log(tmp_path_factory.mktemp("pooled"), {f"small {i}": 8 for i in range(20)}, first_day={"small 0": 90})


def verdict(log: tuple[EventStore, Config], models: Path, back: int = 0, **options: Any) -> Verdict:
    store, config = log
    changed = Config.model_validate({**config.model_dump(mode="json", exclude_unset=True), **options})
    found = Pool(store, changed, PANDAS, lambda client: store.last_full_day(client) - back * DAY, models).result
    assert found is not None
    return found.verdict


def test_only_what_asks_the_same_and_did_not_see_the_hold_out_is_compared(
    log: tuple[EventStore, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict(log, tmp_path, back=1)
    first = registry.current(tmp_path, None)
    longer = {"open": {"events": ["open"], "within": "3d", "match": "campaign"}}
    other = verdict(log, tmp_path, outcomes=longer, gate={"minimum_positives": 10**6})
    assert other.champion == first
    assert other.not_compared == "open: it was another question to the model in use"
    assert other.compared == {}
    registry.use(tmp_path, None, str(first))
    earlier = verdict(log, tmp_path, back=30)
    assert earlier.champion == first
    assert "trained on later data" in earlier.not_compared
    assert earlier.compared == {}
    registry.use(tmp_path, None, str(first))
    load = registry.load_version

    def with_loss(*asked: Any) -> Any:
        model, spec, card = load(*asked)
        return model, spec, {**card, "gate": {"compared": {"open": {"lost": 0.4}}}}

    monkeypatch.setattr(registry, "load_version", with_loss)
    compared = verdict(log, tmp_path).compared
    assert compared.keys() == {"open"}
    assert "of which earlier versions took 0.4000" in compared["open"]["words"]
