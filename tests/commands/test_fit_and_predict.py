"""What `fit-stacker` and `predict` can be told, from the command line to the files, on logits that nobody trained.

The images are noise and the weights are gone: whatever is decided here is decided from the logits on disk.
"""

from __future__ import annotations

import ast
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.special import logit
from tiny import prediction_facts

from ensemble.cli import main
from ensemble.commands import predict as predict_command
from ensemble.config import VIEW_SETS, VIEWS
from ensemble.data.folds import FoldTable
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.decision import assessment, deploy
from ensemble.decision import decision as decision_room
from ensemble.decision.averaging import LEAST_IMAGES
from ensemble.decision.label_noise import bound_noise
from ensemble.decision.objective import Objective
from ensemble.decision.rates import error_rates
from ensemble.decision.stacker import STACKERS, Stacker
from ensemble.decision.threshold import fit_threshold
from ensemble.predict_config import CORRECTIONS
from ensemble.reports.decision_tables import STACKER_NAMES
from ensemble.runs.member import MemberIdentity
from ensemble.runs.predictions import KeptLogits
from ensemble.runs.run import Run, RunFacts

N, K, MEMBERS = 1200, 3, ("a", "b")
LABELS = (np.arange(N) % 4 > 0).astype(np.int8)
HIDDEN = {"same": 0.25, "shifted": 0.6, "ones": 0.0}
"""The sets of images to predict, and the share of label 0 in each; it is 0.25 among the OOF rows."""


def made_up(labels: np.ndarray, models: int, rng: np.random.Generator) -> np.ndarray:
    """Return logits (n, m, models, views): what the models agree on, and the noise of each."""
    signal = np.where(labels == 1, 1.6 + 0.8 * rng.normal(size=labels.size), -1.4 + 1.4 * rng.normal(size=labels.size))
    shape = (labels.size, len(MEMBERS), models, len(VIEWS))
    noise = rng.normal(size=(*shape[:3], 1)) * np.array([0.9, 1.5])[:, None, None] + 0.3 * rng.normal(size=shape)
    return signal[:, None, None, None] + noise


def hidden(name: str) -> np.ndarray:
    return (np.arange(LEAST_IMAGES) >= HIDDEN[name] * LEAST_IMAGES).astype(np.int8)


