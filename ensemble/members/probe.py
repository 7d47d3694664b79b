"""Which plan is fastest on this machine: a short probe, its parity check, and the cache of what probes have found.

A probe's result is kept per machine, torch version and network, in the user's cache folder, so that the same command
computes in the same way again; `--precision` and `--convolutions` force a plan.
"""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from ensemble.config import MemberConfig
from ensemble.errors import ConfigError, printable
from ensemble.members.backbones import Backbone, build
from ensemble.members.losses import focal_loss
from ensemble.members.plans import REFERENCE, Phase, Plan, is_followed, possible_plans, prepare
from ensemble.progress import progress

PROBE_VERSION = 6
"""Counted up when the results of earlier probes may no longer hold."""

CPU = torch.device("cpu")

PROBED_IMAGES = 128
"""Images of a batch that is timed, at most."""

PROBE_ROUNDS = 3
"""Batches of each plan that are timed; their median counts."""

FIRST_STEPS = 3
"""First steps of a compiled network: the first compiles it, and a GPU's graphs are recorded in the next ones."""

LEAST_SPEEDUP = 1.05
"""Images per second that another plan must reach to be chosen, as a multiple of those of the plainest plan. Below it
the difference is within the noise of a probe."""

TOO_SLOW = 5.0
"""A plan whose second batch takes so many times as long as the fastest plan's is not timed further."""

PROBE_PAYS = 150
"""Batches of work from which a probe, 24 batches itself at most, is made. With less work the plainest plan is used."""

HALF_TOLERANCE = 3.0
"""How far bfloat16 by the library's convolutions may lie from float32, relative to its spread. With random parameters
the gradients of a deep network keep little of their direction, but they stay of the same size."""

TOLERANCES: dict[Phase, float] = {"train": 2e-2, "predict": 1e-3}
"""The parity check: how far gradients (train) or logits (predict) of a lowered, fused or compiled network may lie from
those of the library's layers in float32, in relative terms, beyond what rounding explains."""

ROUNDING_FACTOR = 1.5
"""Multiple of the effect of rounding that is allowed on top of `TOLERANCES`. The effect is, in half precision, the
distance of the library's own result from float32; for gradients in float32, what `ROUNDING` does, up to
`LARGEST_ROUNDING`. Gradients jump where rounding moves a value across a kink (ReLU, a maximum). In eight architectures
with batches of 16 to 64, lowering moved them by up to 0.011, the change by `ROUNDING` by up to 0.055, and one wrong
layer by 0.11 or more."""

ROUNDING = 2.0**-20
"""Relative change of the parameters that stands for rounding: as much as sums in another order differ by."""

