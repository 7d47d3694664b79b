"""A review of doubtful labels, read, checked and applied: a new label file or manifest, and an overlay."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble.clean_results import ReviewResult
from ensemble.data.dataset import is_numbered
from ensemble.data.files import as_text, reading
from ensemble.data.folds import FoldTable
from ensemble.data.overlay import Change, RowsById, decision_rows, label_of, overlay_bytes
from ensemble.data.tables import csv_rows
from ensemble.errors import ConfigError, DataError, printable
from ensemble.progress import Say
from ensemble.runs import files
from ensemble.runs.artifacts import write_recorded
from ensemble.runs.label_files import checked_target, is_table, write_label_file
from ensemble.runs.label_issues import FACTS, OVERLAY, read_facts
from ensemble.runs.locks import locked
from ensemble.runs.run import Run, RunFacts

COLUMNS = ("id", "given", "decision", "label")
"""The columns of a review, as the page saves it."""

DECISIONS = ("keep", "flip", "drop", "unsure")
"""What a review may decide of a label: it is right, it is wrong, the image is to be left out, or nobody can say."""


def apply_review(run: Run, facts: RunFacts, table: FoldTable, path: Path, out: Path | None, say: Say) -> ReviewResult:
    """Check a review, and write the labels and the overlay that follow from it.

    Parameters
    ----------
    run : Run
    facts : RunFacts
        Of the run.
    table : FoldTable
        Of the run: the labels as given.
    path : Path
        The review, a CSV file with the columns id,given,decision,label.
    out : Path, optional
        The file to write; by default in `label_issues/` of the run.
    say : callable
        Receives notes, a line each.

    Raises
    ------
    DataError
        A line is not valid; the message has its number.
    ConfigError
        A file that this run did not write would be replaced.
    """
    decisions = read_review(path, table, facts.classes)
    changes = {
        row: Change("flip", label, 1.0) if decision == "flip" else Change("drop", int(table.labels[row]), 0.0)
        for row, (decision, label) in decisions.items()
        if decision in ("flip", "drop")
    }
    form, folder = _form(facts, table), run.folder / FACTS.parent
    target = folder / form if out is None else out
    checked_target(run, target, table.ids, force=False)
    if out is not None and is_table(out) != is_table(form) and form != "labels.txt":
        raise ConfigError(f"--out {printable(out)}", "must be a table, as the labels of the run are", "use .csv")
    form = form if out is None or is_table(out) == is_table(form) else "labels.csv"
    content, left_in = _labels(form, facts, table, changes, target)
    with locked(folder):
        refuse_changed(run.folder, folder / OVERLAY)
        write_label_file(run, target, content)
        sha256 = files.write_whole(folder / OVERLAY, overlay_bytes(changes, table.ids, facts.classes))
        stored = read_facts(run.folder)
        write_recorded(run.folder, run.folder / FACTS, replace(stored, files={**stored.files, OVERLAY: sha256}))
    if left_in:
        say(f"note: {printable(target)} has a label for each image, dropped ones included: {left_in}")
    counts = Counter(decision for decision, _ in decisions.values())
    return ReviewResult(run.folder, path, {name: counts[name] for name in DECISIONS}, target, left_in, folder / OVERLAY)


def read_review(path: Path, table: FoldTable, classes: Sequence[str] | None) -> dict[int, tuple[str, int]]:
    """Return the decision and the label of each reviewed row.

    Parameters
    ----------
    path : Path
    table : FoldTable
        Of the run.
    classes : sequence of C str, or None
        The names of the classes.

    Raises
    ------
    DataError
        The file cannot be read, or a line of it names no image of the run, an image twice, another given label than
        the run has, an unknown decision, or a label that does not fit the decision.
    """
    where = printable(path)
    with reading(where):
        text = as_text(path.read_bytes(), where)
    rows, decisions = RowsById(table.ids), dict[int, tuple[str, int]]()
    for line, cells in decision_rows(csv_rows(text, where), where, COLUMNS):
        at = f"{where}: line {line}"
        row = rows.find(cells["id"], at)
        if row in decisions:
            raise DataError(at, f"'{printable(cells['id'])}' has a line already", "give every image one line")
        given = int(table.labels[row])
        if label_of(cells["given"], classes, at) != given:
            known = str(given) if classes is None else classes[given]
            problem = f"the given label is '{printable(cells['given'])}', and that of the run {printable(known)}"
            raise DataError(at, problem, "apply the review of this run")
        decisions[row] = cells["decision"], _label(cells, given, classes, table.classes, at)
    return decisions


def _label(cells: Mapping[str, str], given: int, classes: Sequence[str] | None, count: int, at: str) -> int:
    """Return the label that a line decides for; it is the given one unless the decision is flip."""
    decision = cells["decision"]
    if decision not in DECISIONS:
        problem = f"the decision must be {', '.join(DECISIONS)}; got '{printable(decision)}'"
        raise DataError(at, problem, "correct it")
    if decision == "flip" and not cells["label"] and count == 2:
        return 1 - given
    if decision == "flip" and not cells["label"]:
        raise DataError(at, "flip names no label", "give the label that the image has")
    label = label_of(cells["label"], classes, at) if cells["label"] else given
    if (label != given) != (decision == "flip"):
        problem = f"{decision} has {'the given' if label == given else 'another'} label"
        raise DataError(at, problem, "flip takes another label, and the other decisions none or the given one")
    return label


def refuse_changed(run: Path, path: Path) -> None:
    """Refuse to replace a file in `label_issues/` that is not as this run wrote it.

    Raises
    ------
    ConfigError
        The file has another hash than the recorded one, or none is recorded.
    """
    if path.exists() and files.file_sha256(path) != read_facts(run).files.get(path.name):
        raise ConfigError(printable(path), "is not as this run wrote it", "move it to another place")


# --- the labels in the form of the input ------------------------------------------------------------------------------


def _form(facts: RunFacts, table: FoldTable) -> str:
    """Return the name of the new file: a manifest for one or for class folders, a table, or a label in each line."""
    images = Path(facts.images)
    if (
        facts.labels == facts.images
        and images.exists()
        and (images.is_dir() or images.suffix.lower() in (".csv", ".parquet"))
    ):
        return "manifest.csv"
    return "labels.csv" if is_table(facts.labels) or not is_numbered(table.ids) else "labels.txt"


def _labels(
    form: str, facts: RunFacts, table: FoldTable, changes: Mapping[int, Change], target: Path
) -> tuple[bytes, int]:
    """Return the content of the file, and how many dropped images have a label in it."""
    import pandas as pd

    labels = table.labels.astype(np.int64)
    for row, change in changes.items():
        labels[row] = change.label
    names = labels if facts.classes is None else np.array(facts.classes, object)[labels]
    dropped = [row for row, change in changes.items() if change.action == "drop"]
    if form == "labels.txt":
        return "".join(f"{name}\n" for name in names.tolist()).encode("utf-8", "surrogateescape"), len(dropped)
    columns = {"name": table.ids, "label": names}
    if form == "labels.csv":
        return files.table_bytes(pd.DataFrame(columns)), len(dropped)
    root = Path(os.path.abspath(facts.images))
    root = root if root.is_dir() else root.parent
    beside = root == Path(os.path.abspath(target)).parent
    columns = {
        "path": table.ids if beside else np.array([str(root / name) for name in table.ids], object),
        "label": names,
    }
    if table.groups is not None:
        columns["group"] = table.groups
    kept = np.delete(np.arange(len(table.ids)), dropped)
    return files.table_bytes(pd.DataFrame(columns).iloc[kept].reset_index(drop=True)), 0
