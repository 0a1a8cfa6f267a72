"""Features of one's own: what the functions may do, what they may not, and what becomes of their values."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

import pipeline
from pipeline import extensions
from pipeline.backend import Backend
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.features import own
from pipeline.features.samples import SampleRequest
from pipeline.features.spec import FeatureSpec
from pipeline.features.table import feature_table, read_columns
from tests.features import oracle
from tests.features.logs import DAY, KINDS, Event, frame_of, logs, ordered, random_log

README = Path(__file__).parents[2] / "README.md"
ASKED = SampleRequest("train", as_of=2**60, heads=(), exposure="send")
CONFIG = Config(features={"groups": ["tenure"]})


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No function of another test; nothing trusted before."""
    monkeypatch.setattr(extensions, "_features", {})
    monkeypatch.setattr(extensions, "_rules", {})
    monkeypatch.setattr(own, "_checked", {})


def table(backend: Backend, events: list[Event], **changes: Any) -> dict[str, list[float]]:
    spec = FeatureSpec.from_config(CONFIG, KINDS)
    asked = SampleRequest(**{**ASKED.__dict__, **changes})
    found = feature_table(frame_of(events, backend, machine=True), spec, asked, backend)
    return dict(zip(spec.names, backend.to_host(found.X).T.tolist(), strict=True))


def refused(backend: Backend, function: Callable[[Any], Any], message: str, events: list[Event] | None = None) -> None:
    """The function is refused with this message, which names it and its file."""
    if function.__name__ not in [f.name for f in extensions.features()]:
        pipeline.feature(windows=["7d"])(function)
    with pytest.raises(DataError, match=message) as caught:
        table(backend, events or LOG)
    assert f"feature {function.__name__!r} ({__file__}, line " in str(caught.value)


LOG = random_log(np.random.default_rng(2), 400, 12, 30)


def spent(frame: Any) -> Any:
    return frame.value.where(frame.event == "purchase") / 3_000_000


def opened(frame: Any) -> Any:
    return frame.event == "open"


def value(frame: Any) -> Any:
    return frame.value


PLAIN: dict[str, oracle.Own] = {
    "spent": lambda e: round(e.value / 3_000_000, 6) if e.event == "purchase" else None,
    "opened": lambda e: int(e.event == "open"),
    "value": lambda e: e.value,
}


@pytest.fixture
def aggregates(monkeypatch: pytest.MonkeyPatch) -> FeatureSpec:
    """Three functions in all six ways."""
    for how in ("sum", "mean", "min", "max", "last", "distinct"):
        for function in (spent, opened, value):
            name = f"{function.__name__}_{how}"
            missing = "skip" if function is spent else "refuse"
            pipeline.feature(windows=["1d", "9d"], how=how, name=name, missing=missing)(function)  # type: ignore[arg-type]
    monkeypatch.setattr(own, "CHECKED_ROWS", 0)
    return FeatureSpec.from_config(CONFIG, KINDS)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(events=logs(machine=True))
