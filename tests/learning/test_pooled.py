"""One model for all small clients: how often it is trained, who gets it, and how good it is for a new client."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from cluster import Cluster
from pipeline import stages, training
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.events.store import EventStore
from pipeline.features import table as features
from pipeline.learning import registry, selection
from pipeline.learning import train as loop
from pipeline.learning.client import train_client
from pipeline.learning.data import training_data
from pipeline.learning.levels import Levels
from pipeline.learning.pooled import Pool, deciding, water_level, whose
from pipeline.learning.snapshot import Snapshot, Training
from pipeline.results import read
from pipeline.rundir import RunDirectory
from tests.learning.logs import open_log

TINY = {f"tiny {i:03d}": 6 for i in range(120)}
BIG = {"big": 120}
NEW = {"new": 12, "new and keen": 12}
BARE = {"bare": 4}  # a week of sends and no answer


REFUSING: dict[str, Any] = {"gate": {"entropy": 0.1}}


def context_of(store: EventStore, config: Config) -> Any:
    made = stages.Context(config, PANDAS, Cluster("threads", "for a test", 1), RunDirectory(config))
    made.__dict__["store"] = store
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    levels = {name: float(level) for name, level in zip(TINY, np.linspace(-2.5, 0.5, len(TINY)), strict=True)}
    store, config = open_log(
        tmp_path_factory.mktemp("pooled"),
        {**TINY, **BIG, **NEW, **BARE},
        {**levels, "new and keen": 0.5, "bare": -30.0},
        {"new": 84, "new and keen": 84, "bare": 92},
    )
    calls: list[int] = []
    original = loop.train

    def counted(rows: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(rows))
        return original(rows, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, selection):
            patch.setattr(module, "train", counted)
        here = context_of(store, config)
        started = time.perf_counter()
        line, rows, result = training.train(here)
        seconds = time.perf_counter() - started
    here.run.record("train", "key", result, {})
    started = time.perf_counter()
    stages._decide(here)
    print(f"decided in {time.perf_counter() - started:.1f} s")
    print(f"{len(store.clients())} clients, {seconds:.1f} s, {1000 * seconds / len(store.clients()):.0f} ms a client")
    found = {"store": store, "config": config, "calls": calls, "line": line, "rows": rows, "result": result}
    return {**found, "models": here.run.path / "models", "seconds": seconds}


def test_hundreds_of_tiny_clients_are_one_training(trained: dict[str, Any]) -> None:
    assert len(trained["calls"]) == 2  # the pooled one, and that of the client that is large enough
    assert len(registry.versions(trained["models"], None)) == 1
    named = f"@pooled/{registry.versions(trained['models'], None)[0]}"
    serving = trained["result"]["serving"]
    assert {serving[client] for client in (*TINY, *NEW, *BARE)} == {named}
    assert serving["big"] == registry.versions(trained["models"], "big")[0]
    assert trained["result"]["gate"].keys() == {"big"}
    assert trained["result"]["pooled"]["clients"] == len(TINY) + 4
    verdict = trained["result"]["pooled"]["gate"]
    assert verdict["accepted"]
    assert verdict["drift"]["judged"] > 5
    assert verdict["drift"]["drifted"] == {}
    assert "123 clients with the pooled model" in trained["line"]
    assert registry.intact(trained["models"], [*TINY, "big", *NEW, *BARE])


def test_decisions_name_the_pooled_model(trained: dict[str, Any]) -> None:
    rows = read(str(trained["models"].parent / "decisions"))
    assert rows is not None
    versions = rows.groupby("client")["model_version"].unique()
    named = f"@pooled/{registry.versions(trained['models'], None)[0]}"
    assert {client: list(found) for client, found in versions.items()} == {
        **{client: [named] for client in (*TINY, *NEW, *BARE)},
        "big": registry.versions(trained["models"], "big"),
    }
    scored = rows[rows["client"] != "big"]
    assert scored["p_open"].between(0.001, 0.999).all()
    assert (scored["action"] == "send").all()


def test_a_new_client_gets_no_confident_nonsense(trained: dict[str, Any]) -> None:
    for client in NEW:
        metrics = trained["result"]["models"][client]["open"]
        assert metrics["rows"] > 50
        # No worse than a rate that is known to nobody at the time: that of all clients.
        assert metrics["log_loss"] < metrics["baselines"]["base_rate"]["log_loss"]
        assert 0.6 < metrics["expected_over_observed"] < 1.6


def test_a_client_of_next_to_no_history_gets_nothing_confident(trained: dict[str, Any]) -> None:
    """No answer of 13 sends tells little: a client of the base rate has as few one time in 30."""
    rows = read(str(trained["models"].parent / "decisions"))
    assert rows is not None
    version = registry.versions(trained["models"], None)[0]
    rate = registry.card(trained["models"], None, version)["metrics"]["open"]["base_rate"]
    p = rows.loc[rows["client"] == "bare", "p_open"]
    assert len(p) == 4
    assert p.between(rate / 4, 2 * rate).all()


def test_a_client_s_metrics_are_at_the_level_of_its_decisions(trained: dict[str, Any]) -> None:
    version = f"@pooled/{registry.versions(trained['models'], None)[0]}"
    plain, spec, _ = registry.load_version(trained["models"], None, version)
    levels = Levels({"open": 9.0}, {"tiny 000": {"open": 0.5}, "tiny 119": {"open": -0.2}})
    model = replace(plain, levels=levels)
    pool = Pool(trained["store"], trained["config"], PANDAS, trained["store"].last_full_day, Path("unused"))
    tables = [table for name in ("tiny 000", "tiny 119", "new") if (table := pool._table(name, spec, 1)) is not None]
    stops = np.cumsum([0, *(len(table) for table in tables)]).tolist()
    slices = {name: slice(*stops[i : i + 2]) for i, name in enumerate(("tiny 000", "tiny 119", "new"))}
    found = pool._predict(model, features.concat(tables), slices)  # as the gate and metrics.json have it
    for name, shift in (("tiny 000", 0.5), ("tiny 119", -0.2), ("new", 0.0)):
        X = features.concat(tables).X[slices[name]]
        before = plain.predict(X)[:, 0].astype(float)
        odds = np.log(before / (1 - before)) + shift
        np.testing.assert_allclose(found[slices[name], 0], 1 / (1 + np.exp(-odds)), rtol=1e-5)
        np.testing.assert_allclose(model.of(name).predict(X), found[slices[name]], rtol=1e-6)  # as decisions have it


def test_few_deliveries_have_about_the_rates_of_all_clients(trained: dict[str, Any]) -> None:
    store, config = trained["store"], trained["config"]
    version = registry.versions(trained["models"], None)[0]
    spec = registry.specification(trained["models"], None, version)
    assert spec.context is not None
    sends, opens = (sum(store.kinds(client)[kind] for client in (*TINY, *BIG, *NEW)) for kind in ("send", "open"))
    (given,) = spec.context.trials
    assert given == 2 ** round(np.log2(sends / opens))
    pool = Pool(store, config, PANDAS, store.last_full_day, Path("unused"))
    table = pool._table("bare", spec, 1)
    assert table is not None
    first = np.argsort(table.points()[1], kind="stable")[0]
    assert table.X[first, spec.index("client_open_rate_28d")] == pytest.approx(1 / given)
    assert table.X[:, spec.index("client_open_rate_28d")].min() > 1 / (given + 4 * 8)


def test_tiny_clients_of_any_level_are_served_better_than_by_their_base_rate(trained: dict[str, Any]) -> None:
    models = trained["result"]["models"]
    loss, base, expected, observed = np.array(
        [
            (
                m["rows"] * m["log_loss"],
                m["rows"] * m["baselines"]["base_rate"]["log_loss"],
                m["expected_over_observed"] * m["positives"],
                m["positives"],
            )
            for m in (models[client]["open"] for client in TINY)
            if m["positives"]
        ]
    ).sum(axis=0)
    assert loss < 0.97 * base
    assert 0.9 < expected / observed < 1.1


def test_tiny_clients_would_do_worse_with_models_of_their_own(trained: dict[str, Any], tmp_path: Path) -> None:
    store, config = trained["store"], trained["config"]
    lenient = config.model_copy(update={"model": config.model.model_copy(update={"minimum_positives": 1})})
    own = pooled = 0.0
    for client in [*TINY][60:64]:
        found = train_client(Training(Snapshot.of(store, lenient), client, store.last_full_day(client), tmp_path))
        own += found.metrics["open"]["rows"] * found.metrics["open"]["log_loss"]
        served = trained["result"]["models"][client]["open"]
        assert served["rows"] == found.metrics["open"]["rows"]
        pooled += served["rows"] * served["log_loss"]
    assert pooled < own


def test_metrics_say_what_was_done_to_probabilities(trained: dict[str, Any]) -> None:
    for client, version in (("tiny 000", None), ("big", registry.versions(trained["models"], "big")[0])):
        version = version or trained["result"]["serving"][client]
        model, _, _ = registry.load_version(trained["models"], client, version)
        done = model.calibration["open"]
        assert trained["result"]["models"][client]["open"]["calibration"] == {"kind": done.kind, "reason": done.reason}
        assert done.reason
    assert "calibration" in trained["result"]["pooled"]["metrics"]["open"]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Small clients whose first pooled model is refused; and what happens after that."""
    small = {f"small {i}": 8 for i in range(12)}
    store, config = open_log(tmp_path_factory.mktemp("refused"), small)
    strict = config.model_copy(update={"gate": config.gate.model_copy(update=REFUSING["gate"])})
    found: dict[str, Any] = {"clients": list(small), "models": config.run_dir / "models"}
    for name, settings in (("first", strict), ("accepted", config), ("second", strict)):
        here = context_of(store, settings)
        own = mock.Mock()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "train", own)
            line, _, result = training.train(here)
        here.run.record("train", "key", result, {})
        stages._decide(here)
        warnings, number = training.refusals(here)
        rows = read(str(here.run.path / "decisions"))
        found[name] = {
            "result": result,
            "line": line,
            "own": own.call_count,
            "rows": rows,
            "warnings": warnings,
            "n": number,
        }
    return found


