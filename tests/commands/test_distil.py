"""`thera distil`: what the student learns from, what reaches it of held-out labels, resuming, refusals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import fails, listing, write_three, write_tiny

from ensemble import (
    ComputeConfig,
    DataConfig,
    DecisionConfig,
    DistilConfig,
    ExportConfig,
    MemberConfig,
    StudentConfig,
    compare,
    distil,
    export,
    fit_stacker,
    predict,
    train_members,
)
from ensemble.commands import distil as command
from ensemble.commands.fit_stacker import averaged_oof
from ensemble.commands.model_card_file import CARD
from ensemble.commands.predict_shards import predict_shards
from ensemble.commands.remove_member import remove_member
from ensemble.commands.report import report
from ensemble.commands.verify import verify
from ensemble.config import VIEWS
from ensemble.errors import ArtifactError, ConfigError, DataError, ResourceError, Stopped
from ensemble.export_config import LabelledBy
from ensemble.predict_config import PredictConfig
from ensemble.reports.render import render
from ensemble.runs import files
from ensemble.runs.distilled import is_distilled, read_distilled
from ensemble.runs.run import Run
from ensemble.runs.training_state import StateFolder

COMPUTE = ComputeConfig(device="cpu", jobs=1)
STUDENT_FIELDS: dict[str, Any] = {"arch": "test_resnet", "pretrained": False, "epochs": 2, "batch_size": 8}
STUDENT = StudentConfig(**STUDENT_FIELDS)


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


def teacher_logits(run: Path, fold: int) -> bytes:
    return (run / f"members/distilled/teacher-{fold}.csv").read_bytes()


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
    assert "It learned from held-out images, without their labels" in text
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
    assert teacher_logits(run, 0) == teacher_logits(distilled[0], 0)
    assert outputs(run, 1) != outputs(distilled[0], 1)  # there, they are labels of training rows
    assert teacher_logits(run, 1) != teacher_logits(distilled[0], 1)


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


@pytest.mark.parametrize("saves", [2, 5])
def test_stopped_within_an_epoch_it_goes_on_to_the_same_bytes(
    saves: int, base: Path, distilled: tuple[Path, Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 images in batches of 8 are 8 updates in each of 2 epochs; the state is saved after each of them."""
    real, done = StateFolder.save, [0]

    def save(self: StateFolder, *given: Any) -> None:
        real(self, *given)
        done[0] += 1
        if done[0] == saves:
            raise Stopped("thera", "stopped by SIGTERM")

    lesson, often = DistilConfig(unlabelled=base / "new/img"), COMPUTE.model_copy(update={"save_every": 0.0})
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(StateFolder, "save", save)
        distil(run, lesson, STUDENT, often)
    states = [path.stem for path in (run / "members/distilled").glob("fold-*/state/*.json")]
    assert any("update" in stem for stem in states)
    monkeypatch.setattr(command, "unkept_fold_logits", lambda *_: pytest.fail("computed again"))
    distil(run, lesson, STUDENT, COMPUTE)
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
    pytest.importorskip("pyarrow", reason="the extra thera[parquet] is not installed")
    run = Path(shutil.copytree(distilled[0], tmp_path / "run"))
    lines: list[str] = []
    assert fit_stacker(run, say=lines.append).tta.stacker.members == ("a", "b")
    predict(run, PredictConfig(images=base / "new/img"), COMPUTE, lines.append)
    assert not [line for line in lines if "distilled" in line]
    assert not [line for line in lines if "learned from held-out images" in line]
    named = fit_stacker(run, DecisionConfig(members=("distilled",)), lines.append)
    assert [line for line in lines if line.startswith("note: member distilled learned from held-out images")]
    assert named.tta.stacker.members == ("distilled",)
    result = predict(run, PredictConfig(images=base / "new/img", force=True), COMPUTE, lines.append)
    assert len(result.y_pred) == 24
    caveat = (
        "member distilled learned from held-out images, without their labels: on images that it was not given, the "
        "error may be higher."
    )
    assert result.facts.caveats == (caveat,) and f"note: {caveat}" in lines
    assert caveat in "".join(table.text(10**4) for table in render(result))
    lines.clear()
    new = PredictConfig(images=base / "new/img")
    labelled = predict_shards(LabelledBy(run=run), tmp_path / "shards", new, COMPUTE, lines.append)
    assert labelled.facts.caveats == (caveat,) and f"note: {caveat}" in lines
    report(run)
    card = (run / CARD).read_text()
    assert "1 network (distilled), each trained on 2 folds, so that there are 2 sets of weights" in card
    assert "further members, which do not influence its answers: a, b." in card and caveat in card
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


