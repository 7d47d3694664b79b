import json
from dataclasses import asdict, replace

import pytest
from results import CALM, EXPECTED, FEW, PREDICTED, fitted, predicted, reported

from ensemble.decision.label_noise import NoiseBound, describe_noise
from ensemble.decision.objective import Objective
from ensemble.decision.rates import ErrorRates
from ensemble.decision.shift import at_prior
from ensemble.reports.decision_tables import (
    curve_table,
    decision_table,
    decision_tables,
    noise_table,
    stackers_table,
)
from ensemble.reports.documents import report_json, report_markdown
from ensemble.reports.member_tables import best_rule, member_table
from ensemble.reports.prediction_tables import UNMEASURED, label_file_warnings, prediction_table
from ensemble.reports.render import AVERAGING, LEGEND, render, report_tables
from ensemble.reports.summary import fit_summary, report_files, report_summary
from ensemble.results import FitResult, MemberReport


@pytest.fixture
def decision():
    return fitted()


# --- label files ------------------------------------------------------------------------------------------------------


def test_a_label_file_is_promised_an_hter():
    one = predicted(**FEW, images=1, new_set_interval=None)
    table = prediction_table({"val": PREDICTED, "one": one})
    promised = (
        *("val", "500", "identity + hflip", "0.3400", "0.1000", "0.2000", "0.1500"),
        *("[0.1200, 0.1800]", "[0.1000, 0.2000]"),
    )
    assert table.rows == (promised, ("one *", "1", *promised[2:7], "", ""))
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.columns[-2:] == ("95 %", "if measured here")


def test_what_the_correction_changed_is_reported_beside_the_others():
    notes = prediction_table({"val": PREDICTED}).notes
    assert (
        "95 %: interval of the rule's HTER. If measured here: interval of the HTER measured on these images" in notes[0]
    )
    assert (
        "val: averaging the fold models moves the threshold from -0.5000 to +0.2500 (correction: posterior), which is "
        "expected to change the HTER by -0.0050; nested it was 0.1625. Other corrections: none -0.5000: FPR 0.1300, "
        "FNR 0.1800, HTER 0.1550."
    ) in notes
    assert not any(note.startswith("*") for note in notes)


def test_too_few_images_are_marked_and_no_correction_is_reported():
    notes = prediction_table({"one": predicted(**FEW)}).notes
    assert UNMEASURED.startswith("*: the rates are those of one fold model, not of the file.")
    assert notes.count(UNMEASURED) == 1
    assert not any("averaging the fold models" in note for note in notes)


def test_the_share_check_of_each_set_stands_under_its_name():
    moved = replace(CALM, new_share=0.5, p_value=1e-9)
    notes = prediction_table({"calm": PREDICTED, "moved": predicted(share_check=moved)}).notes
    assert f"calm: {CALM.message(500)}" in notes and "no sign of a shift" in CALM.message(500)
    assert f"moved: {moved.message(500)}" in notes and moved.message(500).startswith("SHIFT: ")
    (few,) = [note for note in prediction_table({"few": predicted(images=9)}).notes if note.startswith("few: Share")]
    assert few == f"few: {CALM.message(9)}" and "9 images are too few to check for a shift" in few


def test_a_given_prior_is_explained():
    there = at_prior(ErrorRates(0.1, 0.2, 120, 880), 0.5)
    given = predicted(at_prior=there, assumed_share_of_label_0=0.5)
    (note,) = [note for note in prediction_table({"val": given}).notes if "as given" in note]
    assert note.startswith("val: where label 0 is 0.5000 of the images, as given")
    for figure in (
        *("0.5500 should be labelled 0 (0.3400 are)", "0.1500 labelled wrong", "0.8182 of the 0s be right"),
        "probabilities in predictions.csv are for this share",
    ):
        assert figure in note
    for facts in (PREDICTED, given):
        assert not any("cause of the shift" in note for note in prediction_table({"v": facts}).notes)
    assert not any("as given" in note for note in prediction_table({"v": PREDICTED}).notes)
    assert not any("contradict" in note for note in prediction_table({"v": given}).notes), "0.47 ± 0.04 may be 0.5"
    far = predicted(at_prior=there, assumed_share_of_label_0=0.5, share_check=replace(CALM, prior=0.12))
    far = replace(far, request=replace(far.request, prior=0.5))
    (note,) = (note for note in prediction_table({"v": far}).notes if "contradict" in note)
    assert note.startswith(
        "v: the images contradict --prior 0.5: by the labels that single fold models give, label 0 is 0.1200 ± 0.0196 "
    )
    assert note.removeprefix("v: ") in label_file_warnings(far) and not label_file_warnings(given)


