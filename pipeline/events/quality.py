"""Unit tests for data: named rules, each with a count, examples and an action.

Actions: ``reject`` sends the row to quarantine with the rule's name; ``flag`` marks the row in a column of the store;
``warn`` counts and reports; ``fail`` stops the run before anything of the batch is committed; ``off`` does not look.
A row that several rules reject counts for the first of them in the order of :data:`RULES`. Whatever the rules, a run
fails when more than ``quality.fail_above`` of a batch's rows are rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.backend import Array, Backend
from pipeline.config import Quality
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.events.schema import MAX_CLIENT, usable_client


@dataclass(frozen=True)
class Rule:
    name: str
    default: str
    allowed: tuple[str, ...]
    meaning: str


_KEY = ("reject", "fail")
_ROW = ("reject", "warn", "fail", "off")
RULES: dict[str, Rule] = {
    r.name: r
    for r in (
        Rule("null_client", "reject", _KEY, "the client is null"),
        Rule("empty_client", "reject", _KEY, "the client is the empty string, which a partitioned table cannot hold"),
        Rule("unusable_client", "reject", _KEY, f"the client holds a NUL, or over {MAX_CLIENT} bytes percent-encoded"),
        Rule("null_subscriber", "reject", _KEY, "the subscriber is null or empty"),
        Rule("null_ts", "reject", _KEY, "the time is null"),
        Rule("invalid_ts", "reject", _KEY, "the time cannot be read, or is outside the years 1 to 9999"),
        Rule("null_event", "reject", _KEY, "the event kind is null or empty"),
        Rule(
            "impossible_time", "reject", _ROW, "before quality.earliest, or more than quality.future after its arrival"
        ),
        Rule("unknown_kind", "reject", _ROW, "a kind that source.known does not list"),
        Rule("invalid_value", "reject", _KEY, "the value is not finite, or too great for int64 micro-units"),
        Rule("null_event_id", "warn", _ROW, "the event id is null; a hash of the whole row stands in"),
        Rule("late_arrival", "warn", _ROW, "the log says that it arrived more than quality.late after it happened"),
        Rule("scanner_click", "flag", ("flag", "warn", "off"), "a click within quality.scanner_within of its send"),
        Rule("machine_open", "flag", ("flag", "warn", "off"), "an open within quality.scanner_within of its send"),
        Rule("conflicting_duplicate", "warn", ("warn", "fail"), "the id of an earlier row with other content; dropped"),
    )
}


@dataclass
class RuleResult:
    """What one rule found: how many rows, their share of rows in, and the first few."""

    name: str
    action: str
    count: int = 0
    share: float = 0.0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, count: int, examples: list[dict[str, Any]], keep: int) -> None:
        self.count += count
        self.examples += examples[: max(0, keep - len(self.examples))]


def actions(quality: Quality) -> dict[str, str]:
    """Every rule's action, the configured over the default.

    Raises:
        ConfigError: an unknown rule, or an action that the rule cannot take.
    """
    for name, action in quality.actions.items():
        rule = RULES.get(name)
        if rule is None:
            raise ConfigError(f"quality.actions: there is no rule {name!r}; {did_you_mean(name, RULES)}")
        if action not in rule.allowed:
            raise ConfigError(
                f"quality.actions: {name} cannot be {action!r}, only {', '.join(rule.allowed)} ({rule.meaning})"
            )
    return {name: quality.actions.get(name, rule.default) for name, rule in RULES.items()}


@dataclass
class Checked:
    """One file's mapped rows as the rules see them; every array has n rows.

    ``client``, ``event``: Arrow dictionary arrays; ``subscriber``: int64 or text; ``ts``, ``ingested_at``: int64 us;
    ``dated``: bool[n], whether the row itself says when it arrived.
    """

    client: Any
    subscriber: Any
    event: Any
    ts: np.ndarray
    ts_null: np.ndarray
    ts_bad: np.ndarray
    ingested_at: np.ndarray
    dated: np.ndarray
    value_bad: np.ndarray | None
    event_id_null: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ts)


@dataclass
class Verdict:
    """``rejected_by``: int16[n], the index in :data:`RULES` of the rule that rejects the row, -1 where none does;
    ``hits``: rule -> positions of all its rows, int64[h], for rules that found any."""

    rejected_by: np.ndarray
    hits: dict[str, np.ndarray]


def _where_category(array: Any, test: Callable[[str], bool]) -> np.ndarray | None:
    """The rows whose (non-null) category passes the test; None when no category does."""
    chosen = np.array([v is not None and test(v) for v in array.dictionary.to_pylist()], dtype=bool)
    if not chosen.any():
        return None
    indices = array.indices
    mask: np.ndarray = chosen[indices.fill_null(0).to_numpy(zero_copy_only=False)]
    if indices.null_count:
        mask &= ~_nulls(array)
    return mask


def _nulls(array: Any) -> np.ndarray:
    mask: np.ndarray = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def check(
    rows: Checked, quality: Quality, chosen: Mapping[str, str], known: list[str] | None, earliest_us: int
) -> Verdict:
    """Apply every row rule to one file's rows.

    Args:
        chosen: rule -> action, from :func:`actions`; known: kinds to accept, None for every kind;
        earliest_us: ``quality.earliest`` in microseconds.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, np.ndarray | None] = {}
    for name, column in (("client", rows.client), ("subscriber", rows.subscriber), ("event", rows.event)):
        found[f"null_{name}"] = _nulls(column) if column.null_count else None
    found["empty_client"] = _where_category(rows.client, lambda v: v == "")
    found["unusable_client"] = _where_category(rows.client, lambda v: not usable_client(v))
    if not pa.types.is_integer(rows.subscriber.type):
        empty = pc.equal(pc.binary_length(rows.subscriber), 0).fill_null(False).to_numpy(zero_copy_only=False)
        before = found["null_subscriber"]
        found["null_subscriber"] = empty if before is None else empty | before
    found["null_event"] = _union(found["null_event"], _where_category(rows.event, lambda v: v == ""))
    found["null_ts"], found["invalid_ts"] = rows.ts_null, rows.ts_bad
    unreadable = rows.ts_null | rows.ts_bad
    impossible = (rows.ts < earliest_us) | (rows.ts > rows.ingested_at + quality.future)
    found["impossible_time"] = impossible & ~unreadable
    if known is not None:
        accepted = set(known)
        found["unknown_kind"] = _where_category(rows.event, lambda v: v != "" and v not in accepted)
    found["invalid_value"] = rows.value_bad
    found["null_event_id"] = rows.event_id_null
    late = rows.dated & (rows.ingested_at - rows.ts > quality.late)
    found["late_arrival"] = late & ~unreadable & ~impossible

    rejected_by = np.full(len(rows), -1, dtype=np.int16)
    hits: dict[str, np.ndarray] = {}
    for index, name in enumerate(RULES):
        mask = found.get(name)
        if mask is None or chosen[name] == "off" or not mask.any():
            continue
        if chosen[name] == "reject":
            mask = mask & (rejected_by < 0)
            rejected_by[mask] = index
        positions = np.flatnonzero(mask)
        if len(positions):
            hits[name] = positions
    return Verdict(rejected_by, hits)


