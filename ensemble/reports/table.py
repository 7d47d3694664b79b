"""A titled table of text cells, and its three forms: Markdown, plain text, and a rich renderable for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True)
class Table:
    """A titled table of text cells with notes below it.

    Attributes
    ----------
    title : str
    columns : tuple of str
    rows : tuple of tuples of str
    notes : tuple of str
    numbers : bool
        Whether all columns but the first hold numbers, which are aligned to the right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    numbers: bool = True

    def with_notes(self, *notes: str) -> Table:
        """Return the table with further notes below the present ones."""
        return replace(self, notes=(*self.notes, *notes))

    def markdown(self) -> str:
        """Return a GitHub-flavoured Markdown section."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(escaped(cell).replace("|", "\\|") for cell in cells) + " |"

        rule = ("---", *("---:" if self.numbers else "---" for _ in self.columns[1:]))
        lines = [f"## {escaped(self.title)}", "", line(self.columns), line(rule), *map(line, self.rows)]
        return "\n".join(lines + [text for note in self.notes for text in ("", escaped(note))]) + "\n"

    def text(self) -> str:
        """Return aligned plain text, for a pipe or a log.

        >>> print(Table("Rates", ("fold", "n"), (("0", "12"), ("1", "9")), ("Few.",)).text(), end="")
        Rates
        fold   n
        0     12
        1      9
        Few.
        """
        cells = (self.columns, *self.rows)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

        def line(row: Sequence[str]) -> str:
            pad = str.rjust if self.numbers else str.ljust
            others = (pad(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True))
            return "  ".join((row[0].ljust(widths[0]), *others)).rstrip()

        return "\n".join((self.title, *map(line, cells), *self.notes)) + "\n"

    def rich(self) -> rich.table.Table:
        """Return the table as a rich renderable."""
        from rich.table import Table as RichTable
        from rich.text import Text

        caption = Text("\n".join(self.notes)) if self.notes else None
        table = RichTable(title=Text(self.title), caption=caption, title_justify="left", caption_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if index and self.numbers else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def rate_cells(rates: ErrorRates) -> tuple[str, str, str]:
    """Return FPR, FNR and HTER with four decimals."""
    return f"{rates.fpr:.4f}", f"{rates.fnr:.4f}", f"{rates.hter:.4f}"


def interval_cell(interval: Interval, form: str = ".4f") -> str:
    """Return an interval as `[low, high]`, each end in the given format."""
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def escaped(text: str) -> str:
    """Return a line of Markdown whose HTML tags, links and images are shown as text: they may come from file names.

    >>> escaped("<b> and ![x](http://y)")
    '&lt;b> and ![x]\\\\(http://y)'
    """
    return text.replace("<", "&lt;").replace("](", "]\\(")
