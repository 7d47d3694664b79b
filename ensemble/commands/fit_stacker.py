"""`thera fit-stacker`: fit the stacker and the threshold on the OOF logits of the members."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble.config import VIEW_SETS, DecisionConfig
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision, fit_decision
from ensemble.decision.objective import Objective
from ensemble.errors import ArtifactError
from ensemble.progress import Say, silent
from ensemble.results import FitResult
from ensemble.runs import files
from ensemble.runs.run import Run


@dataclass(frozen=True)
class StoredDecisions:
    """`decision.json`: the decisions, and the SHA-256 of the OOF logits they were fitted on, by member and fold."""

    parents: dict[str, dict[str, str]]
    plain: Decision
    tta: Decision


def fit_stacker(run: Path, config: DecisionConfig | None = None, say: Say = silent) -> FitResult:
    """Fit stacker and threshold for plain prediction and for TTA, and write `decision/decision.json`.

    Parameters
    ----------
    run : Path
        The run's folder; its members are trained.
    config : DecisionConfig, optional
    say : callable
        Receives warnings, a line each.

    Raises
    ------
    ConfigError
        The objective is not valid.
    ArtifactError
        A member lacks a fold, or its OOF logits are not those that training wrote.
    """
    config = config or DecisionConfig()
    started, folder, objective = time.time(), Run(run), Objective.parse(config.objective)
    table, seed = folder.read_folds(), folder.read().seed
    names = tuple(member.name for member in folder.members() if member.has_begun)
    if not names:
        raise ArtifactError(run, "has no members", "train one: thera train-member --help")
    logits = folder.oof_logits(names)  # (n, m, views)
    decisions = {}
    for key, views in VIEW_SETS.items():
        oof = OofLogits(table, names, logits[:, :, : len(views)].mean(axis=2))
        decisions[key] = fit_decision(oof, views, seed, objective, config.stacker, config.repeats)
    for note in sorted({note for decision in decisions.values() for note in decision.notes}):
        say(f"warning: {note}")
    with files.locked(folder.decision.parent):
        files.write_json(folder.decision, StoredDecisions(_parents(folder, names), **decisions))
    folder.record("fit-stacker", started)
    return FitResult(**decisions)


def averaged_oof(run: Run, members: Sequence[str], views: Sequence[str]) -> OofLogits:
    """Return the OOF logits of several members, averaged over the first views."""
    return OofLogits(run.read_folds(), tuple(members), run.oof_logits(members)[:, :, : len(views)].mean(axis=2))


def _parents(run: Run, members: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the hashes of the members' OOF logits, by member and fold."""
    folds = {name: run.member(name).read().folds for name in members}
    return {name: {fold: facts.oof_sha256 for fold, facts in stored.items()} for name, stored in folds.items()}


def read_decisions(run: Run, say: Say = silent) -> FitResult:
    """Return the run's decisions, plain and with TTA, once the hashes of their parents are verified.

    Raises
    ------
    ArtifactError
        There is no decision, or the members' OOF logits have changed since.
    """
    remedy = f"run: thera fit-stacker --run {run.folder}"
    stored = files.read_json(run.decision, StoredDecisions, remedy)
    members = [member.name for member in run.members()]
    if not set(stored.parents) <= set(members) or stored.parents != _parents(run, tuple(stored.parents)):
        raise ArtifactError(run.decision, "was fitted on other OOF logits than the members have now", remedy)
    for name in members:
        if name not in stored.parents:
            say(f"warning: member {name} is not in the decision; {remedy}")
    return FitResult(stored.plain, stored.tta)
