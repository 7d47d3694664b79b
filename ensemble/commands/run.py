"""`thera run`, `thera demo` and `thera recipes`: everything in order, as a config says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ensemble.commands.checks import check_compute, check_prediction
from ensemble.commands.fit_stacker import fit_stacker
from ensemble.commands.predict import predict
from ensemble.commands.report import report
from ensemble.commands.train import train_members
from ensemble.config import ComputeConfig, DataConfig, RunConfig
from ensemble.config_reading import load_config, shipped
from ensemble.decision.class_objective import parse_objective
from ensemble.decision.rates import Labels, error_rates
from ensemble.errors import ConfigError, printable
from ensemble.extras import refuse_missing
from ensemble.predict_config import PredictConfig
from ensemble.progress import Say, silent
from ensemble.results import DemoResult, FitResult, PeopleResult, PeopleRow, Recipe, RecipesResult, ReportResult
from ensemble.runs.run import Run

DEMO_IMAGES = 4000
"""Training images of the demo; half as many are predicted. The whole demo takes a few minutes on two cores."""


def run(config: RunConfig, compute: ComputeConfig | None = None, say: Say = silent) -> ReportResult:
    """Train every member, fit the stacker, predict and report; what is done already is not done again.

    Parameters
    ----------
    config : RunConfig
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.

    Raises
    ------
    TheraError
        A command that it runs raises it; what was finished before stays.
    """
    refuse_missing("train", "thera run")
    compute = compute or ComputeConfig()
    check_compute(compute)
    _check_decision(config)
    if config.predict is not None:
        check_prediction(Run(config.run), config.predict, config.data.classes or 2)
    train_members(config.run, config.members, config.data, config.folds, config.seed, compute, say)
    fit_stacker(config.run, config.decision, say)
    return labelled_and_reported(config, compute, say)


def labelled_and_reported(config: RunConfig, compute: ComputeConfig | None, say: Say) -> ReportResult:
    """Predict as the config of a decided run says, and report; images that were skipped are no error before that."""
    predicted = None if config.predict is None else predict(config.run, config.predict, compute, say)
    return replace(report(config.run, say), incomplete=None if predicted is None else predicted.incomplete)


def _check_decision(config: RunConfig) -> None:
    """Refuse a wrong objective and unknown members before anything is trained."""
    parse_objective(config.decision.objective, config.data.classes or 2)
    known = [member.name for member in config.members] + [member.name for member in Run(config.run).members()]
    for key in ("members", "force_members"):
        if unknown := [name for name in getattr(config.decision, key) or () if name not in known]:
            problem = f"{', '.join(map(printable, unknown))} is no member of the run"
            raise ConfigError(f"decision.{key}", problem, f"they are {', '.join(dict.fromkeys(known))}")


def demo(folder: Path | None = None, compute: ComputeConfig | None = None, say: Say = silent) -> DemoResult:
    """Generate the demo data, run everything on it, and compare the result with the least HTER that any rule has.

    Parameters
    ----------
    folder : Path, optional
        The run's folder; by default `checkpoints/demo`.
    compute : ComputeConfig, optional
    say : callable
        Receives notes and warnings, a line each.
    """
    refuse_missing("train", "thera demo")
    compute = compute or ComputeConfig()
    check_compute(compute)  # before the images are generated
    from ensemble.data.synthetic import bayes_hter, write_demo

    config = load_config(demo_config())
    target = folder or config.run
    data, out = target / "data", target / "label_val.txt"
    config = config.model_copy(
        update={
            "run": target,
            "data": DataConfig(images=data / "train_img", labels=data / "label_train.txt", resize=None),
            "predict": PredictConfig(images=(data / "val_img",), out=out),
        }
    )
    write_demo(data, n_train=DEMO_IMAGES, n_val=DEMO_IMAGES // 2, seed=config.seed)
    result = run(config, compute, say)
    assert isinstance(result.decisions, FitResult)
    y_pred = _read_labels(out)
    return DemoResult(
        report=result,
        nested=result.decisions.tta.nested,
        given=error_rates(_read_labels(data / "given_val.txt"), y_pred),
        true=error_rates(_read_labels(data / "truth_val.txt"), y_pred),
        bayes_hter=bayes_hter(),
    )


def demo_people(people: int, folder: Path | None = None) -> PeopleResult:
    """Draw people: images and a manifest of 18 classes made of three targets, and the best rates of any rule.

    Parameters
    ----------
    people : int
        Number of people, at least 6; seven images each.
    folder : Path, optional
        Where to write them; by default `checkpoints/people`.
    """
    refuse_missing("train", "thera demo")
    from ensemble.data.synthetic_people import draw_people

    facts = draw_people(folder or Path("checkpoints/people"), people)
    rows = tuple(
        PeopleRow(name, len(facts.counts[name]), min(facts.counts[name]), best.error, best.mean_error, best.macro_f1)
        for name, best in facts.bayes.items()
    )
    return PeopleResult(facts.folder / "people.csv", facts.people, facts.images, rows)


def recipes() -> RecipesResult:
    """Return the recipes of public solutions that come with thera."""
    here, paths = Path.cwd(), sorted(shipped("recipes").glob("*.yaml"))
    shown = [path.relative_to(here) if path.is_relative_to(here) else path for path in paths]
    return RecipesResult(tuple(Recipe(path.stem, path, load_config(path).about) for path in shown))


def demo_config() -> Path:
    """Return the YAML file of the demo."""
    return shipped("demo.yaml")


def _read_labels(path: Path) -> Labels:
    from ensemble.data.labels import parse_labels

    return parse_labels(path.read_bytes(), str(path))
