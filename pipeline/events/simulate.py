"""Event logs with a known truth: daily Parquet files as a collector would write them.

The generative model is written down in behaviour.py, what is wrong with the log in dirt.py. A history is made in
groups of up to 262,144 subscribers, one after the other, each a day at a time by threads over blocks of 16,384;
memory is that of a group (about 0.4 GB) whatever the number of events. What is written:

    OUT/events/day=YYYY-MM-DD/part-NNNN.parquet   rows received on that UTC day, sorted by received_at within the part:
        client str, user_id str or int64, event_time timestamp[us, UTC], event_name str, campaign_id str or int64 (null
        without one), message_id int64 (unique but for duplicates), provider str, received_at timestamp[us, UTC]
    OUT/truth/sends/part-NNNN.parquet   one row a send: client, event_id, subscriber, campaign, ts, p_open, p_click,
        p_complaint, p_unsubscribe, p_unsubscribe_or_complaint, awake, volume, streak, received
    OUT/truth/dirt/part-NNNN.parquet    one row for each flaw of each row in the log: day (of its file), client,
        event_id, dirt (its kind), received_at, and the subscriber, ts and event of the row before it was spoiled
    OUT/truth/subscribers/, OUT/truth/campaigns.parquet   static traits; topic, quality and hour
    OUT/truth/settings.json             the settings and the version of the model, for the ideal observer (observer.py)
    OUT/truth/state/                    what ``Simulation.resume`` needs to continue the history
    OUT/_COMPLETE.json                  written last

p_x is the probability, given traits, hidden state and everything before the send, that this send gets at least one x of
a human that carries its campaign (opens and clicks within 3 days, unsubscribe and complaint within 7), with bounces and
the spam folder taken into account. Machine opens and scanner clicks (dirt) are not counted in it. Unsubscribe and
complaint exclude each other. Rows that would arrive after the last day are not in the log.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import options
from pipeline.errors import ConfigError, SourceError
from pipeline.events.history import Group, blocks_of, groups_of, in_arrival_order, make_world, population
from pipeline.events.logfiles import GroupWriter, campaign_table, event_table, planned_table, truth_table, write
from pipeline.events.population import Block
from pipeline.events.rows import concat

MODEL_VERSION = 1  # raise it when the same settings give other data
MARKER, STARTED, POSITION, SETTINGS = "_COMPLETE.json", "_SIMULATION.json", "position.json", "settings.json"


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
    settings: options.Simulate, out: Path, workers: int = 2, progress: Any = None, until: int | None = None
) -> SimulationReport:
    """Write the log of ``settings`` and its truth below ``out``.

    A complete simulation of the same settings is left as it is; an incomplete one is begun again.

    Args:
        settings: about ``events`` rows are written (within a few percent), the same bytes with any ``workers``.
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
        try:
            (out / folder).mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"cannot write the simulated log into {out}: {error.strerror}") from None
    _write_json(out / STARTED, wanted)
    write(campaign_table(world, settings.ids, days), out / "truth" / "campaigns.parquet")
    _write_json(out / "truth" / SETTINGS, {"version": MODEL_VERSION, "settings": settings.model_dump(mode="json")})
    (out / "truth" / "state").mkdir()
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
            try:
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
            except BaseException:
                writing.submit(writer.abandon)  # after what is still being written
                raise
            group.save(out / "truth" / "state" / f"group-{number:04d}.npz")
            for total, part in ((kinds, writer.kinds), (dirt, writer.dirt)):
                for name, count in part.items():
                    total[name] = total.get(name, 0) + count
    counts = {"rows": sum(kinds.values()), "sends": sends, "subscribers": subscribers, "kinds": kinds, "dirt": dirt}
    _save_position(out / "truth" / "state", settings, days, days)
    _write_json(out / MARKER, {"settings": wanted, "counts": counts})
    return SimulationReport(out=out, seconds=time.perf_counter() - began, **counts)  # type: ignore[arg-type]


def read_settings(truth: Path) -> options.Simulate:
    """The settings of the log whose truth is in this folder.

    Raises:
        SourceError: they are not there, cannot be read, or are of another version of the model.
    """
    path = truth / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, settings = found["version"], options.Simulate(**found["settings"])
    except OSError:
        raise SourceError(f"{truth} has no {SETTINGS}, which names the simulated log's settings") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} does not hold the settings of a simulated log: {error}") from None
    if version != MODEL_VERSION:
        raise SourceError(f"{path} is of version {version!r} of the simulator's model, this is version {MODEL_VERSION}")
    return settings


@dataclass
class Day:
    """One day of a continued history: ``events`` that arrived on it and ``sends``, the truth of its sends.

    Both are pyarrow Tables with the columns of the files above.
    """

    number: int
    events: Any
    sends: Any


