"""`thera run`, `thera demo` and `thera recipes`: everything in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble.commands.fit_stacker import fit_stacker, read_decisions
from ensemble.commands.predict import predict
from ensemble.commands.report import report
from ensemble.commands.train import train_members
from ensemble.config import (
    ComputeConfig,
    DataConfig,
    PredictConfig,
    RunConfig,
)
from ensemble.config_reading import load_config
from ensemble.decision.decision import Decision
from ensemble.decision.rates import ErrorRates, error_rates
from ensemble.decision.threshold import Objective
from ensemble.progress import Say
from ensemble.reports.tables import (
    Table,
)
from ensemble.runs.run import Run

if TYPE_CHECKING:
    pass


def run_config(config: RunConfig, compute: ComputeConfig, say: Say) -> list[Table]:
    """Train every member, fit the stacker, predict and report; what is done already is not done again."""
    Objective.parse(config.decision.objective)  # a wrong one is said before anything is trained
    train_members(config.run, config.members, config.data, config.folds, config.seed, compute, say)
    fit_stacker(config.run, config.decision, say)
    if config.predict is not None:
        predict(config.run, config.predict, compute, say)
    return report(config.run, say)


DEMO_IMAGES = 4000


def demo(folder: Path | None, compute: ComputeConfig, say: Say) -> list[Table]:
    """Make the demo data, run everything on it, and hold the result against the best that any rule can reach."""
    from ensemble.data.synthetic import bayes_hter, write_demo

    config = load_config(demo_config())
    if folder is not None:
        config = config.model_copy(update={"run": folder})
    place = config.run / "data"
    assert config.predict is not None
    config = config.model_copy(
        update={
            "data": DataConfig(images=place / "train_img", labels=place / "label_train.txt", resize=None),
            "predict": PredictConfig(images=place / "val_img", out=config.run / "label_val.txt"),
        }
    )
    write_demo(place, n_train=DEMO_IMAGES, n_val=DEMO_IMAGES // 2, seed=config.seed)
    tables = run_config(config, compute, say)
    assert config.predict is not None
    called = _labels(config.predict.out)
    given, true = (error_rates(_labels(place / name), called) for name in ("given_val.txt", "truth_val.txt"))
    decision = read_decisions(Run(config.run), say)["tta"]
    return [*tables, _demo_table(decision, given, true, bayes_hter())]


def demo_config() -> Path:
    return _configs("demo.yaml")


def _configs(name: str) -> Path:
    """Return what came with the package: beside this file where it is installed, in `configs/` in a checkout."""
    beside = Path(__file__).with_name(name)
    return beside if beside.exists() else Path(__file__).parents[1] / "configs" / name


def recipes() -> Table:
    """Return the table of the recipes: what each is, and the file to run."""
    found = {path: load_config(path) for path in sorted(_configs("recipes").glob("*.yaml"))}
    here = Path.cwd()
    rows = [
        (str(path.relative_to(here) if path.is_relative_to(here) else path), config.about)
        for path, config in found.items()
    ]
    return Table("Recipes of public solutions", ("thera run", "what it is"), tuple(rows), numbers=False)


def _demo_table(decision: Decision, given: ErrorRates, true: ErrorRates, bayes: float) -> Table:
    def row(name: str, rates: ErrorRates) -> tuple[str, ...]:
        return name, str(rates.n), f"{rates.fpr:.4f}", f"{rates.fnr:.4f}", f"{rates.hter:.4f}"

    off = decision.nested.hter - bayes
    return Table(
        "Demo: what was reached, and what can be reached",
        ("labels", "n", "FPR", "FNR", "HTER"),
        (
            row("training images, nested, as given (5 % flipped)", decision.nested),
            row("label_val.txt against the labels as given", given),
            row("label_val.txt against the true classes", true),
            ("least HTER that any rule has, as given (Bayes)", "", "", "", f"{bayes:.4f}"),
        ),
        (f"The ensemble's nested HTER is {abs(off):.4f} {'above' if off >= 0 else 'below'} the Bayes HTER.",),
    )


def _labels(path: Path) -> np.ndarray:
    from ensemble.data.source import parse_labels

    return parse_labels(path.read_bytes(), str(path))
