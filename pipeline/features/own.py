"""Features of the user's own: one value an event from a function of theirs, windowed by the kernels.

The function gets a partition's events and gives a value for each; the kernels decide which of them a decision point
sees. So it cannot see past a point, as long as an event's value does not itself hang on other events: later ones, those
of other subscribers, or how many there are. :func:`_check` looks for that among the first events of each kind that this
process sees.

Values are fixed-point from here on, so that sums are exact and the same on both backends: whole numbers and booleans as
they are, others in millionths (micro-units), rounded half to even.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pipeline import extensions
from pipeline.backend import Array, Backend, Frame
from pipeline.errors import ConfigError, DataError, EventgrainError, ModelError, did_you_mean
from pipeline.extensions import UserFeature
from pipeline.features.blocks import Block, Rows, Subset
from pipeline.features.spec import Feature, FeatureSpec
from pipeline.features.values import MICRO, SUM_LIMIT, aggregate, check_sums

# How a row came here, which a decision on the day does not know alike; and what groups no better than the index.
LEFT_OUT = ("batch", "ingested_at", "subscriber")
ALWAYS = ("ts", "event")
CHECKED_ROWS = 50_000  # that a function is tried on at once, or a subscriber more
CHECKED_OF_A_KIND = 1_000  # events that it is tried on, in a process, before it is trusted with those of a kind

_checked: dict[str, dict[str, int]] = {}  # a function's text -> kind -> events that it was tried on
_lock = threading.Lock()


@dataclass(frozen=True)
class _Values:
    """One value for each of some rows: ``fixed``: int64[m], over ``scale``; for distinct, codes below ``number``."""

    subset: Subset
    fixed: Array
    scale: int = 1
    number: int = 0


def columns(spec: FeatureSpec, available: list[str]) -> list[str]:
    """Which of the available columns of the log the functions of a specification are given.

    Raises:
        ConfigError: a function declares a column that the log does not have; ModelError: see :func:`registered`.
    """
    wanted: list[str] = []
    for own in {f.kind: registered(f) for f in spec.features if f.op == "own"}.values():
        wanted += _columns(own, available)
    return list(dict.fromkeys(wanted))


def _columns(own: UserFeature, available: list[str]) -> list[str]:
    if own.columns is None:
        return [c for c in available if c not in LEFT_OUT]
    for name in own.columns:
        if name in LEFT_OUT:
            raise ConfigError(
                f"feature {own.name!r} ({own.where}) wants the column {name!r}, which no function is given; a "
                "subscriber's events have one value of the index, subscriber_key: group by it, as in groupby(level=0)"
            )
        if name not in available:
            raise ConfigError(
                f"feature {own.name!r} ({own.where}) wants the column {name!r}, which the log does not have; "
                f"{did_you_mean(name, available)} Map it in source.columns, or name it in source.carry"
            )
    return list(dict.fromkeys([*ALWAYS, *own.columns]))


def registered(feature: Feature) -> UserFeature:
    """The user's function that a feature is of.

    Raises:
        ModelError: none of that name is registered, or its text is not the one that the specification was made with.
    """
    for own in extensions.features():
        if own.name == feature.kind:
            if own.source == feature.source:
                return own
            raise ModelError(
                f"feature {own.name!r} ({own.where}) has changed since the model was trained with it; train again, or "
                "put the function back as it was"
            )
    raise ModelError(
        f"the model needs the feature {feature.kind!r}, a function that no loaded file defines; name its file in "
        "extensions, or train again without it"
    )


def column(block: Block, feature: Feature) -> Array:
    """One aggregate of the function's values over one window."""
    found = block.rows.keep(("own", feature.kind), lambda: _values(block.rows, registered(feature)))
    if feature.how == "distinct":
        begin, end = block.window(found.subset, feature.window)
        return block.part.backend.aggregates.window_distinct(block.xp, found.fixed, found.number, begin, end)
    return aggregate(block, feature.how or "", found.subset, found.fixed, found.scale, feature.window)


