"""``connect(config)``: one handle on wherever Dask's tasks run, with the reason for the choice.

    with connect(config, log_bytes=plan.bytes, on_gpu=backend.on_gpu) as cluster:
        print(cluster)          # threads: 2 cores, the log's 1.2 GB are below 8 GB
        dask.compute(...)       # runs there

``config.cluster`` says where:

    auto                 threads for a small log; beyond 8 GB a process per core, or per GPU
    threads              Dask's threaded scheduler in this process
    local                worker processes on this machine
    gpu                  one worker process per GPU of this machine (dask-cuda)
    slurm, slurm:8       that many SLURM jobs (dask-jobqueue; see cluster/slurm.py)
    tcp://host:8786      a scheduler that runs already; tls:// with certificates from Dask's configuration
    scheduler.json       the same, by the file that `dask scheduler --scheduler-file` writes

Whoever can open a connection to a Dask scheduler can run code as its owner. So what is started here listens on the
loopback interface and speaks TLS under certificates made for this run, and dashboards are on 127.0.0.1.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError, InstallationError, did_you_mean

if TYPE_CHECKING:
    from pipeline.config import Config

Kind = Literal["threads", "local", "gpu", "slurm", "address"]

SMALL = 8_000_000_000  # bytes of log, compressed: below it starting processes costs more than they win
WORKER_MEMORY = 2_000_000_000  # bytes that a worker process needs to be of use
TIMEOUT = 5.0  # seconds to wait for a scheduler that should be there
SCHEMES = ("tcp://", "tls://", "ucx://", "ucxx://")


@dataclass
class Cluster:
    """Where tasks run until ``close``, as a context manager.

    Attributes:
        kind: which of the choices.
        reason: why, and how big, for the user to read.
        workers: how many tasks run at once; 0 where it is not known (yet).
        client: the ``distributed.Client``; None for threads.
        dashboard: its address, where there is one to look at.
    """

    kind: Kind
    reason: str
    workers: int
    client: Any = None
    dashboard: str | None = None
    _cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what ``connect`` started and leave what it did not; a second call does nothing."""
        self._cleanup.close()


def choose(where: str, log_bytes: int | None = None, on_gpu: bool = False) -> tuple[Kind, str]:
    """Which kind of cluster, and why; starts nothing.

    Args:
        where: ``config.cluster``.
        log_bytes: compressed size of the log, bytes, from the store's index; None where it is not known.
        on_gpu: whether the backend is cuDF.
    Raises:
        ConfigError: ``where`` is none of the choices.
    """
    if where == "auto":
        if log_bytes is None:
            return "threads", "no log to measure yet"
        size = _size(log_bytes)
        if log_bytes < SMALL:
            return "threads", f"the log's {size} are below {_size(SMALL)}"
        return ("gpu" if on_gpu else "local"), f"the log's {size} are not below {_size(SMALL)}"
    name, _, count = where.partition(":")
    if name == "slurm" and ((count.isdecimal() and int(count) > 0) or where == "slurm"):
        return "slurm", f"asked for with cluster={where}"
    if where.startswith(SCHEMES) or where.endswith(".json"):
        return "address", where
    if where in ("threads", "local", "gpu"):
        return where, f"asked for with cluster={where}"  # type: ignore[return-value]
    hint = did_you_mean(where, ["auto", "threads", "local", "gpu", "slurm"])
    raise ConfigError(
        f"cluster={where!r} is no place to run: {hint} Write auto, threads, local, gpu, slurm, slurm:8 (jobs), "
        "the address of a Dask scheduler (tcp://host:8786 or tls://host:8786), or its scheduler file (*.json)"
    )


def connect(config: Config, *, log_bytes: int | None = None, on_gpu: bool = False) -> Cluster:
    """Start or find what ``config.cluster`` names; every Dask computation in the ``with`` block then runs there.

    Call it before anything makes a CUDA context in this process. The arguments are those of :func:`choose`.

    Raises:
        ConfigError: no such choice, one that does not go with the backend, or nothing answers at the address.
        InstallationError: a package or command is missing here, or the workers have other versions than we.
    """
    kind, why = choose(config.cluster, log_bytes, on_gpu)
    if kind == "local" and on_gpu:
        raise ConfigError(
            "cluster=local starts a process per core, which would all use one GPU, and the backend is cuDF. "
            "Use cluster=gpu or threads, or backend=cpu"
        )
    start: dict[Kind, Callable[[], Cluster]] = {
        "threads": lambda: _threads(why, on_gpu),
        "local": lambda: _local(why),
        "gpu": lambda: _gpu(why),
        "slurm": lambda: _slurm(config, on_gpu),
        "address": lambda: _address(config.cluster),
    }
    return start[kind]()


