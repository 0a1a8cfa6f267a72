"""What each stage's result depends on, as one hash: a stage whose hash is the same is not redone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import extensions
from pipeline.errors import ConfigError
from pipeline.rundir import TUNE, code_version, fingerprint

if TYPE_CHECKING:
    from pipeline.stages import Context


def audit_key(context: Context) -> str:
    """The dirt that was found: of the store and the truth beside its source."""
    config = context.config
    source = config.source.model_dump(mode="json") if config.source else None
    return fingerprint("audit", code_version(), str(config.store_uri), context.store.version(), source)


def rollup_key(context: Context) -> str:
    """The tables of counts and rates."""
    config = context.config
    zones = {client: config.client_timezone(client) for client in context.store.clients()}
    store, known = (str(config.store_uri), context.store.version()), str(config.as_known_at)
    return fingerprint("rollup", code_version(), store, zones, config.rollup.levels, known)


def train_key(context: Context) -> str:
    """The models: everything that features, labels, splits and training depend on."""
    config = context.config
    ends = {client: context.as_of(client) for client in context.store.clients()}
    gate = config.gate.model_dump(mode="json", exclude={"strict"})
    found = None
    if config.tune.use:
        from pipeline.learning.study import best_of

        found = [best_of(context.run.path / TUNE, client) for client in context.store.clients()]
    return fingerprint("train", _learning(context), ends, config.decide.budgets, gate, found)


def tune_key(context: Context, client: str) -> str:
    """One client's trials: what their rows and trainings depend on, and how they are chosen."""
    tune = context.config.tune.model_dump(mode="json", exclude={"trials", "use"})
    return fingerprint("tune", _learning(context), client, context.as_of(client), tune)


def _learning(context: Context) -> tuple[object, ...]:
    """What the rows and the training of any model depend on."""
    fields = {
        "at",
        "windows",
        "features",
        "context",
        "sequences",
        "outcomes",
        "lateness",
        "split",
        "model",
        "timezone",
        "clients",
        "as_known_at",
    }
    part = context.config.model_dump(mode="json", include=fields)
    part |= context.config.quality.model_dump(mode="json", include={"count_machines", "mail_programs"})
    store = (context.config.store_uri, context.store.version())
    own = (extensions.digest(context.config.extensions), [(f.name, f.source) for f in extensions.features()])
    return code_version(), store, context.backend.name, part, own


def decide_key(context: Context) -> str:
    """The lists: of the models in use and the rule."""
    from pipeline.learning.registry import current

    decide = context.config.decide
    lists = [_stamp(path) for path in (decide.plan, decide.suppressed)]
    models = context.run.path / "models"
    versions = {client: current(models, client) for client in context.store.clients()}
    rule = decide.model_dump(mode="json")
    return fingerprint("decide", train_key(context), rule, context.config.partitions, versions, lists)


def _stamp(path: str | None) -> tuple[str, int, int] | None:
    if path is None:
        return None
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}, named in the section decide: {error.strerror}") from None
    return path, stat.st_size, stat.st_mtime_ns
