from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, load
from pipeline.errors import ConfigError
from pipeline.options import format_duration, parse_duration


def test_defaults_survive_a_round_trip(tmp_path: Path) -> None:
    for overrides in (
        [],
        ["decide.hold_when=null", "timezone=Asia/Tokyo", "as_of=2026-10-01", "at={every: 7d}"],
        ["tune.space.learning_rate=0.001 to 0.1", "tune.space.hidden=[32, 16]", "tune.space.kind=dense"],
    ):
        config = load(None, overrides)
        path = tmp_path / "config.yaml"
        path.write_text(config.dump())
        assert load(path) == config


@given(st.integers(1, 10_000), st.sampled_from("smhdw"))
def test_durations(number: int, unit: str) -> None:
    microseconds = parse_duration(f"{number}{unit}")
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
    assert microseconds == number * seconds * 1_000_000
    assert parse_duration(format_duration(microseconds)) == microseconds


@pytest.mark.parametrize("text", ["", "7", "7 days", "-7d", "0d", "7.5d", "d", "1e3d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        load(None, [f"windows=['{text}']"])


def test_a_duration_without_a_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="lateness: 7 is not a duration: write a positive number and s, m, h, d or w"):
        load(None, ["lateness=7"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.epochs=5", "modle: no such option; did you mean 'model'"),
        ("model.epoch=5", "model.epoch: no such option; did you mean 'epochs'"),
        ("model.epochs=no", "model.epochs"),
        ("model.devices=zero", "model.devices: write a number from 1 on, or auto (found 'zero')"),
        ("model.devices=0", "model.devices: write a number from 1 on, or auto (found 0)"),
        ("model=5", "model"),
        ("model.seed=-1", "model.seed: Input should be greater than or equal to 0 (found -1)"),
        ("simulate.seed=99999999999999999999", "simulate.seed: Input should be less than 2147483648"),
        ("model.hidden=[100000000]", "model.hidden.0: Input should be less than or equal to 16384"),
        ("sequences.length=100000", "sequences.length: Input should be less than or equal to 4096"),
        ("split.subscribers=1", "split.subscribers: Input should be less than 1"),
        ("windows=[7d, 1d]", "ascending"),
        ("timezone=Europe/Amsterdm", "did you mean 'Europe/Amsterdam'"),
        ("decide.hold_when=unsub", "decide names the outcome 'unsub'"),
        ("decide.reward={clicks: 1}", "decide names the outcome 'clicks': did you mean 'click'"),
        ("decide.explore=1.5", "decide.explore"),
        ("outcomes.x={within: 3d}", "outcomes.x"),
        ("at={event: send, every: 7d}", "exactly one"),
        ("at={}", "exactly one"),
        ("source={path: x, columns: {subscriber: u}}", "source.columns.ts: is required and absent"),
        ("name=../up", "name"),
        ("as_of=yesterday", "as_of"),
        ("as_of=2026-13-45", "'as_of=2026-13-45' cannot be read: month must be in 1..12"),
        ("as_of=2026-02-30T10:00:00", "cannot be read: day"),
        ("tune.trials=0", "tune.trials"),
        ("tune.space.learning_rat=0.1", "no such option; did you mean 'learning_rate'"),
        ("tune.space.learning_rate=0.1 to 0.01", "is no range: write two numbers, the lesser first"),
        ("tune.space.learning_rate=fast to slow", "is no range"),
        ("tune.space.learning_rate=-1 to 0.1", "tune.space.learning_rate: Input should be greater than 0"),
        ("tune.space.units=[16, 18]", "tune.space.units: Input should be a multiple of 4 (found 18)"),
        ("tune.space.kind=[dense, deep]", "tune.space.kind"),
        ("tune.space.kind=[dense, auto]", "name the kinds to search: logistic, dense"),
        ("tune.space.batch_size=[]", "at least one value"),
        ("tune.space.batch_size=[512, 512]", "none of them twice"),
        ("tune.space.dropout={low: 0, high: 1}", "write a value, a list of values"),
        ("tune.space.imbalance=[none, downsample]", "tune.space.imbalance"),
        (
            "source={path: x, columns: {subscriber: u, ts: t, event: e}, kinds: {send: [a], open: [b, a]}}",
            "two kinds, 'send'",
        ),
        ("quality.value_range=[2, 1]", "quality.value_range: the least value comes first"),
        ("epochs", "write key=value"),
        ("=5", "write key=value"),
        ("model.epochs=[", "not YAML"),
        ("name.x.y=1", "name"),
    ],
)
def test_wrong_options_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, [override])
    assert message in str(caught.value)


