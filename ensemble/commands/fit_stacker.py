"""`thera fit-stacker`: fit the stacker and the threshold on the OOF logits of the members."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.config import VIEW_SETS, DecisionConfig
from ensemble.data.folds import FoldTable
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_objective import DESCRIPTIONS, parse_objective
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision, fit_decision, small_set_notes
from ensemble.decision.fold_offsets import FoldOffset
from ensemble.decision.objective import Objective
from ensemble.errors import ArtifactError, ConfigError, printable
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent
from ensemble.results import ClassFitResult, FitResult
from ensemble.runs import files
from ensemble.runs.artifacts import read_recorded, write_recorded
from ensemble.runs.distilled import caveats, is_distilled
from ensemble.runs.locks import locked
from ensemble.runs.member import TRAIN_AGAIN
from ensemble.runs.run import Run


def _check_views(stored: Any) -> None:
    for key, views in VIEW_SETS.items():
        if (of_key := getattr(stored, key).views) != views:
            raise ValueError(f"the views of {key} must be {', '.join(views)}; got {', '.join(of_key)}")


@dataclass(frozen=True)
class StoredDecisions:
    """`decision.json`: the decisions, and the SHA-256 of the OOF logits they were fitted on, by member and fold."""

    parents: dict[str, dict[str, str]]
    plain: Decision
    tta: Decision

    def __post_init__(self) -> None:
        _check_views(self)


@dataclass(frozen=True)
class DecisionsOfChosen(StoredDecisions):
    """`decision.json` where `--members` has left out finished members; their names are kept."""

    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredClassDecisions:
    """`decision.json` of more than two classes; see `StoredDecisions` and `DecisionsOfChosen`."""

    parents: dict[str, dict[str, str]]
    plain: ClassDecision
    tta: ClassDecision
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_views(self)


def fit_stacker(run: Path, config: DecisionConfig | None = None, say: Say = silent) -> FitResult | ClassFitResult:
    """Fit stacker and threshold for plain prediction and for TTA, and write `decision/decision.json`.

    Of more than two classes, offsets of the classes take the place of the threshold.

    Parameters
    ----------
    run : Path
        The run's folder. Its finished members are used, or those of them that the config names.
    config : DecisionConfig, optional
    say : callable
        Receives warnings, a line each.

    Raises
    ------
    ConfigError
        The objective is not valid, or the run has no member of a chosen name.
    ArtifactError
        No member is finished, a chosen one is not, or OOF logits are not those that training wrote.
    """
    refuse_missing("train", "thera fit-stacker")
    config = config or DecisionConfig()
    started, folder = time.time(), Run(run)
    if config.objective.strip() not in DESCRIPTIONS:
        Objective.parse(config.objective)  # what is no objective at all is refused before the run is read
    facts, table = folder.read(), folder.read_folds()
    objective = parse_objective(config.objective, facts.class_count)
    names, left_out = _chosen_members(folder, table, config, say)
    forced = config.force_members or ()
    logits = folder.oof_logits(names, table)  # (n, m, views[, C])
    averages = {key: logits[:, :, : len(views)].mean(axis=2) for key, views in VIEW_SETS.items()}
    del logits  # the decisions need the memory
    parents, decisions = _parents(folder, names), dict[str, Any]()
    with locked(folder.decision.parent):
        files.remove_temporary_files(folder.decision.parent)
        for key, views in VIEW_SETS.items():
            oof = OofLogits(table, names, averages.pop(key))
            gc.collect()  # rows refer to each other, so those of the former decision are still in memory
            decisions[key] = fit_decision(
                oof,
                views,
                facts.seed,
                objective=objective,
                stacker=config.stacker,
                repeats=config.repeats,
                forced=forced,
                classes=facts.classes,
            )
        no_fault = {offset.message for decision in decisions.values() for offset in _fold_offsets(decision)}
        no_fault.update(small_set_notes(table.labels, table.groups))
        for note in sorted({note for decision in decisions.values() for note in decision.notes}):
            say(f"{'note' if note in no_fault else 'warning'}: {note}")
        stored: Any
        if facts.class_count > 2:
            stored = StoredClassDecisions(parents, **decisions, left_out=left_out)
        elif left_out:
            stored = DecisionsOfChosen(parents, **decisions, left_out=left_out)
        else:
            stored = StoredDecisions(parents, **decisions)
        write_recorded(run, folder.decision, stored)
    folder.record("fit-stacker", started)
    return _result(stored, facts.classes)


def _fold_offsets(decision: Decision | ClassDecision) -> tuple[FoldOffset, ...]:
    return decision.offsets if isinstance(decision, Decision) else ()


def _result(
    stored: StoredDecisions | StoredClassDecisions, classes: tuple[str, ...] | None
) -> FitResult | ClassFitResult:
    if isinstance(stored, StoredDecisions):
        return FitResult(stored.plain, stored.tta)
    return ClassFitResult(stored.plain, stored.tta, classes or ())


def _chosen_members(
    run: Run, table: FoldTable, config: DecisionConfig, say: Say
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the members that a decision is fitted on, and the finished ones that the request leaves out.

    A distilled member repeats the answers of a stack, so it is in a stack only where it is named.
    """
    begun = [member for member in run.members() if member.has_begun]
    missing = {member.name: [fold for fold in range(table.k) if not member.has_oof(fold)] for member in begun}
    if not begun:
        raise ArtifactError(run.folder, "has no members", "train one: thera train-member --help")
    requested = config.members
    for option, names in {"--members": requested, "--force-members": config.force_members}.items():
        if unknown := [name for name in names or () if name not in missing]:
            problem = f"the run has no member {', '.join(map(printable, unknown))}"
            raise ConfigError(option, problem, f"it has {', '.join(missing)}")
    students = {member.name for member in begun if is_distilled(member)}
    if not set(missing) - students and requested is None:
        raise ArtifactError(run.folder, "has distilled members alone", "name one: --members " + min(students))
    chosen = [name for name in missing if (name not in students if requested is None else name in requested)]
    unfinished = {name: f"lacks {_folds(missing[name], table.k)}" for name in chosen if missing[name]}
    for name, problem in unfinished.items():
        if requested is not None:
            raise ArtifactError(f"member {name}", problem, f"{TRAIN_AGAIN}, or leave it out of --members")
        say(f"warning: member {name} {problem} and is left out; to finish it, {TRAIN_AGAIN}")
    finished = tuple(name for name in missing if not missing[name])
    if not finished:
        name, problem = next(iter(unfinished.items()))
        raise ArtifactError(run.folder, f"has no finished member: {name} {problem}", TRAIN_AGAIN)
    used = tuple(name for name in finished if name in chosen)
    for caveat in caveats([run.member(name) for name in used]):
        say(f"note: {caveat}")
    return used, tuple(name for name in finished if name not in used)


