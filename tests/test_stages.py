"""What a stage does with several clients: one that cannot be learnt from does not stop the others."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from cluster import Cluster
from pipeline import dependencies, invocation, stages
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, TooLittleError
from pipeline.learning import client as learning
from pipeline.learning.snapshot import Training
from pipeline.rundir import RunDirectory


class Store:
    uri, backend = "store", PANDAS

    def __init__(self, *clients: str) -> None:
        self.names = list(clients)

    def version(self) -> int:
        return 1

    def clients(self) -> list[str]:
        return self.names

    def kinds(self, client: str) -> dict[str, int]:
        return {}


def context(tmp: Path, *clients: str) -> Any:
    config = Config(name="test", runs=str(tmp), as_of="2026-06-01")  # type: ignore[arg-type]
    made = stages.Context(config, PANDAS, Cluster("threads", "for a test", 1), RunDirectory(config))
    made.__dict__["store"] = Store(*clients)
    return made


VERDICTS = {"bad": {"accepted": False, "reasons": ["click: expected/observed 3.00"], "set_aside": {}}}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    def train_client(training: Training, *_: Any) -> Any:
        client = training.client
        if client in ("short", "young"):
            raise TooLittleError(f"{client} is too short")
        if client == "other":
            raise ConfigError("at.event is 'send', but the log has no such events")
        if client == "huge":
            raise DataError("huge does not fit")
        done.append(client)
        return types.SimpleNamespace(
            metrics={"click": {"rows": 5}},
            rows=7,
            line="",
            split="train before then",
            absent=("rates: the log has none",),
            version="20260101T000000Z-0123456789abcdef",
            serving="20260101T000000Z-0123456789abcdef",
            gate=VERDICTS.get(client, {"accepted": True}),
            pooled=client.startswith("tiny"),
        )

    monkeypatch.setattr(learning, "train_client", train_client)
    return done


def test_a_client_too_short_to_train_does_not_stop_the_others(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    here = context(tmp_path, "a", "other", "short", "z")
    outcome = stages._train(here)
    assert trained == ["a", "z"]
    assert outcome.line == "2 clients, 14 decision points; no model for 2 clients"
    assert list(outcome.result["models"]) == ["a", "z"]
    said = capsys.readouterr().out
    assert "short: no model: short is too short" in said
    assert "z: train before then" in said
    assert "z: without rates: the log has none" in said
    here.run.record("train", "key", outcome.result, {})
    assert here.run.metrics()["untrained"] == {
        "other": "at.event is 'send', but the log has no such events",
        "short": "short is too short",
    }


def test_a_run_with_nothing_to_learn_from_says_why(tmp_path: Path, trained: list[str]) -> None:
    with pytest.raises(TooLittleError, match="short is too short"):
        stages._train(context(tmp_path, "short", "young"))
    with pytest.raises(DataError, match="does not fit"):  # something to mend, and not a lack of history
        stages._train(context(tmp_path, "a", "huge"))


def test_a_client_without_a_model_does_not_make_the_others_train_again(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = context(tmp_path, "a", "short")
    here.run.record("train", "key", stages._train(here).result, {})
    monkeypatch.setattr("pipeline.learning.registry.intact", lambda models, clients: clients == ["a"])
    assert stages._has_models(here)
    monkeypatch.setattr("pipeline.learning.registry.intact", lambda models, clients: False)
    assert not stages._has_models(here)


def test_a_refused_model_is_said_with_its_reason_and_who_serves(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = context(tmp_path, "a", "bad")
    here.run.record("train", "key", stages._train(here).result, {})
    serving: dict[str | None, str | None] = {"bad": "20250101T000000Z-aaaaaaaaaaaaaaaa", "a": None}
    monkeypatch.setattr("pipeline.learning.registry.current", lambda models, client: serving[client])
    capsys.readouterr()
    assert invocation._say_refusals(here) == 0
    said = capsys.readouterr().out
    assert said == (
        "warning   bad: model 20260101T000000Z-0123456789abcdef is refused: click: expected/observed 3.00. "
        "20250101T000000Z-aaaaaaaaaaaaaaaa keeps serving\n"
    )
    here.config = Config(name="test", runs=str(tmp_path), gate={"strict": True})  # type: ignore[arg-type]
    assert invocation._say_refusals(here) == 3
    serving["bad"] = None
    invocation._say_refusals(here)
    assert "Nobody is in its place" in capsys.readouterr().out.splitlines()[-1]
    serving["bad"] = "20260101T000000Z-0123456789abcdef"  # by hand
    assert invocation._say_refusals(here) == 0
    assert capsys.readouterr().out == ""
    assert here.run.metrics()["gate"]["bad"]["reasons"] == ["click: expected/observed 3.00"]


def test_lists_for_a_client_that_is_not_there_are_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.csv"
    path.write_text("client,subscriber,at\nacmee,u1,2026-06-02\n", encoding="utf-8")
    here = context(tmp_path, "acme")
    here.store.bounds = lambda client: (0, 1_780_272_000_000_000)  # 2026-06-01
    for option in ("plan", "suppressed"):
        decide = here.config.decide.model_copy(update={option: str(path)})
        here.config = here.config.model_copy(update={"decide": decide})
        if option == "plan":
            with pytest.raises(ConfigError, match=r"plans sends of 'acmee'.*did you mean 'acme'"):
                invocation._check_against_log(here)
            here.config = here.config.model_copy(update={"decide": decide.model_copy(update={"plan": None})})
        else:
            invocation._check_against_log(here)
            assert "decide.suppressed names 'acmee'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        {"sequences": {"length": 8}},
        {"context": {"windows": []}},
        {"features": {"groups": ["counts"]}},
        {"windows": ["3d"]},
        {"model": {"epochs": 1}},
        {"quality": {"count_machines": True}},
        {"quality": {"mail_programs": 0}},
        {"gate": {"entropy": 0.99}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_training_depends_on_what_makes_its_rows(tmp_path: Path, changed: dict[str, Any]) -> None:
    here = context(tmp_path, "a")
    before = dependencies.train_key(here)
    assert dependencies.train_key(here) == before
    here.config = Config.model_validate({"name": "test", "runs": str(tmp_path), "as_of": "2026-06-01", **changed})
    assert dependencies.train_key(here) != before
