"""Mutated files of a run, configs and label files: each is refused in one line, or gives the same result.

A file of a run has a hash. A command that succeeds on a mutated one must therefore give the same results as before, and
`thera verify` must name each file that is not as it was written. A config and a label file are the user's and have no
hash: one that is mutated to another valid one is counted. A run in which labels were trained on does know them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from ensemble.config_reading import load_config
from ensemble.data.source import open_source
from ensemble.errors import ConfigError, DataError, TheraError

from . import tiny_run
from .lanes import Outcome, Trial
from .mutations import mutate_file, mutated, mutated_lines

HANG_S = 60.0

UNHASHED = ("training.png", "report.html", "report.md", "report.json", "README.md", "model-card.md", ".lock")
"""Files of a run that no command reads."""

CONFIGS = Path(__file__).parents[2] / "configs"

COMMANDS = ("report", *2 * ["predict"], "predict anew", "fit-stacker", *2 * ["verify"], "train-member")
"""The commands that read a whole run, the quick ones twice, so that they are drawn more often."""

MADE = {
    "train-member": ("oof.csv", "weights"),
    "fit-stacker": ("decision.json",),
    "predict": ("label_val.txt", "predictions.csv", "out.txt"),  # a set that is labelled already reads no logits
    "predict anew": ("label_val.txt", "predictions.csv", "out.txt", "logits"),
}
"""Parts of the names of the files that a command makes."""


# --- files of a run ---------------------------------------------------------------------------------------------------


def trials(data: Path, seed: int) -> tuple[Trial, int | None]:
    """Return the trial of the files of a run, and None: there are as many as one likes."""
    interrupted = _interrupted(data)
    sources = {"whole": data / "whole", "interrupted": interrupted}
    expected = tiny_run.results(data / "whole")
    kept: dict[str, dict[Path, bytes]] = {}

    def trial(lane: int, number: int) -> Outcome:
        rng = random.Random(f"{seed} artifact {number}")
        which = "interrupted" if rng.random() < 0.15 else "whole"
        folder = data / f"artifacts-{which}-{lane}"
        if str(folder) not in kept:
            kept[str(folder)] = _contents(tiny_run.fresh(folder, sources[which]))
        command = "train-member" if which == "interrupted" else rng.choice(COMMANDS)
        names = sorted(path for path in kept[str(folder)] if path.name not in UNHASHED and "run" in path.parts)
        path = rng.choice(names)
        try:
            how = mutate_file(path, rng)
            before = _contents(folder)
            failure, status = _failure(command, data, folder, path, kept[str(folder)], before, expected)
        finally:
            _restore(folder, kept[str(folder)])
        where = f"{path.relative_to(folder)}, {how}, thera {command}"
        return Outcome(failure and f"{where}: {failure}", {f"exit {status}": 1})

    return trial, None


def _interrupted(data: Path) -> Path:
    """Return a folder with a run that was killed in the last epoch of its last fold, so that it has training states."""
    folder = data / "interrupted"
    for attempt in range(1, 1000):
        tiny_run.fresh(folder)
        child = tiny_run.Child(lambda n=attempt: _killed_at_save(data, folder, n))  # type: ignore[misc]
        child.ended()
        states = list(folder.glob("run/members/lenet/fold-1/state/*.json"))
        if len(states) == tiny_run.EPOCHS:
            return folder
    raise RuntimeError("no state of the last epoch was found")


def _killed_at_save(data: Path, folder: Path, epochs: int) -> tiny_run.Ended:
    """Train, and end the process once `epochs` states are saved."""
    from ensemble.runs.training_state import StateFolder

    save, saved = StateFolder.save, []

    def counted(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) == epochs:
            os._exit(1)

    StateFolder.save = counted  # type: ignore[method-assign,assignment]
    return tiny_run.run("train-member", data, folder / "run")


def _failure(
    command: str,
    data: Path,
    folder: Path,
    path: Path,
    whole: dict[Path, bytes],
    before: dict[Path, bytes],
    expected: dict[str, str],
) -> tuple[str, int]:
    """Run a command after a file was mutated; return what is wrong, and the exit status."""
    if command == "predict anew":
        shutil.rmtree(folder / "run/predictions", ignore_errors=True)
        before = _contents(folder)
    ended = tiny_run.run(command.split()[0], data, folder / "run")
    after = _contents(folder)
    if ended.status:
        if not ended.is_refusal(4):
            return f"ended with {ended.status}: {ended.text[-300:]}", ended.status
        changed = [str(each) for each in before if after.get(each) != before[each] and each.name not in UNHASHED]
        return f"refused, but {changed} changed" if changed and command != "train-member" else "", ended.status
    if command == "verify" and not _is_same(path, whole.get(path), before.get(path)):
        return "verified, though the file is not as it was written", 0
    actual = tiny_run.results(folder)
    for name, sha256 in expected.items():
        if any(part in name for part in MADE.get(command, ())) and actual.get(name) != sha256:
            return f"exit status 0 and another {name}", 0
    return "", 0


def _is_same(path: Path, whole: bytes | None, mutant: bytes | None) -> bool:
    if path.suffix != ".json" or whole is None or mutant is None:
        return whole == mutant
    try:
        return bool(json.loads(whole) == json.loads(mutant))  # the layout of a JSON file is not hashed
    except ValueError:
        return False


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _restore(folder: Path, whole: dict[Path, bytes]) -> None:
    for path, content in _contents(folder).items():
        if path not in whole:
            path.unlink()
        elif content != whole[path]:
            path.write_bytes(whole[path])
    for path in whole:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole[path])


# --- configs ----------------------------------------------------------------------------------------------------------


def config_trials(data: Path, seed: int) -> tuple[Trial, int | None]:
    """Return the trial of configs, and None: there are as many as one likes."""
    texts = [path.read_text() for path in sorted(CONFIGS.rglob("*.yaml"))]

    def trial(lane: int, number: int) -> Outcome:
        rng, path = random.Random(f"{seed} config {number}"), data / f"config-{lane}.yaml"
        text = rng.choice(texts)
        path.write_text(text)
        original = load_config(path)
        if rng.random() < 0.5:
            changed, how = mutated(text.encode(), rng)
        else:
            words, how = mutated_lines(text, rng)
            changed = words.encode()
        path.write_bytes(changed)
        try:
            config = load_config(path)
        except ConfigError as error:
            is_line = str(error).startswith(str(path)) and "\n" not in str(error)
            return Outcome("" if is_line else f"{how}: no line: {error}", {"refused": 1})
        return Outcome(counts={"same config" if config == original else "another valid config": 1})

    return trial, None


# --- label files ------------------------------------------------------------------------------------------------------


def label_trials(data: Path, seed: int) -> tuple[Trial, int | None]:
    """Return the trial of label files, and None: there are as many as one likes. Each tenth asks the run."""
    images = data / "train/img"
    lines = (data / "train/labels.txt").read_bytes()
    values = lines.split()
    table = b"name,label\n" + b"".join(b"%03d.png,%s\n" % (row, value) for row, value in enumerate(values, 1))
    original = [int(value) for value in values]

    def trial(lane: int, number: int) -> Outcome:
        rng = random.Random(f"{seed} labels {number}")
        text = rng.choice([lines, table])
        if rng.random() < 0.5:
            changed, how = mutated(text, rng)
        else:
            words, how = mutated_lines(text.decode(), rng)
            changed = words.encode()
        path = data / f"labels-{lane}{'.txt' if text is lines else '.csv'}"
        path.write_bytes(changed)
        if number % 10 == 0:
            return _asked_of_a_run(data, lane, path, how, original)
        try:
            source = open_source(images, path)
        except (DataError, ConfigError) as error:
            return Outcome("" if "\n" not in str(error) else f"{how}: not one line: {error}", {"refused": 1})
        assert source.labels is not None
        if len(source.labels) != len(original) or not set(source.labels.tolist()) <= {0, 1}:
            return Outcome(f"{how}: {source.labels}")
        same = source.labels.tolist() == original
        return Outcome(counts={"same labels" if same else "other valid labels": 1})

    return trial, None


def _asked_of_a_run(data: Path, lane: int, path: Path, how: str, original: list[int]) -> Outcome:
    """Continue the finished run with a mutated label file: it must have the labels of the run, or be refused."""
    folder = data / f"labels-run-{lane}"
    if not folder.exists():
        tiny_run.fresh(folder, data / "whole")
    line = tiny_run.arguments("train-member", data, folder / "run")
    line[line.index("--labels") + 1] = str(path)
    ended = tiny_run.run_line(line)
    counts = {f"run: exit {ended.status}": 1}
    if ended.status:
        return Outcome("" if ended.is_refusal(2, 3, 4) else f"{how}: ended with {ended.status}: {ended.text}", counts)
    try:
        labels = open_source(data / "train/img", path).labels
    except TheraError as error:
        return Outcome(f"{how}: accepted, though it cannot be read: {error}", counts)
    same = labels is not None and labels.tolist() == original
    return Outcome("" if same else f"{how}: accepted with other labels", counts)
