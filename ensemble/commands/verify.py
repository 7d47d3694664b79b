"""`thera verify`: check every file of a run against its type and the hashes that were recorded of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.prediction_files import read_prediction_facts
from ensemble.config import VIEWS
from ensemble.errors import ArtifactError, printable
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent
from ensemble.results import VerifyResult
from ensemble.runs import files
from ensemble.runs.artifacts import recorded_files
from ensemble.runs.attribution import FOLDER as ATTRIBUTION
from ensemble.runs.attribution import read_maps
from ensemble.runs.changed_rows import CHANGED, OVERLAY
from ensemble.runs.distilled import DISTIL_AGAIN, is_distilled, read_distilled, teacher_files
from ensemble.runs.distilled import FACTS as DISTILLED
from ensemble.runs.label_issues import FACTS, FIND_AGAIN, read_facts
from ensemble.runs.member import TRAIN_AGAIN, MemberFolder
from ensemble.runs.predictions import PREDICT_AGAIN, read_note
from ensemble.runs.run import Run
from ensemble.runs.training_state import StateFolder
from ensemble.runtime.onnx_file import opened
from ensemble.runtime.openvino_file import check_openvino

T = TypeVar("T")


def verify(run: Path, say: Say = silent) -> VerifyResult:
    """Check the files of a run, each against its type and the hash that was recorded of it. Nothing is changed.

    Weights, decoded images and the teacher's logits of a finished student may be missing: a run can be decided and
    reported without them. Files without a recorded
    hash, which older versions wrote, are checked against their type alone.

    Parameters
    ----------
    run : Path
        The run's folder.
    say : callable
        Receives a line for each damaged file, with what rebuilds it, and notes.

    Raises
    ------
    ArtifactError
        Files are damaged or missing; their number is named.
    """
    refuse_missing("train", "thera verify")
    folder, checks = Run(run), _Checks(run, say)
    facts = folder.read()  # everything else is found through it
    checks.read(run / "run.json", folder.read)
    checks.read(run / "folds.csv", folder.read_folds)
    if facts.images_sha256 is not None:
        checks.read(folder.images, folder.read_images)
    if facts.bad_images_sha256 is not None:
        checks.compare(folder.bad_images, facts.bad_images_sha256, "restore it")
    for path in sorted(run.glob("members/*/member.json")):
        _check_member(MemberFolder(path.parent), checks)
    if folder.decision.exists():
        checks.read(folder.decision, lambda: read_decisions(folder))
    if (run / FACTS).exists():
        issues = checks.read(run / FACTS, lambda: read_facts(run))
        for name, sha256 in issues.files.items() if issues is not None else ():
            checks.compare(run / FACTS.parent / name, sha256, FIND_AGAIN)
    for path in sorted(run.glob(f"{ATTRIBUTION}/*.json")):
        checks.read(path, lambda name=path.stem: read_maps(run, name))  # type: ignore[misc]
    for place in sorted(run.glob("predictions/*")):
        _check_prediction(place, facts.class_count, checks)
    for path in sorted(folder.pixels.glob("*/store.json")):
        _check_store(path, checks)
    _check_exports(folder, checks)
    for name in recorded_files(run):
        if not (run / name).exists():
            checks.compare(run / name, "", "restore it, or make it again by the command that wrote it")
    if checks.damaged:
        found = f"{len(checks.damaged)} of {len(checks.checked)} files are damaged or missing"
        raise ArtifactError(printable(run), found, "the lines above say what rebuilds them")
    return VerifyResult(run, tuple(checks.checked))


class _Checks:
    """The files that were checked, and those of them that are damaged, by their paths in the run's folder."""

    def __init__(self, run: Path, say: Say) -> None:
        self._run, self.say = run, say
        self.checked: list[str] = []
        self.damaged: list[str] = []

    def read(self, path: Path, read: Callable[[], T]) -> T | None:
        """Read a file; return None where it is damaged."""
        name = Path(os.path.relpath(path, self._run)).as_posix()  # targets share the decoded images beside their runs
        self.checked.append(name)
        try:
            return read()
        except ArtifactError as error:
            self.damaged.append(name)
            self.say(f"damaged: {printable(error)}")
            return None

    def compare(self, path: Path, sha256: str, remedy: str) -> None:
        """Compare a file with its hash."""

        def read() -> None:
            if not path.exists():
                raise ArtifactError(path, "is not there", remedy)
            if files.file_sha256(path) != sha256:
                raise ArtifactError(path, "is not the file that thera wrote (its hash differs)", remedy)

        self.read(path, read)


