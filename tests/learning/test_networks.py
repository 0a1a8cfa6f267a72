"""Every kind of network: its shapes, its start, what it may not look at, and what it must learn."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import ModelError
from pipeline.features.sequences import SequenceSpec
from pipeline.learning import models, networks
from pipeline.learning.models import Architecture, Head, history_of
from pipeline.learning.networks import KINDS, SEQUENTIAL, attention, history
from pipeline.learning.tensors import keras, tf
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import log_loss
from tests.learning.histories import SPEC, histories, planted_history

HEADS = (Head("a"), Head("spend", "value"), Head("b"))


def architecture(kind: str, spec: SequenceSpec = SPEC, **changes: Any) -> Architecture:
    base = {"features": 5, "heads": HEADS, "hidden": (16,), "kind": kind, "units": 8}
    return Architecture(**{**base, **changes}, history=history_of(kind, spec))


def inputs(network: models.Network, n: int, seed: int = 0) -> dict[str, Any]:
    found = histories(PANDAS, n, seed)
    x = np.random.default_rng(seed).standard_normal((n, network.architecture.features), dtype=np.float32)
    return {"features": x, **{name: found[name] for name in network.inputs}}


def random(network: models.Network, seed: int = 9) -> models.Network:
    """The network with weights as after some training: fresh ones have zeros where it matters."""
    rng = np.random.default_rng(seed)
    network.set_weights({n: rng.normal(0, 0.3, w.shape).astype(np.float32) for n, w in network.weights().items()})
    return network


def outputs(network: models.Network, given: dict[str, Any], training: bool = False) -> np.ndarray:
    found: np.ndarray = network.body({n: tf.constant(x) for n, x in given.items()}, training=training).numpy()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_seed_and_start(kind: str) -> None:
    """Any number of rows; fresh outputs are the bias; the same seed gives the same weights; a file of them
    is all that is needed to have the network again."""
    network = models.build(architecture(kind), seed=3)
    for n in (1, 7):
        assert outputs(network, inputs(network, n)).shape == (n, 5)
    assert (outputs(network, inputs(network, 4)) == 0).all()
    again, other = (models.build(architecture(kind), seed=s).weights() for s in (3, 4))
    same = [np.array_equal(w, again[name]) for name, w in network.weights().items()]
    assert all(same)
    assert kind == "logistic" or any(not np.array_equal(w, other[name]) for name, w in network.weights().items())
    random(network)
    described = Architecture.from_dict(network.architecture.to_dict())
    assert described == network.architecture
    restored = models.build(described)
    restored.set_weights(network.weights())
    given = inputs(network, 9)
    np.testing.assert_array_equal(outputs(restored, given), outputs(network, given))
    assert outputs(network, given).std() > 0.01


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_what_is_padded_changes_nothing(kind: str) -> None:
    network = random(models.build(architecture(kind)))
    given = inputs(network, 50)
    expected = outputs(network, given)
    padded = given["mask"] == 0
    rng = np.random.default_rng(1)
    for name in ("kind", "days", "hour", "campaign", "family", "provider"):
        junk = np.full(padded.shape, np.nan) if name == "days" else rng.integers(0, 3, padded.shape)
        changed = {**given, name: np.where(padded, junk, given[name]).astype(given[name].dtype)}
        np.testing.assert_array_equal(outputs(network, changed), expected, err_msg=name)
        real = {**given, name: np.where(padded, given[name], 2 - (given[name] > 1)).astype(given[name].dtype)}
        assert (outputs(network, real) != expected)[~padded.all(axis=1)].any(), name  # the others do


@pytest.mark.parametrize("kind", ["attention", "combined"])
def test_attention_does_not_know_how_long_the_padding_is(kind: str) -> None:
    """The same history in a longer tensor: the same outputs. (A recurrent network may count its padding.)"""
    wider = SequenceSpec.of(20, ["send", "open", "click"], SPEC.campaigns, SPEC.families, SPEC.providers)
    short = random(models.build(architecture(kind)))
    long = models.build(architecture(kind, wider))
    long.set_weights(short.weights())
    given = inputs(short, 30)
    padded = {n: np.pad(x, ((0, 0), (8, 0))) if x.shape[1] == 12 else x for n, x in given.items()}
    np.testing.assert_allclose(outputs(long, padded), outputs(short, given), atol=1e-5)


def test_the_state_of_a_recurrent_network_is_the_recursion() -> None:
    """Against the equations of Cho et al., step by step in NumPy."""
    network = random(models.build(architecture("recurrent")))
    given = inputs(network, 6)
    layer = network.body.get_layer("memory")
    part = keras.Model(network.body.inputs, [layer.input, layer.output])
    events, state = (t.numpy() for t in part({n: tf.constant(x) for n, x in given.items()}))
    kernel, recurrent, bias = (w.numpy().astype(np.float64) for w in layer.weights)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    h = np.zeros((6, 8))
    for step in range(12):
        x, r = events[:, step] @ kernel + bias[0], h @ recurrent + bias[1]
        update, reset = sigmoid(x[:, :8] + r[:, :8]), sigmoid(x[:, 8:16] + r[:, 8:16])
        h = update * h + (1 - update) * np.tanh(x[:, 16:] + reset * r[:, 16:])
    np.testing.assert_allclose(state, h, atol=1e-5)


def test_pooling_is_a_softmax_with_a_way_out() -> None:
    rng = np.random.default_rng(0)
    layer = attention.Pool(0)
    events, asks = rng.normal(size=(3, 4, 8)).astype(np.float32), rng.normal(size=(3, 32)).astype(np.float32)
    mask = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=np.uint8)
    found = layer([tf.constant(events), tf.constant(mask), tf.constant(asks)]).numpy()
    same = layer.same.numpy()
    layer.nothing.assign(rng.normal(size=(4, 1)))
    found = layer([tf.constant(events), tf.constant(mask), tf.constant(asks)]).numpy()
    nothing = layer.nothing.numpy()[:, 0]
    for n in range(3):
        here = events[n][mask[n] > 0]
        for h in range(4):
            weight = np.exp(here @ (same[h] + asks[n].reshape(4, 8)[h]) / np.sqrt(8))
            expected = (weight[:, None] * here).sum(axis=0) / (weight.sum() + np.exp(nothing[h]))
            np.testing.assert_allclose(found[n, 8 * h : 8 * h + 8], expected, atol=1e-5)
        assert found[n, -1] == pytest.approx(np.log1p(len(here)))


def test_mixing_is_attention_of_each_event_to_the_others() -> None:
    rng = np.random.default_rng(0)
    asks, has, says = (rng.normal(size=(2, 5, 8)).astype(np.float32) for _ in range(3))
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=np.uint8)
    found = attention.Mix()([*(tf.constant(x) for x in (asks, has, says)), tf.constant(mask)]).numpy()
    for n in range(2):
        for i in np.flatnonzero(mask[n]):
            for h in range(4):
                part = slice(2 * h, 2 * h + 2)
                weight = np.exp(has[n, :, part] @ asks[n, i, part] / np.sqrt(2)) * mask[n]
                expected = weight @ says[n, :, part] / weight.sum()
                np.testing.assert_allclose(found[n, i, part], expected, atol=1e-5)


@pytest.mark.parametrize("size", [5, 200])
def test_ids_are_rows_of_a_table_and_some_campaigns_are_forgotten_in_training(size: int) -> None:
    layer = history.Ids("campaign", size, 8, seed=1)
    ids = np.random.default_rng(0).integers(0, size, (300, 20))
    mask = np.ones((300, 20), dtype=np.uint8)
    found = layer([tf.constant(ids), tf.constant(mask)]).numpy()
    table = layer.vectors.numpy()
    np.testing.assert_allclose(found, table[ids], atol=1e-6)
    trained = layer([tf.constant(ids), tf.constant(mask)], training=True).numpy()
    kept = np.isclose(trained, table[ids]).all(axis=2)
    other = np.isclose(trained, table[history.OTHER]).all(axis=2)
    assert (kept | other).all()
    assert kept[ids <= history.OTHER].all()
    assert 1 - kept[ids > history.OTHER].mean() == pytest.approx(history.FORGOTTEN, abs=0.03)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer([tf.constant(ids), tf.constant(mask)]) ** 2)
    gradient = tape.gradient(total, layer.vectors.value)
    counts = np.bincount(ids.ravel(), minlength=size)
    np.testing.assert_allclose(gradient.numpy(), 2 * counts[:, None] * table, rtol=1e-3, atol=1e-4)


def test_times_are_told_apart_at_every_scale() -> None:
    days = np.array([[0, 1 / 24, 0.5, 1, 2, 7, 30, 90, 200, 365]], dtype=np.float32)
    hour = np.full((1, 10), 6, dtype=np.uint8)
    found = history.Times()([tf.constant(days), tf.constant(hour), tf.ones((1, 10))]).numpy()[0]
    assert found.shape == (10, 13)
    assert np.abs(found).max() <= 1 + 1e-6
    apart = np.abs(found[:, None] - found[None]).sum(axis=2) + 10 * np.eye(10)
    assert apart.min() > 0.1
    np.testing.assert_allclose(found[:, 5:7], [[1, 0]] * 10, atol=1e-6)  # sines of a quarter and of half a turn


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_it_learns_what_only_the_history_tells(backend: Backend, kind: str) -> None:
    rows, _ = planted_history(backend, 12_000)
    fresh, truth = planted_history(backend, 5_000, seed=1)
    settings = Model(kind=kind, hidden=[32], units=16, batch_size=256, epochs=6, learning_rate=1e-2)
    model = train(rows, planted_history(backend, 2_000, seed=2)[0], (Head("a"),), settings, sequences=SPEC)
    p = backend.to_host(model.predict(fresh.X, sequences=fresh.sequences))
    best, base = log_loss(truth, truth), log_loss(np.full_like(truth, truth.mean()), truth)
    lost = (log_loss(p, truth) - best) / (base - best)
    assert lost < 0.25, f"{kind} misses {lost:.1%} of what can be known"


def test_each_is_small_and_names_its_source() -> None:
    for kind in KINDS:
        module = __import__(f"{networks.__name__}.{kind}", fromlist=["body"])
        assert len(inspect.getsource(module).splitlines()) < 100, kind
        assert "float32[n, W]" in module.body.__doc__
        assert "20" in module.body.__doc__ or "19" in module.body.__doc__


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ModelError, match="no model kind 'recurent'; did you mean 'recurrent'"):
        Architecture(3, HEADS, kind="recurent")
    with pytest.raises(ModelError, match=r"set sequences\.length"):
        Architecture(3, HEADS, kind="combined")
    described = architecture("attention").to_dict()
    for change in ({"units": 0}, {"kind": "x"}, {"history": [{"name": "mask"}]}, {"history": []}):
        with pytest.raises(ModelError):
            Architecture.from_dict({**described, **change})