def test_a_bare_off_is_no_boolean() -> None:
    config = load(None, ["quality.actions={late_arrival: off}", "tracking.mlflow=off"])
    assert (config.quality.actions, config.tracking.mlflow) == ({"late_arrival": "off"}, "off")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml"):
        load(tmp_path / "none.yaml")
    for content in ("a: [", "just text", "- a list", "[]", "as_of: 2026-13-45", b"\xff\xfe"):
        (tmp_path / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load(tmp_path / "bad.yaml")


@pytest.mark.parametrize("content", ["", "\n", "# source: {path: events}\n", "---\n", "null"])
def test_an_empty_file_is_not_the_demo(tmp_path: Path, content: str) -> None:
    (tmp_path / "acme.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"acme\.yaml' is empty: write at least source\.path .* leave --config out"):
        load(tmp_path / "acme.yaml", ["model.epochs=5"])


def test_a_mapping_that_is_absent_is_explained_with_the_columns_there_are(tmp_path: Path) -> None:
    folder = tmp_path / "day=2026-05-01"
    folder.mkdir()
    pq.write_table(pa.table({"who": ["a"], "when": [1], "what it was": ["send"]}), folder / "b.parquet")
    pq.write_table(pa.table({"other": [1]}), folder / "c.parquet")
    required = "as in columns: {subscriber: user_id, ts: event_time, event: event_name}"
    there = f"; '{folder}/b.parquet' has 'who', 'when', 'what it was', 'day'"
    for columns, absent in (("", 1), (", columns: {}", 3), (", columns: {subscriber: who, ts: when}", 1)):
        with pytest.raises(ConfigError) as caught:
            load(None, [f"source={{path: {tmp_path}{columns}}}"])
        message = str(caught.value)
        assert message.count("is required and absent") == absent
        assert message.endswith(required + there)
    wide = pa.table({f"c{i}": [i] for i in range(40)})
    pq.write_table(wide, tmp_path / "wide.parquet")
    for path, end in (
        (tmp_path / "*.parquet", "'c28', 'c29' and 10 more"),
        (tmp_path / "none", required),
        ("gs://bucket/events", required),  # which would be asked for over the network
        (tmp_path, required),
    ):
        if path == tmp_path:
            (folder / "b.parquet").write_text("no Parquet")
        with pytest.raises(ConfigError) as caught:
            load(None, [f"source.path={path}"])
        assert str(caught.value).endswith(end)
    with pytest.raises(ConfigError) as caught:
        load(None, ["source={columns: {subscriber: who}}"])
    assert str(caught.value).endswith(required)


def test_the_file_names_the_run(tmp_path: Path) -> None:
    (tmp_path / "acme mail.yaml").write_text("timezone: Europe/Paris\n")
    config = load(tmp_path / "acme mail.yaml", ["clients={a: {timezone: Asia/Tokyo}}"])
    assert config.name == "acme-mail"
    assert config.client_timezone("a") == "Asia/Tokyo"
    assert config.client_timezone("b") == "Europe/Paris"


def test_one_value_to_search_is_a_choice_of_one() -> None:
    assert load(None, ["tune.space.hidden=[32, 16]"]).tune.space.hidden == [[32, 16]]
    assert load(None, ["tune.space.kind=dense"]).tune.space.kind == ["dense"]


def test_a_later_override_wins() -> None:
    config: Config = load(None, ["model.epochs=5", "model.epochs=6"])
    assert config.model.epochs == 6


def test_the_default_rule_keeps_to_the_outcomes_there_are() -> None:
    config = load(None, ["outcomes={buy: {events: [buy], within: 7d}, click: {events: [click], within: 3d}}"])
    assert config.decide.hold_when is None
    assert config.decide.reward == {"click": 1.0}
    assert load(None, []).decide.reward == {"click": 1.0, "open": 0.2}
