from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr, Objective, WeightedError
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.threshold import above_all, below_all, fit_threshold, least_hter, midpoint
from ensemble.errors import ConfigError, DataError

few = st.integers(-5, 5).map(float)
close = st.integers(0, 6).map(lambda steps: float(np.float64(1.0) + steps * np.spacing(1.0)))
tiny = st.integers(-3, 6).map(lambda steps: steps * 5e-324)
huge = st.sampled_from([-1.7e308, -1e308, 0.0, 1e308, 1.7e308])
any_float = st.floats(-1.79e308, 1.79e308)  # above the greatest float no threshold can be


def sets(logit):
    row = st.tuples(logit, st.integers(0, 1))
    return st.tuples(logit, logit, st.lists(row, max_size=30)).map(
        lambda drawn: (
            np.array([drawn[0], drawn[1], *(x for x, _ in drawn[2])]),
            np.array([0, 1, *(y for _, y in drawn[2])], np.int8),
        )
    )


any_set = st.one_of(sets(few), sets(close), sets(huge), sets(any_float))


FORMS = (
    "hter",
    *("cost:1,1", "cost:5,1", "cost:1,9", "cost:2.5,1", "cost:0.1,0.3", "cost:1/3,1"),
    *("fpr:0", "fpr:0.1", "fpr:0.3", "fpr:1/3", "fpr:1", "fnr:0", "fnr:0.2", "fnr:0.3", "fnr:0.7", "fnr:1"),
)


def brute_force(x, y, form="hter"):
    """Return the key of the best cut and the logits beside it, by the letter of the rule, rates in exact fractions."""
    kind, _, rest = form.partition(":")
    numbers = [Fraction(part) for part in rest.split(",") if part]
    n_neg, n_pos = int((y == 0).sum()), int((y == 1).sum())
    values = sorted(set(x.tolist()))
    lowest = [-np.inf, *values]
    best = None
    for below, above in zip(lowest, [*values, np.inf], strict=True):
        fpr = Fraction(int(((x >= above) & (y == 0)).sum()), n_neg)
        fnr = Fraction(int(((x < above) & (y == 1)).sum()), n_pos)
        gap = above / 2 - below / 2  # compared in float64, like the rule; halves, for the huge ones
        if kind == "fpr":
            rates = (fpr > numbers[0], fnr, fpr)
        elif kind == "fnr":
            rates = (fnr > numbers[0], fpr, fnr)
        else:
            cost_fpr, cost_fnr = numbers or (1, 1)
            rates = (False, cost_fpr * fpr + cost_fnr * fnr, abs(fpr - fnr))
        key = (*rates, -gap)
        if best is None or key < best[0]:
            best = (key, below, above)
    return best


@settings(max_examples=600)
@given(any_set, st.sampled_from(FORMS))
def test_it_is_the_cut_that_brute_force_finds(drawn, form):
    x, y = drawn
    _, below, above = brute_force(x, y, form)
    threshold = fit_threshold(x, y, Objective.parse(form))
    assert np.isfinite(threshold)
    np.testing.assert_array_equal(apply_threshold(x, threshold), x >= above)
    if np.isfinite(below) and np.isfinite(above):
        assert below < threshold <= above


@pytest.mark.parametrize("form", ["hter", "cost:2.5,1", "fpr:0.3", "fnr:0.3"])
def test_of_a_thousand_random_sets_full_of_ties_each_cut_is_that_of_brute_force(form):
    rng, objective, ends = np.random.default_rng(7), Objective.parse(form), 0
    for _ in range(1000 if form == "hter" else 200):
        n = int(rng.integers(2, 61))
        y = np.concatenate([[0, 1], rng.random(n - 2) < rng.uniform(0.2, 0.9)]).astype(np.int8)
        x = rng.integers(0, rng.integers(1, 9), n) + y * rng.integers(0, 3) * 1.0
        _, below, above = brute_force(x, y, form)
        threshold = fit_threshold(x, y, objective)
        if np.isfinite(below) and np.isfinite(above):
            assert threshold == (below + above) / 2
        else:
            assert threshold == (above - 1 if np.isfinite(above) else below + 1)
            ends += 1
    assert ends > 0


