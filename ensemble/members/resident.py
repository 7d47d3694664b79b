"""Keep the images of an epoch on a device, augmented once for all folds that are trained there together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.members.augment import Augmentation
from ensemble.members.data_workers import AugmentedBatches, Batch, Draw
from ensemble.members.fold_job import FoldJob
from ensemble.members.processes import Progress
from ensemble.members.sampling import order, times_before

CHUNK = 128
"""Images that are copied to the device at once."""


def is_idle(job: FoldJob) -> bool:
    """Return whether a job has no augmentation, so that its images are the same in every epoch."""
    return Augmentation(job.config.augmentation, job.seed).is_idle


def code(job: FoldJob, rows: np.ndarray) -> np.ndarray:
    """Return a number for each draw of an epoch, from its row and how often the row was drawn before.

    Two draws with the same number are augmented in the same way, so they share an image. Without augmentation, the
    number is the row.
    """
    return rows if is_idle(job) else times_before(rows) * len(job.labels) + rows


def entries(jobs: Sequence[FoldJob], epoch: int) -> np.ndarray:
    """Return the codes (e,) of all images that an epoch of some jobs needs, ascending.

    Without augmentation they are the same in every epoch: all training rows.
    """
    if not jobs:
        return np.empty(0, np.int64)
    of_jobs = [job.rows if is_idle(job) else code(job, order(job, epoch)).ravel() for job in jobs]
    return np.unique(np.concatenate(of_jobs))


def resident_bytes(jobs: Sequence[FoldJob]) -> int:
    """Return the bytes of device memory for the images of some jobs: those of an epoch and of the next one.

    The jobs have the same augmentation. Epochs of a balanced sampler differ little in size, so the first one is
    used as an estimate.
    """
    return len(entries(jobs, 0)) * int(jobs[0].pixels[0].nbytes) * (1 if is_idle(jobs[0]) else 2)


@dataclass
class _Epoch:
    """The images of an epoch on the device: (H, W, 3) uint8 for each code (e,); the first `loaded` are loaded."""

    codes: np.ndarray
    pixels: torch.Tensor
    loaded: int = 0


class ResidentEpochs:
    """Batches of several folds, gathered on the device from one augmented copy of their images.

    Augmentation depends only on (seed, epoch, row, time). Folds with the same seed and augmentation can therefore share
    an image, and each fold has the batches that it would have alone. With k folds, an image is augmented once in an
    epoch instead of k - 1 times. During an epoch, every batch also loads a part of the next epoch. Without augmentation
    the images are loaded once.

    Parameters
    ----------
    jobs : sequence of FoldJob
        They have the same images, seed and augmentation.
    first_epochs : sequence of int
        The first epoch that each job trains.
    workers : int
        Processes that augment in advance.
    device : torch.device
    bar : Progress, optional
        As in `AugmentedBatches`.
    """

    def __init__(
        self,
        jobs: Sequence[FoldJob],
        first_epochs: Sequence[int],
        workers: int,
        device: torch.device,
        bar: Progress | None = None,
    ) -> None:
        self._jobs, self._first_epochs, self._device = jobs, first_epochs, device
        self._once = is_idle(jobs[0])
        last = max(job.config.epochs for job in jobs)
        self._epochs = range(min(first_epochs), min(first_epochs) + 1 if self._once else last)
        self._codes: dict[int, np.ndarray] = {}
        self._held: dict[int, _Epoch] = {}
        self._updates = 0  # of all jobs, in the current epoch
        self._incoming = AugmentedBatches(jobs[0], self._draws(), 0 if self._once else workers, device, bar)

    def close(self) -> None:
        """End the processes that augment."""
        self._incoming.close()

    def start(self, epoch: int, bar: Progress) -> None:
        """Load the rest of an epoch and drop earlier ones; epochs are started in ascending order.

        Parameters
        ----------
        epoch : int
        bar : Progress
            Updated while images are loaded, so that a signal is handled.
        """
        number = self._number(epoch)
        self._held = {each: held for each, held in self._held.items() if each >= number}
        self._updates = 0
        self._load(number, 1.0, bar)

    def batches(self, job: FoldJob, epoch: int, first_update: int = 0) -> Iterator[Batch]:
        """Yield a job's batches of the started epoch, from an update on.

        Pixels (b, H, W, 3) and labels (b,) are on the device, rows (b,) are not.
        """
        held, rows = self._held[self._number(epoch)], order(job, epoch)
        positions = np.searchsorted(held.codes, code(job, rows))
        labels = job.learned[rows].astype(np.float32)  # of this job: another may train some rows with other labels
        of_pixels, of_labels = (torch.from_numpy(each).to(self._device) for each in (positions, labels))
        updates = sum(each.updates_per_epoch for each in self._due(epoch))
        self._updates += first_update
        left = (each[first_update:] for each in (rows, of_pixels, of_labels))
        for batch, of_pixel, label in zip(*left, strict=True):
            self._updates += 1
            if not self._once:
                self._load(epoch + 1, min(1.0, self._updates / updates))  # more updates where a fold begins again
            yield held.pixels[of_pixel], label, batch

    def _number(self, epoch: int) -> int:
        """Return the epoch whose images an epoch uses; without augmentation, all epochs use those of the first."""
        return self._epochs.start if self._once else epoch

    def _load(self, epoch: int, share: float, bar: Progress | None = None) -> None:
        """Load images until this share of an epoch is on the device; after the last epoch, do nothing."""
        if epoch not in self._epochs:
            return
        if epoch not in self._held:
            codes, (_, height, width, channels) = self._of_epoch(epoch), self._jobs[0].pixels.shape
            shape = (len(codes), height, width, channels)
            self._held[epoch] = _Epoch(codes, torch.empty(shape, dtype=torch.uint8, device=self._device))
        held = self._held[epoch]
        while held.loaded < share * len(held.codes):
            pixels, _, _ = next(self._incoming)
            held.pixels[held.loaded : held.loaded + len(pixels)].copy_(pixels, non_blocking=self._device.type == "cuda")
            held.loaded += len(pixels)
            if bar is not None:
                bar.advance(0)

    def _draws(self) -> Iterator[list[Draw]]:
        """Yield the draws of all epochs in the order of loading, a chunk at a time."""
        for epoch in self._epochs:
            times, rows = np.divmod(self._of_epoch(epoch), len(self._jobs[0].labels))
            for start in range(0, len(rows), CHUNK):
                part = slice(start, start + CHUNK)
                yield [(epoch, row, time) for row, time in zip(rows[part].tolist(), times[part].tolist(), strict=True)]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        """Return the codes of an epoch. They are cached, because `_draws` and `_load` both need them."""
        if epoch not in self._codes:
            self._codes = {each: codes for each, codes in self._codes.items() if each >= epoch - 1}
            self._codes[epoch] = entries(self._jobs if self._once else self._due(epoch), epoch)
        return self._codes[epoch]

    def _due(self, epoch: int) -> list[FoldJob]:
        firsts = zip(self._jobs, self._first_epochs, strict=True)
        return [job for job, first in firsts if first <= epoch < job.config.epochs]
