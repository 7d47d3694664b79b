"""Results of three classes that the tests of several tables render: a decision, label files, a run."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_deploy import ClassExpectation
from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ClassRates
from ensemble.decision.shift import ClassShareCheck
from ensemble.prediction_results import ClassPredictionFacts, PredictionRequest
from ensemble.results import ClassFitResult, MemberReport, ReportResult

CLASSES = ("worn", "a|b", "<script>")
"""Names of which two would change a table, if they were not shown as text."""

COUNTS = (240, 140, 20)
"""The images of each class of `class_fitted`: of the last one they are few."""


@functools.cache
def class_fitted_rows() -> OofLogits:
    """Return the 400 rows of `class_fitted`."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), COUNTS).astype(np.int8)
    truth = np.eye(3)[labels]
    logits = np.stack([strength * truth + rng.normal(size=(400, 3)) for strength in (2.0, 1.0)], axis=1)
    return OofLogits(FoldTable(np.arange(400), labels, np.arange(400) % 4), ("cnn[b]", "a|b"), logits)


@functools.cache
def class_fitted(kind: str = "mean-class-error") -> ClassDecision:
    """Return a decision among three classes on 400 rows, whose bootstrap has few replicates."""
    oof = class_fitted_rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.decision.class_assessment.REPLICATES", 30)
        return fit_decision(oof, ("plain", "flip"), objective=ClassObjective.parse(kind), repeats=3)


RATES = ClassRates(((40, 8, 2), (5, 25, 0), (2, 0, 18)))
EXPECTED = ClassExpectation(
    rates=RATES,
    mean_error=Interval(0.12, 0.21),
    macro_f1=Interval(0.79, 0.88),
    accuracy=Interval(0.78, 0.87),
    objective=ClassObjective("macro-f1"),
    new_set_interval=Interval(0.1, 0.25),
)
CALM = ClassShareCheck((0.47, 0.33, 0.2), (0.48, 0.31, 0.21), (0.01, 0.02, 0.01), (0.5, 0.4, 0.6))
PREDICTED = ClassPredictionFacts(
    request=PredictionRequest("f", "0" * 64, ("identity", "hflip"), "none", None, "mean", None, "auto", "auto"),
    images=500,
    classes=CLASSES,
    objective="macro-f1",
    offsets=(0.0, 0.25, -0.5),
    shares=(0.5, 0.3, 0.2),
    expectation=EXPECTED,
    share_check=CALM,
    files={},
)


def of_one_label(index: int, kind: str = "macro-f1", images: int = 90) -> ClassPredictionFacts:
    """The facts of a label file in which all images have one label."""
    rates = ClassRates(tuple(tuple(n if c == index else 0 for c in range(3)) for n in RATES.counts))
    of_rates = {name: Interval(*[getattr(rates, name)] * 2) for name in ("mean_error", "macro_f1", "accuracy")}
    expectation = replace(EXPECTED, rates=rates, objective=ClassObjective.parse(kind), **of_rates)
    shares = tuple(float(c == index) for c in range(3))
    return replace(PREDICTED, images=images, objective=kind, shares=shares, expectation=expectation)


def class_reported(decision: ClassDecision, predictions=None) -> ReportResult:
    members = tuple(MemberReport(member, ("identity", "hflip"), classes=CLASSES) for member in decision.members)
    decisions = ClassFitResult(decision, decision, CLASSES)
    return ReportResult(Path("checkpoints/run"), 400, 4, members, decisions, predictions or {}, classes=CLASSES)
