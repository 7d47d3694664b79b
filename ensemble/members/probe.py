"""Find the fastest plan on this machine by a short probe with a parity check, and cache the result.

A result is cached by machine, torch version and network in the user's cache folder, so that the same command computes
in the same way again. `--precision` and `--convolutions` choose a plan without a probe.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ensemble.config import MemberConfig
from ensemble.errors import (
    OUT_OF_DEVICE_MEMORY,
    ConfigError,
    OutOfDeviceMemory,
    first_line,
    is_out_of_device_memory,
    printable,
)
from ensemble.members.backbones import Backbone, build
from ensemble.members.devices import moved
from ensemble.members.losses import focal_loss
from ensemble.members.memory import release_cache, release_frames
from ensemble.members.plans import REFERENCE, Phase, Plan, is_followed, possible_plans, prepare
from ensemble.members.probe_cache import cache_file, compiler, machine, read_cache, write_cache
from ensemble.members.probe_timing import ROUNDS, seconds_of, time_in_turn
from ensemble.members.probe_updates import FIRST_STEPS, Updates, timed_updates, warmed_up
from ensemble.progress import Bar, progress

PROBE_VERSION = 6
"""The version of the plans and their kernels. It is raised when results of earlier probes may no longer hold."""

CPU = torch.device("cpu")

PROBED_IMAGES = 128
"""The largest batch that is timed, in images."""

PREPARED = {"compiled": "compiled", "graphed": "captured as a CUDA graph"}
"""The kinds of convolutions that need time before the first update, and what is done then."""

LEAST_SPEEDUP = 1.05
"""Images per second that another plan must reach to be chosen, as a multiple of those of the simplest plan. A smaller
difference is within the noise of a probe."""

PROBE_PAYS = 150
"""Batches of work from which a probe is made. A probe itself takes up to 24 batches; less work uses the simplest
plan."""

HALF_TOLERANCE = 3.0
"""The largest deviation of bfloat16 with the library's convolutions from float32. It excludes only useless results:
with random parameters the gradients of a deep network in bfloat16 keep their size but little of their direction."""

TOLERANCES: dict[Phase, float] = {"train": 2e-2, "predict": 1e-3}
"""The tolerance of the parity check: the largest deviation of gradients (train) or logits (predict) of a lowered, fused
or compiled network from the library's layers in float32, in addition to the effect of rounding."""

ROUNDING_FACTOR = 1.5
"""Multiple of the effect of rounding that is allowed in addition to `TOLERANCES`. In half precision the effect is the
deviation of the library's own result from float32. For gradients in float32 it is the change by `ROUNDING`, at most
`LARGEST_ROUNDING`: gradients jump where rounding moves a value across a kink (of a ReLU or a maximum). In eight
architectures with batches of 16 to 64, lowering changed them by up to 0.011, `ROUNDING` by up to 0.055, and one wrong
layer by 0.11 or more."""

ROUNDING = 2.0**-20
"""Relative change of the parameters that stands for rounding. Sums in another order differ by about as much."""

LARGEST_ROUNDING = 0.05
"""The largest change of the gradients that is counted as rounding; a larger one says nothing about the layers."""


@dataclass(frozen=True)
class Probe:
    """The result of a probe; plans are named by their text.

    Attributes
    ----------
    chosen : Plan
        The plan to use, among those that need no compiling.
    images_per_second : dict
        For each plan that passed the parity check.
    setup_seconds : dict
        Seconds of compiling, for each compiled plan, and of capturing and checking for a graph.
    failed : dict
        The reason, for each plan that could not be computed.
    """

    chosen: Plan
    images_per_second: dict[str, float]
    setup_seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def for_work(self, images: int) -> Plan:
        """Return the plan that takes the least time for this many images, including compiling."""
        seconds, ready = {}, self.images_per_second.get(str(self.chosen), 0.0)
        if ready or not self.setup_seconds:
            seconds[self.chosen] = images / ready if ready else 0.0
        for name, first in self.setup_seconds.items():
            if self.images_per_second[name] >= LEAST_SPEEDUP * ready:
                seconds[Plan(*name.split())] = first + images / self.images_per_second[name]
        return min(seconds, key=lambda plan: seconds[plan])


