"""Confident learning within the training rows of a fold: which rows to leave out for doubtful labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ensemble.config import (
    VIEWS,
)
from ensemble.data.folds import FoldTable
from ensemble.errors import DataError
from ensemble.progress import Say, progress
from ensemble.runs.member import StateFolder

if TYPE_CHECKING:
    from ensemble.commands.train import BegunMember
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import Resources


def without_issues(one: BegunMember, table: FoldTable, resources: Resources, say: Say) -> list[FoldJob]:
    """Return a member's jobs without the training rows whose labels confident learning doubts.

    For each fold the same network is cross-fitted within its training rows; the held-out rows have no say in what is
    left out, and none of them is.
    """
    from ensemble.decision.label_issues import find_issues

    if any(one.folder.left_out(job.fold) is None for job in one.jobs):
        parts = {job.fold: _parts(job, table) for job in one.jobs}
        _train_parts(one, parts, table, resources, say)
        for job in one.jobs:
            if one.folder.left_out(job.fold) is None:
                logits = np.empty(len(table.ids))
                for part in range(table.k):
                    found = one.folder.read_part(job.fold, part, VIEWS[:1])
                    assert found is not None
                    logits[job.rows[parts[job.fold] == part]] = found[1][:, 0]
                doubted = find_issues(logits[job.rows], table.labels[job.rows], job.seed)
                one.folder.write_left_out(job.fold, table.ids[job.rows[doubted]])
    cleaned = []
    for job in one.jobs:
        left_out = one.folder.left_out(job.fold)
        assert left_out is not None
        cleaned.append(replace(job, rows=job.rows[~np.isin(table.ids[job.rows], left_out)]))
    return cleaned


def _parts(job: FoldJob, table: FoldTable) -> np.ndarray:
    """Return the part (r,) that each of a fold's training rows is held out with: as many parts as folds."""
    from ensemble.data.folds import assign_folds

    units = np.arange(len(job.rows)) if table.groups is None else table.groups[job.rows]
    try:
        return assign_folds(table.labels[job.rows], units, table.k, job.random_seed("cleaning")).fold_of
    except DataError as error:
        found = f"the training rows of fold {job.fold} cannot be split again ({error.found})"
        raise DataError(f"member {job.config.name}, clean", found, "use fewer --folds, or leave clean out") from None


def _train_parts(
    one: BegunMember, parts: dict[int, np.ndarray], table: FoldTable, resources: Resources, say: Say
) -> None:
    """Train what finds doubtful labels and is not finished, and write its logits."""
    from ensemble.members.parallel import Task, cores_of_jobs, train_tasks

    every = [
        (replace(job, rows=job.rows[parts[job.fold] != part], part=part), job.rows[parts[job.fold] == part])
        for job in one.jobs
        for part in range(table.k)
    ]
    cores, todo = cores_of_jobs([job for job, _ in every], resources), []
    for index, (job, _) in enumerate(every):
        assert job.part is not None
        known = one.folder.left_out(job.fold) is not None
        if not known and one.folder.read_part(job.fold, job.part, VIEWS[:1]) is None:
            todo.append(index)
    tasks = []
    for index in todo:
        job, held_out = every[index]
        assert job.part is not None
        state = StateFolder(one.folder.part(job.fold, job.part))
        tasks.append(Task(job, state, one.plan, held_out, VIEWS[:1], None))
    steps = [job.images + len(held_out) for job, held_out in every]
    with progress(sum(steps), f"{one.folder.name}, doubtful labels") as bar:
        bar.skip(sum(steps) - sum(steps[index] for index in todo))
        for place_in_todo, result in train_tasks(tasks, [cores[index] for index in todo], resources, bar):
            job, held_out = every[todo[place_in_todo]]
            assert job.part is not None
            for warning in result.warnings:
                say(f"warning: {warning}")
            one.folder.finish_part(job.fold, job.part, table.ids[held_out], result.logits, VIEWS[:1])
