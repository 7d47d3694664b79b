"""Training of fold models: begin members, train the folds that are left, write each trained fold.

`train.py` uses it for the folds of a run, `training_issues.py` for the networks that find doubtful labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.commands.starting_weights import starting_weights
from ensemble.config import VIEWS, WITHOUT_WEIGHTS, ComputeConfig, MemberConfig, seed_sequence
from ensemble.data.classes import class_count
from ensemble.data.folds import FoldTable
from ensemble.data.overlay import Overlay, read_overlay
from ensemble.decision.rates import class_error
from ensemble.decision.threshold import least_hter
from ensemble.errors import ConfigError, ResourceError
from ensemble.progress import Say, progress
from ensemble.runs import files
from ensemble.runs.member import FROM_FILE, FROM_SCRATCH, FROM_TIMM, HubFile, MemberFolder, MemberIdentity
from ensemble.runs.training_state import StateFolder

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import Resources
    from ensemble.members.plans import Plan
    from ensemble.members.tensorboard_log import TensorBoardLog
    from ensemble.members.training import FoldResult
    from ensemble.members.watch import Watch

WATCHED = 2000
"""The number of held-out images of a fold whose HTER, or mean class error, is shown after each epoch. It never affects
training; more images would take longer."""


@dataclass(frozen=True)
class BegunMember:
    """A member that may be trained: its folder, a job for each fold, the plan of its computation, and its overlay."""

    folder: MemberFolder
    jobs: tuple[FoldJob, ...]
    plan: Plan
    overlay: Overlay | None = None


@dataclass(frozen=True)
class JobToTrain:
    """A network to train, and the rows that it predicts afterwards.

    Attributes
    ----------
    job : FoldJob
    plan : Plan
    held_out : int array (h,)
        The rows that the network predicts.
    state : Path
        The folder of its training state.
    done : bool
        Whether it is finished already; it then only counts in the progress bar.
    watch : Watch, optional
    """

    job: FoldJob
    plan: Plan
    held_out: np.ndarray
    state: Path
    done: bool
    watch: Watch | None = None


def begin_members(
    members: Sequence[tuple[MemberFolder, MemberConfig]],
    dataset: Dataset,
    table: FoldTable,
    folds: Sequence[int],
    seed: int,
    resources: Resources,
    say: Say,
) -> list[BegunMember]:
    """Check the members' configs, make their jobs, choose their plans, and begin their folders."""
    from ensemble.members.backbones import check
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import cores_of_jobs
    from ensemble.members.processes import MappedPixels

    pixels, jobs, requests, classes = MappedPixels(dataset.pixels), [], [], class_count(dataset.classes)
    for folder, member in members:
        weights, sha256 = starting_weights(member, dataset, table, folds)
        check(member, dataset.size[0], weights[0], say, classes)
        requested = member.model_dump(mode="json", exclude={"weights"})
        requested["weights"] = sha256
        overlay = None
        if member.overlay is not None:
            overlay = read_overlay(member.overlay, table.ids, table.labels, dataset.classes)
        requested["overlay"] = None if overlay is None else overlay.sha256
        config, origin = _with_origin(folder, member, dataset.size[0], say)
        file = _hub_file(folder, config, dataset.size[0], folds) if config.pretrained and not config.weights else None
        address = None if file is None else file.address
        for fold, of_fold in zip(folds, weights, strict=True):
            arrays = {key: value.numpy() for key, value in of_fold.items()} if of_fold is not None else None
            rows = np.flatnonzero(table.fold_of != fold)
            job = FoldJob(config, pixels, table.labels, table.ids, rows, fold, seed, arrays, address, classes=classes)
            jobs.append(job)
        requests.append((requested, origin, overlay, file))
    begun, cores = [], cores_of_jobs(jobs, resources)
    for index, ((folder, member), (requested, origin, overlay, file)) in enumerate(zip(members, requests, strict=True)):
        first = index * len(folds)
        of_member = tuple(jobs[first : first + len(folds)])
        plan = _plan(folder, of_member[0], folds, resources, cores[first], say)
        # a member that goes on with other convolutions keeps the record of those that it was begun with
        convolutions = folder.read().convolutions if folder.has_begun else plan.convolutions
        folder.begin(
            requested,
            MemberIdentity(dataset.fingerprint, seed, plan.precision, convolutions, origin),
            MemberConfig.model_validate({"arch": member.arch}).model_dump(mode="json"),
        )
        if file is not None and folder.read().pretrained_from is None:
            folder.update(pretrained_from=file)
        begun.append(BegunMember(folder, of_member, plan, overlay))
    return begun


