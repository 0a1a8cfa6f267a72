"""The one typed configuration: a YAML file plus ``key=value`` overrides.

``load`` returns a validated, frozen :class:`Config`; the sections it is made of are in options.py, tune's in search.py.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError, EventgrainError, did_you_mean
from pipeline.options import (
    NETWORKS,
    SEQUENCE_LENGTH,
    SEQUENTIAL,
    UNITS,
    At,
    Client,
    Context,
    Decide,
    Duration,
    Features,
    Gate,
    Model,
    Outcome,
    Quality,
    Rollup,
    Section,
    Sequences,
    Simulate,
    Source,
    Split,
    TimeZone,
    Tracking,
    as_list,
)
from pipeline.search import Tune

SHOWN = 30  # columns of a file whose mapping is absent


class Config(Section):
    """Everything a run depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "demo"
    runs: str = "runs"
    store: str | None = None  # any URI; runs/<name>/store where absent
    source: Source | None = None  # absent: the simulated demo log
    simulate: Simulate = Simulate()
    timezone: TimeZone = "UTC"
    clients: dict[str, Client] = {}
    deduplicate: bool = True
    batch_rows: Annotated[int, Field(ge=1000)] | None = None  # of ingest; by the size of the load where absent
    quality: Quality = Quality()
    rollup: Rollup = Rollup()
    at: At = At(event="send")
    windows: Annotated[list[Duration], Field(min_length=1)] = [n * UNITS["d"] for n in (1, 7, 30, 90)]
    context: Context = Context()
    sequences: Sequences = Sequences()
    features: Features = Features()
    outcomes: Annotated[dict[str, Outcome], Field(min_length=1)] = {
        "unsubscribe": Outcome(events=["unsubscribe", "complaint"], within=7 * UNITS["d"], match="campaign"),
        "click": Outcome(events=["click"], within=3 * UNITS["d"], match="campaign"),
        "open": Outcome(events=["open"], within=3 * UNITS["d"], match="campaign"),
    }
    lateness: Duration = 2 * UNITS["d"]
    keep_snapshots: Duration = 7 * UNITS["d"]  # how long `clean` leaves the files of earlier snapshots
    retention: Duration | None = None  # events older than this before the store's end are removed
    split: Split = Split()
    model: Model = Model()
    gate: Gate = Gate()
    tune: Tune = Tune()
    tracking: Tracking = Tracking()
    decide: Decide = Decide()
    as_of: dt.datetime | None = None  # UTC where naive; default: the end of the last full day of accepted events
    as_known_at: dt.datetime | Literal["decision"] | None = None  # "decision": each point knows what had arrived by it
    backend: Literal["auto", "cpu", "gpu"] = "auto"
    cluster: str = "auto"  # auto | threads | local | gpu | scheduler address
    partitions: Annotated[int, Field(ge=1)] | None = None
    extensions: Annotated[list[str], BeforeValidator(as_list)] = []  # Python files: features and rules of one's own

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_other_outcomes(cls, values: Any) -> Any:
        """The default rule names the default outcomes; of a log with others it keeps what is there."""
        outcomes = values.get("outcomes") if isinstance(values, dict) else None
        decide = values.get("decide") or {} if isinstance(outcomes, dict) else None
        if not isinstance(decide, dict) or not isinstance(outcomes, dict):
            return values
        default = Decide()
        absent = {
            "hold_when": default.hold_when if default.hold_when in outcomes else None,
            "reward": {name: reward for name, reward in default.reward.items() if name in outcomes},
        }
        return {**values, "decide": {**absent, **decide}}

    @model_validator(mode="before")
    @classmethod
    def _sequences_for_the_model(cls, values: Any) -> Any:
        """A network that reads sequences has them without being told."""
        if not isinstance(values, dict):
            return values
        model, sequences = values.get("model") or {}, values.get("sequences") or {}
        if not isinstance(model, dict) or not isinstance(sequences, dict) or "length" in sequences:
            return values
        if model.get("kind") not in (*SEQUENTIAL, "auto"):
            return values
        return {**values, "sequences": {**sequences, "length": SEQUENCE_LENGTH}}

    @field_validator("windows")
    @classmethod
    def _ascending(cls, windows: list[int]) -> list[int]:
        if sorted(set(windows)) != windows:
            raise ValueError("windows must be ascending, without repeats")
        return windows

    @field_validator("as_known_at", mode="before")
    @classmethod
    def _instant_or_decision(cls, value: object) -> object:
        """One complaint instead of one for each thing that it could have been."""
        if isinstance(value, str) and value != "decision":
            try:
                return dt.datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("write a time, as in 2026-11-22, or 'decision'") from None
        return dt.datetime(value.year, value.month, value.day) if type(value) is dt.date else value  # noqa: DTZ001

    @field_validator("as_of", "as_known_at")
    @classmethod
    def _utc(cls, value: Any) -> Any:
        if not isinstance(value, dt.datetime):
            return value
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        kind, decide = self.model.kind, self.decide
        if kind in SEQUENTIAL and not self.sequences.length:
            raise ValueError(
                f"model.kind is {kind}, which reads sequences, and sequences.length is 0: leave the length out "
                f"(then it is {SEQUENCE_LENGTH}), or choose model.kind dense"
            )
        for name in [n for n in (decide.hold_when, *decide.reward) if n]:
            if name not in self.outcomes:
                raise ValueError(f"decide names the outcome {name!r}: {did_you_mean(name, self.outcomes)}")
        return self

    @model_validator(mode="after")
    def _space_of_the_model(self) -> Config:
        """What tune may choose is what the model takes."""
        for name, value in self.tune.space.ends():
            try:
                if (name, value) == ("kind", "auto"):
                    raise ValueError("name the kinds to search: " + ", ".join(NETWORKS))
                self.model.having({name: value})
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"tune.space.{name}: {message} (found {value!r})") from None
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def store_uri(self) -> str:
        return self.store or str(self.run_dir / "store")

    @property
    def horizon(self) -> int:
        """The longest outcome horizon, microseconds."""
        return max(o.within for o in self.outcomes.values())

    def client_timezone(self, client: str) -> str:
        settings = self.clients.get(client)
        return (settings.timezone if settings else None) or self.timezone

    def dump(self) -> str:
        """The resolved configuration as YAML that ``load`` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _assign(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{override!r} is not an override: write key=value, as in model.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {override!r} is not YAML: {error}") from None
    except ValueError as error:  # of a date that is not in the calendar
        raise ConfigError(f"the value of {override!r} cannot be read: {error}") from None
    *path, last = key.strip().split(".")
    for part in path:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{override!r}: {part!r} is a single value and has no {last!r} below it")
        tree = below
    tree[last] = value


def _known_options(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) and hasattr(model, "model_fields") else None
        if field is None:
            continue
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return list(model.model_fields)


def _explain(error: ValidationError, where: str, tree: Mapping[str, Any]) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(p) for p in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            known = _known_options(item["loc"])
            lines.append(f"{name}: no such option; {did_you_mean(str(item['loc'][-1]), known)}")
        elif item["type"] == "missing":
            lines.append(f"{name}: is required and absent")
        else:
            found = "" if isinstance(item["input"], dict | BaseModel) else f" (found {item['input']!r})"
            lines.append(f"{name}: {item['msg'].removeprefix('Value error, ')}{found}")
    if any(item["type"] == "missing" and item["loc"][:2] == ("source", "columns") for item in error.errors()):
        lines.append(_required(tree["source"].get("path")))
    return f"the configuration ({where}) is not usable:\n  " + "\n  ".join(lines)


def _required(path: object) -> str:
    """Which columns have to be mapped, and which there are."""
    said = (
        "source.columns names the columns of your log: those of the subscriber, of the time (ts) and of the kind of "
        "event are required, as in columns: {subscriber: user_id, ts: event_time, event: event_name}"
    )
    found = _first_columns(path) if isinstance(path, str) else None
    if found is None:
        return said
    file, columns = found
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return f"{said}; {file!r} has {', '.join(map(repr, columns[:SHOWN]))}{more}"


def _first_columns(path: str) -> tuple[str, list[str]] | None:
    """The source's first file and its columns; None where they cannot be had at once."""
    from pipeline.events.files import find_files, is_remote
    from pipeline.events.sources import read_footer

    if is_remote(path):
        return None
    try:
        fs, files = find_files(path)
        first = read_footer(fs, files[0])
    except EventgrainError:  # which is said when the source is read
        return None
    return first.name, [*first.schema.names, *first.hive]


def load(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Read, override and validate.

    Args:
        path: a YAML file, or None for the demo's defaults.
        overrides: ``dotted.key=value`` texts, the value parsed as YAML, applied in order over the file.
    Raises:
        ConfigError: unreadable, empty or malformed file, unknown option, or a value out of its range; names each.
    """
    tree: Any = {}
    if path is not None:
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the configuration file {str(path)!r}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"the configuration file {str(path)!r} is not YAML: {error}") from None
        except ValueError as error:  # of a date that is not in the calendar
            raise ConfigError(f"the configuration file {str(path)!r} cannot be read: {error}") from None
        if tree is None:
            raise ConfigError(
                f"the configuration file {str(path)!r} is empty: write at least source.path and source.columns into "
                "it; for the demo leave --config out"
            )
        if not isinstance(tree, dict):
            raise ConfigError(f"the configuration file {str(path)!r} holds a {type(tree).__name__}, not options")
        tree.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem) or "run")
    for override in overrides or []:
        _assign(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, str(path) if path else "defaults and overrides", tree)) from None
