"""Faults 31, 33 and 36 of the table: every artifact of a run, damaged, edited, of another type or of a newer schema."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soak.mutations import mutate_field
from tiny import listing, rewrite_json, write_tiny

from ensemble.cli import main
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.dataset import Dataset
from ensemble.data.folds import FoldTable, assign_folds, together
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.runs import files
from ensemble.runs.locks import locked
from ensemble.runs.member import MemberFolder, MemberIdentity
from ensemble.runs.predictions import KeptLogits
from ensemble.runs.run import Run, RunFacts

FOLDS, MEMBERS, IMAGES, NEW = 2, ("a", "b"), 24, 12
MUTATIONS, SEED = 100, 0


def logits_of(dataset: Dataset, seed: int) -> np.ndarray:
    """Return logits (n, views) that depend on the images and are worth stacking."""
    bright = dataset.pixels[:, :8].mean(axis=(1, 2, 3)) - dataset.pixels[:, 8:].mean(axis=(1, 2, 3))
    noise = np.random.default_rng(seed).normal(0, 1, (len(dataset), len(VIEWS)))
    return bright[:, None] / 60 + noise


def write_member(member: MemberFolder, dataset: Dataset, table: FoldTable, seed: int) -> None:
    config = MemberConfig(arch="lenet", name=member.name).model_dump(mode="json")
    member.begin(config, MemberIdentity(dataset.fingerprint, 0, "fp32"))
    for fold in range(FOLDS):
        rows, history = np.flatnonzero(table.fold_of == fold), [{"epoch": 1, "loss": 0.5, "lr": 0.1}]
        files.write_whole(member.history_path(fold), "".join(json.dumps(each) + "\n" for each in history).encode())
        weights = {"w": np.full(3, fold, np.float32)}
        member.finish_fold(fold, weights, dataset.ids[rows], logits_of(dataset, seed)[rows], VIEWS, epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, new images, and a run on them with two members, a decision, a prediction and a report."""
    folder = tmp_path_factory.mktemp("finished")
    write_tiny(folder / "train", IMAGES)
    write_tiny(folder / "new", NEW, seed=1)
    run = Run(folder / "run")
    dataset = load_dataset(open_source(folder / "train/img", folder / "train/labels.txt"), run.pixels)
    assert dataset.labels is not None
    run.begin(RunFacts(0, FOLDS, IMAGES, (16, 16), None, dataset.fingerprint, "img", "labels.txt"))
    units = together(dataset.digests, None)
    run.write_folds(FoldTable(dataset.ids, dataset.labels, assign_folds(dataset.labels, units, FOLDS, 0).fold_of, None))
    new = load_dataset(open_source(folder / "new/img"), run.pixels)
    kept = KeptLogits(run.predictions("img", new.fingerprint, True) / "logits", new.ids, new.fingerprint)
    for seed, name in enumerate(MEMBERS):
        write_member(run.member(name), dataset, run.read_folds(), seed)
        for fold in range(FOLDS):
            kept.save(run.member(name), fold, VIEWS, logits_of(new, seed + fold))
    for command in ("fit-stacker", "predict", "report"):
        main(arguments(folder, command))
    return folder


def arguments(folder: Path, command: str) -> list[str]:
    images = ["--tta", "--images", str(folder / "new/img"), "--out", str(folder / "out.txt")]
    return [command, "--run", str(folder / "run"), *(images if command == "predict" else [])]


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may damage."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def ended(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Run a command; return its exit status and its lines on standard error."""
    capsys.readouterr()
    try:
        status = main(arguments(folder, command)) or 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, [
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "warning", "dam"))
    ]


def results(folder: Path) -> dict[str, bytes]:
    """Return the bytes that the artifacts decide on."""
    paths = ("out.txt", "run/report.md", "run/predictions/img/label_val.txt", "run/predictions/img/predictions.csv")
    return {name: (folder / name).read_bytes() for name in paths}


