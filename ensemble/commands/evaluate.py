"""`thera evaluate` and `thera compare`: label files, runs and members measured against labels."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.config import VIEW_SETS
from ensemble.data.files import reading
from ensemble.data.folds import FoldTable, together
from ensemble.data.labels import parse_labels
from ensemble.decision.comparison import compare_predictions, evaluate_predictions
from ensemble.decision.cross_fitting import cross_fit, member_logit, of_score, stack
from ensemble.decision.objective import HTER
from ensemble.decision.rates import Labels
from ensemble.errors import ArtifactError, ConfigError, DataError, printable, some
from ensemble.progress import Say, silent
from ensemble.results import CompareResult, EvaluateResult
from ensemble.runs.run import Run


def evaluate(label_file: Path, labels: Path) -> EvaluateResult:
    """Measure a label file against the true labels.

    Parameters
    ----------
    label_file, labels : Path
        One 0 or 1 a line, for the same images in the same order.

    Raises
    ------
    DataError
        A file cannot be read, the counts differ, or the true labels are of one class.
    """
    y_true = _read_true_labels(labels)
    y_pred = _read_predictions(label_file, y_true, labels)
    return EvaluateResult(*_names(label_file, labels), evaluate_predictions(y_true, y_pred))


def compare(a: Path, b: Path, labels: Path | None = None, tta: bool = True, say: Say = silent) -> CompareResult:
    """Compare two label files, or two of runs and members by their nested predictions.

    Parameters
    ----------
    a, b : Path
        Two label files, or two folders, each of a run or of a member.
    labels : Path, optional
        The true labels of label files. Runs and members have their own.
    tta : bool
        Whether the logits of runs and members are averaged over the views of TTA.
    say : callable
        Receives warnings, a line each.

    Raises
    ------
    ConfigError
        One is a label file and the other is not, or label files come without labels.
    DataError
        A label file cannot be read, or its count or its labels are not those of the other side.
    ArtifactError
        A run or member lacks something, or the two do not hold the same images with the same labels.
    """
    for path in (a, b):
        if not path.exists():
            raise DataError(path, "does not exist", "name a run's folder, a member's folder or a label file")
    if a.is_dir() != b.is_dir():
        folder, file = (a, b) if a.is_dir() else (b, a)
        problem = f"{printable(folder)} is a folder and {printable(file)} a label file"
        raise ConfigError("compare", problem, "give two label files with --labels, or two runs or members")
    if a.is_dir():
        return _compare_nested(a, b, labels, tta, say)
    if labels is None:
        raise ConfigError("compare", "two label files need the true labels", "give --labels")
    y_true = _read_true_labels(labels)
    y_pred_a, y_pred_b = (_read_predictions(path, y_true, labels) for path in (a, b))
    return CompareResult(*_names(a, b), compare_predictions(y_true, y_pred_a, y_pred_b), labels=printable(labels))


# --- runs and members -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NestedPredictions:
    """The nested predictions of a run's stack or of a member, on the rows of its run.

    Attributes
    ----------
    folder : Path
        The folder as the user wrote it.
    description : str
        What predicts, and at which threshold.
    table : FoldTable
    y_pred : int8 array (n,)
    seed : int
        The seed of its run.
    """

    folder: Path
    description: str
    table: FoldTable
    y_pred: Labels
    seed: int


def nested_predictions(folder: Path, tta: bool = True, say: Say = silent) -> NestedPredictions:
    """Return the predictions of a run or member on its own rows, each fold by what was fitted without it.

    Raises
    ------
    ArtifactError
        The folder is neither a run nor a member, or something in it is missing or damaged.
    """
    path, key = Path(os.path.abspath(folder)), "tta" if tta else "plain"
    if (path / "run.json").exists():
        run = Run(folder)
        decision = getattr(read_decisions(run, say), key)
        members, rule, objective = decision.stacker.members, stack(decision.chosen), decision.objective
        description = f"the stack of {', '.join(members)} at {objective.description}"
    elif (path / "member.json").exists():
        run, members = Run(path.parents[1]), (path.name,)
        rule, objective = of_score(member_logit(0)), HTER
        description = f"the member {path.name} alone at {objective.description}"
    else:
        remedy = "name checkpoints/RUN or checkpoints/RUN/members/NAME"
        raise ArtifactError(folder, "is neither a run nor a member: no run.json, no member.json", remedy)
    oof = averaged_oof(run, members, VIEW_SETS[key])
    y_pred = cross_fit(oof.rows, rule, objective).y_pred
    return NestedPredictions(folder, description, oof.table, y_pred, run.read().seed)


def _compare_nested(a: Path, b: Path, labels: Path | None, tta: bool, say: Say) -> CompareResult:
    of_a = nested_predictions(a, tta, say)
    of_b = _aligned(nested_predictions(b, tta, say), of_a)
    if labels is not None:
        _refuse_other_labels(labels, of_a)
    groups = _joint_groups(of_a.table.groups, of_b.table.groups)
    return CompareResult(
        *_names(a, b),
        compare_predictions(of_a.table.labels, of_a.y_pred, of_b.y_pred, groups, of_a.seed),
        description_a=of_a.description,
        description_b=of_b.description,
        views=VIEW_SETS["tta" if tta else "plain"],
    )


def _aligned(other: NestedPredictions, to: NestedPredictions) -> NestedPredictions:
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
    aligned = replace(other, table=other.table.reordered(order), y_pred=other.y_pred[order])
    if relabelled := ids[to.table.labels != aligned.table.labels].tolist():
        problem = f"{len(relabelled)} images have another label in one than in the other ({some(relabelled)})"
        raise ArtifactError(where, problem, "compare what was trained on the same labels")
    return aligned


def _joint_groups(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return groups (n,) that split neither those of `a` nor those of `b`."""
    if a is None or b is None:
        return b if a is None else a
    return together(a.astype(np.bytes_), b)


def _refuse_other_labels(labels: Path, of: NestedPredictions) -> None:
    given, remedy = _read_labels(labels), "leave --labels out: the run has its own"
    if len(given) != len(of.table.ids):
        problem = f"{len(given)} lines for the {len(of.table.ids)} images of {printable(of.folder)}"
        raise DataError(labels, problem, remedy)
    if changed := of.table.ids[given != of.table.labels].tolist():
        problem = f"{len(changed)} labels are not those of {printable(of.folder)} ({some(changed)})"
        raise DataError(labels, problem, remedy)


# --- label files ------------------------------------------------------------------------------------------------------


def _read_labels(path: Path) -> Labels:
    where = printable(path)
    with reading(where):
        return parse_labels(path.read_bytes(), where)


def _read_true_labels(path: Path) -> Labels:
    y_true = _read_labels(path)
    if y_true.min() == y_true.max():
        raise DataError(path, f"HTER needs both classes; all {len(y_true)} labels are {y_true[0]}")
    return y_true


def _read_predictions(path: Path, y_true: Labels, labels: Path) -> Labels:
    y_pred = _read_labels(path)
    if len(y_pred) != len(y_true):
        problem = f"{len(y_pred)} lines for the {len(y_true)} labels of {printable(labels)}"
        raise DataError(path, problem, "give one line for each image, in the same order")
    return y_pred


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Return the last names of two files or folders, or their whole paths where the last names are the same."""
    name_a, name_b = (printable(Path(os.path.abspath(path)).name) for path in (a, b))
    return (name_a, name_b) if name_a != name_b else (printable(a), printable(b))
