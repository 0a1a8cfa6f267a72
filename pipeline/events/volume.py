"""A batch against what came before it: counts a day, shares of kinds, values never seen.

Every batch's manifest keeps a tally of its rows: for each client the rows of each day, kind and maker, and of each
provider and campaign. The rules here compare tallies, so no row of history is read. A day is judged once, when
something later has happened: against the 28 days before it, of which 7 at least must have rows. Days are UTC's.

The usual is the median of those days, and the spread 1.4826 times their median absolute deviation (a standard
deviation, where they are normal), but no less than a twentieth of the usual, nor than chance would give: one and the
root of the usual for rows, 0.01 for a share.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from pipeline.events.quality import Rulebook, RuleResult, iso
from pipeline.events.schema import numpy_of
from pipeline.events.signals import DAY, kernels
from pipeline.options import Quality

TRAILING, LEAST_DAYS = 28, 7
MOST_VALUES = 20_000  # of a column in a batch; more of them are not names but ids

Tally = dict[str, Any]


def tally(ts: np.ndarray, arrived: np.ndarray, columns: Mapping[str, Any], machine: np.ndarray) -> Tally:
    """What a manifest says of one client's rows.

    Args:
        ts, arrived: int64[n], microseconds; columns: event, provider, campaign: Arrow dictionary arrays; machine:
        bool[n].
    Returns:
        "days": ISO date -> kind -> [by humans, by machines]; "provider", "campaign": value -> rows, None for too many;
        "happened": the latest day that is not ahead of its row's arrival.
    """
    names, by = columns["event"].dictionary.to_pylist(), kernels()
    days: dict[str, dict[str, list[int]]] = {}
    for day, counts in sorted(by.day_counts(ts, numpy_of(columns["event"].indices), machine, len(names)).items()):
        kinds = days.setdefault(iso(day), {})
        for name, pair in zip(names, counts.reshape(-1, 2).tolist(), strict=True):
            if any(pair):
                old = kinds.get(name, [0, 0])
                kinds[name] = [old[0] + pair[0], old[1] + pair[1]]
    happened = iso(int(by.latest_happened(ts, arrived)) // DAY)
    return {"days": days, "happened": happened} | {n: _values(columns[n], by) for n in ("provider", "campaign")}


def _values(column: Any, by: Any) -> dict[str, int] | None:
    names = column.dictionary.to_pylist()
    counts = by.code_counts(numpy_of(column.indices, -1), len(names))
    if np.count_nonzero(counts) > MOST_VALUES:
        return None
    return {names[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def add_tally(total: Tally, more: Tally) -> None:
    """Add one tally of a client to another."""
    days = total.setdefault("days", {})
    for day, kinds in more["days"].items():
        for kind, pair in kinds.items():
            old = days.setdefault(day, {}).get(kind, [0, 0])
            days[day][kind] = [old[0] + pair[0], old[1] + pair[1]]
    total["happened"] = max(total.get("happened", ""), more["happened"])
    for name in ("provider", "campaign"):
        mine, theirs = total.get(name, {}), more[name]
        if mine is not None and theirs is not None:
            for value, count in theirs.items():
                mine[value] = mine.get(value, 0) + count
        total[name] = None if mine is None or theirs is None else mine


@dataclass
class Past:
    """What earlier batches hold: client -> tally; ``tops``: client -> the share of each batch's greatest campaign."""

    clients: dict[str, Tally] = field(default_factory=dict)
    tops: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, manifests: Iterable[Mapping[str, Any]]) -> Past:
        past = cls()
        tallies = [manifest.get("tally", {}) for manifest in manifests]
        for batch in sorted(tallies, key=lambda batch: max((one["happened"] for one in batch.values()), default="")):
            past.add(batch)
        return past

    def add(self, batch: Mapping[str, Tally]) -> None:
        """A batch is past."""
        for client, one in batch.items():
            add_tally(self.clients.setdefault(client, {}), one)
            if one["campaign"]:
                self.tops.setdefault(client, []).append(max(one["campaign"].values()) / _rows(one))

    def campaigns(self, client: str) -> Mapping[str, int] | None:
        """The campaigns that earlier batches have rows of; None where they were too many to keep."""
        found: Mapping[str, int] | None = self.clients.get(client, {"campaign": {}})["campaign"]
        return found


def _rows(one: Tally) -> int:
    return sum(sum(pair) for kinds in one["days"].values() for pair in kinds.values())


def judge(past: Past, batch: Mapping[str, Tally], quality: Quality, book: Rulebook) -> dict[str, RuleResult]:
    """Apply the rules of this module to a batch: rule -> what it found and what it looked at."""
    results = {name: book.result(name) for name in ("volume", "kind_share", "new_value") if book.chosen[name] != "off"}
    total = sum(_rows(one) for one in batch.values())
    for client, one in batch.items():
        before = past.clients.get(client)
        _new_values(results, client, one, before, past, total, quality)
        together: Tally = {}
        for part in (before, one):
            if part:
                add_tally(together, part)
        begun = before["happened"] if before else ""
        days = {day: {kind: sum(pair) for kind, pair in kinds.items()} for day, kinds in together["days"].items()}
        for day in sorted(day for day in days if day < one["happened"]):
            if day >= begun:  # the days before were judged when their batch came
                _day(results, client, day, days, quality)
    return results


