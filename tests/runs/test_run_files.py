"""Files whole or not at all, JSON, tables, tensors, locks: the faults 26 and 31 to 40 of the table that are theirs."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import ODD_IDS, listing

from ensemble.errors import ArtifactError, LockedError, ResourceError
from ensemble.runs import files
from ensemble.runs.locks import locked
from ensemble.runs.run import Run, RunFacts

# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_file_is_written_and_its_hash_returned(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    for data in (b"one", b"two"):
        assert files.write_whole(path, data) == hashlib.sha256(data).hexdigest()
        assert listing(tmp_path) == {"new/deep/a.txt": data}


def test_it_is_on_disk_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(fd: int) -> None:
        calls.append("fsync " + ("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"))
        fsync(fd)

    def recording_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    files.write_whole(tmp_path / "a", b"x")
    assert calls == ["fsync file", "rename", "fsync folder"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "No space left on device); free some space and run the same command again"),
        (errno.EDQUOT, "free some space and run the same command again"),
        (errno.EACCES, "Permission denied); choose a place that can be written"),
        (errno.EROFS, "choose a place that can be written"),
        (errno.EIO, "choose a place that can be written"),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
@pytest.mark.parametrize("step", ["write", "fsync", "replace", "mkdir"])
def test_a_fault_at_any_step_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, said: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(*given: Any, **_: Any) -> None:
        if step == "write":  # torn: a part is on disk
            with open(given[0], "wb") as file:
                file.write(given[1][:2])
        raise OSError(code, os.strerror(code))

    owner: Any = Path if step in ("write", "mkdir") else os
    with monkeypatch.context() as patch:
        patch.setattr(owner, {"write": "write_bytes"}.get(step, step), fail)
        with pytest.raises(ResourceError) as caught:
            files.write_whole(path, b"new and longer")
    assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert said in str(caught.value)
    assert listing(tmp_path) == {"a.json": b"old"}


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt()], ids=repr)
def test_any_other_end_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == path.parent
        assert path.read_bytes() == b"old"
        raise error
    assert listing(tmp_path) == {"a": b"old"}


def test_a_full_disk_while_weights_are_written(tmp_path: Path) -> None:
    """The kernel itself refuses (EFBIG), not a patched function."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from ensemble.runs import files
from ensemble.errors import ResourceError
path = Path(sys.argv[1])
files.write_tensors(path, {"w": torch.zeros(3)})
old = path.read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    files.write_tensors(path, {"w": torch.zeros(5000)})
except ResourceError as error:
    print(path.read_bytes() == old, [p.name for p in path.parent.iterdir()], error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.safetensors")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("True ['w.safetensors'] ")
    assert "cannot be written (File too large)" in done.stdout


def test_a_place_that_is_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(ResourceError, match="cannot be written"):
            files.write_whole(path, b"y")
    assert listing(tmp_path) == {"file": b"x"}


# --- JSON -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    low: float
    high: float


@dataclass(frozen=True)
class Artifact:
    name: str
    count: int
    parts: tuple[Inner, ...]
    at: Path
    rate: float | None = None


ARTIFACT = Artifact("é \udcff \n", 3, (Inner(0.1 + 0.2, 1e-300), Inner(1.0, 2.0)), Path("x/y"))


def test_json_goes_round_to_the_last_bit_with_sorted_keys(tmp_path: Path) -> None:
    sha256 = files.write_json(tmp_path / "a.json", ARTIFACT)
    assert sha256 == files.file_sha256(tmp_path / "a.json")
    assert files.read_json(tmp_path / "a.json", Artifact, "") == ARTIFACT
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "é" in text
    keys = re.findall(r'^  "(\w+)"', text, re.MULTILINE)
    assert keys == sorted([*vars(ARTIFACT), "schema", "content_sha256"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": "3"}, r"count: Input should be a valid integer"),
        ({"name": None}, r"name: Input should be a valid string"),
        ({"parts": [{"low": 1.0}]}, r"parts\.0\.high: Field required"),
        ({"parts": 3}, "parts: Input should be a valid array"),
        ({"rate": True}, "rate: Input should be a valid number"),
        ({"rate": float("nan")}, "is damaged"),
    ],
)
def test_json_of_a_wrong_type_is_refused_and_the_field_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    files.write_json(tmp_path / "a.json", replace(ARTIFACT, name="é"))
    stored = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(stored | change))
    with pytest.raises(ArtifactError, match=says):
        files.read_json(tmp_path / "a.json", Artifact, "make it again")


