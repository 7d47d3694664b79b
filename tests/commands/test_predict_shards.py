"""`thera predict --shards`: every kind of input, kills and damage, and the same labels as without shards."""

from __future__ import annotations

import io
import json
import shutil
import socket
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny import fails, listing, write_three, write_tiny

from ensemble.cli import main
from ensemble.commands import predict_shards, shard_jobs, shard_labels, shard_listing
from ensemble.data import shard_lists
from ensemble.data.shard_lists import Entry, ImageList
from ensemble.data.tars import TarImage
from ensemble.errors import DataError
from ensemble.progress import progress
from ensemble.runs import files, shards
from ensemble.runs.shards import ShardFolder

N, ROWS = 30, 8
"""Images to label, and images of a shard in these tests: three whole shards and one of six."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of one member, and with `new/img`, whose images are labelled in `plain.txt`."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny(folder / "known", 48)
    write_tiny(folder / "new", N, seed=1)
    known, run = folder / "known", folder / "run"
    call("train-member", "--arch", "lenet", "--images", known / "img", "--labels", known / "labels.txt", "--run", run,
         "--epochs", 1, "--folds", 2, "--batch-size", 16)  # fmt: skip
    call("fit-stacker", "--run", run)
    call("predict", "--run", run, folder / "new/img", "--out", folder / "plain.txt")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS", ROWS)


def call(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def predict(world: Path, images: object, out: Path, *more: object) -> dict[str, Any]:
    """Predict in shards, and return the columns of all parts."""
    given = images if isinstance(images, list) else [images]
    call("predict", "--run", world / "run", *given, "--shards", out, *more)
    table: pa.Table = parquet.read_table(out)
    return table.sort_by("row").to_pydict()


def plain_labels(world: Path) -> list[int]:
    return [int(line) for line in (world / "plain.txt").read_text().split()]


def parts(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all parts and notes."""
    return {name: data for name, data in listing(folder).items() if "part-" in name or "_done" in name}


# --- the labels -------------------------------------------------------------------------------------------------------


