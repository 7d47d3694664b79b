"""The tables of `thera clean`: doubtful labels, and what became of a review of them."""

from __future__ import annotations

from pathlib import Path

from ensemble.clean_results import ClassIssues, CleanResult, ReviewResult
from ensemble.errors import printable
from ensemble.reports.table import Table, interval_cell
from ensemble.results import ReportResult

SHOWN = 10
"""Doubtful labels that the screen shows; issues.csv has all."""


def clean_tables(result: CleanResult) -> list[Table]:
    """Return the counts of each class, the most doubtful labels, and where the files are."""
    bounded = any(each.bound is not None for each in result.classes)
    notes = [
        f"By {result.source}, out of fold. Probably wrong: of the images that are predicted with confidence, the share "
        "predicted as another class; confident errors of the model count as wrong labels.",
    ]
    if bounded:
        notes.append(
            "At random: the 95 % upper bound on labels that are wrong whatever the image shows. What exceeds it are "
            "errors of the model, or labels that are wrong because the image is difficult."
        )
    classes = Table(
        f"Labels that are likely to be wrong: {len(result.issues)} of {sum(each.images for each in result.classes)}",
        ("label", "images", "doubtful", "probably wrong", "95 %", *(("at random",) if bounded else ())),
        tuple(_class_row(each, bounded) for each in result.classes),
        tuple(notes),
    )
    first = Table(
        f"The {min(SHOWN, len(result.issues))} most doubtful ones",
        ("image", "rank", "given", "suggested", "probability of given"),
        tuple(
            (
                printable(each.id),
                str(each.rank),
                printable(each.given),
                printable(each.suggested),
                f"{each.probability:.4f}",
            )
            for each in result.issues[:SHOWN]
        ),
    )
    return [classes, *([first] if result.issues else []), _files(result)]


def _class_row(each: ClassIssues, bounded: bool) -> tuple[str, ...]:
    share = (
        ("", "") if each.share is None or each.interval is None else (f"{each.share:.4f}", interval_cell(each.interval))
    )
    bound = ("" if each.bound is None else f"{each.bound:.4f}",) if bounded else ()
    return (printable(each.name), str(each.images), str(each.issues), *share, *bound)


def _files(result: CleanResult) -> Table:
    lines = [f"All of them: {printable(_shown(result.table))}"]
    if result.page is not None:
        run = printable(_shown(result.run))
        lines.append(f"To review them, open {printable(_shown(result.page))} and save review.csv; then run:")
        lines.append(f"thera clean {run} --apply review.csv")
    if result.overlay is not None:
        lines.append(f"Overlay ({result.action}): {printable(_shown(result.overlay))}, for train-member --overlay")
    return Table("In short", (), (), tuple(lines))


def review_table(result: ReviewResult) -> Table:
    """Return the counts of a review, and where the new labels and the overlay are."""
    return Table(
        f"Review {printable(_shown(result.review))}, applied",
        ("decision", "images"),
        tuple((name, str(count)) for name, count in result.counts.items()),
        (
            f"New labels: {printable(_shown(result.labels))}. A run trained on them is scored on them too.",
            f"Overlay: {printable(_shown(result.overlay))}, for train-member --overlay. Held-out images keep their "
            "labels with it.",
        ),
    )


def reviewed_tables(result: ReportResult) -> list[Table]:
    """Return the secondary figures, if any: the same nested predictions on the reviewed labels."""
    if not result.reviewed:
        return []
    measure = "class error" if result.classes and len(result.classes) > 2 else "HTER"
    table = Table(
        f"Secondary: {measure} on reviewed labels",
        ("", "images", "dropped", "flipped", f"{measure}, as given", f"{measure}, reviewed"),
        tuple(
            (
                each.name,
                str(each.images),
                str(each.dropped),
                str(each.flipped),
                f"{each.given:.4f}",
                "" if each.reviewed is None else f"{each.reviewed:.4f}",
            )
            for each in result.reviewed
        ),
        (
            "The overlay's labels replace the given ones, and the images that it drops are not scored. The headline is "
            "the figure on the labels as given: an overlay that was made from predictions agrees with predictions.",
        ),
    )
    return [table]


def _shown(path: Path) -> Path:
    """Return a path relative to the working directory if it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
