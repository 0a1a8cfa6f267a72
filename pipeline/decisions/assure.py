"""Engagement Assurance: who should not get the next message.

The rule, for each subscriber (or planned send), from the probabilities of what one send leads to:

    hold  when  p[hold_when] * cost  >  sum of p[x] * reward[x]

strictly, so a tie is sent. A share ``explore`` of those the rule would hold is sent all the same, drawn by a hash and
not by a random generator, so that the model keeps seeing what happens to them and the list is the same on every rerun.

What cannot be scored has a state of its own. In order of precedence:

    action    reason             when
    hold      suppressed         unsubscribed, complained or hard-bounced since the last subscribe, or on the given list
    unscored  too_new            fewer events of history than ``minimum_events``
    unscored  no_model           not one head of the rule has a model
    unscored  no_score           a probability the rule needs is NaN or infinite
    hold      <hold_when>_risk   the expected loss exceeds the expected gain
    explore   explore            the same, but in the share sent all the same
    send      no_model           the head of ``hold_when`` has no model: nobody is held without evidence
    send      ok                 the expected gain covers the expected loss

A missing head counts nothing on its side of the rule. ``propensity`` is the probability of the action taken under
this policy: ``explore`` for the explored, ``1 - explore`` for those held by the rule, 1 for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.backend import Array, backend_of
from pipeline.errors import ModelError
from pipeline.options import Decide

ACTIONS = ("send", "hold", "explore", "unscored")
SEND, HOLD, EXPLORE, UNSCORED = range(4)

# The reason "risk" is written with the outcome's own name: see Rule.reason_names.
REASONS = ("ok", "risk", "explore", "suppressed", "too_new", "no_score", "no_model")
OK, RISK, EXPLORED, SUPPRESSED, TOO_NEW, NO_SCORE, NO_MODEL = range(7)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Rule:
    """The cost and reward of one send's outcomes.

    ``cost``: of one ``hold_when`` outcome, in units of reward. ``reward``: of one outcome (or one unit of a sum).
    """

    hold_when: str | None
    cost: float
    reward: Mapping[str, float]
    explore: float = 0.0
    minimum_events: int = 0
    waves: int = 1

    @classmethod
    def from_config(cls, decide: Decide) -> Rule:
        return cls(
            decide.hold_when,
            decide.cost,
            dict(decide.reward),
            decide.explore,
            decide.minimum_events,
            decide.waves,
        )

    @property
    def heads(self) -> tuple[str, ...]:
        """The outcomes whose probabilities the rule needs."""
        return tuple(dict.fromkeys([*([self.hold_when] if self.hold_when else []), *self.reward]))

    @property
    def reason_names(self) -> tuple[str, ...]:
        """REASONS as they are written, the risk with its outcome's name: ``unsubscribe_risk``."""
        return tuple(f"{self.hold_when}_risk" if r == "risk" else r for r in REASONS)


@dataclass
class Assurance:
    """What the rule says of n rows, in their order.

    ``action``: int8[n], position in ACTIONS; ``reason``: int8[n], position in REASONS; ``propensity``: float64[n];
    ``loss`` and ``gain``: float64[n], expected, in units of reward, NaN where unscored for want of a probability;
    ``missing``: heads of the rule that had no model.
    """

    action: Array
    reason: Array
    propensity: Array
    loss: Array
    gain: Array
    missing: tuple[str, ...] = field(default=())

    @property
    def net(self) -> Array:
        """Expected value of sending, float64[n], in units of reward."""
        return self.gain - self.loss