LARGEST_ROUNDING = 0.05
"""Largest relative change of the gradients that is taken for rounding."""


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Parameters
    ----------
    chosen : Plan
        Of those that take no time first.
    images_per_second : dict
        Of each plan that passed the parity check.
    setup_seconds : dict
        What a compiled plan took first.
    failed : dict
        Why a plan could not be computed.
    """

    chosen: Plan
    images_per_second: dict[str, float]
    setup_seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def for_work(self, images: int) -> Plan:
        """Return the plan in which so many images take the least time, what comes first counted in."""
        seconds, ready = {}, self.images_per_second.get(str(self.chosen), 0.0)
        if ready or not self.setup_seconds:
            seconds[self.chosen] = images / ready if ready else 0.0
        for name, first in self.setup_seconds.items():
            if self.images_per_second[name] >= LEAST_SPEEDUP * ready:
                seconds[Plan(*name.split())] = first + images / self.images_per_second[name]
        return min(seconds, key=lambda plan: seconds[plan])


def choose_plan(
    config: MemberConfig, device: torch.device, image_size: int, phase: Phase, batches: int, threads: int
) -> Plan:
    """Return the plan to compute a network by.

    Parameters
    ----------
    config : MemberConfig
        Its `precision` and `convolutions` limit the choice.
    image_size : int
        Side in pixels.
    batches : int
        How much work there is; little of it is done in the plainest plan that is possible.
    threads : int
        That it will be computed with.

    Raises
    ------
    ConfigError
        A compiled network is asked for, and cannot be had or computes something else.
    """
    plans = possible_plans(config.precision, config.convolutions, device, config.input_size or image_size, phase)
    if config.freeze:  # the head alone is trained, and that is one layer
        plans = tuple(
            dict.fromkeys(Plan(plan.precision) if plan.convolutions == "compiled" else plan for plan in plans)
        )
    if plans[0].convolutions == "compiled":
        found = probe(config, image_size, plans, phase, threads, device)
        if not found.images_per_second:
            reason = next(iter(found.failed.values()), "it computes something else than the library")
            raise ConfigError(f"member {config.name}", f"cannot be compiled here: {reason}", "use --convolutions auto")
        return found.for_work(batches * config.batch_size)
    if len(plans) == 1 or batches < PROBE_PAYS:
        return plans[0]
    return probe(config, image_size, plans, phase, threads, device).for_work(batches * config.batch_size)


def probe(
    config: MemberConfig,
    image_size: int,
    plans: tuple[Plan, ...],
    phase: Phase,
    threads: int,
    device: torch.device = CPU,
) -> Probe:
    """Measure each plan in turn on random images, or return what an earlier probe of the same found.

    A plan other than the plainest is only chosen where it passes the parity check and is at least `LEAST_SPEEDUP` times
    as fast. The network's parameters are drawn at random, without touching torch's global generator.
    """
    batch = min(config.batch_size, PROBED_IMAGES)
    work = "train head" if config.freeze and phase == "train" else phase
    what = (work, config.timm_name, config.stem, config.input_size or image_size, batch, threads)
    where = () if device.type == "cpu" else (torch.cuda.get_device_name(device),)
    key = " | ".join(map(str, (*_machine(), *where, *what, *plans)))
    cached = _cached(key, plans)
    if cached is not None:
        return cached
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _isolated_random_state(device):
            found = _measured(config, image_size, plans, phase, batch, device)
    finally:
        torch.set_num_threads(before)
    if not found.failed:  # what failed may be there, or fit into memory, another time
        _write({**_read(), key: asdict(found)})
    return found


def speed(
    config: MemberConfig,
    image_size: int,
    plan: Plan,
    phase: Phase,
    batch: int,
    threads: int,
    device: torch.device = CPU,
) -> float:
    """Return the images per second of one network in batches of a size: median of `PROBE_ROUNDS`, after a first one."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _isolated_random_state(device):
            subject = _subject(config, image_size, plan, phase, batch, device)
            for _ in range(FIRST_STEPS if plan.convolutions == "compiled" else 1):
                subject.step()
            return batch / float(np.median([_seconds(subject) for _ in range(PROBE_ROUNDS)]))
    finally:
        torch.set_num_threads(before)


def _isolated_random_state(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[] if device.type == "cpu" else [device])


def _measured(
    config: MemberConfig, image_size: int, plans: tuple[Plan, ...], phase: Phase, batch: int, device: torch.device
) -> Probe:
    compared = [REFERENCE, *(Plan(plan.precision) for plan in plans), *plans]
    subjects = {plan: _subject(config, image_size, plan, phase, batch, device) for plan in dict.fromkeys(compared)}
    steps = len(subjects) + (phase == "train") + PROBE_ROUNDS * len(plans)
    with progress(steps, f"probe {config.timm_name}", "batches") as bar:
        results, setup, failed = {}, {}, {}
        for plan, each in subjects.items():
            if plan.convolutions == "compiled":
                bar.note(f"compiling {config.timm_name}")
                try:
                    setup[str(plan)] = sum(_seconds(each) for _ in range(FIRST_STEPS))
                except Exception as error:  # whatever a compiler does not know; and there may be none
                    failed[str(plan)] = printable((str(error) or type(error).__name__).splitlines()[0][:100])
                    bar.advance()
                    continue
            results[plan] = each.step()
            bar.advance()
        rounding = 0.0
        if phase == "train":
            subjects[REFERENCE].round_parameters()
            rounding = deviation(subjects[REFERENCE].step(), results[REFERENCE])
            bar.advance()
        able = [plan for plan in plans if plan in results and is_followed(subjects[plan].network, plan)]
        sound = [plan for plan in able if _agrees(plan, results, TOLERANCES[phase], rounding)]
        seconds: dict[Plan, list[float]] = {plan: [] for plan in sound}
        too_slow: set[Plan] = set()
        for _ in range(PROBE_ROUNDS):
            for plan in (each for each in sound if each not in too_slow):
                seconds[plan].append(_seconds(subjects[plan]))
                bar.advance()
            too_slow = {plan for plan in sound if seconds[plan][0] > TOO_SLOW * min(of[0] for of in seconds.values())}
    speeds = {plan: batch / float(np.median(spent)) for plan, spent in seconds.items()}
    told = {str(plan): round(value, 1) for plan, value in speeds.items()}
    first = {name: round(value, 1) for name, value in setup.items() if name in told}
    ready = [plan for plan in sound if str(plan) not in first]
    if not ready:
        return Probe(REFERENCE, told, first, failed)
    fastest = max(ready, key=lambda plan: speeds[plan])
    chosen = fastest if speeds[fastest] >= LEAST_SPEEDUP * speeds[ready[0]] else ready[0]
    return Probe(chosen, told, first, failed)


