"""Hostile values in ids, clients, campaigns and kinds: nothing leaves the root, and all come back as they went in.

What a client's name cannot be is rejected by a rule: the empty string, one with a NUL, one over 240 bytes when encoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import results
from pipeline.backend import PANDAS
from pipeline.config import Config
from pipeline.decisions import report
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.decisions.rundir import make_run
from tests.decisions.test_report import Page
from tests.events.logs import START, Row, config, write
from tests.faults.check import compare, files_below, oracle, oracle_columns, rows_of
from tests.faults.victim import Victim

VALUES = {
    "separators": "a/b\\c",
    "up": "..",
    "far up": "../../../up",
    "root": "/etc/eventgrain",
    "here": ".",
    "NUL": "a\0b",
    "300 characters": "x" * 300,
    "quotes": "a'b\"c`d",
    "injection": "' OR client <> '",
    "newlines": "a\nb\r\tc",
    "composed": "caf\u00e9",
    "decomposed": "cafe\u0301",
    "right to left": "a\u202egpj.exe\u200f",
    "zero width": "\ufeffa\u200bb",
    "empty": "",
    "spaces": "  a  ",
    "percent": "100%2F..%2e",
    "partition": "client=x",
    "hive null": "__HIVE_DEFAULT_PARTITION__",
    "null word": "null",
    "emoji": "\U0001f469\u200d\U0001f680",
    "markup": "<script>alert(1)</script>",
    "glob": "*?[a]{b}",
    "hidden": "_delta_log",
    "formula": "=1+1",
}
BAD_CLIENTS = {"NUL": "unusable_client", "300 characters": "unusable_client", "empty": "empty_client"}


def row(number: int, **values: Any) -> Row:
    base: Row = {"client": "acme", "user": "u", "time": START + number, "kind": "send", "id": f"id {number}"}
    rest = {"campaign": "c", "provider": "p", "amount": 1, "arrived": START + number + 1}
    return base | rest | values


def hostile() -> tuple[list[Row], list[Row]]:
    """Rows with each value in each column: those that must come back, and those that a rule must reject."""
    good, bad = [], []
    for name, value in VALUES.items():
        for column in ("client", "user", "kind", "id", "campaign", "provider"):
            one = row(len(good) + len(bad), **{column: value})
            rejected = (column == "client" and name in BAD_CLIENTS) or (column in ("user", "kind") and not value)
            (bad if rejected else good).append(one)
        if name not in BAD_CLIENTS:
            good.append(row(len(good) + len(bad), client=value, user=value, kind=value, campaign=value, id=value))
    return good, bad


def test_round_trip_within_the_root(tmp_path: Path) -> None:
    good, bad = hostile()
    write(tmp_path / "raw/1.parquet", good + bad, {"id": pa.string()})
    settings = config(tmp_path)
    before = files_below(tmp_path)
    report = ingest(settings, PANDAS)
    rules = {"unusable_client": 2, "empty_client": 1, "null_subscriber": 1, "null_event": 1}
    assert (report.kept, report.rejected_by) == (len(good), rules)
    clients = tuple(sorted({r["client"] for r in good}))
    assert compare(oracle_columns(rows_of(settings.store_uri)), oracle(good, clients)).none
    assert tuple(EventStore(settings.store_uri).clients()) == clients
    assert {"caf\u00e9", "cafe\u0301"} <= set(clients), "normal forms are distinct"
    new = [p.relative_to(tmp_path) for p in files_below(tmp_path) if p not in before]
    assert {p.parts[:2] for p in new} == {("runs", "test")}
    for path in (p.relative_to("runs/test") for p in new):
        assert len(path.parts) <= 3
        assert path.parts[0] in ("store", "quarantine")
    assert not Path("/etc/eventgrain").exists()


def test_text_that_is_no_text_is_refused_with_its_file(tmp_path: Path) -> None:
    """Half a surrogate pair, as some writers leave it, is not UTF-8."""
    good = [row(i) for i in range(5)]
    write(tmp_path / "raw/1.parquet", good, {"id": pa.string()})
    table = pq.read_table(write(tmp_path / "x.parquet", [row(9)], {"id": pa.string()}))
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xed\xa0\x80")]
    )
    for i, name in enumerate(("user", "campaign", "client", "kind", "id")):
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, name, broken), tmp_path / f"raw/2-{i}.parquet")
    settings = config(tmp_path)
    found = ingest(settings, PANDAS)
    assert sorted(Path(bad["file"]).name for bad in found.bad_files) == [f"2-{i}.parquet" for i in range(5)]
    assert compare(oracle_columns(rows_of(settings.store_uri)), oracle(good)).none


def test_roll_ups_of_every_name(tmp_path: Path, victim: Victim) -> None:
    good, bad = hostile()
    write(tmp_path / "raw/1.parquet", good + bad, {"id": pa.string()})
    settings = config(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    before = files_below(tmp_path)
    for _ in range(2):  # anew, and brought up to date
        ended = victim.run("command", argv=["rollup", "--config", str(tmp_path / "c.yaml")])
        assert ended.code == 0, ended.text
    found = results.read(str(settings.run_dir / "rollups"))
    assert found is not None
    assert set(found["client"]) == {r["client"] for r in good}
    mine = found[(found["client"] == "acme") & (found["level"] == "campaign")]
    campaigns = {r["campaign"] for r in good if r["client"] == "acme"}
    assert set(mine["campaign"].astype(object)) == campaigns - {""}  # the empty name counts as none
    outside = [p for p in files_below(tmp_path) if p not in before and settings.run_dir not in p.parents]
    assert outside == []


def test_the_report_escapes_every_name(tmp_path: Path) -> None:
    names = [v for n, v in VALUES.items() if n in ("markup", "far up", "injection", "right to left", "newlines")]
    make_run(tmp_path / "run", Config(decide={"reward": {"click": 1.0}}), names, rows=200)
    path = report.write_report(tmp_path / "run")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    for name in names:
        assert " ".join(name.split()) in page.text
    assert {p.relative_to(tmp_path).parts[0] for p in files_below(tmp_path)} == {"run"}


@pytest.mark.parametrize("name", ["up", "injection"])
def test_clean_and_verify_with_such_a_client(tmp_path: Path, victim: Victim, name: str) -> None:
    rows = [row(i, client=VALUES[name], user=f"{name} {i % 3}") for i in range(20)]
    write(tmp_path / "raw/1.parquet", rows, {"id": pa.string()})
    settings = config(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    for words in (["ingest"], ["verify"], ["compact"], ["clean"]):
        ended = victim.run("command", argv=[*words, "--config", str(tmp_path / "c.yaml")])
        assert ended.code == 0, ended.text
    assert compare(oracle_columns(rows_of(settings.store_uri)), oracle(rows, (VALUES[name],))).none
