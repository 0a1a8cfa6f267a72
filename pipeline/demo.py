"""The demo: the simulated log as a source, mapped like anybody's."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.options import Columns, Source

COLUMNS = Columns(
    subscriber="user_id",
    ts="event_time",
    event="event_name",
    client="client",
    event_id="message_id",
    campaign="campaign_id",
    provider="provider",
    ingested_at="received_at",
)
KINDS = ["send", "open", "click", "delete", "complaint", "unsubscribe", "subscribe", "soft_bounce", "hard_bounce"]


def with_source(config: Config) -> Config:
    """The configuration, with the simulated demo log as its source where it names none."""
    if config.source is not None:
        return config
    raw = config.run_dir / "raw"
    source = Source(path=str(raw / "events"), columns=COLUMNS, known=KINDS, truth=str(raw / "truth"))
    return config.model_copy(update={"source": source})