@pytest.fixture(autouse=True)
def soon_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few replicates, and no floor: neither changes what is decided."""
    monkeypatch.setattr(assessment, "REPLICATES", 40)
    monkeypatch.setattr("ensemble.decision.deploy.REPLICATES", 12)
    monkeypatch.setattr(decision_room, "bound_noise", lambda *_: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that has OOF logits, the logits of two sets of images, no decision and no weights."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(7)
    run = Run(folder / "run")
    run.begin(RunFacts(5, K, N, (8, 8), None, "f", "images", "labels"))
    table = FoldTable(
        np.array([f"{row:04d}" for row in range(N)]), LABELS, (np.arange(N) // 4 % K).astype(np.int8), None
    )
    run.write_folds(table)
    oof = made_up(LABELS, 1, rng)[:, :, 0]
    for column, name in enumerate(MEMBERS):
        run.member(name).begin({"arch": name}, MemberIdentity("f", 5, "fp32"))
        for fold in range(K):
            rows = np.flatnonzero(table.fold_of == fold)
            run.member(name).finish_fold(fold, {}, table.ids[rows], oof[rows, column], VIEWS)
    for name in HIDDEN:
        (folder / name).mkdir()
        for row, image in enumerate(rng.integers(0, 256, (LEAST_IMAGES, 8, 8, 3), dtype=np.uint8), 1):
            cv2.imwrite(str(folder / name / f"{row:04d}.png"), image)
        dataset = load_dataset(open_source(folder / name), run.pixels)
        kept = KeptLogits(run.predictions(name, dataset.fingerprint, True) / "logits", dataset.ids, dataset.fingerprint)
        logits = made_up(hidden(name), K, rng)
        for column, member in enumerate(MEMBERS):
            for fold in range(K):
                kept.save(run.member(member), fold, VIEWS, logits[:, column, fold])
    for weights in run.folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


@pytest.fixture(scope="module")
def fitted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the run with the decision, floor included, that `fit-stacker` makes without options."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    shutil.copytree(world / "run", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "REPLICATES", 40)
        patch.setattr(decision_room, "bound_noise", bound_noise)
        main(["fit-stacker", "--run", str(folder)])
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    shutil.copytree(fitted, tmp_path / "run")
    return tmp_path / "run"


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Return what a command prints with all tables, in a terminal that is wide enough for each line."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "4000")
        main([*map(str, arguments), "--full"])
    return capsys.readouterr()


def fails(capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (status, "", 1), err
    return err.removeprefix("error: ").rstrip()


def predict(world: Path, run: Path, *more: object, name: str = "same", tta: bool = True) -> list[str]:
    views = ["--tta"] if tta else []
    given = ["predict", *views, "--run", run, "--images", world / name, "--out", run.parent / "out.txt", *more]
    return [str(argument) for argument in given]


def decided(run: Path) -> Any:
    return json.loads((run / "decision/decision.json").read_text())


def facts(run: Path, name: str = "same") -> Any:
    return prediction_facts(run / "predictions" / name / "predictions.json")


def rows(run: Path, name: str = "same") -> dict[str, np.ndarray]:
    """Return the columns of predictions.csv."""
    with open(run / "predictions" / name / "predictions.csv") as file:
        table = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in table]) for key in table[0] if key != "id"}


def stacker_of(decision: Any) -> Stacker:
    stored = decision["stacker"]
    return Stacker(tuple(stored["members"]), tuple(stored["weights"]), stored["bias"])


def stacked_oof(run: Path, decision: Any, views: int) -> np.ndarray:
    """Return the stacked OOF logits, read off the tables of the members."""
    logits = np.empty((N, len(MEMBERS)))
    for column, name in enumerate(MEMBERS):
        for path in run.glob(f"members/{name}/fold-*/oof.csv"):
            table = np.loadtxt(path, delimiter=",", skiprows=1)
            logits[table[:, 0].astype(int), column] = table[:, 1 : 1 + views].mean(axis=1)
    return stacker_of(decision).apply(logits)


def stacked_folds(run: Path, decision: Any, name: str = "same") -> np.ndarray:
    """Return the stacked logits of each fold model (n, k) with TTA, read off the logits that are kept."""
    kept = run / "predictions" / name / "logits"
    logits = [
        [
            np.loadtxt(kept / member / f"fold-{fold}.csv", delimiter=",", skiprows=1)[:, 1:].mean(axis=1)
            for member in "ab"
        ]
        for fold in range(K)
    ]
    return np.stack([stacker_of(decision).apply(np.stack(of_fold, axis=1)) for of_fold in logits], axis=1)


# --- fit-stacker: the objective ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("hter", "hter"),
        ("cost:1,1", "hter"),
        ("cost:5,1", "cost:5,1"),
        ("cost:0.5,2.5", "cost:1,5"),
        ("fpr:0.02", "fpr:0.02"),
        (" fnr:1/30 ", "fnr:0.03333333333333333"),
    ],
)
def test_the_objective_reaches_both_decisions(
    run: Path, given: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = shown(capsys, "fit-stacker", "--run", run, "--objective", given)
    wanted = Objective.parse(text)
    assert out.count(f"The threshold is that of {wanted.description}.") == 2
    for key, views in VIEW_SETS.items():
        decision = decided(run)[key]
        assert decision["objective"] == text
        x, threshold = stacked_oof(run, decision, len(views)), decision["stacked"]["threshold"]
        assert threshold == pytest.approx(fit_threshold(x, LABELS, wanted), abs=1e-9)
        rates = error_rates(LABELS, x >= threshold)
        assert rates.fpr <= getattr(wanted, "max_fpr", 1)
        assert rates.fnr <= getattr(wanted, "max_fnr", 1)
        for member in decision["members"]:
            assert member["apparent"]["fpr"] <= getattr(wanted, "max_fpr", 1)


def test_a_dearer_error_is_made_less_often(run: Path) -> None:
    thresholds, rates = [], []
    for objective in ("cost:1,5", "hter", "cost:5,1"):
        main(["fit-stacker", "--run", str(run), "--objective", objective])
        stacked = decided(run)["tta"]["stacked"]
        thresholds.append(stacked["threshold"])
        rates.append((stacked["nested"]["fpr"], -stacked["nested"]["fnr"]))
    assert thresholds == sorted(set(thresholds))
    assert rates == sorted(set(rates), reverse=True)


WRONG = ["", "HTER", "hter:1", "cost:1", "cost:0,1", "cost:1,-1", "cost:a,b", "cost:1e9999999,1", "fpr:", "fpr:1.1"]
WRONG += ["fpr:nan", "fnr:1/0", "fpr:0.1,0.2", "fpr:0.1,1", "fpr:0.1,0.9,1", "eer", "fpr=0.1", "f\npr:1"]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_wrong_objective_is_reported_before_anything_is_fitted(
    run: Path, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr("ensemble.commands.fit_stacker.fit_decision", lambda *_: pytest.fail("fitted"))
    told = fails(capsys, 2, "fit-stacker", "--run", run, "--objective", wrong)
    assert told == (
        "objective: must be one of hter, cost:A,B (what an FPR and an FNR cost), fpr:R or fnr:R (that rate on the OOF "
        "rows is at most R), fpr:R,C or fnr:R,C (the true rate is at most R with confidence C), "
        f"e.g. cost:5,1, fpr:0.01 or fpr:0.01,0.95; got {wrong!r}"
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert fails(capsys, 2, "fit-stacker", "--run", run / "none", "--objective", wrong) == told
    assert not (run / "none").exists()


def test_a_wrong_objective_in_yaml_is_reported_before_anything_is_trained(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ensemble.commands.run.train_members", lambda *_: pytest.fail("trained"))
    config = tmp_path / "c.yaml"
    text = f"run: {tmp_path}/r\ndata: {{images: {world}/same}}\nmembers: [{{arch: a}}]\ndecision: {{objective: auc}}\n"
    config.write_text(text)
    assert fails(capsys, 2, "run", config).startswith("objective: must be one of hter, cost:A,B (")
    config.write_text(text.replace("auc", "hter, stacker: best, repaets: 3"))
    assert fails(capsys, 2, "run", config) == (
        f"{config}: decision.stacker must be 'mean', 'calibrated', 'nonnegative' or 'logistic'; got best; "
        "decision.repaets is no known key (did you mean repeats?)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


# --- fit-stacker: the stacker and the repeats -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STACKERS)
def test_the_stacker_that_is_asked_for_is_deployed(run: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, "fit-stacker", "--run", run, "--stacker", kind)
    for decision in map(decided(run).get, VIEW_SETS):
        assert decision["kind"] == kind and "chosen" not in decision
        assert [row["name"] for row in decision["stackers"]] == list(STACKERS)
        (own,) = [row for row in decision["stackers"] if row["name"] == kind]
        assert own["nested"] == decision["stacked"]["nested"] and own["difference"]["value"] == 0
    assert f"The stacker is {STACKER_NAMES[kind]}." in out and out.count(" (deployed) ") == 1


def test_without_options_the_stacker_has_no_negative_weights(fitted: Path) -> None:
    decision = decided(fitted)["tta"]
    assert decision["kind"] == "nonnegative" and min(decision["stacker"]["weights"]) >= 0
    assert (decision["objective"], decision["repeated"]) == ("hter", [])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--stacker", "best"],
            "--stacker must be 'mean', 'calibrated', 'nonnegative' or 'logistic'; got best",
        ),
        (
            ["--stacker", "Mean"],
            "--stacker must be 'mean', 'calibrated', 'nonnegative' or 'logistic'; got Mean",
        ),
        (["--repeats", "1001"], "--repeats must be <= 1000; got 1001"),
    ],
)
def test_other_wrong_options_are_reported(
    run: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "decision/decision.json").read_bytes()
    assert fails(capsys, 2, "fit-stacker", "--run", run, *options) == (
        f"thera fit-stacker: {told}; see thera fit-stacker --help"
    )
    assert (run / "decision/decision.json").read_bytes() == before


def test_repeats_are_shown_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, "fit-stacker", "--run", run, "--repeats", 3, "--stacker", "mean")
    repeated = decided(run)["tta"]["repeated"]
    assert len(repeated) == 3
    line = (
        f"Nested HTER over 3 other partitions of the images: mean {sum(repeated) / 3:.4f}, "
        f"from {min(repeated):.4f} to {max(repeated):.4f}."
    )
    assert line in out.splitlines()
    shown(capsys, "report", "--run", run)
    assert line in (run / "report.md").read_text().splitlines()
    assert json.loads((run / "report.json").read_text())["decisions"]["tta"]["repeated"] == repeated


def test_fitted_twice_it_is_the_same_to_the_byte(
    run: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(decision_room, "bound_noise", bound_noise)
        main(["fit-stacker", "--run", str(run)])
    assert (run / "decision/decision.json").read_bytes() == (fitted / "decision/decision.json").read_bytes()
    options = ("--objective", "cost:2,1", "--repeats", 2)
    told, _ = shown(capsys, "fit-stacker", "--run", run, *options)
    first = (run / "decision/decision.json").read_bytes()
    assert shown(capsys, "fit-stacker", "--run", run, *options)[0] == told
    assert (run / "decision/decision.json").read_bytes() == first


# --- predict: the correction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_labels_follow_the_corrected_threshold(
    world: Path, run: Path, correction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = shown(capsys, *predict(world, run, "--correction", correction))
    told, decision = facts(run), decided(run)["tta"]
    singles = stacked_folds(run, decision)
    mean, own = singles.mean(axis=1), decision["stacked"]["threshold"]
    labels = np.loadtxt(run.parent / "out.txt", dtype=int)
    clear = np.abs(mean - told["threshold"]) > 1e-4  # the logits of predictions.csv are rounded
    assert np.array_equal(labels[clear], (mean >= told["threshold"])[clear]) and clear.sum() > LEAST_IMAGES - 5
    table = rows(run)
    assert np.array_equal(table["label"], labels)
    np.testing.assert_allclose(table["stacked_logit"], mean, atol=1e-4)
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-mean)), atol=1e-4)

    assert told["correction"] == told["requested_correction"] == correction and told["averaging_measured"]
    assert list(told["corrections"]) == list(CORRECTIONS)
    for name, each in told["corrections"].items():
        assert each["hter"] == pytest.approx((each["fpr"] + each["fnr"]) / 2)
        assert each["share_of_label_0"] == pytest.approx(np.mean(mean < each["threshold"]), abs=0.0015), name
    chosen = told["corrections"][correction]
    assert told["threshold"] == chosen["threshold"]
    assert told["expected"] == {rate: chosen[rate] for rate in ("fpr", "fnr", "hter")}
    assert told["share_of_label_0"] == np.mean(labels == 0)
    assert told["corrections"]["none"]["threshold"] == own
    assert f"(correction: {correction}), which is expected to change the HTER by" in out
    for name in set(CORRECTIONS) - {correction}:
        assert f"{name} {told['corrections'][name]['threshold']:+.4f}: FPR" in out


def test_the_default_correction_is_the_first(world: Path, run: Path) -> None:
    main(predict(world, run))
    default = facts(run)
    assert default["correction"] == CORRECTIONS[0]
    thresholds = [each["threshold"] for each in default["corrections"].values()]
    assert len(set(thresholds)) == len(CORRECTIONS)
    truth, mean = hidden("same"), stacked_folds(run, decided(run)["tta"]).mean(axis=1)
    kept, corrected = (error_rates(truth, mean >= cut).hter for cut in (thresholds[-1], default["threshold"]))
    assert corrected <= kept + 0.01


def test_a_wrong_correction_is_reported(world: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = fails(capsys, 2, *predict(world, run, "--correction", "mean", "--prior", "2"))
    assert told == (
        "thera predict: --correction must be 'posterior' or 'none'; got mean; "
        "--prior must be < 1; got 2; see thera predict --help"
    )
    assert not (run.parent / "out.txt").exists()


@pytest.mark.parametrize("objective", ["cost:5,1", "fpr:0.02"])
def test_another_objective_is_predicted_anew_without_weights(
    world: Path, run: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(predict(world, run))
    before = facts(run)
    main(["fit-stacker", "--run", str(run), "--objective", objective])
    out, _ = shown(capsys, "report", "--run", run)
    assert "Label files: expected HTER" not in out, "that label file was of another decision"
    out, _ = shown(capsys, *predict(world, run))
    after = facts(run)
    assert (before["objective"], after["objective"]) == ("hter", objective)
    assert after["threshold"] > before["threshold"] and after["share_of_label_0"] > before["share_of_label_0"]
    assert after["expected"]["fpr"] < before["expected"]["fpr"]
    low, high = after["hter_interval"]
    assert low < after["expected"]["hter"] < high, "of the HTER, whatever the objective"
    assert f"{after['expected']['hter']:.4f}  [{low:.4f}, {high:.4f}]" in out


# --- predict: the prior -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["0", "1", "-0.1", "1.5", "nan", "inf"])
def test_a_prior_that_is_no_share_is_refused(
    world: Path, run: Path, prior: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fails(capsys, 2, *predict(world, run, f"--prior={prior}"))
    assert told.startswith("thera predict: --prior must be ") and f"; got {prior}; see" in told
    assert not (run.parent / "out.txt").exists() and not (run / "predictions/same/predictions.json").exists()


def test_a_prior_changes_no_label_where_nothing_is_corrected(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(predict(world, run, "--correction", "none"))
    labels, plain, before = (run.parent / "out.txt").read_bytes(), facts(run), rows(run)
    assert plain["at_prior"] is None
    out, _ = shown(capsys, *predict(world, run, "--correction", "none", "--prior", "0.6"))
    told, after = facts(run), rows(run)
    assert (run.parent / "out.txt").read_bytes() == labels
    for same in ("threshold", "share_of_label_0", "share_check", "nested_hter"):
        assert told[same] == plain[same]
    assert told["expected"]["hter"] == pytest.approx(plain["expected"]["hter"], abs=0.02)
    for column in set(before) - {"probability"}:
        assert np.array_equal(before[column], after[column]), column
    sure = (before["probability"] > 0.02) & (before["probability"] < 0.98) & (after["probability"] > 0.02)
    moved = logit(after["probability"][sure]) - logit(before["probability"][sure])
    shift = np.log(0.4 / 0.6) - np.log(0.75 / 0.25)
    np.testing.assert_allclose(moved, shift, atol=2e-3)
    there = told["at_prior"]
    assert there["prior"] == 0.6 and there["logit_shift"] == pytest.approx(shift)
    wrong = 0.6 * told["expected"]["fpr"] + 0.4 * told["expected"]["fnr"]
    assert there["error_rate"] == pytest.approx(wrong)
    assert "same: where label 0 is 0.6000 of the images, as given, " in out
    assert f"{wrong:.4f} labelled wrong" in out and "probabilities in predictions.csv are for this share" in out


def test_the_share_of_the_rows_as_prior_changes_nothing(world: Path, run: Path) -> None:
    main(predict(world, run))
    plain, files = facts(run), rows(run)
    main(predict(world, run, "--prior", "0.25"))
    told = facts(run)
    assert told["at_prior"].pop("logit_shift") == pytest.approx(0, abs=1e-12)
    assert {key for key in plain if plain[key] != told[key]} == {
        "requested_prior",
        "at_prior",
        "assumed_share_of_label_0",
    }
    assert all(np.array_equal(files[name], column) for name, column in rows(run).items())


def test_the_default_correction_takes_the_prior_for_the_class_mix(world: Path, run: Path) -> None:
    """The best threshold for a single logit is that of any mix; what the fit takes for the best of the mean is not."""
    main(predict(world, run, "--prior", "0.6", name="shifted"))
    told = facts(run, "shifted")
    truth, mean = hidden("shifted"), stacked_folds(run, decided(run)["tta"], "shifted").mean(axis=1)
    reached = error_rates(truth, mean >= told["threshold"])
    assert reached.hter <= min(error_rates(truth, mean >= cut).hter for cut in np.sort(mean)[::5]) + 0.02
    fpr, fnr = told["expected"]["fpr"], told["expected"]["fnr"]
    assert told["at_prior"]["share_called_0"] == pytest.approx(0.6 * (1 - fpr) + 0.4 * fnr)
    # The FPR is known to 0.02 from 300 rows. At the class mix of the rows, the share would be 0.3.
    assert told["at_prior"]["share_called_0"] == pytest.approx(told["share_of_label_0"], abs=0.05)
    own = decided(run)["tta"]["stacked"]["threshold"]
    assert told["corrections"]["none"]["threshold"] == own and told["assumed_share_of_label_0"] == 0.6
    main(predict(world, run, "--prior", "0.3", name="shifted"))
    other = facts(run, "shifted")
    assert other["assumed_share_of_label_0"] == 0.3
    assert other["corrections"]["posterior"]["threshold"] != told["corrections"]["posterior"]["threshold"]
    assert other["corrections"]["none"]["threshold"] == told["corrections"]["none"]["threshold"]


def test_a_shift_has_its_mix_estimated_where_no_prior_is_given(world: Path, run: Path) -> None:
    main(predict(world, run, name="shifted"))
    told = facts(run, "shifted")
    assert told["requested_prior"] is None and told["at_prior"] is None
    assert told["assumed_share_of_label_0"] == told["share_check"]["prior"]
    truth, mean = hidden("shifted"), stacked_folds(run, decided(run)["tta"], "shifted").mean(axis=1)
    reached = error_rates(truth, mean >= told["threshold"]).hter
    assert reached <= min(error_rates(truth, mean >= cut).hter for cut in np.sort(mean)[::5]) + 0.02
    np.testing.assert_allclose(rows(run, "shifted")["probability"], 1 / (1 + np.exp(-mean)), atol=1e-4)
    main(predict(world, run))
    assert facts(run)["assumed_share_of_label_0"] is None


def test_a_set_of_one_class_is_labelled_too(world: Path, run: Path) -> None:
    main(predict(world, run, name="ones"))
    told = facts(run, "ones")
    assert told["share_check"]["shifted"] and 0 < told["assumed_share_of_label_0"] < 0.05
    assert told["correction"] == "none" and told["threshold"] == decided(run)["tta"]["stacked"]["threshold"]
    assert told["share_of_label_0"] < 0.2
    assert np.isfinite([told["threshold"], *told["hter_interval"], *told["expected_interval"]]).all()
    main(predict(world, run, "--prior", "1e-30", name="ones"))  # as good as none of label 0
    assert np.isfinite([facts(run, "ones")["threshold"], *facts(run, "ones")["hter_interval"]]).all()


# --- predict: made anew, or not ---------------------------------------------------------------------------------------


def test_only_another_wish_makes_a_prediction_anew(world: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, float | None]] = []
    really = predict_command.deploy

    def recorded(*given: Any) -> Any:
        made.append(given[5:7])
        return really(*given)

    monkeypatch.setattr("ensemble.commands.predict.deploy", recorded)
    wishes: list[list[str]] = [[], ["--prior", "0.3"], ["--prior", "0.31"], ["--correction", "none"], []]
    for wish in wishes:
        main(predict(world, run, *wish))
        first = (run / "predictions/same/predictions.json").read_bytes()
        main(predict(world, run, *wish))
        assert (run / "predictions/same/predictions.json").read_bytes() == first
    assert made == [("posterior", None), ("posterior", 0.3), ("posterior", 0.31), ("none", None), ("posterior", None)]


def test_predicted_twice_it_is_the_same_to_the_byte(world: Path, fitted: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copytree(fitted, tmp_path / name / "run")
        main(predict(world, tmp_path / name / "run", "--prior", "0.3"))
        place = tmp_path / name / "run/predictions/same"
        found.append([(place / file).read_bytes() for file in ("predictions.json", "predictions.csv", "label_val.txt")])
    assert found[0] == found[1]


# --- the share check --------------------------------------------------------------------------------------------------


def test_a_shifted_set_is_warned_of_and_an_unshifted_one_is_not(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = shown(capsys, *predict(world, run))
    check = facts(run)["share_check"]
    assert "warning" not in err and not check["shifted"]
    assert f"same: {check['message']}" in out and check["message"].endswith("no sign of a shift.")
    for _ in range(2):  # the warning comes again though nothing is predicted anew
        out, err = shown(capsys, *predict(world, run, name="shifted"))
        check = facts(run, "shifted")["share_check"]
        warned = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert warned == [f"warning: shifted: {check['message']}"]
        assert f"shifted: {check['message']}" in out
    assert check["shifted"] and check["p_value"] < 1e-6
    assert check["prior"] == pytest.approx(0.6, abs=0.06)
    singles, decision = stacked_folds(run, decided(run)["tta"], "shifted"), decided(run)["tta"]
    assert check["new_share"] == pytest.approx(np.mean(singles < decision["stacked"]["threshold"]), abs=1e-3)
    shown(capsys, "report", "--run", run)
    written = (run / "report.md").read_text()
    assert written.count("SHIFT: ") == 1 and f"shifted: {check['message']}" in written
    assert "same: Share check: " in written


@pytest.mark.parametrize("images", [1, 5])
def test_a_few_images_are_no_shift(world: Path, run: Path, images: int, capsys: pytest.CaptureFixture[str]) -> None:
    few = run.parent / "few"
    few.mkdir()
    for row in range(1, images + 1):
        shutil.copy(world / "same" / f"{row:04d}.png", few)
    dataset = load_dataset(open_source(few), run / "pixels")
    kept = KeptLogits(
        Run(run).predictions(few.name, dataset.fingerprint, True) / "logits", dataset.ids, dataset.fingerprint
    )
    for member in MEMBERS:
        for fold in range(K):
            kept.save(Run(run).member(member), fold, VIEWS, np.full((images, 2), 5.0))
    out, err = shown(capsys, *predict(run.parent, run, name="few"))
    assert "SHIFT" not in err and "too few to check for a shift" in out
    assert "warning" not in err, "chance explains that a few images got one label"
    told = facts(run, "few")
    assert (told["averaging_measured"], told["correction"], told["requested_correction"]) == (
        False,
        "none",
        "posterior",
    )
    assert told["corrections"] == {} and told["threshold"] == decided(run)["tta"]["stacked"]["threshold"]


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_shows_all_and_its_json_has_the_same_figures(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(predict(world, run))
    main(predict(world, run, "--prior", "0.3", tta=False))
    out, _ = shown(capsys, "report", "--run", run)
    written, figures = (run / "report.md").read_text(), json.loads((run / "report.json").read_text())
    assert written.startswith("# Run run: 1200 images, 3 folds\n\n## In short\n\n2 label files: expected HTER ")
    expected = sorted(facts(run, name)["expected"]["hter"] for name in ("same", "same-plain"))
    stack = figures["decisions"]["tta"]["stack"]["nested"]
    low, high = stack["interval"]
    short = [
        f"2 label files: expected HTER {expected[0]:.4f} to {expected[1]:.4f}.",
        f"Stack of 2 members: nested HTER {stack['hter']:.4f} (95 %: {low:.4f} to {high:.4f}).",
    ]
    assert written.splitlines()[4:7:2] == short
    assert out.splitlines()[-5:-2] == ["In short", *short] and out.count("In short") == 1
    for key, views in VIEW_SETS.items():
        decision, reported = decided(run)[key], figures["decisions"][key]
        stacked, stack = decision["stacked"], reported["stack"]
        nested, apparent = stack["nested"], stack["apparent"]
        for rate in ("fpr", "fnr"):
            assert (nested[rate], apparent[rate]) == (stacked["nested"][rate], stacked["apparent"][rate])
        low, high = nested["interval"]
        assert {"low": low, "high": high} == stacked["interval"] and nested["refitted"]
        title = f"Decision, views {' + '.join(views)}: nested HTER {nested['hter']:.4f} [{low:.4f}, {high:.4f}]"
        assert title in out and title in written
        cells = [nested["fpr"], nested["fnr"], nested["hter"]]
        others = [row["nested"]["hter"] for row in (*reported["members"], *reported["baselines"])]
        best = " (best)" if nested["hter"] <= min(others) else ""
        line = (
            f"| stack{best} | "
            + " | ".join(f"{x:.4f}" for x in cells)
            + f" | [{low:.4f}, {high:.4f}] | {apparent['hter']:.4f} "
            f"| {stack['optimism']:+.4f} | {stack['auc']:.4f} |"
        )
        assert line in written
        assert reported["stacker"] == decision["kind"] and reported["objective"] == "hter"
        assert [row["name"] for row in reported["stackers"]] == list(STACKERS)
        assert [row["cost_fpr"] for row in reported["curve"]] == [cost / 10 for cost in range(1, 10)]
        assert reported["noise"] == decision["noise"] is not None
    tta = figures["decisions"]["tta"]
    for heading in (
        "Stackers compared",
        "Expected performance at other costs",
        "Floor: the HTER that wrong labels alone",
    ):
        assert out.count(heading) == 1 and written.count(f"## {heading}") == 1, heading
    for row in tta["stackers"]:
        nested = row["nested"]
        assert f"| {nested['fpr']:.4f} | {nested['fnr']:.4f} | {nested['hter']:.4f} |" in written
    for row in tta["curve"]:
        least = f"| {row['cost_fpr']:.1f} FPR + {1 - row['cost_fpr']:.1f} FNR | {row['threshold']:+.4f} |"
        assert f"{least} {row['fpr']:.4f} | {row['fnr']:.4f} | {row['hter']:.4f} | {row['loss']:.4f} |" in written
    rates = tta["noise"]["rates"]
    assert f"| labels wrong at random, at most | {rates['fpr']:.4f} | {rates['fnr']:.4f} |" in written
    assert sorted(figures["predictions"]) == ["same", "same-plain"]
    assert "| 95 % | if measured here |" in written
    for name in figures["predictions"]:
        told, reported = facts(run, name), figures["predictions"][name]
        assert reported["expectation"]["rates"]["hter"] == told["expected"]["hter"]
        assert (reported["threshold"], reported["files"]) == (told["threshold"], told["files"])
        expected, (low, high) = told["expected"], told["hter_interval"]
        here = "[{:.4f}, {:.4f}]".format(*told["expected_interval"])
        assert (
            f"| {name} | {LEAST_IMAGES} | {' + '.join(told['requested_views'])} | {told['share_of_label_0']:.4f} "
            f"| {expected['fpr']:.4f} | {expected['fnr']:.4f} | {expected['hter']:.4f} "
            f"| [{low:.4f}, {high:.4f}] | {here} |"
        ) in written
        assert f"{name}: averaging the fold models moves the threshold from " in written
        assert f"to {told['threshold']:+.4f} (correction: posterior)" in written
    assert "same-plain: where label 0 is 0.3000 of the images" in written
    members = [member["name"] for member in tta["members"]]
    assert members == list(MEMBERS) == list(figures["members"])


def test_a_set_that_another_decision_labelled_is_left_out_and_named(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(predict(world, run))
    main(predict(world, run, name="shifted"))
    _, err = shown(capsys, "report", "--run", run)
    assert "labelled by another decision" not in err
    main(["fit-stacker", "--run", str(run), "--objective", "cost:5,1"])
    main(predict(world, run, name="shifted"))
    out, err = shown(capsys, "report", "--run", run)
    notes = [line for line in err.splitlines() if "labelled by another decision" in line]
    assert notes == ["note: same was labelled by another decision; to label it by this one, run: thera predict"]
    assert "Label file shifted: expected HTER" in out and "Label file same" not in out
    assert list(json.loads((run / "report.json").read_text())["predictions"]) == ["shifted"]
    main(predict(world, run))
    out, err = shown(capsys, "report", "--run", run)
    assert "note: " not in err and "2 label files: expected HTER" in out


# --- what it takes ----------------------------------------------------------------------------------------------------

IMPORTED = """
import sys
from ensemble.cli import main
from ensemble.decision import assessment, deploy
assessment.REPLICATES = deploy.REPLICATES = 5
for arguments in eval(sys.argv[1]):
    main(arguments)
    print("heavy:", sorted({"torch", "timm", "albumentations", "cleanlab", "sklearn", "cv2"} & set(sys.modules)))
