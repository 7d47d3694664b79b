"""The recipes of the public solutions run from their files, and their ingredients work."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import yaml
from hub_server import Hub, served
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny import write_tiny

from ensemble.cli import main
from ensemble.commands import train
from ensemble.config import VIEWS, RunConfig
from ensemble.config_reading import config_file, load_config, overridden
from ensemble.data.synthetic import write_demo
from ensemble.data.synthetic_people import draw_people
from ensemble.decision import assessment, class_assessment
from ensemble.decision import decision as decision_room
from ensemble.decision.threshold import least_hter
from ensemble.errors import ConfigError
from ensemble.runs.run import Run

RECIPES = sorted((Path(__file__).parents[2] / "configs/recipes").glob("*.yaml"))
OF_PEOPLE = [path for path in RECIPES if path.stem.startswith("age-gender-mask")]
OF_FACES = [path for path in RECIPES if path not in OF_PEOPLE]


@pytest.fixture(scope="module", autouse=True)
def soon_done() -> Iterator[None]:
    """Draw few replicates, and no floor: neither changes what is trained or decided."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "REPLICATES", 40)
        patch.setattr(decision_room, "bound_noise", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo data, few of them."""
    folder = tmp_path_factory.mktemp("faces")
    write_demo(folder, n_train=80, n_val=16, seed=0)
    return folder


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the hub's client, which the tests keep offline, a cache without weights."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    yield from served(monkeypatch, tmp_path / "hub")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    main([str(argument) for argument in arguments])
    return capsys.readouterr()


# --- the files --------------------------------------------------------------------------------------------------------


def test_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "recipes")
    lines = out.splitlines()
    names = max(len(path.stem) for path in RECIPES)
    text = " ".join(line[names:].strip() for line in lines)
    assert len(RECIPES) == 8 and max(map(len, lines)) <= 80
    for path in RECIPES:
        config = load_config(path)
        assert config.about and " ".join(config.about.split()) in text
        assert any(line.split()[:1] == [path.stem] for line in lines)
        assert config.run == Path("checkpoints/recipes") / path.stem


def test_a_recipe_runs_by_its_name_from_anywhere(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--images", faces / "train_img", "--labels", faces / "label_train.txt", "--folds", 2, "--epochs", 1]
    run(capsys, "run", "lenet-cleaned", "--run", "mine", *given, "--device", "cpu", "--jobs", 1)
    assert [member.name for member in Run(tmp_path / "mine").members()] == ["lenet", "lenet-cleaned"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simple-cn", "did you mean simple-cnn"),
        ("Simple_CNN", "did you mean simple-cnn"),
        ("qqq", "the recipes are age-gender-mask, age-gender-mask-targets, "),
        ("missing.yaml", "missing.yaml: cannot be read"),
    ],
)
def test_a_name_that_is_no_recipe_is_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("run", "trial"):
        with pytest.raises(SystemExit) as stopped:
            main([command, name])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(Path("simple-cnn")).name == "simple-cnn.yaml"
    (tmp_path / "simple-cnn").touch()
    assert config_file(Path("simple-cnn")) == Path("simple-cnn")


@pytest.mark.usefixtures("no_weights")
def test_the_recipes_of_several_classes_run_on_drawn_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_assessment, "REPLICATES", 10)
    draw_people(tmp_path / "people", 60, size=32)
    joined, of_targets = (load_config(path) for path in sorted(OF_PEOPLE, key=lambda path: len(path.stem)))
    (member,) = joined.members
    assert (member.arch, member.loss, member.sampler) == ("resnet18", "weighted-focal", "balanced")
    assert (joined.data.classes, joined.decision.objective) == (18, "macro-f1")
    assert of_targets.targets == ("mask", "gender", "age") and of_targets.members == joined.members
    for name, config in (("joined", joined), ("targets", of_targets)):
        values = config.model_dump(mode="json", exclude={"predict"}, exclude_none=True)
        values["data"] |= {"images": str(tmp_path / "people/people.csv")}
        values |= {"run": str(tmp_path / name), "folds": 2}
        values["members"][0] |= {"epochs": 1, "input_size": 16, "stem": "standard"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        out, err = run(capsys, "run", tmp_path / f"{name}.yaml", "--device", "cpu", "--jobs", 1)
        assert name == "targets" or "fewer than 30 images" in err
        assert "macro F1" in out
    assert len(Run(tmp_path / "joined").read().classes or ()) == 18
    assert (tmp_path / "targets/report.md").read_text().count("/") > 18


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("path", OF_FACES, ids=lambda path: path.stem)
def test_every_recipe_runs_on_the_demo_data(
    path: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = faces / "train_img", faces / "label_train.txt"
    given = ["run", path, "--run", tmp_path / "run", "--images", images, "--labels", labels]
    config = load_config(path)
    given += ["--predict", faces / "val_img"] if config.predict is not None else []
    out, err = run(capsys, *given, "--folds", 2, "--epochs", 1, "--device", "cpu", "--jobs", 1)
    assert "nested, views identity + hflip" in out and "In short" in out
    if config.predict is not None:  # the five classifiers vote; here two
        with open(tmp_path / "run/predictions/val_img-plain/predictions.csv") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 16 and {row[f"vote_fold-{fold}"] for row in rows for fold in range(2)} <= {"0", "1"}
        agreed = [row for row in rows if row["vote_fold-0"] == row["vote_fold-1"]]
        assert agreed and all(row["label"] == row["vote_fold-0"] for row in agreed)
        labels = (tmp_path / "run/label_val.txt").read_text().split()
        assert labels == [row["label"] for row in rows]
    for member in config.members:
        folder = tmp_path / "run/members" / member.name
        facts = json.loads((folder / "member.json").read_text())
        assert 0 <= facts["oof"]["nested"]["fpr"] <= 1
        for fold in range(2):
            history = [json.loads(line) for line in (folder / f"fold-{fold}/history.jsonl").read_text().splitlines()]
            assert [sorted(epoch) for epoch in history] == [["epoch", "hter", "loss", "lr", "seconds"]]
            assert cv2.imread(str(folder / f"fold-{fold}/training.png")) is not None
        if member.pretrained == "if-possible":
            assert facts["started_from"] == "scratch"
            assert f"warning: pretrained weights of {member.timm_name}" in err
            assert f"{member.name} starts from scratch" in err
            assert "Trained from scratch: the config requests pretrained weights" in (folder / "report.md").read_text()


def test_the_same_data_and_seed_have_the_same_folds(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that `thera compare` can pair a recipe with any other."""
    for name in ("lenet-cleaned", "simple-cnn"):
        path = next(path for path in RECIPES if path.stem == name)
        given = ["--images", faces / "train_img", "--labels", faces / "label_train.txt", "--jobs", 1]
        run(capsys, "run", path, "--run", tmp_path / name, *given, "--folds", 2, "--epochs", 1)
    folds = {(tmp_path / name / "folds.csv").read_bytes() for name in ("lenet-cleaned", "simple-cnn")}
    assert len(folds) == 1
    out, _ = run(
        capsys, "compare", tmp_path / "lenet-cleaned/members/lenet", tmp_path / "simple-cnn/members/simple_cnn-bce"
    )
    assert "simple_cnn-bce" in out and "HTER" in out


def config_of(**values: Any) -> RunConfig:
    base = {"run": "r", "data": {"images": "a", "labels": "b"}, "members": [{"arch": "resnet18"}, {"arch": "lenet"}]}
    return RunConfig.model_validate(base | {"predict": {"images": "c", "out": "d"}} | values)


def test_what_is_overridden_and_what_stays() -> None:
    config = config_of()
    assert overridden(config) == config
    other = overridden(config, Path("x"), None, Path("l"), 3, 7)
    assert (other.run, other.data.images, other.data.labels, other.folds) == (Path("x"), Path("a"), Path("l"), 3)
    assert [member.epochs for member in other.members] == [7, 7] and other.predict == config.predict
    elsewhere = overridden(config, images=Path("y"))
    assert (elsewhere.data.images, elsewhere.data.labels, elsewhere.predict) == (Path("y"), None, None)


def test_the_label_file_of_a_run_moves_with_it() -> None:
    config = config_of(predict={"images": "c", "out": "r/sub/d", "tta": False, "combine": "vote"})
    moved = overridden(config, Path("x")).predict
    assert moved is not None and (moved.images, moved.out) == ((Path("c"),), Path("x/sub/d"))
    other = overridden(config, Path("x"), Path("y"), predict=(Path("z"),)).predict
    assert other is not None and (other.images, other.out, other.combine) == ((Path("z"),), None, "vote")
    assert overridden(config, out=Path("o")).predict.out == Path("o")  # type: ignore[union-attr]
    bare = overridden(config_of(predict=None), predict=(Path("z"),)).predict
    assert bare is not None and (bare.images, bare.out) == ((Path("z"),), None)
    with pytest.raises(ConfigError, match=r"--out: there is no set to predict; give --predict"):
        overridden(config_of(predict=None), out=Path("o"))


# --- trials -----------------------------------------------------------------------------------------------------------


def test_a_trial_trains_one_fold_of_each_and_the_run_goes_on_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = member(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["members"] = [config["members"][0] | {"name": name, "lr": lr} for name, lr in (("a", 2e-3), ("b", 1e-5))]
    path.write_text(yaml.safe_dump(config))
    out, _ = run(capsys, "trial", path, "--fold", 1, "--jobs", 1)
    out = out.replace(" (best)", "")
    trained, table = Run(tmp_path / "run"), Run(tmp_path / "run").read_folds()
    labels = table.labels[table.fold_of == 1]
    for name in ("a", "b"):
        assert trained.member(name).has_fold(1) and not trained.member(name).has_oof(0)
        logits = trained.member(name).read_oof(1, VIEWS)[1].mean(axis=1)
        (row,) = [line.split() for line in out.splitlines() if line.startswith(f"{name} ")]
        assert row[1] == "4" and float(row[3]) == pytest.approx(least_hter(logits, labels), abs=5e-5)
    assert "HTER less a's" in out and "Trial: 36 images of fold 1" in out
    assert "Trial: 36 images of fold 1" in (tmp_path / "run/trial-1.md").read_text()
    before = {name: trained.member(name).fold(1).joinpath("oof.csv").read_bytes() for name in ("a", "b")}
    run(capsys, "run", path, "--jobs", 1)
    assert before == {name: trained.member(name).fold(1).joinpath("oof.csv").read_bytes() for name in ("a", "b")}
    run(capsys, "run", path, "--run", tmp_path / "whole", "--jobs", 1)
    assert before["a"] == (tmp_path / "whole/members/a/fold-1/oof.csv").read_bytes(), "as in a run without a trial"
    with pytest.raises(SystemExit) as stopped:
        main(["trial", str(path), "--fold", "2"])
    assert stopped.value.code == 2 and "--fold: must be 0 to 1; got 2" in capsys.readouterr().err


# --- weights, if possible ---------------------------------------------------------------------------------------------


def member(folder: Path, **values: Any) -> Path:
    """Write a config of one member of a tiny network on tiny images, and return its path."""
    if not (folder / "data").exists():
        write_tiny(folder / "data", 72)
    base = {"arch": "test_resnet", "pretrained": False, "epochs": 4, "batch_size": 8, "ema_decay": 0.9}
    data = {"images": str(folder / "data/img"), "labels": str(folder / "data/labels.txt")}
    config = {"run": str(folder / "run"), "folds": 2, "data": data, "members": [base | values]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def test_available_weights_are_used_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    file = safetensors.torch.save(timm.create_model("test_resnet").state_dict())
    commit = hub.publish("timm/test_resnet.r160_in1k", {"model.safetensors": file})
    path = member(tmp_path, pretrained="if-possible", epochs=1)
    run(capsys, "run", path, "--jobs", 1)
    facts = Run(tmp_path / "run").member("test_resnet").read()
    assert facts.started_from == "timm's pretrained weights" and facts.config["pretrained"] == "if-possible"
    assert facts.pretrained_from is not None and facts.pretrained_from.commit == commit
    assert [path for _, path, _ in hub.requests if path.startswith("/lfs/")] == [
        f"/lfs/{facts.pretrained_from.sha256}"
    ], "one download for two folds"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    (tmp_path / "run/members/test_resnet/fold-1/weights.safetensors").unlink()
    with pytest.raises(SystemExit) as stopped:  # the other fold started from them, and so does this
        main(["run", str(path), "--jobs", "1"])
    assert stopped.value.code == 6
    assert "cannot be downloaded" in capsys.readouterr().err


def test_a_file_of_weights_needs_no_hub_and_a_changed_request_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(timm.create_model("test_resnet", num_classes=1).state_dict(), tmp_path / "w.safetensors")
    path = member(tmp_path, pretrained="if-possible", weights=str(tmp_path / "w.safetensors"), epochs=1)
    run(capsys, "run", path, "--jobs", 1)
    assert Run(tmp_path / "run").member("test_resnet").read().started_from == "a file"
    path = member(tmp_path, pretrained=False, epochs=1)
    run(capsys, "run", path, "--run", tmp_path / "scratch", "--jobs", 1)
    (tmp_path / "scratch/members/test_resnet/fold-1/weights.safetensors").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(member(tmp_path, pretrained="if-possible", epochs=1)), "--run", str(tmp_path / "scratch")])
    assert stopped.value.code == 4 and "pretrained was False and is if-possible" in capsys.readouterr().err


@pytest.mark.usefixtures("no_weights")
def test_required_weights_that_are_missing_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = member(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["members"] += [config["members"][0] | {"name": "b", "pretrained": True}]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), "--jobs", "1"])
    assert stopped.value.code == 6 and "cannot be downloaded" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("history.jsonl"))


