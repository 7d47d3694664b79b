from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from simulations.floor import WORLDS, World, draw, floor_of
from tiny import through_json

from ensemble.decision.intervals import Interval
from ensemble.decision.label_issues import calibrated, confident_joint
from ensemble.decision.label_noise import (
    LEAST_ROWS,
    Floor,
    FloorEstimate,
    ceiling,
    describe_floor,
    estimate_floor,
)
from ensemble.decision.mixture import bin_shares, nudged_shares
from ensemble.decision.rates import ErrorRates, apply_threshold, error_rates
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import DataError

BY_NAME = {world.name: world for world in WORLDS}


@cache
def run(name: str) -> tuple[float, list[Floor], float]:
    """Return the true floor of a world, the estimates on some data sets, and the mean HTER that is reached."""
    floors, reached = [], []
    for seed in range(2):
        logits, labels, _ = draw(BY_NAME[name], np.random.default_rng(seed + 100))
        floors.append(estimate_floor(logits, labels, seed, replicates=60))
        reached.append(error_rates(labels, apply_threshold(logits, fit_threshold(logits, labels))).hter)
    return floor_of(BY_NAME[name], 400_000), floors, float(np.mean(reached))


@pytest.mark.parametrize(
    ("name", "confident_low", "confident_high", "mixture"),
    [  # how far the mean of the estimates may lie from the truth: below and above, and either side
        ("strong model, no noise", 0.0, 0.002, 0.0005),
        ("strong model, 5 % flips", 0.01, 0.01, 0.007),
        ("strong model, 5 % flips, n = 5,000", 0.02, 0.02, 0.015),
        ("strong model, 2 % and 10 % flips", 0.03, 0.01, 0.007),
        ("moderate model, no noise", 0.0, 0.03, 0.001),
        ("moderate model, 3 % flips", 0.0, 0.04, 0.01),
        ("moderate model, 3 % flips, n = 50,000", 0.0, 0.04, 0.006),
        ("moderate model, 10 % and 1 % flips", 0.0, 0.035, 0.007),
        ("skewed logits, no noise", 0.0, 0.025, 0.001),
        ("skewed logits, 3 % flips", 0.0, 0.045, 0.01),
        ("heavy tails, no noise", 0.0, 0.025, 0.008),
        ("strong model of the noisy labels, 5 % flips (the demo)", 0.015, 0.01, 0.01),
        ("moderate model of the noisy labels, 3 % flips", 0.0, 0.045, 0.02),
    ],
)
def test_known_noise_is_found(name: str, confident_low: float, confident_high: float, mixture: float) -> None:
    truth, floors, reached = run(name)
    confident = np.mean([floor.confident.hter for floor in floors]) - truth
    assert -confident_low <= confident <= confident_high
    assert abs(np.mean([floor.mixture.hter for floor in floors]) - truth) <= mixture
    for floor in floors:
        assert truth <= floor.ceiling.hter <= max(1.6 * reached, 0.01)
        for estimate in (floor.confident, floor.mixture):
            assert 0 <= estimate.interval.low <= estimate.hter <= estimate.interval.high <= 0.5


def test_the_two_rates_are_reported_apart() -> None:
    world = BY_NAME["strong model, 2 % and 10 % flips"]
    _, labels, truth = draw(world, np.random.default_rng(0), 1_000_000)
    expected = error_rates(labels, truth)
    for floor in run(world.name)[1]:
        assert floor.mixture.rates.fpr == pytest.approx(expected.fpr, abs=0.03)
        assert floor.mixture.rates.fnr == pytest.approx(expected.fnr, abs=0.003)
        assert floor.confident.rates.fpr == pytest.approx(expected.fpr, abs=0.06)


def test_the_mixture_interval_holds_the_truth() -> None:
    """Where its shapes are right; confident learning's holds it only where the model is strong."""
    names = ("strong model, 5 % flips", "moderate model, 3 % flips", "moderate model, 10 % and 1 % flips")
    held = [
        floor.mixture.interval.low <= truth <= floor.mixture.interval.high
        for truth, floors, _ in (run(name) for name in names)
        for floor in floors
    ]
    assert sum(held) >= 5


