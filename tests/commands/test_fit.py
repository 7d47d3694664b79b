"""`thera fit`: what it chooses, what it refuses, and that it ends near its time."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import fails, listing, write_tiny

from ensemble.cli import main
from ensemble.commands import choice
from ensemble.commands import fit as fit_command
from ensemble.commands.choice import Speed, Work, fitting, folds_for, members_for, seconds_of
from ensemble.config import ComputeConfig, MemberConfig
from ensemble.config_reading import load_config
from ensemble.errors import Stopped
from ensemble.fit_config import FitConfig
from ensemble.runs.run import Run

TINY = {"arch": "test_resnet", "pretrained": False, "epochs": 2, "batch_size": 8, "ema_decay": 0.9, "augment": "light"}


def tiny_members(*names: str, **values: Any) -> list[MemberConfig]:
    return [MemberConfig.model_validate(TINY | {"name": name} | values) for name in names]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with tiny images; the members are tiny networks."""
    write_tiny(tmp_path / "tiny", 48)
    write_tiny(tmp_path / "new", 12, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit_command, "members_for", lambda *_: tiny_members("a", "b"))
    return tmp_path


FIT = ("fit", "tiny/img", "--labels", "tiny/labels.txt", "--folds", "2", "--device", "cpu")


# --- the choice -------------------------------------------------------------------------------------------------------


def test_a_cpu_trains_the_small_cnns_of_the_record_on_as_many_images() -> None:
    record = {
        member.name: member
        for member in load_config(Path(__file__).parents[2] / "configs/therapanacea-cpu.yaml").members
    }
    assert folds_for("cpu", 80_000) == 3
    for member in members_for("cpu", 80_000, 3, 64):
        of_record = record[member.name].model_dump(exclude={"epochs", "precision", "convolutions"})
        assert member.model_dump(exclude={"epochs", "precision", "convolutions"}) == of_record
        assert member.epochs == 26 and not member.pretrained


def test_a_gpu_trains_the_three_backbones_from_pretrained_weights() -> None:
    members = members_for("cuda", 80_000, folds_for("cuda", 80_000), 64)
    assert sorted(member.arch for member in members) == ["convnext_nano", "mobilenetv2", "resnet18"]
    assert {member.pretrained for member in members} == {"if-possible"}
    assert {(member.stem, member.batch_size, member.input_size) for member in members} == {("half-stride", 256, None)}
    assert {(m.stem, m.input_size) for m in members_for("cuda", 80_000, 5, 512)} == {("standard", 224)}


def test_few_images_have_more_folds_more_epochs_and_smaller_batches() -> None:
    assert folds_for("cpu", 600) == 5
    few, many = members_for("cpu", 600, 5, 64)[0], members_for("cpu", 80_000, 3, 64)[0]
    assert few.epochs > many.epochs and few.batch_size < many.batch_size
    assert members_for("cpu", 600, 5, 64, epochs=7)[0].epochs == 7


SPEEDS = {"test_resnet": Speed(seconds_per_row=0.01, start_seconds=5.0)}
WORK = Work(images=1000, folds=5, predicted=100)


@pytest.mark.parametrize(
    ("times", "least", "count"), [(1.0, 0.5, 3), (0.55, 0.5, 3), (0.45, 0.5, 2), (0.1, 0.5, 1), (0.1, 0.0, 3)]
)
def test_a_time_is_used_up_by_as_many_members_as_it_is_enough_for(times: float, least: float, count: int) -> None:
    full = tiny_members("a", "b", "c", epochs=40)
    seconds = times * seconds_of(full, SPEEDS, WORK)
    chosen = fitting(full, SPEEDS, WORK, seconds, least)
    assert [member.name for member in chosen] == ["a", "b", "c"][:count]
    assert seconds_of(chosen, SPEEDS, WORK) == pytest.approx(
        seconds, abs=count * WORK.epoch_seconds(SPEEDS["test_resnet"])
    )


def test_more_time_than_is_useful_is_left_unused_and_too_little_has_no_member() -> None:
    full = tiny_members("a", "b", epochs=40)
    assert {m.epochs for m in fitting(full, SPEEDS, WORK, 1e6, 0.5)} == {round(40 * choice.MOST_OF_FULL)}
    assert fitting(full, SPEEDS, WORK, 6.0, 0.5) == [] == fitting(full, SPEEDS, WORK, -1.0, 0.0)


# --- the whole job ----------------------------------------------------------------------------------------------------


