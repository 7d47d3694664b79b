"""Generates people, seven images of each: 18 classes made of mask, gender and age, with known Bayes rates.

The data set has the shape of the public one of masked faces: five images of a person have a mask that is worn, in one
it is worn incorrectly, in one there is none. The signs of the three targets are drawn from known densities:

mask    the upper edge of the mask, normal around a mean for each class; without a mask there is none
gender  a hat (0) or glasses (1); a few people have the sign of the other gender
age     the length of the beard below the chin, normal around a mean for each class

Beard, hat, glasses, colours, hair and clothes are those of the person, the same in all seven images. A model that knows
a person from its training images therefore knows gender and age, so that the images of a person must stay in one fold.
"""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ensemble.config import seed_sequence
from ensemble.data.bayes import BestRates, Floats, best_rates
from ensemble.data.drawing import (
    HAIRS,
    SKINS,
    Canvas,
    bright_colour,
    draw_background,
    draw_body,
    draw_face,
    draw_glasses,
    draw_hat,
    draw_oval,
    jpeg,
    photograph,
    shade,
    vary,
)
from ensemble.data.synthetic import write_once
from ensemble.errors import ConfigError

SCHEMA_VERSION = 1
"""The version of `people.json`."""

TARGETS = {
    "mask": ("worn", "incorrect", "none"),
    "gender": ("hat", "glasses"),
    "age": ("under 30", "30 to 60", "60 and over"),
}
"""The targets, and what each of their class indices means."""

IMAGES = {**{f"mask{number}": 0 for number in range(1, 6)}, "incorrect_mask": 1, "normal": 2}
"""The names of a person's images, and the class of the mask in each."""

GENDER_SHARES = (0.39, 0.61)
"""Shares of people of each gender, about those of the public data set."""

AGE_SHARES = (0.48, 0.45, 0.07)
"""Shares of people of each age, about those of the public data set; age does not depend on gender."""

CLASSES = 18
"""The number of joined classes, mask * 6 + gender * 3 + age."""

OTHER_SIGN = 0.02
"""Share of the people of each gender who have the sign of the other one."""

BEARDS, BEARD_SPREAD = (12.0, 28.0, 44.0), 6.0
"""Mean length of the beard below the chin for each age, and its standard deviation, in pixels of the canvas."""

EDGES, EDGE_SPREAD = (128.0, 152.0), 6.0
"""Mean row of the mask's upper edge, worn and worn incorrectly, and its standard deviation, in pixels of the canvas."""

BIN, TAIL = 0.1, 5.0
"""Width of the bins of a continuous sign, and the range beyond its outer means, both in standard deviations. Half the
width changes no Bayes rate by more than 0.0005."""

RAISED = 24
"""The rows by which a head is raised on the canvas, to leave room for the beard."""

CHIN = 206 - RAISED
"""The row of the chin."""

CLOTHES = (205, 208, 214)
"""The mean colour of the clothes, which is much lighter than any beard."""

QUALITY = 95
"""The quality of the JPEG files: at 32 pixels, a lower one would blur the edges that are the signs."""


@dataclass(frozen=True)
class PeopleFacts:
    """What is known of a generated data set.

    Attributes
    ----------
    folder : Path
        It holds `people.csv`, `people.json` and `images/`.
    people, images : int
    counts : dict
        For each target and for `label`, the number of images of each class.
    bayes : dict
        For each target and for `label`, the best rates of any rule that labels each image by itself.
    """

    folder: Path
    people: int
    images: int
    counts: Mapping[str, tuple[int, ...]]
    bayes: Mapping[str, BestRates]


def joined_label(mask: int, gender: int, age: int) -> int:
    """Return the joined class, 0 to 17.

    >>> joined_label(2, 1, 2)
    17
    """
    return mask * 6 + gender * 3 + age


