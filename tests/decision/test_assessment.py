import json
from dataclasses import replace

import numpy as np
import pytest
from by_hand import refitted_by_hand
from pydantic import TypeAdapter
from scipy.stats import beta, norm
from tiny import through_json

from ensemble.config import seed_sequence
from ensemble.data.folds import FoldTable, assign_folds
from ensemble.decision.assessment import (
    REPLICATES,
    Candidate,
    assess,
    compare_nested,
    member_report,
    nested_intervals,
    refit_differences,
)
from ensemble.decision.bootstrap import Resampler, design_effects
from ensemble.decision.comparison import Agreement, Difference
from ensemble.decision.cross_fitting import MAJORITY_VOTE, OofLogits, cross_fit, member_logit, of_score, stack
from ensemble.decision.decision import COSTS, Decision, fit_decision, stack_replicates
from ensemble.decision.intervals import FEW_ERRORS, Interval, chance_interval, counting_intervals, widened
from ensemble.decision.label_noise import bound_noise
from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr, Objective, WeightedError
from ensemble.decision.rates import apply_threshold, error_rates
from ensemble.decision.refits import FixedRule, RefitRule, refit_errors, refit_interval, refit_replicates
from ensemble.decision.stacker import STACKERS
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, DataError
from ensemble.runs import files

OBJECTIVES = [Objective.parse(form) for form in ("hter", "cost:2.5,1", "fpr:0.05", "fnr:0.1")]
by_text = {"ids": lambda objective: objective.text}


@pytest.fixture
def few_replicates(monkeypatch):
    """The bootstrap of the threshold, with fewer draws where no width is looked at."""
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 20)


@pytest.fixture
def quick(monkeypatch, few_replicates):
    """Nor a floor."""
    monkeypatch.setattr("ensemble.decision.decision.bound_noise", lambda logits, labels, seed: None)


def fewest_errors(rates):
    return round(min(rates.fpr * rates.n_neg, rates.fnr * rates.n_pos))


def reaching(interval, other):
    return Interval(min(interval.low, other.low), max(interval.high, other.high))


def assessed(oof, rule, objective=HTER, seed=0):
    return assess([Candidate.of("a", oof, rule, objective)], oof.groups, seed)[0]


def width(interval):
    return interval.high - interval.low


def test_a_member_without_information_does_not_beat_chance(make_oof, few_replicates):
    oof = make_oof(400, (1.0, 0.0))
    able, unable = assess([Candidate.of(name, oof, of_score(member_logit(j))) for j, name in enumerate(oof.members)])
    assert (able.name, unable.name) == oof.members
    assert able.beats_chance and not unable.beats_chance
    assert unable.chance_interval == chance_interval(unable.auc, 100, 300)
    assert unable.chance_interval.low < unable.auc < unable.chance_interval.high


# --- the decision -----------------------------------------------------------------------------------------------------


def test_the_stack_beats_its_members_and_carries_what_prediction_needs(make_oof, quick):
    oof = make_oof(2000)
    decision = fit_decision(oof, ("plain", "flip"))
    assert decision.nested.hter < min(member.nested.hter for member in decision.members)
    assert decision.interval.low < decision.nested.hter < decision.interval.high
    y_pred = apply_threshold(decision.stacker.apply(oof.logits), decision.threshold)
    assert error_rates(oof.labels, y_pred) == decision.apparent
    assert decision.optimism == decision.nested.hter - decision.apparent.hter
    assert [row.name for row in (decision.stacked, *decision.members, *decision.baselines)] == [
        "stack", "m0", "m1", "m2", "m0 at 0.5", "m1 at 0.5", "m2 at 0.5",
        "majority vote", "majority vote at 0.5",
    ]  # fmt: skip
    votes, majority = decision.votes(oof.logits)
    for j, member in enumerate(decision.members):
        assert error_rates(oof.labels, votes[:, j]) == member.apparent
    np.testing.assert_array_equal(majority, votes.sum(axis=1) >= 2)
    vote = next(row for row in decision.baselines if row.name == "majority vote")
    assert error_rates(oof.labels, majority) == vote.apparent