# --- single faults ----------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(*keys: str, to: Any) -> Callable[[Path], None]:
    """Return what sets a field of a JSON file and leaves its hash as it is."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        path.write_text(json.dumps(content))

    change.__name__ = f"{'.'.join(keys)}={to}"
    return change


def edit_unhashed(*keys: str, to: Any) -> Callable[[Path], None]:
    """Return what sets a field as in a file without hashes."""

    def change(path: Path) -> None:
        edit(*keys, to=to)(path)
        rewrite_json(path, json.loads(path.read_text()))

    change.__name__ = f"{'.'.join(keys)}={to}, unhashed"
    return change


JSON_FILES = {
    "run.json": "restore run.json",
    "members/a/member.json": "restore it from a copy",
    "decision/decision.json": "run: thera fit-stacker",
    "predictions/img/predictions.json": "run: thera predict",
}
REFUSED = [
    *((name, damage, remedy) for name, remedy in JSON_FILES.items() for damage in (flip, cut)),
    *((name, edit("schema", to=99), "use the version that wrote it") for name in JSON_FILES),
    ("folds.csv", flip, "train a member first"),
    ("members/b/fold-1/oof.csv", flip, "give its `thera train-member`"),
    ("members/b/fold-1/oof.csv", cut, "give its `thera train-member`"),
    ("run.json", edit("folds", to="2"), "restore run.json"),
    ("run.json", edit("seed", to="x"), "restore run.json"),
    ("run.json", edit("folds", to=3), "restore run.json"),
    ("run.json", edit_unhashed("seed", to=None), "restore run.json"),
    ("members/a/member.json", edit("config", to=None), "restore it from a copy"),
    ("members/a/member.json", edit("begun", to="1999"), "restore it from a copy"),
    ("decision/decision.json", edit("tta", "stacked", "threshold", to=99.0), "run: thera fit-stacker"),
    ("decision/decision.json", edit("tta", "stacked", "threshold", to=float("nan")), "run: thera fit-stacker"),
    ("decision/decision.json", edit_unhashed("tta", "views", to=["rot90"]), "run: thera fit-stacker"),
    ("decision/decision.json", edit_unhashed("tta", "stacked", "threshold", to="NaN"), "run: thera fit-stacker"),
    ("predictions/img/predictions.json", edit("threshold", to=0.0), "run: thera predict"),
    ("predictions/img/predictions.json", edit_unhashed("images", to="12"), "run: thera predict"),
]


@pytest.mark.parametrize(
    ("name", "damage", "remedy"), REFUSED, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_damaged_file_is_refused_with_its_name_and_the_remedy(
    again: Path, name: str, damage: Callable[[Path], None], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(again / "run" / name)
    before = listing(again)
    for command in ("report", "verify"):
        status, lines = ended(again, command, capsys)
        assert status == 4
        assert any(f"{again / 'run' / name}: " in line and f"; {remedy}" in line for line in lines), lines
        assert listing(again) == before


def test_an_exchanged_decision_is_refused(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The former decision of the same run is whole and fits its members, but is not the one that run.json records."""
    path = again / "run/decision/decision.json"
    former = path.read_bytes()
    main([*arguments(again, "fit-stacker"), "--stacker", "mean"])
    assert path.read_bytes() != former
    path.write_bytes(former)
    for command in ("report", "predict"):
        status, (line,) = ended(again, command, capsys)
        assert status == 4 and "is not the file that is recorded in run.json" in line and "fit-stacker" in line


