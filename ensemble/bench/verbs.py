"""What `thera bench` measures: training, prediction, decision, loading; against the machine and against the peers."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.bench.clock import Match, take_turns
from ensemble.config import SHORT_NAMES, MemberConfig
from ensemble.data.source import Source, open_source
from ensemble.data.store import load_dataset
from ensemble.data.synthetic import write_demo
from ensemble.errors import ConfigError
from ensemble.progress import Bar, Say, progress
from ensemble.reports.tables import Table

SUBJECTS = ("train", "predict", "decide", "load")

DEMO_IMAGES = 2048
"""That are generated where no images are given."""

FOLDS = 5
"""That are taken to be trained side by side, on as many cores."""

MANY = 10**6
"""Images of a training in which what takes time first pays: the plan is that of a long one."""

FOLD_MODELS = 3
"""That an image is predicted with, so that peers decode it once for all of them."""


@dataclass(frozen=True)
class Wish:
    """What to measure.

    Parameters
    ----------
    archs : tuple of str
    images, labels : Path, optional
        Given together or, for the demo data, not at all.
    limit : int
        Images of them that are used.
    peers : bool
        Whether other tools are measured too, in turn.
    rounds : int
    device : str
        Of `--device`.
    """

    archs: tuple[str, ...] = tuple(SHORT_NAMES)
    images: Path | None = None
    labels: Path | None = None
    limit: int = DEMO_IMAGES
    peers: bool = False
    rounds: int = 5
    device: str = "auto"


@dataclass(frozen=True)
class Material:
    """Images as files, and decoded in a store."""

    paths: list[str]
    labels: np.ndarray
    mapped: Any
    source: Source
    store: Path

    @property
    def size(self) -> int:
        return int(self.mapped.array.shape[1])


def bench(subjects: Sequence[str], wish: Wish, say: Say) -> list[Table]:
    """Return a table of each subject.

    Raises
    ------
    DataError
        The images or labels cannot be used.
    """
    tables = []
    if "decide" in subjects:
        tables.append(decide(wish))
    if set(subjects) & {"train", "predict", "load"}:
        with _material(wish) as material:
            verbs = {"train": train, "predict": predict, "load": load}
            tables += [verb(wish, material, say) for name, verb in verbs.items() if name in subjects]
    return tables


@contextmanager
def _material(wish: Wish) -> Iterator[Material]:
    from ensemble.members.processes import MappedPixels

    with tempfile.TemporaryDirectory(prefix="thera-bench-") as name:
        folder = Path(name)
        images, labels = wish.images, wish.labels
        if images is None:
            if labels is not None:
                raise ConfigError("--labels", "needs --images")
            write_demo(folder / "demo", wish.limit, 2, seed=0)
            images, labels = folder / "demo" / "train_img", folder / "demo" / "label_train.txt"
        elif not images.is_dir():
            raise ConfigError("--images", f"must be a folder of image files, for the peers to read; got {images}")
        source = open_source(images, labels)
        dataset = load_dataset(source, folder / "store")
        n = min(wish.limit, len(dataset))
        np.save(folder / "pixels.npy", dataset.pixels[:n])
        given = dataset.labels if dataset.labels is not None else np.arange(n) % 8 > 0
        paths = [str(Path(images) / each) for each in source.names[:n]]
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        yield Material(paths, np.asarray(given[:n], np.int8), MappedPixels(pixels), source, folder)


def _turns(contestants: Mapping[str, Callable[[], int]], wish: Wish, bar: Bar) -> Match:
    def told(name: str, work: Callable[[], int]) -> int:
        bar.note(name)
        images = work()
        bar.advance()
        return images

    return take_turns({name: partial(told, name, work) for name, work in contestants.items()}, wish.rounds)


def _speed(speeds: np.ndarray) -> str:
    return f"{np.median(speeds):.0f} [{speeds.min():.0f}, {speeds.max():.0f}]"


def _ratio(match: Match, name: str) -> str:
    found = match.ratios[name]
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"


# --- training and prediction ------------------------------------------------------------------------------------------


def train(wish: Wish, material: Material, say: Say) -> Table:
    """Images per second of our training loop, and of the peers', in turn; on the same files, batch and machine."""
    from ensemble.bench import peers
    from ensemble.members.inference import choose_device
    from ensemble.members.processes import cores

    files, device = peers.Files(material.paths, material.labels, material.size), choose_device(wish.device)
    threads, rows, notes = len(cores()), [], []
    names = ("plain torch loop", "timm train.py, default", "timm train.py, best flags, light augmentation")
    for arch in wish.archs:
        config, plan, probed, share = _chosen(arch, material, "train", device)
        ours = _our_training(config, plan, material, device)
        with ExitStack() as stack, progress(_steps(wish, names), f"train {arch}", "turns") as bar:
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
            match = _turns(contestants, wish, bar)
            if device.type == "cuda":
                from ensemble.bench.roofline import busy_share

                share_of_time = busy_share(contestants["thera"], device)
                notes.append(f"{arch}: the GPU is busy {100 * share_of_time:.0f} % of a turn of thera's.")
        rows.append(_row(arch, plan, match, share, names if wish.peers else ()))
        notes += _advice(config, plan, probed, material, float(np.median(match.speeds["thera"])), device)
    columns = ("architecture", "plan", "images/s", "of the roofline", *(_columns(names) if wish.peers else ()))
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
    from ensemble.bench.ours import OurTraining, OurTrainingTogether
    from ensemble.members.inference import default_workers
    from ensemble.members.processes import cores

    mapped, labels = material.mapped, material.labels
    if device.type == "cpu":
        return OurTraining(config, plan, mapped, labels, len(labels), min(FOLDS, len(cores())))
    return OurTrainingTogether(config, plan, mapped, labels, FOLDS, default_workers(device), device)


