"""The figures of report.html: the same bytes for the same results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.decision.diagnostics import (
    Diagnostics,
    ProbabilityBin,
    TwoClassLogits,
    error_curve,
    reliability,
    tradeoff_curve,
)
from ensemble.decision.intervals import Interval
from ensemble.errors import printable
from ensemble.reports.figures import CLASS_ERROR, PANELS
from ensemble.reports.html import Figure
from ensemble.reports.measures import interval_text
from ensemble.reports.svg import SIZE, picture, short

History: TypeAlias = Sequence[Mapping[str, Any]]
"""The history of a fold, one mapping per epoch."""

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6e7781"
"""Colours of Okabe and Ito (2008), which colour-blind readers can tell apart, and a grey for what is beside."""

FOLD_COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The colours of folds; they repeat after the last one."""

POINTS = 400
"""The number of points of a curve. More are not visible at the size of the page."""

WIDE = 8
"""The number of classes above which a figure needs the whole width of the page."""

MOST_COUNTED = 30
"""The largest number of classes for which the confusion matrix has a count in each cell."""


def rate_figures(decision: Decision, diagnostics: Diagnostics, logits: TwoClassLogits) -> tuple[Figure, ...]:
    """Return FPR against FNR, other costs, HTER against the threshold, logits by class, and the calibration."""
    table = diagnostics.table
    return (
        tradeoff_figure(decision, diagnostics, logits),
        costs_figure(decision),
        threshold_figure(decision, diagnostics, logits),
        logits_figure(diagnostics, logits),
        reliability_figure(decision, reliability(logits.probabilities, table.labels, table.groups)),
    )


def tradeoff_figure(decision: Decision, diagnostics: Diagnostics, logits: TwoClassLogits) -> Figure:
    """Return FPR against FNR, with the operating point and those of other costs."""
    curve, nested = tradeoff_curve(logits.nested, diagnostics.table.labels, POINTS), decision.stacked
    rates = nested.nested
    reach = min(1.0, max(0.02, 3.5 * max(rates.fpr, rates.fnr, nested.fpr.high, nested.fnr.high)))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        total = rates.fpr + rates.fnr
        axes.plot([0, total], [total, 0], color=GREY, ls="--", lw=1, label=f"HTER {rates.hter:.4f}")
        axes.plot(curve.fpr, curve.fnr, color=BLUE, label="stack, nested")
        axes.plot(
            [row.rates.fpr for row in decision.curve],
            [row.rates.fnr for row in decision.curve],
            "o",
            mfc="white",
            mec=BLUE,
            ms=5,
            label="other costs",
        )
        axes.errorbar(
            [rates.fpr],
            [rates.fnr],
            xerr=_bars(rates.fpr, nested.fpr),
            yerr=_bars(rates.fnr, nested.fnr),
            fmt="D",
            color=ORANGE,
            ms=6,
            capsize=3,
            label="operating point, 95 %",
        )
        axes.set(xlabel="FPR", ylabel="FNR", xlim=(0, reach), ylim=(0, reach))
        axes.legend()

    return Figure(
        "FPR against FNR",
        "Nested: where the curve runs below the dashed line, another threshold would have had a lower HTER; the "
        "circles are the points of the costs in the next figure.",
        f"Curve of the FNR over the FPR, falling from (0, 1) to (1, 0); the operating point is at FPR {rates.fpr:.4f} "
        f"and FNR {rates.fnr:.4f}.",
        picture(draw),
    )


