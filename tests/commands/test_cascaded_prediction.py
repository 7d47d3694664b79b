"""`predict --cascade`, from the command line to the files, with networks that look their logits up.

Each image holds its own number in its first pixel; what the fold models say of it is drawn beforehand.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny import prediction_facts

from ensemble.cli import main
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.folds import FoldTable
from ensemble.decision import assessment
from ensemble.decision import decision as decision_room
from ensemble.errors import TheraError
from ensemble.members import inference, predictor
from ensemble.members.inference import NetworkSpec
from ensemble.members.plans import Plan
from ensemble.runs.files import LOGIT_DECIMALS
from ensemble.runs.member import MemberIdentity
from ensemble.runs.run import Run, RunFacts

N, NEW, K, MEMBERS, PILOT = 2000, 1200, 3, ("cheap", "dear"), 400
COST = {"cheap": 1.0, "dear": 6.0}
LABELS = (np.arange(N) % 4 > 0).astype(np.int8)
HIDDEN = (np.arange(NEW) % 4 > 0).astype(np.int8)


def drawn(labels: np.ndarray, models: int, rng: np.random.Generator) -> np.ndarray:
    """Return logits (n, m, models, views): what the models agree on, and the noise of each."""
    signal = np.where(labels == 1, 2.5 + rng.normal(size=labels.size), -2.5 + 1.2 * rng.normal(size=labels.size))
    shape = (labels.size, len(MEMBERS), models, len(VIEWS))
    noise = rng.normal(size=(*shape[:3], 1)) * np.array([0.5, 0.4])[:, None, None] + 0.2 * rng.normal(size=shape)
    return signal[:, None, None, None] + noise


SAID = drawn(HIDDEN, K, np.random.default_rng(1)).round(LOGIT_DECIMALS)


class Oracle:
    """Stands in for `FoldModels`: it reads an image's number off its first pixel."""

    asked: int = 0

    def __init__(self, spec: NetworkSpec) -> None:
        self.column, self.plan = MEMBERS.index(spec.config.name), spec.plan

    def predict(
        self, weights: Any, pixels: np.ndarray, rows: np.ndarray, views: Sequence[str], bar: Any
    ) -> tuple[np.ndarray, Plan]:
        number = pixels[rows, 0, 0] @ np.array([1, 256, 65536])
        assert np.array_equal(number, rows)
        Oracle.asked += len(rows) * len(views)
        bar.advance(len(rows) * len(views))
        logits = SAID[number][:, self.column, int(weights["fold"][0])]
        return logits[:, [VIEWS.index(view) for view in views]], self.plan


