"""python -m bench.run small: how well the pooled model serves small clients, beside what little each knows of itself.

For each seed a log of many clients is simulated, each with a share of the events of the one before and levels of
opening and leaving of its own. Of every ten small ones two begin ten days before the training rows end, one before the
validation rows do, and one in the hold-out: new to the model, and to its features. The model is the product's own, read
back from the registry as decisions read it, and so are the clients that it is for: those of fewer than
``model.minimum_positives_own`` positives. On each one's hold-out, with the true probabilities as labels, it is compared
with constants:

    own_rate     the client's own training rows'; that of all clients where it has none
    pool_rate    that of all clients' training rows
    credible     the first shrunk towards the second as if by CREDIT positives: the best that a constant can be

and with itself, less what it does for small clients:

    unmoved      not moved to each client's own level (pipeline/learning/levels.py)
    plain        nor trained on rates of clients that are smoothed towards those of all

Normalized entropy is the expected log loss over that of the true mean. What a hold-out of few positives says by its
observed labels is beside it, for what it is worth.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import seeds

CREDIT = 20.0  # positives
BEGINS = {3: 0.62, 9: 0.62, 4: 0.72, 6: 0.89}  # last digit of a client's number -> share of the days before its first
ESTABLISHED = 2  # clients that are there from the beginning whatever their number
CONSTANTS = ("own_rate", "pool_rate", "credible")
MEASURES = ("normalized_entropy", "log_loss", "expected_over_true")

# -- one seed, in its own process ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each small client and head, and for each training."""
    from pipeline import invocation
    from pipeline.backend import choose
    from pipeline.events.store import EventStore
    from pipeline.learning.pooled import Pool
    from pipeline.stages import end_of_data

    settings = log(options, seed)
    invocation.run(settings, "ingest")
    store = EventStore(settings.store_uri, choose(settings.backend))

    def as_of(client: str) -> int:
        return end_of_data(settings, store, client)

    class Plain(Pool):
        """Without what small clients need."""

        def specification(self) -> Any:
            spec = super().specification()
            return spec if spec.context is None else replace(spec, context=replace(spec.context, trials=()))

    rows = []
    for kind, names in ((Pool, ("pooled", "unmoved")), (Plain, ("plain",))):
        models = settings.run_dir / f"models-{names[0]}"
        shutil.rmtree(models, ignore_errors=True)
        pool = kind(store, settings, store.backend, as_of, models)
        rows += [{"seed": seed, **row} for row in Served(pool, settings, models).rows(names)]
    return rows


def log(options: argparse.Namespace, seed: int) -> Any:
    """The configuration of a run on the seed's log, which is made where it is not there."""
    from pipeline import config
    from pipeline.demo import COLUMNS, KINDS
    from pipeline.events.simulate import simulate
    from pipeline.options import Source

    home = options.data / f"small-{options.events}"
    changes = [f"name=seed-{seed}", f"runs={home}", f"model.seed={seed}", f"simulate.seed={seed}"]
    changes += [f"simulate.{name}={getattr(options, name)}" for name in ("events", "clients", "ratio", "variety")]
    settings = config.load(None, [*changes, *options.options])
    raw, late = home / f"raw-{seed}", home / f"late-{seed}"
    print(simulate(settings.simulate, raw).line(), flush=True)
    begin_late(raw / "events", late, settings.simulate)
    source = Source(path=str(late), columns=COLUMNS, known=KINDS, truth=str(raw / "truth"))
    return settings.model_copy(update={"source": source})


