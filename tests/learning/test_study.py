"""What a search tries depends on the seed and on finished batches alone; how it is kept; when a trial is given up."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.errors import ConfigError, StoreError
from pipeline.learning import space, study
from pipeline.learning.study import Study, Trial, optuna_study, pruner_study, with_settings
from pipeline.options import Model
from pipeline.search import Tune

MODEL = Model()


def tune(**options: Any) -> Tune:
    return Tune.model_validate({"trials": 16, "batch": 4, **options})


def outcome(number: int, settings: dict[str, Any]) -> Trial:
    """A loss with a known best learning rate, 0.003, worse for logistic regression."""
    loss = (
        0.8
        + 0.05 * abs(math.log10(settings.get("learning_rate", 0.01) / 0.003))
        + 0.1 * (settings["kind"] == "logistic")
    )
    return Trial(number, settings, "complete", loss, 1, (loss,))


def search(folder: Path, shuffle: int | None = None, **options: Any) -> Study:
    """Run to the end; the trials of a batch end in an order of their own."""
    made = Study(folder, "acme", "key", MODEL, tune(**options))
    while True:
        _, asked = made.next()
        if not asked:
            return made
        order = list(asked)
        if shuffle is not None:
            random.Random(shuffle).shuffle(order)
        for number in order:
            made.tell(outcome(number, asked[number]))


def test_the_order_in_which_trials_end_changes_nothing(tmp_path: Path) -> None:
    one = search(tmp_path / "one")
    two = search(tmp_path / "two", shuffle=5)
    assert one.finished == two.finished
    assert len({json.dumps(t.settings) for t in one.finished}) == 16  # they are not all the same
    assert search(tmp_path / "three", seed=2).finished[1:] != one.finished[1:]
    best = one.best
    assert best is not None
    assert best.validation == min(t.validation for t in one.finished if t.validation is not None)


def test_a_search_goes_on_where_it_was_and_grows(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole")
    part = Study(tmp_path / "part", "acme", "key", MODEL, tune())
    for ended in ([2, 0, 3, 1], [6, 4, 7]):  # one of the second batch is cut off
        _, asked = part.next()
        for number in ended:
            part.tell(outcome(number, asked[number]))
    again = Study(tmp_path / "part", "acme", "key", MODEL, tune())
    assert again.trials == part.trials
    assert again.next() == (1, {5: whole.trials[5].settings})
    assert search(tmp_path / "part").finished == whole.finished
    assert search(tmp_path / "few", trials=6).finished == whole.finished[:6]
    assert search(tmp_path / "few").finished == whole.finished
    assert not Study(tmp_path / "part", "acme", "other data", MODEL, tune()).trials


def test_it_searches_better_than_at_random_would_say(tmp_path: Path) -> None:
    made = search(tmp_path, trials=32)
    late = [t.settings["learning_rate"] for t in made.finished[16:]]
    early = [t.settings["learning_rate"] for t in made.finished[1:9]]
    off = [sorted(abs(math.log10(rate / 0.003)) for rate in rates) for rates in (late, early)]
    assert off[0][len(off[0]) // 2] < off[1][len(off[1]) // 2]


def test_the_first_trial_is_as_configured(tmp_path: Path) -> None:
    first = search(tmp_path, trials=1).finished[0].settings
    assert first == {
        "kind": "dense",
        "learning_rate": MODEL.learning_rate,
        "weight_decay": MODEL.weight_decay,
        "hidden": MODEL.hidden,
        "dropout": 0.0,
        "batch_size": MODEL.batch_size,
    }


def test_every_trial_lies_in_the_space(tmp_path: Path) -> None:
    wanted = {"learning_rate": "0.001 to 0.002", "dropout": "0 to 0.3", "hidden": [[8], [16, 8]], "kind": "dense"}
    for trial in search(tmp_path, space=wanted).finished[1:]:
        s = trial.settings
        assert 0.001 <= s["learning_rate"] <= 0.002
        assert 0 <= s["dropout"] <= 0.3
        assert s["hidden"] in ([8], [16, 8])
        assert s["kind"] == "dense"
        assert float(f"{s['learning_rate']:.3g}") == s["learning_rate"]  # what a table shows is what was tried
    only = search(tmp_path / "only", space={"learning_rate": None, "dropout": 0.1}).finished[3].settings
    assert "learning_rate" not in only
    assert only.get("dropout", 0.1) == 0.1
    sequential = Tune.model_validate({"space": {"kind": ["combined"]}})
    assert "units" in space.configured(sequential.space, Model(kind="combined"))
    assert "units" not in space.configured(Tune().space, MODEL)


def test_failed_and_pruned_trials_are_told_to_optuna() -> None:
    settings = space.configured(Tune().space, MODEL)
    trials = [
        Trial(0, settings, "complete", 0.9, 2, (0.95, 0.9, 0.91)),
        Trial(1, settings, "pruned", 0.99, 1, (0.99,)),
        Trial(2, settings, "failed", reason="the loss was not finite in epoch 1"),
    ]
    made = optuna_study(trials, MODEL, Tune())
    assert [t.state.name for t in made.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert made.trials[0].intermediate_values == {0: 0.95, 1: 0.9, 2: 0.9}
    assert made.best_value == 0.9


def test_a_trial_is_given_up_that_does_worse_than_the_median() -> None:
    rng = random.Random(3)
    for _ in range(50):
        rivals = [list(itertools.accumulate((rng.random() for _ in range(rng.randint(1, 6))), min)) for _ in range(5)]
        mine = [rng.random() for _ in range(6)]
        trial, warmup = pruner_study(rivals, 2).ask(), 2
        for epoch, value in enumerate(mine):
            trial.report(value, epoch)
            at = [one[min(epoch, len(one) - 1)] for one in rivals]
            known = epoch < max(map(len, rivals))
            worse = known and epoch >= warmup and min(mine[: epoch + 1]) > sorted(at)[2]
            assert trial.should_prune() == worse


def test_best_is_what_is_published(tmp_path: Path) -> None:
    made = search(tmp_path)
    assert study.best_of(tmp_path, "acme") is None
    published = made.publish({"snapshot": 3})
    assert study.best_of(tmp_path, "acme") == published
    assert published is not None
    config = study.tuned(load(None, ["model.epochs=7"]), published)
    assert config.model.epochs == 7
    assert config.model.learning_rate == published["settings"]["learning_rate"]
    with pytest.raises(ConfigError, match="what tune found cannot be used"):
        study.tuned(load(None), {"settings": {"units": 3}})
    failed = Study(tmp_path / "failed", "acme", "key", MODEL, tune(trials=1))
    failed.tell(Trial(0, {}, "failed", reason="why"))
    assert failed.publish({}) is None
    (tmp_path / "acme" / "best.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        study.best_of(tmp_path, "acme")


def test_a_kind_that_reads_sequences_has_them() -> None:
    assert with_settings(load(None), {"kind": "combined"}).sequences.length == 64
    assert with_settings(load(None, ["sequences.length=8"]), {"kind": "combined"}).sequences.length == 8
    assert with_settings(load(None), {"kind": "dense"}).sequences.length == 0
