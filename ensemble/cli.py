"""The `thera` command: it reads the options of a command, calls it, and prints the tables of its result.

`COMMANDS` names each command's file. The file and the command's options are loaded when the command is used; `thera
--help` loads neither.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from ensemble import __version__
from ensemble.errors import ConfigError, ResourceError, Stopped, TheraError, out_of_memory

if TYPE_CHECKING:
    from ensemble.config import ComputeConfig, DataConfig, DecisionConfig, MemberConfig
    from ensemble.export_config import LabelledBy
    from ensemble.fit_config import FitConfig
    from ensemble.predict_config import PredictConfig
    from ensemble.push_config import PushConfig
    from ensemble.report_config import ReportConfig

# --- the commands -----------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    from ensemble.progress import say

    say(line)


def _calls(function: str) -> Callable[..., Any]:
    """Return what calls a function of the command's file with the options, by keyword, and with `say`."""
    return lambda file, /, **given: getattr(file, function)(**given, say=_say)


def _fit(file: Any, /, config: FitConfig, decision: DecisionConfig, compute: ComputeConfig) -> Any:
    return file.fit(config, decision, compute, _say)


def _train_member(
    file: Any, /, run: Path, member: MemberConfig, data: DataConfig, folds: int, seed: int, compute: ComputeConfig
) -> Any:
    return file.train_members(run, [member], data, folds, seed, compute, _say)


def _targets_of(run: Path) -> Any:
    """Return the module of several targets if the folder holds their runs, else None."""
    if not (run / "targets.json").is_file():
        return None
    return import_module("ensemble.commands.targets")


def _fit_stacker(file: Any, /, run: Path, config: DecisionConfig) -> Any:
    if targets := _targets_of(run):
        return targets.fit_targets(run, config, _say)
    return file.fit_stacker(run, config, _say)


def _predict(file: Any, /, by: LabelledBy, config: PredictConfig, shards: Path | None, compute: ComputeConfig) -> Any:
    if shards is not None:
        in_shards = import_module("ensemble.commands.predict_shards")
        return in_shards.predict_shards(by, shards, config, compute, _say)
    if by.run is None:
        with_model = import_module("ensemble.commands.predict_model").predict_with_model
        return with_model(by.model, config, compute, _say)
    if targets := _targets_of(by.run):
        return targets.predict_targets(by.run, config, compute, _say)
    return file.predict(by.run, config, compute, _say)


def _push(file: Any, /, run: Path, config: PushConfig) -> Any:
    return file.push(run, config, _say, _confirmed if sys.stdin.isatty() and sys.stderr.isatty() else None)


