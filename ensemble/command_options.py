"""Which options each command has: fields of the config models, and of the models of what is no config.

`options.py` makes the command line of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from ensemble.bench_config import BenchConfig
from ensemble.clean_config import CleanConfig
from ensemble.config import ComputeConfig, DataConfig, DecisionConfig, MemberConfig, RunConfig
from ensemble.config_fields import (
    DATA,
    DECISION,
    RUN,
    Classes,
    FollowLinks,
    Frozen,
    ImageColumn,
    LabelColumn,
    Positive,
    option,
)
from ensemble.distil_config import NOT_OF_STUDENTS, DistilConfig, StudentConfig
from ensemble.explore_config import ExploreConfig
from ensemble.export_config import ExportConfig, LabelledBy
from ensemble.fit_config import FitConfig
from ensemble.predict_config import PredictConfig, ShardConfig
from ensemble.push_config import PushConfig
from ensemble.report_config import ReportConfig
from ensemble.serve_config import ServeConfig

# --- options that exist on the command line alone ---------------------------------------------------------------------


class _RunFile(Frozen):
    config: Annotated[Path, option(RUN, "Run this YAML file, or a recipe by its name, such as simple-cnn.")]


class _RemoveMember(Frozen):
    name: Annotated[str, option(RUN, "Remove the member of this name.")]
    yes: Annotated[bool, option(RUN, "Remove it; without this, the command only says what would be removed.")] = False


class _Demo(Frozen):
    people: Annotated[
        int | None,
        option(
            RUN,
            "Draw this many people, seven images each, as data of 18 classes, and train nothing.",
            unset="the demo of two classes",
            ge=6,
        ),
    ] = None


class _Trial(Frozen):
    config: Annotated[Path, option(RUN, "Compare the members of this YAML file, or of a recipe by its name.")]
    fold: Annotated[int, option(RUN, "Hold out this fold.", ge=0)] = 0


class _Evaluate(Frozen):
    label_file: Annotated[Path, option(DATA, "Measure this label file, such as predict writes.")]
    labels: Annotated[Path, option(DATA, "Read the true labels from a label file or from class folders.")]
    classes: Classes = None
    positive: Positive = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    follow_links: FollowLinks = False


class _Compare(Frozen):
    a: Annotated[Path, option(DATA, "Compare a run's folder, a member's (RUN/members/NAME), or a label file.")]
    b: Annotated[Path, option(DATA, "Compare with another of the same kind, on the same images.")]
    labels: Annotated[
        Path | None, option(DATA, "Read the true labels from this file.", unset="those of the runs or members")
    ] = None
    classes: Classes = None
    positive: Positive = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    follow_links: FollowLinks = False
    tta: Annotated[bool, option(DECISION, "Compare runs and members at the logits that --tta averages.")] = True


class _Screen(Frozen):
    full: Annotated[bool, option(RUN, "Print all tables and what they mean.")] = False


# --- the options of each command --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Fields of one model that a command takes.

    Attributes
    ----------
    model : type
    fields : mapping
        The name of an option -> the field of the model.
    key : str
        The argument of the command's function that receives the whole model; "" passes each field as an argument.
    optional : bool
        Whether all of them may be left out, to keep what a file says.
    """

    model: type[BaseModel]
    fields: Mapping[str, str]
    key: str = ""
    optional: bool = False


def _part(model: type[BaseModel], *names: str, key: str = "", optional: bool = False, **renamed: str) -> Part:
    fields = {name: name for name in names} | renamed or {name: name for name in model.model_fields}
    return Part(model, fields, key, optional)


_COMPUTE = _part(ComputeConfig, key="compute")
RENAMED = {"clean": "cleaning"}  # --clean is a flag without a value, see `options.ALIASES`
_MEMBER: Any = {RENAMED.get(name, name): name for name in MemberConfig.model_fields}
_SCREEN = _part(_Screen)  # the command line takes it out before it calls the command's function

PARTS: dict[str, tuple[Part, ...]] = {
    "fit": (
        _part(FitConfig, key="config"),
        _part(DecisionConfig, "objective", "stacker", "repeats", key="decision"),
        _COMPUTE,
        _SCREEN,
    ),
    "explore": (_part(ExploreConfig, key="config"), _SCREEN),
    "train-member": (
        _part(RunConfig, "run", "folds", "seed"),
        _part(DataConfig, key="data"),
        _part(MemberConfig, key="member", **_MEMBER),
        _COMPUTE,
        _SCREEN,
    ),
    "fit-stacker": (_part(RunConfig, "run"), _part(DecisionConfig, key="config"), _SCREEN),
    "remove-member": (_part(RunConfig, "run"), _part(_RemoveMember)),
    "predict": (
        _part(LabelledBy, key="by"),
        _part(PredictConfig, key="config"),
        _part(ShardConfig),
        _part(
            ComputeConfig, "device", "jobs", "cluster", "task_cores", key="compute"
        ),  # prediction has no data workers
        _SCREEN,
    ),
    "distil": (
        _part(RunConfig, "run"),
        _part(DistilConfig, key="config"),
        _part(StudentConfig, *(n for n in StudentConfig.model_fields if n not in NOT_OF_STUDENTS), key="student"),
        _COMPUTE,
        _SCREEN,
    ),
    "export": (_part(RunConfig, "run"), _part(ExportConfig, key="config"), _SCREEN),
    "serve": (_part(ServeConfig, key="config"),),
    "push": (_part(RunConfig, "run"), _part(PushConfig, key="config")),
    "evaluate": (_part(_Evaluate), _SCREEN),
    "compare": (_part(_Compare), _SCREEN),
    "report": (_part(RunConfig, "run"), _part(ReportConfig, key="config"), _SCREEN),
    "clean": (_part(RunConfig, "run"), _part(CleanConfig, key="config")),
    "verify": (_part(RunConfig, "run"),),
    "run": (
        _part(_RunFile),
        _part(RunConfig, "run", "folds", optional=True),
        _part(DataConfig, optional=True, **{name: name for name in DataConfig.model_fields if name != "resize"}),
        _part(MemberConfig, "epochs", optional=True),
        _part(PredictConfig, optional=True, predict="images", out="out", force="force", bad_label="bad_label"),
        _COMPUTE,
        _SCREEN,
    ),
    "trial": (_part(_Trial), _COMPUTE, _SCREEN),
    "recipes": (),
    "demo": (_part(RunConfig, "run", optional=True), _part(_Demo), _COMPUTE, _SCREEN),
    "bench": (_part(BenchConfig, key="config"),),
}
