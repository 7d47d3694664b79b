"""The command: its help, its one-line errors and exit statuses, and what it does when nobody listens."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import Signature, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ensemble
from ensemble import cli
from ensemble.bench_config import BenchConfig
from ensemble.config import ComputeConfig, DecisionConfig, MemberConfig
from ensemble.errors import ArtifactError, ConfigError, DataError, LockedError, ResourceError, Stopped, TheraError

COMMANDS = {
    "fit": "fit",
    "explore": "explore",
    "clean": "clean",
    "remove-member": "remove_member",
    "train-member": "train",
    "fit-stacker": "fit_stacker",
    "predict": "predict",
    "export": "export",
    "distil": "distil",
    "serve": "serve",
    "push": "push",
    "evaluate": "evaluate",
    "compare": "evaluate",
    "report": "report",
    "verify": "verify",
    "run": "run",
    "trial": "train",
    "recipes": "run",
    "demo": "run",
    "bench": "bench",
}
TRAIN = ["train-member", "--arch", "resnet18", "--images", "img", "--run", "r"]
PREDICT = ["predict", "--run", "r", "--images", "i", "--out", "o.txt"]
SENTENCES = r"([A-Z].*\.)?"
HEAVY = ("torch", "numpy", "sklearn", "scipy", "cv2", "pandas", "timm", "albumentations")
"""No help imports these."""


@dataclass(frozen=True)
class Shown:
    """A table as the command line sees it."""

    title: str = "Rates"

    def text(self, width: int = 80, colour: bool = False) -> str:
        ends = ("\x1b[1m", "\x1b[0m") if colour else ("", "")
        return f"{self.title.join(ends)}\nfold   n\n0     12 of {width} columns\n"


TABLE = Shown()


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERA_DEBUG", "")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


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


def accepting(accepted: Signature, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        accepted.bind(*given, **named)
        return function(*given, **named)

    return call


def stand_in(monkeypatch: pytest.MonkeyPatch, file: str, **functions: Callable[..., Any]) -> None:
    """Put functions in place of a command's file, and show the tables that they return: two unless `--full` is given.

    A call that the real function would not accept is an error.
    """
    module = f"ensemble.commands.{file}"
    for name, function in functions.items():
        if find_spec(module) is not None:
            functions[name] = accepting(signature(getattr(import_module(module), name)), function)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**functions))
    screen = SimpleNamespace(on_screen=lambda tables, full: tables if full else tables[:2])
    monkeypatch.setitem(sys.modules, "ensemble.reports.screen", screen)


def raising(error: BaseException) -> Callable[..., Any]:
    def work(*_: object) -> Any:
        raise error

    return work


# --- help -------------------------------------------------------------------------------------------------------------


def test_every_command_is_listed_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert {name: command.file for name, command in cli.COMMANDS.items()} == COMMANDS
    assert thera("--help") == 0
    listed = capsys.readouterr().out
    for command, described in cli.COMMANDS.items():
        assert re.fullmatch(SENTENCES, described.summary) and re.fullmatch(SENTENCES, described.details)
        assert re.search(rf"^  {command} +[A-Z][^\n]*[^.]\.$", listed, re.MULTILINE), "cut or missing"
        assert thera(command, "--help") == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"Usage: thera {command} ")
        assert max(map(len, shown.splitlines())) <= 80


def test_the_help_groups_options_by_panel(capsys: pytest.CaptureFixture[str]) -> None:
    assert thera("train-member", "--help") == 0
    panels = re.findall(r"^([A-Z][a-z]+):$", capsys.readouterr().out, re.MULTILINE)
    assert panels == [
        *("Run", "Data", "Model", "Training", "Optimisation", "Loss", "Augmentation", "Speed", "Options"),
    ]


def test_on_a_terminal_the_help_is_drawn_in_panels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert thera("predict", "--help") == 0
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "╭─ Decision ─" in drawn
    assert "--model" in drawn
    assert "[default: off]" in re.sub(r"\s*│\n│\s*", " ", drawn) or "default: off]" in drawn


def test_the_help_shows_the_defaults_of_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert thera("train-member", "--help") == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--lr FLOAT Raise the learning rate of AdamW to this peak. [>0; default: 0.002]" in shown
    assert "--folds INT Cross-validate with this many folds. [2 to 100; default: 5]" in shown
    assert "[cosine, step; default: cosine]" in shown
    assert "--pretrained NAME" in shown and "[yes, no, if-possible; default: yes]" in shown
    assert "--run PATH Use this folder for the run, for example checkpoints/faces. [required]" in shown


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert thera() == 0
    bare = capsys.readouterr()
    assert thera("--help") == 0
    assert (bare.out, bare.err) == (capsys.readouterr().out, "")


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert thera("--version") == 0
    assert capsys.readouterr().out == f"thera {ensemble.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from ensemble.cli import main
main(["--help"])
print("loaded:", [name for name in (*{HEAVY!r}, "yaml", "ensemble.config", "ensemble.options") if name in sys.modules])
for command in {tuple(COMMANDS)!r}:
    assert main([command, "--help"]) == 0
try:
    main(["report", "--rum"])
except SystemExit as end:
    assert end.code == 2
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    lines = python(code).stdout.splitlines()
    assert [line for line in lines if line.startswith("loaded:")] == ["loaded: []", "loaded: []"]


def test_every_command_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"thera {command}" not in readme] == []


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "thera: no such command: bogus; see thera --help"),
        (["trail"], "thera: no such command: trail; did you mean trial?"),
        (["train"], "thera: no such command: train; did you mean train-member?"),
        (["predicts"], "thera: no such command: predicts; did you mean predict?"),
        (["fit_stacker"], "thera: no such command: fit_stacker; did you mean fit-stacker?"),
        (["fitstacker"], "thera: no such command: fitstacker; did you mean fit-stacker?"),
        (["member"], "thera: no such command: member; did you mean train-member or remove-member?"),
        (["--bogus"], "thera: No such option: --bogus; see thera --help"),
        (["report"], "thera report: RUN is missing; see thera report --help"),
        (["report", "--run"], "thera: Option '--run' requires an argument; see thera --help"),
        (["report", "--run", "r", "more"], "thera report: RUN is given 2 times; see thera report"),
        (["report", "r", "more"], "thera report: Got unexpected extra argument(s) (more); see thera report"),
        (["report", "--rum", "r"], "thera report: No such option: --rum (Possible options: --run); see thera report"),
        (["run"], "thera run: Missing argument 'CONFIG'; see thera run --help"),
        (["trial", "c.yaml", "--fold", "-1"], "thera trial: --fold must be >= 0; got -1; see thera trial --help"),
        (
            ["bench", "sleep", "--rounds", "0"],
            "thera bench: SUBJECTS must be 'train', 'predict', 'decide' or 'load'; got sleep; --rounds must be >= 1",
        ),
        (["train-member"], "thera train-member: --run is missing; --images is missing; --arch is missing; see thera"),
        ([*TRAIN, "--folds", "x"], "thera train-member: --folds must be a valid integer; got x; see thera"),
        ([*TRAIN, "--folds", "1"], "thera train-member: --folds must be >= 2; got 1; see thera train-member --help"),
        ([*TRAIN, "--lr", "-0.1"], "thera train-member: --lr must be > 0; got -0.1; see thera train-member --help"),
        (
            [*TRAIN, "--folds", "1", "--lr", "inf", "--stem", "odd", "--jobs", "0"],
            "thera train-member: --folds must be >= 2; got 1; --stem must be 'standard' or 'half-stride'; got odd; "
            "--lr must be a finite number; got inf; --jobs must be >= 1; got 0; see thera train-member --help",
        ),
        ([*TRAIN, "--name", "../up"], "thera train-member: --name must match pattern"),
        ([*TRAIN, "--resize", "4"], "thera train-member: --resize must be >= 16; got 4"),
        ([*TRAIN, "--batch-size", "many"], "thera train-member: --batch-size must be a valid integer; got many"),
        (
            [*TRAIN, "--convolutions", "fast"],
            "thera train-member: --convolutions must be 'auto', 'native', 'lowered', 'compiled' or 'graphed'; got fast",
        ),
        (
            [*TRAIN, "--pretrained", "maybe"],
            "thera train-member: --pretrained must be yes, no or 'if-possible'; got maybe",
        ),
        (
            [*TRAIN, "--pretrained", "yes", "--no-pretrained"],
            "thera train-member: --no-pretrained and --pretrained exclude each other; see thera",
        ),
        (
            [*TRAIN, "--loss", "bce", "--alpha", "0.5"],
            "thera train-member: alpha belongs to the focal loss, not to bce: leave it out, or set loss to focal; see",
        ),
        (
            [*TRAIN, "--augment", "heavy"],
            "thera train-member: --augment must be 'none', 'light' or 'standard'; got heavy",
        ),
        (
            ["fit-stacker", "--run", "r", "--stacker", "best"],
            "thera fit-stacker: --stacker must be 'mean', ",
        ),
        (["fit-stacker", "--run", "r", "--repeats", "-1"], "thera fit-stacker: --repeats must be >= 0; got -1"),
        (["fit-stacker", "--run", "r", "--repeats", "9999"], "thera fit-stacker: --repeats must be <= 1000; got 9999"),
        ([*PREDICT, "--prior", "1"], "thera predict: --prior must be < 1; got 1"),
        ([*PREDICT, "--prior", "0"], "thera predict: --prior must be > 0; got 0"),
        ([*PREDICT, "--prior", "half"], "thera predict: --prior must be a valid number; got half"),
        ([*PREDICT, "--cascade", "0.4"], "thera predict: --cascade must be > 0.5; got 0.4"),
        ([*PREDICT, "--cascade", "1.0"], "thera predict: --cascade must be < 1; got 1.0"),
        ([*PREDICT, "--jobs", "0"], "thera predict: --jobs must be >= 1; got 0"),
        (
            [*PREDICT, "--precision", "int8"],
            "thera predict: --precision must be 'auto', 'fp32', 'bf16' or 'fp16'; got int8",
        ),
        ([*PREDICT, "--correction", "mean"], "thera predict: --correction must be 'posterior' or 'none'; got mean"),
        (["run", "none.yaml"], "none.yaml: cannot be read ("),
        (["run", "none.yaml", "--folds", "1"], "thera run: --folds must be >= 2; got 1; see thera run --help"),
        (["run", "a\nb\x1b.yaml"], "a\\nb\\x1b.yaml: cannot be read ("),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, "run", run=lambda *_: [])  # the options alone are wrong
    stand_in(monkeypatch, "train", trial=lambda *_: [])
    assert thera(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
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
    (MemoryError(), 6, "thera: out of memory; close other programs"),
    (OutOfMemoryError("CUDA\nmany lines"), 6, "thera: out of device memory; close other programs"),
    (OSError(errno.ENOSPC, "No space left on device", "/x"), 6, "/x: No space left on device; "),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 6, "thera: Broken pipe; "),  # of a data worker, not of the output
    (
        ValueError("two\nlines"),
        1,
        "thera: internal fault, ValueError: two\\nlines; show its traceback with thera --debug",
    ),
]


@pytest.mark.parametrize(("error", "status", "message"), FAULTS, ids=lambda value: type(value).__name__)
def test_every_fault_is_one_line_and_its_exit_status(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "report", report=raising(error))
    assert thera("report", "--run", "r") == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("stop", [Stopped("x", "stopped by SIGINT", "go on"), KeyboardInterrupt()])
def test_a_stop_is_one_line_and_no_error(
    stop: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "report", report=raising(stop))
    assert thera("report", "--run", "r") == 75
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch("stopped by SIGINT.*; .*go on\n", err)


def test_debug_shows_the_traceback_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, "report", report=raising(DataError("x", "is odd")))
    assert thera("--debug", "report", "--run", "r") == 3
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in _report" in err
    assert err.endswith("\nerror: x: is odd\n")


def test_a_signal_ends_a_command_with_75(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def report(*_: object) -> list[Shown]:
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    stand_in(monkeypatch, "report", report=report)
    assert thera("report", "--run", "r") == 75
    assert capsys.readouterr().err.startswith("stopped by SIGTERM, what is finished is saved; ")


def test_a_run_that_is_not_there_is_an_artifact_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ensemble.reports.screen", SimpleNamespace(on_screen=None))  # nothing is rendered
    assert thera("report", "--run", str(tmp_path / "none")) == 4
    assert "run.json: is not there; train a member first: thera train-member --help" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- what is passed on, and what is printed ---------------------------------------------------------------------------


def test_train_member_passes_on_what_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def train(run: Path, members: Any, data: Any, folds: int, seed: int, compute: Any, say: Any) -> list[Shown]:
        seen.extend((run, members, data, folds, seed, compute))
        say("note: a\nb")
        return [TABLE]

    stand_in(monkeypatch, "train", train_members=train)
    options = ["--labels", "l", "--name", "n", "--folds", "3", "--seed", "7", "--epochs", "2", "--batch-size", "4"]
    options += ["--lr", "1e-3", "--gamma", "1", "--alpha", "0.25", "--augment", "none", "--stem", "half-stride"]
    options += [
        "--input-size",
        "32",
        "--precision",
        "fp32",
        "--no-pretrained",
        "--weights",
        "w",
        "--resize",
        "48",
        "--positive",
        "p",
        "--follow-links",
    ]
    options += ["--convolutions", "lowered", "--loss", "focal", "--label-smoothing", "0.1", "--clean"]
    options += ["--sampler", "balanced", "--schedule", "step", "--step-epochs", "3", "--step-factor", "0.5", "--freeze"]
    options += ["--backbone-lr-factor", "0.2", "--drop-rate", "0.3", "--drop-path-rate", "0.4"]
    options += ["--on-bad", "skip", "--exif", "apply", "--image-column", "file", "--label-column", "y"]
    assert thera(*TRAIN, *options, "--device", "cpu", "--workers", "1", "--jobs", "3") == 0
    run, (member,), data, folds, seed, compute = seen
    assert (run, folds, seed, compute) == (Path("r"), 3, 7, ComputeConfig(device="cpu", workers=1, jobs=3))
    where = {"images": Path("img"), "labels": Path("l"), "positive": "p", "follow_links": True, "resize": 48}
    where |= {"on_bad": "skip", "exif": "apply", "image_column": "file", "label_column": "y", "classes": None}
    where |= {"near_duplicates": "ignore"}
    assert data.model_dump() == where
    expected = {"arch": "resnet18", "name": "n", "epochs": 2, "batch_size": 4, "lr": 1e-3, "gamma": 1, "alpha": 0.25}
    expected |= {"augment": "none", "stem": "half-stride", "input_size": 32, "precision": "fp32", "pretrained": False}
    expected |= {"weights": Path("w"), "convolutions": "lowered", "clean": True}
    expected |= {"loss": "focal", "label_smoothing": 0.1, "sampler": "balanced", "schedule": "step", "step_epochs": 3}
    expected |= {"step_factor": 0.5, "freeze": True, "backbone_lr_factor": 0.2, "drop_rate": 0.3, "drop_path_rate": 0.4}
    assert {key: getattr(member, key) for key in expected} == expected
    assert capsys.readouterr() == (TABLE.text(), "note: a\\nb\n")

    seen.clear()
    assert thera(*TRAIN) == 0
    assert seen[1] == [MemberConfig(arch="resnet18")]
    assert seen[3:] == [5, 0, ComputeConfig()]


@pytest.mark.parametrize(
    ("options", "pretrained"),
    [
        ([], True),
        (["--pretrained", "yes"], True),
        (["--pretrained", "no"], False),
        (["--no-pretrained"], False),
        (["--pretrained", "if-possible"], "if-possible"),
    ],
)
def test_pretrained_has_three_values(
    options: list[str], pretrained: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "train", train_members=lambda _, members, *__: seen.extend(members) or [])
    assert thera(*TRAIN, *options) == 0
    assert [member.pretrained for member in seen] == [pretrained]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], DecisionConfig()),
        (
            ["--objective", "fpr:0.01", "--stacker", "mean", "--repeats", "5"],
            DecisionConfig(objective="fpr:0.01", stacker="mean", repeats=5),
        ),
    ],
)
def test_fit_stacker_passes_on_what_was_given(
    options: list[str], expected: DecisionConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "fit_stacker", fit_stacker=lambda *given: seen.extend(given[:2]) or [TABLE])
    assert thera("fit-stacker", "--run", "r", *options) == 0
    assert seen == [Path("r"), expected]
    assert capsys.readouterr().out == TABLE.text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["--tta"], {"tta": True}),
        (["--follow-links"], {"follow_links": True}),
        (["--on-bad", "skip", "--bad-label", "0"], {"on_bad": "skip", "bad_label": 0}),
        (["--image-column", "file"], {"image_column": "file"}),
        (["--no-tta", "--prior", "0.3"], {"prior": 0.3}),
        (["--correction", "none"], {"correction": "none"}),
        (["--combine", "vote"], {"combine": "vote"}),
        (["--cascade", "0.99", "--jobs", "2"], {"cascade": 0.99}),
        (["--precision", "bf16", "--convolutions", "lowered"], {"precision": "bf16", "convolutions": "lowered"}),
    ],
)
def test_predict_passes_on_what_was_given(
    options: list[str],
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "predict", predict=lambda *given: seen.extend(given[:3]) or [TABLE])
    assert thera(*PREDICT, "--device", "cpu", *options) == 0
    run, config, compute = seen
    default = {"images": (Path("i"),), "out": Path("o.txt"), "tta": False, "correction": "posterior", "prior": None}
    default |= {"force": False, "follow_links": False, "on_bad": "error", "bad_label": None, "image_column": None}
    default |= {"combine": "mean", "cascade": None, "precision": "auto", "convolutions": "auto"}
    assert (run, config.model_dump()) == (Path("r"), default | expected)
    assert compute == ComputeConfig(device="cpu", jobs=2 if "--jobs" in options else None)
    assert capsys.readouterr().out == TABLE.text()


def test_evaluate_passes_on_what_was_given(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "evaluate", evaluate=lambda **given: seen.append(given) or [TABLE])
    assert thera("evaluate", "p.txt", "--labels", "l.csv", "--label-column", "y", "--follow-links") == 0
    (given,) = seen
    assert (given["label_file"], given["labels"], given["positive"]) == (Path("p.txt"), Path("l.csv"), None)
    assert (given["image_column"], given["label_column"], given["follow_links"]) == (None, "y", True)
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
    stand_in(monkeypatch, "evaluate", compare=lambda **given: seen.append(given) or [TABLE])
    assert thera("compare", "a", "b", *options) == 0
    (given,) = seen
    assert [given[name] for name in ("a", "b", "labels", "tta")] == [Path("a"), Path("b"), labels, tta]
    assert capsys.readouterr().out == TABLE.text()


def test_demo_and_recipes_pass_on_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "run", demo=lambda *given: seen.append(given[:2]) or [], recipes=lambda: [TABLE])
    assert thera("recipes") == thera("demo") == thera("demo", "--run", "d", "--jobs", "2") == 0
    assert seen == [(None, ComputeConfig()), (Path("d"), ComputeConfig(jobs=2))]


def test_bench_passes_on_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BenchConfig] = []
    stand_in(monkeypatch, "bench", bench=lambda config, say: seen.append(config) or [])
    given = ["train", "load", "--arch", "a", "--arch", "b", "--images", "i", "--labels", "l", "--limit", "300"]
    assert thera("bench") == thera("bench", *given, "--rounds", "2", "--device", "cpu") == 0
    assert seen[0] == BenchConfig(
        subjects=("train", "predict", "decide", "load"),
        arch=("resnet18", "mobilenetv2", "convnext_nano"),
        images=None,
        labels=None,
        limit=2048,
        rounds=5,
        device="auto",
    )
    assert seen[1] == BenchConfig(
        subjects=("train", "load"),
        arch=("a", "b"),
        images=Path("i"),
        labels=Path("l"),
        limit=300,
        rounds=2,
        device="cpu",
    )


def test_run_overrides_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "run", run=lambda *given: seen.extend(given[:2]) or [TABLE])
    (tmp_path / "c.yaml").write_text("run: r\ndata: {images: a, labels: b}\nmembers: [{arch: lenet, epochs: 9}]\n")
    assert thera("run", str(tmp_path / "c.yaml")) == 0
    given = ["--run", "x", "--images", "i", "--labels", "l", "--folds", "3", "--epochs", "2", "--jobs", "2"]
    given += ["--predict", "p", "--predict", "q", "--out", "o", "--positive", "yes", "--force"]
    assert thera("run", str(tmp_path / "c.yaml"), *given, "--device", "cpu", "--workers", "1") == 0
    plain, default, config, compute = seen
    assert (plain.run, plain.data.images, plain.folds, plain.members[0].epochs) == (Path("r"), Path("a"), 5, 9)
    assert (config.run, config.folds, config.members[0].epochs) == (Path("x"), 3, 2)
    assert (config.data.images, config.data.labels, config.data.positive) == (Path("i"), Path("l"), "yes")
    assert (config.predict.images, config.predict.out, config.predict.force) == (
        (Path("p"), Path("q")),
        Path("o"),
        True,
    )
    assert (default, compute) == (ComputeConfig(), ComputeConfig(device="cpu", workers=1, jobs=2))


def test_trial_passes_on_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "train", trial=lambda config, *given: seen.append((config.run, *given[:2])) or [TABLE])
    (tmp_path / "c.yaml").write_text("run: r\ndata: {images: a, labels: b}\nmembers: [{arch: lenet}]\n")
    assert thera("trial", str(tmp_path / "c.yaml")) == 0
    assert thera("trial", str(tmp_path / "c.yaml"), "--fold", "2", "--jobs", "2") == 0
    assert seen == [(Path("r"), 0, ComputeConfig()), (Path("r"), 2, ComputeConfig(jobs=2))]


def test_full_prints_all_tables_and_reaches_no_function(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "report", report=lambda run, say, config: [TABLE] * 5)
    assert thera("report", "--run", "r") == 0
    assert capsys.readouterr().out == f"{TABLE.text()}\n{TABLE.text()}"
    assert thera("report", "--run", "r", "--full") == 0
    assert capsys.readouterr().out == "\n".join([TABLE.text()] * 5)


def test_tables_have_the_width_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "report", report=lambda *_: [TABLE])
    monkeypatch.setenv("COLUMNS", "123")
    assert thera("report", "--run", "r") == 0
    assert capsys.readouterr().out == TABLE.text(123)


@pytest.mark.parametrize(
    ("terminal", "environment", "colour"),
    [
        (True, {"TERM": "xterm-256color"}, True),
        (True, {"TERM": "xterm-256color", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm-256color"}, False),
    ],
)
def test_colour_is_for_terminals_that_have_it_and_users_who_do_not_refuse_it(
    terminal: bool,
    environment: dict[str, str],
    colour: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(monkeypatch, "report", report=lambda *_: [TABLE, TABLE])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert thera("report", "--run", "r") == 0
    assert capsys.readouterr().out == f"{TABLE.text(80, colour)}\n{TABLE.text(80, colour)}"
    for arguments in (["--help"], ["report", "--help"]):
        monkeypatch.setenv("FORCE_COLOR", "1")  # otherwise rich sees that pytest captures the output
        assert thera(*arguments) == 0
        shown = capsys.readouterr().out
        assert ("\x1b[" in shown) == ("╭" in shown) == colour, "panels are drawn where colours are"


BIG = """
import sys
from types import SimpleNamespace
from ensemble import cli
tables = [SimpleNamespace(text=lambda *_: "x" * 99 * 9999 + chr(10))]
commands = {
    "report": SimpleNamespace(report=lambda run, say, config: tables),
    "predict": SimpleNamespace(predict=lambda run, config, compute, say: (say("a note"), tables)[1]),
}
sys.modules.update({f"ensemble.commands.{file}": module for file, module in commands.items()})
sys.modules["ensemble.reports.screen"] = SimpleNamespace(on_screen=lambda result, full: result)
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
