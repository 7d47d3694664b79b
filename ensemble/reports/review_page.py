"""The page on which a person reviews doubtful labels: one HTML file with thumbnails, keyboard and export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.clean_results import LabelIssue
from ensemble.data.overlay import is_text
from ensemble.errors import printable
from ensemble.reports.html import data_uri, page

SIDE = 96
"""The longest side of a thumbnail, in pixels; smaller images stay as they are."""

QUALITIES = (75, 50, 25, 10)
"""WebP qualities, tried in this order until all thumbnails together fit `THUMBNAIL_BYTES`."""

THUMBNAIL_BYTES = 1_200_000
"""The most bytes that all thumbnails take before they are written as text, which takes a third more. A page then has
less than 2 MB."""


def review_page(
    run: str,
    fingerprint: str,
    issues: Sequence[LabelIssue],
    images: Sequence[NDArray[np.uint8]],
    classes: Sequence[str],
    found: int,
    total: int,
    source: str,
) -> bytes:
    """Return the review page as HTML.

    Parameters
    ----------
    run : str
        The name of the run. With the fingerprint, it is the key under which the browser keeps the decisions.
    fingerprint : str
        Of the images and labels of the run.
    issues : sequence of s LabelIssue
        What is shown, in this order.
    images : sequence of s uint8 arrays (H, W, 3)
        RGB.
    classes : sequence of C str
        The names of the classes.
    found, total : int
        The number of all doubtful labels, and of all images.
    source : str
        Whose logits doubt the labels.
    """
    pictures = map(data_uri, thumbnails(images)) if images else ()
    cards = [
        {"issue": issue, "picture": picture, "p": f"{issue.probability:.3f}"}
        for issue, picture in zip(issues, pictures, strict=True)
    ]
    data: dict[str, Any] = {
        "key": f"thera-review:{run}:{fingerprint[:16]}",
        "classes": list(map(_written, classes)),
        "issues": [[_written(issue.id), _written(issue.given), _written(issue.suggested)] for issue in issues],
    }
    return page(
        "review.html",
        ("review.js",),
        run=run,
        cards=cards,
        data=data,
        classes=classes,
        found=found,
        total=total,
        source=source,
    )


def _written(text: str) -> str:
    """Return a name as UTF-8 can hold it: one with other bytes has escapes, which `thera clean --apply` reads."""
    return text if is_text(text) else printable(text)


def thumbnails(images: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """Return each image as a WebP file of at most `SIDE` pixels, in the best of `QUALITIES` that fits."""
    import cv2

    small = []
    for image in images:
        height, width = image.shape[:2]
        scale = SIDE / max(height, width)
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        small.append(np.ascontiguousarray(image[..., ::-1]))
    files: list[bytes] = []
    for quality in QUALITIES:
        files = [cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes() for image in small]
        if sum(map(len, files)) <= THUMBNAIL_BYTES:
            break
    return files
