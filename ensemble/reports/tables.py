"""The tables of the report: one neutral form, shown as Markdown, as plain text or on a rich terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ensemble.decision.assessment import Assessment
from ensemble.decision.decision import Decision
from ensemble.decision.intervals import Interval
from ensemble.decision.label_noise import describe_floor
from ensemble.decision.rates import ErrorRates
from ensemble.errors import printable

if TYPE_CHECKING:
    import rich.table

LEGEND = (
    "FPR: share of label 0 called 1. FNR: share of label 1 called 0. HTER: their mean.",
    (
        "All three are nested: whatever a rule fits (weights, thresholds) is fitted without the fold that it is scored "
        "on. Apparent is the HTER of the rule fitted on all rows and scored on the same rows; the gap is what it "
        "flatters itself by. The threshold is that of the rule fitted on all rows, in logits."
    ),
    (
        "[]: 95 % interval. Of the stack, and of a member in its own report, with the threshold fitted anew in every "
        "bootstrap replicate; of the rules beside the stack, at the calls made."
    ),
)
SHIFT = (
    "Prediction averages k fold models, while each logit measured here came from one. What that changes is read off "
    "the images to predict; the threshold is corrected for it, and the HTER to expect stands with their label file."
)
UNREAD = (
    "*: what averaging changes is not known (too few images, or too unlike, or the fold models vote); no correction, "
    "and the rates are those of one fold model."
)


@dataclass(frozen=True)
class Table:
    """A titled table of text cells; the first column is text, the others are unless `numbers`. Notes stand below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    numbers: bool = True

    def markdown(self) -> str:
        """Return a GitHub-flavoured Markdown section."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"

        rule = ("---", *("---:" if self.numbers else "---" for _ in self.columns[1:]))
        lines = [f"## {self.title}", "", line(self.columns), line(rule), *map(line, self.rows)]
        return "\n".join(lines + [text for note in self.notes for text in ("", note)]) + "\n"

    def text(self) -> str:
        """Return aligned plain text, for a pipe or a log.

        >>> print(Table("Rates", ("fold", "n"), (("0", "12"), ("1", "9")), ("Few.",)).text(), end="")
        Rates
        fold   n
        0     12
        1      9
        Few.
        """
        cells = (self.columns, *self.rows)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

        def line(row: Sequence[str]) -> str:
            pad = str.rjust if self.numbers else str.ljust
            others = (pad(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True))
            return "  ".join((row[0].ljust(widths[0]), *others)).rstrip()

        return "\n".join((self.title, *map(line, cells), *self.notes)) + "\n"

    def rich(self) -> rich.table.Table:
        """Return it as a rich renderable."""
        from rich.table import Table as RichTable
        from rich.text import Text

        caption = Text("\n".join(self.notes)) if self.notes else None
        table = RichTable(title=Text(self.title), caption=caption, title_justify="left", caption_justify="left")
        for place, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if place and self.numbers else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def member_table(member: Assessment, views: Sequence[str], notes: Sequence[str] = ()) -> Table:
    """Return one row per fold, and the pooled row with its 95 % interval, for logits averaged over `views`."""
    folds = [
        (str(row.fold), str(row.rates.n), *_rates(row.rates), "", f"{row.auc:.4f}", f"{row.threshold:+.4f}")
        for row in member.folds
    ]
    pooled = (
        "pooled",
        str(member.nested.n),
        *_rates(member.nested),
        _interval(member.interval),
        f"{member.auc:.4f}",
        f"{member.threshold:+.4f}",
    )
    return Table(
        f"{member.name}: out-of-fold, views {' + '.join(views)}, at the member's threshold",
        ("fold", "n", "FPR", "FNR", "HTER", "95 %", "AUC", "threshold"),
        (*folds, pooled),
        (
            f"Each fold is scored at the threshold fitted without it. Apparent HTER {member.apparent.hter:.4f}, "
            f"gap {member.optimism:+.4f}.",
            *notes,
        ),
    )


def decision_table(decision: Decision) -> Table:
    """Return the stack's table: the stack first, then each member, then the baselines, all on the same rows."""
    labelled = [("stack", decision.stacked), *((f"member {m.name}", m) for m in decision.members)]
    labelled += [(f"baseline: {b.name}", b) for b in decision.baselines]
    rows = tuple(
        (
            label,
            *_rates(row.nested),
            _interval(row.interval),
            f"{row.apparent.hter:.4f}",
            f"{row.optimism:+.4f}",
            f"{row.auc:.4f}",
            _difference(row),
        )
        for label, row in labelled
    )
    weights = ", ".join(
        f"{name} {weight:+.4f}" for name, weight in zip(decision.stacker.members, decision.stacker.weights, strict=True)
    )
    return Table(
        f"Decision, views {' + '.join(decision.views)}: nested HTER {decision.nested.hter:.4f} "
        f"{_interval(decision.interval)}",
        ("rule", "FPR", "FNR", "HTER", "95 %", "apparent", "gap", "AUC", "HTER less the stack's"),
        rows,
        (
            f"The threshold is that of {decision.objective.told}. {_of_kind(decision)}",
            (
                f"Fitted on all {decision.nested.n} rows: weights {weights}; bias {decision.stacker.bias:+.4f}; "
                f"threshold {decision.threshold:+.4f} (logits)."
            ),
            *_repeated(decision),
            *decision.notes,
        ),
    )


