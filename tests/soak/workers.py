"""OOF logits and weights are the same with 0, 1, 2 and 4 data workers, for any seed."""

from __future__ import annotations

from pathlib import Path

from . import tiny_run
from .lanes import Outcome, Trial

HANG_S = 600.0

WORKERS = (0, 1, 2, 4)


def trials(data: Path, seed: int) -> tuple[Trial, int | None]:
    """Return the trial, one for each seed of a run, and None: there are as many as one likes."""

    def trial(lane: int, number: int) -> Outcome:
        folder = tiny_run.fresh(data / f"workers-{lane}")
        of_run = str(1000 * seed + number)
        # All trainings in one process: they share the server that starts the workers, and that imports torch.
        ended = tiny_run.Child(lambda: _trained(data, folder, of_run)).ended()
        if ended.status:
            return Outcome(f"ended with {ended.status}: {ended.text[-300:]}")
        made = {n: tiny_run.results(folder / str(n)) for n in WORKERS}
        if not made[0]:
            return Outcome("nothing was trained")
        wrong = {n: differs for n in WORKERS if (differs := tiny_run.differences(made[n], made[0]))}
        return Outcome(
            f"with other workers: {wrong}" if wrong else "", {f"trained with {n} workers": 1 for n in WORKERS}
        )

    return trial, None


def _trained(data: Path, folder: Path, seed: str) -> tiny_run.Ended:
    for n in WORKERS:
        run = folder / str(n) / "run"
        ended = tiny_run.run("train-member", data, run, "--workers", str(n), "--seed", seed)
        if ended.status:
            break
    return ended
