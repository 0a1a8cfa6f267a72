"""What the log shows of each send, against the simulator's own account."""

from __future__ import annotations

import numpy as np

from pipeline.events.dirt import RATES
from pipeline.events.rows import KIND
from pipeline.events.sightings import read_history
from tests.events.simulated import simulated

APPLE = 2


def test_what_the_log_shows_is_what_the_truth_says() -> None:
    exact = simulated(20_000, 60, 2, dict.fromkeys(RATES, 0.0))
    history = read_history(exact.world.clients[0], exact.log)
    apple = exact.log.provider[history.rows] == APPLE  # there a quick first open may be taken for a machine's
    for name in ("volume", "streak", "received"):
        same = getattr(history.sends, name) == exact.truth[name]
        assert same[~apple].all()
        assert same[apple].mean() > 0.98


def test_machines_are_told_from_people() -> None:
    """An open that no human made is not taken for one's, but rarely, and the other way round."""
    small = simulated(60_000, 100, 5)
    history = read_history(small.world.clients[0], small.log)
    send, log = history.sends, small.log
    message = {(w, c): i for i, (w, c) in enumerate(zip(log.subscriber[history.rows], send.campaign, strict=True))}
    really = np.zeros(len(send.ts), bool)
    opens = np.flatnonzero((log.kind == KIND["open"]) & small.human)
    really[[i for r in opens if (i := message.get((log.subscriber[r], log.campaign[r]))) is not None]] = True
    taken = send.opened != np.iinfo(np.int64).max
    assert (taken & ~really).sum() < 0.002 * really.sum()
    assert (~taken & really).sum() < 0.005 * really.sum()
    machine = np.flatnonzero((log.kind == KIND["open"]) & ~small.human)
    assert len(machine) > 0.02 * len(opens)
