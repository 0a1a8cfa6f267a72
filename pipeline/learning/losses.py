"""What a network's raw outputs mean: the losses that teach them, and the predictions they stand for.

A binary head has one raw output, its logit; a value head three: the logit of "is positive", and mu and sigma of the
standardised logarithm of a positive value (zero-inflated log-normal).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.learning.models import Architecture
from pipeline.learning.tensors import tf

ABSENT = -1e9  # the encoded target of a value head where the value is not positive
MU_LIMIT, SIGMA_FLOOR, SIGMA_LIMIT = 6.0, 0.05, 3.0  # of standardised log values


def encode(y: Any, architecture: Architecture, value_scale: Any) -> Any:
    """Labels as the losses take them, float32[n, H]: binary ones as they are, values as standardised logs or ABSENT.

    Args:
        y: float32[n, H], finite. value_scale: float32[H, 2], mean and standard deviation of log(value) of each head.
    """
    columns = []
    for h, head in enumerate(architecture.heads):
        column = y[:, h]
        if head.kind == "value":
            log = (tf.math.log(tf.maximum(column, 1e-30)) - value_scale[h, 0]) / value_scale[h, 1]
            column = tf.where(column > 0, log, ABSENT)
        columns.append(column)
    return tf.stack(columns, axis=1)


def losses(raw: Any, target: Any, architecture: Architecture) -> Any:
    """Each row's loss on each head, float32[n, H], in nats.

    Binary: log loss. Value: zero-inflated log-normal (Wang, Liu and Miao 2019, arXiv 1912.07753), without its constant
    terms: log loss of "is positive", plus log(sigma) + ((log v - mu) / sigma)^2 / 2 where it is.
    """
    if all(head.kind == "binary" for head in architecture.heads):
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=raw)
    columns = []
    for h, head in enumerate(architecture.heads):
        out, t = raw[:, architecture.columns(h)], target[:, h]
        if head.kind == "binary":
            columns.append(tf.nn.sigmoid_cross_entropy_with_logits(labels=t, logits=out[:, 0]))
            continue
        positive = tf.cast(t > ABSENT / 2, tf.float32)
        mu, sigma = log_normal(out)
        error = (tf.where(positive > 0, t, mu) - mu) / sigma
        zero = tf.nn.sigmoid_cross_entropy_with_logits(labels=positive, logits=out[:, 0])
        columns.append(zero + positive * (tf.math.log(sigma) + 0.5 * error * error))
    return tf.stack(columns, axis=1)


def log_normal(out: Any) -> tuple[Any, Any]:
    """mu and sigma, float32[n] each, of a value head's raw outputs; bounded, so that no expectation explodes."""
    mu = MU_LIMIT * tf.tanh(out[:, 1] / MU_LIMIT)
    sigma = tf.minimum(tf.nn.softplus(out[:, 2]) + SIGMA_FLOOR, SIGMA_LIMIT)
    return mu, sigma


def expectations(raw: Any, architecture: Architecture, value_scale: Any) -> Any:
    """What each head predicts, float32[n, H]: a probability, or E[value] = p exp(m + s mu + (s sigma)^2 / 2)."""
    columns = []
    for h, head in enumerate(architecture.heads):
        out = raw[:, architecture.columns(h)]
        chance = tf.sigmoid(out[:, 0])
        if head.kind == "value":
            mu, sigma = log_normal(out)
            m, s = value_scale[h, 0], value_scale[h, 1]
            chance = chance * tf.exp(m + s * mu + 0.5 * tf.square(s * sigma))
        columns.append(chance)
    return tf.stack(columns, axis=1)


def initial_bias(architecture: Architecture, base_rates: Iterable[float]) -> np.ndarray:
    """The output bias, float32[W], at which an untrained network predicts each head's base rate.

    Args:
        base_rates: the weighted share of positive rows of each head.
    """
    bias = np.zeros(architecture.width, dtype=np.float32)
    for h, (head, rate) in enumerate(zip(architecture.heads, base_rates, strict=True)):
        columns = bias[architecture.columns(h)]
        rate = min(max(rate, 1e-6), 1 - 1e-6)
        columns[0] = np.log(rate / (1 - rate))
        if head.kind == "value":
            columns[2] = np.log(np.expm1(1.0 - SIGMA_FLOOR))  # sigma 1, in standardised logs
    return bias
