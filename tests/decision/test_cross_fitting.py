from dataclasses import replace

import numpy as np
import pytest

from ensemble.decision.cross_fitting import (
    MAJORITY_VOTE,
    OofLogits,
    Rows,
    Rule,
    cross_fit,
    member_logit,
    of_score,
    stack,
)
from ensemble.decision.objective import HTER, Objective
from ensemble.decision.rates import apply_threshold, auc, error_rates
from ensemble.decision.stacker import STACKERS
from ensemble.decision.threshold import fit_threshold
from ensemble.decision.votes import vote_share
from ensemble.errors import ArtifactError, DataError

RULES = {
    **{kind: stack(kind) for kind in STACKERS},
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


def test_the_auc_is_that_within_folds_whose_scores_may_have_different_offsets(make_oof):
    """Each fold's rule puts its scores elsewhere: all rows of one fold may lie above all rows of another."""
    oof = make_oof(400, (1.0,))
    fold_of = np.where(np.arange(400) < 60, 3, oof.fold_of)  # the last fold is larger than the others
    oof = replace(oof, table=replace(oof.table, fold_of=fold_of))
    pairs = [np.prod(np.bincount(oof.labels[oof.fold_of == fold])) for fold in oof.folds]
    assert len(set(pairs)) > 1

    def fit(rows, objective):
        (missing,) = set(range(4)) - set(rows.folds) or {0}
        return lambda logits: logits[:, 0] + 30.0 * missing

    nested, plain = cross_fit(oof.rows, Rule(fit)), cross_fit(oof.rows, of_score(member_logit(0)))
    of_folds = [auc(oof.logits[oof.fold_of == fold, 0], oof.labels[oof.fold_of == fold]) for fold in oof.folds]
    assert [row.auc for row in nested.folds] == of_folds
    assert nested.auc == pytest.approx(np.average(of_folds, weights=pairs), rel=1e-12)
    assert nested.auc == plain.auc != pytest.approx(np.mean(of_folds), rel=1e-6)
    assert auc(nested.scores, oof.labels) < nested.auc - 0.1  # of all rows together, the offsets count
    above = [
        (nested.scores[i] > nested.scores[j]) + (nested.scores[i] == nested.scores[j]) / 2
        for i in np.flatnonzero(oof.labels == 1)
        for j in np.flatnonzero((oof.labels == 0) & (oof.fold_of == oof.fold_of[i]))
    ]
    assert nested.auc == pytest.approx(np.mean(above), rel=1e-12)


# --- what rules are fitted on -----------------------------------------------------------------------------------------


def test_nothing_is_fitted_twice_on_the_same_rows(make_oof, monkeypatch):
    rows, fitted, fit = make_oof(1000, k=5).rows, [], STACKERS["logistic"]
    monkeypatch.setitem(STACKERS, "logistic", lambda *given: fitted.append(given[1].size) or fit(*given))
    for kind in ("nonnegative", "logistic", "nonnegative"):
        stack(kind)(rows)
        cross_fit(rows, stack(kind))
    assert sorted(fitted) == [800] * 5 + [1000]  # without each fold, and all
    assert rows.without(1).without(3) is rows.without(3).without(1)


def test_what_is_kept_with_rows_is_of_these_rows_alone(make_oof):
    rows = make_oof(1000).rows
    stack("logistic")(rows.without(0))
    other = replace(rows, all_labels=1 - rows.labels)
    np.testing.assert_array_equal(other.without(0).labels, 1 - rows.without(0).labels)
    assert other.stacker("logistic") != rows.stacker("logistic")


@pytest.mark.parametrize("kind", STACKERS)
def test_one_member_is_itself(make_oof, kind):
    oof = make_oof(separations=(1.0,))
    fitted = stack(kind)(oof.rows)
    np.testing.assert_array_equal(fitted.score(oof.logits), oof.logits[:, 0])
    assert fitted.threshold == fit_threshold(oof.logits[:, 0], oof.labels)
    for split in cross_fit(oof.rows, stack(kind)).splits:
        np.testing.assert_array_equal(split.scores, oof.logits[:, 0])


@pytest.mark.parametrize("kind", STACKERS)
def test_a_class_of_one_row_a_fold_is_enough(rng, kind):
    labels = np.array([0, 1, 1, 0, 1, 1])
    rows = Rows(rng.normal(size=(6, 2)), labels.astype(np.int8), np.array([0, 0, 0, 1, 1, 1]), ("a", "b"))
    assert cross_fit(rows, stack(kind)).y_pred.shape == (6,)


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
