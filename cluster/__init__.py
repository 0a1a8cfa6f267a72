"""Where Dask's tasks run: ``connect(config)`` gives threads, processes, GPUs, SLURM jobs or somebody's scheduler."""

from cluster.places import Cluster, Kind, choose, connect

__all__ = ["Cluster", "Kind", "choose", "connect"]