def _folds(missing: Sequence[int], k: int) -> str:
    return f"fold{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of 0 to {k - 1}"


def averaged_oof(run: Run, members: Sequence[str], views: Sequence[str]) -> OofLogits:
    """Return the OOF logits of several members, averaged over the first views."""
    table = run.read_folds()
    return OofLogits(table, tuple(members), run.oof_logits(members, table)[:, :, : len(views)].mean(axis=2))


def _parents(run: Run, members: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the hashes of the members' OOF logits, by member and fold."""
    folds = {name: run.member(name).read().folds for name in members}
    return {name: {fold: facts.oof_sha256 for fold, facts in stored.items()} for name, stored in folds.items()}


def read_decisions(run: Run, say: Say = silent) -> FitResult | ClassFitResult:
    """Return the run's decisions, plain and with TTA, once the hashes of their parents are verified.

    Raises
    ------
    ArtifactError
        There is no decision, or the members' OOF logits have changed since.
    """
    remedy = f"run: thera fit-stacker --run {run.folder}"
    classes, stored = run.read().classes, stored_decisions(run, remedy)
    members = [member.name for member in run.members()]
    if removed := [name for name in stored.parents if name not in members]:
        raise ArtifactError(run.decision, f"uses {', '.join(removed)}, which the run no longer has", remedy)
    if stored.parents != _parents(run, tuple(stored.parents)):
        raise ArtifactError(run.decision, "was fitted on other OOF logits than the members have now", remedy)
    for name in members:
        if name not in (*stored.parents, *stored.left_out) and not is_distilled(run.member(name)):
            say(f"warning: member {name} is not in the decision; {remedy}")
    return _result(stored, classes)


def stored_decisions(run: Run, remedy: str) -> DecisionsOfChosen | StoredClassDecisions:
    """Return `decision.json` of a run; its parents are not verified.

    Raises
    ------
    ArtifactError
        It is missing or damaged; `remedy` says what to do.
    """
    if run.read().class_count > 2:
        return read_recorded(run.folder, run.decision, StoredClassDecisions, remedy)
    return read_recorded(run.folder, run.decision, DecisionsOfChosen, remedy)