def _difference(row: Assessment) -> str:
    if row.difference is None:
        return ""
    low, high = row.difference.interval.low, row.difference.interval.high
    return f"{row.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _of_kind(decision: Decision) -> str:
    if not decision.stackers:
        return "One member needs no stacker."
    if decision.chosen != "auto":
        return f"The stacker is {_KINDS[decision.kind]}, as asked for."
    return (
        f"The stacker is {_KINDS[decision.kind]}: the simplest within one standard error of the best; the nested "
        "figures make this choice anew without each fold."
    )


_KINDS = {
    "mean": "the mean of logits",
    "calibrated": "the mean of calibrated logits",
    "nonnegative": "the logistic one without negative weights",
    "logistic": "the logistic one",
}


def _repeated(decision: Decision) -> tuple[str, ...]:
    if not decision.repeated:
        return ()
    mean = sum(decision.repeated) / len(decision.repeated)
    span = f"{min(decision.repeated):.4f} to {max(decision.repeated):.4f}"
    return (f"Nested HTER over {len(decision.repeated)} other partitions of the rows: mean {mean:.4f}, from {span}.",)


def stackers_table(decision: Decision) -> Table:
    """Return the kinds of stacker, the simplest first, all under the same nested estimate."""
    rows = tuple(
        (
            _KINDS[row.name] + (" (deployed)" if row.name == decision.kind else ""),
            *_rates(row.nested),
            _interval(row.interval),
            _difference(row),
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
            *_rates(row.rates),
            f"{row.loss:.4f}",
        )
        for row in decision.curve
    )
    return Table(
        "Expected performance at other costs",
        ("least", "threshold", "FPR", "FNR", "HTER", "weighted error"),
        rows,
        ("Nested: each fold at the threshold fitted without it; `thera fit-stacker --objective` deploys another.",),
    )


def floor_table(decision: Decision) -> Table:
    """Return what label noise alone forces on any model, in two opinions, and what is left to learn."""
    told = describe_floor(decision.floor, decision.nested.hter)
    if decision.floor is None:
        return Table(
            "Floor: the HTER that label noise alone forces", ("opinion", "FPR", "FNR", "HTER", "95 %"), (), (told,)
        )
    opinions = {
        "confident learning (interval: counting alone)": decision.floor.confident,
        "mixture fit": decision.floor.mixture,
    }
    rows = tuple((name, *_rates(estimate.rates), _interval(estimate.interval)) for name, estimate in opinions.items())
    most = ("at most (labels wrong at random)", *_rates(decision.floor.ceiling), "")
    return Table(
        "Floor: the HTER that label noise alone forces",
        ("opinion", "FPR", "FNR", "HTER", "95 %"),
        (*rows, most),
        (told,),
    )


