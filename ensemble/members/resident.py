"""The images of an epoch, augmented once for all folds that are trained on a device side by side, and held there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.members.augment import Augmentation
from ensemble.members.fold_job import FoldJob
from ensemble.members.processes import Progress
from ensemble.members.sampling import Batch, Wanted, augmented, order, times_before

CHUNK = 128
"""Images that come to the device at once."""


def is_idle(job: FoldJob) -> bool:
    """Return whether a job's images stay as they are in every epoch."""
    return Augmentation(job.config.augmentation, job.seed).is_idle


def code(job: FoldJob, rows: np.ndarray) -> np.ndarray:
    """Return a number for each of an epoch's rows and how often it was drawn before; without augmentation, the row."""
    return rows if is_idle(job) else times_before(rows) * len(job.labels) + rows


def entries(jobs: Sequence[FoldJob], epoch: int) -> np.ndarray:
    """Return the codes (e,) of all images that an epoch of some jobs takes, ascending.

    Without augmentation they are those of every epoch: all training rows.
    """
    if not jobs:
        return np.empty(0, np.int64)
    of_jobs = [job.rows if is_idle(job) else code(job, order(job, epoch)).ravel() for job in jobs]
    return np.unique(np.concatenate(of_jobs))


def resident_bytes(jobs: Sequence[FoldJob]) -> int:
    """Return the device memory in bytes that the images of some jobs take: an epoch's and the next one's.

    The jobs are of one augmentation; epochs of a balanced draw differ by little.
    """
    return len(entries(jobs, 0)) * int(jobs[0].pixels[0].nbytes) * (1 if is_idle(jobs[0]) else 2)


@dataclass
class _Epoch:
    """What is on the device: an image (H, W, 3) uint8 for each code (e,), as far as they have come in."""

    codes: np.ndarray
    pixels: torch.Tensor
    come: int = 0


class ResidentEpochs:
    """Batches of several folds, gathered on the device from one augmented copy of their images.

    What becomes of an image depends on (seed, epoch, row, time) alone, so folds with one seed and one augmentation
    share it, and each has the batches that it would have alone: with k folds, an image is augmented once an epoch
    instead of k - 1 times. While one epoch is trained on, the next one comes in, a little with every batch. Where
    nothing is done to the images, they come in once.

    Parameters
    ----------
    jobs : sequence of FoldJob
        With the same images, seed and augmentation.
    first_epochs : sequence of int
        Where each goes on.
    workers : int
        Processes that augment ahead.
    device : torch.device
    """

    def __init__(
        self, jobs: Sequence[FoldJob], first_epochs: Sequence[int], workers: int, device: torch.device
    ) -> None:
        self._jobs, self._first_epochs, self._device = jobs, first_epochs, device
        self._once = is_idle(jobs[0])
        last = max(job.config.epochs for job in jobs)
        self._epochs = range(min(first_epochs), min(first_epochs) + 1 if self._once else last)
        self._codes: dict[int, np.ndarray] = {}
        self._held: dict[int, _Epoch] = {}
        self._updates = 0  # of all jobs, in the epoch that is trained on
        self._labels = torch.from_numpy(jobs[0].labels.astype(np.float32)).to(device)
        self._incoming = augmented(jobs[0], self._wanted(), 0 if self._once else workers, device)

    def come_to(self, epoch: int, bar: Progress) -> None:
        """Wait until an epoch has come in whole; epochs are come to in ascending order, and earlier ones dropped.

        Parameters
        ----------
        bar : Progress
            It lets signals through meanwhile.
        """
        number = self._number(epoch)
        self._held = {each: held for each, held in self._held.items() if each >= number}
        self._updates = 0
        self._come(number, 1.0, bar)

    def batches(self, job: FoldJob, epoch: int) -> Iterator[Batch]:
        """Yield a job's batches of the epoch come to: pixels (b, H, W, 3) and labels (b,) on the device, rows (b,)."""
        held, rows = self._held[self._number(epoch)], order(job, epoch)
        found = np.searchsorted(held.codes, code(job, rows))
        places, of_rows = (torch.from_numpy(each).to(self._device) for each in (found, rows))
        updates = sum(each.updates_per_epoch for each in self._due(epoch))
        for batch, place, of_row in zip(rows, places, of_rows, strict=True):
            self._updates += 1
            if not self._once:
                self._come(epoch + 1, self._updates / updates)
            yield held.pixels[place], self._labels[of_row], batch

    def _number(self, epoch: int) -> int:
        """Return the epoch whose images an epoch has."""
        return self._epochs.start if self._once else epoch

    def _come(self, epoch: int, share: float, bar: Progress | None = None) -> None:
        """Let images come in until this share of an epoch's is there, if there is such an epoch."""
        if epoch not in self._epochs:
            return
        if epoch not in self._held:
            codes, (_, height, width, channels) = self._of_epoch(epoch), self._jobs[0].pixels.shape
            shape = (len(codes), height, width, channels)
            self._held[epoch] = _Epoch(codes, torch.empty(shape, dtype=torch.uint8, device=self._device))
        held = self._held[epoch]
        while held.come < share * len(held.codes):
            pixels, _, _ = next(self._incoming)
            held.pixels[held.come : held.come + len(pixels)].copy_(pixels, non_blocking=True)
            held.come += len(pixels)
            if bar is not None:
                bar.advance(0)

    def _wanted(self) -> Iterator[list[Wanted]]:
        """Yield what is to come in, in order, a chunk at a time."""
        for epoch in self._epochs:
            times, rows = np.divmod(self._of_epoch(epoch), len(self._jobs[0].labels))
            for start in range(0, len(rows), CHUNK):
                part = slice(start, start + CHUNK)
                yield [(epoch, row, time) for row, time in zip(rows[part].tolist(), times[part].tolist(), strict=True)]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        """Return the codes of an epoch; they are asked for twice, as what is to come in and as what has."""
        if epoch not in self._codes:
            self._codes = {each: codes for each, codes in self._codes.items() if each >= epoch - 1}
            self._codes[epoch] = entries(self._jobs if self._once else self._due(epoch), epoch)
        return self._codes[epoch]

    def _due(self, epoch: int) -> list[FoldJob]:
        firsts = zip(self._jobs, self._first_epochs, strict=True)
        return [job for job, first in firsts if first <= epoch < job.config.epochs]
