"""Keras networks with one head per outcome.

A network maps float32[n, F] features to float32[n, W] raw outputs: one logit for each binary head, three numbers
(logit, mu, sigma) for each value head. The first layer is the normalisation, fitted to the training rows and saved
with the weights, so that scoring cannot normalise differently. Built from this code alone; a file holds only numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pipeline.config import Config
from pipeline.errors import ModelError, did_you_mean
from pipeline.features.sequences import SequenceSpec
from pipeline.learning import networks
from pipeline.learning.tensors import configure, keras, tf

BLOCK = 65_536  # rows at once where nothing is trained
TOKENS = 1 << 24  # numbers, of one tensor inside a network
CLIP = 8.0  # standard deviations; further out, a feature says no more


@dataclass(frozen=True)
class Head:
    """One outcome: "binary" (its probability) or "value" (its expected amount, zero for most rows)."""

    name: str
    kind: Literal["binary", "value"] = "binary"

    @property
    def width(self) -> int:
        return 1 if self.kind == "binary" else 3


@dataclass(frozen=True)
class HistoryTensor:
    """A tensor that a network takes beside the features: [n, length] of a dtype; ``ids``: how many numbers of names
    there are in it, 0 where it holds none; ``once``: it is of the decision itself."""

    name: str
    dtype: str
    length: int
    ids: int = 0
    once: bool = False


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a network but its weights.

    ``kind``: one of ``networks.KINDS``; ``hidden``: widths of its hidden layers; ``units``: of what it reads a history
    with; ``history``: the tensors that it takes beside the features, none of a network without; ``members``: networks
    side by side whose outputs' mean is the output.
    """

    features: int
    heads: tuple[Head, ...]
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    kind: str = "dense"
    units: int = 32
    history: tuple[HistoryTensor, ...] = ()
    members: int = 1

    def __post_init__(self) -> None:
        if self.kind not in networks.KINDS:
            raise ModelError(f"there is no model kind {self.kind!r}; {did_you_mean(self.kind, networks.KINDS)}")
        if self.kind in networks.SEQUENTIAL and not self.history:
            raise ModelError(f"a {self.kind} model reads sequences, and there are none: set sequences.length")

    def columns(self, h: int) -> slice:
        """The raw output columns of head h."""
        start = sum(head.width for head in self.heads[:h])
        return slice(start, start + self.heads[h].width)

    @property
    def width(self) -> int:
        return sum(head.width for head in self.heads)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Raises ModelError for anything that does not describe a network."""
        try:
            heads = tuple(Head(str(h["name"]), h["kind"]) for h in values["heads"])
            hidden = tuple(int(u) for u in values["hidden"])
            history = tuple(HistoryTensor(**tensor) for tensor in values.get("history", ()))
            kind, units = values.get("kind", "dense"), int(values.get("units", 32))
            many, dropout = int(values.get("members", 1)), float(values["dropout"])
            made = cls(int(values["features"]), heads, hidden, dropout, kind, units, history, many)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's architecture cannot be read ({error!r}); train again") from None
        kinds = {head.kind for head in heads}
        sizes = [made.features, made.units, made.members, *hidden, *(t.length for t in history)]
        if not heads or any(units < 1 for units in sizes) or kinds - {"binary", "value"}:
            raise ModelError(f"the model's architecture {values} is not one this version can build; train again")
        return made


def history_of(kind: str, sequences: SequenceSpec | None) -> tuple[HistoryTensor, ...]:
    """What a network of this kind takes of a specification's sequences."""
    if kind not in networks.SEQUENTIAL or sequences is None:
        return ()
    return tuple(HistoryTensor(t.name, t.dtype, sequences.width(t), t.ids, t.once) for t in sequences.tensors)


def heads_of(config: Config) -> tuple[Head, ...]:
    """The heads of the configured outcomes, in their order: the columns of y."""
    return tuple(Head(name, "value" if outcome.sum else "binary") for name, outcome in config.outcomes.items())