def _union(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a | b


def soon_after_send(
    key: Array, ts: Array, event: Array, campaign: Array, kinds: Mapping[str, int], within: int, backend: Backend
) -> dict[str, Array]:
    """Clicks and opens that no human makes: within ``within`` of a send of the same campaign to the same subscriber.

    The simplest of the public heuristics (FACTS: under 2 s after the send). The send must be in the same batch.

    Args:
        key, ts: int64[n], sorted by ``(key, ts)``; event, campaign: int[n] codes; kinds: kind -> code of ``event``.
    Returns:
        "scanner_click" and "machine_open" -> bool[n].
    """
    xp = backend.xp
    found = {"scanner_click": xp.zeros(len(key), dtype=bool), "machine_open": xp.zeros(len(key), dtype=bool)}
    if "send" not in kinds:
        return found
    for rule, kind in (("scanner_click", "click"), ("machine_open", "open")):
        if kind not in kinds:
            continue
        waiting = xp.flatnonzero(event == kinds[kind])
        lag = 0
        while len(waiting):  # each pass looks one row further back; few rows wait for more than a pass or two
            lag += 1
            waiting = waiting[waiting >= lag]
            back = waiting - lag
            near = (key[back] == key[waiting]) & (ts[waiting] - ts[back] < within)
            waiting, back = waiting[near], back[near]
            sent = (event[back] == kinds["send"]) & (campaign[back] == campaign[waiting])
            found[rule][waiting[sent]] = True
            waiting = waiting[~sent]
    return found


def refuse(results: Mapping[str, RuleResult], rejected: int, rows: int, quality: Quality, batch: str) -> None:
    """Stop the run where a ``fail`` rule found a row or too many rows were rejected.

    Raises:
        DataError: names the rule, how many rows, and the first of them.
    """
    for result in results.values():
        if result.action == "fail" and result.count:
            raise DataError(
                f"rule {result.name} ({RULES[result.name].meaning}) found {result.count:,} of {rows:,} rows of batch "
                f"{batch}, and its action is fail. First: {result.examples[:1]}. Mend the source, or set "
                f"quality.actions.{result.name} to another action"
            )
    if rows and rejected / rows > quality.fail_above:
        worst = sorted((r for r in results.values() if r.action == "reject"), key=lambda r: -r.count)
        what = ", ".join(f"{r.name} {r.count:,}" for r in worst[:3] if r.count)
        raise DataError(
            f"{rejected:,} of {rows:,} rows of batch {batch} ({rejected / rows:.1%}) break a rule ({what}), more than "
            f"quality.fail_above={quality.fail_above:g} allows. First: {worst[0].examples[:1]}. Check the mapping and "
            "source.time_unit, or raise quality.fail_above"
        )
