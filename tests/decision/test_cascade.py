import math
from itertools import permutations

import numpy as np
import pytest
from cascade import COST, MEMBERS, WORLDS, draw, labelled, of_one_fold, simulate
from scipy.stats import beta, binom

from ensemble.decision import cascade as cascade_module
from ensemble.decision.cascade import CascadeWalk, changed_labels, fit_cascade, upper_bound
from ensemble.decision.stacker import Stacker
from ensemble.errors import DataError

STACKER, THRESHOLD = Stacker(MEMBERS, (0.7, 0.4, 0.8), 0.1), 0.3


@pytest.fixture(scope="module")
def logits():
    return of_one_fold(draw("even", 12_000, np.random.default_rng(1))[0])


@pytest.fixture(scope="module")
def cascade(logits):
    return fit_cascade(logits, STACKER, THRESHOLD, COST, 0.99)


def stacked(logits, stacker=STACKER):
    return stacker.apply(logits.mean(axis=2))


def flat(logits, cells):
    return np.stack([logits[:, i, j] for i, j in cells], axis=1)


def parted(n, groups=None, seed=0):
    """Return the rows that are learnt from and those that are tested."""
    learning = cascade_module._part(n, groups, seed)
    return np.flatnonzero(learning), np.flatnonzero(~learning)


# --- the imputation ---------------------------------------------------------------------------------------------------


def test_the_stack_of_imputed_logits_is_the_regression_of_the_stack_on_the_cells_at_hand(logits, cascade):
    learning, _ = parted(len(logits))
    for stage in range(len(cascade.order)):
        seen = np.column_stack([np.ones(len(logits)), flat(logits, cascade.order[: stage + 1])])
        fit = np.linalg.lstsq(seen[learning], stacked(logits)[learning], rcond=None)[0]
        np.testing.assert_allclose(stacked(cascade.impute(stage, logits)), seen @ fit, atol=1e-9)


def test_imputation_fills_what_is_missing_and_leaves_the_rest(logits, cascade):
    for stage in range(len(cascade.order)):
        known = logits[:50].copy()
        for i, j in cascade.order[stage + 1 :]:
            known[:, i, j] = np.nan
        filled = cascade.impute(stage, known)
        assert np.isfinite(filled).all()
        np.testing.assert_array_equal(filled[np.isfinite(known)], known[np.isfinite(known)])
        np.testing.assert_array_equal(filled, cascade.impute(stage, logits[:50]))
        np.testing.assert_array_equal(filled[7:8], cascade.impute(stage, known[7:8]))
    np.testing.assert_array_equal(filled, logits[:50])


def test_imputed_fold_models_average_to_the_imputed_average(cascade, rng):
    folds = rng.normal(size=(30, 3, 2, 5))
    for stage in range(len(cascade.order)):
        each = np.stack([cascade.impute(stage, folds[..., k]) for k in range(5)], axis=3)
        np.testing.assert_allclose(each.mean(axis=3), cascade.impute(stage, folds.mean(axis=3)), atol=1e-12)


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_margins_are_distances_from_whatever_threshold_is_in_use(cascade):
    margin = cascade.margins[0]
    assert 0 < margin < math.inf
    for threshold in (0.0, 2.0):
        x = threshold + margin * np.array([-1.01, -0.99, 0.0, 0.99, 1.0, 1.01])
        assert cascade.stops(0, x, threshold).tolist() == [True, False, False, False, True, True]
        assert cascade.stops(len(cascade.order) - 1, x, threshold).all()


def test_what_it_says_of_the_tested_rows_is_what_happens_to_them(logits, cascade):
    _, tested = parted(len(logits))
    labels, stopped = labelled(cascade, logits[tested], STACKER, THRESHOLD)
    changed = labels != (stacked(logits[tested]) >= THRESHOLD)
    prices = np.array([COST[member] for member, _ in cascade.order])
    assert cascade.tested == tested.size
    assert cascade.changed == pytest.approx(changed.mean())
    assert cascade.changed_upper == pytest.approx(beta.ppf(0.95, changed.sum() + 1, tested.size - changed.sum()))
    np.testing.assert_allclose(cascade.reached, [np.mean(stopped >= stage) for stage in range(6)])
    assert cascade.cost_share == pytest.approx(np.cumsum(prices)[stopped].mean() / prices.sum())
    assert cascade.cost_share < 0.4 and cascade.changed_upper <= 0.01


