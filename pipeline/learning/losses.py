"""What a network's raw outputs mean: the losses that teach them, and the predictions they stand for.

A binary head has one raw output, its logit; a value head three: the logit of "is positive", and mu and sigma of the
standardised logarithm of a positive value (zero-inflated log-normal).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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


def losses(raw: Any, target: Any, architecture: Architecture, gamma: float = 0.0) -> Any:
    """Each row's loss on each head, float32[n, H], in nats.

    ``gamma`` above 0 gives binary heads the focal loss (Lin et al. 2017): times (1 - p of what happened)^gamma.

    Binary: log loss. Value: zero-inflated log-normal (Wang, Liu and Miao 2019, arXiv 1912.07753), without its constant
    terms: log loss of "is positive", plus log(sigma) + ((log v - mu) / sigma)^2 / 2 where it is.
    """
    if all(head.kind == "binary" for head in architecture.heads):
        return focal(tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=raw), gamma)
    columns = []
    for h, head in enumerate(architecture.heads):
        out, t = raw[:, architecture.columns(h)], target[:, h]
        if head.kind == "binary":
            columns.append(focal(tf.nn.sigmoid_cross_entropy_with_logits(labels=t, logits=out[:, 0]), gamma))
            continue
        positive = tf.cast(t > ABSENT / 2, tf.float32)
        mu, sigma = log_normal(out)
        error = (tf.where(positive > 0, t, mu) - mu) / sigma
        zero = tf.nn.sigmoid_cross_entropy_with_logits(labels=positive, logits=out[:, 0])
        columns.append(zero + positive * (tf.math.log(sigma) + 0.5 * error * error))
    return tf.stack(columns, axis=1)


def focal(log_loss: Any, gamma: float) -> Any:
    """The focal loss of rows with this log loss, which is -log of the probability of what happened."""
    return log_loss * tf.maximum(-tf.math.expm1(-log_loss), 1e-7) ** gamma if gamma else log_loss


def corrected(raw: Any, architecture: Architecture, positive_weights: Sequence[float], gammas: Sequence[float]) -> Any:
    """Raw outputs, float32[n, W], whose logits are the population's whatever the loss did: exact at its minimum.

    Positive rows that count c times multiply the odds by c (Elkan 2001): log c is taken off. What minimises the focal
    loss is no probability, but a function of it that can be inverted, :func:`from_focal`. Both keep the order of rows.

    Args:
        positive_weights, gammas: of each head; 1 and 0 leave it as it is.
    """
    if all(c == 1 for c in positive_weights) and not any(gammas):
        return raw
    columns = []
    for h, (c, gamma) in enumerate(zip(positive_weights, gammas, strict=True)):
        out = raw[:, architecture.columns(h)]
        logit = (from_focal(out[:, :1], gamma) if gamma else out[:, :1]) - math.log(c)
        columns += [logit, out[:, 1:]]
    return tf.concat(columns, axis=1)


def from_focal(z: Any, gamma: float) -> Any:
    """The logit of the true probability where z minimises the expected focal loss (Charoenphakdee et al. 2021).

    Setting its derivative to zero gives odds A(1 - q) / A(q) for q = sigmoid(z), A(q) = (1 - q)^gamma / q -
    gamma (1 - q)^(gamma - 1) log q; written so that no term overflows.
    """
    z = tf.clip_by_value(z, -30.0, 30.0)
    up, down = tf.nn.softplus(z) * tf.exp(-z), tf.nn.softplus(-z) * tf.exp(z)
    return (gamma + 1) * z + tf.math.log1p(gamma * up) - tf.math.log1p(gamma * down)


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
