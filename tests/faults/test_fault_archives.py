"""Faults 12 and 25 of the table: no file of a folder or a zip disappears in silence, and no zip takes much memory."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from samples import encode, fill, pack, text

from ensemble.data import files
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import DataError

# --- folders ----------------------------------------------------------------------------------------------------------


def test_images_in_subfolders_of_a_class_are_read(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "0/a.jpg", "0/patient7/b.jpg", "1/patient9/left/c.jpg", "1/.cache/d.jpg", "1/notes")
    source = open_source(folder)
    assert source.ids.tolist() == ["0/a.jpg", "0/patient7/b.jpg", "1/patient9/left/c.jpg"]
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1]
    assert source.read(2) == b"1/patient9/left/c.jpg"
    assert source.notes == ("2 files in it are not read: 1/notes, 1/.cache/ (1 files)",)


def test_what_is_not_read_beside_images_is_counted_and_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "1.jpg", "2.dcm", "more/3.jpg", "more/a/4.jpg", ".DS_Store")
    labels = text(folder / "labels.txt", "1\n")
    source = open_source(folder, labels)
    assert source.ids.tolist() == ["1"]
    assert source.notes == ("4 files in it are not read: 2.dcm, more/ (2 files), .DS_Store",)
    assert "labels.txt" in open_source(folder).notes[0]


def test_a_folder_of_files_that_are_no_images_names_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"holds no images; 2 files in it are not read: 1\.dcm, 2\.dcm; name the folder"
    ):
        open_source(fill(tmp_path / "x", "1.dcm", "2.dcm"))


def test_an_image_of_another_format_is_refused_and_not_left_out(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x")
    (tmp_path / "x").mkdir()
    for i, data in enumerate([encode(".png"), b"II*\0....", b"\0\0\0\x1cftypheic...."], 1):
        (folder / f"{i}.{('png', 'tif', 'heic')[i - 1]}").write_bytes(data)
    with pytest.raises(DataError) as error:
        load_dataset(open_source(folder), tmp_path / "store", threads=1)
    assert "2 of 3 images cannot be used: 2.tif is TIFF; must be JPEG" in str(error.value)
    assert "3.heic is HEIC" in str(error.value)


def test_a_glob_names_the_files_that_are_no_images(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path, "a.jpg", "b.txt", "c/d.txt") / "*")
    assert source.ids.tolist() == [str(tmp_path / "a.jpg")]
    assert source.notes == (f"1 files that the pattern names are not read: {tmp_path / 'b.txt'}",)


def test_a_link_to_a_folder_outside_is_refused_below_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "x/0/a.jpg", "x/1/b.jpg", "out/c.jpg")
    (tmp_path / "x" / "1" / "more").symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match="x/1/more: is a link out of its folder; replace it by what it leads"):
        open_source(tmp_path / "x")


def test_links_out_of_the_folder_are_followed_where_that_is_requested(tmp_path: Path) -> None:
    fill(tmp_path, "store/a", "store/b", "store/more/c.jpg", "img/3.jpg", "class/0/d.jpg")
    (tmp_path / "img" / "1.jpg").symlink_to("../store/a")
    (tmp_path / "img" / "2.jpg").symlink_to("../store/b")
    numbered = open_source(tmp_path / "img", follow_links=True)
    assert [numbered.read(row) for row in range(3)] == [b"store/a", b"store/b", b"img/3.jpg"]
    (tmp_path / "class" / "1").symlink_to("../store/more")
    (tmp_path / "class" / "0" / "linked").symlink_to("../../store/more")
    (tmp_path / "class" / "0" / "loop").symlink_to(".")
    classes = open_source(tmp_path / "class", follow_links=True)
    assert classes.ids.tolist() == ["0/d.jpg", "0/linked/c.jpg", "1/c.jpg"]
    assert classes.notes == ("1 files in it are not read: 0/loop",)
    manifest = text(tmp_path / "img" / "m.csv", "path\n1.jpg\n")
    with pytest.raises(DataError, match=r"1\.jpg is a link out of the manifest's folder; or give --follow-links"):
        open_source(manifest)
    assert open_source(manifest, follow_links=True).read(0) == b"store/a"


# --- zips -------------------------------------------------------------------------------------------------------------


def test_backslashes_separate_folders_in_a_zip(tmp_path: Path) -> None:
    numbered = open_source(pack(tmp_path / "set.zip", "train_img\\1.jpg", "train_img\\2.jpg", "train_img\\"))
    assert numbered.ids.tolist() == ["1", "2"] and numbered.read(1) == b"train_img\\2.jpg" and numbered.notes == ()
    classes = open_source(pack(tmp_path / "classes.zip", "0\\a.jpg", "1\\deep\\b.jpg"))
    assert classes.ids.tolist() == ["0/a.jpg", "1/deep/b.jpg"]
    assert classes.labels is not None and classes.labels.tolist() == [0, 1]
    assert open_source(tmp_path / "classes.zip" / "0").read(0) == b"0\\a.jpg"


def test_text_files_in_a_zip_that_is_predicted_are_no_labels(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", "img/1.jpg", "README.roboflow.txt", "README.dataset.txt", "__MACOSX/._1.jpg")
    source = open_source(path, find_labels=False)
    assert source.labels is None and source.read(0) == b"img/1.jpg"
    (note,) = source.notes
    assert note == "3 files in it are not read: README.dataset.txt, README.roboflow.txt, __MACOSX/._1.jpg"
    with pytest.raises(DataError, match="several text files"):
        open_source(path)


def test_the_images_of_a_folder_in_a_zip_are_chosen_without_its_subfolders(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", "img/1.jpg", "img/small/1.jpg")
    with pytest.raises(DataError, match=r"holds several image folders: img, img/small; name one of them: .*zip/img"):
        open_source(path)
    source = open_source(path / "img")
    assert source.ids.tolist() == ["1"] and source.notes == ("1 files in it are not read: img/small/1.jpg",)


def test_a_plain_image_may_be_packed_to_any_share(tmp_path: Path) -> None:
    plain = encode(".bmp", np.full((1000, 1000, 3), 7, np.uint8))
    assert open_source(pack(tmp_path / "x.zip", **{"1__bmp": plain})).read(0) == plain


def _declaring(path: Path, size: int, content: bytes) -> Path:
    """Pack a file whose directory entry declares another size than it unpacks to."""
    data = bytearray(pack(path, **{"1__jpg": content}).read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, size)
    return text(path, bytes(data))


def test_a_zip_entry_is_read_up_to_the_bytes_that_it_declares(tmp_path: Path) -> None:
    path = _declaring(tmp_path / "x.zip", 1000, bytes(2**26))
    source = open_source(path)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"1\.jpg: is damaged: Bad CRC-32"):
        source.read(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_zip_entry_that_holds_less_than_it_declares_is_refused(tmp_path: Path) -> None:
    source = open_source(_declaring(tmp_path / "x.zip", 1000, bytes(500)))
    with pytest.raises(DataError, match=r"1\.jpg: has 500 bytes; .*x\.zip declares 1000; pack it again"):
        source.read(0)


def test_a_zip_entry_above_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 99)
    source = open_source(pack(tmp_path / "x.zip", **{"1__jpg": bytes(100)}))
    with pytest.raises(DataError, match=r"1\.jpg: has 100 bytes; at most 99 are read; remove or shrink it"):
        source.read(0)


@pytest.mark.parametrize(
    ("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma"), (9, "deflate64"), (77, "method 77")]
)
def test_a_compression_method_that_is_not_read_is_named(tmp_path: Path, method: int, name: str) -> None:
    data = bytearray(pack(tmp_path / "x.zip", "1.jpg").read_bytes())
    struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 10, method)
    source = open_source(text(tmp_path / "x.zip", bytes(data)))
    with pytest.raises(
        DataError, match=f"1.jpg: is compressed with {name}; pack the zip again with the method deflate"
    ):
        source.read(0)
