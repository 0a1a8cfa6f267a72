"""Options of the benches: what is understood, and what is refused by name."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import pytest

from bench import argument, quality, run


def test_what_is_understood() -> None:
    assert argument.count("2000") == argument.count("2e3") == 2000
    assert argument.counts("1e6,10000000") == [10**6, 10**7]
    assert argument.numbers("0,1,3") == [0, 1, 3]
    assert argument.names("ours,polars") == ["ours", "polars"]
    assert argument.gigabytes("0.5") == 500_000_000


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "nan", "inf", "1e40"])
@pytest.mark.parametrize("kind", [argument.count, argument.counts, argument.number, argument.numbers])
def test_what_is_not(text: str, kind: Callable[[str], Any]) -> None:
    with pytest.raises(ArgumentTypeError, match=r"is no whole number from [01] on"):
        kind(text)


def test_none_is_no_count_and_no_memory() -> None:
    with pytest.raises(ArgumentTypeError, match="'0' is no whole number from 1 on"):
        argument.count("0")
    for text in ("0", "-1", "nan", "inf", "much"):
        with pytest.raises(ArgumentTypeError, match="no number of gigabytes above 0"):
            argument.gigabytes(text)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (lambda: quality.main(["--trials", "0"]), "--trials: '0' is no whole number from 1 on"),
        (lambda: run.main(["train", "--rows", "0"]), "--rows: '0' is no whole number from 1 on"),
        (lambda: run.main(["features", "--repeat", "-1"]), "--repeat: '-1' is no whole number from 1 on"),
    ],
)
def test_a_wrong_one_ends_with_one_message(
    command: Callable[[], int], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{message}, as 2000 or 2e3")