def test_a_shift_of_unknown_cause_is_not_corrected_and_the_assumed_mix_is_named():
    notes = prediction_table({"val": predicted(assumed_share_of_label_0=0.375)}).notes
    assert (
        "val: the threshold is not corrected, since the cause of the shift is not known. The expected rates hold if "
        "only the class mix has changed; they assume that label 0 is 0.3750 of these images."
    ) in notes


def test_a_sets_name_cannot_paint_the_terminal():
    table = prediction_table({"a\x1b[31m": PREDICTED})
    assert "\x1b" not in table.text() + table.markdown()


def test_a_file_with_one_label_is_said_to_be_so_and_no_correction_is_reported():
    facts = predicted(images=90, share_of_label_0=0.0, implied_share=None)
    sentence = (
        "all 90 images got label 1. Such a file has FPR 1, FNR 0 and HTER 0.5, as any constant answer has, if both "
        "labels occur among its images."
    )
    assert label_file_warnings(facts) == (sentence,)
    notes = prediction_table({"val": facts}).notes
    assert f"val: {sentence}" in notes and not any("moves the threshold" in note for note in notes)
    (of_zeros,) = label_file_warnings(
        predicted(images=20, share_of_label_0=1.0, implied_share=None, objective="fpr:0.01")
    )
    assert of_zeros.startswith("all 20 images got label 0 by a threshold for the least FNR with FPR <= 0.01. Such")
    assert "FPR 0, FNR 1 and HTER 0.5" in of_zeros
    single = predicted(images=1, share_of_label_0=1.0, implied_share=None)
    assert label_file_warnings(single) == (), "a single image cannot get two labels"


def test_rates_that_do_not_fit_the_file_are_said_not_to():
    for fitting in (PREDICTED, predicted(share_of_label_0=0.3), predicted(share_of_label_0=0.9, implied_share=None)):
        assert label_file_warnings(fitting) == ()
    other = predicted(share_of_label_0=0.2)
    (warning,) = label_file_warnings(other)
    assert warning == (
        "the expected rates do not fit this file: it labels 0.2000 of its images 0, and with these rates it would be "
        "0.3000 to 0.4000."
    )
    assert f"val: {warning}" in prediction_table({"val": other}).notes


# --- the decision -----------------------------------------------------------------------------------------------------


def test_a_members_table_has_a_row_per_fold_and_one_of_all(decision):
    member = decision.members[0]
    table = member_table(MemberReport(member, ("identity", "hflip")))
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3", "pooled"]
    assert sum(int(row[1]) for row in table.rows[:-1]) == int(table.rows[-1][1]) == 400
    assert table.rows[-1][4] == f"{member.nested.hter:.4f}"
    assert table.rows[-1][5] == f"[{member.interval.low:.4f}, {member.interval.high:.4f}]"
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_stacks_table_leads_with_the_nested_stack(decision):
    table = decision_table(decision)
    interval = f"[{decision.interval.low:.4f}, {decision.interval.high:.4f}]"
    assert table.title == f"Decision, views plain + flip: nested HTER {decision.nested.hter:.4f} {interval}"
    assert [row[0] for row in table.rows] == [
        *("stack", "member cnn[b]", "member a|b", "baseline: cnn[b] at 0.5", "baseline: a|b at 0.5"),
        *("baseline: majority vote", "baseline: majority vote at 0.5"),
    ]
    assert table.rows[0][3:] == (
        f"{decision.nested.hter:.4f}",
        interval,
        f"{decision.apparent.hter:.4f}",
        f"{decision.optimism:+.4f}",
        f"{decision.stacked.auc:.4f}",
        "",
    )
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_rule_that_is_no_better_than_chance_is_named(decision):
    assert not any("chance" in note for note in decision_table(decision).notes)
    blind = replace(decision.members[1], auc=0.52)
    low, high = blind.chance_interval.low, blind.chance_interval.high
    assert low < 0.5 < high
    sentence = f"The AUC of member a|b is no better than chance (0.5200, 95 %: {low:.4f} to {high:.4f})."
    assert sentence in decision_table(replace(decision, members=(decision.members[0], blind))).notes
    assert sentence in member_table(MemberReport(blind, ("identity",))).notes
    of_stack = replace(decision, stacked=replace(decision.stacked, auc=0.3))
    assert any(note.startswith("The AUC of the stack is no better than") for note in decision_table(of_stack).notes)


def test_the_best_rule_is_marked_where_there_is_one(decision):
    table = decision_table(decision)
    hters = [float(row[3]) for row in table.rows]
    assert table.best is not None and hters[table.best] == min(hters)
    assert decision_table(replace(decision, objective=Objective.parse("fpr:0.01"))).best is None
    assert best_rule([decision.stacked]) is best_rule([decision.stacked] * 2) is None


