"""Results that the tests of several tables render: a label file, and a run of two members."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ensemble.decision.averaging import CorrectedThreshold
from ensemble.decision.deploy import Expectation
from ensemble.decision.intervals import Interval
from ensemble.decision.rates import ErrorRates
from ensemble.decision.shift import ShareCheck
from ensemble.results import FitResult, MemberReport, PredictionFacts, PredictionRequest, ReportResult


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
