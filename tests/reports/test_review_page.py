"""The review page in a browser: keys, undo, reload, export, import, hostile names, size, and nothing from a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ODD_IDS

from ensemble.clean_results import LabelIssue
from ensemble.commands.label_review import read_review
from ensemble.data.folds import FoldTable
from ensemble.errors import printable
from ensemble.reports.review_page import THUMBNAIL_BYTES, review_page
from ensemble.reports.thumbnails import thumbnails

HOSTILE_CLASSES = ("<b>hat</b>", '=cmd|"x"!A0', "it's, é\u202e")


def issues_of(ids: list[str], classes: tuple[str, ...]) -> list[LabelIssue]:
    c = len(classes)
    return [
        LabelIssue(i + 1, id_, classes[i % c], classes[(i + 1) % c], i / (3 * len(ids))) for i, id_ in enumerate(ids)
    ]


def images_of(n: int, size: int = 64) -> list[np.ndarray]:
    """Return smooth images: noise does not compress as photographs do."""
    y, x = np.mgrid[:size, :size]
    waves = [np.sin(x / (3 + i % 7)) + np.cos(y / (4 + i % 5)) for i in range(n)]
    return [np.repeat((60 * wave + 127).astype(np.uint8)[..., None], 3, axis=2) for wave in waves]


def page_of(ids: list[str], classes: tuple[str, ...] = ("0", "1"), run: str = "run") -> bytes:
    issues = issues_of(ids, classes)
    return review_page(run, "ab" * 32, issues, images_of(len(ids)), classes, len(ids), 4000, "the stack of 2 members")


class Review:
    """A review page in a browser."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def press(self, keys: str) -> None:
        for key in keys.split():
            self.page.keyboard.press(key)

    def text(self, id_: str) -> str:
        return str(self.page.inner_text(f"#{id_}"))

    def message(self, text: str) -> None:
        """Wait for a message; what waits inside the page would be evaluated there, which its policy forbids."""
        self.page.locator("#message", has_text=text).wait_for(timeout=10_000)

    def saved(self, folder: Path) -> Path:
        with self.page.expect_download() as download:
            self.press("s")
        assert download.value.suggested_filename == "review.csv"
        download.value.save_as(folder / "review.csv")
        return folder / "review.csv"


@pytest.fixture
def opened(open_page: Any) -> Any:
    return lambda content: Review(open_page(content))


def table_of(ids: list[str], classes: int) -> FoldTable:
    n = len(ids)
    return FoldTable(np.array(ids), (np.arange(n) % classes).astype(np.int8), (np.arange(n) % 2).astype(np.int8))


def test_keys_decide_move_on_and_undo(opened: Any) -> None:
    page = opened(page_of([f"{i:03d}" for i in range(12)]))
    assert page.text("count") == "0 of 12 reviewed" and page.text("position") == "1 of 12"
    page.press("k f d u")
    assert page.text("count") == "4 of 12 reviewed" and page.text("position") == "5 of 12"
    marks = [each.inner_text() for each in page.page.query_selector_all("#cards .mark")]
    assert marks[:5] == ["keep", "flip to 0", "drop", "unsure", ""]
    page.press("z z")
    assert page.text("count") == "2 of 12 reviewed" and page.text("position") == "3 of 12"
    page.press("ArrowLeft ArrowLeft ArrowLeft")
    assert page.text("position") == "1 of 12" and page.text("decision") == "decided: keep"
    page.press("ArrowRight " * 20)
    assert page.text("position") == "12 of 12"
    page.press("z z z")
    assert page.text("count") == "0 of 12 reviewed" and page.text("message") == "There is nothing to undo."
    page.press("Control+k")
    assert page.text("count") == "0 of 12 reviewed", "the browser's own keys decide nothing"


def test_buttons_and_cards_do_the_same(opened: Any) -> None:
    page = opened(page_of([f"{i:03d}" for i in range(12)]))
    page.page.click("#cards li:nth-child(7) button")
    assert page.text("position") == "7 of 12"
    for act in ("keep", "flip", "drop", "unsure"):
        page.page.click(f"button[data-act={act}]")
    assert page.text("position") == "11 of 12" and page.text("count") == "4 of 12 reviewed"
    page.page.click("button[data-act=undo]")
    assert page.text("count") == "3 of 12 reviewed"
    buttons = page.page.query_selector_all("button")
    assert all(each.inner_text().strip() or each.get_attribute("aria-label") for each in buttons)
    assert all(each.get_attribute("alt") for each in page.page.query_selector_all("img"))


def test_decisions_survive_a_reload_and_belong_to_the_run(opened: Any, tmp_path: Path) -> None:
    ids = [f"{i:03d}" for i in range(12)]
    page = opened(page_of(ids))
    page.press("k f")
    page.page.reload()
    assert page.text("count") == "2 of 12 reviewed" and page.text("position") == "3 of 12"
    (tmp_path / "page.html").write_bytes(page_of(ids, run="another"))
    page.page.reload()
    assert page.text("count") == "0 of 12 reviewed", "another run has other decisions"
    page.page.evaluate("localStorage.setItem('thera-review:another:' + 'ab'.repeat(8), '{\"kept\": 3}')")
    page.page.reload()
    assert page.text("count") == "0 of 12 reviewed", "what is no review is not used"


