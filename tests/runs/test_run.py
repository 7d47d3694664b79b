"""The run directory: what the table of faults asks of its files, and every round trip; test_storage has the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ODD_IDS, listing, rewrite_json

from ensemble.config import MemberConfig
from ensemble.data.folds import FoldTable
from ensemble.data.source import set_name
from ensemble.errors import ArtifactError
from ensemble.runs import files
from ensemble.runs.artifacts import forget_below, read_recorded, write_recorded
from ensemble.runs.files import refuse_differences
from ensemble.runs.member import MemberFolder, MemberIdentity
from ensemble.runs.run import Run, RunFacts
from ensemble.runs.training_state import StateFolder

FACTS = RunFacts(0, 5, 3, (64, 64), None, "ab", "img", "labels.txt", notes=("a",))
IDENTITY = MemberIdentity("ab", 0, "fp32")
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def flip(path: Path, at: int = -10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_run_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"run\.json: is not there; train a member first: thera train-member"):
        Run(tmp_path).read()


def test_a_run_is_begun_once_and_differences_are_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    run.begin(FACTS)
    begun = (tmp_path / "r" / "run.json").read_bytes()
    run.begin(replace(FACTS, notes=("b",)))
    with pytest.raises(ArtifactError) as caught:
        run.begin(replace(FACTS, seed=1, size=(32, 32), resize=32))
    assert str(caught.value) == (
        f"{tmp_path / 'r' / 'run.json'}: was made differently: seed was 0 and is 1, size was [64, 64] and is [32, 32], "
        "resize was None and is 32; use another --run"
    )
    assert (tmp_path / "r" / "run.json").read_bytes() == begun
    stored = run.read()
    assert (stored.notes, stored.history) == (("a",), ())
    assert {"python", "torch", "numpy"} <= set(stored.versions)


def test_commands_are_recorded_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin(FACTS)
    run.record("one", 0.0)
    run.record("two", time.time())
    one, two = run.read().history
    assert (one.command, one.when) == ("one", "1970-01-01T00:00:00+00:00")
    assert two.command == "two"
    assert 0 <= two.seconds < 5


@pytest.mark.parametrize("change", [{"folds": "2"}, {"seed": "x"}, {"size": None}, {"history": [3]}], ids=str)
def test_a_run_with_a_field_of_a_wrong_type_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run = Run(tmp_path)
    run.begin(FACTS)
    stored = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(stored | change))
    with pytest.raises(
        ArtifactError, match=rf"run\.json: is damaged \({next(iter(change))}.*; restore run.json from a"
    ):
        run.read()


@pytest.mark.parametrize("folder", sorted(CHECKPOINTS.glob("**/run.json")), ids=lambda path: path.parent.name)
def test_committed_runs_are_read(folder: Path) -> None:
    run = Run(folder.parent)
    facts, table = run.read(), run.read_folds()
    assert facts.n == len(table.ids) and facts.folds == table.k
    for member in run.members():
        assert set(member.read().folds) == set(map(str, range(table.k)))
        assert MemberConfig.model_validate(member.read().current_config | {"weights": None}).name == member.name


@pytest.mark.parametrize("found", [{"a": 1}, {}])
def test_differences_hold_for_keys_on_either_side(found: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"b was None and is x\\ny"):
        refuse_differences("here", found, found | {"b": "x\ny"}, "")
    with pytest.raises(ArtifactError, match="b was 2 and is None"):
        refuse_differences("here", found | {"b": 2}, found, "")
    refuse_differences("here", found, dict(found), "")


@pytest.mark.parametrize("groups", [None, [7, 2**40, -1, 7, *range(10, 6 + len(ODD_IDS))]], ids=["plain", "groups"])
def test_folds_go_round(tmp_path: Path, groups: list[int] | None) -> None:
    run, n = Run(tmp_path), len(ODD_IDS)
    run.begin(FACTS)
    ids, labels = np.array(ODD_IDS), (np.arange(n) % 2).astype(np.int8)
    fold_of = (np.arange(n) % 3).astype(np.int8)
    table = FoldTable(ids, labels, fold_of, None if groups is None else np.array(groups, np.int64))
    run.write_folds(table)
    found = run.read_folds()
    assert found.k == table.k == 3
    assert found.ids.tolist() == ODD_IDS
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.fold_of, fold_of)
    assert (found.labels.dtype, found.fold_of.dtype) == (np.int8, np.int8)
    assert (None if found.groups is None else found.groups.tolist()) == groups
    flip(tmp_path / "folds.csv", -2)
    with pytest.raises(ArtifactError, match=r"folds\.csv: is not the file that thera wrote"):
        run.read_folds()


def test_missing_folds_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"folds\.csv: is not there; train a member first"):
        Run(tmp_path).read_folds()


def test_members_come_in_the_order_in_which_they_were_begun(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.members() == []
    for name in ("b", "c", "a"):
        run.member(name).begin({}, IDENTITY)
    assert [member.name for member in run.members()] == ["b", "c", "a"]


def test_predictions_are_named_after_their_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.zip").write_bytes(b"")
    (tmp_path / "val.v2" / "deep").mkdir(parents=True)
    run = Run(Path("r"))
    sets = ("set.zip", "val.v2", "val.v2/deep/..", ".", "/")
    names = {given: run.predictions(set_name(Path(given)), "f00", tta=True).name for given in sets}
    assert names == {
        "set.zip": "set",
        "val.v2": "val.v2",
        "val.v2/deep/..": "val.v2",
        ".": tmp_path.name,
        "/": "images",
    }
    assert set_name([Path("a/1.png"), Path("a/2.png")]) == "a" and set_name(Path("b/*.png")) == "images"
    place = run.predictions("val.v2", "f00", tta=True)
    assert place.parent == Path("r/predictions")
    assert run.predictions("val.v2", "f00", tta=False).name == "val.v2-plain"
    files.write_json(place / "predictions.json", {"request": {"fingerprint": "f00"}})
    assert run.predictions("val.v2", "f00", tta=True) == place
    assert run.predictions("val.v2", "0123456789", tta=True).name == "val.v2-01234567"


# --- recorded hashes --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of a process, which no handler stops."""


