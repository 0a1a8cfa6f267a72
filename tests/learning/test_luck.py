"""The luck of campaigns: what is added up and how a step is taken, against plain NumPy; and what it is good for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xxhash

from pipeline.backend import PANDAS, Backend
from pipeline.config import Config
from pipeline.errors import DataError, ModelError
from pipeline.features.samples import TRAIN
from pipeline.learning import luck as module
from pipeline.learning import pretraining
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.chunks import Chunks, as_chunks, survey
from pipeline.learning.data import training_data
from pipeline.learning.group import ALONE
from pipeline.learning.luck import Luck, newton
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Architecture, Head, Normalise, build
from pipeline.learning.normalisation import set_normalisation
from pipeline.learning.rows import BUCKETS, Rows, campaigns, concat, select
from pipeline.learning.tensors import keras, tf
from pipeline.learning.train import set_initial_bias, train
from pipeline.learning.trainer import Compile, Trainer
from pipeline.options import Model
from tests.learning.data import planted, rows_of
from tests.learning.logs import OPTIONS, open_log
from tests.learning.test_rows import mixed
from tests.learning.test_share import Threads

HEADS = (Head("a"), Head("b"))
SETTINGS = Model(hidden=[16], dropout=0.2, batch_size=256, epochs=6, patience=6, minimum_positives=5)
DAY = 86_400_000_000


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# -- a step ------------------------------------------------------------------------------------------------------------


def test_a_step_is_newton_s_of_the_posterior() -> None:
    """One campaign and head after another, in Python's own numbers."""
    rng = np.random.default_rng(0)
    levels, slope = rng.normal(0, 1, (300, 2)), rng.normal(0, 30, (300, 2))
    curvature = rng.exponential(20, (300, 2)) * (rng.random((300, 2)) < 0.8)
    slope[curvature == 0] = 0
    variance = np.array([0.09, 0.5])
    found, spread = newton(levels, variance, slope, curvature)
    for h in range(2):
        squares = []
        for j in range(300):
            step = (slope[j, h] - levels[j, h] / variance[h]) / (curvature[j, h] + 1 / variance[h])
            level = max(min(levels[j, h] + step, 2.0), -2.0)
            assert found[j, h] == pytest.approx(level, rel=1e-12, abs=1e-12)
            if curvature[j, h] > 0:
                squares.append(level**2 + 1 / (curvature[j, h] + 1 / variance[h]))
        assert spread[h] == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    assert np.abs(found).max() == 2.0


def test_no_variance_is_less_than_the_least_nor_made_of_nothing() -> None:
    none = np.zeros((5, 2))
    certain = np.array([[1e9, 0.0]] * 5)
    levels, variance = newton(none, np.array([0.09, 0.09]), none, certain)
    np.testing.assert_array_equal(levels, 0)
    np.testing.assert_allclose(variance, [1e-4, 0.09])


def test_repeated_steps_find_the_levels_and_how_they_vary() -> None:
    """Rows without a network: logits 0.3 plus a level."""
    rng = np.random.default_rng(1)
    luck, n = rng.normal(0, 0.5, (400, 1)), 3_000
    hits = rng.binomial(n, sigmoid(0.3 + luck))
    levels, variance = np.zeros((400, 1)), np.array([0.09])
    for _ in range(20):
        p = sigmoid(0.3 + levels)
        levels, variance = newton(levels, variance, hits - n * p, n * p * (1 - p))
    assert np.corrcoef(levels[:, 0], luck[:, 0])[0, 1] > 0.99
    assert np.sqrt(variance[0]) == pytest.approx(luck.std(), rel=0.03)


# -- an epoch ----------------------------------------------------------------------------------------------------------