def costs_figure(decision: Decision) -> Figure:
    """Return the expected-performance curve: the weighted error at each weight of the FPR."""
    weights = [row.cost_fpr / 10 for row in decision.curve]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot(weights, [min(w, 1 - w) for w in weights], color=GREY, ls="--", label="constant answer")
        axes.plot(weights, [row.loss for row in decision.curve], color=BLUE, marker="o", ms=4, label="stack, nested")
        axes.set(xlabel="weight w of the FPR", ylabel="w FPR + (1 − w) FNR", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.legend()

    half = next(row for row in decision.curve if row.cost_fpr == 5)
    return Figure(
        "Other costs of the two errors",
        "Nested: the lower the curve lies below the dashed line, the more the stack is worth at that weight of the "
        "FPR; at 0.5 the weighted error is the HTER.",
        f"Curve of the weighted error over the weight of the FPR from 0.1 to 0.9; at 0.5 it is {half.loss:.4f}.",
        picture(draw),
    )


def threshold_figure(decision: Decision, diagnostics: Diagnostics, logits: TwoClassLogits) -> Figure:
    """Return the HTER against the threshold, apparent and nested, with the chosen threshold."""
    labels, chosen, rates = diagnostics.table.labels, logits.threshold, decision.nested
    low, high = np.quantile(logits.nested, (0.005, 0.995))
    grid = np.linspace(min(low, chosen - 1), max(high, chosen + 1), POINTS)
    nested, apparent = error_curve(logits.nested, labels, grid), error_curve(logits.apparent, labels, grid)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot(grid, nested.fpr, color=GREEN, lw=1, ls=":", label="FPR, nested")
        axes.plot(grid, nested.fnr, color=GREY, lw=1, ls="-.", label="FNR, nested")
        axes.plot(grid, apparent.hter, color=ORANGE, lw=1.2, ls="--", label="HTER, apparent")
        axes.plot(grid, nested.hter, color=BLUE, label="HTER, nested")
        axes.axvline(chosen, color="black", lw=0.8)
        axes.errorbar(
            [chosen], [rates.hter], yerr=_bars(rates.hter, decision.interval), fmt="D", color=BLUE, ms=5, capsize=3
        )
        axes.annotate(f"{chosen:+.3f}", (chosen, 0.5), (4, -4), textcoords="offset points", va="top", fontsize="small")
        axes.set(xlabel="threshold of the stacked logit", ylabel="error rate", ylim=(0, 0.5), xlim=(grid[0], grid[-1]))
        figure.legend(loc="outside lower center", ncols=4, fontsize="x-small")

    return Figure(
        "HTER against the threshold",
        "The chosen threshold should stand in the flat bottom of the nested curve; the apparent curve, of a stacker "
        "that was fitted on the same images, is the optimistic one.",
        f"HTER over the threshold, with its least value near the chosen threshold {chosen:+.4f}, where the nested HTER "
        f"is {rates.hter:.4f} ({interval_text(decision.interval)}).",
        picture(draw),
    )


def logits_figure(diagnostics: Diagnostics, logits: TwoClassLogits) -> Figure:
    """Return the distribution of the nested logits of each class."""
    labels = diagnostics.table.labels
    low, high = np.quantile(logits.nested, (0.001, 0.999))
    edges = np.linspace(low, max(high, low + 1e-6), 81)
    clipped = np.clip(logits.nested, edges[0], edges[-1])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for label, colour, line in ((0, ORANGE, "--"), (1, BLUE, "-")):
            share = np.histogram(clipped[labels == label], edges)[0] / np.count_nonzero(labels == label)
            axes.stairs(share, edges, color=colour, ls=line, lw=1.4, label=f"label {label}")
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.15)
        axes.axvline(logits.threshold, color="black", lw=0.8, label="threshold")
        axes.set(xlabel="stacked logit", ylabel="share of the class in each bin", xlim=(edges[0], edges[-1]))
        axes.legend()

    rates = diagnostics.wrong[labels == 0].mean(), diagnostics.wrong[labels == 1].mean()
    return Figure(
        "Logits by class",
        "Nested: what lies on the wrong side of the threshold are the errors, label 0 to its right and label 1 to its "
        "left; the outermost bins also hold what lies beyond them.",
        f"Two histograms of the stacked logit; {100 * rates[0]:.1f} % of label 0 lie above the threshold and "
        f"{100 * rates[1]:.1f} % of label 1 below it.",
        picture(draw),
    )


PROBABILITIES = {
    "logistic": "the logistic function of the stacked logit; the stacker, a logistic regression, calibrates it",
    "nonnegative": "the logistic function of the stacked logit; the stacker, a logistic regression, calibrates it",
    "calibrated": "the logistic function of the mean of logits that are calibrated one by one",
    "mean": "the logistic function of the logit; nothing calibrates it",
}
"""How the probability of label 1 is made, by the kind of stacker."""