def test_beside_the_stack_each_row_says_how_far_it_is_from_it(decision):
    rows = {row[0]: row[-1] for row in decision_table(decision).rows}
    for member in decision.members:
        low, high = member.difference.interval.low, member.difference.interval.high
        assert rows[f"member {member.name}"] == f"{member.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]"
    assert rows["member a|b"].startswith("+0.")


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("hter", "the least HTER"),
        ("cost:5,1", "the least weighted error (5 FPR + 1 FNR) / 6"),
        ("fpr:0.01", "the least FNR with FPR <= 0.01"),
    ],
)
def test_it_says_what_the_threshold_is_for(decision, form, line):
    notes = decision_table(replace(decision, objective=Objective.parse(form))).notes
    assert notes[0].startswith(f"The threshold is that of {line}. ")


def test_it_says_which_stacker_it_is(decision):
    def said(**change):
        return decision_table(replace(decision, **change)).notes[0]

    assert said(kind="calibrated").endswith(" The stacker is the mean of calibrated logits.")
    assert said(kind="nonnegative").endswith(" The stacker is the logistic one without negative weights.")
    assert said(stackers=()).endswith("One member needs no stacker.")


def test_the_deployed_figures_are_reported(decision):
    (note,) = [note for note in decision_table(decision).notes if note.startswith("Fitted on all 400 images")]
    for name, weight in zip(decision.stacker.members, decision.stacker.weights, strict=True):
        assert f"{name} {weight:+.4f}" in note
    assert note.endswith(f"bias {decision.stacker.bias:+.4f}; threshold {decision.threshold:+.4f} (logits).")


def test_other_partitions_are_reported_if_there_are_any(decision):
    line = replace(decision, repeated=(0.1, 0.2, 0.15))
    says = "Nested HTER over 3 other partitions of the images: mean 0.1500, from 0.1000 to 0.2000."
    assert says in decision_table(line).notes
    assert len(decision.repeated) == 3
    assert not any("partitions" in note for note in decision_table(replace(decision, repeated=())).notes)


def test_its_warnings_are_reported(decision):
    assert decision_table(replace(decision, notes=("member a is dead",))).notes[-1] == "member a is dead"


def test_stackers_are_compared_and_one_is_deployed(decision):
    table = stackers_table(replace(decision, kind="nonnegative"))
    assert [row[0] for row in table.rows] == [
        "the mean of logits",
        "the mean of calibrated logits",
        "the logistic one without negative weights (deployed)",
        "the logistic one",
    ]
    for shown, row in zip(table.rows, decision.stackers, strict=True):
        assert shown[1:4] == (f"{row.nested.fpr:.4f}", f"{row.nested.fnr:.4f}", f"{row.nested.hter:.4f}")
        assert shown[4] == f"[{row.interval.low:.4f}, {row.interval.high:.4f}]"
        assert shown[5].startswith(f"{row.difference.value:+.4f} [")
        assert len(shown) == len(table.columns)


def test_the_curve_has_a_row_for_each_cost(decision):
    table = curve_table(decision)
    assert [row[0] for row in table.rows] == [f"0.{a} FPR + 0.{10 - a} FNR" for a in range(1, 10)]
    for shown, row in zip(table.rows, decision.curve, strict=True):
        loss = (row.cost_fpr * row.rates.fpr + (10 - row.cost_fpr) * row.rates.fnr) / 10
        rates = f"{row.rates.fpr:.4f}", f"{row.rates.fnr:.4f}", f"{row.rates.hter:.4f}"
        assert shown[1:] == (f"{row.threshold:+.4f}", *rates, f"{loss:.4f}")
    assert table.rows[4][4] == table.rows[4][5] == f"{decision.nested.hter:.4f}"
    assert "thera fit-stacker --objective" in table.notes[0]


def test_the_bound_on_the_label_noise_is_reported(decision):
    noise = NoiseBound(ErrorRates(0.1, 0.06, 100, 300), by_halves=True)
    table = noise_table(replace(decision, noise=noise))
    assert table.rows == (("labels wrong at random, at most", "0.1000", "0.0600", "0.0800"),)
    assert table.notes == (describe_noise(noise, decision.nested.hter),)
    assert decision.noise is not None and len(noise_table(decision).rows) == 1


def test_a_floor_that_is_not_known_is_said_to_be_so(decision):
    table = noise_table(replace(decision, noise=None))
    assert table.rows == ()
    assert "is not known" in table.notes[0]
    for shown in (table.text(), table.markdown()):
        assert "is not known" in " ".join(shown.split())  # a narrow table wraps it


