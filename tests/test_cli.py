"""The command: its help, its one-line errors and exit statuses, and what it does when nobody listens."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from ensemble import cli, evaluation, examples, pipeline
from ensemble.config import ComputeConfig, DecisionConfig
from ensemble.errors import ArtifactError, ConfigError, DataError, LockedError, ResourceError, Stopped, TheraError
from ensemble.reports import tables
from ensemble.reports.tables import Table

COMMANDS = (
    "train-member",
    "fit-stacker",
    "predict",
    "evaluate",
    "compare",
    "report",
    "recipes",
    "trial",
    "run",
    "demo",
    "bench",
)
TRAIN = ["train-member", "--arch", "resnet18", "--images", "img", "--run", "r"]
PREDICT = ["predict", "--run", "r", "--images", "i", "--out", "o.txt"]
HEAVY = (
    "torch",
    "numpy",
    "sklearn",
    "scipy",
    "cv2",
    "yaml",
    "timm",
    "albumentations",
    "ensemble.config",
    "ensemble.pipeline",
)
"""typer itself takes pydantic for the options of a command; within the 0.3 s of `--help` it has its room."""


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERA_DEBUG", "")


def thera(*arguments: str) -> int:
    """Run the command here, and return its exit status."""
    try:
        return cli.main(list(arguments)) or 0
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def raising(error: BaseException) -> Callable[..., Any]:
    def work(*_: object) -> Any:
        raise error

    return work


# --- help -------------------------------------------------------------------------------------------------------------


def test_every_command_is_listed_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.main.get_command(cli.app)
    assert set(app.commands) == set(COMMANDS)  # type: ignore[attr-defined]
    assert thera("--help") == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z]", shown, re.MULTILINE), command
        assert thera(command, "--help") == 0
        own = capsys.readouterr().out
        assert own.startswith(f"Usage: thera {command} ")
        options = [o for p in app.commands[command].params for o in p.opts if o.startswith("--")]  # type: ignore[attr-defined]
        assert all(re.search(rf"^  {option}\b", own, re.MULTILINE) for option in options)


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert thera() == 0
    bare = capsys.readouterr()
    assert thera("--help") == 0
    assert (bare.out, bare.err) == (capsys.readouterr().out, "")


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from ensemble.cli import main
for command in {COMMANDS!r}:
    assert main([command, "--help"]) == 0
main(["--help"])
try:
    main(["report", "--rum"])
except SystemExit as end:
    assert end.code == 2
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    assert python(code).stdout.splitlines()[-1] == "heavy: []"


def test_every_command_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"thera {command}" not in readme] == []


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "thera: No such command 'bogus'; see thera --help"),
        (["--bogus"], "thera: No such option: --bogus; see thera --help"),
        (["report"], "thera report: Missing option '--run'; see thera report --help"),
        (["report", "--run"], "thera: Option '--run' requires an argument; see thera --help"),
        (["report", "--run", "r", "more"], "thera report: Got unexpected extra argument(s) (more); see thera report"),
        (["report", "--rum", "r"], "thera report: No such option: --rum (Possible options: --run); see thera report"),
        (["run"], "thera run: Missing argument 'config'"),
        ([*TRAIN, "--folds", "x"], "thera train-member: Invalid value for '--folds': "),
        ([*TRAIN, "--folds", "1"], "thera train-member: Invalid value for '--folds': "),
        ([*TRAIN, "--lr", "-0.1"], "train-member: lr must be greater than 0; got -0.1"),
        (
            [*TRAIN, "--lr", "inf", "--stem", "odd"],
            "train-member: stem must be 'standard' or 'half-stride'; got odd; lr",
        ),
        ([*TRAIN, "--name", "../up"], "train-member: name must match pattern"),
        ([*TRAIN, "--resize", "4"], "train-member: resize must be greater than or equal to 16; got 4"),
        (["fit-stacker", "--run", "r", "--objective", "eer"], "objective: must be one of hter, cost:A,B (what an FPR "),
        (["fit-stacker", "--run", "r", "--stacker", "best"], "fit-stacker: stacker must be 'auto', 'mean', "),
        (["fit-stacker", "--run", "r", "--repeats", "-1"], "thera fit-stacker: Invalid value for '--repeats': "),
        (
            ["fit-stacker", "--run", "r", "--repeats", "9999"],
            "fit-stacker: repeats must be less than or equal to 1000;",
        ),
        ([*PREDICT, "--prior", "1"], "predict: prior must be less than 1; got 1.0"),
        ([*PREDICT, "--prior", "0"], "predict: prior must be greater than 0; got 0.0"),
        ([*PREDICT, "--prior", "half"], "thera predict: Invalid value for '--prior': "),
        ([*PREDICT, "--cascade", "0.4"], "predict: cascade must be greater than 0.5; got 0.4"),
        ([*PREDICT, "--cascade", "1.0"], "predict: cascade must be less than 1; got 1.0"),
        ([*PREDICT, "--jobs", "0"], "thera predict: Invalid value for '--jobs': "),
        ([*PREDICT, "--precision", "int8"], "predict: precision must be 'auto', 'fp32', 'bf16' or 'fp16'; got int8"),
        ([*TRAIN, "--early-size", "8"], "train-member: early_size must be greater than or equal to 16; got 8"),
        (
            [*TRAIN, "--convolutions", "fast"],
            "train-member: convolutions must be 'auto', 'native', 'lowered' or 'compiled'; got fast",
        ),
        ([*PREDICT, "--correction", "mean"], "predict: correction must be 'posterior', 'location-scale', 'share' or "),
        (["run", "none.yaml"], "none.yaml: cannot be read ("),
        (["run", "a\nb\x1b.yaml"], "a\\nb\\x1b.yaml: cannot be read ("),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert thera(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


FAULTS: list[tuple[BaseException, int, str]] = [
    (TheraError("x", "is odd", "mend it"), 1, "x: is odd; mend it"),
    (ConfigError("x", "is odd"), 2, "x: is odd"),
    (DataError("x\ny", "is \udcff"), 3, "x\\ny: is \\udcff"),
    (ArtifactError("x", "is odd"), 4, "x: is odd"),
    (LockedError("x", "is odd"), 5, "x: is odd"),
    (ResourceError("x", "is odd"), 6, "x: is odd"),
    (Stopped("x", "is odd"), 75, "x: is odd"),
    (MemoryError(), 6, "thera: out of memory; close other programs"),
    (OutOfMemoryError("CUDA\nmany lines"), 6, "thera: out of device memory; close other programs"),
    (OSError(errno.ENOSPC, "No space left on device", "/x"), 6, "/x: No space left on device; "),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 6, "thera: Broken pipe; "),  # of a data worker, not of the output
    (KeyboardInterrupt(), 75, "thera: stopped by SIGINT, what is finished is saved; run the same command again"),
    (
        ValueError("two\nlines"),
        1,
        "thera: internal fault, ValueError: two\\nlines; show its traceback with thera --debug",
    ),
]


@pytest.mark.parametrize(("error", "status", "said"), FAULTS, ids=lambda value: type(value).__name__)
def test_every_fault_is_one_line_and_its_exit_status(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "report", raising(error))
    assert thera("report", "--run", "r") == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pipeline, "report", raising(DataError("x", "is odd")))
    assert thera("--debug", "report", "--run", "r") == 3
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in report" in err
    assert err.endswith("\nerror: x: is odd\n")


def test_a_signal_ends_a_command_with_75(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def report(*_: object) -> list[Table]:
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(pipeline, "report", report)
    assert thera("report", "--run", "r") == 75
    assert capsys.readouterr().err.startswith("error: thera: stopped by SIGTERM, what is finished is saved; ")


def test_a_run_that_is_not_there_is_an_artifact_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert thera("report", "--run", str(tmp_path / "none")) == 4
    assert "run.json: is not there; train a member first: thera train-member --help" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- what is passed on, and what is printed ---------------------------------------------------------------------------

TABLE = Table("Rates", ("fold", "n"), (("0", "12"),))


def test_train_member_passes_on_what_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def train(run: Path, member: Any, data: Any, folds: int, seed: int, machine: Any, say: Any) -> Table:
        seen.extend((run, member, data, folds, seed, machine))
        say("note: a\nb")
        return TABLE

    monkeypatch.setattr(pipeline, "train_member", train)
    options = ["--labels", "l", "--name", "n", "--folds", "3", "--seed", "7", "--epochs", "2", "--batch-size", "4"]
    options += ["--lr", "1e-3", "--gamma", "1", "--alpha", "0.25", "--augment", "none", "--stem", "half-stride"]
    options += ["--input-size", "32", "--precision", "fp32", "--no-pretrained", "--weights", "w", "--resize", "48"]
    options += ["--early-size", "24", "--convolutions", "lowered", "--loss", "focal", "--label-smoothing", "0.1"]
    options += ["--sampler", "balanced", "--schedule", "step", "--step-epochs", "3", "--step-factor", "0.5", "--freeze"]
    options += ["--backbone-lr-factor", "0.2", "--drop-rate", "0.3", "--drop-path-rate", "0.4"]
    assert thera(*TRAIN, *options, "--device", "cpu", "--workers", "1", "--jobs", "3") == 0
    run, member, data, folds, seed, machine = seen
    assert (run, folds, seed, machine) == (Path("r"), 3, 7, ComputeConfig(device="cpu", workers=1, jobs=3))
    assert data.model_dump() == {"images": Path("img"), "labels": Path("l"), "resize": 48}
    wanted = {"arch": "resnet18", "name": "n", "epochs": 2, "batch_size": 4, "lr": 1e-3, "gamma": 1, "alpha": 0.25}
    wanted |= {"augment": "none", "stem": "half-stride", "input_size": 32, "precision": "fp32", "pretrained": False}
    wanted |= {"weights": Path("w"), "early_size": 24, "convolutions": "lowered"}
    wanted |= {"loss": "focal", "label_smoothing": 0.1, "sampler": "balanced", "schedule": "step", "step_epochs": 3}
    wanted |= {"step_factor": 0.5, "freeze": True, "backbone_lr_factor": 0.2, "drop_rate": 0.3, "drop_path_rate": 0.4}
    assert {key: getattr(member, key) for key in wanted} == wanted
    assert capsys.readouterr() == (TABLE.text(), "note: a\\nb\n")

    seen.clear()
    assert thera(*TRAIN) == 0
    assert seen[1] == cli_default()
    assert seen[3:] == [5, 0, ComputeConfig()]


def cli_default() -> Any:
    from ensemble.config import MemberConfig

    return MemberConfig(arch="resnet18")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], DecisionConfig()),
        (
            ["--objective", "fpr:0.01", "--stacker", "mean", "--repeats", "5"],
            DecisionConfig(objective="fpr:0.01", stacker="mean", repeats=5),
        ),
    ],
)
def test_fit_stacker_passes_on_what_was_given(
    options: list[str],
    wanted: DecisionConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "fit_stacker", lambda *given: seen.extend(given[:2]) or {"plain": 1, "tta": 2})
    monkeypatch.setattr(tables, "decision_tables", lambda plain, tta: (seen.extend((plain, tta)), [TABLE])[1])
    assert thera("fit-stacker", "--run", "r", *options) == 0
    assert seen == [Path("r"), wanted, 1, 2]
    assert capsys.readouterr().out.startswith(TABLE.text())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], {}),
        (["--tta"], {"tta": True}),
        (["--no-tta", "--prior", "0.3"], {"prior": 0.3}),
        (["--correction", "location-scale"], {"correction": "location-scale"}),
        (["--combine", "vote"], {"combine": "vote"}),
        (["--cascade", "0.99", "--jobs", "2"], {"cascade": 0.99}),
        (["--precision", "bf16", "--convolutions", "lowered"], {"precision": "bf16", "convolutions": "lowered"}),
    ],
)
def test_predict_passes_on_what_was_given(
    options: list[str],
    wanted: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "predict", lambda *given: seen.extend(given[:3]) or TABLE)
    assert thera(*PREDICT, "--device", "cpu", *options) == 0
    run, given, machine = seen
    default = {"images": Path("i"), "out": Path("o.txt"), "tta": False, "correction": "posterior", "prior": None}
    default |= {"combine": "mean", "cascade": None, "precision": "auto", "convolutions": "auto"}
    assert (run, given.model_dump()) == (Path("r"), default | wanted)
    assert machine == ComputeConfig(device="cpu", jobs=2 if "--jobs" in options else None)
    assert capsys.readouterr().out == TABLE.text()


def test_evaluate_passes_on_what_was_given(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *given: seen.append(given) or [TABLE])
    assert thera("evaluate", "p.txt", "--labels", "l.txt") == 0
    assert seen == [(Path("p.txt"), Path("l.txt"))]
    assert capsys.readouterr().out == TABLE.text()


@pytest.mark.parametrize(
    ("options", "labels", "tta"),
    [([], None, True), (["--no-tta"], None, False), (["--tta", "--labels", "l.txt"], Path("l.txt"), True)],
)
def test_compare_passes_on_what_was_given(
    options: list[str],
    labels: Path | None,
    tta: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(evaluation, "compare", lambda *given: seen.append(given) or [TABLE])
    assert thera("compare", "a", "b", *options) == 0
    assert [given[:4] for given in seen] == [(Path("a"), Path("b"), labels, tta)]
    assert capsys.readouterr().out == TABLE.text()


def test_demo_and_run_pass_on_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(examples, "demo", lambda *given: seen.append(given[:2]) or [])
    monkeypatch.setattr(pipeline, "run_config", lambda config, machine, say: seen.append((config.run, machine)) or [])
    (tmp_path / "c.yaml").write_text("run: r\ndata: {images: i}\nmembers: [{arch: a}]\n")
    assert thera("demo") == thera("demo", "--run", "d") == thera("run", str(tmp_path / "c.yaml"), "--workers", "2") == 0
    assert thera("demo", "--jobs", "2") == thera("run", str(tmp_path / "c.yaml"), "--jobs", "1") == 0
    plain = ComputeConfig()
    assert seen[:3] == [(None, plain), (Path("d"), plain), (Path("r"), ComputeConfig(workers=2))]
    assert seen[3:] == [(None, ComputeConfig(jobs=2)), (Path("r"), ComputeConfig(jobs=1))]


def test_tables_are_plain_off_a_terminal_and_drawn_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "report", lambda *_: [TABLE, TABLE])
    assert thera("report", "--run", "r") == 0
    assert capsys.readouterr().out == f"{TABLE.text()}\n{TABLE.text()}"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert thera("report", "--run", "r") == 0
    drawn = capsys.readouterr().out
    assert "Rates" in drawn
    assert "━" in drawn
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", drawn), "a colour"


BIG = """
import sys
from ensemble import cli, evaluation, pipeline
from ensemble.reports.tables import Table
pipeline.report = lambda run, say: [Table("Big", ("fold",), (("x" * 99,),) * 9999)]
pipeline.predict = lambda run, wanted, machine, say: (say("a note"), Table("Big", ("set",), (("x" * 99,),) * 9999))[1]
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [["report", "--run", "r"], ["predict", "--run", "r", "--images", "i", "--out", "o"]],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_closed_pipe_is_no_error(arguments: list[str], both: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", BIG, *arguments],
        stdout=write,
        stderr=write if both else subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert done.returncode == 0
    if not both:
        assert done.stderr in ("", "a note\n")


def test_run_overrides_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "run_config", lambda *given: seen.extend(given[:2]) or [TABLE])
    (tmp_path / "c.yaml").write_text("run: r\ndata: {images: a, labels: b}\nmembers: [{arch: lenet, epochs: 9}]\n")
    assert thera("run", str(tmp_path / "c.yaml")) == 0
    given = ["--run", "x", "--images", "i", "--labels", "l", "--folds", "3", "--epochs", "2", "--jobs", "2"]
    assert thera("run", str(tmp_path / "c.yaml"), *given, "--device", "cpu", "--workers", "1") == 0
    plain, _, config, machine = seen
    assert (plain.run, plain.data.images, plain.folds, plain.members[0].epochs) == (Path("r"), Path("a"), 5, 9)
    assert (config.run, config.folds, config.members[0].epochs) == (Path("x"), 3, 2)
    assert (config.data.images, config.data.labels) == (Path("i"), Path("l")) and machine == ComputeConfig(
        device="cpu", workers=1, jobs=2
    )


def test_trial_passes_on_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "trial", lambda config, *given: seen.append((config.run, *given[:2])) or TABLE)
    (tmp_path / "c.yaml").write_text("run: r\ndata: {images: a, labels: b}\nmembers: [{arch: lenet}]\n")
    assert thera("trial", str(tmp_path / "c.yaml")) == 0
    assert thera("trial", str(tmp_path / "c.yaml"), "--fold", "2", "--jobs", "2") == 0
    assert seen == [(Path("r"), 0, ComputeConfig()), (Path("r"), 2, ComputeConfig(jobs=2))]
