"""Faults 12, 24 and 25 of the table: files that are missing, unsafe or damaged, in folders and in zips."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import fill, pack, text

from ensemble.data.source import open_source
from ensemble.errors import DataError


def _zip(*names: str, **extra: bytes) -> Callable[[Path], Path]:
    return lambda at: pack(at / "x.zip", *names, **extra)


def _encrypted(at: Path) -> Path:
    data = bytearray(pack(at / "x.zip", "1.jpg").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return text(at / "x.zip", bytes(data))


def _lying(at: Path) -> Path:
    data = bytearray(pack(at / "x.zip", "1.jpg").read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 20, 10**6)
    return text(at / "x.zip", bytes(data))


def _zip_link(at: Path) -> Path:
    entry = zipfile.ZipInfo("1.jpg")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(at / "x.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    return at / "x.zip"


def _linked(target: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        fill(at, "out.jpg", "x/1.jpg")
        (at / "x" / "2.jpg").symlink_to(at / target)
        return at / "x"

    return make


def _folder_as_image(at: Path) -> Path:
    (at / "x" / "2.jpg").mkdir(parents=True)
    return fill(at / "x", "1.jpg")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_folder_as_image, "1 images are not files: 2.jpg"),
        (_linked("gone/3.jpg"), "is a link out of its folder"),
        (_linked("x/3.jpg"), "1 images are not files: 2.jpg"),
        (_linked("out.jpg"), "is a link out of its folder"),
        (_zip("1.jpg", "../2.jpg"), "../2.jpg: leads out of the zip"),
        (_zip("1.jpg", "1.jpg"), "files of the same name: 1.jpg"),
        (_zip("a/1.jpg", "a\\1.jpg"), "files of the same name: a/1.jpg"),
        (_zip("1.jpg", "..\\2.jpg"), "../2.jpg: leads out of the zip"),
        (_encrypted, "is encrypted"),
        (_lying, "a zip bomb"),
        (_zip_link, "is a symbolic link"),
        (lambda at: text(at / "x.zip", b"PK no zip"), "is damaged"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    images = make(tmp_path)
    with pytest.raises(DataError) as error:
        open_source(images)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    folder = fill(tmp_path, "1.jpg")
    (folder / "2.jpg").symlink_to("1.jpg")
    assert open_source(folder).read(1) == b"1.jpg"


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path, "1.jpg"))
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.jpg: cannot be read: No such file"):
        source.read(0)


def test_damage_inside_a_zip_is_noticed(tmp_path: Path) -> None:
    data = bytearray(pack(tmp_path / "x.zip", "1.jpg").read_bytes())
    data[35] ^= 1
    with pytest.raises(DataError, match=r"1\.jpg: is damaged"):
        open_source(text(tmp_path / "x.zip", bytes(data))).read(0)
