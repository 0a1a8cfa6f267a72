"""The search space of tune: what of ``model`` is searched, and how Optuna draws it.

A range of learning rates, of weight decay, is searched by its logarithm. A setting is drawn only for kinds of network
that it is for: logistic regression has no hidden layers. Numbers are drawn to three digits, so that the settings that a
table shows are the settings that were tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.options import SEQUENTIAL, Model
from pipeline.search import Space, parse_span

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Settings = dict[str, Any]  # names and values of options of ``model``

BY_LOGARITHM = ("learning_rate", "weight_decay")
DIGITS = 3


def kinds(space: Space, model: Model) -> list[str]:
    """The kinds of network that are searched; one where none are."""
    if space.kind == "auto":
        return list(dict.fromkeys(["logistic", "dense", *([] if model.kind == "auto" else [model.kind])]))
    return list(space.kind) if space.kind is not None else [configured_kind(model)]


def configured_kind(model: Model) -> str:
    """The kind of the first trial, which is of the configured settings."""
    return "dense" if model.kind == "auto" else model.kind


def searched(space: Space, model: Model) -> dict[str, tuple[float, float] | list[Any]]:
    """Each setting that is searched, with its range or the values to choose from, as ``model`` holds them."""
    found: dict[str, tuple[float, float] | list[Any]] = {"kind": kinds(space, model)}
    for name in type(space).model_fields:
        wanted = getattr(space, name)
        if name == "kind" or wanted is None:
            continue
        if isinstance(wanted, str):
            found[name] = parse_span(wanted)
        else:
            found[name] = [getattr(model.having({name: value}), name) for value in wanted]
    return found


def applies(name: str, kind: str, imbalance: str) -> bool:
    """Whether a setting makes a difference to a kind of network."""
    if name in ("hidden", "dropout"):
        return kind != "logistic"
    if name == "units":
        return kind in SEQUENTIAL
    return imbalance == "focal" if name == "focal_gamma" else True


def distributions(space: Space, model: Model) -> dict[str, BaseDistribution]:
    """What Optuna draws each setting from. Values to choose from are named by their JSON text."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, BaseDistribution] = {}
    for name, wanted in searched(space, model).items():
        if isinstance(wanted, tuple):
            found[name] = FloatDistribution(*wanted, log=_by_logarithm(name, wanted))
        else:
            found[name] = CategoricalDistribution([json.dumps(value) for value in wanted])
    return found


def _by_logarithm(name: str, ends: tuple[float, float]) -> bool:
    return name in BY_LOGARITHM and ends[0] > 0


def draw(trial: optuna.Trial, space: Space, model: Model) -> Settings:
    """One trial's settings, as Optuna draws them."""
    wanted, settings = searched(space, model), Settings()
    names = sorted(wanted, key=lambda name: (name != "kind", name != "imbalance"))  # these say what the others are for
    for name in names:
        if not applies(name, settings.get("kind", ""), settings.get("imbalance", model.imbalance)):
            continue
        values = wanted[name]
        if isinstance(values, tuple):
            drawn = trial.suggest_float(name, *values, log=_by_logarithm(name, values))
            settings[name] = min(max(float(f"{drawn:.{DIGITS}g}"), values[0]), values[1])
        else:
            settings[name] = json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in values]))
    return {name: settings[name] for name in wanted if name in settings}


def configured(space: Space, model: Model) -> Settings:
    """The configured settings, of those that are searched."""
    kind = configured_kind(model)
    names = [name for name in searched(space, model) if applies(name, kind, model.imbalance)]
    return {name: kind if name == "kind" else getattr(model, name) for name in names}


def params(settings: Mapping[str, Any], space: Space, model: Model) -> dict[str, Any]:
    """Settings as Optuna has them; without those that lie outside the space."""
    found: dict[str, Any] = {}
    for name, wanted in searched(space, model).items():
        if name not in settings:
            continue
        value = settings[name]
        if isinstance(wanted, tuple):
            if wanted[0] <= value <= wanted[1]:
                found[name] = float(value)
        elif value in wanted:
            found[name] = json.dumps(value)
    return found