def test_an_older_form_is_migrated_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"title": "a", "count": 1, "parts": [], "at": "z", "more": 5})

    def migrate(content: dict[str, Any]) -> dict[str, Any]:
        return {"name": content["title"], **content}

    assert files.read_json(tmp_path / "a.json", Artifact, "", migrate) == Artifact("a", 1, (), Path("z"))
    with pytest.raises(ArtifactError, match="name: Field required"):
        files.read_json(tmp_path / "a.json", Artifact, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is damaged"),
        (b'{"schema": 1', "is damaged"),
        (b"[1]", "is damaged"),
        (b"1", "is damaged"),
        (b"null", "is damaged"),
        (b"{}", "is damaged"),
        (b'{"schema": 1, "a": "\xff"}', "is damaged"),
        (b"\x80\x04.", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b'{"schema": 2}', "has schema 2; this thera reads 1; use the version that wrote it"),
        (b'{"schema": "1"}', "has schema 1"),
    ],
    ids=lambda value: repr(value)[:16],
)
def test_json_that_is_damaged_or_newer_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ArtifactError) as caught:
        files.read_json(tmp_path / "a.json", Artifact, "run it")
    assert f"{tmp_path / 'a.json'}: {said}" in str(caught.value)
    assert (tmp_path / "a.json").read_bytes() == text


def test_json_that_is_missing_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.json: is not there; run it$"):
        files.read_json(tmp_path / "a.json", Artifact, "run it")


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [ODD_IDS, *([id_] for id_ in ODD_IDS)], ids=lambda ids: repr(ids)[:20])
def test_a_table_goes_round_whatever_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list[str]) -> None:
    path = tmp_path / "t.csv"
    table = pd.DataFrame({"id": pd.Series(ids, dtype=object), "x": range(len(ids))})
    sha256 = files.write_table(path, table)
    assert sha256 == files.file_sha256(path)
    monkeypatch.setattr(files, "BLOCK", 3)
    stored = files.read_columns(path, {"id": str, "x": np.int64}, "")
    assert stored["id"].tolist() == ids
    assert stored["x"].tolist() == list(range(len(ids)))
    assert files.table_bytes(stored) == path.read_bytes()


def test_the_bytes_are_those_of_the_csv_module(tmp_path: Path) -> None:
    """As tables were written before pandas wrote them."""
    for ids in (ODD_IDS, [id_ for id_ in ODD_IDS if "\r" not in id_]):
        rows = [("'" + id_ if id_[:1] in "=+-@\t\r'" else id_, n, n / 3) for n, id_ in enumerate(ids)]
        bare = any("\r" in row[0] for row in rows)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(("id", "n", "x"))
        quoting = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
        csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)
        columns = {"id": pd.Series(ids, dtype=object), "n": range(len(ids)), "x": [n / 3 for n in range(len(ids))]}
        assert files.table_bytes(pd.DataFrame(columns)) == text.getvalue().encode("utf-8", "surrogateescape")


def test_floats_keep_every_digit(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-300, 300, 0.6)
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"id": pd.Series(map(str, range(1000)), dtype=object), "x": x}))
    stored = files.read_columns(tmp_path / "t.csv", {"id": str, "x": np.float64}, "")
    np.testing.assert_array_equal(stored["x"], x)


RECORD = Path(__file__).parents[2] / "checkpoints" / "therapanacea"


@pytest.mark.parametrize(
    "path",
    [*RECORD.glob("folds.csv"), *RECORD.glob("members/*/fold-0/oof.csv"), *RECORD.glob("predictions/*/*.csv")],
    ids=lambda path: path.relative_to(RECORD).as_posix(),
)
def test_the_tables_of_the_record_are_read_and_written_to_the_same_bytes(path: Path) -> None:
    assert files.table_bytes(files.read_columns(path, None, "")) == path.read_bytes()


