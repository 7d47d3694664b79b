"""Measure how many labels the fast plans change.

    python tests/benchmarks/parity.py RUN

The run must have its weights. The script predicts the run's own labelled images again, each with the fold model that
was not trained on it: in float32 with the library's convolutions, and with the plan that `thera predict` chooses here.
For each member and for the stack it prints the difference of the logits, the share of equal labels, and both nested
HTERs. With --every N it uses only every Nth image.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble.config import VIEWS, ComputeConfig
from ensemble.data.folds import FoldTable
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.decision.assessment import member_report
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision
from ensemble.members.inference import FoldModels
from ensemble.members.parallel import Resources
from ensemble.members.plans import REFERENCE, Plan
from ensemble.members.predictor import Predictor
from ensemble.progress import progress, say
from ensemble.runs.files import LOGIT_DECIMALS
from ensemble.runs.run import Run


def main(folder: Path, every: int) -> None:
    run = Run(folder)
    facts, whole = run.read(), run.read_folds()
    dataset = load_dataset(open_source(Path(facts.images), Path(facts.labels)), run.pixels, facts.resize, say=say)
    members = run.members()
    rows = np.arange(0, len(dataset), every)
    table = FoldTable(whole.ids[rows], whole.labels[rows], whole.fold_of[rows], None)
    logits = np.empty((2, len(rows), len(members)))
    names = []
    for column, member in enumerate(members):
        trained = member.read()
        with Predictor(dataset.pixels, len(VIEWS), Resources.of(ComputeConfig())) as predictor:
            as_trained = Plan(trained.precision, trained.convolutions)
            spec = predictor.spec(trained.current_config, as_trained, len(trained.folds))
        names.append(f"{member.name}, {spec.plan}")
        plans = REFERENCE, spec.plan
        with progress(2 * len(rows) * len(VIEWS), member.name, "views") as bar:
            for index, plan in enumerate(plans):
                models = FoldModels(replace(spec, plan=plan))
                for fold in range(table.k):
                    inside, weights = table.fold_of == fold, member.read_weights(fold)
                    by_view, used = models.predict(weights, dataset.pixels, rows[inside], VIEWS, bar)
                    if used != plan:
                        say(f"{member.name} fold {fold} was computed in {used}")
                    logits[index, inside, column] = by_view.mean(axis=1).round(LOGIT_DECIMALS)
    print("| | RMS difference, of the spread | equal labels | HTER fp32 native | HTER of the plan | difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for column, name in enumerate(names):
        reports = [member_report(members[column].name, table, each[:, column]) for each in logits]
        y_pred = [each[:, column] >= reports[0].threshold for each in logits]
        _row(name, logits[:, :, column], y_pred, [report.nested.hter for report in reports])
    oofs = [OofLogits(table, tuple(member.name for member in members), each) for each in logits]
    decisions = [fit_decision(oof, VIEWS, 0) for oof in oofs]
    stacked = np.stack([decisions[0].stacker.apply(each) for each in logits])
    y_pred = [each >= decisions[0].threshold for each in stacked]
    _row("the stack, at one threshold", stacked, y_pred, [each.nested.hter for each in decisions])


def _row(name: str, logits: np.ndarray, y_pred: list[np.ndarray], hters: list[float]) -> None:
    difference = np.sqrt(np.mean((logits[0] - logits[1]) ** 2)) / logits[0].std()
    equal = 100 * np.mean(y_pred[0] == y_pred[1])
    print(
        f"| {name} | {difference:.4f} | {equal:.2f} % | {hters[0]:.4f} | {hters[1]:.4f} | {hters[1] - hters[0]:+.4f} |"
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--every", type=int, default=1)
    given = options.parse_args()
    main(given.run, given.every)
