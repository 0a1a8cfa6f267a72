"""Unit tests for data: named rules, each with a count, examples and an action.

Actions: ``reject`` sends the row to quarantine with the rule's name; ``flag`` names the rule in the row's column
``flagged_by``; ``warn`` counts and reports; ``fail`` stops the run before anything of the batch is committed; ``off``
does not look.
A row that several rules reject counts for the first of them in the order of :data:`RULES`. Whatever the rules, a run
fails when more than ``quality.fail_above`` of a batch's rows are rejected.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.events.schema import MAX_CLIENT, usable_client
from pipeline.events.signals import IMPOSSIBLE, LATE, kernels
from pipeline.extensions import UserRule
from pipeline.extensions import rules as user_rules
from pipeline.options import Quality

MOST_FLAGS = 26  # bits of an int32, less those of what was listed (prepare.py)


@dataclass(frozen=True)
class Rule:
    """``unit``: what its count counts, rows or findings of one day (or batch) each."""

    name: str
    default: str
    allowed: tuple[str, ...]
    meaning: str
    unit: str = "rows"


_KEY = ("reject", "fail")
_ROW = ("reject", "flag", "warn", "fail", "off")
_MARK = ("flag", "warn", "fail", "off")
_WATCH = ("warn", "fail", "off")
RULES: dict[str, Rule] = {
    r.name: r
    for r in (
        # Of a row by itself.
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
        Rule("value_out_of_range", "reject", _ROW, "the value is outside quality.value_range"),
        Rule("null_event_id", "warn", _ROW, "the event id is null; a hash of the whole row stands in"),
        Rule("late_arrival", "flag", _ROW, "the log says that it arrived more than quality.late after it happened"),
        # Of a row among its subscriber's, see flags.py.
        Rule("duplicate", "warn", _WATCH, "equal to an earlier row in client, subscriber, time, kind and id; dropped"),
        Rule("conflicting_duplicate", "warn", ("warn", "fail"), "the id of an earlier row with other content; dropped"),
        Rule("out_of_order", "flag", _MARK, "arrived over quality.disorder after the subscriber's next event did"),
        Rule("response_without_send", "warn", _MARK, "an open or click of a message never sent to its subscriber"),
        Rule("click_without_open", "warn", _MARK, "a click on a message that its subscriber had not opened"),
        Rule("scanner_click", "flag", _MARK, "a click that only a link scanner makes"),
        Rule("scanner_unsubscribe", "flag", _MARK, "an unsubscribe that only a link scanner makes; honoured"),
        Rule("machine_open", "flag", _MARK, "an open that only a program makes"),
        Rule("privacy_open", "flag", _MARK, "an open by a mail program that opens all mail itself, by its agent"),
        Rule("repeated_response", "flag", _MARK, "one of more opens or clicks of a message in an hour than are human"),
        Rule("impossible_rate", "flag", _MARK, "one of more responses in an hour or a day than a human makes"),
        # Of a batch against what came before, see volume.py.
        Rule("volume", "warn", _WATCH, "a day's rows of one kind are far from the 28 days before it", "findings"),
        Rule("kind_share", "warn", _WATCH, "a kind's share of a day's rows is far from the 28 days before", "findings"),
        Rule("new_value", "warn", _WATCH, "much of a batch is of a value never seen before", "findings"),
    )
}  # fmt: skip


@dataclass
class RuleResult:
    """What one rule found: how many rows, their share of rows in, the first few, and how many arrived on which day.

    ``days``: ISO date -> rows. ``share`` of a rule that counts findings is their share of all that was looked at.
    """

    name: str
    action: str
    count: int = 0
    share: float = 0.0
    examples: list[dict[str, Any]] = field(default_factory=list)
    days: dict[str, int] = field(default_factory=dict)
    unit: str = "rows"
    meaning: str = ""
    of: int = 0  # how much was looked at

    def add(self, other: RuleResult, keep: int) -> None:
        self.count += other.count
        self.of += other.of
        self.examples += other.examples[: max(0, keep - len(self.examples))]
        for day, count in other.days.items():
            self.days[day] = self.days.get(day, 0) + count


@dataclass(frozen=True)
class Rulebook:
    """Every rule and what is to be done: the built-in ones, then the user's own.

    ``chosen``: rule -> action; ``flags``: the rules that mark rows, in the order of their bits.
    """

    rules: Mapping[str, Rule]
    chosen: Mapping[str, str]
    own: tuple[UserRule, ...]
    flags: tuple[str, ...]
    machine: int  # the bits that make an event a machine's

    @classmethod
    def of(cls, quality: Quality) -> Rulebook:
        """The built-in rules and the registered ones, with the configured actions over the defaults.

        Raises:
            ConfigError: an unknown rule, an action that the rule cannot take, or a name that is taken.
        """
        own = user_rules()
        rules = dict(RULES)
        for rule in own:
            if rule.name in RULES:
                raise ConfigError(f"rule {rule.name!r} in {rule.file} has the name of a built-in rule; rename it")
            rules[rule.name] = Rule(rule.name, rule.action, _ROW, rule.meaning)
        chosen = actions(quality, rules)
        flags = tuple(name for name, action in chosen.items() if action == "flag")
        if len(flags) > MOST_FLAGS:
            raise ConfigError(f"{len(flags)} rules flag rows, {MOST_FLAGS} can: let some of them warn")
        for name in quality.machine:
            if name not in rules:
                raise ConfigError(f"quality.machine: there is no rule {name!r}; {did_you_mean(name, rules)}")
        machine = sum(1 << i for i, name in enumerate(flags) if name in quality.machine)
        return cls(rules, chosen, own, flags, machine)

    def bit(self, name: str) -> int:
        """The flag of a rule; 0 where it does not flag."""
        return 1 << self.flags.index(name) if name in self.flags else 0

    def result(self, name: str) -> RuleResult:
        """An empty result of a rule."""
        rule = self.rules[name]
        return RuleResult(name, self.chosen[name], unit=rule.unit, meaning=rule.meaning)

    def found(self, name: str, arrived: np.ndarray, examples: list[dict[str, Any]]) -> RuleResult:
        """What a rule found: ``arrived``: int64[h], when each of its rows arrived, microseconds."""
        result = self.result(name)
        result.count, result.examples = len(arrived), examples
        result.days = {iso(day): int(counts[0]) for day, counts in kernels().day_counts(arrived).items()}
        return result


def iso(day: int) -> str:
    """A day since 1970 as text, that of the first or last of the calendar where it is beyond."""
    return (dt.date(1970, 1, 1) + dt.timedelta(days=min(max(day, -719_162), 2_932_896))).isoformat()


def actions(quality: Quality, rules: Mapping[str, Rule]) -> dict[str, str]:
    """Every rule's action, the configured over the default.

    Raises:
        ConfigError: an unknown rule, or an action that the rule cannot take.
    """
    for name, action in quality.actions.items():
        rule = rules.get(name)
        if rule is None:
            raise ConfigError(f"quality.actions: there is no rule {name!r}; {did_you_mean(name, rules)}")
        if action not in rule.allowed:
            raise ConfigError(
                f"quality.actions: {name} cannot be {action!r}, only {', '.join(rule.allowed)} ({rule.meaning})"
            )
    return {name: quality.actions.get(name, rule.default) for name, rule in rules.items()}


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
    value_far: np.ndarray | None
    event_id_null: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ts)


@dataclass
class Verdict:
    """``rejected_by``: int16[n], the place in the rulebook of the rule that rejects the row, -1 where none does;
    ``marks``: int32[n], the flags of each row, None where no row has any; ``hits``: rule -> positions of all its rows,
    int64[h], for rules that found any."""

    rejected_by: np.ndarray
    marks: np.ndarray | None
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
    rows: Checked,
    quality: Quality,
    book: Rulebook,
    known: list[str] | None,
    earliest_us: int,
    own: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None,
) -> Verdict:
    """Apply every row rule to one file's rows.

    Args:
        known: kinds to accept, None for every kind; earliest_us: ``quality.earliest`` in microseconds;
        own: given which rows the built-in rules reject, bool[n], the user's rules -> bool[n].
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
    readable = ~(rows.ts_null | rows.ts_bad)
    limits = (earliest_us, quality.future, quality.late)
    times = kernels().time_bits(rows.ts, rows.ingested_at, readable, rows.dated, *limits)
    found["impossible_time"], found["late_arrival"] = (times == bit for bit in (IMPOSSIBLE, LATE))
    if known is not None:
        accepted = set(known)
        found["unknown_kind"] = _where_category(rows.event, lambda v: v != "" and v not in accepted)
    found["invalid_value"], found["value_out_of_range"] = rows.value_bad, rows.value_far
    found["null_event_id"] = rows.event_id_null

    verdict = Verdict(np.full(len(rows), -1, dtype=np.int16), None, {})
    for index, name in enumerate(RULES):
        _judge(verdict, index, name, found.get(name), book)
    if own is not None and book.own:
        found |= own(verdict.rejected_by >= 0)
        for index, name in enumerate(book.rules):
            if name not in RULES:
                _judge(verdict, index, name, found.get(name), book)
    return verdict


