"""One bad source file does not stop the others: it is set aside by name and tried again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import invocation
from pipeline.backend import PANDAS, Backend
from pipeline.errors import ConfigError, SourceError
from pipeline.events.ingest import IngestReport, ingest
from pipeline.events.setaside import NAME, listed
from pipeline.events.store import EventStore
from pipeline.plan import make_plan
from tests.events.logs import Row, config, expected, random_rows, rows_of_frame, write


def stored(uri: str, client: str, backend: Backend = PANDAS) -> list[tuple[Any, ...]]:
    return rows_of_frame(EventStore(uri, backend).read(client, partitions=2).compute(scheduler="sync"))


def names(report: IngestReport) -> list[str]:
    return sorted(Path(b["file"]).name for b in report.bad_files)


def adds_up(report: IngestReport, rows: list[Row]) -> None:
    assert report.rows_in == len(rows) == report.kept + report.duplicates + report.rejected


def damage(path: Path, kind: str, rows: list[Row]) -> None:
    """Make a whole file one of the bad ones."""
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"user,time\n1,2\n")
    elif kind == "page":  # the footer is whole: found only when the rows are read
        path.write_bytes(whole[:300] + bytes(b ^ 255 for b in whole[300:900]) + whole[900:])
    elif kind == "column":
        write(path, [{k: v for k, v in r.items() if k != "kind"} for r in rows])
    elif kind == "type":
        write(path, [dict(r, time=[1]) for r in rows], {"time": pa.list_(pa.int64())})
    elif kind == "id type":
        write(path, [dict(r, user={"a": 1}) for r in rows], {"user": pa.struct([("a", pa.int64())])})
    elif kind == "utf8":
        table = pq.read_table(path)
        bad = pa.Array.from_buffers(
            pa.string(),
            table.num_rows,
            [
                None,
                pa.py_buffer(b"".join((2 * i).to_bytes(4, "little") for i in range(table.num_rows + 1))),
                pa.py_buffer(b"\xff\xfe" * table.num_rows),
            ],
        )
        pq.write_table(table.set_column(table.schema.get_field_index("user"), "user", bad), path)


KINDS = ("truncated", "empty", "text", "page", "column", "type", "id type", "utf8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, backend: Backend, kind: str) -> None:
    days = [random_rows(400, seed=i) for i in range(3)]
    for i, rows in enumerate(days):
        write(tmp_path / f"raw/{i}.parquet", rows, compression="none", use_dictionary=False)
    path = tmp_path / "raw/1.parquet"
    good = path.read_bytes()
    damage(path, kind, days[1])
    settings = config(tmp_path)
    report = ingest(settings, backend)
    assert names(report) == ["1.parquet"]
    adds_up(report, days[0] + days[2])
    (bad,) = listed(settings.run_dir)
    assert bad.file == str(path)
    assert bad.sha256
    assert bad.size == path.stat().st_size
    assert "1.parquet" in bad.error
    for client in ("acme", "globex"):
        assert stored(settings.store_uri, client, backend) == expected(days[0] + days[2], client)
    again = ingest(settings, backend)  # still bad: named again, no error, nothing doubled
    assert (again.rows_in, names(again)) == (0, ["1.parquet"])
    assert listed(settings.run_dir) == [bad], "the time is that of its first refusal"
    path.write_bytes(good)
    mended = ingest(settings, backend)
    adds_up(mended, days[1])
    assert not mended.bad_files
    assert not (settings.run_dir / NAME).exists()
    for client in ("acme", "globex"):
        assert stored(settings.store_uri, client, backend) == expected([r for d in days for r in d], client)


def test_all_kinds_at_once_in_many_batches(tmp_path: Path, backend: Backend) -> None:
    kept: list[Row] = []
    for i in range(2 * len(KINDS)):
        rows = random_rows(500, seed=i)
        path = write(tmp_path / f"raw/{i:02d}.parquet", rows, compression="none", use_dictionary=False)
        if i % 2:
            damage(path, KINDS[i // 2], rows)
        else:
            kept += rows
    settings = config(tmp_path, batch_rows=1000)
    report = ingest(settings, backend)
    adds_up(report, kept)
    assert len(report.bad_files) == len(KINDS)
    assert report.files == len(KINDS)
    for client in ("acme", "globex"):
        assert stored(settings.store_uri, client, backend) == expected(kept, client)
    assert EventStore(settings.store_uri).totals()["in"] == len(kept)


def test_a_file_of_several_batches_gives_what_is_whole(tmp_path: Path) -> None:
    """Row groups committed before the bad one stay; the rest is tried again."""
    rows = random_rows(4000)
    path = write(tmp_path / "raw/1.parquet", rows, row_group_size=1000, compression="none", use_dictionary=False)
    start = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    whole = path.read_bytes()
    path.write_bytes(whole[: start + 50] + bytes(200) + whole[start + 250 :])
    settings = config(tmp_path, batch_rows=1000)
    report = ingest(settings, PANDAS)
    assert names(report) == ["1.parquet"]
    adds_up(report, rows[:2000])
    for client in ("acme", "globex"):
        assert stored(settings.store_uri, client) == expected(rows[:2000], client)


def test_nothing_good_is_an_error(tmp_path: Path) -> None:
    settings = config(tmp_path)
    for i in range(2):
        write(tmp_path / f"raw/{i}.parquet", random_rows(100, seed=i)).write_bytes(b"no")
    for _ in range(2):  # at every run
        with pytest.raises(SourceError, match=r"none of the 2 new source files.*\n.*0\.parquet.*\n.*1\.parquet"):
            ingest(settings, PANDAS)
    assert not Path(settings.store_uri).exists()
    write(tmp_path / "raw/0.parquet", random_rows(100))
    assert ingest(settings, PANDAS).kept == 100
    write(tmp_path / "raw/2.parquet", random_rows(5, seed=2)).write_bytes(b"no")
    with pytest.raises(SourceError, match=r"none of the 2 new source files"):
        ingest(settings, PANDAS)
    (tmp_path / "raw/2.parquet").unlink()
    assert names(ingest(settings, PANDAS)) == ["1.parquet"]


def test_bad_pages_in_every_file_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "raw/1.parquet", random_rows(500), compression="none", use_dictionary=False)
    damage(path, "page", [])
    for _ in range(2):  # at every run
        with pytest.raises(SourceError, match=r"1\.parquet"):
            ingest(config(tmp_path), PANDAS)
    assert EventStore(config(tmp_path).store_uri).rows() == 0


def test_a_mapping_that_fits_no_file_is_a_configuration_error(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"raw/{i}.parquet", random_rows(10, seed=i))
    with pytest.raises(ConfigError, match="no column 'usr', did you mean 'user'"):
        ingest(config(tmp_path, columns={"subscriber": "usr"}), PANDAS)
    assert not Path(config(tmp_path).store_uri).exists()


def test_fail_stops_at_the_first_and_takes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(100))
    write(tmp_path / "raw/2.parquet", random_rows(100, seed=2)).write_bytes(b"no")
    settings = config(tmp_path, {"on_error": "fail"})
    with pytest.raises(SourceError, match=r"2\.parquet.*cannot be read"):
        ingest(settings, PANDAS)
    assert not Path(settings.store_uri).exists()
    assert ingest(config(tmp_path), PANDAS).kept == 100, "the policy is no part of what a batch is"


def test_changed_content_is_set_aside(tmp_path: Path) -> None:
    rows = random_rows(100)
    path = write(tmp_path / "raw/1.parquet", rows)
    settings = config(tmp_path)
    ingest(settings, PANDAS)
    old = path.read_bytes()
    write(path, random_rows(50, seed=9))
    write(tmp_path / "raw/2.parquet", random_rows(70, seed=2))
    report = ingest(settings, PANDAS)
    assert report.rows_in == report.kept == 70
    assert [b["changed"] for b in report.bad_files] == [True]
    assert "content has changed" in report.bad_files[0]["error"]
    assert names(ingest(settings, PANDAS)) == ["1.parquet"]
    path.write_bytes(old)
    assert not ingest(settings, PANDAS).bad_files
    assert EventStore(settings.store_uri).rows() == 170


def test_a_file_that_vanishes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.events.ingest as module

    write(tmp_path / "raw/1.parquet", random_rows(100))
    gone = write(tmp_path / "raw/2.parquet", random_rows(100, seed=2))
    read_whole = module.read_whole

    def late(fs: Any, unit: Any, *more: Any) -> Any:
        if unit.file.name == str(gone):
            gone.unlink(missing_ok=True)
        return read_whole(fs, unit, *more)

    monkeypatch.setattr(module, "read_whole", late)
    report = ingest(config(tmp_path), PANDAS)
    assert (report.kept, names(report)) == (100, ["2.parquet"])
    assert "vanished" in report.bad_files[0]["error"]
    assert not ingest(config(tmp_path), PANDAS).bad_files


def test_a_run_says_which_and_keeps_it_in_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(100))
    bad = write(tmp_path / "raw/2.parquet", random_rows(100, seed=2))
    good = bad.read_bytes()
    bad.write_bytes(good[:-9])
    settings = config(tmp_path)
    assert any("set aside: source file" in line and "2.parquet" in line for line in make_plan(settings).lines)
    metrics = settings.run_dir / "metrics.json"
    for _ in range(2):
        invocation.run(settings, until="ingest")
        assert f"warning   set aside: source file {str(bad)!r} cannot be read" in capsys.readouterr().out
        (listed_there,) = json.loads(metrics.read_text())["bad_files"]
        assert listed_there["file"] == str(bad)
        assert listed_there.keys() == {"file", "size", "sha256", "error", "changed", "time"}
    bad.write_bytes(good)
    invocation.run(settings, until="ingest")
    assert json.loads(metrics.read_text())["bad_files"] == []
