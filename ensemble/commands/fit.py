"""`thera fit`: a whole run from images and labels alone, in a given time."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.commands.checks import check_compute, check_labels, check_prediction
from ensemble.commands.choice import LEAST_OF_FULL, Speed, Work, fitting, folds_for, members_for, seconds_of
from ensemble.commands.fit_stacker import fit_stacker
from ensemble.commands.run import labelled_and_reported, run
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, DecisionConfig, MemberConfig, RunConfig
from ensemble.config_reading import config_text, load_config
from ensemble.decision.class_objective import parse_objective
from ensemble.errors import ConfigError, ResourceError, Stopped, printable
from ensemble.extras import refuse_missing
from ensemble.fit_config import FitConfig
from ensemble.predict_config import PredictConfig
from ensemble.progress import Say, silent
from ensemble.results import ReportResult
from ensemble.runs import files
from ensemble.runs.run import Run

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset

RUNS = Path("checkpoints")
"""The folder of the runs whose folder is not given."""

CONFIG = "config.yaml"
"""The file in the run's folder that says what was chosen. `thera run` goes on with it."""

OF_AN_INTERRUPTED_START = {"pixels", ".lock", ".lock.holder", ".lock.marker"}
"""What the folder of a run may hold that was stopped before its members were chosen."""

LEAST_FOLDS = 3
"""The least number of folds that is chosen."""

MEASURED_IMAGES = 200_000
"""Images to train on, all epochs together, from which the speed is measured without a budget, to say how long the run
takes. Fewer take some minutes; the measurement itself takes up to half a minute."""


def fit(
    config: FitConfig, decision: DecisionConfig | None = None, compute: ComputeConfig | None = None, say: Say = silent
) -> ReportResult:
    """Choose members, train them, fit the stacker, predict and report.

    What is chosen stands in `config.yaml` in the run's folder: `commands.run.run` repeats it, or goes on with it after
    an interruption. With a time, speeds are measured by a few updates, and measured again by each trained member; the
    epochs of the next ones follow.

    Parameters
    ----------
    config : FitConfig
    decision : DecisionConfig, optional
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ConfigError
        An option is wrong, the folder is no folder of this run, or the time is too short.
    TheraError
        As the commands that it runs.
    """
    refuse_missing("train", "thera fit")
    started, decision, compute = time.monotonic(), decision or DecisionConfig(), compute or ComputeConfig()
    _check(config, decision, compute)
    if config.run is not None and _is_begun(config.run):
        return run(_kept(config, decision, say), compute, say)
    with _new_folder(config, say) as folder:
        planned = _planned(config, folder, decision, compute, started, say)
        _write(planned)
    try:
        if config.seconds is None:
            return run(planned.config, compute, say)
        return _run_in_time(planned, started + config.seconds, compute, say)
    except Stopped as stopped:
        raise Stopped(stopped.where, stopped.found, f"to go on, run: thera run {folder / CONFIG}") from None


@dataclass(frozen=True)
class _Planned:
    """The config of a run, and what is known of its speed.

    Attributes
    ----------
    config : RunConfig
    full : sequence of MemberConfig
        All members of the choice, with their epochs without a budget.
    work : Work
    speeds : dict of str to Speed
        By architecture; empty where nothing was measured.
    """

    config: RunConfig
    full: Sequence[MemberConfig]
    work: Work
    speeds: dict[str, Speed]


# --- before anything is trained ---------------------------------------------------------------------------------------


def _check(config: FitConfig, decision: DecisionConfig, compute: ComputeConfig) -> None:
    """Refuse what can be refused before libraries are loaded and images are read."""
    from ensemble.data.source import open_labelled

    parse_objective(decision.objective, config.classes or 2)
    check_compute(compute)
    if config.time is not None and compute.cluster is not None:
        problem = "plans by the speed of this machine, which is not that of a cluster"
        raise ConfigError("--time", problem, "give --epochs, or leave --time out")
    check_labels(open_labelled(config), config.folds or LEAST_FOLDS)
    run, prediction = config.run, _prediction(config)
    if prediction is not None:
        check_prediction(Run(run or _free(config.images)), prediction, config.classes or 2)
    if run is None or not run.exists() or (run / CONFIG).exists():
        return
    if not run.is_dir() or not {path.name for path in run.iterdir()} <= OF_AN_INTERRUPTED_START:
        problem = f"{printable(run)} exists and was not made by thera fit"
        raise ConfigError("--run", problem, "name a new folder, or leave --run out")


def _is_begun(folder: Path) -> bool:
    """Return whether a run has a config, and an epoch is finished: until then, it may be planned anew."""
    return (folder / CONFIG).exists() and any(member.has_begun for member in Run(folder).members())


