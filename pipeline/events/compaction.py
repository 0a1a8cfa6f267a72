from __future__ import annotations

from pipeline.backend import Backend


def compact_closed(uri: str, backend: Backend, workers: int = 2) -> dict[str, int]:
    return {}
