"""Augment training images, with a seed for each image and epoch, and compute the views of test-time augmentation."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from ensemble.config import AugmentConfig

if TYPE_CHECKING:
    import albumentations

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import looks for a newer release online


class Augmentation:
    """An albumentations pipeline whose result depends only on (seed, epoch, image, time).

    Parameters
    ----------
    config : AugmentConfig
    seed : int
        The run's seed.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._pipeline: albumentations.Compose | None = None

    @property
    def is_idle(self) -> bool:
        """Whether every image is returned unchanged."""
        return self.config == AugmentConfig()

    def __call__(self, image: np.ndarray, epoch: int, row: int, time: int = 0) -> np.ndarray:
        """image (H, W, 3) uint8 -> augmented image (H, W, 3) uint8.

        Parameters
        ----------
        image : uint8 array (H, W, 3)
        epoch, row : int
        time : int
            How often the image was drawn before in this epoch.
        """
        if self.is_idle:
            return image
        if self._pipeline is None:
            cv2.setNumThreads(0)
            self._pipeline = _pipeline(self.config)
        names = (self.seed, epoch, row, time) if time else (self.seed, epoch, row)
        sequence = np.random.SeedSequence(names)
        seed = int(sequence.generate_state(1)[0])
        # set_random_seed would give all transforms the same seed, so that a flipped image would always shift to one
        # side.
        self._pipeline.set_random_state(np.random.default_rng(sequence), random.Random(seed))  # noqa: S311
        augmented: np.ndarray = self._pipeline(image=image)["image"]
        return augmented

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pipeline": None}


def _pipeline(config: AugmentConfig) -> albumentations.Compose:
    import albumentations  # it takes a second, and prediction needs none

    steps: list[albumentations.BasicTransform] = []
    if config.flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    if config.shift or config.scale or config.rotate:
        zoom = (1 - config.scale, 1 + config.scale)
        move = {"translate_percent": (-config.shift, config.shift), "rotate": (-config.rotate, config.rotate)}
        # Scaling and rotation blur an image. A tenth of the images is left out, so that the network also sees sharp
        # ones.
        probability = 0.9 if config.scale or config.rotate else 1.0
        steps.append(albumentations.Affine(**move, scale=zoom, border_mode=cv2.BORDER_REPLICATE, p=probability))
    if config.colour:
        vary = (1 - config.colour, 1 + config.colour)
        steps.append(albumentations.ColorJitter(brightness=vary, contrast=vary, saturation=vary, hue=(0, 0), p=0.5))
    return albumentations.Compose(steps)


def view(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """Return a view, by its name in `config.VIEWS`, of pixels (b, H, W, 3)."""
    return pixels.flip(2) if name == "hflip" else pixels
