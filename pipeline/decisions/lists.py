"""What decides whom to score and when: plans, suppression lists, and the client's usual hour."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import numpy as np
import pandas as pd

from pipeline.backend import PANDAS, Frame, backend_of
from pipeline.errors import ConfigError, SourceError, did_you_mean
from pipeline.features.calendar import local_time
from pipeline.options import SECOND, UNITS

HOUR = UNITS["h"]


def usual_hour(events: Frame, exposure: str, timezone: str) -> int | None:
    """The commonest local hour of the exposures among ``events``, the earliest of equals; None without any."""
    backend = backend_of(events)
    chosen = events["ts"][events["event"] == exposure]
    if not len(chosen):
        return None
    ts = backend.column(chosen.astype("datetime64[us]"))
    hours = local_time(backend.xp, ts, timezone) // HOUR % 24
    return int(backend.xp.argmax(backend.xp.bincount(hours, minlength=24)))


def next_at(as_of: int, hour: int, timezone: str) -> int:
    """The first instant at or after ``as_of`` when the clock of ``timezone`` shows ``hour``:00, microseconds UTC.

    Where summer time leaves that hour out, the instant the clock jumps over it.
    """
    zone = zoneinfo.ZoneInfo(timezone)
    clock = dt.datetime.fromtimestamp(as_of // SECOND, tz=zone)
    for days in range(3):
        local = (clock + dt.timedelta(days=days)).replace(hour=hour, minute=0, second=0, microsecond=0, fold=0)
        for fold in (0, 1):
            instant = int(local.replace(fold=fold).timestamp()) * SECOND
            if instant >= as_of:
                return instant
    return as_of


def keys_of(values: np.ndarray) -> np.ndarray:
    """Subscriber keys of texts, int64[n], on the host; None is hashed as the empty text."""
    texts = pd.Series(values, dtype=object)
    hashed: np.ndarray = PANDAS.hash_strings(texts.where(texts.notna(), ""))
    return hashed


def _read(path: str, option: str, needed: list[str]) -> pd.DataFrame:
    text = path.endswith((".csv", ".csv.gz"))
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""]) if text else pd.read_parquet(path)
    except FileNotFoundError:
        raise SourceError(f"{option}: there is no file {path!r}") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{option}: cannot read {path!r} as {'CSV' if text else 'Parquet'}: {error}") from None
    for name in needed:
        if name not in frame.columns:
            near = did_you_mean(name, map(str, frame.columns))
            raise SourceError(f"{option}: {path!r} has no column {name!r}; {near}")
        if frame[name].isna().any():
            row = int(frame[name].isna().to_numpy().argmax())
            raise SourceError(f"{option}: {path!r} has no {name} in row {row}; fill it or remove the row")
    return frame


def _of_client(frame: pd.DataFrame, client: str) -> pd.DataFrame:
    if "client" not in frame.columns:
        return frame
    return frame[frame["client"].astype(str) == client].reset_index(drop=True)


def unknown_clients(path: str | None, option: str, clients: list[str]) -> list[str]:
    """The clients that a plan or suppression list names and the log does not have, sorted.

    Args:
        path: None gives none. option: its name in the configuration, for messages.
    Raises:
        SourceError: the file cannot be read.
    """
    frame = _read(path, option, ["subscriber"]) if path else pd.DataFrame()
    return sorted(set(frame["client"].astype(str)) - set(clients)) if "client" in frame.columns else []


def suppression_list(path: str, client: str) -> np.ndarray:
    """Keys of the subscribers never to send to, int64[m]: of this client, or of all where no column names one.

    Args:
        path: CSV or Parquet with a column ``subscriber`` and perhaps ``client``.
    Raises:
        SourceError: unreadable, or without that column.
    """
    frame = _of_client(_read(path, "decide.suppressed", ["subscriber"]), client)
    return keys_of(frame["subscriber"].to_numpy(dtype=object))


def read_plan(path: str, client: str, as_of: int) -> pd.DataFrame:
    """One client's planned sends.

    Args:
        path: CSV or Parquet with columns ``subscriber`` and ``at`` (UTC where naive), perhaps ``client``, ``campaign``.
        as_of: microseconds UTC.
    Returns:
        ``subscriber`` text, ``key`` int64, ``campaign`` text or None, ``at`` and ``hour`` int64 microseconds UTC.
        Features are computed once for each ``hour``, at its start but not before as_of.
    Raises:
        SourceError: unreadable, a column missing, or a time that is none. ConfigError: a time before as_of.
    """
    frame = _of_client(_read(path, "decide.plan", ["subscriber", "at"]), client)
    try:
        at = pd.to_datetime(frame["at"], utc=True).dt.tz_localize(None).astype("datetime64[us]").astype("int64")
    except (ValueError, TypeError) as error:
        raise SourceError(f"decide.plan: column 'at' of {path!r} holds something that is no time: {error}") from None
    if (at < as_of).any():
        raise ConfigError(
            f"decide.plan: {path!r} plans a send at {np.datetime64(int(at.min()), 'us')} UTC, before as_of "
            f"{np.datetime64(as_of, 'us')}; plan only sends to come, or set as_of earlier"
        )
    campaign = frame["campaign"] if "campaign" in frame.columns else pd.Series([None] * len(frame), dtype=object)
    known = campaign.notna().to_numpy()
    subscriber = np.array([str(s) for s in frame["subscriber"]], dtype=object)
    return pd.DataFrame(
        {
            "subscriber": pd.Series(subscriber, dtype=object),
            "key": keys_of(subscriber),
            "campaign": pd.Series([str(c) if k else None for c, k in zip(campaign, known, strict=True)], dtype=object),
            "at": at.to_numpy(),
            "hour": np.maximum(at.to_numpy() // HOUR * HOUR, as_of),
        }
    )
