"""`thera clean`: what it finds and writes, the review that it applies, and the overlays that training reads."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import ODD_IDS, fails, listing, write_three, write_tiny

import thera as library
from ensemble.clean_config import CleanConfig
from ensemble.clean_results import CleanResult
from ensemble.cli import main
from ensemble.commands import train
from ensemble.commands.clean import oof_evidence
from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.label_review import _form, _labels, read_review
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.folds import FoldTable
from ensemble.data.overlay import Change, overlay_bytes, read_overlay
from ensemble.data.source import open_source
from ensemble.decision import assessment
from ensemble.decision.cross_fitting import OofLogits, cross_fit, member_logit, of_score
from ensemble.decision.diagnostics import diagnose
from ensemble.decision.fold_offsets import aligned, find_fold_offsets
from ensemble.decision.label_issues import calibrated
from ensemble.decision.rates import error_rates
from ensemble.errors import ConfigError, DataError
from ensemble.progress import silent
from ensemble.runs.changed_rows import read_changed
from ensemble.runs.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:the fold models differ:UserWarning")

N = 120
WRONG = np.arange(5, N, 20)
TRAIN = ("--arch", "test_resnet", "--no-pretrained", "--batch-size", 8, "--ema-decay", "0.8", "--augment", "none",
         "--lr", "0.005", "--folds", 2, "--device", "cpu", "--jobs", 1)  # fmt: skip


def thera(*arguments: object) -> None:
    main([str(each) for each in arguments])


@pytest.fixture(scope="module", autouse=True)
def few_replicates() -> Iterator[None]:
    """Draw few replicates; they change intervals alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "REPLICATES", 20)
        yield


