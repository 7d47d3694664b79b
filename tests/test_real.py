"""The committed results hold together, and the real data, where it is at hand, is what they were made from."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.verify import verify
from ensemble.config import VIEW_SETS
from ensemble.decision.decision import fit_decision
from ensemble.decision.rates import error_rates
from ensemble.prediction_results import PredictionFacts
from ensemble.reports.screen import on_screen
from ensemble.reports.summary import report_summary
from ensemble.results import FitResult, ReportResult
from ensemble.runs.files import file_sha256, read_json
from ensemble.runs.migration import migrate_facts
from ensemble.runs.run import Run

RUN = Run(Path(__file__).parents[1] / "checkpoints" / "therapanacea")
PREDICTED = RUN.folder / "predictions" / "val_img"

needs_data = pytest.mark.skipif("THERA_DATA" not in os.environ, reason="THERA_DATA does not name the exercise's folder")


@pytest.fixture(scope="module")
def data() -> Path:
    return Path(os.environ["THERA_DATA"])


@pytest.mark.parametrize("key", VIEW_SETS)
def test_decision_follows_from_the_oof_logits(key: str) -> None:
    """Every figure of decision.json, computed anew from the committed tables.

    The stored nested figures were made by a version that chose the kind of stacker without each fold, among all kinds.
    """
    decision, views = getattr(read_decisions(RUN), key), VIEW_SETS[key]
    oof = averaged_oof(RUN, decision.stacker.members, views)
    anew = fit_decision(oof, views, RUN.read().seed, decision.objective, decision.kind)
    assert anew.kind == decision.kind
    np.testing.assert_allclose(anew.stacker.weights, decision.stacker.weights, rtol=1e-6)
    measured = [(anew.stacked, decision.stacked)]
    for rows in ("members", "baselines", "stackers"):
        measured += zip(getattr(anew, rows), getattr(decision, rows), strict=True)
    for one, other in measured:
        assert one.name == other.name
        assert one.nested.hter == pytest.approx(other.nested.hter, abs=1e-4)
        assert one.apparent.hter == pytest.approx(other.apparent.hter, abs=1e-6)
        assert one.interval.low == pytest.approx(other.interval.low, abs=1e-3)
    for point, known in zip(anew.curve, decision.curve, strict=True):
        assert point.loss == pytest.approx(known.loss, abs=1e-3)
    assert anew.noise is not None and decision.noise is not None
    assert anew.noise.rates.hter == pytest.approx(decision.noise.rates.hter, abs=1e-4)


def test_every_row_counts() -> None:
    table = RUN.read_folds()
    assert len(table.ids) == 80_000 and table.labels.sum() == 80_000 - 9_682
    for fold in range(table.k):
        share = np.mean(table.labels[table.fold_of == fold] == 0)
        assert share == pytest.approx(9_682 / 80_000, abs=1e-4)


def test_label_file_is_that_of_the_decision() -> None:
    labels = (PREDICTED / "label_val.txt").read_text().splitlines()
    with open(PREDICTED / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    decision, facts = read_decisions(RUN).tta, _facts()
    assert facts.request.decision_sha256 == file_sha256(RUN.decision)
    assert facts.threshold == facts.expectation.at(facts.expectation.correction).threshold
    assert facts.expectation.at("none").threshold == decision.threshold
    assert [row["id"] for row in rows] == [f"{i:06d}" for i in range(1, 20_001)]
    assert labels == [row["label"] for row in rows]
    y_pred = [str(int(float(row["stacked_logit"]) >= facts.threshold)) for row in rows]
    assert sum(a != b for a, b in zip(y_pred, labels, strict=True)) <= 1  # a logit within rounding of the threshold
    assert facts.share_of_label_0 == labels.count("0") / 20_000
    assert 0 < decision.nested.hter < 0.5


def test_the_tutorial_shows_what_the_report_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    stored = read_decisions(RUN)
    decisions = FitResult(stored.plain, stored.tta)
    result = ReportResult(RUN.folder, 80_000, 3, (), decisions, {"val_img": _facts()})
    printed = "\n".join(table.text() for table in on_screen(result))
    block = "".join(f"    {line}\n" if line else "\n" for line in printed.splitlines())
    assert block in (root / "docs" / "tutorial.md").read_text(encoding="utf-8")
    report = (RUN.folder / "report.md").read_text(encoding="utf-8")
    assert report.startswith(f"# Run therapanacea: 80000 images, 3 folds\n\n{report_summary(result).markdown()}\n")


@needs_data
def test_committed_folds_are_of_these_labels(data: Path) -> None:
    from ensemble.data.labels import parse_labels

    labels = parse_labels((data / "label_train.txt").read_bytes(), "label_train.txt")
    assert np.array_equal(RUN.read_folds().labels, labels)
    assert error_rates(labels, np.ones_like(labels)).hter == 0.5


@needs_data
def test_folder_and_zip_are_one_data_set(data: Path, tmp_path: Path) -> None:
    from ensemble.data.source import open_source
    from ensemble.data.store import load_dataset

    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for path in sorted((data / "val_img").glob("*.jpg")):
            archive.write(path, f"therapanacea/val_img/{path.name}")
    folder = load_dataset(open_source(data / "val_img"), tmp_path / "store")
    zipped = load_dataset(open_source(tmp_path / "val.zip"), tmp_path / "store")
    assert folder.pixels.shape == (20_000, 64, 64, 3)
    assert folder.fingerprint == zipped.fingerprint == _facts().request.fingerprint


def _facts() -> PredictionFacts:
    return read_json(PREDICTED / "predictions.json", PredictionFacts, "", migrate_facts)


@needs_data
def test_a_member_trains_on_real_images(data: Path, tmp_path: Path) -> None:
    """2,500 real faces, two folds, five epochs: clearly better than chance, through the command line."""
    from ensemble.cli import main

    (tmp_path / "img").mkdir()
    for row in range(1, 2501):
        (tmp_path / "img" / f"{row:06d}.jpg").write_bytes((data / "train_img" / f"{row:06d}.jpg").read_bytes())
    lines = (data / "label_train.txt").read_text().splitlines()[:2500]
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    main(
        [
            "train-member",
            "--arch",
            "resnet10t",
            "--no-pretrained",
            "--folds",
            "2",
            "--epochs",
            "5",
            "--batch-size",
            "32",
            "--ema-decay",
            "0.95",
            "--images",
            str(tmp_path / "img"),
            "--labels",
            str(tmp_path / "labels.txt"),
            "--run",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ]
    )
    report = json.loads((tmp_path / "run/members/resnet10t/member.json").read_text())["oof"]
    assert report["nested"]["n_neg"] + report["nested"]["n_pos"] == 2500
    assert report["auc"] > 0.6


def test_the_record_is_verified_and_its_card_names_the_members_of_the_stack() -> None:
    lines: list[str] = []
    assert verify(RUN.folder, lines.append).checked
    assert all(line.startswith("note: ") for line in lines)
    card = (RUN.folder / "model-card.md").read_text()
    assert "8 networks" in card and "do not influence its answers: distilled." in card


def test_the_exported_student_is_that_of_the_record() -> None:
    """Loading it also compares its logits on drawn images with those that it states."""
    pytest.importorskip("onnxruntime", reason="the extra thera[runtime] is not installed")
    from ensemble import OnnxClassifier
    from ensemble.runs.distilled import read_distilled

    facts, student = OnnxClassifier(RUN.folder / "faces.onnx").facts, RUN.member("distilled")
    (member,) = facts.members
    assert member.weights_sha256 == (student.weights_sha256(0),) and facts.fingerprint == RUN.read().fingerprint
    assert read_distilled(student).teachers == read_decisions(RUN).tta.stacker.members
    assert (RUN.folder / "faces.onnx").stat().st_size < 2e6 and facts.caveats


@needs_data
def test_the_exported_student_labels_as_the_stack_does(data: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra thera[runtime] is not installed")
    from ensemble import OnnxClassifier

    paths = [data / "val_img" / f"{row:06d}.jpg" for row in range(1, 1001)]
    y_pred = OnnxClassifier(RUN.folder / "faces.onnx").predict(paths)
    labels = [int(line) for line in (PREDICTED / "label_val.txt").read_text().splitlines()[:1000]]
    assert np.mean(y_pred == labels) > 0.95
