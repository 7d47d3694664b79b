"""Faults 27 to 29 of the table, the defaults, and the seeds."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from ensemble.config import DataConfig, DecisionConfig, MemberConfig, RunConfig, seed_sequence
from ensemble.config_reading import config_text, load_config, overridden, validated
from ensemble.decision.stacker import STACKERS
from ensemble.errors import ConfigError
from ensemble.predict_config import CORRECTIONS, PredictConfig

GOOD = "run: checkpoints/x\ndata: {images: train_img, labels: label_train.txt}\nmembers:\n- {arch: resnet18}\n"
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def load(folder: Path, text: str | bytes) -> RunConfig:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path)


def message_of(folder: Path, text: str | bytes) -> str:
    """Return the message of a faulty file, without its path."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'run.yaml'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'run.yaml'}: ")


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_a_small_file_has_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert (config.run, config.seed, config.folds, config.predict) == (Path("checkpoints/x"), 0, 5, None)
    assert config.data.labels == Path("label_train.txt")
    assert config.members == (MemberConfig(arch="resnet18", name="resnet18"),)
    expected = {"objective": "hter", "stacker": "nonnegative", "members": None, "force_members": None, "repeats": 0}
    assert config.decision.model_dump() == expected
    predict = load(tmp_path, GOOD + "predict: {images: a, out: b}\n").predict
    assert predict is not None and (predict.tta, predict.correction, predict.prior) == (True, CORRECTIONS[0], None)


def test_what_is_decided_may_be_given(tmp_path: Path) -> None:
    decision = "decision: {objective: 'cost:5,1', stacker: logistic, repeats: 20}\n"
    config = load(tmp_path, GOOD + decision + "predict: {images: a, out: b, correction: none, prior: 3e-1}\n")
    assert config.decision == DecisionConfig(objective="cost:5,1", stacker="logistic", repeats=20)
    assert config.predict is not None and (config.predict.correction, config.predict.prior) == ("none", 0.3)
    assert load(tmp_path, GOOD + "decision: {}\n") == load(tmp_path, GOOD)


def test_the_choices_are_those_that_there_are() -> None:
    def choices(model: type[BaseModel], field: str) -> tuple[str, ...]:
        return get_args(model.model_fields[field].annotation)

    assert choices(DecisionConfig, "stacker") == tuple(STACKERS)
    assert choices(PredictConfig, "correction") == CORRECTIONS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_validate(path: Path) -> None:
    config = load_config(path)
    if path.stem == "therapanacea-ablation":  # of one network
        assert {member.arch for member in config.members} == {"small_cnn"} and config.predict is None
        return
    assert [member.arch for member in config.members][:3] == ["resnet18", "mobilenetv2", "convnext_nano"]
    assert config.predict is not None


def test_there_are_configs() -> None:
    assert "demo.yaml" in {path.name for path in CONFIGS}


def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path: Path) -> None:
    plain = load(tmp_path, GOOD)
    assert load(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()) == plain
    assert load(tmp_path, GOOD.replace("\n", "\r\n")) == plain


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("5e-4", 0.0005), ("0.01", 0.01), ("1", 1.0)])
def test_a_number_may_be_written_as_people_do(tmp_path: Path, text: str, value: float) -> None:
    member = load(tmp_path, GOOD.replace("arch: resnet18", f"arch: resnet18, lr: {text}")).members[0]
    assert member.lr == value
    assert isinstance(member.lr, float)


def test_a_member_goes_by_its_arch_unless_named(tmp_path: Path) -> None:
    members = load(tmp_path, GOOD + "- {arch: resnet18, name: second}\n- {arch: mobilenetv2}\n").members
    assert [member.name for member in members] == ["resnet18", "second", "mobilenetv2"]
    assert [member.timm_name for member in members] == ["resnet18", "resnet18", "mobilenetv2_100"]
    assert MemberConfig(arch="convnext_nano").timm_name == "convnext_nano"
    assert MemberConfig(arch="vit_tiny_patch16_224").timm_name == "vit_tiny_patch16_224"


def test_a_config_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, GOOD).members[0].lr = 1.0  # type: ignore[misc]