def test_fewer_images_widen_the_intervals() -> None:
    few, many = (run(f"moderate model, 3 % flips{n}")[1] for n in (", n = 5,000", ", n = 50,000"))
    for name in ("confident", "mixture"):
        widths = [
            np.mean([getattr(floor, name).interval.high - getattr(floor, name).interval.low for floor in floors])
            for floors in (few, many)
        ]
        assert widths[0] > 2 * widths[1]


def test_a_weak_model_is_not_believed() -> None:
    truth, floors, reached = run("weak model, 3 % flips")
    for floor in floors:
        interval = floor.mixture.interval
        assert interval.low <= truth <= interval.high
        assert interval.high - interval.low > 0.04
        assert floor.confident.hter > truth + 0.1  # its own errors taken for wrong labels
        assert floor.disagree
        assert "the two estimates disagree" in describe_floor(floor, reached)


def test_noise_on_hard_images_passes_for_difficulty() -> None:
    """Also by the ceiling, which is one of noise at random only."""
    truth, floors, _ = run("moderate model, flips on hard images only")
    assert floors[0].mixture.hter < 0.01 < floors[0].confident.hter < truth
    assert floors[0].ceiling.hter < truth


def test_a_fit_that_the_ceiling_refutes_gives_way_to_it() -> None:
    """No noise, but a tenth of true 0 lies in a heap of its own, amid true 1: no sinh-arcsinh normal is shaped so."""
    rng = np.random.default_rng(0)
    labels = rng.random(10_000) > 0.3
    heaped = np.where(rng.random(10_000) < 0.1, rng.normal(3, 0.5, 10_000), rng.normal(0, 0.4, 10_000))
    floor = estimate_floor(np.where(labels, rng.normal(4, 2, 10_000), heaped), labels, replicates=40)
    assert floor is not None
    assert floor.mixture.rates == floor.ceiling
    assert floor.mixture.interval == Interval(0.0, floor.ceiling.hter)
    assert floor.mixture.hter < 0.05 and floor.misfit > 2


def test_a_rising_map_of_the_logits_changes_little() -> None:
    logits, labels, _ = draw(BY_NAME["moderate model, 3 % flips"], np.random.default_rng(5))
    plain, scaled = (estimate_floor(x, labels, replicates=40) for x in (logits, 1e-3 * logits + 40))
    bent = estimate_floor(np.sign(logits) * np.abs(logits) ** 1.2, labels, replicates=40)
    assert plain is not None and scaled is not None and bent is not None
    assert scaled.confident == plain.confident == bent.confident
    assert scaled.mixture.hter == pytest.approx(plain.mixture.hter, abs=1e-3)
    assert bent.mixture.hter == pytest.approx(plain.mixture.hter, abs=0.02)
    assert scaled.ceiling == plain.ceiling


def test_swapping_labels_and_signs_swaps_the_rates() -> None:
    logits, labels, _ = draw(BY_NAME["moderate model, 10 % and 1 % flips"], np.random.default_rng(6))
    floor, mirrored = (estimate_floor(sign * logits, labels == (sign > 0), replicates=40) for sign in (1, -1))
    assert floor is not None and mirrored is not None
    assert mirrored.mixture.rates.fpr == pytest.approx(floor.mixture.rates.fnr, abs=0.003)
    assert mirrored.mixture.rates.fnr == pytest.approx(floor.mixture.rates.fpr, abs=0.02)
    assert mirrored.ceiling.fpr == pytest.approx(floor.ceiling.fnr, rel=0.02)
    assert mirrored.confident.hter == pytest.approx(floor.confident.hter, abs=0.01)


