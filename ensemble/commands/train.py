"""`thera train-member` and `thera trial`: train members on the folds of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.commands.clean import without_issues
from ensemble.commands.report import assess_member, origin
from ensemble.config import (
    VIEWS,
    ComputeConfig,
    DataConfig,
    MemberConfig,
    RunConfig,
    seed_sequence,
)
from ensemble.data.folds import FoldTable
from ensemble.decision.rates import call, error_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, ConfigError, DataError, ResourceError, some
from ensemble.progress import Say, progress
from ensemble.reports.comparison_tables import trial_table
from ensemble.reports.tables import (
    Table,
    explained,
    member_table,
    report_markdown,
)
from ensemble.runs import files
from ensemble.runs.member import FROM_FILE, FROM_SCRATCH, FROM_TIMM, MemberFolder, StateFolder
from ensemble.runs.run import Run

if TYPE_CHECKING:
    from ensemble.data.source import Dataset
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import Resources
    from ensemble.members.plans import Plan
    from ensemble.members.training import FoldResult


WATCHED = 2000
"""Held-out images of a fold whose HTER is shown after each epoch; nothing is chosen by it."""


@dataclass(frozen=True)
class BegunMember:
    """A member that may be trained: its folder, a job for each fold to train, and how it is computed."""

    folder: MemberFolder
    jobs: list[FoldJob]
    plan: Plan


def train_member(
    folder: Path, member: MemberConfig, data: DataConfig, folds: int, seed: int, compute: ComputeConfig, say: Say
) -> Table:
    """Train one member on every fold that is not finished yet, and return the table of its OOF report.

    Raises
    ------
    ArtifactError
        The run, or this member, was begun with other data, folds, seed or config.
    """
    return train_members(folder, (member,), data, folds, seed, compute, say)[0]


def train_members(
    folder: Path,
    members: Sequence[MemberConfig],
    data: DataConfig,
    folds: int,
    seed: int,
    compute: ComputeConfig,
    say: Say,
) -> list[Table]:
    """Train several as `train_member` does one, their folds side by side."""
    started, run, tables = time.time(), Run(folder), []
    with _trained(run, members, data, folds, seed, compute, say) as (own, table):
        for member in own:
            oof = assess_member(member, table, seed)
            member.update(oof=oof.to_json())
            (shown,) = explained([member_table(oof, VIEWS, origin(member))], deployed=False)
            files.write_whole(member.folder / "report.md", report_markdown(f"Member {member.name}", [shown]).encode())
            tables.append(shown)
    run.record(f"train-member {' '.join(member.name for member in own)}", started)
    return tables


@contextlib.contextmanager
def _trained(
    run: Run,
    members: Sequence[MemberConfig],
    data: DataConfig,
    folds: int,
    seed: int,
    compute: ComputeConfig,
    say: Say,
    only: int | None = None,
) -> Iterator[tuple[list[MemberFolder], FoldTable]]:
    """Train what is not finished, `only` one fold where it is given; hold the members' folders meanwhile."""
    from ensemble.members.inference import choose_device

    own = [run.member(member.name) for member in members]
    choose_device(compute.device)  # a wrong one is said before the images are read
    with contextlib.ExitStack() as locks:
        for member in own:
            locks.enter_context(files.locked(member.folder))
        dataset = _labelled(data, run, say)
        table = _begin(run, dataset, data, folds, seed)
        train_folds(list(zip(own, members, strict=True)), dataset, table, seed, compute, say, only)
        yield own, table


def trial(config: RunConfig, fold: int, compute: ComputeConfig, say: Say) -> Table:
    """Train one fold of every member, and return the table that compares them on the rows of that fold.

    What is chosen by it has seen that fold's labels: the other folds have not had a say. `run_config` goes on from it.

    Raises
    ------
    ConfigError
        There is no such fold.
    """
    if not 0 <= fold < config.folds:
        raise ConfigError("--fold", f"must be 0 to {config.folds - 1}; got {fold}")
    started, run = time.time(), Run(config.run)
    with _trained(run, config.members, config.data, config.folds, config.seed, compute, say, fold) as (own, table):
        labels = table.labels[table.fold_of == fold]
        logits = {member.name: member.read_oof(fold, VIEWS)[1].mean(axis=1) for member in own}
        facts = {member.name: member.read()["folds"][str(fold)] for member in own}
    run.record(f"trial of fold {fold}: {' '.join(logits)}", started)
    groups = None if table.groups is None else table.groups[table.fold_of == fold]
    shown = trial_table(fold, logits, labels, groups, config.seed, facts, VIEWS)
    files.write_whole(config.run / f"trial-{fold}.md", report_markdown(f"Trial of fold {fold}", [shown]).encode())
    return shown


def _labelled(data: DataConfig, run: Run, say: Say) -> Dataset:
    dataset = load_images(data.images, data.labels, data.resize, run, say)
    if dataset.labels is None:
        raise DataError(data.images, "has no labels", "give --labels")
    return dataset


