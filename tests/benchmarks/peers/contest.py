"""thera against other tools that do the same work, in turn (A B A B) on the same images, batch and machine.

    python tests/benchmarks/peers/contest.py [train] [predict] [load] [decide] [--arch NAME ...]
        [--images FOLDER --labels FILE] [--limit 2048] [--rounds 5] [--device auto]

The first contestant is thera; a ratio is its speed over the peer's, median [least, greatest] of the rounds. Without
images, generated ones are used. Training and prediction of one architecture take some minutes. Peers that are not
installed (`pip install 'thera[peers]'`) are left out and named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import prediction_peers
import torch
from grid import by_scikit_learn

from ensemble.bench.clock import Match, take_turns
from ensemble.bench.images import BenchImages, member_of, open_images
from ensemble.bench.throughput import (
    FOLD_MODELS,
    Prediction,
    QuietBar,
    choose,
    one_epoch,
    precisions,
    training_of,
)
from ensemble.config import SHORT_NAMES
from ensemble.data.store import load_dataset
from ensemble.decision.threshold import fit_threshold
from ensemble.machine import available_cores
from ensemble.members.backbones import build
from ensemble.members.inference import choose_device
from ensemble.progress import Bar, progress
from ensemble.reports.table import Table

SUBJECTS = ("train", "predict", "load", "decide")
DECISION_ROWS = 100_000


def main() -> None:
    """Run the contests that the command line names, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], default=list(SUBJECTS))
    parser.add_argument("--arch", action="append")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--limit", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    missing = sorted(set(peers.NEEDS) - set(peers.installed()))
    if missing:
        print(f"left out, not installed: {', '.join(missing)}", file=sys.stderr)
    with open_images(given.images, given.labels, given.limit) as images:
        for table in contests(given.subjects, given.arch or list(SHORT_NAMES), images, given.rounds, given.device):
            print(table.text())


def contests(subjects: list[str], archs: list[str], images: BenchImages, rounds: int, device_name: str) -> list[Table]:
    """Return a table of each subject."""
    device = choose_device(device_name)
    tables = []
    if "train" in subjects:
        tables.append(_table("Training", {arch: train(arch, images, rounds, device) for arch in archs}))
    if "predict" in subjects:
        tables.append(_table("Prediction", {arch: predict(arch, images, rounds, device) for arch in archs}))
    if "load" in subjects:
        tables.append(_table("Loading", {"all": load(images, rounds)}))
    if "decide" in subjects:
        tables.append(_table("Threshold", {f"{DECISION_ROWS} rows": decide(rounds)}, unit="rows/s"))
    return tables


def _table(title: str, matches: Mapping[str, Match], unit: str = "images/s") -> Table:
    """Return a row for each match and contestant: its speed, and thera's speed over it."""
    rows = []
    for name, match in matches.items():
        for contestant, speeds in match.speeds.items():
            speed = f"{np.median(speeds):.0f} [{speeds.min():.0f}, {speeds.max():.0f}]"
            ratio = match.ratios.get(contestant)
            shown = "" if ratio is None else f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            rows.append((name, contestant, speed, shown))
    notes = ("Median [least, greatest] of the rounds, in turn. The ratio is thera's speed over the peer's.",)
    return Table(title, ("what", "contestant", unit, "ratio"), tuple(rows), notes)


def _in_turn(contestants: Mapping[str, Callable[[], int]], rounds: int, bar: Bar) -> Match:
    def noted(name: str, work: Callable[[], int]) -> int:
        bar.note(name)
        images = work()
        bar.advance()
        return images

    return take_turns({name: partial(noted, name, work) for name, work in contestants.items()}, rounds)


# --- training ---------------------------------------------------------------------------------------------------------


def train(arch: str, images: BenchImages, rounds: int, device: torch.device) -> Match:
    """Our training loop against a plain torch loop and timm's train.py, its defaults and its best flags."""
    config, threads = member_of(arch), len(available_cores())
    plan = choose(config, images.size, "train", device).plan
    files, timm_name = peers.Files(images.paths, images.labels, images.size), config.timm_name
    ours = training_of(config, plan, images.mapped, images.labels, device)
    with ExitStack() as stack, progress(4 * (rounds + 1), f"train {arch}", "turns") as bar:
        stack.callback(ours.close)
        faster = timm_best(timm_name, files, threads, bar) if device.type == "cpu" else plan.precision
        flags = {"channels_last": True, "amp_dtype": _dtype(faster), "augmentation": peers.LIGHT}
        place: dict[str, Any] = {"threads": threads, "device": str(device)}
        makers = {
            "plain torch loop": partial(peers.plain_loop, timm_name, files, **place),
            "timm train.py, default": partial(peers.timm_loop, timm_name, files, **place),
            "timm train.py, best flags": partial(peers.timm_loop, timm_name, files, **place, **flags),
        }
        contestants: dict[str, Callable[[], int]] = {"thera": partial(ours.run, QuietBar(bar))}
        for name, make in makers.items():
            bar.note(f"{name}: how many workers")
            peer = make(workers=_best_workers(make, threads, len(files.paths)))
            stack.callback(peer.close)
            contestants[name] = partial(peer.run, len(files.paths))
        return _in_turn(contestants, rounds, bar)


