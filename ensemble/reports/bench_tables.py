"""The tables of `thera bench`: images per second, the share of the roofline, and what to change."""

from __future__ import annotations

from ensemble.bench_results import BenchResult, DecisionTime, LoadingSpeed, NetworkSpeed, Spread
from ensemble.reports.table import Table

SPREAD = "Median [least, greatest] of the rounds."


def bench_tables(result: BenchResult) -> list[Table]:
    """Return a table of each subject that was measured."""
    tables = []
    if result.decision is not None:
        tables.append(_decision_table(result.decision, result.rounds))
    if result.training:
        tables.append(_network_table("Training", result, result.training))
    if result.prediction:
        tables.append(_network_table("Prediction, three fold models, two views", result, result.prediction))
    if result.loading is not None:
        tables.append(_loading_table(result, result.loading))
    return tables


def _network_table(title: str, result: BenchResult, speeds: tuple[NetworkSpeed, ...]) -> Table:
    machine = result.machine
    assert machine is not None
    on_gpu = any(speed.busy_share is not None for speed in speeds)
    rows = tuple(
        (
            speed.arch,
            speed.plan,
            _spread(speed.images_per_second),
            f"{100 * speed.roofline_share:.0f} %",
            *((f"{100 * (speed.busy_share or 0):.0f} %",) if on_gpu else ()),
        )
        for speed in speeds
    )
    reached = " and ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in machine.gflops.items())
    where = f"{machine.name}, {machine.threads} cores" if machine.name else f"{machine.threads} cores"
    return Table(
        title,
        ("architecture", "plan", "images/s", "of the roofline", *(("GPU busy",) if on_gpu else ())),
        rows,
        (
            f"{where}, images of {result.size} pixels, {result.images} images a turn, {result.rounds} rounds. {SPREAD}",
            f"Roofline: matrix products and convolutions reach {reached}, copies {machine.copy_gb_per_s:.0f} GB/s. The "
            "share counts the nominal operations, including multiplications with padding.",
            *(sentence for speed in speeds for sentence in speed.advice),
        ),
    )


def _loading_table(result: BenchResult, loading: LoadingSpeed) -> Table:
    return Table(
        "Loading",
        ("epoch", "images/s"),
        (
            ("the first: hash and decode", f"{loading.first_epoch:.0f}"),
            ("later ones, from the store", _spread(loading.later_epochs)),
        ),
        (f"{result.images} images of {result.size} pixels, shuffled batches, {result.rounds} rounds. {SPREAD}",),
    )


def _decision_table(decision: DecisionTime, rounds: int) -> Table:
    threshold = decision.threshold_seconds
    return Table(
        "Decision",
        ("task", "seconds"),
        (
            ("the exact threshold", f"{threshold.median:.4f} [{threshold.low:.4f}, {threshold.high:.4f}]"),
            ("a whole decision: stackers, bootstrap and floor", f"{decision.decision_seconds:.1f}"),
        ),
        (f"{decision.rows} images, 3 members, 5 folds; the threshold {rounds} times. {SPREAD}",),
    )


def _spread(spread: Spread) -> str:
    return f"{spread.median:.0f} [{spread.low:.0f}, {spread.high:.0f}]"
