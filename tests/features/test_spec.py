from __future__ import annotations

import json

import pytest

from pipeline.config import Config
from pipeline.errors import ConfigError, ModelError
from pipeline.features.spec import DAY, FeatureSpec

EMAIL = ["send", "open", "click", "delete", "soft_bounce", "unsubscribe"]


def test_names_definitions_and_units() -> None:
    spec = FeatureSpec.from_config(Config(), EMAIL)
    features = {f.name: f for f in spec.features}
    assert len(features) == len(spec)
    assert {"send_1d", "open_90d", "days_since_click", "open_rate_30d", "ignored_streak", "tenure"} <= set(features)
    assert features["open_30d"].definition == "open events in [at - 30d, at)"
    assert "(send - soft_bounce + 10)" not in features["open_rate_7d"].definition
    assert "((send - soft_bounce) + 10)" in features["open_rate_7d"].definition
    assert features["days_since_click"].unit == "days"
    assert all(f.definition and f.unit and f.dtype == "float32" for f in spec.features)


def test_json_round_trip() -> None:
    spec = FeatureSpec.from_config(Config(windows=["12h", "7d"]), EMAIL)
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["features"][0]["name"] == "send_12h"


def test_another_format_is_refused() -> None:
    values = FeatureSpec.counts(["send"], [DAY]).to_dict()
    with pytest.raises(ModelError, match="format 99"):
        FeatureSpec.from_dict({**values, "format": 99})


def test_absent_kinds_have_no_features_and_are_reported() -> None:
    spec = FeatureSpec.from_config(Config(), ["send", "open"])
    assert not [n for n in spec.names if "click" in n or "bounce" in n]
    match, values, lacking = spec.absent
    assert match == "match: the log has no campaigns (source.columns.campaign)"
    assert values == "values: the log has none (source.columns.value)"
    assert lacking.startswith("counts, recencies and rates of click, delete, complaint, ")
    assert lacking.endswith("hard_bounce: the log has none")
    assert spec.responses == ("open",)


def test_a_log_that_is_not_email() -> None:
    config = Config(
        at={"every": "7d"},
        outcomes={"spend": {"sum": "value", "of": "purchase", "within": "28d"}},
        decide={"hold_when": None, "reward": {}},
    )
    spec = FeatureSpec.from_config(config, ["visit", "purchase"])
    assert spec.kinds == ("purchase", "visit")
    assert "purchase_30d" in spec.names
    assert not [n for n in spec.names if "rate" in n or n == "ignored_streak"]
    lacking, match = spec.absent  # and not a word of opens and clicks
    assert match.startswith("match: the log has no campaigns")
    assert lacking.startswith("rates, ignored streak, volume, gaps and runs: the log has no exposure kind")


def test_an_outcome_of_one_s_own_is_a_response() -> None:
    config = Config(
        at={"event": "coupon"},
        outcomes={"redeem": {"events": "redemption", "within": "28d"}},
        decide={"hold_when": None, "reward": {}},
    )
    spec = FeatureSpec.from_config(config, ["coupon", "redemption", "purchase"])
    assert "redemption_rate_90d" in spec.names
    assert spec.responses == ("redemption",)


def test_the_exposure_must_be_in_the_log() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sent'"):
        FeatureSpec.from_config(Config(), ["sent", "open"])


def test_select_and_unknown_names() -> None:
    spec = FeatureSpec.from_config(Config(), EMAIL)
    assert spec.select(["tenure", "open_7d"]).names == ["tenure", "open_7d"]
    with pytest.raises(ConfigError, match="did you mean 'tenure'"):
        spec.index("tenur")
