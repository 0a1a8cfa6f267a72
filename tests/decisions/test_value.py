"""The worth of a list against plain loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decisions import value as v
from pipeline.decisions.assure import Rule

RULE = Rule("unsubscribe", 20.0, {"click": 1.0, "open": 0.5})


def table(n: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    kinds = [("send", "ok"), ("hold", "unsubscribe_risk"), ("hold", "suppressed"), ("explore", "explore"),
             ("unscored", "too_new")]  # fmt: skip
    chosen = [kinds[i] for i in rng.choice(5, n, p=[0.7, 0.1, 0.05, 0.05, 0.1])]
    frame = pd.DataFrame(chosen, columns=["action", "reason"])
    for name, b in (("unsubscribe", 90), ("click", 30), ("open", 4)):
        frame[f"p_{name}"] = rng.beta(1, b, n).astype(np.float32)
    frame.loc[frame.action == "unscored", "p_click"] = np.nan
    sent = frame.action.isin(["send", "explore"])
    frame["wave"] = pd.Series(rng.integers(1, 5, n)).where(sent).astype("Int32")
    return frame


def test_expected_effect() -> None:
    frame = table()
    truth = {name: np.full(len(frame), 0.5) for name in ("unsubscribe", "click", "open")}
    found = v.expected_effect(frame, RULE, truth=truth)
    json.dumps(found)
    held = [r for r in frame.itertuples() if r.reason == "unsubscribe_risk"]
    could = [r for r in frame.itertuples() if r.reason in ("unsubscribe_risk", "ok", "explore")]
    avoided = sum(r.p_unsubscribe for r in held)
    clicks, opens = sum(r.p_click for r in held), sum(r.p_open for r in held)
    assert found["held"] == len(held)
    assert found["eligible"] == len(could)
    assert found["avoided"]["expected"] == pytest.approx(avoided)
    assert found["avoided"]["share"] == pytest.approx(avoided / sum(r.p_unsubscribe for r in could))
    assert found["given_up"]["click"]["expected"] == pytest.approx(clicks)
    assert found["net"]["expected"] == pytest.approx(20 * avoided - clicks - 0.5 * opens)
    variance = sum(
        400 * r.p_unsubscribe * (1 - r.p_unsubscribe) + r.p_click * (1 - r.p_click) + r.p_open * (1 - r.p_open) / 4
        for r in held
    )
    assert found["net"]["high"] - found["net"]["low"] == pytest.approx(2 * v.Z90 * math.sqrt(variance))
    assert found["truth"]["avoided"]["expected"] == pytest.approx(len(held) / 2)
    sent = frame[frame.action.isin(["send", "explore"])]
    assert found["first_wave"]["open"] == pytest.approx(sent.p_open[sent.wave == 1].sum() / sent.p_open.sum())
    assert sum(found["waves"]) == len(sent)
    assert found["actions"] == frame.action.value_counts().to_dict()


def test_ranking_only_and_sums() -> None:
    frame = table().rename(columns={"p_click": "p_spend"})
    frame["p_spend"] = frame["p_spend"] * 1000
    found = v.expected_effect(frame, Rule(None, 20.0, {"spend": 1.0}), sums=["spend"])
    assert found["avoided"] is None
    assert found["net"] is None
    assert found["held"] == 0
    found = v.expected_effect(frame, Rule("unsubscribe", 20.0, {"spend": 1.0}), sums=["spend"])
    assert "low" not in found["given_up"]["spend"]
    assert "low" not in found["net"]


def hold_out(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = np.stack([rng.beta(1, 60, n), rng.beta(1, 10, n), rng.beta(1, 3, n)], axis=1).astype(np.float32)
    y = (rng.random((n, 3)) < p).astype(np.float32)
    mask = (rng.random((n, 3)) < 0.95).astype(np.float32)
    return p, y, mask


HEADS = ["unsubscribe", "click", "open"]


def test_backtest_equals_the_loop() -> None:
    p, y, mask = hold_out()
    truth = {name: np.full(len(p), 0.25) for name in HEADS}
    found = v.backtest(p, y, mask, HEADS, RULE, truth=truth)
    assert found is not None
    json.dumps(found)
    rows = [i for i in range(len(p)) if mask[i].all()]
    held = [i for i in rows if float(p[i, 0]) * 20 > float(p[i, 1]) * 1.0 + float(p[i, 2]) * 0.5]
    assert found["rows"] == len(rows)
    assert found["held"] == len(held)
    assert found["caught"]["count"] == sum(y[i, 0] for i in held)
    assert found["caught"]["of"] == sum(y[i, 0] for i in rows)
    assert found["lost"]["click"]["count"] == sum(y[i, 1] for i in held)
    assert found["rate_held"] == pytest.approx(sum(y[i, 0] for i in held) / len(held))
    assert found["net"] == pytest.approx(sum(20 * y[i, 0] - y[i, 1] - 0.5 * y[i, 2] for i in held))
    assert found["truth"]["caught"]["share"] == pytest.approx(len(held) / len(rows))
    assert found["caught"]["low"] < found["caught"]["share"] < found["caught"]["high"]
    # Each point of the curve is the rule at that point's cost.
    for point in found["curve"][1:-1]:
        cost = point["cost"] * (1 + 1e-9)
        at = [i for i in rows if float(p[i, 0]) * cost > float(p[i, 1]) + 0.5 * float(p[i, 2])]
        assert len(at) == pytest.approx(point["held_share"] * len(rows), abs=1.5)
        assert point["caught_share"] == pytest.approx(sum(y[i, 0] for i in at) / found["caught"]["of"], abs=0.03)
    assert found["curve"][-1]["caught_share"] == 1.0


def test_backtest_without_what_it_needs() -> None:
    p, y, mask = hold_out(50)
    assert v.backtest(p, y, mask, HEADS, Rule(None, 1.0, {"click": 1.0})) is None
    assert v.backtest(p[:, 1:], y[:, 1:], mask[:, 1:], HEADS[1:], RULE) is None
    assert v.backtest(p, y, mask * 0, HEADS, RULE) is None
    unlearnt = p.copy()
    unlearnt[:, 0] = np.nan
    assert v.backtest(unlearnt, y, mask, HEADS, RULE) is None
    unlearnt = p.copy()
    unlearnt[:, 1] = np.nan  # a reward without a model adds nothing
    found = v.backtest(unlearnt, y, mask, HEADS, RULE)
    assert found is not None
    assert set(found["lost"]) == {"open"}


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson(count: int, more: int) -> None:
    interval = v.wilson(count, count + more)
    if count + more == 0:
        assert interval is None
        return
    assert interval is not None
    share, z, n = count / (count + more), v.Z90, count + more
    # Wilson's bounds are the shares q at which the observed share is z standard errors away.
    for q in interval:
        assert (share - q) ** 2 == pytest.approx(z * z * q * (1 - q) / n, abs=1e-9)