def summary_table(decision: Decision, predicted: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the figures that matter, on top of all others: the label files' first."""
    files = tuple(
        (
            f"label file {printable(name)}, expected",
            f"{facts['expected']['hter']:.4f}",
            _interval(Interval(*facts["hter_interval"])),
        )
        for name, facts in predicted.items()
    )
    views, nested = " + ".join(decision.views), f"{decision.nested.hter:.4f}"
    return Table(
        "In short",
        ("", "HTER", "95 %"),
        (
            *files,
            (f"stack of one fold model, nested, views {views}", nested, _interval(decision.interval)),
            ("the same, apparent", f"{decision.apparent.hter:.4f}", ""),
        ),
    )


def decision_tables(plain: Decision, tta: Decision) -> tuple[Table, ...]:
    """Return the stack's table for plain prediction and for TTA; of the latter, also what else is known of it."""
    stackers = (stackers_table(tta),) if tta.stackers else ()
    return (decision_table(plain), decision_table(tta), *stackers, curve_table(tta), floor_table(tta))


def prediction_table(predicted: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return what to expect of label files, from their `predictions.json`, by the name of the set."""
    rows = tuple(
        (
            printable(name) + ("" if facts["averaging_measured"] else " *"),
            str(facts["images"]),
            " + ".join(facts["views"]),
            f"{facts['share_of_label_0']:.4f}",
            *(f"{facts['expected'][rate]:.4f}" for rate in ("fpr", "fnr", "hter")),
            _interval(Interval(*facts["hter_interval"])),
            _interval(Interval(*facts["expected_interval"])) if facts["expected_interval"] else "",
        )
        for name, facts in predicted.items()
    )
    few = any(not facts["averaging_measured"] for facts in predicted.values())
    return Table(
        "Label files: the HTER to expect",
        ("set", "images", "views", "share of 0", "FPR", "FNR", "HTER", "95 %", "if measured here"),
        rows,
        (
            "95 %: of the rule's HTER. If measured here: where the HTER measured on these images falls 95 times in "
            "100; their luck comes on top.",
            *((UNREAD,) if few else ()),
            *(note for name, facts in predicted.items() for note in _prediction_notes(printable(name), facts)),
        ),
    )


def _prediction_notes(name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    candidates = facts["corrections"]
    if candidates:
        chosen, none = candidates[facts["correction"]], candidates["none"]
        others = "; ".join(
            f"{other} {each['threshold']:+.4f}: FPR {each['fpr']:.4f}, FNR {each['fnr']:.4f}, HTER {each['hter']:.4f}"
            for other, each in candidates.items()
            if other != facts["correction"]
        )
        yield (
            f"{name}: averaging the fold models moves the threshold from {none['threshold']:+.4f} to "
            f"{chosen['threshold']:+.4f} (correction: {facts['correction']}), which is expected to change the HTER by "
            f"{chosen['hter'] - none['hter']:+.4f}; nested it was {facts['nested_hter']:.4f}. Other corrections: "
            f"{others}."
        )
    yield f"{name}: {facts['share_check']['told']}"
    if facts["at_prior"] is None and facts["taken_share_of_label_0"] is not None:
        yield (
            f"{name}: no correction, since what has changed is not known. The expected rates hold if it is the class "
            f"mix alone; they take label 0 to be {facts['taken_share_of_label_0']:.4f} of these images."
        )
    if there := facts["at_prior"]:
        yield (
            f"{name}: where label 0 is {there['prior']:.4f} of the images, as given, a threshold has the FPR, FNR and "
            "HTER that it has elsewhere, and the best one for HTER is the same; only the account of averaging has to "
            f"know the mix. At these rates {there['share_called_0']:.4f} should be called 0 "
            f"({facts['share_of_label_0']:.4f} are), {there['error_rate']:.4f} called wrong, "
            f"{there['precision_of_0']:.4f} of the 0s be right; the probabilities in predictions.csv are for this "
            "share."
        )
        check = facts["share_check"]
        if abs(check["prior"] - there["prior"]) > 4 * check["prior_error"]:
            yield (
                f"{name}: the images speak against that share: if only the class mix can have changed, it is "
                f"{check['prior']:.4f} ± {1.96 * check['prior_error']:.4f} by what single fold models call 0."
            )


def explained(tables: Sequence[Table], deployed: bool) -> list[Table]:
    """Return the tables with what they all mean below the last one; `deployed` if a decision is among them."""
    notes = (*LEGEND, SHIFT) if deployed else LEGEND
    return [*tables[:-1], replace(tables[-1], notes=tables[-1].notes + notes)]


def report_markdown(title: str, tables: Iterable[Table]) -> str:
    """Return the whole report as Markdown."""
    return "\n".join((f"# {title}\n", *(table.markdown() for table in tables)))


def report_json(
    members: Iterable[Assessment], decisions: Mapping[str, Decision], predicted: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the report's figures, unrounded, as plain dicts.

    Parameters
    ----------
    members : iterable of Assessment
        What `member_table` shows.
    decisions : mapping of str to Decision
        What `decision_table` shows, by name ("plain", "tta").
    predicted : mapping of str to mapping
        What `prediction_table` shows.
    """
    return {
        "schema": 1,
        "members": {member.name: _figures(member) for member in members},
        "decisions": {
            name: {
                "views": list(decision.views),
                "stack": _figures(decision.stacked),
                "members": [_figures(row) for row in decision.members],
                "baselines": [_figures(row) for row in decision.baselines],
                "objective": decision.objective.text,
                "stacker": decision.kind,
                "stackers": [_figures(row) for row in decision.stackers],
                "curve": [
                    {"cost_fpr": row.cost_fpr / 10, "threshold": row.threshold, "loss": row.loss}
                    | _rates_json(row.rates)
                    for row in decision.curve
                ],
                "repeated": list(decision.repeated),
                "floor": None if decision.floor is None else decision.floor.to_json(),
                "notes": list(decision.notes),
            }
            for name, decision in decisions.items()
        },
        "predictions": {name: dict(facts) for name, facts in predicted.items()},
    }


def _figures(row: Assessment) -> dict[str, Any]:
    return {
        "name": row.name,
        "threshold": row.threshold,
        "nested": _rates_json(row.nested)
        | {"interval": [row.interval.low, row.interval.high], "refitted": row.refitted}
        | {f"{name}_interval": [i.low, i.high] for name, i in (("fpr", row.fpr), ("fnr", row.fnr))},
        "less_the_stack": None
        if row.difference is None
        else {"hter": row.difference.value, "interval": [row.difference.interval.low, row.difference.interval.high]},
        "apparent": _rates_json(row.apparent),
        "optimism": row.optimism,
        "auc": row.auc,
        "folds": [
            {"fold": fold.fold, "threshold": fold.threshold, "auc": fold.auc} | _rates_json(fold.rates)
            for fold in row.folds
        ],
    }


def _rates_json(rates: ErrorRates) -> dict[str, Any]:
    return {"n_neg": rates.n_neg, "n_pos": rates.n_pos, "fpr": rates.fpr, "fnr": rates.fnr, "hter": rates.hter}


def _rates(rates: ErrorRates) -> tuple[str, str, str]:
    return f"{rates.fpr:.4f}", f"{rates.fnr:.4f}", f"{rates.hter:.4f}"


def _interval(interval: Interval) -> str:
    return f"[{interval.low:.4f}, {interval.high:.4f}]"