def mixed_heads(backend: Backend, n: int, seed: int = 0) -> Rows:
    """Two binary heads and a value between them; weights, and outcomes that are not known."""
    data, rng = planted(backend, n, seed=seed), np.random.default_rng(seed + 5)
    amount = np.where(rng.random(n) < 0.3, np.exp(data.X[:, 1] + 2), 0)
    y = np.column_stack([data.y[:, 0], amount, data.y[:, 1]])
    mask, weight = rng.random(y.shape) < 0.9, rng.integers(1, 4, n)
    number = backend.asarray(rng.integers(0, 30, n).astype(np.int32) * 541)
    return replace(rows_of(backend, data.X, y, mask, weight), campaign=number)


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("chunks", [1, 2])
def test_an_epoch_is_added_up_by_campaign(backend: Backend, xla: bool, members: int, chunks: int) -> None:
    """Of a network that stands still, so that all sums are those of all rows; the third outcome is not learned."""
    n, heads = 4_096, (Head("a"), Head("spent", "value"), Head("b"))
    rows = mixed_heads(backend, n)
    rows.y[:, 2] = 0
    parts = Chunks(chunks, lambda i: rows.chosen(backend.xp.arange(i, n, chunks)))
    found = survey(parts, heads, 5)
    assert found.campaigns
    network = build(Architecture(6, heads, (8,), members=members))
    set_initial_bias(network, found.labels)
    model = TrainedModel(network, found.labels)
    settings = Model(batch_size=1_024, epochs=9, passes=3)
    trainer = Trainer(model, parts, found, rows, settings, Compile(keras.optimizers.SGD(0.0)), xla)
    luck = trainer.luck
    assert luck is not None

    host = {name: np.asarray(backend.to_host(rows.take(name)), dtype=np.float64) for name in ("y", "mask", "weight")}
    number = np.asarray(backend.to_host(rows.campaign))
    weight = host["mask"] * host["weight"][:, None]
    raw = network.each(network.body({"features": network.normalise(backend.to_host(rows.X))}, training=False))
    logits = [np.asarray(one, dtype=np.float64)[:, [0, 1, 4]] for one in raw]
    rate = (weight * (host["y"] > 0)).sum(axis=0) / weight.sum(axis=0)
    levels, variance, learned = np.zeros((BUCKETS, 3)), np.full(3, 0.09), np.array([True, True, False])
    feed = trainer.feed(1, 2)
    for epoch in (1, 2):
        trainer.learn(epoch, feed)
        there = levels - np.where(learned, (1 - 2 * rate) * variance / 2, 0)
        p = np.mean([sigmoid(one + there[number]) for one in logits], axis=0)
        slope, curvature = np.zeros((BUCKETS, 3)), np.zeros((BUCKETS, 3))
        np.add.at(slope, number, weight * ((host["y"] > 0) - p))
        np.add.at(curvature, number, weight * p * (1 - p))
        new = newton(levels, variance, slope, curvature)
        levels, variance = (np.where(learned, b, a) for a, b in zip((levels, variance), new, strict=True))
        np.testing.assert_allclose(luck.levels.numpy(), levels, atol=1e-4)
        np.testing.assert_allclose(luck.variance.numpy(), variance, rtol=1e-4)
    assert np.abs(levels[:, :2]).max() > 0.05
    assert not luck.sums.numpy().any()


