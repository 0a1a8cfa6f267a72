"""Each place to run, started for real where two cores suffice: what it computes, who can reach it, what it says."""

from __future__ import annotations

import json
import os
import socket
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

import cluster
import pipeline
from cluster import choose, connect, places
from pipeline.config import load
from pipeline.errors import ConfigError, InstallationError


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same small cluster on every machine."""
    monkeypatch.setattr("dask.system.CPU_COUNT", 2)


def config(where: str, *overrides: str) -> Any:
    return load(overrides=[f"cluster={where}", *overrides])


def total(cluster_: cluster.Cluster) -> int:
    """Sum of squares below 10, one task each, wherever tasks run now."""
    return int(dask.delayed(sum)([dask.delayed(pow)(i, 2) for i in range(10)]).compute())


def listening(process: psutil.Process) -> set[str]:
    """The addresses that a process and its children accept connections on."""
    family = [process, *process.children(recursive=True)]
    sockets = [s for p in family for s in p.net_connections(kind="inet") if s.status == psutil.CONN_LISTEN]
    return {s.laddr.ip for s in sockets}


@pytest.mark.parametrize(
    ("where", "log_bytes", "on_gpu", "kind", "reason"),
    [
        ("auto", None, False, "threads", "no log"),
        ("auto", 1_200_000_000, False, "threads", "1.2 GB are below 8 GB"),
        ("auto", 1_200_000, False, "threads", "1.2 MB are below 8 GB"),
        ("auto", 1_200_000_000, True, "threads", "1.2 GB are below 8 GB"),
        ("auto", 8_000_000_000, False, "local", "8 GB are not below 8 GB"),
        ("auto", 5_000_000_000_000, True, "gpu", "5e+03 GB"),
        ("threads", 5_000_000_000_000, True, "threads", "asked for"),
        ("slurm", None, False, "slurm", "asked for"),
        ("slurm:8", None, False, "slurm", "asked for"),
        ("tcp://host:8786", None, False, "address", "tcp://host:8786"),
        ("tls://host:8786", None, False, "address", "tls://host:8786"),
        ("shared/scheduler.json", None, False, "address", "scheduler.json"),
    ],
)
def test_choice(where: str, log_bytes: int | None, on_gpu: bool, kind: str, reason: str) -> None:
    chosen, why = choose(where, log_bytes, on_gpu)
    assert chosen == kind
    assert reason in why


@pytest.mark.parametrize("where", ["thread", "slurm:0", "slurm:many", "http://host:8786", "host:8786", ""])
def test_no_such_place(where: str) -> None:
    with pytest.raises(ConfigError, match="no place to run"):
        choose(where)


def test_hint_of_a_near_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        choose("thread")


def test_threads_compute_and_leave_no_trace() -> None:
    before = dask.config.get("scheduler", None)
    with connect(config("auto"), log_bytes=1_200_000_000) as threads:
        assert str(threads) == "threads: 2 cores, the log's 1.2 GB are below 8 GB"
        assert dask.config.get("num_workers") == threads.workers == 2
        assert total(threads) == 285
        assert threads.client is None
    assert dask.config.get("scheduler", None) == before
    threads.close()


def test_one_thread_on_a_gpu() -> None:
    with connect(config("auto"), log_bytes=10, on_gpu=True) as threads:
        assert threads.workers == 1
        assert "1 GPU" in threads.reason


@pytest.fixture(scope="module")
def local() -> Iterator[cluster.Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dask.system.CPU_COUNT", 2)
        with connect(config("local")) as handle:
            yield handle


def test_local_processes(local: cluster.Cluster) -> None:
    assert local.kind == "local"
    assert local.workers == len(local.client.nthreads()) == 2
    assert "2 processes" in local.reason
    assert total(local) == 285
    assert os.getpid() not in local.client.run(os.getpid).values()


def test_local_processes_are_out_of_reach_of_others(local: cluster.Cluster) -> None:
    assert local.client.scheduler.address.startswith("tls://127.0.0.1:")
    assert all(worker.startswith("tls://127.0.0.1:") for worker in local.client.nthreads())
    assert listening(psutil.Process()) == {"127.0.0.1"}


def test_plain_client_is_refused_by_tls(local: cluster.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TIMEOUT", 1.0)
    address = local.client.scheduler.address.replace("tls://", "tcp://")
    with pytest.raises(ConfigError, match="no Dask scheduler answers"):
        connect(config(address))


def test_address_by_tls(local: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = local.client.scheduler.address
    with pytest.raises(ConfigError, match="no certificates are configured"):
        connect(config(address))
    security = local.client.security
    settings = {}
    for key, text in (
        ("ca-file", security.tls_ca_file),
        ("client.cert", security.tls_client_cert),
        ("client.key", security.tls_client_key),
    ):
        (tmp_path / key).write_text(text)
        settings[f"distributed.comm.tls.{key}"] = str(tmp_path / key)
    with dask.config.set(settings):
        with connect(config(address)) as remote:
            assert remote.workers == 2
            assert "2 workers with 2 threads" in remote.reason
            assert "not encrypted" not in remote.reason
            assert total(remote) == 285
        assert len(local.client.nthreads()) == 2, "leaving the handle must not stop a cluster that was there before"
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "__version__", "0.0.0")
            with pytest.raises(InstallationError, match=r"has eventgrain 0\.1\.0; install 0\.0\.0 there"):
                connect(config(address))
    with (
        dask.config.set({**settings, "distributed.comm.tls.client.key": str(tmp_path / "gone")}),
        pytest.raises(ConfigError, match=r"gone.* does not exist"),
    ):
        connect(config(address))


def test_address_of_a_scheduler_with_other_libraries(monkeypatch: pytest.MonkeyPatch, local: cluster.Cluster) -> None:
    versions = local.client.get_versions()
    worker = next(iter(versions["workers"]))
    versions["workers"][worker]["packages"]["pandas"] = "2.2.3"
    client = types.SimpleNamespace(get_versions=lambda: versions)
    with pytest.raises(InstallationError, match=r"pandas 2\.2\.3 there, 3\.0"):
        places._same_versions(client, "tcp://x:1")


@pytest.fixture(scope="module")
def open_scheduler() -> Iterator[Any]:
    """Somebody's scheduler with one worker, by plain TCP."""
    from distributed import LocalCluster

    options = {"host": "127.0.0.1", "protocol": "tcp://", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **options) as there:
        yield there


