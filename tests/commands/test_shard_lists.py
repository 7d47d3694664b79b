"""The list of a prediction in shards: input that was changed is refused, damaged lists of tars are made again."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import listing, rewrite_json

from ensemble.commands import shard_listing
from ensemble.config import ComputeConfig
from ensemble.data.shard_lists import EntryReader
from ensemble.data.tars import TarImage
from ensemble.errors import ArtifactError, ResourceError
from ensemble.members.parallel import Resources
from ensemble.predict_config import PredictConfig
from ensemble.runs.shards import ShardFolder, ShardPlan

FACTS: Any = SimpleNamespace(class_count=2)
"""All that the listing takes from the facts of a run."""

FILES = {"1.png": b"one", "2.png": b"two"}


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data)


def write_tars(folder: Path, n: int = 3) -> Path:
    for i in range(n):
        write_tar(folder / f"{i}.tar", {f"{i}-{name}": data for name, data in FILES.items()})
    return folder


def started(shards: Path, *images: Path) -> tuple[ShardPlan, list[str]]:
    """List the images, or start again; return the plan and what was said."""
    said = list[str]()
    config, resources = PredictConfig(images=list(images)), Resources.of(ComputeConfig(jobs=1, device="cpu"))
    return shard_listing.planned(ShardFolder(shards), config, FACTS, resources, said.append), said


def refusal(shards: Path, *images: Path) -> str:
    """Return the error of another start, which changes nothing."""
    before = listing(shards)
    with pytest.raises(ArtifactError) as caught:
        started(shards, *images)
    assert listing(shards) == before
    return str(caught.value)


def ids(shards: Path, plan: ShardPlan) -> list[str]:
    folder = ShardFolder(shards)
    return [entry.id for index in range(plan.shards) for entry in folder.read_list(plan, index)]


# --- input that was changed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("in_tree", [False, True])
def test_an_archive_that_was_packed_again_is_refused(tmp_path: Path, kind: str, in_tree: bool) -> None:
    write, images = write_tar if kind == "tar" else write_zip, tmp_path / "data"
    path = images / f"sub/b.{kind}"
    write(path, FILES)
    write(images / f"a.{kind}", FILES)
    given = [images] if in_tree else [images / f"a.{kind}", path]
    started(tmp_path / "s", *given)
    listed = path.stat()

    write(path, dict(reversed(FILES.items())))
    assert path.stat().st_size == listed.st_size
    os.utime(path, ns=(listed.st_atime_ns, listed.st_mtime_ns + 1))
    line = refusal(tmp_path / "s", *given)
    assert line.startswith(f"{path}: was changed after it was listed: it was modified at ")
    assert line.endswith("; restore it, with its time of modification, or give another folder as --shards")

    write(path, {**FILES, "3.png": bytes(20_000)})
    assert f"it had {listed.st_size} bytes and has {path.stat().st_size};" in refusal(tmp_path / "s", *given)

    write(path, FILES)
    os.utime(path, ns=(listed.st_atime_ns, listed.st_mtime_ns))
    started(tmp_path / "s", *given)


def test_a_single_zip_that_was_packed_again_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", FILES)
    started(tmp_path / "s", tmp_path / "a.zip")
    started(tmp_path / "s", tmp_path / "a.zip")
    write_zip(tmp_path / "a.zip", {**FILES, "3.png": b"three"})
    assert "a.zip: was changed after it was listed: it had" in refusal(tmp_path / "s", tmp_path / "a.zip")


@pytest.mark.parametrize(("name", "header"), [("m.csv", "path\n"), ("m.txt", "")])
def test_a_manifest_that_was_edited_is_refused(tmp_path: Path, name: str, header: str) -> None:
    for image in ("a.png", "b.png"):
        (tmp_path / image).write_bytes(b"image")
    manifest = tmp_path / name
    manifest.write_text(f"{header}a.png\n")
    facts = manifest.stat()
    plan, _ = started(tmp_path / "s", manifest)
    manifest.write_text(f"{header}b.png\n")
    os.utime(manifest, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    line = refusal(tmp_path / "s", manifest)
    assert f"{name}: was changed after it was listed (its hash differs); restore it, or give" in line
    manifest.write_text(f"{header}a.png\n")
    os.utime(manifest, (1, 1))
    assert started(tmp_path / "s", manifest)[0] == plan, "the same content, with another time"


@pytest.mark.parametrize("pattern", ["", "*.tar"])
def test_archives_that_were_added_or_removed_are_refused(tmp_path: Path, pattern: str) -> None:
    given = write_tars(tmp_path / "data") / pattern
    started(tmp_path / "s", given)
    shutil.copy(tmp_path / "data/0.tar", tmp_path / "data/1b.tar")
    shutil.copy(tmp_path / "data/0.tar", tmp_path / "data/4.tar")
    line = refusal(tmp_path / "s", given)
    assert line.startswith(f"{tmp_path}/data/1b.tar: was added after the images of {tmp_path}/s were listed; move it")
    for name in ("1b.tar", "4.tar"):
        (tmp_path / "data" / name).unlink()
    started(tmp_path / "s", given)
    (tmp_path / "data/1.tar").unlink()
    line = refusal(tmp_path / "s", given)
    assert line == f"{tmp_path}/data/1.tar: is missing, but was listed; restore it, or give another folder as --shards"


@pytest.mark.parametrize("name", ["x.png", "sub/x.png"])
def test_an_image_that_was_added_to_a_folder_of_tars_is_refused(tmp_path: Path, name: str) -> None:
    started(tmp_path / "s", write_tars(tmp_path / "data"))
    (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / name).write_bytes(b"image")
    assert refusal(tmp_path / "s", tmp_path / "data").startswith(f"{tmp_path}/data/{name}: was added after")


def test_another_start_says_when_the_images_were_listed(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    shutil.copytree(tmp_path / "tars", tmp_path / "tree")
    (tmp_path / "tree/sub").mkdir()
    (tmp_path / "tree/sub/x.png").write_bytes(b"image")
    for name, more in (("tars", ""), ("tree", "; files that were added later are not in the list")):
        shards = tmp_path / f"s-{name}"
        plan, said = started(shards, tmp_path / name)
        assert not any("were listed at" in line for line in said)
        os.utime(shards / "_plan/plan.json", (1_700_000_000, 1_700_000_000))
        if name == "tree":
            (tmp_path / "tree/sub/y.png").write_bytes(b"image")
        again, said = started(shards, tmp_path / name)
        assert again == plan
        assert said[0] == f"note: the images were listed at 2023-11-14 22:13 UTC{more}"


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_an_archive_that_is_changed_while_it_is_read_gives_no_image(tmp_path: Path, kind: str, when: str) -> None:
    write, path = write_tar if kind == "tar" else write_zip, tmp_path / f"data/a.{kind}"
    write(path, FILES)
    write(tmp_path / f"data/b.{kind}", FILES)
    plan, _ = started(tmp_path / "s", tmp_path / "data")
    entries = ShardFolder(tmp_path / "s").read_list(plan, 0)
    with EntryReader(plan.root) as reader:
        assert [read() for read in reader.prepare(entries)] == [b"one", b"two"] * 2
    with EntryReader(plan.root) as reader:
        reads: list[Callable[[], bytes]] = reader.prepare(entries) if when == "while it is open" else []
        facts = path.stat()
        write(path, {"1.png": b"two", "2.png": b"one"})
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        with pytest.raises(ArtifactError, match=rf"a\.{kind}: was changed after it was listed"):
            (reads or reader.prepare(entries))[0]()
        assert not reads or reads[2]() == b"one"
    path.unlink()
    with EntryReader(plan.root) as reader, pytest.raises(ArtifactError, match=rf"a\.{kind}: is missing, but was"):
        reader.prepare(entries)


def test_an_archive_that_cannot_be_read_is_no_image_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's error of a file on a server that was replaced there: `--on-bad skip` must not leave images out."""
    plan, _ = started(tmp_path / "s", write_tars(tmp_path / "data"))

    def stale(*_: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with EntryReader(plan.root) as reader:
        read, *_ = reader.prepare(ShardFolder(tmp_path / "s").read_list(plan, 0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", stale)
            patch.setattr(os, "fstat", stale)
            with pytest.raises(ResourceError, match=r"0\.tar: cannot be read \(Stale file handle\); the same command"):
                read()


def test_an_archive_that_is_changed_while_it_is_listed_leaves_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, images_of_tar = write_tars(tmp_path / "data"), shard_listing.images_of_tar

    def growing(tar: Path) -> Iterator[TarImage]:
        yield from images_of_tar(tar)
        if tar.name == "1.tar":
            write_tar(tar, {"other.png": bytes(20_000)})

    with monkeypatch.context() as patch:
        patch.setattr(shard_listing, "images_of_tar", growing)
        with pytest.raises(ArtifactError, match=r"1\.tar: was changed .*; give the same command again once the file"):
            started(tmp_path / "s", images)
    assert started(tmp_path / "s", images)[0].n == 5


def test_files_that_are_no_images_may_be_added_to_what_a_glob_names(tmp_path: Path) -> None:
    write_tars(tmp_path / "data")
    plan, _ = started(tmp_path / "s", tmp_path / "data/*")
    for name in ("label_val.txt", "0.tar.idx"):
        (tmp_path / "data" / name).write_text("1\n")
    assert started(tmp_path / "s", tmp_path / "data/*")[0] == plan


def test_a_folder_of_another_version_is_named_as_such(tmp_path: Path) -> None:
    started(tmp_path / "s", write_tars(tmp_path / "data"))
    path = tmp_path / "s/_plan/plan.json"
    stored = json.loads(path.read_text())
    for name in ("inputs", "plain_files", "plan_schema"):
        del stored[name]
    rewrite_json(path, stored)
    assert refusal(tmp_path / "s", tmp_path / "data") == (
        f"{tmp_path}/s: was begun by another version of thera; finish it with that version, or give another folder as "
        "--shards"
    )


def test_a_list_of_inputs_that_is_damaged_is_refused(tmp_path: Path) -> None:
    started(tmp_path / "s", write_tars(tmp_path / "data"))
    (tmp_path / "s/_plan/inputs.parquet").write_bytes(b"damaged")
    assert "inputs.parquet: is not the file that thera wrote" in refusal(tmp_path / "s", tmp_path / "data")


# --- the lists of single tars -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends the listing as a signal does that it cannot handle."""


def kill(*_: object) -> None:
    raise Killed


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return bytes([data[0], data[1], data[2], data[3], data[4] ^ 1, *data[5:]])


@pytest.mark.parametrize("damage", [cut, flipped], ids=lambda value: value.__name__)
def test_a_damaged_list_of_a_tar_is_made_again(
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, shards = write_tars(tmp_path / "data"), tmp_path / "s"
    expected = ids(tmp_path / "whole", started(tmp_path / "whole", images)[0])
    monkeypatch.setattr(shard_listing, "PROCESSES_PAY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(shard_listing, "list_images", kill)
        with pytest.raises(Killed):
            started(shards, images)
    lists = sorted((shards / "_plan/tars").glob("*.parquet"))
    assert len(lists) == 3
    lists[1].write_bytes(damage(lists[1].read_bytes()))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(shard_listing, "list_tar", None)
        plan, said = started(shards, images)
    warnings = [line for line in said if line.startswith("warning")]
    assert len(warnings) == 1
    assert f"{lists[1]} is not the file that thera wrote (its hash differs); {images}" in warnings[0]
    assert warnings[0].endswith(".tar is listed again")
    assert ids(shards, plan) == expected
    assert "search: 3 files" in capsys.readouterr().err


def test_a_list_of_a_tar_without_a_hash_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill fell between the list and its hash, or another version wrote it."""
    images, shards, listed = write_tars(tmp_path / "data"), tmp_path / "s", list[str]()
    monkeypatch.setattr(shard_listing, "PROCESSES_PAY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(shard_listing, "list_images", kill)
        with pytest.raises(Killed):
            started(shards, images)
    next((shards / "_plan/tars").glob("*.sha256")).unlink()
    list_tar = shard_listing.list_tar
    monkeypatch.setattr(shard_listing, "list_tar", lambda tar, *rest: listed.append(tar.path) or list_tar(tar, *rest))
    plan, said = started(shards, images)
    assert len(listed) == 1 and plan.n == 6
    assert not any(line.startswith("warning") for line in said)


def test_a_tar_that_is_changed_while_it_is_listed_has_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a start after the tar was restored would take the list of the other tar for that of this one."""
    images, images_of_tar = write_tars(tmp_path / "data"), shard_listing.images_of_tar

    def changing(tar: Path) -> Iterator[TarImage]:
        write_tar(tar, {"other.png": bytes(20_000)})
        return images_of_tar(tar)

    monkeypatch.setattr(shard_listing, "PROCESSES_PAY", 0)
    monkeypatch.setattr(shard_listing, "images_of_tar", changing)
    with pytest.raises(ArtifactError, match=r"0\.tar: was changed after it was listed: it had 10240 bytes and has"):
        started(tmp_path / "s", images)
    assert not list((tmp_path / "s/_plan").rglob("*.*"))


def test_nothing_is_left_of_the_lists_of_tars(tmp_path: Path) -> None:
    images, folder = write_tars(tmp_path / "data"), tmp_path / "s"
    lists = folder / "_plan/tars"
    orphan = lists / f".x.parquet.{socket.gethostname()}.{2**22 + 1}.ab.tmp"
    lists.mkdir(parents=True)
    orphan.write_bytes(b"of a killed process")
    (lists / "x.parquet").write_bytes(b"a list")
    ShardFolder(folder).remove_orphans()
    assert not orphan.exists() and (lists / "x.parquet").exists()
    started(folder, images)
    assert not lists.exists()
    lists.mkdir()
    (lists / "x.parquet").write_bytes(b"a kill fell between the plan and the removal")
    started(folder, images)
    assert not lists.exists()


# --- remarks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "note"), [(["a.txt"], "1 file in it is"), (["a.txt", "b.txt"], "2 files in it are")])
def test_files_that_are_not_read_are_counted(tmp_path: Path, names: list[str], note: str) -> None:
    images = write_tars(tmp_path / "data")
    for name in names:
        (images / name).write_text("no image")
    assert f"{note} not read: {', '.join(names)}" in "\n".join(started(tmp_path / "s", images)[1])