# -- in this process ---------------------------------------------------------------------------------------------------


def _threads(why: str, on_gpu: bool) -> Cluster:
    import dask
    from dask.system import CPU_COUNT

    # Threads on one GPU only take memory from each other.
    count = 1 if on_gpu else CPU_COUNT
    cluster = Cluster("threads", f"{'1 GPU' if on_gpu else _count(count, 'core')}, {why}", count)
    cluster._cleanup.enter_context(dask.config.set(scheduler="threads", num_workers=count))
    return cluster


# -- on this machine ---------------------------------------------------------------------------------------------------


def _local(why: str) -> Cluster:
    from dask.system import CPU_COUNT
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    workers = max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_MEMORY))
    reason = f"{_count(workers, 'process')}, {_size(MEMORY_LIMIT)} of memory, {why}"
    options = {"n_workers": workers, "threads_per_worker": CPU_COUNT // workers, **_private()}
    return _start(Cluster("local", reason, workers), lambda: LocalCluster(**options), leave_at_once)


def gpu_worker_options() -> dict[str, Any]:
    """What every GPU worker is started with, as keywords of dask-cuda's ``LocalCUDACluster``."""
    from pipeline.backend import RMM_MAXIMUM, RMM_RELEASE

    return {
        "threads_per_worker": 1,
        "rmm_async": True,
        "rmm_maximum_pool_size": RMM_MAXIMUM,
        "rmm_release_threshold": RMM_RELEASE,
        "rmm_allocator_external_lib_list": ["cupy"],
        "enable_cudf_spill": True,
    }


def _gpu(why: str) -> Cluster:
    from distributed.diagnostics import nvml

    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise InstallationError(
            f"cluster=gpu needs dask-cuda, which cannot be imported here ({error}). "
            "Install eventgrain[gpu] (make setup GPU=1), or use cluster=auto, threads or local"
        ) from None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = nvml.device_get_count() if visible is None else len([d for d in visible.split(",") if d.strip()])
    if count == 0:
        found = "the driver lists none" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible!r}"
        raise InstallationError(f"cluster=gpu found no GPU: {found}. Use cluster=auto, threads or local")
    cluster = Cluster("gpu", f"{_count(count, 'GPU')}, one process each, {why}", count)
    return _start(cluster, lambda: LocalCUDACluster(**gpu_worker_options(), **_private()), leave_at_once)


def _private() -> dict[str, Any]:
    """Options of a local cluster that nobody else can reach: loopback, TLS, the dashboard on 127.0.0.1."""
    return {
        "host": "127.0.0.1",
        "protocol": "tls://",
        "security": _temporary_security(),
        "dashboard_address": f"127.0.0.1:{_free_port(8787)}",
    }


def _temporary_security() -> Any:
    from distributed import Security

    try:
        return Security.temporary()
    except ImportError as error:
        raise InstallationError(f"certificates for this run need the package cryptography: {error}") from None


