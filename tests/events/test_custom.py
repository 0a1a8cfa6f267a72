"""Rules of the user's own: asked about every row that passes, believed only where they answer properly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import extensions
from pipeline.backend import Backend
from pipeline.errors import ConfigError, DataError
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.events.logs import config, random_rows, write

HEAD = "import pipeline\n"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    extensions.clear()
    yield
    extensions.clear()


def load(tmp: Path, text: str) -> str:
    path = tmp / "rules.py"
    path.write_text(HEAD + text)
    extensions.load([str(path)])
    return str(path)


@pytest.mark.parametrize("action", ["reject", "flag", "warn"])
def test_a_rule_in_pandas_syntax(tmp_path: Path, backend: Backend, action: str) -> None:
    path = load(
        tmp_path,
        f"""
@pipeline.rule(action="{action}")
def odd(events):
    "an odd purchase"
    return (events.value < 0) & (events.campaign == "a") & (events.ts.dt.hour >= 6) & events.subscriber.notna()
""",
    )
    rows = [dict(r, user=None if i % 40 == 0 else r["user"]) for i, r in enumerate(random_rows(500))]
    broken = [
        r["id"]
        for r in rows
        if r["user"] and r["amount"] == -7 and r["campaign"] == "a" and r["time"] // 3_600_000_000 % 24 >= 6
    ]
    assert broken
    write(tmp_path / "raw/1.parquet", rows[:250], row_group_size=60)
    write(tmp_path / "raw/2.parquet", rows[250:])
    options = config(tmp_path, extensions=[path])
    report = ingest(options, backend)
    rule = next(r for r in report.rules if r.name == "odd")
    assert (rule.count, rule.action, rule.meaning) == (len(broken), action, "an odd purchase")
    assert rule.examples[0]["event_id"] == broken[0]
    assert rule.share == len(broken) / 500
    store = EventStore(options.store_uri, backend)
    assert "odd" in {r["name"] for r in store.rules()}
    frames = [store.read(client).compute() for client in store.clients()]
    frames = [f.to_pandas() if backend.on_gpu else f for f in frames]
    flagged = {
        int(i)
        for f in frames
        for i, names in zip(f.event_id, f.flagged_by.astype(object), strict=True)
        if isinstance(names, str) and "odd" in names.split(",")
    }
    kept = {int(i) for f in frames for i in f.event_id}
    assert flagged == (set(broken) if action == "flag" else set())
    if action == "reject":
        (quarantine,) = (options.run_dir / "quarantine").glob("*.parquet")
        table = pq.read_table(quarantine).to_pylist()
        assert sorted(r["id"] for r in table if r["rule"] == "odd") == sorted(broken)
        assert not kept & set(broken)
        assert report.rejected_by["odd"] == len(broken)
    else:
        assert set(broken) <= kept


def test_a_rule_that_fails_the_ingest(tmp_path: Path, backend: Backend) -> None:
    load(
        tmp_path, '@pipeline.rule(action="fail")\ndef never(events):\n    "never"\n    return events.event == "click"\n'
    )
    write(tmp_path / "raw/1.parquet", random_rows(50))
    options = config(tmp_path)
    with pytest.raises(DataError, match=r"rule never \(never\) found .* action is fail"):
        ingest(options, backend)
    assert EventStore(options.store_uri).rows() == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return events.value", "a series of int64: expected a boolean"),
        ("return (events.value > 0)[:-1]", "returned 49 values"),
        ("return (events.event == 'open').astype('boolean').where(events.value > 0)", "nulls"),
        ("return (events.event == 'open').reset_index(drop=True)", "another index"),
        ("return (events.event == 'open').sort_index()", "another index"),
        ("return True", "returned bool: expected a boolean for each of the 50 events"),
        ("return events", "returned DataFrame: expected"),
        ("return events.to_numpy()[:, :2] == 1", "50 x 2 values"),
        ("return events.nothing", "line 5 failed on the rows of .*AttributeError"),
        ("return events.event.astype('str')", "compare to get booleans"),
    ],
)
def test_what_is_no_answer_is_refused_by_name(tmp_path: Path, backend: Backend, body: str, message: str) -> None:
    path = load(tmp_path, f'@pipeline.rule(action="flag")\ndef wrong(events):\n    "?"\n    {body}\n')
    write(tmp_path / "raw/1.parquet", random_rows(50))
    with pytest.raises(DataError, match=message) as error:
        ingest(config(tmp_path), backend)
    assert f"rule 'wrong' in {path}" in str(error.value)


def test_what_a_rule_does_to_its_frame_is_nobody_elses(tmp_path: Path, backend: Backend) -> None:
    load(
        tmp_path,
        """
@pipeline.rule(action="warn")
def first(events):
    wrong = events.value == 1
    events["value"] = 5
    return wrong

@pipeline.rule(action="warn")
def second(events):
    return events.value == 5
""",
    )
    write(tmp_path / "raw/1.parquet", random_rows(50))
    options = config(tmp_path)
    found = {r.name: r.count for r in ingest(options, backend).rules}
    assert found["first"] > 0
    assert found["second"] == 0
    values: list[Any] = [v for c in ("acme", "globex") for v in EventStore(options.store_uri).read(c).compute().value]
    assert 5 not in values


def test_names_and_actions(tmp_path: Path, backend: Backend) -> None:
    write(tmp_path / "raw/1.parquet", random_rows(50))
    load(tmp_path, '@pipeline.rule(action="reject")\ndef mine(events):\n    return events.event == "click"\n')
    report = ingest(config(tmp_path, quality={"actions": {"mine": "off"}}), backend)
    assert report.rejected == 0
    assert "mine" not in {r.name for r in report.rules}
    load(tmp_path, "@pipeline.rule()\ndef null_ts(events):\n    return events.ts.isna()\n")
    with pytest.raises(ConfigError, match="name of a built-in rule"):
        ingest(config(tmp_path), backend)


def test_a_batch_judged_by_other_rules_is_another(tmp_path: Path, backend: Backend) -> None:
    """Two processes with different rules never write files of one name."""
    write(tmp_path / "raw/1.parquet", random_rows(50))
    text = '@pipeline.rule(action="flag")\ndef mine(events):\n    return events.event == "{}"\n'
    runs = set()
    for i, kind in enumerate(("click", "open", "open")):
        path = load(tmp_path, text.format(kind))
        options = config(tmp_path, extensions=[path], store=str(tmp_path / f"store{i}"))
        ingest(options, backend)
        (manifest,) = EventStore(options.store_uri).manifests().values()
        runs.add(manifest["run"])
    assert len(runs) == 2