def test_a_seed_fixes_it() -> None:
    logits, labels, _ = draw(BY_NAME["moderate model, 3 % flips, n = 5,000"], np.random.default_rng(7))
    first, again, other = (estimate_floor(logits, labels, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert first is not None and other is not None
    assert other.mixture.rates == first.mixture.rates  # chance is in the intervals, and in the calibration's folds


def test_json_keeps_every_bit() -> None:
    floor = run("strong model, 5 % flips")[1][0]
    assert through_json(floor) == floor


def test_too_little_to_go_by() -> None:
    rng = np.random.default_rng(8)
    labels = np.arange(5000) >= LEAST_ROWS - 1
    assert estimate_floor(rng.normal(size=5000) + labels, labels) is None
    labels = np.arange(5000) % 5 > 0
    assert estimate_floor(np.full(5000, 0.3), labels) is None
    assert estimate_floor(np.round(rng.normal(size=5000)), labels) is None
    assert "cannot be estimated" in describe_floor(None, 0.2)
    with pytest.raises(DataError, match="cannot estimate the floor: HTER needs both classes"):
        estimate_floor(np.zeros(500), np.ones(500))
    with pytest.raises(DataError, match="logits must be finite"):
        estimate_floor(np.full(4, np.nan), [0, 1, 0, 1])


@pytest.mark.parametrize("gap", [0.0, 1e-9, 100.0, 1e150])
def test_perfect_separation_has_no_floor_but_an_interval(gap: float) -> None:
    logits = np.concatenate([np.linspace(-2, -1, 300), np.linspace(1, 2, 2700) + gap])
    floor = estimate_floor(logits, np.arange(3000) >= 300)
    if floor is None:  # the two classes lie too far apart for their spread to be seen
        assert gap == 1e150
        return
    assert floor.mixture.hter < 0.002 and floor.confident.hter < 0.002
    assert 0 < floor.mixture.interval.high < 0.02


@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_a_model_that_knows_nothing_says_nothing(apart: float) -> None:
    rng = np.random.default_rng(9)
    labels = rng.random(20_000) > 0.12
    logits = rng.normal(size=20_000) + apart * labels
    floor = estimate_floor(logits, labels, replicates=60)
    assert floor is not None and floor.ceiling.hter > 0.25
    said = describe_floor(floor, error_rates(labels, apply_threshold(logits, fit_threshold(logits, labels))).hter)
    assert "disagree" in said or "uncertain" in said or "too weak" in said


def test_few_rows_of_a_class_and_outliers_pass() -> None:
    rng = np.random.default_rng(10)
    labels = np.arange(5000) >= LEAST_ROWS
    logits = rng.normal(size=5000) + 4 * labels
    floor = estimate_floor(logits, labels)
    assert floor is not None and floor.mixture.interval.high - floor.mixture.interval.low > 0.01
    logits[[0, 4999]] = -1e6, 1e6
    floor = estimate_floor(logits, labels)
    assert floor is not None and 0 <= floor.mixture.hter < 0.1


def test_it_takes_two_seconds_at_a_hundred_thousand() -> None:
    logits, labels, _ = draw(BY_NAME["moderate model, 3 % flips"], np.random.default_rng(11), 100_000)
    estimate_floor(logits[:5000], labels[:5000])  # cleanlab is loaded
    started = time.process_time()
    estimate_floor(logits, labels)
    assert time.process_time() - started < 2


def test_shares_of_nudged_parameters_are_those_of_each_nudged() -> None:
    rng = np.random.default_rng(0)
    theta, edges = rng.normal(size=(7, 10)), np.linspace(-2, 2, 30)
    nudges = np.concatenate([np.zeros((1, 10)), 1e-5 * np.eye(10)])
    np.testing.assert_array_equal(nudged_shares(theta, edges, 1e-5), bin_shares(theta[:, None] + nudges, edges))


def test_the_ceiling_by_hand() -> None:
    labels = np.repeat([0, 1], [1000, 1000])
    logits = np.concatenate([np.full(900, -1.0), np.full(100, 1.0), np.full(950, 1.0), np.full(50, -1.0)])
    most = ceiling(logits, labels)  # P(A | 0) / P(A | 1) is 100 / 950 above, 50 / 900 below
    a, b = 100 / 950, 50 / 900
    least = ErrorRates(a * (1 - b) / (1 - a * b), b * (1 - a) / (1 - a * b), 1000, 1000)
    assert least.fpr < most.fpr < 1.6 * least.fpr
    assert least.fnr < most.fnr < 1.9 * least.fnr


def test_confident_joint_by_its_definition() -> None:
    logits, labels, _ = draw(BY_NAME["moderate model, 3 % flips, n = 5,000"], np.random.default_rng(12))
    one = calibrated(logits, labels, 2)
    sure_0, sure_1 = 1 - one >= (1 - one)[labels == 0].mean(), one >= one[labels == 1].mean()
    as_one = sure_1 & (~sure_0 | (one > 0.5))
    as_zero = sure_0 & ~as_one
    expected = [[int((labels[as_c] == given).sum()) for as_c in (as_zero, as_one)] for given in (0, 1)]
    np.testing.assert_array_equal(confident_joint(logits, labels, 2), expected)


def test_cleanlab_is_loaded_only_when_asked_for() -> None:
    check = "import sys, ensemble.decision.label_noise; sys.exit('cleanlab' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def estimate(hter: float, half: float = 0.005) -> FloorEstimate:
    return FloorEstimate(ErrorRates(2 * hter, 0.0, 1000, 9000), Interval(max(hter - half, 0.0), hter + half))


@pytest.mark.parametrize(
    ("confident", "mixture", "nested", "says"),
    [
        (estimate(0.05), estimate(0.03, 0.02), 0.1123, "causes about 0.030 to 0.050 (two estimates); 0.062 to 0.082"),
        (estimate(0.14), estimate(0.14), 0.1439, "causes about 0.140 (two estimates); 0.004 is left to learn."),
        (estimate(0.142), estimate(0.146), 0.1439, "about 0.142 to 0.146 (two estimates); 0.000 to 0.002 is left"),
        (estimate(0.06), estimate(0.002, 0.002), 0.1123, "causes 0.002 (at most 0.100) if labels are wrong at random"),
        (estimate(0.06), estimate(0.002, 0.002), 0.1123, "and 0.052 to 0.110 is left to learn."),
        (estimate(0.02), estimate(0.06), 0.1123, "0.020 to 0.060: the two estimates disagree, and 0.052 to 0.092 is"),
        (estimate(0.06), estimate(0.05, 0.05), 0.1123, "uncertain: the two 95 % intervals span 0.000 to 0.100"),
        (estimate(0.3), estimate(0.1), 0.2, "confident learning estimates more (the two estimates are 0.100 to 0.300"),
        (estimate(0.3), estimate(0.25), 0.2, "but confident learning and the mixture estimate more"),
    ],
)  # fmt: skip
def test_the_account_is_honest(confident: FloorEstimate, mixture: FloorEstimate, nested: float, says: str) -> None:
    said = describe_floor(Floor(confident, mixture, ErrorRates(0.2, 0.0, 1000, 9000), 1.0), nested)
    assert says in said
    assert said.startswith(f"Of the nested HTER {nested:.4f}, ") and said.endswith(".") and "\n" not in said


def test_a_capped_mixture_is_said_to_be_at_most() -> None:
    most = ErrorRates(0.03, 0.01, 1000, 9000)
    floor = Floor(estimate(0.1), FloorEstimate(most, Interval(0.0, 0.02)), most, 9.0)
    assert "causes at most 0.020 if labels are wrong at random" in describe_floor(floor, 0.2)
    assert replace(floor, ceiling=ErrorRates(0.05, 0.01, 1000, 9000)) != floor


def test_worlds_are_named_once() -> None:
    assert len(BY_NAME) == len(WORLDS) and all(isinstance(world, World) for world in WORLDS)
