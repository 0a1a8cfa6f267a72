from __future__ import annotations

import io

import pytest

from pipeline.progress import Progress


class _Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr("pipeline.progress.time", clock)
    return clock


def test_rate_and_time_left(clock: _Clock) -> None:
    out = io.StringIO()
    with Progress("ingest", total=4_000_000, stream=out) as progress:
        clock.now += 5
        progress.advance(500_000)
        assert out.getvalue() == ""  # a plain stream hears of it every ten seconds at most
        clock.now += 6
        progress.advance(600_000, note="day 2")
    assert out.getvalue() == "ingest: 1.1M of 4.0M rows (28%), 100.0k rows/s, 29s left  day 2\n"


def test_without_a_total(clock: _Clock) -> None:
    progress = Progress("simulate", unit="events", stream=io.StringIO())
    clock.now += 2
    progress.advance(1500)
    assert progress.line() == "simulate: 1.5k events, 750 events/s"


def test_what_came_before_is_no_part_of_the_rate(clock: _Clock) -> None:
    progress = Progress("ingest", 4_000, stream=io.StringIO())
    clock.now += 15
    progress.restart()
    clock.now += 2
    progress.advance(1_000)
    assert progress.line() == "ingest: 1.0k of 4.0k rows (25%), 500 rows/s, 6s left"
