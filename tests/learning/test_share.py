"""Shares of a client's rows: together they are what one process has, cut by rows, in as many chunks each."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS
from pipeline.features.samples import TRAIN, VALIDATION
from pipeline.learning.chunks import as_chunks, survey
from pipeline.learning.data import training_data
from pipeline.learning.group import Group
from pipeline.learning.models import heads_of
from pipeline.learning.rows import select
from pipeline.learning.share import ClientTraining, cut, share_of
from tests.learning.logs import open_log


class Threads(Group):
    """Members that are threads of this process."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size, self.barrier, self.board = rank, barrier.parties, barrier, board

    def exchange(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait(60)
        found = list(self.board)
        self.barrier.wait(60)
        return found


@pytest.mark.parametrize("chunk", [None, 1_500])
def test_together_they_have_every_row_once(chunk: int | None, tmp_path: Path) -> None:
    store, config = open_log(tmp_path, {"acme": 200})
    as_of, heads = store.last_full_day("acme"), heads_of(config)
    whole = training_data(store, "acme", config, PANDAS, as_of)
    known = survey(as_chunks(select(whole.table, TRAIN)), heads, 5)
    config = config.model_copy(update={"model": config.model.model_copy(update={"chunk": chunk})})
    place, ignored = (store.uri, store.version(), "acme"), np.zeros(len(whole.table.spec), dtype=bool)
    work = ClientTraining(*place, config, whole.recipe, tmp_path / "none", False, ignored, None, config.model)
    barrier, board = threading.Barrier(3), [None] * 3
    with ThreadPoolExecutor(3) as threads:
        shares = list(threads.map(lambda rank: share_of(work, store, PANDAS, Threads(rank, barrier, board)), range(3)))
    chunks = [as_chunks(rows) for rows, _, _ in shares]
    assert len({each.count for each in chunks}) == 1
    assert (chunks[0].count > 1) == (chunk is not None)
    trained = [np.concatenate([part.take("X") for part in each]) for each in chunks]
    for parts, split in ((trained, TRAIN), ([valid.take("X") for _, valid, _ in shares], VALIDATION)):
        expected = select(whole.table, split).take("X")
        found = np.concatenate(parts)  # ranges of keys in order, but those of a chunk's rows by chunk
        np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert max(map(len, trained)) < 1.5 * min(map(len, trained))
    if chunk is not None:
        for _, _, seen in shares:
            assert [sum(sizes) for sizes in seen.members] == [len(rows) for rows in trained]
            assert [label.positives for label in seen.labels] == [label.positives for label in known.labels]
            np.testing.assert_allclose(seen.plain.mean, known.plain.mean, rtol=1e-12)
            np.testing.assert_allclose(seen.plain.deviation, known.plain.deviation, rtol=1e-9)
            np.testing.assert_array_equal(seen.plain.heavy, known.plain.heavy)


def test_key_ranges_are_cut_by_rows() -> None:
    assert cut([10, 10, 10, 10], 2) == [0, 2, 4]
    assert cut([30, 5, 5, 10], 2) == [0, 1, 4]
    assert cut([1, 1, 1, 97], 2) == [0, 3, 4]
    assert cut([100, 0, 0, 0], 3) == [0, 1, 2, 4]
    assert cut([0, 0, 0], 3) == [0, 1, 2, 3]
