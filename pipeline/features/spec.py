"""What each feature is: names, definitions, dtypes and units, stored with every model version.

Training and scoring both compute from a :class:`FeatureSpec`, so they cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline.config import KINDS, Config, format_duration
from pipeline.errors import ConfigError, ModelError, did_you_mean
from pipeline.features.sequences import SequenceSpec
from pipeline.features.trailing import ContextSpec

FORMAT = 1
DAY = 86_400_000_000

# A rate is (n + SMOOTH_HITS) / (d + SMOOTH_TRIALS): ten imagined exposures with one response.
SMOOTH_HITS, SMOOTH_TRIALS = 1.0, 10.0

ENDINGS = ("unsubscribe", "complaint", "hard_bounce")  # after one of these, no sends until a subscribe
BOUNCES = ("soft_bounce", "hard_bounce")
RESPONSES = ("open", "click")

Op = Literal[
    "count",
    "recency",
    "rate",
    "streak",
    "tenure",
    "history",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "context",
]


@dataclass(frozen=True)
class Feature:
    """One column of X. ``window`` in microseconds, None for the whole history; the value is float32."""

    name: str
    op: Op
    definition: str
    unit: str
    kind: str | None = None
    window: int | None = None
    dtype: str = "float32"
    how: str | None = None


_HISTORY = Feature("history", "history", "the subscriber's events before at, of any kind", "events")


@dataclass(frozen=True)
class FeatureSpec:
    """The columns of X, in order, and what their computation refers to.

    ``kinds``: the kinds counted; ``windows``: microseconds, ascending; ``exposure``: the denominator of rates and what
    a streak counts; ``bounces``: kinds subtracted from the denominator; ``responses``: kinds that end a streak;
    ``cap``: recencies are at most this, microseconds; ``absent``: what the log could not give, for the user to read;
    ``context``: how rates of everybody are made, see ``context.py``; ``sequences``: what is beside X, ``sequences.py``.
    """

    features: tuple[Feature, ...]
    kinds: tuple[str, ...]
    windows: tuple[int, ...]
    exposure: str | None
    bounces: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()
    cap: int = 90 * DAY
    absent: tuple[str, ...] = ()
    context: ContextSpec | None = None
    sequences: SequenceSpec | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the log that features take, beside key, time, kind and machine."""
        levels = self.context.levels if self.context else ()
        listed = ("campaign",) if self.sequences and self.sequences.campaigns else ()
        return tuple(n for n in ("campaign", "provider") if n in (*levels, *listed))

    @property
    def names(self) -> list[str]:
        return [f.name for f in self.features]

    def __len__(self) -> int:
        return len(self.features)

    def index(self, name: str) -> int:
        """The column of a feature. Raises ConfigError with the nearest names where there is none."""
        try:
            return self.names.index(name)
        except ValueError:
            raise ConfigError(f"there is no feature {name!r}; {did_you_mean(name, self.names)}") from None

    def select(self, names: Iterable[str]) -> FeatureSpec:
        """The same specification with only these columns, in this order."""
        chosen = tuple(self.features[self.index(name)] for name in names)
        return replace(self, features=chosen)

    @classmethod
    def counts(cls, kinds: Iterable[str], windows: Iterable[int], exposure: str | None = None) -> FeatureSpec:
        """Counts of each kind in each window and nothing else; column ``window * len(kinds) + kind``."""
        kinds, windows = tuple(kinds), tuple(windows)
        return cls(tuple(_counts(kinds, windows)), kinds, windows, exposure, cap=max(windows))

    @classmethod
    def history(cls) -> FeatureSpec:
        """How many events a subscriber has, and nothing else: what can be said without a model."""
        return cls((_HISTORY,), (), (), None)

    @classmethod
    def from_config(cls, config: Config, kinds_present: Iterable[str]) -> FeatureSpec:
        """Every built-in feature that a log with these kinds allows.

        Args:
            kinds_present: the event kinds found in the store, any order.
        Raises:
            ConfigError: the kind that decisions are made at is not in the log.
        """
        present = set(kinds_present)
        if config.at.event is not None and config.at.event not in present:
            raise ConfigError(
                f"at.event is {config.at.event!r}, but the log has no such events; "
                f"{did_you_mean(config.at.event, present)}"
            )
        kinds = tuple([k for k in KINDS if k in present] + sorted(present - set(KINDS)))
        windows, cap = tuple(config.windows), max(config.windows)
        exposure = config.at.event or ("send" if "send" in present else None)
        outcome_kinds = [k for o in config.outcomes.values() for k in o.kinds]
        wanted = [*RESPONSES, *(k for k in outcome_kinds if k not in (*RESPONSES, *ENDINGS, *BOUNCES, exposure))]
        rated = [k for k in dict.fromkeys(wanted) if k in present]
        responses = tuple(k for k in RESPONSES if k in present) or tuple(rated)
        bounces = tuple(k for k in BOUNCES if k in present) if exposure == "send" else ()
        features = _counts(kinds, windows)
        for kind in kinds:
            features.append(
                Feature(
                    f"days_since_{kind}",
                    "recency",
                    f"days from the latest {kind} before at, at most {format_duration(cap)}; that where there is none",
                    "days",
                    kind,
                )
            )
        absent = []
        if exposure is None:
            absent.append("rates and ignored streak: the log has no exposure kind (at.event, or 'send')")
        else:
            below = exposure if not bounces else f"({exposure} - {' - '.join(bounces)})"
            for window in windows:
                for kind in rated:
                    features.append(_rate(kind, below, window))
            if responses:
                definition = f"{exposure} events since the latest {' or '.join(responses)} before at"
                features.append(Feature("ignored_streak", "streak", definition, "events"))
        features += [
            Feature("tenure", "tenure", "days from the subscriber's first event to at, at least 0", "days"),
            _HISTORY,
        ]
        for op, what, full in (("hour", "hour of the day", 24), ("weekday", "day of the week, Monday 0", 7)):
            for wave in ("sin", "cos"):
                definition = f"{wave}(2 pi x / {full}), x the {what}, in the client's time zone, at the decision"
                features.append(Feature(f"{op}_{wave}", f"{op}_{wave}", definition, "1"))  # type: ignore[arg-type]
        # A log that is not of messages does not lack their kinds.
        usual = [*KINDS, *outcome_kinds] if present & set(KINDS) else outcome_kinds
        lacking = dict.fromkeys(k for k in usual if k not in present)
        if lacking:
            absent.append(f"counts, recencies and rates of {', '.join(lacking)}: the log has none")
        return cls(tuple(features), kinds, windows, exposure, bounces, responses, cap, tuple(absent))

    # -- JSON --------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FeatureSpec:
        """Raises ModelError where the format is not the one this version reads."""
        values = dict(values)
        found = values.pop("format", None)
        if found != FORMAT:
            raise ModelError(f"feature specification of format {found!r}, this version reads {FORMAT}; train again")
        features = tuple(Feature(**f) for f in values.pop("features"))
        context = values.pop("context", None)
        values["context"] = None if context is None else ContextSpec.from_dict(context)
        sequences = values.pop("sequences", None)
        values["sequences"] = None if sequences is None else SequenceSpec.from_dict(sequences)
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(features=features, **lists)

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        return cls.from_dict(json.loads(text))


def _counts(kinds: tuple[str, ...], windows: tuple[int, ...]) -> list[Feature]:
    return [
        Feature(
            f"{kind}_{format_duration(window)}",
            "count",
            f"{kind} events in [at - {format_duration(window)}, at)",
            "events",
            kind,
            window,
        )
        for window in windows
        for kind in kinds
    ]


def _rate(kind: str, below: str, window: int) -> Feature:
    span = format_duration(window)
    definition = (
        f"({kind} + {SMOOTH_HITS:g}) / ({below} + {SMOOTH_TRIALS:g}), each counted in [at - {span}, at); "
        "the denominator's count is at least 0"
    )
    return Feature(f"{kind}_rate_{span}", "rate", definition, "1", kind, window)
