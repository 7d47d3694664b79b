"""What `gpu.py` measures on a GPU: each part is a function that reports rows as it goes on."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ensemble.bench import measure
from ensemble.bench.images import BenchImages, member_config, open_images
from ensemble.bench.roofline import busy_share
from ensemble.bench.throughput import FOLD_MODELS, FOLDS, Prediction, QuietBar, TrainingOnGpu
from ensemble.config import VIEWS, MemberConfig
from ensemble.data.synthetic import write_demo
from ensemble.machine import available_cores
from ensemble.members import budget, graphed
from ensemble.members.devices import choose_device, synchronize
from ensemble.members.inference import default_workers, predict_logits
from ensemble.members.memory import release_cache
from ensemble.members.plans import REFERENCE, Plan
from ensemble.members.probe import _subject, deviation, probe
from ensemble.members.probe_updates import Updates, graphed_updates, warmed_up
from ensemble.members.resident import resident_bytes
from ensemble.members.watch import Silent

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]

LIMITS = {("logits", "fp32"): 5e-3, ("logits", "bf16"): 0.1, ("logits", "fp16"): 0.1}
"""The largest deviation of logits from those of the CPU in fp32, relative to their spread, that is reported as right.
The one of fp32 allows TF32, by which torch computes convolutions in fp32; those of half precision are the limit of
`inference.TOLERANCE`."""

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """What is measured, on what, and for how long.

    Attributes
    ----------
    device : str
    archs : tuple of str
    images, labels : Path or None
        The images of the run; drawn images where there are none. The other parts use drawn images, which are fewer.
    limit : int
        The number of drawn images.
    batch : int
    rounds : int
        Of contests in turn.
    seconds : float
        The time of this part; those that can stop by themselves do.
    folder : Path
        For files that the part writes.
    shared : Path
        For the drawn images, which all parts use.
    quick : bool
        Whether only to try the script out.
    """

    device: str
    archs: tuple[str, ...]
    images: Path | None
    labels: Path | None
    limit: int
    batch: int
    rounds: int
    seconds: float
    folder: Path
    shared: Path
    quick: bool

    @property
    def on(self) -> torch.device:
        return choose_device(self.device)

    @property
    def size(self) -> int:
        return 32 if self.quick else 64

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precision that a training takes here first, then the others."""
        if self.quick:
            return ("fp32",)
        if self.on.type == "cpu":
            return ("fp32", "bf16")
        first = measure.precisions(self.on)[0]
        return (first, *(each for each in ("bf16", "fp16", "fp32") if each != first))

    def config(self, arch: str, **values: Any) -> MemberConfig:
        return member_config(arch).model_copy(update={"batch_size": self.batch, **values})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of plans of a training; compiling takes too long where the script is only tried out."""
        return ("native", "graphed") if self.quick else ("native", "graphed", "compiled")

    def drawn(self) -> tuple[Path, Path]:
        """Return the folder of the drawn images and the file of their labels; they are drawn once."""
        write_demo(self.shared / "drawn", self.limit, 2, seed=0)
        return self.shared / "drawn" / "train_img", self.shared / "drawn" / "label_train.txt"

    @contextmanager
    def opened(self) -> Iterator[BenchImages]:
        with open_images(*self.drawn(), self.limit) as images:
            yield images


Report = Callable[..., None]
"""Adds a row of named cells to the results of a part, and writes all of them to disk."""


def simulate_graphs_on_cpu(device: torch.device) -> None:
    """Replace CUDA graphs by recorded operators where there is no GPU, so that the parts can be tried out."""
    if device.type == "cpu":
        from recorded_graph import recorded

        graphed.captured = recorded


def deadline(settings: Settings) -> Callable[[], bool]:
    """Return whether time is left to begin another row."""
    end = time.monotonic() + 0.9 * settings.seconds
    return lambda: time.monotonic() < end


# --- correctness ------------------------------------------------------------------------------------------------------


def logits(settings: Settings, report: Report) -> None:
    """Logits and gradients on the device against the CPU in fp32: the same random weights and images."""
    given, left = (8 if settings.quick else 64), deadline(settings)
    for arch in settings.archs:
        config = settings.config(arch)
        expected = {
            phase: _subject(config, settings.size, REFERENCE, phase, given, CPU).step()
            for phase in ("predict", "train")
        }
        for precision in settings.precisions:
            if not left():
                return
            row: dict[str, Any] = {"arch": arch, "precision": precision}
            for phase, name in (("predict", "logits"), ("train", "gradients")):
                found = _subject(config, settings.size, Plan(precision), phase, given, settings.on).step().cpu()
                row[f"{name} deviate by"] = deviation(found, expected[phase])
                row[f"{name} finite"] = bool(found.isfinite().all())
            row["right"] = row["logits deviate by"] <= LIMITS["logits", precision] and row["gradients finite"]
            report(**row)


def graphs(settings: Settings, report: Report) -> None:
    """Updates as a CUDA graph against launches: whether they agree, how long they take to be ready, and their speed."""
    simulate_graphs_on_cpu(settings.on)
    left, updates = deadline(settings), 2 if settings.quick else 20
    cases = [(arch, precision, None) for precision in settings.precisions for arch in settings.archs]
    cases.insert(1, (settings.archs[0], settings.precisions[0], 0.5))
    for arch, precision, drop_rate in cases:
        if not left():
            return
        config = settings.config(arch, drop_rate=drop_rate)
        given = settings.batch, settings.on
        graph, seconds, fault = graphed_updates(config, settings.size, Plan(precision, "graphed"), *given)
        row = {"arch": arch, "precision": precision, "drop rate": drop_rate or 0.0, "ready after s": seconds}
        row["refused"] = fault
        if not fault:
            eager = warmed_up(Updates(config, settings.size, Plan(precision), *given))
            speeds = in_turn({"eager": eager, "graph": graph}, updates, settings)
            row |= {f"{name} images/s": float(np.median(each)) for name, each in speeds.items()}
            row["ratio"] = float(np.median(speeds["graph"] / speeds["eager"]))
            row["still a graph"] = graph.fault == ""
        report(**row)


def in_turn(contestants: dict[str, Updates], updates: int, settings: Settings) -> dict[str, np.ndarray]:
    """Return the images per second (rounds,) of each contestant, in turn A B A B."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(settings.rounds):
        for name, each in contestants.items():
            synchronize(settings.on)
            started = time.perf_counter()
            for _ in range(updates):
                each.step()
            synchronize(settings.on)
            speeds[name].append(updates * settings.batch / (time.perf_counter() - started))
    return {name: np.array(each) for name, each in speeds.items()}