def test_finished_folds_do_not_need_the_files_of_the_teacher(distilled: tuple[Path, Any], tmp_path: Path) -> None:
    run = Path(shutil.copytree(distilled[0], tmp_path / "run"))
    (run / "members/distilled/teacher-1.csv").unlink()
    lines: list[str] = []
    checked = verify(run, lines.append).checked
    assert "members/distilled/teacher-0.csv" in checked and "members/distilled/teacher-1.csv" not in checked
    assert lines == ["note: member distilled lacks teacher-1.csv; its finished fold does not need it"]
    unfinished = Run(run).member("distilled")
    unfinished.update(folds={fold: facts for fold, facts in unfinished.read().folds.items() if fold != "1"})
    with pytest.raises(ArtifactError, match="1 of"):
        verify(run, lines.append)
    assert "teacher-1.csv: is not there" in lines[1]


def test_logits_of_a_teacher_that_are_damaged_are_computed_again_and_it_is_said(
    base: Path, distilled: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(distilled[0], tmp_path / "run"))
    path = run / "members/distilled/teacher-1.csv"
    path.write_bytes(path.read_bytes()[:-9])
    lines: list[str] = []
    distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE, lines.append)
    assert [line for line in lines if "teacher-1.csv is missing or damaged" in line]
    assert teacher_logits(run, 1) == teacher_logits(distilled[0], 1)
    path.unlink()
    real = command.unkept_fold_logits

    def other(*given: Any) -> Any:
        logits = real(*given)
        return replace(logits, by_fold=logits.by_fold + 1e-3)

    monkeypatch.setattr(command, "unkept_fold_logits", other)
    with pytest.raises(ArtifactError, match="other logits than the student has begun to learn from"):
        distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE)


def test_recorded_logits_teach_where_the_weights_are_gone(base: Path, run: Path) -> None:
    """Targets: OOF logits by a stacker without the fold; for new images, the kept logits of the models of the fold."""
    predict(run, PredictConfig(images=base / "new/img"), COMPUTE)
    for path in run.glob("members/*/fold-*/weights.safetensors"):
        path.unlink()
    with pytest.raises(ArtifactError, match="lacks the weights"):
        distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE)
    config = DistilConfig(unlabelled=base / "new/img", from_oof=True)
    with pytest.raises(ArtifactError, match="keeps no logits of a, fold 0, on these images"):
        distil(run, DistilConfig(unlabelled=base / "train/img", from_oof=True), STUDENT, COMPUTE)
    result = distil(run, config, STUDENT, COMPUTE)
    oof = averaged_oof(Run(run), ("a", "b"), VIEWS)
    for fold in range(2):
        stacker = oof.rows.without(fold).any_stacker("nonnegative")
        _, logits = files.read_logits(run / f"members/distilled/teacher-{fold}.csv", ("stacked",), None, "")
        np.testing.assert_allclose(logits[:40, 0], stacker.apply(oof.logits), atol=1e-5)
        kept = [
            files.read_logits(run / f"predictions/img/logits/{name}/fold-{fold}.csv", VIEWS, None, "")[1].mean(axis=1)
            for name in ("a", "b")
        ]
        np.testing.assert_allclose(logits[40:, 0], stacker.apply(np.stack(kept, axis=1)), atol=1e-5)
    assert len(result.report.caveats) == 2 and "saw the labels of its held-out images" in result.report.caveats[1]
    label_alone = replace(read_distilled(Run(run).member("distilled")), teacher_weight=0.0)
    assert len(label_alone.caveats) == 1  # no target then depends on a label of a held-out image


