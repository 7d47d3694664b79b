"""`thera distil`: what the student learns from, what reaches it of held-out labels, resuming, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import fails, write_three, write_tiny

from ensemble import (
    ComputeConfig,
    DataConfig,
    DecisionConfig,
    DistilConfig,
    MemberConfig,
    StudentConfig,
    compare,
    distil,
    fit_stacker,
    predict,
    train_members,
)
from ensemble.commands import distil as command
from ensemble.commands.verify import verify
from ensemble.config import VIEWS
from ensemble.errors import ArtifactError, ConfigError, Stopped
from ensemble.predict_config import PredictConfig
from ensemble.reports.render import render
from ensemble.runs.distilled import is_distilled, read_distilled
from ensemble.runs.run import Run

COMPUTE = ComputeConfig(device="cpu", jobs=1)
STUDENT = StudentConfig(arch="test_resnet", pretrained=False, epochs=2, batch_size=8)


def trained(folder: Path, three: bool = False) -> Path:
    """Train two members on two folds of 40 images, and fit their stack."""
    (write_three if three else write_tiny)(folder / "train", 42 if three else 40)
    labels = {"labels": folder / "train/labels.txt", **({"classes": 3} if three else {})}
    members = [
        MemberConfig(arch="test_resnet", name=name, pretrained=False, epochs=epochs, batch_size=8)
        for name, epochs in (("a", 1), ("b", 2))
    ]
    train_members(folder / "run", members, DataConfig(images=folder / "train/img", **labels), 2, 0, COMPUTE)
    fit_stacker(folder / "run")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trained(tmp_path_factory.mktemp("distil"))
    write_tiny(folder / "new", 24, seed=1)
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def distilled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    run = Path(shutil.copytree(base / "run", tmp_path_factory.mktemp("distilled") / "run"))
    yield run, distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE)


def outputs(run: Path, fold: int, name: str = "distilled") -> tuple[bytes, bytes]:
    folder = run / "members" / name / f"fold-{fold}"
    return (folder / "weights.safetensors").read_bytes(), (folder / "oof.csv").read_bytes()


def test_a_student_is_a_member_and_is_compared_with_its_teacher(distilled: tuple[Path, Any]) -> None:
    run, result = distilled
    member = Run(run).member("distilled")
    assert is_distilled(member) and not is_distilled(Run(run).member("a"))
    facts = read_distilled(member)
    assert facts.teachers == ("a", "b") and facts.unlabelled == 24 and set(facts.logits) == {"0", "1"}
    assert member.read().config["loss"] == "bce" and member.read().config["arch"] == "test_resnet"
    again = compare(run, run / "members/distilled")
    assert result.comparison.comparison == again.comparison
    assert result.report.assessment.nested == again.comparison.b.rates
    assert result.teacher.networks == 4 and result.student.networks == 2
    assert result.teacher.parameters == 2 * result.student.parameters  # two members of the same network
    assert result.student.images_per_second > 0
    text = "".join(table.text(80) for table in render(result))
    assert "Distilled: it learned the answers of the stack of a, b." in text
    assert "Teacher and student" in text and "--members distilled" in text


def test_no_held_out_label_reaches_the_student(
    base: Path, distilled: tuple[Path, Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels of fold 0 are exchanged after its teachers are trained: the student of fold 0 has the same bytes."""
    read = Run.read_folds

    def exchanged(self: Run) -> Any:
        table = read(self)
        labels = table.labels.copy()
        labels[table.fold_of == 0] = 1 - labels[table.fold_of == 0]
        return replace(table, labels=labels)

    monkeypatch.setattr(Run, "read_folds", exchanged)
    distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE)
    assert outputs(run, 0) == outputs(distilled[0], 0)
    assert outputs(run, 1) != outputs(distilled[0], 1)  # there, they are labels of training rows


