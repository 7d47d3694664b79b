from dataclasses import replace

import numpy as np
import pytest

from ensemble.decision.cross_fitting import (
    INNER_FOLDS,
    MAJORITY_VOTE,
    OofLogits,
    Rows,
    Rule,
    cross_fit,
    fit_stack,
    member_logit,
    of_score,
    simplest_stacker,
    stack,
    vote_share,
)
from ensemble.decision.objective import HTER, BoundedFpr, Objective, WeightedError
from ensemble.decision.rates import apply_threshold, auc, error_rates
from ensemble.decision.stacker import STACKERS
from ensemble.decision.threshold import fit_threshold
from ensemble.errors import ArtifactError, DataError

RULES = {
    **{kind: stack(kind) for kind in ("auto", *STACKERS)},
    "member": of_score(member_logit(1)),
    "vote": MAJORITY_VOTE,
    "at half": of_score(member_logit(0), 0.0),
}
OBJECTIVES = [HTER, Objective.parse("cost:3,1"), Objective.parse("fpr:0.05"), Objective.parse("fnr:0.1")]


# --- cross-fitting ----------------------------------------------------------------------------------------------------


def relabelled(oof: OofLogits, labels: np.ndarray) -> OofLogits:
    return replace(oof, table=replace(oof.table, labels=labels))


@pytest.mark.parametrize("name", RULES)
def test_a_fold_is_predicted_by_a_rule_that_never_saw_it(make_oof, name):
    oof, rule = make_oof(240), RULES[name]
    honest = cross_fit(oof.rows, rule)
    for fold in oof.folds:
        inside = oof.fold_of == fold
        labels, logits = oof.labels.copy(), oof.logits.copy()
        labels[inside] = 1 - labels[inside]
        changed = cross_fit(relabelled(oof, labels).rows, rule)
        np.testing.assert_array_equal(changed.y_pred[inside], honest.y_pred[inside])
        np.testing.assert_array_equal(changed.scores[inside], honest.scores[inside])
        logits[inside] += 100.0
        moved = cross_fit(replace(oof, logits=logits).rows, rule).folds
        assert moved[oof.folds.index(fold)].threshold == honest.folds[oof.folds.index(fold)].threshold
    if name != "at half":  # the test above can fail: the other folds did notice
        assert (cross_fit(relabelled(oof, 1 - oof.labels).rows, rule).y_pred != honest.y_pred).any()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.text)
def test_cross_fit_by_hand(make_oof, objective):
    oof = make_oof()
    nested = cross_fit(oof.rows, RULES["member"], objective)
    assert [row.fold for row in nested.folds] == list(oof.folds)
    for row, split in zip(nested.folds, nested.splits, strict=True):
        inside = oof.fold_of == row.fold
        threshold = fit_threshold(oof.logits[~inside, 1], oof.labels[~inside], objective)
        assert row.threshold == split.threshold == threshold
        np.testing.assert_array_equal(split.inside, inside)
        np.testing.assert_array_equal(split.scores, oof.logits[:, 1])
        np.testing.assert_array_equal(nested.scores[inside], oof.logits[inside, 1])
        np.testing.assert_array_equal(nested.y_pred[inside], apply_threshold(oof.logits[inside, 1], threshold))
        assert row.rates == error_rates(oof.labels[inside], nested.y_pred[inside])
        assert row.auc == auc(oof.logits[inside, 1], oof.labels[inside])


@pytest.mark.parametrize("kind", STACKERS)
def test_a_split_holds_the_stack_that_was_fitted_without_the_fold(make_oof, kind):
    oof = make_oof()
    for split in cross_fit(oof.rows, stack(kind)).splits:
        without = ~split.inside
        stacker = STACKERS[kind](oof.logits[without], oof.labels[without], oof.members)
        np.testing.assert_array_equal(split.scores, stacker.apply(oof.logits))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.text)
def test_the_objective_reaches_every_threshold(make_oof, objective):
    rows = make_oof().rows
    fitted = stack("mean")(rows, objective)
    assert fitted.threshold == fit_threshold(fitted.score(rows.logits), rows.labels, objective)
    np.testing.assert_allclose(fitted.score(rows.logits), rows.logits.mean(axis=1), rtol=1e-12, atol=1e-12)
    votes = MAJORITY_VOTE(rows, objective)
    own = [fit_threshold(column, rows.labels, objective) for column in rows.logits.T]
    np.testing.assert_array_equal(votes(rows.logits), (rows.logits >= own).sum(axis=1) >= 2)


