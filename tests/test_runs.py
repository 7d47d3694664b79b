"""The run directory: faults 26, 31 to 34 and 36 to 40 of the table, as far as files go, and every round trip."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble import runs
from ensemble.errors import ArtifactError, LockedError, ResourceError
from ensemble.runs import FoldTable, MemberFolder, Run, StateFolder, write_json

ODD = [
    "plain.jpg",
    "001.jpg",
    "1e5",
    "two\nlines.jpg",
    "carriage\rreturn.jpg",
    "both\r\n.jpg",
    "\rfirst",
    "\ttab",
    'quo"ted.jpg',
    "com,ma.jpg",
    "=cmd()|'/c calc'!A0",
    "+1",
    "-1",
    "@x",
    "'apostrophe",
    "''two",
    "'=both",
    "<script>alert(1)</script>",
    "byte \udcff.jpg",
    "é 漢",
    " space ",
]


def flip(path: Path, at: int = -10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_file_is_written_and_its_hash_returned(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    for data in (b"one", b"two"):
        assert runs.write_whole(path, data) == hashlib.sha256(data).hexdigest()
        assert listing(tmp_path) == {"new/deep/a.txt": data}


def test_it_is_on_disk_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def told_fsync(fd: int) -> None:
        calls.append("fsync " + ("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"))
        fsync(fd)

    def told_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(os, "replace", told_replace)
    runs.write_whole(tmp_path / "a", b"x")
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
            runs.write_whole(path, b"new and longer")
    assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert said in str(caught.value)
    assert listing(tmp_path) == {"a.json": b"old"}


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt()], ids=repr)
def test_any_other_end_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), runs.replacing(path) as temporary:
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
from ensemble import runs
from ensemble.errors import ResourceError
path = Path(sys.argv[1])
runs.write_tensors(path, {"w": torch.zeros(3)})
old = path.read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    runs.write_tensors(path, {"w": torch.zeros(5000)})
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
            runs.write_whole(path, b"y")
    assert listing(tmp_path) == {"file": b"x"}


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_goes_round(tmp_path: Path) -> None:
    value = {"schema": runs.SCHEMA, "a": [1, 2.5, None], "name": "é \udcff \n", "at": Path("x/y")}
    sha256 = runs.write_json(tmp_path / "a.json", value)
    assert sha256 == runs.file_sha256(tmp_path / "a.json")
    assert runs.read_json(tmp_path / "a.json", "") == value | {"at": "x/y"}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


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
        runs.read_json(tmp_path / "a.json", "run it")
    assert f"{tmp_path / 'a.json'}: {said}" in str(caught.value)
    assert (tmp_path / "a.json").read_bytes() == text


def test_json_that_is_missing_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.json: is not there; run it$"):
        runs.read_json(tmp_path / "a.json", "run it")
    with pytest.raises(ArtifactError, match=r"run\.json: is not there; train a member first: thera train-member"):
        Run(tmp_path).read()


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [ODD, *([id_] for id_ in ODD)], ids=lambda ids: repr(ids)[:20])
def test_a_table_goes_round_whatever_the_ids(tmp_path: Path, ids: list[str]) -> None:
    path = tmp_path / "t.csv"
    sha256 = runs.write_table(path, ("id", "x"), [(id_, n) for n, id_ in enumerate(ids)])
    assert sha256 == runs.file_sha256(path)
    found, x = runs.read_table(path, ("id", "x"), "")
    assert found == tuple(ids)
    assert x == tuple(map(str, range(len(ids))))


def test_a_spreadsheet_runs_no_formula(tmp_path: Path) -> None:
    runs.write_table(tmp_path / "t.csv", ("id", "x"), [("=cmd()", -1), ("+1", 0), ("-1", 0), ("@a", 0), ("a=1", 0)])
    assert (tmp_path / "t.csv").read_text() == "id,x\n'=cmd(),-1\n'+1,0\n'-1,0\n'@a,0\na=1,0\n"


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    runs.write_table(tmp_path / "t.csv", ("id", "x"), [])
    assert runs.read_table(tmp_path / "t.csv", ("id", "x"), "") == [(), ()]


@pytest.mark.parametrize("text", [b"", b"id\n1\n", b"x,id\n1,2\n", b"id,x\n1\n", b"id,x\n1,2,3\n", b'id,x\n"1,2\n'])
def test_a_table_that_is_damaged_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"t\.csv: is damaged"):
        runs.read_table(tmp_path / "t.csv", ("id", "x"), "again")


def test_a_table_or_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"t\.csv: is not there; again"):
        runs.read_table(tmp_path / "t.csv", ("id",), "again")
    with pytest.raises(ArtifactError, match=r"w: cannot be read \(No such file or directory\)"):
        runs.file_sha256(tmp_path / "w")


# --- locks ------------------------------------------------------------------------------------------------------------

HOLD = "import sys, time; from pathlib import Path; from ensemble.runs import locked\n"
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


def test_a_second_process_is_told_who_works_here(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder, started = hold(), time.monotonic()
    with pytest.raises(LockedError) as caught, runs.locked(tmp_path):
        raise AssertionError("both are in")
    assert time.monotonic() - started < 1
    host = os.uname().nodename
    assert str(caught.value) == f"{tmp_path}: pid {holder.pid} on {host} works here; wait for it, or stop it first"
    with pytest.raises(LockedError, match=f"pid {holder.pid} "), runs.locked(tmp_path):
        raise AssertionError("the refused one spoilt the note")


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder = hold()
    holder.kill()
    holder.wait()
    with runs.locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"pid {os.getpid()} on {os.uname().nodename}"


def test_a_forked_worker_does_not_keep_the_lock_of_its_killed_parent(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    forked = "import os; r, w = os.pipe(); os.fork() or [os.write(w, b'x'), time.sleep(60)]; os.read(r, 1)"
    holder = hold(before=forked)
    holder.kill()
    holder.wait()
    with runs.locked(tmp_path):
        pass


def test_who_waits_gets_it_when_it_is_free(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder, started = hold(), time.monotonic()
    threading.Timer(0.3, holder.kill).start()
    with runs.locked(tmp_path, wait=True):
        assert 0.25 < time.monotonic() - started < 10


def test_a_lock_is_let_go_at_the_end_and_on_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), runs.locked(tmp_path / "new"):
            raise ZeroDivisionError
    with runs.locked(tmp_path / "new"):
        pass


def test_a_place_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"), runs.locked(tmp_path / "file"):
        pass


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_run_is_begun_once_and_differences_are_named(tmp_path: Path) -> None:
    run, identity = Run(tmp_path / "r"), {"seed": 0, "folds": 5, "size": [64, 64], "fingerprint": "ab"}
    run.begin(identity, {"notes": ["a"]})
    begun = (tmp_path / "r" / "run.json").read_bytes()
    run.begin(identity, {"notes": ["b"]})
    with pytest.raises(ArtifactError) as caught:
        run.begin(identity | {"seed": 1, "size": [32, 32], "resize": 32}, {})
    assert str(caught.value) == (
        f"{tmp_path / 'r' / 'run.json'}: was made differently: seed was 0 and is 1, size was [64, 64] and is [32, 32], "
        "resize was None and is 32; use another --run"
    )
    assert (tmp_path / "r" / "run.json").read_bytes() == begun
    stored = run.read()
    assert stored["schema"] == 1
    assert stored["notes"] == ["a"]
    assert stored["history"] == []
    assert {"python", "torch", "numpy"} <= set(stored["versions"])


def test_what_was_run_is_recorded_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin({"seed": 0}, {})
    run.record("one", 0.0)
    run.record("two", time.time())
    one, two = run.read()["history"]
    assert (one["command"], one["when"]) == ("one", "1970-01-01T00:00:00+00:00")
    assert two["command"] == "two"
    assert 0 <= two["seconds"] < 5


@pytest.mark.parametrize("found", [{"a": 1}, {}])
def test_differences_hold_for_keys_on_either_side(found: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"b was None and is x\\ny"):
        runs.refuse_differences("here", found, found | {"b": "x\ny"}, "")
    with pytest.raises(ArtifactError, match="b was 2 and is None"):
        runs.refuse_differences("here", found | {"b": 2}, found, "")
    runs.refuse_differences("here", found, dict(found), "")


@pytest.mark.parametrize("groups", [None, [7, 7, 2**40, *range(len(ODD) - 3)]], ids=["plain", "groups"])
def test_folds_go_round(tmp_path: Path, groups: list[int] | None) -> None:
    run, n = Run(tmp_path), len(ODD)
    run.begin({"seed": 0}, {})
    ids, labels = np.array(ODD), (np.arange(n) % 2).astype(np.int8)
    fold_of = (np.arange(n) % 3).astype(np.int8)
    table = FoldTable(ids, labels, fold_of, None if groups is None else np.array(groups, np.int64))
    run.write_folds(table)
    found = run.read_folds()
    assert found.k == table.k == 3
    assert found.ids.tolist() == ODD
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.fold_of, fold_of)
    assert (found.labels.dtype, found.fold_of.dtype) == (np.int8, np.int8)
    assert (None if found.groups is None else found.groups.tolist()) == groups
    flip(tmp_path / "folds.csv", -2)
    with pytest.raises(ArtifactError, match=r"folds\.csv: is not the file that training wrote"):
        run.read_folds()


def test_missing_folds_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"folds\.csv: is not there; train a member first"):
        Run(tmp_path).read_folds()


def test_members_come_in_the_order_in_which_they_were_begun(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.members() == []
    for name in ("b", "c", "a"):
        run.member(name).begin({}, {})
    assert [member.name for member in run.members()] == ["b", "c", "a"]


def test_predictions_are_named_after_their_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.zip").write_bytes(b"")
    (tmp_path / "val.v2" / "deep").mkdir(parents=True)
    run = Run(Path("r"))
    sets = ("set.zip", "val.v2", "val.v2/deep/..", ".", "/")
    names = {given: run.predictions(Path(given), "f00", tta=True).name for given in sets}
    assert names == {
        "set.zip": "set",
        "val.v2": "val.v2",
        "val.v2/deep/..": "val.v2",
        ".": tmp_path.name,
        "/": "images",
    }
    place = run.predictions(Path("val.v2"), "f00", tta=True)
    assert place.parent == Path("r/predictions")
    assert run.predictions(Path("val.v2"), "f00", tta=False).name == "val.v2-plain"
    write_json(place / "predictions.json", {"schema": 1, "fingerprint": "f00"})
    assert run.predictions(Path("val.v2"), "f00", tta=True) == place
    assert run.predictions(Path("val.v2"), "0123456789", tta=True).name == "val.v2-01234567"


# --- a member ---------------------------------------------------------------------------------------------------------

VIEWS = ("identity", "hflip")


def arrays(value: float = 1.0) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), value, np.float32), "n": np.array(3)}


def tensors(value: float = 1.0) -> Any:
    import torch

    return {"w": torch.full((2, 3), float(value)), "n": torch.tensor(3, dtype=torch.int64)}


@pytest.fixture
def member(tmp_path: Path) -> MemberFolder:
    """A member with fold 0 finished on three odd ids."""
    member = Run(tmp_path).member("resnet18")
    member.begin({"lr": 0.1}, {"seed": 0})
    StateFolder(member.fold(0)).save(tensors(), [{"epoch": 1}])
    logits = np.array([[0.123456, -1.0], [2.0, 3.0], [-40.5, 1e-9]])
    member.finish_fold(0, arrays(), np.array(["a", "=b\r", "\udcff"]), logits, VIEWS, epochs=1)
    return member


def test_a_fold_goes_round(member: MemberFolder) -> None:
    ids, logits = member.read_oof(0, VIEWS)
    assert ids.tolist() == ["a", "=b\r", "\udcff"]
    assert logits.dtype == np.float64
    assert logits.tolist() == [[0.12346, -1.0], [2.0, 3.0], [-40.5, 0.0]]
    weights = member.read_weights(0)
    assert {key: value.tolist() for key, value in weights.items()} == {"w": [[1.0] * 3] * 2, "n": 3}
    assert str(weights["n"].dtype) == "torch.int64"
    assert (member.has_fold(0), member.has_fold(1)) == (True, False)
    facts = member.read()["folds"]["0"]
    assert facts["epochs"] == 1
    assert facts["weights_sha256"] == runs.file_sha256(member.fold(0) / "weights.safetensors")
    assert {path.name for path in member.fold(0).iterdir()} == {"weights.safetensors", "oof.csv", "history.jsonl"}
    member.finish_fold(1, arrays(), np.array(["c"]), np.zeros((1, 2)), VIEWS)
    assert set(member.read()["folds"]) == {"0", "1"}


def test_a_fold_that_is_not_finished_is_named(member: MemberFolder) -> None:
    with pytest.raises(ArtifactError) as caught:
        member.read_oof(3, VIEWS)
    assert str(caught.value) == (
        "member resnet18: lacks OOF logits for fold 3; "
        "give its `thera train-member` command again; what is done is kept"
    )
    with pytest.raises(ArtifactError, match="lacks the weights of fold 3; give its `thera train-member` command again"):
        member.read_weights(3)
    (member.fold(0) / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="lacks the weights of fold 0"):
        member.read_weights(0)


@pytest.mark.parametrize("at", [0, 8, 30, -1])
def test_weights_with_a_flipped_bit_are_refused(member: MemberFolder, at: int) -> None:
    flip(member.fold(0) / "weights.safetensors", at)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: is not the file that training wrote"):
        member.read_weights(0)


def test_oof_logits_with_a_flipped_bit_or_a_row_short_are_refused(member: MemberFolder) -> None:
    path = member.fold(0) / "oof.csv"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole)
        flip(path, at)
        with pytest.raises(ArtifactError, match=r"oof\.csv"):
            member.read_oof(0, VIEWS)
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(ArtifactError, match=r"oof\.csv: is not the file that thera wrote"):
        member.read_oof(0, VIEWS)


def test_a_member_goes_on_only_as_it_was_begun(member: MemberFolder) -> None:
    before = listing(member.folder)
    member.begin({"lr": 0.1}, {"seed": 0})
    with pytest.raises(
        ArtifactError, match=r"lr was 0\.1 and is 0\.2, gamma was None and is 2; give it another --name"
    ):
        member.begin({"lr": 0.2, "gamma": 2}, {"seed": 0})
    with pytest.raises(ArtifactError, match=r"seed was 0 and is 1; give it another --name"):
        member.begin({"lr": 0.1}, {"seed": 1})
    assert listing(member.folder) == before


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
            runs.read_tensors(tmp_path / name)
    assert not (tmp_path / "fired").exists()
    pickle.loads((tmp_path / "plain.safetensors").read_bytes())
    assert (tmp_path / "fired").exists(), "the bomb was live"


# --- training state ---------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    """The state after three epochs; its tensors are filled with the number of the epoch."""
    state = StateFolder(tmp_path / "fold-0")
    for epochs in (1, 2, 3):
        state.save(tensors(epochs), [{"epoch": n, "loss": 1 / n} for n in range(1, epochs + 1)])
    return state


def loaded(state: StateFolder) -> tuple[float, int]:
    found = state.load()
    assert found is not None
    return float(found[0]["w"].mean()), len(found[1])


def test_there_is_no_state_at_first(tmp_path: Path) -> None:
    assert StateFolder(tmp_path / "fold-0").load() is None


def test_the_two_newest_states_are_kept(tmp_path: Path, state: StateFolder) -> None:
    assert set(listing(tmp_path / "fold-0")) == {
        "history.jsonl",
        *(f"state/epoch-000{n}.{kind}" for n in (2, 3) for kind in ("json", "safetensors")),
    }
    assert loaded(state) == (3.0, 3)
    assert state.warnings == []
    lines = (tmp_path / "fold-0" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": n, "loss": 1 / n} for n in (1, 2, 3)]


def newest(folder: Path, kind: str = "safetensors") -> Path:
    return folder / "fold-0" / "state" / f"epoch-0003.{kind}"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flip": lambda folder: flip(newest(folder)),
    "truncated": lambda folder: newest(folder).write_bytes(newest(folder).read_bytes()[:-1]),
    "no tensors": lambda folder: newest(folder).unlink(),
    "no JSON in the note": lambda folder: newest(folder, "json").write_text("{"),
    "no hash in the note": lambda folder: newest(folder, "json").write_text('{"schema": 1}'),
    "another hash in the note": lambda folder: newest(folder, "json").write_text(
        newest(folder, "json").read_text().replace('"sha256": "', '"sha256": "0')
    ),
    "a newer note": lambda folder: newest(folder, "json").write_text('{"schema": 2}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_gives_way_to_an_older_one(tmp_path: Path, state: StateFolder, damage: str) -> None:
    DAMAGE[damage](tmp_path)
    assert loaded(state) == (2.0, 2)
    assert state.warnings == [f"{newest(tmp_path)} is damaged; going on from an older state"]
    state.save(tensors(9), [{}] * 3)
    assert loaded(StateFolder(tmp_path / "fold-0")) == (9.0, 3)


def test_a_state_without_its_note_is_not_yet_one(tmp_path: Path, state: StateFolder) -> None:
    newest(tmp_path, "json").unlink()  # killed between the two
    assert loaded(state) == (2.0, 2)
    assert state.warnings == []


def test_no_whole_state_is_an_error(tmp_path: Path, state: StateFolder) -> None:
    for path in (tmp_path / "fold-0" / "state").glob("*.safetensors"):
        flip(path)
    with pytest.raises(
        ArtifactError, match="state: holds no state that is whole; remove this folder to start the fold"
    ):
        state.load()
    assert len(state.warnings) == 2
