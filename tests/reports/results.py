"""Results that the tests of several tables render: a label file, and a run of two members."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.data.folds import FoldTable
from ensemble.decision.averaging import CorrectedThreshold
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision, fit_decision
from ensemble.decision.deploy import Expectation
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates
from ensemble.decision.shift import ShareCheck
from ensemble.prediction_results import PredictionFacts, PredictionRequest
from ensemble.results import FitResult, MemberReport, ReportResult


def rates(fpr: float, fnr: float) -> ErrorRates:
    return ErrorRates(fpr, fnr, 100, 400)


EXPECTED = Expectation(
    correction="posterior",
    averaging_measured=True,
    corrections=(
        CorrectedThreshold("posterior", 0.25, rates(0.1, 0.2), 0.25),
        CorrectedThreshold("none", -0.5, rates(0.13, 0.18), 0.2),
    ),
    rates=rates(0.1, 0.2),
    interval=Interval(0.12, 0.18),
    new_set_interval=Interval(0.1, 0.2),
    at_prior=None,
    implied_share=Interval(0.3, 0.4),
)
CALM = ShareCheck(oof_share=0.25, new_share=0.25, error=0.01, p_value=0.9, prior=0.47, prior_error=0.01)
PREDICTED = PredictionFacts(
    request=PredictionRequest("f", "0" * 64, ("identity", "hflip"), "posterior", None, "mean", None, "auto", "auto"),
    images=500,
    objective="hter",
    threshold=0.25,
    share_of_label_0=0.34,
    nested_hter=0.1625,
    expectation=EXPECTED,
    share_check=CALM,
    assumed_share_of_label_0=None,
    cascade=None,
    files={},
)


def predicted(**changes) -> PredictionFacts:
    """The facts of a label file, with other fields of their own or of their expectation."""
    of_expectation = {name: value for name, value in changes.items() if hasattr(EXPECTED, name)}
    others = {name: value for name, value in changes.items() if name not in of_expectation}
    return replace(PREDICTED, expectation=replace(EXPECTED, **of_expectation), **others)


FEW = {"correction": "none", "corrections": (), "averaging_measured": False}


def reported(decision, predictions=None) -> ReportResult:
    members = tuple(MemberReport(member, ("identity", "hflip")) for member in decision.members)
    return ReportResult(Path("checkpoints/run"), 400, 4, members, FitResult(decision, decision), predictions or {})


@functools.cache
def fitted_rows() -> OofLogits:
    """Return the 400 rows of `fitted`."""
    rng = np.random.default_rng(3)
    labels = (np.arange(400) % 4 > 0).astype(np.int8)
    logits = rng.normal(size=(400, 2)) + np.outer(2.0 * labels - 1, (1.0, 0.5))
    return OofLogits(FoldTable(np.arange(400), labels, np.arange(400) // 4 % 4), ("cnn[b]", "a|b"), logits)


@functools.cache
def fitted() -> Decision:
    """Return a decision on 400 rows, whose bootstrap has few replicates."""
    oof = fitted_rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.decision.assessment.REPLICATES", 50)
        return fit_decision(oof, ("plain", "flip"), repeats=3)