def test_levels_are_of_the_logit_alone() -> None:
    """A value head's mu and sigma are left as they are."""
    luck = Luck(Architecture(2, (Head("v", "value"), Head("b"))), [0.3, 0.1], [True, True])
    luck.levels.scatter_nd_update([[7]], [[0.25, -0.5]])
    raw = tf.constant([[1.0, 2.0, 3.0, 4.0]] * 2)
    (found,) = luck.added([raw], tf.constant([7.0, 8.0]))
    off = np.array([(1 - 0.6) * 0.09 / 2, (1 - 0.2) * 0.09 / 2])
    expected = [[1.25 - off[0], 2, 3, 3.5 - off[1]], [1 - off[0], 2, 3, 4 - off[1]]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_members_of_a_group_come_to_the_same_levels() -> None:
    """Each has seen other rows; together they have what one process saw of all."""

    class Adding(Threads):
        def sum(self, array: np.ndarray) -> np.ndarray:
            return np.sum(self.exchange(array), axis=0)

    rng = np.random.default_rng(0)
    sums = [np.abs(rng.normal(0, 5, (BUCKETS, 4))).astype(np.float32) for _ in range(2)]
    barrier, board = threading.Barrier(2), [None, None]

    def updated(seen: np.ndarray, group: Any) -> Luck:
        luck = Luck(Architecture(2, HEADS), [0.3, 0.1], [True, True])
        luck.sums.assign(seen)
        luck.update(1, group)
        return luck

    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(lambda rank: updated(sums[rank], Adding(rank, barrier, board)), range(2))
    alone = updated(sums[0] + sums[1], ALONE)
    for name in ("levels", "variance"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        np.testing.assert_allclose(getattr(one, name), getattr(alone, name), rtol=1e-5)


# -- what it is good for -----------------------------------------------------------------------------------------------


def lucky(backend: Backend, days: int, each: int, seed: int) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Two campaigns a day of luck (deviation 0.5): one feature tells, four say nothing and nearly name the campaign.

    Returns: the rows; float64[n], the chance of each where its campaign is not known yet; float64[campaigns], the luck.
    """
    rng = np.random.default_rng(seed)
    luck, names = rng.normal(0, 1, 2 * days), rng.normal(0, 1, (2 * days, 4))
    luck = 0.5 * (luck - luck.mean()) / luck.std()
    which = rng.permutation(np.repeat(np.arange(2 * days), each))
    tells = rng.standard_normal(len(which))
    logit = 0.7 * tells - 1.5
    y = (rng.random(len(which)) < sigmoid(logit + luck[which]))[:, None]
    rows = rows_of(backend, np.column_stack([tells, names[which]]), y)
    rows = replace(rows, campaign=backend.asarray(which.astype(np.int32)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return rows, sigmoid(logit[:, None] + 0.5 * nodes) @ weights / weights.sum(), luck


def test_the_network_is_kept_from_the_luck(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Luck] = []
    update = Luck.update
    monkeypatch.setattr(Luck, "update", lambda self, *of: (seen.append(self), update(self, *of))[1])
    (rows, _, luck), (later, truth, _) = lucky(backend, 60, 600, 1), lucky(backend, 200, 100, 51)
    wrong, settings = {}, Model(hidden=[32, 32], batch_size=512, epochs=16, patience=16)
    for on in (True, False):  # validated on rows of the same campaigns, so that nothing stops it
        model = train(rows, None, HEADS[:1], settings.having({"campaign_levels": on}))
        p = backend.to_host(model.predict(later.X))[:, 0].astype(np.float64)
        wrong[on] = np.mean((p - truth) ** 2)
        if on:
            assert p.mean() / truth.mean() == pytest.approx(1, abs=0.04)
    assert wrong[True] < 0.4 * wrong[False]
    levels, variance = seen[-1].levels.numpy()[: len(luck), 0], seen[-1].variance.numpy()[0]
    assert np.corrcoef(levels, luck)[0, 1] > 0.9
    assert np.sqrt(variance) == pytest.approx(luck.std(), rel=0.2)
    assert not seen[-1].levels.numpy()[len(luck) :].any()


# -- the same again ----------------------------------------------------------------------------------------------------


def learn(way: str, path: Path | None = None, stop: int = 0, change: int = 0, settings: Model = SETTINGS) -> Any:
    """A training of rows, or of chunks passed twice, whose campaigns are known; interrupted before that epoch."""
    data = planted(PANDAS, 6_000)
    number = (np.arange(6_000) % 40).astype(np.int32)
    number[0] += change

    def part(i: int, count: int) -> Rows:
        return replace(rows_of(PANDAS, data.X[i::count], data.y[i::count]), campaign=number[i::count].copy())

    class Stopping(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch + 1 == stop:
                raise KeyboardInterrupt

    rows: Any = part(0, 1)
    if way == "chunks":
        rows, settings = Chunks(3, lambda i: part(i, 3)), settings.having({"passes": 2, "epochs": 12})
    valid, checkpoint = planted(PANDAS, 1_000, seed=1).rows, Checkpoint(path) if path else None
    return train(rows, valid, HEADS, settings, callbacks=[Stopping()], checkpoint=checkpoint)


def assert_same(one: Any, two: Any) -> None:
    assert [h["loss"] for h in one.history] == [h["loss"] for h in two.history]
    for name, weight in two.network.weights().items():
        np.testing.assert_array_equal(one.network.weights()[name], weight, err_msg=name)


@pytest.mark.parametrize("way", ["rows", "chunks"])
def test_the_same_seed_gives_the_same_weights_interrupted_or_not(way: str, tmp_path: Path) -> None:
    whole = learn(way)
    assert_same(learn(way), whole)
    with pytest.raises(KeyboardInterrupt):
        learn(way, tmp_path / "unfinished", stop=4)
    with pytest.raises(ModelError, match="belongs to another training"):
        learn(way, tmp_path / "unfinished", change=1)
    resumed = learn(way, tmp_path / "unfinished")
    assert len(resumed.history) == 6
    assert_same(resumed, whole)


@pytest.mark.parametrize("why", ["unknown", "focal", "loss", "settings"])
def test_where_there_are_none_nothing_changes(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of rows without campaigns and of a training that wants no levels."""
    rows, valid = planted(PANDAS, 4_000).rows, planted(PANDAS, 1_000, seed=1).rows
    known = replace(rows, campaign=(np.arange(4_000) % 40).astype(np.int32))
    settings = SETTINGS.having({"imbalance": "focal"} if why == "focal" else {})
    off = settings.having({"campaign_levels": False})

    def learnt(rows: Rows, settings: Model) -> Any:
        loss = keras.losses.BinaryCrossentropy(from_logits=True, reduction=None) if why == "loss" else None
        return train(rows, valid, HEADS, settings, compiled=Compile(loss=loss))

    if why != "settings":
        expected = learnt(rows, off)
        assert_same(learnt(rows, settings), expected)
        if why != "unknown":
            assert_same(learnt(known, settings), expected)
        monkeypatch.setattr(module.Luck, "update", pytest.fail)
    else:
        assert_same(learnt(known, off), learnt(rows, settings))
        assert learnt(known, settings).history[0]["loss"] != learnt(rows, settings).history[0]["loss"]
    assert_same(learnt(known, off), learnt(rows, off))


# -- campaigns as numbers ----------------------------------------------------------------------------------------------


def keys_of(backend: Backend, names: list[str | None], days: list[int], kind: str) -> Any:
    at = np.array(days) * DAY + np.arange(len(days)) * 3_600_000_000
    keys = backend.frame({"at": backend.asarray(at)}, times=("at",))
    if kind != "absent":
        keys["campaign"] = backend.df.Series(pd.Series(names, dtype="str"))
        if kind == "category":
            keys["campaign"] = keys["campaign"].astype("category")
    return keys


@pytest.mark.parametrize("kind", ["category", "text", "absent"])
def test_a_campaign_of_a_day_has_one_number(backend: Backend, kind: str) -> None:
    """By the hash's formula, so the same on any backend and in any part of the rows."""
    names = ["spring", "été-2", None, "spring", "spring", "été-2", None]
    days = [20_000, 20_000, 20_000, 20_000, 20_001, 20_002, 20_002]
    found = campaigns(keys_of(backend, names, days, kind))
    assert str(found.dtype) == "int32"
    hashes = [0 if name is None or kind == "absent" else xxhash.xxh64_intdigest(name.encode()) for name in names]
    expected = [mixed(0, day, number) % BUCKETS for day, number in zip(days, hashes, strict=True)]
    assert backend.to_host(found).tolist() == expected
    assert len(set(expected)) == (3 if kind == "absent" else 6)
    some = campaigns(keys_of(backend, names, days, kind).iloc[4:].reset_index(drop=True))
    assert backend.to_host(some).tolist() == expected[4:]


def test_owners_share_no_campaign(backend: Backend) -> None:
    rows = planted(backend, 900).rows
    assert rows.apart(3) is rows
    rows = replace(rows, campaign=backend.asarray((np.arange(900) % 60).astype(np.int32)))
    owner = np.arange(900) // 300
    mine = backend.to_host(rows.apart(backend.asarray(owner)).campaign)
    assert mine.dtype == np.int32
    assert 0 <= mine.min() < mine.max() < BUCKETS
    assert 178 <= len(np.unique(mine)) <= 180  # two of them have one number now and then
    for i in range(3):
        np.testing.assert_array_equal(mine[owner == i], backend.to_host(rows.apart(i).campaign)[owner == i])


def test_a_pretraining_takes_no_two_clients_campaigns_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Rows] = []

    def noted(rows: Rows, *_: Any, found: Any, **__: Any) -> None:
        seen.append(rows)
        assert found.campaigns
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.learning.train.train", noted)
    rows = rows_of(PANDAS, np.ones((100, 2)), np.arange(100)[:, None] % 2)
    rows = replace(rows, campaign=np.arange(100, dtype=np.int32) * 3).chosen(np.arange(0, 100, 2))
    found, config = survey(as_chunks(rows), HEADS[:1], 1), Config.model_validate(OPTIONS)
    layer = Normalise()
    set_normalisation(layer, found.plain, found.squashed)
    mine = pretraining._standardised(rows, layer, found.labels, HEADS[:1])
    np.testing.assert_array_equal(mine.campaign, rows.take("campaign"))
    parts = [pretraining._Part(names, mine, mine) for names in (["a", "b"], ["a", "c"])]
    with pytest.raises(KeyboardInterrupt):
        pretraining._trained(parts, ["a", "b", "c"], config, config.model, tmp_path / "unfinished")
    numbers = seen[0].campaign
    assert len(np.unique(numbers)) >= len(numbers) - 2 == 98


def test_campaigns_stay_with_their_rows(backend: Backend) -> None:
    data = planted(backend, 100)
    rows = replace(data.rows, campaign=backend.asarray(np.arange(100, dtype=np.int32)))
    some = rows.chosen(backend.asarray(np.array([5, 3, 99])))
    assert backend.to_host(some.take("campaign")).tolist() == [5, 3, 99]
    assert backend.to_host(concat([some, rows]).campaign).tolist() == [5, 3, 99, *range(100)]
    assert concat([some, data.rows]).campaign is None
    assert data.rows.take("campaign") is None
    assert survey(as_chunks(rows), HEADS, 1).campaigns
    assert not survey(Chunks(2, lambda i: [rows, data.rows][i]), HEADS, 1).campaigns
    with pytest.raises(DataError, match=r"expected campaign \[n\] of the 100 rows"):
        replace(rows, campaign=rows.campaign[:99])


def test_chunks_have_the_campaigns_that_one_table_has(tmp_path: Path) -> None:
    store, config = open_log(tmp_path, {"acme": 60})
    as_of = store.last_full_day("acme")
    whole = select(training_data(store, "acme", config, PANDAS, as_of).table, TRAIN)
    settings = config.model.model_copy(update={"chunk": 1_000})
    parts = training_data(store, "acme", config.model_copy(update={"model": settings}), PANDAS, as_of).chunks
    assert parts is not None
    assert parts.count > 1

    def lines(rows: Rows) -> list[bytes]:
        return sorted(row.tobytes() for row in np.column_stack([rows.take("X"), rows.take("campaign")[:, None]]))

    assert lines(concat(list(parts))) == lines(whole)
    assert len(np.unique(whole.take("campaign"))) > 50
