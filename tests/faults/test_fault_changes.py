"""Faults 9 to 11 of the table: changed data is refused with what changed; labels that do not suffice, by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import rewrite_json, write_tiny

from ensemble.cli import main
from ensemble.commands.verify import verify
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.folds import FoldTable, assign_folds, together
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import ArtifactError
from ensemble.runs.member import MemberIdentity
from ensemble.runs.run import Run, RunFacts


def train(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Train the member `a` of the run of `folder`; return the exit status and the error."""
    data = ["--images", str(folder / "data/img"), "--labels", str(folder / "data/labels.txt"), *options]
    capsys.readouterr()
    try:
        main(["train-member", "--arch", "lenet", "--name", "a", "--folds", "2", "--run", str(folder / "run"), *data])
    except SystemExit as stopped:
        return int(stopped.code or 0), capsys.readouterr().err.splitlines()[-1]
    return 0, ""


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder with 12 images and a run on them, in which the only member is finished."""
    write_tiny(tmp_path / "data", 12)
    run = Run(tmp_path / "run")
    dataset = load_dataset(open_source(tmp_path / "data/img", tmp_path / "data/labels.txt"), run.pixels)
    assert dataset.labels is not None
    run.begin(RunFacts(0, 2, 12, (16, 16), None, dataset.fingerprint, "img", "labels.txt"))
    fold_of = assign_folds(dataset.labels, together(dataset.digests), 2, 0).fold_of
    run.write_folds(FoldTable(dataset.ids, dataset.labels, fold_of, None))
    run.record_images(dataset.ids, dataset.digests)
    member = run.member("a")
    config = MemberConfig(arch="lenet", name="a").model_dump(mode="json")
    member.begin(config, MemberIdentity(dataset.fingerprint, 0, "fp32"))
    for fold in range(2):
        rows = np.flatnonzero(fold_of == fold)
        logits = np.ones((len(rows), len(VIEWS))) * dataset.labels[rows, None]
        member.finish_fold(fold, {"w": np.zeros(1, np.float32)}, dataset.ids[rows], logits, VIEWS, epochs=1)
    return tmp_path


def exchange(folder: Path) -> None:
    """Exchange the first two images: their names, sizes and labels stay."""
    first, second = (folder / f"data/img/00{number}.png" for number in (2, 3))
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)


def relabel(folder: Path) -> None:
    labels = (folder / "data/labels.txt").read_text().split()
    labels[:2] = ["1", "0"]
    (folder / "data/labels.txt").write_text("\n".join(labels))


def both(folder: Path) -> None:
    exchange(folder)
    relabel(folder)


def add(folder: Path) -> None:
    shutil.copy(folder / "data/img/001.png", folder / "data/img/013.png")
    with (folder / "data/labels.txt").open("a") as file:
        file.write("1\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (exchange, "2 image files changed (002, 003)"),
        (relabel, "2 labels changed (001, 002)"),
        (both, "2 labels changed (001, 002) and 2 image files changed (002, 003)"),
        (add, "1 images are in one of the two only (013)"),
    ],
)
def test_what_changed_is_named(change: object, message: str, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(begun)  # type: ignore[operator]
    expected = f"error: {begun}/run: was begun with other data: {message}; restore them, or use another --run"
    assert train(begun, capsys) == (4, expected)


@pytest.mark.parametrize("damage", ["gone", "edited", "of an older version"])
def test_the_hashes_of_the_images_are_recorded_again(
    damage: str, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = begun / "run/images.csv", Run(begun / "run")
    before, text = run.read_images(), file.read_bytes()
    if damage == "edited":
        file.write_bytes(text.replace(b"0", b"1"))
    else:
        file.unlink()
    if damage == "of an older version":
        facts = json.loads((begun / "run/run.json").read_text())
        del facts["images_sha256"]
        rewrite_json(begun / "run/run.json", facts)
        assert run.read_images() is None
        exchange(begun)
        assert train(begun, capsys)[1].startswith(f"error: {begun}/run: was begun with other data: image files or gro")
        exchange(begun)
    else:
        with pytest.raises(ArtifactError):
            verify(run.folder)
    train(begun, capsys)
    assert file.read_bytes() == text and np.array_equal(run.read_images(), before)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("1\n" * 12, "both classes must be present; none of 12 labels is 0; add images of this class"),
        ("0\n" + "1\n" * 11, "1 image of class 0 cannot fill 2 folds; add images of this class"),
        ("0\n1\n" * 5, "10 lines for 12 images; 011.png has no label; give one line for each image"),
    ],
)
def test_labels_that_do_not_suffice_are_named_by_their_file(
    labels: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "data", 12)
    (tmp_path / "data/labels.txt").write_text(labels)
    assert train(tmp_path, capsys) == (3, f"error: {tmp_path}/data/labels.txt: {message}")
    assert not (tmp_path / "run").exists()


def test_identical_images_of_a_class_are_counted_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "data", 12)
    for number in (5, 9):  # the three images of label 0 are the same
        shutil.copy(tmp_path / "data/img/001.png", tmp_path / f"data/img/{number:03d}.png")
    assert train(tmp_path, capsys, "--device", "cpu") == (
        3,
        f"error: {tmp_path}/data/labels.txt: 3 images of class 0 in 1 group that stay together cannot fill 2 folds; "
        "add images of this class",
    )
