"""The tables of a decision: the stack beside its members and baselines, stackers, classes, other costs, the floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ensemble.decision.assessment import Assessment
from ensemble.decision.class_assessment import FEW_IMAGES
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.decision.label_noise import describe_class_noise, describe_noise
from ensemble.reports.comparison_tables import confusion_table
from ensemble.reports.measures import (
    apparent_cells,
    class_names,
    difference_cell,
    figure,
    nested_cells,
    nested_columns,
    offsets_text,
)
from ensemble.reports.member_tables import best_rule, chance_notes
from ensemble.reports.table import Table, interval_cell, rate_cells


def decision_table(decision: Decision | ClassDecision, classes: Sequence[str] | None = None) -> Table:
    """Return the table of the stack, each member and the baselines, all on the same images.

    `classes` are the names of more than two classes.
    """
    stacked = decision.stacked
    labelled = [("stack", stacked), *((f"member {m.name}", m) for m in decision.members)]
    labelled += [(f"baseline: {b.name}", b) for b in decision.baselines]
    areas = {label: (f"{row.auc:.4f}",) for label, row in labelled if isinstance(row, Assessment)}
    rows = tuple(
        (label, *nested_cells(row), *apparent_cells(row), *areas.get(label, ()), difference_cell(row))
        for label, row in labelled
    )
    weights = ", ".join(
        f"{name} {weight:+.4f}" for name, weight in zip(decision.stacker.members, decision.stacker.weights, strict=True)
    )
    if isinstance(decision, Decision):
        fitted = f"bias {decision.stacker.bias:+.4f}; threshold {decision.threshold:+.4f}"
    else:
        fitted = f"offsets {offsets_text(class_names(classes, decision.classes), decision.offsets)}"
    of_stack, area = figure(stacked), ("AUC",) if areas else ()
    return Table(
        f"Decision, views {' + '.join(decision.views)}: nested {of_stack.name} {of_stack.value:.4f} "
        f"{interval_cell(of_stack.interval)}",
        ("rule", *nested_columns(stacked), "apparent", "gap", *area, f"{of_stack.name} less the stack's"),
        rows,
        (
            f"{objective_sentence(decision)} {_stacker_sentence(decision)}",
            f"Fitted on all {decision.nested.n} images: weights {weights}; {fitted} (logits).",
            *repeated_notes(decision),
            *decision_warnings(decision),
        ),
        best=best_rule([row for _, row in labelled], decision.objective),
    )


def objective_sentence(decision: Decision | ClassDecision) -> str:
    """Return the sentence that says what the threshold, or the offsets, are best for."""
    cut = "threshold is that" if isinstance(decision, Decision) else "offsets are those"
    return f"The {cut} of {decision.objective.description}."


def decision_warnings(decision: Decision | ClassDecision) -> tuple[str, ...]:
    """Return what speaks against the members or the stack, a sentence each."""
    return (*chance_notes([decision.stacked, *decision.members]), *decision.notes)


def _stacker_sentence(decision: Decision | ClassDecision) -> str:
    if not decision.stackers:
        return "One member needs no stacker."
    return f"The stacker is {STACKER_NAMES[decision.kind]}."


STACKER_NAMES = {
    "mean": "the mean of logits",
    "calibrated": "the mean of calibrated logits",
    "nonnegative": "the logistic one without negative weights",
    "logistic": "the logistic one",
}


def repeated_notes(decision: Decision | ClassDecision) -> tuple[str, ...]:
    """Return the sentence about the nested figure over other partitions; none where there are none."""
    if not decision.repeated:
        return ()
    of_stack, values = figure(decision.stacked), decision.repeated
    if not of_stack.is_error:
        values = tuple(1 - loss for loss in values)
    mean = sum(values) / len(values)
    span = f"{min(values):.4f} to {max(values):.4f}"
    return (f"Nested {of_stack.name} over {len(values)} other partitions of the images: mean {mean:.4f}, from {span}.",)


def stackers_table(decision: Decision | ClassDecision) -> Table:
    """Return the kinds of stacker, the simplest first, with their nested error rates."""
    rows = tuple(
        (
            STACKER_NAMES[row.name] + (" (deployed)" if row.name == decision.kind else ""),
            *nested_cells(row),
            difference_cell(row),
        )
        for row in decision.stackers
    )
    stacked = decision.stacked
    columns = ("stacker", *nested_columns(stacked), f"{figure(stacked).name} less the stack's")
    return Table("Stackers compared", columns, rows)


def class_tables(decision: ClassDecision, classes: Sequence[str] | None = None) -> tuple[Table, Table]:
    """Return the nested recall, precision and F1 of the stack for each class, and its confusion matrix."""
    names, stacked, rates = class_names(classes, decision.classes), decision.stacked, decision.nested
    recalls = (error.complement for error in stacked.errors)
    columns = (rates.recalls, recalls, rates.precisions, stacked.precisions, rates.f1_scores, decision.offsets)
    rows = tuple(
        (
            *(name, str(n), f"{recall:.4f}", interval_cell(of_recall)),
            *(f"{precision:.4f}", interval_cell(of_precision), f"{f1:.4f}", f"{offset:+z.4f}"),
        )
        for name, n, recall, of_recall, precision, of_precision, f1, offset in zip(
            names, rates.counts, *columns, strict=True
        )
    )
    few = "all classes" if len(stacked.few) == len(names) else ", ".join(names[c] for c in stacked.few)
    views = " + ".join(decision.views)
    return (
        Table(
            f"Classes of the stack, nested, views {views}",
            ("class", "images", "recall", "95 %", "precision", "95 %", "F1", "offset"),
            rows,
            (
                "Recall: share of the images of a class that are predicted as it. Precision: share of the images "
                "predicted as a class that are of it. F1: their harmonic mean. The offset is added to the stacked "
                "logit of the class.",
                *((f"Fewer than {FEW_IMAGES} images, so the intervals do not hold: {few}.",) if few else ()),
            ),
        ),
        replace(confusion_table(rates.confusion, names), title=f"Confusion matrix of the stack, nested, views {views}"),
    )


def curve_table(decision: Decision) -> Table:
    """Return the expected-performance curve: nested rates at the threshold for each weight of the two errors."""
    rows = tuple(
        (
            f"{row.cost_fpr / 10:.1f} FPR + {1 - row.cost_fpr / 10:.1f} FNR",
            f"{row.threshold:+.4f}",
            *rate_cells(row.rates),
            f"{row.loss:.4f}",
        )
        for row in decision.curve
    )
    return Table(
        "Expected performance at other costs",
        ("least", "threshold", "FPR", "FNR", "HTER", "weighted error"),
        rows,
        ("Nested: each fold at the threshold fitted without it. `thera fit-stacker --objective` sets another.",),
    )


def noise_table(decision: Decision | ClassDecision, classes: Sequence[str] | None = None) -> Table:
    """Return how much HTER labels that are wrong at random cause at most; of more classes, an estimate."""
    if isinstance(decision, ClassDecision):
        return _class_noise_table(decision, class_names(classes, decision.classes))
    title, columns = "Floor: the HTER that wrong labels alone cause", ("bound, 95 %", "FPR", "FNR", "HTER")
    rows = () if decision.noise is None else (("labels wrong at random, at most", *rate_cells(decision.noise.rates)),)
    return Table(title, columns, rows, (describe_noise(decision.noise, decision.nested.hter),))


def _class_noise_table(decision: ClassDecision, names: Sequence[str]) -> Table:
    noise, rows = decision.noise, list[tuple[str, ...]]()
    if noise is not None:
        rows = [(name, f"{error:.4f}", "") for name, error in zip(names, noise.rates.errors, strict=True)]
        rows.append(("mean", f"{noise.rates.mean_error:.4f}", interval_cell(noise.interval)))
    return Table(
        "Floor: the class error that wrong labels alone seem to cause",
        ("label", "contradicted with confidence", "95 %"),
        tuple(rows),
        (describe_class_noise(noise, decision.nested.mean_error, names),),
    )


def decision_tables(
    plain: Decision | ClassDecision, tta: Decision | ClassDecision, classes: Sequence[str] | None = None
) -> tuple[Table, ...]:
    """Return the stack's tables for plain prediction and TTA, then stackers, other costs and label noise for TTA.

    Among more than two classes, whose names are `classes`, the rates of the classes take the place of other costs.
    """
    stackers = (stackers_table(tta),) if tta.stackers else ()
    rates = (curve_table(tta),) if isinstance(tta, Decision) else class_tables(tta, classes)
    return (decision_table(plain, classes), decision_table(tta, classes), *stackers, *rates, noise_table(tta, classes))
