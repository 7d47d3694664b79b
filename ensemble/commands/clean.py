"""`thera clean`: the labels of a run that are likely to be wrong, their review, and the overlay that mends them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.clean_config import CleanConfig
from ensemble.clean_results import ClassIssues, CleanResult, LabelIssue, ReviewResult
from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.commands.label_review import apply_review, refuse_changed
from ensemble.commands.training_images import stored_pixels
from ensemble.config import VIEWS
from ensemble.data.classes import class_count
from ensemble.data.folds import FoldTable
from ensemble.data.overlay import changes_of, overlay_bytes
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision
from ensemble.decision.diagnostics import margins_for_issues
from ensemble.decision.fold_offsets import aligned, find_fold_offsets
from ensemble.decision.label_noise import NoiseBound, class_noise
from ensemble.errors import ArtifactError, ConfigError, DataError, printable
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent
from ensemble.runs import files
from ensemble.runs.artifacts import write_recorded
from ensemble.runs.label_issues import FACTS, ISSUES, OVERLAY, PAGE, LabelIssuesFacts, read_facts
from ensemble.runs.locks import locked
from ensemble.runs.member import TRAIN_AGAIN
from ensemble.runs.run import TARGETS, Run, RunFacts

if TYPE_CHECKING:
    from ensemble.decision.label_issues import LabelIssues


def clean(run: Path, config: CleanConfig | None = None, say: Say = silent) -> CleanResult | ReviewResult:
    """Find the labels of a run that are likely to be wrong, or apply a review of them.

    Nothing but files in `label_issues/` of the run (and `config.out`) is written. The labels of the run stay as they
    are; an overlay takes effect where a member is trained with it.

    Parameters
    ----------
    run : Path
        The run's folder.
    config : CleanConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Returns
    -------
    CleanResult or ReviewResult
        The latter where a review is applied.

    Raises
    ------
    ArtifactError
        No member is finished, or something in the run is damaged.
    DataError
        A class has too few images for calibration, or a line of the review is not valid.
    ConfigError
        A file that this run did not write would be replaced.
    """
    refuse_missing("train", "thera clean")
    config = config or CleanConfig()
    started, folder = time.time(), Run(run)
    if (run / TARGETS).is_file():
        raise ConfigError(printable(run), "holds the runs of several targets", "give the folder of one of them")
    facts, table = folder.read(), folder.read_folds()
    if config.apply is not None:
        result: CleanResult | ReviewResult = apply_review(folder, facts, table, config.apply, config.out, say)
    else:
        result = _find(folder, facts, table, config, say)
    folder.record("clean" if config.apply is None else "clean --apply", started)
    return result


@dataclass(frozen=True, eq=False)
class OofEvidence:
    """What the models that have not seen an image say of it.

    Attributes
    ----------
    source : str
        The stack, or a member.
    margins : float64 array (n,) or (n, C)
        Nested logits less the threshold, or plus the offsets, of their fold.
    noise : NoiseBound or None
        The bound on random label noise, of the decision.
    parents : mapping
        The hashes of the OOF logits, by member and fold.
    """

    source: str
    margins: np.ndarray
    noise: NoiseBound | None = None
    parents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def oof_evidence(run: Run, table: FoldTable, say: Say = silent) -> OofEvidence:
    """Return the nested logits of the stack, or of the finished members where no stack is fitted.

    Each logit comes from models that were trained without the image, and from a stacker and threshold that were fitted
    without its fold.

    Raises
    ------
    ArtifactError
        No member is finished.
    """
    noise, kind = None, "nonnegative"
    if run.decision.exists():
        decision = read_decisions(run, say).tta
        oof, kind = averaged_oof(run, decision.stacker.members, decision.views), decision.kind
        if isinstance(decision, Decision):
            oof, noise = decision.aligned(oof), decision.noise
    else:
        finished = [member.name for member in run.members() if all(map(member.has_oof, range(table.k)))]
        if not finished:
            raise ArtifactError(run.folder, "has no finished member", TRAIN_AGAIN)
        oof = averaged_oof(run, finished, VIEWS)
        oof = aligned(oof, find_fold_offsets(oof)) if oof.classes == 2 else oof
    source = f"the stack of {len(oof.members)} members" if len(oof.members) > 1 else f"member {oof.members[0]}"
    return OofEvidence(source, margins_for_issues(oof, kind), noise, _parents(run, oof))


def _parents(run: Run, oof: OofLogits) -> dict[str, dict[str, str]]:
    stored = {name: run.member(name).read().folds for name in oof.members}
    return {name: {fold: facts.oof_sha256 for fold, facts in folds.items()} for name, folds in stored.items()}


def _find(run: Run, facts: RunFacts, table: FoldTable, config: CleanConfig, say: Say) -> CleanResult:
    classes = facts.classes or ("0", "1")
    evidence = oof_evidence(run, table, say)
    for name in evidence.parents:
        if run.member(name).read().config.get("overlay") is not None:
            say(f"note: member {name} was trained with an overlay, whose labels it has learnt")
    issues, of_classes = _label_issues(evidence, table, classes, facts.seed)
    folder, target = run.folder, run.folder / FACTS.parent
    listed = tuple(
        LabelIssue(rank, str(table.ids[row]), classes[table.labels[row]], classes[suggested], probability)
        for rank, (row, suggested, probability) in enumerate(
            zip(issues.rows.tolist(), issues.suggested.tolist(), issues.probability.tolist(), strict=True), 1
        )
    )
    with locked(target):
        files.remove_temporary_files(target)
        if config.auto is not None:
            refuse_changed(folder, target / OVERLAY)
        contents = {ISSUES: _table(listed)}
        if config.review and (page := _page(run, facts, table, issues, listed, config.limit, evidence, say)):
            contents[PAGE] = page
        if config.auto is not None:
            given = table.labels[issues.rows].astype(np.int64)
            changes = changes_of(config.auto, issues.rows, given, issues.suggested, issues.probability)
            contents[OVERLAY] = overlay_bytes(changes, table.ids, facts.classes)
        hashes = {name: files.write_whole(target / name, content) for name, content in contents.items()}
        former = {name: sha for name, sha in read_facts(folder).files.items() if name not in (ISSUES, PAGE)}
        if PAGE not in contents:
            (target / PAGE).unlink(missing_ok=True)  # it would show the issues of before
        counts = {each.name: each.issues for each in of_classes}
        stored = LabelIssuesFacts(evidence.source, evidence.parents, counts, {**former, **hashes})
        write_recorded(folder, folder / FACTS, stored)
    return CleanResult(
        run=folder,
        source=evidence.source,
        issues=listed,
        classes=of_classes,
        table=target / ISSUES,
        page=target / PAGE if PAGE in contents else None,
        overlay=target / OVERLAY if config.auto is not None else None,
        action=config.auto,
    )


def _label_issues(
    evidence: OofEvidence, table: FoldTable, classes: Sequence[str], seed: int
) -> tuple[LabelIssues, tuple[ClassIssues, ...]]:
    from ensemble.decision.class_intervals import class_counting_intervals
    from ensemble.decision.label_issues import CALIBRATION_FOLDS, confident_joint, rank_issues

    counts = np.bincount(table.labels, minlength=len(classes))
    if counts.min() < CALIBRATION_FOLDS:
        name = printable(classes[int(counts.argmin())])
        problem = f"{counts.min()} images have label {name}; to calibrate probabilities takes {CALIBRATION_FOLDS}"
        raise DataError("cannot find label issues", problem, "add images of this class")
    issues = rank_issues(evidence.margins, table.labels, seed)
    noise = class_noise(confident_joint(evidence.margins, table.labels, seed))
    doubtful = np.bincount(table.labels[issues.rows], minlength=len(classes))
    bounds = (None,) * len(classes)
    if evidence.noise is not None:
        bounds = (evidence.noise.rates.fpr, evidence.noise.rates.fnr)  # type: ignore[assignment]
    shares = (None,) * len(classes) if noise is None else noise.rates.errors
    intervals = (None,) * len(classes) if noise is None else class_counting_intervals(noise.rates)[0]
    each = zip(classes, counts.tolist(), doubtful.tolist(), shares, intervals, bounds, strict=True)
    return issues, tuple(ClassIssues(*values) for values in each)


def _table(issues: Sequence[LabelIssue]) -> bytes:
    import pandas as pd

    columns = {
        "id": [issue.id for issue in issues],
        "given": [issue.given for issue in issues],
        "suggested": [issue.suggested for issue in issues],
        "probability": [round(issue.probability, 6) for issue in issues],
        "rank": [issue.rank for issue in issues],
    }
    return files.table_bytes(pd.DataFrame(columns, dtype=object))


def _page(
    run: Run,
    facts: RunFacts,
    table: FoldTable,
    issues: LabelIssues,
    listed: Sequence[LabelIssue],
    limit: int,
    evidence: OofEvidence,
    say: Say,
) -> bytes | None:
    """Return the review page; None, with a note, where the decoded images are not there."""
    from ensemble.reports.review_page import review_page

    pixels = stored_pixels(run, say)
    if pixels is None:
        say(f"note: {printable(run.pixels)} does not hold the decoded images, so that there is no page for a review")
        return None
    shown = listed[:limit]
    images = (pixels[row] for row in issues.rows[:limit].tolist())
    name = printable(run.folder.absolute().name)
    names = facts.classes or tuple(map(str, range(class_count(facts.classes))))
    return review_page(name, facts.fingerprint, shown, list(images), names, len(listed), facts.n, evidence.source)
