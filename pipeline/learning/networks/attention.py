"""Attention over the history: events look at each other, and the decision looks at all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.learning.networks import history, layers
from pipeline.learning.tensors import keras, tf

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture

HEADS = 4
NEVER = -1e9  # the logit of a padded position


def body(architecture: Architecture, seed: int) -> Any:
    """The history's tensors, [n, L] each -> tokens [n, L, d] -> mixed [n, L, d] -> pooled [n, HEADS d + 1] -> hidden
    layers -> float32[n, W].

    A transformer's block (Vaswani et al. 2017, arXiv 1706.03762), and its result pooled by attention. The features are
    not looked at.
    """
    found = history.inputs(architecture)
    events = mixed(architecture, history.tokens(architecture, found, seed), found["mask"], seed)
    decision = history.decision(architecture, found, seed)
    seen = layers.beside([pooled(architecture, events, found["mask"], decision, seed), *decision])
    deep = layers.tower(architecture, seen, seed)
    x = layers.features(architecture)
    return keras.Model({"features": x, **found}, layers.outputs(architecture, deep, seen), name="body")


def mixed(architecture: Architecture, events: Any, mask: Any, seed: int) -> Any:
    """float32[n, L, d]: each event with what it found in the others added, and a layer on top."""
    units = architecture.units
    three = [_dense(units, f"mix_{what}", seed, 140 + i)(events) for i, what in enumerate(("asks", "has", "says"))]
    heard = _dense(units, "mix_heard", seed, 143)(Mix(name="mix")([*three, mask]))
    events = keras.layers.LayerNormalization(name="mix_norm")(keras.layers.Add(name="mix_sum")([events, heard]))
    return _dense(units, "mix_deep", seed, 144, "relu")(events)


def pooled(architecture: Architecture, events: Any, mask: Any, decision: list[Any], seed: int) -> Any:
    """float32[n, HEADS d + 1]: what each head sees in the history, and the logarithm of how long that is.

    Args:
        decision: float32[n, any] each, what decides where to look; none: the same looks for all.
    """
    asks = [_dense(HEADS * architecture.units, "asks", seed, 150)(layers.beside(decision))] if decision else []
    return Pool(seed * 1000 + 151, name="pool")([events, mask, *asks])


class Mix(keras.layers.Layer):  # type: ignore[misc]
    """(asks, has, says: [n, L, d], mask [n, L]) -> float32[n, L, d], scaled dot product in HEADS heads."""

    def call(self, inputs: Any) -> Any:
        *three, mask = inputs
        n, length, units = tf.shape(mask)[0], mask.shape[1], three[0].shape[2]
        asks, has, says = (tf.transpose(tf.reshape(x, (n, length, HEADS, units // HEADS)), (0, 2, 1, 3)) for x in three)
        logits = asks @ tf.transpose(has, (0, 1, 3, 2)) / math.sqrt(units // HEADS)
        logits += NEVER * (1 - tf.cast(mask, tf.float32))[:, None, None, :]
        heard = tf.transpose(tf.nn.softmax(logits) @ says, (0, 2, 1, 3))
        return tf.reshape(heard, (n, length, units))


class Pool(keras.layers.Layer):  # type: ignore[misc]
    """(events [n, L, d], mask [n, L], and maybe asks [n, HEADS d]) -> float32[n, HEADS d + 1].

    Each head may also look at nothing, whose value is zero, so an empty history is no special case.
    """

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.seed = seed

    def build(self, shapes: Any) -> None:
        initial = keras.initializers.RandomNormal(stddev=0.1, seed=self.seed)
        self.same = self.add_weight(shape=(HEADS, shapes[0][-1]), initializer=initial, name="same")
        self.nothing = self.add_weight(shape=(HEADS, 1), initializer="zeros", name="nothing")

    def call(self, inputs: Any) -> Any:
        events, mask, *asks = inputs
        n, units, there = tf.shape(mask)[0], events.shape[2], tf.cast(mask, tf.float32)
        look = tf.convert_to_tensor(self.same)[None] + (tf.reshape(asks[0], (n, HEADS, units)) if asks else 0.0)
        logits = tf.matmul(look, events, transpose_b=True) / math.sqrt(units) + NEVER * (1 - there)[:, None, :]
        nothing = tf.tile(tf.convert_to_tensor(self.nothing)[None], (n, 1, 1))
        share = tf.nn.softmax(tf.concat([logits, nothing], axis=2))[:, :, :-1]
        seen = tf.reshape(share @ events, (n, HEADS * units))
        return tf.concat([seen, tf.math.log1p(tf.reduce_sum(there, axis=1, keepdims=True))], axis=1)


def _dense(units: int, name: str, seed: int, number: int, activation: str | None = None) -> Any:
    initial = keras.initializers.GlorotUniform(seed=seed * 1000 + number)
    return keras.layers.Dense(units, activation, kernel_initializer=initial, name=name)
