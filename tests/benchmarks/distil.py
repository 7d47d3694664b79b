"""Measure what a student loses against its teacher, out of fold and elsewhere: python tests/benchmarks/distil.py

For each seed, heads are drawn (`data/synthetic.py`), 5 % of whose labels are flipped. Two `small_cnn` are trained and
stacked, and `thera distil` trains a `small_cnn` on the answers of the stack: with the held-out images of each fold,
without their labels; without them (`--no-held-out`); and with them and the OOF logits (`--from-oof`). Printed are, as
means over the seeds with 95 % intervals (Student's t), the HTER of the student less that of the teacher,

- out of fold: the nested HTER, which `thera distil` prints,
- on fresh images, which neither was given: each fold's student and teacher at the thresholds of the nested HTER,

and the difference of the two. Above 0, the printed figure is too good for images that the student was not given.
Labels are those that are given, also of the fresh images. No seed is begun that would not end within `--minutes`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clean import interval, labels_of

from ensemble.commands.distil import distil
from ensemble.commands.fit_stacker import averaged_oof, fit_stacker
from ensemble.commands.fold_logits import unkept_fold_logits
from ensemble.commands.train import train_members
from ensemble.config import VIEWS, ComputeConfig, DataConfig, MemberConfig
from ensemble.data.source import open_source
from ensemble.data.store import load_dataset
from ensemble.data.synthetic import write_demo
from ensemble.decision.cross_fitting import stack
from ensemble.decision.rates import error_rates
from ensemble.distil_config import DistilConfig, StudentConfig
from ensemble.predict_config import PredictOptions
from ensemble.runs.run import Run

WAYS: dict[str, dict[str, bool]] = {
    "with held-out images": {"held_out": True},
    "without": {"held_out": False},
    "with held-out images, from OOF logits": {"held_out": True, "from_oof": True},
}
TEACHERS = ("one", "two")
COMPUTE = ComputeConfig(device="cpu", jobs=1)


def hters(run: Run, members: Sequence[str], folder: Path) -> np.ndarray:
    """Return the nested HTER of a stack, and the mean HTER of its fold models on the fresh images, (2,)."""
    oof, fresh = averaged_oof(run, members, VIEWS), open_source(folder / "val_img", find_labels=False)
    dataset, given = load_dataset(fresh, run.pixels, None), labels_of(folder / "given_val.txt")
    by_fold = unkept_fold_logits(run, members, VIEWS, dataset, PredictOptions(), COMPUTE).by_fold
    y_pred, of_fresh = np.empty_like(oof.labels), []
    for fold in oof.folds:
        rule, inside = stack("nonnegative")(oof.rows.without(fold)), oof.fold_of == fold
        y_pred[inside] = rule(oof.logits[inside])
        of_fresh.append(error_rates(given, rule(by_fold[:, :, fold])).hter)
    return np.array([error_rates(oof.labels, y_pred).hter, np.mean(of_fresh)])


def of_seed(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the HTER out of fold and on fresh images (2,) of the teacher, and of the student of each way."""
    write_demo(folder, options.images, options.fresh, seed, size=options.size, flip=options.flip)
    data, run = DataConfig(images=folder / "train_img", labels=folder / "label_train.txt"), Run(folder.parent / "run")
    base: dict[str, Any] = {"arch": "small_cnn", "batch_size": 32, "ema_decay": 0.98, "augment": "light"}
    teachers = [MemberConfig(**base, name=name, epochs=options.epochs) for name in TEACHERS]
    train_members(run.folder, teachers, data, options.folds, seed, COMPUTE)
    fit_stacker(run.folder)
    rates = {"teacher": hters(run, TEACHERS, folder)}
    for number, (way, settings) in enumerate(WAYS.items()):
        student = StudentConfig(**base, name=f"student{number}", epochs=options.student_epochs)
        distil(run.folder, DistilConfig(**settings), student, COMPUTE)
        rates[way] = hters(run, (student.name,), folder)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"images": 1500, "fresh": 4000, "size": 32, "epochs": 8, "student_epochs": 10, "folds": 2, "seeds": 8}
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--flip", type=float, default=0.05)
    parser.add_argument("--minutes", type=float, default=20, help="begin no seed after this time")
    options, started, rates = parser.parse_args(), time.monotonic(), list[dict[str, np.ndarray]]()
    for seed in range(options.seeds):
        if rates and (time.monotonic() - started) * (len(rates) + 1) / len(rates) > 60 * options.minutes:
            break
        with tempfile.TemporaryDirectory() as folder:
            rates.append(of_seed(seed, Path(folder) / "data", options))
        print(f"seed {seed}:", {name: each.round(4).tolist() for name, each in rates[-1].items()}, flush=True)
    if len(rates) < 2:
        sys.exit("an interval takes two seeds: give more --minutes")
    print(f"\n{len(rates)} seeds\n\n| student less teacher | out of fold | on fresh images | fresh less out of fold |")
    print("| --- | ---: | ---: | ---: |")
    for way in WAYS:
        both = np.array([each[way] - each["teacher"] for each in rates])
        cells = [interval(values) for values in (*both.T, both[:, 1] - both[:, 0])]
        print(
            f"| {way} | " + " | ".join(f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in cells) + " |"
        )


if __name__ == "__main__":
    main()
