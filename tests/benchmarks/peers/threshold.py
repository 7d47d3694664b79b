"""Measure the time of the exact threshold, and the HTER that a grid of thresholds loses.

The script compares `fit_threshold` with scikit-learn's `TunedThresholdClassifierCV` (balanced accuracy, its default
grid of 100 thresholds, over a fitted classifier that passes a score through) on the same 100,000 logits, in turn, A B A
B.

    python tests/benchmarks/peers/threshold.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from grid import by_scikit_learn

from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.threshold import fit_threshold


def clocked(
    fit: Callable[[np.ndarray, np.ndarray], float], logits: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
    """Return the processor seconds that the fit took, and the HTER at its threshold."""
    started = time.process_time()
    threshold = fit(logits, labels)
    return time.process_time() - started, error_rates(labels, apply_threshold(logits, threshold)).hter


def run(n: int, repeats: int) -> str:
    """Return a Markdown table: a row for each set of logits, with the ratio's median and spread over `repeats`."""
    lines = [
        "| logits | n | exact, s | scikit-learn, s | ratio (min..max) | HTER exact | HTER scikit-learn |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for description, outliers in (("two Gaussian classes", 0.0), ("with one in a thousand 20 times as far out", 0.001)):
        rng = np.random.default_rng(0)
        labels = (rng.random(n) < 0.88).astype(np.int8)
        logits = rng.normal(size=n) + 2.0 * labels - 1
        logits[rng.random(n) < outliers] *= 20
        for fit in (fit_threshold, by_scikit_learn):  # modules are loaded here, so that loading is not timed
            clocked(fit, logits, labels)
        exact, grid = zip(*(
            (clocked(fit_threshold, logits, labels), clocked(by_scikit_learn, logits, labels)) for _ in range(repeats)
        ), strict=True)  # fmt: skip
        ratios = [slow / fast for (fast, _), (slow, _) in zip(exact, grid, strict=True)]
        seconds = [float(np.median([took for took, _ in each])) for each in (exact, grid)]
        lines.append(
            f"| {description} | {n} | {seconds[0]:.4f} | {seconds[1]:.3f} | {np.median(ratios):.0f} "
            f"({min(ratios):.0f}..{max(ratios):.0f}) | {exact[0][1]:.6f} | {grid[0][1]:.6f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--n", type=int, default=100_000)
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    print(run(given.n, given.repeats))