def _advice(
    config: MemberConfig, plan: Any, probed: Any, material: Material, images_per_second: float, device: Any
) -> list[str]:
    from ensemble.bench import advice
    from ensemble.members.inference import default_workers
    from ensemble.members.processes import cores

    name, size, pixels = config.name, material.size, material.mapped.array
    if device.type == "cpu":
        of_core = images_per_second / len(cores())
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
    from ensemble.bench import advice, engines, peers
    from ensemble.bench.ours import OurPrediction
    from ensemble.members.backbones import build
    from ensemble.members.inference import choose_device
    from ensemble.members.processes import cores

    threads, rows, notes, matches = len(cores()), [], [], []
    device = choose_device(wish.device)
    on_cpu = device.type == "cpu"
    names = ["timm eager fp32", *(("ONNX Runtime", "OpenVINO") if wish.peers and on_cpu else ())]
    here = engines.installed()
    missing = {"ONNX Runtime": "onnxruntime_predict", "OpenVINO": "openvino_predict"}
    names = [name for name in names if missing.get(name, "timm_predict") in here]
    for arch in wish.archs:
        config, plan, probed, share = _chosen(arch, material, "predict", device)
        network = build(config, material.size).eval()
        weights = material.store / f"{arch}.npz"
        np.savez(weights, **{name: value.numpy() for name, value in network.state_dict().items()})
        timm_state = {name.removeprefix("model."): value for name, value in network.state_dict().items()}
        at_once = threads if on_cpu else 1
        ours = OurPrediction(config, [weights] * FOLD_MODELS, plan, material.mapped, at_once, device)
        with ExitStack() as stack, progress(_steps(wish, names), f"predict {arch}", "turns") as bar:
            stack.callback(ours.close)
            contestants: dict[str, Callable[[], int]] = {"thera": partial(ours.run, _Quiet(bar))}
            if wish.peers:
                makers: dict[str, Callable[..., Any]] = {
                    "timm eager fp32": partial(peers.timm_predict, device=str(device)),
                    "ONNX Runtime": peers.onnxruntime_predict,
                    "OpenVINO": partial(
                        peers.openvino_predict, precision="bf16" if plan.precision == "bf16" else "f32"
                    ),
                }
                for name in names:
                    models = peers.fold_models(config.timm_name, [timm_state] * FOLD_MODELS)
                    peer = makers[name](models, material.paths, material.size, threads=threads, batch=64)
                    stack.callback(peer.close)
                    contestants[name] = peer.run
            match = _turns(contestants, wish, bar)
        matches.append(match)
        rows.append(_row(arch, plan, match, 2 * FOLD_MODELS * share, names if wish.peers else ()))
        notes.append(advice.on_plans(arch, plan, probed, "one core" if on_cpu else _told_of(device).rstrip(", ")))
    if wish.peers and len(matches) > 1:
        seconds = {name: np.sum([1 / match.speeds[name] for match in matches], axis=0) for name in matches[0].speeds}
        match = Match({name: 1 / each for name, each in seconds.items()})
        whole = [item for name in names for item in (_speed(match.speeds[name]), _ratio(match, name))]
        rows.append(("all of them", "", _speed(match.speeds["thera"]), "", *whole))
    columns = ("architecture", "plan", "images/s", "of the roofline", *(_columns(names) if wish.peers else ()))
    told = (
        f"Prediction with {FOLD_MODELS} fold models under two views, {material.size} pixels, {_told_of(device)}"
        f"{threads} cores, "
        f"{len(material.paths)} images a turn, {wish.rounds} rounds in turn; median [least, greatest]. Peers read and "
        "decode the files, as they do each time; thera reads its store.",
        *_explained(device),
        *notes,
    )
    return Table("Prediction", columns, tuple(rows), told)


