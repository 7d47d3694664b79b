"""What a network looks at: the change of its logit where a part of an image is replaced by the mean image.

An image is divided into squares. Each square in turn is covered with the same square of the mean image; the effect of
the square is the fall of the logit of the image's class. A positive effect means that the square speaks for the class.

For two classes the logit of class 1 is the network's logit z, and that of class 0 is -z. For C classes the logit of
class c is its own logit less the mean of the others. Occlusion: Zeiler and Fergus, "Visualizing and understanding
convolutional networks", 2014, section 4.2; they cover with grey.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from ensemble.config import VIEWS
from ensemble.members.backbones import Backbone
from ensemble.members.inference import predict_logits
from ensemble.members.processes import Progress


def squares(height: int, width: int, grid: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of pixels of each square, in reading order.

    The squares tile the image. Where `grid` divides no side, they differ by one pixel. `grid` is at most either side.

    >>> [(rows.start, rows.stop) for rows, columns in squares(10, 10, 3)][::3]
    [(0, 3), (3, 7), (7, 10)]
    """
    down, across = (np.round(np.linspace(0, side, grid + 1)).astype(int).tolist() for side in (height, width))
    for top, bottom in pairwise(down):
        for left, right in pairwise(across):
            yield slice(top, bottom), slice(left, right)


def class_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the logit of each image's class.

    Parameters
    ----------
    logits : float array (n,) or (n, C)
    labels : int array (n,)
        Class indices.

    Returns
    -------
    float64 array (n,)
        For two classes z where the label is 1 and -z where it is 0; for C classes the class's logit less the mean of
        the others.

    Examples
    --------
    >>> class_logits(np.array([2.0, 3.0]), np.array([1, 0])).tolist()
    [2.0, -3.0]
    >>> class_logits(np.array([[1.0, 2.0, 6.0]]), np.array([2])).tolist()
    [4.5]
    """
    if logits.ndim == 1:
        signed: np.ndarray = np.where(labels == 1, logits, -logits).astype(np.float64)
        return signed
    of_class = logits[np.arange(len(labels)), labels].astype(np.float64)
    others = (logits.sum(axis=1, dtype=np.float64) - of_class) / (logits.shape[1] - 1)
    less: np.ndarray = of_class - others
    return less


def occlusion(
    network: Backbone,
    pixels: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray,
    grid: int,
    device: torch.device,
    bar: Progress,
) -> np.ndarray:
    """Return the effect of each square of each image: the fall of the class's logit where the square is covered.

    Parameters
    ----------
    network : Backbone
        On `device`. It is set to evaluation mode, and computed in float32.
    pixels : uint8 array (n, H, W, 3)
    labels : int array (n,)
        The class whose logit is followed in each image.
    mean : uint8 array (H, W, 3)
        Covers the squares.
    grid : int
        The number of squares along each side, at most H and W.
    device : torch.device
    bar : Progress
        Advanced by one for each image and square, and for each image as it is.

    Returns
    -------
    float64 array (n, grid, grid)
        Positive where the square speaks for the class. The first row is the top of the image.
    """
    rows, (height, width) = np.arange(len(pixels)), pixels.shape[1:3]

    def predicted(images: np.ndarray) -> np.ndarray:
        logits = predict_logits(network, images, rows, VIEWS[:1], "fp32", device, bar)
        return class_logits(logits[:, 0], labels)

    uncovered, covered = predicted(pixels), pixels.copy()
    effects = np.empty((len(pixels), grid * grid))
    for index, (down, across) in enumerate(squares(height, width, grid)):
        covered[:, down, across] = mean[down, across]
        effects[:, index] = uncovered - predicted(covered)
        covered[:, down, across] = pixels[:, down, across]
    return effects.reshape(len(pixels), grid, grid)


def passes(images: int, grid: int) -> int:
    """Return how often `occlusion` advances its bar for so many images."""
    return images * (grid * grid + 1)
