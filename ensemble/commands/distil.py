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

from ensemble.commands.checks import announce, check_compute, check_members
from ensemble.commands.evaluate import compare_sides, member_side, stack_side
from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.fold_jobs import BegunMember, begin_members, finish_folds, opened_log
from ensemble.commands.fold_logits import kept_fold_logits, unkept_fold_logits
from ensemble.commands.report import report_member
from ensemble.commands.training_images import training_pixels
from ensemble.config import VIEWS, ComputeConfig, DecisionConfig
from ensemble.data.dataset import Dataset, Source
from ensemble.data.folds import FoldTable
from ensemble.decision.class_objective import ClassObjective, parse_objective
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision
from ensemble.decision.distillation import soft_targets
from ensemble.decision.fold_offsets import FoldOffset
from ensemble.decision.objective import Objective
from ensemble.distil_config import DistilConfig, StudentConfig
from ensemble.distil_results import Cost, DistilResult
from ensemble.errors import ArtifactError, ConfigError, printable
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictConfig, PredictOptions
from ensemble.progress import Say, silent
from ensemble.reports.documents import member_markdown
from ensemble.runs import files
from ensemble.runs.distilled import (
    Distilled,
    begin_distilled,
    read_distilled,
    read_teacher_logits,
    refuse_other_teacher,
    teacher_path,
    write_teacher_logits,
)
from ensemble.runs.locks import locked
from ensemble.runs.member import MemberFolder
from ensemble.runs.run import BAD_IMAGES, Run, bad_images_table

if TYPE_CHECKING:
    from ensemble.members.fold_job import FoldJob
    from ensemble.members.parallel import Resources


@dataclass(frozen=True)
class _Teacher:
    """A stack of members of the run: what it is made of, and what its threshold minimises."""

    members: tuple[str, ...]
    kind: str
    objective: Objective | ClassObjective
    offsets: tuple[FoldOffset, ...] | None = None


@dataclass(frozen=True)
class _Lesson:
    """The images that a student may learn from: those of the run, then those without labels."""

    run: Run
    table: FoldTable
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

    def rows(self, fold: int) -> np.ndarray:
        """Return the rows that the student of a fold learns from, int array (r,).

        Where it must not see the held-out images, copies of them among the images without labels are left out too.
        """
        n, held_out = len(self.table.ids), self.table.fold_of == fold
        extra = np.arange(n, len(self.ids))
        if self.config.held_out:
            return np.concatenate((np.arange(n), extra))
        if self.unlabelled is not None:
            extra = extra[~np.isin(self.unlabelled.digests, self.labelled.digests[held_out])]
        return np.concatenate((np.flatnonzero(~held_out), extra))


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
    check_compute(compute)
    facts, table = folder.read(), folder.read_folds()
    member, own = folder.member(student.name), student.member
    check_members([own])
    teacher = _teacher(folder, config, facts.class_count, say)
    recorded = _recorded(folder, teacher, config, member.name)
    refuse_other_teacher(member, recorded)
    source = _open(config, facts.class_count)
    with folder.removed_unless_begun([member]), locked(member.folder):
        from ensemble.cluster.resources import resources_of  # from here on, imports take seconds

        resources, lesson = resources_of(compute, say), _lesson(folder, table, source, config, say)
        if (extra := lesson.unlabelled) is not None:
            recorded = replace(recorded, unlabelled=len(extra), unlabelled_sha256=extra.fingerprint)
        begin_distilled(member, recorded)
        if extra is not None and extra.bad:
            files.write_whole(member.folder / BAD_IMAGES, bad_images_table(extra.bad))
        (begun,) = begin_members([(member, own)], lesson.labelled, table, range(table.k), facts.seed, resources, say)
        logits = _teacher_logits(lesson, teacher, member, compute, say)
        jobs = tuple(_with_targets(begun, lesson, fold, of_fold) for fold, of_fold in enumerate(logits))
        with opened_log(run, compute) as log:
            finish_folds([replace(begun, jobs=jobs)], table, resources, say, log)
        report = report_member(member, table, facts.seed, facts.classes)
        member.update(oof=asdict(report.assessment))
        files.write_whole(member.folder / "report.md", member_markdown(report).encode())
    folder.record(f"distil {member.name}", started)
    of_teacher = stack_side(run, folder, teacher.members, teacher.kind, teacher.objective, offsets=teacher.offsets)
    comparison = compare_sides(of_teacher, member_side(member.folder, teacher.objective))
    return DistilResult(run, report, comparison, *_costs(folder, teacher, member, lesson.labelled, resources))


