"""The images of an epoch, augmented once for all folds that are trained on a device side by side, and held there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemble.members.augment import Augmentation
from ensemble.members.fold_job import FoldJob
from ensemble.members.sampling import Batch, Wanted, augmented, order, times_before

CHUNK = 128
"""Images that come to the device at once."""


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
        self._once = Augmentation(jobs[0].config.augmentation, jobs[0].seed).is_idle
        last = max(job.config.epochs for job in jobs)
        self._epochs = range(min(first_epochs), min(first_epochs) + 1 if self._once else last)
        self._codes: dict[int, np.ndarray] = {}
        self._held: dict[int, _Epoch] = {}
        self._updates = 0  # of all jobs, in the epoch that is trained on
        self._labels = torch.from_numpy(jobs[0].labels.astype(np.float32)).to(device)
        self._incoming = augmented(jobs[0], self._wanted(), workers, device)

    def batches(self, job: FoldJob, epoch: int) -> Iterator[Batch]:
        """Yield an epoch's batches of a job: pixels (b, H, W, 3) and labels (b,) on the device, and rows (b,).

        The jobs' epochs are asked for in ascending order.
        """
        held, rows = self._whole(epoch), order(job, epoch)
        entries = np.searchsorted(held.codes, self._code(job, rows))
        places, of_rows = (torch.from_numpy(each).to(self._device) for each in (entries, rows))
        updates = sum(each.updates_per_epoch for each in self._due(epoch))
        for batch, place, of_row in zip(rows, places, of_rows, strict=True):
            yield held.pixels[place], self._labels[of_row], batch
            self._updates += 1
            self._come(epoch + 1, self._updates / updates)

    def _whole(self, epoch: int) -> _Epoch:
        """Return an epoch that has come in whole; earlier ones are dropped."""
        number = self._epochs.start if self._once else epoch
        if number not in self._held or any(earlier < number for earlier in self._held):
            self._held = {each: held for each, held in self._held.items() if each >= number}
            self._updates = 0
        self._come(number, 1.0)
        return self._held[number]

    def _come(self, epoch: int, share: float) -> None:
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

    def _wanted(self) -> Iterator[list[Wanted]]:
        """Yield what is to come in, in order, a chunk at a time."""
        for epoch in self._epochs:
            times, rows = np.divmod(self._of_epoch(epoch), len(self._jobs[0].labels))
            for start in range(0, len(rows), CHUNK):
                part = slice(start, start + CHUNK)
                yield [(epoch, row, time) for row, time in zip(rows[part].tolist(), times[part].tolist(), strict=True)]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        """Return the codes (e,) of all images that an epoch's jobs take, ascending."""
        if epoch not in self._codes:
            rows = [job.rows if self._once else self._code(job, order(job, epoch)) for job in self._due(epoch)]
            self._codes = {each: codes for each, codes in self._codes.items() if each >= epoch - 1}
            self._codes[epoch] = np.unique(np.concatenate([each.ravel() for each in rows]))
        return self._codes[epoch]

    def _code(self, job: FoldJob, rows: np.ndarray) -> np.ndarray:
        """Return a number for each row and how often it was drawn before; without augmentation, for the row alone."""
        return rows if self._once else times_before(rows) * len(job.labels) + rows

    def _due(self, epoch: int) -> list[FoldJob]:
        firsts = zip(self._jobs, self._first_epochs, strict=True)
        return [job for job, first in firsts if first <= epoch < job.config.epochs or self._once]


def resident_bytes(job: FoldJob) -> int:
    """Return the device memory in bytes that holding two epochs takes: of one that is trained on and the next one.

    It is exact where each image is drawn once an epoch; a balanced draw of several folds takes up to twice as much.
    """
    return 2 * job.pixels.nbytes * (2 if job.config.sampler == "balanced" else 1)