def test_the_teacher_may_be_named_and_needs_no_decision(base: Path, run: Path) -> None:
    shutil.rmtree(run / "decision")
    result = distil(run, DistilConfig(members=("b",)), STUDENT, COMPUTE)
    assert read_distilled(Run(run).member("distilled")).teachers == ("b",)
    assert result.teacher.networks == 2
    assert result.comparison.comparison.b.rates == result.report.assessment.nested
    fit_stacker(run, DecisionConfig(members=("distilled",)))
    again = distil(run, DistilConfig(members="b, a"), StudentConfig(**{**STUDENT_FIELDS, "name": "second"}), COMPUTE)
    facts = read_distilled(Run(run).member("second"))
    assert (facts.teachers, facts.stacker) == (("a", "b"), "nonnegative")
    assert "the stack of a, b" in again.comparison.description_a
    with pytest.raises(ConfigError, match=r"--members: the run has no member nobody; it has a, b, distilled, second"):
        distil(run, DistilConfig(members=("nobody",)), STUDENT, COMPUTE)


def test_both_are_compared_at_the_objective_of_the_run(run: Path) -> None:
    fit_stacker(run, DecisionConfig(objective="cost:1,5"))
    result = distil(run, None, STUDENT, COMPUTE)
    for description in (result.comparison.description_a, result.comparison.description_b):
        assert description.endswith(" at the least weighted error (1 FPR + 5 FNR) / 6")


def test_without_held_out_images_their_copies_are_left_out_too(base: Path, run: Path, tmp_path: Path) -> None:
    """Images without labels that are copies of all images of the run add to each fold those that it trains on alone."""
    rows: list[np.ndarray] = []
    real = command._with_targets

    def kept(*given: Any) -> Any:
        job = real(*given)
        rows.append(job.rows)
        return job

    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_with_targets", kept)
        result = distil(
            run, DistilConfig(unlabelled=base / "train/img", held_out=False), STUDENT, COMPUTE, lines.append
        )
    assert "note: 40 of the 40 images without labels are copies of images of the run" in lines
    assert "held-out images" not in "".join(table.text(80) for table in render(result))
    fold_of = Run(run).read_folds().fold_of
    for fold, of_fold in enumerate(rows):
        assert sorted(np.unique(of_fold % 40)) == np.flatnonzero(fold_of != fold).tolist()
        assert len(of_fold) == 2 * np.count_nonzero(fold_of != fold)


def test_other_images_without_labels_of_a_begun_student_are_refused(
    base: Path, distilled: tuple[Path, Any], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base / "new/img", tmp_path / "img"))
    (other / "024.png").unlink()
    before = listing(distilled[0] / "members/distilled")
    with pytest.raises(ArtifactError, match="unlabelled was 24 and is 23"):
        distil(distilled[0], DistilConfig(unlabelled=other), STUDENT, COMPUTE)
    after = listing(distilled[0] / "members/distilled")
    assert after == before


def test_other_weights_of_a_teacher_are_refused(base: Path, distilled: tuple[Path, Any], tmp_path: Path) -> None:
    run = Path(shutil.copytree(distilled[0], tmp_path / "run"))
    data = DataConfig(images=base / "train/img", labels=base / "train/labels.txt")
    remove_member(run, "b", yes=True)
    again = MemberConfig(arch="test_resnet", name="b", pretrained=False, epochs=1, batch_size=8)
    train_members(run, [again], data, 2, 0, COMPUTE)
    fit_stacker(run)
    with pytest.raises(ArtifactError, match="member distilled: learned from other weights of b than the run has now"):
        distil(run, DistilConfig(unlabelled=base / "new/img"), STUDENT, COMPUTE)


