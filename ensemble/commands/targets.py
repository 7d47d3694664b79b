"""Several targets of the same images: a run for each, below one folder and on the same folds, and their joint result.

`targets.json` in the folder says which columns of the manifest are targets. Every target has a run of its own in a
subfolder of its name; the decoded images are shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.commands.checks import check_compute, check_members
from ensemble.commands.fit_stacker import averaged_oof, fit_stacker, read_decisions
from ensemble.commands.predict import predict_dataset
from ensemble.commands.report import report
from ensemble.commands.train import train_members
from ensemble.commands.verify import verify
from ensemble.config import ComputeConfig, DataConfig, DecisionConfig, RunConfig
from ensemble.data.classes import UNREAD, class_count
from ensemble.data.folds import Folds, assign_folds, refuse_small_classes
from ensemble.data.source import is_manifest, open_labelled, open_unlabelled, set_name
from ensemble.decision.class_objective import parse_objective
from ensemble.decision.cross_fitting import cross_fit, stack
from ensemble.decision.joint import JointRates, measure_joint
from ensemble.errors import ArtifactError, ConfigError, DataError, printable
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictConfig
from ensemble.progress import Say, silent
from ensemble.report_config import ReportConfig
from ensemble.reports.documents import targets_markdown
from ensemble.reports.report_page import targets_page
from ensemble.results import TargetsPrediction, TargetsResult, VerifyResult
from ensemble.runs import files
from ensemble.runs.locks import locked
from ensemble.runs.run import TARGETS, TRAIN_FIRST, Run

if TYPE_CHECKING:
    from ensemble.data.dataset import Source
    from ensemble.prediction_results import PredictResult


@dataclass(frozen=True)
class TargetsFacts:
    """`targets.json`.

    Attributes
    ----------
    targets : tuple of t str
        The columns, in the order of the config.
    joined : dict of str to str
        The joined class of each combination of class names, which are joined by tabs; empty where there is none.
    label_files : dict of str to str
        SHA-256 of each table of labels as it was written last, by its path.
    """

    targets: tuple[str, ...]
    joined: dict[str, str]
    label_files: dict[str, str]


def is_of_targets(run: Path) -> bool:
    """Return whether a folder holds the runs of several targets."""
    return (run / TARGETS).is_file()


def run_targets(config: RunConfig, compute: ComputeConfig | None = None, say: Say = silent) -> TargetsResult:
    """Train every target, fit its stacker, predict and report; what is done already is not done again.

    Parameters
    ----------
    config : RunConfig
        With `targets`.
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    ConfigError
        The images are not listed by a manifest, a column is missing, or an option does not fit.
    TheraError
        A command that it runs raises it; what was finished before stays.
    """
    refuse_missing("train", "thera run")
    compute = compute or ComputeConfig()
    check_compute(compute)
    check_members(config.members)
    if with_overlay := [member.name for member in config.members if member.overlay is not None]:
        problem = f"member {with_overlay[0]} has an overlay, which is of the labels of one target"
        raise ConfigError("targets", problem, "use clean in its config, or train that target alone")
    of_targets = _data_of_targets(config)
    for data in of_targets.values():
        parse_objective(_objective(config.decision, data.classes or 2), data.classes or 2)
    sources = {name: open_labelled(data) for name, data in of_targets.items()}
    joined = _joined_classes(config, sources)
    if config.predict is not None:
        open_unlabelled(config.predict, UNREAD)
    _begin(config.run, tuple(of_targets), joined)
    folds = _assigned(config, sources, say)
    for name, data in of_targets.items():
        say(f"target {name}: {data.classes} classes")
        say_of = _of_target(name, say)
        train_members(config.run / name, config.members, data, config.folds, config.seed, compute, say_of, folds)
    fit_targets(config.run, config.decision, say)
    predicted = None if config.predict is None else predict_targets(config.run, config.predict, compute, say)
    return replace(report_targets(config.run, say), predicted=predicted)


def fit_targets(run: Path, config: DecisionConfig | None = None, say: Say = silent) -> TargetsResult:
    """Fit the stacker of every target; see `fit_stacker.fit_stacker`.

    Macro F1 and accuracy are objectives of more than two classes; a target of two classes then has the mean class
    error, which is its HTER.
    """
    refuse_missing("train", "thera fit-stacker")
    config = config or DecisionConfig()
    for name in read_targets(run).targets:
        objective = _objective(config, Run(run / name).read().class_count)
        if objective != config.objective:
            say(f"note: target {name} has two classes; its objective is {objective} in place of {config.objective}")
        fit_stacker(run / name, config.model_copy(update={"objective": objective}), _of_target(name, say))
    return report_targets(run, say)


def predict_targets(
    run: Path, config: PredictConfig, compute: ComputeConfig | None = None, say: Say = silent
) -> TargetsPrediction:
    """Label a set of images by every target, and write `predictions.csv` and the table of labels.

    `predictions/<set>/predictions.csv` has for each target the name of the class and the probability of each class.
    The table of labels has the names of the classes, and the joined class where the config gives its column; the cell
    is empty for a combination that no training image has.

    Raises
    ------
    ConfigError
        The table of labels exists, and this run did not write it.
    DataError, ArtifactError
        As `predict.predict`.
    """
    refuse_missing("train", "thera predict --run")
    facts = read_targets(run)
    runs = {name: Run(run / name) for name in facts.targets}
    of_first = runs[facts.targets[0]].read()
    for name in facts.targets:
        read_decisions(runs[name], say)
    source = open_unlabelled(config, UNREAD)
    out = _checked_out(run, config, facts)
    from ensemble.data.store import load_dataset

    pixels = runs[facts.targets[0]].pixels
    dataset = load_dataset(source, pixels, of_first.resize, say=say, on_bad=config.on_bad, exif=of_first.exif)
    results = {
        name: predict_dataset(run / name, dataset, set_name(config.images), config, compute, _of_target(name, say))
        for name in facts.targets
    }
    classes = {name: runs[name].read().classes for name in facts.targets}
    folder = run / "predictions" / next(iter(results.values())).folder.name
    labels = _label_table(dataset.ids, results, classes, facts.joined)
    files.write_table(folder / "predictions.csv", _probability_table(dataset.ids, results, classes))
    content = files.table_bytes(labels)
    files.write_whole(folder / "labels.csv", content)
    sha256 = hashlib.sha256(content).hexdigest()
    files.write_json(run / TARGETS, replace(facts, label_files={**facts.label_files, str(out): sha256}))
    files.write_whole(out, content)
    unknown = int((labels["joined"] == "").sum()) if facts.joined else 0
    if unknown:
        say(f"warning: {unknown} images have a combination that no training image has, and no joined class")
    say(f"{len(dataset)} labels of {len(results)} targets written to {printable(out)}")
    incomplete = None
    if dataset.bad:
        found = f"{len(dataset.bad)} of {len(source)} images cannot be used and are in no table"
        incomplete = DataError(source.where, found)
    return TargetsPrediction(folder.name, folder, out, results, incomplete)


def report_targets(run: Path, say: Say = silent, config: ReportConfig | None = None) -> TargetsResult:
    """Return and write the report of every target, and the joint rates of all targets, nested."""
    refuse_missing("train", "thera report")
    facts = read_targets(run)
    reports = {name: report(run / name, _of_target(name, say), config) for name in facts.targets}
    joint = None
    if all(each.decisions is not None for each in reports.values()):
        joint = _joint(run, facts.targets)
    classes = {name: reports[name].classes or ("0", "1") for name in facts.targets}
    result = TargetsResult(run, reports, joint, classes)
    files.write_whole(run / "report.md", targets_markdown(result).encode())
    files.write_whole(run / "report.html", targets_page(result))
    return result


def verify_targets(run: Path, say: Say = silent) -> VerifyResult:
    """Check every file of the runs of all targets; see `verify.verify`.

    Raises
    ------
    ArtifactError
        Files are damaged or missing; the runs that have such files are named.
    """
    refuse_missing("train", "thera verify")
    checked, damaged = [TARGETS], []
    for name in read_targets(run).targets:
        try:
            checked += [f"{name}/{path}" for path in verify(run / name, say).checked]
        except ArtifactError as error:
            say(f"damaged: {printable(error)}")
            damaged.append(name)
    if damaged:
        problem = f"has damaged or missing files in {', '.join(map(printable, damaged))}"
        raise ArtifactError(printable(run), problem, "the lines above say what rebuilds them")
    return VerifyResult(run, tuple(checked))


def read_targets(run: Path) -> TargetsFacts:
    """Return `targets.json`."""
    return files.read_json(run / TARGETS, TargetsFacts, TRAIN_FIRST)


def _of_target(name: str, say: Say) -> Say:
    """Return a `say` whose notes and warnings begin with the name of the target."""

    def say_of_target(line: str) -> None:
        kind, colon, text = line.partition(": ")
        say(f"{kind}: target {printable(name)}: {text}" if colon and kind in ("note", "warning") else line)

    return say_of_target


# --- before training --------------------------------------------------------------------------------------------------


def _data_of_targets(config: RunConfig) -> dict[str, DataConfig]:
    """Return the data config of each target, with its column and number of classes."""
    from ensemble.data.manifest import count_classes

    assert config.targets is not None
    if not is_manifest(config.data.images):
        problem = f"{printable(config.data.images)} is no CSV or Parquet manifest"
        raise ConfigError("targets", problem, "list the images in a table with a column for each target")
    counts = {name: count_classes(config.data.images, name) for name in config.targets}
    return {
        name: config.data.model_copy(update={"label_column": name, "classes": count}) for name, count in counts.items()
    }


def _objective(config: DecisionConfig, classes: int) -> str:
    return "hter" if classes == 2 and config.objective in ("macro-f1", "accuracy") else config.objective


def _joined_classes(config: RunConfig, sources: Mapping[str, Source]) -> dict[str, str]:
    """Return the joined class of each combination of classes among the training images."""
    from ensemble.data.manifest import count_classes

    if config.joined is None:
        return {}
    count = count_classes(config.data.images, config.joined)
    joined = open_labelled(config.data.model_copy(update={"label_column": config.joined, "classes": count}))
    where = f"{joined.where}: column {printable(config.joined)}"
    result: dict[str, str] = {}
    for combination, name in zip(_combinations(sources), _names_of(joined), strict=True):
        if result.setdefault(combination, name) != name:
            problem = f"{combination.replace(chr(9), ', ')} is {result[combination]} and {name}"
            raise DataError(where, problem, "each combination of the targets must have one joined class")
    return dict(sorted(result.items()))


def _combinations(sources: Mapping[str, Source]) -> list[str]:
    return ["\t".join(names) for names in zip(*map(_names_of, sources.values()), strict=True)]


def _names_of(source: Source) -> list[str]:
    """Return the name of the class of each image."""
    assert source.labels is not None
    names = source.classes or ("0", "1")
    return [names[label] for label in source.labels.tolist()]


def _begin(run: Path, targets: tuple[str, ...], joined: dict[str, str]) -> None:
    """Write `targets.json`, or make sure that it is of the same targets."""
    if (run / "run.json").exists():
        raise ConfigError("--run", f"{printable(run)} is a run of one target", "use another folder for several targets")
    with locked(run, wait=True):
        if not is_of_targets(run):
            files.write_json(run / TARGETS, TargetsFacts(targets, joined, {}))
            return
        facts = read_targets(run)
        if facts.targets != targets:
            problem = f"{printable(run)} has the targets {', '.join(facts.targets)}"
            raise ConfigError("targets", problem, "use another run folder for other targets")
        files.write_json(run / TARGETS, replace(facts, joined=joined))


def _assigned(config: RunConfig, sources: Mapping[str, Source], say: Say) -> Folds:
    """Return folds that are balanced by the classes of every target and by their combinations.

    Raises
    ------
    DataError
        A class of a target has fewer images, or groups of images, than there are folds, or a fold lacks a class.
    """
    from ensemble.data.duplicates import fold_units
    from ensemble.data.store import load_dataset

    data, where = config.data, printable(config.data.images)
    first = next(iter(sources.values()))
    pixels = Run(config.run / next(iter(sources))).pixels
    dataset = load_dataset(first, pixels, data.resize, say=say, on_bad=data.on_bad, exif=data.exif)
    rows = np.flatnonzero(np.isin(first.ids, dataset.ids))  # images that cannot be used have no rows
    labels = np.stack([_labels_of(source)[rows] for source in sources.values()], axis=1)
    units = fold_units(dataset, data.near_duplicates, say)
    for column, (name, source) in enumerate(sources.items()):
        refuse_small_classes(labels[:, column], units, config.folds, f"{where}: column {name}", source.classes)
    combination = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1, 1)
    strata = np.concatenate([labels, combination], axis=1)
    folds = assign_folds(labels[:, 0], units, config.folds, config.seed, where, first.classes, strata)
    for column, name in enumerate(sources):
        for fold in range(config.folds):
            present = np.unique(labels[folds.fold_of == fold, column]).size
            if present < class_count(sources[name].classes):
                problem = f"fold {fold} lacks a class of {name}, since images of one group stay together"
                raise DataError(where, problem, "use fewer folds")
    return folds


def _labels_of(source: Source) -> np.ndarray:
    assert source.labels is not None
    return source.labels.astype(np.int64)


# --- prediction -------------------------------------------------------------------------------------------------------


def _checked_out(run: Path, config: PredictConfig, facts: TargetsFacts) -> Path:
    """Return the path of the table of labels, if it may be written."""
    out = run / "labels.csv" if config.out is None else config.out
    where = f"--out {printable(out)}"
    if out.suffix.lower() != ".csv":
        raise ConfigError(where, "several targets are written as a table", "give a name with the suffix .csv")
    if out.is_symlink() or (out.exists() and not out.is_file()):
        raise ConfigError(where, "is no file", "give the name of a new file")
    if out.exists() and not config.force and files.file_sha256(out) not in facts.label_files.values():
        raise ConfigError(where, "is there already, and this run did not write it", "give a new name, or --force")
    return out


def _label_table(
    ids: np.ndarray,
    results: Mapping[str, PredictResult],
    classes: Mapping[str, Sequence[str] | None],
    joined: Mapping[str, str],
) -> Any:
    import pandas as pd

    columns: dict[str, Any] = {"name": ids}
    for name, result in results.items():
        columns[name] = np.array(classes[name] or ("0", "1"), object)[result.y_pred]
    if joined:
        combinations = ("\t".join(row) for row in zip(*(columns[name] for name in results), strict=True))
        columns["joined"] = np.array([joined.get(each, "") for each in combinations], object)
    return pd.DataFrame(columns)


def _probability_table(
    ids: np.ndarray, results: Mapping[str, PredictResult], classes: Mapping[str, Sequence[str] | None]
) -> Any:
    """Return a column with the class of each target, and one for the probability of each of its classes."""
    import pandas as pd

    columns: dict[str, Any] = {"id": ids}
    for name, result in results.items():
        names = classes[name] or ("0", "1")
        columns[name] = np.array(names, object)[result.y_pred]
        probabilities = result.probabilities
        if probabilities.ndim == 1:
            probabilities = np.stack([1 - probabilities, probabilities], axis=1)
        for label, column in zip(names, probabilities.T, strict=True):
            columns[f"{name}_probability_{label}"] = files.decimals(column)
    return pd.DataFrame(columns)


# --- the joint rates --------------------------------------------------------------------------------------------------


def _joint(run: Path, targets: Sequence[str]) -> JointRates:
    """Return the rates of the combination of the nested predictions of all targets, with TTA."""
    labels, predictions, groups, seed = [], [], None, 0
    for name in targets:
        folder = Run(run / name)
        decision = read_decisions(folder).tta
        oof = averaged_oof(folder, decision.stacker.members, decision.views)
        if oof.classes == 2:
            oof = decision.aligned(oof)  # type: ignore[union-attr]  # a decision of two classes
        labels.append(oof.labels)
        predictions.append(cross_fit(oof.rows, stack(decision.kind), decision.objective).y_pred)
        groups, seed = oof.groups, folder.read().seed
    return measure_joint(np.stack(labels, axis=1), np.stack(predictions, axis=1), groups, seed)
