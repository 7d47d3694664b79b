"""report.html: its content against the results, its order, hostile names, and how it behaves in a browser."""

from __future__ import annotations

import base64
import functools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from class_results import CLASSES, class_fitted, class_fitted_rows, class_reported
from class_results import PREDICTED as CLASS_PREDICTED
from results import PREDICTED, fitted, fitted_rows, predicted, reported

from ensemble.decision.diagnostics import diagnose
from ensemble.reports import report_figures
from ensemble.reports.galleries import confident_errors, most_doubtful, shown_rows
from ensemble.reports.html import Figure
from ensemble.reports.report_page import Evidence, confusion_of, place, report_page, targets_page, verdict
from ensemble.reports.svg import LONGEST_NAME, short
from ensemble.results import ReportResult, TargetsResult
from ensemble.runs.run import HistoryEntry, RunFacts

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202e\x1b[31m\"'`"

FACTS = RunFacts(
    seed=7,
    folds=4,
    n=400,
    size=(16, 16),
    resize=None,
    fingerprint="f" * 64,
    images="/home/ann/photos",
    labels=HOSTILE,
    versions={"thera": "0.1.0", "python": "3.11"},
    history=(HistoryEntry(f"train-member {HOSTILE}", "2026-01-01T00:00:00+00:00", 12.3),),
    artifacts={"decision/decision.json": ("a" * 64,)},
)
HISTORIES = {
    "cnn[b]": tuple([{"epoch": e, "loss": 1 / e + 0.01 * f, "hter": 0.3 / e} for e in (1, 2, 3)] for f in range(4)),
    "a|b": ([{"epoch": 1, "loss": 0.5}], [{"epoch": 1, "loss": 0.6}], [], []),
}
SECTIONS = ["verdict", "data", "members", "rates", "training", "errors", "doubtful", "shift", "provenance"]


def evidence(**changes: Any) -> Evidence:
    oof = fitted_rows()
    ids = np.array([f"{HOSTILE} {row}" for row in range(400)])
    diagnostics = diagnose(fitted(), replace(oof, table=replace(oof.table, ids=ids)))
    counts = tuple(np.bincount(oof.labels).tolist())
    return replace(Evidence(FACTS, counts, diagnostics, HISTORIES, without_thumbnails="No images."), **changes)


def result(**changes: Any) -> ReportResult:
    return replace(reported(fitted(), {HOSTILE: PREDICTED}), data_notes=(HOSTILE,), run=Path("r") / HOSTILE, **changes)


class Page(HTMLParser):
    """The tags, section ids, text and figures of a page."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]

    @property
    def pictures(self) -> list[str]:
        return [base64.b64decode(uri.split(",")[1]).decode() for uri in self.of("src") if "svg" in uri[:20]]


@functools.cache
def whole_page() -> bytes:
    """Return the page of `result` and `evidence`."""
    return report_page(result(), evidence())


def read(html: bytes) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def page() -> Page:
    return read(whole_page())


def test_the_sections_are_in_their_order(page: Page) -> None:
    assert [name for name in page.of("id") if name in SECTIONS] == SECTIONS
    titles = re.findall(r"<h3>([^<]*)</h3>\s*<img", whole_page().decode())
    assert titles == [
        "FPR against FNR",
        "Other costs of the two errors",
        "HTER against the threshold",
        "Logits by class",
        "Reliability of the probabilities",
        "Confusion matrix",
        "Loss on training images",
        "Least HTER on held-out images",
    ]


def test_the_verdict_has_the_figures_of_the_results(page: Page) -> None:
    nested = fitted().stacked
    line = verdict(result())
    assert "HTER 0.1500 (95 %: 0.1200 to 0.1800)" in line  # of the label file
    assert f"HTER {nested.nested.hter:.4f} (95 %: {nested.interval.low:.4f} to {nested.interval.high:.4f})" in line
    assert "a coin has 0.5" in line and line.count(".") == line.rstrip(".").count(".") + 1
    assert line in page.text
    assert f"optimism {fitted().optimism:+.4f}" in page.text and f"{fitted().apparent.hter:.4f}" in page.text


def test_a_file_that_was_not_measured_is_not_said_to_be_expected() -> None:
    few = predicted(correction="none", corrections=(), averaging_measured=False)
    line = verdict(reported(fitted(), {"val": few}))
    assert "one fold model has HTER" in line and "expected" not in line


def test_every_figure_has_caption_and_alternative_text(page: Page) -> None:
    assert page.tags.count("figcaption") == page.tags.count("figure") == 8
    assert all(len(text) > 20 for text in page.of("alt")) and len(page.of("alt")) == 8
    captions = re.findall(r"<figcaption>([^<]*)", whole_page().decode())
    assert [caption.split(":")[0] == "Nested" for caption in captions] == [1, 1, 0, 1, 0, 1, 0, 0]
    assert "apparent" in captions[2] and "calibrates it" in captions[4] and "chooses nothing" in captions[7]


def test_the_confusion_matrix_has_the_counts_of_the_nested_predictions(page: Page) -> None:
    shown = evidence().diagnostics
    assert shown is not None
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (shown.table.labels, shown.y_pred), 1)
    assert confusion_of(fitted()) == tuple(map(tuple, counts.tolist()))
    picture = page.pictures[5]
    assert all(f">{count}<" in picture for count in counts.ravel())


def test_errors_and_doubtful_labels_are_the_first_in_their_order(page: Page) -> None:
    shown = evidence().diagnostics
    assert shown is not None and shown.doubtful is not None
    for label, rows in enumerate(confident_errors(shown)):
        wrong = [row for row in range(400) if shown.table.labels[row] == label and shown.y_pred[row] != label]
        assert rows.tolist() == sorted(wrong, key=lambda row: -shown.contradiction[row])[:12]
    for label, rows in enumerate(most_doubtful(shown)):
        ranked = [row for row in shown.doubtful.rows.tolist() if shown.table.labels[row] == label]
        assert rows.tolist() == ranked[:12] and rows.size
    first = confident_errors(shown)[0][0]
    assert f"{shown.contradiction[first]:+.2f}" in page.text
    assert f"{shown.doubtful.probability[0]:.4f}" in page.text
    assert f"takes {shown.doubtful.rows.size} of 400 labels for wrong" in page.text


def test_hostile_names_stay_text(page: Page) -> None:
    assert "script" not in page.tags and "onerror" not in [name for name, _ in page.attributes]
    assert set(page.of("src")) == {uri for uri in page.of("src") if uri.startswith("data:image/svg+xml;base64,")}
    assert "<script>alert(1)</script>" in page.text and "\\u202e\\x1b[31m" in page.text
    assert "\u202e" not in page.text and "\x1b" not in page.text
    assert not any("<script" in picture or "onerror" in picture.split("<text")[0] for picture in page.pictures)


def test_folders_of_the_machine_are_not_shown(page: Page) -> None:
    assert "/home/ann" not in page.text and "photos" in page.text
    assert place("C:\\Users\\ann\\photos") == "photos"


def test_the_same_results_give_the_same_bytes() -> None:
    first, second = whole_page(), report_page(result(), evidence())
    assert first == second and len(first) < 400_000
    assert b"<dc:date>" not in b"".join(picture.encode() for picture in read(first).pictures)


def test_what_does_not_exist_is_left_out() -> None:
    bare = replace(reported(fitted()), decisions=None)
    page = read(report_page(bare, evidence(diagnostics=None, histories={})))
    assert [name for name in page.of("id") if name in SECTIONS] == ["verdict", "data", "members", "provenance"]
    assert "thera fit-stacker" in page.text and not page.pictures
    assert "What the networks look at" not in page.text


def test_the_place_of_the_attribution_is_before_the_shift() -> None:
    figure = Figure("small_cnn", "What it looks at.", "A map.", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = read(report_page(result(), evidence(attribution=(figure,))))
    order = [name for name in page.of("id") if name in (*SECTIONS, "attribution")]
    assert order[order.index("attribution") + 1 :] == ["shift", "provenance"]
    assert "What it looks at." in page.text


def test_images_take_the_place_of_the_table_where_all_can_be_shown() -> None:
    shown = evidence().diagnostics
    assert shown is not None
    webp = cv2.imencode(".webp", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    names = [str(name) for name in shown.table.ids[shown_rows(shown)]]
    page = read(report_page(result(), evidence(thumbnails=dict.fromkeys(names, webp), without_thumbnails="")))
    count = sum(map(len, (*confident_errors(shown), *most_doubtful(shown))))
    assert len([uri for uri in page.of("src") if uri.startswith("data:image/webp")]) == count > 0
    assert "onerror" not in [name for name, _ in page.attributes] and "No images." not in page.text


def test_several_classes() -> None:
    oof = class_fitted_rows()
    facts = replace(FACTS, classes=CLASSES)
    counts = tuple(np.bincount(oof.labels).tolist())
    histories = {"cnn[b]": ([{"epoch": 1, "class-error": 0.5}, {"epoch": 2, "class-error": 0.4}],)}
    of_classes = Evidence(facts, counts, diagnose(class_fitted(), oof), histories)
    page = read(report_page(class_reported(class_fitted(), {"val": CLASS_PREDICTED}), of_classes))
    assert len(page.pictures) == 3 and "script" not in page.tags
    recalls, confusion, training = page.pictures
    assert "recall" in recalls and "&lt;script&gt;" in recalls
    assert f">{class_fitted().nested.confusion[0][0]}<" in confusion
    assert "cnn[b]" in training
    assert "FPR against FNR" not in page.text and "threshold, 95" not in page.text
    assert f"class error {class_fitted().nested.mean_error:.4f}" in page.text


def test_a_matrix_of_18_classes_has_all_counts_and_names() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 999, (18, 18))
    names = [f"mask {c} $x$ 漢" for c in range(18)]
    picture = report_figures.confusion_figure(counts.tolist(), names).picture.decode()
    assert all(f">{count}<" in picture for count in counts.ravel())
    assert all(f">{name}<" in picture for name in names)


def test_a_long_name_keeps_its_ends() -> None:
    name = short("incorrectly worn, " + "x" * 40 + ", female, 60+")
    assert len(name) == LONGEST_NAME
    assert name.startswith("incorrectly") and name.endswith("female, 60+")


def test_a_page_of_targets_links_to_each() -> None:
    of_target = reported(fitted())
    targets = TargetsResult(Path("r/x"), {"mask": of_target, "age": of_target}, None, {})
    page = read(targets_page(targets))
    assert page.of("href") == ["mask/report.html", "age/report.html"]
    assert f"{fitted().nested.hter:.4f}" in page.text


# --- in a browser -----------------------------------------------------------------------------------------------------


LUMINANCE = """
(element) => {
  const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
    const value = part / 255;
    return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  const light = (colour) => { const [r, g, b] = parts(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const style = getComputedStyle(element);
  return [light(style.color), light(getComputedStyle(document.body).backgroundColor)];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_errors_and_without_a_network(open_page: Any, scheme: str) -> None:
    assert len(whole_page()) < 2_000_000
    view = open_page(whole_page(), viewport={"width": 800, "height": 900}, color_scheme=scheme)
    assert view.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert view.evaluate("document.documentElement.scrollWidth") <= 800
    for selector in ("h1", ".lead", "td", "figcaption", ".note", "tr.best td", "summary"):
        ink, paper = view.locator(selector).first.evaluate(LUMINANCE)
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast > 4.5, f"{selector} has a contrast of {contrast:.1f}"


def test_on_paper_figures_stand_in_pairs_and_closed_tables_are_left_out(open_page: Any) -> None:
    view = open_page(whole_page(), viewport={"width": 718, "height": 1000})  # A4 with margins of 1 cm
    view.emulate_media(media="print")
    tops = view.evaluate("[...document.querySelectorAll('#rates figure')].map((each) => each.offsetTop)")
    assert len(set(tops)) == 3 and len(tops) == 6
    assert not view.is_visible("details")


def test_drawn_text_has_no_formulas(page: Page) -> None:
    assert not any("mathdefault" in picture for picture in page.pictures)
