"""Reports of three classes: the tables of two, with the rates of the classes in place of FPR, FNR and HTER."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from class_results import (
    CALM,
    CLASSES,
    COUNTS,
    EXPECTED,
    PREDICTED,
    RATES,
    class_fitted,
    class_reported,
    of_one_label,
)
from results import fitted
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_recall_fscore_support

from ensemble.decision.class_assessment import ClassAssessment
from ensemble.decision.class_intervals import class_counting_intervals
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.intervals import Interval
from ensemble.decision.label_noise import ClassNoise, describe_class_noise
from ensemble.decision.rates import ClassRates
from ensemble.prediction_results import PredictResult
from ensemble.reports.comparison_tables import confusion_table
from ensemble.reports.decision_tables import class_tables, decision_table, decision_tables, noise_table, stackers_table
from ensemble.reports.documents import member_markdown, report_json, report_markdown, trial_markdown
from ensemble.reports.measures import constant_value, figure, is_better
from ensemble.reports.member_tables import best_rule, member_table, trial_table
from ensemble.reports.prediction_tables import CLASS_UNMEASURED, label_file_warnings, prediction_table, seen_note
from ensemble.reports.render import CLASS_AVERAGING, CLASS_LEGEND, LEGEND, render, report_tables
from ensemble.reports.screen import on_screen
from ensemble.reports.table import rate_cells, rate_columns
from ensemble.results import ClassFitResult, MemberReport, ReportResult, TrainResult, TrialResult, TrialRow

KINDS = {"mean-class-error": "class error", "macro-f1": "macro F1", "accuracy": "accuracy"}


def rows_of(rates: ClassRates) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions with this confusion matrix."""
    counts = np.array(rates.confusion)
    labels, predictions = np.indices(counts.shape).reshape(2, -1)
    return np.repeat(labels, counts.ravel()), np.repeat(predictions, counts.ravel())


def by_sklearn(rates: ClassRates) -> dict[str, float]:
    labels, predictions = rows_of(rates)
    return {
        "class error": 1 - balanced_accuracy_score(labels, predictions),
        "macro F1": f1_score(labels, predictions, average="macro"),
        "accuracy": accuracy_score(labels, predictions),
    }


def cell(interval: Interval) -> str:
    return f"[{interval.low:.4f}, {interval.high:.4f}]"


def predict_result(facts=PREDICTED) -> PredictResult:
    return PredictResult("val", Path("r/predictions/val"), facts, pd.DataFrame(), *[np.empty(0)] * 4)


def trial_result(*rates: ClassRates) -> TrialResult:
    difference = class_fitted().members[1].difference
    rows = (TrialRow(f"small_cnn_{j}", 20, 12.5, each, None, difference if j else None) for j, each in enumerate(rates))
    return TrialResult(Path("r"), 1, ("identity", "hflip"), tuple(rows))


def results(kind: str = "mean-class-error") -> dict[str, object]:
    report = class_reported(class_fitted(kind), {"val": PREDICTED})
    return {
        "train-member": TrainResult(Path("r"), report.members),
        "trial": trial_result(RATES, RATES),
        "fit-stacker": report.decisions,
        "predict": predict_result(),
        "report": report,
        "without a stacker": replace(report, decisions=None, predictions={}),
    }


def printed(result: object, full: bool = False) -> list[str]:
    return "\n".join(table.text() for table in on_screen(result, full)).splitlines()


def summary(result: object) -> list[str]:
    lines = printed(result)
    return lines[lines.index("In short") + 1 :]


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["train-member", "trial", "fit-stacker", "predict", "report", "without a stacker"])
def test_the_screen_fits_80_columns_and_ends_with_the_summary(command: str, kind: str, full: bool) -> None:
    result = results(kind)[command]
    lines, tables = printed(result, full), on_screen(result, full)
    assert max(map(len, lines)) <= 80
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    words = " ".join(lines)
    assert not re.search(r"FPR|FNR|HTER|AUC|threshold", words), "words of two classes"
    if not (command == "trial" and full):
        assert 1 <= len(summary(result)) <= 5
    if full:
        assert tables == render(result)
    else:
        assert len(lines) <= 32


