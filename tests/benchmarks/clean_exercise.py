"""Measure what cleaning inside the training folds does to the HTER of one network on real labels.

    python tests/benchmarks/clean_exercise.py --images train_img --labels label_train.txt

A `small_cnn` is trained four times on the same folds with the same seed: on the labels as given, and with doubtful
labels of the training rows dropped, flipped or weighed. The search for doubtful labels is nested (`clean` in a member):
for each fold, networks that are cross-fitted within its training rows find them. These networks are trained once, for
all three ways. Held-out rows never change, and every score is on the labels as given.

Printed are the changed rows of each class, the nested HTER of each way with its interval, and the paired difference to
training without cleaning. The intervals draw rows and refit the thresholds; they leave out how much two trainings with
different random numbers differ. What is finished is not trained again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.commands import training_issues
from ensemble.commands.fit_stacker import averaged_oof
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, MemberConfig
from ensemble.decision.assessment import Candidate, assess
from ensemble.decision.cross_fitting import member_logit, of_score
from ensemble.decision.label_issues import rank_issues
from ensemble.reports.table import Table
from ensemble.runs.run import Run

NAME = "small_cnn"
"""The name of the member in each run. Random streams have the name in their seeds, so the four trainings share them."""

WAYS: dict[str, bool | str] = {"labels as given": False, "dropped": True, "flipped": "flip", "weighed": "weight"}
"""The value of `clean` of each way."""

VIEWS = ("identity", "hflip")


def share_search(folder: Path, folds: int) -> None:
    """Make all runs of this process use the logits that the first search gives, which are kept in the folder."""
    train_parts, logits_of_parts = training_issues._train_parts, training_issues._logits_of_parts

    def train_once(*arguments: Any) -> None:
        if not all((folder / f"search-{fold}.npy").exists() for fold in range(folds)):
            train_parts(*arguments)

    def kept_logits(member: Any, job: Any, parts: np.ndarray, table: Any) -> np.ndarray:
        path = folder / f"search-{job.fold}.npy"
        if not path.exists():
            incomplete = path.with_suffix(".tmp.npy")
            np.save(incomplete, logits_of_parts(member, job, parts, table))
            os.replace(incomplete, path)
        return np.load(path)

    training_issues._train_parts, training_issues._logits_of_parts = train_once, kept_logits


def changed_rows(folder: Path, run: Run, seed: int) -> Table:
    """Return how many training rows of each class are doubtful, by fold."""
    table, rows = run.read_folds(), []
    for fold in range(table.k):
        inside = np.flatnonzero(table.fold_of != fold)
        labels = table.labels[inside]
        doubtful = labels[rank_issues(np.load(folder / f"search-{fold}.npy")[inside], labels, seed).rows]
        for label in (0, 1):
            count, of = int((doubtful == label).sum()), int((labels == label).sum())
            rows.append((str(fold), str(label), str(of), str(count), f"{100 * count / of:.2f} %"))
    return Table("Doubtful labels of the training rows", ("fold", "label", "rows", "doubtful", "share"), tuple(rows))


def main(given: argparse.Namespace) -> None:
    folder, runs = given.out, {}
    folder.mkdir(parents=True, exist_ok=True)
    share_search(folder, given.folds)
    data = DataConfig(images=given.images, labels=given.labels)
    compute = ComputeConfig(device="cpu", jobs=given.jobs)
    for way, clean in WAYS.items():
        config = MemberConfig(
            arch="small_cnn",
            name=NAME,
            pretrained=False,
            drop_rate=0,
            input_size=given.input_size,
            epochs=given.epochs,
            augment="standard",
            clean=clean,
        )
        runs[way] = Run(folder / way.replace(" ", "-"))
        train_members(runs[way].folder, [config], data, given.folds, given.seed, compute)
    print(changed_rows(folder, runs["labels as given"], given.seed).markdown())
    candidates, groups = [], None
    for way, run in runs.items():
        oof = averaged_oof(run, [NAME], VIEWS)
        groups = oof.groups
        candidates.append(Candidate.of(way, oof, of_score(member_logit(0))))
    rows = []
    for assessed in assess(candidates, groups, given.seed):
        difference = assessed.difference
        rows.append(
            (
                assessed.name,
                f"{assessed.nested.hter:.4f}",
                f"{assessed.interval.low:.4f} to {assessed.interval.high:.4f}",
                f"{difference.value:+.4f}" if difference else "",
                f"{difference.interval.low:+.4f} to {difference.interval.high:+.4f}" if difference else "",
                f"{assessed.auc:.4f}",
            )
        )
    size = f" at {given.input_size} pixels" if given.input_size else ""
    title = f"small_cnn{size}, {given.epochs} epochs, {given.folds} folds, {candidates[0].nested.labels.size} rows"
    columns = ("doubtful labels", "HTER, nested", "95 % interval", "minus as given", "95 % interval, paired", "AUC")
    print(Table(title, columns, tuple(rows)).markdown())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--input-size", type=int, help="the networks see images of this size; by default, as they are")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/clean-exercise"))
    main(parser.parse_args())
