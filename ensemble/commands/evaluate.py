"""`thera evaluate` and `thera compare`: label files, runs and members measured against labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.config import VIEW_SETS
from ensemble.data.classes import class_count
from ensemble.data.dataset import is_numbered
from ensemble.data.folds import FoldTable, together
from ensemble.data.joining import rows_by_name
from ensemble.data.labels import Labels as LabelsOfImages
from ensemble.data.labels import read_label_file
from ensemble.data.source import open_source
from ensemble.data.tables import BY_NAME, Columns
from ensemble.decision.assessment import Candidate, compare_nested
from ensemble.decision.class_assessment import compare_class_nested
from ensemble.decision.class_comparison import ClassComparison, ClassEvaluation, compare_classes, evaluate_classes
from ensemble.decision.class_objective import ClassObjective, parse_objective
from ensemble.decision.comparison import Comparison, Evaluation, compare_predictions, evaluate_predictions
from ensemble.decision.cross_fitting import Rule, member_logit, of_score, stack
from ensemble.decision.decision import Decision
from ensemble.decision.fold_offsets import FoldOffset, aligned, find_fold_offsets
from ensemble.decision.objective import Objective
from ensemble.decision.rates import Labels
from ensemble.errors import ArtifactError, ConfigError, DataError, printable, some
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent
from ensemble.results import CompareResult, EvaluateResult
from ensemble.runs.run import Run


@dataclass(frozen=True)
class LabelSource:
    """Where labels are and how they are read: a label file or class folders, and the parameters of `evaluate`."""

    path: Path
    positive: str | None = None
    columns: Columns = BY_NAME
    follow_links: bool = False
    classes: int | None = None


def evaluate(
    label_file: Path,
    labels: Path,
    positive: str | None = None,
    say: Say = silent,
    image_column: str | None = None,
    label_column: str | None = None,
    follow_links: bool = False,
    classes: int | None = None,
) -> EvaluateResult:
    """Measure a label file against the true labels.

    Parameters
    ----------
    label_file : Path
        A label in each line, or a table with name,label.
    labels : Path
        The true labels, in either form, or a folder with a subfolder for each class. Tables are joined by name.
    positive : str, optional
        Where the labels are names, the one that is label 1; by default the second in the order of the alphabet.
    say : callable
        Receives notes on how the labels are read, a line each.
    image_column, label_column : str, optional
        The columns of a table of true labels; by default, they are recognised by their names.
    follow_links : bool
        Whether links may lead out of class folders.
    classes : int, optional
        The number of classes, 2 by default.

    Raises
    ------
    DataError
        A file cannot be read, the images differ, or a class is absent from the true labels.
    ConfigError
        No label has the name `positive`, or a table has no column of a given name.
    """
    refuse_missing("train", "thera evaluate")
    columns = Columns(image_column, label_column)
    true = _read_true_labels(LabelSource(labels, positive, columns, follow_links, classes), say)
    y_pred = _read_predictions(label_file, true, labels, say)
    evaluation: Evaluation | ClassEvaluation
    if class_count(true.classes) == 2:
        evaluation = evaluate_predictions(true.y, y_pred)
    else:
        evaluation = evaluate_classes(true.y, y_pred, true.classes or ())
    return EvaluateResult(*_names(label_file, labels), evaluation)


def compare(
    a: Path,
    b: Path,
    labels: Path | None = None,
    tta: bool = True,
    positive: str | None = None,
    say: Say = silent,
    image_column: str | None = None,
    label_column: str | None = None,
    follow_links: bool = False,
    classes: int | None = None,
) -> CompareResult:
    """Compare two label files, or two of runs and members by their nested predictions.

    Parameters
    ----------
    a, b : Path
        Two label files, or two folders, each of a run or of a member.
    labels : Path, optional
        The true labels of label files, as in `evaluate`. Runs and members have their own.
    tta : bool
        Whether the logits of runs and members are averaged over the views of TTA.
    positive : str, optional
        As in `evaluate`.
    say : callable
        Receives warnings, a line each.
    image_column, label_column, follow_links, classes
        As in `evaluate`.

    Raises
    ------
    ConfigError
        One is a label file and the other is not, or label files come without labels.
    DataError
        A label file cannot be read, or its count or its labels are not those of the other side.
    ArtifactError
        A run or member lacks something, or the two do not hold the same images with the same labels.
    """
    refuse_missing("train", "thera compare")
    for path in (a, b):
        if not path.exists():
            raise DataError(path, "does not exist", "name a run's folder, a member's folder or a label file")
    if a.is_dir() != b.is_dir():
        folder, file = (a, b) if a.is_dir() else (b, a)
        problem = f"{printable(folder)} is a folder and {printable(file)} a label file"
        raise ConfigError("compare", problem, "give two label files with --labels, or two runs or members")
    given = None
    if labels is not None:
        given = LabelSource(labels, positive, Columns(image_column, label_column), follow_links, classes)
    if a.is_dir():
        return _compare_nested(a, b, given, tta, say)
    if labels is None or given is None:
        raise ConfigError("compare", "two label files need the true labels", "give --labels")
    true = _read_true_labels(given, say)
    y_pred_a, y_pred_b = (_read_predictions(path, true, labels, say) for path in (a, b))
    compared: Comparison | ClassComparison
    if (count := class_count(true.classes)) == 2:
        compared = compare_predictions(true.y, y_pred_a, y_pred_b)
    else:
        compared = compare_classes(true.y, y_pred_a, y_pred_b, count)
    return CompareResult(*_names(a, b), compared, labels=printable(labels), classes=true.classes)


# --- runs and members -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Side:
    """The stack of a run, or a member alone, on the rows of its run.

    Attributes
    ----------
    folder : Path
        The folder as the user wrote it.
    description : str
        What predicts, and at which threshold.
    table : FoldTable
    rule : Candidate
    seed : int
        The seed of its run.
    classes : tuple of C str, or None
        The names of the classes; None for two classes that are 0 and 1.
    """

    folder: Path
    description: str
    table: FoldTable
    rule: Candidate
    seed: int
    classes: tuple[str, ...] | None


def read_side(folder: Path, tta: bool = True, say: Say = silent) -> Side:
    """Return the rule of a run or member, cross-fitted on its own rows.

    Raises
    ------
    ArtifactError
        The folder is neither a run nor a member, or something in it is missing or damaged.
    """
    path, key = Path(os.path.abspath(folder)), "tta" if tta else "plain"
    if (path / "run.json").exists():
        run = Run(folder)
        decision = getattr(read_decisions(run, say), key)
        offsets = decision.offsets if isinstance(decision, Decision) else ()
        return stack_side(folder, run, decision.stacker.members, decision.kind, decision.objective, tta, offsets)
    if (path / "member.json").exists():
        return member_side(folder, parse_objective("hter", Run(path.parents[1]).read().class_count), tta)
    Run(folder).refuse_targets()
    remedy = "name checkpoints/RUN or checkpoints/RUN/members/NAME"
    raise ArtifactError(folder, "is neither a run nor a member: no run.json, no member.json", remedy)


def stack_side(
    folder: Path,
    run: Run,
    members: Sequence[str],
    kind: str,
    objective: Objective | ClassObjective,
    tta: bool = True,
    offsets: Sequence[FoldOffset] | None = None,
) -> Side:
    """Return the rule of a stack of members of a run; `offsets` of fold models are found where they are not given."""
    description = f"the stack of {', '.join(members)} at {objective.description}"
    return _side(folder, run, members, stack(kind), objective, tta, description, offsets)


def member_side(folder: Path, objective: Objective | ClassObjective, tta: bool = True) -> Side:
    """Return the rule of a member alone, whose threshold or offsets minimise an objective."""
    path = Path(os.path.abspath(folder))
    description = f"the member {path.name} alone at {objective.description}"
    return _side(folder, Run(path.parents[1]), (path.name,), of_score(member_logit(0)), objective, tta, description)


def _side(
    folder: Path,
    run: Run,
    members: Sequence[str],
    rule: Rule,
    objective: Objective | ClassObjective,
    tta: bool,
    description: str,
    offsets: Sequence[FoldOffset] | None = None,
) -> Side:
    oof = averaged_oof(run, members, VIEW_SETS["tta" if tta else "plain"])
    if oof.classes == 2:
        oof = aligned(oof, find_fold_offsets(oof) if offsets is None else tuple(offsets))
    candidate = Candidate.of(printable(folder), oof, rule, objective)
    facts = run.read()
    return Side(folder, description, oof.table, candidate, facts.seed, facts.classes)


def _compare_nested(a: Path, b: Path, labels: LabelSource | None, tta: bool, say: Say) -> CompareResult:
    of_a, of_b = (read_side(folder, tta, say) for folder in (a, b))
    if labels is not None:
        _refuse_other_labels(labels, of_a, say)
    return compare_sides(of_a, of_b, tta)


def compare_sides(of_a: Side, other: Side, tta: bool = True) -> CompareResult:
    """Compare two sides by their nested predictions, on the same rows.

    Raises
    ------
    ArtifactError
        The two do not hold the same images with the same labels and classes.
    """
    a, b, of_b = of_a.folder, other.folder, _aligned(other, of_a)
    groups = _joint_groups(of_a.table.groups, of_b.table.groups)
    if of_a.classes != of_b.classes:
        of_both = " and ".join(", ".join(each.classes or ("0", "1")) for each in (of_a, of_b))
        where = f"{printable(a)} and {printable(b)}"
        raise ArtifactError(where, f"have other classes: {printable(of_both)}", "compare runs of the same classes")
    compared = compare_nested if class_count(of_a.classes) == 2 else compare_class_nested
    return CompareResult(
        *_names(a, b),
        compared(of_a.rule, of_b.rule, groups, of_a.seed),
        description_a=of_a.description,
        description_b=of_b.description,
        views=VIEW_SETS["tta" if tta else "plain"],
        classes=of_a.classes,
    )


def _aligned(other: Side, to: Side) -> Side:
    """Return `other` in the order of the rows of `to`.

    Raises
    ------
    ArtifactError
        The two do not hold the same ids, or an id has two labels.
    """
    where = f"{printable(to.folder)} and {printable(other.folder)}"
    ids, others = to.table.ids, other.table.ids
    if only := sorted(set(ids.tolist()) ^ set(others.tolist())):
        problem = f"{len(only)} images are in one of the two only ({some(only)})"
        raise ArtifactError(where, problem, "compare what was trained on the same images")
    order = np.empty(len(ids), np.int64)
    order[np.argsort(ids)] = np.argsort(others)
    aligned = replace(other, table=other.table.reordered(order), rule=other.rule.reordered(order))
    if relabelled := ids[to.table.labels != aligned.table.labels].tolist():
        problem = f"{len(relabelled)} images have another label in one than in the other ({some(relabelled)})"
        raise ArtifactError(where, problem, "compare what was trained on the same labels")
    return aligned


def _joint_groups(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return groups (n,) that split neither those of `a` nor those of `b`."""
    if a is None or b is None:
        return b if a is None else a
    return together(a.astype(np.bytes_), b)


