"""What a simulated log shows of each send: for the ideal observer (observer.py).

Machines are told from people by the simulator's own habits, neither by the store's flags nor by a likelihood: clicks
within 2 s of a send are a scanner's; an Apple subscriber nearly all of whose messages so far were opened within 15
minutes has one machine open a message; 5 or more opens of one message after 1 to 91 minutes are the 8 of an anomaly.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.events.behaviour import CAMPAIGNS_A_DAY, DAY, PROVIDERS, ClientWorld
from pipeline.events.population import NEVER
from pipeline.events.rows import KIND, NO_CAMPAIGN

CHUNK = 256  # subscribers a thread works on at a time


@dataclass
class Log:
    """n events of one client, by subscriber and time, without duplicates; each [n]."""

    subscriber: NDArray[Any]  # anything that tells neighbours apart
    ts: NDArray[np.int64]  # microseconds UTC
    kind: NDArray[np.uint8]  # index into rows.KINDS; beyond it: of no known kind
    campaign: NDArray[np.int64]  # day x CAMPAIGNS_A_DAY + position, or NO_CAMPAIGN
    provider: NDArray[np.int64]  # index into behaviour.PROVIDERS


@dataclass(frozen=True)
class History:
    """What a log shows of one client's sends and subscribers, with machines told from people."""

    rows: NDArray[np.int64]  # [m], the sends' places in the log
    sends: Any  # compiled_sightings.Sends, [m] each
    bounds: NDArray[np.int64]  # [subscribers + 1], the sends of each
    joined: NDArray[np.int64]  # [subscribers], day of the history; -1: before it, or not in the log
    provider: NDArray[np.int64]  # [subscribers]


def read_history(client: ClientWorld, log: Log, threads: int = 2) -> History:
    """What the log shows of each send: see ``compiled_sightings.Sends``. Arguments as for ``observer.observe``."""
    from pipeline.events import compiled_sightings as compiled

    started = np.append(True, log.subscriber[1:] != log.subscriber[:-1])[: len(log.ts)]
    who = np.cumsum(started) - 1
    people = int(started.sum())
    day = log.ts // DAY - client.start
    known = log.campaign != NO_CAMPAIGN
    rows = np.flatnonzero((log.kind == KIND["send"]) & known & (day == log.campaign // CAMPAIGNS_A_DAY) & (day >= 0))
    others = np.flatnonzero((log.kind != KIND["send"]) & (log.kind != KIND["subscribe"]) & known)
    bounds, other_bounds = (np.searchsorted(who[some], np.arange(people + 1)) for some in (rows, others))
    joined = _joined(who, day, log.kind, rows, people)
    provider = np.clip(log.provider[started], 0, len(PROVIDERS) - 1).astype(np.int64)
    send = _unseen(compiled.Sends, log, rows, day)
    answers = (log.ts[others], log.kind[others], log.campaign[others])
    apple = provider == PROVIDERS.index("apple")

    def review(first: int, last: int) -> None:
        compiled.review(first, last, bounds, send, other_bounds, answers, joined, apple, client.start)

    in_chunks(review, people, threads)
    return History(rows, send, bounds, joined, provider)


def in_chunks(work: Callable[[int, int], None], n: int, threads: int) -> None:
    """``work(first, last)`` over all of n subscribers, by threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda first: work(first, min(first + CHUNK, n)), range(0, n, CHUNK)))


def _joined(
    who: NDArray[np.int64],
    day: NDArray[np.int64],
    kind: NDArray[np.uint8],
    rows: NDArray[np.int64],
    people: int,
) -> NDArray[np.int64]:
    """The day on which each joined, int64[people]; -1 where that was before the log, or is not in it."""
    far = np.iinfo(np.int64).max
    joined, first_send = np.full(people, far), np.full(people, far)
    joins = np.flatnonzero((kind == KIND["subscribe"]) & (day >= 0))
    np.minimum.at(joined, who[joins], day[joins])
    np.minimum.at(first_send, who[rows], day[rows])
    return np.where((joined == far) | (joined > first_send), -1, joined)


def _unseen(sends: Any, log: Log, rows: NDArray[np.int64], day: NDArray[np.int64]) -> Any:
    """The sends before anything is seen of them."""
    m = len(rows)
    counts = {name: np.zeros(m, np.int64) for name in ("volume", "streak", "received")}
    times = {name: np.full(m, NEVER) for name in ("opened", "clicked", "deleted", "left")}
    marks = {name: np.zeros(m, np.bool_) for name in ("complained", "bounced")}
    return sends(ts=log.ts[rows], day=day[rows], campaign=log.campaign[rows], **counts, **times, **marks)
