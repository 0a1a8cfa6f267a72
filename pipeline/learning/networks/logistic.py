"""Logistic regression of the features: what every other network has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.learning.networks import layers
from pipeline.learning.tensors import keras

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture


def body(architecture: Architecture, seed: int) -> Any:
    """{features: float32[n, F]} -> float32[n, W], linear (Cox 1958). The start is zero, whatever the seed."""
    x = layers.features(architecture)
    return keras.Model({"features": x}, layers.outputs(architecture, x), name="body")
