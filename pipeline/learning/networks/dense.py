"""Hidden layers of the features, shared by all heads, beside a linear path: wide and deep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.learning.networks import layers
from pipeline.learning.tensors import keras

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture


def body(architecture: Architecture, seed: int) -> Any:
    """{features: float32[n, F]} -> hidden layers, ``hidden`` wide -> float32[n, W].

    The outputs see the last hidden layer and the features themselves (Cheng et al. 2016, arXiv 1606.07792). Without
    hidden layers it is logistic regression.
    """
    x = layers.features(architecture)
    deep = layers.tower(architecture, x, seed)
    return keras.Model(
        {"features": x}, layers.outputs(architecture, deep, x if architecture.hidden else None), name="body"
    )
