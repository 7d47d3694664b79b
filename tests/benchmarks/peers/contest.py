"""Compare the speed of thera with other tools for the same work, in turn (A B A B), on the same machine and images.

    python tests/benchmarks/peers/contest.py [train] [predict] [load] [decide] [--arch NAME ...]
        [--images FOLDER --labels FILE] [--limit 2048] [--rounds 5] [--device auto]

The first contestant is thera. A ratio is its speed divided by the peer's: the median [minimum, maximum] of the rounds.
Without `--images`, generated images are used. Training and prediction of one architecture take some minutes. Peers that
are not installed (`pip install 'thera[peers]'`) are left out and named.
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
from turns import Match, take_turns

from ensemble.bench.images import BenchImages, member_config, open_images
from ensemble.bench.measure import choose_plan, precisions, write_random_weights
from ensemble.bench.throughput import FOLD_MODELS, QuietBar, gather_epoch, prediction_on, training_on
from ensemble.config import SHORT_NAMES
from ensemble.data.store import load_dataset
from ensemble.decision.threshold import fit_threshold
from ensemble.machine import available_cores
from ensemble.members.devices import choose_device
from ensemble.progress import Bar, progress
from ensemble.reports.table import Table

SUBJECTS = ("train", "predict", "load", "decide")
DECISION_ROWS = 100_000
"""The number of logits on which thresholds are fitted; the exercise has about as many."""


def main() -> None:
    """Run the contests that the command line names, and print a table for each."""
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
    """Return a table for each subject."""
    device = choose_device(device_name)
    tables = []
    if "train" in subjects:
        tables.append(_table("Training", {arch: train(arch, images, rounds, device) for arch in archs}))
    if "predict" in subjects:
        matches = {arch: predict(arch, images, rounds, device) for arch in archs}
        tables.append(_table("Prediction", matches | ({"all of them": after_another(matches)} if archs[1:] else {})))
    if "load" in subjects:
        tables.append(_table("Loading", {"all": load(images, rounds)}))
    size = f"{len(images.paths)} images of {images.size} pixels a turn, {len(available_cores())} cores."
    tables = [table.with_notes(size) for table in tables]
    if "decide" in subjects:
        tables.append(_table("Threshold", {f"{DECISION_ROWS} rows": decide(rounds)}, unit="rows/s"))
    return tables


def after_another(matches: Mapping[str, Match]) -> Match:
    """Return the speeds of computing every image with one network after another, round by round.

    An image then takes the sum of the seconds that it takes with each of them.
    """
    first, *_ = matches.values()
    seconds = {name: sum(1 / match.speeds[name] for match in matches.values()) for name in first.speeds}
    return Match({name: 1 / of_rounds for name, of_rounds in seconds.items()})


def _table(title: str, matches: Mapping[str, Match], unit: str = "images/s") -> Table:
    """Return a row for each match and contestant: its speed, and thera's speed divided by it."""
    rows = []
    for name, match in matches.items():
        for contestant, speeds in match.speeds.items():
            speed = f"{np.median(speeds):.0f} [{speeds.min():.0f}, {speeds.max():.0f}]"
            ratio = match.ratios.get(contestant)
            ratio_cell = "" if ratio is None else f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            rows.append((name, contestant, speed, ratio_cell))
    rounds = len(next(iter(match.speeds.values())))
    note = f"Median [least, greatest] of {rounds} rounds in turn. A ratio is thera's speed over the peer's."
    return Table(title, ("what", "contestant", unit, "ratio"), tuple(rows), (note,))


def _in_turn(contestants: Mapping[str, Callable[[], int]], rounds: int, bar: Bar) -> Match:
    def noted(name: str, work: Callable[[], int]) -> int:
        bar.note(name)
        images = work()
        bar.advance()
        return images

    return take_turns({name: partial(noted, name, work) for name, work in contestants.items()}, rounds)


# --- training ---------------------------------------------------------------------------------------------------------