def test_the_tables_of_a_decision_end_with_what_they_mean(decision):
    plain, tta, stackers, curve, floor = decision_tables(replace(decision, views=("plain",)), decision)
    assert plain.title.startswith("Decision, views plain:") and tta == decision_table(decision)
    assert (stackers, curve, floor) == (stackers_table(decision), curve_table(decision), noise_table(decision))
    alone = replace(decision, stackers=())
    assert [table.title for table in decision_tables(alone, alone)][2:] == [curve.title, floor.title]
    *_, last, in_short = render(FitResult(decision, decision))
    assert in_short == fit_summary(FitResult(decision, decision))
    assert last.notes == (*floor.notes, *LEGEND, AVERAGING)
    (alone,) = render(MemberReport(decision.members[0], ("identity",)))
    assert alone.notes[-len(LEGEND) :] == LEGEND


def test_a_result_of_an_unknown_type_has_no_tables():
    with pytest.raises(TypeError, match="no tables for int"):
        render(3)


def test_the_origin_of_a_member_is_noted(decision):
    report = MemberReport(decision.members[0], ("identity",), from_scratch=True, left_out=(3, 5))
    notes = member_table(report).notes
    assert "Trained from scratch: the config requests pretrained weights, and none were available." in notes
    assert "Training images of each fold that were left out for doubtful labels: 3, 5." in notes
    assert len(member_table(MemberReport(decision.members[0], ("identity",))).notes) == len(notes) - 2


# --- all --------------------------------------------------------------------------------------------------------------


def test_one_table_reads_the_same_everywhere(decision):
    for table in render(reported(decision, {"val": PREDICTED})):
        for shown in (table.text(400), table.markdown().replace("\\|", "|").replace("&lt;", "<")):
            for cell in (cell for row in table.rows for cell in row):
                assert cell in shown


def test_the_summary_stands_last_on_the_screen_and_first_in_the_report(decision):
    result = reported(decision, {"val": PREDICTED})
    *tables, last = render(result)
    assert tables == report_tables(result)
    assert last == report_summary(result).with_notes(*report_files(result))
    assert report_markdown(result).startswith("# Run run: 400 images, 4 folds\n\n" + report_summary(result).markdown())


def test_the_report_holds_all_figures_unrounded(decision):
    stored = json.loads(json.dumps(report_json(reported(decision, {"val": PREDICTED})), allow_nan=False))
    assert set(stored["members"]) == {"cnn[b]", "a|b"}
    stack = stored["decisions"]["plain"]["stack"]
    assert stack["nested"]["hter"] == decision.nested.hter
    assert stack["nested"]["interval"] == [decision.interval.low, decision.interval.high]
    of_file = stored["predictions"]["val"]
    assert of_file["expectation"]["rates"]["hter"] == EXPECTED.rates.hter and of_file["images"] == 500
    assert of_file["share_check"]["shifted"] is False
    assert stack["nested"]["refitted"] and stored["members"]["a|b"]["nested"]["refitted"]
    assert not any(row["nested"]["refitted"] for row in stored["decisions"]["plain"]["baselines"])
    assert stack["nested"]["fpr_interval"] == [decision.stacked.fpr.low, decision.stacked.fpr.high]
    assert stack["less_the_stack"] is None
    of_member = decision.members[0].difference
    assert stored["members"]["cnn[b]"]["less_the_stack"] == {
        "hter": of_member.value,
        "interval": [of_member.interval.low, of_member.interval.high],
    }
    assert len(stack["folds"]) == 4
    plain = stored["decisions"]["plain"]
    assert len(plain["baselines"]) == len(decision.baselines)
    assert (plain["objective"], plain["stacker"]) == ("hter", decision.kind)
    assert [row["name"] for row in plain["stackers"]] == ["mean", "calibrated", "nonnegative", "logistic"]
    assert [row["cost_fpr"] for row in plain["curve"]] == [cost / 10 for cost in range(1, 10)]
    assert plain["curve"][4]["loss"] == plain["curve"][4]["hter"] == decision.nested.hter
    assert plain["repeated"] == list(decision.repeated)
    assert plain["noise"] == json.loads(json.dumps(asdict(decision.noise)))


def test_the_markdown_report_holds_every_table(decision):
    result = replace(reported(decision, {"val": PREDICTED}), data_notes=("3 grey images",))
    text = report_markdown(result)
    assert text.startswith("# Run run: 400 images, 4 folds\n\n## In short")
    assert all(table.markdown() in text for table in report_tables(result))
    assert text.endswith("\nData: 3 grey images\n")