def _confirmed(question: str) -> bool:
    """Ask on standard error; no answer is no."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


def _report(file: Any, /, run: Path, config: ReportConfig) -> Any:
    if targets := _targets_of(run):
        return targets.report_targets(run, _say, config)
    return file.report(run, _say, config)


def _verify(file: Any, /, run: Path) -> Any:
    if targets := _targets_of(run):
        return targets.verify_targets(run, _say)
    return file.verify(run, _say)


def _run(file: Any, /, config: Path, compute: ComputeConfig, **given: Any) -> Any:
    from ensemble.config_reading import config_file, load_config, overridden

    loaded = overridden(load_config(config_file(config)), **given)
    if loaded.targets is not None:
        return import_module("ensemble.commands.targets").run_targets(loaded, compute, _say)
    return file.run(loaded, compute, _say)


def _trial(file: Any, /, config: Path, fold: int, compute: ComputeConfig) -> Any:
    from ensemble.config_reading import config_file, load_config

    return file.trial(load_config(config_file(config)), fold, compute, _say)


def _recipes(file: Any, /) -> Any:
    return file.recipes()


def _demo(file: Any, /, run: Path | None, people: int | None, compute: ComputeConfig) -> Any:
    return file.demo(run, compute, _say) if people is None else file.demo_people(people, run)


@dataclass(frozen=True)
class Command:
    """A command of `thera`.

    Attributes
    ----------
    file : str
        Its file in `ensemble/commands/`, without `.py`.
    summary : str
        Its line in `thera --help`, at most 60 characters.
    details : str
        Further text of the command's own help.
    call : callable
        Called with the module of `file` and the checked options; returns the command's result.
    """

    file: str
    summary: str
    details: str
    call: Callable[..., Any]


COMMANDS = {
    "fit": Command(
        "fit",
        "Do everything: choose members, train, decide, label.",
        "The members suit the device and the number of images; --time limits how long everything takes. What is chosen "
        "is written to config.yaml in the run's folder, and `thera run` goes on with that file after an interruption.",
        _fit,
    ),
    "explore": Command(
        "explore",
        "Look at images and labels before training.",
        "It counts classes, sizes and formats, and lists damaged, blank, dark, blurred and odd images, copies, and "
        "images that are in two sets. It writes explore.html, and explore.csv with all findings.",
        _calls("explore"),
    ),
    "train-member": Command(
        "train",
        "Train one member and print its out-of-fold HTER.",
        "Interrupted, the same command goes on from the last finished epoch.",
        _train_member,
    ),
    "fit-stacker": Command(
        "fit_stacker",
        "Fit stacker and threshold on the OOF logits.",
        "Without options, the threshold is the one that minimises the HTER. Plain prediction and --tta each get their "
        "own stacker and threshold.",
        _fit_stacker,
    ),
    "remove-member": Command(
        "remove_member",
        "Remove a member and all that it has trained.",
        "Nothing is removed without --yes. A decision that uses the member must be fitted anew.",
        _calls("remove_member"),
    ),
    "predict": Command(
        "predict",
        "Label a set of images with a fitted run, or a model.",
        "The HTER to expect is printed, with its 95 % interval. With --model, a file of thera export is used in "
        "place of a run: it needs neither torch nor the run, and writes label file and predictions.csv into the "
        "current folder, or beside --out. With --shards, neither images nor labels are in memory as a whole; "
        "interrupted, the same command goes on.",
        _predict,
    ),
    "distil": Command(
        "distil",
        "Train one small network to answer like the stack.",
        "It learns the probabilities of the run's stack, on the images of the run and on others without labels. It "
        "becomes a member of the run, and is compared with the stack out of fold. Interrupted, the same command goes "
        "on.",
        _calls("distil"),
    ),
    "export": Command(
        "export",
        "Write a run's decision as one ONNX file.",
        "It holds preprocessing, members, fold models, views, stacker and threshold, and labels images with "
        "`thera predict --model`. It is only written once onnxruntime has given the labels of torch on real images.",
        _calls("export"),
    ),
    "serve": Command(
        "serve",
        "Answer over HTTP with an exported model.",
        "POST /predict takes one image as the body, or several as files of a form, and answers with label, probability "
        "and logit of each. Only this machine can reach the service unless --host says otherwise.",
        _calls("serve"),
    ),
    "push": Command(
        "push",
        "Upload a model and its card to the Hugging Face hub.",
        "It uploads an exported model, its facts and the model card of thera report, in one commit. Files and address "
        "are shown first, and nothing is uploaded without a yes. The token is that of `hf auth login` or HF_TOKEN.",
        _push,
    ),
    "evaluate": Command(
        "evaluate",
        "Measure a label file against the true labels.",
        "It prints FPR, FNR and HTER with their 95 % intervals and the confusion matrix; with --full, also the "
        "classification report.",
        _calls("evaluate"),
    ),
    "compare": Command(
        "evaluate",
        "Test whether B beats A or the difference is chance.",
        "A run is measured by the nested predictions of its stack, a member by those at its own threshold: each image "
        "is predicted with weights and a threshold that were fitted without it.",
        _calls("compare"),
    ),
    "report": Command(
        "report",
        "Print the members' HTER and the stack's.",
        "The page report.html in the run's folder shows figures, errors and doubtful labels; report.md and report.json "
        "have all tables, which --full prints; README.md is the model card.",
        _report,
    ),
    "clean": Command(
        "clean",
        "Find and correct labels that are likely to be wrong.",
        "Confident learning ranks the labels that are contradicted by models which have not seen the image. The page "
        "saves decisions; --apply checks them and writes new labels, and an overlay that train-member --overlay reads. "
        "Held-out images keep their labels.",
        _calls("clean"),
    ),
    "verify": Command(
        "verify",
        "Check every file of a run against its recorded hash.",
        "Each damaged file is named with what rebuilds it, and the exit status is 4. Nothing is changed.",
        _verify,
    ),
    "run": Command(
        "run",
        "Train, fit, predict and report, as a YAML file says.",
        "Interrupted, the same command goes on from the last finished epoch.",
        _run,
    ),
    "trial": Command(
        "train",
        "Train one fold of every member and compare them on it.",
        "Use it to choose members, not to estimate their error: the choice has seen that fold's labels. `thera run` "
        "goes on from it.",
        _trial,
    ),
    "recipes": Command(
        "run",
        "List the recipes of the public solutions.",
        "Run one with `thera run NAME`; --run, --images and --labels take any data.",
        _recipes,
    ),
    "demo": Command(
        "run",
        "Run everything on generated images.",
        "Their labels are flipped with a known probability, so that the least HTER of any rule is known too. With "
        "--people, only the images and the manifest of a data set of 18 classes are written.",
        _demo,
    ),
    "bench": Command(
        "bench",
        "Measure how well this machine is used.",
        "It prints images per second, their share of what the machine can do at most, and what would be faster.",
        _calls("bench"),
    ),
}


class _Commands(TyperGroup):
    """Builds a command when it is used; `thera --help` shows summaries and builds none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=command.summary) for name, command in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args[0] in COMMANDS:
            return args[0], _built(args[0]), args[1:]
        if ctx.resilient_parsing:  # the shell completes an unknown command
            return None, None, args[1:]
        near = " or ".join(_near(args[0]))
        raise ConfigError(
            "thera", f"no such command: {args[0]}", f"did you mean {near}?" if near else "see thera --help"
        )


