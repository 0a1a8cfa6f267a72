"""One process for the children of a whole test file, for it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.victim import Victim


@pytest.fixture(scope="session")
def victim() -> Iterator[Victim]:
    with Victim() as victim:
        yield victim
