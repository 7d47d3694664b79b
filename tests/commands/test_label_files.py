"""Prediction of images of any names, the two forms of a label file, and where it may be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import listing, write_tiny

from ensemble.cli import main
from ensemble.commands.evaluate import evaluate
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.data.labels import read_label_file
from ensemble.runs.label_files import label_file
from ensemble.runs.run import Run

NAMES = ("down", "up")


def class_folders(folder: Path, n: int, seed: int) -> None:
    """Write n images in down/ and up/, with names that are no numbers."""
    labels = write_tiny(folder, n, seed)
    for row, path in enumerate(sorted((folder / "img").iterdir())):
        target = folder / "classes" / NAMES[labels[row]] / f"photo {path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `run` on class folders, and other images in new/classes."""
    folder = tmp_path_factory.mktemp("any")
    class_folders(folder / "known", 60, 0)
    class_folders(folder / "new", 24, 1)
    member = MemberConfig(arch="lenet", epochs=3, batch_size=8, precision="fp32", convolutions="native", input_size=32)
    data = DataConfig(images=folder / "known" / "classes")
    train_members(folder / "run", [member], data, 2, 0, ComputeConfig(device="cpu"))
    main(["fit-stacker", "--run", str(folder / "run")])
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the folder."""
    shutil.copytree(trained, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def thera(*arguments: str) -> None:
    main([*arguments, "--run", "run", *([] if "--device" in arguments else ["--device", "cpu"])])


def fails(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        thera(*arguments)
    assert stopped.value.code == status
    return capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")


def test_the_names_of_the_classes_go_from_folders_to_labels_csv(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Run(here / "run").read().classes == NAMES
    thera("predict", "new/classes")
    lines = (here / "run" / "labels.csv").read_text().splitlines()
    assert lines[0] == "name,label" and len(lines) == 25
    assert {line.rpartition(",")[2] for line in lines[1:]} <= set(NAMES)
    assert lines[1].startswith("down/photo 001.png,")
    assert (here / "run/predictions/classes-plain/labels.csv").read_text().splitlines() == lines
    predictions = (here / "run/predictions/classes-plain/predictions.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in predictions[1:]] == [line.partition(",")[0] for line in lines[1:]]
    capsys.readouterr()
    main(["evaluate", "run/labels.csv", "--labels", "new/classes"])
    out, err = capsys.readouterr()
    assert "labels.csv against classes: HTER" in out
    assert err == "note: down is label 0, up is label 1\n"


def test_files_a_glob_a_list_and_a_manifest_give_the_same_labels(here: Path) -> None:
    paths = sorted(str(path.relative_to(here)) for path in (here / "new/classes/up").iterdir())
    (here / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    (here / "set.csv").write_text("path\n" + "".join(f"{here / path}\n" for path in paths))
    thera("predict", "new/classes/up", "--out", "folder.csv")
    expected = read_label_file(here / "folder.csv", classes=NAMES)
    assert expected.names == tuple(Path(path).name for path in paths)
    ways = {
        "files": [*paths[1:], "--images", paths[0]],
        "glob": ["--images", "new/classes/up/*.png"],
        "list": ["list.txt"],
        "manifest": ["set.csv"],
    }
    for name, images in ways.items():
        thera("predict", *images, "--out", f"{name}.csv")
        labels = read_label_file(here / f"{name}.csv", classes=NAMES)
        assert labels.names == tuple(str(here / path) if name == "manifest" else path for path in paths)
        assert np.array_equal(labels.y, expected.y), name


def test_numbered_images_have_a_label_file_of_lines_and_a_table_where_it_is_named_csv(here: Path) -> None:
    write_tiny(here / "numbered", 12, seed=2)
    thera("predict", "numbered/img")
    lines = (here / "run" / "label_val.txt").read_text().splitlines()
    assert len(lines) == 12 and set(lines) <= {"0", "1"}
    thera("predict", "numbered/img", "--out", "table.csv")
    table = read_label_file(here / "table.csv", classes=NAMES)
    assert table.y.tolist() == list(map(int, lines)) and table.names == tuple(f"{i:03d}" for i in range(1, 13))


@pytest.mark.parametrize(
    ("out", "status", "message"),
    [
        ("folder", 2, "--out folder: is a folder; give a file: folder/labels.csv"),
        ("link.csv", 2, "--out link.csv: is a link, and the file that it names would stay as it is; give the name of"),
        ("fifo", 2, "--out fifo: is a device and no file; give the name of a new file"),
        ("mine.csv", 2, "--out mine.csv: is there already, and this run did not write it; give the name of a new file"),
        ("lines.txt", 2, "--out lines.txt: would hold a label in each line, but these images are not numbered 1 to n;"),
    ],
)
def test_a_target_that_is_refused_before_anything_is_computed(
    here: Path, out: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    (here / "mine.csv").write_text("name,label\nx,1\n")
    (here / "link.csv").symlink_to(here / "mine.csv")
    os.mkfifo(here / "fifo")
    before = {path: path.lstat().st_mtime_ns for path in here.rglob("*")}
    assert fails(capsys, status, "predict", "new/classes", "--out", out).startswith(message)
    assert {path: path.lstat().st_mtime_ns for path in here.rglob("*")} == before
    assert (here / "mine.csv").read_text() == "name,label\nx,1\n"


def test_what_thera_wrote_is_replaced_and_what_it_did_not_only_by_force(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thera("predict", "new/classes", "--out", "out.csv")
    thera("predict", "new/classes/up", "--out", "out.csv")
    assert "photo 002.png" in (here / "out.csv").read_text()
    (here / "out.csv").write_text("name,label\nmine,1\n")
    assert "--force" in fails(capsys, 2, "predict", "new/classes", "--out", "out.csv")
    thera("predict", "new/classes", "--out", "out.csv", "--force")
    assert "down/photo 001.png" in (here / "out.csv").read_text()


def test_nothing_is_left_of_images_that_do_not_exist(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(here)
    assert fails(capsys, 3, "predict", "none").startswith("none: does not exist")
    assert fails(capsys, 2, "predict", "new/classes", "--device", "gpu").startswith("--device: must be auto")
    assert listing(here) == before


def test_the_files_of_the_run_are_no_place_for_a_label_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thera("predict", "new/classes/up")
    for out in ("run/predictions/up-plain/labels.csv", "run/members/x.csv"):
        assert "is in a folder of the run's own files" in fails(capsys, 2, "predict", "new/classes", "--out", out)


@pytest.mark.parametrize("names", [("1", "2"), ("hat", "none"), ("-1", "1"), ("+", "-")])
def test_labels_csv_is_read_back_whatever_the_names(tmp_path: Path, names: tuple[str, str]) -> None:
    ids = np.array(["-a.png", "=b.png", "'c.png", "d.png"])
    content = label_file("labels.csv", ids, np.array([0, 1, 1, 0], np.int8), names)
    (tmp_path / "p.csv").write_bytes(content)
    for label, folder in enumerate(names):
        (tmp_path / "truth" / folder).mkdir(parents=True)
        for name in ids[[0, 3] if label == 0 else [1, 2]]:
            (tmp_path / "truth" / folder / name).touch()
    result = evaluate(tmp_path / "p.csv", tmp_path / "truth")
    assert result.evaluation.measured.rates.hter == 0


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ("name,label\na.png,up\nb.png,down\n", "name,label\na.png,1\nb.png,0\n", "names the classes, and"),
        ("name,label\na.png,up\n", "name,label\na.png,up\nb.png,down\n", "has no label for 1 of 2 images of"),
        ("name,label\na.png,left\nb.png,up\n", "name,label\na.png,up\nb.png,down\n", "line 2: must be down or up"),
        ("1\n0\n", "name,label\na.png,1\nb.png,0\n", "has names that are not the numbers 1 to n"),
        ("1\n", "name,label\n1.png,1\n2.png,0\n", "1 lines for the 2 labels of"),
    ],
)
def test_label_files_that_do_not_fit_are_refused(
    tmp_path: Path, predicted: str, true: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text(predicted)
    (tmp_path / "t.csv").write_text(true)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(tmp_path / "p.csv"), "--labels", str(tmp_path / "t.csv")])
    assert stopped.value.code == 3
    assert message in capsys.readouterr().err


def test_tables_are_joined_by_name_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("name,label\nb.png,down\na.png,down\nc.png,up\n")
    (tmp_path / "q.csv").write_text("name,label\na.png,down\nb.png,down\nc.png,down\n")
    (tmp_path / "t.csv").write_text("id,target\nc,up\nb,down\na,up\n")
    for positive, counts in (("up", ["0", "1"]), ("down", ["1", "0"])):
        capsys.readouterr()
        main(["evaluate", str(tmp_path / "p.csv"), "--labels", str(tmp_path / "t.csv"), "--positive", positive])
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [row[1] for row in rows if row and row[0] in ("FPR", "FNR")] == counts
    main(["compare", str(tmp_path / "p.csv"), str(tmp_path / "q.csv"), "--labels", str(tmp_path / "t.csv")])
    assert "p.csv (A) and q.csv (B) on the same 3 images" in capsys.readouterr().out