def _values(rows: Rows, own: UserFeature) -> _Values:
    """The function's values for the rows of humans that have one."""
    part, xp, backend = rows.part, rows.part.xp, rows.part.backend
    assert part.frame is not None
    frame = part.frame[_columns(own, list(part.frame.columns))]
    if bool((backend.column(frame["ts"]) != part.ts).any()):  # copies of histories end with a row of another time
        ts = backend.frame({"ts": part.ts}, times=("ts",))["ts"]
        ts.index = frame.index
        frame = frame.assign(ts=ts)
    _check(own, frame, part.starts, part.seg, part.ts, backend)
    fixed, missing, scale = _call(own, frame, backend)
    counted = ~missing
    if part.flagged is not None:
        counted = counted & ~part.flagged & (part.human == part.kind)
    subset = Subset(part, counted)
    fixed = fixed[subset.rows]
    if own.how != "distinct":
        check_sums(part, subset.seg, fixed, f"feature {own.name!r} ({own.where}): a sum")
        return _Values(subset, fixed, scale)
    # Codes of this partition alone: only how many there are leaves it.
    order = xp.argsort(fixed, kind="stable")
    new = xp.zeros(len(order), dtype=xp.int64)
    new[1:] = fixed[order[1:]] != fixed[order[:-1]]
    codes = xp.zeros(len(order), dtype=xp.int64)
    codes[order] = xp.cumsum(new)
    return _Values(subset, codes, 1, int(codes.max()) + 1 if len(codes) else 1)


def _call(own: UserFeature, frame: Frame, backend: Backend) -> tuple[Array, Array, int]:
    """What the function gives for the frame: int64[n] fixed-point, bool[n] missing, and the scale.

    Raises:
        DataError: it fails, or gives anything but one finite number (or boolean; for distinct, text) an event. Names
        the function and its file.
    """
    where = f"feature {own.name!r} ({own.where})"
    try:
        given = own.function(frame.copy(deep=False))
    except EventgrainError:
        raise
    except Exception as error:
        hint = ""
        if isinstance(error, (KeyError, AttributeError)):
            hint = f". It is given the columns {', '.join(map(str, frame.columns))}; name others in columns=[...]"
        raise DataError(f"{where} failed on {len(frame)} events: {type(error).__name__}: {error}{hint}") from error
    if hasattr(given, "index") and hasattr(given, "dtype") and not isinstance(given, backend.df.Series):
        raise DataError(f"{where} gave a {type(given).__module__}.{type(given).__name__} for events in {backend.name}")
    shape = getattr(given, "shape", None) or ((len(given),) if isinstance(given, list) else ())
    if shape != (len(frame),):
        found = f"{type(given).__name__} of shape {shape}" if shape else repr(given)[:80]
        raise DataError(f"{where} gave {found} for {len(frame)} events; it must give one value an event")
    if not isinstance(given, backend.df.Series):
        given = backend.df.Series(given, index=frame.index)
    elif not given.index.equals(frame.index):
        raise DataError(
            f"{where} gave its values under another index than the events'; return them in the events' order, without "
            "sorting, resetting the index or grouping to fewer rows"
        )
    values, missing, kind = backend.numbers(given)
    if kind in "mM":
        raise DataError(
            f"{where} gave times ({given.dtype}); give a number, as in (events.ts - start).dt.total_seconds()"
        )
    if kind not in ("biuf" if own.how != "distinct" else "biufs"):
        raise DataError(
            f"{where} gave values of type {given.dtype}; it must give numbers or booleans"
            + (" or text" if own.how == "distinct" else "")
        )
    return _fixed(own, where, values, missing, kind, backend)


def _fixed(
    own: UserFeature, where: str, values: Array, missing: Array, kind: str, backend: Backend
) -> tuple[Array, Array, int]:
    xp = backend.xp
    some = bool(missing.any())
    if some and own.missing == "refuse":
        raise DataError(
            f"{where} gave no value (null or NaN) for {int(missing.sum())} of {len(values)} events; say what that "
            "means with missing='skip', which leaves them out, or missing=0, which takes 0 for them"
        )
    if some and not isinstance(own.missing, str):
        if kind == "s":
            raise DataError(f"{where} gave text, whose missing values cannot be {own.missing!r}; use missing='skip'")
        if kind != "f" and own.missing != int(own.missing):
            values, kind = values.astype(xp.float64), "f"
        values = xp.where(missing, own.missing, values)
        missing = xp.zeros(len(values), dtype=bool)
    limit = SUM_LIMIT if kind != "f" else SUM_LIMIT / MICRO
    if kind in "iuf" and not bool(xp.all(xp.abs(values.astype(xp.float64)) < limit)):
        raise DataError(
            f"{where} gave a value that is infinite, or beyond {limit:.2g}; divide only where the divisor is not 0, "
            "and by a power of ten what is too large"
        )
    if kind == "f":
        return xp.rint(values * MICRO).astype(xp.int64), missing, MICRO
    return values.astype(xp.int64), missing, 1


