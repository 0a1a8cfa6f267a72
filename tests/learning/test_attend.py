"""How a member's end is seen from the outside, whatever it is; no wait is without a limit."""

from __future__ import annotations

import subprocess
import sys
import time
from multiprocessing import Pipe
from typing import Any

import pytest

from pipeline.learning import attend as attending
from pipeline.learning.attend import Outcome, attend
from pipeline.learning.member import Place


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "MEMBER", "tests.learning.fake_member")
    monkeypatch.setattr(attending, "LISTEN", 0.05)


def ended(work: str, rank: int = 0, after: float = 3600) -> tuple[Outcome, list[Any]]:
    """How it ended, and what it told; it is stopped so many seconds after it told something."""
    told: list[Any] = []
    heard: list[float] = []

    def stop() -> bool:
        if told and not heard:
            heard.append(time.monotonic())
        return bool(heard) and time.monotonic() > heard[0] + after

    place = Place(rank, ("127.0.0.1:1", "127.0.0.1:2"), 2, rank, None)
    return attend(place, work.encode(), stop, lambda kind, what: told.append((kind, what))), told


def test_a_result_and_what_was_told_before() -> None:
    assert ended("works") == (Outcome(0, "result", {"rank": 0}), [("advance", (7, "epoch 1"))])


def test_the_others_stay_until_they_are_stopped() -> None:
    """The first member may still be fetching its part of the last sum from them."""
    assert ended("works", rank=1, after=0.5)[0] == Outcome(1, "stopped")


def test_an_error_for_the_user() -> None:
    assert ended("finds something")[0] == Outcome(0, "error", ("StoreError", "a data file is damaged"))


def test_one_that_ends_and_its_last_words() -> None:
    outcome, _ = ended("ends")
    assert (outcome.kind, outcome.value) == ("died", "ended with exit status 3; it said: out of luck")


def test_one_that_gives_no_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "SILENCE", 2.0)
    assert ended("hangs")[0] == Outcome(0, "silent", "gave no sign of life for 2 s")


def test_one_that_does_not_find_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "JOIN", 1.0)
    outcome = ended("finds no one")[0]
    assert (outcome.kind, outcome.value) == ("silent", "did not find the others at 127.0.0.1:1, 127.0.0.1:2")


def test_a_member_ends_with_its_starter() -> None:
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "pipeline.learning.member", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL) as process:
        theirs.close()
        assert ours.poll(60)  # it lives
        ours.close()
        assert process.wait(60) == 1