def begin_late(events: Path, out: Path, simulated: Any) -> None:
    """Copy a simulated log without what clients of BEGINS did before they began."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from pipeline.events.history import make_world

    world = make_world(simulated)
    begins = {c.name: round(BEGINS.get(c.index % 10, 0) * simulated.days) for c in world.clients[ESTABLISHED:]}
    if out.exists():
        return
    for day, folder in enumerate(sorted(events.iterdir())):
        dropped = pa.array([client for client, first in begins.items() if day < first], pa.string())
        made = out.with_suffix(".tmp") / folder.name
        made.mkdir(parents=True, exist_ok=True)
        for part in folder.iterdir():
            table = pq.ParquetFile(part).read()
            kept = pc.invert(pc.is_in(table["client"].cast(pa.string()), dropped))
            pq.write_table(table.filter(kept), made / part.name)
    out.with_suffix(".tmp").rename(out)


class Served:
    """The clients that a pool's model is for, and how it does for each."""

    def __init__(self, pool: Any, settings: Any, models: Path) -> None:
        self.pool, self.settings, self.models = pool, settings, models
        self.found = pool.result
        host = pool.backend.to_host
        table = self.found.table
        self.split, self.y, self.mask = (host(a) for a in (table.split, table.y, table.mask))
        self.ids = np.asarray(host(pool.backend.column(table.keys["event_id"])))

    def rows(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """A row for each small client and head: of ``names``, and of the constants beside the model that serves."""
        from pipeline.features.samples import TRAIN
        from pipeline.learning.truth import true_probabilities

        learned = (self.split == TRAIN)[:, None] & (self.mask > 0)
        pool = (self.y * learned).sum(axis=0) / learned.sum(axis=0)
        shares, rows = self.pool.shares(), []
        for client, mine in self.found.rows.items():
            positives, seen = (self.y * learned)[mine].sum(axis=0), learned[mine].sum(axis=0)
            if not self.is_small(positives * shares[client]):
                continue
            own = np.where(seen > 0, positives / np.maximum(seen, 1), pool)
            credible = (positives + CREDIT) / (seen + CREDIT / pool)
            p = self.predictions(client, mine, names)
            if "pooled" in names:
                p |= {
                    n: np.tile(r, (mine.stop - mine.start, 1))
                    for n, r in zip(CONSTANTS, (own, pool, credible), strict=True)
                }
            truth = true_probabilities(self.settings, client, self.ids[mine])
            for h, head in enumerate(self.found.model.heads):
                about = {"client": client, "model": names[0], "head": head.name}
                about |= {"learned": int(seen[h]), "learned_positives": int(positives[h])}
                measured = self.measured(mine, h, p, truth[head.name])
                rows += [about | measured] if measured else []
        return rows

    def is_small(self, positives: np.ndarray) -> bool:
        from pipeline.learning.pooled import deciding

        names = [head.name for head in self.found.model.heads]
        most = max(positives[names.index(name)] for name in deciding(self.settings))
        return bool(most < self.settings.model.minimum_positives_own)

    def predictions(self, client: str, mine: slice, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Of the client's rows, float64[n, H] each, by the version that was trained."""
        from pipeline.learning import registry

        version, host, found = f"{registry.POOLED}/{self.found.trained}", self.pool.backend.to_host, {}
        for name in names:
            model, _, _ = registry.load_version(self.models, client if name == "pooled" else None, version)
            found[name] = np.asarray(host(model.predict(self.found.table.X[mine])), dtype=np.float64)
        return found

    def measured(self, mine: slice, h: int, p: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, Any]:
        """Each contestant on a client's hold-out; nothing where it has no rows. ``truth``: float64[n], of its rows."""
        from pipeline.features.samples import HOLDOUT
        from pipeline.learning.gate import loss

        late = np.flatnonzero((self.split[mine] == HOLDOUT) & (self.mask[mine, h] > 0) & ~np.isnan(truth))
        if not len(late):
            return {}
        q, y, scores = truth[late], self.y[mine, h][late], {name: one[late, h] for name, one in p.items()}
        base = loss("binary", np.full(len(q), q.mean()), q).mean()
        return {
            "rows": len(q),
            "positives": int(y.sum()),
            "true_rate": _short(q.mean()),
            "normalized_entropy": {n: _short(loss("binary", one, q).mean() / base) for n, one in scores.items()},
            "log_loss": {n: _short(loss("binary", one, y).mean()) for n, one in scores.items()},
            "expected_over_true": {n: _short(one.mean() / q.mean()) for n, one in scores.items()},
        }


def _short(value: Any) -> float:
    """To six digits: a JSON holds thousands of them."""
    return float(f"{value:.6g}")


# -- all of them -----------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the seeds that the JSON does not have."""

    def missing(rows: list[dict[str, Any]], seed: int) -> list[str]:
        return [] if any(r["seed"] == seed for r in rows) else [str(options.clients)]

    given = ("clients", "ratio", "variety")
    return seeds.measure_all("small", options, missing, lambda rows: {"summary": summary(rows)}, given)


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{head: {contestant: clients; how many are worse than each constant by expected and, than their own rate, by
    observed loss; normalized entropy of all rows, median and worst of clients; the worst excess over that of all
    clients' rate; the median of E/O, and that of the factor that the level is off by}}."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for head in dict.fromkeys(r["head"] for r in rows):
        by: dict[Any, dict[str, Any]] = {}  # a client's row: what it was measured with at each training, together
        for row in (r for r in rows if r["head"] == head):
            one = by.setdefault((row["seed"], row["client"]), {"rows": row["rows"], **{name: {} for name in MEASURES}})
            for name in MEASURES:
                one[name] |= row[name]
        clients = list(by.values())
        entropy, losses, ratio = ({n: [c[m][n] for c in clients] for n in clients[0][m]} for m in MEASURES)
        found[head] = {}
        for name, mine in entropy.items():
            excess = {c: [a - b for a, b in zip(mine, entropy[c], strict=True)] for c in CONSTANTS}
            seeming = [a - b for a, b in zip(losses[name], losses["own_rate"], strict=True)]
            found[head][name] = {
                "clients": len(clients),
                **{f"worse_than_{c}": sum(e > 0 for e in values) for c, values in excess.items()},
                "seems_worse_than_own_rate": sum(e > 0 for e in seeming),
                "normalized_entropy": float(np.average(mine, weights=[c["rows"] for c in clients])),
                "median": statistics.median(mine),
                "worst": max(mine),
                "worst_beyond_pool_rate": max(excess["pool_rate"]),
                "expected_over_true": statistics.median(ratio[name]),
                "off": math.exp(statistics.median(abs(math.log(max(r, 1e-9))) for r in ratio[name])),
            }
    return found


def table(report: dict[str, Any]) -> str:
    """A line for each head and contestant."""
    columns = {
        "worse_than_own_rate": ("worse than own", 14, "d"),
        "worse_than_pool_rate": ("than pool", 9, "d"),
        "worse_than_credible": ("than both", 9, "d"),
        "seems_worse_than_own_rate": ("own, observed", 13, "d"),
        "normalized_entropy": ("entropy", 8, ".4f"),
        "median": ("median", 7, ".4f"),
        "worst": ("worst", 6, ".3f"),
        "worst_beyond_pool_rate": ("beyond pool", 11, "+.3f"),
        "expected_over_true": ("E/O", 5, ".2f"),
        "off": ("level off", 9, ".2f"),
    }
    lines = []
    for head, models in report["summary"].items():
        title = f"{head} ({next(iter(models.values()))['clients']} clients)"
        lines += ["", f"{title:26} {' '.join(f'{name:>{width}}' for name, width, _ in columns.values())}"]
        for model, found in models.items():
            cells = [f"{format(found[name], form):>{width}}" for name, (_, width, form) in columns.items()]
            lines.append(f"{model:26} {' '.join(cells)}")
    return "\n".join(lines[1:])


def parser() -> argparse.ArgumentParser:
    made = seeds.parser("small", __doc__, 0)
    made.set_defaults(clients=60, events=900_000)
    made.add_argument("--ratio", type=float, default=0.9, help="of a client's events to those of the one before")
    made.add_argument("--variety", type=float, default=0.5, help="deviation of the clients' levels")
    return made


def main(arguments: list[str]) -> int:
    return seeds.main("small", parser().parse_intermixed_args(arguments), measure, run, table)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