def _refuse_other_labels(true: LabelSource, of: Side, say: Say) -> None:
    of_many = of.classes if class_count(of.classes) > 2 else None  # the run knows its classes
    given, labels = _read_labels(replace(true, classes=None) if of_many else true, say, of_many), true.path
    remedy = "leave --labels out: the run has its own"
    images = f"images of {printable(of.folder)}"
    if given.names is not None:
        y = given.y[rows_by_name(given.names, printable(labels), of.table.ids.tolist(), images)[0]]
    else:
        y = given.y
    if len(y) != len(of.table.ids):
        raise DataError(labels, f"{len(y)} lines for the {len(of.table.ids)} {images}", remedy)
    if changed := of.table.ids[y != of.table.labels].tolist():
        problem = f"{len(changed)} labels are not those of {printable(of.folder)} ({some(changed)})"
        raise DataError(labels, problem, remedy)


# --- label files ------------------------------------------------------------------------------------------------------


def _read_labels(labels: LabelSource, say: Say, classes: tuple[str, ...] | None = None) -> LabelsOfImages:
    """Read a label file, or a folder with a subfolder for each class; say how the labels are read."""
    path = labels.path
    if path.is_dir():
        source = open_source(path, positive=labels.positive, follow_links=labels.follow_links, n_classes=labels.classes)
        if source.labels is None:
            raise DataError(printable(path), "has no labels", "give a label file, or a folder for each class")
        read = LabelsOfImages(source.labels, source.classes, tuple(source.ids.tolist()), source.notes)
    else:
        read = read_label_file(path, labels.positive, classes, labels.columns, labels.classes)
    for note in read.notes:
        say(f"note: {note}")
    return read


