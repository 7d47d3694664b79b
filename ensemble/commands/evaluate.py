"""The verbs that measure label files and runs against labels: evaluate, compare."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.config import VIEW_SETS
from ensemble.data.files import reading
from ensemble.data.folds import together
from ensemble.data.source import parse_labels
from ensemble.decision.comparison import compare_calls, evaluate_calls
from ensemble.decision.cross_fitting import cross_fit, member_logit, of_score, stack
from ensemble.decision.rates import Calls
from ensemble.decision.threshold import HTER
from ensemble.errors import ArtifactError, ConfigError, DataError, printable, some
from ensemble.progress import Say
from ensemble.reports.comparison_tables import comparison_tables, evaluation_tables
from ensemble.reports.tables import Table
from ensemble.runs.run import Run

NESTED = (
    "Nested: each fold is called by weights and threshold that were fitted without it; views {views}. The report's "
    "intervals of a stack or member also fit the threshold anew."
)


@dataclass(frozen=True, eq=False)
class Nested:
    """The nested calls of a run's stack or of a member, on the rows of its run.

    Attributes
    ----------
    where : Path
        Its folder, as the user gave it.
    told : str
        What is called by what.
    ids : str array (n,)
    labels, called : int8 array (n,)
    groups : int64 array (n,) or None
    seed : int
        Of its run.
    """

    where: Path
    told: str
    ids: NDArray[np.str_]
    labels: Calls
    called: Calls
    groups: NDArray[np.int64] | None
    seed: int


def evaluate(label_file: Path, labels: Path) -> list[Table]:
    """Return the tables of a label file measured against the true labels.

    Raises
    ------
    DataError
        A file cannot be read, the counts differ, or the true labels are of one class.
    """
    truth = _read_truth(labels)
    called = _read_calls(label_file, truth, labels)
    return evaluation_tables(*_names(label_file, labels), evaluate_calls(truth, called))


def compare(a: Path, b: Path, labels: Path | None, tta: bool, say: Say) -> list[Table]:
    """Return the tables that compare two label files, or two of runs and members by their nested calls.

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
        found = f"{printable(folder)} is a folder and {printable(file)} a label file"
        raise ConfigError("compare", found, "give two label files with --labels, or two runs or members")
    if a.is_dir():
        return _compare_nested(a, b, labels, tta, say)
    if labels is None:
        raise ConfigError("compare", "two label files need the true labels", "give --labels")
    truth = _read_truth(labels)
    compared = compare_calls(truth, _read_calls(a, truth, labels), _read_calls(b, truth, labels))
    return comparison_tables(*_names(a, b), compared, (f"Labels: {printable(labels)}.",))


def _compare_nested(a: Path, b: Path, labels: Path | None, tta: bool, say: Say) -> list[Table]:
    of_a = nested_calls(a, tta, say)
    of_b = _aligned(nested_calls(b, tta, say), of_a)
    if labels is not None:
        _refuse_other_labels(labels, of_a)
    groups = _joint_groups(of_a.groups, of_b.groups)
    compared = compare_calls(of_a.labels, of_a.called, of_b.called, groups, of_a.seed)
    views = " + ".join(VIEW_SETS["tta" if tta else "plain"])
    notes = (f"A is {of_a.told}, B is {of_b.told}.", NESTED.format(views=views))
    return comparison_tables(*_names(a, b), compared, notes)


def nested_calls(where: Path, tta: bool, say: Say) -> Nested:
    """Return the nested calls of the run or member that lies in a folder."""
    folder, key = Path(os.path.abspath(where)), "tta" if tta else "plain"
    if (folder / "run.json").exists():
        run = Run(where)
        decision = read_decisions(run, say)[key]
        members, rule, objective = decision.stacker.members, stack(decision.chosen), decision.objective
        told = f"the stack of {', '.join(members)} at {objective.told}"
    elif (folder / "member.json").exists():
        run, members = Run(folder.parents[1]), (folder.name,)
        rule, objective = of_score(member_logit(0)), HTER
        told = f"the member {folder.name} alone at {objective.told}"
    else:
        remedy = "name checkpoints/RUN or checkpoints/RUN/members/NAME"
        raise ArtifactError(where, "is neither a run nor a member: no run.json, no member.json", remedy)
    oof = averaged_oof(run, members, VIEW_SETS[key])
    called = cross_fit(oof.rows, rule, objective).called
    return Nested(where, told, oof.ids, oof.labels, called, oof.groups, run.read()["seed"])


def _aligned(other: Nested, to: Nested) -> Nested:
    """Return `other` in the order of the rows of `to`.

    Raises
    ------
    ArtifactError
        The two do not hold the same ids, or an id has two labels.
    """
    where = f"{printable(to.where)} and {printable(other.where)}"
    if only := sorted(set(to.ids.tolist()) ^ set(other.ids.tolist())):
        found = f"{len(only)} images are in one of the two only ({some(only)})"
        raise ArtifactError(where, found, "compare what was trained on the same images")
    order = np.empty(len(to.ids), np.int64)
    order[np.argsort(to.ids)] = np.argsort(other.ids)
    groups = None if other.groups is None else other.groups[order]
    aligned = replace(other, ids=to.ids, labels=other.labels[order], called=other.called[order], groups=groups)
    if relabelled := to.ids[to.labels != aligned.labels].tolist():
        found = f"{len(relabelled)} images have another label in one than in the other ({some(relabelled)})"
        raise ArtifactError(where, found, "compare what was trained on the same labels")
    return aligned


def _joint_groups(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return groups (n,) that split neither those of `a` nor those of `b`."""
    if a is None or b is None:
        return b if a is None else a
    return together(a.astype(np.bytes_), b)


def _refuse_other_labels(labels: Path, of: Nested) -> None:
    given = _read_labels(labels)
    if len(given) != len(of.ids):
        found = f"{len(given)} lines for the {len(of.ids)} images of {printable(of.where)}"
        raise DataError(labels, found, "leave --labels out: the run has its own")
    if changed := of.ids[given != of.labels].tolist():
        found = f"{len(changed)} labels are not those of {printable(of.where)} ({some(changed)})"
        raise DataError(labels, found, "leave --labels out: the run has its own")


def _read_labels(path: Path) -> Calls:
    where = printable(path)
    with reading(where):
        return parse_labels(path.read_bytes(), where)


def _read_truth(path: Path) -> Calls:
    truth = _read_labels(path)
    if truth.min() == truth.max():
        raise DataError(path, f"HTER needs both classes; all {len(truth)} labels are {truth[0]}")
    return truth


def _read_calls(path: Path, truth: Calls, labels: Path) -> Calls:
    called = _read_labels(path)
    if len(called) != len(truth):
        found = f"{len(called)} lines for the {len(truth)} labels of {printable(labels)}"
        raise DataError(path, found, "give one line for each image, in the same order")
    return called


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Return what two files or folders are called: their last name, or the whole path where that is the same."""
    name_a, name_b = (printable(Path(os.path.abspath(path)).name) for path in (a, b))
    return (name_a, name_b) if name_a != name_b else (printable(a), printable(b))
