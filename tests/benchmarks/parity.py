"""Do the fast ways of computing change the labels?

    python tests/benchmarks/parity.py RUN

Takes a run whose weights are there, predicts its own labelled images again, each by the fold model that has not seen
it, in float32 with the library's convolutions and in the plan that `thera predict` takes here, and prints for each
member and for the stack how far the logits lie apart, the share of equal labels, and both HTERs (nested).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ensemble import runs
from ensemble.config import VIEWS, DataConfig, PredictConfig
from ensemble.decision.assessment import member_report
from ensemble.decision.decision import fit_decision
from ensemble.decision.rules import OofLogits
from ensemble.engine import Engine
from ensemble.members.inference import PLAINEST, FoldModels
from ensemble.pipeline import load_images
from ensemble.progress import progress, say


def main(folder: Path) -> None:
    run = runs.Run(folder)
    identity, table = run.read(), run.read_folds()
    data = DataConfig(images=Path(identity["images"]), labels=Path(identity["labels"]), resize=identity["resize"])
    dataset = load_images(data.images, data.labels, data.resize, run, say)
    engine = Engine(PredictConfig(images=data.images, out=folder / "unused.txt"))
    members = run.members()
    logits = np.empty((2, len(dataset), len(members)))
    names = []
    for column, member in enumerate(members):
        config, size, plan, device = engine.model(member, dataset, 1)
        names.append(f"{member.name}, {plan}")
        ways = [FoldModels(config, size, each, device) for each in (PLAINEST, plan)]
        with progress(2 * len(dataset) * len(VIEWS), member.name, "views") as bar:
            for fold in range(table.k):
                rows = np.flatnonzero(table.fold_of == fold)
                for place, models in enumerate(ways):
                    found, taken = models.predict(member.read_weights(fold), dataset.pixels, rows, VIEWS, bar)
                    if place and taken != plan:
                        say(f"{member.name} fold {fold} gave way to {taken}")
                    logits[place, rows, column] = found.mean(axis=1).round(runs.LOGIT_DECIMALS)
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
    main(options.parse_args().run)
