"""Sorted runs that come in tables of any size, as arrays: compared with the rows they were made of."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.events.reading import PartPlan, read_runs
from pipeline.events.schema import CATEGORY
from pipeline.features.counting import NONE, of_runs

HOUR = 3_600_000_000
COLUMNS = ("ts", "event", "campaign", "machine")
SCHEMA = pa.schema(
    {"subscriber_key": pa.int64(), "ts": pa.timestamp("us", "UTC"), "event": pa.string(), "campaign": pa.string()}
    | {"machine": pa.bool_()}
)
ROWS = st.lists(  # key, hour, event, campaign, machine
    st.tuples(
        st.integers(-3, 3),
        st.integers(0, 5),
        st.sampled_from(["send", "open", "click"]),
        st.sampled_from([None, "", "a", "b", "é"]),
        st.sampled_from([None, False, True]),
    ),
    max_size=30,
)


def in_order(rows: list[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: row[:2])


def table(rows: list[Any], texts: pa.DataType) -> pa.Table:
    key, hour = ([row[i] for row in rows] for i in (0, 1))
    columns = [pa.array(key, pa.int64()), pa.array([h * HOUR for h in hour], SCHEMA.field("ts").type)]
    columns += [pa.array([row[i] for row in rows], texts) for i in (2, 3)]
    return pa.table([*columns, pa.array([row[4] for row in rows], pa.bool_())], names=SCHEMA.names)


def rows_of(found: Any) -> list[Any]:
    """(key, hour, event, campaign, machine) of each row, texts by their codes."""
    texts = [[found.names[c][code] for code in found.codes[c].tolist()] for c in ("event", "campaign")]
    machine = [False] * len(found.key) if found.machine is None else found.machine.tolist()
    return list(zip(found.key.tolist(), (found.ts // HOUR).tolist(), *texts, machine, strict=True))


def expected(runs: list[list[Any]]) -> list[Any]:
    return [(k, t, e, c or NONE, bool(m)) for run in runs for k, t, e, c, m in run]


@settings(max_examples=80, deadline=None, database=None)
@given(runs=st.lists(ROWS, max_size=3), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_tables_of_any_size_are_one(runs: list[Any], cuts: list[int]) -> None:
    runs = [in_order(run) for run in runs]
    tables = []
    for run in runs:  # each table has a dictionary of its own
        bounds = sorted({0, len(run), *(min(c, len(run)) for c in cuts)})
        tables.append([table(run[a:b], CATEGORY) for a, b in pairwise(bounds)])
    most = sum(map(len, runs))
    for room in (most, most + 7):
        found = of_runs(tables, COLUMNS, room)
        assert rows_of(found) == expected(runs)
        first, stop, owner, _ = found.pieces
        keys = sorted({row[0] for run in runs for row in run})
        pieces = zip(first.tolist(), stop.tolist(), owner.tolist(), strict=True)
        assert all(set(found.key[a:b].tolist()) == {keys[who]} for a, b, who in pieces)
        assert int((stop - first).sum()) == most


@pytest.mark.parametrize("step", [1, 2, 5, 100])
@pytest.mark.parametrize(("low", "high"), [(-(2**63), 2**63), (-2, 3)])
def test_files_are_read_in_steps_of_row_groups(tmp_path: Path, step: int, low: int, high: int) -> None:
    rng = np.random.default_rng(4)
    runs, files = [], []
    for number in range(2):
        choices = (["send", "open", "click"], [None, "", "a", "b", "é"], [None, False, True])
        drawn = [[c[i] for i in rng.integers(0, len(c), 200)] for c in choices]
        times = zip(rng.integers(-4, 5, 200).tolist(), rng.integers(0, 9, 200).tolist(), *drawn, strict=True)
        run = in_order(list(times))
        pq.write_table(table(run, pa.string()), tmp_path / f"{number}.parquet", row_group_size=23)
        files.append((str(tmp_path / f"{number}.parquet"), tuple(range(9))))
        runs.append([row for row in run if low <= row[0] < high and row[1] < 7])
    part = PartPlan(low, high, None, 7 * HOUR, None, COLUMNS, tuple(files), 400, 0, False, SCHEMA)
    tables = [list(run) for run in read_runs(part, step)]
    assert [len(run) for run in tables] == [-(-9 // step)] * 2
    assert rows_of(of_runs(tables, COLUMNS, part.rows)) == expected(runs)


def test_a_damaged_page_is_found_at_any_step(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    rows = in_order([(i, i, "send", "a", False) for i in range(400)])
    pq.write_table(table(rows, pa.string()), path, row_group_size=100, write_page_checksum=True, compression="none")
    whole = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(3).column(1)
    whole[group.data_page_offset + group.total_compressed_size // 2] ^= 4
    path.write_bytes(whole)
    part = PartPlan(-(2**63), 2**63, None, None, None, COLUMNS, ((str(path), (0, 1, 2, 3)),), 400, 0, False, SCHEMA)
    with pytest.raises(StoreError, match=r"0\.parquet"):
        of_runs(read_runs(part, 1), COLUMNS, part.rows)
