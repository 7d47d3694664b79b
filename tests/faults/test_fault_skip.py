"""Fault 12 of the table: with `--on-bad skip`, training and prediction go on without the images that cannot be used."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny import listing, write_tiny

from ensemble.cli import main
from ensemble.commands.verify import verify
from ensemble.data import store as module
from ensemble.data.dataset import BadImage, Dataset
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import ArtifactError, DataError, ResourceError
from ensemble.predict_config import PredictConfig

CUT = "is cut short or damaged: this PNG does not reach its end"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def load(folder: Path, store: Path, on_bad: str = "skip") -> Dataset:
    return load_dataset(open_source(folder, on_bad=on_bad), store, threads=2, on_bad=on_bad)


# --- reading ----------------------------------------------------------------------------------------------------------


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pointer(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def make_larger(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((20, 24, 3), np.uint8))


BAD = {
    "cut short": (damage, CUT),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "a folder": (make_folder, "cannot be read: Is a directory"),
    "a pointer": (make_pointer, "is a git-LFS pointer, not the image (run: git lfs pull)"),
    "of another size": (make_larger, "has 24 × 20 pixels, the others 16 × 16 (or give --resize)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_an_error_that_names_the_option_or_is_left_out(kind: str, tmp_path: Path) -> None:
    write_tiny(tmp_path / "all", 12)
    whole = load(tmp_path / "all/img", tmp_path / "store", "error")
    spoil, reason = BAD[kind]
    spoil(tmp_path / "all/img/007.png")
    with pytest.raises(DataError) as error:
        load(tmp_path / "all/img", tmp_path / "store", "error")
    assert "007.png" in str(error.value) and str(error.value).endswith("leave them out with --on-bad skip")
    dataset = load(tmp_path / "all/img", tmp_path / "store")
    assert dataset.bad == (BadImage("007.png", reason),)
    others = [row for row in range(12) if row != 6]
    assert dataset.ids.tolist() == [f"{row + 1:03d}" for row in others]
    assert np.array_equal(dataset.pixels, whole.pixels[others])
    assert np.array_equal(dataset.digests, whole.digests[others])
    assert dataset.notes == (f"1 of 12 images cannot be used and are left out: 007.png {reason}",)


def test_the_pixels_without_bad_images_are_a_whole_memory_map(tmp_path: Path) -> None:
    write_tiny(tmp_path / "all", 150)  # more than two chunks
    whole = load(tmp_path / "all/img", tmp_path / "whole")
    for number in (1, 2, 64, 65, 66, 149, 150):
        damage(tmp_path / f"all/img/{number:03d}.png")
    dataset, rows = load(tmp_path / "all/img", tmp_path / "store"), [int(name) - 1 for name in whole.ids]
    rows = [row for row in rows if row + 1 not in (1, 2, 64, 65, 66, 149, 150)]
    assert np.array_equal(dataset.pixels, whole.pixels[rows])
    (file,) = (tmp_path / "store").glob("*/pixels.npy")
    assert file.stat().st_size == 128 + 143 * 16 * 16 * 3
    assert np.array_equal(np.load(file, mmap_mode="r"), dataset.pixels)  # as a data worker opens it


def test_what_was_found_bad_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "all", 12)
    damage(tmp_path / "all/img/007.png")
    first = load(tmp_path / "all/img", tmp_path / "store")
    before = listing(tmp_path / "store")
    monkeypatch.setattr("ensemble.data.form.decode", lambda *_: pytest.fail("decoded again"))
    again = load(tmp_path / "all/img", tmp_path / "store")
    assert (again.bad, again.fingerprint, again.notes) == (first.bad, first.fingerprint, first.notes)
    with pytest.raises(DataError, match=r"1 of 12 images cannot be used: 007\.png is cut short"):
        load(tmp_path / "all/img", tmp_path / "store", "error")
    assert listing(tmp_path / "store") == before


def test_a_file_that_changes_while_it_is_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "all", 12)
    source = open_source(tmp_path / "all/img")
    changing = module._each

    def each(n: int, work: object, threads: int, what: str) -> object:
        if what == "decode":
            damage(tmp_path / "all/img/007.png")
        return changing(n, work, threads, what)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_each", each)
    with pytest.raises(ResourceError, match=r"007\.png: changed while it was read; give the command again"):
        load_dataset(source, tmp_path / "store", on_bad="skip")
    assert not list((tmp_path / "store").glob("*/*"))


def test_all_images_are_not_left_out(tmp_path: Path) -> None:
    write_tiny(tmp_path / "all", 4)
    for path in (tmp_path / "all/img").iterdir():
        damage(path)
    with pytest.raises(DataError, match=r"4 of 4 images cannot be used: .*; replace them$"):
        load(tmp_path / "all/img", tmp_path / "store")


@pytest.mark.parametrize("kind", ["manifest", "list", "files"])
def test_files_that_are_missing_are_left_out(kind: str, tmp_path: Path) -> None:
    write_tiny(tmp_path / "all", 4)
    paths = [f"img/{i:03d}.png" for i in (1, 2, 9, 4)]
    (tmp_path / "all/set.csv").write_text("path,label\n" + "".join(f"{path},1\n" for path in paths))
    (tmp_path / "all/set.txt").write_text("\n".join(paths))
    several = [tmp_path / "all" / path for path in paths]
    given = {"manifest": tmp_path / "all/set.csv", "list": tmp_path / "all/set.txt", "files": several}[kind]
    with pytest.raises(DataError, match=r"009\.png"):
        open_source(given)
    source = open_source(given, on_bad="skip")
    dataset = load_dataset(source, tmp_path / "store", on_bad="skip")
    (bad,) = dataset.bad
    assert bad.name.endswith("009.png") and bad.reason == "cannot be read: No such file or directory"
    assert len(dataset) == 3 and (dataset.labels is None) == (kind != "manifest")


# --- training and prediction ------------------------------------------------------------------------------------------

PLAN = ("--precision", "fp32", "--convolutions", "native")  # nothing is measured
TRAIN = ("--arch", "lenet", "--folds", "2", "--epochs", "1", "--device", "cpu", "--batch-size", "8", *PLAN)


@pytest.fixture(scope="module", autouse=True)
def _soon_done() -> Iterator[None]:
    """Draw few replicates, and no floor: neither is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.decision.assessment.REPLICATES", 40)
        patch.setattr("ensemble.decision.decision.bound_noise", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 24 images of which the 5th is damaged, with a decision; and 12 new images of which the last is."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny(folder / "train", 24)
    damage(folder / "train/img/005.png")
    write_tiny(folder / "new", 12, seed=1)
    damage(folder / "new/img/012.png")
    train(folder, "--on-bad", "skip")
    main(["fit-stacker", "--run", str(folder / "run"), "--stacker", "mean"])
    return folder


def train(folder: Path, *options: str) -> None:
    data = ("--images", folder / "train/img", "--labels", folder / "train/labels.txt", "--run", folder / "run")
    main(["train-member", *map(str, data), *TRAIN, *options])


@pytest.fixture
def again(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def results(run: Path) -> dict[str, bytes]:
    """Return the bytes of the folds, of the OOF logits, of the weights, and of the list of bad images."""
    kinds = ("oof.csv", "folds.csv", "images.csv", ".safetensors")
    return {name: data for name, data in listing(run).items() if name.endswith(kinds)}


def test_training_lists_what_it_leaves_out_and_goes_on_the_same(again: Path) -> None:
    run = again / "run"
    assert table(run / "bad_images.csv") == [["name", "reason"], ["005.png", CUT]]
    facts, rows = json.loads((run / "run.json").read_text()), table(run / "folds.csv")[1:]
    assert facts["n"] == len(rows) == 23 and "005" not in {row[0] for row in rows}
    assert facts["notes"] == [f"1 of 24 images cannot be used and are left out: 005.png {CUT}"]
    before = results(run)
    train(again, "--on-bad", "skip")
    assert results(run) == before and len(before) == 7
    verify(run)
    (run / "bad_images.csv").write_text("name,reason\n")
    with pytest.raises(ArtifactError):
        verify(run)


def test_another_set_of_bad_images_is_other_data(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(again / "run")
    for name, words in (
        ("005.png", "1 images are in one of the two only (005)"),
        ("006.png", "2 images are in one of the two only (005, 006)"),
    ):
        if name == "006.png":
            damage(again / "train/img/006.png")
        shutil.copy(again / "train/img/004.png", again / "train/img/005.png")
        with pytest.raises(SystemExit) as stopped:
            train(again, "--on-bad", "skip")
        assert stopped.value.code == 4 and words in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        train(again)
    assert stopped.value.code == 3 and "006.png is cut short" in capsys.readouterr().err
    assert results(again / "run") == before


@pytest.mark.parametrize(
    ("options", "rows", "last"),
    [
        ((), None, "needs a line for each image and is not written: give --bad-label 0 or 1, or --out FILE.csv"),
        (("--bad-label", "1"), 12, "bad_images.csv"),
        (("--out", "labels.csv"), 12, "bad_images.csv"),  # a header and 11 labels
    ],
)
def test_prediction_labels_the_rest_and_ends_with_status_3(
    options: tuple[str, ...],
    rows: int | None,
    last: str,
    again: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(again)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "--run", "run", "--images", "new/img", "--on-bad", "skip", *PLAN, *options])
    out, err = capsys.readouterr()
    assert stopped.value.code == 3 and "In short" in out
    line = err.splitlines()[-1]
    place = Path("run/predictions/img-plain")
    assert line.startswith(f"error: new/img: 1 of 12 images cannot be used and are listed in {place}/bad_images.csv")
    assert last in line
    assert table(place / "bad_images.csv") == [["name", "reason"], ["012.png", CUT]]
    assert len(table(place / "labels.csv")) == len(table(place / "predictions.csv")) == 12
    written = Path("labels.csv") if "--out" in options else Path("run/label_val.txt")
    assert written.exists() == (rows is not None)
    if rows is not None:
        assert len(written.read_text().splitlines()) == rows
    if "--bad-label" in options:
        labels = [row[1] for row in table(place / "labels.csv")[1:]]
        assert written.read_text().split() == [*labels, "1"]
    verify(Path("run"))
    without = [word for word in options if word not in ("--bad-label", "1")]
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "--run", "run", "--images", "new/img", *without])
    assert stopped.value.code == 3 and "cannot be used: 012.png is cut short" in capsys.readouterr().err