def reliability_figure(decision: Decision, bins: Sequence[ProbabilityBin]) -> Figure:
    """Return the share of label 1 against the predicted probability, with intervals from counts."""
    predicted = [each.predicted for each in bins]

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, label="perfect calibration")
        above.errorbar(
            predicted,
            [each.share for each in bins],
            yerr=np.hstack([_bars(each.share, each.interval) for each in bins]),
            fmt="o",
            color=BLUE,
            ms=4,
            capsize=3,
            label="stack, nested, 95 %",
        )
        above.set(ylabel="share of label 1", ylim=(0, 1), xlim=(0, 1))
        above.legend()
        below.bar([each.low for each in bins], [each.rows for each in bins], 0.1, align="edge", color=BLUE, alpha=0.5)
        below.set(xlabel="predicted probability of label 1", ylabel="images", yscale="log")
        counts = np.log10([each.rows for each in bins])
        below.set_ylim(10 ** np.floor(counts.min()), 10 ** max(np.ceil(counts.max()), np.floor(counts.min()) + 1))
        below.yaxis.set_major_formatter("{x:,.0f}")
        below.yaxis.set_minor_formatter("")  # the powers of ten suffice, and formulas are not drawn

    made = PROBABILITIES[decision.kind if len(decision.stacker.members) > 1 else "mean"]
    outside = sum(not each.interval.low <= each.predicted <= each.interval.high for each in bins)
    return Figure(
        "Reliability of the probabilities",
        f"The probability is {made}; an interval that misses the dashed line shows a probability that cannot be taken "
        "at its word, at the class shares of these images.",
        f"Share of label 1 over the predicted probability in {len(bins)} bins; {outside} of the intervals miss the "
        "predicted probability.",
        picture(draw),
    )


