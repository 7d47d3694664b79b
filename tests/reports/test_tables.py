import io
import json

import numpy as np
import pytest
from rich.console import Console

from ensemble.decision.assessment import fit_decision
from ensemble.decision.stacker import OofLogits
from ensemble.reports.tables import (
    Table,
    decision_tables,
    explained,
    member_table,
    prediction_table,
    report_json,
    report_markdown,
)

PREDICTED = {
    "images": 500,
    "views": ["identity", "hflip"],
    "share_of_label_0": 0.25,
    "expected": {"fpr": 0.1, "fnr": 0.2, "hter": 0.15},
    "expected_interval": [0.1, 0.2],
    "averaging_measured": True,
}


def test_a_label_file_is_promised_an_hter():
    one = PREDICTED | {"images": 1, "expected_interval": None, "averaging_measured": False}
    table = prediction_table({"val": PREDICTED, "one": one})
    promised = ("val", "500", "identity + hflip", "0.2500", "0.1000", "0.2000", "0.1500", "[0.1000, 0.2000]")
    assert table.rows == (promised, ("one *", "1", *promised[2:7], ""))


@pytest.fixture(scope="module")
def decision():
    rng = np.random.default_rng(3)
    labels = np.arange(400) % 4 > 0
    logits = rng.normal(size=(400, 2)) + np.outer(2.0 * labels - 1, (1.0, 0.5))
    oof = OofLogits(np.arange(400), labels, np.arange(400) // 4 % 4, ("cnn[b]", "a|b"), logits)
    return fit_decision(oof, ("plain", "flip"))


def test_a_members_table_has_a_row_per_fold_and_one_of_all(decision):
    member = decision.members[0]
    table = member_table(member, ("identity", "hflip"))
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3", "pooled"]
    assert sum(int(row[1]) for row in table.rows[:-1]) == int(table.rows[-1][1]) == 400
    assert table.rows[-1][4] == f"{member.nested.hter:.4f}"
    assert table.rows[-1][5] == f"[{member.interval.low:.4f}, {member.interval.high:.4f}]"
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_stacks_table_leads_with_the_nested_stack_and_promises_a_range(decision):
    table, tta = decision_tables(decision, decision)
    assert table == tta
    assert f"nested HTER {decision.nested.hter:.4f}" in table.title
    assert [row[0] for row in table.rows][:3] == ["stack", "member cnn[b]", "member a|b"]
    assert table.rows[0][3:] == (
        f"{decision.nested.hter:.4f}",
        f"[{decision.interval.low:.4f}, {decision.interval.high:.4f}]",
        f"{decision.apparent.hter:.4f}",
        f"{decision.optimism:+.4f}",
        f"{decision.stacked.auc:.4f}",
    )
    shown = explained([tta, table], deployed=True)
    assert shown[0] == tta and any(note.startswith("Prediction averages") for note in shown[-1].notes)
    assert not any(note.startswith("Prediction averages") for note in explained([table], deployed=False)[0].notes)
    assert len(decision_tables(decision)) == 1


def test_one_table_reads_the_same_everywhere(decision):
    (table,) = decision_tables(decision)
    out = io.StringIO()
    Console(file=out, width=300, color_system=None).print(table.rich())
    for shown in (table.text(), table.markdown().replace("\\|", "|"), out.getvalue()):
        for cell in (cell for row in table.rows for cell in row):
            assert cell in shown


def test_markdown_keeps_its_columns_whatever_a_member_is_called():
    lines = Table("T", ("rule", "n"), (("a|b", "1"),), ("Note.",)).markdown().splitlines()
    assert lines == ["## T", "", "| rule | n |", "| --- | ---: |", "| a\\|b | 1 |", "", "Note."]


def test_the_report_holds_all_figures_unrounded(decision):
    stored = json.loads(
        json.dumps(report_json(decision.members, {"plain": decision}, {"val": PREDICTED}), allow_nan=False)
    )
    assert set(stored["members"]) == {"cnn[b]", "a|b"}
    stack = stored["decisions"]["plain"]["stack"]
    assert stack["nested"]["hter"] == decision.nested.hter
    assert stack["nested"]["interval"] == [decision.interval.low, decision.interval.high]
    assert stored["predictions"]["val"] == PREDICTED
    assert len(stored["decisions"]["plain"]["baselines"]) == len(decision.baselines)
    assert len(stack["folds"]) == 4


def test_the_markdown_report_holds_every_table(decision):
    tables = [*(member_table(member, ("identity",)) for member in decision.members), *decision_tables(decision)]
    text = report_markdown("Run", tables)
    assert text.startswith("# Run\n\n## cnn[b]")
    assert all(f"## {table.title}\n" in text for table in tables)