def test_small_clients_have_no_model_where_the_pooled_one_is_refused(refused: dict[str, Any]) -> None:
    first, clients = refused["first"], refused["clients"]
    assert first["own"] == 0  # or as many trainings as there are clients
    assert first["result"]["serving"] == dict.fromkeys(clients)
    assert set(first["result"]["untrained"]) == set(clients)
    assert "the pooled model is refused" in first["result"]["untrained"][clients[0]]
    assert first["line"].endswith("no model for 12 clients")
    assert first["n"] == 1
    (warning,) = first["warnings"]
    assert warning.endswith("Nobody is in its place: its subscribers are unscored")
    assert len(first["rows"]) == 12 * 8
    assert set(first["rows"]["action"]) == {"unscored"}
    assert set(first["rows"]["reason"]) == {"no_model"}
    # The numbers that it was refused for stay to be seen.
    assert first["result"]["models"][clients[0]]["open"]["rows"] > 10


def test_the_predecessor_of_a_refused_pooled_model_keeps_serving(refused: dict[str, Any]) -> None:
    accepted, second, clients = refused["accepted"], refused["second"], refused["clients"]
    assert accepted["n"] == 0
    (version,) = set(accepted["result"]["serving"].values())
    assert version.startswith("@pooled/")
    assert accepted["result"]["untrained"] == {}
    assert accepted["line"].endswith("12 clients with the pooled model")
    assert second["result"]["serving"] == dict.fromkeys(clients, version)
    assert second["result"]["untrained"] == {}
    assert second["n"] == 1
    assert second["warnings"][0].endswith(f"{version.removeprefix('@pooled/')} keeps serving")
    assert set(second["rows"]["action"]) == {"send"}
    assert second["own"] == 0


