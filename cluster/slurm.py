"""Dask workers as SLURM jobs, by dask-jobqueue (``pip install 'eventgrain[cpu,slurm]'``).

What a job asks SLURM for is site knowledge, so it is not in the pipeline's configuration but where dask-jobqueue has
it, in ``~/.config/dask/jobqueue.yaml`` or the environment (``DASK_JOBQUEUE__SLURM__QUEUE=gpu``):

    jobqueue:
      slurm:
        cores: 16             # of one job; required
        memory: 120GB         # of one job; required
        processes: 16         # worker processes in it (on the CPU)
        queue: normal
        account: null
        walltime: "04:00:00"
        interface: ib0        # the network the nodes reach each other by
        job-extra-directives: ["--gpus=4"]

The environment and the run's directory must be on a file system that all nodes see. Scheduler and client live in the
process that runs the pipeline; where a login node must not do that, submit it too:

    sbatch --cpus-per-task=4 --mem=32G --wrap "make run ARGS='--config acme.yaml --cluster slurm:8'"
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, InstallationError


def job_size() -> str:
    """What one job asks for, in words.

    Raises:
        InstallationError: no dask-jobqueue, or no SLURM on this machine.
        ConfigError: the job's cores or memory are not configured.
    """
    import dask

    try:
        import dask_jobqueue  # noqa: F401  (also puts its defaults into Dask's configuration)
    except ImportError as error:
        raise InstallationError(
            f"cluster=slurm needs dask-jobqueue, which cannot be imported here ({error}). Install eventgrain[slurm]"
        ) from None
    if shutil.which("sbatch") is None:
        raise InstallationError("cluster=slurm found no sbatch command; run it on a node where SLURM's commands are")
    settings = dask.config.get("jobqueue.slurm")
    missing = [key for key in ("cores", "memory") if not settings.get(key)]
    if missing:
        raise ConfigError(
            "cluster=slurm does not know what a job should ask for: Dask's configuration has no "
            + " and no ".join(f"jobqueue.slurm.{key}" for key in missing)
            + ". Set them in ~/.config/dask/jobqueue.yaml, or in the environment as "
            + " and ".join(f"DASK_JOBQUEUE__SLURM__{key.upper()}" for key in missing)
        )
    return f"{settings['cores']} cores and {settings['memory']}"


@contextlib.contextmanager
def slurm_cluster(jobs: int, gpu_options: dict[str, Any] | None, security: Any, shared: Path) -> Iterator[Any]:
    """A ``dask_jobqueue.SLURMCluster`` with that many jobs submitted; they end with the ``with`` block.

    Args:
        jobs: how many.
        gpu_options: keywords of ``LocalCUDACluster`` for GPU workers, one per GPU of the job; None for CPU workers.
        security: the TLS certificates of this run, in memory.
        shared: a folder that scheduler and workers see. The workers find the certificates in a folder below it that
            only the owner can read and that goes with the cluster.
    """
    import dask
    from dask_jobqueue import SLURMCluster

    options: dict[str, Any] = {}
    if gpu_options is not None:
        # One process per GPU, which dask-cuda starts itself; later arguments win over jobqueue's.
        options = {"worker_command": "dask_cuda.cli worker", "processes": 1, "worker_extra_args": _flags(gpu_options)}
    with tempfile.TemporaryDirectory(prefix=".tls-", dir=shared.resolve()) as folder:
        options["security"] = _in_files(security, Path(folder))
        settings = dask.config.get("jobqueue.slurm.scheduler-options")
        options["scheduler_options"] = {"dashboard_address": "127.0.0.1:0", **settings}
        with SLURMCluster(protocol="tls://", **options) as cluster:
            cluster.scale(jobs=jobs)
            yield cluster


def _in_files(security: Any, folder: Path) -> Any:
    """The same certificates as files, which is how a worker's command line takes them."""
    from distributed import Security

    paths = {}
    for name, text in security.get_tls_config_for_role("worker").items():
        if text:
            path = folder / f"{name}.pem"
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
            paths[name] = str(path)
    roles = {
        f"tls_{role}_{part}": paths[part] for role in ("scheduler", "worker", "client") for part in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=paths["ca_file"], **roles)


def _flags(options: dict[str, Any]) -> list[str]:
    """The keywords as arguments of ``dask cuda worker``, which spells a few of them otherwise."""
    spelled = {
        "threads_per_worker": "--nthreads",
        "rmm_allocator_external_lib_list": "--set-rmm-allocator-for-libs",
    }
    flags = []
    for key, value in options.items():
        name = spelled.get(key, "--" + key.replace("_", "-"))
        if value is True:
            flags.append(name)
        else:
            flags += [name, ",".join(value) if isinstance(value, list) else str(value)]
    return flags
