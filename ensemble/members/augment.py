"""Training augmentation, seeded for each image of each epoch, and the views of test-time augmentation."""

from __future__ import annotations

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer release otherwise

import albumentations
import cv2
import numpy as np
import torch


class Augmentation:
    """An albumentations pipeline whose outcome depends on (seed, epoch, image) alone.

    Parameters
    ----------
    strength : {"none", "light", "standard"}
        ``light`` mirrors and shifts by up to 6 % of the side; ``standard`` also scales, rotates and changes brightness,
        contrast and saturation.
    seed : int
        The run's seed.
    """

    def __init__(self, strength: str, seed: int) -> None:
        self.strength, self.seed = strength, seed
        self._pipeline: albumentations.Compose | None = None

    def __call__(self, image: np.ndarray, epoch: int, row: int) -> np.ndarray:
        """image (H, W, 3) uint8 -> (H, W, 3) uint8."""
        if self.strength == "none":
            return image
        if self._pipeline is None:
            cv2.setNumThreads(0)
            self._pipeline = _pipeline(self.strength)
        state = np.random.SeedSequence((self.seed, epoch, row)).generate_state(1)
        self._pipeline.set_random_seed(int(state[0]))
        augmented: np.ndarray = self._pipeline(image=image)["image"]
        return augmented

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pipeline": None}


def _pipeline(strength: str) -> albumentations.Compose:
    mirror = albumentations.HorizontalFlip(p=0.5)
    shift = {"translate_percent": (-0.06, 0.06), "border_mode": cv2.BORDER_REPLICATE}
    if strength == "light":
        return albumentations.Compose([mirror, albumentations.Affine(**shift, p=1.0)])
    move = albumentations.Affine(**shift, scale=(0.9, 1.1), rotate=(-8, 8), p=0.9)
    vary = (0.8, 1.2)
    light = albumentations.ColorJitter(brightness=vary, contrast=vary, saturation=vary, hue=(0, 0), p=0.5)
    return albumentations.Compose([mirror, move, light])


def view(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """Return one of `config.VIEWS` of pixels (b, H, W, 3)."""
    return pixels.flip(2) if name == "hflip" else pixels