@pytest.mark.parametrize("name", ["label_val.txt", "predictions.csv", "predictions.json"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_prediction_is_made_again_or_refused(
    again: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = again / "run/predictions/img" / name, results(again)
    damage(path)
    status, (line,) = ended(again, "predict", capsys)
    if name == "predictions.json":  # it names the images that the folder is of
        assert status == 4 and f"{path}: " in line and "remove it; thera predict makes it again" in line
        path.unlink()
        assert ended(again, "predict", capsys) == (0, [])
    else:
        assert status == 0 and line.startswith(f"warning: {path} is not the file") and line.endswith("made again")
    assert results(again) == before
    assert ended(again, "verify", capsys) == (0, [])


def test_kept_logits_are_verified(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/fold-1.csv", "made_from.json"):
        path = again / "run/predictions/img/logits" / name
        whole = path.read_bytes()
        flip(path)
        status, lines = ended(again, "verify", capsys)
        assert status == 4 and any(line.startswith(f"damaged: {path}: ") for line in lines)
        path.write_bytes(whole)


def test_flipped_pixels_are_named_by_verify_and_decoded_again(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted((again / "run/pixels").glob("*/pixels.npy"))
    for path in paths:
        whole = path.read_bytes()
        data = np.frombuffer(whole, np.uint8).copy()
        data[128::7] ^= 1
        path.write_bytes(data.tobytes())
        status, lines = ended(again, "verify", capsys)
        assert status == 4 and any(f"{path}: is not the file" in line and "decodes" in line for line in lines)
        new = len(np.load(path)) == NEW
        status, lines = ended(again, "predict", capsys)
        assert status == 0 and len(lines) == new, "only the images to label are read"
        if not new:
            path.write_bytes(whole)
    assert ended(again, "verify", capsys) == (0, [])


@pytest.mark.parametrize("config", [{}, {"arch": 3}, {"arch": "lenet", "lr": "fast"}], ids=str)
def test_a_config_of_another_form_in_a_file_without_hashes_is_refused(
    again: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = again / "run/members/a/member.json"
    edit_unhashed("config", to=config)(path)
    shutil.rmtree(again / "run/predictions")
    for command in ("verify", "predict"):
        status, lines = ended(again, command, capsys)
        assert status == 4 and any(f"{path}: is damaged (config: " in line for line in lines), lines


@pytest.mark.parametrize("line", ["3", "[]", '{"epoch": "x"}', '{"epoch": 1, "loss": [1]}', "{"])
@pytest.mark.parametrize("unhashed", [False, True])
def test_a_history_of_another_form_is_refused(again: Path, line: str, unhashed: bool) -> None:
    from ensemble.errors import ArtifactError

    member = Run(again / "run").member("a")
    assert member.history(0) == [{"epoch": 1, "loss": 0.5, "lr": 0.1}]
    if unhashed:
        content = json.loads((member.folder / "member.json").read_text())
        content["folds"]["0"]["history_sha256"] = None
        rewrite_json(member.folder / "member.json", content)
    member.history_path(0).write_text(line + "\n")
    with pytest.raises(ArtifactError, match=r"history\.jsonl: is .*; restore it, or remove it"):
        member.history(0)


def test_a_run_without_recorded_hashes_is_read_without_a_word(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(again)
    for path in (again / "run").rglob("*.json"):
        rewrite_json(path, json.loads(path.read_text()))
    assert not json.loads((again / "run/run.json").read_text())["artifacts"]
    for command in ("verify", "predict", "report"):  # the file of the decision is another, so it is predicted anew
        assert ended(again, command, capsys) == (0, [])
    assert results(again) == before


# --- training ---------------------------------------------------------------------------------------------------------


def train(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    data = ["--images", str(folder / "train/img"), "--labels", str(folder / "train/labels.txt"), "--folds", "2"]
    network = ["--arch", "lenet", "--epochs", "2", "--input-size", "32", "--precision", "fp32"]
    plan = ["--convolutions", "native", "--device", "cpu", "--jobs", "1", "--workers", "0"]
    capsys.readouterr()
    try:
        status = main(["train-member", "--run", str(folder / "trained"), *data, *network, *plan]) or 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "warning"))]


def test_training_names_a_damaged_fold_and_removes_the_state_of_a_finished_one(
    again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(again, capsys) == (0, [])
    folds = [again / f"trained/members/lenet/fold-{fold}" for fold in range(2)]
    first = {path: path.read_bytes() for fold in folds for path in fold.glob("*") if path.suffix != ".jsonl"}
    files.write_whole(folds[0] / "state/epoch-0002.json", b"{")
    flip(folds[1] / "weights.safetensors")
    status, lines = train(again, capsys)
    assert (status, lines) == (
        0,
        ["warning: member lenet: files of fold 1 are missing or damaged; it is trained again"],
    )
    assert not (folds[0] / "state").exists()
    assert {path: path.read_bytes() for path in first if path.suffix != ".png"} == {
        path: data for path, data in first.items() if path.suffix != ".png"
    }, "a fold that is trained again is the same, byte for byte"
    assert main(["verify", str(again / "trained")]) in (0, None)


def test_a_held_lock_is_refused_before_torch_is_imported(finished: Path) -> None:
    code = """
import sys
from ensemble.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    images = ["--images", str(finished / "train/img"), "--labels", str(finished / "train/labels.txt")]
    command = ["train-member", "--run", str(finished / "locked"), *images, "--folds", "2", "--arch", "lenet"]
    with locked(finished / "locked/members/lenet"):
        ended = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert ended.stdout == "5 False\n"
    assert f"pid {os.getpid()} on " in ended.stderr


def test_a_second_fit_stacker_is_refused_before_it_fits(
    again: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ensemble.commands.fit_stacker.fit_decision", lambda *_: pytest.fail("fitted"))
    with locked(again / "run/decision"):
        status, (line,) = ended(again, "fit-stacker", capsys)
    assert status == 5 and f"pid {os.getpid()} on " in line


# --- many mutations ---------------------------------------------------------------------------------------------------


def mutate(path: Path, rng: random.Random) -> str:
    """Damage a file in one of several ways, and return a word for it."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "zeros", "double", "drop", "field"])
    at = rng.randrange(len(data))
    if kind == "field" and path.suffix == ".json":
        return mutate_field(path, rng)
    if kind == "cut":
        del data[at:]
    elif kind == "zeros":
        data[at : at + 16] = bytes(len(data[at : at + 16]))
    elif kind == "double":
        data[at:at] = data[at : at + 8]
    elif kind == "drop":
        del data[at : at + 1 + rng.randrange(40)]
    else:
        data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))
    return f"{kind} at {at}"


def test_no_mutation_of_an_artifact_changes_a_result_in_silence(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a hundred random mutations, each ends with exit status 4 or with the same bytes."""
    shutil.copytree(finished, tmp_path / "copy")
    folder, rng = tmp_path / "copy", random.Random(SEED)
    whole, expected = listing(folder), results(folder)
    names = [name for name in sorted(whole) if name.startswith("run/") and not name.endswith((".lock", ".png", ".md"))]
    statuses = dict.fromkeys((0, 4), 0)
    for number in range(MUTATIONS):
        name = rng.choice(names)
        what = mutate(folder / name, rng)
        command = rng.choice(["report", "predict"])
        status, lines = ended(folder, command, capsys)
        assert status in (0, 4), (number, name, what, command, lines)
        statuses[status] += 1
        if status == 0:
            made = {key: data for key, data in results(folder).items() if ("report" in key) == (command == "report")}
            assert made.items() <= expected.items(), (number, name, what, command, lines)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if (key := str(path.relative_to(folder))) not in whole:
                path.unlink()
            elif path.read_bytes() != whole[key]:
                path.write_bytes(whole[key])
        for key in whole.keys() - listing(folder).keys():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(whole[key])
    assert min(statuses.values()) > MUTATIONS // 10, statuses
