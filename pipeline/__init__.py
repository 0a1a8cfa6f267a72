"""Raw event logs into decisions: sorted once, aggregated point in time, learned on the device.

    import pipeline
    store = pipeline.EventStore("runs/demo/store")
    events = store.read("acme", since="2026-06-01")

Importing this package is cheap; what a name needs is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config as Config
    from pipeline.config import load as load_config
    from pipeline.events.store import EventStore as EventStore
    from pipeline.extensions import feature as feature
    from pipeline.extensions import rule as rule

__version__ = "0.1.0"
__all__ = ["Config", "EventStore", "__version__", "feature", "load_config", "rule"]

_HOME = {
    "Config": ("pipeline.config", "Config"),
    "EventStore": ("pipeline.events.store", "EventStore"),
    "feature": ("pipeline.extensions", "feature"),
    "load_config": ("pipeline.config", "load"),
    "rule": ("pipeline.extensions", "rule"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    import importlib

    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
