"""The quality bench on a tiny log: its table, its JSON, and going on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import quality


def test_medians_over_seeds_of_means_over_clients() -> None:
    rows = [
        {"seed": s, "client": c, "model": m, "head": "a", "expected_pr_auc": v * f, "seconds": 2.0, "roc_auc": None}
        | {"intervals": {"expected_pr_auc": [v * f - 0.03, v * f + 0.03]}}
        | {"short_of_ideal": [v * f - v, v * f - v - 0.01, v * f - v + 0.01]}
        for s, v in ((1, 0.1), (2, 0.2), (3, 0.6))
        for c in ("x", "y")
        for m, f in (("dense", 0.5 if c == "x" else 0.7), ("ideal", 1.0))
    ]
    found = quality.medians(rows)["a"]
    assert found["dense"]["expected_pr_auc"] == pytest.approx(0.12)
    assert found["dense"]["of_ideal"] == pytest.approx(0.6)
    assert found["dense"]["of_ideal_half"] == pytest.approx(0.01 / 2**0.5 / 0.2)  # of the middle one
    assert found["dense"]["seconds"] == 4.0
    assert found["dense"]["expected_pr_auc_half"] == pytest.approx(0.03 / 2**0.5)  # of a mean of two independent ones
    assert "roc_auc" not in found["dense"]
    once = quality.medians([*rows, rows[0] | {"model": "boosting"}])["a"]["boosting"]  # of one seed alone
    assert once["of_ideal_half"] == pytest.approx(0.01 / 0.2)
    apart = [{k: v for k, v in r.items() if k != "short_of_ideal"} for r in rows]
    assert quality.medians(apart)["a"]["dense"].keys() == found["dense"].keys() - {"of_ideal_half"}
    lines = quality.table({"medians": {"a": found}}).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "ideal", "dense"]
    assert "60.0% ±3.5%" in lines[2]
    assert "0.12000 ±0.02121" in lines[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that ask for one small log, which is made once."""
    data = tmp_path_factory.mktemp("quality")
    return ["--events", "2e4", "--seeds", "1", "--clients", "1", "--data", str(data)]


def test_it_measures_prints_and_goes_on(small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quality.json"
    quick = [
        "model.epochs=1",
        "model.minimum_positives=1",
        "simulate.days=80",
        "split.validation=7d",
        "split.holdout=7d",
    ]
    asked = [*small, "--json", str(out), "--kinds", "dense,boosting,base_rate", "--trials", "1", *quick]
    assert quality.main(asked) == 0
    assert "seed 1: dense, boosting, base_rate\n" in capfd.readouterr().out
    assert quality.main(asked) == 0
    report = json.loads(out.read_text())
    models = {r["model"] for r in report["results"]}
    assert models == {"dense", "boosting", "base_rate", "truth", "ideal", "knowable"}
    by = {(r["model"], r["head"]): r for r in report["results"]}
    assert len(by) == len(report["results"])  # nothing twice
    for head in ("unsubscribe", "click", "open"):
        low, high = by["dense", head]["intervals"]["expected_pr_auc"]
        assert low < by["dense", head]["expected_pr_auc"] < high
        less, low, high = by["dense", head]["short_of_ideal"]
        assert low < less < high
        assert less == pytest.approx(
            by["dense", head]["expected_pr_auc"] - by["ideal", head]["expected_pr_auc"], rel=1e-6
        )
        assert by["knowable", head]["expected_pr_auc"] < by["ideal", head]["expected_pr_auc"] * 1.01
        assert by["truth", head]["expected_pr_auc"] > by["boosting", head]["expected_pr_auc"] * 0.9
    assert by["base_rate", "open"]["expected_roc_auc"] == 0.5
    assert by["boosting", "open"]["roc_auc"] > 0.6
    assert by["boosting", "open"]["settings"]["open"]["trees"] >= 1
    printed = capfd.readouterr().out
    assert "seed 1" not in printed  # it was there
    assert "of ideal" in printed


def test_a_part_of_the_rows_is_not_measured_for_all_of_them(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quality.json"
    with pytest.raises(SystemExit, match="seed 1 failed"):
        quality.main([*small, "--json", str(out), "--kinds", "base_rate", "simulate.days=80", "model.chunk=1000"])
    error = capfd.readouterr().err
    assert "decision points are too many to have at once" in error
    assert "Traceback" not in error
    assert not out.exists()


def test_unknown_kinds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(["--kinds", "denser"])
    assert "no such kind: denser" in capsys.readouterr().err