def test_the_majority_vote_is_at_the_members_own_thresholds(make_oof):
    oof = make_oof()
    own = [fit_threshold(column, oof.labels) for column in oof.logits.T]
    fitted = MAJORITY_VOTE(oof.rows)
    assert fitted.threshold == 0.5
    np.testing.assert_array_equal(fitted(oof.logits), (oof.logits >= own).sum(axis=1) >= 2)
    np.testing.assert_array_equal(fitted.score(oof.logits), (oof.logits >= own).mean(axis=1))


def test_half_of_an_even_number_of_votes_is_a_one():
    vote = of_score(vote_share([0.0, 0.0]), 0.5)(Rows(np.empty((0, 2)), np.empty(0), np.empty(0), ("a", "b")))
    np.testing.assert_array_equal(vote(np.array([[1.0, -1.0], [-1.0, -1.0], [0.0, 1.0]])), np.array([1, 0, 1]))


def test_a_threshold_that_is_given_stays():
    rows = Rows(np.array([[-5.0], [-4.0]]), np.array([0, 1]), np.array([0, 1]), ("a",))
    assert of_score(member_logit(0), 0.0)(rows).threshold == 0
    assert of_score(member_logit(0))(rows).threshold == -4.5
    assert Rule(lambda rows, objective: member_logit(0), 1.0)(rows).threshold == 1


# --- the choice of the stacker ----------------------------------------------------------------------------------------


def paired_bootstrap_error(rng, labels, a, b, objective, replicates=4000):
    """Return the spread of the difference in loss of two sets of calls over replicates drawn row by row."""
    found = np.empty(replicates)
    strata = [np.flatnonzero(labels == label) for label in (0, 1)]
    for replicate in range(replicates):
        rows = np.concatenate([rng.choice(of, of.size) for of in strata])
        one, other = (objective.loss_of(error_rates(labels[rows], calls[rows])) for calls in (a, b))
        found[replicate] = one - other
    return found.std()


@pytest.mark.parametrize("objective", [HTER, WeightedError(5, 1)], ids=lambda objective: objective.text)
def test_the_standard_error_is_that_of_the_paired_bootstrap(make_oof, rng, objective):
    from ensemble.decision.cross_fitting import _paired_error

    oof = make_oof(400)
    a, b = (cross_fit(oof.rows, stack(kind), objective).y_pred for kind in ("mean", "logistic"))
    assert (a != b).sum() > 20
    error = _paired_error(oof.labels, a, b, objective)
    assert error == pytest.approx(paired_bootstrap_error(rng, oof.labels, a, b, objective), rel=0.05)
    assert error == _paired_error(oof.labels, b, a, objective)
    assert _paired_error(oof.labels, a, a, objective) == 0


@pytest.mark.parametrize("objective", [HTER, WeightedError(3, 1), BoundedFpr(0.1)], ids=lambda each: each.text)
def test_the_choice_is_the_simplest_within_a_standard_error_of_the_best(make_oof, objective):
    """By its letter, from nested calls and a standard error of another form."""
    chosen = set()
    for separations in ((1.0, 1.0, 1.0), (1.2, 0.5, 0.1), (2.0, 0.0, 0.0)):
        for _ in range(4):
            oof = make_oof(400, separations)
            y, weights = oof.labels, objective.comparable
            y_pred = {kind: cross_fit(oof.rows, stack(kind), objective).y_pred for kind in STACKERS}
            losses = {kind: weights.loss_of(error_rates(y, each)) for kind, each in y_pred.items()}
            best = min(losses, key=losses.get)
            w = np.where(y == 1, weights.loss(0, 1) / (y == 1).sum(), weights.loss(1, 0) / (y == 0).sum())
            for kind in STACKERS:  # the first that passes
                change = w * (y_pred[kind].astype(float) - y_pred[best])
                mean = np.where(y == 1, change[y == 1].mean(), change[y == 0].mean())
                if losses[kind] - losses[best] <= np.sqrt(((change - mean) ** 2).sum()):
                    break
            assert simplest_stacker(oof.rows, objective) == kind
            chosen.add(kind)
    assert len(chosen) > 1


