"""The options of the commands: every field of a config model has one, and they say what the models say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from ensemble import command_options, options
from ensemble.clean_config import CleanConfig
from ensemble.cli import COMMANDS
from ensemble.config import AugmentConfig, ComputeConfig, DataConfig, DecisionConfig, MemberConfig, RunConfig
from ensemble.config_fields import option
from ensemble.distil_config import DistilConfig
from ensemble.errors import ConfigError
from ensemble.explore_config import ExploreConfig
from ensemble.export_config import ExportConfig, LabelledBy
from ensemble.fit_config import FitConfig
from ensemble.predict_config import PredictConfig, ShardConfig
from ensemble.push_config import PushConfig

MODELS = (
    AugmentConfig,
    CleanConfig,
    ComputeConfig,
    DataConfig,
    DecisionConfig,
    DistilConfig,
    ExploreConfig,
    ExportConfig,
    FitConfig,
    LabelledBy,
    MemberConfig,
    PredictConfig,
    PushConfig,
    RunConfig,
    ShardConfig,
)
PARTS_OF_A_RUN = {"RunConfig.data", "RunConfig.members", "RunConfig.decision", "RunConfig.predict"}
"""Fields that are models themselves."""

SENTENCE = r"[A-Z][^\[\]]*\."  # brackets hold choices, bounds and the default
VERBS = {
    *("Apply", "Assume", "Augment", "Average", "Change", "Clip", "Combine", "Compare", "Compute", "Correct"),
    *(
        "Cross-validate",
        "Divide",
        "Draw",
        "Give",
        "Hold",
        "Label",
        "Learn",
        "Leave",
        "Load",
        "Lower",
        "Measure",
        "Minimise",
        "Mix",
    ),
    *(
        "Multiply",
        "Print",
        "Raise",
        "Read",
        "Remove",
        "Repeat",
        "Replace",
        "Resize",
        "Run",
        "Save",
        "Seed",
        "Set",
        "Show",
        "Skip",
        "Spread",
    ),
    *("Keep", "Listen", "Mix", "Refuse", "Serve", "Stack", "Start", "Step", "Take", "Train", "Upload", "Use", "Weigh"),
    "Write",
}
"""A description is an imperative sentence: its first word is one of these. An option may add its verb."""


def parameters(command: str) -> dict[str, Any]:
    built = options.build_command(command, "", lambda **_: None, rich=False)
    return {parameter.name: parameter for parameter in built.params}


def reachable(command: str, model: type[BaseModel]) -> set[str]:
    return {field for part in options.PARTS[command] if part.model is model for field in part.fields.values()}


def test_every_command_has_its_options() -> None:
    assert set(options.PARTS) == set(COMMANDS)
    for table in (options.ARGUMENTS, options.UNSET):
        assert set(table) <= set(COMMANDS)
    for command, name in (*options.DEFAULTS, *options.DESCRIPTIONS):
        assert name in {each for part in options.PARTS[command] for each in part.fields}


def test_every_field_of_a_model_is_an_option_or_is_listed_with_its_reason() -> None:
    fields = {f"{model.__name__}.{field}" for model in MODELS for field in model.model_fields}
    offered = {f"{m.__name__}.{f}" for command in COMMANDS for m in MODELS for f in reachable(command, m)}
    assert fields - offered - PARTS_OF_A_RUN == set(options.YAML_ONLY)
    assert all(options.YAML_ONLY.values())


def test_every_field_of_a_member_is_an_option_of_train_member() -> None:
    assert reachable("train-member", MemberConfig) == set(MemberConfig.model_fields)
    assert set(MemberConfig.model_fields) <= set(parameters("train-member"))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_has_a_description_and_a_panel(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        if f"{model.__name__}.{name}" not in PARTS_OF_A_RUN:
            assert re.fullmatch(SENTENCE, str(field.description)), name
            assert isinstance(field.json_schema_extra, dict) and field.json_schema_extra["panel"], name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described_by_a_sentence(command: str) -> None:
    for name, parameter in parameters(command).items():
        text = parameter.help
        assert re.fullmatch(rf"{SENTENCE}( \[.*\])?", text), f"{name}: {text}"
        assert text.split()[0] in VERBS, f"{name}: {text}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_an_option_is_that_of_its_field(command: str) -> None:
    built = parameters(command)
    for part in options.PARTS[command]:
        for name, field in part.fields.items():
            info = part.model.model_fields[field]
            description = options.DESCRIPTIONS.get((command, name), info.description)
            assert built[name].help.startswith(description)
            expected = "Arguments" if name in options.ARGUMENTS.get(command, ()) else info.json_schema_extra["panel"]  # type: ignore[index, call-overload]
            assert built[name].rich_help_panel == expected


@pytest.mark.parametrize(
    ("command", "name", "text"),
    [
        ("train-member", "lr", "Raise the learning rate of AdamW to this peak. [>0; default: 0.002]"),
        ("train-member", "gamma", "Set the focal loss's focusing exponent; 0 is cross-entropy. [>=0; default: 2]"),
        ("train-member", "folds", "Cross-validate with this many folds. [2 to 100; default: 5]"),
        ("train-member", "schedule", "Lower the learning rate this way. [cosine, step; default: cosine]"),
        ("train-member", "name", "Give the member this name. [default: the arch]"),
        ("train-member", "freeze", "Train the last layer alone; the backbone and its statistics stay."),
        ("predict", "tta", "Average the logits of the image and its mirror image. [default: no-tta]"),
        ("run", "folds", "Cross-validate with this many folds. [as the file says]"),
        ("demo", "run", "Use this folder for the run, for example checkpoints/faces. [checkpoints/demo]"),
    ],
)
def test_help_says_choices_bounds_and_default(command: str, name: str, text: str) -> None:
    assert parameters(command)[name].help == text


def test_a_new_field_is_an_option_without_another_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(MemberConfig):
        momentum: Annotated[float, option("Optimisation", "Momentum of AdamW.", ge=0, lt=1)] = 0.9

    parts = tuple(
        options.Part(Longer, {**command_options._MEMBER, "momentum": "momentum"}, "member")
        if part.key == "member"
        else part
        for part in options.PARTS["train-member"]
    )
    monkeypatch.setitem(options.PARTS, "train-member", parts)
    assert parameters("train-member")["momentum"].help == "Momentum of AdamW. [>=0, <1; default: 0.9]"
    given = dict.fromkeys(parameters("train-member")) | {"run": "r", "arch": "a", "images": "i", "no_pretrained": False}
    given |= {"freeze": False, "clean": False, "momentum": "0.5"}
    assert options.checked("train-member", given)["member"].momentum == 0.5
    with pytest.raises(ConfigError, match=r"--momentum must be < 1; got 2"):
        options.checked("train-member", given | {"momentum": "2"})


def test_values_are_those_of_the_models() -> None:
    others = {"labels": None, "positive": None, "tta": True, "full": False}
    others |= {"image_column": None, "label_column": None, "follow_links": False, "classes": None}
    assert options.checked("compare", {"a": "x", "b": "y"} | others) == {"a": Path("x"), "b": Path("y")} | others


def test_images_to_predict_are_given_by_position_or_by_name() -> None:
    given = dict.fromkeys(parameters("predict")) | {"run": "r", "tta": True, "force": False, "full": False}
    for by_position, by_name in ((["a", "b"], None), (["b"], ["a"]), (None, ["a", "b"])):
        values = options.checked("predict", given | {"images": by_position, "images_by_name": by_name})
        assert values["config"].images == (Path("a"), Path("b"))
    with pytest.raises(ConfigError, match="IMAGES is missing"):
        options.checked("predict", given)


def test_a_flag_that_is_on_by_default_can_be_turned_off() -> None:
    flags = {name: each for name, each in parameters("predict").items() if each.secondary_opts}
    assert {name: (each.opts, each.secondary_opts, each.default) for name, each in flags.items()} == {
        "tta": (["--tta"], ["--no-tta"], False),
    }
    assert parameters("compare")["tta"].default is True
    assert parameters("train-member")["freeze"].secondary_opts == []


@pytest.mark.parametrize("command", ["train-member", "fit", "run", "evaluate", "compare"])
def test_target_is_a_second_name_of_the_label_column(command: str) -> None:
    assert parameters(command)["label_column"].opts == ["--label-column", "--target"]
    built = options.build_command(command, "", lambda **given: seen.append(given), rich=False)
    seen: list[dict[str, Any]] = []
    arguments = {"train-member": ["--run", "r", "--images", "i", "--arch", "a"], "fit": ["i"], "run": ["c"]}
    arguments |= {"evaluate": ["p", "--labels", "l"], "compare": ["a", "b"]}
    for name in ("--target", "--label-column"):
        built([*arguments[command], name, "age"], standalone_mode=False)
    columns = [given["data"].label_column if "data" in given else given.get("label_column") for given in seen]
    columns = [given["config"].label_column for given in seen] if command == "fit" else columns
    assert columns == ["age", "age"]


@pytest.mark.parametrize("command", ["train-member", "fit", "run"])
def test_the_number_of_classes_is_an_option(command: str) -> None:
    help_of = "Read labels of this many classes, all of which must be present. "
    default = "as the file says" if command == "run" else "2 to 127; default: 2"
    assert parameters(command)["classes"].help == f"{help_of}[{default}]"


@pytest.mark.parametrize(
    ("classes", "message"), [("1", "must be >= 2; got 1"), ("128", "must be <= 127; got 128"), ("x", "must be a valid")]
)
def test_a_number_of_classes_out_of_range_is_refused(classes: str, message: str) -> None:
    given = dict.fromkeys(parameters("train-member")) | {"run": "r", "arch": "a", "images": "i", "no_pretrained": False}
    given |= {"freeze": False, "clean": False}
    assert options.checked("train-member", given | {"classes": "18"})["data"].classes == 18
    with pytest.raises(ConfigError, match=rf"--classes {message}"):
        options.checked("train-member", given | {"classes": classes})