def _check_member(member: MemberFolder, checks: _Checks) -> None:
    facts = checks.read(member.folder / "member.json", member.read)
    if facts is None:
        return
    checks.read(member.folder / "member.json", member.check_config)
    absent = [fold for fold in sorted(facts.folds) if not (member.fold(int(fold)) / "weights.safetensors").exists()]
    if absent:
        checks.say(f"note: member {member.name} lacks the weights of folds {', '.join(absent)}; new images need them")
    for fold, finished in sorted(facts.folds.items()):
        folder, number = member.folder / f"fold-{fold}", int(fold)
        if fold not in absent:
            checks.compare(folder / "weights.safetensors", finished.weights_sha256, TRAIN_AGAIN)
        checks.read(folder / "oof.csv", lambda number=number: member.read_oof(number, VIEWS))  # type: ignore[misc]
        if (folder / "history.jsonl").exists():
            checks.read(folder / "history.jsonl", lambda number=number: member.history(number))  # type: ignore[misc]
    for fold, left_out in sorted(facts.left_out.items()):
        checks.compare(member.folder / f"fold-{fold}" / "left_out.csv", left_out.sha256, "restore it")
    for fold, changed in sorted(facts.changed.items()):
        checks.compare(member.folder / f"fold-{fold}" / CHANGED, changed.sha256, "restore it")
    if (overlay := facts.config.get("overlay")) is not None:
        checks.compare(member.folder / OVERLAY, overlay, "restore it, or train the member again by the same command")
    for part, sha256 in sorted(facts.parts.items()):
        if (path := member.part(*map(int, part.split("/"))) / "oof.csv").exists():
            checks.compare(path, sha256, TRAIN_AGAIN)
    if is_distilled(member):
        checks.read(member.folder / DISTILLED, lambda: read_distilled(member))
        for number, path, sha256 in teacher_files(member):
            if str(number) in facts.folds and not path.exists():
                checks.say(f"note: member {member.name} lacks {path.name}; its finished fold does not need it")
            else:
                checks.compare(path, sha256, DISTIL_AGAIN)
    for state in sorted(member.folder.glob("fold-*/**/state")):
        checks.read(state, StateFolder(state.parent).load)


def _check_prediction(place: Path, classes: int, checks: _Checks) -> None:
    if (place / "predictions.json").exists():
        facts = checks.read(place / "predictions.json", lambda: read_prediction_facts(place, classes))
        for name, sha256 in facts.files.items() if facts is not None else ():
            checks.compare(place / name, sha256, PREDICT_AGAIN)
    path = place / "logits" / "made_from.json"
    if path.exists():
        note = checks.read(path, lambda: read_note(path))
        for name, kept in note.files.items() if note is not None else ():
            if (path.parent / name).exists():
                checks.compare(path.parent / name, kept.sha256, PREDICT_AGAIN)


def _check_exports(run: Run, checks: _Checks) -> None:
    """Check the exported models in the run's folder: their hashes, and the facts beside them."""
    for path in sorted(run.folder.glob("export/*.onnx")):
        file = checks.read(path, lambda path=path: opened(path))  # type: ignore[misc]
        if file is not None and run.decision.exists() and file.facts.decision_sha256 != files.file_sha256(run.decision):
            checks.say(f"note: {printable(path)} was exported from another decision than the run has now")
    for path in sorted(run.folder.glob("export/*.xml")):
        checks.read(path, lambda path=path: check_openvino(path))  # type: ignore[misc]


def _check_store(path: Path, checks: _Checks) -> None:
    from ensemble.data.store import read_store

    checks.read(path, lambda: read_store(path.parent))
