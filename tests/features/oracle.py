"""What features and labels are, in plain Python: slow, obvious, sharing nothing with the kernels."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import zoneinfo
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.features.presence import Presence, prior
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.spec import Feature, FeatureSpec
from tests.features.logs import DAY, Event


def feature(
    spec: FeatureSpec,
    events: list[Event],
    key: int,
    at: int,
    timezone: str = "UTC",
    own: dict[str, Own] | None = None,
    campaign: str | None = None,
) -> dict[str, float]:
    """Every feature of one decision point but the calendar.

    ``own``: what the user's functions give an event; ``campaign``: what is decided about, None where unknown.
    """
    everything = [e for e in events if e.key == key and e.ts < at]
    seen = [e for e in told(everything) if not e.machine]
    out: dict[str, float] = {}
    for f in spec.features:
        inside = [e for e in seen if f.window is None or e.ts >= at - f.window]
        count = Counter(e.event for e in inside)
        if f.op == "count":
            near = at if f.until is None else at - f.until
            out[f.name] = sum(e.event == f.kind and e.ts < near for e in inside)
        elif f.op == "rate":
            trials = count[spec.exposure] - sum(count[b] for b in spec.bounces)
            out[f.name] = (count[f.kind] + 1) / (max(trials, 0) + 10)
        elif f.op == "recency":
            out[f.name] = min([at - e.ts for e in seen if e.event == f.kind] + [spec.cap]) / DAY
        elif f.op == "streak":
            answered = max([e.ts for e in seen if e.event in spec.responses], default=-(2**63))
            out[f.name] = sum(e.event == spec.exposure and e.ts > answered for e in seen)
        elif f.op == "volume":
            day = local(at, timezone).replace(hour=0, minute=0, second=0, microsecond=0)
            midnight = int(day.timestamp()) * 1_000_000
            out[f.name] = sum(e.event == f.kind and midnight - (f.window or 0) <= e.ts < midnight for e in seen)
        elif f.op == "tenure":
            out[f.name] = max([at - e.ts for e in everything], default=0) / DAY
        elif f.op == "history":
            out[f.name] = len(seen)
        elif f.op == "campaigns":
            asked = [e for e in inside if f.how != "answered" or e.event in spec.responses]
            out[f.name] = len({e.campaign for e in asked if e.campaign is not None})
        elif f.op == "active_days":
            out[f.name] = len({local(e.ts, timezone).date() for e in inside if e.event in spec.acts})
        elif f.op == "value":
            values = [e.value / 1e6 for e in inside if (e.event == f.kind if f.kind else e.value != 0)]
            out[f.name] = AGGREGATES[str(f.how)](values)
        elif f.op == "own":
            given = [(own or {})[str(f.kind)](e) for e in inside]
            out[f.name] = AGGREGATES[str(f.how)]([v for v in given if v is not None])
        elif f.op == "affinity":
            cell = {"hour": lambda t: t.hour, "weekday": lambda t: t.weekday()}[str(f.how)]
            mine = [cell(local(e.ts, timezone)) for e in seen if e.event == f.kind]
            cells = {"hour": 24, "weekday": 7}[str(f.how)]
            out[f.name] = (mine.count(cell(local(at, timezone))) + 1) / (len(mine) + cells)
        elif f.op == "match":
            out[f.name] = match(spec, f, seen, at, campaign)
        elif f.op == "reaction":
            out[f.name] = reaction(spec, f, seen, at)
        elif f.op == "presence":
            out[f.name] = presence(spec, f, seen, at, campaign)
        elif f.op == "gap":
            out[f.name] = gap(str(f.how), [e.ts for e in inside if e.event == spec.exposure], everything[:1])
        elif f.op == "run":
            out[f.name] = run(spec, f.how, seen, at, f.window)
    return out


Own = Callable[[Event], Any]
AGGREGATES: dict[str, Callable[[list[Any]], float]] = {
    "sum": sum,
    "mean": lambda v: sum(v) / len(v) if v else 0,
    "min": lambda v: min(v, default=0),
    "max": lambda v: max(v, default=0),
    "first": lambda v: v[0] if v else 0,
    "last": lambda v: v[-1] if v else 0,
    "distinct": lambda v: len(set(v)),
}


def local(ts: int, timezone: str) -> dt.datetime:
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=ts)).astimezone(
        zoneinfo.ZoneInfo(timezone)
    )


def told(mine: list[Event], share: float = 0.4, exposure: str = "send") -> list[Event]:
    """One subscriber's events in total order, the opens that a mail program made marked as a machine's too."""
    sends = [e for e in mine if e.event == exposure]
    opens: list[list[Event]] = [[] for _ in sends]
    message = {}
    for e in mine:
        of = [i for i, s in enumerate(sends) if s.campaign == e.campaign and s.ts <= e.ts]
        if e.event == "open" and e.campaign is not None and of:
            message[id(e)] = of[-1]
            opens[of[-1]].append(e)
    out = []
    for e in mine:
        program = False
        if id(e) in message and not e.machine and share:
            i = message[id(e)]
            first = next(o for o in opens[i] if not o.machine) is e
            fetched = [any(o.machine and o.ts <= e.ts for o in of) for of in opens]
            last = fetched[max(i - 20, 0) : i]
            program = first and not fetched[i] and sum(last) >= 3 and sum(last) >= share * len(last)
        out.append(e._replace(machine=True) if program else e)
    return out


def family(campaign: str | None) -> str:
    return " ".join("".join(c if c.isalpha() else " " for c in campaign or "").lower().split())


def first_answers(spec: FeatureSpec, seen: list[Event]) -> list[Event]:
    """The events that are the first of their kind after an exposure of their campaign; ``seen`` in total order."""
    found, answered = [], set()
    for e in seen:
        sends = [s for s in seen if s.event == spec.exposure and s.campaign == e.campaign and s.ts <= e.ts]
        if e.event != spec.exposure and e.campaign is not None and sends and (id(sends[-1]), e.event) not in answered:
            answered.add((id(sends[-1]), e.event))
            found.append(e)
    return found


def reaction(spec: FeatureSpec, f: Feature, seen: list[Event], at: int) -> float:
    """``seen`` is all of it: whether a deletion is of an unread message hangs on what came long before."""
    reacted = max([e.ts for e in seen if e.event in (*spec.responses, "delete")], default=-(2**63))
    if f.how == "streak":
        return sum(e.event == spec.exposure and e.ts > reacted for e in seen)
    answered, unread, of = 0, 0, {}
    for e in seen:
        sends = [s for s in seen if s.event == spec.exposure and s.campaign == e.campaign and s.ts <= e.ts]
        if e.campaign is None or not sends or e.event not in (*spec.responses, "delete"):
            continue
        done, inside = of.setdefault(id(sends[-1]), set()), f.window is None or e.ts >= at - f.window
        if e.event == "delete":
            unread += inside and not done
            done.add("delete")
        else:
            answered += inside and "answer" not in done
            done.add("answer")
    if f.how == "answered":
        return (answered + 1) / (answered + unread + 2)
    inside = [e.event for e in seen if f.window is None or e.ts >= at - f.window]
    delivered = inside.count(str(spec.exposure)) - sum(inside.count(b) for b in spec.bounces)
    return (answered + unread + 1) / (max(delivered, 0) + 2)


def match(spec: FeatureSpec, f: Feature, seen: list[Event], at: int, campaign: str | None) -> float:
    sent = (spec.exposure, *spec.bounces)
    kept = [e for e in seen if e.event in sent] + [e for e in first_answers(spec, seen) if e.event not in sent]
    kept = [e for e in kept if family(e.campaign) and (f.window is None or e.ts >= at - f.window)]
    mine = family(campaign)

    def number(kind: str | None, of: str | None) -> int:
        return len([e for e in kept if e.event == kind and of in (None, family(e.campaign))])

    def trials(of: str | None) -> int:
        if f.kind == "click" and "open" in spec.responses:
            return number("open", of)
        return max(number(spec.exposure, of) - sum(number(b, of) for b in spec.bounces), 0)

    if f.how == "count":
        return number(f.kind, mine)
    rate = (number(f.kind, None) + 1) / (trials(None) + 10)
    if f.how == "rate":
        return rate
    alike = {mine: 1.0} if mine else {}
    if spec.similarity is not None and mine in spec.similarity.names:
        row = spec.similarity.weights[spec.similarity.names.index(mine)]
        alike |= dict(zip(spec.similarity.names, row, strict=True))
    beyond = sum(s * (number(f.kind, g) - rate * trials(g)) for g, s in alike.items())
    return beyond / (sum(s * s * rate * trials(g) for g, s in alike.items()) + 16)


def presence(spec: FeatureSpec, f: Feature, seen: list[Event], at: int, campaign: str | None) -> float:
    known = spec.presence or prior(spec)
    state, mean, _ = believed(spec, known, tuple(seen), at)
    mine = place(spec, campaign)
    leaning = 0.0 if mine is None else float(mean[mine])
    if f.how == "leaning":
        return leaning
    usual, chances = reaching(spec, known, 0.0), reaching(spec, known, leaning)
    if f.how == "awake":
        return float(state[:, 0].sum())
    if f.how == "keen":
        return float((state[:, 0] * usual[0][:, 0]).sum() / state[:, 0].sum())
    of = (state * chances[spec.responses.index(f.kind or "")]).sum()
    return float(of if f.how == "next" else of / (state * chances[0]).sum())


def place(spec: FeatureSpec, campaign: str | None) -> int | None:
    names = spec.similarity.names if spec.similarity is not None else ()
    return names.index(family(campaign)) if family(campaign) in names else None


def reaching(spec: FeatureSpec, known: Presence, leaning: float) -> list[np.ndarray]:
    """The chance of each answer or a deeper one by class and state; each step's log odds shifted by the leaning."""
    levels = np.array(known.levels)[-len(spec.responses) :]
    out, before, below = [], 1.0, 1.0
    for a in range(len(levels)):
        reach = levels[a:].sum(axis=0)
        step = 1 / (1 + np.exp(-(np.log(reach / (below - reach)) + leaning)))
        before, below = before * step, reach
        out.append(before)
    return out


