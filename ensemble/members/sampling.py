"""Choose the rows of each batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ensemble.members.data_workers import AugmentedBatches, Draw
from ensemble.members.fold_job import FoldJob
from ensemble.members.processes import Progress


def balanced_shares(labels: np.ndarray) -> np.ndarray:
    """Return the probability (n,) of each row in a draw that takes all classes of the rows equally often.

    Examples
    --------
    >>> balanced_shares(np.array([0, 1, 1]))
    array([0.5 , 0.25, 0.25])
    """
    counts = np.bincount(labels)
    shares: np.ndarray = 1 / np.count_nonzero(counts) / counts[labels]
    return shares


def order(job: FoldJob, epoch: int) -> np.ndarray:
    """Return the rows of an epoch's updates, int array (updates, b).

    ``plain`` takes each training row once and leaves out a last partial batch. ``balanced`` draws as many rows with
    replacement: all classes are equally likely, and so are all rows of a class.
    """
    rng = np.random.default_rng(job.random_seed("order", epoch))
    n = job.updates_per_epoch * job.batch_size
    if job.config.sampler == "balanced":
        return rng.choice(job.rows, n, p=balanced_shares(job.labels[job.rows])).reshape(-1, job.batch_size)
    return rng.permutation(job.rows)[:n].reshape(-1, job.batch_size)


def batches_of(
    job: FoldJob,
    first_epoch: int,
    workers: int,
    device: torch.device,
    first_update: int = 0,
    bar: Progress | None = None,
) -> AugmentedBatches:
    """Return the augmented batches of all epochs from an update of `first_epoch` on; see `AugmentedBatches`."""
    return AugmentedBatches(job, _Batches(job, first_epoch, first_update), workers, device, bar)


class _Batches:
    """The draws of each batch, from an update of the first epoch to the last epoch."""

    def __init__(self, job: FoldJob, first_epoch: int, first_update: int) -> None:
        self.job, self.first_epoch, self.first_update = job, first_epoch, first_update

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in range(self.first_epoch, self.job.config.epochs):
            batches = order(self.job, epoch)
            first = self.first_update if epoch == self.first_epoch else 0
            for batch, times in zip(batches[first:], times_before(batches)[first:], strict=True):
                yield [(epoch, row, time) for row, time in zip(batch.tolist(), times.tolist(), strict=True)]


def times_before(rows: np.ndarray) -> np.ndarray:
    """Return how often each entry occurs earlier in the same array, in row-major order; int array of its shape.

    A row that is drawn again in an epoch is augmented differently, by this number.

    Examples
    --------
    >>> times_before(np.array([[5, 7], [5, 5]]))
    array([[0, 0],
           [1, 2]])
    """
    flat = rows.ravel()
    by_row = np.argsort(flat, kind="stable")
    _, first, sizes = np.unique(flat[by_row], return_index=True, return_counts=True)
    times = np.empty(flat.size, np.int64)
    times[by_row] = np.arange(flat.size) - np.repeat(first, sizes)
    return times.reshape(rows.shape)