def train(arch: str, images: BenchImages, rounds: int, device: torch.device) -> Match:
    """Compare thera's training loop with a plain torch loop, and with timm's train.py with its defaults and its best
    flags."""
    config, threads = member_config(arch), len(available_cores())
    plan, _ = choose_plan(config, images.size, "train", device)
    files, timm_name = peers.Files(images.paths, images.labels, images.size), config.timm_name
    thera = training_on(device, config, plan, images.mapped, images.labels)
    with ExitStack() as stack, progress(4 * (rounds + 1), f"train {arch}", "turns") as bar:
        stack.callback(thera.close)
        faster = timm_best(timm_name, files, threads, bar) if device.type == "cpu" else plan.precision
        flags = {"channels_last": True, "amp_dtype": _dtype(faster), "augmentation": peers.LIGHT}
        compute: dict[str, Any] = {"threads": threads, "device": str(device)}
        makers = {
            "plain torch loop": partial(peers.plain_loop, timm_name, files, **compute),
            "timm train.py, default": partial(peers.timm_loop, timm_name, files, **compute),
            "timm train.py, best flags": partial(peers.timm_loop, timm_name, files, **compute, **flags),
        }
        contestants: dict[str, Callable[[], int]] = {"thera": partial(thera.run, QuietBar(bar))}
        for name, make in makers.items():
            bar.note(f"{name}: how many workers")
            peer = make(workers=_best_workers(make, threads, len(files.paths)))
            stack.callback(peer.close)
            contestants[name] = partial(peer.run, len(files.paths))
        return _in_turn(contestants, rounds, bar)


def _best_workers(make: Callable[..., Any], threads: int, images: int) -> int:
    """Return the number of data workers with which a peer's loop is fastest."""
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
    """Compare thera's prediction with timm, ONNX Runtime and OpenVINO: three fold models, two views."""
    config, threads, on_cpu = member_config(arch), len(available_cores()), device.type == "cpu"
    plan, _ = choose_plan(config, images.size, "predict", device)
    weights = write_random_weights(arch, images)
    with np.load(weights) as arrays:
        state = {name.removeprefix("model."): torch.from_numpy(arrays[name]) for name in arrays}
    makers = {
        "timm eager fp32": ("timm_predict", partial(prediction_peers.timm_predict, device=str(device))),
        "ONNX Runtime": ("onnxruntime_predict", prediction_peers.onnxruntime_predict),
        "OpenVINO": (
            "openvino_predict",
            partial(prediction_peers.openvino_predict, precision="bf16" if plan.precision == "bf16" else "f32"),
        ),
    }
    installed = peers.installed()
    usable = {
        name: make for name, (peer, make) in makers.items() if peer in installed and (on_cpu or peer == "timm_predict")
    }
    thera = prediction_on(device, config, [weights] * FOLD_MODELS, plan, images.mapped)
    with ExitStack() as stack, progress((1 + len(usable)) * (rounds + 1), f"predict {arch}", "turns") as bar:
        stack.callback(thera.close)
        contestants: dict[str, Callable[[], int]] = {"thera": partial(thera.run, QuietBar(bar))}
        for name, make in usable.items():
            models = prediction_peers.fold_models(config.timm_name, [state] * FOLD_MODELS)
            peer = make(models, images.paths, images.size, threads=threads, batch=64)
            stack.callback(peer.close)
            contestants[name] = peer.run
        return _in_turn(contestants, rounds, bar)


# --- loading and deciding ---------------------------------------------------------------------------------------------


def load(images: BenchImages, rounds: int) -> Match:
    """Compare batches from the decoded store with a DataLoader that decodes every file in every epoch."""
    threads, batch, seeds = len(available_cores()), member_config("resnet18").batch_size, iter(range(10**6))
    readers = {"DataLoader, PIL": peers.read_pil, "DataLoader, OpenCV": peers.read_cv2}
    with tempfile.TemporaryDirectory(dir=images.folder) as fresh:
        started = time.perf_counter()
        load_dataset(images.source, Path(fresh))
        print(f"first epoch: {len(images.source) / (time.perf_counter() - started):.0f} images/s", file=sys.stderr)
    with ExitStack() as stack, progress(3 * (rounds + 1), "load", "turns") as bar:
        contestants: dict[str, Callable[[], int]] = {
            "thera": lambda: gather_epoch(images.mapped.array, batch, next(seeds))
        }
        for name, read in readers.items():
            make = partial(peers.dataloader_epoch, images.paths, threads=threads, batch=batch, read=read)
            best = next(iter(peers.best_workers(lambda n, make=make: make(workers=n), lambda peer: peer.run())))
            peer = make(workers=best)
            stack.callback(peer.close)
            contestants[f"{name}, {best} workers"] = peer.run
        return _in_turn(contestants, rounds, bar)


def decide(rounds: int, n: int = DECISION_ROWS) -> Match:
    """Compare the exact threshold with scikit-learn's grid of 100 thresholds."""
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.88).astype(np.int8)
    logits = 2.0 * labels - 1 + rng.normal(size=n)

    def timed(fit: Callable[[np.ndarray, np.ndarray], float]) -> int:
        fit(logits, labels)
        return n

    return take_turns({"thera": partial(timed, fit_threshold), "scikit-learn": partial(timed, by_scikit_learn)}, rounds)


if __name__ == "__main__":
    main()
