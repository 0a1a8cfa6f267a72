"""The mean of a network's weights over the latest half epoch: what is validated, kept and used.

Each step moves the weights by its batch's noise, the level of a rare outcome by a tenth and more. Their mean has not
that noise, and predicts better than any of the weights in it (Polyak and Juditsky 1992, doi:10.1137/0330046; Izmailov
et al. 2018, arXiv 1803.05407). Taken at some steps only, it costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.learning.tensors import tf

SNAPSHOTS = 32  # an epoch, at most


class Averages:
    """The running mean of a network's trainable variables.

    Until half an epoch is over all snapshots weigh the same, from then on older ones less and less.

    Args:
        variables: Keras variables. steps: of an epoch.
    """

    def __init__(self, variables: Sequence[Any], steps: int) -> None:
        self.variables, self.every = list(variables), max(steps // SNAPSHOTS, 1)
        self.least = 1.0 / max(steps // self.every / 2, 1.0)  # weight of a new snapshot, in the long run
        self.means = [tf.Variable(tf.convert_to_tensor(v), trainable=False) for v in self.variables]
        self.taken = tf.Variable(0.0, trainable=False)

    def follow(self, step: Any) -> None:
        """After step number ``step`` of the whole training, int64 scalar; to be called while a graph is traced."""
        tf.cond(step % self.every == 0, self._take, lambda: tf.constant(False))

    def _take(self) -> Any:
        rate = tf.maximum(1.0 / (self.taken.assign_add(1.0)), self.least)
        for mean, variable in zip(self.means, self.variables, strict=True):
            mean.assign_add((tf.convert_to_tensor(variable) - mean) * rate)
        return tf.constant(True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the mean for its weights inside, and those that it goes on from after."""
        if float(self.taken) == 0:  # no snapshot yet
            yield
            return
        latest = [tf.identity(tf.convert_to_tensor(v)) for v in self.variables]
        for variable, mean in zip(self.variables, self.means, strict=True):
            variable.assign(mean)
        yield
        for variable, weight in zip(self.variables, latest, strict=True):
            variable.assign(weight)

    @property
    def kept(self) -> list[Any]:
        """What a checkpoint has to keep."""
        return [*self.means, self.taken]
