"""The `thera` command: parses, calls a verb, prints. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

from ensemble.errors import ConfigError, ResourceError, Stopped, TheraError

if TYPE_CHECKING:
    from ensemble.reports.tables import Table

app = typer.Typer(
    name="thera",
    help="Images and a 0/1 label file in; the label file with the lowest half total error rate (HTER) out.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Option("--run", help="The run's folder, e.g. checkpoints/therapanacea.")]
Images = Annotated[
    Path, typer.Option("--images", help="A folder of numbered images or of 0/ and 1/, a zip, or a CSV or Parquet file.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[Optional[int], typer.Option("--workers", min=0, help="Processes that augment; changes no result.")]
Jobs = Annotated[
    Optional[int], typer.Option("--jobs", min=1, help="Networks computed at once. [on a CPU one a core, where it pays]")
]


@app.callback()
def _main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["THERA_DEBUG"] = "1"
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("train-member")
def train_member(
    arch: Annotated[str, typer.Option(help="resnet18, mobilenetv2, convnext_nano, or any timm architecture.")],
    images: Images,
    run: RunFolder,
    labels: Annotated[Optional[Path], typer.Option(help="Line i labels image i: 0 or 1.")] = None,
    name: Annotated[Optional[str], typer.Option(help="The member's name; by default the architecture.")] = None,
    folds: Annotated[int, typer.Option(min=2, max=100)] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    epochs: Annotated[Optional[int], typer.Option(help="Of every fold; none is chosen afterwards. [20]")] = None,
    batch_size: Annotated[Optional[int], typer.Option(help="[128]")] = None,
    lr: Annotated[Optional[float], typer.Option(help="Peak learning rate of AdamW. [0.002]")] = None,
    weight_decay: Annotated[Optional[float], typer.Option(help="Of AdamW. [0.05]")] = None,
    warmup_epochs: Annotated[Optional[float], typer.Option(help="[a tenth of the epochs, at most 1]")] = None,
    ema_decay: Annotated[Optional[float], typer.Option(help="Of the weights' moving average. [0.999]")] = None,
    clip_norm: Annotated[Optional[float], typer.Option(help="Largest norm of a gradient. [1]")] = None,
    gamma: Annotated[Optional[float], typer.Option(help="Of the focal loss. [2]")] = None,
    alpha: Annotated[Optional[float], typer.Option(help="Weight of label 1 in the focal loss. [both weigh 1]")] = None,
    loss: Annotated[Optional[str], typer.Option(help="focal, weighted-focal, bce or weighted-bce. [focal]")] = None,
    label_smoothing: Annotated[Optional[float], typer.Option(help="Share of a label that goes to both. [0]")] = None,
    sampler: Annotated[Optional[str], typer.Option(help="plain, or balanced: both classes alike. [plain]")] = None,
    schedule: Annotated[Optional[str], typer.Option(help="Of the learning rate: cosine or step. [cosine]")] = None,
    step_epochs: Annotated[Optional[int], typer.Option(help="Epochs between two steps of the schedule. [20]")] = None,
    step_factor: Annotated[Optional[float], typer.Option(help="What a step multiplies the rate by. [0.7]")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Train the last layer alone.")] = False,
    backbone_lr_factor: Annotated[
        Optional[float], typer.Option(help="The backbone's learning rate as a multiple of the last layer's. [1]")
    ] = None,
    drop_rate: Annotated[Optional[float], typer.Option(help="Dropout. [the architecture's]")] = None,
    drop_path_rate: Annotated[Optional[float], typer.Option(help="Stochastic depth. [the architecture's]")] = None,
    augment: Annotated[Optional[str], typer.Option(help="none, light or standard. [standard]")] = None,
    stem: Annotated[Optional[str], typer.Option(help="standard or half-stride. [standard]")] = None,
    input_size: Annotated[Optional[int], typer.Option(help="Pixels. [the images' size]")] = None,
    precision: Annotated[Optional[str], typer.Option(help="auto, fp32, bf16 or fp16. [auto: by a probe]")] = None,
    convolutions: Annotated[
        Optional[str],
        typer.Option(help="native (the library's), lowered (as matrix products) or compiled. [auto: by a probe]"),
    ] = None,
    pretrained: Annotated[bool, typer.Option(help="Start from timm's pretrained weights.")] = True,
    weights: Annotated[Optional[Path], typer.Option(help="Start from this safetensors file instead.")] = None,
    resize: Annotated[Optional[int], typer.Option(help="Bring every image to this size in pixels.")] = None,
    device: Device = "auto",
    workers: Workers = None,
    jobs: Jobs = None,
) -> None:
    """Train one member; print its out-of-fold HTER.

    Interrupted, the same command goes on from the last finished epoch.
    """

    def work() -> list[Table]:
        from ensemble.commands import train as command
        from ensemble.config import ComputeConfig, DataConfig, MemberConfig, validated

        given = {
            "name": name,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup_epochs": warmup_epochs,
            "ema_decay": ema_decay,
            "clip_norm": clip_norm,
            "gamma": gamma,
            "alpha": alpha,
            "loss": loss,
            "label_smoothing": label_smoothing,
            "sampler": sampler,
            "schedule": schedule,
            "step_epochs": step_epochs,
            "step_factor": step_factor,
            "freeze": freeze,
            "backbone_lr_factor": backbone_lr_factor,
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
            "augment": augment,
            "stem": stem,
            "input_size": input_size,
            "precision": precision,
            "convolutions": convolutions,
            "weights": weights,
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        member = validated(MemberConfig, {"arch": arch, "pretrained": pretrained, **chosen}, "train-member")
        data = validated(DataConfig, {"images": images, "labels": labels, "resize": resize}, "train-member")
        machine = ComputeConfig(device=device, workers=workers, jobs=jobs)
        return [command.train_member(run, member, data, folds, seed, machine, _say)]

    _run(work)


@app.command("fit-stacker")
def fit_stacker(
    run: RunFolder,
    objective: Annotated[
        str, typer.Option(help="hter; cost:A,B (of an FPR and an FNR); fpr:R or fnr:R (at most R, on the OOF rows).")
    ] = "hter",
    stacker: Annotated[
        str, typer.Option(help="mean, calibrated, nonnegative, logistic; auto: the simplest as good as the best.")
    ] = "auto",
    repeats: Annotated[int, typer.Option(min=0, help="Repeat the nested estimate on other partitions.")] = 0,
) -> None:
    """Fit stacker and threshold on the OOF logits.

    Without options, the threshold is the one that minimises the HTER. Plain prediction and --tta each get their own.
    """

    def work() -> list[Table]:
        from ensemble.commands import fit_stacker as command
        from ensemble.config import DecisionConfig, validated
        from ensemble.reports.tables import decision_tables, explained

        given = {"objective": objective, "stacker": stacker, "repeats": repeats}
        wanted = validated(DecisionConfig, given, "fit-stacker")
        decisions = command.fit_stacker(run, wanted, _say)
        return explained(decision_tables(decisions["plain"], decisions["tta"]), deployed=True)

    _run(work)


@app.command()
def predict(
    run: RunFolder,
    images: Images,
    out: Annotated[Path, typer.Option(help="The label file to write: one 0 or 1 a line, in the images' order.")],
    tta: Annotated[
        bool, typer.Option("--tta/--no-tta", help="Average the logits of the image and its mirror.")
    ] = False,
    prior: Annotated[
        Optional[float], typer.Option(help="Share of label 0 in this set, where it is known to differ.")
    ] = None,
    combine: Annotated[
        str, typer.Option(help="Of the fold models: mean (of their logits), or vote (the majority of their labels).")
    ] = "mean",
    correction: Annotated[str, typer.Option(help="Of the threshold, for averaging: posterior or none.")] = "posterior",
    cascade: Annotated[
        Optional[float],
        typer.Option(
            help="E.g. 0.999: leave out what settles no label; at one threshold that share is as without. [off]"
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto (by a probe), fp32, bf16 or fp16.")] = "auto",
    convolutions: Annotated[str, typer.Option(help="auto (by a probe), native, lowered or fused.")] = "auto",
    device: Device = "auto",
    jobs: Jobs = None,
) -> None:
    """Label a set of images with a fitted run."""

    def work() -> list[Table]:
        from ensemble.commands import predict as command
        from ensemble.config import ComputeConfig, PredictConfig, validated

        given = {
            "images": images,
            "out": out,
            "tta": tta,
            "combine": combine,
            "correction": correction,
            "prior": prior,
            "cascade": cascade,
            "precision": precision,
            "convolutions": convolutions,
        }
        wanted = validated(PredictConfig, given, "predict")
        return [command.predict(run, wanted, ComputeConfig(device=device, jobs=jobs), _say)]

    _run(work)


@app.command()
def evaluate(
    label_file: Annotated[Path, typer.Argument(help="One 0 or 1 a line, such as predict writes.")],
    labels: Annotated[Path, typer.Option("--labels", help="The true labels of the same images, in the same order.")],
) -> None:
    """Measure a label file against the true labels.

    Prints FPR, FNR and HTER with their 95 % intervals, the confusion matrix and the classification report.
    """

    def work() -> list[Table]:
        from ensemble.commands import evaluate as command

        return command.evaluate(label_file, labels)

    _run(work)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A run's folder, a member's (RUN/members/NAME), or a label file.")],
    b: Annotated[Path, typer.Argument(help="The same kind of thing, on the same images.")],
    labels: Annotated[
        Optional[Path], typer.Option("--labels", help="The true labels; runs and members bring their own.")
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta/--no-tta", help="Of runs and members: the views that prediction averages.")
    ] = True,
) -> None:
    """Tell whether B beats A, or the difference is chance.

    A run is measured by the nested calls of its stack, a member by those at its own threshold: out-of-fold, each by
    weights and threshold fitted without it.
    """

    def work() -> list[Table]:
        from ensemble.commands import evaluate as command

        return command.compare(a, b, labels, tta, _say)

    _run(work)


@app.command()
def report(run: RunFolder) -> None:
    """Print the members' HTER and the stack's.

    The same is written to report.md and report.json in the run's folder.
    """

    def work() -> list[Table]:
        from ensemble.commands import report as command

        return command.report(run, _say)

    _run(work)


@app.command("run")
def run_config(
    config: Annotated[Path, typer.Argument(help="A YAML file such as configs/therapanacea.yaml.")],
    run: Annotated[Optional[Path], typer.Option("--run", help="Its folder. [as the file says]")] = None,
    images: Annotated[
        Optional[Path], typer.Option("--images", help="Other images to learn from. [as the file says]")
    ] = None,
    labels: Annotated[Optional[Path], typer.Option(help="Line i labels image i: 0 or 1.")] = None,
    folds: Annotated[Optional[int], typer.Option(min=2, max=100, help="[as the file says]")] = None,
    epochs: Annotated[Optional[int], typer.Option(min=1, help="Of every member. [as the file says]")] = None,
    predict: Annotated[Optional[Path], typer.Option("--predict", help="Other images to label.")] = None,
    out: Annotated[Optional[Path], typer.Option(help="Their label file. [label_val.txt in the run's folder]")] = None,
    device: Device = "auto",
    workers: Workers = None,
    jobs: Jobs = None,
) -> None:
    """Do all of it, as a YAML file says.

    Interrupted, the same command goes on where it stopped.
    """

    def work() -> list[Table]:
        from ensemble.config import ComputeConfig, load_config, overridden

        wanted = overridden(load_config(config), run, images, labels, folds, epochs, predict, out)
        from ensemble.commands import run as command

        return command.run_config(wanted, ComputeConfig(device=device, workers=workers, jobs=jobs), _say)

    _run(work)


@app.command()
def trial(
    config: Annotated[Path, typer.Argument(help="A YAML file with the members to compare.")],
    fold: Annotated[int, typer.Option(min=0, help="The fold to hold out.")] = 0,
    device: Device = "auto",
    workers: Workers = None,
    jobs: Jobs = None,
) -> None:
    """Train one fold of every member, and compare them on its rows.

    To choose by, not to promise: what is chosen so has seen that fold's labels. `thera run` goes on from it.
    """

    def work() -> list[Table]:
        from ensemble.commands import train as command
        from ensemble.config import ComputeConfig, load_config

        return [
            command.trial(load_config(config), fold, ComputeConfig(device=device, workers=workers, jobs=jobs), _say)
        ]

    _run(work)


@app.command()
def recipes() -> None:
    """List the recipes of the public solutions.

    `thera run FILE` runs one, with --run, --images and --labels on any data.
    """

    def work() -> list[Table]:
        from ensemble.commands import run as command

        return [command.recipes()]

    _run(work)


@app.command()
def demo(
    run: Annotated[Optional[Path], typer.Option("--run", help="Its folder. [checkpoints/demo]")] = None,
    device: Device = "auto",
    workers: Workers = None,
    jobs: Jobs = None,
) -> None:
    """Do all of it on generated images.

    Their labels are flipped with a known probability, so the least HTER that any rule can have is known too.
    """

    def work() -> list[Table]:
        from ensemble.commands import run as command
        from ensemble.config import ComputeConfig

        return command.demo(run, ComputeConfig(device=device, workers=workers, jobs=jobs), _say)

    _run(work)


@app.command()
def bench(
    what: Annotated[Optional[list[str]], typer.Argument(help="train, predict, decide, load. [all four]")] = None,
    arch: Annotated[Optional[list[str]], typer.Option(help="Again for each. [the three of the design]")] = None,
    images: Annotated[Optional[Path], typer.Option(help="A folder of image files. [generated ones]")] = None,
    labels: Annotated[Optional[Path], typer.Option(help="Line i labels image i: 0 or 1.")] = None,
    limit: Annotated[int, typer.Option(min=256, help="Images that are used of them.")] = 2048,
    peers: Annotated[bool, typer.Option("--peers", help="Measure other tools too, in turn. Minutes.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each contestant has.")] = 5,
    device: Device = "auto",
) -> None:
    """Measure how well this machine is used, and what would be faster.

    Images per second, the share of what the machine could do at most, and with --peers the ratio to other tools.
    """

    def work() -> list[Table]:
        from ensemble.bench.material import Wish
        from ensemble.bench.verbs import SUBJECTS, bench
        from ensemble.config import SHORT_NAMES

        if wrong := [each for each in what or () if each not in SUBJECTS]:
            raise ConfigError("bench", f"must be of {', '.join(SUBJECTS)}; got {', '.join(wrong)}")
        wish = Wish(tuple(arch or SHORT_NAMES), images, labels, limit, peers, rounds, device)
        return bench(what or SUBJECTS, wish, _say)

    _run(work)


def _say(line: str) -> None:
    from ensemble.progress import say

    say(line)


def _run(work: Callable[[], list[Table]]) -> None:
    """Do the work of a command and print its tables."""
    from ensemble.progress import stoppable

    try:
        with stoppable():
            tables = work()
    except OSError as error:  # told here: typer leaves without a word on a broken pipe, a data worker's too
        _fail(error)
    if not sys.stdout.isatty():
        _print("\n".join(table.text() for table in tables))
        return
    from rich.console import Console

    for table in tables:
        Console().print(table.rich(), "")


def _print(text: str) -> None:
    """Print on standard output; that nobody reads it (a closed pipe) is no error."""
    from ensemble.progress import discard

    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        discard(sys.stdout)


def _fail(error: Exception) -> NoReturn:
    """Tell an error in its one line, and leave with its exit status."""
    if os.environ.get("THERA_DEBUG"):
        traceback.print_exception(error)
    told = _told(error)
    _say(f"error: {told}")
    raise SystemExit(told.status)


def _told(error: Exception) -> TheraError:
    if isinstance(error, TheraError):
        return error
    if hasattr(error, "format_message"):  # what typer raises for a wrong command line
        command = getattr(getattr(error, "ctx", None), "command_path", "thera")
        return ConfigError(command, error.format_message().rstrip("."), f"see {command} --help")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        place = "memory" if isinstance(error, MemoryError) else "device memory"
        return ResourceError("thera", f"out of {place}", "close other programs, or use a smaller --batch-size")
    if isinstance(error, OSError):
        return ResourceError(error.filename or "thera", error.strerror or str(error), "run the same command again")
    found = f"internal fault, {type(error).__name__}: {error}"
    return TheraError("thera", found, "show its traceback with thera --debug, and report it")


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; whatever goes wrong is one line on standard error and an exit status."""
    try:
        status = app(arguments, prog_name="thera", standalone_mode=False)
        if status == 130:  # what typer makes of a Ctrl-C that came before or after the work
            raise Stopped(
                "thera", "stopped by SIGINT, what is finished is saved", "run the same command again to go on"
            )
        return status
    except Exception as error:
        _fail(error)