@pytest.mark.parametrize("former", ["none", "recorded", "unrecorded"])
def test_a_kill_at_any_step_of_a_recorded_write_leaves_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, former: str
) -> None:
    run, path, replace = Run(tmp_path / "r"), tmp_path / "r/decision/decision.json", os.replace
    for step in range(20):
        shutil.rmtree(run.folder, ignore_errors=True)
        run.begin(FACTS)
        if former == "recorded":
            write_recorded(run.folder, path, {"value": 1})
        elif former == "unrecorded":
            files.write_json(path, {"value": 1})
        left = [step]

        def killed(source: str, target: str, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            try:
                write_recorded(run.folder, path, {"value": 2})
            except Killed:
                done = False
            else:
                done = True
        if path.exists():
            values = {read_recorded(run.folder, path, dict[str, Any], "")["value"]}
            assert values <= ({2} if done else {1, 2})
        else:
            assert former == "none" and not done
        run.record("the next command", 0.0)
        sha256 = write_recorded(run.folder, path, {"value": 3})
        assert read_recorded(run.folder, path, dict[str, Any], "")["value"] == 3
        assert run.read().artifacts == {"decision/decision.json": (sha256,)}
        if done:
            break
    assert done and step >= 3, "each write was interrupted once"


def test_the_former_file_is_refused_once_the_new_one_is_written(tmp_path: Path) -> None:
    run, path = Run(tmp_path), tmp_path / "decision/decision.json"
    run.begin(FACTS)
    write_recorded(tmp_path, path, {"value": 1})
    former = path.read_bytes()
    write_recorded(tmp_path, path, {"value": 2})
    path.write_bytes(former)
    with pytest.raises(
        ArtifactError, match=r"decision\.json: is not the file that is recorded in run\.json .*; fit it"
    ):
        read_recorded(tmp_path, path, dict[str, Any], "fit it")
    forget_below(tmp_path, path.parent)
    assert read_recorded(tmp_path, path, dict[str, Any], "fit it")["value"] == 1


def test_what_a_killed_command_leaves_in_the_folder_of_the_run_is_removed(tmp_path: Path) -> None:
    run, host = Run(tmp_path), os.uname().nodename
    run.begin(FACTS)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, check=True)
    dead = int(ended.stdout)
    litter = [f".run.json.elsewhere.{dead}.0a.tmp", f".report.md.{host}.{dead}.0a.tmp", ".removed-0a/member.json"]
    kept = [f".report.md.{host}.{os.getpid()}.0a.tmp", f".report.md.elsewhere.{dead}.0a.tmp", "notes.tmp", ".mine.tmp"]
    for name in (*litter, *kept):
        files.write_whole(tmp_path / name, b"")
    run.record("the next command", 0.0)
    assert {name for name in (*litter, *kept) if (tmp_path / name).exists()} == set(kept)
    for name in kept:
        (tmp_path / name).unlink()


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
    member.begin({"lr": 0.1}, IDENTITY)
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
    facts = member.read().folds["0"]
    assert facts.epochs == 1
    assert facts.weights_sha256 == files.file_sha256(member.fold(0) / "weights.safetensors")
    assert {path.name for path in member.fold(0).iterdir()} == {"weights.safetensors", "oof.csv", "history.jsonl"}
    member.finish_fold(1, arrays(), np.array(["c"]), np.zeros((1, 2)), VIEWS)
    assert set(member.read().folds) == {"0", "1"}


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
    member.begin({"lr": 0.1}, IDENTITY)
    with pytest.raises(
        ArtifactError, match=r"lr was 0\.1 and is 0\.2, gamma was None and is 2; give it another --name"
    ):
        member.begin({"lr": 0.2, "gamma": 2}, IDENTITY)
    with pytest.raises(ArtifactError, match=r"seed was 0 and is 1; give it another --name"):
        member.begin({"lr": 0.1}, replace(IDENTITY, seed=1))
    assert listing(member.folder) == before