def choose_plan(
    config: MemberConfig,
    device: torch.device,
    image_size: int,
    phase: Phase,
    batches: int,
    threads: int,
    classes: int = 2,
) -> Plan:
    """Return the plan for a network: if there is a choice and enough work, the fastest one in a probe.

    Parameters
    ----------
    config : MemberConfig
        Its `precision` and `convolutions` limit the choice.
    device : torch.device
    image_size : int
        Side of the images in pixels.
    phase : {"train", "predict"}
    batches : int
        The amount of work. Below `PROBE_PAYS` the simplest possible plan is used.
    threads : int
        The threads that will compute the network.
    classes : int
        The number of classes.

    Raises
    ------
    ConfigError
        A compiled network or a graph is requested, and it is not possible or fails the parity check.
    """
    plans = possible_plans(config.precision, config.convolutions, device, config.input_size or image_size, phase)
    if config.freeze:  # only the head is trained, which is one layer
        plans = tuple(dict.fromkeys(Plan(plan.precision) if plan.convolutions in PREPARED else plan for plan in plans))
    if plans[0].convolutions in PREPARED:
        result = probe(config, image_size, plans, phase, threads, device, classes)
        if not result.images_per_second:
            reason = next(iter(result.failed.values()), "it computes something else than the library")
            remedy = f"use --convolutions auto, or remove {printable(cache_file())} and try again"
            where, found = f"member {config.name}", f"cannot be {PREPARED[plans[0].convolutions]} here: {reason}"
            if OUT_OF_DEVICE_MEMORY in reason:
                raise OutOfDeviceMemory(where, found, "end other programs on the GPU, or use --convolutions auto")
            raise ConfigError(where, found, remedy)
        return result.for_work(batches * config.batch_size)
    if len(plans) == 1 or batches < PROBE_PAYS:
        return plans[0]
    return probe(config, image_size, plans, phase, threads, device, classes).for_work(batches * config.batch_size)


def probe(
    config: MemberConfig,
    image_size: int,
    plans: tuple[Plan, ...],
    phase: Phase,
    threads: int,
    device: torch.device = CPU,
    classes: int = 2,
) -> Probe:
    """Measure each plan in turn on random images, or return the cached result of the same probe.

    A plan other than the simplest is only chosen if it passes the parity check and is at least `LEAST_SPEEDUP` times
    as fast. The network's parameters are drawn at random; torch's global generator is left as it is. A plan that could
    not be compiled is cached as such, until another compiler is installed. On a GPU whole updates are timed, so that a
    graph of them can be compared; a graph that fails or differs is named in a note.
    """
    batch = probed_batch(config.batch_size, phase, device)
    work = "train head" if config.freeze and phase == "train" else phase
    network = (work, config.timm_name, config.stem, config.input_size or image_size, batch, threads)
    gpu = () if device.type == "cpu" else (torch.cuda.get_device_name(device),)
    logits = () if classes == 2 else (f"{classes} classes",)
    tools = (compiler(),) if any(plan.convolutions == "compiled" for plan in plans) else ()
    key = " | ".join(map(str, (*machine(), f"probe {PROBE_VERSION}", *gpu, *network, *logits, *plans, *tools)))
    cached = _cached(key, plans)
    if cached is not None:
        return cached
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _isolated_random_state(device):
            result = _fitting(config, image_size, plans, phase, batch, device, classes)
    finally:
        torch.set_num_threads(before)
        release_cache(device)  # the processes that train have their own
    if not any(OUT_OF_DEVICE_MEMORY in fault for fault in result.failed.values()):  # others may have held the memory
        write_cache({**read_cache(), key: asdict(result)})
    return result


