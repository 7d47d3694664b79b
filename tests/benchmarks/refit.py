"""Time the bootstrap that refits the threshold, against calls of `fit_threshold` on the drawn rows.

    python tests/benchmarks/refit.py

The data have 100,000 rows, 3 members and 5 folds. The two take turns (A B A B), and the process time is measured.
"""

from __future__ import annotations

import time

import numpy as np

from ensemble.data.folds import FoldTable
from ensemble.decision.cross_fitting import OofLogits, cross_fit, stack
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.refits import RefitRule, refit_errors
from ensemble.decision.threshold import fit_threshold

ROWS, TURNS, REPLICATES, PLAIN = 100_000, 5, 200, 10


def main() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(ROWS) > 0.12).astype(np.int8)
    logits = rng.normal(size=(ROWS, 3)) + np.outer(2.0 * labels - 1, (1.0, 0.6, 0.3))
    fold_of = (np.arange(ROWS) % 5).astype(np.int8)
    rows = OofLogits(FoldTable(np.arange(ROWS), labels, fold_of), ("a", "b", "c"), logits).rows
    rule = stack("logistic")
    scores, splits = rule(rows).score(logits), cross_fit(rows, rule).splits

    def plain() -> None:
        by_class = [np.flatnonzero(labels == label) for label in (0, 1)]
        for _ in range(PLAIN):
            drawn = np.concatenate([rng.choice(of_label, of_label.size) for of_label in by_class])
            fit_threshold(scores[drawn], labels[drawn])
            for split in splits:
                inside = split.inside[drawn]
                fitted, held = drawn[~inside], drawn[inside]
                threshold = fit_threshold(split.scores[fitted], labels[fitted])
                error_rates(labels[held], apply_threshold(split.scores[held], threshold))

    refit_took, plain_took = [], []
    for turn in range(TURNS):
        started = time.process_time()
        refit_errors([RefitRule(scores, labels, splits)], labels, seed=turn, replicates=REPLICATES)
        refit_took.append((time.process_time() - started) / REPLICATES)
        started = time.process_time()
        plain()
        plain_took.append((time.process_time() - started) / PLAIN)
    ratios = np.divide(plain_took, refit_took)
    took, beside = (np.median(each) * 1e3 for each in (refit_took, plain_took))
    print(f"a replicate: {took:.2f} ms; on the rows drawn {beside:.2f} ms; 1,000 replicates: {took:.1f} s")
    print(f"ratio {np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})")


if __name__ == "__main__":
    main()
