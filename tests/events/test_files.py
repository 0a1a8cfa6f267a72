"""Where files come from and go to."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path

import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import SourceError, StoreError
from pipeline.events import files
from pipeline.events.files import Place, dangling, explain, filesystem, find_files
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.events.logs import config, expected, random_rows, rows_of_frame, write


def test_folders_globs_and_files(tmp_path: Path) -> None:
    for name in ("a/1.parquet", "a/b/2.pq", "a/_tmp/3.parquet", "a/.4.parquet", "a/5.txt", "a/_SUCCESS"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(pattern: str) -> list[str]:
        return [str(Path(f.name).relative_to(tmp_path)) for f in find_files(str(tmp_path / pattern))[1]]

    assert names("a") == ["a/1.parquet", "a/b/2.pq"]
    assert names("a/*.parquet") == ["a/1.parquet"]
    assert names("a/**/*.p*q*") == ["a/1.parquet", "a/_tmp/3.parquet", "a/b/2.pq"]
    assert names("a/5.txt") == ["a/5.txt"]
    with pytest.raises(SourceError, match="no Parquet file"):
        find_files(str(tmp_path / "a/*.csv"))


def test_a_file_that_links_show_again_is_found_once(tmp_path: Path) -> None:
    """A link to a file beside it, to a folder around it, and to another folder; names are as the user wrote them."""
    for name in ("real/a/1.parquet", "real/a/2.parquet", "else/3.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "real/a/0.parquet").symlink_to("2.parquet")
    (tmp_path / "real/a/loop").symlink_to("..")
    (tmp_path / "real/far").symlink_to(tmp_path / "else")
    (tmp_path / "real/b").symlink_to("long")
    (tmp_path / "real/long").mkdir()
    (tmp_path / "real/long/4.parquet").write_bytes(b"x")
    (tmp_path / "root").symlink_to("real")
    for root in ("real", "root"):
        found = [str(Path(f.name).relative_to(tmp_path)) for f in find_files(str(tmp_path / root))[1]]
        assert found == [f"{root}/{n}" for n in ("a/1.parquet", "a/2.parquet", "far/3.parquet", "long/4.parquet")]
    assert len(find_files(str(tmp_path / "real/**/*.parquet"))[1]) == 4


def test_a_link_to_nothing_is_a_bad_file(tmp_path: Path, backend: Backend) -> None:
    """A mount that is not there, a day that was moved: its events must not be missing in silence."""
    rows = random_rows(90)
    for day in range(3):
        write(tmp_path / f"{'raw' if day == 0 else 'away'}/day={day}/x.parquet", rows[day * 30 : day * 30 + 30])
    for name, target in {
        "day=1": "away/day=1",
        "day=0/y.parquet": "away/day=2/x.parquet",
        "day=0/loop": "raw",
        "itself": "raw/itself",
        "day=0/.z.parquet": "nowhere",
        "_old": "nowhere",
        "notes.txt": "nowhere",
    }.items():
        (tmp_path / "raw" / name).symlink_to(tmp_path / target)
    (tmp_path / "away").rename(tmp_path / "moved")

    def shown(source: str) -> list[str]:
        return [str(Path(link).relative_to(tmp_path / "raw")) for link in dangling(str(tmp_path / source))]

    assert shown("raw") == ["day=0/y.parquet", "day=1", "itself"]
    for glob in ("raw/*/*.parquet", "raw/**/*.parquet"):  # these match hidden names too
        assert shown(glob) == ["_old", "day=0/y.parquet", "day=1", "itself"]
    assert shown("raw/day=0/x*") == []
    (tmp_path / "raw/itself").unlink()
    settings = config(tmp_path)
    report = ingest(settings, backend)
    assert report.rows_in == 30
    bad = {str(Path(b["file"]).relative_to(tmp_path / "raw")): b["error"] for b in report.bad_files}
    assert bad.keys() == {"day=1", "day=0/y.parquet"}
    assert all("a symbolic link to" in text and str(tmp_path / "away") in text for text in bad.values())
    with pytest.raises(SourceError, match=r"is a symbolic link to .* which is not there"):
        ingest(config(tmp_path, {"on_error": "fail"}, store=str(tmp_path / "other")), backend)
    (tmp_path / "moved").rename(tmp_path / "away")
    report = ingest(settings, backend)
    assert (report.rows_in, report.bad_files) == (60, [])
    (tmp_path / "away").rename(tmp_path / "moved")  # what was ingested may go
    report = ingest(settings, backend)
    assert (report.rows_in, report.bad_files) == (0, [])


def test_any_fsspec_uri(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    rows = random_rows(60)
    memory = fsspec.filesystem("memory")
    for i in range(2):
        path = write(tmp_path / f"{i}.parquet", rows[i * 30 : i * 30 + 30])
        memory.pipe_file(f"/log/day={i}/x.parquet", path.read_bytes())
    for uri in ("memory://log", "memory://log/*/x.parquet", "memory://log/**/*.parquet"):
        settings = config(tmp_path, {"path": uri}, store=str(tmp_path / uri.replace("/", "_").replace("*", "-")))
        assert ingest(settings, PANDAS).files == 2
        assert ingest(settings, PANDAS).rows_in == 0
        found = EventStore(settings.store_uri).read("acme").compute(scheduler="sync")
        assert rows_of_frame(found) == expected(rows, "acme")
    with pytest.raises(SourceError, match="cannot open 'nosuch://x'"):
        find_files("nosuch://x")


def test_object_keys_are_taken_as_they_stand() -> None:
    where = "?endpoint_override=127.0.0.1:1&region=us-east-1&scheme=http"
    for key in ("bucket/events/*.parquet", "bucket/store/client=a%2Fb/x.parquet", "bucket", "bucket/a@b/x.parquet"):
        assert filesystem(f"s3://{key}{where}")[1] == key
    assert filesystem("gs://anonymous@bucket/a@b?scheme=http")[1] == "bucket/a@b"


def closed_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("uri", ["gs://anonymous@bucket/events", "gcs://anonymous@bucket/*.parquet"])
@pytest.mark.parametrize(("patience", "option"), [(1, ""), (300, "&retry_limit_seconds=1")])
def test_google_s_store_out_of_reach_is_given_up(
    monkeypatch: pytest.MonkeyPatch, uri: str, patience: int, option: str
) -> None:
    monkeypatch.setattr(files, "PATIENCE", patience)
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"cannot list 'gc?s://.*Could not connect to server\. Is there a network"):
        find_files(f"{uri}?endpoint_override=127.0.0.1:{closed_port()}&scheme=http{option}")
    assert time.monotonic() - started < 15


def test_amazon_s_store_out_of_reach_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"cannot list 's3://.*Could not connect to server\. Is there a network"):
        find_files(f"s3://bucket/events?endpoint_override=127.0.0.1:{closed_port()}&scheme=http&region=us-east-1")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "choose another place"), (errno.EIO, "run again")],
)
def test_failed_writes_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(50))
    ingest(config(tmp_path), PANDAS)
    write(tmp_path / "raw/2.parquet", random_rows(50, seed=2))

    def fail(handle: int) -> None:
        raise OSError(code, "simulated")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        with pytest.raises(StoreError, match=advice):
            ingest(config(tmp_path), PANDAS)
    store = EventStore(config(tmp_path).store_uri)
    assert store.rows() == 50
    assert not list(Path(store.uri).rglob("*.tmp"))
    assert ingest(config(tmp_path), PANDAS).kept == 50


def test_places(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "new"))
    place.write("a/b.bin", b"123")
    assert place.size("a/b.bin") == 3
    assert place.size("a/c.bin") is None
    assert place.list() == place.list("a") == ["a/b.bin"]
    assert "disk is full" in str(explain(OSError(errno.ENOSPC, "x"), "write", "y"))
