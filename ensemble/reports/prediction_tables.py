"""The tables of label files: their expected HTER, and the correction of the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ensemble.decision.deploy import Expectation
from ensemble.decision.intervals import NORMAL
from ensemble.decision.objective import Objective
from ensemble.decision.shift import AtPrior
from ensemble.errors import printable
from ensemble.prediction_results import PredictionFacts
from ensemble.reports.table import Table, interval_cell, rate_cells

UNMEASURED = (
    "*: the rates are those of one fold model, not of the file. The effect of averaging fold models was not measured "
    "(too few images, images too unlike the training images, or voting fold models), so the threshold is not "
    "corrected and no interval is given; files that average usually have a lower HTER."
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
            rule_interval_cell(facts),
            here_interval_cell(facts),
        )
        for name, facts in predictions.items()
    )
    unmeasured = not all(map(is_known, predictions.values()))
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


def rule_interval_cell(facts: PredictionFacts) -> str:
    """Return the interval of the HTER of a label file's rule; nothing where only one fold model's is known."""
    return interval_cell(facts.expectation.interval) if is_known(facts) else ""


def here_interval_cell(facts: PredictionFacts) -> str:
    """Return the interval of the HTER that is measured on the images; nothing where it is not known."""
    here = facts.expectation.new_set_interval
    return interval_cell(here) if here is not None and is_known(facts) else ""


def is_known(facts: PredictionFacts) -> bool:
    """Return whether the expected rates are those of the label file, not those of one fold model."""
    return facts.expectation.averaging_measured or is_constant(facts)


def label_file_name(name: str, facts: PredictionFacts) -> str:
    """Return the name of a set, marked by * where the rates are those of one fold model; `UNMEASURED` explains it."""
    return printable(name) + ("" if is_known(facts) else " *")


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
        yield _prior_note(expectation.at_prior, facts.share_of_label_0)
    yield from _contradiction(facts)
    yield from _prior_contradiction(facts)


def label_file_warnings(facts: PredictionFacts) -> tuple[str, ...]:
    """Return what speaks against a label file: one label for all images, a shift, rates or a prior that do not fit."""
    one_label = (one_label_note(facts),) if is_constant(facts) else ()
    shift = (facts.share_check.message(facts.new_images),) if facts.share_check.shifted else ()
    return (*one_label, *shift, *_contradiction(facts), *_prior_contradiction(facts))


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


def _prior_contradiction(facts: PredictionFacts) -> Iterator[str]:
    """Yield a note where the images contradict the share of label 0 that the user gave."""
    prior, check = facts.request.prior, facts.share_check
    if prior is not None and check.contradicts(prior):
        yield (
            f"the images contradict --prior {prior:g}: by the labels that single fold models give, label 0 is "
            f"{check.prior:.4f} ± {NORMAL * check.prior_error:.4f} of them, if only the class mix has changed. The "
            "expected rates are wrong if your share is wrong; leave --prior out if you are not certain of it."
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


def _prior_note(there: AtPrior, share_of_label_0: float) -> str:
    return (
        f"where label 0 is {there.prior:.4f} of the images, as given, a threshold has the same FPR, FNR and HTER as "
        "elsewhere, and the best threshold for HTER is the same; only the effect of averaging depends on the mix. At "
        f"these rates {there.share_called_0:.4f} should be labelled 0 ({share_of_label_0:.4f} are), "
        f"{there.error_rate:.4f} labelled wrong, and {there.precision_of_0:.4f} of the 0s be right; the probabilities "
        "in predictions.csv are for this share."
    )
