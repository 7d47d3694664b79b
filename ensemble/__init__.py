"""thera: images and a 0/1 label file in; the label file with the lowest half total error rate (HTER) out.

The public names below are imported when they are first used, so that `import ensemble` costs nothing.

>>> import ensemble
>>> float(ensemble.fit_threshold([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1]))
0.0

Files in reading order:

errors.py            everything that is raised on purpose, with exit statuses
extras.py            optional dependencies, and the refusal where they are missing
hub_refusals.py      what the Hugging Face hub says where it refuses a request
config.py            the config models: type, default, help text and panel of each option
config_fields.py     the panels of `--help`, and the fields that several config models have
fit_config.py        the config model of `thera fit`
predict_config.py    the config models of `thera predict`
explore_config.py    the config model of `thera explore`
bench_config.py      the config model of `thera bench`
clean_config.py      the config model of `thera clean`
report_config.py     the config model of `thera report`
distil_config.py     the config models of `thera distil`
export_config.py     the config models of `thera export` and of prediction with a model
serve_config.py      the config model of `thera serve`
push_config.py       the config model of `thera push`
config_reading.py    from YAML and options to config models
machine.py           cores, memory and cache folder that this process may use
progress.py          progress and signals of long work
cli.py               the `thera` command
command_options.py   which options each command has
options.py           the command line's options and --help, made from the config models
commands/            one file a command: a run directory in, a typed result out
results.py           the types of these results
prediction_results.py  those of `thera predict`
bench_results.py     those of `thera bench`
explore_results.py   those of `thera explore`
clean_results.py     those of `thera clean`
distil_results.py    those of `thera distil`
export_results.py    those of `thera export` and of prediction with a model
push_results.py      those of `thera push`
estimator.py         TheraClassifier: images and labels, in scikit-learn's conventions
estimator_images.py  what TheraClassifier takes: folders, paths or pixels, with labels of any kind
threshold_stacker.py ThresholdStacker: the second stage alone, on logits

Folders, in the order in which data passes: data, runs, members, decision, reports; runtime, bench and cluster beside
them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ensemble.clean_config import CleanConfig
    from ensemble.commands.clean import clean
    from ensemble.commands.distil import distil
    from ensemble.commands.evaluate import compare, evaluate
    from ensemble.commands.explore import explore
    from ensemble.commands.export import export
    from ensemble.commands.fit import fit
    from ensemble.commands.fit_stacker import fit_stacker
    from ensemble.commands.predict import predict
    from ensemble.commands.push import push
    from ensemble.commands.report import report
    from ensemble.commands.serve import create_app, serve
    from ensemble.commands.train import train_members
    from ensemble.config import AugmentConfig, ComputeConfig, DataConfig, DecisionConfig, MemberConfig, RunConfig
    from ensemble.config_reading import load_config
    from ensemble.data.source import open_source
    from ensemble.data.store import load_dataset
    from ensemble.decision.objective import Objective
    from ensemble.decision.rates import error_rates
    from ensemble.decision.threshold import fit_threshold
    from ensemble.distil_config import DistilConfig, StudentConfig
    from ensemble.errors import (
        ArtifactError,
        ConfigError,
        DataError,
        LockedError,
        ResourceError,
        Stopped,
        TheraError,
    )
    from ensemble.estimator import TheraClassifier, ThresholdStacker
    from ensemble.explore_config import ExploreConfig
    from ensemble.export_config import ExportConfig
    from ensemble.fit_config import FitConfig
    from ensemble.predict_config import PredictConfig
    from ensemble.push_config import PushConfig
    from ensemble.report_config import ReportConfig
    from ensemble.runtime.classifier import OnnxClassifier
    from ensemble.serve_config import ServeConfig

__all__ = [
    "ArtifactError",
    "AugmentConfig",
    "CleanConfig",
    "ComputeConfig",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DecisionConfig",
    "DistilConfig",
    "ExploreConfig",
    "ExportConfig",
    "FitConfig",
    "LockedError",
    "MemberConfig",
    "Objective",
    "OnnxClassifier",
    "PredictConfig",
    "PushConfig",
    "ReportConfig",
    "ResourceError",
    "RunConfig",
    "ServeConfig",
    "Stopped",
    "StudentConfig",
    "TheraClassifier",
    "TheraError",
    "ThresholdStacker",
    "__version__",
    "clean",
    "compare",
    "create_app",
    "distil",
    "error_rates",
    "evaluate",
    "explore",
    "export",
    "fit",
    "fit_stacker",
    "fit_threshold",
    "load_config",
    "load_dataset",
    "open_source",
    "predict",
    "push",
    "report",
    "serve",
    "train_members",
]

_MODULES = {
    "ensemble.clean_config": ("CleanConfig",),
    "ensemble.commands.clean": ("clean",),
    "ensemble.commands.distil": ("distil",),
    "ensemble.commands.evaluate": ("compare", "evaluate"),
    "ensemble.commands.explore": ("explore",),
    "ensemble.commands.export": ("export",),
    "ensemble.commands.fit": ("fit",),
    "ensemble.commands.fit_stacker": ("fit_stacker",),
    "ensemble.commands.predict": ("predict",),
    "ensemble.commands.push": ("push",),
    "ensemble.commands.report": ("report",),
    "ensemble.commands.serve": ("create_app", "serve"),
    "ensemble.commands.train": ("train_members",),
    "ensemble.config": (
        "AugmentConfig",
        "ComputeConfig",
        "DataConfig",
        "DecisionConfig",
        "MemberConfig",
        "RunConfig",
    ),
    "ensemble.config_reading": ("load_config",),
    "ensemble.data.source": ("open_source",),
    "ensemble.data.store": ("load_dataset",),
    "ensemble.decision.rates": ("error_rates",),
    "ensemble.decision.objective": ("Objective",),
    "ensemble.decision.threshold": ("fit_threshold",),
    "ensemble.errors": (
        "ArtifactError",
        "ConfigError",
        "DataError",
        "LockedError",
        "ResourceError",
        "Stopped",
        "TheraError",
    ),
    "ensemble.distil_config": ("DistilConfig", "StudentConfig"),
    "ensemble.estimator": ("TheraClassifier", "ThresholdStacker"),
    "ensemble.explore_config": ("ExploreConfig",),
    "ensemble.export_config": ("ExportConfig",),
    "ensemble.fit_config": ("FitConfig",),
    "ensemble.predict_config": ("PredictConfig",),
    "ensemble.push_config": ("PushConfig",),
    "ensemble.report_config": ("ReportConfig",),
    "ensemble.runtime.classifier": ("OnnxClassifier",),
    "ensemble.serve_config": ("ServeConfig",),
}
"""Where each public name is defined. Type checkers read the imports above; a test keeps the two equal."""

_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] == "ensemble.estimator":  # its classes are those of scikit-learn, whose import would fail otherwise
        from ensemble.extras import refuse_missing

        refuse_missing("train", f"thera.{name}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
