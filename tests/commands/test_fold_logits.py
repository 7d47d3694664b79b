"""Prediction keeps the logits of each fold model, goes on where it stopped, and decides anew without the weights."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import prediction_facts, rewrite_json, write_tiny

from ensemble.cli import main
from ensemble.members import inference

CONFIG = """
run: {folder}/run
seed: 3
folds: 2
data: {{images: {folder}/tiny/img, labels: {folder}/tiny/labels.txt}}
members:
  - {{arch: test_resnet, name: a, pretrained: false, epochs: 2, batch_size: 8, ema_decay: 0.9, augment: light}}
  - {{arch: test_resnet, name: b, pretrained: false, epochs: 1, batch_size: 8, ema_decay: 0.9, augment: light}}
"""
FILES = [f"{member}/fold-{fold}.csv" for member in "ab" for fold in range(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that has a decision and no prediction, and new images."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny(folder / "tiny", 48)
    write_tiny(folder / "new", 12, seed=1)
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    main(["run", str(folder / "run.yaml"), "--device", "cpu"])
    return folder


@pytest.fixture(scope="module")
def predicted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that has predicted the new images, undisturbed, with TTA."""
    folder = tmp_path_factory.mktemp("predicted")
    shutil.copytree(trained / "run", folder / "run")
    main(command(folder, trained))
    return folder