@given(sets(tiny))
def test_subnormal_logits_are_separated_too(drawn):
    x, y = drawn
    (_, twice_hter, difference, _), _, _ = brute_force(x, y)
    found = error_rates(y, apply_threshold(x, fit_threshold(x, y)))
    assert found.fpr + found.fnr == pytest.approx(float(twice_hter))
    assert abs(found.fpr - found.fnr) == pytest.approx(float(difference))


@given(sets(few))
def test_thresholds_are_midpoints(drawn):
    x, y = drawn
    _, below, above = brute_force(x, y)
    assert fit_threshold(x, y) == ((below + above) / 2 if np.isfinite(below) else x.min() - 1)


@given(any_set, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(drawn, random):
    x, y = drawn
    order = random.sample(range(x.size), x.size)
    assert fit_threshold(x[order], y[order]) == fit_threshold(x, y)


@given(sets(few))
def test_swapping_labels_and_signs_swaps_the_rates(drawn):
    x, y = drawn
    before, after = (error_rates(b, apply_threshold(a, fit_threshold(a, b))) for a, b in ((x, y), (-x, 1 - y)))
    assert before.hter == pytest.approx(after.hter)
    assert abs(before.fpr - before.fnr) == pytest.approx(abs(after.fpr - after.fnr))
    cut = fit_threshold(x, y)  # never on a logit here: the midpoint of two integers, or one below
    if cut not in x:
        mirrored = error_rates(1 - y, apply_threshold(-x, -cut))
        assert (mirrored.fpr, mirrored.fnr) == (before.fnr, before.fpr)


@given(sets(few), st.sampled_from([0.25, 1.0, 8.0]), st.integers(-100, 100))
def test_an_increasing_affine_map_changes_no_call(drawn, scale, shift):
    x, y = drawn
    mapped = x * scale + shift
    np.testing.assert_array_equal(
        apply_threshold(mapped, fit_threshold(mapped, y)), apply_threshold(x, fit_threshold(x, y))
    )


def test_ties_go_to_the_widest_then_the_lowest_cut():
    assert fit_threshold([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]) == 0.5  # ties with 2.5 in all but height
    assert fit_threshold([0.0, 1.0, 2.0, 5.0], [0, 1, 0, 1]) == 3.5
    assert fit_threshold([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, 1, 0, 0, 1]) == 0.5


def test_the_smaller_difference_beats_the_wider_gap():
    x, y = [0.0, 1.0, 100.0, 101.0, 102.0, 103.0, 104.0, 105.0], [0, 0, 1, 0, 1, 1, 1, 0]
    assert fit_threshold(x, y) == 101.5  # FPR = FNR = 1/4; FPR 1/2, FNR 0 at 50.5 has the same HTER and a wider gap


def test_no_information_calls_everything_one():
    assert fit_threshold([2.0, 2.0, 2.0], [0, 1, 1]) == 1.0


def test_adjacent_floats_are_reported_apart():
    below, above = 1.0, np.nextafter(1.0, 2.0)
    assert fit_threshold([below, above], [0, 1]) == above


def test_bad_input_is_refused():
    with pytest.raises(
        DataError, match="cannot fit a threshold: HTER needs both classes; got 0 of label 0 in 240 images"
    ):
        fit_threshold(np.zeros(240), np.ones(240))
    with pytest.raises(DataError, match="1 of 2 that are not"):
        fit_threshold([np.nan, 1.0], [0, 1])


# --- objectives -------------------------------------------------------------------------------------------------------


@given(sets(few), st.sampled_from([form for form in FORMS if form[0] == "f"]))
def test_a_held_rate_is_held_exactly(drawn, form):
    x, y = drawn
    kind, rest = form.split(":")
    y_pred = apply_threshold(x, fit_threshold(x, y, Objective.parse(form)))
    wrong, of = (y_pred[y == 0], (y == 0).sum()) if kind == "fpr" else (1 - y_pred[y == 1], (y == 1).sum())
    assert Fraction(int(wrong.sum()), int(of)) <= Fraction(rest)


@pytest.mark.parametrize(("of", "counts"), [(10, range(11)), (100, range(101))])
def test_a_rate_that_is_a_whole_number_of_rows_is_used_to_the_full(of, counts):
    """0.29 * 100 is 29 only if the float stands for what was written."""
    x = np.concatenate([np.arange(of), np.arange(of) - 0.5])  # every cut more wins one row and costs one
    y = np.repeat([0, 1], of)

    def reached(form):
        return error_rates(y, apply_threshold(x, fit_threshold(x, y, Objective.parse(form))))

    for count in counts:
        assert reached(f"fpr:{count / of}").fpr == reached(f"fnr:{count / of}").fnr == count / of
        if count:
            assert reached(f"fpr:{count / of - 1e-6}").fpr == (count - 1) / of
    assert int(0.29 * 100) == 28


def test_a_third_of_three_is_one():
    x, y = np.array([0.0, 1.0, 2.0, 0.5, 1.5, 1.75]), np.array([0, 0, 0, 1, 1, 1])
    assert fit_threshold(x, y, Objective.parse("fpr:1/3")) == 1.25


def test_ties_at_a_held_rate_move_as_one():
    x, y = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 2.0]), np.array([0, 1, 0, 0, 1, 1])
    assert fit_threshold(x, y, Objective.parse("fpr:1/3")) == 1.5  # one of the two tied at 1 cannot be had alone
    assert fit_threshold(x, y, Objective.parse("fpr:2/3")) == 0.5


