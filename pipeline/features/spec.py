"""What each feature is: names, definitions, dtypes and units, stored with every model version.

Training and scoring both compute from a :class:`FeatureSpec`, so they cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError, ModelError, did_you_mean
from pipeline.features.presence import Presence
from pipeline.features.sequences import SequenceSpec
from pipeline.features.similarity import Similarity
from pipeline.features.trailing import ContextSpec
from pipeline.options import format_duration

FORMAT = 2  # 2: features have how, until and source
DAY = 86_400_000_000

# A rate is (n + SMOOTH_HITS) / (d + SMOOTH_TRIALS): ten imagined exposures with one response.
SMOOTH_HITS, SMOOTH_TRIALS = 1.0, 10.0

ENDINGS = ("unsubscribe", "complaint", "hard_bounce")  # after one of these, no sends until a subscribe
BOUNCES = ("soft_bounce", "hard_bounce")
SEND = "send"  # the exposure where decisions are not made at events
RESPONSES = ("open", "click")
CAMPAIGNS = {"campaigns", "match", "reaction", "presence"}  # computations that look at each event's campaign
FAMILIES = {"match", "presence"}  # those that look at its family, where the log has campaigns


@dataclass(frozen=True)
class Feature:
    """One column of X; the value is float32.

    ``op``: the computation, a key of ``windows.COLUMNS``, and ``how`` one variant of it. ``kind``: the event kind it is
    about, or for op "own" the name of a function of the user's, whose text has the digest ``source``. ``window``:
    microseconds, None for the whole history; ``until``: a tile's near end, microseconds before the decision.
    """

    name: str
    op: str
    definition: str
    unit: str
    kind: str | None = None
    window: int | None = None
    dtype: str = "float32"
    how: str | None = None
    until: int | None = None
    source: str | None = None


HISTORY = Feature("history", "history", "the subscriber's events before at, of any kind", "events")


@dataclass(frozen=True)
class FeatureSpec:
    """The columns of X, in order, and what their computation refers to.

    ``kinds``: the kinds counted; ``windows``: microseconds, ascending; ``exposure``: the denominator of rates and what
    a streak counts; ``bounces``: kinds subtracted from the denominator; ``responses``: kinds that end a streak;
    ``acts``: what a subscriber does, for active days; ``cap``: recencies are at most this, microseconds; ``absent``:
    what the log could not give, for the user to read; ``context``: how rates of everybody are made, see ``context.py``;
    ``sequences``: what is beside X, ``sequences.py``; ``similarity``: of families of campaigns, where it is known;
    ``presence``: what the group of that name was learned to be, where there was something to learn it from.
    """

    features: tuple[Feature, ...]
    kinds: tuple[str, ...]
    windows: tuple[int, ...]
    exposure: str | None
    bounces: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()
    acts: tuple[str, ...] = ()
    cap: int = 90 * DAY
    absent: tuple[str, ...] = ()
    context: ContextSpec | None = None
    sequences: SequenceSpec | None = None
    similarity: Similarity | None = None
    presence: Presence | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the log that built-in features take, beside key, time, kind and machine."""
        levels = self.context.levels if self.context else ()
        named = self.sequences
        ops = {f.op for f in self.features}
        read = {
            "campaign": "campaign" in levels
            or bool(ops & CAMPAIGNS)
            or (named is not None and bool(named.campaigns or named.families)),
            "provider": "provider" in levels or (named is not None and bool(named.providers)),
            "value": "value" in ops,
        }
        return tuple(name for name, wanted in read.items() if wanted)

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
        return cls(tuple(counts(kinds, windows)), kinds, windows, exposure, cap=max(windows))

    @classmethod
    def history(cls) -> FeatureSpec:
        """How many events a subscriber has, and nothing else: what can be said without a model."""
        return cls((HISTORY,), (), (), None)

    @classmethod
    def from_config(cls, config: Config, kinds_present: Iterable[str]) -> FeatureSpec:
        """The configured groups of built-in features, as far as a log with these kinds allows, and the user's own.

        Args:
            kinds_present: the event kinds found in the store, any order.
        Raises:
            ConfigError: the kind that decisions are made at is not in the log, or two features have one name.
        """
        from pipeline.features.catalogue import specification

        return specification(config, kinds_present)

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
        alike = values.pop("similarity", None)
        values["similarity"] = None if alike is None else Similarity.from_dict(alike)
        there = values.pop("presence", None)
        values["presence"] = None if there is None else Presence.from_dict(there)
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(features=features, **lists)

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        return cls.from_dict(json.loads(text))


def counts(kinds: Iterable[str], windows: Iterable[int | None]) -> list[Feature]:
    """How often each kind happened in each window; None is the whole history."""
    return [
        Feature(f"{k}_{label(w)}", "count", f"{k} events in {span(w)}", "events", k, w) for w in windows for k in kinds
    ]


def label(window: int | None) -> str:
    """A window in a feature's name."""
    return "ever" if window is None else format_duration(window)


def span(window: int | None) -> str:
    """A window in a feature's definition."""
    return "the whole history before at" if window is None else f"[at - {format_duration(window)}, at)"
