"""Choose the device and the pool that compute the jobs of a command."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ensemble.config import ComputeConfig
from ensemble.errors import ConfigError
from ensemble.progress import Say, silent

if TYPE_CHECKING:
    from ensemble.members.parallel import Resources

WORKERS_OF_A_GPU = 8
"""The largest number of data workers of a task with a GPU, as in `members.inference.default_workers`."""


def resources_of(compute: ComputeConfig, say: Say = silent) -> Resources:
    """Return the device and the pool that compute jobs: on this machine, or on the cluster that the config names.

    Parameters
    ----------
    compute : ComputeConfig
    say : callable
        Receives lines that say what computes, or why a GPU cannot be used.

    Raises
    ------
    ConfigError
        There is no such device, or no node is large enough for a task.
    ResourceError
        The cluster cannot be joined, or its nodes are not equal.
    """
    from ensemble.members.parallel import Resources

    if compute.cluster is None:
        return Resources.of(compute, say)
    import torch

    from ensemble.cluster.nodes import join
    from ensemble.cluster.pool import ClusterPool

    cluster = join(compute.cluster, compute.device, say)
    gpu, share = any(node.gpus for node in cluster.nodes), compute.jobs or 1
    each = min((node.cores // (node.gpus * share) - 1 for node in cluster.nodes if node.gpus), default=0)
    workers = (max(1, min(each, WORKERS_OF_A_GPU)) if gpu else 0) if compute.workers is None else compute.workers
    cores = compute.task_cores or (1 + workers if gpu else 1)
    if cores > (most := max(node.cores for node in cluster.nodes)):
        raise ConfigError("--task-cores", f"no node has {cores} cores", f"use at most {most}, and fewer --workers")
    pool = functools.partial(ClusterPool, cluster, cores, 1 / share if gpu else 0.0, None if gpu else compute.jobs)
    device = torch.device("cuda" if gpu else "cpu")
    return Resources(device, workers, compute.jobs, compute.save_every, pool=pool, shares_a_gpu=False)