def test_features_are_no_client_s_own(trained: dict[str, Any]) -> None:
    version = registry.versions(trained["models"], None)[0]
    spec = registry.specification(trained["models"], None, version)
    assert spec.context is not None
    assert spec.context.levels == ("client", "hour")
    assert not {f.how for f in spec.features} & {"campaign", "provider"}
    assert set(spec.kinds) == {"send", "open"}


def test_every_client_gives_at_most_the_same(trained: dict[str, Any]) -> None:
    config = trained["config"]
    small = config.model_copy(update={"model": config.model.model_copy(update={"pooled_rows": 20_000})})
    store = trained["store"]
    pool = Pool(store, small, PANDAS, store.last_full_day, Path("unused"))
    ranges = pool.shares()
    assert {ranges[client] for client in TINY} == {2}  # 300 sends each, cut down to (20,000 - 2 * 96) / 121
    assert ranges["big"] == 37
    assert ranges["new"] == 1


def test_water_level() -> None:
    for sizes, budget in (([5, 5, 100], 30), ([1, 2, 3], 100), ([50] * 4, 100), ([1, 1000], 2), ([7], 7)):
        level = water_level(sizes, budget)
        assert sum(min(s, level) for s in sizes) <= max(budget, len(sizes))
        if sum(sizes) > budget:
            assert sum(min(s, level + 1) for s in sizes) > budget


def test_the_outcomes_that_decide() -> None:
    assert deciding(Config()) == ["unsubscribe"]
    assert deciding(Config(decide={"hold_when": None})) == ["click", "open"]  # type: ignore[arg-type]


def test_subscribers_of_two_clients_are_two(trained: dict[str, Any]) -> None:
    store, config = trained["store"], trained["config"]
    names = list(TINY)[:2]
    tables = [training_data(store, n, config, PANDAS, store.last_full_day(n)).table for n in names]
    one = [len(np.unique(t.keys["subscriber_key"])) for t in tables]
    slices = {"a": slice(0, len(tables[0])), "b": slice(len(tables[0]), None)}
    assert len(np.unique(whose(features.concat(list(tables)), slices))) == sum(one)


def test_a_client_alone_has_a_model_of_its_own(tmp_path: Path) -> None:
    store, config = open_log(tmp_path, {"only": 5})
    assert training.pool_of(context_of(store, config)) is None
    off = config.model_copy(update={"model": config.model.model_copy(update={"minimum_positives_own": 0})})
    store.__dict__["clients"] = lambda: ["only", "other"]
    assert training.pool_of(context_of(store, off)) is None