def speed(
    config: MemberConfig,
    image_size: int,
    plan: Plan,
    phase: Phase,
    batch: int,
    threads: int,
    device: torch.device = CPU,
) -> float:
    """Return the images per second of a network with one batch size: the median of `ROUNDS`, after a warm-up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _isolated_random_state(device):
            if phase == "train" and device.type == "cuda":
                updates = warmed_up(Updates(config, image_size, plan, batch, device))
                return batch / float(np.median([seconds_of(updates) for _ in range(ROUNDS)]))
            subject = _subject(config, image_size, plan, phase, batch, device)
            for _ in range(FIRST_STEPS if plan.convolutions == "compiled" else 1):
                subject.step()
            return batch / float(np.median([seconds_of(subject) for _ in range(ROUNDS)]))
    finally:
        torch.set_num_threads(before)


def _isolated_random_state(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[] if device.type == "cpu" else [device])


def probed_batch(batch_size: int, phase: Phase, device: torch.device) -> int:
    """Return the number of images in a timed batch.

    On a GPU a training is timed at the member's own batch size, which decides how well it is used. On a CPU the speed
    per image changes little above `PROBED_IMAGES`, and larger batches would take longer.

    Examples
    --------
    >>> probed_batch(512, "train", torch.device("cuda")), probed_batch(512, "train", torch.device("cpu"))
    (512, 128)
    """
    own = phase == "train" and device.type != "cpu"
    return batch_size if own else min(batch_size, PROBED_IMAGES)


def _fitting(
    config: MemberConfig, image_size: int, plans: tuple[Plan, ...], phase: Phase, batch: int, *given: Any
) -> Probe:
    """Measure with half the batch, again and again, while the memory of a GPU does not suffice."""
    while True:
        try:
            return _measured(config, image_size, plans, phase, batch, *given)
        except Exception as error:
            if batch == 1 or not is_out_of_device_memory(error):
                raise
            release_frames(error)
        batch //= 2


def _measured(
    config: MemberConfig,
    image_size: int,
    plans: tuple[Plan, ...],
    phase: Phase,
    batch: int,
    device: torch.device,
    classes: int,
) -> Probe:
    graphs = [plan for plan in plans if plan.convolutions == "graphed"]
    apart = [plan for plan in plans if plan not in graphs]  # a graph is compared by whole updates
    compared = [REFERENCE, *(Plan(plan.precision) for plan in plans), *apart]
    given = phase, batch, device, classes
    subjects = {plan: _subject(config, image_size, plan, *given) for plan in dict.fromkeys(compared)}
    steps = len(subjects) + (phase == "train") + ROUNDS * len(plans)
    with progress(steps, f"probe {config.timm_name}", "batches") as bar:
        results, setup, failed = _first_steps(subjects, config.timm_name, bar)
        rounding = 0.0
        if phase == "train":
            subjects[REFERENCE].round_parameters()
            rounding = deviation(subjects[REFERENCE].step(), results[REFERENCE])
            bar.advance()
        able = [plan for plan in apart if plan in results and is_followed(subjects[plan].network, plan)]
        sound = [plan for plan in able if _agrees(plan, results, TOLERANCES[phase], rounding)]
        if phase == "train" and (graphs or device.type == "cuda"):
            subjects.clear()
            results.clear()
            seconds, of_graphs, in_updates = timed_updates([*sound, *graphs], config, image_size, *given[1:], bar)
            setup, failed = setup | of_graphs, failed | in_updates
            for name in map(str, graphs):
                if name in in_updates:
                    bar.say(f"note: {config.timm_name}: no CUDA graph: {in_updates[name]}")
            sound = [plan for plan in sound if plan in seconds]
        else:
            seconds = time_in_turn({plan: subjects[plan] for plan in sound}, bar)
    speeds = {plan: batch / float(np.median(spent)) for plan, spent in seconds.items()}
    by_name = {str(plan): round(value, 1) for plan, value in speeds.items()}
    setup_seconds = {name: round(value, 1) for name, value in setup.items() if name in by_name}
    ready = [plan for plan in sound if str(plan) not in setup_seconds]
    if not ready:
        return Probe(REFERENCE, by_name, setup_seconds, failed)
    fastest = max(ready, key=lambda plan: speeds[plan])
    chosen = fastest if speeds[fastest] >= LEAST_SPEEDUP * speeds[ready[0]] else ready[0]
    return Probe(chosen, by_name, setup_seconds, failed)


def _first_steps(
    subjects: dict[Plan, _Subject], name: str, bar: Bar
) -> tuple[dict[Plan, torch.Tensor], dict[str, float], dict[str, str]]:
    """Return the result of each plan's first step, the seconds of compiling, and why a plan could not be compiled."""
    results, setup, failed = {}, {}, {}
    for plan, subject in subjects.items():
        if plan.convolutions == "compiled":
            bar.note(f"compiling {name}")
            try:
                setup[str(plan)] = sum(seconds_of(subject) for _ in range(FIRST_STEPS))
            except Exception as error:  # a compiler may raise anything, and it may be missing
                if is_out_of_device_memory(error):
                    raise
                failed[str(plan)] = first_line(error)
                bar.advance()
                continue
        results[plan] = subject.step()
        bar.advance()
    return results, setup, failed