def test_a_name_of_a_class_stays_text_in_every_document() -> None:
    facts = replace(PREDICTED, share_check=replace(CALM, p_values=(0.5, 0.4, 1e-9)))
    result = class_reported(class_fitted(), {"val": facts})
    documents = [report_markdown(result), *map(member_markdown, result.members), trial_markdown(trial_result(RATES))]
    for document in documents:
        assert "<script>" not in document
        for block in re.findall(r"(?:^\|.*\n)+", document, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert documents[0].count("&lt;script>") >= 5
    shown = "\n".join(table.text(400) for table in render(result))
    assert "<script>" in shown and "a|b" in shown


def test_a_name_of_a_class_cannot_paint_the_terminal() -> None:
    painted = ("a\x1b[31m", "b", "c")
    decision, facts = class_fitted(), replace(of_one_label(0), classes=painted)
    report = replace(class_reported(decision, {"val": facts}), decisions=ClassFitResult(decision, decision, painted))
    report = replace(report, members=tuple(replace(member, classes=painted) for member in report.members))
    for full in (False, True):
        assert "\x1b" not in "".join(printed(report, full)), "a name is printed as it is"
    assert "\x1b" not in report_markdown(report)


def test_two_and_three_classes_have_the_same_tables() -> None:
    """Only other costs, which are for two classes alone, give way to the rates of the classes."""

    def titles(result) -> list[str]:
        return [re.sub(r":.*|,.*", "", table.title) for table in render(result)]

    from results import PREDICTED as OF_TWO
    from results import reported

    two, three = titles(reported(fitted(), {"v": OF_TWO})), titles(class_reported(class_fitted(), {"v": PREDICTED}))
    replaced = {"Expected performance at other costs"}
    added = {"Classes of the stack", "Confusion matrix of the stack"}
    assert [title for title in two if title not in replaced] == [title for title in three if title not in added]
    assert replaced < set(two) and added < set(three)


# --- members ----------------------------------------------------------------------------------------------------------


def test_a_members_table_has_a_row_per_fold_and_one_of_all() -> None:
    member = class_fitted().members[1]
    table = member_table(MemberReport(member, ("identity", "hflip"), classes=CLASSES))
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3", "pooled"]
    assert [row[1] for row in table.rows] == ["100"] * 4 + ["400"]
    assert table.columns[2::2] == ("class error", "macro F1", "accuracy")
    for row, rates in zip(table.rows, [*(fold.rates for fold in member.folds), member.nested], strict=True):
        assert dict(zip(table.columns[2::2], row[2::2], strict=True)) == {
            name: f"{value:.4f}" for name, value in by_sklearn(rates).items()
        }
    assert [row[3::2] for row in table.rows[:-1]] == [("", "", "")] * 4
    assert table.rows[-1][3::2] == (cell(member.mean_error), cell(member.macro_f1), cell(member.accuracy))
    apparent = by_sklearn(member.apparent)["class error"]
    assert table.notes[0] == (
        f"Each fold is scored at the offsets fitted without it. Apparent class error {apparent:.4f}, gap "
        f"{by_sklearn(member.nested)['class error'] - apparent:+.4f}."
    )
    offsets = member.offsets
    assert table.notes[1] == (
        f"Offsets fitted on all images: worn +0.0000, a|b {offsets[1]:+.4f}, <script> {offsets[2]:+.4f} (logits)."
    )
    (alone,) = render(MemberReport(member, ("identity",), classes=CLASSES))
    assert alone.notes[-len(CLASS_LEGEND) :] == CLASS_LEGEND and not set(alone.notes) & set(LEGEND)


def at_chance(row: ClassAssessment) -> ClassAssessment:
    return replace(row, mean_error=Interval(0.6, 0.6667))


def test_a_rule_that_is_no_better_than_chance_is_named() -> None:
    decision = class_fitted()
    blind = at_chance(decision.members[1])
    sentence = (
        "The class error of member a|b is no better than chance, 0.6667 "
        f"({blind.nested.mean_error:.4f}, 95 %: 0.6000 to 0.6667)."
    )
    assert sentence in member_table(MemberReport(blind, ("identity",), classes=CLASSES)).notes
    assert sentence in decision_table(replace(decision, members=(decision.members[0], blind)), CLASSES).notes
    assert not any("chance" in note for note in decision_table(decision, CLASSES).notes)
    of_stack = decision_table(replace(decision, stacked=at_chance(decision.stacked)), CLASSES)
    assert any(note.startswith("The class error of the stack is no better than") for note in of_stack.notes)
    lines = summary(TrainResult(Path("r"), (MemberReport(blind, ("identity",), classes=CLASSES),)))
    assert lines[1] == "A constant answer has class error 0.6667: a|b is no better."


def test_a_trial_shows_the_rates_at_the_greatest_logits() -> None:
    worse = ClassRates(((30, 18, 2), (15, 15, 0), (8, 4, 8)))
    table = trial_table(trial_result(worse, RATES))
    assert table.columns[3:] == ("class error", "macro F1", "accuracy", "class error less small_cnn_0's")
    assert table.rows[1][3:6] == tuple(f"{value:.4f}" for value in by_sklearn(RATES).values())
    assert table.best == 1 and "no offsets are fitted" in table.notes[0]
    assert trial_table(trial_result(RATES, RATES)).best is None
    assert trial_table(trial_result(worse, RATES), full=False).columns[3:] == (table.columns[3], table.columns[6])
    assert summary(trial_result(worse, RATES))[0] == (
        f"Best on fold 1: small_cnn_1, class error {RATES.mean_error:.4f} without offsets."
    )
    assert len(table.notes) == 1
    blind = ClassRates(((20, 15, 15), (10, 10, 10), (7, 7, 6)))
    _, interval = class_counting_intervals(blind)
    assert trial_table(trial_result(RATES, blind)).notes[1:] == (
        f"The class error of member small_cnn_1 is no better than chance, 0.6667 ({blind.mean_error:.4f}, 95 %: "
        f"{interval.low:.4f} to {interval.high:.4f}).",
    )


# --- the decision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_stacks_table_leads_with_the_measure_of_the_objective(kind: str) -> None:
    decision, name = class_fitted(kind), KINDS[kind]
    stacked, table = decision.stacked, decision_table(class_fitted(kind), CLASSES)
    interval = {"class error": stacked.mean_error, "macro F1": stacked.macro_f1, "accuracy": stacked.accuracy}[name]
    value = by_sklearn(stacked.nested)[name]
    assert table.title == f"Decision, views plain + flip: nested {name} {value:.4f} {cell(interval)}"
    assert table.columns == (
        *("rule", "class error", "95 %", "macro F1", "95 %", "accuracy", "apparent", "gap"),
        f"{name} less the stack's",
    )
    assert [row[0] for row in table.rows] == [
        *("stack", "member cnn[b]", "member a|b", "baseline: cnn[b] without offsets"),
        *("baseline: a|b without offsets", "baseline: plurality vote"),
    ]
    rules = [stacked, *decision.members, *decision.baselines]
    for row, rule in zip(table.rows, rules, strict=True):
        nested, apparent = by_sklearn(rule.nested), by_sklearn(rule.apparent)[name]
        assert (row[1], row[3], row[5]) == tuple(f"{each:.4f}" for each in nested.values())
        assert (row[2], row[4]) == (cell(rule.mean_error), cell(rule.macro_f1))
        gap = nested[name] - apparent if name == "class error" else apparent - nested[name]
        assert (row[6], float(row[7])) == (f"{apparent:.4f}", pytest.approx(gap, abs=6e-5))
        if rule is not stacked:
            shown, low, high = map(float, re.findall(r"[+-][\d.]+", row[8]))
            assert shown == pytest.approx(nested[name] - value, abs=6e-5), "the measure less the stack's"
            assert low <= shown <= high
    assert table.rows[0][8] == ""
    losses = [decision.objective.loss(rule.nested) for rule in rules]
    assert table.best == losses.index(min(losses)) == best_rule(rules, decision.objective)
    assert best_rule(rules[:1], decision.objective) is None


def test_the_difference_of_macro_f1_has_its_interval() -> None:
    decision = class_fitted("macro-f1")
    row = decision_table(decision, CLASSES).rows[1]
    difference = decision.members[0].macro_f1_difference
    low, high = difference.interval.low, difference.interval.high
    assert row[8] == f"{difference.value:+.4f} [{low:+.4f}, {high:+.4f}]"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("mean-class-error", "the least mean of the class error rates"),
        ("macro-f1", "the greatest macro F1"),
        ("accuracy", "the greatest accuracy"),
    ],
)
def test_it_says_what_the_offsets_are_for_and_what_was_fitted(kind: str, line: str) -> None:
    decision = class_fitted(kind)
    first, second, repeated, *_ = decision_table(decision, CLASSES).notes
    assert first == f"The offsets are those of {line}. The stacker is the logistic one without negative weights."
    weights, offsets = decision.stacker.weights, decision.offsets
    assert second == (
        f"Fitted on all 400 images: weights cnn[b] {weights[0]:+.4f}, a|b {weights[1]:+.4f}; offsets worn +0.0000, "
        f"a|b {offsets[1]:+.4f}, <script> {offsets[2]:+.4f} (logits)."
    )
    values = [loss if kind == "mean-class-error" else 1 - loss for loss in decision.repeated]
    assert repeated == (
        f"Nested {KINDS[kind]} over 3 other partitions of the images: mean {sum(values) / 3:.4f}, from "
        f"{min(values):.4f} to {max(values):.4f}."
    )
    assert f"The offsets are those of {line}." in printed(ClassFitResult(decision, decision, CLASSES))


