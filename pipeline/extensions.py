"""Features and rules of the user's own, in pandas syntax: what the files named under ``extensions`` register.

    @pipeline.feature(windows=["7d", "30d"], how="sum")
    def weekend_opens(events):
        return (events.event == "open") & (events.ts.dt.dayofweek >= 5)

    @pipeline.rule(action="reject")
    def absurd_value(events):
        "a value above a million"
        return events.value > 1_000_000 * 1_000_000

A function is given a frame of events, pandas or cuDF, and returns one value an event; who aggregates or acts on it is
the pipeline, so a feature cannot see past its decision point, and a rule cannot lose a row.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import runpy
import textwrap
import tokenize
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pipeline.errors import ConfigError, did_you_mean
from pipeline.options import parse_duration

How = Literal["sum", "mean", "min", "max", "last", "distinct"]
Action = Literal["reject", "flag", "warn", "fail"]
Function = TypeVar("Function", bound=Callable[[Any], Any])


@dataclass(frozen=True)
class UserFeature:
    """``function``: events -> one value an event; ``how`` it is aggregated over each of ``windows`` (microseconds)."""

    name: str
    function: Callable[[Any], Any] = field(compare=False)
    how: How
    windows: tuple[int, ...]
    unit: str
    definition: str
    source: str  # SHA-256 of the function's text: a model remembers what it was trained on
    columns: tuple[str, ...] | None = None  # of the log; None: every one
    missing: str | float = "refuse"  # what a null means: "refuse", "skip", or the number to take for it
    where: str = ""  # the file and line


@dataclass(frozen=True)
class UserRule:
    """``function``: events -> bool an event, true where the rule is broken; ``action`` as of the built-in rules."""

    name: str
    function: Callable[[Any], Any] = field(compare=False)
    action: Action
    meaning: str
    source: str

    @property
    def file(self) -> str:
        """Where the function was written."""
        code = getattr(self.function, "__code__", None)
        return str(code.co_filename) if code is not None else "an extension"


_MODULE = "extension_"  # how the modules of loaded files are named

_features: dict[str, UserFeature] = {}
_rules: dict[str, UserRule] = {}


def feature(
    windows: Sequence[str | int],
    how: How = "sum",
    unit: str = "1",
    name: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    missing: Literal["refuse", "skip"] | float = "refuse",
) -> Callable[[Function], Function]:
    """Register a feature of one's own; the function's docstring says what it means.

    The function is given the events of whole subscribers, index ``subscriber_key`` (good for grouping only), ascending
    by (subscriber_key, ts); ``ts`` is naive UTC, ``value`` in millionths. It returns one number or boolean an event
    (for distinct, also text).

    Args:
        windows: durations as in ``"7d"``; how: sum, mean, min, max, last or distinct of the function's values over the
        events in ``[at - window, at)``, machine events left out; 0 where there are none. unit: for the reader. name: of
        the feature, by default the function's.
        columns: those of the log that it needs beside ``ts`` and ``event``, which saves reading the others.
        missing: what a null or NaN means: an error, an event left out, or this number.
    Raises:
        ConfigError: an unknown ``how``, a window that is no duration, or a name that is no identifier or taken.
    """

    def register(function: Function) -> Function:
        label = _name(name or function.__name__, "feature", _features, function)
        if how not in get_args(How):
            raise ConfigError(f"feature {label!r}: how is {how!r}; {did_you_mean(str(how), get_args(How))}")
        try:
            spans = tuple(sorted({parse_duration(w) for w in windows}))
        except ValueError as error:
            raise ConfigError(f"feature {label!r}: windows: {error}") from None
        if not spans:
            raise ConfigError(f"feature {label!r} has no windows: give at least one, as in windows=['7d']")
        if missing not in ("refuse", "skip") and not isinstance(missing, int | float):
            raise ConfigError(f"feature {label!r}: missing is {missing!r}; give 'refuse', 'skip' or a number")
        _features[label] = UserFeature(
            label,
            function,
            how,
            spans,
            unit,
            _about(function),
            _digest(function, how, spans, columns, missing),
            None if columns is None else tuple([columns] if isinstance(columns, str) else columns),
            missing,
            _where(function),
        )
        return function

    return register


def rule(action: Action = "flag", name: str | None = None) -> Callable[[Function], Function]:
    """Register a validation rule of one's own; the function's docstring says what it means.

    Raises:
        ConfigError: an unknown action, or a name that is no identifier or taken.
    """

    def register(function: Function) -> Function:
        label = _name(name or function.__name__, "rule", _rules, function)
        if action not in get_args(Action):
            raise ConfigError(f"rule {label!r}: action is {action!r}; {did_you_mean(str(action), get_args(Action))}")
        _rules[label] = UserRule(label, function, action, _about(function), _digest(function))
        return function

    return register


def features() -> tuple[UserFeature, ...]:
    """Every registered feature, by name."""
    return tuple(_features[name] for name in sorted(_features))


def rules() -> tuple[UserRule, ...]:
    """Every registered rule, by name."""
    return tuple(_rules[name] for name in sorted(_rules))


def from_files() -> bool:
    """Whether every feature is of a file that ``load`` ran: then another process can have them too."""
    return all(feature.function.__module__.startswith(_MODULE) for feature in _features.values())


def clear() -> None:
    """Forget everything registered."""
    _features.clear()
    _rules.clear()


def load(paths: Sequence[str]) -> None:
    """Run the files, each once; what an earlier call registered is forgotten first.

    Raises:
        ConfigError: a file is not there or fails; names it and the line.
    """
    registries: tuple[dict[str, Any], ...] = (_features, _rules)
    for registry in registries:
        for name in [n for n, entry in registry.items() if entry.function.__module__.startswith(_MODULE)]:
            del registry[name]
    for path in paths:
        if not Path(path).is_file():
            raise ConfigError(f"extensions: there is no file {path!r}; give the path of a Python file")
        try:
            runpy.run_path(path, run_name=f"{_MODULE}{re.sub(r'[^A-Za-z0-9_]', '_', Path(path).stem)}")
        except ConfigError as error:
            raise ConfigError(f"extensions: {path}: {error}") from None
        except Exception as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
            line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
            where = f"{path}, line {line}" if line else path
            raise ConfigError(f"extensions: {where}: {type(error).__name__}: {error}") from error


def digest(paths: Sequence[str]) -> str:
    """SHA-256 of the files' content: results made with other extensions are not reused."""
    sha = hashlib.sha256()
    for path in paths:
        if Path(path).is_file():
            sha.update(Path(path).read_bytes() + b"\0")
    return sha.hexdigest()[:16] if paths else ""