def test_a_spreadsheet_runs_no_formula(tmp_path: Path) -> None:
    ids = pd.Series(["=cmd()", "+1", "-1", "@a", "a=1"], dtype=object)
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"id": ids, "x": [-1, 0, 0, 0, 0]}))
    assert (tmp_path / "t.csv").read_text() == "id,x\n'=cmd(),-1\n'+1,0\n'-1,0\n'@a,0\na=1,0\n"


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"id": pd.Series(dtype=object), "x": []}))
    stored = files.read_columns(tmp_path / "t.csv", {"id": str, "x": np.float64}, "")
    assert list(stored) == ["id", "x"] and stored["id"].size == stored["x"].size == 0
    assert stored["id"].dtype.kind == "U" and stored["x"].dtype == np.float64


@pytest.mark.parametrize("text", [b"", b"id\n1\n", b"x,id\n1,2\n", b"id,x\n1\n", b"id,x\n1,2,3\n", b'id,x\n"1,2\n'])
def test_a_table_that_is_damaged_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"t\.csv: is damaged"):
        files.read_columns(tmp_path / "t.csv", {"id": str, "x": np.int64}, "again")


@pytest.mark.parametrize(
    "last, says",
    [
        (b"9,x", "invalid literal for int"),
        (b"9,999", "out of bounds for int8"),
        (b"9", "invalid literal for int"),
        (b"9,1,2", "Expected 2 fields in line 11, saw 3"),
        (b'"9,1', "EOF inside string starting at row 10"),
    ],
)
def test_damage_in_the_last_of_several_blocks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes, says: str
) -> None:
    monkeypatch.setattr(files, "BLOCK", 4)
    (tmp_path / "t.csv").write_bytes(b"id,x\n" + b"".join(b"%d,1\n" % row for row in range(9)) + last + b"\n")
    with pytest.raises(ArtifactError, match=rf"t\.csv: is damaged \(.*{says}.*\); again"):
        files.read_columns(tmp_path / "t.csv", {"id": str, "x": np.int8}, "again")


def test_a_table_or_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"t\.csv: is not there; again"):
        files.read_columns(tmp_path / "t.csv", {"id": str}, "again")
    with pytest.raises(ArtifactError, match=r"w: cannot be read \(No such file or directory\)"):
        files.file_sha256(tmp_path / "w")


# --- tensors ----------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ["THERA_BOMB"]),)


def test_a_pickle_named_safetensors_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("THERA_BOMB", str(tmp_path / "fired"))
    (tmp_path / "plain.safetensors").write_bytes(pickle.dumps(Bomb()))
    torch.save({"w": Bomb()}, tmp_path / "hostile.pt")
    lying = (2**40).to_bytes(8, "little") + b"{}"
    (tmp_path / "lying.safetensors").write_bytes(lying)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("plain.safetensors", "hostile.pt", "lying.safetensors", "empty.safetensors", "none", "."):
        with pytest.raises(ArtifactError, match="is no safetensors file"):
            files.read_tensors(tmp_path / name)
    assert not (tmp_path / "fired").exists()
    pickle.loads((tmp_path / "plain.safetensors").read_bytes())
    assert (tmp_path / "fired").exists(), "the bomb was live"


# --- locks ------------------------------------------------------------------------------------------------------------

