"""The main job, end to end, on a small simulated log, as a user runs it: first in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from pipeline import extensions
from pipeline.run import main

SMALL = [
    "name=small",
    "simulate.events=40000",
    "simulate.days=100",
    "model.epochs=3",
    "model.minimum_positives=5",
    "model.minimum_positives_own=0",
    "gate.minimum_positives=5",
    "gate.calibration=[0.2, 5]",
    "windows=[7d,30d]",
]


def pipeline_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.run", *arguments, f"runs={folder}", "backend=cpu"]
    # A test before this one may have imported TensorFlow here, which sets its log level: a user's shell has none.
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def run_here(folder: Path, *arguments: str) -> int:
    """The same without a process of its own, which takes seconds to load TensorFlow."""
    return main([*arguments, f"runs={folder}", "backend=cpu"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs")
    done = pipeline_run(folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_stage_leaves_what_it_promises(finished: tuple[Path, str]) -> None:
    folder, said = finished
    run = folder / "small"
    metrics = json.loads((run / "metrics.json").read_text())
    events = metrics["events"]
    assert events["in"] == events["kept"] + events["duplicates"] + events["rejected"]
    raw = duckdb.sql(f"select count(*) from '{run}/raw/events/*/*.parquet'").arrow().read_all().to_pydict()
    assert [events["in"]] == next(iter(raw.values()))
    assert set(metrics["stages"]) == {"simulate", "ingest", "audit", "rollup", "train", "decide", "report"}
    for stage in metrics["stages"].values():
        assert set(stage) >= {"seconds", "rows", "rows_per_second", "peak_rss_bytes"}
    for client in ("acme", "globex"):
        for outcome in ("unsubscribe", "click", "open"):
            assert metrics["models"][client][outcome]["rows"] > 0
        click = metrics["models"][client]["click"]
        assert 0.5 < click["roc_auc"] < click["truth"]["roc_auc"] + 0.1
        assert click["ideal"]["expected_log_loss"] < click["expected_log_loss"]
        assert click["truth"]["expected_pr_auc"] > click["ideal"]["expected_pr_auc"] > click["expected_pr_auc"]
        assert set(click["baselines"]) == {"base_rate", "logistic"}
    html = (run / "report.html").read_text()
    assert "acme" in html
    assert 'src="http' not in html
    assert "backend   pandas" in said
    assert "rows in" in said


def test_decisions_hold_no_duplicates_and_all_active_subscribers(finished: tuple[Path, str]) -> None:
    run = finished[0] / "small"
    files = f"'{run}/decisions/**/*.parquet'"
    rows = duckdb.sql(
        f"select count(*) n, count(distinct (client, subscriber)) d from read_parquet({files})"
    ).to_arrow_table()
    counted = rows.to_pylist()[0]
    assert counted["n"] == counted["d"] > 0
    actions = duckdb.sql(f"select distinct action from read_parquet({files})").to_arrow_table().to_pylist()
    assert {a["action"] for a in actions} <= {"send", "hold", "explore", "unscored"}


def test_finished_stages_are_not_redone(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    versions = sorted((folder / "small" / "models" / "acme").iterdir())
    again = pipeline_run(folder, *SMALL)
    assert again.returncode == 0, again.stderr
    for stage in ("rollup", "train", "decide"):
        line = next(text for text in again.stdout.splitlines() if text.startswith(stage))
        assert "unchanged, reused" in line
    assert "nothing new" in again.stdout
    assert sorted((folder / "small" / "models" / "acme").iterdir()) == versions
    metrics = json.loads((folder / "small" / "metrics.json").read_text())
    assert metrics["stages"]["ingest"]["rows"] == metrics["events"]["in"]


def test_plan_reads_no_data_and_writes_nothing(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = sorted(p for p in folder.rglob("*"))
    planned = pipeline_run(folder, "plan", *SMALL)
    assert planned.returncode == 0, planned.stderr
    assert "partitions" in planned.stdout
    assert "0 new files" in planned.stdout  # all of them are in the store
    assert "simulate " not in planned.stdout
    assert sorted(p for p in folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source={path: RAW, columns: {subscriber: user, ts: event_time, event: event_name}}"], "'user_id'"),
        (["source={path: /nowhere, columns: {subscriber: u, ts: t, event: e}}"], "/nowhere"),
        (["at={event: sent}"], "did you mean 'send'"),
        (["as_of=2020-01-01"], "as_of (2020-01-01T00:00:00.000000 UTC) span 0.0 days"),
        (["cluster=tcp://127.0.0.1:1"], "127.0.0.1:1"),
        (["decide.suppressed=/nowhere.csv"], "/nowhere.csv"),
    ],
)
def test_wrong_input_gets_one_message_and_status_2(
    finished: tuple[Path, str], overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    raw = str(folder / "small" / "raw" / "events")
    given = [text.replace("RAW", raw) for text in overrides]
    name = "name=other" if any("source" in text for text in given) else "name=small"
    assert main(["decide", *SMALL, name, *given, f"runs={folder}", "backend=cpu"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "outcomes.buy={events: [purchase], within: 3d}",
            "outcomes.buy: the log has no 'purchase' events; known: 'click', ",
        ),
        ("decide.plan=/nowhere.csv", "decide.plan: there is no file '/nowhere.csv'"),
        ("decide.suppressed=/nowhere.csv", "decide.suppressed: there is no file '/nowhere.csv'"),
        ("clients.acne.timezone=Europe/Berlin", "clients.acne: the log has no client 'acne'; did you mean 'acme'?"),
        ("as_of=2027-05-01", "as_of 2027-05-01 00:00 UTC is later than the log, which ends at 2026-08-08"),
    ],
)
def test_what_does_not_fit_the_log(
    finished: tuple[Path, str], option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, option, f"runs={finished[0]}", "backend=cpu"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_command_points_at_what_it_made(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, said = finished
    assert f"{folder}/small/report.html" in said
    assert run_here(folder, "ingest", *SMALL) == 0
    ingested = capsys.readouterr().out
    assert f"{folder}/small/metrics.json" in ingested
    assert "report.html" not in ingested


def test_another_rule_is_asked_anew_and_needs_no_training(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(finished[0], "decide", *SMALL, "decide.cost=1000") == 0
    stages = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "unchanged, reused" in stages["train"]
    assert "reused" not in stages["decide"]


def test_what_was_deleted_or_damaged_is_made_anew(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    run = folder / "small"
    shutil.rmtree(run / "rollups")
    version = (run / "models" / "acme" / "current").read_text().strip()
    with (run / "models" / "acme" / version / "weights.npz").open("ab") as weights:
        weights.write(b"x")
    assert run_here(folder, "train", *SMALL) == 0
    said = capsys.readouterr().out
    for stage in ("rollup", "train"):
        assert f"{stage:<9} what it left is gone or damaged, and is made anew\n" in said
    assert (run / "rollups" / "_delta_log").is_dir()
    assert (run / "models" / "acme" / "current").read_text().strip() != version


def test_features_are_described(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """What a configuration would give is what training gave, in a table and in JSON."""
    folder, _ = finished
    command = ["describe", f"runs={folder}", "backend=cpu", *SMALL]
    assert main([*command, "--json", "--model", "current"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == trained
    assert set(trained) == {"acme", "globex"}
    version = (folder / "small" / "models" / "acme" / "current").read_text().strip()
    assert trained["acme"] == json.loads((folder / "small" / "models" / "acme" / version / "spec.json").read_text())
    assert main([*command, "--client", "acme", "sequences.length=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"acme: {len(trained['acme']['features'])} features, sequences of 5"
    assert lines[2].split() == ["name", "definition", "dtype", "unit", "window"]
    rows = {line.split("  ")[0]: line for line in lines[4:]}
    for feature in trained["acme"]["features"]:
        assert feature["definition"][:40] in rows[feature["name"]]
    assert rows["open_7d"].split()[-3:] == ["float32", "events", "7d"]
    assert "float32 x 5" in rows["sequence days"]
    assert main([*command, "--model", "20260101T000000Z-0000000000000000"]) == 2
    assert "there is no model version" in capsys.readouterr().err
    assert main([*command, "--client", "amce"]) == 2
    assert "did you mean 'acme'?" in capsys.readouterr().err


def test_describe_into_a_closed_pipe_is_quiet(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    command = f"{sys.executable} -m pipeline.run describe --json runs={folder} name=small | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


OWN = """
import pipeline