def test_its_warnings_are_reported() -> None:
    decision = class_fitted()
    noted = replace(decision, notes=("member a is dead",), stackers=())
    assert decision_table(noted, CLASSES).notes[-1] == "member a is dead"
    assert decision_table(noted, CLASSES).notes[0].endswith(" One member needs no stacker.")
    assert "member a is dead" in printed(ClassFitResult(decision, noted, CLASSES))


def test_stackers_are_compared_and_one_is_deployed() -> None:
    decision = class_fitted("macro-f1")
    table = stackers_table(decision)
    assert table.columns == (
        *("stacker", "class error", "95 %", "macro F1", "95 %", "accuracy"),
        "macro F1 less the stack's",
    )
    assert [row[0] for row in table.rows].index("the logistic one without negative weights (deployed)") == 2
    for shown, row in zip(table.rows, decision.stackers, strict=True):
        assert (shown[1], shown[3], shown[5]) == rate_cells(row.nested)
        assert shown[4] == cell(row.macro_f1) and shown[6].count(".") == 3


def test_each_class_has_recall_precision_and_f1_of_the_nested_predictions() -> None:
    decision = class_fitted()
    of_classes, confusion = class_tables(decision, CLASSES)
    labels, predictions = rows_of(decision.nested)
    precisions, recalls, f1, _ = precision_recall_fscore_support(labels, predictions)
    assert of_classes.columns == ("class", "images", "recall", "95 %", "precision", "95 %", "F1", "offset")
    for c, row in enumerate(of_classes.rows):
        assert (row[0], row[1]) == (CLASSES[c], str(COUNTS[c]))
        assert (row[2], row[4], row[6]) == (f"{recalls[c]:.4f}", f"{precisions[c]:.4f}", f"{f1[c]:.4f}")
        low, high = map(float, re.findall(r"[\d.]+", row[3]))
        error = decision.stacked.errors[c]
        assert (low, high) == (pytest.approx(1 - error.high, abs=6e-5), pytest.approx(1 - error.low, abs=6e-5))
        assert low <= float(row[2]) <= high
        assert row[5] == cell(decision.stacked.precisions[c]) and row[7] == f"{decision.offsets[c]:+.4f}"
    assert of_classes.notes[-1] == "Fewer than 30 images, so the intervals do not hold: <script>."
    many = replace(decision.stacked, nested=ClassRates(((30, 0, 0), (0, 30, 0), (0, 0, 30))))
    assert not any("Fewer" in note for note in class_tables(replace(decision, stacked=many), CLASSES)[0].notes)
    expected = pd.crosstab(labels, predictions, margins=True).to_numpy()
    assert confusion.columns == ("images", *CLASSES, "all")
    assert [row[0] for row in confusion.rows] == [*CLASSES, "all"]
    assert np.array_equal(np.array([row[1:] for row in confusion.rows], int), expected)
    assert [row[0] for row in class_tables(decision)[0].rows] == ["0", "1", "2"], "without names, the indices"


