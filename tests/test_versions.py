"""The command ``models``: what there is, in which state, and putting a version in use by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.features.spec import FeatureSpec
from pipeline.learning import registry
from pipeline.learning.models import Head
from pipeline.learning.train import train
from pipeline.options import Model
from pipeline.run import main
from tests.learning.data import planted

SPEC = FeatureSpec.counts(["send", "open", "click"], [1, 2])
BAD = {"accepted": False, "reasons": ["click: expected/observed 3.00, outside 0.80 to 1.25"]}


@pytest.fixture(scope="module")
def model() -> Any:
    heads = (Head("click"), Head("open"))
    return train(planted(PANDAS, 500).rows, None, heads, Model(hidden=[], epochs=1, batch_size=256))


@pytest.fixture
def run(tmp_path: Path, model: Any) -> dict[str, str]:
    """Four versions: retired, current, refused, and the pooled one, which serves another client."""

    def save(client: str | None, entropy: float, **options: Any) -> str:
        metrics = {"click": {"normalized_entropy": entropy}, "open": {}}
        return registry.save_version(models, client, model, SPEC, Config(), metrics, **options)

    models = tmp_path / "demo" / "models"
    made = {"retired": save("acme", 0.91), "current": save("acme", 0.92)}
    made["refused"] = save("acme", 1.5, facts={"gate": BAD}, activate=False)
    made["pooled"] = save(None, 0.95)
    registry.use(models, "tiny", f"@pooled/{made['pooled']}")
    return made


def command(tmp_path: Path, *arguments: str) -> int:
    return main(["models", *arguments, f"runs={tmp_path}"])


def test_versions_are_listed_with_their_state(
    run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "acme"
    found = {line.split()[0]: line for line in lines[1:] if line.startswith("  ")}
    assert found[run["retired"]].split()[1:] == ["retired", "click", "entropy", "0.910,", "open", "not", "measured"]
    assert found[run["current"]].split()[1] == "current"
    assert found[run["refused"]].split()[1] == "refused"
    assert found[run["refused"]].endswith("click: expected/observed 3.00, outside 0.80 to 1.25")
    assert f"tiny: served by @pooled/{run['pooled']}" in lines
    assert "all clients, pooled: serves 1 of the above" in lines
    assert command(tmp_path, "--client", "tiny") == 0
    assert "acme" not in capsys.readouterr().out


def test_a_refused_version_can_be_put_in_use_by_hand(
    run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "--client", "acme", "--use", run["refused"]) == 0
    said = capsys.readouterr().out
    assert f"acme: {run['refused']} is in use; before it {run['current']}" in said
    assert "warning   the gate refused it: click: expected/observed 3.00" in said
    assert registry.current(tmp_path / "demo" / "models", "acme") == run["refused"]
    assert command(tmp_path, "--client", "acme") == 0
    assert "current   click entropy 1.500, open not measured  by hand; the gate refused it" in capsys.readouterr().out
    assert command(tmp_path, "--client", "acme", "--use", f"@pooled/{run['pooled']}") == 0
    assert registry.load_current(tmp_path / "demo" / "models", "acme")[2]["client"] is None


def test_what_cannot_be_put_in_use(run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "demo" / "models" / "acme" / run["retired"] / "weights.npz"
    path.write_bytes(path.read_bytes() + b"x")
    for arguments, message in (
        (["--use", run["refused"]], "--use needs --client NAME"),
        (["--client", "acme", "--use", "20260101T000000Z-0000000000000000"], "there is no model version"),
        (["--client", "acme", "--use", "../tiny"], "is not the name of a model version"),
        (["--client", "acme", "--use", run["retired"]], "weights.npz was changed"),
        (["--client", "acne"], "did you mean 'acme'?"),
        (["name=other"], "there is no model in"),
    ):
        assert command(tmp_path, *arguments) == 2
        assert message in capsys.readouterr().err
    assert registry.current(tmp_path / "demo" / "models", "acme") == run["current"]
    assert command(tmp_path) == 0
    assert f"{run['retired']}  damaged" in capsys.readouterr().out


@pytest.mark.parametrize("card", [b"{", b'{"client": 3}', b'{"client": "tiny"}', b"[]", b"\xff"])
def test_a_damaged_card_is_named_beside_its_client(
    run: dict[str, str], card: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "demo" / "models"
    for version in registry.versions(models, "acme"):
        (models / "acme" / version / "card.json").write_bytes(card)
    assert command(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "acme"
    assert all("  damaged  " in line and "card.json was changed" in line for line in lines[1:4])
    assert main(["describe", "--model", "current", f"runs={tmp_path}"]) == 2
    assert "card.json was changed" in capsys.readouterr().err


@pytest.mark.parametrize("current", [b"../../etc", b"\xff", b""])
def test_a_damaged_current_is_mended_by_hand(
    run: dict[str, str], current: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "demo" / "models"
    (models / "acme" / "current").write_bytes(current)
    assert command(tmp_path, "--client", "acme", "--use", run["retired"]) == 0
    assert f"acme: {run['retired']} is in use; before it damaged: " in capsys.readouterr().out
    assert registry.current(models, "acme") == run["retired"]


def test_the_features_of_each_clients_model_are_described(
    run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one that the pooled model serves they are that model's, by the name that ``models`` lists too."""

    def described(*arguments: str) -> int:
        return main(["describe", "--json", *arguments, f"runs={tmp_path}"])

    features = json.loads(SPEC.to_json())
    assert described("--model", "current") == 0
    assert json.loads(capsys.readouterr().out) == dict.fromkeys(("acme", "tiny"), features)
    assert described("--model", f"@pooled/{run['pooled']}", "--client", "tiny") == 0
    assert json.loads(capsys.readouterr().out) == {"tiny": features}
    assert main(["describe", "--model", "current", f"runs={tmp_path}/none"]) == 2
    assert capsys.readouterr().err.strip().endswith("run train first")