def test_where_nothing_is_fitted_nothing_is_flattered(make_oof, quick):
    decision = fit_decision(make_oof(), ())
    for row in decision.baselines:
        if row.name.endswith("at 0.5"):
            assert row.apparent == row.nested
            assert row.optimism == 0
            assert not row.refitted


def test_a_member_alone_is_as_it_is_in_the_decision_but_for_its_difference(make_oof, quick):
    oof = make_oof()
    alone = member_report("m1", oof.table, oof.logits[:, 1], seed=4)
    beside = fit_decision(oof, (), 4, stacker="mean").members[1]
    assert alone.refitted and beside.refitted
    assert alone.difference is None and beside.difference is not None
    assert replace(alone, difference=beside.difference) == beside
    assert sum(row.rates.n for row in alone.folds) == alone.nested.n == oof.labels.size


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES[::2], **by_text)
def test_intervals_are_those_of_replicates_of_the_fitted_or_of_the_kept_rule(make_oof, objective, grouped):
    few = objective != HTER  # an FPR of 5 % is 8 of 150 rows
    n = 600 if few else 1200
    oof = make_oof(n, groups=np.arange(n) // 4 if grouped else None)
    rule, given = of_score(member_logit(0)), of_score(member_logit(0), 0.3)
    candidates = [Candidate.of(name, oof, each, objective) for name, each in (("a", rule), ("b", given))]
    refitted, kept = assess(candidates, oof.groups, 5)
    assert (refitted.refitted, kept.refitted) == (True, False)
    nested, of_given = cross_fit(oof.rows, rule, objective), cross_fit(oof.rows, given, objective)
    drawn = list(
        refit_replicates(
            RefitRule(oof.logits[:, 0], oof.labels, nested.splits, objective), oof.labels, oof.groups, 5, REPLICATES
        )
    )
    weights = np.array([each.weights for each in drawn])
    for row, of, errors in (
        (refitted, nested, [each.errors for each in drawn]),
        (kept, of_given, FixedRule(of_given.y_pred, oof.labels).errors(weights)),
    ):
        assert row.nested == error_rates(oof.labels, of.y_pred)
        pair = row.nested.fpr, row.nested.fnr
        expected = tuple(refit_interval(pair, errors, each) for each in (BoundedFnr(1.0), BoundedFpr(1.0), HTER))
        effects = design_effects(oof.labels, of.y_pred, oof.groups)
        wide = widened(expected, row.nested, effects)
        counts = round(row.nested.fpr * row.nested.n_neg), round(row.nested.fnr * row.nested.n_pos)
        assert (wide != expected) == (min(np.divide(counts, effects)) < FEW_ERRORS)
        assert (row.fpr, row.fnr, row.interval) == wide  # whatever the objective
        assert nested_intervals(of, np.array(errors), oof.groups) == wide
        assert (row.auc, row.folds) == (of.auc, of.folds)
    assert (fewest_errors(refitted.nested) < FEW_ERRORS) == few
    blind = assessed(replace(oof, table=replace(oof.table, groups=None)), rule, objective, 5)
    assert (blind.interval != refitted.interval) == grouped


def test_an_interval_reaches_what_the_counts_of_few_errors_leave_open(make_oof, few_replicates):
    rule, wide = of_score(member_logit(0)), {}
    for n in (200, 4000):
        oof = make_oof(n)
        candidate = Candidate.of("a", oof, rule)
        (found,) = assess([candidate], seed=5)
        intervals = found.fpr, found.fnr, found.interval
        (errors,) = refit_errors([candidate.for_refits()], oof.labels, seed=5, replicates=20)
        pair = found.nested.fpr, found.nested.fnr
        alone = [refit_interval(pair, errors, of) for of in (BoundedFnr(1.0), BoundedFpr(1.0), HTER)]
        wide[n] = list(intervals) != alone
        if n == 200:
            for interval, counted in zip(intervals, counting_intervals(found.nested), strict=True):
                assert interval.low <= counted.low < counted.high <= interval.high
        assert (fewest_errors(found.nested) < FEW_ERRORS) == wide[n]
    assert wide == {200: True, 4000: False}


def test_of_few_errors_in_groups_the_interval_reaches_further(rng, few_replicates):
    """Each row four times, as one group: the counts are those of the groups."""
    labels = np.arange(240) % 8 > 0
    logits = np.where(labels, 3.0, -3.0) + rng.uniform(-1, 1, 240)
    four = np.repeat(np.arange(240), 4)
    once = FoldTable(np.arange(240), labels, np.arange(240) // 8 % 5)
    table = FoldTable(np.arange(960), labels[four], once.fold_of[four], four)
    one, blind, aware = (
        member_report("a", of, logits[rows])
        for of, rows in ((once, np.arange(240)), (replace(table, groups=None), four), (table, four))
    )
    for name in ("fpr", "fnr", "interval"):
        highs = [getattr(each, name).high for each in (one, blind, aware)]
        assert highs[2] == pytest.approx(highs[0]) and highs[1] < 0.4 * highs[0]


def test_rows_that_are_separated_perfectly_are_no_promise_of_no_error(rng):
    labels = np.arange(240) % 8 > 0  # 30 of label 0
    logits = np.where(labels, 3.0, -3.0) + rng.uniform(-1, 1, 240)
    report = member_report("a", FoldTable(np.arange(240), labels, np.arange(240) // 8 % 5), logits)
    assert report.nested.hter == report.apparent.hter == 0
    for interval, n in ((report.fpr, 30), (report.fnr, 210)):
        assert interval.low == 0
        assert interval.high == pytest.approx(beta.ppf(0.975, 0.5, n + 0.5), rel=0.1)  # Jeffreys
    assert report.interval.low == 0
    assert report.fpr.high / 3 < report.interval.high < (report.fpr.high + report.fnr.high) / 2


def test_of_few_rows_the_interval_holds_the_true_hter(monkeypatch):
    """A Gaussian member, whose true HTER at any threshold is known. The bootstrap alone would hold it in 3 of 4."""
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 60)
    labels, apart, held = np.arange(240) % 8 > 0, 2.3, []
    for seed in range(150):
        logits = np.random.default_rng(seed).normal(size=240) + apart * np.where(labels, 1, -1)
        report = member_report("a", FoldTable(np.arange(240), labels, np.arange(240) // 8 % 5), logits, seed=seed)
        true = (norm.sf(report.threshold + apart) + norm.cdf(report.threshold - apart)) / 2
        held.append(report.interval.low <= true <= report.interval.high)
    assert np.mean(held) >= 0.90


def test_where_the_threshold_is_hard_to_find_its_luck_widens_the_interval(make_oof):
    oof = make_oof(600, (0.6,))
    fitted = Candidate.of("a", oof, of_score(member_logit(0)))
    of_fitted, of_kept = assess([fitted, replace(fitted, fitted=False)])
    assert fewest_errors(of_fitted.nested) >= FEW_ERRORS
    assert width(of_fitted.interval) > 1.03 * width(of_kept.interval)


def test_apparent_flatters_and_nested_does_not_on_pure_noise(make_oof, quick):
    decisions = [fit_decision(make_oof(200, (0.0,) * 8), (), stacker="logistic") for _ in range(12)]
    assert np.mean([d.nested.hter for d in decisions]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([d.apparent.hter for d in decisions]) < 0.43
    assert all(d.optimism > 0 for d in decisions)


def test_one_member_is_an_ensemble(make_oof, quick):
    decision = fit_decision(make_oof(separations=(1.0,)), ("plain",))
    assert (decision.kind, decision.stackers) == ("mean", ())
    assert decision.threshold == decision.members[0].threshold
    assert decision.apparent == decision.members[0].apparent
    assert decision.nested == decision.members[0].nested
    assert [row.name for row in decision.baselines] == ["m0 at 0.5"]


def test_a_constant_member_stays_out_and_is_named(make_oof, quick):
    oof = make_oof()
    logits = oof.logits.copy()
    logits[:, 1] = 0.1 + oof.fold_of  # a constant of its own in each fold
    logits[oof.fold_of == 2, 2] = -1.5
    decision = fit_decision(replace(oof, logits=logits), ())
    assert decision.stacker.members == ("m0", "m2")
    assert [member.name for member in decision.members] == ["m0", "m1", "m2"]
    assert len(decision.member_thresholds) == 2
    assert decision.notes == (
        "member m1 gives the same logit to all images of folds 0, 1, 2, 3; it is left out of the stack unless "
        "--force-members m1 is given",
        "member m2 gives the same logit to all images of fold 2; it is still in the stack",
    )
    with pytest.raises(DataError, match="a member must vary"):
        fit_decision(replace(oof, logits=np.zeros_like(logits)), ())


@pytest.mark.parametrize("stacker", STACKERS)
def test_a_constant_member_that_is_forced_stays_in(make_oof, quick, stacker):
    oof = make_oof()
    logits = oof.logits.copy()
    logits[:, 1] = 0.5
    decision = fit_decision(replace(oof, logits=logits), (), stacker=stacker, forced=("m1",))
    assert decision.stacker.members == ("m0", "m1", "m2") and len(decision.member_thresholds) == 3
    (note,) = decision.notes
    assert note.endswith("folds 0, 1, 2, 3; it is still in the stack")
    with pytest.raises(DataError, match="a member must vary"):
        fit_decision(replace(oof, logits=np.zeros_like(logits)), (), forced=oof.members)


# --- what is beside the stack -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacker", STACKERS)
def test_every_kind_of_stacker_is_measured_and_one_is_deployed(make_oof, quick, stacker):
    oof = make_oof(400, (1.5, 0.3, 0.1))
    decision = fit_decision(oof, (), stacker=stacker)
    assert decision.kind == stacker
    assert [row.name for row in decision.stackers] == list(STACKERS)
    for row in decision.stackers:
        nested = cross_fit(oof.rows, stack(row.name))
        assert row.nested == error_rates(oof.labels, nested.y_pred)
        assert row.auc == nested.auc
    deployed = next(row for row in decision.stackers if row.name == decision.kind)
    assert replace(deployed, name="stack", difference=None) == decision.stacked
    assert deployed.difference == Difference(0.0, Interval(0.0, 0.0))
    fitted = STACKERS[decision.kind](oof.logits, oof.labels, oof.members)
    np.testing.assert_allclose(decision.stacker.weights, fitted.weights, rtol=1e-9)


def test_by_default_no_weight_of_the_stack_is_negative(make_oof, quick):
    oof = make_oof(400, (1.5, -0.5))
    decision = fit_decision(oof, ())
    assert decision.kind == "nonnegative" and min(decision.stacker.weights) == 0
    assert fit_decision(oof, (), stacker="logistic").stacker.weights[1] < 0


def test_differences_are_paired_with_the_stack_in_the_same_replicates(make_oof, quick):
    oof = make_oof(groups=np.arange(600) // 4)
    decision = fit_decision(oof, (), seed=3)
    rules = {
        "stack": stack("nonnegative"),
        "m1": of_score(member_logit(1)),
        "m2 at 0.5": of_score(member_logit(2), 0.0),
        "majority vote": MAJORITY_VOTE,
        "calibrated": stack("calibrated"),
    }
    rows = {row.name: row for row in (decision.stacked, *decision.members, *decision.baselines, *decision.stackers)}
    candidates = {name: Candidate.of(name, oof, rule) for name, rule in rules.items()}
    for name in list(rules)[1:]:
        pair = candidates["stack"], candidates[name]
        errors = refit_errors([each.for_refits() for each in pair], oof.labels, oof.groups, 3, 20)
        value = rows[name].nested.hter - decision.nested.hter
        losses = (errors[1] - errors[0]).mean(axis=1)  # of HTER
        low, high = np.quantile(losses - losses.mean(), [0.025, 0.975])
        difference = rows[name].difference
        assert difference.value == pytest.approx(value)
        assert (difference.interval.low, difference.interval.high) == pytest.approx((value - high, value - low))
        assert difference == refit_differences(decision.nested, rows[name].nested, errors[1] - errors[0])[2]
    assert decision.stacked.difference is None
    refitted = {name: rows[name].refitted for name in rules}
    assert refitted == {"stack": True, "m1": True, "m2 at 0.5": False, "majority vote": False, "calibrated": True}
    worse = rows["m2 at 0.5"].difference.interval  # far worse, and on the same rows: beyond chance
    assert 0 < worse.low < worse.high


# --- two rules --------------------------------------------------------------------------------------------------------


def with_folds(oof, fold_of):
    return replace(oof, table=replace(oof.table, fold_of=fold_of))


@pytest.mark.parametrize("by_group", [False, True])
def test_a_difference_is_that_of_refitting_both_sides_by_hand(make_oof, monkeypatch, by_group):
    """The sides have their own folds and objectives; one is fitted by hand in each of the replicates, and the other."""
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 60)
    oof = make_oof(80, (0.7, 0.5), groups=np.arange(80) // 4 if by_group else None)
    other, y = with_folds(oof, (np.arange(80) // 4 + 1) // 2 % 3), oof.labels
    a = Candidate.of("a", oof, of_score(member_logit(0)), Objective.parse("cost:2,1"))
    b = Candidate.of("b", other, stack("mean"))
    compared, errors, thresholds = compare_nested(a, b, oof.groups, 9), [], set()
    draws = Resampler(y, oof.groups).weights_of(np.random.default_rng(seed_sequence(9, "refit")))
    for _ in range(60):
        weights, of_sides = draws.draw(), []
        for side in (a, b):
            scores = side.deployed.score(side.logits)
            threshold, nested = refitted_by_hand(scores, y, side.nested.splits, weights, side.objective)
            thresholds.add(threshold)
            true = error_rates(y, apply_threshold(scores, threshold))
            of_sides.append((nested[0] - true.fpr, nested[1] - true.fnr))
        errors.append(np.subtract(of_sides[1], of_sides[0]))
    assert len(thresholds) > 10
    of_a, of_b = (error_rates(y, each.nested.y_pred) for each in (a, b))
    assert (compared.a.rates, compared.b.rates) == (of_a, of_b)
    fpr, fnr = np.array(errors).T
    for name, drawn in (("fpr", fpr), ("fnr", fnr), ("hter", (fpr + fnr) / 2)):
        value = getattr(of_b, name) - getattr(of_a, name)
        low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975])
        difference = getattr(compared, name)
        assert difference.value == pytest.approx(value, abs=1e-12)
        assert (difference.interval.low, difference.interval.high) == pytest.approx((value - high, value - low))


def test_two_rules_are_measured_each_as_by_itself(make_oof, few_replicates):
    oof = make_oof(groups=np.arange(600) // 4)
    rules = of_score(member_logit(0)), stack("mean")
    a, b = (Candidate.of("a", oof, rule) for rule in rules)
    compared = compare_nested(a, b, oof.groups, 4)
    for measured, rule in ((compared.a, rules[0]), (compared.b, rules[1])):
        alone = assessed(oof, rule, seed=4)
        assert (measured.rates, measured.fpr, measured.fnr) == (alone.nested, alone.fpr, alone.fnr)
        assert measured.hter == alone.interval
    assert compared.hter == assess([a, b], oof.groups, 4)[1].difference
    differ = a.nested.y_pred != b.nested.y_pred
    right = a.nested.y_pred == oof.labels
    assert compared.apart == len(set(oof.groups[differ].tolist())) < differ.sum()
    assert compare_nested(a, b, None, 4).apart == differ.sum()
    for label, agreement in enumerate(compared.agreement):
        rows = oof.labels == label
        cells = differ & right, differ & ~right, ~differ & right, ~differ & ~right
        assert agreement == Agreement(*(int((rows & cell).sum()) for cell in cells))


def test_a_rule_has_no_difference_from_itself(make_oof, few_replicates):
    oof = make_oof()
    candidate = Candidate.of("a", oof, stack("logistic"))
    compared = compare_nested(candidate, candidate)
    assert compared.fpr == compared.fnr == compared.hter == Difference(0.0, Interval(0.0, 0.0))
    assert compared.apart == 0 and not compared.beyond_chance


def test_groups_widen_a_difference(make_oof, rng, few_replicates, monkeypatch):
    monkeypatch.setattr("ensemble.decision.assessment.REPLICATES", 200)
    oof = make_oof(400, (1.0, 0.6))
    four = np.repeat(np.arange(400), 4)
    table = FoldTable(np.arange(1600), oof.labels[four], oof.fold_of[four], four)
    repeated = OofLogits(table, oof.members, oof.logits[four])
    once, blind, aware = (
        compare_nested(*(Candidate.of("a", of, of_score(member_logit(j))) for j in (0, 1)), groups)
        for of, groups in ((oof, None), (repeated, None), (repeated, four))
    )
    assert once.hter.value == aware.hter.value
    assert width(aware.hter.interval) == pytest.approx(width(once.hter.interval), rel=0.2)
    assert width(blind.hter.interval) < 0.7 * width(once.hter.interval)


def test_the_order_of_the_rows_does_not_matter_to_a_rule(make_oof, rng):
    oof = make_oof(120, groups=np.arange(120) // 4)
    order = rng.permutation(120)
    table = oof.table.reordered(order)
    given, moved = (
        Candidate.of("a", of, stack("mean")) for of in (oof, OofLogits(table, oof.members, oof.logits[order]))
    )
    turned = given.reordered(order)
    for one, other in ((turned.nested, moved.nested), *zip(turned.nested.splits, moved.nested.splits, strict=True)):
        np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(turned.nested.labels, table.labels)
    np.testing.assert_array_equal(turned.nested.y_pred, moved.nested.y_pred)
    assert turned.nested.folds == moved.nested.folds
    errors = [
        refit_errors([each.for_refits()], table.labels, table.groups, replicates=20)[0] for each in (turned, moved)
    ]
    np.testing.assert_array_equal(*errors)


def test_two_equally_good_members_seldom_differ_beyond_chance():
    """If the thresholds were kept, they would differ more often: the luck of each threshold would pass for a gain."""
    n, sets = 240, 150
    y = (np.arange(n) % 8 > 0).astype(np.int8)
    table, rule = FoldTable(np.arange(n), y, np.arange(n) // 8 % 5), of_score(member_logit(0))
    beyond = np.zeros(2)
    for seed in range(sets):
        x = np.random.default_rng(seed).normal(size=(n, 2)) + 1.2 * (2.0 * y[:, None] - 1)
        sides = [Candidate.of("a", OofLogits(table, ("a",), column[:, None]), rule) for column in x.T]
        rules = [side.for_refits() for side in (*sides, *(replace(side, fitted=False) for side in sides))]
        errors = refit_errors(rules, y, seed=seed, replicates=150)
        rates = [error_rates(y, side.nested.y_pred) for side in sides]
        for kept in (0, 1):
            interval = refit_differences(*rates, errors[2 * kept + 1] - errors[2 * kept])[2].interval
            beyond[kept] += not interval.low <= 0 <= interval.high
    assert beyond[0] / sets < 0.08 < beyond[1] / sets


# --- the curve and what else is stored --------------------------------------------------------------------------------


def test_the_curve_is_what_each_cost_gives_by_hand(make_oof, quick):
    oof = make_oof(300)
    decision = fit_decision(oof, (), stacker="logistic", objective=Objective.parse("fpr:0.05"))
    assert [row.cost_fpr for row in decision.curve] == list(range(1, 10))
    scores = decision.stacker.apply(oof.logits)

    def loss(cut):
        return 0.3 * np.mean(scores[oof.labels == 0] >= cut) + 0.7 * np.mean(scores[oof.labels == 1] < cut)

    row, values = decision.curve[2], np.unique(scores)
    cuts = [values[0] - 1, *(values[1:] + values[:-1]) / 2, values[-1] + 1]
    assert loss(row.threshold) == pytest.approx(min(map(loss, cuts)))
    false = np.zeros(2)
    for fold in oof.folds:
        inside = oof.fold_of == fold
        stacker = STACKERS["logistic"](oof.logits[~inside], oof.labels[~inside], oof.members)
        x = stacker.apply(oof.logits)
        threshold = fit_threshold(x[~inside], oof.labels[~inside], WeightedError(3, 7))
        labels, y_pred = oof.labels[inside], x[inside] >= threshold
        false += (y_pred & (labels == 0)).sum(), (~y_pred & (labels == 1)).sum()
    assert row.rates.fpr == false[0] / row.rates.n_neg
    assert row.rates.fnr == false[1] / row.rates.n_pos
    assert row.loss == pytest.approx(0.3 * row.rates.fpr + 0.7 * row.rates.fnr)

    thresholds = [row.threshold for row in decision.curve]
    assert thresholds == sorted(thresholds)  # the dearer a false 1, the higher
    assert [row.threshold for row in decision.curve] == [fit_threshold(scores, oof.labels, cost) for cost in COSTS]


def test_the_middle_of_the_curve_is_the_decision(make_oof, quick):
    decision = fit_decision(make_oof(), ())
    middle = decision.curve[4]
    assert (middle.cost_fpr, middle.threshold) == (5, decision.threshold)
    assert middle.rates == decision.nested
    assert middle.loss == decision.nested.hter


@pytest.mark.parametrize("objective", OBJECTIVES, **by_text)
def test_the_objective_is_passed_through(make_oof, quick, objective):
    oof = make_oof(400)
    decision = fit_decision(oof, (), objective=objective)
    assert decision.objective == objective
    assert decision.threshold == fit_threshold(decision.stacker.apply(oof.logits), oof.labels, objective)
    for j, member in enumerate(decision.members):
        assert member.threshold == fit_threshold(oof.logits[:, j], oof.labels, objective)
    for row in (decision.stacked, *decision.members, *decision.stackers):
        assert row.apparent.fpr <= getattr(objective, "max_fpr", 1)
        assert row.apparent.fnr <= getattr(objective, "max_fnr", 1)
    best = objective.loss_of(fit_decision(oof, (), stacker=decision.kind).apparent)
    if isinstance(objective, WeightedError):
        assert objective.loss_of(decision.apparent) <= best
    assert decision.nested == error_rates(oof.labels, cross_fit(oof.rows, stack("nonnegative"), objective).y_pred)


def test_a_nested_rate_is_near_the_one_that_is_held(make_oof, quick):
    decision = fit_decision(make_oof(8000), (), objective=Objective.parse("fpr:0.05"))
    assert decision.apparent.fpr <= 0.05
    assert decision.nested.fpr == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("objective", OBJECTIVES[:3], **by_text)
def test_the_replicates_of_a_stored_decision_are_those_of_its_interval(make_oof, quick, objective):
    for n, groups in ((400, None), (4000, None), (4000, np.arange(4000) // 4)):
        oof = make_oof(n, groups=groups)
        decision = through_json(fit_decision(oof, (), 6, objective, "mean"))
        errors = [each.errors for each in stack_replicates(decision, oof, 6, 20)]
        expected = refit_interval((decision.nested.fpr, decision.nested.fnr), errors, HTER)
        assert (fewest_errors(decision.nested) < FEW_ERRORS) == (n == 400)
        if n == 400:
            expected = reaching(expected, counting_intervals(decision.nested)[2])
        assert decision.interval == expected


def test_repeats_are_nested_estimates_over_other_partitions(make_oof, quick):
    groups = np.arange(600) // 4  # of one row of label 0 and three of label 1
    oof = make_oof(groups=groups)
    partitions = []

    def seen(labels, units, k, seed):
        folds = assign_folds(labels, units, k, seed)
        partitions.append(folds.fold_of)
        return folds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.data.folds.assign_folds", seen)
        decision = fit_decision(oof, (), stacker="mean", repeats=4, seed=8)
    assert len(decision.repeated) == len(set(decision.repeated)) == 4
    # The first partition is the one by which a deviating fold model is found.
    for fold_of, hter in zip(partitions[1:], decision.repeated, strict=True):
        assert len(np.unique(fold_of)) == len(oof.folds)
        assert all(len(np.unique(fold_of[groups == group])) == 1 for group in range(150))
        y_pred = cross_fit(replace(oof.rows, all_folds_of=fold_of), stack("mean")).y_pred
        assert hter == error_rates(oof.labels, y_pred).hter
    assert np.mean(decision.repeated) == pytest.approx(decision.nested.hter, abs=0.03)
    assert fit_decision(oof, (), stacker="mean", repeats=4, seed=8) == decision
    assert fit_decision(oof, (), stacker="mean", repeats=2, seed=8).repeated == decision.repeated[:2]
    assert fit_decision(oof, (), stacker="mean", repeats=4, seed=9).repeated != decision.repeated
    assert fit_decision(oof, (), stacker="mean").repeated == ()


def test_the_label_noise_of_a_single_member_is_bounded_by_its_nested_scores(make_oof, few_replicates):
    oof = make_oof(400, (1.0,))
    decision = fit_decision(oof, (), seed=2)
    assert decision.noise is not None
    assert decision.noise == bound_noise(cross_fit(oof.rows, stack("mean")).margins, None, oof.labels)
    assert fit_decision(make_oof(100), ()).noise is None


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, **by_text)
def test_json_keeps_every_bit(make_oof, quick, objective):
    oof = make_oof(400)
    decision = fit_decision(oof, ("plain", "flip"), 1, objective, "nonnegative", repeats=2)
    decision = replace(decision, noise=bound_noise(np.linspace(-3, 3, 400), None, oof.labels))
    assert decision.noise is not None and decision.curve and decision.stackers and decision.repeated
    assert through_json(decision) == decision
    for row in (decision.stacked, decision.members[0]):  # one with a difference, one without
        assert through_json(row) == row


def test_a_rate_of_many_digits_is_kept(make_oof, quick):
    objective = BoundedFpr(0.1234567890123)
    decision = fit_decision(make_oof(100), (), objective=objective)
    assert through_json(decision).objective == objective


@pytest.fixture(scope="module")
def stored():
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 2
    logits = rng.normal(size=(200, 2)) + labels[:, None]
    oof = OofLogits(FoldTable(np.arange(200), labels, np.arange(200) // 2 % 2), ("a", "b"), logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.decision.assessment.REPLICATES", 20)
        return TypeAdapter(Decision).dump_python(fit_decision(oof, (), stacker="mean"), mode="json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.pop("stacker"),
        lambda stored: stored.pop("kind"),
        lambda stored: stored.pop("curve"),
        lambda stored: stored.update(objective="accuracy"),
        lambda stored: stored.update(objective=None),
        lambda stored: stored.update(noise={"rates": {}}),
        lambda stored: stored["curve"][0].pop("rates"),
        lambda stored: stored["stackers"][0].pop("refitted"),
        lambda stored: stored["stackers"][0]["difference"].pop("value"),
        lambda stored: stored["stacker"]["weights"].pop(),
        lambda stored: stored["stacked"]["apparent"].pop("fpr"),
        lambda stored: stored["members"].pop(),
        lambda stored: stored.update(views=None),
    ],
)
def test_a_damaged_decision_is_refused(stored, damage, tmp_path):
    path = tmp_path / "decision.json"
    files.write_json(path, stored)
    assert files.read_json(path, Decision, "fit it").kind == "mean"
    damaged = json.loads(json.dumps(stored))
    damage(damaged)
    files.write_json(path, damaged)
    with pytest.raises(ArtifactError, match=r"decision\.json: is damaged .*; fit it"):
        files.read_json(path, Decision, "fit it")


def test_a_decision_of_an_earlier_version_is_read(stored, tmp_path):
    """It names the requested kind of stacker, which may have been a choice among all of them."""
    path = tmp_path / "decision.json"
    files.write_json(path, stored)
    expected = files.read_json(path, Decision, "fit it")
    assert "chosen" not in stored
    files.write_json(path, {"kind": stored["kind"], "chosen": "auto", **stored})
    assert files.read_json(path, Decision, "fit it") == expected


def test_it_is_deterministic(make_oof, quick):
    oof = make_oof(400)
    decision = fit_decision(oof, (), seed=2, stacker="logistic")
    assert fit_decision(oof, (), seed=2, stacker="logistic") == decision
    other = fit_decision(oof, (), seed=3, stacker="logistic")
    assert (other.stacker, other.nested, other.curve) == (decision.stacker, decision.nested, decision.curve)
    assert other.interval != decision.interval


# --- a new set --------------------------------------------------------------------------------------------------------


def test_the_promise_for_a_new_set_widens_as_it_shrinks(make_oof, quick):
    stacked = fit_decision(make_oof(2000), ()).stacked
    widths = [i.high - i.low for i in map(stacked.new_set_interval, (100, 1000, 100_000))]
    assert widths[0] > widths[1] > widths[2] > 0.95 * (stacked.interval.high - stacked.interval.low)
    assert stacked.new_set_interval(2).high > 0
