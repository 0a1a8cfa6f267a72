"""The rule against a plain loop, and its states one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.decisions import assure as a
from pipeline.errors import ModelError
from pipeline.options import Decide

RULE = a.Rule("unsubscribe", 20.0, {"click": 1.0, "open": 0.25}, explore=0.1, minimum_events=3)
M = (1 << 64) - 1


def splitmix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def oracle_draw(key: int, *salts: int) -> float:
    z = splitmix(((key & M) + 0x9E3779B97F4A7C15) & M)
    for salt in salts:
        z = splitmix(((z ^ (salt & M)) + 0x9E3779B97F4A7C15) & M)
    return (z >> 11) / 2**53


def oracle(p: dict[str, float], rule: a.Rule, draw: float, events: int, suppressed: bool) -> tuple[str, str, float]:
    if suppressed:
        return "hold", "suppressed", 1.0
    if events < rule.minimum_events:
        return "unscored", "too_new", 1.0
    if not all(math.isfinite(v) for v in p.values()):
        return "unscored", "no_score", 1.0
    if p["unsubscribe"] * rule.cost > sum(p[x] * w for x, w in rule.reward.items()):
        if draw < rule.explore:
            return "explore", "explore", rule.explore
        return "hold", "unsubscribe_risk", 1 - rule.explore
    return "send", "ok", 1.0


def decide(backend: Backend, p: dict[str, list[float]], rule: a.Rule = RULE, **given: list[float]) -> a.Assurance:
    n = len(next(iter(p.values()))) if p else len(given["events"])
    return a.assure(
        {name: backend.asarray(values, dtype=np.float32) for name, values in p.items()},
        rule,
        draw=backend.asarray(given.get("draw", [0.5] * n), dtype=np.float64),
        events=backend.asarray(given.get("events", [10] * n), dtype=np.int64),
        suppressed=backend.asarray(given.get("suppressed", [0] * n), dtype=bool),
    )


def words(backend: Backend, result: a.Assurance, rule: a.Rule = RULE) -> list[tuple[str, str, float]]:
    columns = [backend.to_host(c).tolist() for c in (result.action, result.reason, result.propensity)]
    return [(a.ACTIONS[x], rule.reason_names[y], z) for x, y, z in zip(*columns, strict=True)]


def test_equals_the_loop(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    n = 3000
    p = {name: rng.beta(1, b, n).astype(np.float32) for name, b in (("unsubscribe", 60), ("click", 20), ("open", 5))}
    p["click"][rng.random(n) < 0.02] = np.nan
    keys = rng.integers(-(2**63), 2**63 - 1, n)
    at = rng.integers(0, 2**50, n)
    events, suppressed = rng.integers(0, 9, n), rng.random(n) < 0.1
    draw = a.hashed_uniform(backend.asarray(keys), 123456789, backend.asarray(at), -1)
    result = a.assure(
        {k: backend.asarray(v) for k, v in p.items()},
        RULE,
        draw=draw,
        events=backend.asarray(events),
        suppressed=backend.asarray(suppressed),
    )
    found = words(backend, result)
    draws = [oracle_draw(k, 123456789, t, -1) for k, t in zip(keys.tolist(), at.tolist(), strict=True)]
    assert backend.to_host(draw).tolist() == draws
    expected = [
        oracle({k: float(v[i]) for k, v in p.items()}, RULE, draws[i], int(events[i]), bool(suppressed[i]))
        for i in range(n)
    ]
    assert found == expected
    assert {reason for _, reason, _ in found} == {
        "ok", "unsubscribe_risk", "explore", "suppressed", "too_new", "no_score",
    }  # fmt: skip


def test_a_tie_is_sent(backend: Backend) -> None:
    rule = a.Rule("unsubscribe", 4.0, {"click": 1.0})
    result = decide(backend, {"unsubscribe": [0.125, 0.125, 0.0], "click": [0.5, 0.4375, 0.0]}, rule)
    assert words(backend, result, rule) == [
        ("send", "ok", 1.0),
        ("hold", "unsubscribe_risk", 1.0),
        ("send", "ok", 1.0),
    ]
    assert backend.to_host(result.net).tolist() == [0.0, -0.0625, 0.0]


def test_precedence(backend: Backend) -> None:
    p = {"unsubscribe": [math.nan] * 3, "click": [0.1] * 3, "open": [0.1] * 3}
    result = decide(backend, p, events=[0, 0, 5], suppressed=[1, 0, 0])
    assert [reason for _, reason, _ in words(backend, result)] == ["suppressed", "too_new", "no_score"]


def test_missing_heads(backend: Backend) -> None:
    # No model of the outcome to hold for: nobody is held.
    result = decide(backend, {"click": [0.1], "open": [0.1]})
    assert words(backend, result) == [("send", "no_model", 1.0)]
    assert result.missing == ("unsubscribe",)
    # No model of a reward: it adds nothing, and is named.
    result = decide(backend, {"unsubscribe": [0.01], "open": [0.9]})
    assert words(backend, result) == [("send", "ok", 1.0)]
    assert result.missing == ("click",)
    # No model at all.
    result = decide(backend, {}, events=[9, 0])
    assert [(x, y) for x, y, _ in words(backend, result)] == [("unscored", "no_model"), ("unscored", "too_new")]


def test_ranking_only(backend: Backend) -> None:
    rule = a.Rule.from_config(Decide(hold_when=None, reward={"redeem": 2.0}, minimum_events=0))
    result = decide(backend, {"redeem": [0.0, 1.0]}, rule)
    assert words(backend, result, rule) == [("send", "ok", 1.0)] * 2
    assert backend.to_host(result.net).tolist() == [0.0, 2.0]


def test_explore_shares(backend: Backend) -> None:
    keys = backend.asarray(np.arange(20_000))
    for share, low, high in ((0.0, 0, 0), (0.02, 340, 460), (1.0, 20_000, 20_000)):
        rule = a.Rule("unsubscribe", 20.0, {"click": 1.0}, explore=share)
        zeros = backend.asarray(np.zeros(20_000))
        result = a.assure(
            {"unsubscribe": zeros + 0.5, "click": zeros},
            rule,
            draw=a.hashed_uniform(keys, 1),
            events=keys,
            suppressed=zeros > 1,
        )
        assert low <= int((result.action == a.EXPLORE).sum()) <= high
    # Another day draws other subscribers.
    assert not bool((a.hashed_uniform(keys, 1) == a.hashed_uniform(keys, 2)).any())


def test_no_rows_and_no_probability(backend: Backend) -> None:
    assert words(backend, decide(backend, {"unsubscribe": [], "click": [], "open": []})) == []
    with pytest.raises(ModelError, match=r"p_unsubscribe is 1\.5 in row 1 of 2"):
        decide(backend, {"unsubscribe": [0.5, 1.5], "click": [0, 0]})


def test_words() -> None:
    assert a.explain("unsubscribe_risk", RULE, 0.31, 0.12) == "expected loss 0.31 exceeds expected gain 0.12"
    for reason in RULE.reason_names:
        assert a.explain(reason, RULE) != reason
