"""Images to label that were in training: they are counted, named, and left out of the share check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import rewrite_json, write_tiny

from ensemble.cli import main
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.folds import FoldTable, assign_folds, together
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.decision.rates import ErrorRates
from ensemble.decision.shift import check_share
from ensemble.runs.member import MemberIdentity
from ensemble.runs.predictions import KeptLogits
from ensemble.runs.run import Run, RunFacts

IMAGES, SEEN, NEW = 48, 30, 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a decided run on 48 images, and 50 images with kept logits, the first 30 of which were in training.

    All 30 have the logit of a 0 that is beyond doubt; the others have the class shares of the training images.
    """
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 40)
    monkeypatch.setattr("ensemble.decision.decision.bound_noise", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "train", IMAGES)
    write_tiny(tmp_path / "set", SEEN + NEW, seed=1)
    for number in range(1, SEEN + 1):
        shutil.copy(f"train/img/{number:03d}.png", f"set/img/{number:03d}.png")
    run = Run(Path("run"))
    dataset = load_dataset(open_source(Path("train/img"), Path("train/labels.txt")), run.pixels)
    assert dataset.labels is not None
    run.begin(RunFacts(0, 2, IMAGES, (16, 16), None, dataset.fingerprint, "img", "labels.txt"))
    fold_of = assign_folds(dataset.labels, together(dataset.digests), 2, 0).fold_of
    run.write_folds(FoldTable(dataset.ids, dataset.labels, fold_of, None))
    run.record_images(dataset.ids, dataset.digests)
    member, rng = run.member("a"), np.random.default_rng(0)
    member.begin(MemberConfig(arch="lenet", name="a").model_dump(mode="json"), MemberIdentity("f", 0, "fp32"))

    def logits_of(labels: np.ndarray) -> np.ndarray:
        return (4 * labels[:, None] - 2 + rng.normal(0, 1, (len(labels), len(VIEWS)))).round(5)

    for fold in range(2):
        rows = np.flatnonzero(fold_of == fold)
        logits = logits_of(dataset.labels[rows])
        member.finish_fold(fold, {"w": np.full(1, fold, np.float32)}, dataset.ids[rows], logits, VIEWS, epochs=1)
    new = load_dataset(open_source(Path("set/img")), run.pixels)
    kept = KeptLogits(run.predictions("img", new.fingerprint, True) / "logits", new.ids, new.fingerprint)
    for fold in range(2):
        logits = logits_of((np.arange(SEEN + NEW) % 4 != 0).astype(np.int8))
        logits[:SEEN] = -9
        kept.save(member, fold, VIEWS, logits)
    main(["fit-stacker", "--run", "run", "--stacker", "mean"])
    return tmp_path


def predicted(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, str, dict[str, object]]:
    """Label the set; return standard output, standard error and the facts of the prediction."""
    capsys.readouterr()
    main(["predict", "--run", "run", "--images", "set/img", "--tta", *options])
    return *capsys.readouterr(), json.loads(Path("run/predictions/img/predictions.json").read_text())


def test_images_of_the_training_are_counted_and_checked_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err, facts = predicted(capsys)
    assert (
        "note: img: 30 of 50 images are byte for byte among the training images; the expected rates are those of new "
        "images, and the share check leaves these out. They are 001, 002, 003, 004, 005 …\n"
    ) in err
    assert facts["seen_in_training"] == 30 and "SHIFT" not in out + err
    assert facts["share_check"]["new_share"] == pytest.approx(facts["share_check"]["oof_share"], abs=0.1)  # type: ignore[index]
    assert "Too few images to check whether they differ from the training images: 20." in out
    main(["report", "--run", "run"])
    assert "img: 30 of 50 images are byte for byte among the training images" in Path("run/report.md").read_text()
    assert "byte for byte" in predicted(capsys)[1]  # also where nothing is computed


def test_in_a_run_that_does_not_know_its_images_all_are_checked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(Path("run/run.json").read_text())
    del facts["images_sha256"]
    rewrite_json(Path("run/run.json"), facts)
    _, err, predicted_facts = predicted(capsys)
    assert "byte for byte" not in err and "SHIFT" in err and predicted_facts["seen_in_training"] == 0


def test_without_a_new_image_nothing_is_checked() -> None:
    rates = ErrorRates(0.1, 0.1, 20, 80)
    check = check_share(np.linspace(-1, 3, 100), np.empty((0, 2)), 0.0, rates)
    assert not check.shifted and check.is_too_small(0) and check.new_share == check.oof_share
    assert check.message(0) == "Share check: there is no new image to check."
    assert all(np.isfinite(value) for value in vars(check).values())
