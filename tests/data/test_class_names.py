"""Labels of three and more classes, from every source of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from samples import encode, fill, pack, text

from ensemble.config import DataConfig
from ensemble.data.arrays import dataset_from_arrays, source_from_paths
from ensemble.data.classes import MAX_CLASSES, class_note
from ensemble.data.dataset import Source
from ensemble.data.labels import MISSING, Labels, read_label_file, read_labels, read_values
from ensemble.data.source import open_labelled, open_source, open_unlabelled
from ensemble.data.store import load_dataset
from ensemble.errors import ConfigError, DataError, TheraError
from ensemble.predict_config import PredictConfig
from ensemble.runs.label_files import label_file

WORDS = ("Worn", "incorrect", "none", *(f"class {letter}" for letter in "QPONMLKJIHGFEDC"))
"""Names whose order is not that of the alphabet."""

CLASSES = {
    "words": lambda count: WORDS[:count],
    "numbers from 0": lambda count: tuple(map(str, range(count))),
    "numbers from 1": lambda count: tuple(map(str, range(1, count + 1))),
    "numbers around 0": lambda count: tuple(map(str, range(-1, count - 1))),
}

Make = Callable[[Path, Sequence[str]], tuple[Path, Path | None]]


# --- sources ----------------------------------------------------------------------------------------------------------


def lines(at: Path, labels: Sequence[str]) -> tuple[Path, Path | None]:
    images = fill(at / "x", *(f"{row}.jpg" for row in range(1, len(labels) + 1)))
    return images, text(at / "l.txt", "".join(f"{label}\n" for label in labels))


def table(at: Path, labels: Sequence[str]) -> tuple[Path, Path | None]:
    images = fill(at / "x", *(f"a{row:03d}.jpg" for row in range(len(labels))))
    rows = [f"a{row:03d};{label}\n" for row, label in enumerate(labels)]
    return images, text(at / "l.csv", "name;label\n" + "".join(reversed(rows)))


def manifest(at: Path, labels: Sequence[str]) -> tuple[Path, Path | None]:
    fill(at, *(f"a{row:03d}.jpg" for row in range(len(labels))))
    rows = "".join(f"a{row:03d}.jpg,40,{label}\n" for row, label in enumerate(labels))
    return text(at / "m.csv", f"path,age,mask\n{rows}"), None


def parquet_manifest(at: Path, labels: Sequence[str]) -> tuple[Path, Path | None]:
    names = [f"a{row:03d}.jpg" for row in range(len(labels))]
    fill(at, *names)
    as_integers = all(label.lstrip("-").isdecimal() for label in labels)
    column = list(map(int, labels)) if as_integers else list(labels)
    parquet.write_table(pa.table({"path": names, "mask": column}), at / "m.parquet")
    return at / "m.parquet", None


def folders(at: Path, labels: Sequence[str]) -> tuple[Path, Path | None]:
    return fill(at / "x", *(f"{label}/{row:03d}.jpg" for row, label in enumerate(labels))), None


def zipped_folders(at: Path, labels: Sequence[str]) -> tuple[Path, Path | None]:
    return pack(at / "x.zip", *(f"set/{label}/{row:03d}.jpg" for row, label in enumerate(labels))), None


def zipped_lines(at: Path, labels: Sequence[str]) -> tuple[Path, Path | None]:
    content = "".join(f"{label}\n" for label in labels).encode()
    return pack(at / "x.zip", *(f"{row}.jpg" for row in range(1, len(labels) + 1)), labels__txt=content), None


SOURCES: dict[str, Make] = {
    "lines": lines,
    "table": table,
    "manifest": manifest,
    "parquet": parquet_manifest,
    "folders": folders,
    "zipped folders": zipped_folders,
    "zipped lines": zipped_lines,
}


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def opened(at: Path, make: Make, labels: Sequence[str], n_classes: int | None) -> Source:
    images, label_path = make(at, labels)
    column = "mask" if make in (manifest, parquet_manifest) else None
    config = DataConfig(images=images, labels=label_path, classes=n_classes, label_column=column)
    return open_labelled(config)


@pytest.mark.parametrize("count", [3, 18])
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_every_source_has_as_many_classes_as_are_given(tmp_path: Path, make: Make, kind: str, count: int) -> None:
    names = CLASSES[kind](count)
    given = [names[i] for i in np.random.default_rng(count).permutation(np.arange(3 * count) % count)]
    source = opened(tmp_path, make, given, count)
    ordered = sorted(names, key=str.lower) if kind == "words" else sorted(names, key=int)
    assert source.classes == tuple(ordered)
    assert source.labels is not None and source.labels.dtype == np.int8
    expected = [source.classes.index(name) for name in given]
    if make in (folders, zipped_folders):
        rows = [int(name.rpartition("/")[2].removesuffix(".jpg")) for name in source.ids.tolist()]
        expected = [expected[row] for row in rows]
    assert source.labels.tolist() == expected
    noted = [note for note in source.notes if "label 0 is" in note]
    assert noted == ([] if kind == "numbers from 0" else [class_note(source.classes)])


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_two_classes_are_as_without_the_option(tmp_path: Path, make: Make) -> None:
    for negative, positive in (("0", "1"), ("no", "yes")):
        at, labels = new(tmp_path / positive), [negative, positive, positive]
        first, second = opened(at, make, labels, None), opened(at, make, labels, 2)
        assert first.labels is not None and second.labels is not None
        assert first.labels.tolist() == second.labels.tolist() == [0, 1, 1]
        assert (first.classes, first.notes) == (second.classes, second.notes)
        assert first.classes == (None if negative == "0" else ("no", "yes"))


@pytest.mark.parametrize(
    ("make", "labels", "n_classes", "message"),
    [
        (lines, ["b", "a", "c", "b"], None, "l.txt: line 3: is c, a third label beside a, b; give --classes 3"),
        (
            lines,
            ["0", "1", "2", "2"],
            None,
            "l.txt: line 3: must be 0 or 1; got '2'; write a 0 or 1 in each line, or give --classes 3",
        ),
        (lines, ["0", "1", "2"], None, "l.txt: line 3: must be 0 or 1; got '2'; write a 0 or 1 in each line"),
        (
            lines,
            ["0", "-1", "1", "1"],
            None,
            "l.txt: line 2: is -1, and other lines are 0; write each label as 0 or 1, or give --classes 3",
        ),
        (
            lines,
            [*WORDS, "none"],
            None,
            "l.txt: line 1: must be 0 or 1; got 'Worn'; write a 0 or 1 in each line, or give --classes 18",
        ),
        (folders, ["b", "a", "c"], None, "x: holds no images, but the folders a, b, c; name one of them, or give "
         "--classes 3 if each is a class, or make one folder for each of two classes"),
        (zipped_folders, ["b", "a", "c"], None, "x.zip: holds several image folders: set/a, set/b, set/c; name one of "
         "them: x.zip/set/a, or give --classes 3 if each is a class"),
        (lines, ["b", "a", "c", "d"], 3, "l.txt: has 4 classes, a, b, c, d, and --classes is 3; give --classes 4"),
        (
            table,
            ["0", "1", "2", "1"],
            4,
            "l.csv: has 3 classes, 0, 1, 2, and --classes is 4; give --classes 3, or add images of the other classes",
        ),
        (
            manifest,
            ["1", "0", "1"],
            3,
            "m.csv: has 2 classes, 0, 1, and --classes is 3; leave --classes out, or add images of the other classes",
        ),
        (folders, ["a", "b"], 3, "x: has 2 classes, a, b, and --classes is 3; leave --classes out, or add images of "
         "the other classes"),
        (folders, ["a"], 3, "x: holds no images, but the folders a; name one of them, or make one folder for each "
         "class"),
        (folders, ["train", "val", "test"], 3, "x: the folders test, train, val look like sets of images, not like "
         "classes; name one of them: x/test"),
        (zipped_lines, ["a", "a"], 3, "x.zip/labels.txt: has one class, a, and --classes is 3; add images of the "
         "other classes"),
        (
            lines,
            [*map(str, range(200)), "0"],
            18,
            "l.txt: has 200 classes, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 190 more, and --classes is 18; at most 127 "
            "classes are possible",
        ),
        (lines, ["a", "", "c"], 3, "l.txt: line 2: is blank; write one of the 3 classes in each line"),
        (
            lines,
            ["a", "b", "NaN"],
            3,
            "l.txt: line 3: is NaN, which stands for a missing label; write one of the 3 classes in each line",
        ),
        (
            lines,
            ["1", "1.5", "2"],
            3,
            "l.txt: has the label 1.5, a number that is no integer of at most 18 digits; write integers or names",
        ),
    ],
)  # fmt: skip
def test_classes_that_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Make,
    labels: Sequence[str],
    n_classes: int | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        opened(Path(), make, labels, n_classes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("n_classes", "positive", "message"),
    [
        (3, "a", "--positive: names label 1 of two classes, and --classes is 3; leave it out"),
        (1, None, "--classes: must be 2 to 127; got 1"),
        (128, None, "--classes: must be 2 to 127; got 128"),
        (-3, None, "--classes: must be 2 to 127; got -3"),
    ],
)
def test_a_number_of_classes_that_is_refused(
    tmp_path: Path, n_classes: int, positive: str | None, message: str
) -> None:
    images, label_path = lines(tmp_path, ["a", "b", "c"])
    assert label_path is not None
    for read in (
        lambda: open_source(images, label_path, positive, n_classes=n_classes),
        lambda: read_label_file(label_path, positive, n_classes=n_classes),
    ):
        with pytest.raises(ConfigError) as error:
            read()
        assert str(error.value) == message


def test_folders_without_images_are_no_classes_and_their_files_are_noted(tmp_path: Path) -> None:
    images = fill(tmp_path / "x", "a/1.jpg", "b/deep/1.jpg", "c/1.jpg", "notes/readme.md", "c/c.txt")
    source = open_source(images, n_classes=3)
    assert source.classes == ("a", "b", "c") and source.labels is not None
    assert source.labels.tolist() == [0, 1, 2]
    assert source.notes[-1] == "2 files in it are not read: c/c.txt, notes/readme.md"


def test_spellings_of_integers_are_noted(tmp_path: Path) -> None:
    images, label_path = lines(tmp_path, ["2.0", "0", "01", "1e0", "2"])
    source = open_source(images, label_path, n_classes=3)
    assert source.labels is not None and source.labels.tolist() == [2, 0, 1, 1, 2]
    assert source.classes == ("0", "1", "2")
    assert source.notes == (f"labels in {label_path} are read as 0 to 2: 01 as 1, 1e0 as 1, 2.0 as 2",)


def test_the_note_of_many_classes_is_short() -> None:
    assert class_note(("a", "b\n", "c")) == r"label 0 is a, label 1 is b\n, label 2 is c"
    note = class_note(tuple(f"c{label:02d}" for label in range(18)))
    assert note.startswith("18 classes: label 0 is c00, ") and note.endswith("label 9 is c09, …")


@pytest.mark.parametrize("zipped", [False, True])
def test_images_to_predict_may_be_in_folders_of_any_number(tmp_path: Path, zipped: bool) -> None:
    for names in (["a", "b"], ["a", "b", "c", "d", "e"]):
        images, _ = (zipped_folders if zipped else folders)(new(tmp_path / f"{len(names)}"), names)
        source = open_unlabelled(PredictConfig(images=(images,)), n_classes=3)
        assert source.ids.tolist() == [f"{name}/{row:03d}.jpg" for row, name in enumerate(names)]
        assert (source.labels, source.classes, source.notes) == (None, None, ())


def test_labels_in_a_manifest_of_images_to_predict_are_not_read(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg")
    path = text(tmp_path / "m.csv", "path,label\na.jpg,\nb.jpg,unknown\n")
    assert open_unlabelled(PredictConfig(images=(path,)), n_classes=3).labels is None


def test_a_file_with_two_of_three_labels_is_noted_as_such(tmp_path: Path) -> None:
    same = encode(".png")
    fill(tmp_path / "x", "a/1.png", "b/1.png", "c/1.png")
    for name in "abc":
        (tmp_path / "x" / name / "1.png").write_bytes(same if name != "a" else encode(".png", np.zeros((16, 20, 3))))
    dataset = load_dataset(open_source(tmp_path / "x", n_classes=3), tmp_path / "store")
    assert dataset.classes == ("a", "b", "c")
    assert dataset.notes[-1] == "1 images occur twice, byte for byte, with different labels (b/1.png = c/1.png)"


def test_labels_of_arrays_are_indices_of_the_classes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    dataset = dataset_from_arrays(pixels, [2, 0, 1, 2], classes=("a", "b", "c"))
    assert dataset.labels is not None and dataset.labels.tolist() == [2, 0, 1, 2]
    assert dataset.classes == ("a", "b", "c")
    assert dataset.fingerprint == dataset_from_arrays(pixels, [2, 0, 1, 2], classes=("x", "y", "z")).fingerprint
    assert dataset.fingerprint != dataset_from_arrays(pixels, [2, 1, 1, 2], classes=("a", "b", "c")).fingerprint
    with pytest.raises(DataError, match="labels: must be 0 to 2; got 3"):
        dataset_from_arrays(pixels, [2, 0, 3, 2], classes=("a", "b", "c"))
    with pytest.raises(DataError, match="labels: must be 0 or 1; got 2"):
        dataset_from_arrays(pixels, [2, 0, 1, 2])
    fill(tmp_path, "a.jpg", "b.jpg")
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    assert source_from_paths(paths, [1, 2], classes=("a", "b", "c")).classes == ("a", "b", "c")


# --- values -----------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=6)


def is_name(value: str) -> bool:
    """Return whether a text is a class of its own: not blank, quoted or missing, and not a number."""
    return value.strip() == value and value[0] not in "\"'" and value.lower() not in MISSING and not value[-1].isdigit()


@given(
    names=st.lists(NAMES.filter(is_name), min_size=3, max_size=20, unique=True),
    extra=st.lists(st.integers(0, 10**6), max_size=40),
    quoted=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_names_are_in_the_order_of_the_alphabet(names: list[str], extra: list[int], quoted: bool) -> None:
    given_names = names + [names[i % len(names)] for i in extra]
    values = [f' "{name}"' if quoted else name for name in given_names]
    read = read_values(values, range(1, len(values) + 1), "l", n_classes=len(names))
    assert read.classes == tuple(sorted(names, key=lambda name: (name.casefold(), name)))
    assert [read.classes[label] for label in read.y.tolist()] == given_names
    for wrong in (len(names) - 1, len(names) + 1):
        if wrong > 2:
            with pytest.raises(DataError, match=f"has {len(names)} classes, .* and --classes is {wrong}"):
                read_values(values, range(1, len(values) + 1), "l", n_classes=wrong)


SPELLINGS: tuple[Callable[[int], str], ...] = (
    str, "{:+d}".format, "{}.0".format, "{:.18e}".format, "'{}'".format, " {} ".format, "{:04d}".format,
)  # fmt: skip


@given(
    integers=st.lists(st.integers(-(10**9), 10**9), min_size=3, max_size=MAX_CLASSES, unique=True),
    from_zero=st.booleans(),
    spellings=st.lists(st.sampled_from(SPELLINGS), min_size=1, max_size=9),
)
@settings(deadline=None, max_examples=200)
def test_integers_are_in_the_order_of_the_numbers(
    integers: list[int], from_zero: bool, spellings: list[Callable[[int], str]]
) -> None:
    if from_zero:
        integers = np.argsort(integers).tolist()  # a permutation of 0 to C - 1
    given_integers = integers * 3
    values = [spellings[i % len(spellings)](integer) for i, integer in enumerate(given_integers)]
    read = read_values(values, range(1, len(values) + 1), "l", n_classes=len(integers))
    assert read.classes == tuple(map(str, sorted(integers)))
    assert [int(read.classes[label]) for label in read.y.tolist()] == given_integers
    if from_zero:
        assert read.y.tolist() == given_integers
        plain = {value.strip().strip("'") for value in values} == set(read.classes)
        assert len(read.notes) == (0 if plain else 1)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=30), st.integers(3, MAX_CLASSES))
@settings(deadline=None, max_examples=300)
def test_any_texts_are_either_read_or_refused_in_one_line(values: list[str], n_classes: int) -> None:
    try:
        read = read_values(values, range(1, len(values) + 1), "l", n_classes=n_classes)
    except TheraError as error:
        assert "\n" not in str(error)
    else:
        assert read.classes is not None and len(read.classes) == n_classes == len(set(read.y.tolist()))


# --- known classes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 18])
@pytest.mark.parametrize("kind", CLASSES)
def test_label_files_hold_indices_in_lines_and_names_in_tables(kind: str, count: int) -> None:
    names = CLASSES[kind](count)
    classes = tuple(sorted(names) if kind == "words" else names)
    y_pred = np.array([2, 1, 1, 2], np.int8)  # some classes are absent, among them 0
    numbered = label_file("label_val.txt", np.array(list("1234")), y_pred, classes)
    named = label_file("labels.csv", np.array(["a.png", "=b.png", "-c.png", "d.png"]), y_pred, classes)
    assert numbered == b"2\n1\n1\n2\n"
    assert named.decode().splitlines()[1] == f"a.png,{classes[2]}"
    for content in (numbered, named):
        read = read_labels(content, "l", classes=classes)
        assert (read.y.tolist(), read.classes) == (y_pred.tolist(), classes)
    ambiguous = {"1", "2"} <= set(classes) and kind != "numbers from 0"
    note = f"labels in l are read as indices: {class_note(classes)}"
    assert read_labels(numbered, "l", classes=classes).notes == ((note,) if ambiguous else ())


@pytest.mark.parametrize(
    ("content", "classes", "expected"),
    [
        ("c\na\n", ("a", "b", "c"), [2, 0]),
        ('"c"\n a\n', ("a", "b", "c"), [2, 0]),
        ("0\n2.0\n", ("a", "b", "c"), [0, 2]),
        ("1\n3\n", ("1", "2", "3"), [0, 2]),  # 3 is no index
        ("1\n0\n", ("1", "2", "3"), [1, 0]),  # 0 is no name
        ("name,label\nx,1\ny,2.0\n", ("1", "2", "3"), [0, 1]),
        ("name,label\nx,0\ny,2\n", ("1", "2", "3"), [0, 2]),
        ("name,label\nx,2\ny,1\n", ("a", "b", "c"), [2, 1]),
    ],
)
def test_known_classes_are_read_by_name_or_index(content: str, classes: tuple[str, ...], expected: list[int]) -> None:
    read: Labels = read_labels(content.encode(), "l", classes=classes)
    assert (read.y.tolist(), read.classes) == (expected, classes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nd\n", "l: line 2: must be one of a, b, c, or its index 0 to 2; got 'd'"),
        ("a\n1\n", "l: line 2: must be one of a, b, c, or its index 0 to 2; got '1'"),
        ("0\n3\n", "l: line 1: must be one of a, b, c, or its index 0 to 2; got '0'"),
        ("a\n\nb\n", "l: line 2: must be one of a, b, c, or its index 0 to 2; got ''"),
    ],
)
def test_other_labels_than_the_known_classes_are_refused(content: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_labels(content.encode(), "l", classes=("a", "b", "c"))
    assert str(error.value) == message
