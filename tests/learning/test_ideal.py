"""The ideal observer on a store, against the raw rows it was made from; and where there can be none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.config import Config, load
from pipeline.demo import with_source
from pipeline.errors import SourceError
from pipeline.events.history import make_world
from pipeline.events.ingest import ingest
from pipeline.events.observer import OUTCOMES, Knowledge, observe
from pipeline.events.rows import KINDS, NO_CAMPAIGN
from pipeline.events.sightings import Log
from pipeline.events.simulate import MODEL_VERSION, simulate
from pipeline.events.store import EventStore
from pipeline.learning.ideal import ideal_probabilities
from pipeline.learning.snapshot import Snapshot, Training
from pipeline.learning.truth import true_probabilities
from pipeline.learning.yardsticks import ideal_of

CLEAN = "simulate.dirt={duplicate: 0, null_key: 0, impossible_time: 0, unknown_kind: 0}"


def stored(tmp: Path, backend: Backend, *overrides: str) -> tuple[Config, EventStore]:
    config = with_source(load(None, [f"runs={tmp}", "simulate.events=8000", "simulate.days=40", *overrides]))
    simulate(config.simulate, config.run_dir / "raw", 2)
    ingest(config, backend)
    return config, EventStore(config.store_uri, backend)


@pytest.mark.parametrize("ids", ["string", "integer"])
def test_the_store_shows_it_what_the_raw_rows_do(tmp_path: Path, backend: Backend, ids: str) -> None:
    config, store = stored(tmp_path, backend, f"simulate.ids={ids}", CLEAN)
    raw = ds.dataset(config.run_dir / "raw" / "events").to_table(filter=ds.field("client") == "globex").to_pandas()
    truth = ds.dataset(config.run_dir / "raw" / "truth" / "campaigns.parquet").to_table().to_pandas()
    truth = truth[truth.client == "globex"].reset_index()
    number = {str(name): i for i, name in enumerate(truth.campaign)}
    raw = raw.sort_values(["user_id", "event_time"], kind="stable").reset_index(drop=True)
    log = Log(
        subscriber=raw.user_id.to_numpy(),
        ts=raw.event_time.dt.as_unit("us").astype("int64").to_numpy(),
        kind=raw.event_name.map({kind: i for i, kind in enumerate(KINDS)}).to_numpy().astype(np.uint8),
        campaign=np.array([number.get(str(c).removesuffix(".0"), NO_CAMPAIGN) for c in raw.campaign_id]),
        provider=raw.provider.map({"gmail": 0, "outlook": 1, "apple": 2, "yahoo": 3, "corporate": 4}).to_numpy(),
    )
    world = make_world(config.simulate)
    wanted = (raw.event_name == "send").to_numpy()
    expected = observe(world.parameters, world.clients[1], log, wanted, 120)
    asked = raw.message_id[wanted].to_numpy()
    back = np.random.default_rng(0).permutation(len(asked))
    found = ideal_probabilities(store, config, "globex", np.append(asked[back], -5), 120)
    assert set(found) == {"unsubscribe", "click", "open"} == set(true_probabilities(config, "globex", asked))
    columns = {name: expected[back, i] for i, name in enumerate(OUTCOMES)}
    columns["unsubscribe"] = columns["unsubscribe"] + columns["complaint"]
    for name, p in found.items():
        np.testing.assert_array_equal(p[:-1], columns[name])
        assert np.isnan(p[-1])
    forgetful = ideal_probabilities(store, config, "globex", asked, 120, Knowledge(sends=0))
    assert not np.allclose(forgetful["open"], expected[:, 0])


def test_where_there_is_none(tmp_path: Path, backend: Backend) -> None:
    config, store = stored(tmp_path, backend)
    some = np.arange(3)
    settings = config.run_dir / "raw" / "truth" / "settings.json"
    kept = json.loads(settings.read_text())
    settings.write_text(json.dumps({**kept, "version": MODEL_VERSION + 1}))
    with pytest.raises(SourceError, match=f"of version {MODEL_VERSION + 1} of the simulator's model"):
        ideal_probabilities(store, config, "acme", some)
    settings.write_text(json.dumps({"version": 1, "settings": {"day": 3}}))
    with pytest.raises(SourceError, match="does not hold the settings of a simulated log"):
        ideal_probabilities(store, config, "acme", some)
    settings.write_text(json.dumps({**kept, "settings": {**kept["settings"], "clients": 1}}))
    with pytest.raises(SourceError, match="no client 'globex' in its settings"):
        ideal_probabilities(store, config, "globex", some)
    settings.unlink()
    with pytest.raises(SourceError, match=r"has no settings\.json"):
        ideal_probabilities(store, config, "acme", some)
    assert config.source is not None
    real = config.model_copy(update={"source": config.source.model_copy(update={"truth": None})})
    assert ideal_probabilities(store, real, "acme", some) == {}


def test_training_says_why_there_is_none(tmp_path: Path) -> None:
    config, store = stored(tmp_path, PANDAS)
    sends = store.read("acme", columns=["event", "event_id"]).compute()
    sends = sends[sends.event == "send"][:50]
    model: Any = SimpleNamespace(heads=[SimpleNamespace(name="click"), SimpleNamespace(name="spend")])
    rows: Any = SimpleNamespace(index=np.arange(10, 50))
    table: Any = SimpleNamespace(keys=sends)
    training = Training(Snapshot.of(store, config), "acme", 0, tmp_path / "models")
    found, why = ideal_of(training, model, table, rows)
    assert found is not None
    assert why == ()
    expected = ideal_probabilities(store, config, "acme", sends.event_id.to_numpy()[10:])
    np.testing.assert_array_equal(found[:, 0], expected["click"])
    assert np.isnan(found[:, 1]).all()
    (config.run_dir / "raw" / "truth" / "settings.json").unlink()
    found, why = ideal_of(training, model, table, rows)
    assert found is None
    assert [line.split(":")[0] for line in why] == ["the ideal observer"]
    assert "has no settings.json" in why[0]