HOLD = "import sys, time; from pathlib import Path; from ensemble.runs.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])): {before}; print('held', flush=True); time.sleep(60)"


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that holds the lock of `tmp_path`."""
    started: list[subprocess.Popen[str]] = []

    def start(before: str = "pass") -> subprocess.Popen[str]:
        code = HOLD.format(before=before)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_second_process_learns_who_works_here(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder, started = hold(), time.monotonic()
    with pytest.raises(LockedError) as caught, locked(tmp_path):
        raise AssertionError("both are in")
    assert time.monotonic() - started < 1
    host = os.uname().nodename
    assert str(caught.value) == f"{tmp_path}: pid {holder.pid} on {host} works here; wait for it, or stop it first"
    with pytest.raises(LockedError, match=f"pid {holder.pid} "), locked(tmp_path):
        raise AssertionError("the refused one spoilt the note")


@pytest.mark.parametrize("before", [None, "pid 999999999 on " + os.uname().nodename])
def test_who_is_refused_waits_for_the_name_of_the_holder(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], before: str | None
) -> None:
    """A holder writes its name just after it has locked; until then there is no name, or that of a killed process."""
    holder, note = hold(), tmp_path / ".lock.holder"
    name = note.read_text()
    note.unlink() if before is None else note.write_text(before)
    threading.Timer(0.1, lambda: files.write_whole(note, name.encode())).start()
    with pytest.raises(LockedError, match=f"pid {holder.pid} on "), locked(tmp_path):
        raise AssertionError("both are in")
    note.unlink()
    with pytest.raises(LockedError, match="another process works here"), locked(tmp_path):
        raise AssertionError("both are in")


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder = hold()
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock.holder").read_text() == f"pid {os.getpid()} on {os.uname().nodename}"
    assert not (tmp_path / ".lock.holder").exists()


def test_the_next_holder_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    left = tmp_path / f"..lock.holder.{os.uname().nodename}.999999999.ab.tmp"
    left.write_bytes(b"")
    with locked(tmp_path):
        assert not left.exists()


def test_a_label_file_is_written_anew_without_the_temporary_file_of_a_killed_process(tmp_path: Path) -> None:
    from ensemble.runs.label_files import write_label_file

    host = os.uname().nodename
    left = tmp_path / f".[a].txt.{host}.999999999.ab.tmp"
    others = {tmp_path / f".[a].txt.{host}.{os.getpid()}.ab.tmp", tmp_path / f".b.txt.{host}.999999999.ab.tmp"}
    for path in (left, *others):
        path.write_bytes(b"")
    run = Run(tmp_path / "run")
    run.begin(RunFacts(0, 2, 4, (2, 2), None, "", "", ""))
    write_label_file(run, tmp_path / "[a].txt", b"0\n")
    assert set(tmp_path.glob(".*.tmp")) == others
    for path in others:
        path.unlink()


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(ResourceError, match="is a link and no lock file"), locked(tmp_path / "run"):
        raise AssertionError("locked through a link")
    assert (tmp_path / "outside").read_text() == "precious"


def test_a_forked_worker_does_not_keep_the_lock_of_its_killed_parent(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    forked = "import os; r, w = os.pipe(); os.fork() or [os.write(w, b'x'), time.sleep(60)]; os.read(r, 1)"
    holder = hold(before=forked)
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_who_waits_gets_it_when_it_is_free(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder, started = hold(), time.monotonic()
    threading.Timer(0.3, holder.kill).start()
    with locked(tmp_path, wait=True):
        assert 0.25 < time.monotonic() - started < 10


def test_a_lock_is_let_go_at_the_end_and_on_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
            raise ZeroDivisionError
    with locked(tmp_path / "new"):
        pass


def test_a_place_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"), locked(tmp_path / "file"):
        pass


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 3), (4, 1, 11)])
def test_logits_are_read_in_the_shape_in_which_they_were_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    logits, ids = np.random.default_rng(0).normal(size=shape).round(files.LOGIT_DECIMALS), np.array(list("abcd"))
    views = ("identity", "hflip")[: shape[1]]
    sha256 = files.write_logits(tmp_path / "oof.csv", ids, logits, views)
    read_ids, read = files.read_logits(tmp_path / "oof.csv", views, sha256, "")
    assert read_ids.tolist() == ids.tolist()
    assert read.shape == shape and np.array_equal(read, logits)


def test_logits_of_more_classes_have_a_column_for_each_view_and_class(tmp_path: Path) -> None:
    files.write_logits(tmp_path / "oof.csv", np.array(["a"]), np.zeros((1, 2, 3)), ("identity", "hflip"))
    header = (tmp_path / "oof.csv").read_text().splitlines()[0]
    assert header == "id," + ",".join(f"logit_{view}_{label}" for view in ("identity", "hflip") for label in range(3))