def test_an_export_is_accepted_and_imported(opened: Any, tmp_path: Path) -> None:
    ids = [f"{i:03d}" for i in range(12)]
    page = opened(page_of(ids))
    page.press("k f d u")
    path = page.saved(tmp_path)
    decisions = read_review(path, table_of(ids, 2), None)
    assert decisions == {0: ("keep", 0), 1: ("flip", 0), 2: ("drop", 0), 3: ("unsure", 1)}
    page.press("z z z z k")
    other = opened(page_of(ids))
    other.page.set_input_files("#file", path)
    other.message("Imported")
    assert other.text("count") == "4 of 12 reviewed" and other.text("message") == "Imported 4 decisions."
    assert other.saved(tmp_path / "again").read_bytes() == path.read_bytes()
    path.write_text('id,given,decision,label\n"000","0","keep","0"\n000,1,keep,1\n999,0,keep,0\n001,1,burn,1\n')
    other.page.set_input_files("#file", path)
    other.message("3 lines do not fit")
    path.write_text("name,label\n")
    other.page.set_input_files("#file", path)
    other.message("no saved review")


@pytest.mark.parametrize("classes", [("0", "1"), HOSTILE_CLASSES])
def test_hostile_names_stay_text_and_round_trip(opened: Any, tmp_path: Path, classes: tuple[str, ...]) -> None:
    content = page_of(ODD_IDS, classes, run="</script><script>alert(1)</script>")
    page = opened(content)
    names = page.page.evaluate("document.querySelectorAll('script').length + document.querySelectorAll('b b').length")
    assert names == 2, "the page's script and its data"
    shown = [each.get_attribute("alt") for each in page.page.query_selector_all("#cards img")]
    assert shown == [f"Image {printable(name)}" for name in ODD_IDS]
    page.press("f " * len(ODD_IDS))
    named = None if classes == ("0", "1") else classes
    decisions = read_review(page.saved(tmp_path), table_of(ODD_IDS, len(classes)), named)
    c = len(classes)
    assert decisions == {row: ("flip", (row + 1) % c) for row in range(len(ODD_IDS))}
    again = opened(content)
    again.page.set_input_files("#file", tmp_path / "review.csv")
    again.message("Imported")
    assert again.text("message") == f"Imported {len(ODD_IDS)} decisions."


def test_another_class_is_chosen_by_number_or_from_the_list(opened: Any, tmp_path: Path) -> None:
    ids, classes = [f"{i:03d}" for i in range(9)], ("low", "mid", "top")
    page = opened(page_of(ids, classes))
    page.press("3 2")  # the second one is mid already
    page.page.select_option("#choice", "0")
    assert page.text("position") == "4 of 9"
    decisions = read_review(page.saved(tmp_path), table_of(ids, 3), classes)
    assert decisions == {0: ("flip", 2), 1: ("keep", 1), 2: ("flip", 0)}


def test_500_labels_are_reviewed_at_once(opened: Any, tmp_path: Path) -> None:
    ids = [f"{i:06d}" for i in range(500)]
    content = page_of(ids)
    assert len(content) < 2_000_000
    page = opened(content)
    assert page.page.evaluate("document.querySelectorAll('#cards img').length") == 500
    page.page.evaluate("for (let i = 0; i < 500; i++) document.querySelector('[data-act=flip]').click()")
    assert page.text("count") == "500 of 500 reviewed"
    assert page.page.evaluate("window.scrollY") == 0, "the image under review stays in sight"
    assert len(read_review(page.saved(tmp_path), table_of(ids, 2), None)) == 500


def test_it_prints_all_images_and_no_buttons(opened: Any) -> None:
    page = opened(page_of([f"{i:03d}" for i in range(60)]))
    page.page.emulate_media(media="print")
    assert not page.page.is_visible("#one") and page.page.is_visible("#cards li:last-child img")
    heights = page.page.evaluate("[cards.scrollHeight, cards.clientHeight]")
    assert heights[0] <= heights[1] + 1, "nothing is hidden behind a scroll bar"


def test_large_and_noisy_images_keep_the_page_small() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (200, 100, 3), dtype=np.uint8) for _ in range(600)]
    files = thumbnails(dict(enumerate(images)), THUMBNAIL_BYTES)
    assert sum(map(len, files.values())) <= THUMBNAIL_BYTES
    import cv2

    assert cv2.imdecode(np.frombuffer(files[0], np.uint8), cv2.IMREAD_COLOR).shape == (96, 48, 3)


def test_the_same_input_gives_the_same_page_and_none_is_no_fault(opened: Any) -> None:
    ids = [f"{i:03d}" for i in range(5)]
    assert page_of(ids) == page_of(ids)
    page = opened(page_of([]))
    assert "No label is likely to be wrong." in page.page.inner_text("main")
