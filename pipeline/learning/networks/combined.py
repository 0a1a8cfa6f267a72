"""Features and history together: the features decide where in the history to look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.learning.networks import attention, history, layers
from pipeline.learning.tensors import keras

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture


def body(architecture: Architecture, seed: int) -> Any:
    """{features: float32[n, F], and the history's tensors, [n, L] each} -> float32[n, W].

    Attention whose question is made of the features pools the events' tokens: [n, HEADS d + 1] (deep interest network:
    Zhou et al. 2018, arXiv 1706.06978). Hidden layers take it beside the features; the outputs see both directly too.
    """
    x, found = layers.features(architecture), history.inputs(architecture)
    events = history.tokens(architecture, found, seed)
    decision = [x, *history.decision(architecture, found, seed)]
    seen = layers.beside([*decision, attention.pooled(architecture, events, found["mask"], decision, seed)])
    deep = layers.tower(architecture, seen, seed)
    return keras.Model({"features": x, **found}, layers.outputs(architecture, deep, seen), name="body")
