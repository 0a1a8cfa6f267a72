"""A run directory as the stages leave it, made of plain random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import results
from pipeline.config import Config
from pipeline.decisions import assure as a
from pipeline.decisions.prioritize import prioritize
from pipeline.decisions.value import backtest, expected_effect
from pipeline.features import rollup as r
from pipeline.features import rollup_table

EVIL = "<script>alert('x')</script> & \"spring\" </style>"


KINDS = ("send", "open", "click", "delete", "hard_bounce", "unsubscribe", "complaint")
RETAIL = ("basket", "redeem", "coupon_sent", "basket", "basket", "redeem", "basket")


def event_log(
    n: int, kinds: tuple[str, ...] = KINDS, campaigns: int = 14, days: int = 60, seed: int = 0
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    campaign = rng.integers(0, campaigns, n)
    start = np.datetime64("2026-06-01", "us").astype(np.int64)
    spread = 86_400_000_000 * days / campaigns
    frame = pd.DataFrame(
        {
            "subscriber_key": np.sort(rng.integers(0, n // 20 + 1, n)),
            "ts": (start + campaign * spread + rng.exponential(spread / 3, n)).astype("int64").astype("datetime64[us]"),
            "event": pd.Categorical(rng.choice(kinds, n, p=[0.6, 0.15, 0.02, 0.22, 0.007, 0.0025, 0.0005])),
            "campaign": pd.Categorical([EVIL if c == 3 else f"{c:02d} weekly letter" for c in campaign]),
            "provider": pd.Categorical(rng.choice(["gmail", "outlook", "other"], n)),
        }
    )
    return frame.set_index("subscriber_key")


def decisions(client: str, n: int, config: Config, seed: int = 0) -> pd.DataFrame:
    """Rows of the decisions table."""
    rng = np.random.default_rng(seed)
    rule = a.Rule.from_config(config.decide)
    means = zip(rule.heads, (0.003, 0.03, 0.2), strict=False)
    p = {name: rng.beta(0.6, 0.6 / m, n).astype(np.float32) for name, m in means}
    keys = np.sort(rng.integers(-(2**62), 2**62, n))
    result = a.assure(
        p, rule, draw=a.hashed_uniform(keys, 7), events=rng.integers(0, 90, n), suppressed=rng.random(n) < 0.02
    )
    rank, wave = prioritize(result.net, result.action, keys, rule.waves)
    frame = pd.DataFrame({"client": client, "subscriber": [f"user-{k & 0xFFFFFF:06x}" for k in keys.tolist()]})
    frame["as_of"] = pd.Timestamp("2026-08-01")
    for name, values in p.items():
        frame[f"p_{name}"] = values
    frame["action"] = np.array(a.ACTIONS)[result.action]
    frame["reason"] = np.array(rule.reason_names)[result.reason]
    frame["propensity"] = result.propensity
    frame["rank"] = pd.Series(rank, dtype="Int64").where(rank > 0)
    frame["wave"] = pd.Series(wave, dtype="Int64").where(wave > 0)
    frame["model_version"] = "20260801-1"
    frame["date"] = "2026-08-01"
    return frame


def quality_metrics() -> dict[str, Any]:
    return {
        "events": {"in": 2_013_440, "kept": 1_998_201, "duplicates": 10_039, "rejected": 5_200},
        "rules": [
            {"name": "null_key", "action": "reject", "count": 3200, "examples": [{"user_id": None, "campaign": EVIL}]},
            {"name": "impossible_time", "action": "reject", "count": 2000, "share": 0.001, "examples": []},
            {"name": "machine_open", "action": "flag", "count": 91_000, "examples": [{"user_id": "u1", "gap_s": 0.4}],
             "trend": {"days": ["2026-07-30", "2026-07-31"], "values": [0.04, 0.05], "usual": None, "latest": 0.05}},
            {"name": "id_conflict", "action": "fail", "count": 0, "examples": []},
        ],
        "dirt": {
            "duplicate": {"rows": 10_050, "found": 10_039, "recall": 0.9989, "precision": 1.0, "rules": ["duplicate"]},
            "scanner": {"rows": 4000, "found": 3980, "recall": 0.995, "precision": None, "rules": ["scanner_click"]},
        },
    }  # fmt: skip


def head_metrics(rate: float, truth: bool) -> dict[str, Any]:
    bins = [
        {"expected": rate * x, "observed": rate * x * (1.1 - x / 40), "weight": 40_000}
        for x in np.geomspace(0.2, 4, 10)
    ]

    def scorer(lift: float) -> dict[str, Any]:
        budgets = [
            {"budget": b, "tpr": min(1, b * lift * 2), "fnr": 1 - min(1, b * lift * 2)}
            for b in (0.005, 0.01, 0.02, 0.05)
        ]
        soft = {"expected_pr_auc": rate * lift} if truth else {}
        return {**soft, "pr_auc": rate * lift, "roc_auc": 0.5 + lift / 15, "normalized_entropy": 1 - lift / 60,
                "expected_over_observed": 1.02, "budgets": budgets}  # fmt: skip

    found = {"rows": 400_000, "positives": int(400_000 * rate), "base_rate": rate, **scorer(3.1), "deciles": bins}
    found["reliability"] = [
        {
            "predicted": rate * x,
            "observed": rate * x * 1.1,
            "low": rate * x * 0.9,
            "high": rate * x * 1.4,
            "weight": 2e4,
        }
        for x in np.geomspace(0.2, 4, 20)
    ]
    found |= {"ece": rate / 10, "ece_noise": rate / 20, "top_decile_expected_over_observed": 0.93}
    found["intervals"] = {"roc_auc": [0.66, 0.75], "pr_auc": None, "top_decile_expected_over_observed": [0.871, 0.992]}
    found["baselines"] = {
        "base_rate": scorer(1.0) | {"roc_auc": 0.5, "normalized_entropy": 1.0},
        "logistic": scorer(2.8),
    }
    if truth:
        found["truth"], found["ideal"] = scorer(6.0), scorer(3.4)
    return found


def make_run(folder: Path, config: Config, clients: list[str], rows: int = 3000, truth: bool = True) -> dict[str, Any]:
    """Write ``config.yaml``, ``metrics.json`` and the two tables; returns the metrics."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump())
    rule = a.Rule.from_config(config.decide)
    rates = zip(config.outcomes, (0.003, 0.03, 0.2), strict=False)
    heads = {name: head_metrics(rate, truth) for name, rate in rates}
    metrics: dict[str, Any] = {
        **quality_metrics(),
        "stages": {
            "simulate": {"seconds": 4.1, "rows": 2_013_440, "rows_per_second": 491_000.0, "peak_rss_bytes": 610 << 20},
            "ingest": {"seconds": 9.2, "rows": 2_013_440, "rows_per_second": 218_000.0, "peak_rss_bytes": 1100 << 20},
            "train": {"seconds": 31.0, "rows": 1_200_000, "rows_per_second": 38_000.0, "peak_rss_bytes": 1900 << 20},
        },
        "models": dict.fromkeys(clients, heads),
        "decisions": {},
        "run": {"backend": "pandas: no CUDA device", "cluster": "threads: small log",
                "versions": {"eventgrain": "0.1.0", "pandas": "3.0.6"}},
    }  # fmt: skip
    for i, client in enumerate(clients):
        log = event_log(rows * 10, KINDS if config.at.event else RETAIL, seed=i)
        table = r.combine([r.partition_counts(log, "UTC", r.SPANS)], client, r.SPANS)
        rollup_table.write(table, str(folder / "rollups"), client)
        listed = decisions(client, rows, config, seed=i)
        results.replace(listed, str(folder / "decisions"), {"client": client, "date": "2026-08-01"})
        rng = np.random.default_rng(i)
        sums = [n for n, o in config.outcomes.items() if o.sum]
        effect = expected_effect(listed, rule, sums=sums)
        n = 40_000
        p = np.stack([rng.beta(0.6, b, n) for _, b in zip(rule.heads, (200, 20, 3), strict=False)], axis=1)
        y = (rng.random(p.shape) < p).astype(np.float32)
        test = backtest(p, y, np.ones_like(y), rule.heads, rule) if rule.hold_when else None
        metrics["decisions"][client] = {
            "as_of": "2026-08-01T00:00:00",
            "model_version": "20260801-1",
            **effect,
            "backtest": test,
        }
    (folder / "metrics.json").write_text(json.dumps(metrics, allow_nan=False))
    return metrics
