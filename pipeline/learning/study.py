"""One client's search on disk, and what it tries next, by Optuna's tree-structured Parzen estimator (Bergstra 2011).

Trials come in batches. What a batch tries is a function of the seed, the batch's number and the trials of the batches
before it, in order of their numbers, and of nothing else: so the same seed and data give the same trials and the same
best one, whichever ended first, however many ran side by side, and wherever the search was killed and went on. Within a
batch Optuna takes the others for bad ones, so that they differ. The first trial is of the configured settings.

``study.json`` holds the finished trials, replaced atomically after each; ``best.json``, written when all are done, the
best of them, which is what training uses. The best is so on the validation rows; no trial sees the hold-out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.learning import space
from pipeline.learning.registry import client_dir
from pipeline.learning.space import Settings
from pipeline.options import SEQUENCE_LENGTH, SEQUENTIAL, Model
from pipeline.rundir import read_json, write_atomic
from pipeline.search import Tune

if TYPE_CHECKING:
    import optuna

    from pipeline.config import Config

STARTUP = 8  # trials drawn at random, before the estimator has enough to go by
RIVALS = 4  # complete trials before any is given up


@dataclass(frozen=True)
class Trial:
    """What came of one trial.

    ``state``: complete, pruned (given up early) or failed. ``validation``: the least of ``history``, which is each
    epoch's validation loss over that of the base rate, averaged over the outcomes; None where it failed. ``epoch``: of
    that. ``heads``: validation metrics by outcome. ``reason``: why it failed.
    """

    number: int
    settings: Settings
    state: str
    validation: float | None = None
    epoch: int = 0
    history: tuple[float, ...] = ()
    heads: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""

    @property
    def best_so_far(self) -> list[float]:
        """After each epoch the least until then."""
        return list(itertools.accumulate(self.history, min))


class Study:
    """A client's search: finished trials, and which are next.

    Args:
        folder: the run's folder ``tune``. key: of what a trial depends on; a study of another key is begun anew.
    """

    def __init__(self, folder: Path, client: str, key: str, model: Model, tune: Tune) -> None:
        self.home, self.client, self.key, self.model, self.tune = client_dir(folder, client), client, key, model, tune
        self.trials: dict[int, Trial] = {}
        found = read_json(self.home / "study.json")
        if found.get("key") == key:
            self.trials = {t["number"]: Trial(**{**t, "history": tuple(t["history"])}) for t in found["trials"]}

    @property
    def finished(self) -> list[Trial]:
        """The trials asked for that are finished, by number."""
        return [self.trials[n] for n in sorted(self.trials) if n < self.tune.trials]

    @property
    def done(self) -> bool:
        return len(self.finished) == self.tune.trials

    @property
    def best(self) -> Trial | None:
        """The trial of least validation loss; of equals the earliest."""
        able = [t for t in self.finished if t.validation is not None]
        return min(able, key=lambda t: (t.validation, t.number), default=None)

    def before(self, batch: int) -> list[Trial]:
        """The trials of earlier batches, by number: what the trials of a batch know of."""
        return [t for t in self.finished if t.number < batch * self.tune.batch]

    def missing(self, batch: int) -> list[int]:
        """The trials of a batch that are not finished."""
        first, size = batch * self.tune.batch, self.tune.batch
        return [n for n in range(first, min(first + size, self.tune.trials)) if n not in self.trials]

    def next(self) -> tuple[int, dict[int, Settings]]:
        """The first batch that is not finished, and its missing trials' settings by number."""
        batch = 0
        while batch * self.tune.batch < self.tune.trials:
            if missing := self.missing(batch):
                asked = self.ask(batch)
                return batch, {number: asked[number] for number in missing}
            batch += 1
        return batch, {}

    def ask(self, batch: int) -> dict[int, Settings]:
        """The settings of every trial of a batch, by number: the same whenever it is asked."""
        first, size = batch * self.tune.batch, self.tune.batch
        optuna_ = _optuna()
        seed = int(np.random.SeedSequence([self.tune.seed % 2**63, batch]).generate_state(1)[0])
        sampler = optuna_.samplers.TPESampler(n_startup_trials=STARTUP, multivariate=False, seed=seed)
        study = optuna_study(self.before(batch), self.model, self.tune, sampler=sampler)
        drawn = {n: space.draw(study.ask(), self.tune.space, self.model) for n in range(max(first, 1), first + size)}
        return drawn if first else {0: space.configured(self.tune.space, self.model), **drawn}

    def tell(self, trial: Trial) -> None:
        """Keep a finished trial."""
        self.trials[trial.number] = trial
        kept = {"client": self.client, "key": self.key, "seed": self.tune.seed, "batch": self.tune.batch}
        trials = [asdict(self.trials[n]) for n in sorted(self.trials)]
        self.home.mkdir(parents=True, exist_ok=True)
        write_atomic(self.home / "study.json", json.dumps({**kept, "trials": trials}, indent=1, allow_nan=False))

    def publish(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Write ``best.json``, what training uses; returns it. None where every trial failed: what was there stays.

        Args:
            facts: further entries: of which data and when.
        """
        best = self.best
        if best is None:
            return None
        found = {
            "trial": best.number,
            "of": self.tune.trials,
            "settings": best.settings,
            "validation": best.validation,
            "seed": self.tune.seed,
            **facts,
        }
        write_atomic(self.home / "best.json", json.dumps(found, indent=1, allow_nan=False))
        return found


def optuna_study(trials: list[Trial], model: Model, tune: Tune, **options: Any) -> optuna.Study:
    """Finished trials as a study of Optuna, in memory; ``options`` as of ``optuna.create_study``.

    A failed trial is one that was pruned before its first epoch, so that the likes of it are avoided.
    """
    optuna_ = _optuna()
    states = optuna_.trial.TrialState
    study: optuna.Study = optuna_.create_study(direction="minimize", **options)
    ways = space.distributions(tune.space, model)
    for trial in trials:
        drawn = space.params(trial.settings, tune.space, model)
        study.add_trial(
            optuna_.trial.create_trial(
                state=states.COMPLETE if trial.state == "complete" else states.PRUNED,
                value=trial.validation if trial.state == "complete" else None,
                params=drawn,
                distributions={name: ways[name] for name in drawn},
                intermediate_values=dict(enumerate(trial.best_so_far)),
                user_attrs={"number": trial.number, "state": trial.state},
            )
        )
    return study


def pruner_study(rivals: list[list[float]], warmup: int) -> optuna.Study:
    """A study whose pruner gives up what does worse than the median of ``rivals`` at the same epoch.

    Args:
        rivals: of each finished trial the best validation until each epoch; one that stopped early stays at its last.
    """
    optuna_ = _optuna()
    longest = max(map(len, rivals), default=0)
    pruner = optuna_.pruners.MedianPruner(n_startup_trials=RIVALS, n_warmup_steps=warmup)
    study: optuna.Study = optuna_.create_study(direction="minimize", pruner=pruner)
    for best in rivals:
        values = dict(enumerate(best + best[-1:] * (longest - len(best))))
        study.add_trial(optuna_.trial.create_trial(value=best[-1], intermediate_values=values))
    return study


def best_of(folder: Path, client: str) -> dict[str, Any] | None:
    """What ``publish`` wrote of a client last; None where it was never tuned.

    Raises:
        StoreError: the file is damaged.
    """
    return read_json(client_dir(folder, client) / "best.json") or None


def tuned(config: Config, best: Mapping[str, Any]) -> Config:
    """The configuration with the best settings in place of its own.

    Raises:
        ConfigError: the options of this version do not take them.
    """
    try:
        return with_settings(config, best["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"what tune found cannot be used ({error}): run tune again, or set tune.use=false") from None


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with other settings of the model, and with sequences where those read them."""
    model = config.model.having(settings)
    changed: dict[str, Any] = {"model": model}
    if model.kind in SEQUENTIAL and not config.sequences.length:
        changed["sequences"] = config.sequences.model_copy(update={"length": SEQUENCE_LENGTH})
    return config.model_copy(update=changed)


def _optuna() -> Any:
    """Optuna, which says nothing of its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
