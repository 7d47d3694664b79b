"""Several targets of the same images: one set of folds, a table of labels with the joined class, joint rates."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score
from tiny import fails

from ensemble.cli import main
from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.targets import fit_targets, read_targets, report_targets, run_targets
from ensemble.config import RunConfig
from ensemble.config_reading import load_config
from ensemble.decision import class_assessment
from ensemble.decision.cross_fitting import cross_fit, stack
from ensemble.errors import DataError
from ensemble.runs.run import Run

PLACES, COLOURS = ("top", "low", "mid"), ("dark", "red")


def write_targets(folder: Path, n: int, seed: int = 0, size: int = 16) -> pd.DataFrame:
    """Write n images, two of each group, with a bright third (place) and a tint (colour); return the manifest."""
    rng = np.random.default_rng(seed)
    (folder / "img").mkdir(parents=True)
    rows = []
    for row in range(n):
        place, colour = (row // 2) % 3, (row // 6) % 2
        image = rng.integers(0, 110, (size, size, 3), dtype=np.uint8)
        start = (0, size - size // 3, size // 3)[place]
        image[start : start + size // 3] += 60
        image[:, :, 2] += 80 * colour
        cv2.imwrite(str(folder / f"img/{row + 1:03d}.png"), image)
        names = PLACES[place], COLOURS[colour]
        rows.append((f"img/{row + 1:03d}.png", *names, f"{names[1]}-{names[0]}", row // 2))
    table = pd.DataFrame(rows, columns=["path", "place", "colour", "both", "group"])
    table.to_csv(folder / "table.csv", index=False)
    return table


def config_text(folder: Path, **changes: str) -> Path:
    lines = {
        "run": f"run: {folder / 'run'}",
        "folds": "folds: 2",
        "targets": "targets: [place, colour]",
        "joined": "joined: both",
        "data": f"data: {{images: {folder / 'train/table.csv'}}}",
        "members": "members: [{arch: test_resnet, pretrained: false, epochs: 8, batch_size: 8, ema_decay: 0.8, "
        "augment: none, lr: 0.005}]",
        "decision": "decision: {objective: macro-f1}",
        "predict": f"predict: {{images: {folder / 'new/img'}, out: {folder / 'labels.csv'}}}",
    }
    path = folder / "config.yaml"
    path.write_text("\n".join(line for line in (lines | changes).values() if line) + "\n")
    return path


@pytest.fixture(scope="module", autouse=True)
def few_replicates() -> Iterator[None]:
    """Draw few replicates; they change intervals alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_assessment, "REPLICATES", 20)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    write_targets(folder / "train", 96)
    write_targets(folder / "new", 24, seed=1)
    main(["run", str(config_text(folder)), "--device", "cpu", "--jobs", "1"])
    return folder


def test_every_target_has_a_run_with_the_same_folds_and_the_images_are_decoded_once(made: Path) -> None:
    runs = [Run(made / "run" / name) for name in ("place", "colour")]
    first, second = (run.read_folds() for run in runs)
    assert np.array_equal(first.ids, second.ids) and np.array_equal(first.fold_of, second.fold_of)
    assert np.array_equal(first.groups, second.groups)
    together = first.labels * 2 + second.labels
    for combination in range(6):  # the folds are balanced by the combination
        counts = np.bincount(first.fold_of[together == combination], minlength=2)
        assert abs(int(counts[0]) - int(counts[1])) <= 2
    stores = {path.parent for path in (made / "run").rglob("pixels.npy")}
    assert all(store.parent == made / "run/pixels" for store in stores)
    assert len(stores) == 2  # of the images to learn from, and of those to label
    assert [run.read().class_count for run in runs] == [3, 2]


def test_the_tables_have_every_target_and_the_joined_class(made: Path) -> None:
    labels = pd.read_csv(made / "labels.csv")
    truth = pd.read_csv(made / "new/table.csv")
    assert labels.columns.tolist() == ["name", "place", "colour", "joined"]
    assert (labels["joined"] == labels["colour"] + "-" + labels["place"]).all()
    assert np.mean(labels["place"] == truth["place"]) > 0.8
    assert np.mean(labels["colour"] == truth["colour"]) > 0.8
    table = pd.read_csv(made / "run/predictions/img/predictions.csv")
    of_place = table[[f"place_probability_{name}" for name in ("low", "mid", "top")]]
    assert np.allclose(of_place.sum(axis=1), 1, atol=1e-4)
    assert np.allclose(table["colour_probability_dark"] + table["colour_probability_red"], 1, atol=1e-4)
    assert (table["place"] == labels["place"]).all()


def test_joint_rates_are_those_of_the_nested_predictions(made: Path) -> None:
    joint = report_targets(made / "run").joint
    assert joint is not None
    labels, predictions = [], []
    for name in ("place", "colour"):
        run = Run(made / "run" / name)
        decision = read_decisions(run).tta
        oof = averaged_oof(run, decision.stacker.members, decision.views)
        labels.append(oof.labels)
        predictions.append(cross_fit(oof.rows, stack(decision.kind), decision.objective).y_pred)
    y_true, y_pred = ([f"{a}{b}" for a, b in zip(*each, strict=True)] for each in (labels, predictions))
    assert joint.accuracy == pytest.approx(accuracy_score(y_true, y_pred))
    assert joint.macro_f1 == pytest.approx(f1_score(y_true, y_pred, average="macro", labels=sorted(set(y_true))))
    assert "Accuracy" in (made / "run/report.md").read_text()


