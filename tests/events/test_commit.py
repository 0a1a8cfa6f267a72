"""What is committed is what was written, once; kills are in tests/faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.backend import PANDAS
from pipeline.errors import StoreError
from pipeline.events.commit import verify
from pipeline.events.files import digest_of
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from pipeline.events.tables import _footer
from tests.events.logs import config, random_rows, rows_of_frame, write


def one_file(tmp_path: Path) -> tuple[EventStore, dict[str, Any]]:
    """A store of one batch, and the entry of one of its files."""
    write(tmp_path / "raw/1.parquet", random_rows(100))
    settings = config(tmp_path)
    ingest(settings, PANDAS)
    store = EventStore(settings.store_uri)
    (manifest,) = store.manifests().values()
    return store, manifest["files"][0]


def test_what_was_written_is_verified(tmp_path: Path) -> None:
    store, entry = one_file(tmp_path)
    verify(store.place, [entry], store.schema, 1)
    for wrong, message in (
        ({"size": entry["size"] + 1}, "bytes where"),
        ({"sha256": "0" * 64}, "digest"),
        ({"rows": 7}, "holds"),
        ({"path": "client=acme/none.parquet"}, "None bytes"),
    ):
        with pytest.raises(StoreError, match=message):
            verify(store.place, [entry | wrong], store.schema, 1)


@pytest.mark.parametrize("name", ["campaign", "value", "ts", "machine", "batch"])
def test_only_a_column_that_may_be_null_may_be_absent(tmp_path: Path, name: str) -> None:
    store, entry = one_file(tmp_path)
    path = Path(store.uri) / entry["path"]
    pq.write_table(pq.ParquetFile(path).read().drop_columns([name]), path)
    entry = entry | {"size": path.stat().st_size, "sha256": digest_of(store.place.fs, str(path))}
    if name in ("campaign", "value"):
        verify(store.place, [entry], store.schema, 1)
    else:
        with pytest.raises(StoreError, match="expected"):
            verify(store.place, [entry], store.schema, 1)


def stored(tmp_path: Path) -> tuple[EventStore, Path]:
    """A store, and a client's one data file."""
    write(tmp_path / "raw/1.parquet", random_rows(2000))
    settings = config(tmp_path)
    ingest(settings, PANDAS)
    store = EventStore(settings.store_uri)
    return store, Path(settings.store_uri) / next(f["path"] for f in store.files if f["client"] == "acme")


def test_columns_of_a_file_are_required_where_it_has_no_nulls(tmp_path: Path) -> None:
    _, path = stored(tmp_path)
    file = pq.ParquetFile(path)
    table = file.read()
    nulls = {name for name in table.column_names if None in table.column(name).to_pylist()}
    assert {field.name for field in file.schema_arrow if field.nullable} == nulls == {"campaign", "value", "flagged_by"}


def test_a_flipped_bit_is_found_by_reading_and_by_verify(tmp_path: Path) -> None:
    store, path = stored(tmp_path)
    whole = path.read_bytes()
    rows = rows_of_frame(store.read("acme").compute(scheduler="sync"))
    found = 0
    for at in range(20, len(whole) - 20, len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(StoreError, match="SHA-256"):
            store.verify()
        _footer.cache_clear()
        try:  # a bit of a page's header may not matter; then nothing may change
            assert rows_of_frame(store.read("acme").compute(scheduler="sync")) == rows
        except StoreError as error:
            assert "damaged" in str(error)  # noqa: PT017
            found += 1
    assert found > 15
    path.unlink()
    with pytest.raises(StoreError, match="removed"):
        store.read("acme").compute(scheduler="sync")


def test_a_page_that_no_longer_says_it_is_a_dictionary_is_found(tmp_path: Path) -> None:
    """Headers of pages have no checksum, and Arrow then reads codes of a dictionary without entries."""
    store, path = stored(tmp_path)
    whole, footer = path.read_bytes(), pq.read_metadata(path)
    column = store.schema.names.index("subscriber")
    at = footer.row_group(1).column(column).dictionary_page_offset
    field = whole.index(b"\x3c\x15", at, at + 20)  # the header's field of a dictionary
    path.write_bytes(whole[:field] + b"\x2c" + whole[field + 1 :])
    _footer.cache_clear()
    with pytest.raises(StoreError, match="damaged"):
        store.read("acme").compute(scheduler="sync")


def test_rivals_of_one_batch(tmp_path: Path) -> None:
    """Two processes ingest the same day at once: one adds it, the other adds nothing and says so."""
    from concurrent.futures import ThreadPoolExecutor

    write(tmp_path / "raw/1.parquet", random_rows(3000))
    settings = config(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: ingest(settings, PANDAS), range(3)))
    assert sorted(r.kept for r in reports) == [0, 0, 3000]
    assert EventStore(settings.store_uri).rows() == 3000


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        EventStore(str(tmp_path / "none"))
    import deltalake
    import pyarrow as pa

    deltalake.write_deltalake(str(tmp_path / "other"), pa.table({"a": [1]}))
    with pytest.raises(StoreError, match="not a store of eventgrain"):
        EventStore(str(tmp_path / "other"))
    write(tmp_path / "raw/1.parquet", random_rows(10))
    ingest(config(tmp_path), PANDAS)
    with pytest.raises(StoreError, match="version 99"):
        EventStore(config(tmp_path).store_uri, version=99)
