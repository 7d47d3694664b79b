"""Doubtful labels of training rows: which rows a member leaves out, relabels or weighs (`clean`, or an overlay).

Held-out rows never change. With `clean`, the search is nested: it sees the training rows of the fold alone. An overlay
was made from the OOF logits of a run, so that it is not nested: see `OVERLAY_NOTE`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.fold_jobs import BegunMember, JobToTrain, train_jobs
from ensemble.config import VIEWS
from ensemble.data.folds import FoldTable, assign_folds
from ensemble.data.overlay import Action, Overlay, changes_of
from ensemble.errors import DataError
from ensemble.progress import Say
from ensemble.runs.changed_rows import read_changed, write_changed, write_overlay

if TYPE_CHECKING:
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import Resources

VIEW = VIEWS[:1]
"""The view by which doubtful labels are looked for: the image as it is."""

OVERLAY_NOTE = (
    "its overlay changes training rows by what models say that were also trained on labels of the held-out rows, so "
    "that its nested error rates may be slightly too good; clean: in the member's config avoids this"
)
"""What is said of a member with an overlay, whose source is not known to be independent of the held-out labels."""


def with_changed_rows(member: BegunMember, table: FoldTable, resources: Resources, say: Say) -> BegunMember:
    """Return a member whose jobs train the rows, labels and weights that its config requests."""
    if member.overlay is not None:
        say(f"note: member {member.folder.name}: {OVERLAY_NOTE}")
        return replace(member, jobs=_with_overlay(member, member.overlay, table))
    if member.jobs[0].config.clean:
        return replace(member, jobs=_without_issues(member, table, resources, say))
    return member


# --- an overlay -------------------------------------------------------------------------------------------------------


def _with_overlay(member: BegunMember, overlay: Overlay, table: FoldTable) -> tuple[FoldJob, ...]:
    folder, jobs = member.folder, []
    write_overlay(folder, overlay)
    for job in member.jobs:
        training = set(job.rows.tolist())
        inside = {row: change for row, change in overlay.changes.items() if row in training}
        of_fold = Overlay(inside)
        dropped = of_fold.rows("drop")
        kept = {row: change for row, change in inside.items() if change.action != "drop"}
        changed = _changed(job, Overlay(kept), dropped)
        if dropped.size and folder.left_out(job.fold) is None:
            folder.write_left_out(job.fold, table.ids[dropped])
        if kept and read_changed(folder, job.fold, table) is None:
            write_changed(folder, job.fold, kept, table)
        jobs.append(changed)
    return tuple(jobs)


def _changed(job: FoldJob, overlay: Overlay, dropped: np.ndarray) -> FoldJob:
    """Return a job with the labels and weights of an overlay of its training rows, and without the dropped rows.

    Raises
    ------
    DataError
        No training row of a class is left.
    """
    rows, labels = job.rows[~np.isin(job.rows, dropped)], overlay.labels(job.labels)
    missing = sorted(set(job.labels[job.rows].tolist()) - set(labels[rows].tolist()))
    if missing:
        problem = f"no training row of fold {job.fold} has label {missing[0]} after doubtful labels are changed"
        raise DataError(f"member {job.config.name}", problem, "change fewer rows, or use fewer --folds")
    weights = overlay.weights(len(labels)) if overlay.rows("weight").size else None
    return replace(job, rows=rows, labels=labels, row_weights=weights)


# --- the nested search ------------------------------------------------------------------------------------------------


def _without_issues(member: BegunMember, table: FoldTable, resources: Resources, say: Say) -> tuple[FoldJob, ...]:
    """Return a member's jobs with the training rows whose labels confident learning doubts left out or changed.

    For each fold the same network is cross-fitted within its training rows. The held-out rows do not influence what is
    changed, and none of them is.
    """
    open_jobs = [job for job in member.jobs if not _is_known(member, job, table)]
    if open_jobs:
        parts = {job.fold: _parts(job, table) for job in member.jobs}
        _train_parts(member, parts, table, resources, say)
        for job in open_jobs:
            _write_issues(member, job, _logits_of_parts(member, job, parts[job.fold], table)[job.rows], table)
    cleaned, folder = [], member.folder
    for job in member.jobs:
        if job.config.clean is True:
            left_out = folder.left_out(job.fold)
            assert left_out is not None
            cleaned.append(replace(job, rows=job.rows[~np.isin(table.ids[job.rows], left_out)]))
        else:
            changed = read_changed(folder, job.fold, table)
            assert changed is not None
            cleaned.append(_changed(job, changed, np.empty(0, np.int64)))
    return tuple(cleaned)


def _is_known(member: BegunMember, job: FoldJob, table: FoldTable) -> bool:
    """Return whether it is known which training rows of a fold are changed."""
    if job.config.clean is True:
        return member.folder.left_out(job.fold) is not None
    return read_changed(member.folder, job.fold, table) is not None


def _write_issues(member: BegunMember, job: FoldJob, logits: np.ndarray, table: FoldTable) -> None:
    """Find the doubtful labels of a fold's training rows by their logits (r,) or (r, C), and write what is changed."""
    from ensemble.decision.label_issues import find_issues, rank_issues

    labels = table.labels[job.rows]
    if job.config.clean is True:
        doubted = find_issues(logits, labels, job.seed)
        member.folder.write_left_out(job.fold, table.ids[job.rows[doubted]])
        return
    issues = rank_issues(logits, labels, job.seed)
    action: Action = "flip" if job.config.clean == "flip" else "weight"
    changes = changes_of(action, job.rows[issues.rows], labels[issues.rows], issues.suggested, issues.probability)
    write_changed(member.folder, job.fold, changes, table)


def _logits_of_parts(member: BegunMember, job: FoldJob, parts: np.ndarray, table: FoldTable) -> np.ndarray:
    """Return the logits (n,) or (n, C) that networks without a training row's part have given it."""
    logits = np.empty(len(table.ids) if job.classes == 2 else (len(table.ids), job.classes))
    for part in range(table.k):
        stored = member.folder.read_part(job.fold, part, VIEW)
        assert stored is not None
        logits[job.rows[parts == part]] = stored[1][:, 0]
    return logits


def _parts(job: FoldJob, table: FoldTable) -> np.ndarray:
    """Return the part (r,) that each of a fold's training rows is held out with: as many parts as folds."""
    units = np.arange(len(job.rows)) if table.groups is None else table.groups[job.rows]
    try:
        return assign_folds(table.labels[job.rows], units, table.k, job.random_seed("cleaning")).fold_of
    except DataError as error:
        problem = f"the training rows of fold {job.fold} cannot be split again ({error.found})"
        raise DataError(f"member {job.config.name}, clean", problem, "use fewer --folds, or leave clean out") from None


def _train_parts(
    member: BegunMember, parts: dict[int, np.ndarray], table: FoldTable, resources: Resources, say: Say
) -> None:
    """Train the networks that find doubtful labels and are not finished, and write their logits."""
    folder, jobs = member.folder, []
    for job in member.jobs:
        known = _is_known(member, job, table)
        for part in range(table.k):
            inside = parts[job.fold] == part
            of_part = replace(job, rows=job.rows[~inside], part=part)
            done = known or folder.read_part(job.fold, part, VIEW) is not None
            jobs.append(JobToTrain(of_part, member.plan, job.rows[inside], folder.part(job.fold, part), done))
    for index, result, _ in train_jobs(jobs, VIEW, f"{folder.name}, doubtful labels", resources, say):
        job = jobs[index].job
        assert job.part is not None
        folder.finish_part(job.fold, job.part, table.ids[jobs[index].held_out], result.logits, VIEW)
