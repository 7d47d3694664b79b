"""Which members `thera fit` trains, and for how many epochs: rules on what this repository has measured.

The rules are arithmetic on the number of images, the device and the speeds of training; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ensemble.commands.fold_jobs import WATCHED
from ensemble.config import VIEWS, MemberConfig

MANY_IMAGES = 10_000
"""Images from which a CPU has 3 folds instead of 5. An epoch of all folds then takes half the time; the record of
80,000 images has 3 folds, too."""

FEW_ROWS, SMALL_BATCH = 4000, 64
"""Training rows below which batches have 64 images. With batches of 128, small_cnn learns little from 400 rows in 15
epochs (HTER 0.39 on the demo data, 0.18 with 32); after 45 epochs both learn, and larger batches are faster."""

EPOCHS = {"cpu": 26, "cuda": 20}
"""Epochs on many images: those of small_cnn in configs/therapanacea-cpu.yaml, and of configs/therapanacea.yaml."""

ROWS_OF_EPOCHS = 53_333
"""Training rows that `EPOCHS` belongs to: two thirds of 80,000 images."""

MOST_EPOCHS = 45
"""The most epochs that are chosen without a budget. Few images have more epochs, with the square root of how few they
are; the published training of small_cnn had 50."""

MOST_OF_FULL = 2.0
"""The most epochs that a budget is spent on, as a multiple of the number without a budget. More were never measured."""

LEAST_OF_FULL = 0.5
"""Share of the epochs without a budget from which a further member is worth its time. On the record a second small_cnn
lowers the HTER by 0.0021, as much as a few of the last epochs do."""

LARGEST_INPUT = {"cpu": 128, "cuda": 224}
"""Largest side of a network's input in pixels. small_cnn was measured at 64 and 96 pixels without a difference; 224 is
the size that the pretrained weights were made with."""

HALF_STRIDE_UP_TO = 96
"""Side in pixels up to which the stem of a pretrained network has half its stride, as configs/therapanacea.yaml has."""

OF_PREDICTION = 1 / 3
"""Cost of predicting an image under a view, as a share of training on it: a forward pass without the two gradients."""

DECISION_SECONDS, DECISION_SECONDS_PER_IMAGE = 4.0, 3e-4
"""Time of stacker, threshold, intervals and report: measured on the record, three members of 80,000 images."""


def folds_for(device: str, images: int) -> int:
    """Return the number of folds."""
    return 3 if device == "cpu" and images >= MANY_IMAGES else 5


def members_for(device: str, images: int, folds: int, size: int, epochs: int | None = None) -> list[MemberConfig]:
    """Return the members for a device, the most useful first, each with its epochs without a budget.

    On a CPU these are three small CNNs from scratch, which are better for their time than any other network here. On a
    GPU they are the three backbones, from pretrained weights where these are available.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    images : int
        All labelled images.
    folds : int
    size : int
        Side of the images in pixels.
    epochs : int, optional
        In place of the number that is chosen by the rows.
    """
    rows = images * (folds - 1) // folds
    if epochs is None:
        epochs = round(min(MOST_EPOCHS, max(1.0, ROWS_OF_EPOCHS / rows) ** 0.5 * EPOCHS[device]))
    shared: dict[str, Any] = {"epochs": epochs}
    if rows < FEW_ROWS:
        shared["batch_size"] = SMALL_BATCH
    if size > LARGEST_INPUT[device]:
        shared["input_size"] = LARGEST_INPUT[device]
    members = _small_cnns() if device == "cpu" else _backbones(size, "batch_size" not in shared)
    return [MemberConfig.model_validate(member | shared) for member in members]


def _small_cnns() -> list[dict[str, Any]]:
    """Return the three of configs/therapanacea-cpu.yaml, in the order of their use to its stack."""
    base = {"arch": "small_cnn", "pretrained": False, "drop_rate": 0}
    smooth = {"loss": "bce", "label_smoothing": 0.1, "augment": {"flip": True, "scale": 0.06, "shift": 0.03}}
    return [
        base,
        {"name": "small_cnn_smooth"} | base | smooth,
        {"name": "small_cnn_light"} | base | {"augment": "light"},
    ]


def _backbones(size: int, large_batches: bool) -> list[dict[str, Any]]:
    """Return the three of configs/therapanacea.yaml; each starts from scratch where there are no weights."""
    rates = {"resnet18": 1e-3, "convnext_nano": 5e-4, "mobilenetv2": 1e-3}
    base: dict[str, Any] = {"pretrained": "if-possible"}
    if size <= HALF_STRIDE_UP_TO:
        base["stem"] = "half-stride"
    if large_batches:
        base["batch_size"] = 256
    return [{"arch": arch, "lr": lr} | base for arch, lr in rates.items()]


# --- the budget -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """How fast the folds of a member are trained on this machine.

    Attributes
    ----------
    seconds_per_row : float
        Seconds in which all folds together train on one row each.
    start_seconds : float
        Before the first update: processes, libraries, the network.
    """

    seconds_per_row: float
    start_seconds: float


@dataclass(frozen=True)
class Work:
    """What a member has to compute: `images` labelled images in `folds` folds, and `predicted` others."""

    images: int
    folds: int
    predicted: int = 0

    def epoch_seconds(self, speed: Speed) -> float:
        """Return the seconds of an epoch of all folds, with the rows that are watched after it."""
        watched = min(self.images / self.folds, WATCHED)
        rows = self.images * (self.folds - 1) / self.folds
        return speed.seconds_per_row * (rows + OF_PREDICTION * watched)

    def fixed_seconds(self, speed: Speed) -> float:
        """Return the seconds that do not depend on the epochs: the start, and predicting."""
        rows = self.images / self.folds + self.predicted
        return speed.start_seconds + speed.seconds_per_row * OF_PREDICTION * len(VIEWS) * rows

    @property
    def decision_seconds(self) -> float:
        return DECISION_SECONDS + DECISION_SECONDS_PER_IMAGE * self.images


def seconds_of(members: Sequence[MemberConfig], speeds: Mapping[str, Speed], work: Work) -> float:
    """Return the seconds that members take, without the decision; `speeds` are by architecture."""
    return sum(
        work.fixed_seconds(speeds[member.arch]) + member.epochs * work.epoch_seconds(speeds[member.arch])
        for member in members
    )


def fitting(
    members: Sequence[MemberConfig], speeds: Mapping[str, Speed], work: Work, seconds: float, least: float
) -> list[MemberConfig]:
    """Return as many of the first members as the time allows, with epochs that use it up.

    Each has the same share of its own epochs, at least `least` where there are several, at most `MOST_OF_FULL`.

    Parameters
    ----------
    members : sequence of MemberConfig
        With their epochs without a budget.
    speeds : mapping
        By architecture.
    work : Work
    seconds : float
        For training and predicting.
    least : float

    Returns
    -------
    list of MemberConfig
        Empty where the time does not suffice for half an epoch of the first member.
    """
    for count in range(len(members), 0, -1):
        chosen = members[:count]
        fixed = sum(work.fixed_seconds(speeds[member.arch]) for member in chosen)
        share = (seconds - fixed) / (seconds_of(chosen, speeds, work) - fixed)
        if share >= least or count == 1:
            epochs = [round(min(share, MOST_OF_FULL) * member.epochs) for member in chosen]
            if min(epochs) < 1:
                continue
            return [m.model_copy(update={"epochs": e}) for m, e in zip(chosen, epochs, strict=True)]
    return []
