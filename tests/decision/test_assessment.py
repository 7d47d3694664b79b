import json
from dataclasses import replace

import numpy as np
import pytest

from ensemble.decision.assessment import Assessment, Decision, fit_decision, member_report
from ensemble.decision.intervals import bootstrap_interval
from ensemble.decision.rates import call, error_rates
from ensemble.errors import ArtifactError, DataError


def test_the_stack_beats_its_members_and_carries_what_prediction_needs(make_oof):
    oof = make_oof(4000)
    decision = fit_decision(oof, ("plain", "flip"))
    assert decision.nested.hter < min(member.nested.hter for member in decision.members)
    assert decision.interval.low < decision.nested.hter < decision.interval.high
    called = call(decision.stacker.apply(oof.logits), decision.threshold)
    assert error_rates(oof.labels, called) == decision.apparent
    assert decision.optimism == decision.nested.hter - decision.apparent.hter
    assert [row.name for row in decision.comparisons] == [
        "stack", "m0", "m1", "m2", "m0 at 0.5", "m1 at 0.5", "m2 at 0.5",
        "mean of logits", "majority vote", "majority vote at 0.5",
    ]  # fmt: skip
    votes, majority = decision.votes(oof.logits)
    for j, member in enumerate(decision.members):
        assert error_rates(oof.labels, votes[:, j]) == member.apparent
    np.testing.assert_array_equal(majority, votes.sum(axis=1) >= 2)
    vote = next(row for row in decision.baselines if row.name == "majority vote")
    assert error_rates(oof.labels, majority) == vote.apparent


def test_where_nothing_is_fitted_nothing_is_flattered(make_oof):
    decision = fit_decision(make_oof(), ())
    for row in decision.baselines:
        if row.name.endswith("at 0.5"):
            assert row.apparent == row.nested
            assert row.optimism == 0


def test_a_member_alone_is_reported_as_it_is_in_the_decision(make_oof):
    oof = make_oof()
    alone = member_report("m1", oof.ids, oof.logits[:, 1], oof.labels, oof.fold_of, seed=4)
    assert alone == fit_decision(oof, (), seed=4).members[1]
    assert sum(row.rates.n for row in alone.folds) == alone.nested.n == oof.labels.size


def test_groups_reach_the_interval(make_oof):
    groups = np.arange(600) // 4
    oof = make_oof(groups=groups)
    report = member_report("a", oof.ids, oof.logits[:, 0], oof.labels, oof.fold_of, groups)
    nested = np.empty(600, np.int8)
    for row in report.folds:
        inside = oof.fold_of == row.fold
        nested[inside] = call(oof.logits[inside, 0], row.threshold)
    assert report.interval == bootstrap_interval(oof.labels, nested, groups)
    assert report.interval != bootstrap_interval(oof.labels, nested)


def test_apparent_flatters_and_nested_does_not_on_pure_noise(make_oof):
    decisions = [fit_decision(make_oof(200, (0.0,) * 12), ()) for _ in range(20)]
    assert np.mean([d.nested.hter for d in decisions]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([d.apparent.hter for d in decisions]) < 0.42
    assert all(d.optimism > 0 for d in decisions)


def test_one_member_is_an_ensemble(make_oof):
    decision = fit_decision(make_oof(separations=(1.0,)), ("plain",))
    assert decision.apparent == decision.members[0].apparent
    assert decision.nested == decision.members[0].nested
    assert [row.name for row in decision.baselines] == ["m0 at 0.5"]


def test_a_constant_member_stays_out_and_is_named(make_oof):
    oof = make_oof()
    logits = oof.logits.copy()
    logits[:, 1] = 0.1 + oof.fold_of  # a constant of its own in each fold
    logits[oof.fold_of == 2, 2] = -1.5
    decision = fit_decision(replace(oof, logits=logits), ())
    assert decision.stacker.members == ("m0", "m2")
    assert [member.name for member in decision.members] == ["m0", "m1", "m2"]
    assert len(decision.member_thresholds) == 2
    assert decision.notes == (
        "member m1 gives one same logit to all images of folds 0, 1, 2, 3; it is kept out of the stack",
        "member m2 gives one same logit to all images of fold 2; it is still in the stack",
    )
    with pytest.raises(DataError, match="a member must vary"):
        fit_decision(replace(oof, logits=np.zeros_like(logits)), ())


def test_json_keeps_every_bit(make_oof):
    decision = fit_decision(make_oof(), ("plain", "flip"), seed=1)
    text = json.dumps(decision.to_json(), allow_nan=False)
    assert Decision.from_json(json.loads(text)) == decision
    member = decision.members[0]
    assert Assessment.from_json(json.loads(json.dumps(member.to_json()))) == member


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.update(schema=2),
        lambda stored: stored.pop("schema"),
        lambda stored: stored.pop("stacker"),
        lambda stored: stored["stacker"]["weights"].pop(),
        lambda stored: stored["stacked"].update(more=1),
        lambda stored: stored["stacked"]["apparent"].pop("fpr"),
        lambda stored: stored["members"].pop(),
        lambda stored: stored.update(views=None),
    ],
)
def test_a_damaged_decision_is_refused(make_oof, damage):
    stored = json.loads(json.dumps(fit_decision(make_oof(100), ()).to_json()))
    damage(stored)
    with pytest.raises(ArtifactError):
        Decision.from_json(stored)


def test_it_is_deterministic(make_oof):
    oof = make_oof()
    assert fit_decision(oof, (), seed=2) == fit_decision(oof, (), seed=2)


def test_the_promise_for_a_new_set_widens_as_it_shrinks(make_oof):
    stacked = fit_decision(make_oof(2000), ()).stacked
    widths = [i.high - i.low for i in map(stacked.new_set_interval, (100, 1000, 100_000))]
    assert widths[0] > widths[1] > widths[2] > 0.95 * (stacked.interval.high - stacked.interval.low)
    assert stacked.new_set_interval(2).high > 0
