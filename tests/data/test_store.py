"""Faults 9, 12, 18 to 20, 22, 23 and 38 of the table, and the store that is decoded once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from samples import encode, with_exif
from tiny import listing

from ensemble.data import form
from ensemble.data import store as module
from ensemble.data.dataset import Dataset
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.errors import DataError, ResourceError
from ensemble.runs.locks import locked


def picture(seed: int, height: int = 12, width: int = 12) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def ten(folder: Path) -> Path:
    return write(folder, {f"{i}.png": encode(".png", picture(i)) for i in range(1, 11)})


def load(folder: Path, store: Path, labels: Path | None = None, resize: int | None = None) -> Dataset:
    return load_dataset(open_source(folder, labels), store, resize, threads=2)


def test_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ten(tmp_path / "img")
    data = load(folder, tmp_path / "store")
    assert len(data) == 10 and data.size == (12, 12) and data.notes == ()
    for i in range(10):
        assert np.array_equal(data.pixels[i], picture(i + 1)[:, :, ::-1])
        assert data.digests[i].decode() == hashlib.sha256((folder / f"{i + 1}.png").read_bytes()).hexdigest()
    assert isinstance(data.pixels, np.memmap)
    for array in (data.pixels, data.ids, data.digests):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    monkeypatch.setattr(form, "decode", lambda *_: pytest.fail("decoded again"))
    again = load(folder, tmp_path / "store")
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.pixels, data.pixels)


def test_a_changed_image_or_label_is_noticed(tmp_path: Path) -> None:
    folder, labels = ten(tmp_path / "img"), tmp_path / "l.txt"
    labels.write_text("1\n0\n" * 5)
    before = load(folder, tmp_path / "store", labels)
    labels.write_text("0\n1\n" * 5)
    relabelled = load(folder, tmp_path / "store", labels)
    write(folder, {"4.png": encode(".png", picture(99))})
    changed = load(folder, tmp_path / "store", labels)
    assert len({before.fingerprint, relabelled.fingerprint, changed.fingerprint}) == 3
    assert np.array_equal(changed.pixels[3], picture(99)[:, :, ::-1])


@pytest.mark.parametrize("content", ["[]", "{}", '{"size": 3}', '{"size": null}', "null"])
def test_a_store_whose_json_has_another_form_is_made_again(tmp_path: Path, content: str) -> None:
    folder = ten(tmp_path / "img")
    first = np.array(load(folder, tmp_path / "store").pixels)
    (file,) = (tmp_path / "store").glob("*/store.json")
    file.write_text(content)
    assert np.array_equal(load(folder, tmp_path / "store").pixels, first)
    assert json.loads(file.read_text())["size"] == [12, 12]


@pytest.mark.parametrize("name", ["pixels.npy", "traits.npy", "store.json", "digests.txt"])
@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_a_damaged_store_is_written_anew_with_a_warning(tmp_path: Path, name: str, damage: str) -> None:
    folder = ten(tmp_path / "img")
    first = np.array(load(folder, tmp_path / "store").pixels)
    (file,) = (tmp_path / "store").glob(f"*/{name}")
    before, said = listing(file.parent), list[str]()
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        os.truncate(file, file.stat().st_size // 2)
    else:
        data = np.frombuffer(file.read_bytes(), np.uint8).copy()
        data[-7::-7] ^= 1
        file.write_bytes(data.tobytes())
    again = load_dataset(open_source(folder), tmp_path / "store", threads=2, say=said.append)
    assert np.array_equal(again.pixels, first)
    assert listing(file.parent) == before
    (line,) = said
    assert line.startswith(f"warning: {file}: ") and line.endswith("; the images are decoded again")
    load_dataset(open_source(folder), tmp_path / "store", threads=2, say=said.append)
    assert said == [line]


def test_a_store_of_another_schema_is_written_anew_with_a_warning(tmp_path: Path) -> None:
    folder, said = ten(tmp_path / "img"), list[str]()
    load(folder, tmp_path / "store")
    (file,) = (tmp_path / "store").glob("*/store.json")
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 99'))
    load_dataset(open_source(folder), tmp_path / "store", threads=2, say=said.append)
    assert said == [f"warning: {file}: has schema 99; this thera reads 1; the images are decoded again"]
    assert json.loads(file.read_text())["schema"] == 1


def test_a_store_without_hashes_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ten(tmp_path / "img")
    first = np.array(load(folder, tmp_path / "store").pixels)
    (file,) = (tmp_path / "store").glob("*/store.json")
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({key: stored[key] for key in ("n", "policy", "resize", "schema", "size", "traits")}))
    monkeypatch.setattr(form, "decode", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(load(folder, tmp_path / "store").pixels, first)


def test_a_wait_for_another_process_that_decodes_is_announced(tmp_path: Path) -> None:
    folder, said = ten(tmp_path / "img"), list[str]()
    held, waits = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path / "store"):
            held.set()
            waits.wait(60)

    def say(line: str) -> None:
        said.append(line)
        waits.set()

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert held.wait(60)
        load_dataset(open_source(folder), tmp_path / "store", threads=2, say=say)
        holder.result()
    assert said[0].startswith(f"note: waiting for pid {os.getpid()} on ")
    assert said[0].endswith(f", which works in {tmp_path / 'store'}")


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "store" / "decoding-abc", {"pixels.npy": b"half"})
    load(ten(tmp_path / "img"), tmp_path / "store")
    (made,) = (path for path in (tmp_path / "store").iterdir() if path.is_dir())
    assert {path.name for path in made.iterdir()} == {"pixels.npy", "traits.npy", "store.json", "digests.txt"}
    assert json.loads((made / "store.json").read_text())["size"] == [12, 12]


def test_bad_images_are_listed_in_one_error_and_leave_nothing(tmp_path: Path) -> None:
    folder = ten(tmp_path / "img")
    write(folder, {"2.png": b"", "5.png": (folder / "5.png").read_bytes()[:-1]})
    write(folder, {"1.png": encode(".png", picture(1, 12, 14))})
    with pytest.raises(DataError) as error:
        load(folder, tmp_path / "store")
    for part in (
        "3 of 10 images",
        "1.png has 14 × 12 pixels, the others 12 × 12",
        "2.png is empty",
        "5.png is cut short",
    ):
        assert part in str(error.value)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


def test_many_bad_images_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "img", {f"{i}.jpg": b"" for i in range(1, 201)})
    with pytest.raises(DataError, match=r"200 of 200 images cannot be used: 1\.jpg is empty, .*, and 190 more"):
        load(folder, tmp_path / "store")


def test_resize_brings_every_image_to_one_square(tmp_path: Path) -> None:
    folder = ten(tmp_path / "img")
    write(
        folder,
        {"3.png": encode(".png", picture(3, 24, 12)), "4.png": encode(".png", np.full((40, 40, 3), 9, np.uint8))},
    )
    data = load(folder, tmp_path / "store", resize=12)
    assert data.size == (12, 12)
    assert np.array_equal(data.pixels[0], picture(1)[:, :, ::-1])
    assert (data.pixels[3] == 9).all()
    assert any("1 images that are not square" in note and "(3)" in note for note in data.notes)
    assert load(folder, tmp_path / "store", resize=20).size == (20, 20)


def test_notes(tmp_path: Path) -> None:
    folder, labels = ten(tmp_path / "img"), tmp_path / "l.txt"
    labels.write_text("1\n0\n" * 5)
    write(
        folder,
        {
            "2.png": encode(".png", picture(2)[:, :, 0]),
            "3.png": encode(".png", np.dstack([picture(3), picture(3)[:, :, 0]])),
            "4.png": with_exif(encode(".jpg", picture(4)), 3),
            "5.png": encode(".png", np.full((12, 12, 3), 7, np.uint8)),
            "10.png": (folder / "9.png").read_bytes(),
            "8.png": (folder / "6.png").read_bytes(),
        },
    )
    notes = load(folder, tmp_path / "store", labels).notes
    assert [[*note.split()[:2], note[note.index("(") :]] for note in notes] == [
        ["1", "grey", "(2)"],
        ["1", "images", "(3)"],
        ["1", "images", "(4)"],
        ["1", "constant", "(5)"],
        ["1", "images", "(9 = 10)"],
    ]
    assert load(folder, tmp_path / "store", labels).notes == notes
    assert "both labels" not in "".join(load(folder, tmp_path / "store").notes)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(ResourceError, match="GB are free"):
        load(ten(tmp_path / "img"), tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"):
        load(ten(tmp_path / "img"), tmp_path / "store")


def test_rows_of_a_memory_map_are_those_of_the_array(tmp_path: Path) -> None:
    from ensemble.data.mapped import open_pixels, read_rows

    pixels = np.random.default_rng(0).integers(0, 256, (50, 7, 7, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    rows = np.array([49, 0, 3, 3, -1, 17])
    for array in (open_pixels(tmp_path / "pixels.npy"), open_pixels(tmp_path / "pixels.npy")[10:], pixels):
        assert np.array_equal(read_rows(array, rows[1:4]), array[rows[1:4]])
    read = read_rows(open_pixels(tmp_path / "pixels.npy"), rows)
    assert np.array_equal(read, pixels[rows])
    read[:] = 0  # a copy
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), pixels)