@pipeline.feature(windows=["30d"], how="mean", columns=[])
def hour_of_opens(events):
    return events.ts.dt.hour.where(events.event == "open", 0.0)
"""


def test_a_feature_of_one_s_own_is_learned_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "_features", {})  # of this test alone
    mine = tmp_path / "mine.py"
    mine.write_text(OWN)
    asked = [*SMALL, "name=own", "simulate.clients=1", f"extensions={mine}", "features.groups=[counts, tenure]"]

    def train() -> tuple[int, str, str]:
        status = run_here(tmp_path, "train", *asked, "context.windows=[]", "model.epochs=1")
        said = capsys.readouterr()
        line = [text for text in said.out.splitlines() if text.startswith("train  ")]
        return status, line[-1] if line else "", said.err

    def spec() -> dict[str, dict[str, str]]:
        models = tmp_path / "own" / "models" / "acme"
        path = models / (models / "current").read_text().strip() / "spec.json"
        return {f["name"]: f for f in json.loads(path.read_text())["features"]}

    status, _, complaint = train()
    assert status == 0, complaint
    first = spec()["hour_of_opens_30d"]
    assert first["definition"].startswith("the mean over the events in [at - 30d, at) of: hour of opens")
    mine.write_text(OWN.replace("0.0", "-1.0"))
    assert "reused" not in train()[1]
    assert spec()["hour_of_opens_30d"]["source"] != first["source"]
    mine.write_text(OWN.replace("dt.hour", "dt.hour.shift(-1)"))
    status, _, complaint = train()
    assert status == 2
    assert complaint.startswith(f"error: feature 'hour_of_opens' ({mine}, line 4) ")
    assert "Traceback" not in complaint