def _judge(verdict: Verdict, index: int, name: str, mask: np.ndarray | None, book: Rulebook) -> None:
    """Do to the rows that a rule found what its action says."""
    action = book.chosen[name]
    if mask is None or action == "off" or not mask.any():
        return
    if action == "reject":
        mask = mask & (verdict.rejected_by < 0)
        verdict.rejected_by[mask] = index
    positions = np.flatnonzero(mask)
    if not len(positions):
        return
    verdict.hits[name] = positions
    if action == "flag":
        if verdict.marks is None:
            verdict.marks = np.zeros(len(mask), dtype=np.int32)
        verdict.marks[positions] |= np.int32(book.bit(name))


def _union(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a | b


def refuse(results: Mapping[str, RuleResult], rejected: int, rows: int, quality: Quality, batch: str) -> None:
    """Stop the run where a ``fail`` rule found something or too many rows were rejected.

    Raises:
        DataError: names the rule, how many rows, and the first of them.
    """
    for result in results.values():
        if result.action == "fail" and result.count:
            what = f"{result.count:,} of {rows:,} rows" if result.unit == "rows" else f"{result.count:,} times"
            raise DataError(
                f"rule {result.name} ({result.meaning}) found {what} of batch {batch}, and its action is fail. First: "
                f"{result.examples[:1]}. Mend the source, or set quality.actions.{result.name} to another action"
            )
    if rows and rejected / rows > quality.fail_above:
        worst = sorted((r for r in results.values() if r.action == "reject"), key=lambda r: -r.count)
        what = ", ".join(f"{r.name} {r.count:,}" for r in worst[:3] if r.count)
        raise DataError(
            f"{rejected:,} of {rows:,} rows of batch {batch} ({rejected / rows:.1%}) break a rule ({what}), more than "
            f"quality.fail_above={quality.fail_above:g} allows. First: {worst[0].examples[:1]}. Check the mapping and "
            "source.time_unit, or raise quality.fail_above"
        )