# --- what is not ------------------------------------------------------------------------------------------------------


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    message = message_of(
        tmp_path,
        """
fold: 3
seed: -1
lr: 3
data: {images: a, resise: 32}
members:
- {arch: a, learning: 3, Epochs: 3}
- {arch: a, augment: heavy}
- {name: b, lr: -0.1, epochs: many}
decision: {objektive: hter, stacker: best, repeats: -1, seed: 1}
predict: {images: a, tta: 1, prior: 1, correction: mean}
""",
    )
    assert set(message.split("; ")) == {
        "run is missing",
        "fold is no known key (did you mean folds?)",
        "seed must be >= 0",
        "got -1",
        "lr is no known key",  # a member has such a key, the run has none
        "data.resise is no known key (did you mean resize?)",
        "members[0].learning is no known key",
        "members[0].Epochs is no known key (did you mean epochs?)",
        "members[1].augment must be 'none', 'light' or 'standard'",
        "got heavy",
        "members[2].arch is missing",
        "members[2].lr must be > 0",
        "got -0.1",
        "members[2].epochs must be a valid integer",
        "got many",
        "decision.objektive is no known key (did you mean objective?)",
        "decision.stacker must be 'mean', 'calibrated', 'nonnegative' or 'logistic'",
        "got best",
        "decision.repeats must be >= 0",
        "decision.seed is no known key",
        "predict.prior must be < 1",
        "got 1",
        "predict.correction must be 'posterior' or 'none'",
        "got mean",
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("lr: .inf", "members[0].lr must be a finite number; got inf"),
        ("lr: .nan", "members[0].lr must be a finite number; got nan"),
        ("lr: 0", "members[0].lr must be > 0; got 0"),
        ("ema_decay: 1", "members[0].ema_decay must be < 1; got 1"),
        ("epochs: 0", "members[0].epochs must be >= 1; got 0"),
        ("batch_size: [1, 2]", "members[0].batch_size must be a valid integer; got [1, 2]"),
        ('name: "a\\nb"', "members[0].name must match pattern '^[A-Za-z0-9_-][A-Za-z0-9._-]*$'; got a\\nb"),
        ("name: ..", "members[0].name must match pattern '^[A-Za-z0-9_-][A-Za-z0-9._-]*$'; got .."),
        ("name: a/b", "members[0].name must match pattern '^[A-Za-z0-9_-][A-Za-z0-9._-]*$'; got a/b"),
        ('"l\\er": 1', "members[0].l\\x1br is no known key"),
    ],
)
def test_a_fault_names_its_key_what_must_hold_and_the_value(tmp_path: Path, given: str, expected: str) -> None:
    assert message_of(tmp_path, GOOD.replace("arch: resnet18", f"arch: resnet18, {given}")).startswith(expected)


def test_a_long_value_is_not_repeated_in_full(tmp_path: Path) -> None:
    assert len(message_of(tmp_path, GOOD + f"seed: {'x' * 5000}\n")) < 300


def test_names_differ(tmp_path: Path) -> None:
    message = message_of(tmp_path, GOOD + "- {arch: resnet18}\nfolds: 1\n")
    assert "members must have different names; resnet18 stands twice: set name" in message
    assert "folds must be >= 2; got 1" in message