def test_the_scale_is_the_last_before_the_first_that_fails(logits, cascade):
    learning, tested = parted(len(logits))
    missed = stacked(logits[learning]) - stacked(cascade.impute(0, logits[learning]))
    scale = cascade.margins[0] / np.sqrt(np.mean(missed**2))
    at = int(np.argmin(np.abs(cascade_module.SCALES - scale)))
    assert cascade_module.SCALES[at] == pytest.approx(scale)
    exact = stacked(logits[tested]) >= THRESHOLD
    for step, passes in ((0, True), (1, False)):
        moved = np.array(cascade.margins) * cascade_module.SCALES[at + step] / scale
        other = cascade_module.replace(cascade, margins=tuple(moved.tolist()))
        changed = int(np.sum(labelled(other, logits[tested], STACKER, THRESHOLD)[0] != exact))
        assert (upper_bound(changed, tested.size) <= 0.01) is passes


def test_the_bound_is_that_of_clopper_and_pearson():
    for count, n in ((0, 10), (3, 50), (49, 50), (70, 80_000)):
        assert binom.cdf(count, n, upper_bound(count, n)) == pytest.approx(0.05)
    assert upper_bound(5, 5) == 1.0


# --- the order --------------------------------------------------------------------------------------------------------


def cost_of(order, logits, allowed, scales):
    """Return the least cost of an order on some rows, with no more than a share of their labels changed, slowly."""
    exact, least = stacked(logits), math.inf
    predictions = []
    for stage in range(len(order)):
        seen = np.column_stack([np.ones(len(logits)), flat(logits, order[: stage + 1])])
        predictions.append(seen @ np.linalg.lstsq(seen, exact, rcond=None)[0])
    for scale in scales:
        alive, cost, changed = np.ones(len(logits), bool), 0.0, 0
        for stage, predicted in enumerate(predictions):
            cost += COST[order[stage][0]] * alive.sum()
            spread = np.sqrt(np.mean((exact - predicted) ** 2))
            last = stage == len(order) - 1
            stops = alive & (last | (np.abs(predicted - THRESHOLD) >= scale * spread))
            changed += 0 if last else int(np.sum(stops & ((predicted >= THRESHOLD) != (exact >= THRESHOLD))))
            alive &= ~stops
        if changed <= allowed * len(logits):
            least = min(least, cost)
    return least


@pytest.mark.parametrize("seed", range(3))
def test_no_order_costs_less_on_the_rows_that_are_learnt_from(seed):
    logits = of_one_fold(draw("even", 3_000, np.random.default_rng(seed))[0])
    learning, _ = parted(len(logits))
    chosen = fit_cascade(logits, STACKER, THRESHOLD, COST, 0.97).order
    cells = [(i, j) for i in range(3) for j in range(2)]
    orders = [
        order for order in permutations(cells) if all(order.index((i, 0)) < order.index((i, 1)) for i in range(3))
    ]
    assert len(orders) == 90 and chosen in orders
    scales = [scale for scale in cascade_module.SCALES[::-4] if 0.5 < scale < 5]
    costs = {order: cost_of(order, logits[learning], 0.03, scales) for order in orders}
    assert costs[chosen] == pytest.approx(min(costs.values()))


def test_the_greedy_order_is_about_as_good(logits, cascade, monkeypatch):
    monkeypatch.setattr(cascade_module, "MOST_ORDERS", 0)
    greedy = fit_cascade(logits, STACKER, THRESHOLD, COST, 0.99)
    assert sorted(greedy.order) == sorted(cascade.order)
    assert greedy.cost_share < 1.1 * cascade.cost_share


@pytest.mark.parametrize("most", [720, 0])
def test_a_member_that_decides_nothing_is_never_needed(logits, most, monkeypatch):
    monkeypatch.setattr(cascade_module, "MOST_ORDERS", most)
    stacker = Stacker(MEMBERS, (1.0, 0.0, 0.5), 0.0)
    cascade = fit_cascade(logits, stacker, THRESHOLD, (1.0, 10.0, 1.0), 0.99)
    assert [member for member, _ in cascade.order[4:]] == [1, 1]
    assert cascade.margins[3] == 0.0 and cascade.reached[4:] == (0.0, 0.0)


