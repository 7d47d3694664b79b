"""What the commands print: short, in 80 columns, with the summary last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results import CALM, FEW, PREDICTED, fitted, predicted, rates, reported

from ensemble.decision.comparison import compare_predictions, evaluate_predictions
from ensemble.decision.decision import Decision
from ensemble.decision.intervals import Interval
from ensemble.decision.label_noise import NoiseBound
from ensemble.decision.rates import ErrorRates
from ensemble.prediction_results import PredictResult
from ensemble.reports.comparison_tables import verdict
from ensemble.reports.render import render
from ensemble.reports.screen import on_screen
from ensemble.results import (
    CompareResult,
    DemoResult,
    EvaluateResult,
    FitResult,
    MemberReport,
    TrainResult,
    TrialResult,
    TrialRow,
)

LABELS = np.repeat([0, 1], [40, 160]).astype(np.int8)
WRONG = np.where(np.arange(200) % 9 == 0, 1 - LABELS, LABELS).astype(np.int8)


@pytest.fixture
def decision() -> Decision:
    return fitted()


def predict_result(facts=PREDICTED) -> PredictResult:
    nothing = np.empty(0)
    return PredictResult("val", Path("r/predictions/val"), facts, pd.DataFrame(), *[nothing] * 4)


def results(decision: Decision) -> dict[str, object]:
    """A result of each command that has a short form."""
    members = tuple(MemberReport(member, ("identity", "hflip")) for member in decision.members)
    compared = compare_predictions(LABELS, LABELS, WRONG)
    trial_rows = tuple(
        TrialRow(name, 20, 12.5, rates(0.1, 0.2), 0.9, difference)
        for name, difference in (("small_cnn", None), ("small_cnn_light", compared.hter))
    )
    report = reported(decision, {"val": PREDICTED})
    demo = DemoResult(report, decision.nested, ErrorRates(0.1, 0.2, 40, 160), ErrorRates(0.05, 0.1, 40, 160), 0.1428)
    return {
        "train-member": TrainResult(Path("r"), members),
        "trial": TrialResult(Path("r"), 1, ("identity", "hflip"), trial_rows),
        "fit-stacker": FitResult(decision, decision),
        "predict": predict_result(),
        "evaluate": EvaluateResult("val.txt", "truth.txt", evaluate_predictions(LABELS, WRONG)),
        "compare": CompareResult("old.txt", "new.txt", compared, labels="truth.txt"),
        "report": report,
        "demo": demo,
    }


def printed(result: object, full: bool = False) -> list[str]:
    return "\n".join(table.text() for table in on_screen(result, full)).splitlines()


def summary(result: object, full: bool = False) -> list[str]:
    lines = printed(result, full)
    return lines[lines.index("In short") + 1 :]


COMMANDS = ["train-member", "trial", "fit-stacker", "predict", "evaluate", "compare", "report", "demo"]


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_screen_fits_80_columns_and_ends_with_the_summary(decision, command: str, full: bool) -> None:
    result = results(decision)[command]
    lines = printed(result, full)
    assert max(map(len, lines)) <= 80
    if not (command == "trial" and full):
        assert 1 <= len(summary(result, full)) <= 5
    if full:
        assert on_screen(result, full) == render(result)
    else:
        assert len(lines) <= 32
        if command not in ("trial", "compare", "evaluate"):  # their tables are short themselves
            assert 2 * len(lines) < len(printed(result, full=True))


def test_in_short_a_report_says_label_file_stack_constant_answer_and_files(decision) -> None:
    noise = NoiseBound(rates(0.05, 0.03), by_halves=True)
    result = reported(replace(decision, noise=noise), {"val": PREDICTED})
    low, high = decision.interval.low, decision.interval.high
    assert summary(result) == [
        "Label file val: expected HTER 0.1500 (95 %: 0.1200 to 0.1800).",
        f"Stack of 2 members: nested HTER {decision.nested.hter:.4f} (95 %: {low:.4f} to {high:.4f}).",
        "A constant answer has HTER 0.5; labels wrong at random cause at most 0.040.",
        "Label file: checkpoints/run/predictions/val/label_val.txt",
        "Whole report: checkpoints/run/report.html, report.md, or --full.",
    ]
    lines = summary(reported(replace(decision, noise=None), {"val": PREDICTED}))
    assert lines[2] == "A constant answer has HTER 0.5."
    of_one_model = replace(PREDICTED, expectation=replace(PREDICTED.expectation, averaging_measured=False))
    assert summary(reported(decision, {"val": of_one_model}))[0] == (
        "Label file val: one fold model has HTER 0.1500; averaging was not measured."
    )
    both = summary(reported(decision, {"val": PREDICTED, "b\x1b[31m": predicted(rates=rates(0.2, 0.3))}))
    assert both[0] == "2 label files: expected HTER 0.1500 to 0.2500."
    assert "\x1b" not in "".join(printed(reported(decision, {"b\x1b[31m": PREDICTED})))


def test_a_path_is_relative_to_the_working_directory_if_it_lies_in_it(decision) -> None:
    for run, shown in ((Path.cwd() / "checkpoints/x", "checkpoints/x"), (Path("/elsewhere/x"), "/elsewhere/x")):
        result = replace(reported(decision), run=run)
        assert summary(result)[-1] == f"Whole report: {shown}/report.html, report.md, or --full."


def test_a_stack_that_is_no_better_than_a_constant_answer_is_said_to_be_so(decision) -> None:
    for worse in (
        replace(decision.stacked, interval=Interval(0.4, 0.51)),
        replace(decision.stacked, auc=0.51),
    ):
        lines = summary(FitResult(decision, replace(decision, stacked=worse)))
        assert lines[1] == "A constant answer has HTER 0.5: the stack is no better."
    member = MemberReport(replace(decision.members[0], auc=0.51), ("identity",))
    assert summary(TrainResult(Path("r"), (member,)))[1] == "A constant answer has HTER 0.5: cnn[b] is no better."


def test_before_the_stacker_is_fitted_the_best_member_is_reported(decision) -> None:
    best = min(decision.members, key=lambda member: member.nested.hter)
    lines = summary(replace(reported(decision), decisions=None))
    assert lines[0].startswith(f"Member {best.name}: nested HTER {best.nested.hter:.4f} (95 %: ")
    assert lines[1:] == [
        "A constant answer has HTER 0.5.",
        "To combine the members and fit the threshold, run: thera fit-stacker",
        "Whole report: checkpoints/run/report.html, report.md, or --full.",
    ]


def test_the_best_member_is_marked_and_all_folds_are_in_its_report(decision) -> None:
    one, both = (
        TrainResult(Path("r"), tuple(MemberReport(member, ("identity",)) for member in members))
        for members in (decision.members[:1], decision.members)
    )
    assert not any("(best)" in line for line in printed(one))
    assert any(line.startswith("cnn[b] (best) ") for line in printed(both))
    assert summary(one)[-1] == "All folds: r/members/cnn[b]/report.md, or --full."
    assert summary(both)[-1] == "All folds: r/members/NAME/report.md, or --full."


def test_what_matters_of_a_members_origin_and_auc_is_printed(decision) -> None:
    blind = MemberReport(replace(decision.members[0], auc=0.5), ("identity",), from_scratch=True)
    text = " ".join(printed(TrainResult(Path("r"), (blind,))))
    assert "The AUC of member cnn[b] is no better than chance (0.5000, 95 %: " in text
    assert "cnn[b]: Trained from scratch: the config requests" in text


# --- label files ------------------------------------------------------------------------------------------------------


def test_in_short_a_prediction_says_the_hter_and_what_the_check_saw() -> None:
    assert summary(predict_result()) == [
        "Label file val: expected HTER 0.1500 (95 %: 0.1200 to 0.1800).",
        "No sign that the new images differ from the training images (p = 0.9).",
        "A constant answer has HTER 0.5.",
    ]
    few = summary(predict_result(predicted(**FEW, images=7, share_of_label_0=0.3)))
    assert few[1] == "Too few images to check whether they differ from the training images: 7."


def test_a_shift_and_a_contradiction_are_in_the_table_and_in_short() -> None:
    moved = replace(CALM, p_value=1e-9)
    result = predict_result(predicted(share_check=moved, share_of_label_0=0.9))
    text = " ".join(printed(result))
    assert "warning: val: SHIFT: single fold models predict" in text
    assert "warning: val: the expected rates do not fit this file" in text
    assert summary(result)[:2] == [
        "Label file val: expected HTER 0.1500 (95 %: 0.1200 to 0.1800); see the warnings.",
        "The new images seem to differ from the training images: see the warning.",
    ]


def test_a_file_with_one_label_has_hter_one_half(decision) -> None:
    facts = predicted(images=90, share_of_label_0=0.0, implied_share=None)
    line = "Label file val: HTER 0.5, since all 90 images got label 1."
    assert summary(predict_result(facts))[0] == line
    assert summary(reported(decision, {"val": facts}))[0] == line
    assert "warning: val: all 90 images got label 1." in " ".join(printed(predict_result(facts)))


# --- measuring --------------------------------------------------------------------------------------------------------


def test_in_short_an_evaluation_says_whether_it_beats_a_constant_answer() -> None:
    def line(y_pred: np.ndarray) -> str:
        (found,) = summary(EvaluateResult("val.txt", "truth.txt", evaluate_predictions(LABELS, y_pred)))
        return found

    assert line(WRONG).endswith("; a constant answer has 0.5.")
    chance = np.resize([0, 1], 200).astype(np.int8)
    assert line(chance).startswith("val.txt: HTER 0.5000 (95 %: ")
    assert line(chance).endswith("; no better than a constant answer.")
    for label in (0, 1):
        constant = np.full(200, label, np.int8)
        expected = f"val.txt has label {label} for all images: it is a constant answer, with HTER 0.5."
        assert line(constant) == expected


def test_a_comparison_ends_with_the_verdict() -> None:
    comparison = compare_predictions(LABELS, LABELS, WRONG)
    result = CompareResult("old.txt", "new.txt", comparison, labels="truth.txt")
    for full in (False, True):
        assert " ".join(summary(result, full)) == verdict("old.txt", "new.txt", comparison)
    assert not any("McNemar" in line for line in printed(result))
    assert any("McNemar" in line for line in printed(result, full=True))


def test_the_demo_holds_its_result_against_the_least_possible(decision) -> None:
    lines = summary(results(decision)["demo"])
    assert lines[2] == "Any rule has at least 0.1428 (Bayes), a constant answer has 0.5."
    assert lines[-1] == "Whole report: checkpoints/run/report.html, report.md, or --full."
    assert any(line.startswith("label_val.txt against the true classes") for line in printed(results(decision)["demo"]))


def test_a_trial_leaves_out_fpr_and_fnr_and_names_members_without_information(decision) -> None:
    result = results(decision)["trial"]
    short, full = printed(result), printed(result, full=True)
    assert "FPR" not in " ".join(short) and "FPR" in " ".join(full)
    blind = replace(result, rows=tuple(replace(row, auc=0.5) for row in result.rows))
    assert "The AUC of member small_cnn_light is no better than chance (0.5000" in " ".join(printed(blind))
