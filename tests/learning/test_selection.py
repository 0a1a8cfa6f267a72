"""model.kind auto, and a network of sequences from the store to its decisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline import invocation, stages
from pipeline.backend import PANDAS
from pipeline.config import Config, load
from pipeline.decisions import score
from pipeline.demo import with_source
from pipeline.errors import ConfigError, ModelError
from pipeline.events.store import EventStore
from pipeline.features.samples import SampleRequest
from pipeline.features.table import feature_table
from pipeline.learning import registry
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Head
from pipeline.learning.selection import select, selected, train_selected
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import planted
from tests.learning.histories import SPEC, planted_history

HEADS = (Head("a"),)
TRIED = {"logistic", "dense", "recurrent", "attention", "combined"}


def test_the_kind_that_can_see_it_is_chosen() -> None:
    """What only the history tells: a network of sequences; what is linear: the simplest; again: the same."""
    rows, _ = planted_history(PANDAS, 3_000)
    valid, _ = planted_history(PANDAS, 1_500, seed=1)
    settings = Model(kind="auto", hidden=[16], units=8, epochs=8, batch_size=256, learning_rate=1e-2, budget=16_000)
    found = select(rows, valid, HEADS, settings, SPEC)
    assert set(found["scores"]) == TRIED
    assert (found["rows"], found["epochs"]) == (3_000, 5)
    assert found["kind"] in ("attention", "combined", "recurrent")
    assert found["scores"][found["kind"]] < found["scores"]["dense"] - 0.02
    assert found == select(rows, valid, HEADS, settings, SPEC)
    assert f"chose {found['kind']}" in selected(found)
    linear, other = planted(PANDAS, 6_000), planted(PANDAS, 4_000, seed=1)
    without = select(linear.rows, other.rows, (Head("a"), Head("b")), settings.model_copy(update={"budget": 40_000}))
    assert set(without["scores"]) == {"logistic", "dense"}
    assert without["kind"] == "logistic"


def test_a_small_budget_takes_a_sample_and_the_chosen_kind_is_trained_on_all() -> None:
    data = planted(PANDAS, 5_000)
    settings = Model(kind="auto", hidden=[8], epochs=6, batch_size=256, budget=4_000, minimum_positives=5)
    model = train_selected(data.rows, None, (Head("a"), Head("b")), settings)
    assert model.selection is not None
    assert (model.selection["rows"], model.selection["epochs"]) == (1_000, 4)
    kind = model.selection["kind"]
    assert model.network.architecture.kind == kind
    alone = train(data.rows, None, (Head("a"), Head("b")), settings.model_copy(update={"kind": kind}))
    assert alone.selection is None
    for name, weights in alone.network.weights().items():
        np.testing.assert_array_equal(weights, model.network.weights()[name])
    nothing = planted(PANDAS, 300, rate=-60.0)
    assert train_selected(nothing.rows, None, (Head("a"), Head("b")), settings).network.architecture.kind == "logistic"


def test_sequences_are_there_for_who_reads_them() -> None:
    assert load(None, ["model.kind=combined"]).sequences.length == 64
    assert load(None, ["model.kind=auto"]).sequences.length == 64
    assert load(None, ["model.kind=recurrent", "sequences.length=8"]).sequences.length == 8
    assert load(None, ["model.kind=dense"]).sequences.length == 0
    assert load(None, ["model.kind=auto", "sequences.length=0"]).sequences.length == 0
    with pytest.raises(ConfigError, match=r"model.kind is attention, which reads sequences, and sequences.length is 0"):
        load(None, ["model.kind=attention", "sequences.length=0"])
    with pytest.raises(ConfigError, match="'logistic', 'dense', 'recurrent', 'attention', 'combined' or 'auto'"):
        load(None, ["model.kind=transformer"])
    with pytest.raises(ModelError, match=r"set sequences\.length"):
        train(planted(PANDAS, 50).rows, None, (Head("a"), Head("b")), Model(kind="combined"))


# -- from the store to decisions -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    small = [
        "simulate.events=30000",
        "simulate.days=80",
        "simulate.clients=1",
        "split.validation=7d",
        "split.holdout=7d",
    ]
    model = ["model.kind=combined", "model.epochs=2", "model.units=8", "model.hidden=[8]", "model.minimum_positives=5"]
    config = load(None, [f"runs={tmp_path_factory.mktemp('runs')}", *small, *model, "sequences.length=10"])
    invocation.run(config, "decide")
    return with_source(config)


def test_a_network_of_sequences_from_the_store_to_decisions(trained: Config) -> None:
    """What is stored is what scores: the decisions are the loaded model's predictions of tables made by hand."""
    model, spec, card = registry.load_current(trained.run_dir / "models", "acme")
    assert isinstance(model, TrainedModel)
    assert model.network.inputs == tuple(t.name for t in spec.sequences.tensors) if spec.sequences else False
    assert card["metrics"]["open"]["roc_auc"] > 0.55
    store = EventStore(trained.store_uri, PANDAS)
    as_of = stages.end_of_data(trained, store, "acme")
    version = registry.current(trained.run_dir / "models", "acme") or ""
    rollups = trained.run_dir / "rollups"
    frame = score.score(store, "acme", model, spec, trained, as_of, model_version=version, rollups=rollups)
    assert len(frame) > 50
    request = replace(SampleRequest.from_config(trained, "acme", as_of, "score"), keep_suppressed=True)
    request = replace(request, at=int(pd.Timestamp(frame["at"].iloc[0]).value) // 1000, keys=("subscriber",))
    context = score.known_context(store, "acme", spec, request, rollups, 1)
    plan = store.plan("acme", until=as_of, partitions=1)
    table = feature_table(store.read_range(plan, 0), spec, request, context=context)
    p = model.predict(table.X, sequences=table.sequences)
    mine = pd.DataFrame({"subscriber": table.keys["subscriber"].astype(str), "p_open": p[:, 2]})
    both = frame.merge(mine, on="subscriber", suffixes=("", "_mine"))
    assert len(both) == len(frame)
    np.testing.assert_allclose(both["p_open"], both["p_open_mine"], atol=1e-6)
    blind = model.predict(table.X, sequences={n: a * 0 for n, a in table.sequences.items()})
    assert np.abs(blind - p).max() > 1e-3  # the history says something
