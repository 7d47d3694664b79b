"""Processes and machines that share a folder of `thera predict --shards`: claims, other versions, failing storage."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from tiny import fails, listing, write_tiny

from ensemble.cli import main
from ensemble.commands import predict_shards, shard_jobs, shard_labels
from ensemble.config import seed_sequence
from ensemble.errors import ArtifactError, ConfigError, ResourceError
from ensemble.members.parallel import Resources
from ensemble.progress import progress
from ensemble.runs import files, locks, shards
from ensemble.runs.locks import HOLDER, MARKER, marked
from ensemble.runs.shards import ShardFolder

N, KNOWN, ROWS = 12, 5, 8
"""New images, those of the training beside them, and images of a shard: two whole shards and one of one image."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of one member, images in `new/img`, and their finished shards in `done`."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny(folder / "known", 24)
    write_tiny(folder / "new", N, seed=1)
    for i in range(KNOWN):
        shutil.copy(folder / f"known/img/{i + 1:03d}.png", folder / f"new/img/{N + i + 1:03d}.png")
    known, run = folder / "known", folder / "run"
    call("train-member", "--arch", "lenet", "--images", known / "img", "--labels", known / "labels.txt", "--run", run,
         "--epochs", 1, "--folds", 2, "--batch-size", 8)  # fmt: skip
    call("fit-stacker", "--run", run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS", ROWS)
        predict(folder, folder / "done")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS", ROWS)


@pytest.fixture
def done(world: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished shards."""
    return Path(shutil.copytree(world / "done", tmp_path / "done"))


def call(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def command(world: Path, folder: Path, *more: object) -> list[object]:
    return ["predict", "--run", world / "run", world / "new/img", "--shards", folder, *more]


def predict(world: Path, folder: Path, *more: object) -> None:
    call(*command(world, folder, *more))


def labels(folder: Path) -> Any:
    return parquet.read_table(folder).sort_by("row").to_pydict()


def rewrite(path: Path, without: str, **more: Any) -> None:
    """Write a JSON file of thera without a field, with more fields and a right hash."""
    content = json.loads(path.read_text()) | more
    del content[without]
    files.write_json(path, content)


# --- several processes ------------------------------------------------------------------------------------------------


def test_a_process_that_ends_takes_no_claim_from_another_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the one locks its first shard of labels, the other one finishes all, and then ends once more."""
    folder, claimed, write_whole = tmp_path / "s", predict_shards.claimed, locks.write_whole

    def claimed_late(job: Any, *arguments: Any) -> bool:
        monkeypatch.setattr(predict_shards, "claimed", claimed)
        predict(world, folder)
        monkeypatch.setattr(locks, "write_whole", write_holder)
        return claimed(job, *arguments)

    def write_holder(path: Path, data: bytes) -> str:
        monkeypatch.setattr(locks, "write_whole", write_whole)
        assert path == folder / "_claims/000000" / HOLDER
        with files.replacing(path) as temporary:
            predict(world, folder)
            temporary.write_bytes(data)
        return ""

    monkeypatch.setattr(predict_shards, "claimed", claimed_late)
    predict(world, folder)
    assert locks.write_whole is write_whole, "the second process has locked a shard"
    assert labels(folder) == labels(world / "done")


def test_a_marker_of_a_dead_host_is_named_with_what_to_do(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = tmp_path / "s"
    claim = ShardFolder(folder).claim(2)
    claim.mkdir(parents=True)
    (folder / "_plan").mkdir()
    (claim / MARKER).write_text("7\ndead-host\n")
    (claim / HOLDER).write_text("pid 7 on dead-host")
    monkeypatch.setattr(predict_shards.time, "sleep", lambda _: (claim / MARKER).unlink(missing_ok=True))
    predict(world, folder)
    assert (
        f"note: waiting for 1 shard that other processes compute: {claim}: pid 7 on dead-host works here; "
        f"wait for it, or stop it first; if it no longer runs, remove {claim / MARKER}\n"
    ) in capsys.readouterr().err
    assert labels(folder) == labels(world / "done")


def test_storage_that_returns_other_bytes_ends_the_command(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict_shards, "VISIBLE_WITHIN_S", -1)
    folder, write_parquet, written = tmp_path / "s", shards.write_parquet, list[str]()
    failing = folder / "_logits/part-000001.parquet"

    def write(path: Path, columns: Any) -> str:
        digest = write_parquet(path, columns)
        if path.parent == failing.parent:
            written.append(path.name)
            assert len(written) < 9, "it does not end"
        if path == failing:
            path.write_bytes(b"other bytes")
        return digest

    monkeypatch.setattr(shards, "write_parquet", write)
    line = fails(capsys, 6, *command(world, folder))
    assert line == f"error: {failing}: {line.partition(f'{failing}: ')[2]}"
    assert "is missing, or not what was written, after 2 attempts; check the storage" in line
    assert written == [f"part-00000{i}.parquet" for i in (0, 1, 2, 1)]


def test_a_part_that_is_seen_late_is_waited_for(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a shared folder whose client remembers for a while that the note was not there."""
    folder, read, hidden = tmp_path / "s", shards.Parts.note, [1]

    def note(self: Any, index: int, *rest: Any) -> Any:
        is_hidden = hidden and index == 1 and self.folder == folder / "_logits"
        return None if is_hidden else read(self, index, *rest)

    monkeypatch.setattr(shards.Parts, "note", note)
    monkeypatch.setattr(predict_shards.time, "sleep", lambda _: hidden.clear())
    predict(world, folder)
    assert not hidden and labels(folder) == labels(world / "done")


def test_another_start_keeps_the_mark_of_a_process(done: Path) -> None:
    """Also where it seems to have ended: a container may have the same host name, and pids of its own."""
    with marked(done) as mark:
        dead = mark.with_name(mark.name.replace(f".{os.getpid()}.", f".{2**22 + 1}."))
        mark.rename(dead)
        ShardFolder(done).remove_orphans()
        assert dead.exists()
        dead.unlink()


def test_a_folder_that_may_not_be_looked_into_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(ResourceError, match="is not visible on node"):
            locks.refuse_unshared(tmp_path)


def test_unlike_gpus_are_refused_before_images_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = tuple(torch.device("cuda", index) for index in range(3))
    models = dict(zip(gpus, ("A10", "A40", "A40"), strict=True))
    monkeypatch.setattr("ensemble.members.machine_facts.hardware_of", lambda gpu: {"GPU": models[gpu]})
    message = r"--device: names GPUs of several models \(.*cuda:0 is A10.*\), .*; give one, such as --device cuda:0"

    def resources(*of: torch.device) -> Resources:
        return Resources(torch.device("cuda"), 0, None, gpus=of)

    with pytest.raises(ConfigError, match=message):
        predict_shards._refuse_unlike_gpus(resources(*gpus))
    predict_shards._refuse_unlike_gpus(resources(*gpus[1:]))
    predict_shards._refuse_unlike_gpus(resources())


# --- other versions and machines --------------------------------------------------------------------------------------


def test_a_folder_of_another_version_is_kept(world: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(done / "_plan/request.json", without="machine", torch="2.0")
    (done / "_logits/part-000001.parquet").unlink()
    before = listing(done / "_logits")
    line = fails(capsys, 4, *command(world, done))
    assert line == (
        f"error: {done}: was begun by another version of thera (request.json differs in the fields "
        "machine, torch); finish it with that version, or give another folder as --shards"
    )
    assert listing(done / "_logits") == before


def test_a_machine_that_does_not_see_the_folder_writes_nothing(world: Path, done: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    message = f"^--shards {elsewhere}: is not visible on node {socket.gethostname()}; put it on storage that all nodes "
    with marked(done) as mark:
        assert mark.parent == done and mark.exists()
        given = (mark.name, shard_jobs.predict_shard, predict_shards.logits_done, elsewhere, 0, world / "run")
        with pytest.raises(ResourceError, match=message):
            shard_jobs.claimed_by_task(elsewhere / given[0], *given[1:])
        assert shard_jobs.claimed_by_task(mark, *given[1:3], done, 0, world / "run")
    assert not mark.exists() and not elsewhere.exists()
    with pytest.raises(ResourceError, match=message):
        locks.refuse_unshared(elsewhere)
    elsewhere.mkdir()
    with pytest.raises(ArtifactError, match=r"elsewhere: holds no plan of thera predict --shards; give the folder"):
        shard_jobs.claimed(*given[1:])


def test_each_machine_is_compared_before_it_computes(world: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (done / "_logits/part-000001.parquet").unlink()
    monkeypatch.setattr("ensemble.members.machine_facts.cpu_model", lambda: "another model")
    host = socket.gethostname()
    message = rf"done on {host}: was made differently: CPU was .* and is another model; use machines of one kind, or"
    with progress(1, "test") as bar, pytest.raises(ArtifactError, match=message):
        shard_jobs.predict_shard(done, 1, world / "run", torch.device("cpu"), "error", bar)
    assert not (done / "_logits/part-000001.parquet").exists()


# --- images that were seen in training --------------------------------------------------------------------------------


def seen_in(folder: Path) -> int:
    return int(json.loads((folder / "_plan/facts.json").read_text())["seen_in_training"])


def test_all_images_that_were_seen_in_training_are_counted(
    world: Path, done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shard_labels, "PILOT", 11)
    monkeypatch.setattr(predict_shards, "predict_shard", None)  # the logits are there
    notes = [json.loads(path.read_text())["seen"] for path in sorted((done / "_logits/_done").iterdir())]
    assert notes == [0, 4, 1] and sum(notes) == KNOWN
    decided = list[int]()
    monkeypatch.setattr(
        predict_shards,
        "counted",
        lambda folder, facts, *rest: (
            decided.append(facts.seen_in_training) or shard_labels.counted(folder, facts, *rest)
        ),
    )
    capsys.readouterr()
    predict(world, done, "--combine", "vote")
    assert decided[0] < KNOWN, "the drawn images have fewer"
    assert seen_in(done) == KNOWN
    out, err = capsys.readouterr()
    assert f"whether they differ from the training images: {N}." in out and "made again" not in err


def test_the_pilot_is_drawn_without_a_number_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tracemalloc.start()
    rows = shard_labels.pilot_rows(10**9, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22 and len(set(rows.tolist())) == shard_labels.PILOT and (np.diff(rows) > 0).all()
    monkeypatch.setattr(shard_labels, "PILOT", 11)
    assert shard_labels.pilot_rows(11, 3).tolist() == list(range(11))
    drawn = np.random.default_rng(seed_sequence(3, "shards")).choice(12, 11, replace=False)
    assert shard_labels.pilot_rows(12, 3).tolist() == sorted(drawn.tolist())