def test_one_command_does_everything_in_a_new_folder_each_time(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, "--predict", "new/img"])
    out, err = capsys.readouterr()
    run = data / "checkpoints/img"
    assert "the run's folder is checkpoints/img" in err
    assert "chosen for the CPU: a, b; 2 epochs each, 2 folds" in err
    assert "nested, views identity + hflip" in out
    assert "Label file: checkpoints/img/predictions/img/label_val.txt" in out
    assert out.splitlines()[-1] == "Whole report: checkpoints/img/report.html, report.md, or --full."
    assert len((run / "label_val.txt").read_text().splitlines()) == 12
    config = load_config(run / "config.yaml")
    assert config.run == Path("checkpoints/img") and [member.name for member in config.members] == ["a", "b"]
    before = listing(run)
    main(["run", "checkpoints/img/config.yaml", "--device", "cpu"])
    changing = {"run.json", "report.html", "report.md", "report.json", "README.md", "predictions/img/predictions.json"}
    assert {k: v for k, v in listing(run).items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }, "nothing is computed again"
    capsys.readouterr()
    main([*FIT, "--epochs", "1"])
    assert "the run's folder is checkpoints/img-2" in capsys.readouterr().err
    assert listing(run)["config.yaml"] == before["config.yaml"]


def test_a_run_that_was_begun_goes_on_and_other_data_are_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*FIT, "--run", "mine"])
    weights = (data / "mine/members/a/fold-0/weights.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    main([*FIT, "--run", "mine", "--predict", "new/img", "--out", "labels.txt"])
    assert "goes on with the members of mine/config.yaml" in capsys.readouterr().err
    assert (data / "mine/members/a/fold-0/weights.safetensors").stat().st_mtime_ns == weights
    assert len((data / "labels.txt").read_text().splitlines()) == 12
    before = listing(data / "mine")
    line = fails(capsys, 2, "fit", "new/img", *FIT[2:], "--run", "mine", "--labels", "new/labels.txt")
    assert line.startswith("error: IMAGES: differs from mine/config.yaml; use another --run")
    for option, value in (("--seed", "4"), ("--resize", "32"), ("--epochs", "9"), ("--labels", "other.txt")):
        (data / "other.txt").write_bytes((data / "tiny/labels.txt").read_bytes())
        line = fails(capsys, 2, *FIT, "--run", "mine", option, value)
        assert line == f"error: {option}: differs from mine/config.yaml; use another --run, or leave --run out"
    assert listing(data / "mine") == before


def test_a_run_without_a_trained_epoch_is_planned_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise Stopped("thera", "stopped by SIGINT")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(fit_command, "run", stopped)
        main([*FIT, "--run", "r"])
    assert load_config(Path("r/config.yaml")).folds == 2
    with monkeypatch.context() as patch:
        patch.setattr(fit_command, "run", lambda config, *_: config)
        other = FitConfig(images=Path("tiny/img"), labels=Path("tiny/labels.txt"), run=Path("r"), folds=3)
        fit_command.fit(other, compute=ComputeConfig(device="cpu"))
    assert load_config(Path("r/config.yaml")).folds == 3


def test_a_folder_of_an_interrupted_start_is_taken(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("r/pixels").mkdir(parents=True)
    monkeypatch.setattr(fit_command, "run", lambda config, *_: config)
    config = FitConfig(images=Path("tiny/img"), labels=Path("tiny/labels.txt"), run=Path("r"), folds=2)
    fit_command.fit(config, compute=ComputeConfig(device="cpu"))
    assert load_config(Path("r/config.yaml")).folds == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--time", "5"), 2, "--time must be a duration such as 30m, 2h or 1h30m; got 5"),
        (("--time", "0m"), 2, "--time must be a duration such as 30m, 2h or 1h30m; got 0m"),
        (("--time", "1h", "--epochs", "3"), 2, "time chooses the epochs: leave out time or epochs"),
        (("--out", "x"), 2, "out needs images to label: give predict, too"),
        (("--predict", "nowhere"), 3, "nowhere: does not exist"),
        (("--labels", "nowhere"), 3, "nowhere"),
        (("--objective", "cost:0,1"), 2, "objective: must be one of"),
        (("--run", "tiny"), 2, "--run: tiny exists and was not made by thera fit; name a new folder"),
        (("--run", "tiny/labels.txt"), 2, "--run: tiny/labels.txt exists and was not made by thera fit"),
        (("--device", "cuda:7"), 2, "--device: cuda:7 is not there"),
        (("--folds", "40"), 3, "--folds"),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(
    data: Path, arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(data)
    assert message in fails(capsys, status, *FIT, *arguments)
    assert listing(data) == before and not (data / "checkpoints").exists()


def test_an_empty_folder_is_taken_and_is_empty_again_after_a_failure(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "empty").mkdir()
    fails(capsys, 3, *FIT, "--folds", "40", "--run", "empty")
    assert (data / "empty").is_dir() and not list((data / "empty").iterdir())


def test_a_folder_that_cannot_be_made_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, 6, *FIT, "--run", "tiny/labels.txt/run")
    assert line == "error: tiny/labels.txt/run: cannot be made (Not a directory); give another folder by --run"


def test_images_without_labels_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, 3, "fit", "tiny/img") == "error: tiny/img: has no labels; give --labels"
    assert not (data / "checkpoints").exists()


def test_after_an_interruption_the_message_names_the_command_that_goes_on(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped("thera", "stopped by SIGTERM, what is finished is saved", "run the same command again")

    monkeypatch.setattr(fit_command, "run", stopped)
    with pytest.raises(SystemExit) as ended:
        main(list(FIT))
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 75
    assert line.startswith("stopped by SIGTERM") and line.endswith("run: thera run checkpoints/img/config.yaml")
    assert load_config(data / "checkpoints/img/config.yaml").folds == 2


# --- the time ---------------------------------------------------------------------------------------------------------


def test_too_short_a_time_is_refused_and_leaves_nothing(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_command, "_measured", lambda members, *_: (members, {"test_resnet": Speed(10.0, 1.0)}))
    line = fails(capsys, 2, *FIT, "--time", "1m")
    assert line.startswith("error: --time: 1m is too short; an epoch needs ")
    assert not (data / "checkpoints").exists()


def test_the_epochs_of_the_next_members_follow_from_the_time_that_is_left(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training takes `slower` times as long as was measured; a clock that stands still otherwise shows what follows."""
    now, trained, said = [0.0], [], []
    speed = {"test_resnet": Speed(0.1, 0.0)}
    work = Work(48, 2)
    full = tiny_members("a", "b", "c", epochs=20)

    class Clock:
        @staticmethod
        def time() -> float:
            return 0.0

        @staticmethod
        def monotonic() -> float:
            return now[0]

    def train(_: Path, members: list[MemberConfig], *__: object) -> None:
        now[0] += 2 * seconds_of(members, speed, work)
        trained.extend(members)

    for name in ("fit_stacker", "labelled_and_reported"):
        monkeypatch.setattr(fit_command, name, lambda *_: None)
    monkeypatch.setattr(fit_command, "train_members", train)
    monkeypatch.setattr(fit_command, "time", Clock)
    monkeypatch.setattr(fit_command, "members_for", lambda *_: full)
    monkeypatch.setattr(fit_command, "_measured", lambda members, *_: (members, speed))
    seconds = round(seconds_of(full, speed, work) + work.decision_seconds) + 1
    config = FitConfig.model_validate(
        {"images": "tiny/img", "labels": "tiny/labels.txt", "folds": 2, "time": f"{seconds}s", "run": "r"}
    )
    fit_command.fit(config, None, ComputeConfig(device="cpu"), said.append)
    assert [member.name for member in trained] == ["a", "b", "c"]
    assert trained[0].epochs == 20 and trained[1].epochs < 8 and abs(trained[1].epochs - trained[2].epochs) <= 1
    assert now[0] + work.decision_seconds == pytest.approx(seconds, rel=0.1)
    assert [m.epochs for m in load_config(data / "r/config.yaml").members] == [m.epochs for m in trained]


def test_a_member_that_the_time_is_not_enough_for_is_left_out_and_named(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit_command, "_measured", lambda members, *_: (members, {"test_resnet": Speed(1e-6, 0.0)}))
    really = fit_command.train_members

    def slowly(*given: Any) -> Any:
        result = really(*given)
        time.sleep(6)
        return result

    monkeypatch.setattr(fit_command, "train_members", slowly)
    main([*FIT, "--time", "10s"])
    assert "warning: the time does not suffice for b, as training took longer" in capsys.readouterr().err
    assert [member.name for member in Run(data / "checkpoints/img").members()] == ["a"]
    assert [member.name for member in load_config(data / "checkpoints/img/config.yaml").members] == ["a"]


def test_speeds_are_measured_by_a_few_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit is far away, so that the test does not depend on the speed of the machine."""
    write_tiny(tmp_path / "tiny", 240, size=32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit_command, "members_for", lambda *_: tiny_members("a", "b", epochs=2, batch_size=32))
    main([*FIT, "--time", "10h"])
    assert re.search(r"expected to take .* of 10h", capsys.readouterr().err)
    trained = load_config(tmp_path / "checkpoints/img/config.yaml").members
    assert [(member.name, member.epochs) for member in trained] == [("a", 4), ("b", 4)]  # at most twice as many