def test_every_aggregate_agrees_with_plain_python(
    backend: Backend, aggregates: FeatureSpec, events: list[Event]
) -> None:
    found = feature_table(frame_of(events, backend, machine=True), aggregates, ASKED, backend)
    sends = [e for e in events if e.event == "send"]
    assert len(found) == len(sends)
    plain = {str(f.kind): PLAIN[str(f.kind).partition("_")[0]] for f in aggregates.features if f.op == "own"}
    for send, row in zip(sends, backend.to_host(found.X).tolist(), strict=True):
        expected = oracle.feature(aggregates, events, send.key, send.ts, own=plain)
        assert dict(zip(aggregates.names, row, strict=True)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_readme_s_example(backend: Backend, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(import pipeline\s+@pipeline\.feature.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "own.py").write_text(code)
    runpy.run_path(str(tmp_path / "own.py"))
    weekend = lambda e: e.event == "open" and e.ts // DAY % 7 in (2, 3)  # noqa: E731  (1970-01-01 was a Thursday)
    expected = [
        sum(weekend(e) for e in LOG if e.key == s.key and s.ts - 30 * DAY <= e.ts < s.ts)
        for s in LOG
        if s.event == "send"
    ]
    assert table(backend, LOG)["weekend_opens_30d"] == expected
    assert max(expected) > 0


def test_a_feature_whose_file_was_changed_since_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("\n@(\ndef ones(\n")
    code = "import pipeline\n@pipeline.feature(windows=['9d'])\ndef ones(frame):\n    return 1"
    exec(compile(code, str(tmp_path / "own.py"), "exec"), {})
    assert [feature.name for feature in extensions.features()] == ["ones"]


def test_what_one_gives_in_pandas_ways(backend: Backend) -> None:
    """Arrays, lists, mapped categories, nullable integers, text to count the different ones of."""
    events = [Event(1, i * DAY, kind, "ab"[i % 2], i, i) for i, kind in enumerate(["open", "click", "open", "send"])]

    @pipeline.feature(windows=["9d"])
    def ones(frame: Any) -> Any:
        return [1] * len(frame)

    @pipeline.feature(windows=["9d"], missing="skip", how="mean")
    def mapped(frame: Any) -> Any:
        return frame.event.map({"open": 2, "click": 5})

    @pipeline.feature(windows=["9d"], missing=0.5)
    def half(frame: Any) -> Any:
        return frame.value.astype("Int64").where(frame.value != 1)

    @pipeline.feature(windows=["9d", "1d"], how="distinct")
    def kinds(frame: Any) -> Any:
        return frame.event

    @pipeline.feature(windows=["9d"], how="max")
    def nth(frame: Any) -> Any:
        return frame.groupby(level=0).cumcount()

    found = {name: column[0] for name, column in table(backend, events).items()}
    assert found["ones_9d"] == 3
    assert found["mapped_9d"] == 3
    assert found["half_9d"] == 2.5
    assert found["kinds_9d"] == 2
    assert found["kinds_1d"] == 1
    assert found["nth_9d"] == 2


def test_the_future_is_seen_through_no_function(backend: Backend) -> None:
    def next_value(frame: Any) -> Any:
        return frame.groupby(level=0).value.shift(-1).fillna(0)

    refused(backend, next_value, "another value once each subscriber.s latest events are taken away, so it looks")
    extensions.clear()

    def rest_of_life(frame: Any) -> Any:
        return frame.groupby(level=0).value.transform("sum")

    refused(backend, rest_of_life, "each subscriber's latest events are taken away")
    extensions.clear()

    def against_all(frame: Any) -> Any:
        return frame.value - frame.value.mean()

    refused(backend, against_all, "are taken away")
    extensions.clear()

    def before_in_the_file(frame: Any) -> Any:
        return frame.value.shift(1).fillna(0)

    refused(backend, before_in_the_file, "other subscribers are taken away")
    extensions.clear()

    def by_chance(frame: Any) -> Any:
        return np.random.default_rng().random(len(frame)).tolist()

    refused(backend, by_chance, "when called again with the same events")


@pytest.mark.parametrize("partitions", [1, 2])
def test_nor_for_a_rare_kind_long_after_the_function_is_trusted(
    backend: Backend, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the kind that it looks ahead for is in the last rows of a partition, or in a later partition only."""
    monkeypatch.setattr(own, "CHECKED_ROWS", 40)
    monkeypatch.setattr(own, "CHECKED_OF_A_KIND", 5)
    common = [Event(key, day * DAY, "send", None, day) for key in range(40) for day in range(10)]
    rare = [*(Event(50, day * DAY, "send", None, day) for day in range(9)), Event(50, 9 * DAY, "purchase", None, 9)]
    calls: list[int] = []

    @pipeline.feature(windows=["7d"], how="max")
    def buyer(frame: Any) -> Any:
        calls.append(len(frame))
        return (frame.event == "purchase").groupby(level=0).transform("max")

    if partitions == 2:
        table(backend, common)
        assert max(calls[:-1]) < 100  # tried on some, then computed
        refused(backend, buyer, "taken away", rare)
    else:
        refused(backend, buyer, "taken away", [*common, *rare])


def test_the_past_may_be_seen(backend: Backend) -> None:
    @pipeline.feature(windows=["30d"], how="last")
    def spent_so_far(frame: Any) -> Any:
        return frame.groupby(level=0).value.cumsum()

    found = table(backend, LOG)["spent_so_far_30d"]
    sends = [s for s in LOG if s.event == "send"]
    earlier = [[e for e in LOG if e.key == s.key and e.ts < s.ts] for s in sends]
    # float32 holds 24 bits of a sum
    assert found == pytest.approx([sum(e.value for e in past) for past in earlier], rel=1e-6)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda f: f.ts, r"gave times \(datetime64\[us\]\)"),
        (lambda f: f.ts - f.ts.min(), "gave times"),
        (lambda f: f.event, "it must give numbers or booleans"),
        (lambda f: f.value.where(f.event == "open"), "gave no value .* say what that means"),
        (lambda f: 1 / (f.value * 0), "infinite"),
        (lambda f: f.value[:3], r"gave Series of shape \(3,\) for \d+ events"),
        (lambda f: 5, r"gave 5 for \d+ events"),
        (lambda f: f[["value", "event"]], "DataFrame of shape"),
        (lambda f: f.value.reset_index(drop=True), "another index"),
        (lambda f: f.value.sum(), "one value an event"),
        (lambda f: f.price, "AttributeError.*It is given the columns ts, event"),
        (lambda f: f["price"], "KeyError.*name others in columns="),
        (lambda f: f.value * 2**60, "beyond"),
    ],
)
def test_what_is_no_feature(backend: Backend, result: Any, message: str) -> None:
    def bad(frame: Any) -> Any:
        return result(frame)

    refused(backend, bad, message)


def test_a_sum_that_could_overflow_is_refused(backend: Backend) -> None:
    def huge(frame: Any) -> Any:
        return frame.value * 0 + 2**61

    refused(backend, huge, "could exceed 62 bits", [Event(1, i, "send", None, i) for i in range(5)])


def test_functions_cannot_change_the_events(backend: Backend) -> None:
    @pipeline.feature(windows=["7d"])
    def vandal(frame: Any) -> Any:
        frame["event"] = "send"
        frame["ts"] = frame.ts.max()
        return frame.value * 0

    before = frame_of(LOG, backend)
    copy = backend.to_pandas(before).copy()
    feature_table(before, FeatureSpec.from_config(CONFIG, KINDS), ASKED, backend)
    pd.testing.assert_frame_equal(backend.to_pandas(before), copy)


def test_columns_are_declared_and_read(backend: Backend) -> None:
    seen: list[list[str]] = []

    @pipeline.feature(windows=["7d"], columns=["value"])
    def lean(frame: Any) -> Any:
        seen.append(list(frame.columns))
        return frame.value

    class Store:
        columns = ["ts", "event", "machine", "campaign", "value", "subscriber", "batch", "city"]
        flagged = False

        def has_machines(self, client: str) -> bool:
            return self.flagged

    spec, store = FeatureSpec.from_config(CONFIG, KINDS), Store()
    assert read_columns(store, "acme", spec, ASKED) == ["ts", "event", "campaign", "value"]
    store.flagged = True
    assert read_columns(store, "acme", spec, ASKED) == ["ts", "event", "machine", "campaign", "value"]
    table(backend, LOG)
    assert seen
    assert all(columns == ["ts", "event", "value"] for columns in seen)
    pipeline.feature(windows=["7d"], name="all")(lambda frame: frame.value)
    assert "city" in read_columns(store, "acme", FeatureSpec.from_config(CONFIG, KINDS), ASKED)
    assert "batch" not in read_columns(store, "acme", FeatureSpec.from_config(CONFIG, KINDS), ASKED)
    for column, message in (("cty", "did you mean 'city'"), ("subscriber", "no function is given")):
        pipeline.feature(windows=["7d"], columns=[column], name=column)(lambda frame: frame.value)
        with pytest.raises(ConfigError, match=message):
            read_columns(store, "acme", FeatureSpec.from_config(CONFIG, KINDS), ASKED)
        del extensions._features[column]


def test_a_changed_function_is_another_feature(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    text = "import pipeline\n\nFACTOR = 2\n\n@pipeline.feature(windows=['7d'])\ndef mine(events):\n"
    text += "    return events.value * FACTOR\n"
    path.write_text(text)
    extensions.load([str(path)])
    spec = FeatureSpec.from_json(FeatureSpec.from_config(CONFIG, KINDS).to_json())
    before = feature_table(frame_of(LOG, backend), spec, ASKED, backend)
    extensions.load([str(path)])  # the same text
    again = feature_table(frame_of(LOG, backend), spec, ASKED, backend)
    assert (backend.to_host(before.X) == backend.to_host(again.X)).all()
    path.write_text(text.replace("events.value", "-events.value"))
    extensions.load([str(path)])
    with pytest.raises(
        ModelError, match=r"feature 'mine' \(.*mine.py, line 5\) has changed since the model was trained"
    ):
        feature_table(frame_of(LOG, backend), spec, ASKED, backend)
    extensions.load([])
    with pytest.raises(ModelError, match="'mine', a function that no loaded file defines; name its file in extensions"):
        feature_table(frame_of(LOG, backend), spec, ASKED, backend)


def test_names_windows_and_units_are_in_the_specification() -> None:
    @pipeline.feature(windows=["2d", "12h"], how="max", unit="euro")
    def price(events: Any) -> Any:
        """what was paid"""
        return events.value

    spec = FeatureSpec.from_config(CONFIG, KINDS)
    one, two = spec.features[-2:]
    assert (one.name, two.name) == ("price_12h", "price_2d")
    assert two.definition == "the max over the events in [at - 2d, at) of: what was paid; 0 where there are none"
    assert two.unit == "euro"
    assert len(two.source or "") == 64
    pipeline.feature(windows=["7d"], name="open")(lambda events: events.value)
    with pytest.raises(ConfigError, match="two features named 'open_7d'"):
        FeatureSpec.from_config(Config(), KINDS)


def test_what_was_not_known_is_not_counted(backend: Backend) -> None:
    """Histories as of each decision hold copies of subscribers; a function that groups sees each apart."""

    @pipeline.feature(windows=["30d"], how="max")
    def nth(frame: Any) -> Any:
        return frame.groupby(level=0).cumcount() + 1

    @pipeline.feature(windows=["30d"], how="min")
    def days_between(frame: Any) -> Any:
        gap = frame.groupby(level=0).ts.diff().dt.total_seconds() / 86_400
        assert not (gap < 0).any()
        return gap.fillna(99)

    events = ordered([Event(7, i * DAY, "send", None, i) for i in range(6)])
    frame = frame_of(events, backend)
    arrived = np.array([e.ts for e in events])
    arrived[1] = 4 * DAY + 5  # known to the decision of day 5 alone
    frame["ingested_at"] = backend.df.Series(arrived.astype("datetime64[us]"), index=frame.index)
    spec = FeatureSpec.from_config(CONFIG, KINDS)
    asked = SampleRequest(**{**ASKED.__dict__, "as_known_at": "decision"})
    found = feature_table(frame, spec, asked, backend)
    assert backend.to_host(found.X[:, spec.index("nth_30d")]).tolist() == [0, 1, 1, 2, 3, 5]
    assert backend.to_host(found.X[:, spec.index("days_between_30d")]).tolist() == [0, 99, 99, 2, 1, 1]


def test_constants_of_a_function_without_a_file_are_part_of_it() -> None:
    made = [eval(f"lambda events: events.value + (lambda x: x + {i})(1)") for i in (1, 1, 2)]
    one, same, other = [extensions._digest(function) for function in made]
    assert one == same != other
