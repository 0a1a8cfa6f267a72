"""What the gate lets through, on rows whose right answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, mean_poisson_deviance

from pipeline.learning.drift import Drift
from pipeline.learning.evaluate import evaluate
from pipeline.learning.gate import Champion, Holdout, Verdict, absolute, judge, loss, lost, paired
from pipeline.learning.models import Head
from pipeline.options import Gate

HEADS = (Head("unsubscribe"), Head("click"))
V = "20260101T000000Z-0123456789abcdef"


def rows(n: int = 20_000, seed: int = 0, rates: tuple[float, float] = (-4.0, -2.0)) -> tuple[np.ndarray, Holdout]:
    """A signal float64[n, 2], and a hold-out whose p is the true probability; four rows a subscriber."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n, 2))
    p = 1 / (1 + np.exp(-(signal + rates)))
    y = (rng.random(p.shape) < p).astype(np.float64)
    return signal, Holdout(p, y, np.ones_like(p), np.ones(n), np.arange(n) // 4)


SIGNAL, GOOD = rows()
BASE = np.tile(GOOD.y.mean(axis=0), (len(GOOD.y), 1))


def ask(
    holdout: Holdout,
    champion: Champion | None = None,
    notes: Mapping[str, str] | None = None,
    drifts: list[Drift] | None = None,
    **settings: Any,
) -> Verdict:
    metrics = evaluate(holdout.p, holdout.y, holdout.mask, holdout.weight, HEADS)
    return judge(Gate(**settings), HEADS, notes or {}, metrics, holdout, champion, drifts or [])


def champion(p: np.ndarray | None, *learned: str, **why_not: str) -> Champion:
    return Champion(V, frozenset(learned or ("unsubscribe", "click")), p, dict(why_not))


def scaled(h: int, factor: float) -> Holdout:
    p = GOOD.p.copy()
    p[:, h] = np.clip(p[:, h] * factor, 0, 1)
    return replace(GOOD, p=p)


def noisy(scale: float) -> np.ndarray:
    logits = np.log(GOOD.p / (1 - GOOD.p)) + scale * np.random.default_rng(5).standard_normal(GOOD.p.shape)
    return np.asarray(1 / (1 + np.exp(-logits)))


def test_a_good_first_model_is_let_through() -> None:
    verdict = ask(GOOD)
    assert verdict.accepted
    assert (verdict.reasons, verdict.set_aside, verdict.champion) == ([], {}, None)


@pytest.mark.parametrize(
    ("holdout", "settings", "reason"),
    [
        (scaled(0, 0.6), {}, "expected/observed 0.6"),
        (scaled(0, 1.6), {}, "expected/observed 1."),
        (replace(GOOD, p=np.stack([GOOD.p[::-1, 0], GOOD.p[:, 1]], axis=1)), {}, "normalised entropy 1."),
        (GOOD, {"minimum_positives": 5000}, "positive rows in the hold-out are too few to tell, 5000 needed"),
    ],
)
def test_absolute_rules_set_an_outcome_of_a_first_model_aside(
    holdout: Holdout, settings: dict[str, Any], reason: str
) -> None:
    verdict = ask(holdout, **settings)
    assert reason in verdict.set_aside["unsubscribe"]
    if "minimum_positives" in settings:  # of clicks there are not enough either
        assert not verdict.accepted
        assert len(verdict.reasons) == 2
    else:
        assert verdict.accepted
        assert list(verdict.set_aside) == ["unsubscribe"]


def test_limits_are_options() -> None:
    assert "unsubscribe" not in ask(scaled(0, 1.6), calibration=(0.5, 2.0)).set_aside
    assert "unsubscribe" in ask(GOOD, entropy=0.5).set_aside


def test_an_exact_model_of_few_positives_is_seldom_called_miscalibrated() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(2000):  # 50 expected, as a Poisson number of rare independent outcomes has it
        positives = max(rng.poisson(50), 1)
        metrics = {"positives": positives, "normalized_entropy": 0.9, "expected_over_observed": 50 / positives}
        called += bool(absolute(Gate(minimum_positives=1), HEADS[0], metrics))
    assert called / 2000 < 0.07
    metrics = {"positives": 100, "normalized_entropy": 0.9, "expected_over_observed": 1.26}
    assert absolute(Gate(), HEADS[0], metrics) == ["expected/observed 1.26, outside 0.80 to 1.25"]
    metrics["expected_over_observed"] = 0.7962
    assert absolute(Gate(), HEADS[0], metrics) == ["expected/observed 0.7962, outside 0.80 to 1.25"]


def test_an_outcome_that_the_champion_has_refuses_the_version() -> None:
    verdict = ask(scaled(0, 0.5), champion(noisy(0.5)))
    assert not verdict.accepted
    assert verdict.champion == V
    assert any(reason.startswith("unsubscribe: expected/observed 0.5") for reason in verdict.reasons)
    # One that it has no model of either is set aside, as without it.
    verdict = ask(scaled(0, 0.5), champion(noisy(0.5), "click"))
    assert verdict.accepted
    assert list(verdict.set_aside) == ["unsubscribe"]


def test_worse_than_the_champion_beyond_noise() -> None:
    verdict = ask(replace(GOOD, p=noisy(0.7)), champion(GOOD.p), calibration=(0.1, 10.0))
    assert not verdict.accepted
    found = verdict.compared["click"]
    assert found["low"] > 0
    reason = next(reason for reason in verdict.reasons if reason.startswith("click: "))
    assert "normalised entropy" in reason
    assert "the champion's" in reason
    # The difference is that of the normalised entropies.
    base = log_loss(GOOD.y[:, 1], BASE[:, 1])
    mine, theirs = (log_loss(GOOD.y[:, 1], p[:, 1]) / base for p in (noisy(0.7), GOOD.p))
    assert found["difference"] == pytest.approx(mine - theirs, abs=1e-6)


def test_as_good_as_the_champion_or_better_is_let_through() -> None:
    assert ask(GOOD, champion(GOOD.p)).accepted
    better = ask(GOOD, champion(noisy(0.7)))
    assert better.accepted
    assert better.compared["click"]["high"] < 0
    for seed in range(5):  # a retrained model that differs by chance alone
        logits = np.log(GOOD.p / (1 - GOOD.p))
        jitter = logits + 0.02 * np.random.default_rng(seed).standard_normal(logits.shape)
        assert ask(replace(GOOD, p=1 / (1 + np.exp(-jitter))), champion(GOOD.p)).accepted


def test_what_another_seed_changes_is_tolerated() -> None:
    challenger = replace(GOOD, p=noisy(0.25))
    found = ask(challenger, champion(GOOD.p)).compared["click"]
    gain = 1 - log_loss(GOOD.y[:, 1], GOOD.p[:, 1]) / log_loss(GOOD.y[:, 1], BASE[:, 1])
    assert 0 < found["low"] < 0.1 * gain  # surely worse, and by little
    assert not found["worse"]
    assert f"{0.1 * gain:.4f} is tolerated" in found["words"]
    assert ask(challenger, champion(GOOD.p)).accepted
    assert not ask(challenger, champion(GOOD.p), tolerance=0.0).accepted


def test_it_is_tolerated_once_and_not_day_by_day() -> None:
    """Each a little worse than the one before: the second is refused, until one has made good what the first lost."""
    first = ask(replace(GOOD, p=noisy(0.25)), champion(GOOD.p))
    one = first.compared["click"]
    assert first.accepted
    assert one["lost"] == one["low"] > 0
    spent = lost({"gate": first.to_dict()})
    assert spent["click"] == one["lost"]
    alone, after = (
        ask(replace(GOOD, p=noisy(0.37)), replace(champion(noisy(0.25)), lost=before)) for before in ({}, spent)
    )
    assert alone.accepted
    assert alone.compared["click"]["low"] > 0
    assert not after.accepted
    assert after.compared["click"]["lost"] == pytest.approx(one["lost"] + alone.compared["click"]["low"])
    assert f"of which earlier versions took {one['lost']:.4f})" in after.reasons[-1]
    same = ask(replace(GOOD, p=noisy(0.25)), replace(champion(noisy(0.25)), lost=spent))
    assert same.accepted  # neither better nor worse: what was lost stays to be made good
    assert same.compared["click"]["lost"] == one["lost"]
    better = ask(GOOD, replace(champion(noisy(0.25)), lost=spent))
    assert better.accepted
    assert better.compared["click"]["lost"] < one["lost"] / 2
    assert lost({}) == {}


def test_an_outcome_that_could_not_be_learnt_any_more_is_worse_than_one_that_could() -> None:
    holdout = replace(GOOD, p=np.stack([BASE[:, 0], GOOD.p[:, 1]], axis=1))
    notes = {"unsubscribe": "no model for unsubscribe, its base rate is used: 3 positive rows"}
    assert ask(holdout, notes=notes).accepted
    assert not ask(holdout, champion(GOOD.p), notes=notes).accepted
    verdict = ask(holdout, champion(None), notes=notes)
    assert verdict.reasons == [f"unsubscribe: {notes['unsubscribe']}"]


def test_nothing_learnt_is_no_model() -> None:
    notes = {head.name: f"no model for {head.name}" for head in HEADS}
    verdict = ask(replace(GOOD, p=BASE), notes=notes)
    assert not verdict.accepted
    assert verdict.reasons == list(notes.values())


def test_a_champion_that_cannot_be_asked_leaves_the_absolute_rules() -> None:
    verdict = ask(GOOD, Champion(V, why_not={"": "it is damaged"}))
    assert verdict.accepted
    assert verdict.not_compared == "it is damaged"
    p = GOOD.p.copy()
    p[:, 0] = np.nan
    verdict = ask(GOOD, Champion(V, frozenset({"unsubscribe", "click"}), p, {"unsubscribe": "another question"}))
    assert list(verdict.compared) == ["click"]
    assert verdict.not_compared == "unsubscribe: another question"


def test_drifted_features_refuse() -> None:
    fine = [Drift(f"f{i}", 0.01, 0.01) for i in range(8)]
    bad = [Drift("open_7d", 0.9, 0.01), Drift("open_30d", 0.8, 0.01)]
    assert ask(GOOD, drifts=[*fine, bad[0]], drifted=0.2).accepted  # one of nine
    verdict = ask(GOOD, drifts=[*bad, *fine])
    assert not verdict.accepted
    assert verdict.reasons == [
        "2 of 10 features have drifted beyond a population stability index of 0.25; the most: open_7d 0.90, open_30d "
        "0.80; 10% may"
    ]
    assert ask(GOOD, drifts=[*bad, *fine], drift=2.0).accepted


def test_losses_are_scikit_learn_s() -> None:
    y, p = GOOD.y[:, 1], GOOD.p[:, 1]
    assert loss("binary", p, y).mean() == pytest.approx(log_loss(y, p))
    amounts = np.random.default_rng(0).exponential(5.0, 500) * (np.arange(500) % 3 == 0)
    assert loss("value", np.full(500, 2.0), amounts).mean() == pytest.approx(
        mean_poisson_deviance(amounts, np.full(500, 2.0))
    )


def test_the_interval_counts_subscribers_and_not_rows() -> None:
    rng = np.random.default_rng(0)
    each = rng.normal(0.1, 1.0, 200)
    difference = np.repeat(each, 50)
    mean, low, high = paired(difference, np.ones(10_000), np.repeat(np.arange(200), 50), 0.95)
    assert mean == pytest.approx(each.mean())
    expected = 1.96 * each.std() / np.sqrt(200)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    _, low, high = paired(difference, np.ones(10_000), np.arange(10_000), 0.95)
    assert (high - low) / 2 < expected / 4
