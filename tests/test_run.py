from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import NoReturn

import pytest

from pipeline import invocation
from pipeline.run import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian': did you mean 'train'?"),
        (["--bakend", "gpu"], "unrecognized arguments: --bakend"),
        (["--config"], "--config: expected one argument"),
        (["--config", "/nowhere.yaml"], "cannot read the configuration file '/nowhere.yaml'"),
        (["train", "decide"], "'decide' is neither a command"),
        (["train", "--events", "5"], "the command simulate alone takes --events"),
        (["simulate"], "simulate needs --out DIR"),
        (["plan", "--model", "current"], "the command describe alone takes --model"),
        (["verify", "--dry-run"], "the command clean alone takes --dry-run"),
        (["clean", "--subscriber", "x"], "the command forget alone takes --subscriber"),
        (["forget"], "forget needs --subscriber ID or --subscribers FILE"),
        (["clean", "--older-than", "soon"], "--older-than: 'soon' is not a duration"),
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
    names = "plan simulate ingest rollup train decide report verify clean forget describe"
    for command in names.split():
        assert f"\n  {command} " in out


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, pipeline, pipeline.run; print(len([m for m in sys.modules if m.startswith(('numpy', 'pandas'))]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "0"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupt_ends_with_one_message(
    number: signal.Signals,
    status: int,
    wrapped: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as interrupt:
            if wrapped:  # as Python 3.11 does in the middle of some imports
                raise RuntimeError("Error calling __set_name__") from interrupt
            raise

    before = signal.getsignal(number)
    monkeypatch.setattr(invocation, "run", run)
    assert main([]) == status
    assert signal.getsignal(number) is before
    error = capsys.readouterr().err
    assert error == "\ninterrupted: finished stages are kept; the same command goes on from there\n"


def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(invocation, "run", run)
    with pytest.raises(RuntimeError, match="a bug"):
        main([])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "Error writing bytes to file"), "error: no space left on device: make room"),
        (OSError(errno.EFBIG, "Error writing bytes to file"), "error: file too large: make room"),
        (MemoryError(), "error: out of memory: use more memory, more partitions"),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/demo/decisions"),
            "error: [Errno 13] Permission denied: 'runs/demo/decisions': mend that and run again",
        ),
        (
            OSError("Generic LocalFileSystem error\n  \x1b[31m↳\x1b[0m Unable to walk dir"),
            "error: Generic LocalFileSystem error Unable to walk dir: mend that and run again",
        ),
    ],
)
def test_a_full_or_barred_machine_is_no_fault_of_the_program(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(invocation, "run", run)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith(message)
