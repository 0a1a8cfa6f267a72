"""What the features are: the specification of a configuration and its store, or of a model, as a table or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.errors import ConfigError, did_you_mean
from pipeline.options import format_duration

if TYPE_CHECKING:
    from pipeline.features.spec import FeatureSpec

WIDTH = 72  # of a definition, in characters
HEADER = ("name", "definition", "dtype", "unit", "window")


def describe(config: Config, as_json: bool = False, client: str | None = None, model: str | None = None) -> None:
    """Print each client's specification.

    Args:
        client: only this one. model: a version's name, or ``current``: what was trained instead of what would be.
    Raises:
        ConfigError: no such client or model version; StoreError: no store; ModelError: the version is damaged.
    """
    found = _of_models(config, client, model) if model else _of_store(config, client)
    if as_json:
        print(json.dumps({name: spec.to_dict() for name, spec in found.items()}, indent=1))
        return
    for i, (name, spec) in enumerate(found.items()):
        beside = f", sequences of {spec.sequences.length}" if spec.sequences is not None else ""
        print(f"{chr(10) if i else ''}{name}: {len(spec)} features{beside}\n")
        print("\n".join(table(spec)))


def table(spec: FeatureSpec) -> list[str]:
    """The specification as lines of text: X's columns in their order, then sequences, then what is absent."""
    rows: list[tuple[str, ...]] = [HEADER]
    for f in spec.features:
        window = "-" if f.window is None else format_duration(f.window)
        rows.append((f.name, f.definition, f.dtype, f.unit, window))
    if spec.sequences is not None:
        length = spec.sequences.length
        for t in spec.sequences.tensors:
            whose = "of the decision" if t.once else f"of each of the last {length} events before at"
            many = "" if t.once else f" x {length}"
            rows.append((f"sequence {t.name}", f"{whose}: {t.definition}", f"{t.dtype}{many}", t.unit, "-"))
    lines = _lines(rows)
    lines.insert(1, "-" * max(len(line) for line in lines))
    return [*lines, *(f"without {lacking}" for lacking in spec.absent)]


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    wrapped = [(name, textwrap.wrap(what, WIDTH) or [""], *rest) for name, what, *rest in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    widths[1] = max(len(line) for _, what, *_ in wrapped for line in what)
    lines = []
    for name, what, *rest in wrapped:
        for i, line in enumerate(what):
            cells = (name, line, *rest) if i == 0 else ("", line)
            lines.append("  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=False)).rstrip())
    return lines


def _of_store(config: Config, client: str | None) -> dict[str, FeatureSpec]:
    from pipeline import extensions
    from pipeline.demo import with_source
    from pipeline.events.store import EventStore
    from pipeline.features.preparation import hourly, specify
    from pipeline.features.samples import SampleRequest
    from pipeline.stages import end_of_data

    config = with_source(config)  # which columns are mapped decides which features there are
    extensions.load(config.extensions)
    store = EventStore(config.store_uri, PANDAS)
    found = {}
    for name in _chosen(client, store.clients(), "the store"):
        request = SampleRequest.from_config(config, name, end_of_data(config, store, name))
        found[name], _ = specify(store, name, config, request, hourly(config.run_dir / "rollups", name))
    return found


def _of_models(config: Config, client: str | None, model: str) -> dict[str, FeatureSpec]:
    from pipeline.learning import registry

    models = config.run_dir / "models"
    pooled = [f"{registry.POOLED}/{version}" for version in registry.versions(models, None)]
    found, known = {}, []
    for name in _chosen(client, registry.clients(models), f"the run {config.name!r}"):
        version = registry.current(models, name) if model == "current" else model
        versions = [*registry.versions(models, name), *pooled]
        known += versions
        if version in versions:
            found[name] = registry.specification(models, name, version)
    if not found:
        raise ConfigError(
            f"there is no model version {model!r} in {models}; {did_you_mean(model, known) or 'run train first'}"
        )
    return found


def _chosen(client: str | None, clients: Iterable[str], where: str) -> list[str]:
    clients = list(clients)
    if client is not None and client not in clients:
        raise ConfigError(f"{where} has no client {client!r}; {did_you_mean(client, clients)}")
    return clients if client is None else [client]