def test_the_labels_are_those_without_shards(world: Path, tmp_path: Path) -> None:
    columns = predict(world, world / "new/img", tmp_path / "s", "--out", tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_bytes() == (world / "plain.txt").read_bytes()
    assert columns["label"] == plain_labels(world)
    assert columns["row"] == list(range(N))
    assert columns["id"] == [f"{i:03d}" for i in range(1, N + 1)]
    stored = (world / "run/predictions/img-plain/predictions.csv").read_text().splitlines()
    header, *rows = (line.split(",") for line in stored)
    logits = [float(row[header.index("stacked_logit")]) for row in rows]
    assert columns["stacked_logit"] == pytest.approx(logits, abs=2e-5)
    assert sorted(path.name for path in (tmp_path / "s").glob("part-*")) == [f"part-00000{i}.parquet" for i in range(4)]
    assert not (tmp_path / "s/pixels").exists()


@pytest.mark.parametrize("more", [["--tta"], ["--combine", "vote"], ["--prior", "0.4"]])
def test_options_of_the_decision_do_what_they_do_without_shards(world: Path, tmp_path: Path, more: list[str]) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    call("predict", "--run", tmp_path / "run", world / "new/img", "--out", tmp_path / "plain.txt", *more)
    shutil.copytree(world / "run", tmp_path / "run", dirs_exist_ok=True)
    predict(tmp_path, world / "new/img", tmp_path / "s", "--out", tmp_path / "shards.txt", *more)
    assert (tmp_path / "shards.txt").read_bytes() == (tmp_path / "plain.txt").read_bytes()


def test_three_classes(tmp_path: Path) -> None:
    write_three(tmp_path / "known", 48)
    write_three(tmp_path / "new", 12, seed=1)
    known = tmp_path / "known"
    call("train-member", "--arch", "lenet", "--images", known / "img", "--labels", known / "labels.csv", "--classes", 3,
         "--run", tmp_path / "run", "--epochs", 1, "--folds", 2, "--batch-size", 16)  # fmt: skip
    call("fit-stacker", "--run", tmp_path / "run")
    call("predict", "--run", tmp_path / "run", tmp_path / "new/img", "--out", tmp_path / "plain.csv")
    columns = predict(tmp_path, tmp_path / "new/img", tmp_path / "s", "--out", tmp_path / "labels.txt")
    names = ["low", "mid", "top"]
    plain = [line.split(",")[1] for line in (tmp_path / "plain.csv").read_text().split()[1:]]
    assert [names[label] for label in columns["label"]] == plain
    total = np.sum([columns[f"probability_{c}"] for c in range(3)], axis=0)
    assert total == pytest.approx(np.ones(12), abs=1e-6)


def test_the_threshold_comes_from_drawn_images_where_there_are_many(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_labels, "PILOT", 11)
    seen: list[int] = []
    monkeypatch.setattr(
        shard_labels,
        "deploy",
        lambda *given, _deploy=shard_labels.deploy: seen.append(len(given[2])) or _deploy(*given),
    )
    predict(world, world / "new/img", tmp_path / "s")
    assert seen == [11]


# --- kinds of input ---------------------------------------------------------------------------------------------------


def tar_of(path: Path, images: list[Path]) -> Path:
    """Write a tar as WebDataset does: each image beside a file with its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for image in images:
            tar.add(image, image.name)
            label = tarfile.TarInfo(f"{image.stem}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(b"1"))
    return path


def zip_of(path: Path, images: list[Path]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for image in images:
            file.write(image, image.name)
    return path


def as_tars(folder: Path, images: list[Path]) -> list[Path]:
    return [tar_of(folder / f"{i}.tar", images[10 * i : 10 * i + 10]) for i in range(3)]


def as_glob(folder: Path, images: list[Path]) -> list[Path]:
    as_tars(folder, images)
    return [folder / "*.tar"]


def as_zips(folder: Path, images: list[Path]) -> list[Path]:
    return [zip_of(folder / f"{i}.zip", images[10 * i : 10 * i + 10]) for i in range(3)]


def as_tree(folder: Path, images: list[Path]) -> list[Path]:
    for row, image in enumerate(images[:10]):
        (folder / f"tree/{row % 2}/deep").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / f"tree/{row % 2}/deep" / image.name)
    (folder / "tree/readme.txt").write_text("no image")
    tar_of(folder / "tree/a/b.tar", images[10:20])
    zip_of(folder / "tree/z.zip", images[20:])
    return [folder / "tree"]


def as_csv(folder: Path, images: list[Path]) -> list[Path]:
    folder.mkdir()
    (folder / "m.csv").write_text("path,label\n" + "".join(f"{image},1\n" for image in images))
    return [folder / "m.csv"]


def as_parquet(folder: Path, images: list[Path]) -> list[Path]:
    folder.mkdir()
    parquet.write_table(pa.table({"image": [str(image) for image in images]}), folder / "m.parquet", row_group_size=7)
    return [folder / "m.parquet"]


@pytest.mark.parametrize(
    "kind", [as_tars, as_glob, as_zips, as_tree, as_csv, as_parquet], ids=lambda kind: kind.__name__
)
def test_every_kind_of_input(
    world: Path, tmp_path: Path, kind: Callable[[Path, list[Path]], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_lists, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr("ensemble.data.tables.BATCH", 3)
    images = sorted((world / "new/img").iterdir())
    given = kind(tmp_path / "data", images)
    columns = predict(world, given, tmp_path / "s", "--out", tmp_path / "labels.csv")
    by_name = {Path(name).stem: label for name, label in zip(columns["id"], columns["label"], strict=True)}
    assert by_name == {image.stem: label for image, label in zip(images, plain_labels(world), strict=True)}
    assert len(set(columns["id"])) == N
    table = (tmp_path / "labels.csv").read_text().splitlines()
    assert table[0] == "name,label"
    assert table[1:] == [f"{name},{label}" for name, label in zip(columns["id"], columns["label"], strict=True)]


def test_a_single_zip_of_numbered_images_is_as_without_shards(world: Path, tmp_path: Path) -> None:
    given = zip_of(tmp_path / "set.zip", sorted((world / "new/img").iterdir()))
    predict(world, given, tmp_path / "s", "--out", tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_bytes() == (world / "plain.txt").read_bytes()


def test_files_that_are_not_read_are_noted(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(world, as_tree(tmp_path / "data", sorted((world / "new/img").iterdir())), tmp_path / "s")
    assert "1 file in it is not read: readme.txt" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [as_glob, as_tree], ids=lambda kind: kind.__name__)
def test_tars_that_several_processes_list_give_the_same_plan(
    world: Path,
    tmp_path: Path,
    kind: Callable[[Path, list[Path]], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = kind(tmp_path / "data", sorted((world / "new/img").iterdir()))
    if kind is as_tree:
        tar_of(tmp_path / "data/tree/c.tar", [world / "known/img/002.png"])
    columns = predict(world, given, tmp_path / "one")
    assert "read tars" not in capsys.readouterr().err
    monkeypatch.setattr(shard_listing, "PROCESSES_PAY", 0)
    assert predict(world, given, tmp_path / "several", "--jobs", 2) == columns
    assert f"read tars: {11 if kind is as_tree else 30} images" in capsys.readouterr().err
    lists = [listing(tmp_path / name / "_plan") for name in ("one", "several")]
    assert [name for name in lists[0] if name.startswith("list-")] and lists[0] == lists[1]


# --- kills and damage -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends the command as a signal does that it cannot handle."""


@pytest.mark.parametrize("table", ["logits", "labels"])
def test_a_kill_between_part_and_note_is_made_good(
    world: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(world, world / "new/img", tmp_path / "whole")
    write_json, killed = files.write_json, tmp_path / "killed"

    def kill(path: Path, *given: Any, **more: Any) -> str:
        in_logits = "_logits" in path.parts
        if path.name == "000001.json" and in_logits == (table == "logits"):
            raise Killed
        return write_json(path, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", kill)
        with pytest.raises(Killed):
            predict(world, world / "new/img", killed)
    folder = ShardFolder(killed)
    halted = folder.logits if table == "logits" else folder.labels
    assert halted.path(1).exists() and not (halted.folder / "_done/000001.json").exists()
    assert predict(world, world / "new/img", killed) == whole
    assert parts(killed) == parts(tmp_path / "whole")


def test_only_damaged_and_missing_parts_are_made_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    predict(world, world / "new/img", folder)
    before = parts(folder)
    (folder / "_logits/part-000001.parquet").write_bytes(b"damaged")
    (folder / "_logits/part-000002.parquet").unlink()
    (folder / "part-000000.parquet").write_bytes(b"damaged")
    (folder / "_done/000003.json").write_text("{")
    orphan = folder / f"_logits/.part-000001.parquet.{socket.gethostname()}.{2**22 + 1}.ab.tmp"
    orphan.write_bytes(b"of a killed process")
    made: list[str] = []
    for name in ("predict_shard", "label_shard"):
        job = getattr(predict_shards, name)
        monkeypatch.setattr(
            predict_shards,
            name,
            lambda at, i, *given, _job=job: made.append(f"{_job.__name__} {i}") or _job(at, i, *given),
        )
    capsys.readouterr()
    predict(world, world / "new/img", folder)
    assert made == ["predict_shard 1", "predict_shard 2", "label_shard 0", "label_shard 3"]
    assert "is not the file that thera wrote (its hash differs); it is made again" in capsys.readouterr().err
    assert parts(folder) == before
    assert not orphan.exists()


def test_a_shard_that_another_process_computes_is_waited_for(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble.runs.locks import locked

    whole = predict(world, world / "new/img", tmp_path / "whole")
    folder = ShardFolder(tmp_path / "s")
    (tmp_path / "s/_plan").mkdir(parents=True)
    held = locked(folder.claim(2))
    held.__enter__()
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            assert not folder.logits.path(2).exists() and folder.logits.path(3).exists()
            held.__exit__(None, None, None)

    monkeypatch.setattr(predict_shards.time, "sleep", sleep)
    monkeypatch.setattr("ensemble.runs.locks.NAMED_WITHIN_S", 0.0)
    assert predict(world, world / "new/img", tmp_path / "s") == whole
    assert len(looks) >= 2


def test_another_decision_labels_anew_from_the_same_logits(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(world, world / "new/img", tmp_path / "s")
    monkeypatch.setattr(predict_shards, "predict_shard", None)
    before = listing(tmp_path / "s/_logits")
    predict(world, world / "new/img", tmp_path / "s", "--combine", "vote")
    assert listing(tmp_path / "s/_logits") == before
    assert json.loads((tmp_path / "s/_plan/facts.json").read_text())["request"]["combine"] == "vote"


def test_a_killed_listing_goes_on_with_the_tars_that_are_missing_or_changed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted((world / "new/img").iterdir())
    given, killed, listed, kills = as_glob(tmp_path / "data", images), tmp_path / "killed", list[str](), [True]
    monkeypatch.setattr(shard_listing, "PROCESSES_PAY", 0)

    def images_of_tar(tar: Path, _images: Callable[[Path], Iterator[TarImage]] = shard_listing.images_of_tar) -> Any:
        if tar.name == "2.tar" and kills:
            raise Killed
        listed.append(tar.name)
        return _images(tar)

    monkeypatch.setattr(shard_listing, "images_of_tar", images_of_tar)
    with pytest.raises(Killed):
        predict(world, given, killed, "--jobs", 1)
    assert listed == ["0.tar", "1.tar"]
    tar_of(tmp_path / "data/1.tar", images[10:19])
    kills.clear()
    listed.clear()
    columns = predict(world, given, killed, "--jobs", 1)
    assert listed == ["1.tar", "2.tar"]
    assert columns == predict(world, given, tmp_path / "whole", "--jobs", 1)
    assert len(columns["id"]) == N - 1 and not (killed / "_plan/tars").exists()


# --- images that cannot be used ---------------------------------------------------------------------------------------


def with_bad(world: Path, folder: Path) -> Path:
    shutil.copytree(world / "new/img", folder)
    (folder / "003.png").write_bytes(b"no image")
    (folder / "020.png").write_bytes(b"")
    return folder


def test_bad_images_stop_the_command_and_can_be_skipped(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = with_bad(world, tmp_path / "img")
    arguments = ["predict", "--run", world / "run", images, "--shards", tmp_path / "s"]
    line = fails(capsys, 3, *arguments)
    assert "1 of 8 images cannot be used: 003 is not a JPEG, PNG, BMP or WebP file" in line
    skipping = [*arguments, "--on-bad", "skip"]
    line = fails(capsys, 3, *skipping, "--out", tmp_path / "l.txt")
    assert "2 of 30 images cannot be used and are listed in" in line and "--bad-label 0 or 1" in line
    assert not (tmp_path / "l.txt").exists()
    assert (tmp_path / "s/_bad_images.csv").read_text().splitlines() == [
        "name,reason",
        '003,"is not a JPEG, PNG, BMP or WebP file"',
        "020,is empty",
    ]
    fails(capsys, 3, *skipping, "--out", tmp_path / "l.txt", "--bad-label", 1)
    labels = plain_labels(world)
    labels[2] = labels[19] = 1
    assert [int(line) for line in (tmp_path / "l.txt").read_text().split()] == labels
    table = parquet.read_table(tmp_path / "s")
    assert len(table) == N - 2 and not {2, 19} & set(table.column("row").to_pylist())


def test_images_that_were_seen_in_training_are_marked(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "new/img", tmp_path / "img")
    shutil.copy(world / "known/img/001.png", tmp_path / "img/031.png")
    predict(world, tmp_path / "img", tmp_path / "s")
    table = parquet.read_table(tmp_path / "s/_logits/part-000003.parquet", columns=["row", "seen"])
    assert table.to_pydict() == {"row": list(range(24, 31)), "seen": [False] * 6 + [True]}


# --- refusals ---------------------------------------------------------------------------------------------------------


def damaged_tar(folder: Path, images: list[Path]) -> Path:
    path = tar_of(folder / "x.tar", images[:6])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        data[tar.getmembers()[6].offset + 3] ^= 255  # the header of an image
    path.write_bytes(data)
    return path


def cut_tar(folder: Path, images: list[Path]) -> Path:
    path = tar_of(folder / "x.tar", images[:6])
    with tarfile.open(path) as tar:
        end = tar.getmembers()[8].offset
    path.write_bytes(path.read_bytes()[:end])
    return path


def linked_tar(folder: Path, images: list[Path]) -> Path:
    path = tar_of(folder / "x.tar", images[:1])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def compressed_tar(folder: Path, images: list[Path]) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "x.tar.gz", "w:gz") as tar:
        tar.add(images[0], "a.png")
    return folder / "x.tar.gz"


def outward_link(folder: Path, images: list[Path]) -> Path:
    (folder / "tree/a").mkdir(parents=True)
    (folder / "tree/a/x.png").symlink_to(images[0])
    return folder / "tree"


def upward_row(folder: Path, images: list[Path]) -> Path:
    folder.mkdir()
    (folder / "m.csv").write_text("path\n../x.png\n")
    return folder / "m.csv"


def empty_tree(folder: Path, images: list[Path]) -> Path:
    (folder / "tree/a").mkdir(parents=True)
    return folder / "tree"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (damaged_tar, "is damaged or cut short after"),
        (cut_tar, "is damaged or cut short after"),
        (linked_tar, "is a link or has holes and is no plain file; pack the file itself"),
        (compressed_tar, "is compressed, so that its images cannot be read one by one; unpack it to a .tar"),
        (outward_link, "is a link out of its folder; replace it"),
        (upward_row, "'../x.png' must be a path inside the manifest's folder; correct it"),
        (empty_tree, "holds no images"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_images_that_cannot_be_listed_are_refused(
    world: Path,
    tmp_path: Path,
    made: Callable[[Path, list[Path]], Path],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = made(tmp_path / "data", sorted((world / "new/img").iterdir()))
    assert message in fails(capsys, 3, "predict", "--run", world / "run", given, "--shards", tmp_path / "s")


def test_other_refusals(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, images = ["predict", "--run", world / "run"], world / "new/img"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    line = fails(capsys, 2, *start, images, "--shards", tmp_path / "full")
    assert "holds other files; give a new folder" in line
    assert "is no folder; give a new folder" in fails(capsys, 2, *start, images, "--shards", tmp_path / "full/x")
    assert "--cascade: is not for --shards" in fails(
        capsys, 2, *start, images, "--shards", tmp_path / "s", "--cascade", 0.9
    )
    line = fails(capsys, 2, "predict", "--model", "m.onnx", images, "--shards", tmp_path / "s")
    assert "--shards: needs --run" in line
    predict(world, images, tmp_path / "s")
    line = fails(capsys, 4, *start, world / "known/img", "--shards", tmp_path / "s")
    assert "was made differently: images was" in line and "give another folder as --shards" in line
    line = fails(capsys, 4, *start, images, "--shards", tmp_path / "s", "--tta")
    assert "was made differently: views was" in line
    line = fails(capsys, 4, *start, images, "--shards", tmp_path / "s", "--precision", "fp32")
    assert "was made differently: precision was auto and is fp32" in line
    with monkeypatch.context() as patch:
        patch.setattr("ensemble.members.machine_facts.cpu_model", lambda: "another model")
        line = fails(capsys, 4, *start, images, "--shards", tmp_path / "s")
    assert "was made differently: CPU was " in line and " and is another model; give another folder" in line
    table = as_csv(tmp_path / "data", sorted(images.iterdir())[::-1])
    line = fails(capsys, 2, *start, *table, "--shards", tmp_path / "t", "--out", tmp_path / "l.txt")
    assert "would hold a label in each line, but these images are not numbered 1 to n" in line


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_of_listing(folder: Path, n: int) -> int:
    """Return the greatest number of bytes that Python holds while so many images are listed."""

    def entries() -> Iterator[Entry]:
        for i in range(n):
            yield Entry(f"{i:012d}.jpg", f"{i:012d}.jpg", "a.tar", 512 * i, 2048)

    with progress(0, "list") as bar:
        tracemalloc.start()
        ShardFolder(folder).write_plan(("a",), ImageList("a", "/", entries()), False, bar)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS", 500)
    peak_of_listing(tmp_path / "warm", 500)
    few, many = peak_of_listing(tmp_path / "few", 1000), peak_of_listing(tmp_path / "many", 10_000)
    assert many < 1.2 * few


def test_few_pixels_are_in_memory_at_a_time(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, decode = list[int](), shard_jobs._decode
    monkeypatch.setattr(shard_jobs, "CHUNK_BYTES", 3 * 16 * 16 * 3)
    monkeypatch.setattr(shard_jobs, "_decode", lambda chunk, *given: chunks.append(len(chunk)) or decode(chunk, *given))
    assert predict(world, world / "new/img", tmp_path / "s")["label"] == plain_labels(world)
    assert chunks == [3, 3, 2, 3, 3, 2, 3, 3, 2, 3, 3]


def test_a_list_with_names_that_are_no_utf8_is_refused(tmp_path: Path) -> None:
    listed = ImageList("a", "/", iter([Entry("\udcff.jpg", "\udcff.jpg")]))
    with progress(0, "list") as bar, pytest.raises(DataError, match=r"is a name that is not UTF-8; rename the file"):
        ShardFolder(tmp_path).write_plan(("a",), listed, False, bar)


# --- input that was changed -------------------------------------------------------------------------------------------


def test_a_tar_that_was_packed_again_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the next start, and if it is changed between plan and reading; --on-bad skip leaves no image of it out."""
    images = sorted((world / "new/img").iterdir())
    tar = tar_of(tmp_path / "x.tar", images[:3])
    arguments = ["predict", "--run", world / "run", tar, "--on-bad", "skip", "--shards"]
    planned = predict_shards.planned

    def changed(*given: Any) -> Any:
        plan = planned(*given)
        tar_of(tar, images[3:5])
        return plan

    with monkeypatch.context() as patch:
        patch.setattr(predict_shards, "planned", changed)
        line = fails(capsys, 4, *arguments, tmp_path / "s")
    assert f"{tar}: was changed after it was listed: it had" in line
    assert not (tmp_path / "s/_logits").exists()
    line = fails(capsys, 4, *arguments, tmp_path / "s")
    assert f"{tar}: was changed after it was listed: it had" in line
    predict(world, tar, tmp_path / "t")
