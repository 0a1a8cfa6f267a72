"""The section ``tune`` of the configuration: what is searched for the best settings of ``model``, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from pipeline.options import Section

SEARCHED = "to"  # between the two ends of a range


def parse_span(text: str) -> tuple[float, float]:
    """``"0.001 to 0.1"`` -> its ends."""
    ends = [part.strip() for part in text.split(SEARCHED)]
    try:
        low, high = map(float, ends)
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise ValueError(f"{text!r} is no range: write two numbers, the lesser first, as in '0.001 to 0.1'")
    return low, high


def _choices(value: object) -> object:
    """A setting's values to choose from, as a list; a range as it is; None."""
    if isinstance(value, list):
        if not value or any(value.count(one) > 1 for one in value):
            raise ValueError("give at least one value, and none of them twice")
        return value
    if isinstance(value, dict):
        raise ValueError("write a value, a list of values to choose from, or null: as configured")
    return None if value is None else [value]


def _span_or_choices(value: object) -> object:
    if isinstance(value, str) and SEARCHED in value:
        low, high = parse_span(value)
        return f"{low:g} {SEARCHED} {high:g}"
    return _choices(value)


def _widths(value: object) -> object:
    """The hidden layers of one network stand in a list already."""
    one = isinstance(value, list) and not any(isinstance(v, list) for v in value)
    return _choices([value] if one else value)


def _kinds(value: object) -> object:
    return value if value == "auto" else _choices(value)


Choices = Annotated[Any, PlainValidator(_choices)]  # a list of values to choose from, or None: as configured
Span = Annotated[Any, PlainValidator(_span_or_choices)]  # a range, written "0.001 to 0.1", or choices


class Space(Section):
    """What tune searches: of each setting a range, values to choose from, one value, or null: as in ``model``."""

    kind: Annotated[Any, PlainValidator(_kinds)] = "auto"  # auto: logistic, dense, and model.kind
    learning_rate: Span = "0.0005 to 0.03"
    weight_decay: Span = "0.0001 to 1"
    hidden: Annotated[Any, PlainValidator(_widths)] = [[32], [64, 32], [128, 64], [256, 128]]
    dropout: Span = [0.0, 0.1, 0.2, 0.4]
    batch_size: Choices = [1024, 2048, 4096, 8192]
    units: Choices = [16, 32, 64]
    imbalance: Choices = None
    focal_gamma: Span = None

    def ends(self) -> Iterator[tuple[str, Any]]:
        """Each setting that is searched with each value it may have; of a range, its ends."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, str) and value != "auto":
                yield from ((name, end) for end in parse_span(value))
            elif isinstance(value, list):
                yield from ((name, one) for one in value)


class Tune(Section):
    """The search for each client's best settings of the model; see pipeline/learning/study.py."""

    trials: Annotated[int, Field(ge=1)] = 20  # of each client
    batch: Annotated[int, Field(ge=1)] = 4  # trials that are chosen together, and may run side by side
    rows: Annotated[int, Field(ge=1000)] = 1_000_000  # training rows of a trial, at random where there are more
    prune: bool = True  # give up a trial that does worse than half of the earlier ones did at that epoch
    warmup: Annotated[int, Field(ge=1)] = 2  # epochs that no trial is given up before
    seed: int = 1  # of the choices; the networks have model.seed
    use: bool = False  # train each client with the best settings found
    space: Space = Space()