def test_a_view_that_repeats_another_is_never_needed(logits):
    twice = np.repeat(logits[:, :, :1], 2, axis=2)
    cascade = fit_cascade(twice, STACKER, THRESHOLD, COST, 0.99)
    assert [view for _, view in cascade.order[:3]] == [0, 0, 0]
    assert max(cascade.reached[3:]) == 0.0


def test_what_is_cheap_and_what_is_telling_comes_first(logits):
    dear = fit_cascade(logits, STACKER, THRESHOLD, (1.0, 1.0, 100.0), 0.99)
    assert {member for member, _ in dear.order[:3]} == {0, 1}
    telling = Stacker(MEMBERS, (2.0, 0.1, 0.1), 0.0)
    assert fit_cascade(logits, telling, THRESHOLD, (1.0, 1.0, 1.0), 0.99).order[0] == (0, 0)


# --- the guarantee ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_more_labels_change_than_was_said_in_at_most_one_cascade_of_twenty(world):
    trials = 30
    found = np.array([simulate(world, 1_000 + seed, 1_500, 0.98, new=15_000) for seed in range(trials)])
    assert np.sum(found[:, 0] > 0.02) <= binom.ppf(0.999, trials, 0.05)
    assert 0.004 < found[:, 0].mean() < 0.016 and found[:, 2].mean() < 0.9


def test_too_few_rows_stop_nothing(logits):
    parts = {n: parted(n)[1].size for n in (4_492, 4_493)}
    assert parts == {4_492: 2_994, 4_493: 2_995}
    cascade = fit_cascade(logits[:4_492], STACKER, THRESHOLD, COST, 0.999)
    assert cascade.margins == (*[math.inf] * 5, 0.0)
    assert cascade.reached == (1.0,) * 6 and cascade.cost_share == pytest.approx(1.0)
    assert cascade.changed == cascade.changed_upper == 0.0
    assert fit_cascade(logits[:4_493], STACKER, THRESHOLD, COST, 0.999).cost_share < 1
    labels, _ = labelled(cascade, logits, STACKER, THRESHOLD)
    np.testing.assert_array_equal(labels, stacked(logits) >= THRESHOLD)


