"""What a process that trains is told instead of being sent rows: which store, as it was when the run first looked, and
which client's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import extensions
from pipeline.backend import Backend
from pipeline.config import Config

if TYPE_CHECKING:
    from pipeline.events.store import EventStore
    from pipeline.learning.pretraining import Pretrained
    from pipeline.learning.start import Start


@dataclass(frozen=True)
class Snapshot:
    """A run's configuration, its backend, and a version of the store at ``uri``; whoever reads it opens it itself."""

    config: Config
    backend: Backend
    version: int
    uri: str

    @classmethod
    def of(cls, store: EventStore, config: Config) -> Snapshot:
        """That of a store which is open; it stays so for as long as the snapshot is not sent."""
        made = cls(config, store.backend, store.version(), str(store.uri))
        made.__dict__["store"] = store
        return made

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells it from others."""
        return self.uri, self.version, self.config.dump()

    def absolute(self) -> Snapshot:
        """The same for a process that may have been started in another folder."""
        return self if "://" in self.uri else replace(self, uri=str(Path(self.uri).absolute()))

    @cached_property
    def store(self) -> EventStore:
        """The store; features of the user's own are there from then on.

        Raises:
            StoreError: it cannot be read from here. ConfigError: a file of extensions cannot.
        """
        from pipeline.events.store import EventStore

        extensions.load(self.config.extensions)
        return EventStore(self.uri, self.backend, self.version)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was opened."""
        return {name: value for name, value in self.__dict__.items() if name != "store"}


@dataclass(frozen=True)
class Training:
    """What the training of one client's model needs, small enough to be sent.

    ``as_of``: where the data end, microseconds UTC. ``models``: the run's directory of models. ``rollups``: the run's
    table of roll-ups, where it is of this store; context is counted from it. ``tuned``: of which trial of tune the
    settings in the configuration are, for the card, see study.py; None: of none.
    ``pretrained``: the network that the training begins from, see pretraining.py; None: from fresh weights.
    """

    snapshot: Snapshot
    client: str
    as_of: int
    models: Path
    rollups: Path | None = None
    tuned: Mapping[str, Any] | None = None
    pretrained: Pretrained | None = None

    def start(self, names: Sequence[str]) -> Start | None:
        """What a training on features of these names begins from; None: from fresh weights.

        Raises:
            ModelError: from the pretrained network's file.
        """
        return None if self.pretrained is None else self.pretrained.start(names)

    @property
    def store(self) -> EventStore:
        return self.snapshot.store

    @property
    def config(self) -> Config:
        return self.snapshot.config

    @property
    def backend(self) -> Backend:
        return self.snapshot.backend

    def absolute(self) -> Training:
        """The same for a process that may have been started in another folder."""
        rollups = None if self.rollups is None else self.rollups.absolute()
        return replace(self, snapshot=self.snapshot.absolute(), models=self.models.absolute(), rollups=rollups)
