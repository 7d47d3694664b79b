"""`thera report`: what is known of a run, as typed numbers and as `report.md` and `report.json`."""

from __future__ import annotations

import os
from pathlib import Path

from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.prediction_files import read_prediction_facts
from ensemble.commands.reviewed_scores import reviewed_scores
from ensemble.config import VIEWS
from ensemble.data.classes import class_count
from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import Assessment, member_report
from ensemble.decision.class_assessment import ClassAssessment, member_class_report
from ensemble.decision.cross_fitting import OofLogits
from ensemble.errors import ArtifactError, printable
from ensemble.prediction_results import ClassPredictionFacts, PredictionFacts
from ensemble.progress import Say, silent
from ensemble.reports.documents import report_json, report_markdown
from ensemble.results import MemberReport, ReportResult
from ensemble.runs import files
from ensemble.runs.member import FROM_SCRATCH, MemberFolder
from ensemble.runs.run import Run


def report(run: Path, say: Say = silent) -> ReportResult:
    """Return what is known of a run, and write it as `report.md` and `report.json` beside `run.json`.

    A run whose stacker is not fitted yet is reported by its finished members alone.

    Parameters
    ----------
    run : Path
        The run's folder.
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ArtifactError
        No member is finished, or something in the run is damaged.
    """
    folder = Run(run)
    facts, table = folder.read(), folder.read_folds()
    finished = [member for member in folder.members() if all(map(member.has_oof, range(table.k)))]
    if not finished:
        raise ArtifactError(run, "has no finished member", "train one: thera train-member --help")
    decided = folder.decision.exists()
    decisions = read_decisions(folder, say) if decided else None
    result = ReportResult(
        run=Path(os.path.abspath(run)),
        images=facts.n,
        folds=table.k,
        members=tuple(report_member(member, table, facts.seed, facts.classes) for member in finished),
        decisions=decisions,
        predictions=_current_predictions(folder, facts.class_count, say) if decided else {},
        data_notes=tuple(facts.notes),
        classes=facts.classes,
        reviewed=reviewed_scores(folder, table, finished, None if decisions is None else decisions.tta, facts.classes),
    )
    files.remove_orphans(run)
    files.write_whole(run / "report.md", report_markdown(result).encode())
    files.write_json(run / "report.json", report_json(result), with_hash=False)
    return result


def report_member(
    member: MemberFolder, table: FoldTable, seed: int, classes: tuple[str, ...] | None = None
) -> MemberReport:
    """Measure a member by its OOF logits, averaged over all views, at its own threshold or offsets.

    `classes` are the names of the classes of the run.
    """
    logits, facts = member.oof_logits(table, VIEWS).mean(axis=1), member.read()
    left_out, changed = facts.left_out, facts.changed
    assessment: Assessment | ClassAssessment
    if class_count(classes) == 2:
        assessment = member_report(member.name, table, logits, seed)
    else:
        assessment = member_class_report(OofLogits(table, (member.name,), logits[:, None]), seed)
    return MemberReport(
        assessment=assessment,
        views=VIEWS,
        from_scratch=facts.started_from == FROM_SCRATCH,
        left_out=tuple(left_out[fold].rows for fold in sorted(left_out, key=int)),
        classes=classes,
        changed=tuple(changed[fold].rows for fold in sorted(changed, key=int)),
        overlay=facts.config.get("overlay") is not None,
    )


def _current_predictions(run: Run, classes: int, say: Say) -> dict[str, PredictionFacts | ClassPredictionFacts]:
    """Return the facts of the label files that the present decision has made, by the name of their set."""
    current, facts = files.file_sha256(run.decision), dict[str, PredictionFacts | ClassPredictionFacts]()
    for path in sorted(run.folder.glob("predictions/*/predictions.json")):
        name = path.parent.name
        stored = read_prediction_facts(path.parent, classes)
        if stored.request.decision_sha256 == current:
            facts[name] = stored
        else:
            say(
                f"note: {printable(name)} was labelled by another decision; to label it by this one, run: thera predict"
            )
    return facts