def test_it_goes_on_with_the_same_bytes_and_keeps_the_teacher(
    base: Path, distilled: tuple[Path, Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped("thera", "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(command, "finish_folds", stop)
        with pytest.raises(Stopped):
            distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE)
    monkeypatch.setattr(command, "unkept_fold_logits", lambda *_: pytest.fail("computed again"))
    distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE)
    for fold in (0, 1):
        assert outputs(run, fold) == outputs(distilled[0], fold)


@pytest.mark.parametrize("changed", [{}, {"held_out": False}, {"teacher_weight": 0.2}, {"temperature": 3.0}])
def test_each_option_changes_the_student(
    base: Path, distilled: tuple[Path, Any], run: Path, changed: dict[str, Any]
) -> None:
    images = {"unlabelled": base / "new/img"} if changed else {}  # without further images
    distil(run, DistilConfig.model_validate({**images, **changed}), STUDENT, COMPUTE)
    assert outputs(run, 0) != outputs(distilled[0], 0)


def test_a_student_is_in_a_stack_only_where_named(distilled: tuple[Path, Any], base: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(distilled[0], tmp_path / "run"))
    lines: list[str] = []
    assert fit_stacker(run, say=lines.append).tta.stacker.members == ("a", "b")
    predict(run, PredictConfig(images=base / "new/img"), COMPUTE, lines.append)
    assert not [line for line in lines if "distilled" in line]
    named = fit_stacker(run, DecisionConfig(members=("distilled",)))
    assert named.tta.stacker.members == ("distilled",)
    result = predict(run, PredictConfig(images=base / "new/img", force=True), COMPUTE)
    assert len(result.y_pred) == 24
    with pytest.raises(ConfigError, match="distilled is in the stack that would be its teacher"):
        distil(run, None, STUDENT, COMPUTE)


def test_a_damaged_file_of_the_teacher_is_found(distilled: tuple[Path, Any], tmp_path: Path) -> None:
    run = Path(shutil.copytree(distilled[0], tmp_path / "run"))
    verify(run)
    path = run / "members/distilled/teacher-1.csv"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    lines: list[str] = []
    with pytest.raises(ArtifactError, match="1 of"):
        verify(run, lines.append)
    assert "teacher-1.csv" in lines[0] and "thera distil" in lines[0]


def test_three_classes(tmp_path: Path) -> None:
    run = trained(tmp_path, three=True) / "run"
    result = distil(run, None, STUDENT, COMPUTE)
    assert result.report.assessment.nested.n == 42
    assert Run(run).member("distilled").oof_logits(Run(run).read_folds(), VIEWS).shape == (42, 2, 3)
    assert "class error" in "".join(table.text(80) for table in render(result))


def test_refusals(run: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--epochs" in fails(capsys, 2, "distil", run, "--epochs", 0)
    assert "does not exist" in fails(capsys, 3, "distil", run, "--unlabelled", run / "nothing")
    line = fails(capsys, 2, "distil", run, "--name", "a")
    assert line == (
        "error: --name: a is in the stack that would be its teacher; give another --name, or fit the stack without it"
    )
    fit_stacker(run, DecisionConfig(members=("a",)))
    line = fails(capsys, 4, "distil", run, "--name", "b", "--device", "cpu")
    assert "member b: was trained on labels, not on a stack's answers; give another --name" in line
    (run / "members/a/fold-1/weights.safetensors").unlink()
    assert "member a: lacks the weights of fold 1" in fails(capsys, 4, "distil", run)
    with pytest.raises(ValueError, match="a student has no loss"):
        StudentConfig(loss="focal")


def test_a_student_is_not_trained_on_labels_afterwards(distilled: tuple[Path, Any], base: Path) -> None:
    data = DataConfig(images=base / "train/img", labels=base / "train/labels.txt")
    with pytest.raises(ArtifactError, match="member distilled: was trained by thera distil"):
        train_members(distilled[0], [STUDENT.member], data, 2, 0, COMPUTE)


def test_other_options_of_a_begun_student_are_refused(distilled: tuple[Path, Any], base: Path) -> None:
    with pytest.raises(ArtifactError, match=r"temperature was 1\.0 and is 2\.0"):
        distil(distilled[0], DistilConfig(unlabelled=base / "new/img", temperature=2.0), STUDENT, COMPUTE)


def test_the_prefix_keeps_names_apart(distilled: tuple[Path, Any]) -> None:
    ids = np.loadtxt(distilled[0] / "members/distilled/teacher-0.csv", str, delimiter=",", skiprows=1, usecols=0)
    assert len(set(ids.tolist())) == 64 and sum(name.startswith("unlabelled/") for name in ids.tolist()) == 24
