from __future__ import annotations

import cv2
import numpy as np
import pytest

from ensemble.reports import figures
from ensemble.reports.figures import PANELS, training_figure

HISTORY = [{"epoch": n, "loss": 1 / n, "hter": 0.5 / n, "lr": 1e-3 / n, "seconds": 2.0} for n in range(1, 6)]


def decoded(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def test_one_panel_for_each_figure_that_there_is() -> None:
    three = decoded(training_figure("m, fold 0", HISTORY))
    two = decoded(training_figure("m, fold 0", [{**entry, "hter": None} for entry in HISTORY]))
    assert three.shape == (300, 1200, 3) and two.shape == (300, 800, 3)
    for column in range(3):  # each panel is drawn in, with matplotlib's first colour
        panel = three[:, 400 * column : 400 * (column + 1)].astype(int)
        assert np.count_nonzero((np.abs(panel - (180, 119, 31)) < 30).all(axis=2)) > 50


def test_it_shows_the_history_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[tuple[float, ...], ...]] = []
    really = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, *xy, **how: drawn.append(xy) or really(axes, *xy, **how))
    training_figure("m", HISTORY)
    assert drawn == [((1, 2, 3, 4, 5), tuple(entry[key] for entry in HISTORY)) for key, _ in PANELS]


def test_same_history_same_bytes() -> None:
    assert training_figure("m", HISTORY) == training_figure("m", HISTORY)
    assert decoded(training_figure("$x_", HISTORY[:1])).shape[1] == 1200, "a name is no formula"
    assert figures.training_figure("m", [])[:4] == b"\x89PNG"