def test_address(open_scheduler: Any) -> None:
    with connect(config(open_scheduler.scheduler_address)) as remote:
        assert remote.reason == f"{open_scheduler.scheduler_address}, 1 worker with 1 thread"
        assert total(remote) == 285


def test_address_of_a_worker(open_scheduler: Any) -> None:
    with pytest.raises(ConfigError, match="a Worker answers"):
        connect(config(open_scheduler.workers[0].address))


def test_scheduler_file(open_scheduler: Any, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": open_scheduler.scheduler_address}))
    with connect(config(str(file))) as remote:
        assert total(remote) == 285


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_not_a_scheduler_file(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="not the file of a running scheduler"):
        connect(config(str(file)))


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_nobody_at_the_address(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TIMEOUT", 1.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no Dask scheduler answers at {address}"):
            connect(config(address))


def test_gpu_without_dask_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(InstallationError, match=r"Install eventgrain\[gpu\]"):
        connect(config("gpu"))


def test_gpu_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=None))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InstallationError, match="CUDA_VISIBLE_DEVICES is ''"):
        connect(config("gpu"))


def test_gpu_workers_are_started_as_designed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the devices: dask-cuda's cluster is replaced by a plain one that keeps what it was given."""
    from distributed import LocalCluster

    given: dict[str, Any] = {}

    def stand_in(**options: Any) -> Any:
        given.update(options)
        keep = {k: options[k] for k in ("host", "protocol", "security", "dashboard_address", "threads_per_worker")}
        return LocalCluster(n_workers=1, processes=False, **keep)

    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=stand_in))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with connect(config("gpu"), on_gpu=True) as gpus:
        assert gpus.workers == 3
        assert "3 GPUs, one process each" in gpus.reason
    assert given["rmm_async"]
    assert 0 < given["rmm_release_threshold"] < given["rmm_maximum_pool_size"] < 1
    assert given["rmm_allocator_external_lib_list"] == ["cupy"]


def test_local_processes_would_share_one_gpu() -> None:
    with pytest.raises(ConfigError, match="cluster=gpu or threads"):
        connect(config("local"), on_gpu=True)


@pytest.mark.gpu
def test_local_gpus() -> None:
    pytest.importorskip("dask_cuda")
    with connect(config("gpu"), on_gpu=True) as gpus:
        assert gpus.workers == len(gpus.client.nthreads()) >= 1
        assert total(gpus) == 285
