"""A recurrent network that reads the history event by event, oldest first, and remembers what it chose to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.learning.networks import history, layers
from pipeline.learning.tensors import keras

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture


def body(architecture: Architecture, seed: int) -> Any:
    """The history's tensors, [n, L] each -> tokens [n, L, d] -> state [n, d] -> hidden layers -> float32[n, W].

    Gated recurrent unit: Cho et al. 2014, arXiv 1406.1078; for events with times: Du et al. 2016 (RMTPP). The features
    are not looked at. Padding is on the left and all zeros, so no mask is needed: whatever it did to the state depends
    on its length alone. Not cuDNN's kernel on a GPU, which XLA cannot take.
    """
    found = history.inputs(architecture)
    initial = keras.initializers.GlorotUniform(seed=seed * 1000 + 130)
    recurrent = keras.initializers.Orthogonal(seed=seed * 1000 + 131)
    units = architecture.units
    options = {"kernel_initializer": initial, "recurrent_initializer": recurrent, "use_cudnn": False}
    gru = keras.layers.GRU(units, name="memory", **options)
    state = gru(history.tokens(architecture, found, seed))
    seen = layers.beside([state, *history.decision(architecture, found, seed)])
    deep = layers.tower(architecture, seen, seed)
    x = layers.features(architecture)
    return keras.Model({"features": x, **found}, layers.outputs(architecture, deep, seen), name="body")