def test_of_cuts_with_the_same_free_rate_the_one_with_the_smallest_held_rate_is_taken():
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 0, 0, 1])
    assert fit_threshold(x, y, Objective.parse("fpr:1")) == 2.5
    assert fit_threshold(-x, 1 - y, Objective.parse("fnr:1")) == -2.5


def test_where_no_label_0_may_pass_and_the_highest_is_one_none_does():
    x, y = np.array([0.0, 1.0]), np.array([1, 0])
    assert fit_threshold(x, y, Objective.parse("fpr:0")) == 2.0
    assert fit_threshold(x, y, Objective.parse("fnr:0")) == -1.0


@pytest.mark.parametrize("highest", [0.0, 5e-324, 2.0**53, 1e17, 1.7e308, -1.7e308, -5e-324])
def test_a_cut_above_all_is_above_all(highest):
    below, lowest = np.nextafter(highest, -np.inf), -1.75e308
    threshold = fit_threshold([lowest, below, highest], [1, 1, 0], Objective.parse("fpr:0"))
    assert np.isfinite(threshold) and not apply_threshold([lowest, below, highest], threshold).any()
    assert threshold == above_all(highest)
    assert apply_threshold([highest], below_all(highest)).all()


def test_neighbours_have_no_number_between_them_and_the_upper_is_the_cut():
    for below in (0.0, 5e-324, -5e-324, 1.0, -1.7e308, 1.7e308):
        above = float(np.nextafter(below, np.inf))
        assert midpoint(below, above) == above
    assert midpoint(-1.7e308, 1.7e308) == 0
    assert above_all(np.finfo(float).max) == np.inf  # no float does it


@pytest.mark.parametrize(
    ("form", "objective", "text"),
    [
        ("hter", HTER, "hter"),
        (" hter ", HTER, "hter"),
        ("cost:3,3", HTER, "hter"),
        ("cost:2.5,1", WeightedError(5, 2), "cost:5,2"),
        ("cost: 10 , 4", WeightedError(5, 2), "cost:5,2"),
        ("cost:0.1,0.3", WeightedError(1, 3), "cost:1,3"),
        ("cost:1e6,1", WeightedError(10**6, 1), "cost:1000000,1"),
        ("fpr:0.01", BoundedFpr(0.01), "fpr:0.01"),
        ("fpr:0", BoundedFpr(0.0), "fpr:0"),
        ("fpr:1e-5", BoundedFpr(1e-5), "fpr:1e-05"),
        ("fnr:1", BoundedFnr(1.0), "fnr:1"),
        ("fnr:0.12345678901", BoundedFnr(0.12345678901), "fnr:0.12345678901"),
    ],
)
def test_an_objective_is_read_and_written(form, objective, text):
    assert Objective.parse(form) == objective
    assert objective.text == text
    assert Objective.parse(text) == objective


