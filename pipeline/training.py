"""The stage that trains: every client's model, what the gate refused, and who serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, EventgrainError, TooLittleError, did_you_mean
from pipeline.learning import registry
from pipeline.learning.tracking import Tracker
from pipeline.progress import say
from pipeline.trainings import trainings

if TYPE_CHECKING:
    from pipeline.learning.pooled import Pool
    from pipeline.stages import Context

SHOWN = 20  # clients of the pooled model that get a line of their own
REFUSED = 3  # the exit status of a refusal under gate.strict


def train(context: Context) -> tuple[str, int, dict[str, Any]]:
    """Train each client's model: a line for the user, the decision points, and the stage's result.

    Raises:
        EventgrainError: no client has a model; that of the first client.
    """
    models, pool = context.run.path / "models", pool_of(context)
    result: dict[str, dict[str, Any]] = {"models": {}, "untrained": {}, "gate": {}, "serving": {}}
    untrained: dict[str, EventgrainError] = {}
    broken: dict[str, Exception] = {}
    without: list[str] = []  # clients of too few positives that nobody serves, the pooled model being refused
    tracker = Tracker(context.config, lambda text: say(f"warning   {text}"))
    rows = pooled = 0
    _check_kinds(context)
    for client, trained in trainings(context, pool):
        if isinstance(trained, TooLittleError | ConfigError):
            # One client's log may be too short or lack a kind; what is wrong for all of them is said below.
            untrained[client] = trained
            say(f"          {client}: no model: {trained}")
            continue
        if isinstance(trained, Exception):
            broken[client] = trained
            say(f"warning   {client}: {trained}")
            continue
        rows += trained.rows
        result["models"][client] = trained.metrics
        result["serving"][client] = trained.serving
        pooled += trained.pooled
        if trained.pooled and trained.serving is None:
            without.append(client)
        if not trained.pooled:
            result["gate"][client] = {"version": trained.version, **trained.gate}
            _track(tracker, models, client, trained.version)
        if not trained.pooled or pooled <= SHOWN:
            lines = (trained.line, trained.split, *(f"without {lacking}" for lacking in trained.absent))
            for line in filter(None, lines):
                say(f"          {client}: {line}")
    _raise(broken)
    if untrained and not result["models"]:
        raise next(iter(untrained.values()))
    if pooled > SHOWN:
        served = "no model, the pooled one is refused" if without else "the pooled model is used"
        say(f"          {pooled - SHOWN:,} more clients of too few positives: {served}")
    line = f"{_clients(len(result['models']))}, {rows:,} decision points"
    if pooled > len(without):
        line += f"; {_clients(pooled - len(without))} with the pooled model"
    if untrained or without:
        line += f"; no model for {_clients(len(untrained) + len(without))}"
    order = context.store.clients()  # that in which they ended tells nothing
    result = {name: {c: found[c] for c in order if c in found} for name, found in result.items()}
    result["untrained"] = {client: str(error) for client, error in untrained.items()}
    result["untrained"] |= dict.fromkeys(without, "too few positives, and the pooled model is refused")
    if pool is not None and pool.trained is not None:
        _track(tracker, models, None, pool.trained.trained)
    return line, rows, {**result, **_of_pool(pool)}


def _raise(broken: dict[str, Exception]) -> None:
    """What is to be mended before the stage is done, once the other clients are trained."""
    for client, error in broken.items():
        if not isinstance(error, EventgrainError):
            raise error
        others = f", nor are {len(broken) - 1} more" if len(broken) > 1 else ""
        raise type(error)(f"{error} (so client {client!r} is not trained{others})")


def _track(tracker: Tracker, models: Path, client: str | None, version: str) -> None:
    if tracker.active:
        tracker.log(
            client, version, registry.version_dir(models, client, version), registry.card(models, client, version)
        )


def pool_of(context: Context) -> Pool | None:
    """The model of all clients; None where each is to have its own, or there is only one."""
    if not context.config.model.minimum_positives_own or len(context.store.clients()) < 2:
        return None
    from pipeline.learning.pooled import Pool

    models = context.run.path / "models"
    return Pool(context.store, context.config, context.backend, context.as_of, models)


def _of_pool(pool: Pool | None) -> dict[str, Any]:
    """What metrics.json says of the pooled model, where it was trained."""
    found = None if pool is None else pool.trained
    if found is None:
        return {}
    about = {"version": found.trained, "serving": found.version, "clients": found.clients, "rows": len(found.table)}
    return {"pooled": {**about, "metrics": found.metrics, "gate": found.verdict.to_dict()}}


def refusals(context: Context) -> tuple[list[str], int]:
    """What the gate found at the last training, in words, with who serves; and how many versions it refused.

    A version that somebody has put in use by hand since is refused no more.
    """
    result, models = context.run.result("train"), context.run.path / "models"
    found, refused = [], 0
    for client, verdict in result.get("gate", {}).items():
        if verdict.get("accepted", True):
            for name, why in verdict.get("set_aside", {}).items():
                found.append(f"{client}: no model for {name}, its base rate is used: {why}")
            continue
        serving = registry.current(models, client)
        if serving != verdict["version"]:
            refused += 1
            reasons = "; ".join(verdict["reasons"])
            found.append(f"{client}: model {verdict['version']} is refused: {reasons}. {_who(serving)}")
    pooled = result.get("pooled", {})
    if pooled and not pooled["gate"]["accepted"] and registry.current(models, None) != pooled["version"]:
        refused += 1
        reasons, serving = "; ".join(pooled["gate"]["reasons"]), registry.current(models, None)
        found.append(f"the pooled model {pooled['version']} is refused: {reasons}. {_who(serving)}")
    return found, refused


def _who(serving: str | None) -> str:
    return f"{serving} keeps serving" if serving else "Nobody is in its place: its subscribers are unscored"


def _check_kinds(context: Context) -> None:
    """Outcomes that somebody wrote down are expected to happen; of the default ones a log may lack some.

    Raises:
        ConfigError: no client has events of an outcome's kinds.
    """
    config, store = context.config, context.store
    if "outcomes" not in config.model_fields_set:
        return
    kinds = {kind for client in store.clients() for kind in store.kinds(client)}
    for name, outcome in config.outcomes.items():
        if not kinds.intersection(outcome.kinds):
            hint = did_you_mean(outcome.kinds[0], sorted(kinds))
            hint += "" if hint.endswith("?") else "."
            raise ConfigError(
                f"outcomes.{name}: the log has no {' or '.join(map(repr, outcome.kinds))} events; {hint} "
                "Mend the name, map the log's own with source.kinds, or remove the outcome"
            )


def _clients(number: int) -> str:
    return f"{number:,} client" + ("" if number == 1 else "s")
