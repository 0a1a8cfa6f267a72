"""A trained model: a network, what it was taught, and its predictions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.backend import Array, backend_of
from pipeline.errors import ModelError
from pipeline.learning import losses, models
from pipeline.learning.calibration import Calibration, calibrate
from pipeline.learning.labels import Label
from pipeline.learning.levels import Levels
from pipeline.learning.models import BLOCK, Architecture, Head, Network
from pipeline.learning.resident import blocks, cut
from pipeline.learning.rows import Rows, needed
from pipeline.learning.tensors import aligned, shards, tensor, tf, to_array
from pipeline.options import UNITS


@dataclass
class TrainedModel:
    """A network, what it was taught, and how that went.

    ``history``: one dict an epoch: loss, validation, seconds. ``selection``: what ``model.kind: auto`` tried, see
    ``selection.py``; None where the kind was given. ``start``: what is known of the weights that the training began
    from, see ``start.py``; None where they were fresh.
    """

    network: Network
    labels: list[Label]
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    samples_per_second: float = 0.0
    batch: int = 0
    selection: dict[str, Any] | None = None
    start: dict[str, Any] | None = None
    calibration: dict[str, Calibration] = field(default_factory=dict)  # of binary heads, by name
    levels: Levels = field(default_factory=Levels)  # of the clients of a pooled model
    shift: Mapping[str, float] = field(default_factory=dict)  # that of the client at hand, by head
    _compiled: dict[str, Any] = field(default_factory=dict)  # shared by the clients of a pooled model

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.network.architecture.heads

    @property
    def notes(self) -> dict[str, str]:
        """Why a head has no model and predicts its base rate, by head."""
        return {head.name: label.note for head, label in zip(self.heads, self.labels, strict=True) if label.note}

    @property
    def diverged(self) -> int | None:
        """The epoch that ended the training since its loss was no finite number; None where there was none."""
        last = self.history[-1].get("loss", math.nan) if self.history else 0.0
        return None if math.isfinite(last) else len(self.history)

    @property
    def value_scale(self) -> Any:
        """Mean and deviation of each head's log(value), float32[H, 2], a tensor."""
        return tf.constant([label.log[:2] for label in self.labels], dtype=tf.float32)

    @property
    def correction(self) -> Callable[[Any], Any]:
        """Raw outputs to those of the population: what the loss did to rare outcomes is undone."""
        weights, gammas = [label.positive_weight for label in self.labels], [label.gamma for label in self.labels]
        return functools.partial(
            losses.corrected, architecture=self.network.architecture, positive_weights=weights, gammas=gammas
        )

    def predict(
        self,
        X: Array,
        index: Array | None = None,
        batch: int | None = None,
        sequences: Mapping[str, Array] | None = None,
    ) -> Array:
        """Each head's probability or expected value, float32[m, H], on the device of X.

        Args:
            X: float32[n, F]. index: int64[m], the wanted rows in order; all where None.
            batch: rows at once, as fits the network where None; bounds memory, changes nothing else beyond rounding.
            sequences: [n, L] each, as ``FeatureTable.sequences``; those that the network takes must be there.
        Raises:
            ModelError: X has another number of features than the model, or a sequence tensor is missing.
        """
        architecture, backend = self.network.architecture, backend_of(X)
        if X.ndim != 2 or X.shape[1] != architecture.features:
            raise ModelError(f"the model takes {architecture.features} features, found an array of {X.shape}")
        taken = needed(sequences, self.network.inputs)
        n = len(X) if index is None else len(index)
        out = backend.empty_aligned((n, len(self.heads)), np.float32)
        for start, chosen in blocks(n, index, batch or self.network.block):
            inputs = {"features": tensor(aligned(X[chosen]))}
            inputs |= {name: tensor(aligned(array[chosen], array.dtype)) for name, array in taken.items()}
            if not self._compiled:
                forward = _forward(self.network, self.value_scale, self.correction, inputs, backend.on_gpu)
                self._compiled["forward"] = forward
            out[start : start + len(inputs["features"])] = to_array(self._compiled["forward"](inputs), backend)
        for h, label in enumerate(self.labels):
            if not label.learned:
                out[:, h] = label.mean
            elif self.heads[h].kind == "value":
                out[:, h] = backend.xp.minimum(out[:, h] * label.smear, 2 * label.log[2])
            elif self.heads[h].name in self.calibration:
                out[:, h] = self.calibration[self.heads[h].name].apply(out[:, h])
        self.move(out)
        return out

    def of(self, client: str) -> TrainedModel:
        """The same network, at one client's own level."""
        return replace(self, shift=self.levels.of(client))

    def move(self, p: Array) -> None:
        """Move p, float32[m, H], to the level of the client at hand, in place."""
        for h, (head, label) in enumerate(zip(self.heads, self.labels, strict=True)):
            if label.learned and head.name in self.shift:
                p[:, h] = Calibration("temperature", intercept=self.shift[head.name]).apply(p[:, h])

    def calibrate(self, rows: Rows, cluster: np.ndarray, at: np.ndarray, wanted: str) -> None:
        """Calibrate every learned binary head on rows later than those of training; see calibration.py.

        Args:
            rows: neither of training nor of the hold-out. cluster, at: [m], each row's subscriber and when it is
                decided (microseconds UTC), on the host. wanted: as ``model.calibration``.
        """
        self.calibration = {}
        if not len(rows):
            return
        host = backend_of(rows.X).to_host
        p = host(self.predict(rows.X, rows.index, sequences=rows.sequences))
        y, mask, weight = (host(rows.take(name)) for name in ("y", "mask", "weight"))
        day, found = at // UNITS["d"], {}
        for h, (head, label) in enumerate(zip(self.heads, self.labels, strict=True)):
            if label.learned and head.kind == "binary":
                some = (mask[:, h] > 0) & (weight > 0)
                found[head.name] = calibrate(p[some, h], y[some, h], weight[some], cluster[some], day[some], wanted)
        self.calibration = found

    def describe(self) -> dict[str, Any]:
        """What :meth:`restore` needs beside the weights, as plain values."""
        return {
            "architecture": self.network.architecture.to_dict(),
            "labels": [asdict(label) for label in self.labels],
            "calibration": {name: found.to_dict() for name, found in self.calibration.items()},
            "levels": self.levels.to_dict(),
        }

    def training(self) -> dict[str, Any]:
        """How the training went, as plain values; what was no finite number is left out of ``history``."""
        names = ("seconds", "samples_per_second", "batch", "best_epoch", "selection", "start")
        history = [{name: v for name, v in epoch.items() if math.isfinite(v)} for epoch in self.history]
        return {"history": history, **{name: getattr(self, name) for name in names}}

    @classmethod
    def restore(
        cls, described: dict[str, Any], weights: dict[str, np.ndarray], training: dict[str, Any]
    ) -> TrainedModel:
        """The model that gave :meth:`describe`, ``network.weights()`` and :meth:`training`.

        Raises:
            ModelError: they do not fit together.
        """
        try:
            architecture = Architecture.from_dict(described["architecture"])
            labels = [Label(**{**label, "log": tuple(label["log"])}) for label in described["labels"]]
        except (KeyError, TypeError) as error:
            raise ModelError(f"the model's description cannot be read ({error!r}); train again") from None
        if len(labels) != len(architecture.heads):
            raise ModelError(f"{len(labels)} labels for {len(architecture.heads)} heads; train again")
        network = models.build(architecture)
        network.set_weights(weights)
        calibration = {n: Calibration.from_dict(c) for n, c in described.get("calibration", {}).items()}
        levels = Levels.from_dict(described["levels"]) if "levels" in described else Levels()
        return cls(network, labels, calibration=calibration, levels=levels, **training)


def _forward(network: Network, value_scale: Any, correct: Any, inputs: dict[str, Any], on_gpu: bool) -> Any:
    """Inputs as these, of any number of rows -> predictions, compiled once."""
    parts, architecture = shards(8 * BLOCK, on_gpu), network.architecture
    signature = {name: tf.TensorSpec((None, *x.shape[1:]), x.dtype) for name, x in inputs.items()}

    @tf.function(input_signature=[signature])  # type: ignore[untyped-decorator]
    def forward(inputs: dict[str, Any]) -> Any:
        raw = [network.raw(part) for part in cut(inputs, parts)]
        return tf.concat([losses.expectations(correct(r), architecture, value_scale) for r in raw], axis=0)

    return forward
