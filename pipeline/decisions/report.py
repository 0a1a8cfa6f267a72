"""report.html: the answer first, then campaigns, data quality, model quality and the run itself.

One file without scripts or requests, rebuilt from the run directory alone: ``metrics.json`` (what was measured),
``config.yaml``, ``rollups/`` and ``decisions/``. Whatever is absent is left out; text of the log is escaped.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.decisions import charts, evidence, scorecard, sections, trials
from pipeline.decisions.assure import Rule, expected, explain
from pipeline.decisions.value import expected_effect
from pipeline.errors import StoreError
from pipeline.features import rollup
from pipeline.options import format_duration
from pipeline.results import read
from pipeline.rundir import write_atomic

EXAMPLES = 6  # rows of each client's list shown
CLIENTS = 12  # that are shown by themselves, the largest; every client has its row in the tables


@dataclass
class ReportInput:
    """Everything the report shows.

    ``metrics``: as in metrics.json. Read from it, all optional: ``events``, ``stages``, ``models``, ``rules`` (list of
    name, action, count, share, examples, trend), ``dirt`` (kind -> rows, found, recall, precision; simulated logs),
    ``humans`` (what of them was taken for machines; simulated logs), ``decisions`` (client -> as_of, model_version,
    unit, the summary of ``expected_effect``, ``backtest``), ``run`` (backend, cluster, versions, machine, ...: shown as
    they are).
    ``rollups``: client -> table of ``features.rollup``. ``examples``: client -> a few rows of its list.
    """

    config: Config
    metrics: dict[str, Any]
    rollups: dict[str, pd.DataFrame] = field(default_factory=dict)
    examples: dict[str, pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def from_run_dir(cls, run_dir: Path) -> ReportInput:
        """Read a run directory.

        Raises:
            StoreError: there is no metrics.json, or it or a table is damaged.
        """
        path = run_dir / "metrics.json"
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{path} is absent: there is nothing to report before a stage has run") from None
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}): delete it and run again; it is made anew") from None
        settings = run_dir / "config.yaml"
        config = configuration.load(settings) if settings.exists() else Config(name=run_dir.name)
        rollups = _by_client(read(str(run_dir / "rollups")))
        examples: dict[str, pd.DataFrame] = {}
        decided = metrics.setdefault("decisions", {})
        for client in list(decided) or _clients(run_dir / "decisions"):
            rows = latest(str(run_dir / "decisions"), client)
            if rows is None or rows.empty:
                continue
            if "actions" not in decided.get(client, {}):
                sums = [n for n, o in config.outcomes.items() if o.sum]
                effect = expected_effect(rows, Rule.from_config(config.decide), sums=sums)
                decided[client] = {"as_of": str(rows["as_of"].iloc[0]), **effect, **decided.get(client, {})}
            examples[client] = example_rows(rows, config)
        return cls(config, metrics, rollups, examples)


def _by_client(table: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    if table is None or table.empty:
        return {}
    return {str(name): rollup.arrange(rows) for name, rows in table.groupby("client", sort=True)}


def _clients(table: Path) -> list[str]:
    rows = read(str(table), columns=["client"])
    return [] if rows is None else sorted(rows["client"].unique())


def latest(uri: str, client: str) -> pd.DataFrame | None:
    """One client's decisions of the last day there is."""
    days = read(uri, {"client": client}, columns=["date"])
    if days is None or days.empty:
        return None
    return read(uri, {"client": client, "date": str(days["date"].max())})


def example_rows(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The riskiest of the held and the first of those to send, with their expected loss, gain and reason in words."""
    rule = Rule.from_config(config.decide)
    p = {n: rows[f"p_{n}"].to_numpy(dtype=float, na_value=np.nan) for n in rule.heads if f"p_{n}" in rows}
    loss, gain = expected(p, rule, np.empty(len(rows)))
    rows = rows.assign(loss=loss, gain=gain, net=gain - loss)
    held = rows[rows["reason"] == f"{rule.hold_when}_risk"].nsmallest(EXAMPLES, "net")
    first = rows[rows["rank"].notna()].nsmallest(EXAMPLES, "rank")
    chosen = pd.concat([held, first])
    words = [explain(r, rule, a, b) for r, a, b in zip(chosen["reason"], chosen["loss"], chosen["gain"], strict=True)]
    return chosen.assign(words=words)


def render(given: ReportInput) -> str:
    """The report as HTML text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.decisions"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "human": charts.human,
        "number": charts.number,
        "percent": charts.percent,
        "significant": charts.significant,
        "seconds": charts.seconds,
        "size": charts.size,
        "plural": charts.plural,
        "spaced": lambda name: str(name).replace("_", " "),
    }
    metrics, config = given.metrics, given.config
    rule = Rule.from_config(config.decide)
    decided: Mapping[str, Any] = metrics.get("decisions") or {}
    shown = largest(given)
    context = {
        "name": config.name,
        "simulated": (metrics.get("run") or {}).get(
            "simulated", config.source is None or config.source.truth is not None
        ),
        "rule": rule,
        "at": config.at.event or f"every {format_duration(config.at.every or 0)}",
        "as_of": next((str(d["as_of"])[:16] for d in decided.values() if d.get("as_of")), None),
        "written": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "answer": sections.answer(decided, rule, config.at.event),
        "shown": shown,
        "lists": sections.lists(decided, given.examples, rule),
        "campaigns": evidence.campaigns({n: t for n, t in given.rollups.items() if n in shown}, config),
        "quiet": len(given.rollups.keys() - shown),
        "quality": sections.quality(metrics),
        "models": scorecard.models(metrics, config, shown),
        "others": scorecard.others(metrics, config, shown),
        "pooled": scorecard.pooled(metrics),
        "tuning": trials.tuning(metrics),
        "run": sections.run(metrics),
        "settings": config.dump(),
        "outcomes": {
            n: f"{' or '.join(o.kinds)} within {format_duration(o.within)}"
            + (", of the same campaign" if o.match else "")
            for n, o in config.outcomes.items()
        },
    }
    return environment.get_template("report.html").render(context)


def largest(given: ReportInput) -> set[str]:
    """The clients that are shown by themselves: of the most subscribers, or else the most counts."""
    decided, trained = (given.metrics.get(name) or {} for name in ("decisions", "models"))
    names = {*decided, *trained, *given.rollups}
    sizes = {n: ((decided.get(n) or {}).get("rows") or 0, len(given.rollups.get(n, ()))) for n in names}
    return set(sorted(names, key=lambda n: ([-size for size in sizes[n]], n))[:CLIENTS])


def write_report(run_dir: str | Path, given: ReportInput | None = None) -> Path:
    """Write ``report.html`` in the run directory, so that a reader sees the old report or the new one.

    Args:
        given: what to show; read from ``run_dir`` when absent.
    Raises:
        StoreError: the run directory cannot be read or written.
    """
    run_dir = Path(run_dir)
    text = render(given or ReportInput.from_run_dir(run_dir))
    path = run_dir / "report.html"
    try:
        write_atomic(path, text)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from None
    return path