def _day(
    results: dict[str, RuleResult], client: str, day: str, days: Mapping[str, Mapping[str, int]], quality: Quality
) -> None:
    """Judge one day; days: ISO date -> kind -> rows."""
    end = dt.date.fromisoformat(day)
    if end.toordinal() <= TRAILING:
        return
    dates = [(end - dt.timedelta(days=back)).isoformat() for back in range(TRAILING, 0, -1)]
    first = min(days)
    nothing: Mapping[str, int] = {}
    trailing = [days.get(d, nothing) for d in dates if d >= first]
    if sum(bool(t) for t in trailing) < LEAST_DAYS:
        return
    today = days[day]
    sizes, size = [sum(t.values()) for t in trailing], sum(today.values())
    for kind in sorted({*today, *(k for t in trailing for k in t)}):
        rows, before = today.get(kind, 0), [t.get(kind, 0) for t in trailing]
        about = {"client": client, "day": day, "event": kind}
        usual, score = _score(rows, before, True)
        if (result := results.get("volume")) is not None:
            far = max(rows, 1) > quality.volume_ratio * usual or rows * quality.volume_ratio < usual
            _look(
                result,
                far and abs(score) > quality.volume_score,
                about | {"rows": rows, "usual": round(usual), "score": round(score, 1)},
                day,
                quality,
            )
        if (result := results.get("kind_share")) is not None:
            shares = [b / s for b, s in zip(before, sizes, strict=True) if s]
            usual, score = _score(rows / size, shares, False)
            far = abs(rows / size - usual) > quality.share_shift
            facts = {"share": round(rows / size, 4), "usual": round(usual, 4), "score": round(score, 1)}
            _look(result, far and abs(score) > quality.volume_score, about | facts, day, quality)
        if (result := results.get("new_value")) is not None and not any(before):
            unseen = not any(kind in kinds for other, kinds in days.items() if other < day)
            new = unseen and rows / size >= quality.new_share
            _look(result, new, about | {"rows": rows, "share": round(rows / size, 4)}, day, quality)


def _score(value: float, before: Sequence[float], counts: bool) -> tuple[float, float]:
    """The median of what was before, and how many robust standard deviations a value is from it."""
    usual = float(median(before))  # of few numbers; NumPy's takes ten times as long
    spread = 1.4826 * median(abs(value - usual) for value in before)
    least = 1 + usual**0.5 if counts else 0.01
    return usual, (value - usual) / max(spread, least, 0.05 * usual)


def _new_values(
    results: dict[str, RuleResult],
    client: str,
    one: Tally,
    before: Tally | None,
    past: Past,
    total: int,
    quality: Quality,
) -> None:
    result = results.get("new_value")
    if result is None or not any(len(tally["days"]) >= LEAST_DAYS for tally in past.clients.values()):
        return
    rows, day = _rows(one), one["happened"]
    if before is None:
        share = rows / total
        about = {"client": client, "day": day, "rows": rows, "share": round(share, 4)}
        _look(result, share >= quality.new_share, about, day, quality)
        return
    if len(before["days"]) < LEAST_DAYS:
        return
    tops = past.tops.get(client, [])[-TRAILING:]
    least = {"provider": quality.new_share, "campaign": quality.new_campaign_share}
    if tops:  # where each batch is mostly of its one new campaign, that is no news
        least["campaign"] = max(least["campaign"], 2 * median(tops))
    for name, share in least.items():
        if one[name] is None or before[name] is None:
            continue
        for value in sorted(one[name].keys() - before[name].keys()):
            about = {"client": client, "day": day, name: value, "rows": one[name][value]}
            about["share"] = round(one[name][value] / rows, 4)
            _look(result, one[name][value] / rows >= share, about, day, quality)


def trend(days: Mapping[str, int], arrivals: Mapping[str, int], unit: str = "rows") -> dict[str, Any]:
    """What a rule found of the rows of the last day of arrivals and of the 28 before it.

    Args:
        days: ISO date -> what it found; arrivals: ISO date -> rows in.
    Returns:
        "days": ISO dates with arrivals, ascending, at most 29; "values": of each, the share of its rows (of findings:
        their number); "usual": the median of all but the last, null where there are fewer than 7; "latest": the last.
    """
    if not arrivals:
        return {"days": [], "values": [], "usual": None, "latest": None}
    last = dt.date.fromisoformat(max(arrivals))
    dates = [dt.date.fromordinal(max(last.toordinal() - back, 1)).isoformat() for back in range(TRAILING, -1, -1)]
    dates = [day for day in dict.fromkeys(dates) if arrivals.get(day)]
    values = [days.get(day, 0) / (arrivals[day] if unit == "rows" else 1) for day in dates]
    usual = median(values[:-1]) if len(values) > LEAST_DAYS else None
    return {"days": dates, "values": values, "usual": usual, "latest": values[-1]}


def _look(result: RuleResult, found: bool, about: dict[str, Any], day: str, quality: Quality) -> None:
    result.of += 1
    if found:
        result.count += 1
        result.days[day] = result.days.get(day, 0) + 1
        if len(result.examples) < quality.keep_examples:
            result.examples.append(about)