def load_images(images: Path, labels: Path | None, resize: int | None, run: Run, say: Say) -> Dataset:
    from ensemble.data.source import open_source
    from ensemble.data.store import load_dataset

    dataset = load_dataset(open_source(images, labels), run.pixels, resize)
    for note in dataset.notes:
        say(f"note: {images}: {note}")
    return dataset


def _begin(run: Run, dataset: Dataset, data: DataConfig, folds: int, seed: int) -> FoldTable:
    """Start the run, or make sure that it is the same one; return its folds, which are assigned once.

    Raises
    ------
    ArtifactError
        The run was begun with another seed, other folds or other data.
    """
    from ensemble.data.folds import assign_folds, together

    assert dataset.labels is not None
    identity = {
        "seed": seed,
        "folds": folds,
        "n": len(dataset),
        "size": list(dataset.size),
        "resize": data.resize,
    }
    facts = {
        "fingerprint": dataset.fingerprint,
        "images": str(data.images),
        "labels": str(data.labels or data.images),
        "notes": list(dataset.notes),
    }
    if (run.folder / "folds.csv").exists():
        run.begin(identity, facts)
    else:  # nothing is begun before the folds are possible
        units = together(dataset.digests, dataset.groups)
        fold_of = assign_folds(dataset.labels, units, folds, seed).fold_of
        run.begin(identity, facts)
        alone = dataset.groups is None and np.unique(units).size == units.size
        run.write_folds(FoldTable(dataset.ids, dataset.labels, fold_of, None if alone else units))
    table = run.read_folds()
    if changed := _changed_since(table, run.read()["fingerprint"], dataset):
        raise ArtifactError(run.folder, f"was begun with other data: {changed}", "restore them, or use another --run")
    return table


def _changed_since(table: FoldTable, fingerprint: str, dataset: Dataset) -> str:
    """Return what differs between the data that a run was begun with and the data at hand; nothing if nothing does."""
    if not np.array_equal(table.ids, dataset.ids):
        only = sorted(set(dataset.ids.tolist()) ^ set(table.ids.tolist()))
        return f"{len(only)} images are in one of the two only ({some(only)})" if only else "the images' order"
    assert dataset.labels is not None
    relabelled = table.ids[table.labels != dataset.labels].tolist()
    if relabelled:
        return f"{len(relabelled)} labels changed ({some(relabelled)})"
    return "" if fingerprint == dataset.fingerprint else "image files or groups changed"


def train_folds(
    members: Sequence[tuple[MemberFolder, MemberConfig]],
    dataset: Dataset,
    table: FoldTable,
    seed: int,
    compute: ComputeConfig,
    say: Say,
    only: int | None = None,
) -> None:
    """Train members on every fold that is not finished, and write weights, OOF logits, history and curves.

    The folds of all members are computed side by side, as many at once as the compute has cores for; `only` one fold of
    each, where it is given.

    Raises
    ------
    ArtifactError
        A member was begun with other data, another seed or config.
    """
    from ensemble.members.parallel import Resources

    resources = Resources.of(compute)
    folds = range(table.k) if only is None else (only,)
    begun = _begin_members(members, dataset, table, folds, seed, resources, say)
    for index, one in enumerate(begun):
        if one.jobs[0].config.clean:
            begun[index] = replace(one, jobs=without_issues(one, table, resources, say))
    _finish(begun, table, resources, say)


def _begin_members(
    members: Sequence[tuple[MemberFolder, MemberConfig]],
    dataset: Dataset,
    table: FoldTable,
    folds: Sequence[int],
    seed: int,
    resources: Resources,
    say: Say,
) -> list[BegunMember]:
    from ensemble.members.backbones import check
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import cores_of_jobs
    from ensemble.members.processes import MappedPixels

    pixels, jobs, facts = MappedPixels(dataset.pixels), [], []
    for folder, member in members:
        weights = files.read_tensors(member.weights) if member.weights else None
        check(member, dataset.size[0], weights)
        asked = member.model_dump(mode="json", exclude={"weights"})
        asked["weights"] = files.file_sha256(member.weights) if member.weights else None
        config, origin = _withorigin(folder, member, dataset.size[0], say)
        arrays = {key: value.numpy() for key, value in weights.items()} if weights is not None else None
        for fold in folds:
            rows = np.flatnonzero(table.fold_of != fold)
            jobs.append(FoldJob(config, pixels, table.labels, table.ids, rows, fold, seed, arrays))
        facts.append((asked, origin))
    begun, cores = [], cores_of_jobs(jobs, resources)
    for index, ((folder, member), (asked, origin)) in enumerate(zip(members, facts, strict=True)):
        own = slice(index * len(folds), (index + 1) * len(folds))
        plan = _plan(folder, jobs[own][0], folds, resources, cores[own][0], say)
        folder.begin(
            asked,
            {"fingerprint": dataset.fingerprint, "seed": seed, **dataclasses.asdict(plan), **origin},
            MemberConfig.model_validate({"arch": member.arch}).model_dump(mode="json"),
        )
        begun.append(BegunMember(folder, jobs[own], plan))
    return begun


