"""The tables of `thera explore`: classes, sizes and formats, and what was found, with what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.errors import printable
from ensemble.explore_results import KINDS, Count, ExploreResult
from ensemble.reports.table import Table

MOST_ROWS = 12
"""The rows of a table of counts, after which the rest is counted together."""

LEAST_GAIN = 0.01
"""The share of the images that format and size must tell beyond the most frequent class to be a warning: less changes
no error rate that is printed."""


@dataclass(frozen=True)
class Meaning:
    """What a kind of finding means, and what to do: a `title`, and two sentences or more."""

    title: str
    meaning: str
    action: str


MEANINGS = {
    "damaged": Meaning(
        "Damaged files",
        "The file cannot be decoded, or not completely.",
        "Replace the file, or train with --on-bad skip, which leaves it out.",
    ),
    "conflict": Meaning(
        "Copies with different labels",
        "Identical or nearly identical images have different labels, so that at least one of these labels is wrong.",
        "Correct the labels, or remove the images.",
    ),
    "overlap": Meaning(
        "Images in both sets",
        "The image of the second set is in the first set too. Its label is known, so that no error rate holds for it.",
        "Remove it from the images to train on if the second set measures the error.",
    ),
    "identical": Meaning(
        "Identical images",
        "Several files have exactly the same pixels.",
        "Equal files stay in one fold anyway; --near-duplicates group keeps other files of equal pixels together, too.",
    ),
    "near-identical": Meaning(
        "Nearly identical images",
        "The images are versions of one picture: recompressed, resized, shifted, brighter, darker or mirrored.",
        "Train with --near-duplicates group, which keeps them in one fold. Otherwise the error rates are too low.",
    ),
    "constant": Meaning(
        "Constant images", "All pixels have the same colour.", "Remove the image: it shows nothing of its class."
    ),
    "blank": Meaning(
        "Blank images",
        "The contrast is below 4 of 255 grey levels.",
        "Remove the image unless blank ones are to be labelled, too.",
    ),
    "dark": Meaning(
        "Dark images",
        "95 % of the pixels are darker than a quarter of the range, and the image is much darker than the others.",
        "Look whether the label can be seen; if not, remove the image.",
    ),
    "bright": Meaning(
        "Bright images",
        "95 % of the pixels are brighter than three quarters of the range, and the others are much darker.",
        "Look whether the label can be seen; if not, remove the image.",
    ),
    "blurred": Meaning(
        "Blurred images",
        "The edges are much weaker than in the other images, at equal contrast.",
        "Look whether the label can be seen; if not, remove the image.",
    ),
    "odd": Meaning(
        "Odd images",
        "Layout and colours differ strongly from those of the other images.",
        "Look whether the image belongs to the set. Rare images are not wrong: remove only those that do not belong.",
    ),
    "size": Meaning(
        "Other sizes",
        "Nearly all images have one size, and this one has another.",
        "Train with --resize, or replace the image.",
    ),
}
"""What each kind of finding means; the keys are those of `KINDS`."""


def explore_tables(result: ExploreResult, full: bool = True) -> list[Table]:
    """Return the tables of a set of images; without `full`, those that matter most."""
    tables = [findings_table(result, full)]
    if result.classes:
        tables.insert(0, count_table("Classes", "class", result.classes))
    if full:
        tables += [
            count_table("Sizes in pixels", "width × height", result.sizes),
            count_table("Formats", "format", result.formats),
        ]
    summary = Table(verdict(result), (), (), (*warnings(result), *(full * data_notes(result)), files_note(result)))
    return [*tables, summary]


def count_table(title: str, name: str, counts: Sequence[Count]) -> Table:
    """Return a table of counts and shares; many of them end with a row for the rest."""
    shown = counts if len(counts) <= MOST_ROWS else counts[: MOST_ROWS - 1]
    rows = [(printable(each.name), f"{each.images:,}", percent(each.share)) for each in shown]
    if rest := counts[len(shown) :]:
        images, share = sum(each.images for each in rest), sum(each.share for each in rest)
        rows.append((f"{len(rest)} others", f"{images:,}", percent(share)))
    return Table(title, (name, "images", "share"), tuple(rows))


def findings_table(result: ExploreResult, full: bool = True) -> Table:
    """Return a row for each kind with findings, or with `full` for each kind; and what they mean."""
    both = bool(result.against_where)
    rows, notes = [], []
    for kind in KINDS:
        findings = result.of_kind(kind)
        of_set = [sum(each.set == name for each in findings) for name in ("images", "against")]
        if not findings and (not full or (kind == "overlap" and not both)):
            continue
        size = result.against if kind == "overlap" else result.images
        share = of_set[1 if kind == "overlap" else 0] / max(size, 1)
        groups = len({each.group for each in findings if each.group is not None})
        name = MEANINGS[kind].title.lower() + (f", {groups} groups" if groups else "")
        cells = (f"{of_set[0]:,}" if kind != "overlap" else "", percent(share) if share else "0")
        rows.append((name, *cells, *((f"{of_set[1]:,}",) if both else ())))
        if full and findings:
            notes.append(f"{MEANINGS[kind].title}: {MEANINGS[kind].meaning} {MEANINGS[kind].action}")
    columns = ("finding", "images", "share", *(("in the second set",) if both else ()))
    return Table("Findings", columns, tuple(rows), tuple(notes)) if rows else Table("Nothing was found", (), ())


def absent(result: ExploreResult) -> str:
    """Return a sentence that names the kinds without findings; empty if all have some."""
    names = [
        MEANINGS[kind].title.lower()
        for kind in KINDS
        if not result.of_kind(kind) and (kind != "overlap" or result.against_where)
    ]
    return f"Not found: {', '.join(names)}." if names else ""


def verdict(result: ExploreResult) -> str:
    """Return one sentence on the whole set."""
    n = len({each.id for each in result.findings if each.set == "images"})
    classes = f" in {len(result.classes)} classes" if result.classes else " without labels"
    share = percent(n / max(result.images, 1))
    have = f"{n:,} ({share}) {'has' if n == 1 else 'have'} a finding" if n else "none of them has a finding"
    return f"{result.images:,} images{classes}; {have}"


def warnings(result: ExploreResult) -> tuple[str, ...]:
    """Return what should be looked at before training, a sentence each."""
    warned = []
    if conflicts := result.of_kind("conflict"):
        groups = len({each.group for each in conflicts})
        warned.append(
            f"warning: {len(conflicts)} images in {groups} groups of copies have labels that contradict each other"
        )
    if overlaps := result.of_kind("overlap"):
        n, share = len(overlaps), percent(len(overlaps) / result.against)
        warned.append(f"warning: {n:,} images of the second set ({share}) are copies of images of the first set")
    if near := result.of_kind("near-identical"):
        warned.append(
            f"{len(near):,} images are nearly identical to others: --near-duplicates group keeps them in one fold"
        )
    if result.resized:
        warned.append(f"The sizes of the images differ: training needs --resize, for example {result.size[0]}")
    by_form, chance = result.form_accuracy, result.majority_share
    if by_form is not None and chance is not None:
        error = math.sqrt(chance * (1 - chance) / max(result.images, 1))
        if by_form - chance > max(LEAST_GAIN, 3 * error):
            warned.append(
                f"warning: format and size of a file alone tell the class of {percent(by_form)} of the images; its "
                f"most frequent class is right for {percent(chance)}. A network may learn how the files were made"
            )
    return tuple(warned)


def data_notes(result: ExploreResult) -> tuple[str, ...]:
    return tuple(f"Data: {printable(note)}" for note in result.notes)


def files_note(result: ExploreResult) -> str:
    return f"Page: {printable(result.page)}. All findings: {printable(result.table)}"


def percent(share: float) -> str:
    """Return a share in percent with two significant digits.

    >>> percent(0.8812), percent(0.0312), percent(0.00023), percent(1.0)
    ('88 %', '3.1 %', '0.023 %', '100 %')
    """
    if share >= 0.1 or share == 0:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.{max(0, 1 - math.floor(math.log10(100 * share)))}f} %"