def test_a_surer_cascade_costs_more(logits):
    shares = [fit_cascade(logits, STACKER, THRESHOLD, COST, p).cost_share for p in (0.9, 0.98, 0.995, 0.999)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_groups_are_not_split():
    groups = np.arange(900) // 3
    learning, tested = parted(900, groups)
    assert not set(groups[learning]) & set(groups[tested])
    assert learning.size == 300


def test_the_same_seed_gives_the_same_cascade(logits, cascade):
    again, other = (fit_cascade(logits, STACKER, THRESHOLD, COST, 0.99, seed=seed) for seed in (0, 1))
    assert (again.order, again.margins, again.reached) == (cascade.order, cascade.margins, cascade.reached)
    for one, two in zip(again.imputation, cascade.imputation, strict=True):
        np.testing.assert_array_equal(one, two)
    assert other.margins != cascade.margins


# --- the edges --------------------------------------------------------------------------------------------------------


def test_one_member_under_one_view_is_evaluated(logits):
    one, stacker = logits[:, :1, :1], Stacker(("a",), (1.0,), 0.0)
    cascade = fit_cascade(one, stacker, THRESHOLD, [2.0])
    assert (cascade.order, cascade.margins, cascade.reached) == (((0, 0),), (0.0,), (1.0,))
    assert (cascade.cost_share, cascade.changed) == (1.0, 0.0)
    np.testing.assert_array_equal(cascade.impute(0, one), one)
    assert cascade.stops(0, one[:, 0, 0], THRESHOLD).all()


def test_a_member_without_spread_and_rows_all_alike(logits):
    constant = logits.copy()
    constant[:, 1] = 4.0
    cascade = fit_cascade(constant, STACKER, THRESHOLD, COST, 0.99)
    assert cascade.cost_share < 1 and [member for member, _ in cascade.order[-2:]] == [1, 1]
    alike = fit_cascade(np.ones((1_000, 3, 2)), STACKER, THRESHOLD, COST, 0.99)
    assert alike.reached == (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_two_rows_are_enough_to_run(logits):
    assert fit_cascade(logits[:2], STACKER, THRESHOLD, COST).cost_share == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": 0.5}, "probability must be in"),
        ({"probability": 1.0}, "probability must be in"),
        ({"probability": math.nan}, "probability must be in"),
        ({"cost": (1.0, 1.0)}, "finite cost above 0"),
        ({"cost": (1.0, 0.0, 1.0)}, "finite cost above 0"),
        ({"cost": (1.0, math.inf, 1.0)}, "finite cost above 0"),
        ({"views": np.zeros((10, 2, 2))}, "needs logits of shape"),
        ({"views": np.zeros((10, 3))}, "needs logits of shape"),
        ({"views": np.zeros((10, 3, 0))}, "needs logits of shape"),
        ({"views": np.full((10, 3, 2), np.nan)}, "must be finite; got 60"),
        ({"views": np.zeros((1, 3, 2))}, "two rows or groups"),
        ({"groups": [1, 2]}, "groups must have shape"),
        ({"groups": np.zeros(10)}, "two rows or groups"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message):
    given = {"views": np.zeros((10, 3, 2)), "cost": COST, "probability": 0.99} | change
    with pytest.raises(DataError, match=message):
        fit_cascade(given.pop("views"), STACKER, THRESHOLD, **given)


def test_logits_of_other_members_are_refused(cascade):
    with pytest.raises(DataError, match=r"needs logits of shape \(n, 3, 2\)"):
        cascade.impute(0, np.zeros((4, 2, 3)))


# --- the walk ---------------------------------------------------------------------------------------------------------


def walked(cascade, stacker, logits, threshold):
    """Walk images whose logits (n, m, v, k) are all known; return the walk, the cells it evaluated, and the stops."""
    walk = CascadeWalk(cascade, stacker, len(logits), logits.shape[3], threshold)
    evaluated, stopped = np.zeros(logits.shape[:3], bool), 0
    while walk.rows.size:
        member, view = walk.cell
        evaluated[walk.rows, member, view] = True
        stopped += walk.add(logits[walk.rows, member, view])
    return walk, evaluated, stopped


@pytest.mark.parametrize("threshold", [0.3, None])
def test_a_walk_stops_each_image_at_its_first_certain_stage(rng, threshold):
    signal = rng.normal(size=(6000, 1, 1))
    views = signal + 0.6 * rng.normal(size=(6000, 3, 2))
    stacker = Stacker(("a", "b", "c"), (0.5, 0.3, 0.2), 0.0)
    cascade = fit_cascade(views, stacker, 0.3, [1.0, 2.0, 4.0], 0.98)
    logits = rng.normal(size=(400, 1, 1, 1)) + 0.6 * rng.normal(size=(400, 3, 2, 4))
    walk, evaluated, stopped = walked(cascade, stacker, logits, threshold)
    last = len(cascade.order) - 1
    for row in range(400):  # by hand, one image and one stage at a time
        stage, known = last, logits[row : row + 1].mean(axis=3)
        if threshold is not None:
            for j in range(last):
                predicted = stacker.apply(cascade.impute(j, known).mean(axis=2))
                if cascade.stops(j, predicted, threshold)[0]:
                    stage = j
                    break
        assert walk.stopped[row] == stage
        assert {tuple(cell) for cell in np.argwhere(evaluated[row])} == set(cascade.order[: stage + 1])
        for fold in range(4):
            expected = cascade.impute(stage, logits[row : row + 1, :, :, fold])[0]
            np.testing.assert_array_equal(walk.logits()[row, :, :, fold], expected)
    assert stopped == np.count_nonzero(walk.stopped < last)
    assert (stopped > 50) == (threshold is not None)


def test_the_changed_labels_are_those_of_walking_with_the_threshold(rng):
    views = rng.normal(size=(6000, 1, 1)) + rng.normal(size=(6000, 2, 2))
    stacker = Stacker(("a", "b"), (0.5, 0.5), 0.0)
    cascade = fit_cascade(views, stacker, 0.0, [1.0, 1.0], 0.9)
    logits = rng.normal(size=(3000, 1, 1, 1)) + rng.normal(size=(3000, 2, 2, 1))
    walk, _, _ = walked(cascade, stacker, logits, 0.0)
    early = stacker.apply(walk.logits()[..., 0].mean(axis=2)) >= 0
    exact = stacker.apply(logits[..., 0].mean(axis=2)) >= 0
    changed = changed_labels(cascade, stacker, logits[..., 0], 0.0)
    assert changed == np.count_nonzero(early != exact) > 0
