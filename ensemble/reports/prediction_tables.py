"""The tables of label files: their expected HTER or class error, and the correction of the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from ensemble.decision.class_objective import ClassObjective
from ensemble.decision.deploy import Expectation
from ensemble.decision.intervals import NORMAL
from ensemble.decision.objective import Objective
from ensemble.decision.shift import AtPrior
from ensemble.errors import printable
from ensemble.prediction_results import ClassPredictionFacts, PredictionFacts
from ensemble.reports.measures import class_names, constant_error, figure
from ensemble.reports.table import Table, interval_cell, rate_cells

Facts: TypeAlias = PredictionFacts | ClassPredictionFacts

UNMEASURED = (
    "*: the rates are those of one fold model, not of the file. The effect of averaging fold models was not measured "
    "(too few images, images too unlike the training images, or voting fold models), so the threshold is not "
    "corrected and no interval is given; files that average usually have a lower HTER."
)


CLASS_UNMEASURED = (
    "*: the figures are those of one fold model, not of the file. The effect of averaging fold models is not measured "
    "among more than two classes; files that average usually have a lower class error."
)


def prediction_table(predictions: Mapping[str, Facts]) -> Table:
    """Return the expected error rates of label files, keyed by the name of their set."""
    two = all(isinstance(facts, PredictionFacts) for facts in predictions.values())
    rows = tuple(
        (
            marked_name(name, facts),
            str(facts.images),
            " + ".join(facts.request.views),
            *expected_cells(facts),
            here_interval_cell(facts),
        )
        for name, facts in predictions.items()
    )
    here = (
        "If measured here: interval of the class error measured on these images, if their class shares are those of "
        "the training images; it also includes their sampling error."
    )
    if two:
        here = (
            "95 %: interval of the rule's HTER. If measured here: interval of the HTER measured on these images, which "
            "also includes their sampling error."
        )
    return Table(
        f"Label files: expected {expected_measure(predictions)}",
        ("set", "images", "views", *expected_columns(predictions), "if measured here"),
        rows,
        (
            here,
            *unmeasured_notes(predictions),
            *(f"{printable(name)}: {note}" for name, facts in predictions.items() for note in _notes(facts)),
        ),
    )


def expected_measure(predictions: Mapping[str, Facts]) -> str:
    """Return the name of the measure that label files are judged by."""
    return next((figure(facts.expectation).name for facts in predictions.values()), "HTER")


def expected_columns(predictions: Mapping[str, Facts]) -> tuple[str, ...]:
    """Return the columns of `expected_cells`."""
    if all(isinstance(facts, PredictionFacts) for facts in predictions.values()):
        return ("share of 0", "FPR", "FNR", "HTER", "95 %")
    return ("class error", "macro F1", "accuracy")


def expected_cells(facts: Facts) -> tuple[str, ...]:
    """Return the expected rates of a label file; of two classes also the share of label 0 and the HTER's interval."""
    rates = rate_cells(facts.expectation.rates)
    if isinstance(facts, PredictionFacts):
        interval = interval_cell(facts.expectation.interval) if is_known(facts) else ""
        return (f"{facts.share_of_label_0:.4f}", *rates, interval)
    return rates


def here_interval_cell(facts: Facts) -> str:
    """Return the interval of the HTER, or class error, that is measured on the images; nothing where it is not known.

    Of more than two classes, it is that of one fold model where the rates are.
    """
    here = facts.expectation.new_set_interval
    known = is_known(facts) or isinstance(facts, ClassPredictionFacts)
    return interval_cell(here) if here is not None and known else ""


def unmeasured_notes(predictions: Mapping[str, Facts]) -> tuple[str, ...]:
    """Return the note on the rates that are those of one fold model, if there are any."""
    for facts in predictions.values():
        if not is_known(facts):
            return (UNMEASURED if isinstance(facts, PredictionFacts) else CLASS_UNMEASURED,)
    return ()


def is_known(facts: Facts) -> bool:
    """Return whether the expected rates are those of the label file, not those of one fold model."""
    return facts.expectation.averaging_measured or is_constant(facts)


def marked_name(name: str, facts: Facts) -> str:
    """Return the name of a set, marked by * where the rates are those of one fold model; a note explains it."""
    return printable(name) + ("" if is_known(facts) else " *")


