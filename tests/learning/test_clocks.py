from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.features.spec import Feature, FeatureSpec
from pipeline.features.table import FeatureTable
from pipeline.learning.clocks import CAMPAIGNS, DAYS, MOST, RECURRING, clocks
from pipeline.learning.models import Head
from pipeline.learning.train import train
from pipeline.options import UNITS, Model
from tests.learning.data import planted


def table(
    backend: Backend, columns: dict[str, np.ndarray], day: np.ndarray, split: np.ndarray, campaign: Any = None
) -> FeatureTable:
    """A table of columns by "op:name", and of campaigns by name."""
    features = tuple(Feature(name.partition(":")[2], name.partition(":")[0], "for a test", "1") for name in columns)
    spec = FeatureSpec(features, ("send",), (UNITS["d"],), "send", (), (), (), UNITS["d"], ())
    n = len(day)
    X = backend.asarray(np.ascontiguousarray(np.stack(list(columns.values()), axis=1), dtype=np.float32))
    keys = backend.frame({"subscriber_key": np.arange(n), "at": day * UNITS["d"]}, times=("at",))
    if campaign is not None:
        keys["campaign"] = backend.df.Series(pd.Series(campaign, dtype="str"))
    nothing = backend.asarray(np.zeros((n, 1), np.float32))
    return FeatureTable(spec, X, nothing, nothing, nothing[:, 0], backend.asarray(split.astype(np.int8)), keys, {})


def test_what_tells_the_day_is_found(backend: Backend) -> None:
    """Beside pandas: the variance of the days' mean ranks over that of all ranks, of the training rows alone."""
    rng = np.random.default_rng(0)
    n = 20_000
    day, split = rng.integers(0, 60, n) + 20_000, rng.integers(0, 3, n)
    level, noise = rng.standard_normal(60)[day - 20_000], rng.standard_normal(n)
    columns = {
        "context:client": level,
        "count:mostly": level + 0.8 * noise,
        "count:somewhat": level + 1.4 * noise,
        "count:person": noise,
        "count:constant": np.ones(n),
        "count:tail": np.exp(4 * (level + 0.8 * noise)),
        "count:coarse": np.floor(level + 0.8 * noise),
        "tenure:tenure": (day - 20_000) + 5 * np.abs(noise),
        "weekday_sin:weekday": np.sin(day % 7),
        "own:theirs": level,
        "count:later": np.where(split == 0, noise, level),
    }
    found = clocks(table(backend, columns, day, split))
    frame = pd.DataFrame(columns)[split == 0].astype(np.float32).astype(float)
    ranks = frame.rank()
    share = ranks.groupby(day[split == 0]).transform("mean").var(ddof=0) / ranks.var(ddof=0)
    allowed = [name.startswith(("weekday", "own")) for name in columns]
    assert found.tolist() == ((share > MOST) & ~np.array(allowed)).tolist()
    assert found.tolist() == [True, True, False, False, False, True, True, True, False, False, False]


