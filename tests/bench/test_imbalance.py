from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import imbalance


def row(seed: int, way: str, auc: float | None, **more: float) -> dict[str, object]:
    return {"seed": seed, "way": way, "head": "click", "roc_auc": auc, "seconds": 1.0 + seed, **more}


def test_medians_are_over_the_seeds_that_have_a_number() -> None:
    rows = [row(1, "none", 0.6), row(2, "none", 0.8), row(3, "none", 0.7), row(1, "focal", None), row(2, "focal", 0.5)]
    found = imbalance.medians(rows)["click"]
    assert found["none"] == {"roc_auc": 0.7, "seconds": 3.0, "seeds": 3}
    assert found["focal"] == {"roc_auc": 0.5, "seconds": 2.5, "seeds": 2}


def test_the_gap_of_slices_is_over_seeds_whose_halves_have_changed_places() -> None:
    gaps = {(1, 0): 0.3, (1, 1): -0.1, (2, 0): 0.0, (2, 1): 0.4}
    slices = [{"seed": s, "half": k, "head": "click", "gap": [gap, 0, 0]} for (s, k), gap in gaps.items()]
    found = imbalance.summary(slices)["click"]
    assert found["gap"] == pytest.approx(0.15)
    assert found["standard_error"] == pytest.approx(0.05)  # of 0.1 and 0.2
    assert math.isinf(imbalance.summary(slices[:2])["click"]["standard_error"])


def test_the_table_leaves_blank_what_is_not_known() -> None:
    rows = [row(1, "none", 0.6, ece=0.001, ece_noise=0.002), row(1, "focal", None)]
    slices = [{"seed": 1, "half": 0, "head": "click", "gap": [0.001, 0, 0]}]
    lines = imbalance.table({"medians": imbalance.medians(rows), "slices": slices}).splitlines()
    assert lines[0].split()[:2] == ["click", "ROC-AUC"]
    assert lines[1].split() == ["none", "0.6000", "0.00100", "0.00200", "2.0"]
    assert lines[2].split() == ["focal", "2.0"]
    assert len(lines[1]) == len(lines[2])
    assert "log loss +0.001" in lines[-1]


def test_a_part_of_the_rows_is_not_measured_for_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "imbalance.json"
    asked = ["--events", "2e4", "--seeds", "1", "--data", str(tmp_path / "data"), "--json", str(out)]
    assert imbalance.main([*asked, "simulate.days=80", "simulate.clients=1", "model.chunk=1000"]) == 2
    assert "decision points are too many to have at once" in capsys.readouterr().err
    assert not out.exists()