@pytest.fixture(autouse=True)
def _oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "REPLICATES", 40)
    monkeypatch.setattr("ensemble.decision.deploy.REPLICATES", 12)
    monkeypatch.setattr(decision_room, "bound_noise", lambda *_: None)
    monkeypatch.setattr("ensemble.commands.fold_logits.PILOT", PILOT)
    monkeypatch.setattr(predictor, "FoldModels", Oracle)
    monkeypatch.setattr(inference, "cost_per_image", lambda spec, _: COST[spec.config.name])
    monkeypatch.setattr(Oracle, "asked", 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images and a run that has a decision, OOF logits, and weights that name their fold."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(7)
    run = Run(folder / "run")
    run.begin(RunFacts(5, K, N, (8, 8), None, "f", "images", "labels"))
    ids, fold_of = np.array([f"{row:04d}" for row in range(N)]), (np.arange(N) // 4 % K).astype(np.int8)
    run.write_folds(FoldTable(ids, LABELS, fold_of, None))
    oof = drawn(LABELS, 1, rng)[:, :, 0]
    for column, name in enumerate(MEMBERS):
        config = MemberConfig(arch="test_resnet", name=name).model_dump(mode="json")
        run.member(name).begin(config, MemberIdentity("f", 5, "fp32"))
        for fold in range(K):
            rows = np.flatnonzero(fold_of == fold)
            run.member(name).finish_fold(fold, {"fold": np.array([fold])}, ids[rows], oof[rows, column], VIEWS)
    (folder / "new").mkdir()
    for row in range(NEW):
        image = np.full((8, 8, 3), 7, np.uint8)
        image[0, 0] = 0, row // 256, row % 256  # BGR
        cv2.imwrite(str(folder / "new" / f"{row + 1:04d}.png"), image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "REPLICATES", 40)
        patch.setattr(decision_room, "bound_noise", lambda *_: None)
        main(["fit-stacker", "--run", str(run.folder), "--stacker", "mean"])
    return folder


def predict(world: Path, folder: Path, *more: str) -> Path:
    """Predict in a copy of the run, unless it is there already; return the folder of the set."""
    if not (folder / "run").exists():
        shutil.copytree(world / "run", folder / "run")
    given = ["predict", "--tta", "--run", folder / "run", "--images", world / "new", "--out", folder / "out.txt"]
    main([*map(str, given), "--device", "cpu", "--jobs", "1", *more])
    return folder / "run/predictions/new"


def labels(place: Path) -> np.ndarray:
    return np.loadtxt(place / "label_val.txt", dtype=int)


def facts(place: Path) -> Any:
    return prediction_facts(place / "predictions.json")


def rows(place: Path) -> list[dict[str, str]]:
    with open(place / "predictions.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def exact(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.decision.deploy.REPLICATES", 12)
        patch.setattr(predictor, "FoldModels", Oracle)
        return predict(world, tmp_path_factory.mktemp("exact"))


@pytest.mark.parametrize("promised", [0.99, 0.95])
def test_a_cascade_keeps_its_promise_for_less(world: Path, exact: Path, tmp_path: Path, promised: float) -> None:
    place = predict(world, tmp_path, "--cascade", str(promised))
    asked = Oracle.asked
    told, table = facts(place), rows(place)
    cascade = told["cascade"]
    assert told["requested_cascade"] == cascade["probability"] == promised and facts(exact)["cascade"] is None
    assert (tmp_path / "out.txt").read_bytes() == (place / "label_val.txt").read_bytes()
    assert np.mean(labels(place) == labels(exact)) >= promised

    assert sorted(map(tuple, cascade["order"])) == sorted((name, view) for name in MEMBERS for view in VIEWS)
    assert cascade["order"][0][0] == "cheap" and cascade["oof_changed_upper"] <= 1 - promised
    assert 0 < cascade["oof_cost_share"] < 0.8 and cascade["oof_changed"] <= cascade["oof_changed_upper"]
    assert cascade["evaluated_share"] == pytest.approx(asked / (NEW * K * len(MEMBERS) * len(VIEWS)))
    assert cascade["evaluated_share"] < 0.8 and PILOT <= cascade["images_in_full"] < NEW
    assert cascade["pilot"] == PILOT and cascade["pilot_changed"] <= (1 - promised) * PILOT

    assert len(table) == NEW and [int(row["label"]) for row in table] == labels(place).tolist()
    empty = {name: [row[f"logit_{name}"] == "" for row in table] for name in MEMBERS}
    assert sum(empty["dear"]) > NEW / 4 and not all(empty["dear"])
    exactly = rows(exact)
    for row, whole in zip(table, exactly, strict=True):
        there = [row[f"logit_{name}"] != "" for name in MEMBERS]
        for name, has in zip(MEMBERS, there, strict=True):
            assert (row[f"vote_{name}"] != "") == has
            assert row[f"logit_{name}"] in ("", whole[f"logit_{name}"])
        assert row["majority"] == (whole["majority"] if all(there) else "")
        if all(there):
            assert row["stacked_logit"] == whole["stacked_logit"]
    assert not (place / "logits").exists() or not list(place.glob("logits/*/*")), "what is not whole is not kept"


def test_the_threshold_is_corrected_as_without(world: Path, exact: Path, tmp_path: Path) -> None:
    """It is read off imputed logits, too; near the threshold, where it counts, none is imputed."""
    place = predict(world, tmp_path, "--cascade", "0.95")
    assert facts(place)["threshold"] == pytest.approx(facts(exact)["threshold"], abs=0.1)


def test_a_cascade_repeats_to_the_byte(world: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        place = predict(world, tmp_path / name, "--cascade", "0.99")
        found.append([(place / file).read_bytes() for file in ("predictions.json", "predictions.csv", "label_val.txt")])
    assert found[0] == found[1]
    asked = Oracle.asked
    predict(world, tmp_path / "two", "--cascade", "0.99")
    assert Oracle.asked == asked, "it is there already"


def test_logits_that_are_kept_are_taken_as_they_are(world: Path, exact: Path, tmp_path: Path) -> None:
    shutil.copytree(exact.parents[1], tmp_path / "run")
    place = predict(world, tmp_path, "--cascade", "0.99")
    assert Oracle.asked == 0 and facts(place)["cascade"] is None and facts(place)["requested_cascade"] == 0.99
    for name in ("label_val.txt", "predictions.csv"):
        assert (place / name).read_bytes() == (exact / name).read_bytes()


def test_the_exact_labels_come_after_those_of_a_cascade(world: Path, exact: Path, tmp_path: Path) -> None:
    predict(world, tmp_path, "--cascade", "0.95")
    place = predict(world, tmp_path)
    assert (place / "label_val.txt").read_bytes() == (exact / "label_val.txt").read_bytes()
    assert facts(place)["cascade"] is None


def test_few_images_are_all_of_the_pilot(world: Path, exact: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ensemble.commands.fold_logits.PILOT", NEW)
    place = predict(world, tmp_path, "--cascade", "0.95")
    assert (place / "predictions.csv").read_bytes() == (exact / "predictions.csv").read_bytes()
    assert facts(place)["cascade"]["evaluated_share"] == 1


def test_logits_that_are_not_finite_end_a_cascade(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = SAID.copy()
    spoilt[17] = np.nan
    monkeypatch.setitem(globals(), "SAID", spoilt)
    with pytest.raises(SystemExit) as stopped:
        predict(world, tmp_path, "--cascade", "0.95")
    assert stopped.value.code == TheraError.status
    assert "logits of fold 0 are not finite in fp32 native; use --precision fp32" in capsys.readouterr().err
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("wrong", ["0.4", "0.5", "1.0", "nan"])
def test_a_promise_that_is_none_is_refused(
    world: Path, tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict(world, tmp_path, "--cascade", wrong)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: thera predict: --cascade must be ")
    assert not (tmp_path / "out.txt").exists()
