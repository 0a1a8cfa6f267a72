"""Random numbers as a pure function of what they are for.

A draw is a hash of (seed, client, subscriber, day, purpose), not the next number of a stream. So the simulated log does
not depend on the order, the partitioning or the number of threads in which it is made; nothing random has to be saved
to continue a history; and two policies compared on one history share every draw that neither of them changes.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
doi:10.1145/2660193.2660195; constants of Stafford's mix 13), a bijection of 64 bits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def mix(keys: Keys) -> Keys:
    """SplitMix64's finaliser: uint64[n] -> uint64[n], a bijection; allocates its result."""
    x = keys ^ (keys >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def scalar_key(*parts: int) -> int:
    """One 64-bit key from integers (seed, client, ...), order-sensitive."""
    key = 0
    for part in parts:
        key = int(mix(np.array([(key + _GOLDEN * (1 + (part & _WORD))) & _WORD], dtype=np.uint64))[0])
    return key


def subkeys(key: int, numbers: NDArray[np.int64]) -> Keys:
    """The key of each of ``numbers`` (int64[n], for example subscribers) below ``key``: uint64[n]."""
    x = numbers.astype(np.uint64)
    x *= np.uint64(_GOLDEN)
    x += np.uint64(key)
    return mix(x)


def at(keys: Keys, number: int) -> Keys:
    """The key of one number (for example a day) below each of ``keys``: uint64[n]."""
    return mix(keys ^ np.uint64(scalar_key(number)))


def uniform(keys: Keys, purpose: int) -> Floats:
    """One draw from [0, 1) for each key, float64[n] with 53 random bits; ``purpose`` numbers independent draws."""
    x = mix(keys + np.uint64((_GOLDEN * (purpose + 1)) & _WORD))
    x >>= np.uint64(11)
    u = x.astype(np.float64)
    u *= 2.0**-53
    return u


def normal(keys: Keys, purpose: int) -> Floats:
    """One standard normal draw for each key, float64[n] (Box and Muller 1958); uses purposes p and p + 1."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(keys, purpose)))
    return np.asarray(radius * np.cos(2.0 * math.pi * uniform(keys, purpose + 1)))


def delay(u: Floats, median: float, shape: float, limit: float) -> NDArray[np.int64]:
    """Log-logistic delays cut off (renormalised, not clipped) at a limit.

    Args:
        u: float64[n] in [0, 1), consumed.
        median: of the distribution before the cut, seconds.
        shape: its exponent; about 1 has the heavy tail of human reaction times.
        limit: seconds; every delay is below it, so that a horizon contains all of it.
    Returns:
        int64[n], microseconds, >= 1.
    """
    u = u * (1.0 / (1.0 + (median / limit) ** shape))
    seconds = median * (u / (1.0 - u)) ** (1.0 / shape)
    return np.maximum((seconds * 1e6).astype(np.int64), 1)