def test_the_tables_of_a_decision_end_with_what_they_mean() -> None:
    decision = class_fitted()
    plain, tta, stackers, *of_classes, floor = decision_tables(replace(decision, views=("plain",)), decision, CLASSES)
    assert plain.title.startswith("Decision, views plain:") and tta == decision_table(decision, CLASSES)
    assert stackers == stackers_table(decision) and tuple(of_classes) == class_tables(decision, CLASSES)
    assert floor == noise_table(decision, CLASSES)
    alone = replace(decision, stackers=())
    assert tuple(decision_tables(alone, alone, CLASSES)[2:-1]) == class_tables(alone, CLASSES)
    *_, last, _ = render(ClassFitResult(decision, decision, CLASSES))
    assert last.notes == (*floor.notes, *CLASS_LEGEND, CLASS_AVERAGING)


NOISE = ClassNoise(ClassRates(((90, 10, 0), (0, 50, 0), (5, 0, 45))))


def test_what_confident_predictions_contradict_is_shown_by_label() -> None:
    decision = replace(class_fitted("accuracy"), noise=NOISE)
    table = noise_table(decision, CLASSES)
    assert table.rows == (
        ("worn", "0.1000", ""),
        ("a|b", "0.0000", ""),
        ("<script>", "0.1000", ""),
        ("mean", "0.0667", cell(NOISE.interval)),
    )
    assert table.notes == (describe_class_noise(NOISE, decision.nested.mean_error, CLASSES),)
    unknown = noise_table(replace(decision, noise=None), CLASSES)
    assert unknown.rows == () and "is not known" in unknown.notes[0]
    lines = summary(ClassFitResult(decision, decision, CLASSES))
    assert " ".join(lines).endswith("at most; labels that are confidently contradicted make up 0.067.")
    assert "contradicted" in " ".join(summary(class_reported(decision)))
    assert len(summary(class_reported(decision, {"val": PREDICTED}))) == 5, "no line is left for it"