def _teacher(run: Run, config: DistilConfig, classes: int, say: Say) -> _Teacher:
    """Return the stack of the run's decision, or the default one of the members that are named.

    Raises
    ------
    ArtifactError
        There is no decision, or it is stale.
    ConfigError
        The run has no member of a name.
    """
    decision = None
    if config.members is None or run.decision.exists():
        decision = read_decisions(run, say if config.members is None else silent).tta
    if config.members is None:
        assert decision is not None
        offsets = decision.offsets if isinstance(decision, Decision) else None
        return _Teacher(decision.stacker.members, decision.kind, decision.objective, offsets)
    known = [member.name for member in run.members()]
    if unknown := [name for name in config.members if name not in known]:
        problem = f"the run has no member {', '.join(map(printable, unknown))}"
        raise ConfigError("--members", problem, f"it has {', '.join(known)}")
    members = tuple(name for name in known if name in config.members)
    kind = DecisionConfig().stacker if len(members) > 1 else "mean"
    objective = parse_objective(DecisionConfig().objective, classes) if decision is None else decision.objective
    return _Teacher(members, kind, objective)


def _recorded(run: Run, teacher: _Teacher, config: DistilConfig, student: str) -> Distilled:
    """Return what is recorded of the student, without unlabelled images, once what its teacher needs is there."""
    if student in teacher.members:
        problem = f"{student} is in the stack that would be its teacher"
        raise ConfigError("--name", problem, "give another --name, or fit the stack without it")
    parents, folds = {}, range(run.read().folds)
    for name in teacher.members:
        of_member = run.member(name)
        if config.from_oof:
            parents[name] = {fold: facts.oof_sha256 for fold, facts in of_member.read().folds.items()}
            continue
        for fold in folds:
            of_member.weights(fold)
        parents[name] = {str(fold): of_member.weights_sha256(fold) for fold in folds}
    return Distilled(
        teachers=teacher.members,
        stacker=teacher.kind,
        parents=parents,
        teacher_weight=config.teacher_weight,
        temperature=config.temperature,
        held_out=config.held_out,
        from_oof=config.from_oof,
    )


def _open(config: DistilConfig, classes: int) -> Source | None:
    if config.unlabelled is None:
        return None
    from ensemble.data.source import open_unlabelled

    images = PredictConfig(images=config.unlabelled, on_bad=config.on_bad, follow_links=config.follow_links)
    return open_unlabelled(images, classes)


def _lesson(run: Run, table: FoldTable, source: Source | None, config: DistilConfig, say: Say) -> _Lesson:
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
        announce(source, say)
        unlabelled = load_dataset(source, run.pixels, facts.resize, say=say, on_bad=config.on_bad, exif=facts.exif)
        if tuple(unlabelled.size) != tuple(labelled.size):
            height, width = unlabelled.size
            problem = f"images are {width} × {height} pixels, those of the run {labelled.size[1]} × {labelled.size[0]}"
            raise ArtifactError(source.where, problem, "give images of the same size")
        if copies := int(np.count_nonzero(~run.is_new(unlabelled.digests))):
            say(f"note: {copies} of the {len(unlabelled)} images without labels are copies of images of the run")
    return _Lesson(run, table, labelled, unlabelled, config)


