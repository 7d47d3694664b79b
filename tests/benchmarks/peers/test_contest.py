"""The contests run, on tiny images, and give each contestant a speed and a ratio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contest import after_another, contests, decide
from tiny import write_tiny
from turns import Match

from ensemble.bench.images import BenchImages, open_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchImages]:
    folder: Path = tmp_path_factory.mktemp("contest")
    write_tiny(folder, 256, size=32)
    with open_images(folder / "img", folder / "labels.txt", 256) as opened:
        yield opened


def number(cell: str) -> float:
    return float(cell.split()[0])


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize(("subject", "least"), [("train", 4), ("predict", 2), ("load", 3)])
def test_a_contest_has_a_row_for_each_contestant(images: BenchImages, subject: str, least: int) -> None:
    (table,) = contests([subject], ["resnet10t" if subject == "load" else "test_resnet"], images, 1, "cpu")
    assert len(table.rows) >= least and table.rows[0][1] == "thera" and table.rows[0][3] == ""
    for _, _, speed, ratio in table.rows[1:]:
        expected = number(table.rows[0][2]) / max(number(speed), 1)
        assert number(speed) > 0 and number(ratio) == pytest.approx(expected, rel=0.3, abs=0.05)
    if subject == "load":
        assert all(number(row[3]) > 1 for row in table.rows[1:]), "the store is faster than decoding"


def test_networks_one_after_another_take_the_sum_of_their_seconds_an_image() -> None:
    matches = {
        "a": Match({"thera": np.array([4.0, 6.0]), "peer": np.array([2.0, 1.0])}),
        "b": Match({"thera": np.array([4.0, 3.0]), "peer": np.array([2.0, 1.0])}),
    }
    match = after_another(matches)
    assert match.speeds["thera"] == pytest.approx([2.0, 2.0]) and match.speeds["peer"] == pytest.approx([1.0, 0.5])
    assert match.ratios["peer"] == pytest.approx((3.0, 2.0, 4.0))


def test_the_exact_threshold_is_faster_than_a_grid() -> None:
    match = decide(1, n=2000)
    assert match.ratios["scikit-learn"].median > 1
