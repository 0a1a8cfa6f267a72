"""One client's model, from the store to the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.learning import drift, gate
from pipeline.learning.client import train_client
from pipeline.learning.snapshot import Snapshot, Training
from tests.learning.logs import open_log


def test_what_the_network_does_not_look_at_has_no_say_in_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config = open_log(tmp_path, {"acme": 120})
    seen: dict[str, set[str]] = {}

    def watch(module: Any, name: str, names: Any) -> None:
        plain = getattr(module, name)

        def watched(*given: Any, **named: Any) -> Any:
            found = plain(*given, **named)
            seen[name] = names(given, found)
            return found

        monkeypatch.setattr(module, name, watched)

    watch(drift, "of_table", lambda given, found: {d.name for d in found})
    watch(gate, "judge", lambda given, found: {d.name for d in given[6]})
    trained = train_client(
        Training(Snapshot.of(store, config), "acme", store.last_full_day("acme"), tmp_path / "models")
    )
    card = json.loads((tmp_path / "models" / "acme" / trained.version / "card.json").read_text())
    unseen = set(card["not_looked_at"])
    assert "days_since_send" in unseen & seen["of_table"]
    assert seen["judge"] == seen["of_table"] - unseen != set()
    assert f"than of the subscriber: {', '.join(card['not_looked_at'])}" in trained.split