def train_jobs(
    jobs: Sequence[JobToTrain],
    views: Sequence[str],
    title: str,
    resources: Resources,
    say: Say,
    on_epoch: Callable[[], None] | None = None,
) -> Iterator[tuple[int, FoldResult, int]]:
    """Train the jobs that are not done, in parallel; yield each one's index in `jobs`, its result and its threads.

    `on_epoch` is called in this process after each epoch of each job, once its history is written.
    """
    from ensemble.members.parallel import Task, cores_of_jobs, train_tasks

    cores = cores_of_jobs([each.job for each in jobs], resources)
    todo = [index for index, each in enumerate(jobs) if not each.done]
    tasks = [
        Task(each.job, StateFolder(each.state, resources.save_every), each.plan, each.held_out, views, each.watch)
        for each in (jobs[index] for index in todo)
    ]
    steps = [each.job.images + len(each.held_out) * len(views) for each in jobs]
    with progress(sum(steps), title) as bar:
        bar.on_note = on_epoch
        bar.skip(sum(steps) - sum(steps[index] for index in todo))
        for position, result in train_tasks(tasks, [cores[index] for index in todo], resources, bar):
            for warning in result.warnings:
                say(f"warning: {warning}")
            yield todo[position], result, len(cores[todo[position]])


def finish_folds(
    begun: Sequence[BegunMember], table: FoldTable, resources: Resources, say: Say, log: TensorBoardLog | None = None
) -> None:
    """Train the folds that are not finished, and write them; `log` follows the epochs of all of them."""
    owners, jobs = [], []
    for member in begun:
        for job in member.jobs:
            folder, held_out = member.folder, np.flatnonzero(table.fold_of == job.fold)
            done = folder.has_fold(job.fold)
            if done:
                folder.remove_state(job.fold)
            elif folder.has_oof(job.fold):
                problem = f"files of fold {job.fold} are missing or damaged"
                say(f"warning: member {folder.name}: {problem}; it is trained again")
            if done and not (folder.fold(job.fold) / "training.png").exists():
                _draw_training(folder, job.fold, folder.history(job.fold))
            if log is not None:
                if done:
                    log.write(_log_name(folder, job.fold), folder.history(job.fold))
                else:
                    log.follow(_log_name(folder, job.fold), folder.history_path(job.fold))
            watch = None if done else _watch(job, held_out)
            jobs.append(JobToTrain(job, member.plan, held_out, folder.fold(job.fold), done, watch))
            owners.append(folder)
    names = begun[0].folder.name if len(begun) == 1 else f"{len(begun)} members"
    folds = f"{len(begun[0].jobs)} folds" if len(begun[0].jobs) > 1 else f"fold {begun[0].jobs[0].fold}"
    on_epoch = None if log is None else log.update
    for index, result, threads in train_jobs(jobs, VIEWS, f"{names}, {folds}", resources, say, on_epoch):
        if log is not None:
            log.finish(_log_name(owners[index], jobs[index].job.fold), result.history)
        _write_fold(owners[index], jobs[index], table.ids, result, str(resources.device), threads)


@contextlib.contextmanager
def opened_log(run: Path, compute: ComputeConfig) -> Iterator[TensorBoardLog | None]:
    """Open the log of a run's trainings, which lies in `tensorboard/` in its folder; None where none is requested."""
    if compute.log is None:
        yield None
        return
    from ensemble.members.tensorboard_log import TensorBoardLog

    with contextlib.closing(TensorBoardLog(run / compute.log)) as log:
        yield log


def _log_name(folder: MemberFolder, fold: int) -> str:
    return f"{folder.name}/fold-{fold}"


def _write_fold(
    folder: MemberFolder, trained: JobToTrain, ids: np.ndarray, result: FoldResult, device: str, threads: int
) -> None:
    fold = trained.job.fold
    _draw_training(folder, fold, result.history)
    folder.finish_fold(
        fold,
        result.weights,
        ids[trained.held_out],
        result.logits,
        VIEWS,
        epochs=len(result.history),
        training_seconds=round(sum(epoch["seconds"] for epoch in result.history), 1),
        seconds=round(result.seconds, 1),
        device=device,
        threads=threads,
        micro_batches=result.micro_batches,
    )
    folder.update(parameters=result.parameters)


