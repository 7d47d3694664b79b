"""Faults 1 to 8 and 26 of the table, and the numbered images and class folders of a folder or a zip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from samples import fill, pack, text

from ensemble.data.labels import parse_labels, read_labels
from ensemble.data.source import open_source
from ensemble.errors import ConfigError, DataError, TheraError


@pytest.mark.parametrize(
    "data", [b"1\n0\n1\n", b"\xef\xbb\xbf1\n0\n1\n", b"1\r\n0\r\n1\r\n", b"1\r0\r1\r", b"1\n0\n1", b"1\n0\n1\n\n"]
)
def test_label_files_that_differ_in_form_only(data: bytes) -> None:
    labels = parse_labels(data, "labels.txt")
    assert labels.dtype == np.int8
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("1\n0\n".encode("utf-16"), "UTF-16"),
        (b"\x7fELF\0\0", "not text"),
        (b"", "no labels"),
        (b"1\n\n0\n", "line 2: is blank"),
        (b"1\n0\n\n\n", "line 3: is blank"),
        (b"1\n0 1\n", "line 2: holds more than one column: '0 1'"),
        (b"1\n0,a\n", "line 2: holds more than one column"),
        (b"1\n0\n-1\n", "line 3: is -1, and other lines are 0; write each label as 0 or 1"),
        (b"1.5\n", "line 1: must be 0 or 1; got '1.5'"),
        (b"label\n", "no labels"),
        (b"label\n1\nx\n", "line 3: must be 0 or 1; got 'x'"),
        (b"0\nnan\n", "line 2: must be 0 or 1; got 'nan'"),
        (b"0\n\x1b[2J\xff\n", r"line 2: must be 0 or 1; got '\x1b[2J\udcff'"),
    ],
)
def test_label_files_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse_labels(data, "labels.txt")
    assert message in str(error.value)


def test_numbered_images_are_joined_by_number(tmp_path: Path) -> None:
    images = fill(tmp_path / "x", *(f"{i}.jpg" for i in range(1, 12)), ".DS_Store", "Thumbs.db", "._1.jpg")
    source = open_source(images, text(tmp_path / "l.txt", "".join(f"{i % 2}\n" for i in range(1, 12))))
    assert source.ids.tolist() == [str(i) for i in range(1, 12)]
    assert source.labels is not None and source.labels.tolist() == [i % 2 for i in range(1, 12)]
    assert [source.read(i) for i in (0, 1, 9)] == [b"1.jpg", b"2.jpg", b"10.jpg"]
    assert open_source(images).labels is None


def _folder(*names: str, labels: str | None = None) -> Callable[[Path], tuple[Path, Path | None]]:
    def make(at: Path) -> tuple[Path, Path | None]:
        return fill(at / "x", *names), text(at / "l.txt", labels) if labels is not None else None

    return make


def _zip(*names: str, **extra: bytes) -> Callable[[Path], tuple[Path, Path | None]]:
    return lambda at: (pack(at / "x.zip", *names, **extra), None)


def _linked_class(at: Path) -> tuple[Path, Path | None]:
    fill(at, "x/0/1.jpg", "out/1.jpg")
    (at / "x" / "1").symlink_to(at / "out")
    return at / "x", None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_folder("1.jpg", "2.jpg", labels="1\n0\n1\n"), "3 lines for 2 images; line 3 has no image"),
        (_folder("1.jpg", "2.jpg", labels="1\n"), "1 lines for 2 images; 2.jpg has no label"),
        (_folder("0.jpg", "1.jpg"), "numbering starts at 0 (0.jpg)"),
        (_folder("1.jpg", "2.jpg", "4.jpg"), "image 3 is missing, before 4.jpg"),
        (_folder("1.jpg", "001.jpg"), "001.jpg and 1.jpg have the same number"),
        (_folder("1.jpg", "1.png"), "1.jpg and 1.png have the same number"),
        (_folder("1.jpg", "cat.JPG", labels="1\n0\n"), "1 names are not numbers (cat.JPG); give a CSV file"),
        (
            _folder("1.jpg", "=cmd()\n.jpg", "\udcff.jpg", labels="1\n0\n1\n"),
            r"2 names are not numbers (=cmd()\n.jpg, \udcff.jpg)",
        ),
        (_folder("a.jpg", "b.jpg", labels="name,label\na.jpg,1\n"), "has no label for 1 of 2 images of"),
        (_folder("a.jpg", labels="name,label\na.jpg,1\nc,0\n"), "lists 1 names that are no images of"),
        (_folder("a.jpg", "a.png", labels="name,label\na,1\n"), "a may be a.jpg or a.png; write the name with"),
        (_folder("a.jpg", labels="name,label\na.jpg,1\na.jpg,1\n"), "lists a.jpg twice"),
        (_folder("a.jpg", labels="a.jpg,1\n"), "has no header; add a first line with the names of the columns"),
        (_folder("a.jpg", labels="name,colour\na.jpg,1\n"), "has no column of labels"),
        (_folder("a.jpg", "b.jpg", labels="name,label\na.jpg,x\nb.jpg,x\n"), "has one label only, x"),
        (_folder("train_img/1.jpg", "val_img/1.jpg"), "look like two sets of images, not like two classes"),
        (_folder("trainset/1.jpg", "testset/1.jpg"), "look like two sets of images"),
        (_folder("hat/1.jpg"), "but the folders hat; name one of them"),
        (_zip("train/1.jpg", "val/1.jpg"), "holds several image folders: train, val"),
        (_folder("notes.txt"), "holds no images"),
        (_folder("0/1.jpg", "1/1.jpg", "2/1.jpg"), "but the folders 0, 1, 2"),
        (_folder("0/1.jpg", "1/1.jpg", labels="1\n"), "has labels already"),
        (lambda at: (at / "none", None), "does not exist"),
        (lambda at: (fill(at, "x.tar") / "x.tar", None), "is not an image, a folder, a zip or a manifest"),
        (lambda at: (fill(at / "x", "1.jpg"), at / "none.txt"), "none.txt: cannot be read: No such file"),
        (_linked_class, "x/1: is a link out of its folder"),
        (_zip("a/1.jpg", "b/1.jpg", "c/1.jpg"), "holds several image folders: a, b, c; name one of them:"),
        (_zip("1.jpg", "a.txt", "b.txt"), "several text files: a.txt, b.txt"),
        (_zip("readme.txt"), "holds no images"),
    ],
)
def test_sources_that_are_refused(
    tmp_path: Path, make: Callable[[Path], tuple[Path, Path | None]], message: str
) -> None:
    images, labels = make(tmp_path)
    with pytest.raises(TheraError) as error:
        open_source(images, labels)
    assert isinstance(error.value, DataError | ConfigError)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_zip_is_read_in_place(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", "set/", "set/img/1.jpg", "set/img/2.jpg", "__MACOSX/._1.jpg", labels__txt=b"0\n1\n")
    source = open_source(path)
    assert source.ids.tolist() == ["1", "2"]
    assert source.labels is not None and source.labels.tolist() == [0, 1]
    assert source.read(1) == b"set/img/2.jpg"
    other = open_source(path, text(tmp_path / "l.txt", "1\n1\n"))
    assert other.labels is not None and other.labels.tolist() == [1, 1]


def test_a_folder_of_a_zip_is_chosen_by_its_path(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", "a/train/1.jpg", "a/val/1.jpg", "a/val/2.jpg", label_train__txt=b"0\n")
    assert open_source(path / "a" / "val").read(1) == b"a/val/2.jpg"
    assert open_source(path / "a" / "val").labels is None
    train = open_source(path / "a" / "train", path / "label_train.txt")
    assert train.labels is not None and train.labels.tolist() == [0]
    with pytest.raises(DataError, match="holds no images"):
        open_source(path / "a" / "none")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(path / "a" / "train", path / "none.txt")


@pytest.mark.parametrize("zipped", [False, True])
def test_class_folders(tmp_path: Path, zipped: bool) -> None:
    names = ("set/0/b.jpg", "set/1/a.png", "set/1/b.jpg")
    images = pack(tmp_path / "x.zip", *names) if zipped else fill(tmp_path, *names) / "set"
    source = open_source(images)
    assert source.ids.tolist() == ["0/b.jpg", "1/a.png", "1/b.jpg"]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 1]
    assert source.read(0).endswith(b"0/b.jpg")


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ("1.0\n0.0\n1.0\n", "0.0 as 0, 1.0 as 1"),
        ("1.000000000000000000e+00\n0.000000000000000000e+00\n1.0\n", "as 1"),
        ("1\n-1\n1\n", "-1 as 0, 1 as 1"),
        ('"1"\n"0"\n"1"\n', "are read as 0 and 1"),
        ("1 \n 0\n1\n", "are read as 0 and 1"),
        ("label\n1\n0\n1\n", "line 1 of"),
    ],
)
def test_label_files_that_are_read_with_a_note(tmp_path: Path, data: str, note: str) -> None:
    images = fill(tmp_path / "x", "1.jpg", "2.jpg", "3.jpg")
    source = open_source(images, text(tmp_path / "l.txt", data))
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert len(source.notes) == 1 and note in source.notes[0]


def test_plain_labels_need_no_note(tmp_path: Path) -> None:
    assert open_source(fill(tmp_path / "x", "1.jpg"), text(tmp_path / "l.txt", "1\n")).notes == ()


# --- any names, classes of any names, lists ---------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("positive", "labels"), [(None, [0, 1, 1]), ("nohat", [0, 1, 1]), ("hat", [1, 0, 0])])
def test_class_folders_of_any_two_names(tmp_path: Path, zipped: bool, positive: str | None, labels: list[int]) -> None:
    names = ("set/hat/b.jpg", "set/nohat/a.png", "set/nohat/b.jpg")
    images = pack(tmp_path / "x.zip", *names) if zipped else fill(tmp_path, *names) / "set"
    source = open_source(images, positive=positive)
    assert source.ids.tolist() == ["hat/b.jpg", "nohat/a.png", "nohat/b.jpg"]
    assert source.labels is not None and source.labels.tolist() == labels
    assert source.classes == (("nohat", "hat") if positive == "hat" else ("hat", "nohat"))
    assert source.notes == (f"{source.classes[0]} is label 0, {source.classes[1]} is label 1",)


def test_a_positive_class_that_is_none_is_refused(tmp_path: Path) -> None:
    images = fill(tmp_path / "x", "hat/b.jpg", "nohat/a.png")
    with pytest.raises(ConfigError, match="--positive: no class has the name helmet; they are hat, nohat"):
        open_source(images, positive="helmet")
    numbers = fill(tmp_path / "y", "0/b.jpg", "1/a.png")
    assert open_source(numbers, positive="1").classes is None
    with pytest.raises(ConfigError, match="--positive: the labels are 0 and 1 already"):
        open_source(numbers, positive="0")


@pytest.mark.parametrize(
    "table",
    [
        "name,label\nb.jpg,1\na.png,0\nc.jpg,1\n",
        "id;target\nb;1\na;0\nc;1\n",
        'image_id,age,label\n"b",40,"1.0"\n"a",50,"0.0"\n"c",60,"1.0"\n',
        "path\tlabel\nx/b.jpg\tyes\nx/a.png\tno\nx/c.jpg\tyes\n",
    ],
)
def test_a_table_of_labels_is_joined_by_name(tmp_path: Path, table: str) -> None:
    images = fill(tmp_path / "x", "b.jpg", "a.png", "c.jpg")
    source = open_source(images, text(tmp_path / "l.csv", table))
    assert source.ids.tolist() == ["a.png", "b.jpg", "c.jpg"]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 1]
    assert source.classes == (("no", "yes") if "yes" in table else None)


def test_a_table_of_labels_names_numbered_images_by_number_and_allows_gaps(tmp_path: Path) -> None:
    images = fill(tmp_path / "x", "0001.jpg", "0003.jpg", "0010.jpg")
    source = open_source(images, text(tmp_path / "l.csv", "id,label\n10,1\n3,0\n1,1\n"))
    assert source.ids.tolist() == ["0001", "0003", "0010"]
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]


def test_a_table_with_paths_of_another_folder_is_joined_with_a_note(tmp_path: Path) -> None:
    images = fill(tmp_path / "val", "b.jpg", "a.png")
    source = open_source(images, text(tmp_path / "l.csv", "path,label\ntrain/b.jpg,1\ntrain/a.png,0\n"))
    assert source.labels is not None and source.labels.tolist() == [0, 1]
    assert "names files in other folders, such as train/b.jpg; file names alone are compared" in source.notes[-1]
    plain = open_source(images, text(tmp_path / "m.csv", "path,label\nb.jpg,1\na.png,0\n"))
    assert plain.notes == ()


def test_the_labels_of_a_zip_have_the_requested_positive_class(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", "img/1.jpg", "img/2.jpg", labels__txt=b"hat\nnohat\n")
    for positive, labels in ((None, [0, 1]), ("hat", [1, 0])):
        source = open_source(path, positive=positive)
        assert source.labels is not None and source.labels.tolist() == labels
    with pytest.raises(ConfigError, match="no class has the name cap"):
        open_source(path, positive="cap")


def test_classes_are_in_the_order_of_the_alphabet_in_capitals_or_not(tmp_path: Path) -> None:
    assert open_source(fill(tmp_path / "x", "NoHat/1.jpg", "hat/1.jpg")).classes == ("hat", "NoHat")


def test_classes_of_images_to_predict_are_not_named(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path / "x", "hat/1.jpg", "nohat/1.jpg"), find_labels=False)
    assert source.classes is None and source.notes == ()


def test_images_of_any_names_are_opened_without_labels(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path / "x", "cat.jpg", "10.jpg", "2.jpg", ".hidden.jpg"))
    assert source.ids.tolist() == ["10.jpg", "2.jpg", "cat.jpg"]
    assert source.labels is None and source.read(2) == b"cat.jpg"


def test_files_globs_and_lists_are_opened_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "x/b.jpg", "x/a.png", "x/d/c.jpg", "x/notes.md")
    monkeypatch.chdir(tmp_path)
    assert open_source([Path("x/b.jpg"), Path("x/a.png")]).ids.tolist() == ["x/b.jpg", "x/a.png"]
    assert open_source(Path("x/*")).ids.tolist() == ["x/a.png", "x/b.jpg"]
    assert open_source([Path("x/**/*.jpg")]).ids.tolist() == ["x/b.jpg", "x/d/c.jpg"]
    assert open_source(Path("x/b.jpg")).ids.tolist() == ["x/b.jpg"]
    absolute = tmp_path / "x" / "a.png"
    listing = open_source(text(tmp_path / "x" / "list.txt", f"d/c.jpg\n{absolute}\n"))
    assert listing.ids.tolist() == ["d/c.jpg", str(absolute)]
    assert [listing.read(row) for row in (0, 1)] == [b"x/d/c.jpg", b"x/a.png"]
    manifest = open_source(text(tmp_path / "m.csv", f"path,label\n{absolute},1\nx\\b.jpg,0\n"))
    assert manifest.ids.tolist() == [str(absolute), "x/b.jpg"] and manifest.read(0) == b"x/a.png"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["x/a.png", "x/../x/a.png"], "x/../x/a.png is listed twice"),
        (["x/a.png", "none.png"], "none.png: does not exist"),
        (["x/*.gif"], "names no image files"),
        (["x", "x/a.png"], "x: is not an image, a folder, a zip or a manifest"),
        (["list.txt"], "1 of 2 are missing or not files: none.png"),
    ],
)
def test_lists_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], message: str
) -> None:
    fill(tmp_path, "x/a.png")
    text(tmp_path / "list.txt", "x/a.png\nnone.png\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        open_source([Path(path) for path in paths])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cat\ndog\nbird\n", "line 3: is bird, a third label beside cat, dog"),
        (b"cat\nnan\n", "line 1: must be 0 or 1; got 'cat'"),
        (b"img/1.png 1\nimg/2.png 0\nimg/3.png 1\n", "line 1: holds more than one column"),
    ],
)
def test_names_that_are_no_two_classes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_labels(data, "labels.txt")
    assert message in str(error.value)
