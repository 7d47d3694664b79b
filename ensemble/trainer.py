"""Trains the folds of members that are not finished yet; what their folders hold already is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble import runs, storage
from ensemble.config import VIEWS, MemberConfig, seed_sequence
from ensemble.decision.rates import call, error_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ConfigError, DataError, ResourceError, TheraError
from ensemble.progress import Bar, Say, progress

if TYPE_CHECKING:
    from ensemble.data.source import Dataset
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.lockstep import Task
    from ensemble.members.plans import Plan
    from ensemble.members.training import FoldResult

WATCHED = 2000
"""Held-out images of a fold whose HTER is shown after each epoch; nothing is chosen by it."""


@dataclass(frozen=True)
class Machine:
    """Where to compute. It changes how long a run takes; what comes out, only in the order of floating-point sums.

    `jobs` is how many networks are computed at once, each on its share of the cores; by default as many as pay.
    """

    device: str = "auto"
    workers: int | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class _Place:
    """A machine as it was found to be."""

    device: Any  # a torch.device
    workers: int
    jobs: int | None


@dataclass(frozen=True)
class _Begun:
    """A member that may be trained: its folder, a job for each fold to train, and how it is computed."""

    folder: runs.MemberFolder
    jobs: list[FoldJob]
    plan: Plan


def train_folds(
    members: Sequence[tuple[runs.MemberFolder, MemberConfig]],
    dataset: Dataset,
    table: runs.FoldTable,
    seed: int,
    machine: Machine,
    say: Say,
    only: int | None = None,
) -> None:
    """Train members on every fold that is not finished, and write weights, OOF logits, history and curves.

    The folds of all members are computed side by side, as many at once as the machine has cores for; `only` one fold of
    each, where it is given.

    Raises
    ------
    ArtifactError
        A member was begun with other data, another seed or config.
    """
    from ensemble.members.inference import choose_device, default_workers

    device = choose_device(machine.device)
    place = _Place(device, default_workers(device) if machine.workers is None else machine.workers, machine.jobs)
    folds = range(table.k) if only is None else (only,)
    begun = _begin(members, dataset, table, folds, seed, place, say)
    for index, one in enumerate(begun):
        if one.jobs[0].config.clean:
            begun[index] = replace(one, jobs=_without_issues(one, table, place, say))
    _finish(begun, table, place, say)


def _begin(
    members: Sequence[tuple[runs.MemberFolder, MemberConfig]],
    dataset: Dataset,
    table: runs.FoldTable,
    folds: Sequence[int],
    seed: int,
    place: _Place,
    say: Say,
) -> list[_Begun]:
    from ensemble.members.backbones import check
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.processes import MappedPixels

    pixels, jobs, facts = MappedPixels(dataset.pixels), [], []
    for folder, member in members:
        weights = storage.read_tensors(member.weights) if member.weights else None
        check(member, dataset.size[0], weights)
        asked = member.model_dump(mode="json", exclude={"weights"})
        asked["weights"] = storage.file_sha256(member.weights) if member.weights else None
        config, origin = _with_origin(folder, member, dataset.size[0], say)
        arrays = {key: value.numpy() for key, value in weights.items()} if weights is not None else None
        for fold in folds:
            rows = np.flatnonzero(table.fold_of != fold)
            jobs.append(FoldJob(config, pixels, table.labels, table.ids, rows, fold, seed, arrays))
        facts.append((asked, origin))
    begun, cores = [], _cores(jobs, place)
    for index, ((folder, member), (asked, origin)) in enumerate(zip(members, facts, strict=True)):
        own = slice(index * len(folds), (index + 1) * len(folds))
        plan = _plan(folder, jobs[own][0], folds, place, cores[own][0], say)
        folder.begin(
            asked,
            {"fingerprint": dataset.fingerprint, "seed": seed, **dataclasses.asdict(plan), **origin},
            MemberConfig.model_validate({"arch": member.arch}).model_dump(mode="json"),
        )
        begun.append(_Begun(folder, jobs[own], plan))
    return begun


def _finish(begun: Sequence[_Begun], table: runs.FoldTable, place: _Place, say: Say) -> None:
    """Train what is not finished, and write it."""
    from ensemble.members.lockstep import Task
    from ensemble.members.training import Watch

    every = [(one, job) for one in begun for job in one.jobs]
    cores = _cores([job for _, job in every], place)
    held_out = [np.flatnonzero(table.fold_of == fold) for fold in range(table.k)]
    todo = [index for index, (one, job) in enumerate(every) if not one.folder.has_fold(job.fold)]
    for index, (one, job) in enumerate(every):
        if index not in todo and not (one.folder.fold(job.fold) / "training.png").exists():
            _draw(one.folder, job.fold)
    tasks = []
    for index in todo:
        one, job = every[index]
        rows = held_out[job.fold]
        watch, state = Watch(_watched(job, rows), least_hter), runs.StateFolder(one.folder.fold(job.fold))
        tasks.append(Task(job, state, one.plan, rows, VIEWS, watch))
    steps = [job.images + len(held_out[job.fold]) * len(VIEWS) for _, job in every]
    names = begun[0].folder.name if len(begun) == 1 else f"{len(begun)} members"
    folds = f"{len(begun[0].jobs)} folds" if len(begun[0].jobs) > 1 else f"fold {begun[0].jobs[0].fold}"
    with progress(sum(steps), f"{names}, {folds}") as bar:
        bar.skip(sum(steps) - sum(steps[index] for index in todo))
        for place_in_todo, result in _results(tasks, [cores[index] for index in todo], place, bar):
            index = todo[place_in_todo]
            one, job = every[index]
            for warning in result.warnings:
                say(f"warning: {warning}")
            _write(one.folder, job.fold, table.ids[held_out[job.fold]], result, place, len(cores[index]))


def _results(
    tasks: Sequence[Task], cores: Sequence[list[int]], place: _Place, bar: Bar
) -> Iterator[tuple[int, FoldResult]]:
    """Yield the index and the result of each task as they come: side by side on a CPU's cores, together on a GPU.

    Raises
    ------
    TheraError
        That of a task; where they are trained together, once the others have been yielded.
    """
    from ensemble.members.lockstep import train_together
    from ensemble.members.processes import Workers

    groups = _groups(cores, place)
    share = 1 / len(groups) if groups else 1.0
    calls = [([tasks[index] for index in group], place.device, place.workers, share) for group, _ in groups]
    failed = []
    with Workers() as processes:
        for which, results in processes.run(train_together, calls, [own for _, own in groups], bar):
            for index, result in zip(groups[which][0], results, strict=True):
                if isinstance(result, TheraError):
                    failed.append(result)
                else:
                    yield index, result
    if failed:
        raise failed[0]


def _groups(cores: Sequence[list[int]], place: _Place) -> list[tuple[list[int], list[int]]]:
    """Return which tasks a process trains in turn, and its cores: on a CPU each task by itself, with its own.

    On a GPU one process trains all, or each of `--jobs` processes a share of them.
    """
    from ensemble.members.processes import at_once, shares

    if place.device.type == "cpu":
        return [([index], own) for index, own in enumerate(cores)]
    n = at_once(len(cores), 0, place.device, place.jobs)
    return [(list(range(first, len(cores), n)), own) for first, own in enumerate(shares(n, n)) if cores]


def _write(
    folder: runs.MemberFolder, fold: int, ids: np.ndarray, result: FoldResult, place: _Place, threads: int
) -> None:
    _draw(folder, fold)
    folder.finish_fold(
        fold,
        result.weights,
        ids,
        result.logits,
        VIEWS,
        epochs=len(result.history),
        training_seconds=round(sum(epoch["seconds"] for epoch in result.history), 1),
        seconds=round(result.seconds, 1),
        device=str(place.device),
        threads=threads,
    )
    folder.update(parameters=result.parameters)


def _draw(folder: runs.MemberFolder, fold: int) -> None:
    from ensemble.reports.figures import training_figure

    figure = training_figure(f"{folder.name}, fold {fold}", folder.history(fold))
    storage.write_whole(folder.fold(fold) / "training.png", figure)


def _cores(jobs: Sequence[FoldJob], place: _Place) -> list[list[int]]:
    """Return the cores of each job; where they are mostly too short for a process of their own, all for each."""
    from ensemble.members.processes import at_once, shares

    batches = sum(job.images // job.batch_size for job in jobs) // len(jobs)
    return shares(len(jobs), at_once(len(jobs), batches, place.device, place.jobs))


def _plan(
    folder: runs.MemberFolder, job: FoldJob, folds: Sequence[int], place: _Place, cores: list[int], say: Say
) -> Plan:
    """Return how a member is computed: as it was begun, where this device can do so, else by what is fastest."""
    from ensemble.members.plans import Plan, choose_plan, least_size, possible_plans

    member, size = job.config, job.pixels.shape[1]
    if folder.has_begun:
        begun = Plan(folder.read()["precision"], folder.read().get("convolutions", "native"))
        asked = member.precision, member.convolutions, place.device, least_size(member, size)
        if begun in possible_plans(*asked, "train", emulated=True):
            if begun not in possible_plans(*asked, "train") and not all(map(folder.has_fold, folds)):
                found = f"goes on in {begun.precision} as it was begun, which this CPU only emulates"
                say(f"warning: member {folder.name} {found}; it takes many times as long as where it was begun")
            return begun
    batches = job.images // job.batch_size
    if place.device.type != "cpu":  # compiled once for all folds of a process
        batches *= max(1, len(folds) // (place.jobs or 1))
    return choose_plan(member, place.device, size, "train", batches, len(cores))


# --- pretrained weights, if possible ----------------------------------------------------------------------------------


def _with_origin(
    folder: runs.MemberFolder, member: MemberConfig, size: int, say: Say
) -> tuple[MemberConfig, dict[str, Any]]:
    """Return the config with `pretrained` settled, and where it was left open, what it was settled to.

    Raises
    ------
    ResourceError
        Pretrained weights are asked for and cannot be had.
    """
    from ensemble.members.backbones import build

    asked, given = member.pretrained, member.weights is not None
    wanted = member.model_copy(update={"pretrained": bool(asked)})
    if not asked or folder.has_begun or given:
        if asked != "if-possible":
            return wanted, {}
        origin = folder.read().get("started_from") if folder.has_begun else runs.FROM_FILE
        return wanted.model_copy(update={"pretrained": origin != runs.FROM_SCRATCH}), {"started_from": origin}
    try:
        build(wanted, size)
    except (ResourceError, ConfigError) as error:
        if asked != "if-possible":
            raise
        say(f"warning: {error.where} {error.found}; {member.name} starts from scratch")
        return wanted.model_copy(update={"pretrained": False}), {"started_from": runs.FROM_SCRATCH}
    return wanted, {"started_from": runs.FROM_TIMM} if asked == "if-possible" else {}


# --- the HTER that is shown while training ----------------------------------------------------------------------------


def _watched(job: FoldJob, held_out: np.ndarray) -> np.ndarray:
    """Return the rows that are watched: up to `WATCHED` of those held out, both classes as they come."""
    rng = np.random.default_rng(seed_sequence(job.seed, "watched", job.fold))
    return np.sort(rng.permutation(held_out)[:WATCHED])


def least_hter(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the HTER at the cut that is best for these very logits; None where there is one class only."""
    if labels.min() == labels.max() or not np.isfinite(logits).all():
        return None
    return error_rates(labels, call(logits, fit_threshold(logits, labels))).hter