@dataclass(frozen=True)
class _Subject:
    """A network that makes the same step again and again."""

    network: Backbone
    dtype: torch.dtype
    pixels: torch.Tensor
    labels: torch.Tensor
    phase: Phase

    def step(self) -> torch.Tensor:
        """Return what a step computes, float32: the logits, or the gradients of all parameters."""
        torch.manual_seed(1)  # of dropout
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
        """Change every parameter at random by about as much as rounding would."""
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.mul_(1 + ROUNDING * torch.randn_like(parameter))


def _subject(
    config: MemberConfig, image_size: int, plan: Plan, phase: Phase, batch: int, device: torch.device
) -> _Subject:
    """Return a network with parameters drawn at random, and a batch of random images for it.

    Gains that begin as a constant are drawn, too: behind one of 0 (the last norm of a ResNet's block) or 1e-6
    (ConvNeXt's layer scale) a layer could compute anything, and neither logits nor gradients would tell.
    """
    shape = (batch, image_size, image_size, 3)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    torch.manual_seed(0)
    network = build(config.model_copy(update={"pretrained": False, "weights": None}), image_size)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith("bias") and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.5 * torch.randn_like(parameter))
    network = network.to(memory_format=torch.channels_last).to(device)
    if config.freeze:
        network.freeze()
    labels = torch.arange(batch, device=device) % 8 > 0
    return _Subject(prepare(network, plan), plan.dtype, pixels.to(device), labels, phase)


def _seconds(subject: _Subject) -> float:
    started = time.perf_counter()
    result = subject.step()
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - started


def _agrees(plan: Plan, results: dict[Plan, torch.Tensor], exact: float, rounding: float) -> bool:
    """Return whether a plan computes what the library's layers compute in float32, as near as it can."""
    reference = results[REFERENCE]
    apart, same = deviation(results[plan], reference), deviation(results[Plan(plan.precision)], reference)
    if plan.convolutions == "native":
        return apart <= HALF_TOLERANCE
    explained = min(rounding, LARGEST_ROUNDING) if plan.precision == "fp32" else same
    return apart <= exact + ROUNDING_FACTOR * explained


def deviation(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the root mean square of the difference, relative to that of the reference about its mean."""
    spread = (reference - reference.mean()).norm().clamp_min(1e-12)
    return float((values - reference).norm() / spread)


def _machine() -> tuple[str, ...]:
    """Return what names this machine and this torch."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "cpu family"))]
        model = " ".join(dict.fromkeys(parts)) or model
    except OSError:
        pass
    return platform.node(), model, f"torch {torch.__version__}", f"timm {timm.__version__}", f"probe {PROBE_VERSION}"


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "thera" / "probes.json"


def _read() -> dict[str, Any]:
    """Return what earlier probes found; nothing where it cannot be read: it is only measured again."""
    try:
        found = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cached(key: str, plans: tuple[Plan, ...]) -> Probe | None:
    """Return what an earlier probe found, where it is whole."""
    try:
        kept = _read()[key]
        speeds, setup = (
            {str(Plan(*name.split())): float(x) for name, x in kept.get(part, {}).items()}
            for part in ("images_per_second", "setup_seconds")
        )
        found = Probe(Plan(**kept["chosen"]), speeds, setup)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    whole = setup.keys() <= speeds.keys() and any(str(plan) in speeds for plan in plans)
    ready = found.chosen in plans and str(found.chosen) in speeds
    return found if whole and (ready or speeds.keys() == setup.keys()) else None


def _write(found: dict[str, Any]) -> None:
    """Keep what probes found, where there is room and permission; without, the next command measures again."""
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        own = _file().with_name(f".probes-{os.getpid()}.tmp")
        own.write_text(json.dumps(found, indent=2))
        own.replace(_file())
    except OSError:
        pass
