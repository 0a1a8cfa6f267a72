"""SLURM with stand-ins for its commands: `sbatch` runs the script in the background; `scancel` only notes the job.

Nothing here ends a process: a worker whose scheduler has closed ends by itself.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import dask
import pytest

from cluster import connect
from cluster.places import gpu_worker_options
from cluster.slurm import slurm_cluster
from pipeline.config import load
from pipeline.errors import ConfigError, InstallationError

pytest.importorskip("dask_jobqueue")

SBATCH = """#!/bin/sh
cp "$1" {folder}/job.sh
{run}
echo "Submitted batch job 4242"
"""
RUN = "sh {folder}/job.sh >{folder}/job.log 2>&1 </dev/null &"
SCANCEL = """#!/bin/sh
echo "$1" >>{folder}/cancelled
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of SLURM commands, first on the path; `job.sh` in it is the script submitted last."""
    for name, template in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        command = tmp_path / name
        command.write_text(template.format(folder=tmp_path, run=""))
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def config(runs: Path, where: str = "slurm") -> Any:
    return load(overrides=[f"cluster={where}", f"runs={runs}"])


def test_a_job_computes(queue: Path) -> None:
    (queue / "sbatch").write_text(SBATCH.format(folder=queue, run=RUN.format(folder=queue)))
    with (
        dask.config.set({"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GB", "jobqueue.slurm.queue": "night"}),
        connect(config(queue / "runs")) as jobs,
    ):
        assert jobs.reason == "1 job of 1 cores and 1GB, queued; work starts with the first"
        assert jobs.client.submit(pow, 3, 4).result(timeout=40) == 81
        (folder,) = (queue / "runs" / "demo").glob(".tls-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(key.stat().st_mode) for key in folder.iterdir()} == {0o600}
    script = (queue / "job.sh").read_text()
    assert "#SBATCH -p night" in script
    assert "tls://" in script
    assert str(folder) in script
    assert "BEGIN" not in script
    assert not folder.exists(), "the keys go with the cluster"
    assert (queue / "cancelled").read_text().split() == ["4242"]


def test_gpu_job_script(queue: Path) -> None:
    from distributed import Security

    with (
        dask.config.set({"jobqueue.slurm.cores": 8, "jobqueue.slurm.memory": "64GB"}),
        slurm_cluster(1, gpu_worker_options(), Security.temporary(), queue) as cluster,
    ):
        script = cluster.job_script()
    assert " -m dask_cuda.cli worker " in script
    for flag in ("--rmm-async", "--rmm-release-threshold 0.3", "--set-rmm-allocator-for-libs cupy", "--nthreads 1"):
        assert flag in script
    assert "--nworkers" not in script


def test_no_slurm_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallationError, match="no sbatch"):
        connect(config(tmp_path))


def test_job_size_is_not_configured(queue: Path) -> None:
    with pytest.raises(ConfigError, match=r"no jobqueue\.slurm\.cores and no jobqueue\.slurm\.memory"):
        connect(config(queue))
