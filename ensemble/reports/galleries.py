"""Images that report.html shows one by one: the most confident errors, and the most doubtful labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.decision.diagnostics import Diagnostics
from ensemble.errors import printable
from ensemble.reports.html import Card, data_uri
from ensemble.reports.table import Table

SHOWN_OF_CLASS = 12
"""The number of confident errors, and of doubtful labels, of each of two classes that are shown; of more classes, twice
as many in all."""


@dataclass(frozen=True)
class ShownRow:
    """An image of a gallery, in words; `uri` is its thumbnail as a data URI, or empty."""

    id: str
    label: str
    predicted: str
    ahead: str
    probability: str
    against: str
    uri: str = ""

    @property
    def card(self) -> Card:
        """Return the row as a card."""
        alt = f"image {self.id}, label {self.label}, predicted as {self.predicted}"
        lines = (
            f"{self.label}, predicted {self.predicted}",
            f"ahead {self.ahead}",
            f"P(label) {self.probability}",
            f"against it: {self.against}",
        )
        return Card(((alt, self.uri),), self.id, lines)


@dataclass(frozen=True)
class Gallery:
    """Images with what the decision says of them: cards where all of them have thumbnails, else a table."""

    title: str
    caption: str
    rows: tuple[ShownRow, ...]

    @property
    def has_images(self) -> bool:
        return bool(self.rows) and all(row.uri for row in self.rows)

    @property
    def cards(self) -> tuple[Card, ...]:
        """Return the rows as cards."""
        return tuple(row.card for row in self.rows)

    @property
    def table(self) -> Table:
        """Return the rows as a table."""
        columns = ("id", "label", "predicted", "ahead, logits", "P(label)", "members against it")
        cells = ((row.id, row.label, row.predicted, row.ahead, row.probability, row.against) for row in self.rows)
        return Table(self.title, columns, tuple(cells), (self.caption,))


def confident_errors(diagnostics: Diagnostics) -> list[NDArray[np.int64]]:
    """Return the rows of the most confident errors, of each of two classes, or of all classes together."""
    order = np.argsort(-diagnostics.contradiction, kind="stable")
    return _first(diagnostics, order[diagnostics.wrong[order]])


def most_doubtful(diagnostics: Diagnostics) -> list[NDArray[np.int64]]:
    """Return the rows of the most doubtful labels, in the order of `thera clean`."""
    return [] if diagnostics.doubtful is None else _first(diagnostics, diagnostics.doubtful.rows)


def shown_rows(diagnostics: Diagnostics) -> NDArray[np.int64]:
    """Return the rows that the page shows one by one, in ascending order."""
    return np.unique(np.concatenate([*confident_errors(diagnostics), *most_doubtful(diagnostics)]))


def _first(diagnostics: Diagnostics, ranked: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the first of ranked rows, for each label of two, or for all labels together."""
    if diagnostics.logits is None:
        return [ranked[: 2 * SHOWN_OF_CLASS]]
    return [ranked[diagnostics.table.labels[ranked] == label][:SHOWN_OF_CLASS] for label in (0, 1)]


def error_galleries(
    diagnostics: Diagnostics, names: Sequence[str], thumbnails: Mapping[str, bytes]
) -> tuple[Gallery, ...]:
    """Return the most confident errors."""
    rows = confident_errors(diagnostics)
    titles = [f"Label {label}, predicted as {other}" for label, other in (names, names[::-1])] if rows[1:] else []
    caption = "Ahead: how far, in logits, the nested prediction is beyond the threshold."
    if diagnostics.logits is None:
        caption = "Ahead: by how much the nested logit of the prediction, with its offset, exceeds that of the label."
    p = diagnostics.given_probability
    return _galleries(titles or ["All classes"], caption, rows, diagnostics, p, names, thumbnails)


def doubtful_galleries(
    diagnostics: Diagnostics, names: Sequence[str], thumbnails: Mapping[str, bytes]
) -> tuple[Gallery, ...]:
    """Return the most doubtful labels."""
    rows, p = most_doubtful(diagnostics), diagnostics.given_probability.copy()
    if diagnostics.doubtful is not None:
        p[diagnostics.doubtful.rows] = diagnostics.doubtful.probability
    titles = [f"Label {name}" for name in names] if rows[1:] else ["All classes"]
    caption = "The least probable labels first; P(label) is calibrated, as by thera clean."
    return _galleries(titles[: len(rows)], caption, rows, diagnostics, p, names, thumbnails)


def _galleries(
    titles: Sequence[str],
    caption: str,
    rows: Sequence[NDArray[np.int64]],
    diagnostics: Diagnostics,
    p: NDArray[np.float64],
    names: Sequence[str],
    thumbnails: Mapping[str, bytes],
) -> tuple[Gallery, ...]:
    return tuple(
        Gallery(title, caption, _rows_of(diagnostics, of_title, p, names, thumbnails))
        for title, of_title in zip(titles, rows, strict=True)
        if of_title.size
    )


def doubtful_note(diagnostics: Diagnostics, names: Sequence[str]) -> str:
    """Return how many labels are doubtful, and what that means."""
    if diagnostics.doubtful is None:
        return "A class has too few images for confident learning to look for doubtful labels."
    labels = diagnostics.table.labels[diagnostics.doubtful.rows]
    counts = np.bincount(labels, minlength=len(names)).tolist()
    by_class = ", ".join(f"{n} of {name}" for name, n in zip(names, counts, strict=True) if n)
    return (
        f"Confident learning takes {labels.size} of {diagnostics.table.labels.size} labels for wrong"
        + (f" ({by_class})" if by_class else "")
        + ". Each is to be looked at: a difficult image with a correct label looks the same. thera clean lists all of "
        "them and makes a page for their review. The figures of this page are on the labels as given, unless a table "
        "names others."
    )


def _rows_of(
    diagnostics: Diagnostics,
    rows: NDArray[np.int64],
    p: NDArray[np.float64],
    names: Sequence[str],
    thumbnails: Mapping[str, bytes],
) -> tuple[ShownRow, ...]:
    """Return rows in words; `p` (n,) is the probability of the given label of each image."""
    table = diagnostics.table

    def shown(row: int) -> ShownRow:
        name = str(table.ids[row])
        thumbnail = thumbnails.get(name)
        return ShownRow(
            id=printable(name),
            label=names[int(table.labels[row])],
            predicted=names[int(diagnostics.y_pred[row])],
            ahead=f"{diagnostics.contradiction[row]:+.2f}",
            probability=f"{p[row]:.4f}",
            against=f"{diagnostics.against[row]} of {diagnostics.members}",
            uri="" if thumbnail is None else data_uri(thumbnail),
        )

    return tuple(map(shown, rows.tolist()))
