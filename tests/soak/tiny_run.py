"""The smallest whole run: its commands, in this process or in a forked one, its results, and what is torn or left.

The networks are real. The figure of the epochs is a constant image, because drawing it takes longer than the training;
how a figure is drawn does not touch how it is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import write_tiny

from ensemble.errors import ArtifactError
from ensemble.runs import files

IMAGES, NEW, FOLDS, EPOCHS = 12, 6, 2, 2

COMMANDS = ("train-member", "fit-stacker", "predict")
"""The commands of a whole run, in order."""

FIGURE = b"\x89PNG\r\n\x1a\n the figure of the epochs"

RESULTS = (
    *("folds.csv", "members/*/fold-*/weights.safetensors", "members/*/fold-*/oof.csv", "decision/decision.json"),
    *("predictions/**/*.csv", "predictions/**/*.txt"),
)
"""The files of a run that are the same, byte for byte, whenever and however often it was interrupted."""


# --- commands ---------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write the images, and run every command once, so that forked processes import and set up nothing."""
    import ensemble.reports.figures

    ensemble.reports.figures.training_figure = lambda *_: FIGURE
    write_tiny(folder / "train", IMAGES)
    write_tiny(folder / "new", NEW, seed=1)
    for command in (*COMMANDS, "report", "verify"):
        ended = run(command, folder, folder / "whole" / "run")
        if ended.status:
            raise RuntimeError(f"thera {command} fails without a fault: {ended.text}")


def arguments(command: str, data: Path, run: Path, *more: str) -> list[str]:
    """Return the command line of a command; `data` is the folder that `prepare` has written."""
    plan = ["--precision", "fp32", "--convolutions", "native", "--device", "cpu", "--jobs", "1"]
    options = {
        "train-member": [
            *("--images", str(data / "train/img"), "--labels", str(data / "train/labels.txt")),
            *("--arch", "lenet", "--folds", str(FOLDS), "--epochs", str(EPOCHS), "--input-size", "32", *plan),
        ],
        "predict": ["--images", str(data / "new/img"), "--out", str(run.parent / "out.txt"), *plan],
    }
    return [command, *([] if command == "verify" else ["--run"]), str(run), *options.get(command, []), *more]


@dataclass(frozen=True)
class Ended:
    """How a command has ended: its exit status, minus the signal where one ended it, and its standard error."""

    status: int
    text: str = ""

    @property
    def errors(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.startswith("error: ")]

    def is_refusal(self, *statuses: int) -> bool:
        """Return whether the command has ended with one of these statuses and with one line that says why."""
        return self.status in statuses and len(self.errors) == 1 and "Traceback" not in self.text


def run(command: str, data: Path, folder: Path, *more: str) -> Ended:
    """Run a command in this process."""
    return run_line(arguments(command, data, folder, *more))


def run_line(line: list[str]) -> Ended:
    from ensemble.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(line) or 0
        except SystemExit as end:
            status = int(end.code or 0)
    return Ended(status, said.getvalue())


class Child:
    """A forked process that does some work, and ends with its return value: an `Ended`."""

    def __init__(self, work: Callable[[], Ended]) -> None:
        self._pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._pipe)
                ended = work()
                with open(writing, "w", closefd=True) as file:
                    json.dump([ended.status, ended.text[-4000:]], file)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> Ended:
        """Wait for the end of the process."""
        with open(self._pipe, closefd=True) as file:
            text = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Ended(*json.loads(text)) if code == 0 else Ended(code)


def whole_run(data: Path, folder: Path) -> Ended:
    """Run all commands of a run, up to one that fails."""
    for command in COMMANDS:
        ended = run(command, data, folder)
        if ended.status:
            break
    return ended


# --- what lies on disk ------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(folder: Path) -> dict[str, str]:
    """Return the hashes of the results in the folder above a run, by path; a run that was decided twice has one."""
    paths = {path for pattern in RESULTS for path in folder.glob(f"run/{pattern}")} | {folder / "out.txt"}
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(paths) if path.is_file()}


def stored(folder: Path) -> set[str]:
    """Return the paths of the files that a fault may not remove: no training states, temporary files or locks."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not _is_passing(path)}


def _is_passing(path: Path) -> bool:
    return path.name.startswith(".") or any(part == "state" or part.startswith("decoding-") for part in path.parts)


def torn(folder: Path, whole: dict[str, str]) -> list[str]:
    """Return the files below a folder that are incomplete or not as a whole run has them (`whole`: path -> hash)."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and _is_torn(path, folder, whole)]


def _is_torn(path: Path, folder: Path, whole: dict[str, str]) -> bool:
    name = str(path.relative_to(folder))
    if path.name.startswith(".") or "decoding-" in name:
        return False
    if path.suffix == ".json":
        with contextlib.suppress(ArtifactError):
            files.read_json(path, dict[str, Any], "")
            return False
        return True
    if path.suffix == ".safetensors" and "state" in path.parts:
        with contextlib.suppress(ArtifactError):
            files.read_tensors(path)
            return False
        return True
    if path.name == "history.jsonl":
        try:
            return not all(json.loads(line)["epoch"] for line in path.read_text().splitlines())
        except (ValueError, KeyError):
            return True
    if path.suffix == ".md":
        return not path.read_bytes().endswith(b"\n")
    return sha256(path) != whole.get(name, sha256(path))


def left_behind(folder: Path) -> list[str]:
    """Return the temporary files and folders below a folder."""
    found = (
        *folder.rglob(".*.tmp"),
        *folder.rglob("decoding-*"),
        *folder.rglob(".lock.holder"),
        *folder.rglob("state"),
    )
    return sorted(str(path.relative_to(folder)) for path in found)


def hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of all files below a folder that a fault may not change, by path."""
    return {name: sha256(folder / name) for name in stored(folder)}


def differences(actual: dict[str, str], expected: dict[str, str]) -> list[str]:
    return sorted(name for name in {**actual, **expected} if actual.get(name) != expected.get(name))


def fresh(folder: Path, source: Path | None = None) -> Path:
    """Empty a folder, or make it a copy of another."""
    shutil.rmtree(folder, ignore_errors=True)
    if source is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(source, folder)
    return folder
