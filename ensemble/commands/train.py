"""`thera train-member` and `thera trial`: train members on the folds of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.checks import announce, check_compute, check_labels, check_members, check_overlays
from ensemble.commands.fold_jobs import begin_members, finish_folds, opened_log
from ensemble.commands.report import report_member
from ensemble.commands.training_issues import with_changed_rows
from ensemble.config import VIEWS, ComputeConfig, DataConfig, MemberConfig, RunConfig
from ensemble.data.classes import class_count, refuse_alpha
from ensemble.data.files import listed
from ensemble.data.folds import Folds, FoldTable, assign_folds
from ensemble.decision.assessment import refit_differences
from ensemble.decision.class_assessment import loss_differences
from ensemble.decision.class_refits import MEAN_ERROR, ClassFixedRule
from ensemble.decision.rates import (
    ClassRates,
    ErrorRates,
    apply_offsets,
    apply_threshold,
    auc,
    class_rates,
    error_rates,
)
from ensemble.decision.refits import RefitRule, refit_errors
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, ConfigError, DataError, printable, some
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent
from ensemble.reports.documents import member_markdown, trial_markdown
from ensemble.results import TrainResult, TrialResult, TrialRow
from ensemble.runs import files
from ensemble.runs.distilled import is_distilled
from ensemble.runs.locks import locked
from ensemble.runs.member import MemberFolder
from ensemble.runs.run import Run, RunFacts

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset, Source


def train_members(
    run: Path,
    members: Sequence[MemberConfig],
    data: DataConfig | Dataset,
    folds: int = 5,
    seed: int = 0,
    compute: ComputeConfig | None = None,
    say: Say = silent,
    assigned: Folds | None = None,
) -> TrainResult:
    """Train members on every fold that is not finished yet, side by side, and measure them out of fold.

    Interrupted, the same call goes on from the last finished epoch.

    Parameters
    ----------
    run : Path
        The run's folder; it is created if missing.
    members : sequence of MemberConfig
    data : DataConfig or Dataset
        Where the labelled images are, or the images themselves.
    folds : int
        At least 2.
    seed : int
        Every random stream of the run is a child of it.
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.
    assigned : Folds, optional
        The folds of a new run, if they are assigned already; by default they are stratified by the labels.

    Raises
    ------
    ArtifactError
        The run, or a member, was begun with other data, folds, seed or config.
    DataError
        The images or labels cannot be used.
    """
    refuse_missing("train", "thera train-member")
    started, folder, reports = time.time(), Run(run), []
    begun = _trained(folder, members, data, folds, seed, compute or ComputeConfig(), say, assigned=assigned)
    with begun as (trained, table):
        classes = folder.read().classes
        for member in trained:
            result = report_member(member, table, seed, classes)
            member.update(oof=asdict(result.assessment))
            files.write_whole(member.folder / "report.md", member_markdown(result).encode())
            reports.append(result)
    folder.record(f"train-member {' '.join(member.name for member in trained)}", started)
    return TrainResult(run, tuple(reports))


def trial(config: RunConfig, fold: int = 0, compute: ComputeConfig | None = None, say: Say = silent) -> TrialResult:
    """Train one fold of every member, and compare them on the rows of that fold.

    A choice made by the result has seen that fold's labels; it must be confirmed on the other folds. `commands.run.run`
    goes on from what is trained here.

    Parameters
    ----------
    config : RunConfig
    fold : int
        In [0, config.folds).
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ConfigError
        There is no such fold.
    """
    refuse_missing("train", "thera trial")
    if not 0 <= fold < config.folds:
        raise ConfigError("--fold", f"must be 0 to {config.folds - 1}; got {fold}")
    started, run, compute = time.time(), Run(config.run), compute or ComputeConfig()
    with _trained(run, config.members, config.data, config.folds, config.seed, compute, say, fold) as (trained, table):
        rows = _trial_rows(trained, table, fold, config.seed)
    run.record(f"trial of fold {fold}: {' '.join(row.name for row in rows)}", started)
    result = TrialResult(config.run, fold, VIEWS, rows)
    files.write_whole(config.run / f"trial-{fold}.md", trial_markdown(result).encode())
    return result


def _trial_rows(members: Sequence[MemberFolder], table: FoldTable, fold: int, seed: int) -> tuple[TrialRow, ...]:
    """Compare members on the rows of a fold, each at the threshold that is best for these rows.

    Of more than two classes, no offsets are fitted: the greatest logit gives the class.
    """
    inside = table.fold_of == fold
    labels, groups = table.labels[inside], None if table.groups is None else table.groups[inside]
    logits = [member.read_oof(fold, VIEWS)[1].mean(axis=1) for member in members]
    rates: list[ErrorRates] | list[ClassRates]
    if logits[0].ndim == 1:
        rates = [error_rates(labels, apply_threshold(each, fit_threshold(each, labels))) for each in logits]
        areas: list[float | None] = [auc(each, labels) for each in logits]
        rules = [RefitRule(each, labels, (), groups=groups) for each in logits]
        errors = refit_errors(rules, labels, groups, seed)
        differences = [
            refit_differences(rates[0], of, each - errors[0])[2] for of, each in zip(rates, errors, strict=True)
        ]
    else:
        classes = logits[0].shape[1]
        y_pred = [apply_offsets(each, np.zeros(classes)) for each in logits]
        rates, areas = [class_rates(labels, each, classes) for each in y_pred], [None] * len(members)
        errors = refit_errors([ClassFixedRule(each, labels, classes) for each in y_pred], labels, groups, seed)
        differences = [
            loss_differences(rates[0], of, each - errors[0])[MEAN_ERROR] for of, each in zip(rates, errors, strict=True)
        ]
    rows: list[TrialRow] = []
    for j, member in enumerate(members):
        facts = member.read().folds[str(fold)]
        minutes = facts.training_seconds * facts.threads / 60
        difference = differences[j] if j else None
        rows.append(TrialRow(member.name, facts.epochs, minutes, rates[j], areas[j], difference))
    return tuple(rows)


@contextlib.contextmanager
def _trained(
    run: Run,
    members: Sequence[MemberConfig],
    data: DataConfig | Dataset,
    folds: int,
    seed: int,
    compute: ComputeConfig,
    say: Say,
    only: int | None = None,
    assigned: Folds | None = None,
) -> Iterator[tuple[list[MemberFolder], FoldTable]]:
    """Train the folds that are not finished, or `only` one fold, while the members' folders are locked."""
    check_compute(compute)
    check_members(members)
    run.refuse_other(folds, seed)
    source = _checked_source(data, folds, say)
    check_overlays(members, source)
    if source is not None:
        for member in members:
            refuse_alpha(f"member {member.name}", member.alpha, class_count(source.classes))
    folders = [run.member(member.name) for member in members]
    for folder in folders:
        if is_distilled(folder):
            raise ArtifactError(f"member {folder.name}", "was trained by thera distil", "give another --name")
    with run.removed_unless_begun(folders), contextlib.ExitStack() as locks:
        for folder in folders:
            locks.enter_context(locked(folder.folder))
        from ensemble.cluster.resources import resources_of  # from here on, imports take seconds

        resources_of(compute, say)  # a wrong device is refused before the images are read
        dataset = _labelled_dataset(data, source, run, say)
        table = _begin(run, folders, dataset, data, folds, seed, say, assigned)
        train_folds(list(zip(folders, members, strict=True)), dataset, table, seed, compute, say, only)
        yield folders, table


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

    The folds of all members are trained in parallel, as many at once as the cores allow; `only` restricts them to one
    fold of each member.

    Raises
    ------
    ArtifactError
        A member was begun with other data, another seed or config.
    """
    from ensemble.cluster.resources import resources_of

    resources = resources_of(compute)
    folds = range(table.k) if only is None else (only,)
    begun = begin_members(members, dataset, table, folds, seed, resources, say)
    begun = [with_changed_rows(member, table, resources, say) for member in begun]
    with opened_log(members[0][0].folder.parents[1], compute) as log:
        finish_folds(begun, table, resources, say, log)


def _checked_source(data: DataConfig | Dataset, folds: int, say: Say) -> Source | None:
    """Open the images and check their labels; None where they are decoded already."""
    if not isinstance(data, DataConfig):
        return None
    from ensemble.data.source import open_labelled

    source = open_labelled(data)
    check_labels(source, folds)
    announce(source, say)
    return source


def _labelled_dataset(data: DataConfig | Dataset, source: Source | None, run: Run, say: Say) -> Dataset:
    if isinstance(data, DataConfig):
        from ensemble.data.store import load_dataset

        assert source is not None
        dataset = load_dataset(source, run.pixels, data.resize, say=say, on_bad=data.on_bad, exif=data.exif)
    else:
        dataset = data
    if dataset.labels is None:
        raise DataError(getattr(data, "images", "the images"), "has no labels", "give --labels")
    return dataset


def _begin(
    run: Run,
    members: Sequence[MemberFolder],
    dataset: Dataset,
    data: DataConfig | Dataset,
    folds: int,
    seed: int,
    say: Say,
    assigned: Folds | None = None,
) -> FoldTable:
    """Start the run, or verify that it is the same; return its folds, which are assigned once.

    A run in which no epoch is finished may begin anew with other folds, another seed or other data.

    Raises
    ------
    ArtifactError
        The run was begun with another seed, other folds or other data.
    """
    assert dataset.labels is not None
    images, labels, resize, near_duplicates = "arrays", "arrays", None, "ignore"
    if isinstance(data, DataConfig):
        images, labels, resize = str(data.images), str(data.labels or data.images), data.resize
        near_duplicates = data.near_duplicates
    facts = RunFacts(
        seed=seed,
        folds=folds,
        n=len(dataset),
        size=dataset.size,
        resize=resize,
        exif=dataset.exif,
        fingerprint=dataset.fingerprint,
        images=images,
        labels=labels,
        notes=dataset.notes,
        classes=dataset.classes,
        near_duplicates=near_duplicates,
    )
    if change := run.forget_untrained(facts, members):
        say(f"note: nothing was trained in {printable(run.folder)} yet; it begins anew: {change}")
    if (run.folder / "folds.csv").exists():
        run.begin(facts)
    else:  # the folds are assigned first, so that impossible folds begin no run
        from ensemble.data.duplicates import fold_units

        units = fold_units(dataset, facts.near_duplicates, say)
        where = printable(labels) if isinstance(data, DataConfig) else "labels"
        assigned = assigned or assign_folds(dataset.labels, units, folds, seed, where, dataset.classes)
        run.begin(facts)
        ungrouped = dataset.groups is None and np.unique(units).size == units.size
        groups = None if ungrouped else units
        run.write_folds(FoldTable(dataset.ids, dataset.labels, assigned.fold_of, groups), dataset.bad)
    table = run.read_folds()
    if change := _change_since(run, table, dataset):
        raise ArtifactError(run.folder, f"was begun with other data: {change}", "restore them, or use another --run")
    run.record_images(dataset.ids, dataset.digests)
    return table


def _change_since(run: Run, table: FoldTable, dataset: Dataset) -> str:
    """Return how the data differs from the data of the run; an empty text if it does not."""
    if not np.array_equal(table.ids, dataset.ids):
        only = sorted(set(dataset.ids.tolist()) ^ set(table.ids.tolist()))
        return f"{len(only)} images are in one of the two only ({some(only)})" if only else "the images' order"
    facts = run.read()
    if max(facts.class_count, class_count(dataset.classes)) > 2 and facts.classes != dataset.classes:
        former, present = (listed(classes or ("0", "1")) for classes in (facts.classes, dataset.classes))
        return f"its classes are {former}, not {present}"
    if facts.fingerprint == dataset.fingerprint:
        return ""
    assert dataset.labels is not None
    relabelled, changes = table.ids[table.labels != dataset.labels].tolist(), []
    if relabelled:
        changes.append(f"{len(relabelled)} labels changed ({some(relabelled)})")
    before = run.read_images()
    if before is None and not relabelled:  # runs of older versions have no hashes
        changes.append("image files or groups changed")
    changed = [] if before is None else table.ids[before != dataset.digests].tolist()
    if changed:
        changes.append(f"{len(changed)} image files changed ({some(changed)})")
    return " and ".join(changes) or "groups changed"
