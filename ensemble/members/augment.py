"""Training augmentation, seeded for each image of each epoch, and the views of test-time augmentation."""

from __future__ import annotations

import os
import random

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer release otherwise

import albumentations
import cv2
import numpy as np
import torch

from ensemble.config import AugmentConfig


class Augmentation:
    """An albumentations pipeline whose outcome depends on (seed, epoch, image, time) alone.

    Parameters
    ----------
    wanted : AugmentConfig
    seed : int
        The run's seed.
    """

    def __init__(self, wanted: AugmentConfig, seed: int) -> None:
        self.wanted, self.seed = wanted, seed
        self._pipeline: albumentations.Compose | None = None

    @property
    def is_idle(self) -> bool:
        """Whether every image stays as it is."""
        return self.wanted == AugmentConfig()

    def __call__(self, image: np.ndarray, epoch: int, row: int, time: int = 0) -> np.ndarray:
        """image (H, W, 3) uint8 -> (H, W, 3) uint8.

        Parameters
        ----------
        time : int
            How often the image was drawn before in this epoch.
        """
        if self.is_idle:
            return image
        if self._pipeline is None:
            cv2.setNumThreads(0)
            self._pipeline = _pipeline(self.wanted)
        names = (self.seed, epoch, row, time) if time else (self.seed, epoch, row)
        sequence = np.random.SeedSequence(names)
        seed = int(sequence.generate_state(1)[0])
        # not set_random_seed: it starts each transform at the same number, so that what is flipped shifts to one side
        self._pipeline.set_random_state(np.random.default_rng(sequence), random.Random(seed))  # noqa: S311
        augmented: np.ndarray = self._pipeline(image=image)["image"]
        return augmented

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pipeline": None}


def _pipeline(wanted: AugmentConfig) -> albumentations.Compose:
    steps: list[albumentations.BasicTransform] = []
    if wanted.flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    if wanted.shift or wanted.scale or wanted.rotate:
        zoom = (1 - wanted.scale, 1 + wanted.scale)
        move = {"translate_percent": (-wanted.shift, wanted.shift), "rotate": (-wanted.rotate, wanted.rotate)}
        often = 0.9 if wanted.scale or wanted.rotate else 1.0  # a tenth keeps the sharpness that it came with
        steps.append(albumentations.Affine(**move, scale=zoom, border_mode=cv2.BORDER_REPLICATE, p=often))
    if wanted.colour:
        vary = (1 - wanted.colour, 1 + wanted.colour)
        steps.append(albumentations.ColorJitter(brightness=vary, contrast=vary, saturation=vary, hue=(0, 0), p=0.5))
    return albumentations.Compose(steps)


def view(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """Return one of `config.VIEWS` of pixels (b, H, W, 3)."""
    return pixels.flip(2) if name == "hflip" else pixels
