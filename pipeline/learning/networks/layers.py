"""What every network is made of: its inputs, a tower of hidden layers, and the outputs that start at zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.learning.tensors import keras

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture


def features(architecture: Architecture) -> Any:
    """The input of normalised features, float32[n, F]."""
    return keras.Input((architecture.features,), dtype="float32", name="features")


def beside(several: list[Any]) -> Any:
    """float32[n, all of their widths]."""
    return several[0] if len(several) == 1 else keras.layers.Concatenate()(several)


def tower(architecture: Architecture, layer: Any, seed: int) -> Any:
    """The configured hidden layers: float32[n, any] -> float32[n, units of the last]."""
    for i, units in enumerate(architecture.hidden):
        initial = keras.initializers.HeNormal(seed=seed * 1000 + i)
        layer = keras.layers.Dense(units, "relu", kernel_initializer=initial, name=f"hidden{i}")(layer)
        if architecture.dropout:
            layer = keras.layers.Dropout(architecture.dropout, seed=seed * 1000 + 500 + i, name=f"dropout{i}")(layer)
    return layer


def outputs(architecture: Architecture, layer: Any, wide: Any = None) -> Any:
    """float32[n, W]: linear in ``layer`` and, beside it, in ``wide`` (wide and deep: Cheng et al. 2016)."""
    width = architecture.width
    out = keras.layers.Dense(width, kernel_initializer="zeros", name="heads")(layer)
    if wide is None:
        return out
    beside = keras.layers.Dense(width, use_bias=False, kernel_initializer="zeros", name="wide")(wide)
    return keras.layers.Add(name="outputs")([out, beside])
