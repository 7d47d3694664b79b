"""What `thera bench` measures: training, prediction, decision, loading; against the machine and against the peers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.bench.material import Material, Wish, in_turns, member_of, open_material, told_ratio, told_speed, turns_of
from networks import predict, train
from ensemble.data.store import load_dataset
from ensemble.progress import Say, progress
from ensemble.reports.table import Table

SUBJECTS = ("train", "predict", "decide", "load")


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
        with open_material(wish) as material:
            verbs = {"train": train, "predict": predict, "load": load}
            tables += [verb(wish, material, say) for name, verb in verbs.items() if name in subjects]
    return tables


# --- loading ----------------------------------------------------------------------------------------------------------


def load(wish: Wish, material: Material, say: Say) -> Table:
    """Images per second into batches: of the decode-once store, and of a DataLoader that decodes every file anew."""
    import peers
    from ensemble.bench.throughput import one_epoch
    from ensemble.machine import available_cores

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=material.store) as fresh:
        load_dataset(material.source, Path(fresh))
    first = len(material.source) / (time.perf_counter() - started)
    threads, batch = len(available_cores()), member_of("resnet18").batch_size
    names = {"DataLoader, PIL": peers.read_pil, "DataLoader, OpenCV": peers.read_cv2}
    seeds = iter(range(10**6))
    with ExitStack() as stack, progress(turns_of(wish, tuple(names)), "load", "turns") as bar:
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
        match = in_turns(contestants, wish, bar)
    found = [
        (name, told_speed(speeds), told_ratio(match, name) if name != "thera" else "")
        for name, speeds in match.speeds.items()
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
    from ensemble.decision.cross_fitting import OofLogits
    from ensemble.decision.decision import fit_decision
    from ensemble.decision.threshold import fit_threshold

    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.88).astype(np.int8)
    signal = 2.0 * labels[:, None] - 1 + rng.normal(size=(n, 1))
    logits = signal + rng.normal(size=(n, 3)) * (0.5, 0.7, 1.0)
    oof = OofLogits(np.arange(n).astype(str), labels, (np.arange(n) % 5).astype(np.int8), ("a", "b", "c"), logits)
    work: dict[str, Callable[[], Any]] = {"the exact threshold": lambda: fit_threshold(logits[:, 0], labels)}
    if wish.peers:
        from grid import by_scikit_learn

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