# --- cleaning ---------------------------------------------------------------------------------------------------------


def _without_issues(one: _Begun, table: runs.FoldTable, place: _Place, say: Say) -> list[FoldJob]:
    """Return a member's jobs without the training rows whose labels confident learning doubts.

    For each fold the same network is cross-fitted within its training rows; the held-out rows have no say in what is
    left out, and none of them is.
    """
    from ensemble.decision.label_issues import find_issues

    if any(one.folder.left_out(job.fold) is None for job in one.jobs):
        parts = {job.fold: _parts(job, table) for job in one.jobs}
        _train_parts(one, parts, table, place, say)
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


def _parts(job: FoldJob, table: runs.FoldTable) -> np.ndarray:
    """Return the part (r,) that each of a fold's training rows is held out with: as many parts as folds."""
    from ensemble.data.folds import assign_folds

    units = np.arange(len(job.rows)) if table.groups is None else table.groups[job.rows]
    try:
        return assign_folds(table.labels[job.rows], units, table.k, job.random_seed("cleaning")).fold_of
    except DataError as error:
        found = f"the training rows of fold {job.fold} cannot be split again ({error.found})"
        raise DataError(f"member {job.config.name}, clean", found, "use fewer --folds, or leave clean out") from None


def _train_parts(one: _Begun, parts: dict[int, np.ndarray], table: runs.FoldTable, place: _Place, say: Say) -> None:
    """Train what finds doubtful labels and is not finished, and write its logits."""
    from ensemble.members.lockstep import Task

    every = [
        (replace(job, rows=job.rows[parts[job.fold] != part], part=part), job.rows[parts[job.fold] == part])
        for job in one.jobs
        for part in range(table.k)
    ]
    cores, todo = _cores([job for job, _ in every], place), []
    for index, (job, _) in enumerate(every):
        assert job.part is not None
        known = one.folder.left_out(job.fold) is not None
        if not known and one.folder.read_part(job.fold, job.part, VIEWS[:1]) is None:
            todo.append(index)
    tasks = []
    for index in todo:
        job, held_out = every[index]
        assert job.part is not None
        state = runs.StateFolder(one.folder.part(job.fold, job.part))
        tasks.append(Task(job, state, one.plan, held_out, VIEWS[:1], None))
    steps = [job.images + len(held_out) for job, held_out in every]
    with progress(sum(steps), f"{one.folder.name}, doubtful labels") as bar:
        bar.skip(sum(steps) - sum(steps[index] for index in todo))
        for place_in_todo, result in _results(tasks, [cores[index] for index in todo], place, bar):
            job, held_out = every[todo[place_in_todo]]
            assert job.part is not None
            for warning in result.warnings:
                say(f"warning: {warning}")
            one.folder.finish_part(job.fold, job.part, table.ids[held_out], result.logits, VIEWS[:1])
