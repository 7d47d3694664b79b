"""The tables of label files: their expected HTER, and the correction of the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ensemble.decision.deploy import Expectation
from ensemble.decision.objective import Objective
from ensemble.decision.shift import AtPrior, ShareCheck
from ensemble.errors import printable
from ensemble.reports.table import Table, interval_cell, rate_cells
from ensemble.results import PredictionFacts

UNMEASURED = (
    "*: the effect of averaging is not known (too few images, images too unlike the training images, or voting fold "
    "models); the threshold is not corrected, and the rates are those of one fold model."
)


def prediction_table(predictions: Mapping[str, PredictionFacts]) -> Table:
    """Return the expected error rates of label files, keyed by the name of their set."""
    rows = tuple(
        (
            label_file_name(name, facts),
            str(facts.images),
            " + ".join(facts.request.views),
            f"{facts.share_of_label_0:.4f}",
            *rate_cells(facts.expectation.rates),
            interval_cell(facts.expectation.interval),
            interval_cell(facts.expectation.new_set_interval) if facts.expectation.new_set_interval else "",
        )
        for name, facts in predictions.items()
    )
    unmeasured = any(not facts.expectation.averaging_measured for facts in predictions.values())
    return Table(
        "Label files: expected HTER",
        ("set", "images", "views", "share of 0", "FPR", "FNR", "HTER", "95 %", "if measured here"),
        rows,
        (
            "95 %: interval of the rule's HTER. If measured here: interval of the HTER measured on these images, which "
            "also includes their sampling error.",
            *((UNMEASURED,) if unmeasured else ()),
            *(f"{printable(name)}: {note}" for name, facts in predictions.items() for note in _notes(facts)),
        ),
    )


def label_file_name(name: str, facts: PredictionFacts) -> str:
    """Return the name of a set, marked by * where the effect of averaging is not known; `UNMEASURED` explains it."""
    return printable(name) + ("" if facts.expectation.averaging_measured else " *")


def _notes(facts: PredictionFacts) -> Iterator[str]:
    expectation, check = facts.expectation, facts.share_check
    if facts.seen_in_training:
        yield seen_note(facts.seen_in_training, facts.images)
    if is_constant(facts):
        yield one_label_note(facts)
    elif expectation.averaging_measured:
        yield _correction_note(expectation, facts.nested_hter)
    yield check.message(facts.new_images)
    if expectation.at_prior is None and facts.assumed_share_of_label_0 is not None:
        yield (
            "the threshold is not corrected, since the cause of the shift is not known. The expected rates hold if "
            f"only the class mix has changed; they assume that label 0 is {facts.assumed_share_of_label_0:.4f} of "
            "these images."
        )
    if expectation.at_prior is not None:
        yield from _prior_notes(expectation.at_prior, check, facts.share_of_label_0)
    yield from _contradiction(facts)


def label_file_warnings(facts: PredictionFacts) -> tuple[str, ...]:
    """Return what speaks against a label file: one label for all images, a shift, rates that do not fit it."""
    one_label = (one_label_note(facts),) if is_constant(facts) else ()
    shift = (facts.share_check.message(facts.new_images),) if facts.share_check.shifted else ()
    return (*one_label, *shift, *_contradiction(facts))


def seen_note(seen: int, images: int) -> str:
    """Return what follows where `seen` of the images to label are byte for byte among the training images."""
    return (
        f"{seen} of {images} images are byte for byte among the training images; the expected rates are those of new "
        "images, and the share check leaves these out."
    )


def is_constant(facts: PredictionFacts) -> bool:
    """Return whether all images of a label file got the same label, and chance does not explain it."""
    label = 1 - int(facts.share_of_label_0)
    return facts.share_of_label_0 in (0.0, 1.0) and not facts.share_check.explains_one_label(label, facts.images)


def one_label_note(facts: PredictionFacts) -> str:
    """Return what follows for a label file in which all images have one label."""
    label = 1 - int(facts.share_of_label_0)
    aim = "" if facts.objective == "hter" else f" by a threshold for {Objective.parse(facts.objective).description}"
    return (
        f"all {facts.images} images got label {label}{aim}. Such a file has FPR {label}, FNR {1 - label} and HTER 0.5, "
        "as any constant answer has, if both labels occur among its images."
    )


def _contradiction(facts: PredictionFacts) -> Iterator[str]:
    """Yield a note where the expected rates cannot be those of the file, because it has another share of label 0."""
    implied, share = facts.expectation.implied_share, facts.share_of_label_0
    if implied is not None and not implied.low <= share <= implied.high:
        yield (
            f"the expected rates do not fit this file: it labels {share:.4f} of its images 0, and with these rates it "
            f"would be {implied.low:.4f} to {implied.high:.4f}."
        )


def _correction_note(expectation: Expectation, nested_hter: float) -> str:
    chosen, none = expectation.at(expectation.correction), expectation.at("none")
    others = "; ".join(
        f"{each.correction} {each.threshold:+.4f}: FPR {each.rates.fpr:.4f}, FNR {each.rates.fnr:.4f}, "
        f"HTER {each.rates.hter:.4f}"
        for each in expectation.corrections
        if each.correction != expectation.correction
    )
    return (
        f"averaging the fold models moves the threshold from {none.threshold:+.4f} to {chosen.threshold:+.4f} "
        f"(correction: {expectation.correction}), which is expected to change the HTER by "
        f"{chosen.rates.hter - none.rates.hter:+.4f}; nested it was {nested_hter:.4f}. Other corrections: {others}."
    )


def _prior_notes(there: AtPrior, check: ShareCheck, share_of_label_0: float) -> Iterator[str]:
    yield (
        f"where label 0 is {there.prior:.4f} of the images, as given, a threshold has the same FPR, FNR and HTER as "
        "elsewhere, and the best threshold for HTER is the same; only the effect of averaging depends on the mix. At "
        f"these rates {there.share_called_0:.4f} should be labelled 0 ({share_of_label_0:.4f} are), "
        f"{there.error_rate:.4f} labelled wrong, and {there.precision_of_0:.4f} of the 0s be right; the probabilities "
        "in predictions.csv are for this share."
    )
    if abs(check.prior - there.prior) > 4 * check.prior_error:
        yield (
            f"the images contradict that share: if only the class mix has changed, it is {check.prior:.4f} ± "
            f"{1.96 * check.prior_error:.4f} by the labels that single fold models give."
        )