def _teacher_logits(
    lesson: _Lesson, teacher: _Teacher, member: MemberFolder, compute: ComputeConfig, say: Say
) -> list[np.ndarray]:
    """Return the teacher's logits (n,) or (n, C) for each fold; they are computed once and kept.

    A fold's teacher has the fold models of that fold, and a stacker that is fitted to the OOF logits of other folds.
    With `from_oof`, training rows have their OOF logits in place of those of that fold's models.
    """
    ids, folds = lesson.ids, range(lesson.table.k)
    missing = [fold for fold in folds if read_teacher_logits(member, fold, ids) is None]
    for fold in missing:
        if str(fold) in read_distilled(member).logits:
            where = printable(teacher_path(member, fold))
            say(f"warning: {where} is missing or damaged; the teacher's logits are computed again")
    if missing:
        oof = averaged_oof(lesson.run, teacher.members, VIEWS)
        by_fold = _recorded_logits(lesson, oof) if lesson.config.from_oof else _computed_logits(lesson, oof, compute)
        for fold in missing:
            stacker = oof.rows.without(fold).any_stacker(teacher.kind)
            write_teacher_logits(member, fold, ids, stacker.apply(by_fold[:, :, fold]))
    kept = [read_teacher_logits(member, fold, ids) for fold in folds]
    return [logits for logits in kept if logits is not None]


def _computed_logits(lesson: _Lesson, oof: OofLogits, compute: ComputeConfig) -> np.ndarray:
    """Return the logits (n, m, k[, C]) of all fold models on all images."""
    options = PredictOptions()
    of_sets = [
        unkept_fold_logits(lesson.run, oof.members, VIEWS, each, options, compute).by_fold for each in lesson.sets
    ]
    return np.concatenate(of_sets)


def _recorded_logits(lesson: _Lesson, oof: OofLogits) -> np.ndarray:
    """Return logits (n, m, k[, C]) that the run records: OOF, for every fold the same, then those without labels."""
    folds = lesson.table.k
    of_run = np.repeat(oof.logits[:, :, None], folds, axis=2)
    if lesson.unlabelled is None:
        return of_run
    return np.concatenate((of_run, kept_fold_logits(lesson.run, oof.members, VIEWS, lesson.unlabelled)))


def _with_targets(begun: BegunMember, lesson: _Lesson, fold: int, logits: np.ndarray) -> FoldJob:
    """Return the job of a fold with what its student learns of all images, by the teacher's logits (n,) or (n, C)."""
    from ensemble.members.joined_pixels import JoinedPixels
    from ensemble.members.processes import MappedPixels

    job, config, labels, ids = begun.jobs[fold], lesson.config, lesson.table.labels, lesson.ids
    training = np.flatnonzero(lesson.table.fold_of != fold)
    targets = soft_targets(logits, labels, training, config.teacher_weight, config.temperature)
    # Labels of images without one are never read; those of held-out rows only by the measurement after each epoch.
    labels = np.concatenate((labels, np.zeros(len(ids) - len(labels), np.int8)))
    mapped = job.mapped
    if lesson.unlabelled is not None:
        mapped = JoinedPixels(tuple(MappedPixels(each.pixels) for each in lesson.sets))
    return replace(job, mapped=mapped, labels=labels, ids=ids, rows=lesson.rows(fold), targets=targets)


def _costs(
    run: Run, teacher: _Teacher, student: MemberFolder, images: Dataset, resources: Resources
) -> tuple[Cost, Cost]:
    """Return what teacher and student cost, by the probed speed of each network."""
    from ensemble.members.plans import Plan
    from ensemble.members.predictor import Predictor

    facts, teachers = run.read(), [run.member(name) for name in teacher.members]
    passes = facts.folds * len(VIEWS)

    def cost(members: Sequence[MemberFolder]) -> Cost:
        seconds, parameters = 0.0, 0
        with Predictor(images.pixels, passes * len(members), resources) as predictor:
            for member in members:
                of_member = member.read()
                as_trained = Plan(of_member.precision, of_member.convolutions)
                spec = predictor.spec(of_member.current_config, as_trained, facts.folds, facts.class_count)
                parameters += facts.folds * (of_member.parameters or 0)
                if resources.device.type == "cpu":
                    seconds += passes * predictor.cost_per_image(spec)
        return Cost(facts.folds * len(members), parameters, 1 / seconds if seconds else None)

    return cost(teachers), cost([student])
