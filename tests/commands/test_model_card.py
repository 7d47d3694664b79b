"""The model card: its metadata and text, hostile names, and which file it may replace; the files of `thera report`."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from class_results import CLASSES, class_fitted, class_reported
from class_results import PREDICTED as CLASS_PREDICTED
from huggingface_hub import ModelCard
from results import FEW, PREDICTED, fitted, fitted_rows, predicted, reported
from tiny import listing, write_tiny

from ensemble.commands.model_card_file import CARD, MARK, OTHER_CARD, marked, write_card
from ensemble.commands.report import report
from ensemble.commands.training_images import NO_HASHES, NOT_READ, images_of_rows
from ensemble.errors import ArtifactError
from ensemble.reports.model_card import in_markdown, model_card
from ensemble.reports.report_page import Evidence
from ensemble.runs.run import Run, RunFacts

ROOT = Path(__file__).parents[2]
HOSTILE = "a: <script>alert(1)</script>\n---\n# b | [x](http://y) ![z](w) `c` @ann https://e.org www.e.org"

FACTS = RunFacts(
    seed=7,
    folds=4,
    n=400,
    size=(16, 16),
    resize=None,
    fingerprint="f" * 64,
    images=f"/home/ann/{HOSTILE.replace('/', '')}",
    labels="labels.txt",
    versions={"thera": "0.1.0"},
)


def card_of(name: str = "faces", **facts: object) -> str:
    result = replace(reported(fitted(), {name: PREDICTED}), run=Path("runs") / name.replace("/", ""))
    return model_card(replace(result, data_notes=(name,)), Evidence(replace(FACTS, **facts), (100, 300)))


def test_the_metadata_has_the_figures_of_the_results() -> None:
    card = ModelCard(card_of(images="photos"))
    assert card.data.library_name == "thera" and card.data.pipeline_tag == "image-classification"
    nested, expected = card.data.eval_results
    stack = fitted().stacked
    assert nested.metric_type == "hter" and nested.dataset_name == "photos"
    assert nested.metric_value == round(stack.nested.hter, 6)
    assert nested.metric_args["interval_95"] == [round(stack.interval.low, 6), round(stack.interval.high, 6)]
    assert (expected.dataset_name, expected.metric_value, expected.metric_args["interval_95"]) == (
        "faces",
        0.15,
        [0.12, 0.18],
    )
    assert "expected" in expected.dataset_split and "nested" in nested.dataset_split


def test_the_card_has_the_sections_that_a_reader_looks_for() -> None:
    text, nested = card_of(images="photos"), fitted().stacked
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == [
        "# faces",
        "## Intended use",
        "## Data",
        "## How good it is",
        "## Limits",
        "## How to load it",
        "## Where it comes from",
    ]
    row = (
        f"| stack, nested | HTER | {nested.nested.hter:.4f} | {nested.interval.low:.4f} to {nested.interval.high:.4f} |"
    )
    assert row in text.splitlines()
    assert 'thera.TheraClassifier.from_run("faces")' in text and "thera predict --run faces --images" in text
    assert "100 of 0, 300 of 1" in text


def test_hostile_names_stay_text_in_yaml_and_in_markdown() -> None:
    markdown = pytest.importorskip("markdown", reason="python-markdown is not installed")
    text = card_of(HOSTILE)
    _, head, body = text.split("---\n", 2)
    stored = yaml.safe_load(head)
    name = HOSTILE.replace("/", "").replace("\n", "\\n")
    assert stored["model-index"][0]["name"] == name
    assert [
        key for key in stored if key not in ("library_name", "metrics", "model-index", "pipeline_tag", "tags")
    ] == []
    assert "<script" not in body and "](" not in body.replace("\\](", "") and "http://y" not in body
    html = markdown.markdown(body, extensions=["tables"])
    assert not [tag for tag in ("<script", "<a ", "<a>", "<img", "<hr") if tag in html]
    assert html.count("<h1>") == 1 and "/home/ann" not in text
    assert "&#60;script&#62;" in html or "&lt;script&gt;" in html


@pytest.mark.parametrize("text", ["# a", "- a", "+ a", "1. a", "12) a", "= a", "> a"])
def test_the_beginning_of_a_line_starts_no_block(text: str) -> None:
    markdown = pytest.importorskip("markdown", reason="python-markdown is not installed")
    html = markdown.markdown(in_markdown(text))
    assert html.startswith("<p>") and html.count("<") == 2


def test_a_file_that_was_not_measured_has_no_expected_figure() -> None:
    result = reported(fitted(), {"val": predicted(**FEW)})
    text = model_card(result, Evidence(FACTS, (100, 300)))
    assert len(ModelCard(text).data.eval_results) == 1
    assert "of one fold model | HTER" in text and "500 images, expected" not in text


def test_members_and_several_classes() -> None:
    bare = model_card(replace(reported(fitted()), decisions=None), Evidence(FACTS, (100, 300)))
    best = min(fitted().members, key=lambda member: member.nested.hter)
    assert ModelCard(bare).data.eval_results[0].metric_value == round(best.nested.hter, 6)
    result = class_reported(class_fitted(), {"val": CLASS_PREDICTED})
    text = model_card(result, Evidence(replace(FACTS, classes=CLASSES), (240, 140, 20)))
    (evaluation,) = ModelCard(text).data.eval_results
    assert evaluation.metric_type == "class_error"
    assert evaluation.metric_value == round(class_fitted().nested.mean_error, 6)
    assert "worn, a\\|b, &#60;script&#62;" in text and "FPR" not in text


# --- which file it may replace ----------------------------------------------------------------------------------------


def written(run: Path, card: str = "one\n") -> list[str]:
    notes: list[str] = []
    write_card(run, card, notes.append)
    return notes


def test_the_card_replaces_itself_and_says_nothing(tmp_path: Path) -> None:
    assert written(tmp_path) == written(tmp_path, "two\n") == []
    text, _, last = (tmp_path / CARD).read_text().rpartition("\n<!--")
    assert text == "two\n" and hashlib.sha256(b"two\n").hexdigest() in last
    assert list(listing(tmp_path)) == [CARD]


@pytest.mark.parametrize("content", ["mine\n", "one, edited\n", "", f"x\n{MARK}{'0' * 64} -->\n"])
def test_what_somebody_wrote_stays(tmp_path: Path, content: str) -> None:
    text = marked("one\n").decode().replace("one", "one, edited") if "edited" in content else content
    (tmp_path / CARD).write_text(text)
    (note,) = written(tmp_path, "two\n")
    assert note == f"note: {tmp_path}/README.md is not the file that thera wrote; the model card is in " + str(
        tmp_path / OTHER_CARD
    )
    assert (tmp_path / CARD).read_text() == text
    assert (tmp_path / OTHER_CARD).read_bytes() == marked("two\n")


def test_two_files_of_somebody_stay(tmp_path: Path) -> None:
    for name in (CARD, OTHER_CARD):
        (tmp_path / name).write_text("mine\n")
    (note,) = written(tmp_path)
    assert "the model card is not written" in note
    assert set(listing(tmp_path).values()) == {b"mine\n"}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(marked("one\n"))
    (tmp_path / CARD).symlink_to(tmp_path / "elsewhere")
    assert "model-card.md" in written(tmp_path, "two\n")[0]
    assert (tmp_path / "elsewhere").read_bytes() == marked("one\n")


# --- the files of `thera report` --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of a committed run of 10,000 images, without weights and images, that is reported."""
    run = tmp_path_factory.mktemp("record") / "small-cnn-vote"
    shutil.copytree(ROOT / "checkpoints/recipes/small-cnn-vote", run)
    report(run)
    return run


