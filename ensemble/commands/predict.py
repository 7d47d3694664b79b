"""`thera predict`: computes the logits of the fold models, decides on the labels, and writes the label file."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.checks import announce, check_compute
from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.fold_logits import FoldLogits, fold_logits
from ensemble.commands.prediction_files import read_prediction, write_prediction
from ensemble.config import ComputeConfig
from ensemble.data.source import open_unlabelled, set_name
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_deploy import ClassDeployment, class_deploy, refuse_options_of_two_classes
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision
from ensemble.decision.deploy import Deployment, deploy
from ensemble.errors import ConfigError, DataError, printable, some
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictConfig, PredictOptions
from ensemble.prediction_results import PredictionRequest, PredictResult
from ensemble.progress import Say, silent
from ensemble.reports.prediction_tables import remarks, seen_note
from ensemble.runs import files
from ensemble.runs.distilled import caveats
from ensemble.runs.label_files import checked_target, incomplete, is_table, labels_of_all, write_label_file
from ensemble.runs.locks import locked
from ensemble.runs.predictions import is_predicted
from ensemble.runs.run import BAD_IMAGES, Run, RunFacts, bad_images_table

if TYPE_CHECKING:
    from ensemble.data.dataset import Dataset


def predict(run: Path, config: PredictConfig, compute: ComputeConfig | None = None, say: Say = silent) -> PredictResult:
    """Label a set of images and write its label file: a class index in each line, or a table with name,label.

    The logits of each member are averaged over its fold models and the views, stacked, and compared with the threshold;
    among more than two classes, the greatest stacked logit plus offset gives the label.
    A set that the same decision has labelled already is not computed again. Its kept logits serve other decisions too.

    With `on_bad="skip"`, images that cannot be used are listed in `bad_images.csv` beside the predictions, and the
    result's `incomplete` says so. A table leaves them out; a file with a label in each line is only written if
    `bad_label` gives them a label.

    Parameters
    ----------
    run : Path
        The run's folder, with a fitted stacker.
    config : PredictConfig
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    DataError
        The images cannot be used, or do not have the size of the training images.
    ArtifactError
        A file of the run is missing or damaged.
    """
    refuse_missing("train", "thera predict --run")
    folder, compute = Run(run), compute or ComputeConfig()
    facts = folder.read()
    check_options(config, facts)
    read_decisions(folder, say)  # a run without a decision is refused before the images are read
    source = open_unlabelled(config, facts.class_count)
    out = checked_target(folder, config.out, source.ids, config.force)
    check_compute(compute)
    announce(source, say)
    from ensemble.data.store import load_dataset

    dataset = load_dataset(source, folder.pixels, facts.resize, say=say, on_bad=config.on_bad, exif=facts.exif)
    result = predict_dataset(run, dataset, set_name(config.images), config, compute, say)
    table = printable(result.folder / "predictions.csv")
    if dataset.bad and not is_table(out) and config.bad_label is None:
        say(f"{len(dataset)} labels, logits and votes are in {table}")
    else:
        content, count = labels_of_all(out, source.ids, result.ids, result.y_pred, facts.classes, config.bad_label)
        write_label_file(folder, out, content)
        result = replace(result, out=out)
        say(f"{count} labels written to {printable(out)}; logits and votes are in {table}")
    if not dataset.bad:
        return result
    listed = result.folder / BAD_IMAGES
    written = result.out is not None
    left_out = incomplete(source.where, len(source), len(dataset.bad), listed, out, written, facts.class_count)
    return replace(result, incomplete=left_out)


def check_options(config: PredictOptions, facts: RunFacts) -> None:
    """Refuse options that do not fit the number of classes of a run.

    Raises
    ------
    ConfigError
        An option of two classes alone is given for more, or a label for skipped images that is none of the classes.
    """
    classes = facts.class_count
    bad_label = getattr(config, "bad_label", None)
    if bad_label is not None and bad_label >= classes:
        raise ConfigError("--bad-label", f"must be 0 to {classes - 1}; got {bad_label}")
    if classes > 2:
        refuse_options_of_two_classes(config.correction, config.prior)
        if config.cascade is not None:
            raise ConfigError("--cascade", f"is for two classes alone; this run has {classes}", "leave it out")


def predict_dataset(
    run: Path,
    dataset: Dataset,
    name: str,
    options: PredictOptions,
    compute: ComputeConfig | None = None,
    say: Say = silent,
) -> PredictResult:
    """Label decoded images; all files are written below `predictions/` in the run.

    Parameters
    ----------
    run : Path
    dataset : Dataset
    name : str
        The name of the set, and of its folder below `predictions/`.
    options : PredictOptions
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    DataError, ArtifactError
        As `predict`.
    """
    started, folder = time.time(), Run(run)
    facts, decisions = folder.read(), read_decisions(folder)
    check_options(options, facts)
    decision = decisions.tta if options.tta else decisions.plain
    if tuple(dataset.size) != tuple(facts.size):
        problem = (
            f"images are {dataset.size[0]} × {dataset.size[1]} pixels; the members were trained on {list(facts.size)}"
        )
        raise DataError(name, problem, "resize them, or train with --resize")
    is_new = folder.is_new(dataset.digests)
    if seen := dataset.ids[~is_new].tolist():
        say(f"note: {printable(name)}: {seen_note(len(seen), len(dataset))} They are {some(seen)}")
    target = folder.predictions(name, dataset.fingerprint, options.tta)
    with_tta = folder.predictions(name, dataset.fingerprint, tta=True)  # its logits include the plain view
    bad = bad_images_table(dataset.bad) if dataset.bad else None
    request = _request(options, dataset.fingerprint, files.file_sha256(folder.decision), decision.views, bad)
    with locked(target):
        if not is_predicted(target, request, say):
            table, members = folder.read_folds(), decision.stacker.members
            by_view = folder.oof_logits(members, table)[:, :, : len(decision.views)]
            oof = OofLogits(table, members, by_view.mean(axis=2))
            logits = fold_logits(
                folder, decision, oof, by_view, dataset, [target, with_tta], options, compute or ComputeConfig(), say
            )
            deployment = _decided(decision, oof, logits, options, facts.seed, is_new, by_view)
            learned = caveats([folder.member(name) for name in decision.stacker.members])
            write_prediction(target, dataset.ids, facts, deployment, logits, request, decision, bad, len(seen), learned)
    folder.record(f"predict {target.name}", started)
    result = read_prediction(target, facts.class_count)
    for remark in remarks(result.name, result.facts):
        say(remark)
    return result


def _decided(
    decision: Decision | ClassDecision,
    oof: OofLogits,
    logits: FoldLogits,
    options: PredictOptions,
    seed: int,
    is_new: np.ndarray,
    by_view: np.ndarray,
) -> Deployment | ClassDeployment:
    """Return the labels of the images and the rates to expect."""
    mean, combine, correction, prior = logits.mean, options.combine, options.correction, options.prior
    if isinstance(decision, ClassDecision):
        return class_deploy(decision, oof, logits.by_fold, mean, combine, correction, prior, is_new)
    return deploy(decision, oof, logits.by_fold, mean, combine, correction, prior, seed, is_new, by_view)


def _request(
    options: PredictOptions, fingerprint: str, decision_sha256: str, views: tuple[str, ...], bad: bytes | None
) -> PredictionRequest:
    return PredictionRequest(
        fingerprint=fingerprint,
        decision_sha256=decision_sha256,
        views=views,
        correction=options.correction,
        prior=options.prior,
        combine=options.combine,
        cascade=options.cascade,
        precision=options.precision,
        convolutions=options.convolutions,
        bad_images_sha256=hashlib.sha256(bad).hexdigest() if bad else None,
    )