class Normalise(keras.layers.Layer):  # type: ignore[misc]
    """x -> standardised x, float32[n, F]; heavy-tailed features go through sign(x) log(1 + |x|) before.

    Weights (not trained, set by :func:`set_normalisation`): ``squash`` 1 where a feature is heavy-tailed, ``mean`` and
    ``scale`` of the (squashed) feature; scale 0 removes a feature that was constant. Results are within +-CLIP; NaN and
    infinities become 0 and +-CLIP.
    """

    def build(self, shape: Any) -> None:
        for name, value in (("squash", "zeros"), ("mean", "zeros"), ("scale", "ones")):
            setattr(self, name, self.add_weight(shape=(shape[-1],), initializer=value, trainable=False, name=name))

    def call(self, x: Any) -> Any:
        x = tf.where(tf.cast(self.squash, tf.bool), tf.sign(x) * tf.math.log1p(tf.abs(x)), x)
        x = tf.clip_by_value((x - self.mean) * self.scale, -CLIP, CLIP)
        return tf.where(tf.math.is_nan(x), 0.0, x)


@dataclass
class Network:
    """``normalise`` has nothing to train and goes before ``body``, a Keras model of a dict to float32[n, members x W].

    The dict holds ``features``, float32[n, F], normalised, and the sequence tensors that ``inputs`` names, [n, L] each,
    as they are in a FeatureTable (uint8, int64 or float32): the body casts what it needs otherwise.
    """

    architecture: Architecture
    normalise: Any
    body: Any
    inputs: tuple[str, ...] = ()

    @property
    def block(self) -> int:
        """Rows at once where nothing is trained: what a history becomes inside takes far more room than itself."""
        read = max((t.length for t in self.architecture.history), default=0) * self.architecture.units
        return BLOCK if not read else max(min(BLOCK, TOKENS // read), 256)

    def raw(self, inputs: dict[str, Any]) -> Any:
        """The outputs, float32[n, W], of inputs whose features are not normalised yet; nothing is trained."""
        return self.output({**inputs, "features": self.normalise(inputs["features"])})

    def output(self, inputs: dict[str, Any]) -> Any:
        """The mean of what the members give for what ``body`` takes, float32[n, W]; nothing is trained."""
        several = self.each(self.body(inputs, training=False))
        return several[0] if len(several) == 1 else tf.add_n(several) / len(several)

    def each(self, outputs: Any) -> list[Any]:
        """Every member's outputs, float32[n, W], of those of ``body``."""
        number = self.architecture.members
        return [outputs] if number == 1 else tf.split(outputs, number, axis=1)

    @property
    def members(self) -> list[Any]:
        """A Keras model each, float32[n, W]; the body itself where there is one."""
        return networks.members(self.architecture, self.body)

    @property
    def reading(self) -> tuple[str, ...]:
        """The names of those weights whose rows are features: kernels of layers that take these and nothing else."""
        kernels = []
        for member in self.members:
            features = next(x for x in member.inputs if x.name == "features")
            kernels += [layer.kernel for layer in member.layers if layer.weights and layer.input is features]
        return tuple(name for name, variable in self._named() if any(variable is kernel for kernel in kernels))

    def weights(self) -> dict[str, np.ndarray]:
        """Every weight by a name of our own (layer/weight), float32."""
        return {name: variable.numpy() for name, variable in self._named()}

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Raises ModelError where names or shapes are not those of this architecture."""
        named = dict(self._named())
        found = {name: tuple(w.shape) for name, w in weights.items()}
        expected = {name: tuple(v.shape) for name, v in named.items()}
        if found != expected:
            raise ModelError(f"the weights {found} do not fit the architecture, which has {expected}; train again")
        for name, variable in named.items():
            variable.assign(weights[name])

    def _named(self) -> list[tuple[str, Any]]:
        layers = [("", self.normalise)]
        for member in self.members:
            prefix = "" if member is self.body else f"{member.name}/"
            layers += [(prefix, layer) for layer in member.layers]
        pairs = [(f"{p}{layer.name}/{v.name}", v) for p, layer in layers for v in layer.weights if "seed" not in v.name]
        return sorted(pairs, key=lambda pair: pair[0])


def build(architecture: Architecture, seed: int = 0) -> Network:
    """A network with fresh weights, the same for the same seed."""
    configure()
    body = networks.body(architecture, seed)
    normalise = Normalise(name="normalise")
    normalise.build((None, architecture.features))
    return Network(architecture, normalise, body, tuple(t.name for t in architecture.history))
