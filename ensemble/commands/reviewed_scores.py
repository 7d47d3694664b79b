"""The score on reviewed labels of members with an overlay: a secondary figure, beside that on the labels as given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble.clean_results import ReviewedScore
from ensemble.commands.fit_stacker import averaged_oof
from ensemble.config import VIEWS
from ensemble.data.folds import FoldTable
from ensemble.data.overlay import Overlay
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_objective import MEAN_CLASS_ERROR
from ensemble.decision.cross_fitting import OofLogits, cross_fit, member_logit, of_score, stack
from ensemble.decision.decision import Decision
from ensemble.decision.fold_offsets import aligned, find_fold_offsets
from ensemble.decision.objective import HTER
from ensemble.decision.rates import class_rates, error_rates
from ensemble.runs.changed_rows import read_own_overlay
from ensemble.runs.member import MemberFolder
from ensemble.runs.run import Run


def reviewed_scores(
    run: Run,
    table: FoldTable,
    members: Sequence[MemberFolder],
    decision: Decision | ClassDecision | None,
    classes: Sequence[str] | None,
) -> tuple[ReviewedScore, ...]:
    """Measure the nested predictions of the stack, and of each member with an overlay, on the overlay's labels.

    The stack is measured where its members have one overlay between them.

    Parameters
    ----------
    run : Run
    table : FoldTable
    members : sequence of MemberFolder
        Those whose folds are finished.
    decision : Decision or ClassDecision, optional
    classes : sequence of C str, optional
        The names of the classes of the run.

    Raises
    ------
    ArtifactError
        The copy of an overlay is not as it was written.
    """
    overlays = {member.name: read_own_overlay(member, table, classes) for member in members}
    scores = []
    stacked = [overlays.get(name) for name in decision.stacker.members] if decision is not None else []
    used = {overlay.sha256: overlay for overlay in stacked if overlay is not None}
    if decision is not None and len(used) == 1:
        (shared,) = used.values()
        oof = averaged_oof(run, decision.stacker.members, decision.views)
        oof = decision.aligned(oof) if isinstance(decision, Decision) else oof
        scores.append(
            _score("stack", oof, cross_fit(oof.rows, stack(decision.kind), decision.objective).y_pred, shared)
        )
    for member in members:
        if (overlay := overlays[member.name]) is not None:
            oof = OofLogits(table, (member.name,), member.oof_logits(table, VIEWS).mean(axis=1)[:, None])
            objective = HTER if oof.classes == 2 else MEAN_CLASS_ERROR
            oof = aligned(oof, find_fold_offsets(oof)) if oof.classes == 2 else oof  # as `assessment.member_report`
            y_pred = cross_fit(oof.rows, of_score(member_logit(0)), objective).y_pred
            scores.append(_score(member.name, oof, y_pred, overlay))
    return tuple(scores)


def _score(name: str, oof: OofLogits, y_pred: np.ndarray, overlay: Overlay) -> ReviewedScore:
    dropped = overlay.rows("drop")
    kept = np.delete(np.arange(oof.labels.size), dropped)
    reviewed = overlay.labels(oof.labels)[kept]
    complete = np.unique(reviewed).size == oof.classes
    return ReviewedScore(
        name=name,
        images=kept.size,
        dropped=dropped.size,
        flipped=overlay.rows("flip").size,
        given=_error(oof.labels, y_pred, oof.classes),
        reviewed=_error(reviewed, y_pred[kept], oof.classes) if complete else None,
    )


def _error(labels: np.ndarray, y_pred: np.ndarray, classes: int) -> float:
    """Return the HTER, or the mean class error of more than two classes."""
    if classes == 2:
        return float(error_rates(labels, y_pred).hter)
    return class_rates(labels, y_pred, classes).mean_error