# --- label files ------------------------------------------------------------------------------------------------------


def test_a_label_file_has_the_rates_of_one_fold_model() -> None:
    table = prediction_table({"val": replace(PREDICTED, seen_in_training=3)})
    assert table.title == "Label files: expected macro F1"
    assert table.columns == ("set", "images", "views", "class error", "macro F1", "accuracy", "if measured here")
    rates = tuple(f"{value:.4f}" for value in by_sklearn(RATES).values())
    assert table.rows == (("val *", "500", "identity + hflip", *rates, "[0.1000, 0.2500]"),)
    assert CLASS_UNMEASURED in table.notes and "not measured among more than two classes" in CLASS_UNMEASURED
    assert "val: shares of the labels: worn 0.5000, a|b 0.3000, <script> 0.2000." in table.notes
    assert f"val: {seen_note(3, 500)}" in table.notes
    (check,) = (note for note in table.notes if "Share check" in note)
    assert check == f"val: {CALM.message(497, CLASSES)}" and "of the new images as a|b," in check
    none = replace(PREDICTED, expectation=replace(EXPECTED, new_set_interval=None))
    assert prediction_table({"val": none}).rows[0][-1] == ""
    of_error = replace(PREDICTED, expectation=replace(EXPECTED, objective=ClassObjective()))
    assert prediction_table({"val": of_error}).title == "Label files: expected class error"


def test_a_shift_is_a_warning_with_the_name_of_the_class() -> None:
    moved = replace(CALM, p_values=(0.5, 0.4, 1e-9))
    facts = replace(PREDICTED, share_check=moved)
    assert label_file_warnings(PREDICTED) == ()
    assert label_file_warnings(facts) == (moved.message(500, CLASSES),)
    assert label_file_warnings(facts)[0].startswith("SHIFT: single fold models predict 0.2100 of the new images as <")
    assert "warning: val: SHIFT: " in " ".join(printed(predict_result(facts)))
    assert summary(predict_result(facts)) == [
        f"Label file val: one fold model has macro F1 {RATES.macro_f1:.4f}; see the warnings.",
        "The new images seem to differ from the training images: see the warning.",
        "A constant answer has macro F1 0.2222 at most.",
    ]
    few = summary(predict_result(replace(PREDICTED, images=7)))
    assert few[1] == "Too few images to check whether they differ from the training images: 7."


@pytest.mark.parametrize(
    ("kind", "aim"),
    [
        ("mean-class-error", ""),
        ("macro-f1", " by offsets for the greatest macro F1"),
        ("accuracy", " by offsets for the greatest accuracy"),
    ],
)
def test_a_file_with_one_label_is_said_to_be_so(kind: str, aim: str) -> None:
    facts = of_one_label(1, kind)
    (sentence,) = label_file_warnings(facts)
    assert sentence == (
        f"all 90 images got label a|b{aim}. Such a file has class error 0.6667, as any constant answer has, if all "
        "labels occur among its images."
    )
    table = prediction_table({"val": facts})
    assert f"val: {sentence}" in table.notes and CLASS_UNMEASURED not in table.notes
    assert table.rows[0][0] == "val", "its rates are known"
    labels, _ = rows_of(RATES)
    of_file = {
        "mean-class-error": "class error 0.6667",
        "macro-f1": f"macro F1 {f1_score(labels, np.ones_like(labels), average='macro'):.4f}",
        "accuracy": f"accuracy {np.mean(labels == 1):.4f}",
    }[kind]
    assert summary(predict_result(facts))[0] == f"Label file val: {of_file}, since all 90 images got label a|b."
    assert label_file_warnings(of_one_label(1, kind, images=2)) == (), "chance explains two equal labels"


