"""What `thera explore` returns: counts, findings and pictures of a set of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

KINDS = (
    "damaged",
    "conflict",
    "overlap",
    "identical",
    "near-identical",
    "constant",
    "blank",
    "dark",
    "bright",
    "blurred",
    "odd",
    "size",
)
"""The kinds of findings, in the order in which they are shown."""

SHOWN_EACH = 24
"""The findings of a kind that the page shows as pictures; the table has all of them."""


@dataclass(frozen=True)
class Finding:
    """One image, and what is remarkable about it.

    Attributes
    ----------
    id : str
        Of the image; the name of its file if the image is damaged.
    kind : str
        One of `KINDS`.
    detail : str
        The measured value, or the image that it equals.
    set : {"images", "against"}
        The set that the image is in.
    label : str
        The name of its class; empty if it has none.
    group : int or None
        The number of the group of images that it is a copy in.
    row : int or None
        Its row among the decoded images of its set; None if it is damaged.
    partner : int or None
        The row of the image in the first set that it is a copy of.
    """

    id: str
    kind: str
    detail: str
    set: str = "images"
    label: str = ""
    group: int | None = None
    row: int | None = None
    partner: int | None = None


@dataclass(frozen=True)
class Count:
    """How many images are of a class, a size or a format: `name`, `images` and their `share` of the set."""

    name: str
    images: int
    share: float


@dataclass(frozen=True)
class ExplorePictures:
    """What the page shows beside tables; all images are uint8 RGB of at most 64 pixels a side.

    Attributes
    ----------
    samples : mapping of str to uint8 array (k, h, w, 3)
        Images of each class, by its name; with "" as the name if there are no labels.
    means : float64 array (C, H, W, 3) or None
        The mean image of each class.
    scores : float64 array (h, w) or None
        The share of the variance of each pixel's grey level that the classes explain.
    telling : bool array (h, w) or None
        The tenth of the pixels that differ most between the classes.
    scored_images : int
        The images that the scores were computed from.
    thumbnails : mapping of (str, int) to uint8 array (h, w, 3)
        The images of findings that are shown, by their set and row.
    """

    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    means: np.ndarray | None = None
    scores: np.ndarray | None = None
    telling: np.ndarray | None = None
    scored_images: int = 0
    thumbnails: Mapping[tuple[str, int], np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ExploreResult:
    """What there is in a set of images.

    Attributes
    ----------
    where, against_where : str
        Where the images are; empty if there is no second set.
    images, against : int
        The images that can be read in both sets.
    size : tuple of int
        Height and width at which the images are compared, in pixels.
    resized : bool
        Whether the images were resized to it because their sizes differ.
    classes, sizes, formats : tuple of Count
        Of the images.
    form_accuracy, majority_share : float or None
        The share of the images whose class is the most frequent one of their format and size, and the share of the most
        frequent class; None without labels.
    findings : tuple of Finding
        By kind, in the order of `KINDS`.
    notes : tuple of str
        Remarks on the data, a line each.
    pictures : ExplorePictures
    page, table : Path
        The page and the CSV table of all findings.
    """

    where: str
    images: int
    size: tuple[int, int]
    resized: bool
    classes: tuple[Count, ...]
    sizes: tuple[Count, ...]
    formats: tuple[Count, ...]
    findings: tuple[Finding, ...]
    pictures: ExplorePictures
    page: Path
    table: Path
    form_accuracy: float | None = None
    majority_share: float | None = None
    against_where: str = ""
    against: int = 0
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of one of `KINDS`."""
        return tuple(finding for finding in self.findings if finding.kind == kind)