def _read_true_labels(labels: LabelSource, say: Say) -> LabelsOfImages:
    true, path = _read_labels(labels, say), labels.path
    if true.y.min() == true.y.max():
        raise DataError(path, f"HTER needs both classes; all {len(true.y)} labels are {true.y[0]}")
    return true


def _read_predictions(path: Path, true: LabelsOfImages, labels: Path, say: Say) -> Labels:
    """Return the predicted labels in the order of the true ones."""
    predicted = _read_labels(LabelSource(path), say, true.classes)
    if (predicted.classes is None) != (true.classes is None):
        named, other = (labels, path) if predicted.classes is None else (path, labels)
        problem = f"{printable(named)} names the classes, and {printable(other)} has 0 and 1"
        raise DataError(path, problem, "give both in one form; thera predict --out FILE.csv writes names")
    tables = [each for each in (predicted, true) if each.names is not None]
    if len(tables) == 2:
        assert predicted.names is not None and true.names is not None
        where, images = printable(path), f"images of {printable(labels)}"
        rows, notes = rows_by_name(predicted.names, where, true.names, images)
        for note in notes:
            say(f"note: {note}")
        return predicted.y[rows]
    if tables and not is_numbered(np.array(tables[0].names)):
        table, lines = (path, labels) if predicted.names is not None else (labels, path)
        problem = (
            f"has names that are not the numbers 1 to n, so the lines of {printable(lines)} cannot be joined to it"
        )
        raise DataError(table, problem, "give two tables with name,label")
    if len(predicted.y) != len(true.y):
        problem = f"{len(predicted.y)} lines for the {len(true.y)} labels of {printable(labels)}"
        raise DataError(path, problem, "give one line for each image, in the same order")
    return predicted.y


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Return the last names of two files or folders, or their whole paths where the last names are the same."""
    name_a, name_b = (printable(Path(os.path.abspath(path)).name) for path in (a, b))
    return (name_a, name_b) if name_a != name_b else (printable(a), printable(b))
