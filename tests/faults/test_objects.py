"""An object store, S3's protocol served on this machine: source and store in buckets, killed, raced, and cleaned up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.events.store import EventStore
from tests.events.logs import DAY, Row, config, random_rows, write
from tests.faults.check import compare, oracle, oracle_columns, orphans, rows_of
from tests.faults.victim import Victim

CLIENTS = {"acme": "a b/100%25 +é", "globex": "globex"}
SERVER = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '{}'])"


class Bucket:
    """A bucket on a server of its own process: the Delta library would wait for one that shares ours."""

    name = "events"

    def __init__(self, port: int) -> None:
        import boto3

        url = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )
        self.client.create_bucket(Bucket=self.name)

    def put(self, path: Path, key: str) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=path.read_bytes())

    def keys(self, prefix: str) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER.format(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.2)
        found = Bucket(port)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in found.environment.items():
                patch.setenv(name, value)
            yield found
    finally:
        server.terminate()
        server.wait()


class Log:
    """Three files of 36 days in the bucket, and one client with a name that is hard to write in a URL."""

    def __init__(self, folder: Path, bucket: Bucket, victim: Victim, name: str) -> None:
        self.bucket, self.victim, self.name = bucket, victim, name
        rows = random_rows(1560, seed=3)
        self.rows: list[Row] = []
        for i, r in enumerate(rows):
            ts = r["time"] + i * DAY * 36 // len(rows)
            self.rows.append(dict(r, client=CLIENTS[r["client"]], time=ts, arrived=ts + 1))
        for i in range(3):
            path = write(folder / f"{i}.parquet", self.rows[i * 520 : (i + 1) * 520])
            bucket.put(path, f"{name}/raw/day={i}/part {i}%20.parquet")
        self.store = f"s3://{bucket.name}/{name}/store"
        path = f"s3://{bucket.name}/{name}/raw/"
        self.settings = config(folder, {"path": path}, store=self.store, batch_rows=1000).model_dump(mode="json")

    def ingest(self, fault: str = "", **more: Any) -> Any:
        settings = self.settings | more
        return self.victim.run("ingest", settings=settings, fault=fault, env=self.bucket.environment)

    def whole(self) -> bool:
        return compare(oracle_columns(rows_of(self.store)), oracle(self.rows, tuple(CLIENTS.values()))).none


def test_from_bucket_to_bucket(tmp_path: Path, bucket: Bucket, victim: Victim) -> None:
    log = Log(tmp_path, bucket, victim, "plain")
    ended = log.ingest(compaction=False)
    assert ended.code == 0, ended.text
    assert ended.text.startswith("rows in 1,560 = kept 1,560")
    assert log.whole()
    before = bucket.keys("plain/store/client=")
    assert len(before) == 6
    again = log.ingest()  # compacts the closed months
    assert "nothing new: 3 files were ingested before" in again.text
    assert log.whole()
    assert EventStore(log.store).rows() == 1560
    now = {f["path"] for f in EventStore(log.store).files}
    assert now - {key.partition("store/")[2] for key in before}, "the closed month was compacted"
    assert EventStore(log.store).verify() > 0
    version = EventStore(log.store).version()
    log.ingest()
    assert EventStore(log.store).version() == version


def test_killed_and_run_again(tmp_path: Path, bucket: Bucket, victim: Victim) -> None:
    log = Log(tmp_path, bucket, victim, "killed")
    for fault in ("store-made", "half-written", "file-written:2", "index-written", "before-commit:2", "after-commit"):
        assert log.ingest(fault).code == -9, fault
    assert log.ingest("compaction-written").code == -9
    assert orphans(log.store)
    ended = log.ingest()
    assert ended.code == 0, ended.text
    assert log.whole()
    assert EventStore(log.store).rows() == 1560


def test_rivals(tmp_path: Path, bucket: Bucket, victim: Victim) -> None:
    """Four processes, three commits each, and of two at the same files one wins."""
    every: list[Row] = []
    requests = []
    store = f"s3://{bucket.name}/rivals/store"
    for p in range(4):
        for c in range(3):
            rows = random_rows(510, seed=10 + 3 * p + c)
            bucket.put(write(tmp_path / "x.parquet", rows), f"rivals/raw-{p}/{c}.parquet")
            every += rows
        path = f"s3://{bucket.name}/rivals/raw-{p}"
        settings = config(tmp_path, {"path": path}, name=f"p{p}", batch_rows=1000, store=store).model_dump(mode="json")
        settings["compaction"] = False
        requests.append(victim.request("ingest", settings=settings, env=bucket.environment))
    ended = victim.together(requests)
    assert [e.code for e in ended] == [0, 0, 0, 0], [e.text for e in ended]
    assert EventStore(store).version() == 12
    assert compare(oracle_columns(rows_of(store)), oracle(every)).none
    for i in range(2):
        rows = random_rows(700, seed=99)
        bucket.put(write(tmp_path / "x.parquet", rows), "rivals/same/1.parquet")
        path = f"s3://{bucket.name}/rivals/same"
        settings = config(tmp_path, {"path": path}, name=f"s{i}", store=store).model_dump(mode="json")
        requests[i] = victim.request("ingest", settings={**settings, "compaction": False}, env=bucket.environment)
    lines = sorted((e.text.strip() for e in victim.together(requests[:2])), key=len)
    assert lines[0].startswith("rows in 700 = kept 700")
    assert lines[1].endswith("(nothing new: 1 file was ingested before)")
    assert EventStore(store).rows() == len(every) + 700


def test_the_command(tmp_path: Path, bucket: Bucket, victim: Victim) -> None:
    """ingest, rollup, verify and clean from the command line, given s3:// URIs and the environment alone."""
    log = Log(tmp_path, bucket, victim, "command")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(log.settings))

    def run(*words: str, **more: str) -> Any:
        env = {**bucket.environment, **more}
        return victim.run("command", argv=[*words, "--config", str(tmp_path / "c.yaml")], env=env)

    assert log.ingest("index-written").code == -9
    left = len(orphans(log.store))
    assert left
    for words in (["ingest"], ["rollup"], ["verify"]):
        ended = run(*words)
        assert ended.code == 0, ended.text
    assert log.whole()
    from pipeline import results

    rollups = results.read(str(tmp_path / "runs/test/rollups"))
    assert rollups is not None
    assert set(rollups["client"]) == set(CLIENTS.values())
    assert not [p for p in tmp_path.rglob("*") if "s3:" in str(p)]
    time.sleep(1.1)
    ended = run("clean", "--older-than", "1s")
    assert ended.code == 0, ended.text
    assert orphans(log.store) == []
    assert log.whole()
    for words, what in (
        (["ingest", "store=s3://nowhere/store"], "nowhere"),
        (["ingest", "source.path=s3://nowhere/raw"], "nowhere"),
    ):
        ended = run(*words)
        assert ended.code == 2, ended.text
        assert what in ended.text
        assert not ended.traceback
    assert os.environ["AWS_REGION"] == "us-east-1"


