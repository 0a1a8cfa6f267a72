"""The networks there are, a file each, by the name that ``model.kind`` gives them.

A network's body takes a dict of tensors, ``features`` (float32[n, F], normalised) and, where it reads a history, those
of ``SequenceSpec`` ([n, L] each), and gives float32[n, W]: one logit for each binary head, three numbers for a value
head. Its last layer, ``heads``, starts at zero, so that training starts at the base rates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.options import NETWORKS as KINDS
from pipeline.options import SEQUENTIAL

if TYPE_CHECKING:
    from pipeline.learning.models import Architecture

__all__ = ["KINDS", "SEQUENTIAL", "body"]


def body(architecture: Architecture, seed: int) -> Any:
    """A Keras model with fresh weights, the same for the same seed."""
    return importlib.import_module(f"{__name__}.{architecture.kind}").body(architecture, seed)