def _best_workers(make: Callable[..., Any], threads: int, images: int) -> int:
    """Return the number of data workers that a peer's loop is fastest with."""
    candidates = sorted({0, 1, min(2, threads), threads})
    speeds = peers.best_workers(lambda n: make(workers=n), lambda peer: peer.run(images // 4), candidates, rounds=1)
    return next(iter(speeds))


def timm_best(arch: str, files: peers.Files, threads: int, bar: Bar) -> str:
    """Return the precision in which timm's loop is faster here on a CPU, channels last: fp32 or bf16."""
    possible, speeds = precisions(choose_device("cpu"), files.size), {}
    if len(possible) == 1:
        return possible[0]
    for precision in possible:
        bar.note(f"timm train.py in {precision}")
        loop = peers.timm_loop(arch, files, threads=threads, workers=0, channels_last=True, amp_dtype=_dtype(precision))
        loop.run(256)
        started = time.perf_counter()
        speeds[precision] = loop.run(512) / (time.perf_counter() - started)
        loop.close()
    return max(speeds, key=lambda name: speeds[name])


def _dtype(precision: str) -> torch.dtype | None:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


# --- prediction -------------------------------------------------------------------------------------------------------


def predict(arch: str, images: BenchImages, rounds: int, device: torch.device) -> Match:
    """Our prediction with three fold models under two views against timm, ONNX Runtime and OpenVINO."""
    config, threads, on_cpu = member_of(arch), len(available_cores()), device.type == "cpu"
    plan = choose(config, images.size, "predict", device).plan
    state = build(config, images.size).eval().state_dict()
    weights = images.folder / f"{arch}.npz"
    np.savez(weights, **{name: value.numpy() for name, value in state.items()})
    of_timm = {name.removeprefix("model."): value for name, value in state.items()}
    makers = {
        "timm eager fp32": ("timm_predict", partial(prediction_peers.timm_predict, device=str(device))),
        "ONNX Runtime": ("onnxruntime_predict", prediction_peers.onnxruntime_predict),
        "OpenVINO": (
            "openvino_predict",
            partial(prediction_peers.openvino_predict, precision="bf16" if plan.precision == "bf16" else "f32"),
        ),
    }
    here = peers.installed()
    usable = {name: make for name, (peer, make) in makers.items() if peer in here and (on_cpu or name[:4] == "timm")}
    ours = Prediction(config, [weights] * FOLD_MODELS, plan, images.mapped, threads if on_cpu else 1, device)
    with ExitStack() as stack, progress((1 + len(usable)) * (rounds + 1), f"predict {arch}", "turns") as bar:
        stack.callback(ours.close)
        contestants: dict[str, Callable[[], int]] = {"thera": partial(ours.run, QuietBar(bar))}
        for name, make in usable.items():
            models = prediction_peers.fold_models(config.timm_name, [of_timm] * FOLD_MODELS)
            peer = make(models, images.paths, images.size, threads=threads, batch=64)
            stack.callback(peer.close)
            contestants[name] = peer.run
        return _in_turn(contestants, rounds, bar)


# --- loading and deciding ---------------------------------------------------------------------------------------------


def load(images: BenchImages, rounds: int) -> Match:
    """Batches out of the decode-once store against a DataLoader that decodes every file anew."""
    threads, batch, seeds = len(available_cores()), member_of("resnet18").batch_size, iter(range(10**6))
    readers = {"DataLoader, PIL": peers.read_pil, "DataLoader, OpenCV": peers.read_cv2}
    with tempfile.TemporaryDirectory(dir=images.folder) as fresh:
        started = time.perf_counter()
        load_dataset(images.source, Path(fresh))
        print(f"first epoch: {len(images.source) / (time.perf_counter() - started):.0f} images/s", file=sys.stderr)
    with ExitStack() as stack, progress(3 * (rounds + 1), "load", "turns") as bar:
        contestants: dict[str, Callable[[], int]] = {
            "thera": lambda: one_epoch(images.mapped.array, batch, next(seeds))
        }
        for name, read in readers.items():
            make = partial(peers.dataloader_epoch, images.paths, threads=threads, batch=batch, read=read)
            best = next(iter(peers.best_workers(lambda n, make=make: make(workers=n), lambda peer: peer.run())))
            peer = make(workers=best)
            stack.callback(peer.close)
            contestants[f"{name}, {best} workers"] = peer.run
        return _in_turn(contestants, rounds, bar)


def decide(rounds: int, n: int = DECISION_ROWS) -> Match:
    """The exact threshold against scikit-learn's grid of 100 thresholds."""
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.88).astype(np.int8)
    logits = 2.0 * labels - 1 + rng.normal(size=n)

    def timed(fit: Callable[[np.ndarray, np.ndarray], float]) -> int:
        fit(logits, labels)
        return n

    return take_turns({"thera": partial(timed, fit_threshold), "scikit-learn": partial(timed, by_scikit_learn)}, rounds)


if __name__ == "__main__":
    main()
