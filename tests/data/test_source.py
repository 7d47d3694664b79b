"""Faults 1 to 8 and 26 of the table, and the numbered images and class folders of a folder or a zip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from samples import fill, pack, text

from ensemble.data.source import open_source, parse_labels
from ensemble.errors import ConfigError, DataError, TheraError


@pytest.mark.parametrize(
    "data", [b"1\n0\n1\n", b"\xef\xbb\xbf1\n0\n1\n", b"1\r\n0\r\n1\r\n", b"1\n0\n1", b"1\n0\n1\n\n"]
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
        (_folder("1.jpg", "cat.JPG"), "1 image names are not numbers: cat.JPG"),
        (_folder("1.jpg", "=cmd()\n.jpg", "\udcff.jpg"), r"2 image names are not numbers: =cmd()\n.jpg, \udcff.jpg"),
        (_folder("notes.txt"), "holds no images"),
        (_folder("0/1.jpg", "1/1.jpg", "2/1.jpg"), "but the folders 0, 1, 2"),
        (_folder("0/1.jpg", "1/1.jpg", labels="1\n"), "has labels already"),
        (lambda at: (at / "none", None), "does not exist"),
        (lambda at: (fill(at, "x.tar") / "x.tar", None), "is not a folder of images, a zip"),
        (lambda at: (fill(at / "x", "1.jpg"), at / "none.txt"), "none.txt: cannot be read: No such file"),
        (_linked_class, "x/1: is a link out of its folder"),
        (_zip("a/1.jpg", "b/1.jpg"), "holds several image folders: a, b; name one of them:"),
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
