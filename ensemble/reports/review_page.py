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
from ensemble.reports.thumbnails import thumbnails

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
    pictures = map(data_uri, thumbnails(dict(enumerate(images)), THUMBNAIL_BYTES).values())
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
