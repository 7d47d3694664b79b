"""The decision among several classes: refits by hand, intervals, differences, votes, and the file of a decision."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.data.folds import FoldTable, assign_folds
from ensemble.decision import class_assessment, class_decision, class_offsets
from ensemble.decision.assessment import Candidate, deviation_note
from ensemble.decision.bootstrap import LEAST_GROUPS, Resampler, class_design_effects, design_effects
from ensemble.decision.class_assessment import (
    assess_classes,
    compare_class_nested,
)
from ensemble.decision.class_comparison import ClassMeasured, class_widened, measure_classes
from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.class_intervals import class_counting_intervals
from ensemble.decision.class_objective import DESCRIPTIONS, ClassObjective
from ensemble.decision.class_offsets import fit_offsets
from ensemble.decision.class_refits import ClassFixedRule, ClassRefitRule, confusions, measures
from ensemble.decision.class_stacker import CLASS_STACKERS
from ensemble.decision.comparison import Difference
from ensemble.decision.cross_fitting import (
    OofLogits,
    cross_fit,
    member_logit,
    of_score,
    plurality_vote,
    stack,
)
from ensemble.decision.decision import fit_decision
from ensemble.decision.intervals import Interval
from ensemble.decision.objective import Objective
from ensemble.decision.rates import apply_offsets, class_rates
from ensemble.errors import ConfigError, DataError
from ensemble.runs.files import read_json, write_json

OBJECTIVES = [ClassObjective(kind) for kind in DESCRIPTIONS]
of_kind = {"ids": lambda objective: objective.kind}


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch):
    monkeypatch.setattr(class_assessment, "REPLICATES", 12)


@pytest.fixture
def make(rng):
    """Return OOF logits of three members in classes with shares 5 : 3 : 2, with groups of `group` rows."""

    def make(n=300, group=1, folds=3, separations=(1.5, 1.0, 0.5)):
        kinds = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
        labels = np.repeat(rng.permutation(np.resize(kinds, n // group)), group).astype(np.int8)
        units = np.arange(n) // group
        logits = rng.normal(size=(n, len(separations), 3)) + rng.normal(size=(n // group, 1, 3))[units]
        logits += np.array(separations)[:, None] * np.eye(3)[labels][:, None]
        table = FoldTable(
            np.arange(n).astype(str),
            labels,
            assign_folds(labels, units, folds, 1).fold_of,
            units if group > 1 else None,
        )
        return OofLogits(table, tuple(f"m{j}" for j in range(len(separations))), logits)

    return make


# --- draws of rows ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=40), st.booleans())
def test_the_draws_of_two_classes_are_those_of_the_three_strata(drawn, grouped):
    labels, groups = (np.array(column) for column in zip(*drawn, strict=True))
    labels = labels.astype(np.int8)
    weights = Resampler(labels, groups if grouped else None).weights_of(np.random.default_rng(3))
    units = np.unique(groups, return_inverse=True)[1] if grouped else np.arange(labels.size)
    strata = np.array([sum({1 << label for label in labels[units == u]}) for u in range(units.max() + 1)])
    rng = np.random.default_rng(3)
    for _ in range(3):
        expected = np.empty(strata.size)
        for stratum in (1, 2, 3):
            (inside,) = np.nonzero(strata == stratum)
            if inside.size:
                expected[inside] = np.bincount(rng.integers(0, inside.size, inside.size), minlength=inside.size)
        np.testing.assert_array_equal(weights.draw(), expected[units])


def test_each_set_of_classes_keeps_its_number_of_groups_and_rare_sets_share_one_stratum(rng):
    sets = [(0,)] * 6 + [(1,)] * 4 + [(0, 1)] * 28 + [(1, 2)] * 27 + [(0, 2)] * 3 + [(0, 1, 2)] * (LEAST_GROUPS - 1)
    labels = np.concatenate(sets).astype(np.int8)
    groups = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
    weights = Resampler(labels, groups).weights_of(rng)
    first = np.searchsorted(groups, np.arange(len(sets)))
    of_rare = []
    for _ in range(50):
        drawn = weights.draw()
        assert (drawn == drawn[first][groups]).all()  # whole groups
        counts = [drawn[first[[s == each for s in sets]]].sum() for each in dict.fromkeys(sets)]
        assert counts[:4] == [6, 4, 28, 27] and sum(counts[4:]) == 3 + LEAST_GROUPS - 1
        of_rare.append(counts[4])
    assert len(set(of_rare)) > 1


def test_design_effects_of_two_classes_are_the_first_two_and_of_equal_rows_the_size_of_the_group(rng):
    labels, y_pred = rng.integers(0, 2, 200).astype(np.int8), rng.integers(0, 2, 200).astype(np.int8)
    groups = rng.integers(0, 40, 200)
    assert class_design_effects(labels, y_pred, groups, 2) == design_effects(labels, y_pred, groups)
    labels, y_pred = np.repeat([0, 1, 2], 40).astype(np.int8), np.repeat(rng.integers(0, 3, 24), 5).astype(np.int8)
    np.testing.assert_allclose(class_design_effects(labels, y_pred, np.arange(120) // 5, 3), 5)
    assert class_design_effects(labels, y_pred, None, 3) == (1, 1, 1)
    assert class_design_effects(labels, np.zeros(120, np.int8), np.arange(120) // 5, 4)[3] == 1


# --- refits -----------------------------------------------------------------------------------------------------------


def test_measures_are_those_of_the_rates(rng):
    labels = np.concatenate([np.arange(4), rng.integers(0, 4, 50)])
    y_pred = rng.integers(0, 3, 54)  # nothing is predicted as the last class
    rates = class_rates(labels, y_pred, 4)
    found = measures(confusions(labels.astype(np.int8), y_pred, 4, np.ones((1, 54))))[0]
    expected = [*rates.errors, *(1 - p for p in rates.precisions), rates.mean_error, 1 - rates.macro_f1]
    np.testing.assert_allclose(found, [*expected, 1 - rates.accuracy], atol=1e-15)


@pytest.mark.parametrize("objective", OBJECTIVES, **of_kind)
def test_a_refit_is_that_of_the_drawn_rows_by_hand(make, rng, objective, monkeypatch):
    """With as many visits as a fit has, the refitted offsets are those of a fit from the same offsets."""
    monkeypatch.setattr(class_offsets, "REFIT_ROUNDS", class_offsets.MOST_ROUNDS)
    oof = make(120)
    scores = oof.logits[:, 0]
    offsets = fit_offsets(scores, oof.labels, objective)
    nested = cross_fit(oof.rows, of_score(member_logit(0)), objective)
    rule = ClassRefitRule(lambda: scores, oof.labels, offsets, nested.splits, objective)
    fixed = ClassFixedRule(nested.y_pred, oof.labels, 3)
    for _ in range(8):
        weights = rng.poisson(1.0, 120)
        weights[:10] += 1
        rows = np.repeat(np.arange(120), weights)
        deployed = fit_offsets(scores, oof.labels, objective, offsets, weights)
        y_pred = np.empty(120, np.int8)
        for split in nested.splits:
            of_fold = np.where(split.inside, 0, weights)
            y_pred[split.inside] = apply_offsets(
                scores[split.inside], fit_offsets(scores, oof.labels, objective, split.threshold, of_fold)
            )
        of_drawn = class_rates(oof.labels[rows], y_pred[rows], 3)
        of_all = class_rates(oof.labels, apply_offsets(scores, deployed), 3)
        found, of_nested, true = rule.refit(weights.astype(float))
        assert found == deployed
        np.testing.assert_allclose(of_nested[:3], of_drawn.errors, atol=1e-12)
        np.testing.assert_allclose(true[-3:], (of_all.mean_error, 1 - of_all.macro_f1, 1 - of_all.accuracy), atol=1e-12)
        (error,) = rule.errors(weights[None].astype(float))
        np.testing.assert_array_equal(error, of_nested - true)
        (error,) = fixed.errors(weights[None].astype(float))
        kept = class_rates(oof.labels[rows], nested.y_pred[rows], 3)
        expected = kept.mean_error - class_rates(oof.labels, nested.y_pred, 3).mean_error
        assert error[-3] == pytest.approx(expected, abs=1e-12)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*CLASS_STACKERS, "member", "vote"])
def test_a_fold_is_predicted_by_a_rule_that_never_saw_it(make, kind):
    rule = {"member": of_score(member_logit(1)), "vote": plurality_vote(3)}.get(kind) or stack(kind)
    oof = make(150)
    honest = cross_fit(oof.rows, rule, ClassObjective())
    for fold in oof.folds:
        inside = oof.fold_of == fold
        labels, logits = oof.labels.copy(), oof.logits.copy()
        labels[inside] = (labels[inside] + 1) % 3
        changed = replace(oof, table=replace(oof.table, labels=labels))
        again = cross_fit(changed.rows, rule, ClassObjective())
        np.testing.assert_array_equal(again.y_pred[inside], honest.y_pred[inside])
        logits[inside] += np.array([0.0, 100.0, 0.0])
        moved = cross_fit(replace(oof, logits=logits).rows, rule, ClassObjective())
        assert moved.splits[fold].threshold == honest.splits[fold].threshold
    turned = replace(oof, table=replace(oof.table, labels=(oof.labels + 1) % 3))
    assert (cross_fit(turned.rows, rule, ClassObjective()).y_pred != honest.y_pred).any()  # the test can fail
    assert [row.rates for row in honest.class_folds] == [
        class_rates(oof.labels[s.inside], honest.y_pred[s.inside], 3) for s in honest.splits
    ]
    margins = honest.margins
    np.testing.assert_array_equal(apply_offsets(margins, np.zeros(3)), honest.y_pred)


def test_the_vote_is_the_plurality_and_ties_go_to_the_mean_logit(make):
    decision = fit_decision(make(150), (), objective=ClassObjective())
    logits = np.random.default_rng(5).normal(size=(400, 3, 3))
    votes, winner = decision.votes(logits)
    shifted = logits + np.array(decision.member_offsets)
    tied = 0
    for row, by_member, chosen in zip(shifted, votes, winner, strict=True):
        np.testing.assert_array_equal(by_member, row.argmax(axis=1))
        counts = np.bincount(by_member, minlength=3)
        most = np.flatnonzero(counts == counts.max())
        tied += most.size > 1
        assert chosen == most[row.mean(axis=0)[most].argmax()]
    assert tied > 20


# --- assessments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, **of_kind)
def test_an_assessment_by_hand(make, objective):
    oof = make(300, group=3)
    rules = [stack("nonnegative"), of_score(member_logit(2)), of_score(member_logit(0), (0.0, 0.0, 0.0))]
    candidates = [Candidate.of(str(j), oof, rule, objective) for j, rule in enumerate(rules)]
    first, weak, plain = assess_classes(candidates, oof.groups, seed=4)
    for each, candidate in zip((first, weak, plain), candidates, strict=True):
        assert each.nested == class_rates(oof.labels, candidate.nested.y_pred, 3)
        assert each.apparent == class_rates(oof.labels, candidate.deployed(oof.logits), 3)
        assert each.loss == objective.loss(each.nested)
        assert each.interval.low <= each.loss <= each.interval.high
        assert each.optimism == pytest.approx(each.loss - objective.loss(each.apparent))
        assert (each.macro_f1.low, each.accuracy.high) <= (each.nested.macro_f1, 1)
        assert len(each.errors) == len(each.precisions) == 3 and each.few == ()
    assert first.refitted and not plain.refitted and plain.optimism == 0
    assert first.difference is None and weak.difference.value == pytest.approx(weak.loss - first.loss)
    assert weak.difference.interval.low > 0 and weak.macro_f1_difference.interval.high < 0
    assert first.beats_chance
    compared = compare_class_nested(candidates[0], candidates[1], oof.groups, seed=4)
    differences = {"mean-class-error": compared.mean_error, "macro-f1": compared.macro_f1}
    assert compared.macro_f1 == weak.macro_f1_difference
    if objective.kind == "mean-class-error":
        assert differences[objective.kind] == weak.difference
    again = assess_classes([candidates[0], candidates[0]], oof.groups, seed=4)[1]
    assert again.difference == Difference(0.0, Interval(0.0, 0.0))


def test_predictions_without_regard_to_the_image_do_not_beat_chance(make, rng):
    oof = make(300)
    oof = replace(oof, logits=rng.normal(size=oof.logits.shape))
    (assessed,) = assess_classes([Candidate.of("", oof, stack("mean"), ClassObjective())])
    assert not assessed.beats_chance
    assert assessed.nested.mean_error == pytest.approx(2 / 3, abs=0.1)


def test_few_errors_widen_to_the_counts(rng):
    labels = np.repeat(np.arange(3), [200, 200, 20]).astype(np.int8)
    y_pred = labels.copy()
    y_pred[:60], y_pred[200:260] = 1, 0
    rates = class_rates(labels, y_pred, 3)

    def points(values):
        return tuple(Interval(value, value) for value in values)

    of_all = points((rates.mean_error, rates.macro_f1, rates.accuracy))
    without_variation = ClassMeasured(rates, points(rates.errors), points(rates.precisions), *of_all)
    widened = class_widened(without_variation, labels, y_pred)
    counted, (_, mean) = measure_classes(labels, y_pred, 3), class_counting_intervals(rates)
    assert widened.errors == (
        Interval(0.3, 0.3),
        Interval(0.3, 0.3),
        Interval(0.0, counted.errors[2].high),
    )  # only class 2 has few
    assert widened.mean_error == mean and widened.macro_f1 == counted.macro_f1
    assert widened.precisions[0] == Interval(0.7, 0.7) and widened.precisions[2].low < 0.95
    assert widened.accuracy == of_all[2]


# --- the decision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES[1:2], **of_kind)
def test_a_decision_survives_its_file(make, objective, tmp_path):
    oof = make(200)
    decision = fit_decision(oof, ("identity",), objective=objective, repeats=2, seed=3)
    assert isinstance(decision, ClassDecision) and decision.classes == 3
    write_json(tmp_path / "decision.json", decision)
    assert read_json(tmp_path / "decision.json", ClassDecision, "fit it again") == decision
    assert fit_decision(oof, ("identity",), objective=objective, repeats=2, seed=3) == decision
    assert decision.offsets == fit_offsets(decision.stacker.apply(oof.logits), oof.labels, objective)
    np.testing.assert_array_equal(
        class_rates(oof.labels, decision.predict(oof.logits), 3).confusion, decision.apparent.confusion
    )
    assert [each.name for each in decision.stackers] == list(CLASS_STACKERS)
    baselines = [*(f"m{j} without offsets" for j in range(3)), "plurality vote"]
    assert [each.name for each in decision.baselines] == baselines
    assert decision.baselines[0].offsets == (0.0, 0.0, 0.0)
    alone = class_rates(oof.labels, oof.logits[:, 0].argmax(axis=1), 3)
    assert decision.baselines[0].nested == decision.baselines[0].apparent == alone
    assert len(decision.repeated) == 2 and decision.noise is not None
    assert decision.interval == decision.stacked.interval and decision.optimism == decision.stacked.optimism


def test_the_default_objective_is_the_mean_class_error_and_those_of_two_classes_are_refused(make):
    oof = make(100)
    assert fit_decision(oof, ()).objective == ClassObjective()
    with pytest.raises(ConfigError, match="for two classes alone"):
        fit_decision(oof, (), objective=Objective.parse("fpr:0.1"))


def test_a_constant_member_is_left_out_and_classes_with_few_images_are_named(make):
    oof = make(120)
    logits = oof.logits.copy()
    logits[:, 1] = [1.0, 2.0, 3.0]
    decision = fit_decision(replace(oof, logits=logits), (), objective=ClassObjective())
    assert decision.stacker.members == ("m0", "m2") and [each.name for each in decision.members] == ["m0", "m1", "m2"]
    assert "member m1 gives the same logit to all images of folds 0, 1, 2; it is left out" in decision.notes[0]
    assert decision.stacked.few == (2,) and "fewer than 30 images: 2 (24)" in decision.notes[-1]
    named = fit_decision(oof, (), objective=ClassObjective(), classes=("none", "worn", "in\ncorrect"))
    assert r"fewer than 30 images: in\ncorrect (24)" in named.notes[-1]


def test_classes_in_few_groups_are_named_the_fewest_first_and_not_twice(make):
    notes = fit_decision(make(300, group=5), (), objective=ClassObjective(), classes=("a", "b", "c")).notes
    assert "some classes are in fewer than 15 groups: c (12)." in notes[-1] and "fewer than 30 images" not in notes[-1]
    assert not any("groups" in note for note in fit_decision(make(300), (), objective=ClassObjective()).notes)
    notes = fit_decision(make(100, group=5), (), objective=ClassObjective()).notes
    assert "fewer than 30 images: 2 (20)" in notes[-2] or "fewer than 30 images: 2 (20)" in notes[-1]
    assert "groups: 1 (6), 0 (10)" in notes[-1]


def test_a_note_names_five_classes_and_counts_the_others():
    counts = [(c, 40 - c) for c in range(18)]
    assert class_decision._counted(counts, None) == "17 (23), 16 (24), 15 (25), 14 (26), 13 (27) and 13 more"


def test_a_single_member_is_itself(make):
    oof = make(150, separations=(1.0,))
    decision = fit_decision(oof, (), objective=ClassObjective())
    assert decision.kind == "mean" and decision.stackers == () and len(decision.baselines) == 1
    np.testing.assert_array_equal(decision.stacker.apply(oof.logits), oof.logits[:, 0])


def test_a_deviation_beyond_chance_and_by_much_is_a_note():
    lower, by_little = Difference(-0.03, Interval(-0.05, -0.01)), Difference(-0.03, Interval(-0.05, 0.01))
    (note,) = deviation_note("class error", 0.1, 0.07, lower)
    assert "the nested class error is 0.1000 over the folds and 0.0700 over random parts" in note
    assert "the nested and expected figures are too high" in note
    (note,) = deviation_note("macro F1", 0.1, 0.07, lower, is_error=False)
    assert "the nested macro F1 is 0.9000 over the folds and 0.9300 over random parts" in note
    assert "the nested and expected figures are too low" in note
    assert deviation_note("", 0.1, 0.07, by_little) == () == deviation_note("", 0.5, 0.47, lower)


# --- tables and logits ------------------------------------------------------------------------------------------------


def test_a_fold_table_knows_its_classes():
    arrays = {"ids": np.arange(6), "labels": [0, 1, 2, 0, 1, 2], "fold_of": [0, 0, 0, 1, 1, 1]}
    assert FoldTable(**arrays).classes == 3
    assert FoldTable(**{**arrays, "labels": [0] * 6}).classes == 2
    with pytest.raises(DataError, match="labels must be 0 or 1, or 0 to 2 with each of them"):
        FoldTable(**{**arrays, "labels": [0, 0, 2, 0, 0, 2]})
    with pytest.raises(DataError, match="labels must be 0 or 1"):
        FoldTable(**{**arrays, "labels": [-1, 0, 1, 2, 0, 1]})


def test_oof_logits_of_the_wrong_shape_or_without_a_class_in_a_fold_are_refused(make):
    oof = make(60)
    with pytest.raises(DataError, match=r"logits must have shape \(60, 3, 3\); got \(60, 3\)"):
        replace(oof, logits=oof.logits[:, :, 0])
    fold_of = np.where(oof.labels == 2, 0, np.arange(60) % 2)
    with pytest.raises(DataError, match="fold 1: every class must be present; got 0 of label 2"):
        replace(oof, table=replace(oof.table, fold_of=fold_of))