def test_forgotten_aged_and_still_known(tmp_path: Path, bucket: Bucket, victim: Victim) -> None:
    """A person's events go, and old ones; neither comes back with the files that held them."""
    log = Log(tmp_path, bucket, victim, "forgotten")
    assert log.ingest().code == 0
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(log.settings))
    gone = log.rows[0]["user"]
    argv = ["forget", "--config", str(path), "--subscriber", gone]
    ended = victim.run("command", argv=argv, env=bucket.environment)
    assert ended.code == 0, ended.text
    left = [r for r in log.rows if r["user"] != gone]
    assert len(left) < len(log.rows) - 50
    assert compare(oracle_columns(rows_of(log.store)), oracle(left, tuple(CLIENTS.values()))).none
    bucket.put(write(tmp_path / "again.parquet", log.rows[:300]), "forgotten/raw/day=3/again.parquet")
    assert log.ingest().code == 0
    assert compare(oracle_columns(rows_of(log.store)), oracle(left, tuple(CLIENTS.values()))).none
    assert log.ingest(retention="10d").code == 0
    ended = victim.run("clean", settings=log.settings | {"retention": "10d"}, env=bucket.environment)
    assert ended.code == 0, ended.text
    end = max(r["time"] for r in log.rows)
    late = [r for r in left if r["time"] >= end - 10 * DAY]
    assert 0 < len(late) < len(left)
    assert compare(oracle_columns(rows_of(log.store)), oracle(late, tuple(CLIENTS.values()))).none
    assert EventStore(log.store).verify() > 0


def test_damaged_objects_are_named(tmp_path: Path, bucket: Bucket, victim: Victim) -> None:
    """One of the sources, which stops no other; one of the store, by reads and by ``verify``, also where it is gone."""
    log = Log(tmp_path, bucket, victim, "damaged")
    source = "damaged/raw/day=1/part 1%20.parquet"
    good = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "bad.parquet").write_bytes(good[: len(good) // 2])
    bucket.put(tmp_path / "bad.parquet", source)
    ended = log.ingest()
    assert ended.code == 0, ended.text
    assert ended.text.startswith("rows in 1,040 = kept 1,040")
    assert f"bad file: s3://{bucket.name}/{source} " in ended.text
    bucket.put(tmp_path / "1.parquet", source)
    assert log.ingest().text.startswith("rows in 520 = kept 520")
    assert log.whole()
    key = f"damaged/store/{EventStore(log.store).files[0]['path']}"
    whole = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for data in (bytes(flipped), None):
        if data is None:
            bucket.client.delete_object(Bucket=bucket.name, Key=key)
        else:
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=data)
        out = str(tmp_path / "rows")
        for ended in (
            victim.run("verify", uri=log.store, env=bucket.environment),
            victim.run("read", uri=log.store, out=out, env=bucket.environment),
        ):
            assert ended.code == 2, ended.text
            assert key.rpartition("/")[2] in ended.text
            assert not ended.traceback
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=whole)
    assert EventStore(log.store).verify() > 0
    assert log.whole()
