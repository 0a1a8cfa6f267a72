"""The population stability index, against its formula, known distributions, and chance."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.features.samples import HOLDOUT, TRAIN
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import FeatureTable
from pipeline.learning.drift import Drift, Sample, chi_square, drifts, of_table, psi, reach
from pipeline.options import UNITS

DAY = UNITS["d"]
SPEC = FeatureSpec.counts(["open"], [1 * DAY, 30 * DAY])


def sample(n: int, seed: int, shift: float = 0.0, since: int = 0, days: int = 60, subscribers: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    X = rng.poisson([2.0 + shift, 30.0], (n, 2)).astype(np.float32)
    return Sample(X, np.sort(rng.integers(since, since + days * DAY, n)), rng.integers(0, subscribers or n, n))


def test_the_index_is_its_formula() -> None:
    expected = np.repeat(np.arange(4.0), [10, 20, 30, 40])
    actual = np.repeat(np.arange(4.0), [25, 25, 25, 25])
    counts = [[10, 20, 30, 40, 0], [25, 25, 25, 25, 0]]  # each value a bin, and one for values above the greatest
    p, q = ((np.array(c) + 0.5) / (sum(c) + 2.5) for c in counts)
    value, bins = psi(expected, actual)
    assert bins == 5
    assert value == pytest.approx(sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True)))


def test_equal_mass_bins_of_a_normal_shift() -> None:
    # For two normals of equal spread the index of fine bins is the squared distance of their means.
    rng = np.random.default_rng(0)
    value, _ = psi(rng.standard_normal(400_000), rng.standard_normal(400_000) + 0.5, bins=200)
    assert value == pytest.approx(0.25, rel=0.05)


def test_a_constant_feature_that_moves_is_seen() -> None:
    assert psi(np.zeros(1000), np.zeros(1000))[0] == pytest.approx(0.0, abs=1e-6)
    assert psi(np.zeros(1000), np.ones(1000))[0] > 5


@pytest.mark.parametrize("degrees", [1, 4, 9])
def test_the_quantile_is_scipy_s(degrees: int) -> None:
    for share in (0.99, 0.99999):
        assert chi_square(share, degrees) == pytest.approx(chi2.ppf(share, degrees), rel=0.12)
    assert chi_square(0.99, 0) == 0.0


@pytest.mark.parametrize("size", [40, 400, 4000])
def test_chance_alone_is_no_drift(size: int) -> None:
    found = [d for seed in range(30) for d in drifts(sample(4000, seed), sample(size, 99 + seed), SPEC, -90 * DAY)]
    assert len(found) == 60
    assert max(d.beyond_noise for d in found) < 0.02  # though the index of 40 rows exceeds a quarter by chance
    if size == 40:
        assert max(d.psi for d in found) > 0.25


def test_a_shift_of_one_feature_is_found_and_ranked_first() -> None:
    found = drifts(sample(5000, 1), sample(5000, 2, shift=2.0), SPEC, -90 * DAY)
    assert [d.name for d in found] == ["open_1d", "open_30d"]
    assert found[0].beyond_noise > 0.25 > found[1].beyond_noise


def test_rows_of_few_subscribers_say_less() -> None:
    many, few = (drifts(sample(5000, 1, subscribers=k), sample(5000, 2, subscribers=k), SPEC, 0) for k in (5000, 50))
    assert few[0].noise > 20 * many[0].noise


def test_windows_that_reach_beyond_the_log_s_beginning_are_not_compared() -> None:
    # In the first 30 days the count of 30 days is still filling up: that is no drift.
    train, latest = sample(6000, 1), sample(2000, 2, since=60 * DAY, days=7)
    filling = np.minimum(train.at / (30 * DAY), 1.0)
    X = train.X.copy()
    X[:, 1] = np.random.default_rng(3).poisson(30 * filling)
    found = {d.name: d for d in drifts(Sample(X, train.at, train.subscriber), latest, SPEC, first=0)}
    assert found["open_30d"].psi < 0.1 < psi(X[:, 1], latest.X[:, 1])[0]
    short = drifts(Sample(X, train.at, train.subscriber), latest, SPEC, first=31 * DAY)
    assert [d.name for d in short] == ["open_1d"]  # no row could look back 30 days


def test_what_grows_or_is_no_distribution_is_not_judged() -> None:
    spec = FeatureSpec.from_config(Config(), ["send", "open", "click", "unsubscribe"])
    judged = {f.name for f in spec.features if reach(f, spec.cap) is not None}
    assert {"open_7d", "days_since_open", "gap_last", "click_rate_90d"} <= judged
    assert not judged & {"tenure", "history", "open_ever", "hour_sin", "weekday_cos", "open_hour_affinity"}


def test_nothing_to_compare() -> None:
    none = Sample(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert drifts(sample(10, 1), none, SPEC, 0) == []
    assert drifts(none, sample(10, 1), SPEC, 0) == []
    assert Drift("a", 0.1, 0.2).beyond_noise == 0.0


def table_of(backend: Backend, *logs: dict[str, Any]) -> tuple[FeatureTable, np.ndarray, list[slice]]:
    """Logs one after the other: ``days`` from ``since``, the last 14 of them held out; whose each row is; and where."""
    X, at, split, stops = [], [], [], [0]
    for log in logs:
        some = sample(log["n"], log["seed"], log.get("shift", 0.0), log["since"] * DAY, log["days"])
        late = some.at >= (log["since"] + log["days"] - 14) * DAY
        some.X[late & (some.at >= some.at.max() - 7 * DAY), 0] += log.get("lately", 0)
        X.append(some.X)
        at.append(some.at)
        split.append(np.where(late, HOLDOUT, TRAIN).astype(np.int8))
        stops.append(stops[-1] + len(late))
    matrix = backend.empty_aligned((stops[-1], 2), np.float32)
    matrix[...] = backend.asarray(np.concatenate(X))
    who, when = (backend.asarray(a) for a in (np.arange(stops[-1]), np.concatenate(at)))
    keys = backend.frame({"subscriber_key": who, "at": when}, times=("at",))
    empty = backend.asarray(np.zeros((stops[-1], 0), np.float32))
    parted = backend.asarray(np.concatenate(split))
    table = FeatureTable(SPEC, matrix, empty, empty, backend.asarray(np.ones(stops[-1], np.float32)), parted, keys, {})
    return table, np.arange(stops[-1]), [slice(a, b) for a, b in pairwise(stops)]


def test_every_log_of_a_table_begins_and_ends_at_its_own_time(backend: Backend) -> None:
    first, second = {"n": 6000, "seed": 1, "since": 0, "days": 90}, {"n": 4000, "seed": 2, "since": 60, "days": 70}
    table, whose, logs = table_of(backend, first, second)
    X, at, split = (backend.to_host(a) for a in (table.X, backend.column(table.keys["at"]), table.split))
    at = at.astype("datetime64[us]").astype(np.int64)
    train, latest = [], []
    for rows in logs:  # row by row, as one would write it down
        begin, end = at[rows].min(), at[rows].max()
        train += [i for i in range(rows.start, rows.stop) if split[i] == TRAIN and at[i] >= begin + 30 * DAY]
        latest += [i for i in range(rows.start, rows.stop) if split[i] == HOLDOUT and at[i] >= end - 7 * DAY]
    found = {d.name: d for d in of_table(table, whose, logs)}
    value, _ = psi(X[train, 1], X[latest, 1])
    assert found["open_30d"].psi == pytest.approx(value, rel=1e-12)
    assert found["open_30d"].noise == pytest.approx(
        chi_square(1 - 0.001 / 2, 9) * (1 / len(train) + 1 / len(latest)), rel=0.5
    )
    assert found["open_30d"].psi != pytest.approx({d.name: d.psi for d in of_table(table, whose)}["open_30d"], rel=1e-6)


def test_a_log_that_ended_before_the_others_is_looked_at_too(backend: Backend) -> None:
    early, late = {"n": 4000, "seed": 1, "since": 0, "days": 60}, {"n": 4000, "seed": 2, "since": 60, "days": 60}
    table, whose, logs = table_of(backend, {**early, "lately": 5}, late)
    assert {d.name: d.beyond_noise for d in of_table(table, whose, logs)}["open_1d"] > 0.25
    assert {d.name: d.beyond_noise for d in of_table(table, whose)}["open_1d"] < 0.1
    table, whose, logs = table_of(backend, early, late)
    assert max(d.beyond_noise for d in of_table(table, whose, logs)) < 0.02
