"""Which epochs trainings learn."""

from __future__ import annotations

from typing import Any

import pytest


def count_epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the epochs that are learned from here on, in a list that grows."""
    from pipeline.learning.trainer import Trainer

    learned: list[int] = []
    learn = Trainer.learn

    def counted(self: Any, epoch: int, *others: Any) -> float:
        learned.append(epoch)
        return learn(self, epoch, *others)

    monkeypatch.setattr(Trainer, "learn", counted)
    return learned
