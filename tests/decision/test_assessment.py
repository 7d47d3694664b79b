import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.stats import beta, norm
from tiny import through_json

from ensemble.data.folds import FoldTable, assign_folds
from ensemble.decision.assessment import FEW_ERRORS, REPLICATES, assess, member_report
from ensemble.decision.comparison import compare_predictions, measure_predictions
from ensemble.decision.cross_fitting import MAJORITY_VOTE, OofLogits, cross_fit, member_logit, of_score, stack
from ensemble.decision.decision import COSTS, Decision, fit_decision, stack_replicates
from ensemble.decision.intervals import Interval, chance_interval, counting_intervals
from ensemble.decision.label_noise import estimate_floor
from ensemble.decision.objective import HTER, BoundedFnr, BoundedFpr, Objective, WeightedError
from ensemble.decision.rates import apply_threshold, auc, error_rates
from ensemble.decision.refits import refit_interval, refit_replicates
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
    monkeypatch.setattr("ensemble.decision.decision.estimate_floor", lambda logits, labels, seed: None)


def fewest_errors(rates):
    return round(min(rates.fpr * rates.n_neg, rates.fnr * rates.n_pos))


def reaching(interval, other):
    return Interval(min(interval.low, other.low), max(interval.high, other.high))


def test_a_member_without_information_does_not_beat_chance(make_oof, few_replicates):
    oof = make_oof(400, (1.0, 0.0))
    able, unable = (assess(name, oof, of_score(member_logit(j))) for j, name in enumerate(oof.members))
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


