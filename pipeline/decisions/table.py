"""The decisions table: a row for each subscriber, or planned send, that was scored, with what to do and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import results
from pipeline.backend import Array, backend_of
from pipeline.config import Config
from pipeline.decisions import lists
from pipeline.decisions.assure import ACTIONS, Rule, assure, hashed_uniform
from pipeline.decisions.prioritize import prioritize
from pipeline.decisions.value import expected_effect
from pipeline.options import Decide


@dataclass
class Scored:
    """Rows of one client before any decision, on the backend but for the texts.

    ``keys``, ``at``: int64[n]; ``p``: float32[n, H]; ``events``: int64[n] of history; ``suppressed``: bool[n];
    ``subscriber``, ``campaign``: host arrays of text (a campaign may be None); ``asked``: which of a plan's hours and
    campaigns each row is of.
    """

    keys: Array
    at: Array
    p: Array
    events: Array
    suppressed: Array
    subscriber: np.ndarray
    campaign: np.ndarray | None = None
    asked: np.ndarray | None = None


def decide(
    client: str,
    scored: Scored,
    heads: list[str],
    unlearned: set[str],
    settings: Decide,
    as_of: int,
    version: str,
    modelled: bool = True,
) -> pd.DataFrame:
    """The rows of the decisions table, first those to send in their order, then the others by key.

    Args:
        heads: outcome names in the column order of ``scored.p``.
        unlearned: heads that predict only their base rate. As ``hold_when`` such a head holds nobody and its column is
            null; as a reward its base rate counts.
        as_of: microseconds UTC.
        modelled: False where the client has no model at all: nobody but the suppressed is decided about.
    """
    backend = backend_of(scored.keys)
    rule = Rule.from_config(settings)
    column = {name: scored.p[:, i] for i, name in enumerate(heads)}
    known = {n: p for n, p in column.items() if modelled and not (n == rule.hold_when and n in unlearned)}
    salts: list[Array | int] = [as_of, scored.at]
    if scored.campaign is not None:
        salts.append(backend.asarray(lists.keys_of(scored.campaign)))
    found = assure(
        {n: known[n] for n in rule.heads if n in known},
        rule,
        draw=hashed_uniform(scored.keys, *salts),
        events=scored.events,
        suppressed=scored.suppressed,
    )
    rank, wave = prioritize(found.net, found.action, scored.keys, rule.waves)
    keys, at, place, in_wave = (backend.to_host(a) for a in (scored.keys, scored.at, rank, wave))
    order = np.lexsort((at, keys, np.where(place > 0, place, len(keys) + 1)))
    instant = np.datetime64(as_of, "us")
    n = len(keys)
    campaign = scored.campaign[order] if scored.campaign is not None else np.full(n, None, dtype=object)
    frame = pd.DataFrame(
        {
            "client": pd.Series([client] * n, dtype="str"),
            "subscriber": pd.Series(scored.subscriber[order], dtype="str"),
            "as_of": np.full(n, instant),
            "at": at[order].astype("datetime64[us]"),
            "campaign": pd.Series(campaign, dtype="str"),
        }
    )
    for name, values in column.items():
        p = backend.to_host(values)[order].astype(np.float32)
        frame[f"p_{name}"] = p if name in known else np.full(n, np.nan, dtype=np.float32)
    frame["action"] = _words(ACTIONS, backend.to_host(found.action)[order])
    frame["reason"] = _words(rule.reason_names, backend.to_host(found.reason)[order])
    frame["propensity"] = backend.to_host(found.propensity)[order]
    frame["rank"] = pd.Series(place[order], dtype="Int64").where(place[order] > 0)
    frame["wave"] = pd.Series(in_wave[order], dtype="Int32").where(in_wave[order] > 0)
    frame["model_version"] = pd.Series([version] * n, dtype="str")
    frame["date"] = pd.Series([_date(as_of)] * n, dtype="str")
    return frame


def _words(names: tuple[str, ...], codes: np.ndarray) -> pd.Series:
    return pd.Series(np.array(names, dtype=object)[codes], dtype="str")


def _date(as_of: int) -> str:
    return str(np.datetime64(as_of, "us").astype("datetime64[D]"))


def write(frame: pd.DataFrame, uri: str | Path, client: str, as_of: int) -> None:
    """Put one client's decisions of one as_of day in the Delta table at ``uri``; those of the same day are replaced."""
    results.replace(frame, str(uri), {"client": client, "date": _date(as_of)})


def summary(frame: pd.DataFrame, config: Config, model: Any = None) -> dict[str, Any]:
    """What metrics.json keeps of one client's decisions: counts and the expected effect, see ``expected_effect``."""
    rule = Rule.from_config(config.decide)
    sums = [n for n, o in config.outcomes.items() if o.sum]
    found = {
        "unit": "planned sends" if config.decide.plan else "subscribers",
        "missing": [n for n in rule.heads if model is None or n in model.notes],
        **expected_effect(frame, rule, sums=sums),
    }
    if len(frame):
        found["as_of"] = frame["as_of"].iloc[0].isoformat()
        found["model_version"] = str(frame["model_version"].iloc[0])
    return found