def confusion_figure(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Return the confusion matrix as shares of each label, with the counts of up to `MOST_COUNTED` classes."""
    counts = np.asarray(confusion, np.float64)
    shares, count = counts / counts.sum(axis=1, keepdims=True), len(names)
    labels = [short(name) for name in names]
    side = min(11.0, max(3.6, 1.6 + 0.52 * count))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.grid(False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        if count <= MOST_COUNTED:
            size = 10 if count < 5 else 8 if count < 12 else 6.5
            for row in range(count):
                for column in range(count):
                    if counts[row, column]:
                        text = f"{int(counts[row, column])}"
                        if count < 8:
                            text += f"\n{100 * shares[row, column]:.1f} %"
                        ink = "white" if shares[row, column] > 0.5 else "black"
                        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)
        small = "small" if count > 8 else None
        axes.set_xticks(range(count), labels, rotation=90 if count > 4 else 0, fontsize=small)
        axes.set_yticks(range(count), labels, fontsize=small)
        axes.set(xlabel="predicted", ylabel="label")

    right = int(np.trace(counts))
    return Figure(
        "Confusion matrix",
        "Nested: a row holds the images of a label, the darker the larger their share; what is off the diagonal is "
        "wrong.",
        f"Matrix of {count} labels by {count} predictions; {right} of {int(counts.sum())} images are on the diagonal. "
        "The tables have all counts.",
        picture(draw, (side + 1.2, side) if count > 4 else SIZE),
        wide=count > WIDE,
    )


def class_rates_figure(decision: ClassDecision, names: Sequence[str]) -> Figure:
    """Return recall and precision of each class with intervals, the worst recall first."""
    rates, stacked = decision.nested, decision.stacked
    order = np.argsort(rates.recalls, kind="stable")[::-1].tolist()

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        recalls = [rates.recalls[c] for c in order], [stacked.errors[c].complement for c in order]
        precisions = [rates.precisions[c] for c in order], [stacked.precisions[c] for c in order]
        pairs = ((*recalls, BLUE, "o", 0.15, "recall"), (*precisions, ORANGE, "s", -0.15, "precision"))
        for values, intervals, colour, marker, shift, label in pairs:
            bars = np.hstack([_bars(value, each) for value, each in zip(values, intervals, strict=True)])
            places = np.arange(len(order)) + shift
            axes.errorbar(
                values, places, xerr=bars, fmt=marker, color=colour, ms=4, capsize=2, lw=1.2, ls="", label=label
            )
        axes.set_yticks(range(len(order)), [short(names[c]) for c in order])
        axes.set(xlabel="rate, with 95 % interval", xlim=(0, 1.02), ylim=(-0.6, len(order) - 0.4))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)

    worst = order[-1]
    return Figure(
        "Recall and precision by class",
        "Nested: the class with the lowest recall is on top, and it raises the class error most.",
        f"Dots with intervals for {len(names)} classes; the lowest recall is {rates.recalls[worst]:.4f}, of "
        f"{names[worst]}.",
        picture(draw, (6.4, max(2.6, 0.9 + 0.27 * len(names)))),
        wide=len(names) > WIDE,
    )


def training_figures(histories: Mapping[str, Sequence[History]]) -> tuple[Figure, ...]:
    """Return the training loss and the error on held-out images by epoch, a panel a member, the folds overlaid.

    Parameters
    ----------
    histories : mapping of str to sequence
        The histories of the folds of each member; a figure is left out where no member has recorded its measure.
    """
    captions = {
        "loss": "The folds should lie on each other; one that leaves the others has trained otherwise.",
        "hter": "The least HTER of each epoch, at a threshold chosen on the held-out images themselves, is optimistic "
        "and chooses nothing: see where the curves flatten.",
        "class-error": "Each curve is the class error on the held-out images of a fold, which chooses nothing: "
        "see where the curves flatten.",
    }
    titles = {key: title for key, title in (*PANELS, CLASS_ERROR) if key in captions}
    figures = []
    for key, title in titles.items():
        curves = {name: [_points(fold, key) for fold in folds] for name, folds in histories.items()}
        curves = {name: folds for name, folds in curves.items() if any(map(len, folds))}
        if curves:
            figures.append(_training_figure(title[0].upper() + title[1:], captions[key], curves))
    return tuple(figures)


def _training_figure(title: str, caption: str, curves: Mapping[str, Sequence[Any]]) -> Figure:
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)

    def draw(figure: Any) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, folds) in zip(panels, curves.items(), strict=False):
            for fold, points in enumerate(folds):
                if len(points):
                    colour = FOLD_COLOURS[fold % len(FOLD_COLOURS)]
                    axes.plot(*points.T, color=colour, lw=1.2, marker="o" if len(points) < 4 else None, ms=3)
            axes.set_title(short(name, 26), fontsize=9, parse_math=False)
            axes.set_ylim(0, 1.08 * max(points[:, 1].max() for points in folds if len(points)) or 1)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if all(len(points) < 2 for points in folds):
                axes.set_xticks([1])
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        for axes in panels[max(0, len(curves) - columns) : len(curves)]:
            axes.set_xlabel("epoch")
        count = max(map(len, curves.values()))
        handles = [panels[0].plot([], [], color=FOLD_COLOURS[f % len(FOLD_COLOURS)])[0] for f in range(count)]
        figure.legend(handles, [f"fold {f}" for f in range(count)], loc="outside lower center", ncols=min(count, 8))

    ends = (f"{printable(name)} {_last(folds):.4g}" for name, folds in curves.items())
    return Figure(
        title,
        caption,
        f"A panel for each of {len(curves)} members, a curve for each fold; mean of the folds at the last epoch: "
        f"{', '.join(ends)}.",
        picture(draw, (max(5.2, 2.7 * columns), 0.6 + 2.1 * rows)),
        wide=columns > 2,
    )


def _bars(value: float, interval: Interval) -> Any:
    """Return the lengths of the two error bars (2, 1) from a value to the ends of its interval."""
    return np.array([[max(value - interval.low, 0.0)], [max(interval.high - value, 0.0)]])


def _points(history: History, key: str) -> Any:
    """Return epochs and values (t, 2) of a history, thinned to `POINTS`."""
    points = np.array([(epoch["epoch"], epoch[key]) for epoch in history if epoch.get(key) is not None], np.float64)
    if len(points) > POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, POINTS).astype(int))]
    return points


def _last(folds: Sequence[Any]) -> float:
    return float(np.mean([points[-1, 1] for points in folds if len(points)]))
