"""The networks there are, a file each, by the name that ``model.kind`` gives them.

A network's body takes a dict of tensors, ``features`` (float32[n, F], normalised) and, where it reads a history, those
of ``SequenceSpec`` ([n, L] each), and gives float32[n, W]: one logit for each binary head, three numbers for a value
head. Its last layer, ``heads``, starts at zero, so that training starts at the base rates.

Several networks that start differently err differently, so their mean is better than any of them (Hansen and Salamon
1990; Lakshminarayanan et al. 2017, arXiv 1612.01474). Such members lie side by side in one body and are trained in the
same steps on the same rows, each by its own loss, so that each becomes what it would become alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.options import NETWORKS as KINDS
from pipeline.options import SEQUENTIAL

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture

__all__ = ["KINDS", "SEQUENTIAL", "body", "members", "seed_of"]


def body(architecture: Architecture, seed: int) -> Any:
    """A Keras model with fresh weights, the same for the same seed: float32[n, members x W], one after the other."""
    from pipeline.learning.tensors import keras

    make = importlib.import_module(f"{__name__}.{architecture.kind}").body
    made = [make(architecture, seed_of(seed, m)) for m in range(architecture.members)]
    if len(made) == 1:
        return made[0]
    for m, member in enumerate(made):
        member.name = f"member{m}"
    inputs = {x.name: keras.Input(x.shape[1:], dtype=x.dtype, name=x.name) for x in made[0].inputs}
    several = keras.layers.Concatenate(name="members")([member(inputs) for member in made])
    return keras.Model(inputs, several, name="body")


def members(architecture: Architecture, body: Any) -> list[Any]:
    """The networks side by side in a body, which is its own only one where there are not several."""
    if architecture.members == 1:
        return [body]
    return [body.get_layer(f"member{m}") for m in range(architecture.members)]


def seed_of(seed: int, member: int) -> int:
    """What a member's weights start from; the first has the training's own seed, so that alone it is as ever."""
    return int(np.random.SeedSequence([abs(seed), member]).generate_state(1)[0] >> 12) if member else seed