def _name(name: str, what: str, taken: dict[str, Any], function: Callable[[Any], Any]) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        raise ConfigError(f"a {what} cannot be named {name!r}: letters, digits and _, at most 64, no digit first")
    if name in taken:
        one, two = taken[name].function, function
        same_file = _file(one) == _file(two)
        # A notebook's cell that is run again redefines its function: another file, or the same line of it.
        if one.__module__ != two.__module__ or (same_file and _where(one) != _where(two)):
            raise ConfigError(f"there are two {what}s named {name!r} ({_where(one)}, and {_where(two)}); rename one")
    return name


def _file(function: Callable[[Any], Any]) -> str:
    code = getattr(function, "__code__", None)
    return code.co_filename if code else repr(function)


def _about(function: Callable[[Any], Any]) -> str:
    return " ".join((inspect.getdoc(function) or function.__name__.replace("_", " ")).split())


def _where(function: Callable[[Any], Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{_file(function)}, line {code.co_firstlineno}" if code else repr(function)


def _instructions(code: types.CodeType) -> tuple[object, ...]:
    constants = [_instructions(c) if isinstance(c, types.CodeType) else c for c in code.co_consts]
    return code.co_code, code.co_names, constants


def _digest(function: Callable[[Any], Any], *options: object) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # typed into a terminal, or its file is another now
        text = repr(_instructions(function.__code__)) if hasattr(function, "__code__") else repr(function)
    return hashlib.sha256(f"{text}\0{options}".encode()).hexdigest()
