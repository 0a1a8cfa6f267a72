"""Model versions that are only their cards, for what looks at cards alone."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.learning.registry import client_dir


def cite(models: Path, client: str, snapshot: int) -> Path:
    """A version of a client's model that says it was trained on a store version."""
    folder = client_dir(models, client) / f"20260101T000000Z-{snapshot:016x}"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"snapshot": snapshot}))
    return folder