def test_a_run_has_members(tmp_path: Path) -> None:
    message = message_of(tmp_path, "run: x\ndata: {images: a}\nmembers: []\n")
    assert message == "members must hold at least one member"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "seed: 1\nseed: 1\n", "line 6: the key seed stands twice; mend the YAML"),
        (GOOD.replace("arch: resnet18", "arch: a, arch: b"), "line 4: the key arch stands twice"),
        ("run: &x a\ndata: *x\n", "line 2: aliases are not allowed"),
        ("run: !!python/object/apply:os.system [false]\n", "line 1: tags (tag:yaml.org,2002:python/object/apply:os"),
        ("run: !!str x\n", "line 1: tags (tag:yaml.org,2002:str) are not allowed"),
        ("run: !own x\n", "line 1: tags (!own) are not allowed"),
        ("<<: {run: x}\n", "line 1: "),
        ("1: 2\n", "line 1: a key must be text"),
        ("yes: 2\n", "line 1: a key must be text"),
        ("run: {\n", "line 2: "),
        ("run: a\n\tb: c\n", "line 2: "),
        ("run: 2020-13-45\n", "month must be in 1..12"),
        ("run: " + "[" * 3000, ""),
        ("run: a\n---\nrun: b\n", "line 2: "),
        ("- a\n- b\n", "holds no mapping of keys to values; see configs/demo.yaml"),
        ("just text\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("run: \x07\n", ""),
        (GOOD.encode("utf-16"), "cannot be read ("),
        (b"run: \xff\n", "cannot be read ("),
        (b"\x00\x01\x02", ""),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_plain_yaml_mapping_is_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert message_of(tmp_path, text).startswith(expected)


def test_an_alias_bomb_is_refused_unexpanded(tmp_path: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert message_of(tmp_path, "l0: &l0 [x]\n" + levels).startswith("line 2: aliases are not allowed")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read .*; give a YAML file in UTF-8"):
            load_config(path)


def test_the_command_line_is_checked_by_the_same_models() -> None:
    with pytest.raises(ConfigError, match=r"^train-member: lr must be > 0; got -1.0; gama is no known key "):
        validated(MemberConfig, {"arch": "resnet18", "lr": -1.0, "gama": 2}, "train-member")


def test_a_config_goes_through_json_unchanged(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert RunConfig.model_validate(yaml.safe_load(config.model_dump_json())) == config


# --- seeds ------------------------------------------------------------------------------------------------------------


def draw(seed: int, *names: str | int) -> int:
    return int(np.random.default_rng(seed_sequence(seed, *names)).integers(2**62))


def test_seeds_go_by_name_and_not_by_the_order_of_calls() -> None:
    names: list[tuple[str | int, ...]] = [
        ("folds",),
        ("resnet18", 0),
        ("resnet18", 1),
        ("resnet", "180"),
        ("resnet181",),
        (1, "resnet18"),
        (),
    ]
    forth = {name: draw(0, *name) for name in names}
    back = {name: draw(0, *name) for name in reversed(names)}
    assert forth == back
    assert len(set(forth.values())) == len(names)
    assert not set(forth.values()) & {draw(1, *name) for name in names}


def test_seeds_are_the_same_on_every_machine_and_in_every_release() -> None:
    assert seed_sequence(0, "resnet18", 1).generate_state(2).tolist() == [432332198, 1045642080]


def test_forms_of_a_value_are_named_plainly(tmp_path: Path) -> None:
    text = GOOD.replace("{arch: resnet18}", "{arch: resnet18, %s}")
    assert message_of(tmp_path, text % "augment: {flop: true}") == (
        "members[0].augment.flop is no known key (did you mean flip?)"
    )
    assert message_of(tmp_path, text % "augment: {shift: 2}") == ("members[0].augment.shift must be <= 0.5; got 2")
    assert message_of(tmp_path, text % "pretrained: maybe") == (
        "members[0].pretrained must be yes, no or 'if-possible'; got maybe"
    )
    assert load(tmp_path, text % "augment: {shift: 0.05, rotate: 5}").members[0].augmentation.rotate == 5
    assert load(tmp_path, text % "augment: light").members[0].augmentation.shift == 0.06


def test_classes_and_target_are_keys_of_the_data(tmp_path: Path) -> None:
    data = "{images: train_img, labels: label_train.txt%s}"
    text = GOOD.replace(data % "", data)
    config = load(tmp_path, text % ", classes: 3, target: age")
    assert (config.data.classes, config.data.label_column) == (3, "age")
    assert load(tmp_path, text % ", classes: 3, label_column: age") == config
    assert config.data == DataConfig(
        images=config.data.images, labels=config.data.labels, classes=3, label_column="age"
    )
    assert load(tmp_path, config_text(config, "again")) == config
    assert message_of(tmp_path, text % ", classes: 1, target: 3") == (
        "data.classes must be >= 2; got 1; data.target must be a valid string; got 3"
    )
    assert message_of(tmp_path, text % ", classes: true").startswith("data.classes must be a number; got true")
    assert "data.target is no known key" in message_of(tmp_path, text % ", label_column: a, target: b")


def test_classes_of_the_command_line_replace_those_of_a_file(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD.replace("labels: label_train.txt", "classes: 18, target: age"))
    assert overridden(config).data == config.data
    assert overridden(config, classes=3).data.classes == 3
    other = overridden(config, images=Path("b"), classes=4).data
    assert (other.classes, other.label_column) == (4, None)
    assert overridden(config, images=Path("b")).data.classes is None