# --- in short ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_in_short_a_report_says_label_file_stack_constant_answer_and_files(kind: str) -> None:
    decision, name = class_fitted(kind), KINDS[kind]
    of_file = replace(PREDICTED, expectation=replace(EXPECTED, objective=decision.objective))
    labels, _ = rows_of(decision.nested)
    most = np.zeros_like(labels)  # class 0 is the most frequent one
    constant = {
        "class error": "0.6667",
        "macro F1": f"{f1_score(labels, most, average='macro'):.4f} at most",
        "accuracy": f"{accuracy_score(labels, most):.4f} at most",
    }[name]
    of_stack = figure(decision.stacked)
    assert summary(class_reported(decision, {"val": of_file})) == [
        f"Label file val: one fold model has {name} {by_sklearn(RATES)[name]:.4f}.",
        f"Stack of 2 members: nested {name} {by_sklearn(decision.nested)[name]:.4f} "
        f"(95 %: {of_stack.interval.low:.4f} to {of_stack.interval.high:.4f}).",
        f"A constant answer has {name} {constant}.",
        "Label file: checkpoints/run/predictions/val/label_val.txt",
        "Whole report: checkpoints/run/report.html, report.md, or --full.",
    ]
    worse = replace(decision.stacked, mean_error=Interval(0.5, 0.67))
    lines = summary(ClassFitResult(decision, replace(decision, stacked=worse), CLASSES))
    assert lines[1] == f"A constant answer has {name} {constant}: the stack is no better."


def test_of_two_label_files_the_span_is_said() -> None:
    other = replace(PREDICTED, expectation=replace(EXPECTED, rates=ClassRates(((50, 0, 0), (0, 30, 0), (0, 0, 20)))))
    lines = summary(class_reported(class_fitted("macro-f1"), {"a": other, "b": PREDICTED}))
    span = f"{by_sklearn(RATES)['macro F1']:.4f} to 1.0000"
    assert lines[0] == f"2 label files: expected macro F1 {span} (*: of one fold model)."


def test_before_the_stacker_is_fitted_the_best_member_is_reported() -> None:
    decision = class_fitted("accuracy")
    best = max(decision.members, key=lambda member: member.nested.accuracy)
    lines = summary(replace(class_reported(decision), decisions=None))
    assert lines[0].startswith(f"Member {best.name}: nested accuracy {best.nested.accuracy:.4f} (95 %: ")
    assert lines[2] == "To combine the members and fit the offsets, run: thera fit-stacker"


@pytest.mark.parametrize("kind", KINDS)
def test_no_constant_answer_is_better_than_the_best_one(kind: str) -> None:
    values = [by_sklearn(of_one_label(c).expectation.rates)[KINDS[kind]] for c in range(3)]
    best = min(values) if kind == "mean-class-error" else max(values)
    assert constant_value(RATES, ClassObjective.parse(kind)) == pytest.approx(best)


def test_a_rule_must_beat_a_constant_answer_by_its_measure_and_by_its_class_error() -> None:
    stacked = class_fitted("accuracy").stacked
    assert is_better(stacked)
    share = COUNTS[0] / sum(COUNTS)
    assert not is_better(replace(stacked, accuracy=Interval(share - 0.01, 0.9)))
    assert is_better(replace(stacked, accuracy=Interval(share + 0.01, 0.9)))
    assert not is_better(replace(stacked, mean_error=Interval(0.5, 0.7)))


def test_on_the_screen_the_accuracy_stands_beside_the_class_error_where_it_is_judged_by() -> None:
    def columns(kind: str) -> tuple[str, ...]:
        decision = class_fitted(kind)
        return on_screen(ClassFitResult(decision, decision, CLASSES))[0].columns

    assert columns("macro-f1") == columns("mean-class-error") == ("", "class error", "95 %", "macro F1", "95 %")
    assert columns("accuracy") == ("", "class error", "95 %", "accuracy")


