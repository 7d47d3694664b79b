"""A titled table of text cells, as Markdown and as text that fits the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ClassRates, ErrorRates

WIDTH = 80
"""The width of a text in columns where that of the terminal is not known."""

LEAST_WIDTH = 40
"""The least width in columns to which a text is fitted: in less, no table can be read."""

BOLD, GREEN, PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[0m"
"""ANSI codes of the title, of the best row, and of what ends both."""

BEST = " (best)"
"""What follows the name of the best row, with and without colours."""


@dataclass(frozen=True)
class Table:
    """A titled table of text cells with notes below it. Without columns it is a title with notes.

    Attributes
    ----------
    title : str
    columns : tuple of str
    rows : tuple of tuples of str
    notes : tuple of str
    numbers : bool
        Whether all columns but the first hold numbers, which are aligned to the right.
    best : int or None
        Index of the row that is marked as the best one.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    numbers: bool = True
    best: int | None = None

    def with_notes(self, *notes: str) -> Table:
        """Return the table with further notes below the present ones."""
        return replace(self, notes=(*self.notes, *notes))

    def markdown(self) -> str:
        """Return a GitHub-flavoured Markdown section."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(escaped(cell).replace("|", "\\|") for cell in cells) + " |"

        lines = [f"## {escaped(self.title)}"]
        if self.columns:
            rule = ("---", *("---:" if self.numbers else "---" for _ in self.columns[1:]))
            lines += ["", line(self.columns), line(rule), *map(line, self._marked_rows())]
        return "\n".join(lines + [text for note in self.notes for text in ("", escaped(note))]) + "\n"

    def text(self, width: int = WIDTH, colour: bool = False) -> str:
        """Return aligned text of at most `width` columns.

        Columns that do not fit stand in further blocks below, each with the first column repeated. Notes and cells that
        are too long are wrapped. A word that is longer than the width, such as a path, is left whole in a note.

        Parameters
        ----------
        width : int
            In columns, at least `LEAST_WIDTH`.
        colour : bool
            Whether the title is bold and the best row green.

        Examples
        --------
        >>> print(Table("Rates", ("fold", "images"), (("0", "12"), ("1", "9")), ("Few.",), best=1).text(), end="")
        Rates
        fold      images
        0             12
        1 (best)       9
        Few.
        """
        width = max(width, LEAST_WIDTH)
        lines = [f"{BOLD}{line}{PLAIN}" if colour else line for line in _wrapped(self.title, width)]
        if self.columns:
            lines += self._cells(width, colour)
        return "\n".join((*lines, *(line for note in self.notes for line in _wrapped(note, width)))) + "\n"

    def _marked_rows(self) -> Iterator[tuple[str, ...]]:
        for index, row in enumerate(self.rows):
            yield (row[0] + BEST, *row[1:]) if index == self.best else row

    def _cells(self, width: int, colour: bool) -> Iterator[str]:
        """Yield the lines of the columns and rows, block by block."""
        rows = (self.columns, *self._marked_rows())
        widths = _column_widths(rows, width)
        for number, block in enumerate(_blocks(widths, width)):
            if number:
                yield ""
            for index, row in enumerate(rows, -1):
                start, end = (GREEN, PLAIN) if colour and index == self.best else ("", "")
                for line in self._row([row[j] for j in block], [widths[j] for j in block]):
                    yield f"{start}{line}{end}"

    def _row(self, cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
        """Yield the lines of a row: several where a cell is wrapped."""
        columns = [_wrapped(cell, width, whole_words=False) for cell, width in zip(cells, widths, strict=True)]
        pads = [str.ljust, *(str.rjust if self.numbers else str.ljust for _ in cells[1:])]
        for number in range(max(map(len, columns))):
            parts = [column[number] if number < len(column) else "" for column in columns]
            padded = (pad(part, width) for pad, part, width in zip(pads, parts, widths, strict=True))
            yield "  ".join(padded).rstrip()


def _column_widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the width of each column, so that the first one fits beside each of the others."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    first = min(first, max(width - 2 - max(others), width // 2) if others else width)
    return [first, *(min(other, width - 2 - first) for other in others)]


def _blocks(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the indices of the columns of each block: the first column and as many of the others as fit beside it."""
    block, used = [0], widths[0]
    for index, each in enumerate(widths[1:], 1):
        if len(block) > 1 and used + 2 + each > width:
            yield block
            block, used = [0], widths[0]
        block.append(index)
        used += 2 + each
    yield block


def _wrapped(text: str, width: int, whole_words: bool = True) -> list[str]:
    """Return the lines of a text of at most `width` columns; only a longer word exceeds them, if it is left whole."""
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=not whole_words, break_on_hyphens=False)


def rate_columns(rates: ErrorRates | ClassRates) -> tuple[str, str, str]:
    """Return the columns of `rate_cells`."""
    return ("FPR", "FNR", "HTER") if isinstance(rates, ErrorRates) else ("class error", "macro F1", "accuracy")


def rate_cells(rates: ErrorRates | ClassRates) -> tuple[str, str, str]:
    """Return FPR, FNR and HTER with four decimals; of more than two classes class error, macro F1 and accuracy."""
    if isinstance(rates, ErrorRates):
        return f"{rates.fpr:.4f}", f"{rates.fnr:.4f}", f"{rates.hter:.4f}"
    return f"{rates.mean_error:.4f}", f"{rates.macro_f1:.4f}", f"{rates.accuracy:.4f}"


def interval_cell(interval: Interval, form: str = ".4f") -> str:
    """Return an interval as `[low, high]`, each end in the given format."""
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def escaped(text: str) -> str:
    """Return a line of Markdown whose HTML tags, links and images are shown as text: they may come from file names.

    >>> escaped("<b> and ![x](http://y)")
    '&lt;b> and ![x]\\\\(http://y)'
    """
    return text.replace("<", "&lt;").replace("](", "]\\(")
