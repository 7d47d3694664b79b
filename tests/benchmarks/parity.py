"""Do the fast ways of computing change the labels?

    python tests/benchmarks/parity.py RUN

Takes a run whose weights are there, predicts its own labelled images again, each by the fold model that has not seen
it, in float32 with the library's convolutions and in the plan that `thera predict` takes here, and prints for each
member and for the stack how far the logits lie apart, the share of equal labels, and both HTERs (nested). With
--every N of every Nth image alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ensemble.commands.predict import Engine
from ensemble.commands.train import load_images
from ensemble.config import VIEWS, DataConfig, PredictConfig
from ensemble.data.folds import FoldTable
from ensemble.decision.assessment import member_report
from ensemble.decision.cross_fitting import OofLogits
from ensemble.decision.decision import fit_decision
from ensemble.members.inference import PLAINEST, FoldModels
from ensemble.progress import progress, say
from ensemble.runs.files import LOGIT_DECIMALS
from ensemble.runs.run import Run


def main(folder: Path, every: int) -> None:
    run = Run(folder)
    identity, whole = run.read(), run.read_folds()
    data = DataConfig(images=Path(identity["images"]), labels=Path(identity["labels"]), resize=identity["resize"])
    dataset = load_images(data.images, data.labels, data.resize, run, say)
    engine = Engine(PredictConfig(images=data.images, out=folder / "unused.txt"))
    members = run.members()
    taken = np.arange(0, len(dataset), every)
    table = FoldTable(whole.ids[taken], whole.labels[taken], whole.fold_of[taken], None)
    logits = np.empty((2, len(taken), len(members)))
    names = []
    for column, member in enumerate(members):
        config, size, plan, device = engine.model(member, dataset, 1)
        names.append(f"{member.name}, {plan}")
        ways = [FoldModels(config, size, each, device) for each in (PLAINEST, plan)]
        with progress(2 * len(taken) * len(VIEWS), member.name, "views") as bar:
            for fold in range(table.k):
                inside = table.fold_of == fold
                for place, models in enumerate(ways):
                    weights = member.read_weights(fold)
                    found, how = models.predict(weights, dataset.pixels, taken[inside], VIEWS, bar)
                    if place and how != plan:
                        say(f"{member.name} fold {fold} gave way to {how}")
                    logits[place, inside, column] = found.mean(axis=1).round(LOGIT_DECIMALS)
    print("| | RMS difference, of the spread | equal labels | HTER fp32 native | HTER of the plan | difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for column, member in enumerate(members):
        reports = [
            member_report(member.name, table.ids, each[:, column], table.labels, table.fold_of, table.groups, 0)
            for each in logits
        ]
        calls = [each[:, column] >= reports[0].threshold for each in logits]
        _row(names[column], logits[:, :, column], calls, [report.nested.hter for report in reports])
    oofs = [
        OofLogits(table.ids, table.labels, table.fold_of, tuple(member.name for member in members), each, table.groups)
        for each in logits
    ]
    decisions = [fit_decision(oof, VIEWS, 0) for oof in oofs]
    stacked = np.stack([decisions[0].stacker.apply(each) for each in logits])
    calls = [each >= decisions[0].threshold for each in stacked]
    _row("the stack, at one threshold", stacked, calls, [each.nested.hter for each in decisions])


def _row(name: str, logits: np.ndarray, calls: list[np.ndarray], hters: list[float]) -> None:
    apart = np.sqrt(np.mean((logits[0] - logits[1]) ** 2)) / logits[0].std()
    equal = 100 * np.mean(calls[0] == calls[1])
    print(f"| {name} | {apart:.4f} | {equal:.2f} % | {hters[0]:.4f} | {hters[1]:.4f} | {hters[1] - hters[0]:+.4f} |")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--every", type=int, default=1)
    given = options.parse_args()
    main(given.run, given.every)