def _free_port(wanted: int) -> int:
    """``wanted`` where it is free, else 0, which lets the system choose: two runs on one machine are no warning."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def leave_at_once(client: Any) -> None:
    """Let worker processes end without tearing themselves down, to be said when nothing of theirs is needed any more.

    One that has loaded TensorFlow takes seconds for it, longer than Dask waits before it kills the process and says so.
    """
    with contextlib.suppress(Exception):  # of those that are gone already
        client.run(atexit.register, os._exit, 0, on_error="ignore")


def _start(cluster: Cluster, make: Callable[[], Any], before_end: Callable[[Any], None] | None = None) -> Cluster:
    """Start a Dask cluster and its client; both end with the handle, or at once if the second cannot start."""
    with contextlib.ExitStack() as stack:
        cluster.client = stack.enter_context(stack.enter_context(make()).get_client())
        cluster.dashboard = _dashboard(cluster.client)
        if before_end is not None:
            stack.callback(before_end, cluster.client)
        cluster._cleanup = stack.pop_all()
    return cluster


def _dashboard(client: Any) -> str | None:
    import importlib.util

    # Without bokeh the address answers, with nothing to see.
    return str(client.dashboard_link) if importlib.util.find_spec("bokeh") else None


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def _slurm(config: Config, on_gpu: bool) -> Cluster:
    from cluster import slurm

    jobs = int(config.cluster.partition(":")[2] or 1)
    shared = config.run_dir  # the nodes must see it anyway: results go there
    reason = f"{_count(jobs, 'job')} of {slurm.job_size()}, queued; work starts with the first"
    shared.mkdir(parents=True, exist_ok=True)
    gpu_options = gpu_worker_options() if on_gpu else None
    return _start(
        Cluster("slurm", reason, 0), lambda: slurm.slurm_cluster(jobs, gpu_options, _temporary_security(), shared)
    )


def _address(address: str) -> Cluster:
    from distributed import Client

    target = address
    if address.endswith(".json"):
        try:
            target = str(json.loads(Path(address).read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{address!r} is not the file of a running scheduler ({type(error).__name__}: {error}); "
                f"dask scheduler --scheduler-file {address} writes one"
            ) from None
    security = _configured_security(target) if target.startswith("tls://") else None
    _probe(target, security)
    with contextlib.ExitStack() as stack:
        with _quiet():
            client = stack.enter_context(Client(target, timeout=TIMEOUT, security=security))
            _same_versions(client, target)
        threads = client.nthreads()
        workers = f"{_count(len(threads), 'worker')} with {_count(sum(threads.values()), 'thread')}"
        private = target.startswith("tls://") or "://127.0.0.1:" in target or "://localhost:" in target
        cluster = Cluster("address", f"{address}, {workers}{'' if private else ', not encrypted'}", 0, client)
        cluster.workers = sum(threads.values())
        cluster.dashboard = _dashboard(client)
        cluster._cleanup = stack.pop_all()
    return cluster


def _probe(address: str, security: Any) -> None:
    """Ask who is there, for ``TIMEOUT`` seconds at most.

    ``Client(timeout=...)`` waits for ever where something accepts the connection and says nothing.
    """
    import asyncio
    import threading

    from distributed.comm import connect as open_comm

    arguments = security.get_connection_args("client") if security else {}
    answer: dict[str, Any] = {}

    async def ask() -> None:
        comm = await open_comm(address, timeout=TIMEOUT, **arguments)
        try:
            await comm.write({"op": "identity", "reply": True})
            answer.update(await comm.read())
        finally:
            comm.abort()

    def run() -> None:
        try:
            asyncio.run(asyncio.wait_for(ask(), TIMEOUT))
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}".rstrip(": ")

    # In a thread of its own: a notebook's has an event loop already.
    thread = threading.Thread(target=run, daemon=True)
    with _quiet():
        thread.start()
        thread.join(2 * TIMEOUT)
    if answer.get("type") != "Scheduler":
        found = answer.get("error") or f"a {answer['type']} answers" if answer else "it accepts and says nothing"
        raise ConfigError(
            f"no Dask scheduler answers at {address} within {TIMEOUT:.0f} s ({found}). Start it (dask scheduler), "
            "mend the address, or use cluster=auto to run on this machine"
        )


def _configured_security(address: str) -> Any:
    from distributed import Security

    security = Security()
    if not security.tls_ca_file or not security.tls_client_cert:
        raise ConfigError(
            f"{address} speaks TLS and no certificates are configured: set distributed.comm.tls.ca-file and "
            "distributed.comm.tls.client.cert and .key in Dask's configuration, or in the environment as "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and __KEY"
        )
    for file in (security.tls_ca_file, security.tls_client_cert, security.tls_client_key):
        if file and "\n" not in file and not Path(file).is_file():
            raise ConfigError(f"the certificate file {file!r} of Dask's TLS configuration does not exist")
    return security


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Our own errors say more than distributed's log and its warning of mixed versions."""
    import logging
    import warnings

    from distributed.versions import VersionMismatchWarning

    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)
            yield
    finally:
        logger.setLevel(level)


def _same_versions(client: Any, address: str) -> None:
    """Tasks are sent by reference and their data as pickles: the workers need our code and our libraries' versions."""
    matter = ("python", "dask", "distributed", "pandas", "numpy")
    found = client.get_versions()
    ours = found["client"]["packages"]
    ours["python"] = _minor(ours["python"])
    others = {
        "the scheduler": found["scheduler"],
        **{f"worker {name}": seen for name, seen in found["workers"].items()},
    }
    for name, seen in others.items():
        packages = {**seen["packages"], "python": _minor(seen["packages"]["python"])}
        differing = [f"{p} {packages[p]} there, {ours[p]} here" for p in matter if packages[p] != ours[p]]
        if differing:
            raise InstallationError(
                f"{name} of {address} has another environment: {'; '.join(differing)}. Install the same lock file there"
            )
    if not found["workers"]:
        return

    # A nested function travels by value, so it runs where the package is missing.
    def version() -> str | None:
        import importlib.util

        if importlib.util.find_spec("pipeline") is None or importlib.util.find_spec("cluster") is None:
            return None
        import pipeline

        return str(getattr(pipeline, "__version__", "unknown"))

    import pipeline

    for worker, installed in client.run(version).items():
        if installed != pipeline.__version__:
            what = "lacks eventgrain" if installed is None else f"has eventgrain {installed}"
            raise InstallationError(f"worker {worker} of {address} {what}; install {pipeline.__version__} there")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"


def _size(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