def _draw_training(folder: MemberFolder, fold: int, history: Sequence[Mapping[str, Any]]) -> None:
    from ensemble.reports.figures import training_figure

    figure = training_figure(f"{folder.name}, fold {fold}", history)
    files.write_whole(folder.fold(fold) / "training.png", figure)


def _plan(
    folder: MemberFolder, job: FoldJob, folds: Sequence[int], resources: Resources, cores: list[int], say: Say
) -> Plan:
    """Return the plan by which a begun member goes on, as far as this device can compute it; else the fastest plan."""
    from ensemble.members.plans import Plan, continued
    from ensemble.members.probe import choose_plan

    member, size, pool = job.config, job.pixels.shape[1], resources.pool()
    if folder.has_begun:
        facts = folder.read()
        begun = Plan(facts.precision, facts.convolutions)
        going_on = pool.call(continued, begun, resources.device, member.input_size or size)
        if going_on is not None:
            plan: Plan
            said: str
            plan, said = going_on
            if said and not all(map(folder.has_fold, folds)):
                slow = "; it takes many times as long as where it was begun" if "emulates" in said else ""
                say(f"{'warning' if slow else 'note'}: member {folder.name} {said}{slow}")
            return plan
    batches = job.images // job.batch_size
    if resources.device.type != "cpu":  # a GPU compiles once for all folds of a process
        batches *= max(1, len(folds) // resources.processes_on_gpus)
    plan = pool.call(choose_plan, member, resources.device, size, "train", batches, len(cores), job.classes)
    return plan


def _with_origin(folder: MemberFolder, member: MemberConfig, size: int, say: Say) -> tuple[MemberConfig, str | None]:
    """Return the config with `pretrained` True or False, and for `if-possible`, what the member starts from.

    Raises
    ------
    ResourceError
        Pretrained weights are requested and not available.
    """
    from ensemble.members.backbones import build

    requested = member.pretrained
    unset = "pretrained" not in member.model_fields_set and member.weights is None
    if member.arch in WITHOUT_WEIGHTS and unset and not folder.has_begun:
        say(f"note: {member.arch} has no pretrained weights; member {member.name} starts from scratch")
    settled = member.model_copy(update={"pretrained": bool(requested)})
    if not requested or folder.has_begun or member.weights is not None:
        if requested != "if-possible":
            return settled, None
        origin = folder.read().started_from if folder.has_begun else FROM_FILE
        return settled.model_copy(update={"pretrained": origin != FROM_SCRATCH}), origin
    try:
        build(settled, size)
    except (ResourceError, ConfigError) as error:
        if requested != "if-possible":
            raise
        say(f"warning: {error.where} {error.found}; {member.name} starts from scratch")
        return settled.model_copy(update={"pretrained": False}), FROM_SCRATCH
    return settled, FROM_TIMM if requested == "if-possible" else None


def _hub_file(folder: MemberFolder, member: MemberConfig, size: int, folds: Sequence[int]) -> HubFile | None:
    """Return the file of the model hub that all folds start from; a begun member goes on with the recorded one.

    Raises
    ------
    ResourceError
        A fold must start from the recorded file, which is neither cached nor available.
    ArtifactError
        The hub has another file at the recorded commit.
    """
    from ensemble.members.backbones import build
    from ensemble.members.hub_cache import hub_file

    recorded = folder.read().pretrained_from if folder.has_begun else None
    if recorded is None:
        return hub_file(member.timm_name)
    if not all(folder.has_fold(fold) or any(folder.fold(fold).glob("state/*")) for fold in folds):
        build(member, size, address=recorded.address)
        files.refuse_differences(
            f"pretrained weights of member {folder.name}",
            asdict(recorded),
            asdict(hub_file(member.timm_name, recorded.address) or recorded),
            "give another --name",
        )
    return recorded


def _watch(job: FoldJob, held_out: np.ndarray) -> Watch:
    """Return the measurement after each epoch, on up to `WATCHED` of the held-out rows, drawn at random."""
    from ensemble.members.watch import Watch

    rng = np.random.default_rng(seed_sequence(job.seed, "watched", job.fold))
    rows = np.sort(rng.permutation(held_out)[:WATCHED])
    return Watch(rows, least_hter) if job.classes == 2 else Watch(rows, class_error, "class-error")
