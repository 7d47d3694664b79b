"""Training and prediction against the clock: images per second, the share of the roofline, the peers in turn."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from ensemble.bench.clock import Match
from ensemble.bench.material import (
    Material,
    Wish,
    columns_of,
    in_turns,
    member_of,
    told_ratio,
    told_speed,
    turns_of,
)
from ensemble.config import MemberConfig
from ensemble.progress import Bar, Say, progress
from ensemble.reports.table import Table

FOLDS = 5
"""That are taken to be trained side by side, on as many cores."""

MANY = 10**6
"""Images of a training in which what takes time first pays: the plan is that of a long one."""

FOLD_MODELS = 3
"""That an image is predicted with, so that peers decode it once for all of them."""


def train(wish: Wish, material: Material, say: Say) -> Table:
    """Images per second of our training loop, and of the peers', in turn; on the same files, batch and machine."""
    import peers
    from ensemble.machine import available_cores
    from ensemble.members.inference import choose_device

    files, device = peers.Files(material.paths, material.labels, material.size), choose_device(wish.device)
    threads, rows, notes = len(available_cores()), [], []
    names = ("plain torch loop", "timm train.py, default", "timm train.py, best flags, light augmentation")
    for arch in wish.archs:
        config, plan, probed, share = _chosen(arch, material, "train", device)
        ours = _our_training(config, plan, material, device)
        with ExitStack() as stack, progress(turns_of(wish, names), f"train {arch}", "turns") as bar:
            stack.callback(ours.close)
            contestants: dict[str, Callable[[], int]] = {"thera": partial(ours.run, _Quiet(bar))}
            if wish.peers:
                timm_name, n = config.timm_name, len(files.paths)
                faster = timm_best(timm_name, files, threads, bar) if device.type == "cpu" else plan.precision
                flags: dict[str, Any] = {
                    "channels_last": True,
                    "amp_dtype": _dtype(faster),
                    "augmentation": peers.LIGHT,
                }
                place: dict[str, Any] = {"threads": threads, "device": str(device)}
                makers = (
                    partial(peers.plain_loop, timm_name, files, **place),
                    partial(peers.timm_loop, timm_name, files, **place),
                    partial(peers.timm_loop, timm_name, files, **place, **flags),
                )
                for name, make in zip(names, makers, strict=True):
                    bar.note(f"{name}: how many workers")
                    peer = make(workers=_workers(make, threads, n))
                    stack.callback(peer.close)
                    contestants[name] = partial(peer.run, n)
            match = in_turns(contestants, wish, bar)
            if device.type == "cuda":
                from ensemble.bench.roofline import busy_share

                share_of_time = busy_share(contestants["thera"], device)
                notes.append(f"{arch}: the GPU is busy {100 * share_of_time:.0f} % of a turn of thera's.")
        rows.append(_row(arch, plan, match, share, names if wish.peers else ()))
        notes += _advice(config, plan, probed, material, float(np.median(match.speeds["thera"])), device)
    columns = ("architecture", "plan", "images/s", "of the roofline", *(columns_of(names) if wish.peers else ()))
    told = (
        f"Training, batch {config.batch_size}, {material.size} pixels, {_told_of(device)}{threads} cores, "
        f"{len(files.paths)} images a turn, {wish.rounds} rounds in turn; median [least, greatest]. A ratio is thera's "
        "speed over the peer's.",
        *_explained(device),
        *notes,
    )
    return Table("Training", columns, tuple(rows), told)


def _our_training(config: MemberConfig, plan: Any, material: Material, device: Any) -> Any:
    """Return our loop as a device has it: a process a core, or all folds in one."""
    from ensemble.bench.throughput import TrainingOnCpu, TrainingOnGpu
    from ensemble.machine import available_cores
    from ensemble.members.inference import default_workers

    mapped, labels = material.mapped, material.labels
    if device.type == "cpu":
        return TrainingOnCpu(config, plan, mapped, labels, len(labels), min(FOLDS, len(available_cores())))
    return TrainingOnGpu(config, plan, mapped, labels, FOLDS, default_workers(device), device)


