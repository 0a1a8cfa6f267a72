"""What each case is given, and what is said of it; the training itself is that of test_quality.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import contest, limits


def row(seed: int, client: str, case: str, of_ideal: float) -> dict[str, Any]:
    about = {"of_ideal": of_ideal, "of_knowable": of_ideal + 0.1}
    return {"seed": seed, "client": client, "model": case, "head": "open", **about}


def test_what_is_won_is_within_a_seed() -> None:
    rows = [row(1, "a", limits.AS_IT_IS, 0.6), row(1, "b", limits.AS_IT_IS, 0.7), row(2, "a", limits.AS_IT_IS, 0.7)]
    rows += [row(1, "a", "traits", 0.8), row(1, "b", "traits", 0.8), row(2, "a", "traits", 0.71)]
    found = limits.means(rows)
    nothing = {"of_ideal": (0.65 + 0.7) / 2, "of_knowable": 0.1 + (0.65 + 0.7) / 2, "won": 0, "half_range": 0}
    assert found[limits.AS_IT_IS]["open"] == pytest.approx(nothing)
    traits = {"of_ideal": (0.8 + 0.71) / 2, "of_knowable": 0.1 + (0.8 + 0.71) / 2, "won": 0.08, "half_range": 0.07}
    assert found["traits"]["open"] == pytest.approx(traits)
    said = limits.table({"means": found})
    assert "67.5% / 77.5%" in said
    assert "75.5% / 85.5% (+8.0 ±7.0)" in said


def test_another_kind_needs_another_file(tmp_path: Path) -> None:
    there = tmp_path / "limits.json"
    there.write_text(json.dumps({"results": [row(1, "a", limits.AS_IT_IS, 0.6) | {"kind": "dense"}]}))
    with pytest.raises(SystemExit, match=r"limits\.json is of dense: name another file"):
        limits.run(limits.parser().parse_intermixed_args(["--seeds", "1", "--kind", "logistic", "--json", str(there)]))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Any:
    small = ["--events", "2e4", "--clients", "1", "--data", str(tmp_path_factory.mktemp("limits"))]
    quick = ["model.epochs=3", "simulate.days=80", "split.validation=7d", "split.holdout=7d"]
    return limits.parser().parse_intermixed_args([*small, *quick, "model.minimum_positives=1"])


@pytest.fixture(scope="module")
def one(options: Any) -> contest.Contest:
    (only,) = contest.contests(options, 1)
    return only


def test_cases_are_given_what_they_say(one: contest.Contest) -> None:
    given = limits.cases(one, 1)
    n, heads = len(one.table.X), [head.name for head in one.heads]
    truth, drawn = given["true probabilities"]["y"], given["people's labels"]["y"]
    assert truth.shape == drawn.shape == (n, len(heads))
    assert drawn.mean(axis=0) == pytest.approx(truth.mean(axis=0), rel=0.3)
    happened = one.table.y[one.table.mask[:, heads.index("open")] > 0, heads.index("open")]
    assert happened.mean() > truth[:, heads.index("open")].mean()  # machines open, too
    hold = one.holdout.index
    assert truth[hold] == pytest.approx(one.ceilings["truth"], nan_ok=True)

    quality = given["campaigns' quality"]["more"]
    assert (given["campaigns' quality"]["then"] == 0).all()
    campaign = one.table.keys["campaign"].astype(str).to_numpy()
    by_campaign = {c: set(quality[campaign == c, 0]) for c in np.unique(campaign)}
    assert all(len(values) == 1 for values in by_campaign.values())
    assert len(by_campaign) > 100
    levels = np.array([min(values) for values in by_campaign.values()])
    assert abs(levels.mean()) < 0.3
    assert levels.std() == pytest.approx(1, abs=0.2)

    traits = given["traits"]["more"]
    assert traits.shape == (n, 5)
    awake, engagement = traits[:, 0], traits[:, 1]
    assert ((awake >= 0) & (awake <= 1)).all()
    assert np.corrcoef(engagement, truth[:, heads.index("open")])[0, 1] > 0.3


def test_every_case_is_trained_and_measured(
    options: Any, one: contest.Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "contests", lambda options, seed: [one])
    rows = limits.measure(options, 1)
    heads = list(dict.fromkeys(r["head"] for r in rows))
    assert {r["model"] for r in rows} == {
        *(limits.AS_IT_IS, "people's labels", "true probabilities", "campaigns' quality", "traits"),
        *("traits, probabilities", "traits, quality"),
    }
    assert len(rows) == 7 * len(heads)
    opens = {r["model"]: r["expected_pr_auc"] for r in rows if r["head"] == "open"}
    assert len(set(opens.values())) == len(opens)  # none is another
    assert opens["traits, probabilities"] > opens[limits.AS_IT_IS]
    assert all(0 < r["of_ideal"] < 1.1 for r in rows)


def test_what_is_given_stays_out_of_the_contest(one: contest.Contest) -> None:
    """Training with other labels and columns leaves the table as it was."""
    before = one.table.X.copy(), one.table.y.copy()
    limits.learned(one, "dense", y=1 - one.table.y, more=np.ones((len(one.table.X), 2)))
    np.testing.assert_array_equal(one.table.X, before[0])
    np.testing.assert_array_equal(one.table.y, before[1])
