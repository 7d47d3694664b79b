"""The page of `thera explore`: small, offline, quiet, and text stays text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ensemble import ExploreConfig, explore
from ensemble.commands.explore_findings import ordered
from ensemble.data.synthetic import draw_head
from ensemble.explore_results import KINDS, SHOWN_EACH, Count, ExplorePictures, ExploreResult, Finding
from ensemble.reports.explore_figures import explore_figures
from ensemble.reports.explore_page import explore_page
from ensemble.reports.explore_tables import MEANINGS, explore_tables, percent, warnings
from ensemble.reports.screen import on_screen
from ensemble.reports.thumbnails import mosaics, thumbnails

HOSTILE = "<script>alert('\"')</script>\u202egnp.exe"


def made(classes: int, name: str = "class", noise: bool = True) -> ExploreResult:
    """Return a result of 80,000 images with as many pictures as a page can have, of noise, which compresses worst."""
    rng = np.random.default_rng(0)
    names = [f"{name} {c}" for c in range(classes)]

    def images(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 64, 64, 3)).astype(np.uint8)

    rows = {kind: range(100 * index, 100 * index + 200) for index, kind in enumerate(KINDS)}
    findings = [
        Finding(
            f"{name} {row}", kind, f"resembles {name}", "against" if kind == "overlap" else "images", names[0],
            row // 2 if kind in ("conflict", "identical", "near-identical") else None,
            None if kind == "damaged" else row, row + 1 if kind == "overlap" else None,
        )
        for kind in KINDS
        for row in rows[kind]
    ]  # fmt: skip
    shown = {(each.set, each.row) for kind in KINDS for each in findings if each.row in rows[kind][:SHOWN_EACH]}
    shown |= {("images", each.partner) for each in findings if each.partner in rows[each.kind][: SHOWN_EACH + 1]}
    pictures = ExplorePictures(
        {each: images(max(6, min(48, 480 // classes))) for each in names},
        images(classes).astype(float),
        rng.random((64, 64)),
        rng.random((64, 64)) > 0.9,
        30_000,
        {key: images() for key in sorted(shown)},  # type: ignore[misc]
    )
    return ExploreResult(
        where=f"/data/{name}",
        images=80_000,
        size=(64, 64),
        resized=False,
        classes=tuple(Count(each, 80_000 // classes, 1 / classes) for each in names),
        sizes=tuple(Count(f"{k} × 64", 100, 0.01) for k in range(100)),
        formats=(Count("JPEG", 80_000, 1.0),),
        findings=ordered(findings),
        pictures=pictures,
        page=Path("explore.html"),
        table=Path("explore.csv"),
        form_accuracy=1 / classes,
        majority_share=1 / classes,
        against_where=f"/data/{name} new",
        against=20_000,
        notes=(f"note on {name}",),
    )


@pytest.mark.parametrize("classes", [2, 127])
def test_a_page_of_many_images_is_small(classes: int) -> None:
    assert len(explore_page(made(classes))) < 2_000_000


def test_a_hostile_name_stays_text() -> None:
    html = explore_page(made(2, HOSTILE)).decode()
    assert "<script" not in html and "\u202e" not in html
    assert "&lt;script&gt;alert" in html and "\\u202egnp.exe" in html
    svg = b"".join(figure.picture for figure in explore_figures(made(2, HOSTILE)))
    assert b"<script" not in svg and "\u202e".encode() not in svg


def test_the_same_result_gives_the_same_bytes() -> None:
    result = made(3)
    assert explore_page(result) == explore_page(result)


def test_pictures_fit_their_budget_at_the_best_quality() -> None:
    rng = np.random.default_rng(0)
    images = {key: rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for key in range(20)}
    free = thumbnails(images, 10**9)
    assert all(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3) for data in free.values()
    )
    tight = thumbnails(images, 30_000)
    assert sum(map(len, tight.values())) <= 30_000 < sum(map(len, free.values()))
    (mosaic,) = mosaics({"a": np.stack(list(images.values()))}, 10**9).values()
    assert cv2.imdecode(np.frombuffer(mosaic, np.uint8), cv2.IMREAD_COLOR).shape == (2 * 66 - 2, 12 * 66 - 2, 3)


@pytest.mark.parametrize("full", [False, True])
def test_the_tables_fit_a_terminal(full: bool) -> None:
    lines = [line for table in on_screen(made(2), full) for line in table.text(80).splitlines()]
    assert max(map(len, lines)) <= 80
    assert full or len(lines) < 45


def test_every_kind_has_a_meaning_and_a_row() -> None:
    assert list(MEANINGS) == list(KINDS)
    rows = next(table for table in explore_tables(made(2)) if table.title == "Findings").rows
    assert len(rows) == len(KINDS)
    assert {row[0]: row[1:] for row in rows}["images in both sets"] == ("", "1.0 %", "200")


def test_warnings_need_a_difference_beyond_chance() -> None:
    result = replace(made(2), findings=())
    assert not warnings(result)
    assert "52 %" in "".join(warnings(replace(result, form_accuracy=0.52)))
    assert not warnings(replace(result, images=200, form_accuracy=0.52))
    assert percent(0) == "0 %" and percent(0.0999) == "10.0 %"


def test_a_group_is_left_out_only_where_it_is_cut_off() -> None:
    result = made(2)
    kept = [each for each in result.findings if each.kind == "identical"]
    for count, shown in ((SHOWN_EACH, 12), (SHOWN_EACH + 1, 12), (SHOWN_EACH - 1, 12)):
        html = explore_page(replace(result, findings=tuple(kept[:count]))).decode()
        assert html.count("<b>Group ") == shown
        assert ("more are in" in html) == (count > SHOWN_EACH)
    kept = [replace(each, group=row // 5) for row, each in enumerate(kept)]
    html = explore_page(replace(result, findings=tuple(kept))).decode()
    assert html.count("<b>Group ") == 4, "the fifth group has a part beyond the first findings"


def test_chromium_shows_the_page_without_errors_and_requests(open_page: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for row in range(24):
        name = f"{row}" if row else "<b>'\"&"
        path = tmp_path / "img" / ("a<script>", "b")[row % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((64, 64, 3), 9, np.uint8) if row < 3 else draw_head(rng, row % 2 == 0)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    explore(ExploreConfig(images=tmp_path / "img", out=tmp_path / "explore.html"))
    page = open_page((tmp_path / "explore.html").read_bytes(), viewport={"width": 800, "height": 900})
    shown = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert all(shown) and len(shown) >= 7
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    text = page.inner_text("body")
    assert "Class a<script>" in text and "a<script>/<b>'\"&.png" in text
