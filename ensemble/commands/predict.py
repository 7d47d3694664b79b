"""`thera predict`: computes the logits of the fold models, decides on the labels, and writes the label file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.commands.checks import announce, check_compute
from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.fold_logits import FoldLogits, fold_logits
from ensemble.config import ComputeConfig, PredictConfig, PredictOptions
from ensemble.data.source import open_source, set_name
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import Decision
from ensemble.decision.deploy import Deployment, deploy
from ensemble.errors import DataError, printable
from ensemble.progress import Say, silent
from ensemble.reports.prediction_tables import label_file_warnings
from ensemble.results import PredictionFacts, PredictionRequest, PredictResult
from ensemble.runs import files
from ensemble.runs.label_files import checked_target, label_file, label_file_name, write_label_file
from ensemble.runs.migration import migrate_facts
from ensemble.runs.predictions import is_predicted, read_facts, read_table, write_facts, write_labels
from ensemble.runs.run import Run, RunFacts

if TYPE_CHECKING:
    import pandas as pd

    from ensemble.data.dataset import Dataset


def predict(run: Path, config: PredictConfig, compute: ComputeConfig | None = None, say: Say = silent) -> PredictResult:
    """Label a set of images and write its label file: a 0 or 1 in each line, or a table with name,label.

    The logits of each member are averaged over its fold models and the views, stacked, and compared with the threshold.
    A set that the same decision has labelled already is not computed again. Its kept logits serve other decisions too.

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
    folder, compute = Run(run), compute or ComputeConfig()
    facts = folder.read()
    read_decisions(folder, say)  # a run without a decision is refused before the images are read
    source = open_source(config.images, follow_links=config.follow_links, find_labels=False)
    out = checked_target(folder, config.out, source.ids, config.force)
    check_compute(compute.device)
    announce(source, say)
    from ensemble.data.store import load_dataset

    dataset = load_dataset(source, folder.pixels, facts.resize, say=say)
    result = predict_dataset(run, dataset, set_name(config.images), config, compute, say)
    write_label_file(folder, out, label_file(out.name, result.ids, result.y_pred, facts.classes))
    table = result.folder / "predictions.csv"
    say(f"{len(dataset)} labels written to {printable(out)}; logits and votes are in {printable(table)}")
    return replace(result, out=out)


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
    decision = decisions.tta if options.tta else decisions.plain
    if tuple(dataset.size) != tuple(facts.size):
        problem = (
            f"images are {dataset.size[0]} × {dataset.size[1]} pixels; the members were trained on {list(facts.size)}"
        )
        raise DataError(name, problem, "resize them, or train with --resize")
    target = folder.predictions(name, dataset.fingerprint, options.tta)
    with_tta = folder.predictions(name, dataset.fingerprint, tta=True)  # its logits include the plain view
    request = _request(options, dataset.fingerprint, files.file_sha256(folder.decision), decision.views)
    with files.locked(target):
        if not is_predicted(target, request, say):
            by_view = folder.oof_logits(decision.stacker.members)[:, :, : len(decision.views)]
            oof = OofLogits(folder.read_folds(), decision.stacker.members, by_view.mean(axis=2))
            logits = fold_logits(
                folder, decision, oof, by_view, dataset, [target, with_tta], options, compute or ComputeConfig(), say
            )
            deployment = deploy(
                decision,
                oof,
                logits.by_fold,
                logits.mean,
                options.combine,
                options.correction,
                options.prior,
                facts.seed,
                by_view,
            )
            _write(target, dataset.ids, facts, deployment, logits, request, decision)
    folder.record(f"predict {target.name}", started)
    result = _read(target)
    for warning in label_file_warnings(result.facts):
        say(f"warning: {printable(result.name)}: {warning}")
    return result


def _request(
    options: PredictOptions, fingerprint: str, decision_sha256: str, views: tuple[str, ...]
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
    )


def _write(
    folder: Path,
    ids: np.ndarray,
    run: RunFacts,
    deployment: Deployment,
    logits: FoldLogits,
    request: PredictionRequest,
    decision: Decision,
) -> None:
    """Write the label file, the table and the facts of a prediction."""
    name = label_file_name(ids)
    content = label_file(name, ids, deployment.y_pred, run.classes)
    hashes = write_labels(folder, name, content, _table(ids, deployment, logits))
    facts = PredictionFacts(
        request=request,
        images=len(ids),
        objective=decision.objective.text,
        threshold=deployment.threshold,
        share_of_label_0=float(np.mean(deployment.y_pred == 0)),
        nested_hter=decision.nested.hter,
        expectation=deployment.expectation,
        share_check=deployment.share_check,
        assumed_share_of_label_0=deployment.assumed_share_of_label_0,
        cascade=logits.cascade,
        files=hashes,
    )
    write_facts(folder, facts)


def _table(ids: np.ndarray, deployment: Deployment, logits: FoldLogits) -> pd.DataFrame:
    """Return the table `predictions.csv`: ids, logits, stacked logits, probabilities, labels and votes.

    Where a cascade did not evaluate a member on an image, its cells and the majority are empty.
    """
    import pandas as pd

    columns: dict[str, Any] = {"id": ids}
    known = logits.known
    for j, name in enumerate(logits.members):
        text = pd.Series(files.decimals(deployment.logits[:, j]), dtype=object)
        columns[f"logit_{name}"] = text.where(known[:, j], "")
    columns["stacked_logit"] = files.decimals(deployment.stacked_logits)
    columns["probability"] = files.decimals(deployment.probabilities)
    columns["label"] = deployment.y_pred
    for j, name in enumerate(logits.members):
        columns[f"vote_{name}"] = pd.Series(deployment.member_votes[:, j], dtype=object).where(known[:, j], "")
    columns["majority"] = pd.Series(deployment.majority, dtype=object).where(known.all(axis=1), "")
    for fold in range(deployment.fold_votes.shape[1]):
        columns[f"vote_fold-{fold}"] = deployment.fold_votes[:, fold]
    return pd.DataFrame(columns)


def _read(folder: Path) -> PredictResult:
    facts = read_facts(folder, PredictionFacts, migrate_facts)
    texts = read_table(folder, facts.files)
    numbers = texts.columns[1:]  # a cell is empty where a cascade skipped the logit
    table = texts.assign(**{name: texts[name].replace("", "nan").astype(np.float64) for name in numbers})
    return PredictResult(
        name=folder.name,
        folder=folder,
        facts=facts,
        table=table,
        ids=table["id"].to_numpy(),
        y_pred=table["label"].to_numpy(np.int8),
        stacked_logits=table["stacked_logit"].to_numpy(np.float64),
        probabilities=table["probability"].to_numpy(np.float64),
    )
