"""What a process that trains is told instead of being sent rows: which store, as it was when the run first looked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import extensions
from pipeline.backend import Backend
from pipeline.config import Config

if TYPE_CHECKING:
    from pipeline.events.store import EventStore


@dataclass(frozen=True)
class Snapshot:
    """A run's configuration, its backend, and a version of the store at ``uri``; whoever reads it opens it itself."""

    config: Config
    backend: Backend
    version: int
    uri: str

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