# Which of a day's planned sends go out: a function of their table (client, subscriber, campaign, ts, event_id; from
# ``Simulation.plan``) giving bool[n]; or the subscribers of each client who may be sent to. None: all of them.
Policy = Callable[[Any], Any] | Mapping[str, Collection[Any]] | None


class Simulation:
    """A history in memory, a day at a time, under a policy.

    Continued under the policy None, it gives the rows that ``simulate`` would have written for more days. Everything
    random hangs on who and when, so histories under different policies differ only by what the policies do.
    """

    def __init__(
        self, settings: options.Simulate, day: int = 0, groups: list[Group] | None = None, covered: int | None = None
    ) -> None:
        """At the beginning of the history of ``settings``; the other arguments are for ``resume``."""
        self.settings, self.day, self.world = settings, day, make_world(settings)
        self._groups = groups if groups is not None else [Group(self.world, [])]
        self._covered = settings.days if covered is None else covered  # joiners of these days have their blocks
        if groups is None:
            self._populate(lambda client: 0, self._covered)

    @classmethod
    def resume(cls, out: Path) -> Simulation:
        """At the end of what ``simulate`` or ``save`` wrote to ``out``; SourceError when that is not complete."""
        state = out / "truth" / "state"
        try:
            position = json.loads((state / POSITION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise SourceError(f"{state} holds no complete state of a simulation: simulate into {out} first") from None
        if position["version"] != MODEL_VERSION:
            raise SourceError(
                f"{out} was simulated by version {position['version']} of the model, this is version {MODEL_VERSION}: "
                "simulate again into another directory"
            )
        settings = options.Simulate(**position["settings"])
        world = make_world(settings)
        groups = [Group.load(world, path) for path in sorted(state.glob("group-*.npz"))]
        return cls(settings, position["day"], groups, position["covered"])

    def save(self, out: Path) -> None:
        """Write the state below ``out``, for ``resume``."""
        state = out / "truth" / "state"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        for number, group in enumerate(self._groups):
            group.save(state / f"group-{number:04d}.npz")
        _save_position(state, self.settings, self.day, self._covered)

    def plan(self) -> Any:
        """The sends the clients' cadences would make on the next day: client, subscriber, campaign, ts, event_id."""
        self._grow()
        return planned_table(self.world, self.settings.ids, [p for g in self._groups for p in g.plan(self.day)])

    def step(self, allowed: Policy = None) -> Day:
        """Simulate the next day, sending what is planned and allowed. ConfigError: a mask of another length."""
        ids = None if allowed is None else self._allowed(allowed)
        self._grow()
        parts, truths = [], []
        for group in self._groups:
            arrived, truth = group.step(self.day, ids)
            parts.append(arrived)
            truths += truth
        events = event_table(self.world, self.settings.ids, in_arrival_order(concat(parts)))
        self.day += 1
        return Day(self.day - 1, events, truth_table(self.world, self.settings.ids, truths))

    def _allowed(self, policy: Callable[[Any], Any] | Mapping[str, Collection[Any]]) -> NDArray[np.int64]:
        planned = self.plan()
        if callable(policy):
            go = np.asarray(policy(planned), dtype=bool)
        else:
            who = zip(planned["client"].to_pylist(), planned["subscriber"].to_pylist(), strict=True)
            sets = {client: set(subscribers) for client, subscribers in policy.items()}
            go = np.array([subscriber in sets.get(client, ()) for client, subscriber in who], dtype=bool)
        if go.shape != (planned.num_rows,):
            raise ConfigError(f"the policy gave an array of shape {go.shape} for {planned.num_rows} planned sends")
        return np.asarray(planned["event_id"].to_numpy()[go], np.int64)

    def _grow(self) -> None:
        """Let the lists grow past the days that the population was made for."""
        if self.day >= self._covered:
            ends = {c.index: population(self.world, c.index, self._covered) for c in self.world.clients}
            self._covered = self.day + 30
            self._populate(ends.__getitem__, self._covered)

    def _populate(self, begin: Callable[[int], int], days: int) -> None:
        self._groups[-1].blocks += [Block(self.world, *member) for member in blocks_of(self.world, begin, days)]


def _advance(progress: Any, rows: int) -> None:
    if progress is not None:
        (progress if callable(progress) else progress.advance)(rows)


def _existing(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The counts of a complete simulation of the wanted settings in ``out``; None if it is to be made."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: the simulated log needs a directory")
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


def _save_position(state: Path, settings: options.Simulate, day: int, covered: int) -> None:
    position = {"version": MODEL_VERSION, "day": day, "covered": covered, "settings": settings.model_dump(mode="json")}
    _write_json(state / POSITION, position)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
