"""`thera fit-stacker`: stacker and threshold from the OOF logits of the members."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.config import (
    VIEW_SETS,
    VIEWS,
    DecisionConfig,
)
from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision, fit_decision
from ensemble.decision.threshold import Objective
from ensemble.errors import ArtifactError
from ensemble.progress import Say
from ensemble.runs import files
from ensemble.runs.member import TRAIN_AGAIN, MemberFolder
from ensemble.runs.run import Run

if TYPE_CHECKING:
    pass


def all_oof_logits(run: Run, table: FoldTable, members: Sequence[str]) -> np.ndarray:
    """Return the OOF logits of several members, (n, m, views)."""
    return np.stack([oof_logits(run.member(name), table) for name in members], axis=1)


def averaged_oof(run: Run, members: Sequence[str], views: Sequence[str]) -> OofLogits:
    """Return the OOF logits of several members, averaged over views."""
    table = run.read_folds()
    return _averaged(table, members, all_oof_logits(run, table, members), views)


def _averaged(table: FoldTable, members: Sequence[str], logits: np.ndarray, views: Sequence[str]) -> OofLogits:
    mean = logits[:, :, : len(views)].mean(axis=2)
    return OofLogits(table.ids, table.labels, table.fold_of, tuple(members), mean, table.groups)


def oof_logits(member: MemberFolder, table: FoldTable) -> np.ndarray:
    """Return a member's OOF logits (n, views), in the order of the fold table.

    Raises
    ------
    ArtifactError
        A fold is missing, or its ids are not those of the table.
    """
    logits = np.full((len(table.ids), len(VIEWS)), np.nan)
    for fold in range(table.k):
        ids, values = member.read_oof(fold, VIEWS)
        rows = np.flatnonzero(table.fold_of == fold)
        if not np.array_equal(ids, table.ids[rows]):
            found = f"OOF ids of fold {fold} are not those of folds.csv ({len(ids)} rows for {len(rows)})"
            raise ArtifactError(f"member {member.name}", found, TRAIN_AGAIN)
        logits[rows] = values
    return logits


def fit_stacker(folder: Path, wanted: DecisionConfig, say: Say) -> dict[str, Decision]:
    """Fit stacker and threshold on the members' OOF logits, plain and with TTA, and write the decision.

    Raises
    ------
    ConfigError
        The objective has none of the known forms.
    ArtifactError
        A member lacks a fold, or its OOF logits are not those that training wrote.
    """
    started, run, objective = time.time(), Run(folder), Objective.parse(wanted.objective)
    table, seed = run.read_folds(), run.read()["seed"]
    names = tuple(member.name for member in run.members() if member.has_begun)  # of the others there is nothing
    if not names:
        raise ArtifactError(folder, "has no members", "train one: thera train-member --help")
    logits = all_oof_logits(run, table, names)
    decisions = {}
    for key, views in VIEW_SETS.items():
        oof = _averaged(table, names, logits, views)
        decisions[key] = fit_decision(oof, views, seed, objective, wanted.stacker, wanted.repeats)
    for note in sorted({note for decision in decisions.values() for note in decision.notes}):
        say(f"warning: {note}")
    with files.locked(run.decision.parent):
        stored = {key: decision.to_json() for key, decision in decisions.items()}
        files.write_json(run.decision, {"schema": files.SCHEMA, "parents": _parents(run, names), **stored})
    run.record("fit-stacker", started)
    return decisions


def _parents(run: Run, members: tuple[str, ...]) -> dict[str, Any]:
    """Return the hashes of the OOF logits that a decision rests on."""
    folds = {name: run.member(name).read()["folds"] for name in members}
    return {name: {fold: facts["oof_sha256"] for fold, facts in found.items()} for name, found in folds.items()}


def read_decisions(run: Run, say: Say) -> dict[str, Decision]:
    """Return the run's decisions, plain and with TTA, once their parents' hashes are verified.

    Raises
    ------
    ArtifactError
        There is none, or the members' OOF logits have changed since.
    """
    remedy = f"run: thera fit-stacker --run {run.folder}"
    stored = files.read_json(run.decision, remedy)
    if stored.get("parents") != _parents(run, tuple(stored.get("parents", ()))):
        raise ArtifactError(run.decision, "was fitted on other OOF logits than the members have now", remedy)
    for member in run.members():
        if member.name not in stored["parents"]:
            say(f"warning: member {member.name} is not in the decision; {remedy}")
    return {key: Decision.from_json(stored.get(key, {})) for key in VIEW_SETS}
