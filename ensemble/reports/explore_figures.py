"""The pictures of the page of `thera explore`: thumbnails as WebP, mean images and maps as SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ensemble.errors import printable
from ensemble.explore_results import ExploreResult
from ensemble.reports.html import Figure

SIDES_AND_QUALITIES = ((64, 75), (64, 40), (48, 40), (32, 30), (24, 10))
"""The largest side in pixels of a thumbnail with its WebP quality, the best first: the first pair that fits is used."""

COLUMNS = 12
"""The images of a row of samples."""

NAME_LENGTH = 24
"""The characters of the name of a class in a picture."""

MAP_SIDE = 64
"""The largest side of a map of pixels."""

MEANS_IN_A_ROW = 6
"""The mean images of a row."""

MEAN_SIDES = {20: 64, 50: 32, 127: 16}
"""The most classes -> the largest side of their mean images, in pixels, which bounds the bytes that they take."""

K = TypeVar("K", bound=Hashable)


def thumbnails(images: Mapping[K, np.ndarray], budget: int) -> dict[K, bytes]:
    """Return images (h, w, 3) as WebP files of at most `budget` bytes together, at the best quality that fits."""
    encoded: dict[K, bytes] = {}
    for side, quality in SIDES_AND_QUALITIES:
        encoded = {key: webp(_at_most(image, side), quality) for key, image in images.items()}
        if sum(map(len, encoded.values())) <= budget:
            break
    return encoded


def mosaics(samples: Mapping[str, np.ndarray], budget: int) -> dict[str, bytes]:
    """Return the samples (k, h, w, 3) of each class as one WebP file, of at most `budget` bytes together."""
    encoded: dict[str, bytes] = {}
    for side, quality in SIDES_AND_QUALITIES:
        grids = {name: _grid([_at_most(image, side) for image in images]) for name, images in samples.items()}
        encoded = {name: webp(grid, quality) for name, grid in grids.items()}
        if sum(map(len, encoded.values())) <= budget:
            break
    return encoded


def webp(image: np.ndarray, quality: int) -> bytes:
    """Return an RGB image (h, w, 3) as a WebP file."""
    import cv2

    written, data = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert written
    return data.tobytes()


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
    rows = -(-len(names) // columns)
    figure = _blank(6.4, 0.4 + rows * (6.4 / columns + 0.2) if columns > 1 else 3.4)
    for index, (mean, name) in enumerate(zip(means, names, strict=True), 1):
        axes = figure.add_subplot(rows, columns, index)
        if np.isfinite(mean).all():
            axes.imshow(_at_most(mean, side).round().astype(np.uint8), interpolation="nearest")
        _bare(axes, _short(name))
    return Figure(
        "Mean image of each class",
        "A shape that can be seen in a mean is at the same place in most images of the class.",
        f"The mean images of {len(names)} classes side by side.",
        _svg(figure),
    )


def _differences(result: ExploreResult, means: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw how the mean images differ, and how much of each pixel's variance the classes explain."""
    scores, telling = result.pictures.scores, result.pictures.telling
    means = np.stack([_at_most(mean, MAP_SIDE) for mean in means])
    luma = means @ np.array([0.299, 0.587, 0.114])
    figure = _blank(6.4, 3.2)
    axes = figure.add_subplot(1, 2 if scores is not None else 1, 1)
    if len(names) == 2:
        difference = luma[1] - luma[0]
        limit = float(np.nanmax(np.abs(difference), initial=1))
        image = axes.imshow(difference, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
        _bare(axes, f"mean of {_short(names[1])} minus mean of {_short(names[0])}")
        caption = (
            f"Left: purple pixels are brighter in class {_short(names[1])}, orange ones in class {_short(names[0])}."
        )
    else:
        image = axes.imshow(np.nanstd(luma, axis=0), cmap="cividis", vmin=0, interpolation="nearest")
        _bare(axes, "spread of the mean images")
        caption = "Left: the mean images differ most where the map is yellow."
    figure.colorbar(image, ax=axes, label="grey levels", shrink=0.8)
    if scores is not None and telling is not None:
        axes = figure.add_subplot(1, 2, 2)
        most = max(100 * float(scores.max()), 1e-4)
        image = axes.imshow(100 * scores, cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
        if telling.any() and not telling.all():
            axes.contour(telling, levels=[0.5], colors="white", linewidths=0.8)
        _bare(axes, "variance explained by the classes")
        figure.colorbar(image, ax=axes, label="%", shrink=0.8)
        caption += (
            f" Right: the classes explain at most {most:.2g} % of the variance of a pixel's grey level; a line "
            "surrounds the tenth of the pixels with the most. If it lies where the classes should not differ, such as "
            "at the border, they differ in how the images were made."
        )
    return Figure(
        "Where the classes differ",
        caption,
        "Two maps of the pixels: the difference of the mean images, and the variance that the classes explain.",
        _svg(figure),
    )


def _grid(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return images (h, w, 3) in rows of `COLUMNS`, on white, with a gap of two pixels."""
    height, width = images[0].shape[:2]
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    grid = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * (height + 2), index % columns * (width + 2)
        grid[y : y + height, x : x + width] = image
    return grid


def _at_most(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image with at most this side, in pixels."""
    import cv2

    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA))


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"


def _blank(width: float, height: float) -> Any:
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


def _bare(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _svg(figure: Any) -> bytes:
    """Return a figure as SVG; the same figure gives the same bytes."""
    from matplotlib import rc_context

    svg = io.BytesIO()
    with rc_context({"svg.hashsalt": "thera", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has its own fonts
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, dpi=100)
    return svg.getvalue()