@pytest.mark.parametrize("number", [300, 1_200])
def test_what_tells_one_of_few_campaigns_is_found(backend: Backend, number: int) -> None:
    """Beside pandas, by name and day: each name is sent on two days, each day has several."""
    rng = np.random.default_rng(2)
    n = 20_000
    which, split = rng.integers(0, number, n), rng.integers(0, 3, n)
    day, name = which % 60 + 20_000, np.char.add("c", (which // 2).astype(str))
    level, noise = rng.standard_normal(number)[which], rng.standard_normal(n)
    columns = {
        "hour_sin:hour": level,
        "hour_cos:mostly": level + 0.8 * noise,
        "hour_cos:somewhat": level + 1.4 * noise,
        "hour_sin:triggered": noise,
        "hour_sin:constant": np.ones(n),
        "hour_cos:later": np.where(split == 0, noise, level),
        "weekday_sin:weekday": np.sin(day % 7),
        "weekday_cos:weekday": np.cos(day % 7),
        "own:theirs": level,
        "count:campaign": level,
    }
    found = clocks(table(backend, columns, day, split, name))
    learned = split == 0
    frame = pd.DataFrame(columns)[learned].astype(np.float32).astype(float)
    ranks, group = frame.rank(), frame.groupby([name[learned], day[learned]]).ngroup()
    within = ranks - ranks.groupby(group).transform("mean")
    told = within.var() * (len(ranks) - 1) / (len(ranks) - group.nunique()) < (1 - MOST) * ranks.var()
    few = group.nunique() < CAMPAIGNS
    recurring = np.array([column.startswith(RECURRING) for column in columns])
    assert found.tolist() == (told & recurring & few).tolist()
    assert found.tolist() == [few and f in (0, 1, 6, 7) for f in range(len(columns))]
    assert few == (number == 300)


def test_small_campaigns_do_not_tell_by_chance(backend: Backend) -> None:
    """Of one row or two, the means have more than half of the variance of anything."""
    rng = np.random.default_rng(3)
    for sizes, told in ((rng.integers(1, 3, 900), True), (np.ones(20, dtype=int), False)):
        which = np.repeat(np.arange(len(sizes)), sizes)
        day, noise = which % 60 + 20_000, rng.standard_normal(len(which))
        between = pd.Series(noise).groupby(which).transform("mean").var(ddof=0) / noise.var()
        assert between > MOST
        columns = {"hour_sin:own hour": noise, "hour_cos:one hour": rng.standard_normal(900)[which]}
        found = clocks(table(backend, columns, day, np.zeros(len(which)), which.astype(str)))
        assert found.tolist() == [False, told]


def test_neither_tails_nor_units_matter(backend: Backend) -> None:
    """A count that grows with the log, in any monotonic form."""
    rng = np.random.default_rng(1)
    day = rng.integers(0, 170, 20_000)
    sends = rng.poisson(0.4 * day * rng.uniform(0.6, 1.0, len(day)))
    forms = {"as it is": sends, "squared": sends**2, "log": np.log1p(sends), "far": 1e6 + sends, "less": -sends}
    found = clocks(table(backend, {f"count:{n}": x for n, x in forms.items()}, day + 20_000, np.zeros(len(day))))
    assert found.all()


def test_a_few_days_tell_nothing(backend: Backend) -> None:
    day = np.arange(2_000) % (DAYS - 1)
    assert not clocks(table(backend, {"context:client": day}, day, np.zeros(2_000))).any()


def test_few_days_are_few_campaigns(backend: Backend) -> None:
    """However few, but what a single moment says tells nothing apart, and no rows say nothing."""
    columns = {"weekday_sin:weekday": np.arange(2_000) % 2, "context:client": np.arange(2_000) % 2}
    day, none = np.arange(2_000) % 2 + 20_000, np.zeros(2_000)
    assert clocks(table(backend, columns, day, none, day.astype(str))).tolist() == [True, False]
    for nameless in (None, np.full(2_000, None)):
        assert not clocks(table(backend, columns, day, none, nameless)).any()
    alone = table(backend, {"weekday_sin:weekday": none}, none.astype(int), none, none.astype(str))
    assert not clocks(alone).any()
    assert not clocks(table(backend, columns, day, none + 2)).any()


def test_the_network_is_blind_for_it() -> None:
    data = planted(PANDAS, 4_000)
    ignored = np.zeros(data.rows.X.shape[1], dtype=bool)
    ignored[1] = True
    model = train(data.rows, None, (Head("a"), Head("b")), Model(hidden=[4], epochs=2), ignored=ignored)
    p, other = model.predict(data.rows.X), data.rows.X.copy()
    other[:, 1] += 100
    np.testing.assert_array_equal(model.predict(other), p)
    other[:, 0] += 1
    assert (model.predict(other) != p).any()