# -- does a value hang on other events? ------------------------------------------------------------------------


def _check(own: UserFeature, frame: Frame, starts: Array, seg: Array, ts: Array, backend: Backend) -> None:
    """Try the function on whole subscribers of a partition until it has been on enough events of each kind there is:
    one that looks ahead for a rare kind gives itself away only where that is.

    Raises:
        DataError: see :func:`_try`.
    """
    xp, event = backend.xp, frame["event"]
    names = backend.categories(event)
    codes, untried = backend.codes(event, names), xp.ones(len(starts) - 1, dtype=bool)
    while CHECKED_ROWS and len(ts):
        with _lock:
            tried = dict(_checked.get(own.source, {}))
        wanted = xp.asarray([tried.get(name, 0) < CHECKED_OF_A_KIND for name in names], dtype=bool)[codes]
        segments = xp.unique(seg[wanted & untried[seg]])
        if not len(segments):
            return
        size = xp.cumsum(starts[segments + 1] - starts[segments])
        chosen = xp.zeros(len(untried), dtype=bool)
        chosen[segments[: int((size < CHECKED_ROWS).sum()) + 1]] = True
        rows = xp.flatnonzero(chosen[seg])[: 4 * CHECKED_ROWS]  # of one giant subscriber, its first ones
        _try(own, frame.iloc[rows], (xp.cumsum(chosen) - 1)[seg[rows]], ts[rows], backend)
        untried &= ~chosen
        counts = backend.to_host(xp.bincount(codes[rows], minlength=len(names))).tolist()
        with _lock:
            known = _checked.setdefault(own.source, {})
            for name, count in zip(names, counts, strict=True):
                known[name] = known.get(name, 0) + count


def _try(own: UserFeature, frame: Frame, seg: Array, ts: Array, backend: Backend) -> None:
    """An event's value must stay the same when events later than it, or other subscribers, are taken away, and when the
    function is called again.

    Args:
        seg: int64[n], 0, 0, 1, ...: the subscriber of each event.
    Raises:
        DataError: it does not; names the function, its file, an event, and what to do.
    """
    xp, n = backend.xp, len(ts)
    expected = _call(own, frame, backend)
    last = ts[xp.searchsorted(seg, seg, side="right") - 1]
    places = xp.asarray([n // 4, n // 2, n * 3 // 4, n * 9 // 10])
    quarters = [ts < instant for instant in xp.sort(ts)[places].tolist()]
    for kept, without in (
        (xp.ones(n, dtype=bool), ""),
        (seg % 2 == 0, "other subscribers are"),
        (seg % 2 == 1, "other subscribers are"),
        (ts < last, "each subscriber's latest events are"),
        *((kept, "later events are") for kept in quarters),
    ):
        rows = xp.flatnonzero(kept)
        if not len(rows):
            continue
        found = _call(own, frame.iloc[rows], backend)
        # Whole numbers of all the events may be fractions of some of them, or nulls make them so.
        unit = max(expected[2], found[2])
        one, two = expected[0][rows] * (unit // expected[2]), found[0] * (unit // found[2])
        differ = xp.flatnonzero((expected[1][rows] != found[1]) | ((one != two) & ~found[1]))
        if len(differ):
            _complain(own, frame.iloc[rows[differ[:1]]], without, backend)


def _complain(own: UserFeature, event: Frame, without: str, backend: Backend) -> None:
    shown = backend.to_pandas(event).iloc[0]
    which = f"a {shown['event']} at {shown['ts']}"
    if not without:
        raise DataError(
            f"feature {own.name!r} ({own.where}) gives {which} another value when called again with the same events; "
            "it must not depend on chance, on the time of day or on earlier calls"
        )
    raise DataError(
        f"feature {own.name!r} ({own.where}) gives {which} another value once {without} taken away, so it looks at "
        "them: as shift(-1), rank, transform or a mean over all events do. An event's value may depend on that event, "
        "and on its subscriber's earlier ones, as with groupby(level=0).shift() or .cumsum()"
    )