def _config(arch: str) -> MemberConfig:
    return MemberConfig.model_validate({"arch": arch, "pretrained": False, "augment": "light"})


def _chosen(arch: str, material: Material, phase: Any, device: Any) -> tuple[MemberConfig, Any, Any, float]:
    """Return a member's config, the plan chosen for it, the probe, and the roofline share of one image per second."""
    import timm

    from ensemble.bench.roofline import flops_per_image
    from ensemble.members.plans import possible_plans, probe

    config = _config(arch)
    plans = possible_plans("auto", "auto", device, material.size, phase)
    probed = probe(config, material.size, plans, phase, 1, device)
    plan = probed.for_work(MANY)
    forward, training = flops_per_image(timm.create_model(config.timm_name, num_classes=1), material.size)
    found = _ceilings(device)
    ceiling = 1e9 * (found.fp32_gflops if plan.precision == "fp32" else found.half_gflops)
    return config, plan, probed, (forward if phase == "predict" else training) / ceiling


@functools.cache
def _ceilings(device: Any) -> Any:
    """Return what all cores together, or a GPU, can do; measured once."""
    from ensemble.bench.roofline import measure_ceilings
    from ensemble.members.plans import possible_plans
    from ensemble.members.processes import cores

    half = possible_plans("bf16", "native", device, 64, "train")[0].precision
    return measure_ceilings(len(cores()), device, half)


def _explained(device: Any) -> tuple[str, ...]:
    found = _ceilings(device)
    return (
        f"Roofline: matrix products and convolutions reach {found.half_gflops:.0f} GFLOP/s in {found.half} and "
        f"{found.fp32_gflops:.0f} in fp32 here with {_told_of(device)}{found.threads} threads, copies "
        f"{found.copy_gb_per_s:.0f} GB/s; "
        "the share is that of the nominal operations, multiplications with padding counted.",
    )


def _row(arch: str, plan: Any, match: Match, share: float, names: Sequence[str]) -> tuple[str, ...]:
    own = match.speeds["thera"]
    of_peers = [item for name in names for item in (_speed(match.speeds[name]), _ratio(match, name))]
    return arch, str(plan), _speed(own), f"{100 * np.median(own) * share:.0f} %", *of_peers


def _columns(names: Sequence[str]) -> list[str]:
    return [column for name in names for column in (name, "ratio")]


