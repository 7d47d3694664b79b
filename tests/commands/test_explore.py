"""`thera explore`: what it finds in folders, what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from tiny import ODD_IDS, write_tiny

from ensemble import DataError, ExploreConfig, explore
from ensemble.cli import main
from ensemble.commands.train import _begin
from ensemble.config import DataConfig
from ensemble.data.folds import FoldTable
from ensemble.data.source import open_labelled
from ensemble.data.store import load_dataset
from ensemble.data.synthetic import draw_head
from ensemble.errors import ArtifactError, ConfigError
from ensemble.explore_results import KINDS, ExploreResult
from ensemble.progress import Say, silent
from ensemble.runs.run import Run

N = 130


def write(path: Path, image: np.ndarray, quality: int = 95) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if path.suffix in (".jpg", ".png", ".bmp") else ".png"
    path.write_bytes(cv2.imencode(suffix, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


@pytest.fixture(scope="module")
def heads() -> np.ndarray:
    rng = np.random.default_rng(4)
    return np.stack([draw_head(rng, row % 4 == 0) for row in range(N)])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, heads: np.ndarray) -> Path:
    """Write numbered images with faults, their labels, and a second set that shares two of them."""
    folder = tmp_path_factory.mktemp("planted")
    images = {row: heads[row] for row in range(N)}
    images[10] = images[1]  # identical, same label
    images[21] = images[2]  # nearly identical, see below
    images[30] = images[4]  # identical, other label
    images[40] = np.full_like(heads[0], 200)
    images[41] = cv2.GaussianBlur(heads[41], (0, 0), 5)
    images[42] = (heads[42] * 0.12).astype(np.uint8)
    for row, image in images.items():
        write(folder / "img" / f"{row + 1}.jpg", image, quality=60 if row == 21 else 95)
    (folder / "img" / "44.jpg").write_bytes(b"no image")
    labels = [0 if row % 4 == 0 else 1 for row in range(N)]
    labels[10], labels[21] = labels[1], labels[2]
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    for row in range(12):
        write(
            folder / "new" / f"{row + 1}.png",
            heads[60 + row] if row < 2 else draw_head(np.random.default_rng(row), True),
        )
    return folder


@pytest.fixture(scope="module")
def result(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> ExploreResult:
    out = tmp_path_factory.mktemp("out") / "page.html"
    return explore(
        ExploreConfig(images=planted / "img", labels=planted / "labels.txt", against=planted / "new", out=out)
    )


def ids(result: ExploreResult, kind: str, set_: str = "images") -> set[str]:
    return {each.id.lstrip("0") for each in result.of_kind(kind) if each.set == set_}


def test_planted_faults_are_found(result: ExploreResult) -> None:
    assert result.images == N - 1 and result.against == 12
    assert ids(result, "damaged") == {"44.jpg"}
    assert ids(result, "identical") == {"2", "11", "5", "31"}
    assert {"3", "22"} <= ids(result, "near-identical")
    assert ids(result, "conflict") == {"5", "31"}
    assert ids(result, "constant") == {"41"}
    assert "42" in ids(result, "blurred")
    assert ids(result, "dark") == {"43"}
    assert {"1", "2"} <= ids(result, "overlap", "against")
    assert [KINDS.index(each.kind) for each in result.findings] == sorted(KINDS.index(e.kind) for e in result.findings)


def test_counts_are_of_the_images_that_can_be_read(result: ExploreResult) -> None:
    assert sum(each.images for each in result.classes) == N - 1
    assert [(each.name, each.images) for each in result.formats] == [("JPEG", N - 1)]
    assert [(each.name, each.images) for each in result.sizes] == [("64 × 64", N - 1)]


def test_the_table_has_a_line_for_each_finding(result: ExploreResult) -> None:
    table = pd.read_csv(result.table, dtype=str, keep_default_na=False)
    assert list(table.columns) == ["id", "finding", "detail", "set", "label", "group"]
    assert table["finding"].tolist() == [each.kind for each in result.findings]
    near = table[(table["id"] == "22") & (table["finding"] == "near-identical")]
    assert near["detail"].str.startswith("resembles 3 (correlation 0.9").all() and len(near) == 1
    assert result.page.stat().st_size < 2_000_000


def test_the_same_images_give_the_same_files(planted: Path, tmp_path: Path) -> None:
    config = ExploreConfig(images=planted / "img", labels=planted / "labels.txt", out=tmp_path / "a.html")
    explore(config)
    first = (tmp_path / "a.html").read_bytes(), (tmp_path / "a.csv").read_bytes()
    explore(config)  # a page of this command is replaced without --force
    assert ((tmp_path / "a.html").read_bytes(), (tmp_path / "a.csv").read_bytes()) == first


def test_without_labels_the_rest_is_shown(planted: Path, tmp_path: Path) -> None:
    result = explore(ExploreConfig(images=planted / "new", out=tmp_path / "a.html"))
    assert result.classes == () and result.pictures.means is None and result.form_accuracy is None
    assert list(result.pictures.samples) == [""]
    assert "without labels" in (tmp_path / "a.html").read_text()


def test_more_than_two_classes(heads: np.ndarray, tmp_path: Path) -> None:
    for row in range(45):
        write(tmp_path / "pets" / ("cat", "dog", "owl")[row % 3] / f"{row}.png", heads[row])
    write(tmp_path / "pets" / "dog" / "copy.png", heads[0])
    result = explore(ExploreConfig(images=tmp_path / "pets", classes=3, out=tmp_path / "a.html"))
    assert [(each.name, each.images) for each in result.classes] == [("cat", 15), ("dog", 16), ("owl", 15)]
    assert {(each.id, each.label) for each in result.of_kind("conflict")} == {
        ("cat/0.png", "cat"),
        ("dog/copy.png", "dog"),
    }
    assert result.pictures.means is not None and result.pictures.means.shape == (3, 64, 64, 3)


def test_sizes_that_differ_are_listed_and_compared_at_one_size(heads: np.ndarray, tmp_path: Path) -> None:
    for row in range(40):
        write(tmp_path / "img" / f"{row:02d}.png", heads[row])
    write(tmp_path / "img" / "small.png", cv2.resize(heads[0], (48, 40)))
    said: list[str] = []
    result = explore(ExploreConfig(images=tmp_path / "img", out=tmp_path / "a.html"), said.append)
    assert result.resized and result.size == (64, 64)
    assert [(each.id, each.detail) for each in result.of_kind("size")] == [
        ("small.png", "48 × 40 pixels; most images have 64 × 64")
    ]
    assert any("compared at 64 × 64" in line for line in said)


def test_a_format_that_tells_the_class_is_a_warning(heads: np.ndarray, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    for row in range(60):
        name = ("a", "b")[row % 2]
        write(tmp_path / "img" / name / f"{row}.{'png' if name == 'a' else 'jpg'}", heads[row])
    main(["explore", str(tmp_path / "img"), "--out", str(tmp_path / "a.html")])
    text = " ".join(capsys.readouterr().out.split())
    assert "format and size of a file alone tell the class of 100 % of the images" in text
    assert all(len(line) <= 80 or str(tmp_path) in line for line in capsys.readouterr().out.splitlines())


def test_a_run_keeps_the_decoded_images_for_its_training(tmp_path: Path) -> None:
    write_tiny(tmp_path, 30)
    data = {"images": tmp_path / "img", "labels": tmp_path / "labels.txt"}
    result = explore(ExploreConfig(**data, run=tmp_path / "run"))
    assert result.page == tmp_path / "run" / "explore.html" and result.page.exists()
    (store,) = (tmp_path / "run" / "pixels").glob("*/pixels.npy")
    before = store.stat().st_mtime_ns
    config = DataConfig(**data)
    dataset = load_dataset(open_labelled(config), Run(tmp_path / "run").pixels)
    assert store.stat().st_mtime_ns == before and len(dataset) == 30
    begin(tmp_path / "run", config)
    assert result.page.exists()


def test_nothing_is_left_in_the_temporary_folder(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    explore(ExploreConfig(images=planted / "new", out=tmp_path / "a.html"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.html"]


@pytest.mark.parametrize("name", ["a.html", "a.csv"])
def test_files_of_others_are_replaced_with_force_only(planted: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    config = ExploreConfig(images=planted / "new", out=tmp_path / "a.html")
    with pytest.raises(ConfigError, match=r"is there already, and thera explore did not write it.*--force"):
        explore(config)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"
    explore(config.model_copy(update={"force": True}))
    assert (tmp_path / name).read_text() != "mine"


def test_a_link_is_never_followed(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "target.html").write_text("<title>thera explore")
    (tmp_path / "a.html").symlink_to(tmp_path / "target.html")
    with pytest.raises(ConfigError, match="is a link"):
        explore(ExploreConfig(images=planted / "new", out=tmp_path / "a.html", force=True))


@pytest.mark.parametrize("out", ["page", "page.txt"])
def test_a_page_needs_its_suffix(planted: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(ConfigError, match=r"must have the suffix \.html"):
        explore(ExploreConfig(images=planted / "new", out=tmp_path / out))


def test_images_of_which_none_can_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be used"):
        explore(ExploreConfig(images=tmp_path / "img", out=tmp_path / "a.html"))
    assert not (tmp_path / "a.html").exists()


def test_odd_names_are_escaped_in_the_table(heads: np.ndarray, tmp_path: Path) -> None:
    usable = [name for name in ODD_IDS if "\x00" not in name and "/" not in name and "\udcff" not in name]
    for name in usable:
        write(tmp_path / "img" / f"{name}.png", heads[0])
    result = explore(ExploreConfig(images=tmp_path / "img", out=tmp_path / "a.html"))
    table = pd.read_csv(result.table, dtype=str, keep_default_na=False)
    assert len(table) == len(usable) and not table["id"].str.match(r"[=+\-@\t\r]").any()
    assert all(text[0] not in "=+-@" and text.isprintable() for text in table["detail"])


# --- near duplicates in training --------------------------------------------------------------------------------------


def begin(folder: Path, data: DataConfig, say: Say = silent) -> FoldTable:
    """Begin a run without training, and return its folds."""
    dataset = load_dataset(open_labelled(data), Run(folder).pixels)
    return _begin(Run(folder), [], dataset, data, 2, 0, say)


def near_data(folder: Path, heads: np.ndarray) -> DataConfig:
    """Write 40 images and a recompressed copy of each of the first 20."""
    for row in range(60):
        write(folder / "img" / f"{row + 1:02d}.jpg", heads[row % 40], quality=95 if row < 40 else 60)
    (folder / "labels.txt").write_text("".join(f"{row % 40 % 2}\n" for row in range(60)))
    return DataConfig(images=folder / "img", labels=folder / "labels.txt")


def test_copies_share_a_fold_on_request(heads: np.ndarray, tmp_path: Path) -> None:
    data = near_data(tmp_path, heads)
    grouped = data.model_copy(update={"near_duplicates": "group"})
    plain = begin(tmp_path / "plain", data)
    said: list[str] = []
    table = begin(tmp_path / "grouped", grouped, said.append)
    assert any("kept together in folds" in line for line in said)
    assert plain.groups is None and (plain.fold_of[:20] != plain.fold_of[40:]).any()
    assert table.groups is not None and (table.groups[:20] == table.groups[40:]).all()
    assert (table.fold_of[:20] == table.fold_of[40:]).all()
    assert begin(tmp_path / "plain", grouped).groups is not None  # no epoch is finished: the run begins anew


def test_a_run_with_copies_in_one_fold_is_not_continued_without(heads: np.ndarray, tmp_path: Path) -> None:
    begin(tmp_path / "run", near_data(tmp_path, heads).model_copy(update={"near_duplicates": "group"}))
    run = Run(tmp_path / "run")
    with pytest.raises(ArtifactError, match="near-duplicates"):
        run.begin(dataclasses.replace(run.read(), near_duplicates="ignore"))