def _finish(begun: Sequence[BegunMember], table: FoldTable, resources: Resources, say: Say) -> None:
    """Train what is not finished, and write it."""
    from ensemble.members.parallel import Task, cores_of_jobs, train_tasks
    from ensemble.members.training import Watch

    every = [(one, job) for one in begun for job in one.jobs]
    cores = cores_of_jobs([job for _, job in every], resources)
    held_out = [np.flatnonzero(table.fold_of == fold) for fold in range(table.k)]
    todo = [index for index, (one, job) in enumerate(every) if not one.folder.has_fold(job.fold)]
    for index, (one, job) in enumerate(every):
        if index not in todo and not (one.folder.fold(job.fold) / "training.png").exists():
            _draw(one.folder, job.fold)
    tasks = []
    for index in todo:
        one, job = every[index]
        rows = held_out[job.fold]
        watch, state = Watch(_watched(job, rows), least_hter), StateFolder(one.folder.fold(job.fold))
        tasks.append(Task(job, state, one.plan, rows, VIEWS, watch))
    steps = [job.images + len(held_out[job.fold]) * len(VIEWS) for _, job in every]
    names = begun[0].folder.name if len(begun) == 1 else f"{len(begun)} members"
    folds = f"{len(begun[0].jobs)} folds" if len(begun[0].jobs) > 1 else f"fold {begun[0].jobs[0].fold}"
    with progress(sum(steps), f"{names}, {folds}") as bar:
        bar.skip(sum(steps) - sum(steps[index] for index in todo))
        for place_in_todo, result in train_tasks(tasks, [cores[index] for index in todo], resources, bar):
            index = todo[place_in_todo]
            one, job = every[index]
            for warning in result.warnings:
                say(f"warning: {warning}")
            _write(one.folder, job.fold, table.ids[held_out[job.fold]], result, resources, len(cores[index]))


def _write(
    folder: MemberFolder, fold: int, ids: np.ndarray, result: FoldResult, resources: Resources, threads: int
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
        device=str(resources.device),
        threads=threads,
    )
    folder.update(parameters=result.parameters)


def _draw(folder: MemberFolder, fold: int) -> None:
    from ensemble.reports.figures import training_figure

    figure = training_figure(f"{folder.name}, fold {fold}", folder.history(fold))
    files.write_whole(folder.fold(fold) / "training.png", figure)


def _plan(
    folder: MemberFolder, job: FoldJob, folds: Sequence[int], resources: Resources, cores: list[int], say: Say
) -> Plan:
    """Return how a member is computed: as it was begun, where this device can do so, else by what is fastest."""
    from ensemble.members.plans import Plan, choose_plan, least_size, possible_plans

    member, size = job.config, job.pixels.shape[1]
    if folder.has_begun:
        begun = Plan(folder.read()["precision"], folder.read().get("convolutions", "native"))
        asked = member.precision, member.convolutions, resources.device, least_size(member, size)
        if begun in possible_plans(*asked, "train", emulated=True):
            if begun not in possible_plans(*asked, "train") and not all(map(folder.has_fold, folds)):
                found = f"goes on in {begun.precision} as it was begun, which this CPU only emulates"
                say(f"warning: member {folder.name} {found}; it takes many times as long as where it was begun")
            return begun
    batches = job.images // job.batch_size
    if resources.device.type != "cpu":  # compiled once for all folds of a process
        batches *= max(1, len(folds) // (resources.jobs or 1))
    return choose_plan(member, resources.device, size, "train", batches, len(cores))


def _withorigin(folder: MemberFolder, member: MemberConfig, size: int, say: Say) -> tuple[MemberConfig, dict[str, Any]]:
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
        origin = folder.read().get("started_from") if folder.has_begun else FROM_FILE
        return wanted.model_copy(update={"pretrained": origin != FROM_SCRATCH}), {"started_from": origin}
    try:
        build(wanted, size)
    except (ResourceError, ConfigError) as error:
        if asked != "if-possible":
            raise
        say(f"warning: {error.where} {error.found}; {member.name} starts from scratch")
        return wanted.model_copy(update={"pretrained": False}), {"started_from": FROM_SCRATCH}
    return wanted, {"started_from": FROM_TIMM} if asked == "if-possible" else {}


def _watched(job: FoldJob, held_out: np.ndarray) -> np.ndarray:
    """Return the rows that are watched: up to `WATCHED` of those held out, both classes as they come."""
    rng = np.random.default_rng(seed_sequence(job.seed, "watched", job.fold))
    return np.sort(rng.permutation(held_out)[:WATCHED])


def least_hter(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the HTER at the cut that is best for these very logits; None where there is one class only."""
    if labels.min() == labels.max() or not np.isfinite(logits).all():
        return None
    return error_rates(labels, call(logits, fit_threshold(logits, labels))).hter
