"""What training compiles, once: an epoch over the rows of a chunk, and a block's validation losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.learning import losses as kinds
from pipeline.learning.averages import Averages
from pipeline.learning.group import ALONE, Group
from pipeline.learning.luck import Luck
from pipeline.learning.models import BLOCK, Architecture, Network
from pipeline.learning.resident import cut
from pipeline.learning.tensors import shards, tf

Losses = Callable[[Any, Any], Any]  # raw [n, W], target [n, H] -> each row's loss on each head, [n, H]


def losses_of(architecture: Architecture, gamma: float = 0.0, loss: Any = None) -> Losses:
    """Our losses, or a ``keras.losses.Loss`` of logits for the binary heads.

    Args:
        gamma: of the focal loss; 0: log loss.
    """

    def ours(raw: Any, target: Any) -> Any:
        return kinds.losses(raw, target, architecture, gamma)

    def theirs(raw: Any, target: Any) -> Any:
        each = ours(raw, target)
        columns = [
            loss.call(target[:, h : h + 1], raw[:, architecture.columns(h)]) if head.kind == "binary" else each[:, h]
            for h, head in enumerate(architecture.heads)
        ]
        return tf.stack(columns, axis=1)

    return ours if loss is None else theirs


def epoch_of(
    network: Network,
    batch: int,
    weights: np.ndarray,
    optimizer: Any,
    losses: Losses,
    on_gpu: bool,
    xla: bool,
    averages: Averages,
    group: Group = ALONE,
    share: int | None = None,
    luck: Luck | None = None,
) -> Callable[[dict[str, Any], Any], Any]:
    """(tensors of a Resident, order) -> the sum of the losses of its batches, after a step for each whole one.

    Args:
        batch: rows of a step. weights: float64[H], of each head in the loss of a batch's row.
        averages: of the network's weights, which follow every step.
        xla: compile the gradient with it; what the members of a group add is outside, where a ring has to be.
        group: who takes the steps together. share: rows of a step that are this member's; all of them where None.
        luck: of the campaigns, where the Resident has them.
    """
    factors = tf.constant(weights / batch, dtype=tf.float32)
    batch = batch if share is None else share
    body, heads, parts = network.body, len(network.architecture.heads), shards(batch, on_gpu)
    part, variables = batch // parts, network.body.trainable_variables

    def gradient(inputs: dict[str, Any], packed: Any) -> tuple[Any, list[Any], Any]:
        target, weight, lucks = packed[:, :heads], packed[:, heads : 2 * heads], None
        with tf.GradientTape() as tape:
            several = network.each(body(inputs, training=True))
            if luck is not None:
                several = luck.added(several, packed[:, 2 * heads])
            each = tf.add_n([losses(raw, target) for raw in several])  # so that each learns as if alone
            loss = tf.reduce_sum(each * weight * factors)
        if luck is not None:
            lucks = luck.slopes(several, target, weight)
        return loss / len(several), tape.gradient(loss, variables), lucks

    if xla:
        gradient = tf.function(gradient, jit_compile=True)

    def gather(x: Any, index: Any) -> Any:
        return tf.ensure_shape(tf.gather(x, index), (part, x.shape[1]))

    def epoch(tensors: dict[str, Any], order: Any) -> Any:
        places, total = tensors.get("places"), tf.constant(0.0)
        sequences = [name for name in tensors if name not in ("rows", "places")]
        width = tensors["rows"].shape[1] - 2 * heads - (luck is not None)
        for step in tf.range(tf.shape(order)[0] // batch):
            results, campaigns = [], []
            for k in range(parts):
                first = step * batch + k * part
                index = order[first : first + part]
                rows = gather(tensors["rows"], index)
                inputs = {"features": rows[:, :width]}
                if sequences:
                    place = index if places is None else tf.gather(places, index)
                    inputs |= {name: gather(tensors[name], place) for name in sequences}
                results.append(gradient(inputs, rows[:, width:]))
                campaigns.append(rows[:, -1])
            # Added in a fixed order: the same seed gives the same weights however the shards were scheduled.
            gradients = [tf.add_n(list(same)) for same in zip(*(g for _, g, _ in results), strict=True)]
            *gradients, loss = group.add([*gradients, tf.add_n([loss for loss, _, _ in results])])
            if luck is not None:
                luck.see(tf.concat(campaigns, axis=0), tf.concat([slopes for _, _, slopes in results], axis=0))
            optimizer.apply(gradients, variables)
            averages.follow(tf.cast(optimizer.iterations, tf.int64))
            total += loss
        return total

    return _for_any_rows(epoch)


def validation_of(network: Network, correct: Callable[[Any], Any], on_gpu: bool) -> Any:
    """A Resident's block -> its rows' losses, weighted and summed by head, float32[H].

    Args:
        correct: raw outputs -> those of the population.
    """
    architecture, heads = network.architecture, len(network.architecture.heads)
    parts = 1 if on_gpu else shards(8 * BLOCK, on_gpu)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def sums(block: dict[str, Any]) -> Any:
        results = []
        for part in cut(block, parts):
            packed = part.pop("packed")
            each = kinds.losses(correct(network.output(part)), packed[:, :heads], architecture)
            results.append(tf.reduce_sum(tf.where(packed[:, heads:] > 0, each * packed[:, heads:], 0.0), axis=0))
        return tf.add_n(results)

    return sums


def _for_any_rows(epoch: Any) -> Callable[[dict[str, Any], Any], Any]:
    """Traced once for all chunks, however many rows they have, since batches have one shape."""
    traced: dict[tuple[str, ...], Any] = {}

    def run(tensors: dict[str, Any], order: Any) -> Any:
        names = tuple(sorted(tensors))
        if names not in traced:
            signature = {name: tf.TensorSpec((None, *x.shape[1:]), x.dtype) for name, x in tensors.items()}
            traced[names] = tf.function(epoch, input_signature=[signature, tf.TensorSpec((None,), order.dtype)])
        return traced[names](tensors, order)

    return run
