"""`thera report`: the tables of a run, and its report files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.commands.fit_stacker import oof_logits, read_decisions
from ensemble.config import (
    VIEWS,
)
from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import Assessment, member_report
from ensemble.errors import ArtifactError, printable
from ensemble.progress import Say
from ensemble.reports.tables import (
    Table,
    decision_tables,
    explained,
    member_table,
    prediction_table,
    report_json,
    report_markdown,
    summary_table,
)
from ensemble.runs import files
from ensemble.runs.member import FROM_SCRATCH, MemberFolder
from ensemble.runs.run import Run

if TYPE_CHECKING:
    pass


def report(folder: Path, say: Say) -> list[Table]:
    """Return the run's tables, and write them as `report.md` and `report.json` beside `run.json`.

    A run whose stacker is not fitted yet is reported by its finished members alone.
    """
    run = Run(folder)
    identity, table = run.read(), run.read_folds()
    complete = [member for member in run.members() if all(map(member.has_oof, range(table.k)))]
    members = [assess_member(member, table, identity["seed"]) for member in complete]
    decisions = read_decisions(run, say) if run.decision.exists() else {}
    predicted = _predicted(run, say)
    tables = [summary_table(decisions["tta"], predicted)] if decisions else []
    tables += [member_table(member, VIEWS, origin(run.member(member.name))) for member in members]
    if decisions:
        tables += decision_tables(decisions["plain"], decisions["tta"])
    if not tables:
        raise ArtifactError(folder, "has no finished member", "train one: thera train-member --help")
    tables = explained(tables, deployed=bool(decisions))
    if predicted:
        tables += [prediction_table(predicted)]
    text = report_markdown(f"Run {printable(folder.name)}: {identity['n']} images, {table.k} folds", tables)
    text += "".join(f"\nData: {printable(note)}\n" for note in identity["notes"])
    files.write_whole(folder / "report.md", text.encode())
    files.write_json(
        folder / "report.json", report_json(members, decisions, predicted) | {"data_notes": identity["notes"]}
    )
    return tables


def _predicted(run: Run, say: Say) -> dict[str, Any]:
    """Return what is known of the label files that the decision of now has made, by the name of their set."""
    if not run.decision.exists():
        return {}
    found = {path.parent.name: path for path in sorted(run.folder.glob("predictions/*/predictions.json"))}
    stored = {name: files.read_json(path, "run: thera predict") for name, path in found.items()}
    now = files.file_sha256(run.decision)
    for name in [name for name, facts in stored.items() if facts.get("decision_sha256") != now]:
        say(f"note: {printable(name)} was labelled by another decision; to label it by this one, run: thera predict")
        del stored[name]
    return stored


def assess_member(member: MemberFolder, table: FoldTable, seed: int) -> Assessment:
    logits = oof_logits(member, table).mean(axis=1)
    return member_report(member.name, table.ids, logits, table.labels, table.fold_of, table.groups, seed)


def origin(member: MemberFolder) -> tuple[str, ...]:
    """Return what a reader of a member's figures must know of how it was trained."""
    facts, notes = member.read(), []
    if facts.get("started_from") == FROM_SCRATCH:
        notes.append("Trained from scratch: its config asks for pretrained weights, and none could be had.")
    if left_out := facts.get("left_out"):
        rows = ", ".join(str(left_out[fold]["rows"]) for fold in sorted(left_out, key=int))
        notes.append(f"Of the training rows of each fold, so many were left out for doubtful labels: {rows}.")
    return tuple(notes)
