"""Label cleaning within the training rows of a fold: which rows are left out for doubtful labels (`clean: true`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.fold_jobs import BegunMember, JobToTrain, train_jobs
from ensemble.config import VIEWS
from ensemble.data.folds import FoldTable, assign_folds
from ensemble.errors import DataError
from ensemble.progress import Say

if TYPE_CHECKING:
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import Resources

VIEW = VIEWS[:1]
"""The view by which doubtful labels are looked for: the image as it is."""


def without_issues(member: BegunMember, table: FoldTable, resources: Resources, say: Say) -> tuple[FoldJob, ...]:
    """Return a member's jobs without the training rows whose labels confident learning doubts.

    For each fold the same network is cross-fitted within its training rows. The held-out rows do not influence what is
    left out, and none of them is left out.
    """
    from ensemble.decision.label_issues import find_issues

    folder = member.folder
    open_jobs = [job for job in member.jobs if folder.left_out(job.fold) is None]
    if open_jobs:
        parts = {job.fold: _parts(job, table) for job in member.jobs}
        _train_parts(member, parts, table, resources, say)
        for job in open_jobs:
            logits = np.empty(len(table.ids) if job.classes == 2 else (len(table.ids), job.classes))
            for part in range(table.k):
                stored = folder.read_part(job.fold, part, VIEW)
                assert stored is not None
                logits[job.rows[parts[job.fold] == part]] = stored[1][:, 0]
            doubted = find_issues(logits[job.rows], table.labels[job.rows], job.seed)
            folder.write_left_out(job.fold, table.ids[job.rows[doubted]])
    cleaned = []
    for job in member.jobs:
        left_out = folder.left_out(job.fold)
        assert left_out is not None
        cleaned.append(replace(job, rows=job.rows[~np.isin(table.ids[job.rows], left_out)]))
    return tuple(cleaned)


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
        known = folder.left_out(job.fold) is not None
        for part in range(table.k):
            inside = parts[job.fold] == part
            of_part = replace(job, rows=job.rows[~inside], part=part)
            done = known or folder.read_part(job.fold, part, VIEW) is not None
            jobs.append(JobToTrain(of_part, member.plan, job.rows[inside], folder.part(job.fold, part), done))
    for index, result, _ in train_jobs(jobs, VIEW, f"{folder.name}, doubtful labels", resources, say):
        job = jobs[index].job
        assert job.part is not None
        folder.finish_part(job.fold, job.part, table.ids[jobs[index].held_out], result.logits, VIEW)