def _kept(config: FitConfig, decision: DecisionConfig, say: Say) -> RunConfig:
    """Return the config of a run that was begun, to go on with; it must be of the same data.

    Raises
    ------
    ConfigError
        The run was begun with other data or options.
    """
    assert config.run is not None
    path = config.run / CONFIG
    kept = load_config(path)
    prediction = _prediction(config)
    changed: dict[str, tuple[object, object]] = {
        "images": (kept.data.images, config.images),
        "labels": (kept.data.labels, config.labels),
        "classes": (kept.data.classes, config.classes),
        "positive": (kept.data.positive, config.positive),
        "resize": (kept.data.resize, config.resize),
        "image-column": (kept.data.image_column, config.image_column),
        "label-column": (kept.data.label_column, config.label_column),
        "exif": (kept.data.exif, config.exif),
        "near-duplicates": (kept.data.near_duplicates, config.near_duplicates),
        "on-bad": (kept.data.on_bad, config.on_bad),
        "seed": (kept.seed, config.seed),
        "folds": (kept.folds, config.folds or kept.folds),
    }
    if config.epochs is not None:
        changed["epochs"] = ({member.epochs for member in kept.members}, {config.epochs})
    for name, (before, now) in changed.items():
        if before != now:
            option = "IMAGES" if name == "images" else f"--{name}"
            raise ConfigError(option, f"differs from {printable(path)}", "use another --run, or leave --run out")
    if config.time is not None:
        say("note: --time is not used, because members and epochs are chosen already")
    say(f"goes on with the members of {printable(path)}")
    return kept.model_copy(update={"run": config.run, "decision": decision, "predict": prediction or kept.predict})


def _prediction(config: FitConfig) -> PredictConfig | None:
    if config.predict is None:
        return None
    both = {name: getattr(config, name) for name in PredictConfig.model_fields if name in FitConfig.model_fields}
    return PredictConfig.model_validate({**both, "images": config.predict})


