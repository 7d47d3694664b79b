"""The pictures: PNG files drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

PANELS = (
    ("loss", "loss on training images"),
    ("hter", "least HTER on held-out images"),
    ("lr", "learning rate"),
)
"""Keys of a fold's history, with the titles of their plots. The HTER never affects training."""

CLASS_ERROR = ("class-error", "class error on held-out images")
"""What takes the place of the HTER among more than two classes. It never affects training either."""


def training_figure(title: str, history: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG of a fold's training: loss, HTER and learning rate by epoch, side by side.

    Parameters
    ----------
    title : str
    history : sequence of mappings
        One mapping per epoch: `epoch`, and those keys of `PANELS` that were recorded, or that of `CLASS_ERROR`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = (*PANELS[:-1], CLASS_ERROR, PANELS[-1])
    shown = [(key, name) for key, name in panels if any(entry.get(key) is not None for entry in history)]
    figure = Figure(figsize=(4 * max(1, len(shown)), 3), dpi=100, layout="constrained")
    figure.suptitle(title, parse_math=False)
    for index, (key, name) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), index)
        points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=3)
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key != "lr":
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
