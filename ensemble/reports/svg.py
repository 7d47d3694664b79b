"""Figures as SVG, drawn with matplotlib: one style, and the same bytes for the same drawing."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from ensemble.errors import printable

STYLE = {
    "svg.hashsalt": "thera",  # without it, ids in the SVG differ between two drawings
    "svg.fonttype": "none",  # text stays text: smaller files, and the reader's fonts have the characters of all names
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify": True,
}
"""Settings of matplotlib for all figures."""

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
"""Without date and version, the file depends on the figures alone."""

LONG_DECIMALS = re.compile(rb"(?<=[\s\"(,ML])-?\d+\.\d{3,}(?=[\s\"),])")
"""Coordinates with more than two decimals. They are rounded to a hundredth of a point, which nobody sees."""

SIZE = (5.2, 3.6)
"""The width and height of a figure in inches."""

LONGEST_NAME = 28
"""The number of characters of a name that fit an axis; the tables have the whole names."""


def picture(draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> bytes:
    """Return the SVG of a figure that `draw` fills, of a size in inches."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    svg = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's fonts draw the text
        figure = Canvas(figsize=size, layout="constrained")
        draw(figure)
        for text in figure.findobj(matplotlib.text.Text):
            text.set_parse_math(False)  # a $ in a name is no formula
        figure.savefig(svg, format="svg", transparent=True, metadata=NO_METADATA)
    start = svg.getvalue().index(b"<svg")
    return re.sub(
        rb"\n\s*", b"\n", LONG_DECIMALS.sub(lambda number: b"%.2f" % float(number[0]), svg.getvalue()[start:])
    )


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name of at most `longest` characters, without its middle: joined classes differ at both ends.

    >>> short("small_cnn", 9), short("photos/hat/0001.jpg", 12)
    ('small_cnn', 'photo…01.jpg')
    """
    text, half = printable(name), longest // 2
    return text if len(text) <= longest else f"{text[: longest - half - 1]}…{text[-half:]}"