@dataclass(frozen=True)
class _Subject:
    """A network and a batch; every step does the same computation."""

    network: Backbone
    dtype: torch.dtype
    pixels: torch.Tensor
    labels: torch.Tensor
    phase: Phase

    def step(self) -> torch.Tensor:
        """Return the result of a step, float32: the logits, or the gradients of all parameters in one vector."""
        torch.manual_seed(1)  # for dropout
        if self.phase == "predict":
            with torch.inference_mode():
                logits: torch.Tensor = self.network.eval()(self.pixels, self.dtype)
                return logits
        self.network.train().zero_grad(set_to_none=True)
        logits = self.network(self.pixels, self.dtype)
        focal_loss(logits, self.labels.float(), 2.0, None).mean().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad.flatten() for parameter in self.network.parameters() if parameter.grad is not None]
        return torch.cat(gradients)

    def round_parameters(self) -> None:
        """Change every parameter at random by about as much as rounding does."""
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.mul_(1 + ROUNDING * torch.randn_like(parameter))


def _subject(
    config: MemberConfig,
    image_size: int,
    plan: Plan,
    phase: Phase,
    batch: int,
    device: torch.device,
    classes: int = 2,
) -> _Subject:
    """Return a network with random parameters, and a batch of random images for it.

    Gains that are initialised with a constant are drawn at random too. With a gain of 0 (the last norm of a ResNet's
    block) or 1e-6 (ConvNeXt's layer scale) a wrong layer would show neither in the logits nor in the gradients.
    """
    shape = (batch, image_size, image_size, 3)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    torch.manual_seed(0)
    network = build(config.model_copy(update={"pretrained": False, "weights": None}), image_size, classes=classes)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith("bias") and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.5 * torch.randn_like(parameter))
    network = moved(network, device)
    if config.freeze:
        network.freeze()
    numbers = torch.arange(batch, device=device)
    labels = numbers % 8 > 0 if classes == 2 else numbers % classes
    return _Subject(prepare(network, plan), plan.dtype, pixels.to(device), labels, phase)


def _agrees(plan: Plan, results: dict[Plan, torch.Tensor], tolerance: float, rounding: float) -> bool:
    """Return whether a plan's result agrees with the library's layers in float32, up to rounding."""
    reference = results[REFERENCE]
    of_plan, of_library = deviation(results[plan], reference), deviation(results[Plan(plan.precision)], reference)
    if plan.convolutions == "native":
        return of_plan <= HALF_TOLERANCE
    explained = min(rounding, LARGEST_ROUNDING) if plan.precision == "fp32" else of_library
    return of_plan <= tolerance + ROUNDING_FACTOR * explained


def deviation(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the root mean square of the difference, relative to the standard deviation of the reference.

    The standard deviation of the logits (b, C) of several classes is that of their interaction: without the mean of
    each image, which a softmax ignores, and without the mean of each class, which is the same for all images.
    """
    centred = reference - reference.mean()
    if reference.ndim == 2 and reference.shape[1] > 1:
        centred = reference - reference.mean(1, keepdim=True)
        centred = centred - centred.mean(0)
    spread = centred.norm().clamp_min(1e-12)
    return float((values - reference).norm() / spread)


def _cached(key: str, plans: tuple[Plan, ...]) -> Probe | None:
    """Return the result of an earlier probe, or None if there is none or it is damaged."""
    try:
        stored = read_cache()[key]
        speeds, setup = (
            {str(Plan(*name.split())): float(x) for name, x in stored.get(part, {}).items()}
            for part in ("images_per_second", "setup_seconds")
        )
        failed = {str(Plan(*name.split())): str(reason) for name, reason in stored.get("failed", {}).items()}
        result = Probe(Plan(**stored["chosen"]), speeds, setup, failed)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    whole = setup.keys() <= speeds.keys() and any(str(plan) in speeds.keys() | failed.keys() for plan in plans)
    ready = result.chosen in plans and str(result.chosen) in speeds
    return result if whole and (ready or speeds.keys() == setup.keys()) else None