def _mix(z: Any) -> Any:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on uint64 arrays, whose products wrap."""
    u = z.dtype.type
    z = (z ^ (z >> u(30))) * u(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> u(27))) * u(0x94D049BB133111EB)
    return z ^ (z >> u(31))


def hashed_uniform(keys: Array, *salts: Array | int) -> Array:
    """A number in [0, 1) for each row, a pure function of its key and the salts.

    Args:
        keys: int64[n].
        salts: each an int or int64[n], e.g. the decision time in microseconds: a new day draws anew.
    Returns:
        float64[n], multiples of 2^-53; the same on both backends.
    """
    xp = backend_of(keys).xp
    golden = xp.uint64(_GOLDEN)
    z = _mix(xp.ascontiguousarray(keys).astype(xp.int64).view(xp.uint64) + golden)
    for salt in salts:
        if isinstance(salt, int):
            z = _mix((z ^ xp.uint64(salt & _MASK)) + golden)
        else:
            z = _mix((z ^ xp.ascontiguousarray(salt).astype(xp.int64).view(xp.uint64)) + golden)
    return (z >> xp.uint64(11)).astype(xp.float64) * 2.0**-53


def expected(p: Mapping[str, Array], rule: Rule, like: Array) -> tuple[Array, Array]:
    """Expected loss and gain of one send: float64[n] each, in units of reward. A missing head adds nothing."""
    xp = backend_of(like).xp
    loss = xp.zeros(like.shape[0], dtype=xp.float64)
    gain = xp.zeros(like.shape[0], dtype=xp.float64)
    if rule.hold_when is not None and rule.hold_when in p:
        loss = p[rule.hold_when].astype(xp.float64) * rule.cost
    for name, reward in rule.reward.items():
        if name in p:
            gain = gain + p[name].astype(xp.float64) * reward
    return loss, gain


def assure(p: Mapping[str, Array], rule: Rule, *, draw: Array, events: Array, suppressed: Array) -> Assurance:
    """Apply the rule to n rows.

    Args:
        p: outcome -> float[n]: its probability after this send, or for a sum its expected amount; heads without a
            model are left out.
        draw: float64[n] in [0, 1), from :func:`hashed_uniform`; below ``rule.explore`` a would-be held row is sent.
        events: int[n], events of the subscriber's history before the decision.
        suppressed: bool[n].
    Raises:
        ModelError: a probability of ``hold_when`` outside [0, 1].
    """
    backend = backend_of(draw)
    xp = backend.xp
    n = draw.shape[0]
    missing = tuple(name for name in rule.heads if name not in p)
    if rule.hold_when is not None and rule.hold_when in p:
        head = p[rule.hold_when]
        bad = xp.isfinite(head) & ((head < 0) | (head > 1))
        if bool(bad.any()):
            where = int(xp.argmax(bad))
            raise ModelError(
                f"p_{rule.hold_when} is {float(head[where]):.6g} in row {where} of {n}: a probability between 0 and 1 "
                f"was expected. Train {rule.hold_when!r} as an outcome of events, not as a sum"
            )
    loss, gain = expected(p, rule, draw)
    scored = xp.isfinite(loss) & xp.isfinite(gain)
    wanted = scored & (loss > gain)
    explored = wanted & (draw < rule.explore)

    action = xp.where(wanted, xp.where(explored, EXPLORE, HOLD), SEND)
    fine = NO_MODEL if rule.hold_when is not None and rule.hold_when not in p else OK
    reason = xp.where(wanted, xp.where(explored, EXPLORED, RISK), fine)
    propensity = xp.where(wanted, xp.where(explored, rule.explore, 1.0 - rule.explore), 1.0)

    # From the weakest to the strongest, so that the strongest is written last.
    unscored = [(~scored, NO_SCORE)]
    if rule.heads and len(missing) == len(rule.heads):
        unscored.append((xp.ones(n, dtype=bool), NO_MODEL))
    unscored.append((events < rule.minimum_events, TOO_NEW))
    for rows, why in unscored:
        action = xp.where(rows, UNSCORED, action)
        reason = xp.where(rows, why, reason)
        propensity = xp.where(rows, 1.0, propensity)
    action = xp.where(suppressed, HOLD, action)
    reason = xp.where(suppressed, SUPPRESSED, reason)
    propensity = xp.where(suppressed, 1.0, propensity)
    return Assurance(action.astype(xp.int8), reason.astype(xp.int8), propensity, loss, gain, missing)


def explain(reason: str, rule: Rule, loss: float | None = None, gain: float | None = None) -> str:
    """The reason of one row in words, with its numbers where they are known."""
    if reason == f"{rule.hold_when}_risk":
        if loss is None or gain is None:
            return "the expected loss exceeds the expected gain"
        return f"expected loss {loss:.2g} exceeds expected gain {gain:.2g}"
    return {
        "ok": "the expected gain covers the expected loss" if rule.hold_when else "ranked by expected gain",
        "explore": "the rule would hold; sent all the same, so that the model keeps learning",
        "suppressed": "unsubscribed, complained, bounced for good, or on the suppression list",
        "too_new": f"fewer than {rule.minimum_events} events of history",
        "no_score": "the model gave no number",
        "no_model": "no model: too few examples to learn from, or it was refused",
    }.get(reason, reason)