@contextlib.contextmanager
def _new_folder(config: FitConfig, say: Say) -> Iterator[Path]:
    """Make the run's folder, and remove what was made where the block fails: nothing is trained yet."""
    folder = config.run or _free(config.images)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    was_empty = not folder.is_dir() or not any(folder.iterdir())
    try:
        folder.mkdir(parents=True, exist_ok=config.run is not None)
    except OSError as error:  # also where another process was faster
        problem = f"cannot be made ({error.strerror})"
        raise ResourceError(printable(folder), problem, "give another folder by --run") from None
    say(f"the run's folder is {printable(folder)}")
    try:
        yield folder
    except BaseException:
        for path in folder.iterdir() if was_empty else ():
            shutil.rmtree(path, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _free(images: Path) -> Path:
    """Return a folder in `RUNS` that does not exist, named after the images."""
    from ensemble.data.source import set_name

    name = set_name(images)
    folder, number = RUNS / name, 1
    while folder.exists() or folder.is_symlink():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder


# --- the choice -------------------------------------------------------------------------------------------------------


def _planned(
    config: FitConfig, folder: Path, decision: DecisionConfig, compute: ComputeConfig, started: float, say: Say
) -> _Planned:
    """Read the images, choose the members, and say what is chosen and how long it takes.

    Raises
    ------
    ConfigError
        The time does not suffice for an epoch.
    DataError
        The images cannot be used, or are too few for the folds.
    """
    from ensemble.cluster.resources import resources_of
    from ensemble.data.folds import assign_folds, together
    from ensemble.data.source import open_labelled, open_unlabelled
    from ensemble.data.store import load_dataset

    device = resources_of(compute).device.type
    kind = "cuda" if device == "cuda" else "cpu"  # on Apple's GPU as on a CPU: no larger network was trained there
    dataset = load_dataset(
        open_labelled(config), Run(folder).pixels, config.resize, on_bad=config.on_bad, exif=config.exif
    )
    n, folds = len(dataset), config.folds or folds_for(kind, len(dataset))
    assert dataset.labels is not None
    where, units = printable(config.labels or config.images), together(dataset.digests, dataset.groups)
    assign_folds(dataset.labels, units, folds, config.seed, where, dataset.classes)  # or it is refused here
    full = members_for(kind, n, folds, dataset.size[1], config.epochs)
    prediction = _prediction(config)
    work = Work(n, folds, len(open_unlabelled(prediction, config.classes)) if prediction else 0)
    images = sum(member.epochs for member in full) * n * (folds - 1)
    members, expected = full, None
    speeds: dict[str, Speed] = {}
    if config.seconds is not None or (images >= MEASURED_IMAGES and compute.cluster is None):
        full, speeds = _measured(full, dataset, folds, compute)
        members = full
        if config.seconds is not None:
            left = started + config.seconds - time.monotonic() - work.decision_seconds
            members = fitting(full, speeds, work, left, LEAST_OF_FULL)
            if not members:
                least = config.seconds - left + seconds_of([full[0].model_copy(update={"epochs": 1})], speeds, work)
                raise ConfigError("--time", f"{config.time} is too short", f"an epoch needs {_words(least)}")
        expected = time.monotonic() - started + seconds_of(members, speeds, work) + work.decision_seconds
    say(_chosen(members, folds, device, expected, config))
    data = DataConfig(**{name: getattr(config, name) for name in DataConfig.model_fields})
    run_config = RunConfig(
        run=folder,
        seed=config.seed,
        folds=folds,
        data=data,
        members=tuple(members),
        decision=decision,
        predict=prediction,
    )
    return _Planned(run_config, full, work, speeds)


def _measured(
    members: Sequence[MemberConfig], dataset: Dataset, folds: int, compute: ComputeConfig
) -> tuple[list[MemberConfig], dict[str, Speed]]:
    """Measure the speed of each architecture; return the members with the plans that were measured, and the speeds."""
    from ensemble.bench.rates import training_speed
    from ensemble.members.parallel import Resources

    assert dataset.labels is not None
    speeds: dict[str, Speed] = {}
    plans: dict[str, dict[str, str]] = {}
    for member in members:
        if member.arch not in speeds:
            plan, per_row, start = training_speed(member, dataset.pixels, dataset.labels, folds, Resources.of(compute))
            speeds[member.arch] = Speed(per_row, start)
            plans[member.arch] = {"precision": plan.precision, "convolutions": plan.convolutions}
    return [member.model_copy(update=plans[member.arch]) for member in members], speeds


def _chosen(members: Sequence[MemberConfig], folds: int, device: str, expected: float | None, config: FitConfig) -> str:
    """Return the line that says what is chosen."""
    epochs = {member.epochs for member in members}
    names = ", ".join(member.name if len(epochs) == 1 else f"{member.name} ({member.epochs})" for member in members)
    each = "epochs in brackets" if len(epochs) > 1 else f"{epochs.pop()} epochs" + (" each" if members[1:] else "")
    line = f"chosen for the {'GPU' if device != 'cpu' else 'CPU'}: {names}; {each}, {folds} folds"
    if expected is None:
        return line
    line += f"; expected to take {_words(expected)}"
    if config.seconds is None:
        return f"{line} (--time 1h would limit it)"
    unused = "; more epochs were never measured to help" if expected < 0.8 * config.seconds else ""
    return f"{line} of {config.time}{unused}"


def _words(seconds: float) -> str:
    """Return a duration in words.

    >>> _words(42), _words(125), _words(5400)
    ('42 s', '2 min 5 s', '1 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {left} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _write(planned: _Planned) -> None:
    members = len(planned.config.members)
    comment = f"What thera fit has chosen: {members} member{'s' if members > 1 else ''}.\n"
    comment += f"To go on or to repeat it: thera run {planned.config.run / CONFIG}"
    files.write_whole(planned.config.run / CONFIG, config_text(planned.config, comment).encode())


# --- the run in its time ----------------------------------------------------------------------------------------------


def _run_in_time(planned: _Planned, deadline: float, compute: ComputeConfig, say: Say) -> ReportResult:
    """Run the config member by member; after each, the epochs of the next ones follow from the time that is left."""
    config, work, speeds, trained = planned.config, planned.work, planned.speeds, list[MemberConfig]()
    waiting = list(config.members)
    while waiting:
        began = time.monotonic()
        train_members(config.run, waiting[:1], config.data, config.folds, config.seed, compute, say)
        ratio = (time.monotonic() - began) / _training_seconds(waiting[0], speeds, work)
        speeds = {arch: Speed(speed.seconds_per_row * ratio, speed.start_seconds) for arch, speed in speeds.items()}
        trained.append(waiting.pop(0))
        if waiting:
            names = [member.name for member in waiting]
            full = [member for member in planned.full if member.name in names]
            left = deadline - time.monotonic() - work.decision_seconds - _prediction_seconds(trained, speeds, work)
            waiting = fitting(full, speeds, work, left, 0.0)
            if waiting_names := [name for name in names if name not in {member.name for member in waiting}]:
                say(f"warning: the time does not suffice for {', '.join(waiting_names)}, as training took longer")
            config = config.model_copy(update={"members": (*trained, *waiting)})
            _write(_Planned(config, planned.full, work, speeds))
    fit_stacker(config.run, config.decision, say)
    return labelled_and_reported(config, compute, say)


def _training_seconds(member: MemberConfig, speeds: dict[str, Speed], work: Work) -> float:
    return seconds_of([member], speeds, Work(work.images, work.folds))


def _prediction_seconds(members: Sequence[MemberConfig], speeds: dict[str, Speed], work: Work) -> float:
    """Return the seconds in which trained members predict the images to label."""
    both = seconds_of(members, speeds, work)
    return both - sum(_training_seconds(member, speeds, work) for member in members)