def test_the_report_writes_these_files_and_the_same_bytes_again(record: Path) -> None:
    before = listing(ROOT / "checkpoints/recipes/small-cnn-vote")
    after = listing(record)
    assert set(after) - set(before) == {"report.html", CARD}
    assert {name for name in before if before[name] != after[name]} <= {"report.md", "report.json"}
    report(record)
    assert listing(record) == after
    assert str(record.parent).encode() not in after["report.html"] + after[CARD]
    assert NO_HASHES.encode() in after["report.html"]


def test_a_damaged_history_is_named_and_not_drawn(record: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(record, run)
    (run / "members/small_cnn/fold-0/history.jsonl").write_text("{}\n")
    notes: list[str] = []
    report(run, notes.append)
    assert any("the training of member small_cnn is not drawn" in note for note in notes)
    assert b"Loss on training images" in (record / "report.html").read_bytes()
    assert b"Loss on training images" not in (run / "report.html").read_bytes()


def test_damaged_logits_are_refused_before_anything_is_written(record: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(record, run)
    path = run / "members/small_cnn/fold-0/oof.csv"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    before = listing(run)
    with pytest.raises(ArtifactError, match=r"oof\.csv"):
        report(run)
    assert listing(run) == before


# --- thumbnails -------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_images(tmp_path: Path) -> Run:
    """Return a run of 400 images that are on disk; some are predicted wrongly."""
    write_tiny(tmp_path, 400)
    run = Run(tmp_path / "run")
    run.begin(replace(FACTS, images=str(tmp_path / "img"), labels=str(tmp_path / "labels.txt")))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / "img").iterdir())]
    ids = np.array([f"{row:03d}" for row in range(1, 401)])
    run.record_images(ids, np.array(digests, "S64"))
    return run


def test_images_are_those_of_the_rows_or_none(with_images: Run, tmp_path: Path) -> None:
    ids = np.array([f"{row:03d}" for row in range(1, 401)])
    table, rows = replace(fitted_rows().table, ids=ids), [3, 40, 399]
    shown = images_of_rows(with_images, table, rows, None)
    assert not isinstance(shown, str) and list(shown) == ["004", "041", "400"]
    for name, image in shown.items():
        np.testing.assert_array_equal(image, cv2.imread(str(tmp_path / "img" / f"{name}.png"))[..., ::-1])
    stored = np.arange(400, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    of_store = images_of_rows(with_images, table, rows, stored)
    assert not isinstance(of_store, str) and [int(image.max()) for image in of_store.values()] == [3, 40, 399 - 256]
    cv2.imwrite(str(tmp_path / "img" / "041.png"), np.zeros((16, 16, 3), np.uint8))
    assert images_of_rows(with_images, table, rows, None) == NOT_READ
    shutil.rmtree(tmp_path / "img")
    assert images_of_rows(with_images, table, rows, None) == NOT_READ