@functools.lru_cache(maxsize=1)
def believed(
    spec: FeatureSpec, known: Presence, seen: tuple[Event, ...], at: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of classes and states, and mean and covariance of the leanings."""
    kinds = (*(["delete"] if "delete" in spec.kinds else []), *spec.responses)
    levels, delay, state = np.array(known.levels), np.array(known.delay), np.array(known.start)
    alone = len(kinds) - len(spec.responses)
    mean, cov = np.zeros(0), np.zeros((0, 0))
    if spec.similarity is not None:
        values, vectors = np.linalg.eigh(np.array(spec.similarity.weights))
        cov = sum(max(v, 0) * np.outer(u, u) for v, u in zip(values, vectors.T, strict=True))
        scale = 0.25 / np.sqrt(np.diag(cov))
        cov = cov * np.outer(scale, scale)
        mean = np.zeros(len(values))
    sends = [e for e in seen if e.event == spec.exposure]
    reached = dict.fromkeys(range(len(sends)), 0)
    for e in seen:
        if e.event in kinds and e.campaign is not None:
            same = [i for i, s in enumerate(sends) if s.campaign == e.campaign and s.ts <= e.ts]
            if same and e.ts < sends[same[-1]].ts + 3 * DAY:
                reached[same[-1]] = max(reached[same[-1]], kinds.index(e.event) + 1)
    for i, send in enumerate(sends):
        if i:
            state = moved(state, known.change, send.ts - sends[i - 1].ts)
        mine = place(spec, send.campaign)
        due = delay[:, min((at - send.ts) // (DAY // 24), 72)]
        given = max(reached[i] - alone, 0)

        def chance(leaning: float, a: int, now: np.ndarray) -> float:
            """Of the answer a, given the one before, whoever the subscriber is."""
            of = [np.ones_like(now), *reaching(spec, known, leaning)]
            return float((now * of[a + 1]).sum() / (now * of[a]).sum())

        leaning = 0.0 if mine is None else mean[mine]
        score = information = 0.0
        for a in range(min(given + 1, len(spec.responses))):
            share = 1.0 if a < given or 0 < reached[i] <= alone else due[alone + a]
            p, step = share * chance(leaning, a, state), 1e-5
            slope = share * (chance(leaning + step, a, state) - chance(leaning - step, a, state)) / (2 * step)
            if share:
                score += slope / p if a < given else -slope / (1 - p)
                information += slope**2 / (p * (1 - p))
        likely = [1.0, *reaching(spec, known, leaning), 0.0]
        exactly = [likely[a + 1] - likely[a + 2] for a in range(len(spec.responses))]
        rest = (1 - likely[1]) / (1 - levels[alone:].sum(axis=0))
        if given:
            pending = due[alone + given] if given < len(spec.responses) else 0.0
            state = state * (likely[given] - pending * likely[given + 1])
        elif reached[i]:
            state = state * levels[reached[i] - 1] * rest
        else:
            answered = sum(due[alone + a] * exactly[a] for a in range(len(exactly)))
            state = state * (1 - answered - sum(due[d] * levels[d] * rest for d in range(alone)))
        state = state / state.sum()
        if mine is not None:
            column = cov[:, mine]
            mean = mean + column * score / (1 + information * cov[mine, mine])
            cov = cov - np.outer(column, column) * information / (1 + information * cov[mine, mine])
    return (moved(state, known.change, at - sends[-1].ts) if sends else state), mean, cov


def moved(state: np.ndarray, change: tuple[tuple[float, ...], ...], gap: int) -> np.ndarray:
    return np.einsum("kx,kxy->ky", state, steps(change, min(int(np.floor(gap / DAY + 0.5)), 40)))


@functools.cache
def steps(change: tuple[tuple[float, ...], ...], days: int) -> np.ndarray:
    return np.stack([np.linalg.matrix_power(np.array([[1 - f, f], [w, 1 - w]]), days) for f, w in change])


def masked(key: int, at: int) -> bool:
    """Whether the campaign of a training row is hidden: SplitMix64 of the subscriber and the time."""
    mixed = 0x5EEDC0
    for part in (key, at):
        mixed = ((mixed ^ (part % 2**64)) + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed / 2**64 < 0.1


def gap(how: str, times: list[int], first: list[Event]) -> float:
    if how == "trend":
        times = [(t - first[0].ts) // 1_000_000 * 1_000_000 for t in times]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    if how == "last":
        return gaps[-1] / DAY if gaps else 0
    if how == "mean":
        return sum(gaps) / len(gaps) / DAY if gaps else 0
    return float(np.polyfit(range(len(gaps)), np.array(gaps) / DAY, 1)[0]) if len(gaps) > 1 else 0


def run(spec: FeatureSpec, how: str | None, seen: list[Event], at: int, window: int | None) -> int:
    times = sorted({e.ts for e in seen if e.event == spec.exposure})
    answers = [e.ts for e in seen if e.event in spec.responses]
    answered = {a: any(a <= r < b for r in answers) for a, b in itertools.pairwise([*times, at])}
    sends = [e.ts for e in seen if e.event == spec.exposure and (how == "current" or not window or e.ts >= at - window)]
    runs = [(fate, len(list(group))) for fate, group in itertools.groupby(answered[t] for t in sends)]
    if how == "current":
        return runs[-1][1] if runs and runs[-1][0] else 0
    return max((length for fate, length in runs if fate == (how == "answered")), default=0)


def label(head: Head, request: SampleRequest, events: list[Event], send: Event) -> tuple[float, float]:
    """One outcome of one exposure, and whether it is known; ``events`` in total order."""
    mine = told([e for e in events if e.key == send.key and e.ts < request.as_of])
    total = 0
    for e in mine:
        if e.event not in head.kinds or e is send or e.machine or not send.ts <= e.ts < send.ts + head.within:
            continue
        if head.match:
            sends = [s for s in mine if s.event == request.exposure and s.campaign == e.campaign and s is not e]
            earlier = [s for s in sends if s.ts <= e.ts and s.campaign is not None]
            if not earlier or earlier[-1] is not send:
                continue
        total += e.value if head.sum else 1
    known = send.ts + head.within + request.lateness <= request.as_of
    return (total / 1e6 if head.sum else float(total > 0)) * known, float(known)


def active(request: SampleRequest, events: list[Event], key: int, at: int) -> tuple[bool, bool]:
    """Whether a subscriber is recent enough at an instant, and whether suppressed."""
    seen = [e for e in events if e.key == key and e.ts < at and e.ts < request.as_of]
    left = [e.ts for e in seen if e.event in ("unsubscribe", "complaint", "hard_bounce")]
    back = [e.ts for e in seen if e.event == "subscribe"]
    suppressed = bool(left) and not (back and max(back) > max(left))
    return any(e.ts >= at - request.active_within for e in seen), suppressed