"""


def test_deciding_and_reporting_take_no_torch(world: Path, run: Path) -> None:
    """What a command has imported stays in its process. A report shows doubtful labels and images."""
    main(predict(world, run, name="shifted"))
    report, compare = ["report", "--run", str(run)], ["compare", str(run), str(run / "members/a")]
    assert imported(compare, predict(world, run)) == [["sklearn"], ["cv2", "sklearn"]]
    assert imported(report) == [["cleanlab", "cv2", "sklearn"]]
    assert imported(["fit-stacker", "--run", str(run)]) == [["sklearn"]]


def imported(*commands: list[str]) -> list[list[str]]:
    """Return what is loaded that is heavy, after each of some commands in one process."""
    start = [sys.executable, "-c", IMPORTED, repr(list(commands))]
    done = subprocess.run(start, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [ast.literal_eval(line[7:]) for line in done.stdout.splitlines() if line.startswith("heavy: ")]


# --- votes ------------------------------------------------------------------------------------------------------------


def test_fold_models_vote_at_the_decisions_threshold(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(predict(world, run, "--combine", "vote"))
    decision = decided(run)["tta"]
    votes = (stacked_folds(run, decision) >= decision["stacked"]["threshold"]).astype(int)
    found = rows(run)
    for fold in range(K):
        assert np.array_equal(found[f"vote_fold-{fold}"], votes[:, fold])
    assert np.array_equal(found["label"], votes.sum(axis=1) >= 2)
    assert facts(run)["threshold"] == decision["stacked"]["threshold"] and not facts(run)["averaging_measured"]
    assert facts(run)["expected"]["hter"] == facts(run)["nested_hter"], "of one fold model: nothing else is known"
    main(predict(world, run))
    assert "vote_fold-0" not in rows(run), "another decision, another file"
    for given in (("--cascade", 0.999), ("--prior", 0.3)):
        assert "leave" in fails(capsys, 2, *predict(world, run, "--combine", "vote", *given))


def test_an_even_vote_is_settled_by_the_mean() -> None:
    class Same:
        def apply(self, logits: np.ndarray) -> np.ndarray:
            return logits[:, 0]

    logits = np.array([[[0.0, 0.9]], [[0.4, 3.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
    labels, votes = deploy.majority_of_folds(Same(), 0.5, logits)  # type: ignore[arg-type]
    assert labels.tolist() == [0, 1, 1, 0] and votes.tolist() == [[0, 1], [0, 1], [1, 1], [0, 0]]