def _advice(
    config: MemberConfig, plan: Any, probed: Any, material: Material, images_per_second: float, device: Any
) -> list[str]:
    from ensemble.bench import advice
    from ensemble.machine import available_cores
    from ensemble.members.inference import default_workers

    name, size, pixels = config.name, material.size, material.mapped.array
    if device.type == "cpu":
        of_core = images_per_second / len(available_cores())
        return [
            advice.on_plans(name, plan, probed),
            advice.on_batches(config, size, plan),
            advice.on_augmentation(config, pixels, of_core),
            advice.on_compiling(config, size, plan, probed.images_per_second.get(str(plan), of_core)),
        ]
    where = _told_of(device).rstrip(", ")
    return [
        advice.on_plans(name, plan, probed, where),
        advice.on_batches(config, size, plan, device, where),
        advice.on_feeding(config, pixels, images_per_second, default_workers(device), FOLDS),
    ]


def _told_of(device: Any) -> str:
    """Return a GPU's name, for a list; nothing of a CPU, whose cores are told of."""
    import torch

    return "" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)}, "


def predict(wish: Wish, material: Material, say: Say) -> Table:
    """Images per second of prediction under two views with three fold models, ours and the peers', in turn."""
    import peers
    import prediction_peers

    from ensemble.bench import advice
    from ensemble.bench.throughput import Prediction
    from ensemble.machine import available_cores
    from ensemble.members.backbones import build
    from ensemble.members.inference import choose_device

    threads, rows, notes, matches = len(available_cores()), [], [], []
    device = choose_device(wish.device)
    on_cpu = device.type == "cpu"
    names = ["timm eager fp32", *(("ONNX Runtime", "OpenVINO") if wish.peers and on_cpu else ())]
    here = peers.installed()
    missing = {"ONNX Runtime": "onnxruntime_predict", "OpenVINO": "openvino_predict"}
    names = [name for name in names if missing.get(name, "timm_predict") in here]
    for arch in wish.archs:
        config, plan, probed, share = _chosen(arch, material, "predict", device)
        network = build(config, material.size).eval()
        weights = material.store / f"{arch}.npz"
        np.savez(weights, **{name: value.numpy() for name, value in network.state_dict().items()})
        timm_state = {name.removeprefix("model."): value for name, value in network.state_dict().items()}
        at_once = threads if on_cpu else 1
        ours = Prediction(config, [weights] * FOLD_MODELS, plan, material.mapped, at_once, device)
        with ExitStack() as stack, progress(turns_of(wish, names), f"predict {arch}", "turns") as bar:
            stack.callback(ours.close)
            contestants: dict[str, Callable[[], int]] = {"thera": partial(ours.run, _Quiet(bar))}
            if wish.peers:
                makers: dict[str, Callable[..., Any]] = {
                    "timm eager fp32": partial(prediction_peers.timm_predict, device=str(device)),
                    "ONNX Runtime": prediction_peers.onnxruntime_predict,
                    "OpenVINO": partial(
                        prediction_peers.openvino_predict, precision="bf16" if plan.precision == "bf16" else "f32"
                    ),
                }
                for name in names:
                    models = prediction_peers.fold_models(config.timm_name, [timm_state] * FOLD_MODELS)
                    peer = makers[name](models, material.paths, material.size, threads=threads, batch=64)
                    stack.callback(peer.close)
                    contestants[name] = peer.run
            match = in_turns(contestants, wish, bar)
        matches.append(match)
        rows.append(_row(arch, plan, match, 2 * FOLD_MODELS * share, names if wish.peers else ()))
        notes.append(advice.on_plans(arch, plan, probed, "one core" if on_cpu else _told_of(device).rstrip(", ")))
    if wish.peers and len(matches) > 1:
        seconds = {name: np.sum([1 / match.speeds[name] for match in matches], axis=0) for name in matches[0].speeds}
        match = Match({name: 1 / each for name, each in seconds.items()})
        whole = [item for name in names for item in (told_speed(match.speeds[name]), told_ratio(match, name))]
        rows.append(("all of them", "", told_speed(match.speeds["thera"]), "", *whole))
    columns = ("architecture", "plan", "images/s", "of the roofline", *(columns_of(names) if wish.peers else ()))
    told = (
        f"Prediction with {FOLD_MODELS} fold models under two views, {material.size} pixels, {_told_of(device)}"
        f"{threads} cores, "
        f"{len(material.paths)} images a turn, {wish.rounds} rounds in turn; median [least, greatest]. Peers read and "
        "decode the files, as they do each time; thera reads its store.",
        *_explained(device),
        *notes,
    )
    return Table("Prediction", columns, tuple(rows), told)


