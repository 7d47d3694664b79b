"""`thera remove-member`: remove a member and all that it has trained from a run."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path

from ensemble.commands.fit_stacker import stored_decisions
from ensemble.errors import ArtifactError, ConfigError, printable
from ensemble.progress import Say, silent
from ensemble.results import RemoveResult
from ensemble.runs.artifacts import forget_below
from ensemble.runs.attribution import maps_path
from ensemble.runs.locks import locked
from ensemble.runs.run import Run


def remove_member(run: Path, name: str, yes: bool = False, say: Say = silent) -> RemoveResult:
    """Remove a member: its weights, its OOF logits, and its logits of predicted images.

    Label files and the decision stay. A decision that uses the member is stale then: prediction refuses it until the
    stacker is fitted anew.

    Parameters
    ----------
    run : Path
    name : str
        The member's name.
    yes : bool
        Without it nothing is removed, and the error says what would be.
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ConfigError
        The run has no such member, or `yes` is not given.
    LockedError
        The member is being trained.
    """
    started, folder = time.time(), Run(run)
    folder.read()
    members = {member.name: member for member in folder.members()}
    if name not in members:
        known = f"it has {', '.join(members)}" if members else "it has no members"
        raise ConfigError(printable(run), f"has no member {printable(name)}", known)
    member, stale = members[name], _uses(folder, name)
    folds = len(member.read().folds)
    content = f"{folds} trained fold{'' if folds == 1 else 's'}"
    if not yes:
        used = ", and the decision uses it" if stale else ""
        raise ConfigError(f"member {name}", f"holds {content}{used}", "to remove it for good, add --yes")
    with locked(member.folder):
        # Under another name first, so that an interruption leaves no half of a member.
        forget_below(run, member.folder)
        forget_below(run, maps_path(run, name))
        maps_path(run, name).unlink(missing_ok=True)
        removed = folder.folder / f".removed-{secrets.token_hex(4)}"
        member.folder.rename(removed)
    for path in (*folder.folder.glob(".removed-*"), *folder.folder.glob(f"predictions/*/logits/{name}")):
        shutil.rmtree(path, ignore_errors=True)
    folder.record(f"remove-member {name}", started)
    say(f"note: member {name} with {content} is removed")
    if stale:
        say(f"warning: the decision used {name} and is stale; run: thera fit-stacker --run {printable(run)}")
    left = {each: len(members[each].read().folds) for each in members if each != name}
    return RemoveResult(run, name, left, stale)


def _uses(run: Run, name: str) -> bool:
    """Return whether the run's decision uses a member; one that cannot be read uses none."""
    try:
        return name in stored_decisions(run, "").parents
    except ArtifactError:
        return False