def test_equal_members_get_the_mean(make_oof):
    """Four times in five: a standard error is passed by chance one time in six, and there are three others."""
    kinds = [simplest_stacker(make_oof(1000, (1.0, 1.0, 1.0), common=0.3).rows) for _ in range(20)]
    assert kinds.count("mean") >= 14
    assert kinds.count("logistic") <= 3


def test_where_one_member_is_much_better_it_is_heard(make_oof):
    kinds = {simplest_stacker(make_oof(2000, (2.0, 0.1, 0.0)).rows) for _ in range(10)}
    assert "mean" not in kinds


def test_where_members_mislead_alike_a_logistic_one_is_worth_its_freedom(rng):
    """One member is the other's mistake: only a negative weight takes it out."""
    y = (np.arange(2000) % 4 > 0).astype(np.int8)
    misled = 2 * rng.normal(size=2000)
    logits = np.stack([2.0 * y - 1 + misled, misled + 0.3 * rng.normal(size=2000)], axis=1)
    assert simplest_stacker(Rows(logits, y, np.arange(2000) // 4 % 4, ("a", "b"))) == "logistic"


def test_the_choice_is_made_anew_without_each_fold(make_oof):
    oof = make_oof(1200, (2.0, 0.2))
    for split in cross_fit(oof.rows, stack("auto")).splits:
        rows = oof.rows.where(~split.inside)
        kind, stacker = fit_stack("auto", rows)
        assert kind == simplest_stacker(rows)
        np.testing.assert_array_equal(split.scores, stacker.apply(oof.logits))


def test_auto_is_the_kind_that_it_chooses(make_oof):
    for separations in ((1.0, 1.0, 1.0), (2.0, 0.1, 0.0)):
        rows = make_oof(1200, separations).rows
        kind, stacker = fit_stack("auto", rows)
        assert kind == simplest_stacker(rows)
        assert (kind, stacker) == fit_stack(kind, rows)
        assert stacker == STACKERS[kind](rows.logits, rows.labels, rows.members)
        auto, chosen = stack("auto")(rows), stack(kind)(rows)
        assert auto.threshold == chosen.threshold
        np.testing.assert_array_equal(auto(rows.logits), chosen(rows.logits))


def test_of_two_folds_the_choice_without_one_is_made_between_halves_of_the_other(make_oof):
    oof = make_oof(1200, (2.0, 0.1, 0.0), k=2)
    alone = oof.rows.where(oof.fold_of == 0)
    assert simplest_stacker(alone) != "mean"
    half = np.empty(alone.labels.size, np.int8)
    for label in (0, 1):
        half[alone.labels == label] = np.arange((alone.labels == label).sum()) % 2
    assert simplest_stacker(alone) == simplest_stacker(replace(alone, fold_of=half))
    nested = cross_fit(oof.rows, stack("auto"))
    assert error_rates(oof.labels, nested.y_pred).hter < 0.1


FITTED = [kind for kind in STACKERS if kind != "nonnegative"]
"""The kinds that are fitted where no weight of the logistic one is below 0."""


def test_many_folds_are_joined_to_a_few_for_the_choice(make_oof, monkeypatch):
    """Else the fits of a nested choice would grow with the square of the folds."""
    fitted, mean = [], STACKERS["mean"]

    def counting(kind):
        def fit(logits, labels, members):
            fitted.append((kind, len(labels)))
            return mean(logits, labels, members)

        return fit

    for kind in STACKERS:
        monkeypatch.setitem(STACKERS, kind, counting(kind))
    for k, parts in ((3, 3), (INNER_FOLDS, INNER_FOLDS), (60, INNER_FOLDS)):
        rows = make_oof(960, k=k).rows
        fitted.clear()
        assert simplest_stacker(rows) == "mean"
        for kind in FITTED:
            sizes = [size for of, size in fitted if of == kind]
            assert len(sizes) == parts
            assert sum(960 - size for size in sizes) == 960  # every row is held out once
    fitted.clear()
    assert len(cross_fit(rows, stack("auto")).folds) == 60
    assert len(fitted) == 60 * (len(FITTED) * INNER_FOLDS + 1)


def test_nothing_is_fitted_twice_on_the_same_rows(make_oof, monkeypatch):
    rows, fitted, fit = make_oof(1000, k=5).rows, [], STACKERS["logistic"]
    monkeypatch.setitem(STACKERS, "logistic", lambda *given: fitted.append(given[1].size) or fit(*given))
    for kind in ("auto", "logistic", "nonnegative"):
        stack(kind)(rows)
        cross_fit(rows, stack(kind))
    assert sorted(fitted) == [600] * 10 + [800] * 5 + [1000]  # without two folds, without one, and all
    assert rows.without(1).without(3) is rows.without(3).without(1)


def test_what_is_kept_with_rows_is_of_these_rows_alone(make_oof):
    rows = make_oof(1000).rows
    stack("logistic")(rows.without(0))
    other = replace(rows, labels=1 - rows.labels)
    np.testing.assert_array_equal(other.without(0).labels, 1 - rows.without(0).labels)
    assert other.stacker("logistic") != rows.stacker("logistic")


def test_joined_folds_stay_whole(make_oof, monkeypatch):
    rows = make_oof(960, (1.2, 0.5, 0.1), k=60).rows
    given = []

    def seen(of, rule, objective):
        given.append(of.fold_of)
        return cross_fit(of, rule, objective)

    monkeypatch.setattr("ensemble.decision.cross_fitting.cross_fit", seen)
    simplest_stacker(rows)
    joined = given[0]
    assert len(np.unique(joined)) == INNER_FOLDS
    assert all(len(np.unique(joined[rows.fold_of == fold])) == 1 for fold in range(60))


def test_one_member_is_itself(make_oof):
    oof = make_oof(separations=(1.0,))
    assert simplest_stacker(oof.rows) == "mean"
    np.testing.assert_array_equal(stack("auto")(oof.rows).score(oof.logits), oof.logits[:, 0])


def test_a_class_of_one_row_a_fold_is_enough(rng):
    labels = np.array([0, 1, 1, 0, 1, 1])
    rows = Rows(rng.normal(size=(6, 2)), labels.astype(np.int8), np.array([0, 0, 0, 1, 1, 1]), ("a", "b"))
    assert simplest_stacker(rows.where(rows.fold_of == 0)) == "mean"
    assert cross_fit(rows, stack("auto")).y_pred.shape == (6,)


# --- what rules are fitted on -----------------------------------------------------------------------------------------


def test_rows_are_chosen_with_all_that_is_theirs(make_oof):
    oof = make_oof(16)
    some = oof.rows.where(oof.fold_of == 2)
    assert some.members == oof.members
    for name in ("logits", "labels", "fold_of"):
        np.testing.assert_array_equal(getattr(some, name), getattr(oof, name)[oof.fold_of == 2])


def test_oof_arrays_are_read_only_and_the_table_is_not_copied(make_oof):
    oof = make_oof(16)
    table = replace(oof.table, groups=np.arange(16) // 4)
    shared = OofLogits(table, oof.members, oof.logits)
    assert shared.table is table and np.shares_memory(shared.logits, oof.logits)
    assert oof.labels.dtype == oof.fold_of.dtype == np.int8
    for array in (table.ids, table.labels, table.fold_of, shared.logits, table.groups):
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"members": ("a", "b")}, r"logits must have shape \(16, 2\); got \(16, 3\)"),
        ({"members": ("a", "a", "b")}, "members must be distinct"),
        ({"fold_of": np.zeros(16)}, r"at least two folds are needed; got \(0,\)"),
        ({"fold_of": np.arange(16) % 4}, "fold 0: HTER needs both classes; got 0 of label 1 in 4 images"),
    ],
)
def test_oof_logits_that_cannot_be_are_refused(make_oof, change, says):
    oof = make_oof(16)
    if "fold_of" in change:
        change = {"table": replace(oof.table, **change)}
    with pytest.raises(DataError, match=says):
        replace(oof, **change)


def test_a_missing_logit_names_member_and_fold(make_oof):
    oof = make_oof(16)
    logits = oof.logits.copy()
    logits[5, 1] = np.nan
    with pytest.raises(ArtifactError, match=r"member m1: .* got 1 in fold 1 .* run: thera train-member --arch m1"):
        replace(oof, logits=logits)
