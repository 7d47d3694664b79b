"""`thera report`: what is known of a run, as typed numbers, as `report.html`, `.md` and `.json`, and a model card."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.maps import compute_maps, read_attribution
from ensemble.commands.model_card_file import write_card
from ensemble.commands.prediction_files import read_prediction_facts
from ensemble.commands.report_evidence import read_evidence
from ensemble.commands.reviewed_scores import reviewed_scores
from ensemble.commands.training_images import stored_pixels
from ensemble.config import VIEWS
from ensemble.data.classes import class_count
from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import Assessment, member_report
from ensemble.decision.class_assessment import ClassAssessment, member_class_report
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision
from ensemble.errors import ArtifactError, printable
from ensemble.extras import refuse_missing
from ensemble.prediction_results import ClassPredictionFacts, PredictionFacts
from ensemble.progress import Say, silent
from ensemble.report_config import ReportConfig
from ensemble.reports.attribution_figures import attribution_figures
from ensemble.reports.documents import report_json, report_markdown
from ensemble.reports.measures import class_names
from ensemble.reports.model_card import model_card
from ensemble.reports.report_page import report_page
from ensemble.results import MemberReport, ReportResult
from ensemble.runs import files
from ensemble.runs.distilled import is_distilled, read_distilled
from ensemble.runs.member import FROM_SCRATCH, MemberFolder
from ensemble.runs.run import Run


def report(run: Path, say: Say = silent, config: ReportConfig | None = None) -> ReportResult:
    """Return what is known of a run, and write it beside `run.json`.

    `report.html` is the page for people, `report.md` and `report.json` hold all tables, and `README.md` is the model
    card. A `README.md` that thera did not write stays, and the card is `model-card.md`, with a note.

    A run whose stacker is not fitted yet is reported by its finished members alone.

    Parameters
    ----------
    run : Path
        The run's folder.
    say : callable
        Receives notes and warnings, a line each.
    config : ReportConfig, optional
        What to compute beside the tables.

    Raises
    ------
    ArtifactError
        No member is finished, or something in the run is damaged.
    """
    refuse_missing("train", "thera report")
    folder = Run(run)
    facts, table = folder.read(), folder.read_folds()
    finished = [member for member in folder.members() if all(map(member.has_oof, range(table.k)))]
    if not finished:
        raise ArtifactError(run, "has no finished member", "train one: thera train-member --help")
    if config is not None and config.maps:
        compute_maps(folder, finished, config, say)
    decisions = read_decisions(folder, say) if folder.decision.exists() else None
    assessed = {} if decisions is None else _assessed_in(decisions.tta)
    result = ReportResult(
        run=Path(os.path.abspath(run)),
        images=facts.n,
        folds=table.k,
        members=tuple(
            report_member(member, table, facts.seed, facts.classes, assessed.get(member.name)) for member in finished
        ),
        decisions=decisions,
        predictions={} if decisions is None else _current_predictions(folder, facts.class_count, say),
        data_notes=tuple(facts.notes),
        classes=facts.classes,
        reviewed=reviewed_scores(folder, table, finished, None if decisions is None else decisions.tta, facts.classes),
    )
    pixels = stored_pixels(folder, say)
    attribution = read_attribution(folder, finished, table, pixels, say)
    figures = attribution_figures(attribution, class_names(facts.classes, facts.class_count))
    # this reads the logits: what is damaged is refused before anything is written
    evidence = read_evidence(folder, table, result, pixels, say)
    evidence = replace(evidence, attribution=figures)
    page, card = report_page(result, evidence), model_card(result, evidence)
    files.remove_orphans(run)
    files.write_whole(run / "report.md", report_markdown(result).encode())
    files.write_json(run / "report.json", report_json(result), with_hash=False)
    files.write_whole(run / "report.html", page)
    write_card(run, card, say)
    return result


def report_member(
    member: MemberFolder,
    table: FoldTable,
    seed: int,
    classes: tuple[str, ...] | None = None,
    assessed: Assessment | ClassAssessment | None = None,
) -> MemberReport:
    """Measure a member by its OOF logits, averaged over all views, at its own threshold or offsets.

    `classes` are the names of the classes of the run. A decision with test-time augmentation has `assessed` the member
    already, on the same rows and views: its bootstrap is not repeated.
    """
    facts, student = member.read(), read_distilled(member) if is_distilled(member) else None
    left_out, changed = facts.left_out, facts.changed
    return MemberReport(
        assessment=assessed or _assessed(member, table, seed, classes),
        views=VIEWS,
        from_scratch=facts.started_from == FROM_SCRATCH,
        left_out=tuple(left_out[fold].rows for fold in sorted(left_out, key=int)),
        classes=classes,
        changed=tuple(changed[fold].rows for fold in sorted(changed, key=int)),
        overlay=facts.config.get("overlay") is not None,
        teachers=() if student is None else student.teachers,
        caveats=() if student is None else student.caveats,
    )


def _assessed_in(decision: Decision | ClassDecision) -> dict[str, Assessment | ClassAssessment]:
    """Return the assessments of the members of a stack by their names, without the differences to the stack.

    A decision assesses members as `report_member` does. Those outside its stack are assessed again, so that their
    logits are read and checked; those of the stack are read for the page.
    """
    alone = dict[str, Assessment | ClassAssessment]()
    for member in decision.members:
        if member.name in decision.stacker.members:
            if isinstance(member, ClassAssessment):
                alone[member.name] = replace(member, difference=None, macro_f1_difference=None)
            else:
                alone[member.name] = replace(member, difference=None)
    return alone


def _assessed(
    member: MemberFolder, table: FoldTable, seed: int, classes: tuple[str, ...] | None
) -> Assessment | ClassAssessment:
    logits = member.oof_logits(table, VIEWS).mean(axis=1)
    if class_count(classes) == 2:
        return member_report(member.name, table, logits, seed)
    return member_class_report(OofLogits(table, (member.name,), logits[:, None]), seed)


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
