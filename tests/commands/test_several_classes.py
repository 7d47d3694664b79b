"""More than two classes through every command: labels of each kind in, label files, tables and reports out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score
from tiny import fails, listing, write_three

from ensemble.cli import main
from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.prediction_files import read_prediction
from ensemble.data.folders import open_folder
from ensemble.decision import class_assessment
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.cross_fitting import cross_fit, stack
from ensemble.decision.rates import apply_offsets
from ensemble.results import ClassFitResult
from ensemble.runs.run import Run

TRAIN = ("--arch", "test_resnet", "--no-pretrained", "--epochs", "6", "--batch-size", "8", "--ema-decay", "0.8",
         "--augment", "none", "--lr", "0.005", "--folds", "2", "--device", "cpu", "--jobs", "1")  # fmt: skip
NAMES = ("low", "mid", "top")  # of labels.csv, by the alphabet


def thera(*arguments: object) -> None:
    main([str(each) for each in arguments])


@pytest.fixture(scope="module", autouse=True)
def few_replicates() -> Iterator[None]:
    """Draw few replicates; they change intervals alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_assessment, "REPLICATES", 20)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny images of three classes, and a run with two members, a decision and a label file."""
    folder = tmp_path_factory.mktemp("three")
    write_three(folder / "tiny", 96)
    write_three(folder / "new", 40, seed=1)
    data = ("--images", folder / "tiny/img", "--labels", folder / "tiny/labels.csv", "--classes", 3)
    for name, *more in (("a", "--sampler", "balanced"), ("b", "--loss", "weighted-focal", "--seed", "0")):
        thera("train-member", *TRAIN, *data, "--run", folder / "run", "--name", name, *more)
    thera("fit-stacker", "--run", folder / "run", "--objective", "macro-f1")
    thera(
        "predict",
        folder / "new/img",
        "--run",
        folder / "run",
        "--out",
        folder / "label_val.txt",
        "--tta",
        "--device",
        "cpu",
    )
    return folder


def decision(made: Path) -> ClassDecision:
    stored = read_decisions(Run(made / "run"))
    assert isinstance(stored, ClassFitResult) and stored.classes == NAMES
    return stored.tta


def truth(folder: Path) -> np.ndarray:
    """Return the labels by the names of labels.csv."""
    names = pd.read_csv(folder / "labels.csv")["label"]
    return np.array([NAMES.index(name) for name in names], np.int8)


def test_the_label_file_has_the_index_of_a_class_in_each_line(made: Path) -> None:
    lines = (made / "label_val.txt").read_text().splitlines()
    y_pred = np.array(lines, np.int8)
    result = read_prediction(made / "run/predictions/img", 3)
    assert np.array_equal(y_pred, result.y_pred) and result.facts.classes == NAMES
    assert np.array_equal(y_pred, apply_offsets(result.stacked_logits, decision(made).offsets))
    assert np.allclose(result.probabilities.sum(axis=1), 1, atol=1e-4)
    assert np.mean(y_pred == truth(made / "new")) > 0.8  # the three classes are easy
    assert result.facts.shares == tuple(np.bincount(y_pred, minlength=3) / 40)


def test_nested_figures_are_those_of_rules_fitted_without_the_fold(made: Path) -> None:
    fitted = decision(made)
    oof = averaged_oof(Run(made / "run"), fitted.stacker.members, fitted.views)
    y_pred = np.empty(96, np.int8)
    for fold in range(2):
        of_fold = stack(fitted.kind)(oof.rows.without(fold), fitted.objective)
        y_pred[oof.fold_of == fold] = of_fold(oof.logits[oof.fold_of == fold])
    assert np.array_equal(y_pred, cross_fit(oof.rows, stack(fitted.kind), fitted.objective).y_pred)
    nested, labels = fitted.nested, truth(made / "tiny")
    assert nested.macro_f1 == pytest.approx(f1_score(labels, y_pred, average="macro"))
    assert nested.accuracy == pytest.approx(accuracy_score(labels, y_pred))
    assert nested.recalls == pytest.approx(recall_score(labels, y_pred, average=None))


def test_a_label_file_is_evaluated_and_compared_with_names_or_indices(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, y_pred = truth(made / "new"), np.array((made / "label_val.txt").read_text().split(), np.int8)
    (tmp_path / "truth.txt").write_text("".join(f"{label}\n" for label in labels))
    capsys.readouterr()
    thera("evaluate", made / "label_val.txt", "--labels", tmp_path / "truth.txt", "--classes", 3, "--full")
    out = capsys.readouterr().out
    assert f"class error {1 - recall_score(labels, y_pred, average='macro'):.4f}" in out
    thera("predict", made / "new/img", "--run", made / "run", "--out", tmp_path / "labels.csv", "--tta")
    table = pd.read_csv(tmp_path / "labels.csv")
    assert table["label"].tolist() == [NAMES[label] for label in y_pred]
    thera("evaluate", tmp_path / "labels.csv", "--labels", made / "new/labels.csv", "--classes", 3)
    constant = tmp_path / "constant.txt"
    constant.write_text("0\n" * 40)
    capsys.readouterr()
    thera("compare", constant, made / "label_val.txt", "--labels", tmp_path / "truth.txt", "--classes", 3)
    assert "class error is" in capsys.readouterr().out
    thera("evaluate", constant, "--labels", tmp_path / "truth.txt", "--classes", 3)
    assert "it is a constant answer, with class error 0.6667" in " ".join(capsys.readouterr().out.split())


def test_members_and_runs_are_compared_and_reported(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    thera("compare", made / "run/members/a", made / "run")
    assert "B minus A" in capsys.readouterr().out
    thera("compare", made / "run/members/a", made / "run", "--labels", made / "tiny/labels.csv")
    (made / "other.txt").write_text("0\n" * 96)
    line = fails(capsys, 3, "compare", made / "run", made / "run/members/a", "--labels", made / "other.txt")
    assert "labels are not those of" in line
    thera("report", "--run", made / "run")
    stored = json.loads((made / "run/report.json").read_text())
    assert stored["decisions"]["tta"]["stack"]["name"] == "stack"
    text = (made / "run/report.md").read_text()
    assert all(name in text for name in NAMES) and "macro F1" in text and "Confusion matrix" in text
    thera("verify", "--run", made / "run")


def test_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    data = ("--images", made / "tiny/img", "--labels", made / "tiny/labels.csv", "--classes", 3)
    thera("train-member", *TRAIN, *data, "--run", tmp_path / "run", "--name", "a", "--sampler", "balanced")
    before, after = (listing(run / "members/a") for run in (made / "run", tmp_path / "run"))
    kinds = ("oof.csv", "weights.safetensors")
    assert {name: data for name, data in before.items() if name.endswith(kinds)} == {
        name: data for name, data in after.items() if name.endswith(kinds)
    }


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("--prior", "0.3"), "error: --prior: a share of label 0 is for two classes alone"),
        (("--cascade", "0.99"), "error: --cascade: is for two classes alone; this run has 3"),
        (("--bad-label", "3", "--on-bad", "skip"), "error: --bad-label: must be 0 to 2; got 3"),
    ],
)
def test_what_holds_for_two_classes_alone_is_refused_in_one_line(
    made: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], start: str
) -> None:
    before = listing(made)
    line = fails(capsys, 2, "predict", made / "new/img", "--run", made / "run", *arguments)
    assert line.startswith(start)
    assert listing(made) == before


def test_a_run_does_not_go_on_with_other_classes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = made / "tiny/img", truth(made / "tiny")
    two, renamed = tmp_path / "two.txt", tmp_path / "renamed.csv"
    two.write_text("".join(f"{min(label, 1)}\n" for label in labels))
    renamed.write_text((made / "tiny/labels.csv").read_text().replace("mid", "middle"))  # the indices stay the same
    for file, count, classes in ((two, 2, "0, 1"), (renamed, 3, "low, middle, top")):
        given = ("--labels", file, "--classes", count, "--run", made / "run", "--name", "c")
        line = fails(capsys, 4, "train-member", *TRAIN, "--images", images, *given)
        assert f"was begun with other data: its classes are low, mid, top, not {classes}; restore them" in line
    of_two = tmp_path / "run"
    given = ("--images", images, "--labels", two, "--run", of_two)
    thera("train-member", *TRAIN[:4], "1", *TRAIN[5:], *given)
    given = ("--labels", made / "tiny/labels.csv", "--classes", 3, "--run", of_two)
    line = fails(capsys, 4, "train-member", *TRAIN, "--images", images, *given)
    assert "its classes are 0, 1, not low, mid, top; restore them" in line


def test_a_removed_member_makes_the_decision_stale(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    thera("remove-member", "--run", run, "b", "--yes")
    assert "the decision used b and is stale" in capsys.readouterr().err


def test_objectives_of_two_classes_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, 2, "fit-stacker", "--run", made / "run", "--objective", "fpr:0.01")
    assert line.startswith("error: objective: fpr:0.01 is for two classes alone; use mean-class-error, macro-f1")


def test_folders_of_classes_are_read_and_their_names_kept(tmp_path: Path) -> None:
    labels = write_three(tmp_path / "tiny", 48)
    for row, label in enumerate(labels.tolist(), 1):
        target = tmp_path / "classes" / ("top", "low", "mid")[label]
        target.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"tiny/img/{row:03d}.png").rename(target / f"{row:03d}.png")
    source = open_folder(tmp_path / "classes", None, False, n_classes=3)
    assert source.classes == NAMES
    thera("train-member", *TRAIN[:4], "1", *TRAIN[5:], "--images", tmp_path / "classes", "--classes", 3,
          "--run", tmp_path / "run", "--clean")  # fmt: skip
    facts = Run(tmp_path / "run").read()
    assert facts.classes == NAMES and facts.class_count == 3
    member = Run(tmp_path / "run").member("test_resnet").read()
    assert set(member.left_out) == {"0", "1"}


def test_alpha_is_refused_before_the_images_are_decoded(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--images", made / "tiny/img", "--labels", made / "tiny/labels.csv", "--classes", 3)
    line = fails(capsys, 2, "train-member", *TRAIN, *data, "--run", made / "alpha", "--alpha", "0.3")
    assert line == (
        "error: member test_resnet: alpha weighs two classes, not 3; leave it out; weighted-focal weighs every class"
    )
    assert not (made / "alpha").exists()


def test_a_run_without_an_epoch_begins_anew_with_other_names(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = (made / "tiny/labels.csv").read_text()
    (tmp_path / "other.csv").write_text(labels.replace("low", "least"))  # also the first in the alphabet

    def train(path: Path) -> None:
        thera(
            "train-member",
            *TRAIN,
            "--images",
            made / "tiny/img",
            "--labels",
            path,
            "--classes",
            3,
            "--run",
            tmp_path / "run",
        )

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):  # the run is bound, and nothing is trained
        patch.setattr("ensemble.commands.train.finish_folds", lambda *_: (_ for _ in ()).throw(KeyError("broken")))
        train(made / "tiny/labels.csv")
    assert Run(tmp_path / "run").read().classes == NAMES
    train(tmp_path / "other.csv")
    assert "begins anew: other names of the classes" in capsys.readouterr().err
    assert Run(tmp_path / "run").read().classes == ("least", "mid", "top")