def forge(truth: np.ndarray, classes: int) -> Any:
    """Return a stand-in of the training, whose models see the true class of each image, with noise."""
    rng = np.random.default_rng(3)
    logits = 6.0 * truth - 3 if classes == 2 else 5.0 * np.eye(classes)[truth]
    logits = logits + rng.normal(size=logits.shape)

    def finish(begun: Any, table: FoldTable, *_: Any) -> None:
        for job, folder in ((job, member.folder) for member in begun for job in member.jobs):
            rows = np.flatnonzero(table.fold_of == job.fold)
            views = np.stack([logits[rows]] * len(VIEWS), axis=1)
            folder.finish_fold(job.fold, {"w": np.zeros(1, np.float32)}, table.ids[rows], views, VIEWS, epochs=1)

    return finish


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny images, six labels of them flipped, and a run with a member of made-up logits."""
    folder = tmp_path_factory.mktemp("cleaned")
    truth = write_tiny(folder / "data", N)
    labels = truth.copy()
    labels[WRONG] = 1 - labels[WRONG]
    (folder / "data/labels.txt").write_text("".join(f"{label}\n" for label in labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finish_folds", forge(truth, 2))
        thera("train-member", *TRAIN, *data(folder), "--run", folder / "run")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def data(folder: Path) -> tuple[object, ...]:
    return "--images", folder / "data/img", "--labels", folder / "data/labels.txt"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def review(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["id,given,decision,label", *lines]) + "\n")
    return path


# --- finding ----------------------------------------------------------------------------------------------------------


def test_wrong_labels_are_found_ranked_and_recorded(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)  # short paths, so that the lines can be
    run = Path("run")
    thera("clean", run)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "label_issues/issues.csv" in out and "95 %" in out
    rows = rows_of(run / "label_issues/issues.csv")
    found = [int(row["id"]) - 1 for row in rows]
    assert len(found) >= 2 and set(found) <= set(WRONG.tolist()), "calibration ties hide some on few images"
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(rows) + 1)]
    table = Run(run).read_folds()
    p = calibrated(oof_evidence(Run(run), table).margins, table.labels, 0)
    for row, image in zip(rows, found, strict=True):
        label = int(table.labels[image])
        assert (int(row["given"]), int(row["suggested"])) == (label, 1 - label)
        assert float(row["probability"]) == pytest.approx(p[image] if label else 1 - p[image], abs=1e-6)
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == sorted(probabilities)
    thera("verify", run)
    (run / "label_issues/review.html").write_text("other")
    fails(capsys, 4, "verify", run)


def test_the_library_returns_what_the_command_prints(copy: Path) -> None:
    result = library.clean(copy / "run", CleanConfig(review=False))
    assert isinstance(result, CleanResult) and result.page is None
    assert [issue.rank for issue in result.issues] == list(range(1, len(result.issues) + 1))
    assert sum(each.issues for each in result.classes) == len(result.issues)
    for each in result.classes:
        assert each.interval is not None and each.interval.low <= each.share + 1e-3 <= each.interval.high
    thera("fit-stacker", "--run", copy / "run")
    bounded = library.clean(copy / "run", CleanConfig(review=False))
    assert "member test_resnet" in bounded.source, "a stack of one member is this member"


@pytest.mark.parametrize("objective", ["hter", "cost:1,3"])
def test_a_report_doubts_the_same_labels_in_the_same_order(copy: Path, objective: str) -> None:
    thera("fit-stacker", "--run", copy / "run", "--objective", objective)
    issues = library.clean(copy / "run", CleanConfig(review=False)).issues
    run = Run(copy / "run")
    decision = read_decisions(run, silent).tta
    shown = diagnose(decision, averaged_oof(run, decision.stacker.members, decision.views), run.read().seed)
    assert shown.doubtful is not None
    assert shown.table.ids[shown.doubtful.rows].tolist() == [issue.id for issue in issues]
    assert shown.doubtful.probability.tolist() == [issue.probability for issue in issues]


def test_without_the_decoded_images_there_is_no_page(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thera("clean", copy / "run")
    assert (copy / "run/label_issues/review.html").exists()
    shutil.rmtree(copy / "run/pixels")
    capsys.readouterr()
    thera("clean", copy / "run")
    assert "does not hold the decoded images" in capsys.readouterr().err
    assert not (copy / "run/label_issues/review.html").exists(), "a page of other issues would mislead"


def test_the_same_run_gives_the_same_bytes(copy: Path) -> None:
    thera("clean", copy / "run")
    first = listing(copy / "run/label_issues")
    thera("clean", copy / "run")
    assert listing(copy / "run/label_issues") == first


def test_a_run_without_a_finished_member_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "train a member first" in fails(capsys, 4, "clean", tmp_path)


@pytest.mark.parametrize("options", [("--apply", "x", "--auto", "drop"), ("--out", "x"), ("--limit", 0)])
def test_options_that_do_not_fit_are_refused(
    made: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...]
) -> None:
    fails(capsys, 2, "clean", made / "run", *options)


# --- a review ---------------------------------------------------------------------------------------------------------


def test_a_review_gives_new_labels_and_an_overlay(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "data/labels.txt").read_bytes()
    given = before.decode().split()
    lines = (f"001,{given[0]},keep,{given[0]}", f"002,{given[1]},flip,{1 - int(given[1])}", f"003,{given[2]},drop,",
             f"004,{given[3]},unsure,", f"005,{given[4]},flip,")  # fmt: skip
    path = review(copy / "review.csv", *lines)
    thera("clean", copy / "run", "--apply", path)
    assert (copy / "data/labels.txt").read_bytes() == before, "the user's file is as it was"
    written = (copy / "run/label_issues/labels.txt").read_text().split()
    assert [row for row in range(N) if written[row] != given[row]] == [1, 4]
    overlay = (copy / "run/label_issues/overlay.csv").read_text()
    assert overlay == f"id,action,label,weight\n002,flip,{written[1]},1.0\n003,drop,,0.0\n005,flip,{written[4]},1.0\n"
    assert "has a label for each image, dropped ones included: 1" in capsys.readouterr().err
    thera("verify", copy / "run")
    thera("clean", copy / "run", "--apply", review(path, lines[0]))  # its own files are replaced
    assert (copy / "run/label_issues/labels.txt").read_bytes() == before
    (copy / "mine.txt").write_text("mine")
    assert "this run did not write it" in fails(
        capsys, 2, "clean", copy / "run", "--apply", path, "--out", copy / "mine.txt"
    )
    (copy / "run/label_issues/overlay.csv").write_text("mine")
    assert "is not as this run wrote it" in fails(capsys, 2, "clean", copy / "run", "--apply", path)
    assert "is not as this run wrote it" in fails(capsys, 2, "clean", copy / "run", "--auto", "drop")
    assert (copy / "run/label_issues/overlay.csv").read_text() == "mine"


FAULTS = {
    "999,0,keep,0": "line 3: '999' is no image of the run",
    "002,0,keep,0": "line 3: the given label is '0', and that of the run 1",
    "002,7,keep,7": "line 3: '7' is no label of the run",
    "002,1,maybe,1": "line 3: the decision must be keep, flip, drop, unsure; got 'maybe'",
    "002,1,flip,1": "line 3: flip has the given label",
    "002,1,keep,0": "line 3: keep has another label",
    "002,1,drop,0": "line 3: drop has another label",
    "002,1,keep": "line 3: has 3 columns, not 4",
    "001,0,keep,0": "line 3: '001' has a line already",
    '"two\nlines",1,keep,1': "line 4: 'two\\nlines' is no image of the run",
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_faulty_line_of_a_review_is_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    before = listing(made)
    path = review(tmp_path / "review.csv", "001,0,keep,0", line)
    assert FAULTS[line] in fails(capsys, 3, "clean", made / "run", "--apply", path)
    assert listing(made) == before


def test_a_table_of_another_kind_is_no_review(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "must have the columns id,given" in fails(
        capsys, 3, "clean", made / "run", "--apply", made / "run/folds.csv"
    )
    assert "cannot be read" in fails(capsys, 3, "clean", made / "run", "--apply", tmp_path / "none.csv")


def small_table(ids: list[str]) -> FoldTable:
    labels, folds = np.arange(len(ids), dtype=np.int8) % 2, np.arange(len(ids), dtype=np.int8) // 2 % 2
    return FoldTable(np.array(ids), labels, folds)


def test_hostile_names_survive_a_review_and_an_overlay(tmp_path: Path) -> None:
    table = small_table(ODD_IDS)
    with open(tmp_path / "review.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(("id", "given", "decision", "label"))
        writer.writerows((name, row % 2, "flip", 1 - row % 2) for row, name in enumerate(ODD_IDS))
    decisions = read_review(tmp_path / "review.csv", table, None)
    assert decisions == {row: ("flip", 1 - row % 2) for row in range(len(ODD_IDS))}
    changes = {row: Change("weight", row % 2, row / 100) for row in range(len(ODD_IDS))}
    (tmp_path / "overlay.csv").write_bytes(overlay_bytes(changes, table.ids))
    assert read_overlay(tmp_path / "overlay.csv", table.ids, table.labels).changes == changes


def test_new_labels_have_the_form_of_the_input(tmp_path: Path) -> None:
    """Of a manifest and of class folders a manifest, which is read again; of a table of labels another."""
    write_tiny(tmp_path, 8)
    names = [f"{row:03d}.png" for row in range(1, 9)]
    manifest = tmp_path / "img/set.csv"
    manifest.write_text("path,label\n" + "".join(f"{name},{('a', 'b')[row % 2]}\n" for row, name in enumerate(names)))
    facts: Any = SimpleNamespace(images=str(manifest), labels=str(manifest), classes=("a", "b"))
    table = small_table(names)
    changes = {0: Change("flip", 1, 1.0), 1: Change("drop", 1, 0.0)}
    assert _form(facts, table) == "manifest.csv"
    content, left_in = _labels("manifest.csv", facts, table, changes, tmp_path / "new.csv")
    (tmp_path / "new.csv").write_bytes(content)
    source = open_source(tmp_path / "new.csv")
    assert left_in == 0 and len(source) == 7 and source.classes == ("a", "b")
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert source.read(0) == (tmp_path / "img/001.png").read_bytes()
    facts.labels = str(tmp_path / "labels.csv")
    assert _form(facts, table) == "labels.csv"
    content, left_in = _labels("labels.csv", facts, table, changes, tmp_path / "new.csv")
    (tmp_path / "new.csv").write_bytes(content)
    again = open_source(tmp_path / "img", tmp_path / "new.csv") if not manifest.unlink() else None
    assert again is not None and again.labels is not None
    assert left_in == 1 and again.labels.tolist() == [1, 1, 0, 1, 0, 1, 0, 1]


# --- overlays in training ---------------------------------------------------------------------------------------------


OVERLAY_FAULTS = {
    "999,drop,,0": "line 2: '999' is no image of the run",
    "001,remove,,0": "line 2: the action must be drop, flip, weight; got 'remove'",
    "001,flip,0,1": "line 2: the label is the given one",
    "001,flip,,1": "line 2: '' is no label of the run",
    "001,drop,1,0": "line 2: the label is not the given one",
    "001,weight,0,1.5": "line 2: the weight must be from 0 to 1; got '1.5'",
    "001,weight,0,nan": "line 2: the weight must be from 0 to 1; got 'nan'",
    "001,weight,,": "line 2: the weight must be from 0 to 1; got ''",
    "001,drop,,1": "line 2: the weight must be 0; got '1'",
    "001,drop,,0\n001,drop,,0": "line 3: 001 has a line already",
}


@pytest.mark.parametrize("lines", OVERLAY_FAULTS)
def test_a_faulty_overlay_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str
) -> None:
    (tmp_path / "overlay.csv").write_text(f"id,action,label,weight\n{lines}\n")
    line = fails(
        capsys, 3, "train-member", *TRAIN, *data(made), "--run", tmp_path / "r", "--overlay", tmp_path / "overlay.csv"
    )
    assert OVERLAY_FAULTS[lines] in line and not (tmp_path / "r").exists()


def test_an_overlay_and_clean_exclude_each_other(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--run", made / "other", "--overlay", made / "none.csv", "--clean")
    assert "has clean and an overlay" in fails(capsys, 2, "train-member", *TRAIN, *data(made), *options)


def jobs_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """Return the jobs that a command would train the folds with, and train none."""
    seen: list[Any] = []

    class Enough(Exception):
        pass

    def keep(begun: Any, *_: Any) -> None:
        seen.extend(job for member in begun for job in member.jobs)
        raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(train, "finish_folds", keep)
        with pytest.raises(SystemExit):
            thera("train-member", *TRAIN, *arguments)
    return seen


def test_an_overlay_changes_training_rows_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Run(copy / "run").read_folds()
    given = [str(label) for label in table.labels]
    actions = ("drop", "flip", "weight")
    labels = [str(1 - int(given[row])) if row % 3 == 1 else given[row] for row in range(24)]
    lines = [f"{row + 1:03d},{actions[row % 3]},{labels[row]},{(0, 1, 0.25)[row % 3]}" for row in range(24)]
    (copy / "overlay.csv").write_text("\n".join(["id,action,label,weight", *lines]))
    options = (*data(copy), "--run", copy / "run", "--name", "o", "--overlay", copy / "overlay.csv", "--epochs", 1)
    for job in jobs_of(monkeypatch, *options):
        held_out = table.fold_of == job.fold
        assert np.array_equal(job.labels[held_out], table.labels[held_out]), "held-out labels are as given"
        first = np.arange(N) < 24
        expected = table.labels.copy()
        flipped = ~held_out & first & (np.arange(N) % 3 == 1)
        expected[flipped] = 1 - expected[flipped]
        assert np.array_equal(job.labels, expected)
        assert set(job.rows) == set(np.flatnonzero(~held_out & ~(first & (np.arange(N) % 3 == 0))))
        weights = np.where(~held_out & first & (np.arange(N) % 3 == 2), np.float32(0.25), np.float32(1))
        assert np.array_equal(job.row_weights, weights)
    member = Run(copy / "run").member("o")
    for fold in range(2):
        dropped = np.flatnonzero((table.fold_of != fold) & (np.arange(N) < 24) & (np.arange(N) % 3 == 0))
        left_out = member.left_out(fold)
        assert left_out is not None and left_out.tolist() == table.ids[dropped].tolist()
    thera("train-member", *TRAIN, *options)  # the rows are known, and the training goes on
    assert "may be slightly too good" in " ".join(capsys.readouterr().out.split())
    assert np.isfinite(member.oof_logits(table, VIEWS)).all(), "every row has its OOF logit"
    assert member.read().oof["nested"]["n_neg"] == np.count_nonzero(table.labels == 0), "labels as given"
    thera("verify", copy / "run")
    (copy / "overlay.csv").write_text("id,action,label,weight\n001,drop,,0\n")
    assert "overlay was" in fails(capsys, 4, "train-member", *TRAIN, *options)


def test_the_score_on_reviewed_labels_stands_beside_the_headline(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Run(copy / "run").read_folds()
    (copy / "overlay.csv").write_text(
        "id,action,label,weight\n"
        + "".join(f"{row + 1:03d},flip,{1 - table.labels[row]},1\n" for row in WRONG)
        + "004,drop,,0\n"
    )
    options = (*data(copy), "--run", copy / "run", "--name", "o", "--overlay", copy / "overlay.csv", "--epochs", 3)
    thera("train-member", *TRAIN, *options)
    (copy / "overlay.csv").unlink()  # the run has its own copy
    thera("report", copy / "run", "--full")
    assert "Secondary: HTER on reviewed labels" in capsys.readouterr().out
    report = json.loads((copy / "run/report.json").read_text())
    (score,) = report["on_reviewed_labels"]
    oof = OofLogits(table, ("o",), Run(copy / "run").member("o").oof_logits(table, VIEWS).mean(axis=1)[:, None])
    oof = aligned(oof, find_fold_offsets(oof))
    y = cross_fit(oof.rows, of_score(member_logit(0))).y_pred
    assert score["given"] == report["members"]["o"]["nested"]["hter"] == error_rates(table.labels, y).hter
    reviewed, kept = table.labels.copy(), np.arange(N) != 3
    reviewed[WRONG] = 1 - reviewed[WRONG]
    assert score["reviewed"] == error_rates(reviewed[kept], y[kept]).hter != score["given"]
    assert (score["images"], score["dropped"], score["flipped"]) == (N - 1, 1, WRONG.size)


def test_an_overlay_that_empties_a_class_is_refused(made: Path, tmp_path: Path) -> None:
    table = Run(made / "run").read_folds()
    rows = np.flatnonzero(table.labels == 0)
    (tmp_path / "o.csv").write_bytes(overlay_bytes({int(row): Change("drop", 0, 0.0) for row in rows}, table.ids))
    shutil.copytree(made / "run", tmp_path / "run")
    config = MemberConfig.model_validate(
        {"arch": "test_resnet", "pretrained": False, "name": "o", "overlay": tmp_path / "o.csv"}
    )
    source = library.DataConfig(images=made / "data/img", labels=made / "data/labels.txt")
    with pytest.raises(DataError, match="no training row of fold 0 has label 0"):
        library.train_members(tmp_path / "run", [config], source, 2)


# --- the nested search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["flip", "weight"])
def test_the_nested_search_flips_or_weighs_training_rows(copy: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    from ensemble.commands import training_issues
    from ensemble.decision import label_issues

    really, calls = label_issues.rank_issues, []

    def found(logits: np.ndarray, labels: np.ndarray, seed: int) -> Any:
        calls.append(labels.copy())
        issues = really(logits, labels, seed)
        rows = np.array([2, 7])  # of the fold's training rows, whatever one epoch has learnt
        return replace(issues, rows=rows, suggested=1 - labels[rows], probability=np.array([0.125, 0.5]))

    monkeypatch.setattr(label_issues, "rank_issues", found)
    options = (*data(copy), "--run", copy / "run", "--name", way, "--cleaning", way, "--epochs", 1)
    jobs, table = jobs_of(monkeypatch, *options), Run(copy / "run").read_folds()
    for job, labels in zip(jobs, calls, strict=True):
        training = np.flatnonzero(table.fold_of != job.fold)
        assert np.array_equal(labels, table.labels[training]), "the search sees training rows alone, as given"
        assert np.array_equal(job.rows, training)
        expected, weights = table.labels.copy(), np.ones(N, np.float32)
        if way == "flip":
            expected[training[[2, 7]]] = 1 - expected[training[[2, 7]]]
            assert job.row_weights is None
        else:
            weights[training[[2, 7]]] = 0.125, 0.5
            assert np.array_equal(job.row_weights, weights)
        assert np.array_equal(job.labels, expected)
        changed = read_changed(Run(copy / "run").member(way), job.fold, table)
        assert changed is not None and sorted(changed.changes) == training[[2, 7]].tolist()
        assert not list(Run(copy / "run").member(way).fold(job.fold).glob("cleaning-*"))
    monkeypatch.setattr(training_issues, "train_jobs", None)  # what is known is not looked for again
    assert [job.labels.tolist() for job in jobs_of(monkeypatch, *options)] == [job.labels.tolist() for job in jobs]


def test_drop_is_true_and_clean_still_a_flag() -> None:
    from ensemble import options

    first = MemberConfig(arch="lenet", clean="drop")
    assert first == MemberConfig(arch="lenet", clean=True) and first.model_dump(mode="json")["clean"] is True
    given = dict.fromkeys(options.PARTS["train-member"][2].fields) | {"run": "r", "arch": "a", "images": "i"}
    names = {name for part in options.PARTS["train-member"] for name in part.fields}
    given = dict.fromkeys(names) | given | {"no_pretrained": False, "clean": False, "freeze": False}
    given |= {"follow_links": False, "full": False}
    assert options.checked("train-member", given)["member"].clean is False
    assert options.checked("train-member", given | {"clean": True})["member"].clean is True
    assert options.checked("train-member", given | {"cleaning": "flip"})["member"].clean == "flip"
    with pytest.raises(ConfigError, match="--cleaning must be"):
        options.checked("train-member", given | {"cleaning": "some"})
    with pytest.raises(ConfigError, match="exclude each other"):
        options.checked("train-member", given | {"clean": True, "cleaning": "flip"})


# --- more than two classes --------------------------------------------------------------------------------------------


def test_three_classes_are_cleaned_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_three(tmp_path / "data", N)
    names = rows_of(tmp_path / "data/labels.csv")
    truth = np.array([("low", "mid", "top").index(row["label"]) for row in names])
    wrong = {5: "mid", 41: "top", 77: "top"}
    for row, label in wrong.items():
        names[row]["label"] = label
    text = "".join(f"{row['name']},{row['label']}\n" for row in names)
    (tmp_path / "data/labels.csv").write_text("name,label\n" + text)
    options = ("--images", tmp_path / "data/img", "--labels", tmp_path / "data/labels.csv", "--classes", 3)
    with monkeypatch.context() as patch:
        patch.setattr(train, "finish_folds", forge(truth, 3))
        thera("train-member", *TRAIN, *options, "--run", tmp_path / "run")
    thera("clean", tmp_path / "run", "--auto", "flip")
    issues = {int(row["id"]) - 1: row for row in rows_of(tmp_path / "run/label_issues/issues.csv")}
    assert set(wrong) <= set(issues)
    for row, label in wrong.items():
        assert (issues[row]["given"], issues[row]["suggested"]) == (label, ("low", "mid", "top")[truth[row]])
    overlay = rows_of(tmp_path / "run/label_issues/overlay.csv")
    assert {int(row["id"]) - 1: row["label"] for row in overlay} == {k: row["suggested"] for k, row in issues.items()}
    path = review(tmp_path / "review.csv", "006,mid,flip,low", "042,top,flip,")
    assert "line 3: flip names no label" in fails(capsys, 3, "clean", tmp_path / "run", "--apply", path)
    review(path, "006,mid,flip,low", "042,top,drop,")
    thera("clean", tmp_path / "run", "--apply", path)
    written = rows_of(tmp_path / "run/label_issues/labels.csv")
    before = [row["label"] for row in names]
    assert [row for row in range(N) if written[row]["label"] != before[row]] == [5]
    member = ("--name", "o", "--overlay", tmp_path / "run/label_issues/overlay.csv")
    (job, _) = jobs_of(monkeypatch, *options, "--run", tmp_path / "run", *member)
    table = Run(tmp_path / "run").read_folds()
    assert job.labels[5] == (table.labels[5] if table.fold_of[5] == 0 else truth[5])