@pytest.fixture
def again(predicted: Path, tmp_path: Path) -> Path:
    shutil.copytree(predicted / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Return a list to which every later prediction adds the views of its fold model."""
    seen: list[tuple[str, ...]] = []
    really = inference.predict_logits

    def recording(*given: Any) -> np.ndarray:
        seen.append(tuple(given[3]))
        return really(*given)

    monkeypatch.setattr(inference, "predict_logits", recording)
    return seen


def command(folder: Path, data: Path, *more: str) -> list[str]:
    arguments = ["predict", "--tta", "--run", folder / "run", "--images", data / "new/img", "--out", folder / "out.txt"]
    return [*map(str, arguments), "--device", "cpu", *more]


def made(folder: Path, name: str = "img") -> dict[str, str]:
    """Hash all that a prediction is judged by."""
    place = folder / "run/predictions" / name
    files = [place / "label_val.txt", place / "predictions.csv", *place.glob("logits/*/*")]
    hashes = {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return hashes | {"out": hashlib.sha256((folder / "out.txt").read_bytes()).hexdigest()}


def forget(folder: Path, name: str = "img") -> None:
    """Remove the decided part of a prediction, so that it must be decided anew."""
    for file in ("label_val.txt", "predictions.csv", "predictions.json"):
        (folder / "run/predictions" / name / file).unlink()


def remove_weights(folder: Path) -> None:
    weights = list(folder.glob("run/members/*/fold-*/weights.safetensors"))
    assert len(weights) == 4
    for path in weights:
        path.unlink()


def fails(status: int, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == status and len(errors) == 1, (stopped.value.code, errors)
    return errors[0]


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the warnings, without the one that the few epochs of these networks give: all images got one label."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning: ") and "images got label" not in line]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_logits_of_each_fold_model_lie_beside_the_labels(predicted: Path, trained: Path) -> None:
    place = predicted / "run/predictions/img"
    stored = json.loads((place / "logits/made_from.json").read_text())
    assert stored["fingerprint"] == prediction_facts(place / "predictions.json")["requested_fingerprint"]
    assert list(stored["files"]) == FILES
    for name, facts in stored["files"].items():
        member, fold = name.removesuffix(".csv").split("/fold-")
        training = json.loads((predicted / f"run/members/{member}/member.json").read_text())["folds"][fold]
        data = (place / "logits" / name).read_bytes()
        assert facts == {
            "sha256": hashlib.sha256(data).hexdigest(),
            "weights_sha256": training["weights_sha256"],
            "views": ["identity", "hflip"],
            "precision": "fp32",
            "convolutions": "native",
            "device": "cpu",
            "forced": {"precision": "auto", "convolutions": "auto"},
        }
        head, *rows = csv.reader(data.decode().splitlines())
        assert head == ["id", "logit_identity", "logit_hflip"]
        assert [row[0] for row in rows] == [f"{i:03d}" for i in range(1, 13)]
        assert all(len(cell.split(".")[1]) == 5 for row in rows for cell in row[1:])
    assert not list(place.rglob("*.tmp"))


def test_the_prediction_is_computed_from_the_logits_as_written(predicted: Path) -> None:
    place = predicted / "run/predictions/img"
    with open(place / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    for member in "ab":
        files = [place / f"logits/{member}/fold-{fold}.csv" for fold in range(2)]
        kept = [np.loadtxt(file, delimiter=",", skiprows=1)[:, 1:].mean(axis=1) for file in files]
        expected = np.stack(kept, axis=1).mean(axis=1).round(5)
        assert [row[f"logit_{member}"] for row in rows] == [f"{x:.5f}" for x in expected]


# --- decided anew -----------------------------------------------------------------------------------------------------


def test_decided_anew_without_weights(again: Path, predicted: Path, trained: Path, computed: list[Any]) -> None:
    remove_weights(again)
    main(["fit-stacker", "--run", str(again / "run")])
    forget(again)
    main(command(again, trained))
    assert made(again) == made(predicted) and not computed


def test_another_decision_takes_effect_without_weights(again: Path, trained: Path, computed: list[Any]) -> None:
    remove_weights(again)
    path = again / "run/decision/decision.json"
    decision = json.loads(path.read_text())
    decision["tta"]["stacked"]["threshold"] = 1e9
    rewrite_json(path, decision)
    main(command(again, trained))
    assert (again / "out.txt").read_text() == "0\n" * 12 and not computed


def test_decided_anew_without_torch(again: Path, predicted: Path, trained: Path) -> None:
    forget(again)
    code = "import sys; from ensemble.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *command(again, trained)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert made(again) == made(predicted)


def test_plain_prediction_takes_its_view_from_the_logits_with_tta(
    again: Path, trained: Path, tmp_path: Path, computed: list[Any]
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(trained / "run", plain / "run")
    main(command(plain, trained, "--no-tta"))
    assert computed == [("identity",)] * 4
    header = (plain / "run/predictions/img-plain/logits/a/fold-0.csv").read_text().splitlines()[0]
    assert header == "id,logit_identity"
    remove_weights(again)
    main(command(again, trained, "--no-tta"))
    assert len(computed) == 4
    assert not (again / "run/predictions/img-plain/logits").exists()
    for file in ("label_val.txt", "predictions.csv"):
        there, here = (folder / "run/predictions/img-plain" / file for folder in (plain, again))
        assert there.read_bytes() == here.read_bytes()
    computed.clear()
    main(command(plain, trained))  # the plain logits lack a view
    assert computed == [("identity", "hflip")] * 4


def test_what_is_kept_is_skipped_on_the_bar(
    again: Path, trained: Path, computed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    forget(again)
    (again / "run/predictions/img/logits/b/fold-0.csv").unlink()
    capsys.readouterr()
    main(command(again, trained))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("predict: ")]
    assert line.startswith("predict: 96 of 96 views") and len(computed) == 1


# --- interrupted ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [2, 4])
def test_interrupted_it_goes_on_to_the_same(
    trained: Path, predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    really, calls = inference.predict_logits, []

    def counted(*given: Any) -> np.ndarray:
        calls.append(given)
        if len(calls) == at:
            raise Killed
        return really(*given)

    monkeypatch.setattr(inference, "predict_logits", counted)
    with pytest.raises(Killed):
        main(command(tmp_path, trained))
    place = tmp_path / "run/predictions/img"
    assert list(json.loads((place / "logits/made_from.json").read_text())["files"]) == FILES[: at - 1]
    assert not (place / "label_val.txt").exists() and not (tmp_path / "out.txt").exists()
    main(command(tmp_path, trained))
    assert len(calls) == 5  # four fold models, and the one that was interrupted
    assert made(tmp_path) == made(predicted)


STOPPED_AT_THE_SECOND = """
import os, sys
from ensemble.members import inference
from ensemble.cli import main

really, calls = inference.predict_logits, []

def counted(*given):
    calls.append(given)
    if len(calls) == 2:
        os.kill(os.getpid(), int(sys.argv[1]))
    return really(*given)

inference.predict_logits = counted
main(sys.argv[2:])
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_by_a_signal_it_goes_on_to_the_same(
    trained: Path, predicted: Path, tmp_path: Path, computed: list[Any], kind: signal.Signals
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    start = [sys.executable, "-c", STOPPED_AT_THE_SECOND, str(kind.value), *command(tmp_path, trained)]
    done = subprocess.run(start, capture_output=True, text=True)
    assert done.returncode == (75 if kind == signal.SIGTERM else -kind.value), done.stderr
    assert "Traceback" not in done.stderr
    place = tmp_path / "run/predictions/img"
    assert [path.name for path in place.rglob("*.csv")] == ["fold-0.csv"]
    (place / "logits/a/.fold-1.csv.1.tmp").write_text("half")
    main(command(tmp_path, trained))
    assert len(computed) == 3 and not list(place.rglob("*.tmp"))
    assert made(tmp_path) == made(predicted)


def test_another_set_of_that_name_leaves_an_interrupted_one_alone(again: Path, trained: Path, tmp_path: Path) -> None:
    forget(again)
    before = {path: path.read_bytes() for path in again.glob("run/predictions/img/logits/*/*")}
    write_tiny(tmp_path / "new", 3, seed=2)
    main(command(again, tmp_path))
    assert {path: path.read_bytes() for path in before} == before
    (other,) = again.glob("run/predictions/img-*")
    assert len((other / "label_val.txt").read_text()) == 2 * 3


# --- damaged, or made from something else -----------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"\xff\xfe\0")])
def test_damaged_logits_are_computed_again_with_one_warning(
    again: Path,
    predicted: Path,
    trained: Path,
    computed: list[Any],
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    forget(again)
    path = again / "run/predictions/img/logits/b/fold-0.csv"
    damage(path)
    capsys.readouterr()
    main(command(again, trained))
    (warning,) = warnings(capsys)
    assert warning.startswith(f"warning: {path}: is ") and warning.endswith("; it is computed again")
    assert made(again) == made(predicted) and len(computed) == 1


def test_damaged_logits_without_weights_are_refused(
    again: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(again)
    remove_weights(again)
    path = again / "run/predictions/img/logits/b/fold-1.csv"
    whole = path.read_bytes()
    flip(path)
    message = fails(4, command(again, trained), capsys)
    assert (
        f"{path}: is not the file that thera wrote (its hash differs), and the weights that computed it are missing"
        in message
    )
    assert message.endswith("; restore one of the two")
    path.unlink()
    assert "member b: lacks the weights of fold 1; give its `thera" in fails(4, command(again, trained), capsys)
    assert not (again / "run/predictions/img/label_val.txt").exists() and not (again / "out.txt").exists()
    path.write_bytes(whole)
    main(command(again, trained))


def test_missing_weights_are_reported_before_anything_is_computed(
    trained: Path, tmp_path: Path, computed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run/members/b/fold-1/weights.safetensors").unlink()
    assert "member b: lacks the weights of fold 1" in fails(4, command(tmp_path, trained), capsys)
    assert not computed


def test_logits_of_other_weights_are_not_used(
    again: Path, predicted: Path, trained: Path, computed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    forget(again)
    path = again / "run/predictions/img/logits/made_from.json"
    stored = json.loads(path.read_text())
    stored["files"]["a/fold-1.csv"]["weights_sha256"] = "0" * 64
    rewrite_json(path, stored)
    capsys.readouterr()
    main(command(again, trained))
    assert len(computed) == 1 and not warnings(capsys) and made(again) == made(predicted)


def test_logits_under_ids_of_other_images_are_not_used(
    again: Path, predicted: Path, trained: Path, computed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    forget(again)
    place = again / "run/predictions/img/logits"
    data = (place / "a/fold-0.csv").read_bytes().replace(b"\n001,", b"\n999,")
    (place / "a/fold-0.csv").write_bytes(data)
    stored = json.loads((place / "made_from.json").read_text())
    stored["files"]["a/fold-0.csv"]["sha256"] = hashlib.sha256(data).hexdigest()
    rewrite_json(place / "made_from.json", stored)
    capsys.readouterr()
    main(command(again, trained))
    assert "does not have the ids of the images" in "".join(warnings(capsys))
    assert len(computed) == 1 and made(again) == made(predicted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is damaged"),
        ({"files": []}, "is damaged ("),
        ({"files": {"a/fold-0.csv": 1}}, "is damaged ("),
        ({"schema": 99}, "has schema 99"),
    ],
)
def test_a_damaged_or_newer_note_is_refused(
    again: Path, trained: Path, change: dict[str, Any] | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(again)
    path = again / "run/predictions/img/logits/made_from.json"
    stored = json.loads(path.read_text())
    path.write_text("{") if change is None else rewrite_json(path, stored | change)
    before = path.read_bytes()
    assert f"{path}: {message}" in fails(4, command(again, trained), capsys)
    assert path.read_bytes() == before


@pytest.mark.parametrize("views", [None, 7, "identity", [[]]])
def test_a_note_with_views_of_a_wrong_type_is_refused(
    again: Path, trained: Path, views: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(again)
    path = again / "run/predictions/img/logits/made_from.json"
    stored = json.loads(path.read_text())
    stored["files"]["b/fold-1.csv"]["views"] = views
    rewrite_json(path, stored)
    line = fails(4, command(again, trained), capsys)
    assert f"{path}: is damaged (files.b/fold-1.csv.views" in line and "its logits are then computed again" in line


def test_logits_of_other_views_are_computed_again(
    again: Path, predicted: Path, trained: Path, computed: list[Any]
) -> None:
    forget(again)
    path = again / "run/predictions/img/logits/made_from.json"
    stored = json.loads(path.read_text())
    stored["files"]["b/fold-1.csv"]["views"] = ["identity"]
    rewrite_json(path, stored)
    main(command(again, trained))
    assert len(computed) == 1 and made(again) == made(predicted)


def test_logits_that_are_not_finite_are_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.setattr(inference, "predict_logits", lambda *given: np.full((12, 2), np.nan))
    message = fails(1, command(tmp_path, trained), capsys)
    assert "member a: 24 logits of fold 0 are not finite in fp32 native; use --precision fp32" in message
    assert not list(tmp_path.rglob("logits/*"))