def test_a_refusal_leaves_no_folder_behind(run: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "large", 4, size=32)
    with pytest.raises(ArtifactError, match="images are 32 × 32 pixels, those of the run 16 × 16"):
        distil(run, DistilConfig(unlabelled=tmp_path / "large/img"), STUDENT, COMPUTE)
    assert not (run / "members/distilled").exists()


def test_skipped_images_are_named_and_listed(base: Path, run: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(base / "new/img", tmp_path / "img"))
    (images / "007.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 24 images cannot be used: 007\.png"):
        distil(run, DistilConfig(unlabelled=images), STUDENT, COMPUTE)
    lines: list[str] = []
    distil(run, DistilConfig(unlabelled=images, on_bad="skip"), STUDENT, COMPUTE, lines.append)
    assert [line for line in lines if "1 of 24 images cannot be used and are left out: 007.png" in line]
    assert read_distilled(Run(run).member("distilled")).unlabelled == 23
    assert "007.png" in (run / "members/distilled/bad_images.csv").read_text()


def test_a_fault_in_training_keeps_the_teachers_logits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ResourceError("the device", "is out of memory")

    with monkeypatch.context() as patch, pytest.raises(ResourceError):
        patch.setattr(command, "finish_folds", full)
        distil(run, None, STUDENT, COMPUTE)
    monkeypatch.setattr(command, "unkept_fold_logits", lambda *_: pytest.fail("computed again"))
    distil(run, None, STUDENT, COMPUTE)


REFUSED = """
import sys
from ensemble.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    print(stopped.code, [name for name in ("torch", "timm") if name in sys.modules])
"""


def test_it_refuses_before_torch_is_imported(distilled: tuple[Path, Any]) -> None:
    for options, message in ((("--name", "a"), "would be its teacher"), (("--temperature", "2"), "temperature was")):
        command_line = [sys.executable, "-c", REFUSED, "distil", str(distilled[0]), *options]
        done = subprocess.run(command_line, capture_output=True, text=True, check=False)
        assert message in done.stderr and done.stdout.strip() in ("2 []", "4 []")


def test_the_log_of_tensorboard_follows_the_student(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra thera[tensorboard] is not installed")
    distil(run, None, STUDENT, COMPUTE.model_copy(update={"log": "tensorboard"}))
    assert [path.name for path in sorted((run / "tensorboard/distilled").iterdir())] == ["fold-0", "fold-1"]


def test_it_is_exported_and_removed_as_any_member(distilled: tuple[Path, Any], base: Path, tmp_path: Path) -> None:
    for extra in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(extra, reason="the extras thera[export] and thera[runtime] are not installed")
    run = Path(shutil.copytree(distilled[0], tmp_path / "run"))
    fit_stacker(run, DecisionConfig(members=("distilled",)))
    exported = export(run, ExportConfig(out=tmp_path / "student.onnx", images=base / "train/img"))
    assert [each.name for each in exported.facts.members] == ["distilled"]
    lines: list[str] = []
    removed = remove_member(run, "distilled", yes=True, say=lines.append)
    assert removed.stale and not (run / "members/distilled").exists()
    fit_stacker(run)
    verify(run)


def test_three_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, three=True) / "run"
    other = Path(shutil.copytree(run, tmp_path / "other"))
    read = Run.read_folds

    def exchanged(self: Run) -> Any:
        table = read(self)
        return replace(table, labels=np.where(table.fold_of == 0, (table.labels + 1) % 3, table.labels).astype(np.int8))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "read_folds", exchanged)
        distil(other, None, STUDENT, COMPUTE)
    result = distil(run, None, STUDENT, COMPUTE)
    assert outputs(run, 0) == outputs(other, 0) and outputs(run, 1) != outputs(other, 1)
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