def test_a_repaired_image_is_labelled_and_the_list_goes(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.commands.predict import predict

    monkeypatch.chdir(again)
    config = PredictConfig(
        images=(Path("new/img"),), on_bad="skip", bad_label=0, precision="fp32", convolutions="native"
    )
    first = predict(Path("run"), config)
    assert isinstance(first.incomplete, DataError) and len(first.ids) == 11
    shutil.copy("new/img/011.png", "new/img/012.png")
    second = predict(Path("run"), config)
    assert second.incomplete is None and len(second.ids) == 12
    assert "bad_images.csv" not in second.facts.files and second.facts.label_file == "label_val.txt"


def test_a_run_skips_in_training_and_in_prediction(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = again / "run.yaml"
    config.write_text(
        f"run: {again / 'second'}\nfolds: 2\n"
        f"data: {{images: {again / 'train/img'}, labels: {again / 'train/labels.txt'}}}\n"
        "members: [{arch: lenet, epochs: 1, batch_size: 8, precision: fp32, convolutions: native}]\n"
        "decision: {stacker: mean}\n"
        f"predict: {{images: {again / 'new/img'}, precision: fp32, convolutions: native}}\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(config), "--on-bad", "skip", "--bad-label", "1", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 3 and "Whole report" in out and "1 of 12 images cannot be used" in err.splitlines()[-1]
    assert (again / "second/label_val.txt").read_text().split()[-1] == "1"
    assert (again / "second/report.json").exists()