def test_a_member_alone_is_as_it_is_in_the_decision_but_for_its_interval(make_oof, quick):
    """In its own report the threshold is fitted anew; beside the stack the calls are kept and compared."""
    oof = make_oof()
    alone = member_report("m1", oof.table, oof.logits[:, 1], seed=4)
    beside = fit_decision(oof, (), 4, stacker="mean").members[1]
    assert alone.refitted and not beside.refitted
    assert alone.difference is None and beside.difference is not None
    own = {name: getattr(beside, name) for name in ("fpr", "fnr", "interval", "refitted", "difference")}
    assert replace(alone, **own) == beside
    assert sum(row.rates.n for row in alone.folds) == alone.nested.n == oof.labels.size


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES[::2], **by_text)
def test_intervals_are_those_of_replicates_or_of_the_calls(make_oof, objective, grouped):
    few = objective != HTER  # an FPR of 5 % is 8 of 150 rows
    n = 600 if few else 1200
    oof = make_oof(n, groups=np.arange(n) // 4 if grouped else None)
    rule = of_score(member_logit(0))
    nested = cross_fit(oof.rows, rule, objective)
    refitted, kept = (assess("a", oof, rule, objective, 5, refit) for refit in (True, False))
    pair = refitted.nested.fpr, refitted.nested.fnr
    x = oof.logits[:, 0]
    drawn = refit_replicates(x, oof.labels, nested.splits, oof.groups, objective, 5, REPLICATES)
    errors = [each.errors for each in drawn]
    expected = [refit_interval(pair, errors, of) for of in (BoundedFnr(1.0), BoundedFpr(1.0), HTER)]
    assert (fewest_errors(refitted.nested) < FEW_ERRORS) == few
    if few:
        counted = counting_intervals(refitted.nested)
        expected = [reaching(*both) for both in zip(expected, counted, strict=True)]
    assert [refitted.fpr, refitted.fnr, refitted.interval] == expected  # whatever the objective
    measured = measure_predictions(oof.labels, nested.y_pred, oof.groups, 5)
    assert (kept.fpr, kept.fnr, kept.interval) == (measured.fpr, measured.fnr, measured.hter)
    assert (kept.nested, kept.apparent, kept.folds) == (refitted.nested, refitted.apparent, refitted.folds)
    assert kept.auc == auc(nested.scores, oof.labels)
    blind = assess("a", replace(oof, table=replace(oof.table, groups=None)), rule, objective, 5, True)
    assert (blind.interval != refitted.interval) == grouped


def test_an_interval_reaches_what_the_counts_of_few_errors_leave_open(make_oof, few_replicates):
    rule, widened = of_score(member_logit(0)), {}
    for n in (200, 4000):
        oof = make_oof(n)
        found = assess("a", oof, rule, seed=5, refit=True)
        intervals = found.fpr, found.fnr, found.interval
        nested = cross_fit(oof.rows, rule)
        drawn = refit_replicates(oof.logits[:, 0], oof.labels, nested.splits, seed=5, replicates=20)
        pair, errors = (found.nested.fpr, found.nested.fnr), [each.errors for each in drawn]
        alone = [refit_interval(pair, errors, of) for of in (BoundedFnr(1.0), BoundedFpr(1.0), HTER)]
        widened[n] = list(intervals) != alone
        if n == 200:
            for interval, counted in zip(intervals, counting_intervals(found.nested), strict=True):
                assert interval.low <= counted.low < counted.high <= interval.high
        assert (fewest_errors(found.nested) < FEW_ERRORS) == widened[n]
    assert widened == {200: True, 4000: False}


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
    oof = make_oof(400, (0.6,))
    rule, widths = of_score(member_logit(0)), []
    for refit in (False, True):
        interval = assess("a", oof, rule, refit=refit).interval
        widths.append(interval.high - interval.low)
    assert widths[1] > 1.03 * widths[0]


def test_apparent_flatters_and_nested_does_not_on_pure_noise(make_oof, quick):
    decisions = [fit_decision(make_oof(200, (0.0,) * 8), (), stacker="logistic") for _ in range(12)]
    assert np.mean([d.nested.hter for d in decisions]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([d.apparent.hter for d in decisions]) < 0.43
    assert all(d.optimism > 0 for d in decisions)


def test_one_member_is_an_ensemble(make_oof, quick):
    decision = fit_decision(make_oof(separations=(1.0,)), ("plain",))
    assert (decision.kind, decision.chosen, decision.stackers) == ("mean", "auto", ())
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


@pytest.mark.parametrize("stacker", ["auto", *STACKERS])
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


@pytest.mark.parametrize("stacker", ["auto", *STACKERS])
def test_every_kind_of_stacker_is_measured_and_one_is_deployed(make_oof, quick, stacker):
    oof = make_oof(400, (1.5, 0.3, 0.1))
    decision = fit_decision(oof, (), stacker=stacker)
    assert decision.chosen == stacker
    assert decision.kind == (stacker if stacker != "auto" else decision.kind) in STACKERS
    assert [row.name for row in decision.stackers] == list(STACKERS)
    for row in decision.stackers:
        nested = cross_fit(oof.rows, stack(row.name))
        assert row.nested == error_rates(oof.labels, nested.y_pred)
        assert row.auc == auc(nested.scores, oof.labels)
    deployed = next(row for row in decision.stackers if row.name == decision.kind)
    assert deployed.apparent == decision.apparent
    assert deployed.threshold == decision.threshold
    if stacker != "auto":
        assert deployed.nested == decision.nested
        assert deployed.difference.value == 0
    fitted = STACKERS[decision.kind](oof.logits, oof.labels, oof.members)
    np.testing.assert_allclose(decision.stacker.weights, fitted.weights, rtol=1e-9)


def test_with_auto_the_nested_estimate_makes_the_choice_anew(make_oof, quick):
    oof = make_oof(400, (1.0, 0.9, 0.7))
    decision = fit_decision(oof, ())
    assert decision.nested == error_rates(oof.labels, cross_fit(oof.rows, stack("auto")).y_pred)


def test_differences_are_paired_with_the_stacks_calls(make_oof, quick):
    oof = make_oof(groups=np.arange(600) // 4)
    decision = fit_decision(oof, (), seed=3)
    stacked = cross_fit(oof.rows, stack("auto")).y_pred
    rules = {
        "m1": of_score(member_logit(1)),
        "m2 at 0.5": of_score(member_logit(2), 0.0),
        "majority vote": MAJORITY_VOTE,
        "calibrated": stack("calibrated"),
    }
    rows = {row.name: row for row in (decision.stacked, *decision.members, *decision.baselines, *decision.stackers)}
    for name, rule in rules.items():
        y_pred = cross_fit(oof.rows, rule).y_pred
        assert rows[name].difference == compare_predictions(oof.labels, stacked, y_pred, oof.groups, 3).hter
        assert rows[name].difference.value == pytest.approx(rows[name].nested.hter - decision.nested.hter)
    assert decision.stacked.difference is None and decision.stacked.refitted
    worse = rows["m2 at 0.5"].difference.interval  # far worse, and on the same rows: beyond chance
    assert 0 < worse.low < worse.high


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
    assert decision.nested == error_rates(oof.labels, cross_fit(oof.rows, stack("auto"), objective).y_pred)


def test_a_nested_rate_is_near_the_one_that_is_held(make_oof, quick):
    decision = fit_decision(make_oof(8000), (), objective=Objective.parse("fpr:0.05"))
    assert decision.apparent.fpr <= 0.05
    assert decision.nested.fpr == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("objective", OBJECTIVES[:3], **by_text)
def test_the_replicates_of_a_stored_decision_are_those_of_its_interval(make_oof, quick, objective):
    for n in (400, 4000):
        oof = make_oof(n)
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
    for fold_of, hter in zip(partitions, decision.repeated, strict=True):
        assert len(np.unique(fold_of)) == len(oof.folds)
        assert all(len(np.unique(fold_of[groups == group])) == 1 for group in range(150))
        y_pred = cross_fit(replace(oof.rows, fold_of=fold_of), stack("mean")).y_pred
        assert hter == error_rates(oof.labels, y_pred).hter
    assert np.mean(decision.repeated) == pytest.approx(decision.nested.hter, abs=0.03)
    assert fit_decision(oof, (), stacker="mean", repeats=4, seed=8) == decision
    assert fit_decision(oof, (), stacker="mean", repeats=2, seed=8).repeated == decision.repeated[:2]
    assert fit_decision(oof, (), stacker="mean", repeats=4, seed=9).repeated != decision.repeated
    assert fit_decision(oof, (), stacker="mean").repeated == ()


def test_the_floor_is_that_of_the_nested_scores(make_oof, few_replicates):
    oof = make_oof(400)
    decision = fit_decision(oof, (), seed=2)
    assert decision.floor is not None
    assert decision.floor == estimate_floor(cross_fit(oof.rows, stack("auto")).scores, oof.labels, 2)
    assert fit_decision(make_oof(100), ()).floor is None


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, **by_text)
def test_json_keeps_every_bit(make_oof, quick, objective):
    oof = make_oof(400)
    decision = fit_decision(oof, ("plain", "flip"), 1, objective, "nonnegative", repeats=2)
    decision = replace(decision, floor=estimate_floor(np.linspace(-3, 3, 400), oof.labels, replicates=5))
    assert decision.floor is not None and decision.curve and decision.stackers and decision.repeated
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
        lambda stored: stored.pop("floor"),
        lambda stored: stored.update(objective="accuracy"),
        lambda stored: stored.update(objective=None),
        lambda stored: stored.update(floor={"confident": {}}),
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