def _notes(facts: Facts) -> Iterator[str]:
    if facts.seen_in_training:
        yield seen_note(facts.seen_in_training, facts.images)
    yield from facts.caveats
    if isinstance(facts, ClassPredictionFacts):
        yield shares_note(facts)
    if is_constant(facts):
        yield one_label_note(facts)
    elif isinstance(facts, PredictionFacts) and facts.expectation.averaging_measured:
        yield _correction_note(facts.expectation, facts.nested_hter)
    yield _share_check_note(facts)
    if isinstance(facts, PredictionFacts):
        yield from _prior_notes(facts)
        yield from _contradictions(facts)


def _prior_notes(facts: PredictionFacts) -> Iterator[str]:
    expectation = facts.expectation
    if expectation.at_prior is None and facts.assumed_share_of_label_0 is not None:
        yield (
            "the threshold is not corrected, since the cause of the shift is not known. The expected rates hold if "
            f"only the class mix has changed; they assume that label 0 is {facts.assumed_share_of_label_0:.4f} of "
            "these images."
        )
    if expectation.at_prior is not None:
        yield _prior_note(expectation.at_prior, facts.share_of_label_0)


def _share_check_note(facts: Facts) -> str:
    if isinstance(facts, PredictionFacts):
        return facts.share_check.message(facts.new_images)
    return facts.share_check.message(facts.new_images, class_names(facts.classes, len(facts.classes)))


def label_file_warnings(facts: Facts) -> tuple[str, ...]:
    """Return what speaks against a label file: one label for all images, a shift, rates or a prior that do not fit."""
    one_label = (one_label_note(facts),) if is_constant(facts) else ()
    shift = (_share_check_note(facts),) if facts.share_check.shifted else ()
    return (*one_label, *shift, *(_contradictions(facts) if isinstance(facts, PredictionFacts) else ()))


def remarks(name: str, facts: Facts) -> Iterator[str]:
    """Yield the lines that a command prints about the labels of the set `name`: caveats, then warnings."""
    yield from (f"note: {caveat}" for caveat in facts.caveats)
    yield from (f"warning: {printable(name)}: {warning}" for warning in label_file_warnings(facts))


def shares_note(facts: ClassPredictionFacts) -> str:
    """Return the share of the images that a label file gives each class."""
    names = class_names(facts.classes, len(facts.shares))
    shares = ", ".join(f"{name} {share:.4f}" for name, share in zip(names, facts.shares, strict=True))
    return f"shares of the labels: {shares}."


def seen_note(seen: int, images: int) -> str:
    """Return what follows where `seen` of the images to label are byte for byte among the training images."""
    return (
        f"{seen} of {images} images are byte for byte among the training images; the expected rates are those of new "
        "images, and the share check leaves these out."
    )


def is_constant(facts: Facts) -> bool:
    """Return whether all images of a label file got the same label, and chance does not explain it."""
    label = _only_index(facts)
    return label is not None and not facts.share_check.explains_one_label(label, facts.images)


def _only_index(facts: Facts) -> int | None:
    """Return the class index that all images of a label file got; None where they got several."""
    if isinstance(facts, PredictionFacts):
        shares: tuple[float, ...] = (facts.share_of_label_0, 1 - facts.share_of_label_0)
    else:
        shares = facts.shares
    return shares.index(1.0) if 1.0 in shares else None


def only_label(facts: Facts) -> str:
    """Return the name of the label that all images of a label file got; empty where they got several."""
    label = _only_index(facts)
    if label is None:
        return ""
    return str(label) if isinstance(facts, PredictionFacts) else printable(facts.classes[label])


def one_label_note(facts: Facts) -> str:
    """Return what follows for a label file in which all images have one label."""
    if isinstance(facts, PredictionFacts):
        label = 1 - int(facts.share_of_label_0)
        best, cut = Objective.parse(facts.objective).description, "a threshold"
        rates, labels = f"FPR {label}, FNR {1 - label} and HTER 0.5", "both labels occur"
    else:
        best, cut = ClassObjective.parse(facts.objective).description, "offsets"
        rates, labels = f"class error {constant_error(len(facts.classes))}", "all labels occur"
    aim = "" if facts.objective in ("hter", "mean-class-error") else f" by {cut} for {best}"
    return (
        f"all {facts.images} images got label {only_label(facts)}{aim}. Such a file has {rates}, as any constant "
        f"answer has, if {labels} among its images."
    )


def _contradictions(facts: PredictionFacts) -> Iterator[str]:
    yield from _contradiction(facts)
    yield from _prior_contradiction(facts)


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
