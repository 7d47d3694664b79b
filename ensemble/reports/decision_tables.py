"""The tables of a decision: the stack beside its members and baselines, stackers, other costs, and the floor."""

from __future__ import annotations

from ensemble.decision.assessment import Assessment
from ensemble.decision.decision import Decision
from ensemble.decision.label_noise import describe_noise
from ensemble.reports.member_tables import best_rule, chance_notes
from ensemble.reports.table import Table, interval_cell, rate_cells


def decision_table(decision: Decision) -> Table:
    """Return the table of the stack, each member and the baselines, all on the same images."""
    labelled = [("stack", decision.stacked), *((f"member {m.name}", m) for m in decision.members)]
    labelled += [(f"baseline: {b.name}", b) for b in decision.baselines]
    rows = tuple(
        (
            label,
            *rate_cells(row.nested),
            interval_cell(row.interval),
            f"{row.apparent.hter:.4f}",
            f"{row.optimism:+.4f}",
            f"{row.auc:.4f}",
            _difference_cell(row),
        )
        for label, row in labelled
    )
    weights = ", ".join(
        f"{name} {weight:+.4f}" for name, weight in zip(decision.stacker.members, decision.stacker.weights, strict=True)
    )
    return Table(
        f"Decision, views {' + '.join(decision.views)}: nested HTER {decision.nested.hter:.4f} "
        f"{interval_cell(decision.interval)}",
        ("rule", "FPR", "FNR", "HTER", "95 %", "apparent", "gap", "AUC", "HTER less the stack's"),
        rows,
        (
            f"The threshold is that of {decision.objective.description}. {_stacker_sentence(decision)}",
            (
                f"Fitted on all {decision.nested.n} images: weights {weights}; bias {decision.stacker.bias:+.4f}; "
                f"threshold {decision.threshold:+.4f} (logits)."
            ),
            *repeated_notes(decision),
            *decision_warnings(decision),
        ),
        best=best_rule([row for _, row in labelled], decision.objective),
    )


def decision_warnings(decision: Decision) -> tuple[str, ...]:
    """Return what speaks against the members or the stack, a sentence each."""
    return (*chance_notes([decision.stacked, *decision.members]), *decision.notes)


def _difference_cell(row: Assessment) -> str:
    if row.difference is None:
        return ""
    return f"{row.difference.value:+.4f} {interval_cell(row.difference.interval, '+.4f')}"


def _stacker_sentence(decision: Decision) -> str:
    if not decision.stackers:
        return "One member needs no stacker."
    return f"The stacker is {STACKER_NAMES[decision.kind]}."


STACKER_NAMES = {
    "mean": "the mean of logits",
    "calibrated": "the mean of calibrated logits",
    "nonnegative": "the logistic one without negative weights",
    "logistic": "the logistic one",
}


def repeated_notes(decision: Decision) -> tuple[str, ...]:
    """Return the sentence about the nested HTER over other partitions; none where there are none."""
    if not decision.repeated:
        return ()
    mean = sum(decision.repeated) / len(decision.repeated)
    span = f"{min(decision.repeated):.4f} to {max(decision.repeated):.4f}"
    return (f"Nested HTER over {len(decision.repeated)} other partitions of the images: mean {mean:.4f}, from {span}.",)


def stackers_table(decision: Decision) -> Table:
    """Return the kinds of stacker, the simplest first, with their nested error rates."""
    rows = tuple(
        (
            STACKER_NAMES[row.name] + (" (deployed)" if row.name == decision.kind else ""),
            *rate_cells(row.nested),
            interval_cell(row.interval),
            _difference_cell(row),
        )
        for row in decision.stackers
    )
    return Table("Stackers compared", ("stacker", "FPR", "FNR", "HTER", "95 %", "HTER less the stack's"), rows)


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


def noise_table(decision: Decision) -> Table:
    """Return how much HTER labels that are wrong at random cause at most."""
    title, columns = "Floor: the HTER that wrong labels alone cause", ("bound, 95 %", "FPR", "FNR", "HTER")
    rows = () if decision.noise is None else (("labels wrong at random, at most", *rate_cells(decision.noise.rates)),)
    return Table(title, columns, rows, (describe_noise(decision.noise, decision.nested.hter),))


def decision_tables(plain: Decision, tta: Decision) -> tuple[Table, ...]:
    """Return the stack's tables for plain prediction and TTA, then stackers, other costs and label noise for TTA."""
    stackers = (stackers_table(tta),) if tta.stackers else ()
    return (decision_table(plain), decision_table(tta), *stackers, curve_table(tta), noise_table(tta))