def _chosen(arch: str, material: Material, phase: Any, device: Any) -> tuple[MemberConfig, Any, Any, float]:
    """Return a member's config, the plan chosen for it, the probe, and the roofline share of one image per second."""
    import timm

    from ensemble.bench.roofline import flops_per_image
    from ensemble.members.plans import possible_plans
    from ensemble.members.probe import probe

    config = member_of(arch)
    plans = possible_plans("auto", "auto", device, material.size, phase)
    probed = probe(config, material.size, plans, phase, 1, device)
    plan = probed.for_work(MANY)
    forward, training = flops_per_image(timm.create_model(config.timm_name, num_classes=1), material.size)
    ceiling = 1e9 * _ceilings(device).gflops[plan.precision]
    return config, plan, probed, (forward if phase == "predict" else training) / ceiling


@functools.cache
def _ceilings(device: Any) -> Any:
    """Return what all cores together, or a GPU, can do; measured once."""
    from ensemble.bench.roofline import measure_ceilings
    from ensemble.machine import available_cores

    return measure_ceilings(len(available_cores()), tuple(dict.fromkeys(("fp32", *_precisions(device)))), device)


def _precisions(device: Any, size: int = 64) -> tuple[str, ...]:
    """Return those in which a device computes at full speed, of images of that many pixels."""
    from ensemble.members.plans import possible_plans

    return tuple(plan.precision for plan in possible_plans("auto", "native", device, size, "train"))


def _explained(device: Any) -> tuple[str, ...]:
    found = _ceilings(device)
    reached = " and ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in found.gflops.items())
    return (
        f"Roofline: matrix products and convolutions reach {reached} here with {_told_of(device)}{found.threads} "
        f"threads, copies {found.copy_gb_per_s:.0f} GB/s; the share is that of the nominal operations, "
        "multiplications with padding counted.",
    )


def _row(arch: str, plan: Any, match: Match, share: float, names: Sequence[str]) -> tuple[str, ...]:
    own = match.speeds["thera"]
    of_peers = [item for name in names for item in (told_speed(match.speeds[name]), told_ratio(match, name))]
    return arch, str(plan), told_speed(own), f"{100 * np.median(own) * share:.0f} %", *of_peers


class _Quiet:
    """A bar that lets signals through to the one it hides, and counts nothing."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def advance(self, n: int = 1) -> None:
        self._bar.advance(0)

    def skip(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...


def _dtype(precision: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def _workers(make: Callable[..., Any], threads: int, images: int) -> int:
    """Return how many data workers a peer's loop is fastest with."""
    import peers

    candidates = sorted({0, 1, min(2, threads), threads})
    found = peers.best_workers(lambda n: make(workers=n), lambda peer: peer.run(images // 4), candidates, rounds=1)
    return next(iter(found))


def timm_best(arch: str, files: Any, threads: int, bar: Bar) -> str:
    """Return the precision in which timm's loop is faster here on a CPU, channels last: fp32 or bf16."""
    import peers
    from ensemble.members.inference import choose_device

    precisions, speeds = _precisions(choose_device("cpu"), files.size), {}
    if len(precisions) == 1:
        return precisions[0]
    for precision in precisions:
        bar.note(f"timm train.py in {precision}")
        loop = peers.timm_loop(arch, files, threads=threads, workers=0, channels_last=True, amp_dtype=_dtype(precision))
        loop.run(256)
        started = time.perf_counter()
        speeds[precision] = loop.run(512) / (time.perf_counter() - started)
        loop.close()
    return max(speeds, key=lambda name: speeds[name])