def _near(typed: str) -> list[str]:
    """Return the commands that a mistyped or shortened name may mean.

    >>> _near("fit_stacker"), _near("train"), _near("bogus")
    (['fit-stacker'], ['train-member'], [])
    """
    parts = {name: name.split("-") for name in COMMANDS}
    alike = get_close_matches(typed.lower(), COMMANDS, cutoff=0.7)
    return alike or [name for name in COMMANDS if any(p.startswith(typed) or typed.startswith(p) for p in parts[name])]


def _built(name: str) -> Any:
    from ensemble.options import build_command

    command = COMMANDS[name]

    def work(full: bool = False, **values: Any) -> None:
        _print_result(lambda: command.call(import_module(f"ensemble.commands.{command.file}"), **values), full)

    return build_command(name, f"{command.summary}\n\n{command.details}", work, _in_colour())


def _app() -> typer.Typer:
    app = typer.Typer(
        cls=_Commands,
        help="Learn from images and their 0/1 labels, and label new ones with the lowest half total error rate (HTER).",
        invoke_without_command=True,
        rich_markup_mode="rich" if _in_colour() else None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_main)
    return app


def _main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if debug:
        os.environ["THERA_DEBUG"] = "1"
    if version:
        print(f"thera {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


# --- output --------------------------------------------------------------------------------------------------


def _in_colour() -> bool:
    """Return whether standard output is a terminal that shows colours; https://no-color.org says how to refuse them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _print_result(work: Callable[[], Any], full: bool) -> None:
    """Run a command and print the short tables of its result, or all of them if `full`."""
    from ensemble.progress import stoppable
    from ensemble.reports.screen import on_screen

    try:
        with stoppable():
            result = work()
            tables = [] if result is None else on_screen(result, full)
    except OSError as error:  # typer exits silently on a broken pipe, also on that of a data worker
        _fail(error)
    width = shutil.get_terminal_size((80, 24)).columns  # of the terminal or of COLUMNS; 80 in a pipe
    _print("\n".join(table.text(width, _in_colour()) for table in tables))
    if incomplete := getattr(result, "incomplete", None):
        raise incomplete


def _print(text: str) -> None:
    """Print on standard output; a closed pipe is no error."""
    from ensemble.progress import discard

    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        discard(sys.stdout)


# --- errors --------------------------------------------------------------------------------------------------


def _fail(error: Exception) -> NoReturn:
    """Print an error as one line, and exit with its status."""
    if os.environ.get("THERA_DEBUG"):
        traceback.print_exception(error)
    known = _known(error)
    _say(known.line)
    raise SystemExit(known.status)


def _known(error: Exception) -> TheraError:
    """Return any error as a TheraError, which has the message and the exit status."""
    if isinstance(error, TheraError):
        return error
    if hasattr(error, "format_message"):  # what typer raises for a wrong command line
        command = getattr(getattr(error, "ctx", None), "command_path", "thera")
        return ConfigError(command, error.format_message().rstrip("."), f"see {command} --help")
    if (exhausted := out_of_memory(error)) is not None:
        return exhausted
    if isinstance(error, OSError):
        return ResourceError(error.filename or "thera", error.strerror or str(error), "run the same command again")
    fault = f"internal fault, {type(error).__name__}: {error}"
    return TheraError("thera", fault, "show its traceback with thera --debug, and report it")


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; an error is printed as one line on standard error, and its exit status returned."""
    if "_THERA_COMPLETE" in os.environ:  # the shell asks for a completion
        # With rich, typer formats the description of each completion, and rich takes longer to load than typer.
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        status = typer.main.get_command(_app()).main(arguments, prog_name="thera", standalone_mode=False)
        if status == 130:  # typer's status for a Ctrl-C before or after the work
            raise Stopped(
                "thera", "stopped by SIGINT, what is finished is saved", "run the same command again to go on"
            )
        sys.stdout.flush()
        return status
    except Exception as error:
        _fail(error)
