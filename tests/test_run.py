from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.run import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian': did you mean 'train'?"),
        (["--bakend", "gpu"], "unrecognized arguments: --bakend"),
        (["--config"], "--config: expected one argument"),
        (["--config", "/nowhere.yaml"], "cannot read the configuration file '/nowhere.yaml'"),
        (["train", "decide"], "'decide' is neither a command"),
        (["train", "--events", "5"], "--events belong to the command simulate"),
        (["simulate"], "simulate needs --out DIR"),
        (["simulate", "--out", "x", "--events", "many"], "'many' is not a number"),
        (["simulate", "--out", "x", "--events", "-5"], "--events"),
        (["simulate", "--out", "x", "--ids", "uuid"], "invalid choice: 'uuid'"),
        (["plan", "--backend", "tpu"], "backend: Input should be 'auto', 'cpu' or 'gpu'"),
        (["plan", "--as-of", "soon"], "as_of"),
        (["plan", "model.epoch=3"], "model.epoch: no such option"),
    ],
)
def test_wrong_options_get_one_message_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_help_is_light() -> None:
    code = (
        "import sys; from pipeline.run import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'dask', 'numba', 'tensorflow', 'deltalake', 'sklearn', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in out
    for command in ("plan", "simulate", "ingest", "rollup", "train", "decide", "report"):
        assert f"\n  {command} " in out


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, pipeline, pipeline.run; print(len([m for m in sys.modules if m.startswith(('numpy', 'pandas'))]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "0"
