"""Faults 27 to 29 of the table: values that YAML 1.1 or pydantic would silently read as another number."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.cli import main
from ensemble.config_reading import load_config
from ensemble.errors import ConfigError

GOOD = "run: out\ndata: {images: img}\nmembers: [{arch: lenet}]\n"


def message_of(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(folder / "run.yaml")
    return str(error.value).removeprefix(f"{folder / 'run.yaml'}: ")


@pytest.mark.parametrize(
    ("value", "number"),
    [("010", 8), ("0x10", 16), ("0b11", 3), ("1_0", 10), ("1:30", 90), ("1:30.5", 90.5), ("1_0.5", 10.5), ("-010", -8)],
)
def test_a_number_that_is_not_decimal_is_refused(tmp_path: Path, value: str, number: float) -> None:
    message = message_of(tmp_path, GOOD + f"folds: {value}\n")
    assert (
        message
        == f"line 4: {value} is the number {number} in YAML: write that, or '{value}' if it is text; mend the YAML"
    )
    quoted = GOOD.replace("run: out", f"run: '{value}'")
    (tmp_path / "run.yaml").write_text(quoted)
    assert load_config(tmp_path / "run.yaml").run == Path(value)


@pytest.mark.parametrize("value", ["true", "no", "on"])
def test_true_and_false_are_no_numbers(tmp_path: Path, value: str) -> None:
    text = GOOD.replace("lenet", f"lenet, lr: {value}") + f"seed: {value}\n"
    word = "false" if value == "no" else "true"
    assert (
        message_of(tmp_path, text) == f"seed must be a number; got {word}; members[0].lr must be a number; got {word}"
    )


def test_decimal_numbers_and_words_for_true_are_accepted(tmp_path: Path) -> None:
    text = GOOD.replace("lenet", "lenet, lr: 1e-3, weight_decay: 0.5, pretrained: no") + "seed: 0\nfolds: +7\n"
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(tmp_path / "run.yaml")
    (member,) = config.members
    assert (member.lr, member.weight_decay, member.pretrained, config.seed, config.folds) == (0.001, 0.5, False, 0, 7)


def test_the_command_refuses_the_file_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + "folds: 010\n")
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(tmp_path / "run.yaml")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith(f"error: {tmp_path / 'run.yaml'}: line 4: 010 is the number 8")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
