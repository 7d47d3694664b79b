"""The figures of the page of `thera explore`: mean images, and maps of where the classes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemble.explore_results import ExploreResult
from ensemble.reports.html import Figure
from ensemble.reports.svg import picture, short
from ensemble.reports.thumbnails import small

NAME_LENGTH = 24
"""The characters of the name of a class in a picture."""

MAP_SIDE = 64
"""The largest side of a map of pixels."""

MEANS_IN_A_ROW = 6
"""The mean images of a row."""

MEAN_SIDES = {20: 64, 50: 32, 127: 16}
"""The most classes -> the largest side of their mean images, in pixels, which bounds the bytes that they take."""


def explore_figures(result: ExploreResult) -> list[Figure]:
    """Return the figures of a labelled set: the mean image of each class, and where the classes differ."""
    pictures, names = result.pictures, [count.name for count in result.classes]
    if pictures.means is None:
        return []
    return [_means(pictures.means, names), _differences(result, pictures.means, names)]


def _means(means: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw the mean image of each class."""
    side = next(side for most, side in MEAN_SIDES.items() if len(names) <= most)
    columns = min(len(names), MEANS_IN_A_ROW)
    rows, tall = -(-len(names) // columns), means.shape[1] / means.shape[2]

    def draw(figure: Any) -> None:
        for index, (mean, name) in enumerate(zip(means, names, strict=True), 1):
            axes = figure.add_subplot(rows, columns, index)
            if np.isfinite(mean).all():
                axes.imshow(small(mean, side).round().astype(np.uint8), interpolation="nearest")
            _bare(axes, short(name, NAME_LENGTH))

    return Figure(
        "Mean image of each class",
        "A shape that can be seen in a mean is at the same place in most images of the class.",
        f"The mean images of {len(names)} classes side by side.",
        picture(draw, (6.4, rows * (6.4 / columns * tall + 0.25)) if columns > 1 else (6.4, 3.4)),
    )


def _differences(result: ExploreResult, means: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw how the mean images differ, and how much of each pixel's variance the classes explain."""
    scores, telling = result.pictures.scores, result.pictures.telling
    means = np.stack([small(mean, MAP_SIDE) for mean in means])
    luma = means @ np.array([0.299, 0.587, 0.114])
    most = 0.0 if scores is None else max(100 * float(scores.max()), 1e-4)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(1, 2 if scores is not None else 1, 1)
        if len(names) == 2:
            difference = luma[1] - luma[0]
            limit = float(np.nanmax(np.abs(difference), initial=1))
            image = axes.imshow(difference, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
            _bare(axes, f"mean of {short(names[1], NAME_LENGTH)} minus mean of {short(names[0], NAME_LENGTH)}")
        else:
            image = axes.imshow(np.nanstd(luma, axis=0), cmap="cividis", vmin=0, interpolation="nearest")
            _bare(axes, "spread of the mean images")
        figure.colorbar(image, ax=axes, label="grey levels", fraction=0.05)
        if scores is not None and telling is not None:
            axes = figure.add_subplot(1, 2, 2)
            image = axes.imshow(100 * scores, cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
            if telling.any() and not telling.all():
                axes.contour(telling, levels=[0.5], colors="white", linewidths=0.8)
            _bare(axes, "variance explained by the classes")
            figure.colorbar(image, ax=axes, label="%", fraction=0.05)

    caption = "Left: the mean images differ most where the map is yellow."
    if len(names) == 2:
        first, second = (short(name, NAME_LENGTH) for name in names)
        caption = f"Left: purple pixels are brighter in class {second}, orange ones in class {first}."
    if scores is not None:
        caption += (
            f" Right: the classes explain at most {most:.2g} % of the variance of a pixel's grey level; a line "
            "surrounds the tenth of the pixels with the most. If it lies where the classes should not differ, such as "
            "at the border, they differ in how the images were made."
        )
    return Figure(
        "Where the classes differ",
        caption,
        "Two maps of the pixels: the difference of the mean images, and the variance that the classes explain.",
        picture(draw, (6.4, 0.4 + 2.4 * luma.shape[1] / luma.shape[2])),
    )


def _bare(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
