"""Event logs with a known truth: daily Parquet files as a collector would write them.

The generative model is written down in behaviour.py, what is wrong with the log in dirt.py. What is written:

    OUT/events/day=YYYY-MM-DD/part-NNNN.parquet   rows received on that UTC day, sorted by received_at within the part:
        client str, user_id str or int64, event_time timestamp[us, UTC], event_name str, campaign_id str or int64 (null
        without one), message_id int64 (unique but for duplicates), provider str, received_at timestamp[us, UTC]
    OUT/truth/sends/part-NNNN.parquet   one row a send: client, event_id, subscriber, campaign, ts, p_open, p_click,
        p_complaint, p_unsubscribe, p_unsubscribe_or_complaint, awake, volume, streak, received
    OUT/truth/dirt/part-NNNN.parquet    one row for each flaw of each row in the log: day (of its file), client, event_id,
        dirt (its kind), received_at, and the subscriber, ts and event of the row before it was spoiled
    OUT/truth/subscribers/, OUT/truth/campaigns.parquet   static traits; topic, quality and hour
    OUT/truth/state/                    what is needed to continue the history
    OUT/_COMPLETE.json                  written last

p_x is the probability, given traits, hidden state and everything before the send, that this send gets at least one x of a
human that carries its campaign (opens and clicks within 3 days, unsubscribe and complaint within 7), bounces and the spam
folder included. Machine opens and scanner clicks (dirt) are not counted in it. Unsubscribe and complaint exclude each
other. Rows that would arrive after the last day are not in the log.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any


from pipeline import config
from pipeline.errors import ConfigError
from pipeline.events.history import Group, groups_of, make_world
from pipeline.events.logfiles import GroupWriter, write_campaigns
from pipeline.events.population import Block

MODEL_VERSION = 1  # raise it when the same settings give other data
MARKER, STARTED = "_COMPLETE.json", "_SIMULATION.json"


@dataclass
class SimulationReport:
    """What was written: counts of rows by kind and flaws by kind, and how long it took."""

    out: Path
    rows: int
    sends: int
    subscribers: int
    kinds: dict[str, int]
    dirt: dict[str, int]
    seconds: float
    reused: bool = False

    def line(self) -> str:
        speed = f", {self.rows / self.seconds:,.0f} events/s" if self.seconds > 0 and not self.reused else ""
        done = "already simulated" if self.reused else f"simulated in {self.seconds:.1f} s{speed}"
        return f"{self.rows:,} events, {self.sends:,} sends, {self.subscribers:,} subscribers: {done}"


def simulate(
    settings: config.Simulate, out: Path, workers: int = 2, progress: Any = None, until: int | None = None
) -> SimulationReport:
    """Write the log of ``settings`` and its truth below ``out``.

    A complete simulation of the same settings is left as it is; an incomplete one is begun again.

    Args:
        settings: about ``events`` rows are written (within a few percent), whatever the number of workers the same bytes.
        out: a directory, made where absent.
        workers: threads.
        progress: called with the number of rows written since the last call, or an object with ``advance(rows)``.
        until: stop after this many days instead of ``settings.days`` (the population stays that of ``settings``).
    Raises:
        ConfigError: ``out`` holds something else, or a simulation of other settings; dirt that does not exist.
    """
    began = time.perf_counter()
    world, days = make_world(settings), settings.days if until is None else until
    wanted = {"version": MODEL_VERSION, "until": days, **settings.model_dump(mode="json"), "dirt": dict(world.rates)}
    done = _existing(out, wanted)
    if done is not None:
        return SimulationReport(out=out, seconds=0.0, reused=True, **done)
    for folder in ("events", "truth"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    _write_json(out / STARTED, wanted)
    write_campaigns(world, days, settings.ids, out / "truth" / "campaigns.parquet")
    kinds: dict[str, int] = {}
    dirt: dict[str, int] = {}
    sends = subscribers = 0
    with ThreadPoolExecutor(workers) if workers > 1 else nullcontext() as pool, ThreadPoolExecutor(1) as writing:
        for number, members in enumerate(groups_of(world, days)):
            make = [(world, *member) for member in members]
            run = pool.map if pool else map
            group = Group(world, list(run(lambda m: Block(*m), make)))
            subscribers += sum(n for _, _, n in members)
            writer = GroupWriter(world, settings.ids, out, number)
            writer.subscribers(group)
            backlog: list[Future[int]] = []
            for day in range(days):
                arrived, truths = group.step(day, None, pool)
                sends += sum(len(t.ts) for t in truths)
                backlog.append(writing.submit(writer.day, day, arrived, truths))
                if len(backlog) > 2:
                    _advance(progress, backlog.pop(0).result())
            for waiting in backlog:
                _advance(progress, waiting.result())
            writer.close()
            group.save(writer.state_path)
            for total, part in ((kinds, writer.kinds), (dirt, writer.dirt)):
                for name, count in part.items():
                    total[name] = total.get(name, 0) + count
    counts = {"rows": sum(kinds.values()), "sends": sends, "subscribers": subscribers, "kinds": kinds, "dirt": dirt}
    _write_json(out / MARKER, {"settings": wanted, "counts": counts})
    return SimulationReport(out=out, seconds=time.perf_counter() - began, **counts)  # type: ignore[arg-type]


def _advance(progress: Any, rows: int) -> None:
    if progress is not None:
        (progress if callable(progress) else progress.advance)(rows)


def _existing(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The counts of a complete simulation of the wanted settings in ``out``; None if it is to be made."""
    if not out.exists() or not any(out.iterdir()):
        return None
    for name in (MARKER, STARTED):
        path = out / name
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path} is not JSON: delete {out} to simulate there again") from None
        settings = found["settings"] if name == MARKER else found
        other = [k for k in sorted({*settings, *wanted}) if settings.get(k) != wanted.get(k)]
        if other:
            text = ", ".join(f"{k} {settings.get(k)!r} there, {wanted.get(k)!r} wanted" for k in other)
            raise ConfigError(
                f"{out} holds a simulation with other settings ({text}): choose another directory or delete it"
            )
        return found["counts"] if name == MARKER else None
    raise ConfigError(f"{out} is not empty and holds no simulation: choose another directory")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
