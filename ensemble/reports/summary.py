"""In short: what matters of a result, in at most five lines. It stands last on the screen and first in report.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ensemble.decision.class_comparison import ClassMeasured
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.comparison import Evaluation
from ensemble.decision.decision import Decision
from ensemble.decision.label_noise import noise_in_short
from ensemble.errors import printable
from ensemble.prediction_results import PredictionFacts, PredictResult, ShardsResult
from ensemble.reports.comparison_tables import verdict
from ensemble.reports.measures import Rule, constant_error, error_text, figure, interval_text, is_better, loss
from ensemble.reports.member_tables import measure_of_trial, trial_error
from ensemble.reports.prediction_tables import Facts, is_constant, is_known, label_file_warnings, only_label
from ensemble.reports.table import Table
from ensemble.results import (
    ClassFitResult,
    CompareResult,
    DemoResult,
    EvaluateResult,
    FitResult,
    ReportResult,
    TrainResult,
    TrialResult,
)


def in_short(*lines: str) -> Table:
    """Return the summary of these lines."""
    return Table("In short", (), (), lines)


def report_summary(result: ReportResult) -> Table:
    """Return the figures of a run that matter most: the label files' and the stack's, or the best member's."""
    if result.decisions is None:
        best = _best(member.assessment for member in result.members)
        cut = "offsets" if result.classes else "threshold"
        return in_short(*_member_lines(best), f"To combine the members and fit the {cut}, run: thera fit-stacker")
    decision = result.decisions.tta
    constant = _constant_line(decision, with_noise=isinstance(decision, Decision) or not result.predictions)
    return in_short(*_label_file_lines(result.predictions), _stack_line(decision), constant)


def report_files(result: ReportResult) -> tuple[str, ...]:
    """Return the lines that say where the label file and the report are."""
    run = printable(_shown(result.run))
    labels = [f"{run}/predictions/{printable(name)}/{facts.label_file}" for name, facts in result.predictions.items()]
    where = (f"Label file: {labels[0]}",) if len(labels) == 1 else ()
    return (*where, f"Whole report: {run}/report.html, report.md, or --full.")


def demo_summary(result: DemoResult) -> Table:
    """Return the summary of the demo, whose least possible HTER is known."""
    assert result.report.decisions is not None
    return in_short(
        *_label_file_lines(result.report.predictions),
        _stack_line(result.report.decisions.tta),
        f"Any rule has at least {result.bayes_hter:.4f} (Bayes), a constant answer has 0.5.",
        *report_files(result.report),
    )


def fit_summary(result: FitResult | ClassFitResult) -> Table:
    """Return the figures of the stack, with test-time augmentation."""
    return in_short(_stack_line(result.tta), _constant_line(result.tta))


def train_summary(result: TrainResult) -> Table:
    """Return the figures of the best member, and where the rest is."""
    best = _best(member.assessment for member in result.members)
    reports = f"{printable(_shown(result.run))}/members/{'NAME' if len(result.members) > 1 else best.name}/report.md"
    return in_short(*_member_lines(best), f"All folds: {reports}, or --full.")


def trial_summary(result: TrialResult) -> Table:
    """Return the best member on the fold of a trial."""
    best = min(result.rows, key=trial_error)
    where = "without offsets" if best.auc is None else "at the best threshold for these images"
    return in_short(
        f"Best on fold {result.fold}: {best.name}, {measure_of_trial(best)} {trial_error(best):.4f} {where}.",
        "Use this to choose members; confirm the choice on the other folds.",
    )


def predict_summary(result: PredictResult | ShardsResult) -> Table:
    """Return the expected HTER of a label file, and what the share check says."""
    check, images = result.facts.share_check, result.facts.new_images
    if check.shifted:
        shift = "The new images seem to differ from the training images: see the warning."
    elif check.is_too_small(images):
        shift = f"Too few images to check whether they differ from the training images: {images}."
    else:
        shift = f"No sign that the new images differ from the training images (p = {check.p_value:.2g})."
    where = () if result.out is None else (f"Label file: {printable(_shown(result.out))}",)
    constant = figure(result.facts.expectation).constant_text
    return in_short(*_label_file_lines({result.name: result.facts}), shift, f"{constant}.", *where)