def _steps(wish: Wish, names: Sequence[str]) -> int:
    return (wish.rounds + 1) * (1 + (len(names) if wish.peers else 0))


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
    from ensemble.bench import peers

    candidates = sorted({0, 1, 2, threads})
    found = peers.best_workers(lambda n: make(workers=n), lambda peer: peer.run(images // 4), candidates, rounds=1)
    return next(iter(found))


def timm_best(arch: str, files: Any, threads: int, bar: Bar) -> str:
    """Return the precision in which timm's loop is faster here, channels last: fp32 or bf16."""
    from ensemble.bench import peers

    speeds = {}
    for precision in ("fp32", "bf16"):
        bar.note(f"timm train.py in {precision}")
        loop = peers.timm_loop(arch, files, threads=threads, workers=0, channels_last=True, amp_dtype=_dtype(precision))
        loop.run(256)
        started = time.perf_counter()
        speeds[precision] = loop.run(512) / (time.perf_counter() - started)
        loop.close()
    return max(speeds, key=lambda name: speeds[name])


# --- loading ----------------------------------------------------------------------------------------------------------


def load(wish: Wish, material: Material, say: Say) -> Table:
    """Images per second into batches: of the decode-once store, and of a DataLoader that decodes every file anew."""
    from ensemble.bench import peers
    from ensemble.bench.ours import one_epoch
    from ensemble.members.processes import cores

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=material.store) as fresh:
        load_dataset(material.source, Path(fresh))
    first = len(material.source) / (time.perf_counter() - started)
    threads, batch = len(cores()), _config("resnet18").batch_size
    names = {"DataLoader, PIL": peers.read_pil, "DataLoader, OpenCV": peers.read_cv2}
    seeds = iter(range(10**6))
    with ExitStack() as stack, progress(_steps(wish, tuple(names)), "load", "turns") as bar:
        contestants: dict[str, Callable[[], int]] = {
            "thera": lambda: one_epoch(material.mapped.array, batch, next(seeds))
        }
        if wish.peers:
            for name, read in names.items():

                def build(workers: int, read: Any = read) -> Any:
                    return peers.dataloader_epoch(
                        material.paths, threads=threads, batch=batch, workers=workers, read=read
                    )

                bar.note(f"{name}: how many workers")
                best = next(iter(peers.best_workers(build, lambda peer: peer.run())))
                peer = build(best)
                stack.callback(peer.close)
                contestants[f"{name}, {best} workers"] = peer.run
        match = _turns(contestants, wish, bar)
    found = [
        (name, _speed(speeds), _ratio(match, name) if name != "thera" else "") for name, speeds in match.speeds.items()
    ]
    rows = [("thera, first epoch (hash and decode)", f"{first:.0f}", ""), *found]
    told = (
        f"{len(material.paths)} images of {material.size} pixels, shuffled batches of {batch}, {wish.rounds} rounds in "
        "turn; median [least, greatest]. A ratio is the speed of thera's later epochs over the peer's.",
    )
    return Table("Loading", ("what", "images/s", "ratio"), tuple(rows), told)


# --- decision ---------------------------------------------------------------------------------------------------------


def decide(wish: Wish, n: int = 100_000) -> Table:
    """Seconds of what is fitted on OOF logits: 100,000 rows, 3 members, 5 folds."""
    from ensemble.config import VIEWS
    from ensemble.decision.decision import fit_decision
    from ensemble.decision.rules import OofLogits
    from ensemble.decision.threshold import fit_threshold

    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.88).astype(np.int8)
    signal = 2.0 * labels[:, None] - 1 + rng.normal(size=(n, 1))
    logits = signal + rng.normal(size=(n, 3)) * (0.5, 0.7, 1.0)
    oof = OofLogits(np.arange(n).astype(str), labels, (np.arange(n) % 5).astype(np.int8), ("a", "b", "c"), logits)
    work: dict[str, Callable[[], Any]] = {"the exact threshold": lambda: fit_threshold(logits[:, 0], labels)}
    if wish.peers:
        from ensemble.bench.grid import by_scikit_learn

        work["scikit-learn's TunedThresholdClassifierCV"] = lambda: by_scikit_learn(logits[:, 0], labels)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with progress(wish.rounds + 2, "decide", "turns") as bar:
        for each in work.values():
            each()
        bar.advance()
        for _ in range(wish.rounds):
            for name, each in work.items():
                started = time.perf_counter()
                each()
                seconds[name].append(time.perf_counter() - started)
            bar.advance()
        bar.note("a decision with its intervals")
        started = time.perf_counter()
        fit_decision(oof, VIEWS, seed=0)
        whole = time.perf_counter() - started
        bar.advance()
    exact, *others = seconds
    rows = [(exact, f"{np.median(seconds[exact]):.4f}", "")]
    for name in others:
        ratios = np.array(seconds[name]) / np.array(seconds[exact])
        told = f"{np.median(ratios):.0f} [{ratios.min():.0f}, {ratios.max():.0f}]"
        rows.append((name, f"{np.median(seconds[name]):.3f}", told))
    rows.append(("a whole decision, stackers, bootstrap and floor", f"{whole:.1f}", ""))
    note = (
        f"{n} rows, 3 members, 5 folds; the threshold {wish.rounds} times in turn. A ratio is the peer's time to ours."
    )
    return Table("Decision", ("what", "seconds", "ratio"), tuple(rows), (note,))