def test_a_removed_option_that_did_nothing_stops_no_member(member: MemberFolder) -> None:
    member.update(config={"lr": 0.1, "early_size": None})
    member.begin({"lr": 0.1}, IDENTITY)
    member.update(config={"lr": 0.1, "early_size": 32})
    with pytest.raises(ArtifactError, match="early_size was 32 and is None"):
        member.begin({"lr": 0.1}, IDENTITY)
    assert member.read().current_config == {"lr": 0.1}, "prediction does not need the option"


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


def edit_history(path: Path, hashed: bool) -> None:
    stored = json.loads(path.read_text()) | {"history": []}
    path.write_text(json.dumps(stored)) if hashed else rewrite_json(path, stored)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flip": lambda folder: flip(newest(folder)),
    "truncated": lambda folder: newest(folder).write_bytes(newest(folder).read_bytes()[:-1]),
    "no tensors": lambda folder: newest(folder).unlink(),
    "no JSON in the note": lambda folder: newest(folder, "json").write_text("{"),
    "no hash in the note": lambda folder: newest(folder, "json").write_text('{"schema": 1}'),
    "another hash in the note": lambda folder: newest(folder, "json").write_text(
        newest(folder, "json").read_text().replace('"sha256": "', '"sha256": "0')
    ),
    "an empty history in the note": lambda folder: edit_history(newest(folder, "json"), hashed=True),
    "an empty history in a note without a hash": lambda folder: edit_history(newest(folder, "json"), hashed=False),
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
    with pytest.raises(ArtifactError, match="state: holds only damaged states; remove this folder to start the fold"):
        state.load()
    assert len(state.warnings) == 2
