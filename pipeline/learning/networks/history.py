"""A history as tokens: the last L events before a decision, each a vector that a network can read.

Whatever lies at padded positions is replaced by zeros before anything is computed of it. Ids have a vector each, from
the vocabularies of ``SequenceSpec``; while training, some campaigns are taken as another one, at random, so that the
vector of what a vocabulary does not have is learned too, and no campaign's own is trusted alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.learning.tensors import keras, tf

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture

OTHER = 1  # the id of what a vocabulary does not have
FORGOTTEN = 0.2  # share of known campaigns that training takes as another one
ONE_HOT = 64  # vocabularies up to this size are looked up by a product, whose gradient needs no scattering
LONGEST = 366.0  # days; the scale of times
WAVES = 4  # of the logarithm of time
HARMONICS = 2  # of the hour: a day and half a day


def inputs(architecture: Architecture) -> dict[str, Any]:
    """The tensors of a history by name, of the types that ``SequenceSpec`` has."""
    return {t.name: keras.Input((t.length,), dtype=t.dtype, name=t.name) for t in architecture.history}


def tokens(architecture: Architecture, found: dict[str, Any], seed: int) -> Any:
    """float32[n, L, units]: of each event relu(a vector for each of its ids + W times + b), 0 where there is none.

    A sum of vectors and a product is the same as a product with all of them side by side, and cheaper.
    """
    units, mask = architecture.units, found["mask"]
    initial = keras.initializers.GlorotUniform(seed=seed * 1000 + 100)
    times = Times(name="times")([found["days"], found["hour"], mask])
    parts = [keras.layers.Dense(units, kernel_initializer=initial, name="when")(times)]
    for i, tensor in enumerate(architecture.history):
        if tensor.ids and not tensor.once:
            ids = Ids(tensor.name, tensor.ids, units, seed * 1000 + 110 + i, name=f"{tensor.name}_vectors")
            parts.append(ids([found[tensor.name], mask]))
    return Tokens(name="tokens")([*parts, mask])


def decision(architecture: Architecture, found: dict[str, Any], seed: int) -> list[Any]:
    """What is known of the decision itself beside the features: a vector for each id, float32[n, units] each."""
    vectors = []
    for i, tensor in enumerate(architecture.history):
        if tensor.ids and tensor.once:
            ids = Ids(tensor.name, tensor.ids, architecture.units, seed * 1000 + 120 + i, name=f"{tensor.name}_vectors")
            vectors.append(keras.layers.Flatten(name=f"{tensor.name}_flat")(ids([found[tensor.name]])))
    return vectors


class Times(keras.layers.Layer):  # type: ignore[misc]
    """(days [n, L], hour [n, L], mask [n, L]) -> float32[n, L, 1 + 2 WAVES + 2 HARMONICS].

    The logarithm of the time before the decision on a scale from 0 to 1, sines and cosines of it (Fourier features:
    Tancik et al. 2020, arXiv 2006.10739), and of the hour of the day.
    """

    def call(self, inputs: Any) -> Any:
        days, hour, mask = inputs
        there = tf.cast(mask, tf.bool)
        days = tf.where(there, days, 0.0)
        age = tf.math.log1p(tf.maximum(days, 0.0) * 24) / math.log1p(LONGEST * 24)
        clock = tf.where(there, tf.cast(hour, tf.float32), 0.0) * (2 * math.pi / 24)
        angles = [math.pi * (k + 1) * age for k in range(WAVES)] + [(k + 1) * clock for k in range(HARMONICS)]
        waves = tf.stack(angles, axis=-1)
        return tf.concat([age[..., None], tf.sin(waves), tf.cos(waves)], axis=-1)


class Ids(keras.layers.Layer):  # type: ignore[misc]
    """(ids [n, L] and maybe mask [n, L]) -> float32[n, L, units], a vector for each id; padding has that of id 0."""

    def __init__(self, tensor: str, ids: int, units: int, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.ids, self.units = ids, units
        rare = tensor == "campaign"  # their vectors start small: most are seen too seldom to unlearn a large one
        self.initial = keras.initializers.RandomNormal(stddev=0.05 if rare else 0.5, seed=seed)
        self.draws = keras.random.SeedGenerator(seed) if rare else None

    def build(self, shape: Any) -> None:
        self.vectors = self.add_weight(shape=(self.ids, self.units), initializer=self.initial, name="vectors")

    def call(self, inputs: Any, training: bool = False) -> Any:
        ids = tf.cast(inputs[0], tf.int64)
        if len(inputs) > 1:
            ids = tf.where(tf.cast(inputs[1], tf.bool), ids, 0)
        if training and self.draws is not None:
            forget = keras.random.uniform(tf.shape(ids), seed=self.draws) < FORGOTTEN
            ids = tf.where(forget & (ids > OTHER), tf.constant(OTHER, tf.int64), ids)
        vectors = tf.convert_to_tensor(self.vectors)
        if self.ids <= ONE_HOT:
            return tf.matmul(tf.one_hot(ids, self.ids), vectors)
        return tf.gather(vectors * 1.0, ids)  # the product makes the gradient dense, as the shards' sum wants it


class Tokens(keras.layers.Layer):  # type: ignore[misc]
    """(parts [n, L, d] ..., mask [n, L]) -> float32[n, L, d]: relu of the parts' sum, 0 where nothing is."""

    def call(self, inputs: Any) -> Any:
        return tf.nn.relu(tf.add_n(inputs[:-1])) * tf.cast(inputs[-1], tf.float32)[..., None]