HALF = 10
"""The updates before and after a training goes on."""


def resume(settings: Settings, report: Report) -> None:
    """A training that goes on from its state, with a graph or without, against one that was not interrupted."""
    simulate_graphs_on_cpu(settings.on)
    left = deadline(settings)
    for precision in settings.precisions:
        given = settings, settings.archs[0], precision
        begun, expected, _ = trained_in_two(*given, "native", "native", interrupted=False)
        change = float((expected - begun).norm())
        for first, second in (("graphed", "graphed"), ("graphed", "native"), ("native", "graphed")):
            if not left():
                return
            _, weights, fault = trained_in_two(*given, first, second)
            row = {"arch": settings.archs[0], "precision": precision, "begun": first, "continued": second}
            apart = float((weights - expected).norm()) / change
            report(**row, refused=fault, **{"weights differ by, of their change": apart})


def trained_in_two(
    settings: Settings, arch: str, precision: str, first: str, second: str, interrupted: bool = True
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return the first and the last weights of a training whose plan changes in its middle, and why it has no graph."""
    given = settings.config(arch), settings.size
    one, other = (Updates(*given, Plan(precision, kind), settings.batch, settings.on) for kind in (first, second))
    begun = one.weights()
    for _ in range(HALF):
        one.step()
    if interrupted:
        other.learner.restore(one.learner.state(copy=True))
        other.number = HALF
    else:
        other = one
    for _ in range(HALF):
        other.step()
    return begun, other.weights(), other.fault


# --- speed ------------------------------------------------------------------------------------------------------------


def choices(settings: Settings, report: Report) -> None:
    """The plans that the probe measures and chooses, for much work."""
    simulate_graphs_on_cpu(settings.on)
    left = deadline(settings)
    for arch, phase in itertools.product(settings.archs, ("train", "predict")):
        if not left():
            return
        if settings.quick:
            kinds = ("native", "graphed") if phase == "train" else ("native",)
            plans = tuple(Plan("fp32", kind) for kind in kinds)
            probed = probe(settings.config(arch), settings.size, plans, phase, 1, settings.on)
            plan = probed.for_work(measure.LONG_WORK)
        else:
            plan, probed = measure.choose_plan(settings.config(arch), settings.size, phase, settings.on)
        report(
            **{"arch": arch, "phase": phase, "chosen": str(plan), "images/s": probed.images_per_second},
            **{"ready after s": probed.setup_seconds, "failed": probed.failed},
        )


def training(settings: Settings, report: Report) -> None:
    """Training of five folds, as thera does it, against a plain PyTorch loop in turn; and how busy the GPU is."""
    import peers
    from turns import take_turns

    simulate_graphs_on_cpu(settings.on)
    device, left, workers = settings.on, deadline(settings), 0 if settings.quick else default_workers(settings.on)
    with settings.opened() as images:
        files = peers.Files(images.paths, images.labels, images.size)
        for arch in settings.archs:
            config = settings.config(arch)
            for precision, kind in [(settings.precisions[0], kind) for kind in settings.kinds]:
                if not left():
                    return
                plan = Plan(precision, kind)
                ours = TrainingOnGpu(config, plan, images.mapped, images.labels, FOLDS, workers, device)
                with ExitStack() as stack:
                    stack.callback(ours.close)
                    loop = peers.plain_loop(
                        *(config.timm_name, files),
                        **{"batch": settings.batch, "workers": workers, "threads": len(available_cores())},
                        device=device.type,
                    )
                    stack.callback(loop.close)
                    ours.run(Silent())  # compiles, or captures
                    match = take_turns(
                        {"thera": partial(ours.run, Silent()), "plain loop": partial(loop.run, len(files.paths))},
                        settings.rounds,
                    )
                    busy = None if device.type == "cpu" else busy_share(lambda work=ours: work.run(Silent()), device)
                    refused = {each.graphed.refusal for each in ours._learners if each.graphed is not None} - {""}
                    report(
                        **{"arch": arch, "plan": str(plan), "images/s": float(np.median(match.speeds["thera"]))},
                        **{"plain loop images/s": float(np.median(match.speeds["plain loop"]))},
                        ratio=list(match.ratios["plain loop"]),
                        **{"busy share": busy, "refused": "; ".join(sorted(refused))},
                    )
                release_cache(device)


def memory(settings: Settings, report: Report) -> None:
    """The memory that is planned for five folds of a network, against the peak of their training and a prediction."""
    simulate_graphs_on_cpu(settings.on)
    device, left = settings.on, deadline(settings)
    with settings.opened() as images:
        for arch, kind in itertools.product(settings.archs, settings.kinds):
            if not left():
                return
            plan, config = Plan(settings.precisions[0], kind), settings.config(arch)
            on_gpu = device.type == "cuda"
            release_cache(device)
            need, before = None, 0
            work = TrainingOnGpu(config, plan, images.mapped, images.labels, FOLDS, 0, device)
            jobs = work._jobs
            if on_gpu:
                work.close()
                need = budget.measure(jobs[0], plan, device)
                release_cache(device)
                before = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                work = TrainingOnGpu(config, plan, images.mapped, images.labels, FOLDS, 0, device)
            for _ in range(2):
                work.run(Silent())
            average = work._learners[0].ema.module.eval()
            predict_logits(average, jobs[0].pixels, jobs[0].rows[:256], VIEWS[:1], plan.precision, device, Silent())
            refused = {each.graphed.refusal for each in work._learners if each.graphed is not None} - {""}
            row: dict[str, Any] = {"arch": arch, "plan": str(plan), "refused": "; ".join(sorted(refused))}
            if need is not None:
                planned = resident_bytes(jobs) + FOLDS * need.kept + need.passing
                peak = torch.cuda.max_memory_allocated(device) - before
                reserved = torch.cuda.max_memory_reserved(device) - before
                row |= {"kept MiB": need.kept / MIB, "passing MiB": need.passing / MIB, "planned MiB": planned / MIB}
                row |= {"peak allocated MiB": peak / MIB, "peak reserved MiB": reserved / MIB}
                row["covered"] = reserved <= planned / budget.USABLE
            report(**row)
            work.close()
            del work, average


def prediction(settings: Settings, report: Report) -> None:
    """Images per second of a prediction: three fold models with two views, and the same in fp32, in turn."""
    from turns import take_turns

    left = deadline(settings)
    with settings.opened() as images:
        for arch in settings.archs:
            if not left():
                return
            weights = [measure.write_random_weights(arch, images)] * FOLD_MODELS
            plans = dict.fromkeys((Plan(settings.precisions[0]), Plan("fp32")))
            works = {}
            for plan in plans:
                works[str(plan)] = Prediction(settings.config(arch), weights, plan, images.mapped, 1, settings.on)
            with ExitStack() as stack:
                for work in works.values():
                    stack.callback(work.close)
                quiet = QuietBar(_StandingBar())  # type: ignore[arg-type]
                match = take_turns({name: partial(work.run, quiet) for name, work in works.items()}, settings.rounds)
            for name, speeds in match.speeds.items():
                rate = float(np.median(speeds))
                views = rate * FOLD_MODELS * len(VIEWS)
                report(**{"arch": arch, "plan": name, "images/s": rate, "logits/s": views})


class _StandingBar:
    """A bar that does not move; the processes of a prediction ask it for signals."""

    on_note = None

    def advance(self, n: int = 1) -> None: ...
    def skip(self, n: int) -> None: ...
    def note(self, text: str) -> None: ...
    def say(self, line: str) -> None:
        print(line, file=sys.stderr)


def folds(settings: Settings, report: Report) -> None:
    """Four folds on one GPU: in one process in turn, and in two and four processes that share the card.

    Kernels of several processes run at the same time only under NVIDIA's MPS; whether it runs is a column.
    """
    left, of_round = deadline(settings), (1.0 if settings.quick else 8.0)
    arch, precision = settings.archs[0], settings.precisions[0]
    mps = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()
    spawn = multiprocessing.get_context("spawn")
    kinds, counts = settings.kinds[:2], (1, 2) if settings.quick else (1, 2, 4)
    for kind, processes in itertools.product(kinds, counts):
        if not left():
            return
        start_at = time.time() + (20 if settings.quick else 40)
        call = settings, arch, Plan(precision, kind), 4 // processes, start_at, of_round
        with ProcessPoolExecutor(processes, spawn) as pool:
            found = [each.result() for each in [pool.submit(rate_of_folds, *call) for _ in range(processes)]]
        report(
            **{"arch": arch, "plan": f"{precision} {kind}", "processes": processes, "folds in each": 4 // processes},
            **{"images/s together": sum(rate for rate, _ in found), "began late": any(late for _, late in found)},
            **{"MPS runs": mps},
        )


def rate_of_folds(
    settings: Settings, arch: str, plan: Plan, n: int, start_at: float, seconds: float
) -> tuple[float, bool]:
    """Return the images per second of some folds in this process from a time on, and whether it was late for it."""
    simulate_graphs_on_cpu(settings.on)
    torch.set_num_threads(1)
    config = settings.config(arch, augment="none")  # so that the card does not wait for images
    with settings.opened() as images:
        work = TrainingOnGpu(config, plan, images.mapped, images.labels, max(2, n), 0, settings.on)
        del work._jobs[n:], work._learners[n:]
        work.run(Silent())
        synchronize(settings.on)
        late = time.time() > start_at
        time.sleep(max(0.0, start_at - time.time()))
        started, trained = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            trained += work.run(Silent())
            synchronize(settings.on)
        return trained / (time.perf_counter() - started), late


# --- the commands -----------------------------------------------------------------------------------------------------


def bench(settings: Settings, report: Report) -> None:
    """`thera bench`, and the contest with the peers; `--peers` where the command has it."""
    thera = [sys.executable, "-m", "thera", "bench"]
    known = subprocess.run([*thera, "--help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    contest = [sys.executable, str(ROOT / "tests" / "benchmarks" / "peers" / "contest.py"), "train", "predict"]
    some = ["--arch", settings.archs[0], "--limit", str(max(256, settings.limit)), "--rounds", str(settings.rounds)]
    images, labels = settings.drawn()
    given = ["--images", str(images), "--labels", str(labels)]
    commands = [[*thera, *some, *given, "--device", settings.device, *(["--peers"] if "--peers" in known else [])]]
    if "--peers" not in known:
        commands.append([*contest, *some, *given, "--device", settings.device])
    end, outcomes = time.monotonic() + settings.seconds, []
    for command in commands:
        limit = max(1.0, end - time.monotonic()) if command is commands[-1] else settings.seconds / 2
        outcomes.append(ran(command, limit))
        report(**outcomes[-1])
    refuse_failures(outcomes)


def run(settings: Settings, report: Report) -> None:
    """`thera run configs/therapanacea.yaml` for the time that is left: images per second, and what all would take.

    The members start from scratch, because a machine with a card may not reach the model hub; the speed is the same.
    Their updates are graphs, or launches where a member refuses graphs: a probe that compiles would take the time.
    """
    config = yaml.safe_load((ROOT / "configs" / "therapanacea.yaml").read_text("utf-8"))
    images, labels = (settings.images, settings.labels) if settings.images is not None else settings.drawn()
    config.pop("predict", None)
    config |= {"run": str(settings.folder / "run"), "data": {"images": str(images), "labels": str(labels)}}
    for member in config["members"]:
        member["pretrained"] = False
        if settings.quick:
            member |= {"arch": "lenet", "name": member["arch"], "epochs": 1, "stem": "standard"}
            member["batch_size"] = settings.batch
    if settings.quick:
        config |= {"folds": 2}
    path, end = settings.folder / "run.yaml", time.monotonic() + settings.seconds - 25
    command = [sys.executable, "-m", "thera", "run", str(path), "--device", settings.device]
    for convolutions in ("graphed", "native"):
        config["members"] = [{**member, "convolutions": convolutions} for member in config["members"]]
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        outcome = ran(command, max(1.0, end - time.monotonic()), gently=True)
        if "cannot be captured" not in outcome["printed"]:
            break
    n, total = sum(1 for _ in Path(images).iterdir()), 0.0
    for member in config["members"]:
        name = member.get("name", member["arch"])
        seconds = epochs = 0.0
        for history in sorted((settings.folder / "run" / "members" / name).glob("fold-*/history.jsonl")):
            lines = [json.loads(line) for line in history.read_text("utf-8").splitlines()]
            seconds, epochs = seconds + sum(line["seconds"] for line in lines), epochs + len(lines)
        every = member["epochs"] * config["folds"]
        of_epoch = n * (config["folds"] - 1) // config["folds"]
        hours = every * seconds / epochs / 3600 if epochs else float("nan")
        total += hours
        report(
            **{"member": name, "epochs trained": int(epochs), "of": every, "seconds": seconds},
            **{"images/s": epochs * of_epoch / seconds if seconds else None, "all epochs, hours": hours},
        )
    report(**{"member": "all", "all epochs, hours": total, **outcome})
    refuse_failures([outcome])


def refuse_failures(outcomes: list[dict[str, Any]]) -> None:
    """Raise an error if a command failed; one that its time stopped did not."""
    for outcome in outcomes:
        if isinstance(outcome["status"], int) and outcome["status"]:
            raise RuntimeError(f"exit status {outcome['status']} of {outcome['command']}")


def ran(command: list[str], seconds: float, gently: bool = False) -> dict[str, Any]:
    """Run a command for at most so long; return its line, its exit status and the end of what it printed.

    With `gently`, it is stopped by SIGTERM, and has 20 s to save what it has.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        status: int | str
        try:
            printed, status = process.communicate(timeout=seconds)[0], process.returncode
        except subprocess.TimeoutExpired:
            if gently:
                process.terminate()
            try:
                printed = process.communicate(timeout=20 if gently else 0.1)[0]
            except subprocess.TimeoutExpired:
                process.kill()  # what it has started ends with it
                printed = process.communicate()[0]
            status = f"stopped after {seconds:.0f} s"
    return {"command": " ".join(command[1:]), "status": status, "printed": printed[-6000:]}


PARTS: dict[str, Callable[[Settings, Report], None]] = {
    part.__name__: part for part in (logits, graphs, resume, choices, training, memory, prediction, folds, bench, run)
}
"""The parts by their names."""
