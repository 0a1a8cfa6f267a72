"""The command ``models``: which model versions there are, in which state, and which one is in use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError, ModelError, did_you_mean
from pipeline.learning import registry
from pipeline.progress import say
from pipeline.rundir import RunDirectory

ALL = "all clients, pooled"


def list_versions(config: Config, client: str | None = None) -> None:
    """Print each client's versions, oldest first: current, refused and why, retired or damaged.

    Raises:
        ConfigError: no such client, or nothing was trained yet.
    """
    models = config.run_dir / "models"
    known = registry.clients(models)
    if not known and not registry.versions(models, None):
        raise ConfigError(f"there is no model in {models} yet: run train first")
    if client is not None and client not in known:
        raise ConfigError(f"the run {config.name!r} has no model of a client {client!r}; {did_you_mean(client, known)}")
    pooled = 0
    for name in [client] if client is not None else known:
        lines, served = _lines(models, name)
        pooled += served is not None
        say(f"{name}: served by {served}" if served else name)
        for line in lines:
            say(f"  {line}")
    if registry.versions(models, None):
        say(f"{ALL}: serves {pooled:,} of the above")
        for line in _lines(models, None)[0]:
            say(f"  {line}")


def put_in_use(config: Config, version: str, client: str | None) -> None:
    """Put a version in use by hand, whatever the gate said of it, and say what was before.

    Raises:
        ConfigError: no client is named. ModelError: there is no such version, or it is not what was written.
    """
    models = config.run_dir / "models"
    if client is None:
        raise ConfigError("--use needs --client NAME: a version is one client's, and so is what is in use")
    with RunDirectory(config).locked():
        try:
            before = registry.current(models, client) or "none"
        except ModelError as error:  # which is a reason to put one in use
            before = f"damaged: {error}"
        registry.use(models, client, version)
    card = registry.card(models, client, version)
    say(f"{client}: {version} is in use; before it {before}")
    if not (card.get("gate") or {}).get("accepted", True):
        say(f"warning   the gate refused it: {'; '.join(card['gate']['reasons'])}")
    say("the next run decides with it; a later training replaces it if the gate lets that one through")


def _lines(models: Path, client: str | None) -> tuple[list[str], str | None]:
    """One line a version, and the pooled version that serves the client, None where it has one of its own."""
    lines: list[str] = []
    used = None
    try:
        used = registry.current(models, client)
    except ModelError as error:
        lines.append(f"damaged: {error}")
    for version in registry.versions(models, client):
        try:
            card = registry.card(models, client, version)
        except ModelError as error:
            lines.append(f"{version}  damaged  {error}")
            continue
        state, why = _state(card, version == used)
        measures = ", ".join(filter(None, (_headline(n, m) for n, m in card["metrics"].items())))
        lines.append(f"{version}  {state:<8}  {measures}" + (f"  {why}" if why else ""))
    return lines, used if used and used.startswith(registry.POOLED) else None


def _state(card: Mapping[str, Any], used: bool) -> tuple[str, str]:
    gate = card.get("gate") or {}
    if not gate.get("accepted", True):
        reasons = "; ".join(gate["reasons"])
        return ("current", f"by hand; the gate refused it: {reasons}") if used else ("refused", reasons)
    return ("current" if used else "retired"), ""


def _headline(name: str, metrics: Any) -> str:
    """One outcome's result in a few words."""
    if not isinstance(metrics, Mapping):
        return ""
    for key, said in (("normalized_entropy", "entropy"), ("normalized_gini", "Gini")):
        if metrics.get(key) is not None:
            return f"{name} {said} {metrics[key]:.3f}"
    return f"{name} not measured"
