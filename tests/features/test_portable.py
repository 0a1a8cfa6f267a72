"""The whole way from events to a table on the strict stand-in for CuPy: the array code asks nothing that CuPy lacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.backend import Backend, choose
from pipeline.features import aggregates, filters, kernels
from pipeline.features.samples import Head, SampleRequest
from pipeline.features.similarity import Similarity
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table
from tests.features.logs import DAY, EVERYTHING, KINDS, Event, frame_of, logs
from tests.strict_numpy import StrictArray
from tests.strict_numpy import xp as strict

SPEC = replace(
    FeatureSpec.from_config(EVERYTHING, KINDS), similarity=Similarity(("a", "b"), ((1.0, -0.5), (-0.5, 1.0)))
)
HEADS = (
    Head("any", ("unsubscribe", "click"), 3 * DAY),
    Head("matched", ("click", "open", "send"), 2 * DAY, match=True),
    Head("spend", ("purchase",), 4 * DAY, sum=True),
)
TRAIN = SampleRequest(
    "train",
    as_of=21 * DAY,
    heads=HEADS,
    exposure="send",
    lateness=DAY,
    holdout=4 * DAY,
    validation=3 * DAY,
    holdout_share=0.3,
    downsample=0.5,
    timezone="Europe/Berlin",
    keys=(),
)
SNAPSHOTS = replace(TRAIN, exposure=None, every=2 * DAY, heads=tuple(h for h in HEADS if not h.match))


@dataclass(frozen=True)
class StrictBackend(Backend):
    """pandas frames, strict arrays, no compiled twins."""

    @property
    def xp(self) -> Any:
        return strict

    @property
    def compiled(self) -> bool:
        return False

    @property
    def kernels(self) -> Any:
        return kernels

    @property
    def aggregates(self) -> Any:
        return aggregates

    @property
    def filters(self) -> Any:
        return filters

    def column(self, series: Any) -> Any:
        return super().column(series).view(StrictArray)

    def codes(self, series: Any, vocabulary: list[str], of: Any = str) -> Any:
        return choose("cpu").codes(series, vocabulary, of).view(StrictArray)

    def empty_aligned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return super().empty_aligned(shape, dtype).view(StrictArray)

    def frame(self, columns: dict[str, Any], times: tuple[str, ...] = ()) -> Any:
        assert all(isinstance(c, StrictArray) for c in columns.values())
        return super().frame({n: c.view(np.ndarray) for n, c in columns.items()}, times)


@pytest.mark.parametrize("asked", [TRAIN, SNAPSHOTS], ids=["exposures", "snapshots"])
@settings(max_examples=40, deadline=None, database=None)
@given(events=logs(machine=True))
def test_strict_arrays_give_the_same_table(asked: SampleRequest, events: list[Event]) -> None:
    plain = choose("cpu")
    kept = [e for e in events if e.ts < asked.as_of]
    frame = frame_of(kept, plain, machine=True)
    found, expected = (
        feature_table(frame, SPEC, asked, StrictBackend("pandas")),
        feature_table(frame, SPEC, asked, plain),
    )
    assert found.counts == expected.counts
    for name in ("X", "y", "mask", "weight", "split"):
        array = getattr(found, name)
        assert isinstance(array, StrictArray), name
        assert array.tolist() == getattr(expected, name).tolist(), name
