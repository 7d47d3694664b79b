"""`thera distil`: trains one small network to answer like the stack of a run.

The student of a fold learns from the fold models of the same fold, and from a stacker that is fitted without that fold:
no label of a held-out row reaches it, so that its OOF logits measure it as those of any member do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.checks import check_compute, check_members
from ensemble.commands.evaluate import compare
from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.fold_jobs import BegunMember, begin_members, finish_folds
from ensemble.commands.fold_logits import unkept_fold_logits
from ensemble.commands.report import report_member
from ensemble.commands.training_images import training_pixels
from ensemble.config import ComputeConfig, MemberConfig
from ensemble.data.dataset import Dataset, Source
from ensemble.data.folds import FoldTable
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.decision.distillation import soft_targets
from ensemble.distil_config import DistilConfig, StudentConfig
from ensemble.distil_results import Cost, DistilResult
from ensemble.errors import ArtifactError, ConfigError, printable
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictConfig, PredictOptions
from ensemble.progress import Say, silent
from ensemble.reports.documents import member_markdown
from ensemble.runs import files
from ensemble.runs.distilled import Distilled, begin_distilled, read_teacher_logits, write_teacher_logits
from ensemble.runs.locks import locked
from ensemble.runs.member import MemberFolder
from ensemble.runs.run import Run

if TYPE_CHECKING:
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import Resources


@dataclass(frozen=True)
class _Lesson:
    """The images that a student may learn from: those of the run, then those without labels."""

    run: Run
    table: FoldTable
    decision: Decision | ClassDecision
    labelled: Dataset
    unlabelled: Dataset | None
    config: DistilConfig

    @property
    def sets(self) -> list[Dataset]:
        return [self.labelled, *([] if self.unlabelled is None else [self.unlabelled])]

    @property
    def ids(self) -> np.ndarray:
        """The names of all images; those without labels have a prefix, so that all differ."""
        extra = [] if self.unlabelled is None else [f"unlabelled/{name}" for name in self.unlabelled.ids.tolist()]
        return np.array([*self.table.ids.tolist(), *extra], np.str_)


def distil(
    run: Path,
    config: DistilConfig | None = None,
    student: StudentConfig | None = None,
    compute: ComputeConfig | None = None,
    say: Say = silent,
) -> DistilResult:
    """Train a student on the answers of a run's stack, and compare the two out of fold.

    Interrupted, the same call goes on from the last saved state.

    Parameters
    ----------
    run : Path
        A run with a decision, the weights of its members, and its decoded images or their files.
    config : DistilConfig, optional
    student : StudentConfig, optional
        By default, small_cnn.
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ArtifactError
        The decision, weights or images are missing, or the student was begun differently.
    ConfigError
        The student would be its own teacher.
    DataError
        Images without labels cannot be used.
    """
    refuse_missing("train", "thera distil")
    config, student, compute = config or DistilConfig(), student or StudentConfig(), compute or ComputeConfig()
    started, folder = time.time(), Run(run)
    check_compute(compute.device, compute.log)
    facts, table, decision = folder.read(), folder.read_folds(), read_decisions(folder, say).tta
    member, own = folder.member(student.name), student.member
    check_members([own])
    parents = _parents(folder, decision.stacker.members, member.name, facts.folds)
    source = _open(config, facts.class_count)
    with locked(member.folder):
        lesson = _lesson(folder, table, decision, source, config, say)
        resources, begun = _begin(lesson, member, own, parents, compute, say)
        targets = [_targets(lesson, fold, logits) for fold, logits in enumerate(_teacher(lesson, member, compute))]
        jobs = tuple(_with_targets(begun, lesson, fold, targets[fold]) for fold in range(table.k))
        finish_folds([replace(begun, jobs=jobs)], table, resources, say)
        report = report_member(member, table, facts.seed, facts.classes)
        member.update(oof=asdict(report.assessment))
        files.write_whole(member.folder / "report.md", member_markdown(report).encode())
    folder.record(f"distil {member.name}", started)
    comparison = compare(run, member.folder, say=silent)
    costs = _costs(folder, decision, member, lesson.labelled, resources)
    return DistilResult(run, report, comparison, *costs)


def _parents(run: Run, teachers: Sequence[str], student: str, folds: int) -> dict[str, dict[str, str]]:
    """Return the hashes of the teachers' weights by member and fold, once all of these files are there."""
    if student in teachers:
        problem = f"{student} is in the stack that would be its teacher"
        raise ConfigError("--name", problem, "give another --name, or fit the stack without it")
    parents = {}
    for name in teachers:
        of_member = run.member(name)
        for fold in range(folds):
            of_member.weights(fold)
        parents[name] = {str(fold): of_member.weights_sha256(fold) for fold in range(folds)}
    return parents


def _open(config: DistilConfig, classes: int) -> Source | None:
    if config.unlabelled is None:
        return None
    from ensemble.data.source import open_unlabelled

    images = PredictConfig(images=config.unlabelled, on_bad=config.on_bad, follow_links=config.follow_links)
    return open_unlabelled(images, classes)


