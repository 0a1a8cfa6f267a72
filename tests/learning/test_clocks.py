from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.backend import PANDAS, Backend
from pipeline.features.spec import Feature, FeatureSpec
from pipeline.features.table import FeatureTable
from pipeline.learning.clocks import DAYS, MOST, clocks
from pipeline.learning.models import Head
from pipeline.learning.train import train
from pipeline.options import UNITS, Model
from tests.learning.data import planted


def table(backend: Backend, columns: dict[str, np.ndarray], day: np.ndarray, split: np.ndarray) -> FeatureTable:
    """A table of columns by "op:name"."""
    features = tuple(Feature(name.partition(":")[2], name.partition(":")[0], "for a test", "1") for name in columns)
    spec = FeatureSpec(features, ("send",), (UNITS["d"],), "send", (), (), (), UNITS["d"], ())
    n = len(day)
    X = backend.asarray(np.ascontiguousarray(np.stack(list(columns.values()), axis=1), dtype=np.float32))
    keys = backend.frame({"subscriber_key": np.arange(n), "at": day * UNITS["d"]}, times=("at",))
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
