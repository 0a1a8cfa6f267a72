"""What a training may begin from instead of fresh weights: the body of a network that was trained before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.learning.models import Architecture, Network

NORMALISATION = "normalise/"  # that is a client's own
BIAS = "heads/bias"  # beside that of a client's own base rates


@dataclass(frozen=True)
class Start:
    """The weights of a network of some architecture, without its normalisation.

    ``weights``: float32, as ``Network.weights`` names them; the heads' biases are what was learned beside initial ones.
    ``reading``: the names of those whose rows are features. ``about``: where they are from, plain values.
    """

    architecture: Architecture
    weights: Mapping[str, np.ndarray]
    reading: tuple[str, ...]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, network: Network, initial: np.ndarray, about: Mapping[str, Any]) -> Start:
        """Args: initial: float32[W], the heads' biases before the training."""
        found = {name: w for name, w in network.weights().items() if not name.startswith(NORMALISATION)}
        weights = {name: w - initial if name.endswith(BIAS) else w for name, w in found.items()}
        digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in weights)).hexdigest()
        return cls(network.architecture, weights, network.reading, {**about, "sha256": digest})

    def over(self, known: Sequence[str], names: Sequence[str]) -> Start:
        """The same with other features, by name; those that are not among the ``known`` start at weights of zero."""
        place = {name: i for i, name in enumerate(known)}
        rows = [place.get(name, len(known)) for name in names]
        weights = {n: np.vstack([w, 0 * w[:1]])[rows] if n in self.reading else w for n, w in self.weights.items()}
        return replace(self, architecture=replace(self.architecture, features=len(names)), weights=weights)

    def fits(self, architecture: Architecture) -> bool:
        """Whether a network of this architecture has these weights."""
        return replace(architecture, dropout=self.architecture.dropout) == self.architecture

    def give(self, network: Network) -> None:
        """Set the weights of a network whose heads have their initial biases."""
        now = network.weights()
        network.set_weights(now | {n: now[n] + w if n.endswith(BIAS) else w for n, w in self.weights.items()})