@given(
    st.one_of(
        st.builds(lambda a, b: f"cost:{a},{b}", st.integers(1, 10**6), st.integers(1, 10**6)),
        st.builds(lambda kind, rate: f"{kind}:{rate}", st.sampled_from(["fpr", "fnr"]), st.floats(0, 1)),
    )
)
def test_what_is_written_reads_the_same(form):
    objective = Objective.parse(form)
    assert Objective.parse(objective.text) == objective


@pytest.mark.parametrize(
    "form",
    [
        *("", "HTER", "hter:", "hter:1", "accuracy", "cost", "cost:", "cost:1", "cost:1,2,3", "cost:0,1", "cost:1,-1"),
        *("cost:a,b", "cost:1,", "cost:nan,1", "cost:inf,1", "cost:1e7,1", "cost:1,1e-7", "cost:1/0,1", "cost:1;2"),
        *("fpr", "fpr:", "fpr:-0.1", "fpr:1.1", "fpr:5%", "fpr:0.1,0.2", "fpr:nan", "fnr:2", "fnr:x", "fnr:1e9999999"),
        *("tpr:0.9", "fpr 0.1", "fpr=0.1"),
    ],
)
def test_what_is_no_objective_is_refused(form):
    with pytest.raises(ConfigError) as refused:
        Objective.parse(form)
    says = str(refused.value)
    assert says.startswith("objective: must be one of hter, cost:A,B (what an FPR and an FNR cost), fpr:R or fnr:R")
    assert says.endswith(f"got {form!r}")


def test_an_objective_says_what_it_does_and_what_it_loses():
    descriptions = {form: Objective.parse(form).description for form in ("hter", "cost:5,1", "fpr:0.01", "fnr:0.02")}
    assert descriptions == {
        "hter": "the least HTER",
        "cost:5,1": "the least weighted error (5 FPR + 1 FNR) / 6",
        "fpr:0.01": "the least FNR with FPR <= 0.01",
        "fnr:0.02": "the least FPR with FNR <= 0.02",
    }
    rates = error_rates([0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0])  # FPR 1/2, FNR 1/4
    losses = [Objective.parse(form).loss_of(rates) for form in descriptions]
    assert losses == pytest.approx([0.375, 2.75 / 6, 0.25, 0.5])


@given(sets(few), st.sampled_from(FORMS), st.randoms(use_true_random=False))
def test_no_objective_minds_the_order_of_rows(drawn, form, random):
    x, y = drawn
    order, objective = random.sample(range(x.size), x.size), Objective.parse(form)
    assert fit_threshold(x[order], y[order], objective) == fit_threshold(x, y, objective)


@given(sets(few))
def test_a_dearer_error_becomes_no_more_frequent(drawn):
    x, y = drawn
    fprs = [
        error_rates(y, apply_threshold(x, fit_threshold(x, y, WeightedError(cost, 10 - cost)))).fpr
        for cost in range(1, 10)
    ]
    assert fprs == sorted(fprs, reverse=True)


def test_least_hter_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(60) > 0.3).astype(np.int8)
    logits = np.round(labels + rng.normal(size=60), 1)
    cuts = [*np.unique(logits), np.inf]
    rates = [((logits[labels == 0] >= cut).mean() + (logits[labels == 1] < cut).mean()) / 2 for cut in cuts]
    assert least_hter(logits, labels) == pytest.approx(min(rates))
    assert least_hter(logits, np.ones(60, np.int8)) is None