def test_rates_have_columns() -> None:
    assert rate_columns(RATES) == tuple(by_sklearn(RATES))
    assert rate_cells(RATES) == tuple(f"{value:.4f}" for value in by_sklearn(RATES).values())


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_report_holds_all_figures_unrounded() -> None:
    decision = replace(class_fitted("macro-f1"), noise=NOISE)
    stored = json.loads(json.dumps(report_json(class_reported(decision, {"val": PREDICTED})), allow_nan=False))
    assert stored["classes"] == list(CLASSES) and set(stored["members"]) == {"cnn[b]", "a|b"}
    plain = stored["decisions"]["plain"]
    stack, stacked = plain["stack"], decision.stacked
    assert (plain["objective"], plain["stacker"], plain["curve"]) == ("macro-f1", "nonnegative", [])
    assert plain["noise"] == {
        "confident_joint": [list(row) for row in NOISE.rates.confusion],
        "mean_error": NOISE.rates.mean_error,
        "interval": [NOISE.interval.low, NOISE.interval.high],
    }
    assert plain["repeated"] == list(decision.repeated) and plain["notes"] == list(decision.notes)
    assert stack["offsets"] == list(decision.offsets) and stack["optimism"] == decision.optimism
    nested = stack["nested"]
    assert nested["confusion"] == [list(row) for row in decision.nested.confusion]
    assert nested["macro_f1"] == pytest.approx(by_sklearn(decision.nested)["macro F1"])
    assert nested["loss"] == stacked.loss and nested["interval"] == [stacked.interval.low, stacked.interval.high]
    assert nested["macro_f1_interval"] == [stacked.macro_f1.low, stacked.macro_f1.high]
    assert nested["mean_error_interval"] == [stacked.mean_error.low, stacked.mean_error.high]
    assert nested["accuracy_interval"] == [stacked.accuracy.low, stacked.accuracy.high]
    precisions, recalls, f1, images = precision_recall_fscore_support(*rows_of(decision.nested))
    for c, (name, of_class) in enumerate(stack["classes"].items()):
        assert name == CLASSES[c] and of_class["images"] == images[c]
        assert (of_class["recall"], of_class["precision"]) == pytest.approx((recalls[c], precisions[c]))
        assert of_class["f1"] == pytest.approx(f1[c]) and of_class["offset"] == decision.offsets[c]
        assert of_class["recall_interval"] == [1 - stacked.errors[c].high, 1 - stacked.errors[c].low]
        assert of_class["precision_interval"] == [stacked.precisions[c].low, stacked.precisions[c].high]
    assert stack["less_the_stack"] is stack["macro_f1_less_the_stack"] is None
    member, of_member = decision.members[0], stored["members"]["cnn[b]"]
    assert of_member["less_the_stack"]["loss"] == member.difference.value
    assert of_member["macro_f1_less_the_stack"]["macro_f1"] == member.macro_f1_difference.value
    assert [fold["offsets"] for fold in stack["folds"]] == [list(fold.offsets) for fold in stacked.folds]
    of_file = stored["predictions"]["val"]
    assert of_file["expectation"]["rates"]["macro_f1"] == RATES.macro_f1
    assert of_file["classes"] == list(CLASSES) and of_file["shares"] == [0.5, 0.3, 0.2]
    assert of_file["share_check"]["shifted"] is False and of_file["share_check"]["p_value"] == 1.0


def test_the_markdown_report_holds_every_table() -> None:
    result: ReportResult = class_reported(class_fitted(), {"val": PREDICTED})
    text = report_markdown(result)
    assert text.startswith("# Run run: 400 images, 4 folds\n\n## In short")
    assert all(table.markdown() in text for table in report_tables(result))


def test_the_confusion_matrix_of_18_classes_has_numbers_for_columns_and_fits_two_blocks() -> None:
    names = [f"class with a name {c}" for c in range(18)]
    table = confusion_table([[10 * (c == d) for d in range(18)] for c in range(18)], names)
    assert table.columns == ("images", *map(str, range(18)), "all")
    assert table.rows[17][0] == "17 class with a name 17" and table.rows[17][18:] == ("10", "10")
    assert table.text().count("images  ") == 2 and "A column has the number" in " ".join(table.text().split())
    assert confusion_table([[1, 0, 0]] * 3, ["a", "b", "c"]).columns == ("images", "a", "b", "c", "all")