# --- what is watched --------------------------------------------------------------------------------------------------


def test_watching_changes_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = member(tmp_path)
    seen: list[np.ndarray] = []
    monkeypatch.setattr("ensemble.commands.fold_jobs.WATCHED", 10)
    monkeypatch.setattr("ensemble.commands.fold_jobs.least_hter", lambda logits, labels: seen.append(labels) or 0.25)
    run(capsys, "run", path, "--jobs", 1)
    assert len(seen) == 2 * 4 and {len(labels) for labels in seen} == {10}
    folder = tmp_path / "run/members/test_resnet"
    history = [json.loads(line)["hter"] for line in (folder / "fold-0/history.jsonl").read_text().splitlines()]
    assert history == [0.25] * 4
    before = {name: (folder / name).read_bytes() for name in ("fold-0/oof.csv", "fold-1/weights.safetensors")}
    monkeypatch.setattr("ensemble.commands.fold_jobs.WATCHED", 36)
    run(capsys, "run", path, "--run", tmp_path / "again", "--jobs", 1)
    again = tmp_path / "again/members/test_resnet"
    assert all((again / name).read_bytes() == data for name, data in before.items())


# --- cleaning ---------------------------------------------------------------------------------------------------------


def left_out(folder: Path, name: str, fold: int) -> set[int]:
    with open(folder / f"run/members/{name}/fold-{fold}/left_out.csv") as file:
        return {int(row["id"]) - 1 for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Return a folder with tiny images, eight labels of them flipped, and a run on them; and the flipped rows."""
    folder = tmp_path_factory.mktemp("flipped")
    labels = write_tiny(folder / "data", 160)
    wrong = np.arange(5, 160, 20)
    labels[wrong] = 1 - labels[wrong]
    (folder / "data/labels.txt").write_text("".join(f"{label}\n" for label in labels))
    main(["run", str(clean(folder)), "--jobs", "1"])
    return folder, wrong


def clean(folder: Path) -> Path:
    return member(folder, name="clean", clean=True, epochs=8, augment="none")


def test_doubtful_training_rows_are_left_out_and_all_rows_scored(
    flipped: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, wrong = flipped
    out, _ = run(capsys, "report", "--run", folder / "run", "--full")
    cleaned, table = Run(folder / "run").member("clean"), Run(folder / "run").read_folds()
    for fold in range(2):
        rows = left_out(folder, "clean", fold)
        trained = set(np.flatnonzero(table.fold_of != fold).tolist())
        assert rows <= trained, "held-out rows are never left out"
        flipped_ones = set(wrong.tolist()) & trained
        true_share, false_share = len(rows & flipped_ones) / len(flipped_ones), len(rows - flipped_ones) / len(trained)
        assert true_share >= 0.4 and false_share <= 0.08, "more often than chance by far"
        assert not list(cleaned.fold(fold).glob("cleaning-*"))
    assert np.isfinite(cleaned.oof_logits(table, VIEWS)).all(), "every row has its OOF logit"
    counts = ", ".join(str(len(left_out(folder, "clean", fold))) for fold in range(2))
    assert f"Training images of each fold that were left out for doubtful labels: {counts}." in " ".join(out.split())
    assert cleaned.read().oof["nested"]["n_neg"] == np.count_nonzero(table.labels == 0), "labels as given"


def test_held_out_labels_have_no_say_in_what_is_left_out(
    flipped: tuple[Path, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels of fold 0 exchanged for others: the rows left out for fold 0 stay the same, its weights too."""
    folder, _ = flipped
    table = Run(folder / "run").read_folds()
    other = table.labels.copy()
    inside = np.flatnonzero(table.fold_of == 0)
    other[inside] = np.random.default_rng(3).permutation(other[inside])
    assert not np.array_equal(other, table.labels)
    (tmp_path / "data").symlink_to(folder / "data")
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in other))
    really = train._begin

    def begin(run: Run, dataset: Any, *given: Any) -> Any:
        assigned = really(run, dataset, *given)
        run.write_folds(
            type(assigned)(assigned.ids, assigned.labels, table.fold_of, assigned.groups)
        )  # the folds of before
        return run.read_folds()

    monkeypatch.setattr("ensemble.commands.train._begin", begin)
    run(
        capsys,
        "run",
        clean(tmp_path),
        "--images",
        tmp_path / "data/img",
        "--labels",
        tmp_path / "labels.txt",
        "--jobs",
        1,
    )
    assert left_out(tmp_path, "clean", 0) == left_out(folder, "clean", 0)
    weights = [where / "run/members/clean/fold-0/weights.safetensors" for where in (folder, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_stopped_while_looking_for_doubtful_labels_it_goes_on(
    flipped: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble.members import training

    folder, _ = flipped
    path = clean(folder)
    really, seen = training.train_fold, []

    def killed(job: Any, *given: Any) -> Any:
        seen.append(job.part)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return really(job, *given)

    again = folder / "again"
    monkeypatch.setattr(training, "train_fold", killed)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["run", str(path), "--run", str(again), "--jobs", "1"])
    assert seen == [0, 1, 0]
    monkeypatch.setattr(training, "train_fold", really)
    run(capsys, "run", path, "--run", again, "--jobs", 1)
    for name in ("fold-0/left_out.csv", "fold-1/left_out.csv", "fold-1/weights.safetensors", "fold-0/oof.csv"):
        assert (again / "members/clean" / name).read_bytes() == (folder / "run/members/clean" / name).read_bytes()


@pytest.mark.parametrize("interrupted_at", [5])
def test_stopped_after_the_doubtful_labels_it_does_not_look_again(
    flipped: tuple[Path, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    interrupted_at: int,
) -> None:
    """Before the first epoch of the training proper, and after a fold of it."""
    from ensemble.members import training

    folder, _ = flipped
    path, again = clean(folder), tmp_path / "again"
    really, seen = training.train_fold, []

    def killed(job: Any, *given: Any) -> Any:
        if len(seen) == interrupted_at:
            raise KeyboardInterrupt
        seen.append(job.part)
        return really(job, *given)

    monkeypatch.setattr(training, "train_fold", killed)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["run", str(path), "--run", str(again), "--jobs", "1"])
    assert seen == [0, 1, 0, 1, None][:interrupted_at]
    interrupted_at = -1
    run(capsys, "run", path, "--run", again, "--jobs", 1)
    assert seen == [0, 1, 0, 1, None, None]
    for name in ("fold-0/left_out.csv", "fold-1/left_out.csv", "fold-1/weights.safetensors", "fold-0/oof.csv"):
        assert (again / "members/clean" / name).read_bytes() == (folder / "run/members/clean" / name).read_bytes()


def test_too_few_rows_to_look_for_doubtful_labels_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "data", 12)  # three of label 0
    path = member(tmp_path, clean=True)
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"folds": 3}))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), "--jobs", "1"])
    assert stopped.value.code == 3
    assert "member test_resnet, clean: the training rows of fold 0 cannot be split again" in capsys.readouterr().err


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this process may use one core only")
def test_several_members_side_by_side_are_those_one_after_the_other(
    flipped: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = flipped
    (tmp_path / "data").symlink_to(folder / "data")
    path = clean(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["members"] += [config["members"][0] | {"name": "plain", "clean": False}]
    path.write_text(yaml.safe_dump(config))
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(before)[:1])
        run(capsys, "run", path, "--run", tmp_path / "one", "--jobs", 1)
        os.sched_setaffinity(0, sorted(before)[:2])
        run(capsys, "run", path, "--run", tmp_path / "two", "--jobs", 2)
    finally:
        os.sched_setaffinity(0, before)
    on_one_core, on_two_cores = Run(tmp_path / "one"), Run(tmp_path / "two")
    assert on_one_core.read_folds().ids.tolist() == on_two_cores.read_folds().ids.tolist()
    for name in ("clean", "plain"):
        for fold in range(2):
            assert on_two_cores.member(name).read().folds[str(fold)].threads == 1
            files = [each.member(name).fold(fold) / "oof.csv" for each in (on_one_core, on_two_cores)]
            assert files[0].read_bytes() == files[1].read_bytes()