def test_commands_on_the_folder_serve_every_target(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "labels.csv").read_bytes()
    main(["fit-stacker", "--run", str(made / "run"), "--objective", "accuracy"])
    assert "target colour has two classes; its objective is hter" in capsys.readouterr().err
    main(["fit-stacker", "--run", str(made / "run"), "--objective", "macro-f1"])
    main(["report", "--run", str(made / "run")])
    assert "macro F1 over 6 combinations" in " ".join(capsys.readouterr().out.split())
    main(["predict", str(made / "new/img"), "--run", str(made / "run"), "--tta", "--out", str(made / "labels.csv")])
    assert (made / "labels.csv").read_bytes() == before


def test_what_was_not_written_by_this_run_is_not_replaced(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "mine.csv").write_text("mine\n")
    line = fails(capsys, 2, "predict", made / "new/img", "--run", made / "run", "--out", made / "mine.csv")
    assert "is there already, and this run did not write it" in line
    assert (made / "mine.csv").read_text() == "mine\n"
    line = fails(capsys, 2, "predict", made / "new/img", "--run", made / "run", "--out", made / "label_val.txt")
    assert "several targets are written as a table" in line


@pytest.mark.parametrize(
    ("changes", "status", "expected"),
    [
        ({"targets": "targets: [place, shape]"}, 2, "has no column shape"),
        ({"targets": "targets: [place]"}, 2, "must be at least two different columns"),
        ({"joined": "joined: group", "targets": "targets: [place, colour]"}, 3, "must have one joined class"),
        ({"targets": ""}, 2, "joined needs targets"),
        ({"data": "data: {images: train/img, labels: x.txt}"}, 2, "leave labels out of data"),
        ({"data": "data: {images: train/img}"}, 2, "is no CSV or Parquet manifest"),
        ({"folds": "folds: 40"}, 3, "cannot fill 40 folds"),
    ],
)
def test_what_cannot_be_run_is_refused_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    status: int,
    expected: str,
) -> None:
    write_targets(tmp_path / "train", 24)
    (tmp_path / "new/img").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, status, "run", config_text(tmp_path, predict="", **changes))
    assert expected in line
    assert not list(tmp_path.glob("run/*/run.json"))


def test_a_run_keeps_its_targets(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_targets(made / "run").targets == ("place", "colour")
    assert json.loads((made / "run/targets.json").read_text())["joined"]["top\tred"] == "red-top"
    path = config_text(made, targets="targets: [colour, place]")
    assert "has the targets place, colour" in fails(capsys, 2, "run", path)
    config_text(made)


def test_the_config_of_targets_is_checked() -> None:
    data = {"images": "a.csv"}
    with pytest.raises(ValueError, match="names of folders"):
        RunConfig.model_validate({"run": "r", "data": data, "members": [{"arch": "lenet"}], "targets": ["a/b", "c"]})


def test_every_file_of_every_target_is_verified(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = tmp_path / "run"
    shutil.copytree(made / "run", copied)
    main(["verify", str(copied)])
    main(["verify", str(copied / "place")])
    assert " ".join(capsys.readouterr().out.split()).count("is as it was written") == 2
    oof = copied / "colour/members/test_resnet/fold-0/oof.csv"
    oof.write_bytes(oof.read_bytes()[:-3])
    line = fails(capsys, 4, "verify", copied)
    assert line.endswith("has damaged or missing files in colour; the lines above say what rebuilds them")


@pytest.mark.parametrize(
    "command",
    ["remove-member test_resnet --run {}", "compare {} {}", "train-member --arch test_resnet --run {} --images x"],
)
def test_a_command_of_one_target_asks_for_it(command: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, 4, *(word.format(made / "run") for word in command.split()))
    assert line == f"error: {made}/run: holds the runs of several targets; name one of them: {made}/run/colour"


def test_notes_say_which_target_they_are_of(made: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(made / "run", copied)
    lines: list[str] = []
    fit_targets(copied, say=lines.append)
    notes = [line for line in lines if line.startswith(("note: ", "warning: "))]
    assert notes and all(re.match(r"(note|warning): target (place|colour)[: ]", line) for line in notes)


def test_images_to_predict_may_lie_in_folders_of_any_number(tmp_path: Path) -> None:
    write_targets(tmp_path / "train", 24)
    for number, path in enumerate(sorted((tmp_path / "train/img").iterdir())[:6]):
        (tmp_path / f"new/{number // 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / f"new/{number // 2}")
    config = load_config(config_text(tmp_path, predict=f"predict: {{images: {tmp_path / 'new'}}}", folds="folds: 20"))
    with pytest.raises(DataError, match="cannot fill 20 folds"):  # that is, the images to predict were accepted
        run_targets(config)