def evaluate_summary(result: EvaluateResult) -> Table:
    """Return the HTER of a label file and whether it is better than a constant answer."""
    evaluation = result.evaluation
    if isinstance(evaluation, Evaluation):
        measure, error, interval = "HTER", evaluation.measured.rates.hter, evaluation.measured.hter
    else:
        measure, error = "class error", evaluation.measured.rates.mean_error
        interval = evaluation.measured.mean_error
    predicted = [label for label, n in enumerate(map(sum, zip(*evaluation.confusion, strict=True))) if n]
    constant = constant_error(len(evaluation.confusion))
    if len(predicted) == 1:
        name = evaluation.classes[predicted[0]].name
        line = f"{result.name} has label {printable(name)} for all images: it is a constant answer, with"
        return in_short(f"{line} {measure} {constant}.")
    figures = f"{measure} {error:.4f} ({interval_text(interval)})"
    better = interval.high < 1 - 1 / len(evaluation.confusion)
    beside = f"a constant answer has {constant}" if better else "no better than a constant answer"
    f1 = "" if isinstance(evaluation, Evaluation) else _macro_f1_clause(evaluation.measured)
    return in_short(f"{result.name}: {figures}; {beside}.{f1}")


def _macro_f1_clause(measured: ClassMeasured) -> str:
    return f" Macro F1 {measured.rates.macro_f1:.4f} ({interval_text(measured.macro_f1)})."


def compare_summary(result: CompareResult) -> Table:
    """Return the verdict of a comparison."""
    return in_short(verdict(result.name_a, result.name_b, result.comparison))


def _label_file_lines(predictions: Mapping[str, Facts]) -> tuple[str, ...]:
    """Return one line for the label file, or for all of them."""
    if len(predictions) > 1:
        figures = [figure(facts.expectation) for facts in predictions.values()]
        expected = sorted(each.value for each in figures)
        whose = "" if all(map(is_known, predictions.values())) else " (*: of one fold model)"
        what = f"expected {figures[0].name} {expected[0]:.4f} to {expected[-1]:.4f}"
        return (f"{len(predictions)} label files: {what}{whose}.",)
    return tuple(_label_file_line(printable(name), facts) for name, facts in predictions.items())


def _label_file_line(name: str, facts: Facts) -> str:
    expected = figure(facts.expectation)
    if is_constant(facts):
        value = error_text(expected.constant) if expected.is_error else f"{expected.value:.4f}"
        since = f"since all {facts.images} images got label {only_label(facts)}"
        return f"Label file {name}: {expected.name} {value}, {since}."
    end = "; see the warnings." if label_file_warnings(facts) else "."
    if not is_known(facts):
        # Among more than two classes averaging is never measured, as the table says.
        unmeasured = "; averaging was not measured" if isinstance(facts, PredictionFacts) else ""
        return f"Label file {name}: one fold model has {expected.name} {expected.value:.4f}{unmeasured}{end}"
    return f"Label file {name}: expected {expected.text}{end}"


def _stack_line(decision: Decision | ClassDecision) -> str:
    n = len(decision.stacker.members)
    return f"Stack of {n} member{'s' * (n > 1)}: nested {figure(decision.stacked).text}."


def _constant_line(decision: Decision | ClassDecision, with_noise: bool = True) -> str:
    """Return what a constant answer has, and `with_noise` what wrong labels cause; of many classes this is long."""
    constant = figure(decision.stacked).constant_text
    if not is_better(decision.stacked):
        return f"{constant}: the stack is no better."
    noise = noise_in_short(decision.noise) if with_noise else ""
    return f"{constant}; {noise}." if noise else f"{constant}."


def _member_lines(member: Rule) -> tuple[str, str]:
    of_member = figure(member)
    better = "." if is_better(member) else f": {member.name} is no better."
    return f"Member {member.name}: nested {of_member.text}.", of_member.constant_text + better


def _best(members: Iterable[Rule]) -> Rule:
    return min(members, key=loss)


def _shown(path: Path) -> Path:
    """Return a path relative to the working directory if it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
