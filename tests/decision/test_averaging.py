"""What the label file's rule is expected to do, against worlds where the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from label_files import simulate
from worlds import World

from ensemble.decision import averaging
from ensemble.decision.averaging import (
    LEAST_IMAGES,
    LEAST_SPREAD,
    MOST_MISFIT,
    MeanModel,
    account_error,
    averaging_effect,
    corrected_threshold,
)
from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.refits import RefitRule, refit_replicates
from ensemble.decision.shift import check_share
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import DataError
from ensemble.predict_config import CORRECTIONS


def draw(rng: np.random.Generator, n: int, k: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) with 12 % of class 0 and 3 % flipped, and k logits each (n, k): skewed signals, independent noise."""
    truth = rng.random(n) > 0.12
    signal = np.where(truth, rng.gamma(4, 0.9, n) - 1, 0.7 - rng.gamma(2, 1, n))
    labels = truth ^ (rng.random(n) < 0.03)
    return labels.astype(np.int8), signal[:, None] + noise * rng.normal(size=(n, k))


def effect_of(labels, oof, new, threshold=1.0, replicates=20, seed=0, **options):
    nested = error_rates(labels, apply_threshold(oof, threshold))
    worlds = refit_replicates(RefitRule(oof, labels, ()), labels, seed=seed, replicates=replicates)
    return averaging_effect(oof, labels, new, threshold, nested, worlds, seed=seed, **options)


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what switches guards of `averaging_effect` off, by name: the others alone are left to return None."""

    def switch_off(*names: str) -> None:
        for name in names:
            monkeypatch.setattr(averaging, name, {"LEAST_SPREAD": 0.0, "MOST_MISFIT": np.inf}[name])

    return switch_off


@pytest.fixture(scope="module")
def simulated() -> dict[str, np.ndarray]:
    """A few data sets; `make simulate` draws many, larger ones."""
    found = [simulate(seed, 6_000, 3_000, replicates=100, size=50_000) for seed in range(24)]
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def test_the_nested_estimate_is_that_of_one_fold_model_and_the_apparent_one_flatters(simulated) -> None:
    off = simulated["nested"] - simulated["single"]
    flattery = simulated["apparent"] - simulated["single"]
    assert abs(off.mean()) < 0.25 * simulated["half"].mean()
    assert flattery.mean() < off.mean() - 0.1 * simulated["half"].mean()
    assert simulated["held"].mean() >= 0.85


def test_the_expected_hter_is_that_of_the_label_files_rule(simulated) -> None:
    off = simulated["expected"] - simulated["true"]
    assert abs(off.mean()) < 0.25 * simulated["expected half"].mean()
    assert simulated["expected held"].mean() >= 0.8  # of 24
    assert simulated["here held"].mean() >= 0.8
    nested_held = np.abs(simulated["nested"] - simulated["true"]) < simulated["half"]
    assert nested_held.mean() < simulated["expected held"].mean() - 0.1
    beside = np.abs(simulated["nested"] - simulated["true"]).mean()  # what one fold model says of the mean of five
    assert np.abs(off).mean() < 0.75 * beside


def test_the_default_correction_has_the_least_regret(simulated) -> None:
    regrets = {name.removeprefix("regret "): values.mean() for name, values in simulated.items() if "regret" in name}
    assert min(regrets, key=regrets.__getitem__) == CORRECTIONS[0]
    assert regrets[CORRECTIONS[0]] < 0.001


def test_equal_fold_models_gain_nothing() -> None:
    rng = np.random.default_rng(0)
    labels, oof = draw(rng, 20_000, 1, 0.5)
    _, new = draw(rng, 20_000, 1, 0.5)
    threshold = fit_threshold(oof[:, 0], labels)
    nested = error_rates(labels, apply_threshold(oof[:, 0], threshold))
    found = effect_of(labels, oof[:, 0], np.repeat(new, 3, axis=1), threshold)
    assert found.chosen.rates.hter == pytest.approx(nested.hter, abs=0.003)
    assert (found.chosen.rates.n_neg, found.chosen.rates.n_pos) == (nested.n_neg, nested.n_pos)
    for each in found.candidates[1:]:  # the best threshold may be another, the corrections move nothing
        assert each.threshold == pytest.approx(threshold, abs=1e-3)
        assert each.rates.hter == pytest.approx(nested.hter, abs=1e-3)


def test_the_model_knows_the_rates_of_the_mean() -> None:
    rng = np.random.default_rng(4)
    labels, oof = draw(rng, 60_000, 1, 0.9)
    hidden, new = draw(rng, 60_000, 4, 0.9)
    model = MeanModel(oof[:, 0], labels, new)
    fit = model.fit(np.ones(60_000), np.ones(60_000))
    for threshold in (0.0, 0.7, 1.4):
        of_mean = error_rates(hidden, apply_threshold(new.mean(axis=1), threshold))
        of_single = error_rates(hidden, apply_threshold(new[:, 0], threshold))
        assert fit.of_mean(threshold) == pytest.approx((of_mean.fpr, of_mean.fnr), abs=0.02)
        assert fit.of_single(threshold) == pytest.approx((of_single.fpr, of_single.fnr), abs=0.02)
        assert of_single.hter - of_mean.hter > 0.01  # there was something to know
    best = fit_threshold(new.mean(axis=1), hidden)
    least = error_rates(hidden, apply_threshold(new.mean(axis=1), best)).hter
    assert error_rates(hidden, apply_threshold(new.mean(axis=1), fit.best(HTER))).hter < least + 0.001
    held = error_rates(hidden, apply_threshold(new.mean(axis=1), fit.best(BoundedFpr(0.1))))
    assert held.fpr == pytest.approx(0.1, abs=0.02)
    held = error_rates(hidden, apply_threshold(new.mean(axis=1), fit.best(BoundedFnr(0.1))))
    assert held.fnr == pytest.approx(0.1, abs=0.01)


def test_corrections_by_hand() -> None:
    rng = np.random.default_rng(5)
    labels, oof = draw(rng, 4_000, 1, 0.8)
    _, new = draw(rng, 4_000, 3, 0.8)
    new += 0.3 * (new > 1)
    fit = MeanModel(oof[:, 0], labels, new).fit(np.ones(4_000), np.ones(4_000))
    moved = {name: corrected_threshold(name, 0.5, fit) for name in CORRECTIONS}
    assert moved["none"] == 0.5
    assert moved["posterior"] == fit.best(HTER) != 0.5


@pytest.mark.parametrize("seed", range(4))
def test_the_class_mix_moves_the_correction_only_if_it_is_not_told(seed: int, unguarded: Callable[..., None]) -> None:
    """The best threshold for HTER does not depend on the mix; taken for that of the rows, another mix misleads."""
    rng = np.random.default_rng(seed)
    world = World.draw(rng, 3, 5)
    table, oof = world.out_of_fold(rng, 30_000)
    labels = table.labels
    hidden, new = world.sample(rng, 20_000, share=0.4)
    scores, singles = oof.mean(axis=1), new.mean(axis=1)
    threshold = fit_threshold(scores, labels)
    rates = error_rates(labels, apply_threshold(scores, threshold))
    check = check_share(scores, singles, threshold, rates)
    assert check.shifted
    least = fit_threshold(singles.mean(axis=1), hidden)

    def regret(prior: float | None) -> float:
        at = effect_of(labels, scores, singles, threshold, replicates=2, prior=prior).chosen.threshold
        return float(
            np.subtract(*(error_rates(hidden, apply_threshold(singles.mean(axis=1), t)).hter for t in (at, least)))
        )

    assert max(map(regret, (check.prior, float(np.mean(hidden == 0))))) < 0.004
    unguarded("MOST_MISFIT")  # it may be so misled that it shows
    assert regret(None) > 0.004


def test_same_seed_same_interval_and_order_of_models_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    labels, oof = draw(rng, 4_000, 1, 0.5)
    _, new = draw(rng, 2_000, 4, 0.5)

    def facts(of: np.ndarray, seed: int) -> object:
        return effect_of(labels, oof[:, 0], of, seed=seed)

    assert facts(new, 0) == facts(new, 0) != facts(new, 1)
    turned = facts(new[:, ::-1], 0)
    assert turned.chosen.threshold == pytest.approx(facts(new, 0).chosen.threshold)
    assert turned.interval.low == pytest.approx(facts(new, 0).interval.low)


def test_too_few_images_and_bad_logits() -> None:
    rng = np.random.default_rng(2)
    labels, oof = draw(rng, 500, 1, 0.5)
    assert effect_of(labels, oof[:, 0], np.zeros((LEAST_IMAGES - 1, 3))) is None
    with pytest.raises(DataError, match=r"needs finite logits \(n, k\)"):
        effect_of(labels, oof[:, 0], np.full((LEAST_IMAGES, 3), np.nan))


def test_few_rows_of_a_class_far_thresholds_and_images_that_are_all_alike() -> None:
    rng = np.random.default_rng(3)
    labels, oof = draw(rng, 600, 1, 0.5)
    labels = np.where(np.cumsum(labels == 0) > 3, 1, labels)
    _, new = draw(rng, 2_000, 3, 0.5)
    fit = MeanModel(oof[:, 0], labels, new).fit(np.ones(600), np.ones(2_000))
    assert (
        (fit.of_mean(-99.0), fit.of_mean(99.0))
        == ((1.0, 0.0), (0.0, 1.0))
        == (fit.of_single(-99.0), fit.of_single(99.0))
    )
    assert effect_of(labels, oof[:, 0], new, 1.0, correction="none") is None  # no g has the FPR of three rows: 0
    for threshold in (-99.0, 99.0):
        found = effect_of(labels, oof[:, 0], new, threshold, correction="none")
        assert 0 <= found.interval.low <= found.interval.high <= 1
        assert 0 <= found.new_set_interval.low <= found.new_set_interval.high <= 1
    assert effect_of(labels, oof[:, 0], np.ones((2_000, 3))) is None
    almost = np.ones((2_000, 3))
    almost[0, 0] = 1.5
    assert effect_of(labels, oof[:, 0], almost) is None


def test_nothing_is_read_off_means_that_hardly_differ(unguarded: Callable[..., None]) -> None:
    rng = np.random.default_rng(6)
    labels, oof = draw(rng, 4_000, 1, 0.5)
    alike = 1 + 0.01 * rng.normal(size=(LEAST_IMAGES, 1)) + np.array([-1.0, 0.0, 1.0])
    assert alike.std() > LEAST_SPREAD * oof.std() > alike.mean(axis=1).std() > 0  # it is the means that count
    unguarded("MOST_MISFIT")
    assert effect_of(labels, oof[:, 0], alike) is None
    spread = alike + 3 * LEAST_SPREAD * oof.std() * rng.normal(size=(LEAST_IMAGES, 1))
    assert effect_of(labels, oof[:, 0], spread, replicates=2) is not None
    unguarded("LEAST_SPREAD")
    assert effect_of(labels, oof[:, 0], alike, replicates=2) is not None


def test_nothing_is_read_off_fold_models_that_agree_on_nothing(unguarded: Callable[..., None]) -> None:
    """No g of their mean can then say as much of the label as the single logits do."""
    rng = np.random.default_rng(8)
    labels, oof = draw(rng, 4_000, 1, 0.5)
    _, agreed = draw(rng, 4_000, 5, 0.5)
    strangers = rng.permuted(agreed, axis=0)  # each model's logits as they were, of other images
    assert np.abs(np.corrcoef(strangers.T) - np.eye(5)).max() < 0.1
    assert strangers.mean(axis=1).std() > LEAST_SPREAD * oof.std()
    assert effect_of(labels, oof[:, 0], agreed, replicates=2) is not None
    assert effect_of(labels, oof[:, 0], strangers) is None
    unguarded("LEAST_SPREAD")
    assert effect_of(labels, oof[:, 0], strangers) is None
    fit = MeanModel(oof[:, 0], labels, strangers).fit(np.ones(4_000), np.ones(4_000))
    off = np.mean(fit.of_single(1.0)) - error_rates(labels, apply_threshold(oof[:, 0], 1.0)).hter
    assert abs(off) > MOST_MISFIT
    unguarded("MOST_MISFIT")
    assert effect_of(labels, oof[:, 0], strangers, replicates=2) is not None


# --- what the account of averaging misses -----------------------------------------------------------------------------


def test_the_account_is_right_where_views_differ_by_noise_and_wrong_where_they_do_not_average() -> None:
    rng = np.random.default_rng(4)
    y = (rng.random(20_000) > 0.3).astype(np.int8)
    evidence = np.where(y == 1, 1.0, -1.0) + 0.5 * rng.normal(size=y.size)
    independent = evidence[:, None] + rng.normal(size=(y.size, 2))
    assert account_error(independent, y) < 0.1
    # The noise of the second view has the sign of the label: averaging helps far more than the account predicts.
    helpful = np.stack([independent[:, 0], 4.0 * y - 2 + rng.normal(size=y.size)], axis=1)
    assert account_error(helpful, y) > 0.3
    assert account_error(np.repeat(independent[:, :1], 2, axis=1), y) <= 1.0


def test_the_interval_is_widened_by_what_the_account_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    y = (rng.random(4000) > 0.3).astype(np.int8)
    oof = np.where(y == 1, 1.0, -1.0) + rng.normal(size=y.size)
    new_y = rng.random(3000) > 0.3
    new = (np.where(new_y, 1.0, -1.0) + 0.5 * rng.normal(size=3000))[:, None] + 0.85 * rng.normal(size=(3000, 4))
    threshold = fit_threshold(oof, y)
    rates = error_rates(y, apply_threshold(oof, threshold))
    monkeypatch.setattr(averaging, "account_error", lambda views, labels, objective: 0.5)

    def effect(views: np.ndarray | None) -> averaging.AveragingEffect:
        drawn = refit_replicates(RefitRule(oof, y, ()), y, replicates=20)
        found = averaging.averaging_effect(oof, y, new, threshold, rates, drawn, views=views)
        assert found is not None
        return found

    plain, wide, single = effect(None), effect(np.stack([oof, oof], axis=1)), effect(oof[:, None])
    by = 0.5 * abs(plain.chosen.rates.hter - rates.hter)
    assert by > 0.005 and wide.chosen == plain.chosen and single == plain
    for name in ("interval", "new_set_interval"):
        one, other = getattr(plain, name), getattr(wide, name)
        assert (other.low, other.high) == pytest.approx((max(one.low - by, 0), one.high + by))