def draw_people(folder: Path, people: int, seed: int = 0, size: int = 48) -> PeopleFacts:
    """Draw people and write their images and labels; do nothing where `folder` holds them already.

    The files are ``images/000001/mask1.jpg`` and so on; the manifest ``people.csv`` with the columns path, mask,
    gender, age, label (the joined class) and group (the person); and the parameters, ``people.json``. The same
    parameters give the same bytes.

    Parameters
    ----------
    folder : Path
        It is written beside and renamed, so that it is never incomplete.
    people : int
        Number of people, at least 6; seven images each. Genders and ages have their exact shares but for rounding, and
        at least one person each.
    seed : int
    size : int
        Height and width of the images in pixels.

    Returns
    -------
    PeopleFacts

    Raises
    ------
    ConfigError
        A parameter is out of range, or `folder` holds other files.
    ResourceError
        `folder` cannot be written.
    """
    combinations = len(GENDER_SHARES) * len(AGE_SHARES)
    if not (people >= combinations and size >= 16):
        raise ConfigError("people", f"needs people >= {combinations} and size >= 16; got {people} and {size}")
    parameters = {"schema": SCHEMA_VERSION, "people": people, "seed": seed, "size": size}
    classes = _classes(people, np.random.default_rng(seed_sequence(seed, "people")))

    def write(partial: Path) -> None:
        with (partial / "people.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("path", *TARGETS, "label", "group"))
            for number, (gender, age) in enumerate(classes, 1):
                person = f"{number:06d}"
                (partial / "images" / person).mkdir(parents=True)
                for (name, mask), image in zip(IMAGES.items(), _person(seed, number, gender, age, size), strict=True):
                    path = f"images/{person}/{name}.jpg"
                    (partial / path).write_bytes(jpeg(image, QUALITY))
                    table.writerow((path, mask, gender, age, joined_label(mask, gender, age), person))

    write_once(folder, "people.json", parameters, write)
    rows = [(mask, gender, age) for gender, age in classes for mask in IMAGES.values()]
    values = dict(zip(TARGETS, zip(*rows, strict=True), strict=True)) | {"label": [joined_label(*row) for row in rows]}
    counts = {name: tuple(Counter(each)[c] for c in range(max(each) + 1)) for name, each in values.items()}
    return PeopleFacts(folder, people, len(rows), counts, bayes_rates())


def _classes(people: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return gender and age of each person: each combination has its share, rounded, and at least one person."""
    shares = np.outer(GENDER_SHARES, AGE_SHARES).ravel()
    counts = np.maximum(np.floor(shares * people), 1).astype(int)
    while (rest := people - counts.sum()) != 0:  # one person more or less where the share is missed most
        excess = counts - shares * people
        if rest > 0:
            counts[np.argmin(excess)] += 1
        else:
            counts[np.argmax(np.where(counts > 1, excess, -np.inf))] -= 1
    combinations = rng.permutation(np.repeat(np.arange(len(shares)), counts))
    return [divmod(combination, len(AGE_SHARES)) for combination in combinations.tolist()]


# --- the drawing ------------------------------------------------------------------------------------------------------


def _person(seed: int, number: int, gender: int, age: int, size: int) -> list[Canvas]:
    """Return the images of a person, uint8 arrays (size, size, 3) in the order of `IMAGES`."""
    rng = np.random.default_rng(seed_sequence(seed, "people", number))
    beard = rng.normal(BEARDS[age], BEARD_SPREAD)
    glasses = bool(gender) != (rng.random() < OTHER_SIGN)
    canvas = _head(rng, glasses, beard)
    images = []
    for name, mask in IMAGES.items():
        rng = np.random.default_rng(seed_sequence(seed, "people", number, name))
        drawn = canvas.copy()
        if mask < len(EDGES):
            _draw_mask(drawn, rng, rng.normal(EDGES[mask], EDGE_SPREAD))
        images.append(photograph(drawn, rng, size))
    return images


def _head(rng: np.random.Generator, glasses: bool, beard: float) -> Canvas:
    """Draw a head with glasses or a hat, and a beard of this length below the chin."""
    canvas = draw_background(rng)
    skin = vary(rng, SKINS[rng.integers(len(SKINS))], 12)
    hair = vary(rng, HAIRS[rng.integers(len(HAIRS))], 14)
    draw_body(canvas, rng, skin, CLOTHES)
    draw_face(canvas, rng, skin, hair)
    if glasses:
        draw_glasses(canvas, rng)
    else:
        draw_hat(canvas, rng)
    canvas = np.concatenate([canvas[RAISED:], np.repeat(canvas[-1:], RAISED, axis=0)])
    half = (beard + 20) / 2  # the beard begins 20 rows above the chin
    if half > 0:
        draw_oval(canvas, (128, CHIN - 20 + half), (34, half), shade(hair, 0.4))
    return canvas


def _draw_mask(canvas: Canvas, rng: np.random.Generator, edge: float) -> None:
    """Draw a mask from the row `edge` to the chin, with bands to the ears."""
    colour, top = shade(bright_colour(rng), 0.8), round(edge)
    for side in (-1, 1):
        cv2.line(canvas, (128 + side * 44, top + 4), (128 + side * 60, 110), (235, 235, 235), 3, cv2.LINE_AA)
    outline = [(80, top), (176, top), (172, CHIN - 22), (150, CHIN), (106, CHIN), (84, CHIN - 22)]
    cv2.fillPoly(canvas, [np.array(outline, np.int32)], colour, cv2.LINE_AA)


# --- the Bayes rates --------------------------------------------------------------------------------------------------


@functools.cache
def bayes_rates() -> dict[str, BestRates]:
    """Return the best rates of any rule that labels each image by itself, for each target and for the joined class.

    An image depends on its classes through the three signs alone. A rule that reads the signs exactly is therefore at
    least as good as any rule of the pixels; the images show the signs to a fraction of a pixel. Mask, gender and age
    are independent, and so are their signs, so that the joint density of all is the product.
    """
    mask, gender, age = _mask_joint(), _gender_joint(), _age_joint()
    label = np.einsum("mh,gs,al->mgahsl", mask, gender, age).reshape(CLASSES, -1)
    joints = {"mask": mask, "gender": gender, "age": age, "label": label}
    return {name: best_rates(joint) for name, joint in joints.items()}


def _mask_joint() -> Floats:
    """Return the probability of each class and of each bin of the edge, the last bin for no mask, (3, bins + 1)."""
    shares = np.bincount(list(IMAGES.values())) / len(IMAGES)
    joint = np.zeros((len(shares), len(_binned(EDGES, EDGE_SPREAD)[0]) + 1))
    joint[:2, :-1] = shares[:2, None] * _binned(EDGES, EDGE_SPREAD)
    joint[2, -1] = shares[2]
    return joint


def _gender_joint() -> Floats:
    """Return the probability of each gender and sign, (2, 2)."""
    shown = np.array([[1 - OTHER_SIGN, OTHER_SIGN], [OTHER_SIGN, 1 - OTHER_SIGN]])
    return np.asarray(np.array(GENDER_SHARES)[:, None] * shown)


def _age_joint() -> Floats:
    """Return the probability of each age and of each bin of the beard's length, (3, bins)."""
    return np.asarray(np.array(AGE_SHARES)[:, None] * _binned(BEARDS, BEARD_SPREAD))


def _binned(means: tuple[float, ...], spread: float) -> Floats:
    """Return the probability of each bin under normal densities around the means, (means, bins); each row sums to 1."""
    from scipy.special import ndtr  # type: ignore[import-untyped, unused-ignore]

    cuts: NDArray[np.float64] = np.arange(min(means) / spread - TAIL, max(means) / spread + TAIL, BIN)
    below = np.array([ndtr(cuts - mean / spread) for mean in means])
    return np.asarray(np.diff(below, axis=1, prepend=0, append=1))