def _lesson(
    run: Run,
    table: FoldTable,
    decision: Decision | ClassDecision,
    source: Source | None,
    config: DistilConfig,
    say: Say,
) -> _Lesson:
    from ensemble.data.store import load_dataset

    facts = run.read()
    pixels = training_pixels(run, facts, table, say)
    if isinstance(pixels, str):
        raise ArtifactError(printable(run.folder), f"has no images to learn from: {pixels}", "restore them")
    digests = run.read_images()
    digests = np.full(len(table.ids), b"", "S64") if digests is None else digests
    labelled = Dataset(
        ids=table.ids,
        labels=table.labels,
        groups=table.groups,
        pixels=pixels,
        digests=digests,
        fingerprint=facts.fingerprint,
        classes=facts.classes,
        exif=facts.exif,
    )
    unlabelled = None
    if source is not None:
        unlabelled = load_dataset(source, run.pixels, facts.resize, say=say, on_bad=config.on_bad, exif=facts.exif)
        if tuple(unlabelled.size) != tuple(labelled.size):
            height, width = unlabelled.size
            problem = f"images are {width} × {height} pixels, those of the run {labelled.size[1]} × {labelled.size[0]}"
            raise ArtifactError(source.where, problem, "give images of the same size")
    return _Lesson(run, table, decision, labelled, unlabelled, config)


def _begin(
    lesson: _Lesson,
    member: MemberFolder,
    config: MemberConfig,
    parents: dict[str, dict[str, str]],
    compute: ComputeConfig,
    say: Say,
) -> tuple[Resources, BegunMember]:
    from ensemble.members.parallel import Resources

    decision, extra, resources = lesson.decision, lesson.unlabelled, Resources.of(compute)
    facts = Distilled(
        teachers=decision.stacker.members,
        stacker=decision.kind,
        parents=parents,
        teacher_weight=lesson.config.teacher_weight,
        temperature=lesson.config.temperature,
        held_out=lesson.config.held_out,
        unlabelled=0 if extra is None else len(extra),
        unlabelled_sha256="" if extra is None else extra.fingerprint,
    )
    begin_distilled(member, facts)
    seed, folds = lesson.run.read().seed, range(lesson.table.k)
    (begun,) = begin_members([(member, config)], lesson.labelled, lesson.table, folds, seed, resources, say)
    return resources, begun


def _teacher(lesson: _Lesson, member: MemberFolder, compute: ComputeConfig) -> list[np.ndarray]:
    """Return the teacher's logits (n,) or (n, C) for each fold; they are computed once and kept.

    A fold's teacher has the fold models of that fold, and a stacker that is fitted to the OOF logits of other folds.
    """
    ids, decision, folds = lesson.ids, lesson.decision, range(lesson.table.k)
    kept = [read_teacher_logits(member, fold, ids) for fold in folds]
    if any(logits is None for logits in kept):
        oof = averaged_oof(lesson.run, decision.stacker.members, decision.views)
        of_sets = [
            unkept_fold_logits(lesson.run, decision, each, PredictOptions(), compute).by_fold for each in lesson.sets
        ]
        by_fold = np.concatenate(of_sets)
        for fold in folds:
            stacker = oof.rows.without(fold).any_stacker(decision.kind)
            write_teacher_logits(member, fold, ids, stacker.apply(by_fold[:, :, fold]))
    read = [read_teacher_logits(member, fold, ids) for fold in folds]
    return [logits for logits in read if logits is not None]


def _targets(lesson: _Lesson, fold: int, logits: np.ndarray) -> np.ndarray:
    """Return what the student of a fold learns, (n,) or (n, C), of all images."""
    training, config = np.flatnonzero(lesson.table.fold_of != fold), lesson.config
    return soft_targets(logits, lesson.table.labels, training, config.teacher_weight, config.temperature)


def _with_targets(begun: BegunMember, lesson: _Lesson, fold: int, targets: np.ndarray) -> FoldJob:
    from ensemble.members.joined_pixels import JoinedPixels
    from ensemble.members.processes import MappedPixels

    job, n = begun.jobs[fold], len(lesson.table.ids)
    extra = np.arange(n, len(targets))
    # Labels of images without one are never read; those of held-out rows only by the measurement after each epoch.
    labels = np.concatenate((lesson.table.labels, np.zeros(len(extra), np.int8)))
    rows = np.arange(n) if lesson.config.held_out else job.rows
    mapped = job.mapped if not len(extra) else JoinedPixels(tuple(MappedPixels(each.pixels) for each in lesson.sets))
    return replace(
        job, mapped=mapped, labels=labels, ids=lesson.ids, rows=np.concatenate((rows, extra)), targets=targets
    )


def _costs(
    run: Run, decision: Decision | ClassDecision, student: MemberFolder, images: Dataset, resources: Resources
) -> tuple[Cost, Cost]:
    """Return what teacher and student cost, by the probed speed of each network."""
    from ensemble.members.inference import cost_per_image
    from ensemble.members.plans import Plan
    from ensemble.members.predictor import Predictor

    facts, teachers = run.read(), [run.member(name) for name in decision.stacker.members]
    passes = facts.folds * len(decision.views)

    def cost(members: Sequence[MemberFolder]) -> Cost:
        seconds, parameters = 0.0, 0
        with Predictor(images.pixels, passes * len(members), resources) as predictor:
            for member in members:
                of_member = member.read()
                as_trained = Plan(of_member.precision, of_member.convolutions)
                spec = predictor.spec(of_member.current_config, as_trained, facts.folds, facts.class_count)
                parameters += facts.folds * (of_member.parameters or 0)
                if resources.device.type == "cpu":
                    seconds += passes * cost_per_image(spec, predictor.threads)
        return Cost(facts.folds * len(members), parameters, 1 / seconds if seconds else None)

    return cost(teachers), cost([student])
