from __future__ import annotations

import datetime as dt
import zoneinfo

import numpy as np
import pytest

from pipeline.backend import Backend
from pipeline.features.calendar import local_time


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia"])
def test_local_time_is_zoneinfo_s(backend: Backend, zone: str) -> None:
    rng = np.random.default_rng(4)
    start, end = 1_293_840_000, 1_767_225_600  # 2011 to 2026: Apia skipped a day, clocks changed all over
    change = 1_774_746_000 - 365 * 86_400 + 86_400  # 2025-03-30 01:00 UTC, when Berlin went forward
    at = np.concatenate([rng.integers(start, end, 500), change + np.arange(-2, 3)]) * 1_000_000
    found = backend.to_host(local_time(backend.xp, backend.asarray(at), zone))
    epoch = dt.datetime(1970, 1, 1)  # noqa: DTZ001
    expected = [
        (dt.datetime.fromtimestamp(t // 1_000_000, zoneinfo.ZoneInfo(zone)).replace(tzinfo=None) - epoch)
        // dt.timedelta(microseconds=1)
        for t in at.tolist()
    ]
    assert found.tolist() == expected
