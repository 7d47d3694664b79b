"""The files of a prediction in `predictions/<set>/`: the label file, the table and the facts, written and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_deploy import ClassDeployment
from ensemble.decision.decision import Decision
from ensemble.decision.deploy import Deployment
from ensemble.prediction_results import ClassPredictionFacts, PredictionFacts, PredictionRequest, PredictResult
from ensemble.runs import files
from ensemble.runs.label_files import TABLE, label_file, label_file_name
from ensemble.runs.migration import migrate_facts
from ensemble.runs.predictions import read_facts, read_table, write_facts, write_labels
from ensemble.runs.run import BAD_IMAGES, RunFacts

if TYPE_CHECKING:
    import pandas as pd

    from ensemble.commands.fold_logits import FoldLogits


def write_prediction(
    folder: Path,
    ids: np.ndarray,
    run: RunFacts,
    deployment: Deployment | ClassDeployment,
    logits: FoldLogits,
    request: PredictionRequest,
    decision: Decision | ClassDecision,
    bad: bytes | None,
    seen: int,
    learned: tuple[str, ...],
) -> None:
    """Write the label file, the table and the facts of a prediction, and the list of the images that were left out.

    `seen` images were in training, and `learned` are the caveats of distilled members.
    """
    name = label_file_name(ids) if bad is None else TABLE  # a line would not say which image it labels
    content = label_file(name, ids, deployment.y_pred, run.classes)
    table_of = _class_table if isinstance(deployment, ClassDeployment) else _table
    hashes = write_labels(folder, name, content, table_of(ids, deployment, logits))  # type: ignore[arg-type]
    if bad is not None:
        hashes[BAD_IMAGES] = files.write_whole(folder / BAD_IMAGES, bad)
    facts = prediction_facts(run, decision, deployment, request, len(ids), seen, learned)
    if isinstance(facts, PredictionFacts):
        facts = replace(facts, cascade=logits.cascade)
    write_facts(folder, replace(facts, files=hashes))


def prediction_facts(
    run: RunFacts,
    decision: Decision | ClassDecision,
    deployment: Deployment | ClassDeployment,
    request: PredictionRequest,
    images: int,
    seen: int,
    learned: tuple[str, ...],
) -> PredictionFacts | ClassPredictionFacts:
    """Return the facts about the labels of so many images, without those of a cascade and without files.

    `seen` images were in training, and `learned` are the caveats of distilled members. The shares of the labels are
    those of the images of the deployment.
    """
    common: dict[str, Any] = {
        "request": request,
        "images": images,
        "objective": decision.objective.text,
        "expectation": deployment.expectation,
        "share_check": deployment.share_check,
        "files": {},
        "seen_in_training": seen,
        "caveats": learned,
    }
    if isinstance(deployment, Deployment):
        assert isinstance(decision, Decision)
        return PredictionFacts(
            **common,
            threshold=deployment.threshold,
            share_of_label_0=float(np.mean(deployment.y_pred == 0)),
            nested_hter=decision.nested.hter,
            assumed_share_of_label_0=deployment.assumed_share_of_label_0,
            cascade=None,
        )
    assert run.classes is not None
    counts = np.bincount(deployment.y_pred, minlength=len(run.classes))
    shares = tuple((counts / counts.sum()).tolist())
    return ClassPredictionFacts(**common, classes=run.classes, offsets=deployment.offsets, shares=shares)


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
    return pd.DataFrame(columns | _fold_votes(deployment))


def _class_table(ids: np.ndarray, deployment: ClassDeployment, logits: FoldLogits) -> pd.DataFrame:
    """Return `predictions.csv` of more than two classes: as `_table`, with a column of logits for each class."""
    import pandas as pd

    columns: dict[str, Any] = {"id": ids}
    for name, values in (
        *((f"logit_{member}", deployment.logits[:, j]) for j, member in enumerate(logits.members)),
        ("stacked_logit", deployment.stacked_logits),
        ("probability", deployment.probabilities),
    ):
        columns |= {f"{name}_{label}": files.decimals(column) for label, column in enumerate(values.T)}
    columns["label"] = deployment.y_pred
    columns |= {f"vote_{name}": deployment.member_votes[:, j] for j, name in enumerate(logits.members)}
    columns["plurality"] = deployment.plurality
    return pd.DataFrame(columns | _fold_votes(deployment))


def _fold_votes(deployment: Deployment | ClassDeployment) -> dict[str, Any]:
    votes = deployment.fold_votes
    return {f"vote_fold-{fold}": votes[:, fold] for fold in range(votes.shape[1])}


def read_prediction(folder: Path, classes: int) -> PredictResult:
    """Return a prediction among so many classes as it was written, once the hashes of its files are verified."""
    facts = read_prediction_facts(folder, classes)
    texts = read_table(folder, facts.files)
    numbers = texts.columns[1:]  # a cell is empty where a cascade skipped the logit
    table = texts.assign(**{name: texts[name].replace("", "nan").astype(np.float64) for name in numbers})

    def values(name: str) -> np.ndarray:
        names = name if classes == 2 else [f"{name}_{label}" for label in range(classes)]
        return np.asarray(table[names], np.float64)

    return PredictResult(
        name=folder.name,
        folder=folder,
        facts=facts,
        table=table,
        ids=table["id"].to_numpy(),
        y_pred=table["label"].to_numpy(np.int8),
        stacked_logits=values("stacked_logit"),
        probabilities=values("probability"),
    )


def read_prediction_facts(folder: Path, classes: int) -> PredictionFacts | ClassPredictionFacts:
    """Return `predictions.json` of a prediction among so many classes, once its hash is verified."""
    if classes > 2:
        return read_facts(folder, ClassPredictionFacts)
    return read_facts(folder, PredictionFacts, migrate_facts)
